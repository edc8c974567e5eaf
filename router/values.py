"""How one setting is described, and how one raw value becomes a typed one.

Lives here: the facts of a setting (`Setting`), the only parser of values (`parse_value`), the check for unknown names
and the error that all of them raise. Must not live here: which settings exist (`service_settings`, `settings`,
`cluster.local`), rules that relate two settings, and any reading of files or environment.

A raw value is either a typed one (bool, int, float, list, mapping) or text, as annotations, environment variables,
flags and plain YAML scalars give it. Text is read by this module's own grammar, as `int()` and `float()` also take
`1_000`, `+5`, `nan`, spaces and digits of other scripts.
"""

import difflib
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

LARGEST_NUMBER = 2**31 - 1
"""Upper limit of every number that states none: keeps sums and timers in range, and is what the SDK's integers hold."""

_INTEGER = re.compile(r"0|[1-9][0-9]{0,17}", re.ASCII)
_DECIMAL = re.compile(r"(?:0|[1-9][0-9]{0,17})(?:\.[0-9]{1,17})?", re.ASCII)
_HUGE = re.compile(r"[1-9][0-9]{9,}(?:\.[0-9]+)?", re.ASCII)
_SHOWN_CHARACTERS = 80


class SettingsError(ValueError):
    """A setting that cannot be used; `str()` is one line that says where, which, what was given and what is allowed.

    `value` is None when there is none to show: it is secret, or its setting is unknown and so might be.
    """

    def __init__(self, setting: str, value: object, allowed: str, where: str = "") -> None:
        self.setting = setting
        self.value = value
        self.allowed = allowed
        self.where = where
        place = f"{where}: " if where else ""
        given = "" if value is None else f" = {_shown(value)}"
        super().__init__(_one_line(f"{place}{setting}{given}: {allowed}"))


class Kind(StrEnum):
    """What a value of a setting is."""

    BOOL = "bool"
    INT = "int"
    FLOAT = "float"
    TEXT = "text"
    LIST = "list"
    MAPPING = "mapping"
    RATE = "rate"
    """`on`, `off` or a share from 0 to 1; the typed value is the share."""


