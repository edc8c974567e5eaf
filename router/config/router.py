"""The settings of the router, composed of groups, and their sources in the order of precedence: defaults, the `router:`
section of the file, the dynamic configuration, environment, flags.

Does not contain: declarations of other groups (`*_settings`), reading of files (`cluster.local.config_file`),
command-line syntax (`cli`).
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from router.config.azure_settings import AzureSettings
from router.config.collection_settings import CollectionSettings
from router.config.connection_settings import ConnectionSettings, ShutdownSettings
from router.config.declaration import declared_settings, setting
from router.config.dynamic_settings import DynamicConfigSettings
from router.config.kubernetes_settings import KubernetesSettings
from router.config.listener_settings import (
    SCORING_PREFIXES,
    ClientListenerSettings,
    InternalListenerSettings,
    PeerTlsSettings,
)
from router.config.networks import check_networks
from router.config.schema import ErrorCollector, Setting, SettingsError, parse_value
from router.config.self_scaling_settings import SelfScalingSettings, resolve_self_scaling
from router.config.service_settings import SERVICE_SETTINGS, VERSION_SETTINGS
from router.config.telemetry_settings import TelemetrySettings
from router.config.token_settings import TokenIssuingSettings
from router.config.unknown import unknown_setting

ENVIRONMENT_PREFIX = "AZUREML_FE_"
CONFIG_VARIABLE = "AZUREML_FE_CONFIG"
"""Environment variable with the path of the file that `serve` reads."""

SERVE_DEFAULTS = {"host": "::", "admin_host": "::", "state_dir": "/var/lib/azureml-fe"}
"""Defaults of `serve`, which runs in a pod, where they differ from those of `local`."""


@dataclass(frozen=True, kw_only=True)
class ProcessSettings:
    """The router's processes and their files. If `workers` is None, their number depends on the load."""

    workers: int | None = setting(
        "Fixed number of workers, the processes that forward requests.",
        default_text="depends on the load",
        minimum=1,
        maximum=1024,
        flag=True,
    )
    state_dir: Path = setting(
        "Directory for generated keys, logs and other state. A relative path in a file is relative to the directory of "
        "that file.",
        default_text="`$XDG_STATE_HOME/azureml-fe`, else `~/.local/state/azureml-fe`",
        pattern=r"[^\x00]+",
        pattern_text="a path",
        flag=True,
    )


@dataclass(frozen=True, kw_only=True)
class RouterSettings(
    ClientListenerSettings,
    PeerTlsSettings,
    InternalListenerSettings,
    ProcessSettings,
    TelemetrySettings,
    CollectionSettings,
    AzureSettings,
    ConnectionSettings,
    ShutdownSettings,
    TokenIssuingSettings,
    SelfScalingSettings,
    KubernetesSettings,
    DynamicConfigSettings,
):
    """All settings of one router. Each is declared in its group. Only `load_settings` creates this class."""


ROUTER_SETTINGS: tuple[Setting, ...] = tuple(
    declared for group in RouterSettings.__bases__ for declared in declared_settings(group)
)
"""Every declared setting of the router, in the order of the documentation."""

FILE_SETTINGS = tuple(declared.name for declared in ROUTER_SETTINGS if declared.is_path)
"""Names of the settings that are paths of files."""

_BY_NAME = {declared.name: declared for declared in ROUTER_SETTINGS}

_ELSEWHERE = {declared.name: "a service" for declared in (*SERVICE_SETTINGS, *VERSION_SETTINGS)}


class RouterSection(dict[str, Any]):
    """The typed values of a section `router:`, and `locations`: where each of them is, for errors."""

    def __init__(self, values: Mapping[str, Any], locations: Mapping[str, str]) -> None:
        super().__init__(values)
        self.locations = locations


class SourcedSettings(NamedTuple):
    """The settings of a router, and the source of each value that is no declared default, by name."""

    settings: RouterSettings
    sources: Mapping[str, str]


# Kubernetes sets these variables for every Service of the namespace, and the router's own Service is named azureml-fe.
_SERVICE_LINK_NAME = re.compile(r"(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP|SCTP)(_\w+)?)?)")
_SERVICE_LINK_VALUE = re.compile(r"(tcp|udp|sctp)://\S+")


def environment_name(name: str) -> str:
    """Return the environment variable of a setting: `AZUREML_FE_ADMIN_PORT` for `admin_port`."""
    return ENVIRONMENT_PREFIX + name.upper()


def flag_name(name: str) -> str:
    """Return the flag of a setting: `--admin-port` for `admin_port`."""
    return "--" + name.replace("_", "-")


def parse_router_values(mapping: Mapping[str, object], locate: Callable[[str], str]) -> dict[str, Any]:
    """Return the typed values of a mapping from setting names to raw values.

    `locate` returns the source of a setting's value for errors. Raises `SettingsError` for unknown names and values
    outside their limits.
    """
    values: dict[str, Any] = {}
    errors = ErrorCollector()
    for name, raw in mapping.items():
        with errors.collect():
            if name not in _BY_NAME:
                raise unknown_setting(name, _BY_NAME, locate(name), elsewhere=_ELSEWHERE)
            values[name] = parse_value(_BY_NAME[name], raw, locate(name))
    errors.raise_errors()
    return values


