"""The settings of the router that are in effect, with the source of each. No I/O.

Settings with the mark `Setting.dynamic` take effect at once when a source changes them. All others take effect at the
next start: until then they are pending. `/logging` overrides two settings until a source changes these.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from router.config.router import ROUTER_SETTINGS, RouterSettings, SourcedSettings
from router.config.schema import Setting

DEFAULT_SOURCE = "default"
HIDDEN = "(secret)"


class SettingChange(NamedTuple):
    """A changed setting. The values of a secret are hidden."""

    name: str
    before: object
    after: object
    source: str

    def __str__(self) -> str:
        return f"{self.name}: {format_value(self.before)} -> {format_value(self.after)} ({self.source})"


class AppliedChange(NamedTuple):
    """The result of a change of the sources: the settings that have changed, and those that change at the next
    start."""

    applied: tuple[SettingChange, ...]
    pending: tuple[SettingChange, ...]


class EffectiveSettings:
    """The settings in effect."""

    def __init__(self, configured: SourcedSettings) -> None:
        self.values: RouterSettings = configured.settings
        """The settings in effect. A changed value makes another object."""
        self._configured = configured
        self._sources = dict(configured.sources)

    def change(self, configured: SourcedSettings) -> AppliedChange:
        """Apply what the sources have now."""
        previous, self._configured = self._configured.settings, configured
        applied: list[SettingChange] = []
        pending: list[SettingChange] = []
        values: dict[str, Any] = {}
        for setting in ROUTER_SETTINGS:
            name = setting.name
            before, after = getattr(self.values, name), getattr(configured.settings, name)
            source = configured.sources.get(name, DEFAULT_SOURCE)
            is_changed = after != getattr(previous, name)
            if is_changed and setting.dynamic:
                values[name] = after
            if is_changed and after != before:
                changed = SettingChange(name, _shown(setting, before), _shown(setting, after), source)
                (applied if setting.dynamic else pending).append(changed)
            if after == before or name in values:
                self._sources[name] = source
        self.values = replace(self.values, **values)
        return AppliedChange(tuple(applied), tuple(pending))

    def override(self, source: str, **values: Any) -> tuple[SettingChange, ...]:
        """Set some settings until the sources change these. Return the changes."""
        changes = tuple(
            SettingChange(name, getattr(self.values, name), value, source)
            for name, value in values.items()
            if getattr(self.values, name) != value
        )
        self._sources |= {change.name: source for change in changes}
        self.values = replace(self.values, **values)
        return changes

    def pending(self) -> list[str]:
        """Return the names of the settings whose configured values take effect at the next start."""
        return [
            setting.name
            for setting in ROUTER_SETTINGS
            if not setting.dynamic
            and getattr(self._configured.settings, setting.name) != getattr(self.values, setting.name)
        ]

    def document(self, *, only_given: bool = False) -> list[dict[str, Any]]:
        """Return name, value and source of each setting, and its configured value if that is pending. With
        `only_given`, only those that a source has."""
        pending = set(self.pending())
        return [
            {
                "name": setting.name,
                "value": json_value(_shown(setting, getattr(self.values, setting.name))),
                "source": self._sources.get(setting.name, DEFAULT_SOURCE),
            }
            | (
                {"at_next_start": json_value(_shown(setting, getattr(self._configured.settings, setting.name)))}
                if setting.name in pending
                else {}
            )
            for setting in ROUTER_SETTINGS
            if not only_given or setting.name in pending or setting.name in self._sources
        ]


def _shown(setting: Setting, value: object) -> object:
    return HIDDEN if setting.secret and value is not None else value


def json_value(value: object) -> object:
    """Return a value of a setting as JSON has it."""
    if isinstance(value, tuple):
        return list(value)
    if isinstance(value, Mapping):
        return dict(value)
    return value if isinstance(value, bool | int | float | str | None) else str(value)


def format_value(value: object) -> str:
    """Return a value of a setting as text for operators."""
    match value:
        case None:
            return "none"
        case bool():
            return str(value).lower()
        case float():
            return f"{value:.15g}"
        case tuple():
            return ",".join(map(format_value, value)) or "none"
        case Mapping():
            return ",".join(f"{name}={each}" for name, each in value.items()) or "none"
    return str(value)
