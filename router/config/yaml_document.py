"""A YAML document as plain values, each with its line.

Contains: which YAML is accepted, and the errors about it. Does not contain: what the values mean.

Every scalar stays text, except empty ones and `null`. Settings have a grammar of their own (`config.schema`). YAML's
grammar would make `0123` a number, `on` a bool, and the version name `no` a false. Tags are rejected, so no objects are
constructed. A merge key (`<<: *defaults`) adds the entries that its mapping lacks. The size, the depth, and the number
of values after the expansion of aliases and merge keys are bounded.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import yaml

from router.config.regular_file import read_regular_file
from router.config.schema import SettingsError
from router.config.service import SettingPath

MAX_BYTES = 1_048_576
MAX_VALUES = 100_000
MAX_DEPTH = 20

_PLAIN_TAGS = frozenset(f"tag:yaml.org,2002:{kind}" for kind in ("str", "seq", "map"))
_NULLS = frozenset(("", "~", "null", "Null", "NULL"))


class Document(Protocol):
    """Values with their locations."""

    @property
    def values(self) -> object:
        """Text, None, lists, and mappings with text keys."""
        ...

    def locate(self, path: SettingPath) -> str:
        """Return the location of the value at `path`, or of the nearest one that contains it: `models.yaml, line 7`."""
        ...


@dataclass(frozen=True, slots=True)
class YamlDocument:
    """The values of a file: text, None, lists, and mappings with text keys. `lines` has the line of each path."""

    file: str
    values: object
    lines: Mapping[SettingPath, int]

    def locate(self, path: SettingPath) -> str:
        """Return the location of the value at `path`, or of the nearest one that contains it: `models.yaml, line 7`."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.lines:
                return _location(self.file, self.lines[path[:length]])
        return self.file


def read_yaml(path: Path) -> YamlDocument:
    """Return the document in the file at `path`. Raises `SettingsError` if it cannot be read or is not accepted."""
    return _to_document(str(path), _read_text(path))


def read_json(path: Path) -> YamlDocument:
    """Return the JSON document in the file at `path`, with its scalars as text, as in YAML. Raises `SettingsError`."""
    file, text = str(path), _read_text(path)
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        raise SettingsError("file", None, f"is not JSON: {error.msg}", _location(file, error.lineno)) from error
    except RecursionError as error:
        raise SettingsError("file", None, f"must not be nested deeper than {MAX_DEPTH}", file) from error
    # Apart from tabs, which JSON allows only between its tokens, JSON is YAML.
    return _to_document(file, text.replace("\t", " "))


def dump_yaml(value: object) -> str:
    """Return a YAML document with this value, whose keys keep their order."""
    return str(yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120))


