"""The description of one setting, and the parser that turns a raw value into a typed one.

Contains: `Setting`, `parse_value`, the error for unknown names, and `SettingsError`. Does not contain: which settings
exist (`config.router`, `config.service_settings`, `cluster.local.launch`), rules between two settings, and any reading
of files or of the environment.

A raw value is either typed (bool, int, float, list, mapping) or text, as in annotations, environment variables, flags
and plain YAML scalars. Text is parsed by the grammar of this module, because `int()` and `float()` also accept `1_000`,
`+5`, `nan`, spaces and digits of other scripts.
"""

import difflib
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import KW_ONLY, dataclass
from enum import StrEnum
from typing import Any

from router.config.error_collector import Collector

MAX_NUMBER = 2**31 - 1
"""Maximum of every number that declares none: it keeps sums and timers in range and is the SDK's largest integer."""

_INTEGER = re.compile(r"0|[1-9][0-9]{0,17}", re.ASCII)
_DECIMAL = re.compile(r"(?:0|[1-9][0-9]{0,17})(?:\.[0-9]{1,17})?(?:e[-+][0-9]{2})?", re.ASCII)
"""A decimal number. The exponent is what Helm, Go and Python print for small and large numbers: `5e-05`, `1.5e+06`."""
_HUGE = re.compile(r"[1-9][0-9]{9,}(?:\.[0-9]+)?", re.ASCII)
_LINE = re.compile(r"(?P<file>.*?), line (?P<line>[0-9]+)", re.DOTALL)
"""The beginning of the source of a setting in a file."""
_MAX_SHOWN_CHARACTERS = 80
_MAX_NAMES = 20  # in an error


class SettingsError(ValueError):
    """A setting that cannot be used. `str()` is one line with its source, its name, its value and the problem.

    `value` is None if the error must not show it. That holds for secrets, and for unknown settings, which may be
    misspelt secrets. `problem` completes a sentence about the setting: "must be ...", "excludes ...".
    """

    def __init__(self, setting: str, value: object, problem: str, where: str = "") -> None:
        self.setting = setting
        self.value = value
        self.problem = problem
        self.where = where
        source = f"{where}: " if where else ""
        shown = "" if value is None else f" = {_shortened(value)}"
        super().__init__(_one_line(f"{source}{setting}{shown}: {problem}"))

    @property
    def errors(self) -> "tuple[SettingsError, ...]":
        """Every error that this one stands for."""
        return (self,)


class SettingsErrors(SettingsError):
    """Several settings that cannot be used. `str()` has a line for each."""

    def __init__(self, errors: Iterable[SettingsError]) -> None:
        self._errors = tuple(errors)
        first = self._errors[0]
        super().__init__(first.setting, first.value, first.problem, first.where)

    def __str__(self) -> str:
        return "\n".join(map(str, self._errors))

    @property
    def errors(self) -> tuple[SettingsError, ...]:
        return self._errors


class ErrorCollector(Collector[SettingsError]):
    """Collects the errors of independent settings."""

    def __init__(self) -> None:
        super().__init__(SettingsError, SettingsErrors)
        self._sources: Mapping[str, str] = {}

    def raise_errors(self, sources: Mapping[str, str] | None = None) -> None:
        """Raise what was collected: nothing, the only error, or `SettingsErrors` in the order of files and lines.
        `sources` has the sources of settings by name, for errors without one."""
        self._sources = sources or {}
        super().raise_errors()

    def errors(self) -> list[SettingsError]:
        """Return what was collected, with its sources, in the order of files and lines."""
        return sorted(map(self._with_source, super().errors()), key=_place)

    def _with_source(self, error: SettingsError) -> SettingsError:
        if error.where or error.setting not in self._sources:
            return error
        return SettingsError(error.setting, error.value, error.problem, self._sources[error.setting])


def _place(error: SettingsError) -> tuple[str, int]:
    """Return the file and the line of an error; those without a line come first."""
    match = _LINE.match(error.where)
    return ("", 0) if match is None else (match["file"], int(match["line"]))


class ArgumentError(SettingsError):
    """A command-line argument that cannot be used. `setting` is its name in the usage text, for example SERVICE."""


class UnknownServiceError(ArgumentError):
    """A command-line argument that names no service."""

    def __init__(self, service: str, known: Iterable[str], kind: str, where: str = "") -> None:
        """`kind` describes the services in `known`, for example "services with stored keys"."""
        names = sorted(known)
        similar = difflib.get_close_matches(service, names, n=1)
        self._text = f'no service "{service}"; ' + (f"did you mean {similar[0]}? " if similar else "")
        self._text += f"{kind}: {', '.join(names[:_MAX_NAMES]) or 'none yet'}"
        self._text += f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
        super().__init__("SERVICE", service, self._text, where)

    def __str__(self) -> str:
        return _one_line((f"{self.where}: " if self.where else "") + self._text)


