"""The keys of one file: each is used, or listed with the reason why not.

A key that its reader does not ask for is unknown, which is a loss. So no key can be forgotten.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from router.azureml.services import Key, Loss
from router.config.dialects import SETTING_NAMES, KeyPath
from router.config.schema import ErrorCollector, SettingsError
from router.config.unknown import most_similar
from router.config.yaml_document import YamlDocument

_OFF = frozenset(("false", "none", "0", "", "disabled"))
"""Values with which a key has no effect, in lower case."""

_VARIABLE = re.compile(r"[A-Za-z_.-][A-Za-z0-9_.-]*", re.ASCII)
"""The names of environment variables that each release of Kubernetes accepts."""


class KeyReader:
    """Reads the keys of one document, and records which of them are used."""

    def __init__(self, document: YamlDocument, errors: ErrorCollector) -> None:
        self._document = document
        self._errors = errors
        self._used: set[KeyPath] = set()
        self._known: set[KeyPath] = set()
        self.losses: list[Loss] = []

    @property
    def file(self) -> str:
        """The path of the file."""
        return self._document.file

    def key(self, path: KeyPath) -> Key | None:
        """Return a key with its value; None if it is missing or null. It counts as used."""
        self._known.add(path)
        self._used.add(path)
        value: Any = self._document.values
        for depth, part in enumerate(path):
            if value is None:
                return None
            if not isinstance(value, Mapping):
                self._reject(path[:depth], "must be a mapping of keys to values")
                return None
            value = value.get(part)
        return None if value is None else Key(value, ".".join(path), self._document.locate(path))

    def text(self, path: KeyPath) -> Key | None:
        """Return a key whose value is text. Collects an error for a mapping or a list."""
        key = self.key(path)
        if key is not None and not isinstance(key.value, str):
            self._reject(path, "must be a single value")
            return None
        if key is not None and "\0" in key.value:
            self._reject(path, "must not contain the character NUL")
            return None
        return key

    def mapping(self, path: KeyPath) -> dict[str, Key] | None:
        """Return the values of a mapping of text, with their locations. Collects an error for other values."""
        key = self.key(path)
        if key is None:
            return None
        if not isinstance(key.value, Mapping):
            self._reject(path, "must be a mapping of keys to values")
            return None
        values = {}
        for name, value in key.value.items():
            if isinstance(value, Mapping | list):
                self._reject((*path, name), "must be a single value")
            else:
                where = self._document.locate((*path, name))
                values[name] = Key("" if value is None else value, f"{key.name}.{name}", where)
        return values

    def variables(self, path: KeyPath) -> dict[str, Key]:
        """Return environment variables. Collects an error for names that Kubernetes rejects, and for NUL in values."""
        values = self.mapping(path) or {}
        for name, key in values.items():
            if not _VARIABLE.fullmatch(name):
                self._reject((*path, name), "must have a name of letters, digits, '_', '-' and '.', and no digit first")
            elif "\0" in key.value:
                self._reject((*path, name), "must not contain the character NUL")
        return values

    def texts(self, path: KeyPath) -> Key | None:
        """Return a mapping of text as one key. Collects an error for other values."""
        items = self.mapping(path)
        key = self.key(path)
        return None if not items or key is None else key.holds({name: item.value for name, item in items.items()})

    def forget(self, path: KeyPath) -> None:
        """Count a mapping as not used: its keys are read one by one."""
        self._used.discard(path)

    def ignore(self, *paths: KeyPath) -> None:
        """Mark keys as used that say where the file belongs, and have no effect on requests."""
        for path in paths:
            self.key(path)

    def lose(self, path: KeyPath, reason: str, *, unless_off: bool = True) -> None:
        """List a key as a loss if it is given. With `unless_off`, not if its value turns something off."""
        key = self.key(path)
        if key is None or (unless_off and _is_off(key.value)):
            return
        self.losses.append(Loss(key.where, key.name, reason))

    def lose_others(self, dialect: str) -> None:
        """List each key as a loss that was not asked for. `dialect` is `v1` or `v2`, for suggestions."""
        for path in self._unused((), self._document.values):
            where = self._document.locate(path)
            similar = self._suggestion(path[-1], dialect)
            hint = f"; did you mean {similar}?" if similar else ""
            self.losses.append(Loss(where, ".".join(path), f"Azure ML has no such key here{hint}"))

    def _unused(self, path: KeyPath, value: object) -> Iterator[KeyPath]:
        """Yield the longest paths that contain no used key."""
        if path in self._used:
            return
        if isinstance(value, Mapping) and any(used[: len(path)] == path for used in self._known):
            for name, item in value.items():
                yield from self._unused((*path, name), item)
        elif path:
            yield path

    def _suggestion(self, name: str, dialect: str) -> str | None:
        """Return the key of this format that another name of the same setting stands for, or the most similar key."""
        for row in SETTING_NAMES:
            if name == row.setting or any(path[-1] == name for path in (*row.v1, *row.v2)):
                paths = row.v1 if dialect == "v1" else row.v2
                if paths:
                    return ".".join(paths[0])
        known = sorted(self._known, key=lambda path: (-len(path), path))  # of equal names, the shortest path wins
        by_name = {part: ".".join(path[: depth + 1]) for path in known for depth, part in enumerate(path)}
        similar = most_similar(name, by_name)
        return by_name[similar] if similar else None

    def _reject(self, path: KeyPath, problem: str) -> None:
        self._errors.add(SettingsError(".".join(path) or "file", None, problem, self._document.locate(path)))


def _is_off(value: Any) -> bool:
    """True for a value, or only such values of a mapping or list, with which a key has no effect."""
    if isinstance(value, Mapping):
        return all(map(_is_off, value.values()))
    if isinstance(value, list):
        return not value
    return value is None or str(value).lower() in _OFF
