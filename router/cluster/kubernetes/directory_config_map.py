"""The files of a directory as a ConfigMap, whose keys cannot have directories: the volume has their paths."""

from __future__ import annotations

import base64
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MAX_BYTES = 700_000
"""Maximum size of the files. Kubernetes allows 1 MiB for an object, and base64 adds a third."""
_MAX_FILES = 1000
_SKIPPED = frozenset(("__pycache__",))


class TooLargeError(ValueError):
    """The files do not fit into a ConfigMap."""


def config_map_files(files: Path, root: Path) -> tuple[dict[str, Any], list[dict[str, str]]]:
    """Return `data` and `binaryData` of a ConfigMap with a file, or with all files of a directory, and the `items` of
    its volume, whose paths are relative to `root`.

    Hidden files, byte code and files that are not regular are left out. Raises `TooLargeError`, and OSError if a file
    cannot be read.
    """
    content: dict[str, dict[str, str]] = {}
    items = []
    total = 0
    for number, path in enumerate(_files(files)):
        total += path.stat().st_size
        if total > MAX_BYTES or number >= _MAX_FILES:
            raise TooLargeError(f"more than {MAX_BYTES} bytes or {_MAX_FILES} files do not fit into a ConfigMap")
        relative = path.relative_to(root).as_posix()
        key = f"{number}-{_key_text(path.name)}"
        data = path.read_bytes()
        try:
            content.setdefault("data", {})[key] = data.decode()
        except UnicodeDecodeError:
            content.setdefault("binaryData", {})[key] = base64.b64encode(data).decode()
        items.append({"key": key, "path": relative})
    return content, items


def _files(path: Path) -> Iterator[Path]:
    """Yield a file itself, or the files of a directory in the order of their names. Raises OSError."""
    if not path.is_dir():
        if stat.S_ISREG(path.stat().st_mode):  # reading a named pipe would not end
            yield path
        return
    with os.scandir(path) as entries:
        names = sorted(entry.name for entry in entries)
    for name in names:
        if not name.startswith(".") and name not in _SKIPPED:
            yield from _files(path / name)


def _key_text(name: str) -> str:
    """Return a file name with the characters that keys of a ConfigMap allow."""
    return "".join(each if each.isascii() and (each.isalnum() or each in "-._") else "_" for each in name)[:200]