class SettingKind(StrEnum):
    """The type of a setting's value."""

    BOOL = "bool"
    INT = "int"
    FLOAT = "float"
    TEXT = "text"
    LIST = "list"
    NUMBERS = "numbers"
    """A list of numbers; parsed to floats. A single number is a list of one."""
    MAPPING = "mapping"
    """A mapping of text to text. As a single text it is a JSON object."""
    FRACTION = "fraction"
    """`on`, `off` or a number from 0 to 1; parsed to a float from 0 to 1."""
    OBJECT = "object"
    """A mapping with settings of its own, or its JSON text; parsed by the `parser` of the setting."""


@dataclass(frozen=True, slots=True)
class Setting:
    """The declaration of one setting. The parser checks values against it, and the documentation prints it.

    `minimum` and `maximum` are inclusive, `above` is an exclusive minimum; all three are in `unit`. `pattern` must
    match a whole text, each item of a list or each name of a mapping; `pattern_text` is the same rule in words.
    `default_text` is printed instead of `default`, for example where the default depends on another setting. The value
    of a `secret` setting appears in no error. `flag` lists its command-line flag in the help of commands. `is_path`
    marks the path of a file. In a configuration file, a relative path is relative to the directory of that file.
    `parser` takes the raw value of an OBJECT and its source, and raises `SettingsError`.
    `dynamic`: the dynamic configuration may set it without permission (`config.dynamic`). A setting of the router with
    this mark takes effect at once when its value changes, the others at the next start.
    """

    name: str
    kind: SettingKind
    description: str
    _: KW_ONLY
    default: Any = None
    default_text: str = ""
    unit: str = ""
    minimum: float = 0
    above: float | None = None
    maximum: float = MAX_NUMBER
    choices: tuple[str, ...] = ()
    pattern: str = ".+"
    pattern_text: str = "text"
    secret: bool = False
    flag: bool = False
    is_path: bool = False
    parser: Callable[[object, str], Any] | None = None
    dynamic: bool = False

    @property
    def range_text(self) -> str:
        """The allowed values in words, without the unit: "a whole number from 1 to 100"."""
        if self.kind in (SettingKind.INT, SettingKind.FLOAT):
            return self._number_range()
        match self.kind:
            case SettingKind.BOOL:
                return "true or false"
            case SettingKind.FRACTION:
                return "on, off, or a number from 0 to 1"
            case SettingKind.LIST:
                return f"a list of {', '.join(self.choices) or self.pattern_text}"
            case SettingKind.NUMBERS:
                return f"a list of {self.pattern_text}"
            case SettingKind.MAPPING:
                return f"a mapping of {self.pattern_text} to text"
            case SettingKind.OBJECT:
                return f"a mapping with {self.pattern_text}, or its JSON text"
        return "one of " + ", ".join(self.choices) if self.choices else self.pattern_text

    @property
    def rule(self) -> str:
        """The rule in the words of an error: "must be ...", with the unit."""
        unit = f" ({self.unit})" if self.unit else ""
        return f"must be {self.range_text}{unit}"

    def _number_range(self) -> str:
        noun = "a whole number" if self.kind is SettingKind.INT else "a number"
        upper = "" if self.maximum == MAX_NUMBER else f"{self.maximum:.15g}"
        if self.above is not None:
            return f"{noun} above {self.above:.15g}" + (f", at most {upper}" if upper else "")
        lower = f"{self.minimum:.15g}"
        return f"{noun} from {lower} to {upper}" if upper else f"{noun}, at least {lower}"


def parse_value(setting: Setting, raw: object, where: str = "") -> Any:
    """Return the typed value of `raw`: bool, int, float, str, `tuple[str, ...]`, `tuple[float, ...]` or
    `dict[str, str]`, by `setting.kind`; for an OBJECT, what its parser returns.

    `where` names the source in errors. Raises `SettingsError` for any value that is not of that kind or breaks the
    setting's limits.
    """
    match setting.kind:
        case SettingKind.OBJECT:
            assert setting.parser is not None
            return setting.parser(raw, where)
        case SettingKind.BOOL:
            value: Any = _parse_bool(raw)
        case SettingKind.INT:
            value = _parse_int(raw)
        case SettingKind.FLOAT:
            value = _parse_float(raw)
        case SettingKind.FRACTION:
            value = _parse_fraction(raw)
        case SettingKind.TEXT:
            value = raw if isinstance(raw, str) else None
        case SettingKind.LIST:
            value = _parse_list(raw)
        case SettingKind.NUMBERS:
            value = _parse_numbers(raw)
        case SettingKind.MAPPING:
            value = _parse_mapping(raw)
    if value is None or not _within_limits(setting, value):
        shown = "" if raw is None else raw
        raise SettingsError(setting.name, None if setting.secret else shown, _rule_for(setting, raw), where)
    return value


