"""Services, versions and replicas as facts.

Lives here: what a service is, the rules between its settings (`parse_service`) and how traffic is shared among versions
(`Service.shares`). Must not live here: the facts of each single setting (`service_settings`), where settings come from
(files, annotations), how replicas are launched, and anything that changes while requests flow.
"""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, NamedTuple

from router.service_settings import SERVICE_SETTINGS, VERSION_SETTINGS
from router.values import SettingsError, parse_value, unknown_name

__all__ = [
    "DEFAULT_VERSION_NAME",
    "Locate",
    "Replica",
    "ReplicaState",
    "Service",
    "SettingPath",
    "SettingsError",
    "Version",
    "VersionKey",
    "is_name",
    "parse_service",
    "place_text",
]

VersionKey = tuple[str, str]
"""Service name, version name."""

DEFAULT_VERSION_NAME = "default"
"""Name of the only version of a service that names none."""

SettingPath = tuple[str, ...]
"""Where a value stands in a service's mapping: `("cpu_cores",)` or `("versions", "blue", "cpu_cores")`."""

Locate = Callable[[SettingPath], str]
"""Says in an error where a value was written, such as `models.yaml, line 7`."""

_NAME = re.compile(r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?", re.ASCII)
_NAME_MEANS = "must be 1 to 63 of a-z, 0-9 and '-', beginning and ending with a letter or digit"


class ReplicaState(StrEnum):
    """Life of a replica as the router sees it: only READY ones get new requests."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"


@dataclass(frozen=True, slots=True)
class Replica:
    """One process or pod that serves a version; `id` is unique in the whole cluster."""

    id: str
    host: str
    port: int
    state: ReplicaState


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """One variant of a service; each field is explained in `service_settings`.

    While `autoscale_enabled` is false, `num_replicas` is the number of replicas and the other `autoscale_*` mean
    nothing.
    """

    name: str
    autoscale_enabled: bool
    autoscale_min_replicas: int
    autoscale_max_replicas: int
    autoscale_refresh_seconds: float
    autoscale_target_utilization: int
    autoscale_scale_down_seconds: float
    num_replicas: int | None
    replica_max_concurrent_requests: int
    max_request_wait_time: int
    max_queue_length: int
    scoring_timeout_ms: int
    cpu_cores: float
    cpu_cores_limit: float | None
    memory_gb: float
    memory_gb_limit: float | None
    gpu_cores: int
    period_seconds: int
    initial_delay_seconds: int
    timeout_seconds: int
    success_threshold: int
    failure_threshold: int
    traffic_percentile: int
    is_default: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A deployed model as a client sees it; each field is explained in `service_settings`."""

    name: str
    auth_enabled: bool
    token_auth_enabled: bool
    primary_key: str | None = field(repr=False)
    secondary_key: str | None = field(repr=False)
    forward_authorization: bool
    keep_underscore_headers: bool
    cors_allowed_origins: tuple[str, ...]
    versions: tuple[Version, ...]

    @property
    def has_keys(self) -> bool:
        """Whether clients need a key of it: to score, or to be given a token."""
        return self.auth_enabled or self.token_auth_enabled

    @property
    def default_version(self) -> Version:
        """The version that gets what no other one claims: the one that says `is_default`, else the first."""
        return next((version for version in self.versions if version.is_default), self.versions[0])

    def shares(self) -> tuple[tuple[Version, int], ...]:
        """Percent of the traffic of each version, in their order; the sum is 100.

        Each version but the default gets its `traffic_percentile`, the default gets the rest whatever its own says
        (Azure ML `AksEndpoint`: "traffic that no percentile claims goes to the default").
        """
        default = self.default_version
        rest = 100 - sum(version.traffic_percentile for version in self.versions if version is not default)
        return tuple((version, rest if version is default else version.traffic_percentile) for version in self.versions)


def parse_service(
    name: str,
    mapping: Mapping[str, object],
    *,
    where: str = "",
    locate: Locate | None = None,
    other_names: Collection[str] = (),
    defaults: Mapping[str, object] | None = None,
) -> Service:
    """The service that `mapping` (setting name -> typed or text value) describes; `{}` gives every default.

    Without `versions` in it, the service has one version named `default`. With `versions` (version name -> mapping),
    what stands beside it is a default for each version, but a version that chooses between autoscaling and
    `num_replicas` inherits nothing of the other way. `other_names` are names that the caller reads itself.
    `defaults` are those of versions that differ from the table's, such as `COMPATIBLE_DEFAULTS` has them.

    `where` says in errors what the mapping is; `locate`, when given, says it for one value by its path, such as
    `("versions", "blue", "cpu_cores")`. Raises `SettingsError` for the first fault: unknown names and values in the
    order of the mapping, then the rules between settings.
    """
    reader = _Reader(name, where, locate, frozenset(other_names), defaults or {})
    if not _NAME.fullmatch(name):
        raise SettingsError("service name", name, _NAME_MEANS, reader.source(()))
    above = reader.read({key: raw for key, raw in mapping.items() if key != "versions"}, ())
    values = {
        setting.name: above[setting.name].value if setting.name in above else setting.default
        for setting in SERVICE_SETTINGS
    }
    _settle_authentication(values, above)
    _check_origins(values, above)
    inherited = {key: given for key, given in above.items() if key in _VERSION_NAMES}
    if "versions" in mapping:
        versions = _parse_versions(reader, mapping["versions"], inherited)
    else:
        versions = (_build_version(DEFAULT_VERSION_NAME, inherited, reader.defaults),)
    return Service(name=name, versions=_settle_default(reader, versions), **values)


def is_name(text: str) -> bool:
    """Whether a service or version could have this name."""
    return _NAME.fullmatch(text) is not None


def place_text(source: str, service: str, path: SettingPath) -> str:
    """What errors say of the value at `path` of a service: `models.yaml, line 7: service iris, version blue`."""
    version = f", version {path[1]}" if path[:1] == ("versions",) and len(path) > 1 else ""
    return (f"{source}: " if source else "") + f"service {service}{version}"


_SERVICE_NAMES = frozenset(setting.name for setting in SERVICE_SETTINGS)
_VERSION_NAMES = frozenset(setting.name for setting in VERSION_SETTINGS)
_BY_NAME = {setting.name: setting for setting in (*SERVICE_SETTINGS, *VERSION_SETTINGS)}


class _Given(NamedTuple):
    """A value that someone wrote, and where."""

    value: Any
    where: str


_Givens = dict[str, _Given]


@dataclass(frozen=True, slots=True)
class _Reader:
    """Turns one mapping into typed values that know where they were written."""

    service: str
    where: str
    locate: Locate | None
    other_names: frozenset[str]
    defaults: Mapping[str, object]  # of versions

    def source(self, path: SettingPath) -> str:
        return self.locate(path) if self.locate else self.where

    def place(self, path: SettingPath) -> str:
        return place_text(self.source(path), self.service, path)

    def read(self, mapping: Mapping[str, object], path: SettingPath) -> _Givens:
        givens: _Givens = {}
        for name, raw in mapping.items():
            where = self.place((*path, name))
            if name in _BY_NAME:
                givens[name] = _Given(parse_value(_BY_NAME[name], raw, where), where)
            elif name not in self.other_names:
                raise unknown_name(str(name), {*_BY_NAME, *self.other_names, "versions"}, where)
        return givens


def _parse_versions(reader: _Reader, raw: object, inherited: _Givens) -> tuple[Version, ...]:
    for name in ("traffic_percentile", "is_default"):
        if name in inherited:
            given = inherited[name]
            raise SettingsError(name, given.value, "is set within a version when there are versions", given.where)
    if not isinstance(raw, Mapping) or not raw:
        allowed = "must be a mapping of at least one version name to its settings"
        raise SettingsError("versions", None, allowed, reader.place(("versions",)))
    versions = []
    for name, mapping in raw.items():
        path = ("versions", str(name))
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise SettingsError("version name", name, _NAME_MEANS, reader.place(path))
        if not isinstance(mapping, Mapping):
            raise SettingsError("version", None, "must be a mapping of setting names to values", reader.place(path))
        own = reader.read(mapping, path)
        for setting_name, given in own.items():
            if setting_name in _SERVICE_NAMES:
                raise SettingsError(setting_name, None, "belongs to the service, not to a version", given.where)
        versions.append(_build_version(name, _inherit(inherited, own), reader.defaults))
    return tuple(versions)


def _inherit(above: _Givens, own: _Givens) -> _Givens:
    """What a version is given: its own values over the service's, less those that contradict its own way of scaling."""
    enabled = own.get("autoscale_enabled")
    dropped: set[str] = set()
    if "num_replicas" in own or (enabled is not None and not enabled.value):
        dropped = {name for name in above if name.startswith("autoscale_")}
    elif any(name.startswith("autoscale_") for name in own):
        dropped = {"num_replicas"}
    return {name: given for name, given in above.items() if name not in dropped} | own


def _build_version(name: str, givens: _Givens, defaults: Mapping[str, object]) -> Version:
    values: dict[str, Any] = {
        setting.name: givens[setting.name].value
        if setting.name in givens
        else defaults.get(setting.name, setting.default)
        for setting in VERSION_SETTINGS
    }
    _settle_scaling(values, givens)
    for request in ("cpu_cores", "memory_gb"):
        limit = values[f"{request}_limit"]
        if limit is not None and limit < values[request]:
            allowed = f"must be at least {request} ({values[request]:g})"
            raise SettingsError(f"{request}_limit", limit, allowed, givens[f"{request}_limit"].where)
    return Version(name=name, **values)


def _settle_scaling(values: dict[str, Any], givens: _Givens) -> None:
    """Autoscaling is on unless `num_replicas` is given; to say both or neither is an error."""
    fixed, enabled = "num_replicas" in givens, givens.get("autoscale_enabled")
    if enabled is None:
        values["autoscale_enabled"] = not fixed
    elif enabled.value == fixed:
        allowed = "must be false or absent with num_replicas" if fixed else "needs num_replicas"
        raise SettingsError("autoscale_enabled", enabled.value, allowed, enabled.where)
    if not values["autoscale_enabled"]:
        for name, given in givens.items():
            if name.startswith("autoscale_") and name != "autoscale_enabled":
                allowed = f"not allowed while autoscaling is off (num_replicas is {values['num_replicas']})"
                raise SettingsError(name, given.value, allowed, given.where)
    elif values["autoscale_min_replicas"] > values["autoscale_max_replicas"]:
        least = givens["autoscale_min_replicas"]
        allowed = f"must not exceed autoscale_max_replicas ({values['autoscale_max_replicas']})"
        raise SettingsError("autoscale_min_replicas", least.value, allowed, least.where)


def _settle_authentication(values: dict[str, Any], givens: _Givens) -> None:
    """Keys are asked for unless tokens are; to ask for both is an error."""
    if "auth_enabled" not in givens:
        values["auth_enabled"] = not values["token_auth_enabled"]
    elif values["auth_enabled"] and values["token_auth_enabled"]:
        given = givens["token_auth_enabled"]
        raise SettingsError("token_auth_enabled", given.value, "excludes auth_enabled: true", given.where)


def _check_origins(values: dict[str, Any], givens: _Givens) -> None:
    origins = values["cors_allowed_origins"]
    if "*" in origins and len(origins) > 1:
        given = givens["cors_allowed_origins"]
        raise SettingsError("cors_allowed_origins", list(origins), "'*' must stand alone", given.where)


def _settle_default(reader: _Reader, versions: tuple[Version, ...]) -> tuple[Version, ...]:
    """The versions with exactly one that is the default, and no more than 100 percent claimed by the others."""
    named = [version for version in versions if version.is_default]
    if len(named) > 1:
        allowed = f"only one version may be the default, {named[0].name} is"
        raise SettingsError("is_default", True, allowed, reader.place(("versions", named[1].name, "is_default")))
    default = named[0] if named else versions[0]
    claimed = sum(version.traffic_percentile for version in versions if version is not default)
    if claimed > 100:
        allowed = f"the versions other than the default ({default.name}) may claim at most 100 percent together"
        raise SettingsError("traffic_percentile", claimed, allowed, reader.place(("versions",)))
    return tuple(replace(version, is_default=version is default) for version in versions)
