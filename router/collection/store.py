"""Where collected data is stored. The interface, and a folder; `azure_store` is Azure Blob Storage.

The methods of a store wait for storage. They are called in threads, for one name at a time. Each can be repeated after
a failure that leaves open whether it took effect.
"""

from __future__ import annotations

import contextlib
import os
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

_PARTIAL = ".partial"
_MEASURE_SECONDS = 30.0
"""Minimum time between two measurements of a full folder."""


class StoreError(Exception):
    """An operation failed and must be repeated. `reason` is one of the metric `collection_storage_failures`.
    `retry_after`: seconds for which the storage asks."""

    def __init__(self, reason: str, detail: str, retry_after: float = 0.0) -> None:
        super().__init__(detail)
        self.reason = reason
        self.retry_after = retry_after


class FileLostError(Exception):
    """What was stored under this name before does not exist any more."""


class RefusedError(Exception):
    """The operation had no effect, and will have none if it is repeated. `reason` is one of `collection_dropped`."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class Store(Protocol):
    """Stores files of lines, and blobs. Names are relative paths. Raises `StoreError`, `FileLostError` and
    `RefusedError`."""

    def append(self, name: str, offset: int, data: bytes) -> None:
        """Append data to a file whose size is `offset`. Offset 0 creates the file. Does nothing if the data is there
        already."""

    def stage(self, name: str, index: int, offset: int, data: bytes) -> None:
        """Stage a block of a blob: its number, and its place in the blob."""

    def commit(self, name: str, count: int, content_type: str) -> None:
        """Make the blob of its staged blocks."""

    def discard(self, name: str) -> None:
        """Remove the staged blocks of a blob."""

    def url(self, name: str) -> str:
        """Return the address of a stored blob, without credentials."""

    def close(self) -> None:
        """Close connections."""


class FolderStore:
    """A folder of the file system. Only its owner can read the files, which have what clients and models send."""

    def __init__(self, root: Path, max_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        """`max_bytes`: of all files in the folder. It is created when something is stored. `clock` returns seconds."""
        self._root = root.absolute()
        self._lock = threading.Lock()  # of the size
        self._max_bytes = max_bytes
        self._clock = clock
        self._size = _folder_size(self._root)
        self._measured_at = clock()

    def append(self, name: str, offset: int, data: bytes) -> None:
        """See `Store.append`."""
        self._write(self._root / name, offset, data)

    def stage(self, name: str, index: int, offset: int, data: bytes) -> None:
        """See `Store.stage`."""
        self._write(self._root / (name + _PARTIAL), offset, data)

    def _write(self, path: Path, offset: int, data: bytes) -> None:
        if self._size + len(data) > self._max_bytes:
            self._measure()
        if self._size + len(data) > self._max_bytes:
            raise RefusedError("folder-full", f"{self._root} has collection_folder_max_bytes")
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            flags = os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW | (0 if offset else os.O_CREAT)
            with open(os.open(path, flags, 0o600), "wb", buffering=0) as file:
                size = os.fstat(file.fileno()).st_size
                if size < offset:
                    raise FileLostError(str(path))
                file.truncate(offset)  # a part of the data, after a failed write
                file.seek(offset)
                _write_all(file.fileno(), data)
        except FileNotFoundError:
            raise FileLostError(str(path)) from None
        except OSError as error:
            raise StoreError("failed", error.strerror or str(error)) from None
        self._add_size(offset + len(data) - size)

    def _measure(self) -> None:
        """Measure the full folder again, as files may have been removed."""
        with self._lock:
            if self._clock() - self._measured_at >= _MEASURE_SECONDS:
                self._size = _folder_size(self._root)
                self._measured_at = self._clock()

    def commit(self, name: str, count: int, content_type: str) -> None:
        """See `Store.commit`."""
        path = self._root / name
        try:
            Path(f"{path}{_PARTIAL}").replace(path)
        except FileNotFoundError:
            if not path.exists():
                raise FileLostError(str(path)) from None
        except OSError as error:
            raise StoreError("failed", error.strerror or str(error)) from None

    def discard(self, name: str) -> None:
        """See `Store.discard`."""
        path = self._root / (name + _PARTIAL)
        try:
            size = path.stat().st_size
            path.unlink()
        except OSError:
            return  # it stays until somebody removes it
        self._add_size(-size)

    def _add_size(self, size: int) -> None:
        with self._lock:
            self._size += size

    def url(self, name: str) -> str:
        """See `Store.url`."""
        return (self._root / name).as_uri()

    def close(self) -> None:
        """See `Store.close`."""


def _folder_size(root: Path) -> int:
    size = 0
    for path in root.rglob("*"):
        with contextlib.suppress(OSError):  # it was removed meanwhile
            status = path.lstat()
            size += status.st_size if stat.S_ISREG(status.st_mode) else 0
    return size


def _write_all(fd: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]
