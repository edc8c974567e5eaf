"""The dynamic configuration: settings of the router and of services that change while the router runs. No I/O.

Its settings override those of the router's file, of the file of services and of annotations, but neither flags nor the
environment. A writer of it must not become the owner of the traffic. So it may only have settings with the mark
`Setting.dynamic`, and those that `dynamic_config_allow` names.

Contains: the parser, which checks names, values and permissions, and reports all errors. Does not contain: rules
between settings, which `load_settings` and `parse_service` check with the settings of the other sources (`overlay`).
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from router.config.dynamic_settings import NEVER_DYNAMIC
from router.config.router import ROUTER_SETTINGS, RouterSection
from router.config.schema import ErrorCollector, Setting, SettingKind, SettingsError, parse_value
from router.config.service import SettingPath, describe_location, is_service_name
from router.config.service_settings import SERVICE_SETTINGS, VERSION_SETTINGS
from router.config.unknown import unknown_setting
from router.model.services import DEFAULT_VERSION_NAME

_SECTIONS = ("router", "services")
_MUST_MAP_SETTINGS = "must be a mapping of setting names to values"
_PER_VERSION = ("traffic_percentile", "is_default")

_OF_ROUTER = {setting.name: setting for setting in ROUTER_SETTINGS}
_OF_SERVICE = {setting.name: setting for setting in SERVICE_SETTINGS}
_OF_VERSION = {setting.name: setting for setting in VERSION_SETTINGS}


@dataclass(frozen=True, slots=True)
class ServiceOverlay:
    """The settings of one service in the dynamic configuration, typed. `shared` are version settings for all versions,
    `versions` those of one version, by its name. `locations` has the place of each value, by its path."""

    service: Mapping[str, Any] = field(default_factory=dict)
    shared: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    locations: Mapping[SettingPath, str] = field(default_factory=dict)

    def of_version(self, version: str) -> dict[str, Any]:
        """Return the version settings of one version. Its own ones override the shared ones."""
        own = self.versions.get(version, {})
        return without_replaced_scaling(self.shared, own) | dict(own)

    def location(self, path: SettingPath) -> str | None:
        """Return the place of the value at `path` of a service with this overlay, None if it is not in the overlay."""
        if path[:1] == ("versions",):
            return self.locations.get(path) or self.locations.get(path[-1:])
        return self.locations.get(("versions", DEFAULT_VERSION_NAME, *path)) or self.locations.get(path)


@dataclass(frozen=True, slots=True)
class DynamicSettings:
    """The content of a dynamic configuration: typed values of the router by setting, and services by name."""

    router: RouterSection = field(default_factory=lambda: RouterSection({}, {}))
    services: Mapping[str, ServiceOverlay] = field(default_factory=dict)


NO_DYNAMIC_SETTINGS = DynamicSettings()


def without_replaced_scaling(lower: Mapping[str, Any], upper: Mapping[str, Any]) -> dict[str, Any]:
    """Return version settings without those that others of a higher precedence replace: `num_replicas` and
    `autoscale_*` exclude each other."""
    if "num_replicas" in upper or upper.get("autoscale_enabled") is False:
        return {name: value for name, value in lower.items() if not name.startswith("autoscale_")}
    if any(name.startswith("autoscale_") for name in upper):
        return {name: value for name, value in lower.items() if name not in ("num_replicas", "autoscale_enabled")}
    return dict(lower)


def parse_dynamic_settings(
    values: object, locate: Callable[[SettingPath], str], allowed: Collection[str]
) -> DynamicSettings:
    """Return the dynamic configuration with these raw values: a mapping of `router` and `services`.

    `locate` returns the place of the value at a path. `allowed` is the setting `dynamic_config_allow`. Raises
    `SettingsError` for all errors. A document without a mapping is one, as an empty file may be an incomplete one.
    """
    if not isinstance(values, dict):
        problem = "must be a mapping with router, services or both; `{}` sets nothing"
        raise SettingsError("file", None, problem, locate(()))
    parser = _Parser(locate, frozenset(allowed))
    for name in values:
        if name not in _SECTIONS:
            parser.errors.add(unknown_setting(str(name), _SECTIONS, locate((str(name),))))
    router = parser.router(values.get("router"))
    services = parser.services(values.get("services"))
    parser.errors.raise_errors()
    return DynamicSettings(router, services)


@dataclass(frozen=True, slots=True)
class _Parser:
    """Parses the sections of one document, and collects their errors."""

    locate: Callable[[SettingPath], str]
    allowed: frozenset[str]
    errors: ErrorCollector = field(default_factory=ErrorCollector)

    def router(self, raw: object) -> RouterSection:
        path = ("router",)
        elsewhere = dict.fromkeys((*_OF_SERVICE, *_OF_VERSION), "a service")
        values, locations = self._values(raw, path, _OF_ROUTER, f"{self.locate(path)}: router", elsewhere)
        return RouterSection(values, {name: f"{where}: router" for (name,), where in locations.items()})

    def services(self, raw: object) -> dict[str, ServiceOverlay]:
        if raw is None:
            return {}
        if not isinstance(raw, dict):
            problem = "must be a mapping of service names to their settings"
            self.errors.add(SettingsError("services", None, problem, self.locate(("services",))))
            return {}
        services = {}
        for name, mapping in raw.items():
            path = ("services", name)
            if is_service_name(name):
                services[name] = self._service(name, mapping, path)
            else:
                problem = "must be the name of a service"
                self.errors.add(SettingsError("service name", name, problem, self.locate(path)))
        return services

    def _service(self, service: str, raw: object, path: SettingPath) -> ServiceOverlay:
        where = describe_location(self.locate(path), service, ())
        settings = {name: value for name, value in raw.items() if name != "versions"} if isinstance(raw, dict) else raw
        elsewhere = dict.fromkeys(_OF_ROUTER, "the section router")
        values, locations = self._values(settings, path, _OF_SERVICE | _OF_VERSION, where, elsewhere, service)
        versions: dict[str, Mapping[str, Any]] = {}
        raw_versions = raw.get("versions") if isinstance(raw, dict) else None
        if raw_versions is not None and not isinstance(raw_versions, dict):
            problem = "must be a mapping of version names to their settings"
            self.errors.add(SettingsError("versions", None, problem, self.locate((*path, "versions"))))
            raw_versions = None
        for version, mapping in (raw_versions or {}).items():
            inner = ("versions", version)
            where = describe_location(self.locate((*path, *inner)), service, inner)
            elsewhere = dict.fromkeys(_OF_SERVICE, "the service, not to a version")
            own, own_locations = self._values(mapping, (*path, *inner), _OF_VERSION, where, elsewhere, service)
            versions[version] = own
            locations |= {(*inner, name): location for (name,), location in own_locations.items()}
        for name in _PER_VERSION:
            if name in values and versions:
                problem = "must be set within a version when there are versions"
                self.errors.add(SettingsError(name, values[name], problem, where))
        return ServiceOverlay(
            {name: value for name, value in values.items() if name in _OF_SERVICE},
            {name: value for name, value in values.items() if name in _OF_VERSION},
            versions,
            locations,
        )

    def _values(
        self,
        raw: object,
        path: SettingPath,
        known: Mapping[str, Setting],
        where: str,
        elsewhere: Mapping[str, str],
        service: str = "",
    ) -> tuple[dict[str, Any], dict[SettingPath, str]]:
        """Return the values of a mapping, and the place of each."""
        values: dict[str, Any] = {}
        locations: dict[SettingPath, str] = {}
        if raw is not None and not isinstance(raw, dict):
            self.errors.add(SettingsError(path[-1], None, _MUST_MAP_SETTINGS, where))
            return values, locations
        for name, value in (raw or {}).items():
            location = self.locate((*path, name))
            error_location = describe_location(location, service, path[2:]) if service else f"{location}: {path[0]}"
            with self.errors.collect():
                if name not in known:
                    raise unknown_setting(name, known, error_location, elsewhere=elsewhere)
                self._check_permission(known[name], error_location)
                parsed = parse_value(known[name], value, error_location)
                # `parse_service` parses the values again, which are text for an OBJECT.
                values[name] = value if known[name].kind is SettingKind.OBJECT else parsed
                locations[(name,)] = location
        return values, locations

    def _check_permission(self, setting: Setting, where: str) -> None:
        if setting.name in NEVER_DYNAMIC:
            raise SettingsError(setting.name, None, "not possible in the dynamic configuration", where)
        if not setting.dynamic and setting.name not in self.allowed:
            problem = "not allowed in the dynamic configuration, unless dynamic_config_allow names it"
            raise SettingsError(setting.name, None, problem, where)
