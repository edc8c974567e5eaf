"""Declares settings as fields of a dataclass. The field has the name and the type, and `setting()` has the rest.

    @dataclass(frozen=True, kw_only=True)
    class ConnectionSettings:
        max_headers: int = setting("Maximum number of headers.", default=100, minimum=1, maximum=10_000)

`declared_settings(ConnectionSettings)` returns the `Setting` of each field. The parser, flags, the chart's schema and
the documentation are derived from it.

The fields of such a dataclass have no Python defaults. Some defaults depend on other settings, so only `load_settings`
can determine them. The module must not use `from __future__ import annotations`, which would turn the types into text.
"""

from collections.abc import Mapping
from dataclasses import field, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypedDict, Unpack, get_args, get_origin

from router.config.schema import Setting, SettingKind
from router.model.data_collection import DataCollector

_KIND_OF_TYPE = {
    bool: SettingKind.BOOL,
    int: SettingKind.INT,
    float: SettingKind.FLOAT,
    str: SettingKind.TEXT,
    Path: SettingKind.TEXT,
    tuple: SettingKind.LIST,
    Mapping: SettingKind.MAPPING,
    DataCollector: SettingKind.OBJECT,
}


class SettingOptions(TypedDict, total=False):
    """The keyword arguments of `Setting`, which describes them."""

    kind: SettingKind  # only where the type alone does not imply it: FRACTION
    default: object
    default_text: str
    unit: str
    minimum: float
    above: float
    maximum: float
    choices: tuple[str, ...]
    pattern: str
    pattern_text: str
    secret: bool
    flag: bool
    is_path: bool
    dynamic: bool


def setting(description: str, **options: Unpack[SettingOptions]) -> Any:
    """Return a dataclass field that declares a setting. The `repr` of the dataclass omits a secret."""
    return field(repr=not options.get("secret", False), metadata={"setting": {"description": description, **options}})


def file_setting(description: str, **options: Unpack[SettingOptions]) -> Any:
    """Return `setting(...)` for the path of a file."""
    return setting(description, **({"pattern": r"[^\x00]+", "pattern_text": "a path", "is_path": True} | options))


def declared_settings(group: type) -> tuple[Setting, ...]:
    """Return the settings that the fields of a dataclass declare, in the order of the fields. Skips other fields."""
    return tuple(
        Setting(**({"name": each.name, "kind": kind_of(each.type)} | each.metadata["setting"]))
        for each in fields(group)
        if "setting" in each.metadata
    )


def kind_of(annotation: Any) -> SettingKind:
    """Return the setting kind of a field with this type. The kind of `X | None` is that of `X`."""
    if annotation == tuple[float, ...]:
        return SettingKind.NUMBERS
    if isinstance(annotation, UnionType):
        (annotation,) = (option for option in get_args(annotation) if option is not NoneType)
    return _KIND_OF_TYPE[get_origin(annotation) or annotation]