class _Dumper(yaml.SafeDumper):
    """Writes equal values in full, not as aliases, and texts of several lines as they are."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def _represent_text(dumper: _Dumper, text: str) -> yaml.Node:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _represent_text)


def parse_yaml(content: bytes, file: str, max_bytes: int = MAX_BYTES) -> YamlDocument:
    """Return the document with this content. `file` is its name in errors. Raises `SettingsError` if it is not
    accepted."""
    return _to_document(file, _decode(content, file, max_bytes))


def _read_text(path: Path) -> str:
    try:
        content = read_regular_file(path, MAX_BYTES + 1)
    except OSError as error:
        raise SettingsError("file", None, f"cannot be read: {error.strerror}", str(path)) from error
    return _decode(content, str(path), MAX_BYTES)


def _decode(content: bytes, file: str, max_bytes: int) -> str:
    if len(content) > max_bytes:
        raise SettingsError("file", None, f"must not exceed {max_bytes} bytes", file)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise SettingsError("file", None, "must be UTF-8 text", _location(file, line)) from error


def _to_document(file: str, text: str) -> YamlDocument:
    converter = _Converter(file, {}, MAX_VALUES)
    root = _compose(file, text)
    values = None if root is None else converter.convert(root, ())
    return YamlDocument(file, values, converter.lines)


def _compose(file: str, text: str) -> yaml.Node | None:
    try:
        return yaml.compose(text, Loader=yaml.BaseLoader)
    except yaml.MarkedYAMLError as error:
        location = _location(file, error.problem_mark.line + 1) if error.problem_mark else file
        raise SettingsError("file", None, f"is not YAML: {error.problem}", location) from error
    except yaml.reader.ReaderError as error:
        location = _location(file, text.count("\n", 0, error.position) + 1)
        raise SettingsError("file", None, "has a character that YAML does not allow", location) from error
    except RecursionError as error:
        raise SettingsError("file", None, f"must not be nested deeper than {MAX_DEPTH}", file) from error


@dataclass(slots=True)
class _Converter:
    """Converts the nodes of a document to values, and records their lines."""

    file: str
    lines: dict[SettingPath, int]
    values_left: int

    def convert(self, node: yaml.Node, path: SettingPath) -> object:
        self._check(node, len(path), 1)
        if isinstance(node, yaml.MappingNode):
            return self._convert_mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self._convert_at(item, (*path, str(index)), item) for index, item in enumerate(node.value)]
        is_null = isinstance(node, yaml.ScalarNode) and node.style is None and node.value in _NULLS
        return None if is_null else _without_surrogates(str(node.value))

    def _convert_mapping(self, node: yaml.MappingNode, path: SettingPath) -> dict[str, object]:
        values: dict[str, object] = {}
        for key, value in self._entries(node, len(path)):
            if key.value not in values:
                values[key.value] = self._convert_at(value, (*path, key.value), key)
        return values

    def _entries(self, node: yaml.MappingNode, depth: int) -> Iterator[tuple[yaml.ScalarNode, yaml.Node]]:
        """Yield the entries of a mapping, then those of the mappings that its merge key names."""
        keys: dict[str, yaml.Node] = {}
        sources: list[yaml.MappingNode] = []
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise self._error(key, "must have text for every name")
            if key.value in keys:
                line = keys[key.value].start_mark.line + 1
                raise self._error(key, f"has {key.value} twice, also on line {line}")
            keys[key.value] = key
            if merged := _merge_sources(key, value):
                sources += merged
            else:
                yield key, value
        for source in sources:
            self._check(source, depth + 1, 1 + len(source.value))
            yield from self._entries(source, depth + 1)

    def _check(self, node: yaml.Node, depth: int, values: int) -> None:
        """Count `values`. Raises `SettingsError` above a limit, and for a tag."""
        self.values_left -= values
        if self.values_left < 0:
            raise self._error(node, f"must not contain more than {MAX_VALUES} values")
        # This also stops at an alias that contains itself.
        if depth > MAX_DEPTH:
            raise self._error(node, f"must not be nested deeper than {MAX_DEPTH}")
        if node.tag not in _PLAIN_TAGS:
            raise self._error(node, f"must not use the tag {node.tag}")

    def _convert_at(self, node: yaml.Node, path: SettingPath, line_node: yaml.Node) -> object:
        self.lines[path] = line_node.start_mark.line + 1
        return self.convert(node, path)

    def _error(self, node: yaml.Node, problem: str) -> SettingsError:
        return SettingsError("file", None, problem, _location(self.file, node.start_mark.line + 1))


def _merge_sources(key: yaml.ScalarNode, value: yaml.Node) -> list[yaml.MappingNode]:
    """Return the mappings that a merge key names: one, or a list of them. Empty for another key."""
    if key.value != "<<" or key.style is not None:
        return []
    given = value.value if isinstance(value, yaml.SequenceNode) else [value]
    sources = [source for source in given if isinstance(source, yaml.MappingNode)]
    return sources if len(sources) == len(given) else []


def _without_surrogates(text: str) -> str:
    """Return the text with the characters that pairs of surrogates stand for, as JSON escapes them, and with U+FFFD for
    other surrogates, which cannot be written."""
    if text.isascii() or not any("\ud800" <= each <= "\udfff" for each in text):
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _location(file: str, line: int) -> str:
    return f"{file}, line {line}"
