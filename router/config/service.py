"""The parser of a service: checks values against declarations, inherits settings of versions, and checks the rules
between settings.

Does not contain: declarations of single settings (`config.service_settings`), and where settings come from (files,
annotations).
"""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from router.config.router import ROUTER_SETTINGS
from router.config.schema import ErrorCollector, SettingsError, parse_value
from router.config.service_settings import SERVICE_SETTINGS, VERSION_SETTINGS
from router.config.unknown import unknown_setting
from router.model.services import DEFAULT_VERSION_NAME, Service, Version

SettingPath = tuple[str, ...]
"""Path of a value in the mapping of a service: `("cpu_cores",)` or `("versions", "blue", "cpu_cores")`."""

Locate = Callable[[SettingPath], str]
"""Returns the source of a value for errors, such as `models.yaml, line 7`."""

_NAME = re.compile(r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?", re.ASCII)
_NAME_RULE = "must be 1 to 63 of a-z, 0-9 and '-', beginning and ending with a letter or digit"


def parse_service(
    name: str,
    mapping: Mapping[str, object],
    *,
    where: str = "",
    locate: Locate | None = None,
    other_names: Collection[str] = (),
    defaults: Mapping[str, object] | None = None,
) -> Service:
    """Return the service with the settings in `mapping` (setting name -> typed or text value); the others have their
    defaults.

    Without `versions`, the service has one version named `default`. With `versions` (version name -> mapping), each
    version setting of the service is a default for each version. A version with `num_replicas` inherits no
    `autoscale_*`, and one with `autoscale_*` inherits no `num_replicas`. Names in `other_names` are ignored. `defaults`
    replaces declared defaults of versions, for example with `COMPATIBILITY_DEFAULTS`.

    Raises `SettingsError` for all errors: unknown names and invalid values in the order of the mapping, and violated
    rules between valid settings. Each has the source of the value: `locate(path)` if given, else `where`.
    """
    reader = _Reader(name, where, locate, frozenset(other_names), defaults or {})
    service = None
    with reader.errors.collect():
        if not _NAME.fullmatch(name):
            raise SettingsError("service name", name, _NAME_RULE, reader.source(()))
        service = _parse_service(reader, mapping)
    reader.errors.raise_errors()
    assert service is not None, "otherwise there are errors"
    return service


def _parse_service(reader: "_Reader", mapping: Mapping[str, object]) -> Service | None:
    """Return the service. After errors, which the reader collects, return None."""
    given = reader.read({key: raw for key, raw in mapping.items() if key != "versions"}, ())
    values = {
        setting.name: given[setting.name].value if setting.name in given else setting.default
        for setting in SERVICE_SETTINGS
    }
    is_valid = not reader.errors
    if is_valid:
        for check in (_resolve_authentication, _check_origins, _check_not_empty):
            with reader.errors.collect():
                check(values, given)
    inherited = {key: sourced for key, sourced in given.items() if key in _VERSION_NAMES}
    if "versions" in mapping:
        versions = _parse_versions(reader, mapping["versions"], inherited, is_valid=is_valid)
    else:
        versions = _build_versions(reader, {DEFAULT_VERSION_NAME: inherited}) if is_valid else ()
    if reader.errors:
        return None
    return Service(name=reader.service, versions=_resolve_default_version(reader, versions), **values)


def is_service_name(text: str) -> bool:
    """True if a service may have this name: `iris`, or in Kubernetes also `team-a/iris`."""
    parts = text.split("/")
    return len(parts) <= 2 and all(_NAME.fullmatch(part) for part in parts)


def describe_location(source: str, service: str, path: SettingPath) -> str:
    """Return the location of a service's value for errors: `models.yaml, line 7: service iris, version blue`."""
    version = f", version {path[1]}" if path[:1] == ("versions",) and len(path) > 1 else ""
    return (f"{source}: " if source else "") + f"service {service}{version}"


_SERVICE_NAMES = frozenset(setting.name for setting in SERVICE_SETTINGS)
_VERSION_NAMES = frozenset(setting.name for setting in VERSION_SETTINGS)
_BY_NAME = {setting.name: setting for setting in (*SERVICE_SETTINGS, *VERSION_SETTINGS)}
_ELSEWHERE = {setting.name: "the section router" for setting in ROUTER_SETTINGS}


class _SourcedValue(NamedTuple):
    """A parsed value and its source."""

    value: Any
    where: str


_SourcedValues = dict[str, _SourcedValue]


@dataclass(frozen=True, slots=True)
class _Reader:
    """Parses the mappings of one service, and collects their errors."""

    service: str
    where: str
    locate: Locate | None
    other_names: frozenset[str]
    defaults: Mapping[str, object]  # of versions
    errors: ErrorCollector = field(default_factory=ErrorCollector)

    def source(self, path: SettingPath) -> str:
        return self.locate(path) if self.locate else self.where

    def location(self, path: SettingPath) -> str:
        return describe_location(self.source(path), self.service, path)

    def read(self, mapping: Mapping[str, object], path: SettingPath) -> _SourcedValues:
        """Return the valid values."""
        values: _SourcedValues = {}
        for name, raw in mapping.items():
            where = self.location((*path, name))
            with self.errors.collect():
                if name in _BY_NAME:
                    values[name] = _SourcedValue(parse_value(_BY_NAME[name], raw, where), where)
                elif name not in self.other_names:
                    known = {*_BY_NAME, *self.other_names, "versions"}
                    raise unknown_setting(str(name), known, where, elsewhere=_ELSEWHERE)
        return values


def _parse_versions(reader: _Reader, raw: object, inherited: _SourcedValues, *, is_valid: bool) -> tuple[Version, ...]:
    """Return the versions. `is_valid` is False if the settings that they inherit are not complete."""
    for name in ("traffic_percentile", "is_default"):
        if name in inherited:
            sourced = inherited[name]
            problem = "must be set within a version when there are versions"
            reader.errors.add(SettingsError(name, sourced.value, problem, sourced.where))
    if not isinstance(raw, Mapping) or not raw:
        problem = "must be a mapping of at least one version name to its settings"
        raise SettingsError("versions", None, problem, reader.location(("versions",)))
    given = {}
    for name, mapping in raw.items():
        errors_before = len(reader.errors)
        with reader.errors.collect():
            own = _read_version(reader, name, mapping)
            if is_valid and len(reader.errors) == errors_before:
                given[name] = _inherit(inherited, own)
    return _build_versions(reader, given)


def _read_version(reader: _Reader, name: object, mapping: object) -> _SourcedValues:
    path = ("versions", str(name))
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise SettingsError("version name", name, _NAME_RULE, reader.location(path))
    if not isinstance(mapping, Mapping):
        raise SettingsError("version", None, "must be a mapping of setting names to values", reader.location(path))
    own = reader.read(mapping, path)
    for setting_name, sourced in own.items():
        if setting_name in _SERVICE_NAMES:
            problem = "belongs to the service, not to a version"
            reader.errors.add(SettingsError(setting_name, None, problem, sourced.where))
    return own


def _build_versions(reader: _Reader, given: Mapping[str, _SourcedValues]) -> tuple[Version, ...]:
    """Return the versions with these valid settings that violate no rule."""
    versions = []
    for name, values in given.items():
        version = _build_version(reader, name, values)
        if version is not None:
            versions.append(version)
    return tuple(versions)


def _inherit(inherited: _SourcedValues, own: _SourcedValues) -> _SourcedValues:
    """Return the version's own values and those that it inherits from its service. With `num_replicas` it inherits no
    `autoscale_*`, and vice versa."""
    enabled = own.get("autoscale_enabled")
    dropped: set[str] = set()
    if "num_replicas" in own or (enabled is not None and not enabled.value):
        dropped = {name for name in inherited if name.startswith("autoscale_")}
    elif any(name.startswith("autoscale_") for name in own):
        dropped = {"num_replicas"}
    return {name: sourced for name, sourced in inherited.items() if name not in dropped} | own


def _build_version(reader: _Reader, name: str, given: _SourcedValues) -> Version | None:
    """Return the version, or None after errors, which the reader collects."""
    values: dict[str, Any] = {
        setting.name: given[setting.name].value
        if setting.name in given
        else reader.defaults.get(setting.name, setting.default)
        for setting in VERSION_SETTINGS
    }
    errors_before = len(reader.errors)
    for check in (_resolve_scaling, _check_limits, _check_drain_time):
        with reader.errors.collect():
            check(values, given)
    return Version(name=name, **values) if len(reader.errors) == errors_before else None


def _check_limits(values: dict[str, Any], given: _SourcedValues) -> None:
    for request in ("cpu_cores", "memory_gb"):
        limit = values[f"{request}_limit"]
        if limit is not None and limit < values[request]:
            problem = f"must be at least {request} ({values[request]:g})"
            raise SettingsError(f"{request}_limit", limit, problem, given[f"{request}_limit"].where)


def _check_drain_time(values: dict[str, Any], given: _SourcedValues) -> None:
    if values["replica_drain_seconds"] < values["scoring_timeout_ms"] / 1000:
        setting = "replica_drain_seconds" if "replica_drain_seconds" in given else "scoring_timeout_ms"
        problem = "replica_drain_seconds must be at least scoring_timeout_ms"
        raise SettingsError(setting, values[setting], problem, given[setting].where)


def _resolve_scaling(values: dict[str, Any], given: _SourcedValues) -> None:
    """Turn autoscaling off if `num_replicas` is given, else on. Raises `SettingsError` if settings contradict that."""
    is_fixed, enabled = "num_replicas" in given, given.get("autoscale_enabled")
    if enabled is None:
        values["autoscale_enabled"] = not is_fixed
    elif enabled.value == is_fixed:
        problem = "must be false or absent with num_replicas" if is_fixed else "needs num_replicas"
        raise SettingsError("autoscale_enabled", enabled.value, problem, enabled.where)
    if not values["autoscale_enabled"]:
        for name, sourced in given.items():
            if name.startswith("autoscale_") and name != "autoscale_enabled":
                problem = f"not allowed while autoscaling is off (num_replicas is {values['num_replicas']})"
                raise SettingsError(name, sourced.value, problem, sourced.where)
    elif values["autoscale_min_replicas"] > values["autoscale_max_replicas"]:
        minimum = given["autoscale_min_replicas"]
        problem = f"must not exceed autoscale_max_replicas ({values['autoscale_max_replicas']})"
        raise SettingsError("autoscale_min_replicas", minimum.value, problem, minimum.where)


def _resolve_authentication(values: dict[str, Any], given: _SourcedValues) -> None:
    """Require keys unless tokens are required. Raises `SettingsError` if both are required."""
    if "auth_enabled" not in given:
        values["auth_enabled"] = not values["token_auth_enabled"]
    elif values["auth_enabled"] and values["token_auth_enabled"]:
        sourced = given["token_auth_enabled"]
        raise SettingsError("token_auth_enabled", sourced.value, "excludes auth_enabled: true", sourced.where)


def _check_origins(values: dict[str, Any], given: _SourcedValues) -> None:
    origins = values["cors_allowed_origins"]
    if "*" in origins and len(origins) > 1:
        sourced = given["cors_allowed_origins"]
        raise SettingsError("cors_allowed_origins", list(origins), "'*' must be the only item", sourced.where)


def _check_not_empty(values: dict[str, Any], given: _SourcedValues) -> None:
    for name in ("allowed_methods", "key_headers"):
        if not values[name] or len(set(values[name])) < len(values[name]):
            raise SettingsError(
                name, list(values[name]), "must have at least one item, and each once", given[name].where
            )


def _resolve_default_version(reader: _Reader, versions: tuple[Version, ...]) -> tuple[Version, ...]:
    """Return the versions with exactly one default. Raises `SettingsError` if the others claim over 100 percent."""
    marked = [version for version in versions if version.is_default]
    if len(marked) > 1:
        problem = f"only one version may be the default; {marked[0].name} already is"
        raise SettingsError("is_default", True, problem, reader.location(("versions", marked[1].name, "is_default")))
    default = marked[0] if marked else versions[0]
    claimed = sum(version.traffic_percentile for version in versions if version is not default)
    if claimed > 100:
        problem = f"the versions other than the default ({default.name}) may claim at most 100 percent together"
        raise SettingsError("traffic_percentile", claimed, problem, reader.location(("versions",)))
    return tuple(replace(version, is_default=version is default) for version in versions)