def load_settings(
    *,
    environ: Mapping[str, str],
    file: Mapping[str, object] | None = None,
    dynamic: Mapping[str, object] | None = None,
    flags: Mapping[str, object] | None = None,
    defaults: Mapping[str, object] | None = None,
) -> RouterSettings:
    """Return the settings from these sources, see `load_sourced_settings`."""
    given = load_sourced_settings(environ=environ, file=file, dynamic=dynamic, flags=flags, defaults=defaults)
    return given.settings


def load_sourced_settings(
    *,
    environ: Mapping[str, str],
    file: Mapping[str, object] | None = None,
    dynamic: Mapping[str, object] | None = None,
    flags: Mapping[str, object] | None = None,
    defaults: Mapping[str, object] | None = None,
) -> SourcedSettings:
    """Return the settings from these sources, in ascending precedence: declared defaults, `defaults`, `file` (its
    `router:` section), `dynamic` (that of the dynamic configuration), `environ`, `flags`. A `RouterSection` knows the
    locations of its values.

    `environ` also has the user's directories, for the default of `state_dir`. Other variables are ignored unless they
    begin with `AZUREML_FE_`, and so are those that Kubernetes creates for Services. Raises `SettingsError`.
    """
    values: dict[str, Any] = {declared.name: declared.default for declared in ROUTER_SETTINGS}
    sources: dict[str, str] = {}  # of the values that are not defaults
    errors = ErrorCollector()
    layers: tuple[tuple[Mapping[str, object] | None, Callable[[str], str]], ...] = (
        (defaults, lambda _: "defaults"),
        (file, _locate_in(file)),
        (dynamic, _locate_in(dynamic)),
        (_of_environment(environ, errors), lambda name: f"environment {environment_name(name)}"),
        (flags, lambda name: f"flag {flag_name(name)}"),
    )
    for given, locate in layers:
        with errors.collect():
            values |= parse_router_values(given or {}, locate)
        sources |= {name: locate(name) for name in given or {}}
    errors.raise_errors()
    return SourcedSettings(_checked(values, environ, sources), sources)


def _locate_in(section: Mapping[str, object] | None) -> Callable[[str], str]:
    locations = section.locations if isinstance(section, RouterSection) else {}
    return lambda name: locations.get(name, "router section")


def _checked(values: dict[str, Any], environ: Mapping[str, str], sources: Mapping[str, str]) -> RouterSettings:
    """Return the settings after a check of the rules between them. `sources` is where values come from, by name."""
    errors = ErrorCollector()
    with errors.collect():
        values["state_dir"] = _state_dir(values["state_dir"], environ)
        values["scoring_prefix"] = values["scoring_prefix"] or SCORING_PREFIXES[values["compatibility"]]
        settings = RouterSettings(**resolve_self_scaling(values))
        with errors.collect():
            _check_ports(settings)
        with errors.collect():
            check_networks("trusted_proxies", settings.trusted_proxies)
        with errors.collect():
            _check_dynamic_config(settings)
    errors.raise_errors(sources)
    return settings


def _of_environment(environ: Mapping[str, str], errors: ErrorCollector) -> dict[str, str]:
    """Return the texts of the settings in the environment. Collects errors about unknown variables."""
    by_variable = {environment_name(declared.name): declared for declared in ROUTER_SETTINGS}
    texts: dict[str, str] = {}
    for variable, text in sorted(environ.items()):
        if not variable.startswith(ENVIRONMENT_PREFIX) or variable == CONFIG_VARIABLE:
            continue
        if variable in by_variable:
            if not (variable.endswith("_PORT") and _SERVICE_LINK_VALUE.fullmatch(text)):
                texts[by_variable[variable].name] = text
        elif not _SERVICE_LINK_NAME.fullmatch(variable.removeprefix(ENVIRONMENT_PREFIX)):
            errors.add(unknown_setting(variable, by_variable, "environment"))
    return texts


def _state_dir(given: str | None, environ: Mapping[str, str]) -> Path:
    if given is not None:
        try:
            return Path(given).expanduser()
        except RuntimeError as error:
            problem = "must not begin with the home directory of an unknown user"
            raise SettingsError("state_dir", given, problem) from error
    base = environ.get("XDG_STATE_HOME", "")
    # The XDG base directory specification requires that a relative path is ignored.
    return (Path(base) if base.startswith("/") else Path.home() / ".local" / "state") / "azureml-fe"


def _check_ports(settings: RouterSettings) -> None:
    """Raise `SettingsError` if two listeners have the same address and port."""
    if settings.port and (settings.host, settings.port) == (settings.admin_host, settings.admin_port):
        raise SettingsError("admin_port", settings.admin_port, "must differ from port")
    if settings.https_port and settings.tls_cert_file is not None:
        if settings.https_port == settings.port and settings.allows_plain_http:
            raise SettingsError("https_port", settings.https_port, "must differ from port")
        if (settings.host, settings.https_port) == (settings.admin_host, settings.admin_port):
            raise SettingsError("https_port", settings.https_port, "must differ from admin_port")


def _check_dynamic_config(settings: RouterSettings) -> None:
    """Raise `SettingsError` if the dynamic configuration has several sources."""
    names = ("dynamic_config_file", "dynamic_config_map", "dynamic_config_blob")
    first, *others = [name for name in names if getattr(settings, name) is not None] or [""]
    for name in others:
        raise SettingsError(name, getattr(settings, name), f"excludes {first}")
