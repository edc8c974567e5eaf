"""A YAML document as plain values, each with the line it was written on.

Lives here: which YAML is accepted and how its faults are reported. Must not live here: what the values mean.

Every scalar stays text, except for an empty one and `null`: settings have a grammar of their own (`router.values`), and
YAML's would make `0123` a number, `on` a bool and a version called `no` false. Tags are refused, so nothing is
constructed; size, depth and the number of values after the expansion of aliases are bounded.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from router.services import SettingPath
from router.values import SettingsError

MAX_BYTES = 1_048_576
MAX_VALUES = 100_000
MAX_DEPTH = 20

_PLAIN_TAGS = frozenset(f"tag:yaml.org,2002:{kind}" for kind in ("str", "seq", "map"))
_NULLS = frozenset(("", "~", "null", "Null", "NULL"))


@dataclass(frozen=True, slots=True)
class Document:
    """Values of a file: text, None, lists and mappings with text keys; `lines` holds the line of each path in them."""

    file: str
    values: object
    lines: Mapping[SettingPath, int]

    def locate(self, path: SettingPath) -> str:
        """Where the value at `path`, or what is nearest around it, was written: `models.yaml, line 7`."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.lines:
                return _place(self.file, self.lines[path[:length]])
        return self.file


def read_document(path: Path) -> Document:
    """The document in the file at `path`. Raises `SettingsError` when it cannot be read or is not such a document."""
    file = str(path)
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise SettingsError("file", None, f"cannot be read: {error.strerror}", file) from error
    if len(content) > MAX_BYTES:
        raise SettingsError("file", None, f"must not exceed {MAX_BYTES} bytes", file)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise SettingsError("file", None, "must be UTF-8 text", _place(file, line)) from error
    walk = _Walk(file, {}, MAX_VALUES)
    root = _compose(file, text)
    values = None if root is None else walk.convert(root, ())
    return Document(file, values, walk.lines)


def _compose(file: str, text: str) -> yaml.Node | None:
    try:
        return yaml.compose(text, Loader=yaml.BaseLoader)
    except yaml.MarkedYAMLError as error:
        place = _place(file, error.problem_mark.line + 1) if error.problem_mark else file
        raise SettingsError("file", None, f"is not YAML: {error.problem}", place) from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise SettingsError("file", None, "has a character that YAML does not allow", _place(file, line)) from error
    except RecursionError as error:
        raise SettingsError("file", None, f"must not be nested deeper than {MAX_DEPTH}", file) from error


@dataclass(slots=True)
class _Walk:
    file: str
    lines: dict[SettingPath, int]
    values_left: int

    def convert(self, node: yaml.Node, path: SettingPath) -> object:
        self.values_left -= 1
        if self.values_left < 0:
            raise self._fault(node, f"must not hold more than {MAX_VALUES} values")
        # Also ends an alias that contains itself.
        if len(path) > MAX_DEPTH:
            raise self._fault(node, f"must not be nested deeper than {MAX_DEPTH}")
        if node.tag not in _PLAIN_TAGS:
            raise self._fault(node, f"must not use the tag {node.tag}")
        if isinstance(node, yaml.MappingNode):
            return self._convert_mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self._convert_at(item, (*path, str(index)), item) for index, item in enumerate(node.value)]
        is_null = isinstance(node, yaml.ScalarNode) and node.style is None and node.value in _NULLS
        return None if is_null else str(node.value)

    def _convert_mapping(self, node: yaml.MappingNode, path: SettingPath) -> dict[str, object]:
        values: dict[str, object] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise self._fault(key, "must have text for every name")
            if key.value in values:
                raise self._fault(key, f"has {key.value} twice, also on line {self.lines[(*path, key.value)]}")
            values[key.value] = self._convert_at(value, (*path, key.value), key)
        return values

    def _convert_at(self, node: yaml.Node, path: SettingPath, line_of: yaml.Node) -> object:
        self.lines[path] = line_of.start_mark.line + 1
        return self.convert(node, path)

    def _fault(self, node: yaml.Node, allowed: str) -> SettingsError:
        return SettingsError("file", None, allowed, _place(self.file, node.start_mark.line + 1))


def _place(file: str, line: int) -> str:
    return f"{file}, line {line}"