class Scope(StrEnum):
    """What a setting belongs to."""

    SERVICE = "service"
    VERSION = "version"
    ROUTER = "router"
    ISSUER = "issuer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """The facts of one setting: what the parser checks and the documentation prints.

    `minimum` and `maximum` are inclusive, `above` is an exclusive minimum; all three are in `unit`. `pattern` must
    match a whole text, each item of a list or each name of a mapping, and `pattern_means` says so in words.
    """

    name: str
    kind: Kind
    scope: Scope
    about: str
    default: Any = None
    unit: str = ""
    minimum: float = 0
    above: float | None = None
    maximum: float = LARGEST_NUMBER
    choices: tuple[str, ...] = ()
    pattern: str = ".+"
    pattern_means: str = "text"
    default_means: str = ""
    secret: bool = False
    flag: bool = False

    @property
    def range_text(self) -> str:
        """The allowed values in words, without the unit."""
        if self.kind in (Kind.INT, Kind.FLOAT):
            return self._number_range()
        match self.kind:
            case Kind.BOOL:
                return "true or false"
            case Kind.RATE:
                return "on, off, or a number from 0 to 1"
            case Kind.LIST:
                return f"a list of {', '.join(self.choices) or self.pattern_means}"
            case Kind.MAPPING:
                return f"a mapping of {self.pattern_means} to text"
        return "one of " + ", ".join(self.choices) if self.choices else self.pattern_means

    @property
    def allowed(self) -> str:
        """What an error says of the allowed values."""
        unit = f" ({self.unit})" if self.unit else ""
        return f"must be {self.range_text}{unit}"

    def _number_range(self) -> str:
        noun = "a whole number" if self.kind is Kind.INT else "a number"
        top = "" if self.maximum == LARGEST_NUMBER else f"{self.maximum:.15g}"
        if self.above is not None:
            return f"{noun} above {self.above:.15g}" + (f", at most {top}" if top else "")
        low = f"{self.minimum:.15g}"
        return f"{noun} from {low} to {top}" if top else f"{noun}, at least {low}"


class _Describe(Protocol):
    def __call__(self, name: str, kind: Kind, about: str, **facts: Any) -> Setting: ...


def settings_of(scope: Scope) -> _Describe:
    """A short way to describe the settings of a table, which are of one scope."""

    def describe(name: str, kind: Kind, about: str, **facts: Any) -> Setting:
        return Setting(name=name, kind=kind, scope=scope, about=about, **facts)

    return describe


def parse_value(setting: Setting, raw: object, where: str = "") -> Any:
    """The typed value of `raw`: bool, int, float, str, `tuple[str, ...]` or `dict[str, str]`, by the setting's kind.

    Raises `SettingsError` for anything else than a value of that kind within the setting's limits.
    """
    match setting.kind:
        case Kind.BOOL:
            value: Any = _parse_bool(raw)
        case Kind.INT:
            value = _parse_int(raw)
        case Kind.FLOAT:
            value = _parse_float(raw)
        case Kind.RATE:
            value = _parse_rate(raw)
        case Kind.TEXT:
            value = raw if isinstance(raw, str) else None
        case Kind.LIST:
            value = _parse_list(raw)
        case Kind.MAPPING:
            value = _parse_mapping(raw)
    if value is None or not _within_limits(setting, value):
        given = "" if raw is None else raw
        raise SettingsError(setting.name, None if setting.secret else given, _allowed(setting, raw), where)
    return value


def _allowed(setting: Setting, raw: object) -> str:
    """What is allowed; of the limit that hardly anybody meets only to who does."""
    has_no_other = setting.kind in (Kind.INT, Kind.FLOAT) and setting.maximum == LARGEST_NUMBER
    huge = raw > LARGEST_NUMBER if isinstance(raw, int) else isinstance(raw, str) and _HUGE.fullmatch(raw)
    return f"{setting.allowed}, at most {LARGEST_NUMBER}" if has_no_other and huge else setting.allowed


def unknown_name(name: str, known: Iterable[str], where: str = "") -> SettingsError:
    """The error for a setting that does not exist, with the nearest name that does. Its value stays out: a misspelt
    `primary_key` is a key all the same."""
    spellings = {spelling.lower(): spelling for spelling in sorted(known)}
    near = difflib.get_close_matches(name.lower(), spellings, n=1, cutoff=0.6)
    hint = f"; did you mean {spellings[near[0]]}?" if near else ""
    return SettingsError(name, None, f"no such setting{hint}", where)


def _parse_bool(raw: object) -> bool | None:
    if isinstance(raw, bool):
        return raw
    # Python writes True, YAML and JSON write true: annotations hold either.
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
        # float() overflows on an integer that no limit allows anyway.
        return float(raw) if abs(raw) < 2**53 else None
    return None


def _parse_rate(raw: object) -> float | None:
    if isinstance(raw, bool):
        return 1.0 if raw else 0.0
    if raw in ("on", "off"):
        return 1.0 if raw == "on" else 0.0
    share = _parse_float(raw)
    return share if share is not None and 0 <= share <= 1 else None


def _parse_list(raw: object) -> tuple[str, ...] | None:
    if isinstance(raw, str):
        return tuple(part.strip() for part in raw.split(",")) if raw.strip() else ()
    if isinstance(raw, list | tuple) and all(isinstance(item, str) for item in raw):
        return tuple(raw)
    return None


def _parse_mapping(raw: object) -> dict[str, str] | None:
    if isinstance(raw, Mapping) and all(isinstance(part, str) for pair in raw.items() for part in pair):
        return dict(raw)
    return None


def _within_limits(setting: Setting, value: Any) -> bool:
    match setting.kind:
        case Kind.INT | Kind.FLOAT:
            if setting.above is not None:
                return bool(setting.above < value <= setting.maximum)
            return bool(setting.minimum <= value <= setting.maximum)
        case Kind.MAPPING:
            return all(re.fullmatch(setting.pattern, name) for name in value)
        case Kind.TEXT | Kind.LIST:
            texts = (value,) if setting.kind is Kind.TEXT else value
            if setting.choices:
                return all(text in setting.choices for text in texts)
            return all(re.fullmatch(setting.pattern, text) for text in texts)
    return True


def _shown(value: object) -> str:
    # repr() refuses an integer of thousands of digits.
    huge = isinstance(value, int) and value.bit_length() > _SHOWN_CHARACTERS
    text = "a huge number" if huge else repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "..."


def _one_line(text: str) -> str:
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)
