"""The parser of the configuration file of a local cluster: services, launch settings, and settings of the router.

Contains: the sections of the file, the inheritance of launch settings, and paths relative to the directory of the file.
Does not contain: which YAML is accepted (`yaml_document`), declarations of settings (`config`, `launch`), starting
processes (`cluster`), and generating keys (`key_store`).
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from router.auth.issuers import Issuer, parse_issuers
from router.cluster.local.launch import (
    LAUNCH_METHODS,
    LAUNCH_SETTINGS_BY_NAME,
    LaunchSettings,
    check_has_port,
    parse_addresses,
    parse_command,
    parse_entry_script,
)
from router.config.dynamic import NO_DYNAMIC_SETTINGS, DynamicSettings, ServiceOverlay
from router.config.overlay import overlay_service
from router.config.router import FILE_SETTINGS, RouterSection, RouterSettings, load_settings, parse_router_values
from router.config.schema import ErrorCollector, SettingsError, parse_value
from router.config.service import SettingPath, describe_location, parse_service
from router.config.service_settings import COMPATIBILITY_DEFAULTS
from router.config.unknown import unknown_setting
from router.config.yaml_document import Document, read_yaml
from router.model.services import DEFAULT_VERSION_NAME, Service, VersionKey

_SECTIONS = ("services", "router", "token_issuers")
_ROUTER_SECTIONS = ("router", "token_issuers")
_MUST_MAP_SETTINGS = "must be a mapping of setting names to values"


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalConfig:
    """The content of a configuration file. `router` maps names of `config.router.ROUTER_SETTINGS` to typed values."""

    services: Mapping[str, Service]
    launches: Mapping[VersionKey, LaunchSettings]
    router: RouterSection
    token_issuers: Mapping[str, Issuer]
    losses: tuple[str, ...] = ()
    """Keys of Azure ML's files that have no counterpart here, each with the reason."""


def parse_local_config(
    document: Document,
    directory: Path,
    *,
    environ: Mapping[str, str] | None = None,
    flags: Mapping[str, object] | None = None,
    dynamic: DynamicSettings = NO_DYNAMIC_SETTINGS,
) -> LocalConfig:
    """Return the validated content of a document, whose paths are relative to `directory`. The services have the
    settings of the dynamic configuration.

    `environ` and `flags` matter for rules between settings of the router, and for `compatibility`, which selects the
    defaults of services. Raises `SettingsError` for all errors, each with file, line and setting.
    """
    errors = ErrorCollector()
    sections = _sections(document, _SECTIONS, errors)
    router = RouterSection({}, {})
    compatibility = "v1"
    with errors.collect():
        router = _read_router_section(document, sections.get("router"), directory)
        settings = load_settings(environ=environ or {}, file=router, dynamic=dynamic.router, flags=flags)
        compatibility = settings.compatibility
        check_local_settings(settings)
    services: dict[str, Service] = {}
    launches: dict[VersionKey, LaunchSettings] = {}
    raw_services = sections.get("services")
    if isinstance(raw_services, dict) and raw_services:
        for name, mapping in raw_services.items():
            with errors.collect():
                overlay = dynamic.services.get(name, _NO_OVERLAY)
                reader = _ServiceReader(document, directory, name, COMPATIBILITY_DEFAULTS[compatibility], overlay)
                services[name], launch_by_version = reader.read(mapping)
                launches |= {(name, version): launch for version, launch in launch_by_version.items()}
    elif "services" in sections or not errors:  # otherwise the name of the section may be misspelt
        problem = "must be a mapping of at least one service name to its settings"
        errors.add(SettingsError("services", None, problem, document.locate(("services",))))
    issuers: dict[str, Issuer] = {}
    with errors.collect():
        issuers = _read_issuers(document, sections.get("token_issuers"), directory)
    _check_issuer_services(document, issuers, raw_services, errors)
    errors.raise_errors()
    return LocalConfig(services=services, launches=launches, router=router, token_issuers=issuers)


def check_local_settings(settings: RouterSettings) -> None:
    """Raise `SettingsError` for a setting that only a router in a cluster can have."""
    if settings.names_have_namespace:
        problem = "must be name: outside of a Kubernetes cluster, services have no namespace"
        raise SettingsError("service_names", settings.service_names, problem)


def is_router_file(path: Path) -> bool:
    """True if a file has at least one section, and only sections that `load_router_file` reads. Raises
    `SettingsError`."""
    top = read_yaml(path).values
    return isinstance(top, dict) and bool(top) and top.keys() <= set(_ROUTER_SECTIONS)