def _rule_for(setting: Setting, raw: object) -> str:
    """Return the rule that `raw` breaks, for an error. It mentions the implicit `MAX_NUMBER` only if `raw` exceeds
    it."""
    has_implicit_maximum = setting.kind in (SettingKind.INT, SettingKind.FLOAT) and setting.maximum == MAX_NUMBER
    is_huge = raw > MAX_NUMBER if isinstance(raw, int) else isinstance(raw, str) and _HUGE.fullmatch(raw)
    return f"{setting.rule}, at most {MAX_NUMBER}" if has_implicit_maximum and is_huge else setting.rule


def _parse_bool(raw: object) -> bool | None:
    if isinstance(raw, bool):
        return raw
    # Python writes True, YAML and JSON write true; annotations contain both.
    return {"true": True, "True": True, "false": False, "False": False}.get(raw) if isinstance(raw, str) else None


def _parse_int(raw: object) -> int | None:
    if isinstance(raw, str) and _INTEGER.fullmatch(raw):
        return int(raw)
    return raw if isinstance(raw, int) and not isinstance(raw, bool) else None


def _parse_float(raw: object) -> float | None:
    if isinstance(raw, str) and _DECIMAL.fullmatch(raw):
        return float(raw)
    if isinstance(raw, float):
        return raw if math.isfinite(raw) else None
    if isinstance(raw, int) and not isinstance(raw, bool):
        # float() overflows on integers that exceed every limit anyway.
        return float(raw) if abs(raw) < 2**53 else None
    return None


def _parse_fraction(raw: object) -> float | None:
    if isinstance(raw, bool):
        return 1.0 if raw else 0.0
    # YAML 1.1 parses `on` as true, and Helm writes `true`, which is text in the router's file.
    if raw in ("on", "off", "true", "True", "false", "False"):
        return 1.0 if raw in ("on", "true", "True") else 0.0
    fraction = _parse_float(raw)
    return fraction if fraction is not None and 0 <= fraction <= 1 else None


def _parse_list(raw: object) -> tuple[str, ...] | None:
    if isinstance(raw, str):
        return tuple(item.strip() for item in raw.split(",")) if raw.strip() else ()
    if isinstance(raw, list | tuple) and all(isinstance(item, str) for item in raw):
        return tuple(raw)
    return None


def _parse_numbers(raw: object) -> tuple[float, ...] | None:
    items = _parse_list(raw) if isinstance(raw, str) else raw if isinstance(raw, list | tuple) else (raw,)
    numbers = tuple(number for item in items or () if (number := _parse_float(item)) is not None)
    return numbers if len(numbers) == len(items or ()) else None


def _parse_mapping(raw: object) -> dict[str, str] | None:
    if isinstance(raw, str):
        try:
            raw = json.loads(raw)
        except (ValueError, RecursionError):
            return None
    if isinstance(raw, Mapping) and all(isinstance(text, str) for item in raw.items() for text in item):
        return dict(raw)
    return None


def _within_limits(setting: Setting, value: Any) -> bool:
    match setting.kind:
        case SettingKind.INT | SettingKind.FLOAT:
            return _within_range(setting, value)
        case SettingKind.NUMBERS:
            return all(_within_range(setting, number) for number in value)
        case SettingKind.MAPPING:
            return all(re.fullmatch(setting.pattern, name) for name in value)
        case SettingKind.TEXT | SettingKind.LIST:
            texts = (value,) if setting.kind is SettingKind.TEXT else value
            if setting.choices:
                return all(text in setting.choices for text in texts)
            return all(re.fullmatch(setting.pattern, text) for text in texts)
    return True


def _within_range(setting: Setting, number: float) -> bool:
    is_large_enough = setting.minimum <= number if setting.above is None else setting.above < number
    return is_large_enough and number <= setting.maximum


def _shortened(value: object) -> str:
    # repr() raises ValueError for an integer of thousands of digits.
    is_huge = isinstance(value, int) and value.bit_length() > _MAX_SHOWN_CHARACTERS
    text = "a huge number" if is_huge else repr(value)
    return text if len(text) <= _MAX_SHOWN_CHARACTERS else text[:_MAX_SHOWN_CHARACTERS] + "..."


def _one_line(text: str) -> str:
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)