def load_router_file(path: Path) -> tuple[RouterSection, dict[str, Issuer]]:
    """Return the sections `router` and `token_issuers` of the file of `azureml-fe serve`. Raises `SettingsError` if the
    file has other sections or invalid settings."""
    document = read_yaml(path)
    errors = ErrorCollector()
    sections = _sections(document, _ROUTER_SECTIONS, errors)
    directory = directory_of(path)
    router, issuers = RouterSection({}, {}), dict[str, Issuer]()
    with errors.collect():
        router = _read_router_section(document, sections.get("router"), directory)
    with errors.collect():
        issuers = _read_issuers(document, sections.get("token_issuers"), directory)
    errors.raise_errors()
    return router, issuers


def _sections(document: Document, known: tuple[str, ...], errors: ErrorCollector) -> dict[str, Any]:
    sections = document.values if isinstance(document.values, dict) else {}
    for name in sections:
        if name not in known:
            errors.add(unknown_setting(name, known, document.locate((name,))))
    return sections


def directory_of(path: Path) -> Path:
    """Return the directory of a file, to which its paths are relative."""
    # Links are not resolved: a mounted file may be a link, and relative paths in it refer to the link's directory.
    return Path(os.path.abspath(path)).parent


def _read_router_section(document: Document, raw: object, directory: Path) -> RouterSection:
    if raw is not None and not isinstance(raw, dict):
        raise SettingsError("router", None, _MUST_MAP_SETTINGS, document.locate(("router",)))
    locations = {name: f"{document.locate(('router', name))}: router" for name in raw or {}}
    values = parse_router_values(raw or {}, locations.__getitem__)
    if not values.get("state_dir", "~").startswith("~"):
        values["state_dir"] = str(directory / values["state_dir"])
    values |= {name: str(directory / values[name]) for name in FILE_SETTINGS if values.get(name) is not None}
    return RouterSection(values, locations)


def _read_issuers(document: Document, raw: object, directory: Path) -> dict[str, Issuer]:
    return parse_issuers(
        raw,
        lambda path: document.locate(("token_issuers", *path)),
        resolve=lambda given: str(directory / Path(given).expanduser()),
    )


def _check_issuer_services(
    document: Document, issuers: Mapping[str, Issuer], services: object, errors: ErrorCollector
) -> None:
    """Collect an error for each service that an issuer names and the file does not have."""
    names = list(services) if isinstance(services, dict) else []
    for issuer in issuers.values():
        for name in issuer.services:
            if name not in names:
                line = document.locate(("token_issuers", issuer.name, "services"))
                problem = f"must be services of this file: {', '.join(names)}"
                errors.add(SettingsError("services", name, problem, f"{line}: token issuer {issuer.name}"))


@dataclass(frozen=True, slots=True)
class _Level:
    """The settings of a service or of a version in the file, and their path."""

    values: dict[str, Any]
    path: SettingPath


_NO_OVERLAY = ServiceOverlay()
_NO_SERVICE_LEVEL = _Level({}, ())
"""The service level of a service without `versions`: all its settings are at the level of its only version."""


@dataclass(frozen=True, slots=True)
class _ServiceReader:
    """Reads one service, and the launch settings of its versions. A version inherits launch settings of its service."""

    document: Document
    directory: Path
    name: str
    defaults: Mapping[str, object]
    overlay: ServiceOverlay

    def read(self, mapping: object) -> tuple[Service, dict[str, LaunchSettings]]:
        """Return the service, and the launch settings by version name. Raises `SettingsError` for all errors."""
        if not isinstance(mapping, dict):
            raise SettingsError("service", None, _MUST_MAP_SETTINGS, self._location(()))
        mapping = overlay_service(mapping, self.overlay)
        errors = ErrorCollector()
        implied = mapping
        with errors.collect():
            implied = self._with_implied_settings(mapping)
        with errors.collect():
            service = parse_service(
                self.name,
                implied,
                locate=self._locate,
                other_names=LAUNCH_SETTINGS_BY_NAME,
                defaults=self.defaults,
            )
        launches: dict[str, LaunchSettings] = {}
        for name, level, service_level in self._levels(mapping):
            with errors.collect():
                launches[name] = self._launch(level, service_level)
        errors.raise_errors()
        return service, launches

    def _levels(self, mapping: dict[str, Any]) -> Iterator[tuple[str, _Level, _Level]]:
        """Yield the name of each version with the level of its own settings and that of its service."""
        versions = mapping.get("versions")
        if "versions" not in mapping:
            yield DEFAULT_VERSION_NAME, _Level(mapping, ()), _NO_SERVICE_LEVEL
        elif isinstance(versions, dict):
            for name, values in versions.items():
                if isinstance(values, dict):
                    yield name, _Level(values, ("versions", name)), _Level(mapping, ())

    def _location(self, path: SettingPath) -> str:
        return describe_location(self._locate(path), self.name, path)

    def _locate(self, path: SettingPath) -> str:
        """Return the place of a value in the file, or in the dynamic configuration, if it comes from there."""
        return self.overlay.location(path) or self.document.locate(("services", self.name, *path))

    def _with_implied_settings(self, mapping: dict[str, Any]) -> dict[str, Any]:
        """Return the mapping with the settings that the launch method of each version implies."""
        versions = mapping.get("versions")
        if "versions" not in mapping:
            return self._with_implied_settings_of_version(_Level(mapping, ()), _NO_SERVICE_LEVEL)
        if not isinstance(versions, dict):
            return mapping
        service_level = _Level(mapping, ())
        return mapping | {
            "versions": {
                name: self._with_implied_settings_of_version(_Level(values, ("versions", name)), service_level)
                if isinstance(values, dict)
                else values
                for name, values in versions.items()
            }
        }

    def _with_implied_settings_of_version(self, own: _Level, service: _Level) -> dict[str, Any]:
        """Return the mapping with the settings that the launch method implies. With `addresses`, autoscaling is off and
        `num_replicas` is their number. With `entry_script`, `cancellation` is none by default, because Azure's server
        finishes each request."""
        source = _launch_level(own, service)
        if "entry_script" in source.values and not any("cancellation" in level.values for level in (own, service)):
            return own.values | {"cancellation": "none"}
        if "addresses" not in source.values:
            return own.values
        for level in (source, own):
            for name in level.values:
                if name == "num_replicas" or name.startswith("autoscale_"):
                    where = self._location((*level.path, name))
                    problem = "not allowed with addresses, which are not scaled"
                    raise SettingsError(name, level.values[name], problem, where)
        count = len(parse_addresses(source.values["addresses"], self._location((*source.path, "addresses"))))
        return own.values | {"autoscale_enabled": False, "num_replicas": count}

    def _launch(self, own: _Level, service: _Level) -> LaunchSettings:
        """Return the launch settings of a version. Raises `SettingsError` for all errors."""
        source = _launch_level(own, service)
        errors = ErrorCollector()
        values: dict[str, Any] = {"entry_script": None, "command": (), "addresses": (), "python": None}
        methods = [method for method in LAUNCH_METHODS if method in source.values]
        method = methods[0] if len(methods) == 1 else None
        if method is None:
            problem = "exactly one of entry_script, command and addresses must be given"
            errors.add(SettingsError(" and ".join(methods) or "launch", None, problem, self._location(own.path)))
        else:
            self._check_excluded(own, method, errors)
            with errors.collect():
                location = self._location((*source.path, method))
                values[method] = self._parse_method(method, source.values[method], location)
        if method == "entry_script":
            with errors.collect():
                values["python"] = self._value("python", own, service)
        for name in ("readiness_path", "liveness_path"):
            with errors.collect():
                values[name] = self._value(name, own, service)
        with errors.collect():
            environment = self._value("environment", service) | self._value("environment", own)
            values["environment"] = environment
            if values["command"]:
                check_has_port(values["command"], environment, self._location((*source.path, "command")))
        errors.raise_errors()
        return LaunchSettings(
            **values,
            directory=self.directory,
            locations={
                name: self._location((*level.path, name))
                for level in (service, own)
                for name in LAUNCH_SETTINGS_BY_NAME
                if name in level.values
            },
        )

    def _check_excluded(self, own: _Level, method: str, errors: ErrorCollector) -> None:
        """Collect an error for each setting of a version that its launch method excludes."""
        if method == "addresses" and "environment" in own.values:
            problem = "not allowed with addresses, whose replicas are started elsewhere"
            errors.add(SettingsError("environment", None, problem, self._location((*own.path, "environment"))))
        if method != "entry_script" and "python" in own.values:
            problem = f"not allowed with {method}, only with entry_script"
            errors.add(SettingsError("python", None, problem, self._location((*own.path, "python"))))

    def _parse_method(self, method: str, raw: object, location: str) -> object:
        if method == "entry_script":
            return parse_entry_script(raw, self.directory, location)
        return parse_command(raw, location) if method == "command" else parse_addresses(raw, location)

    def _value(self, name: str, *levels: _Level) -> Any:
        """Return the value in the first level that has one, else the default."""
        declared = LAUNCH_SETTINGS_BY_NAME[name]
        for level in levels:
            if name in level.values:
                return parse_value(declared, level.values[name], self._location((*level.path, name)))
        return declared.default


def _launch_level(own: _Level, service: _Level) -> _Level:
    """Return the version's own level if it has a launch method, else its service's."""
    return own if any(method in own.values for method in LAUNCH_METHODS) else service
