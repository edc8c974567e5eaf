"""Services, versions and replicas as immutable values.

Contains: what a service is, and how traffic is split among its versions (`Service.traffic_shares`). Does not contain:
the parser of settings (`config.service`), how replicas are started, and state that changes with each request.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from router.model.data_collection import PAYLOADS, DataCollector

VersionKey = tuple[str, str]
"""Service name, version name."""

DEFAULT_VERSION_NAME = "default"
"""Name of the single version of a service whose settings declare no versions."""


def version_label(key: VersionKey) -> str:
    """Return the name of a version for people: `iris`, or `iris/blue` if the service declares versions."""
    service, version = key
    return service if version == DEFAULT_VERSION_NAME else f"{service}/{version}"


def describe_version(key: VersionKey) -> str:
    """Return a version as a sentence begins with it: `service iris`, or `service iris, version blue` if the service
    declares versions."""
    service, version = key
    return f"service {service}" if version == DEFAULT_VERSION_NAME else f"service {service}, version {version}"


class ReplicaState(StrEnum):
    """State of a replica. Only READY replicas get new requests."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"


@dataclass(frozen=True, slots=True)
class Replica:
    """One process or pod that serves a version. Its `id` is unique in the whole cluster."""

    id: str
    host: str
    port: int
    state: ReplicaState


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """One variant of a service; each field is explained in `config.service_settings`.

    While `autoscale_enabled` is false, `num_replicas` is the number of replicas and the other `autoscale_*` have no
    effect.
    """

    name: str
    autoscale_enabled: bool
    autoscale_min_replicas: int
    autoscale_max_replicas: int
    autoscale_refresh_seconds: float
    autoscale_target_utilization: int
    autoscale_scale_down_seconds: float
    autoscale_objective: str
    num_replicas: int | None
    replica_max_concurrent_requests: int
    max_request_wait_time: int
    max_queue_length: int
    scoring_timeout_ms: int
    replica_drain_seconds: float
    cancellation: str
    abandoned_request_timeout_ms: int | None
    half_close: str | None
    request_buffering: bool
    retry_on_reset: bool
    rewrite_location: bool
    scoring_path: str
    tunnel_idle_timeout_seconds: float
    max_stream_seconds: float
    enable_app_insights: bool
    outlier_detection: bool
    outlier_consecutive_failures: int
    outlier_consecutive_timeouts: int
    outlier_ejection_seconds: float
    outlier_max_ejected_percent: int
    collect_model_data: bool
    data_collector: DataCollector | None
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
    readiness_period_seconds: int
    readiness_initial_delay_seconds: int
    readiness_timeout_seconds: int
    readiness_success_threshold: int
    readiness_failure_threshold: int
    traffic_percentile: int
    is_default: bool
    description: str
    tags: Mapping[str, str]
    properties: Mapping[str, str]

    @property
    def abandoned_timeout_ms(self) -> int:
        """The effective `abandoned_request_timeout_ms`."""
        return self.abandoned_request_timeout_ms or self.scoring_timeout_ms

    @property
    def collected(self) -> DataCollector | None:
        """The effective `data_collector`; None if nothing is collected."""
        return self.data_collector or (PAYLOADS if self.collect_model_data else None)

    @property
    def half_close_cancels(self) -> bool:
        """The effective `half_close`: True if a client cancels its requests when it sends FIN."""
        return (self.half_close or ("cancel" if self.cancellation == "on_close" else "deliver")) == "cancel"


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A deployed model as a client sees it; each field is explained in `config.service_settings`."""

    name: str
    auth_enabled: bool
    token_auth_enabled: bool
    primary_key: str | None = field(repr=False)
    secondary_key: str | None = field(repr=False)
    forward_authorization: bool
    keep_underscore_headers: bool
    cors_allowed_origins: tuple[str, ...]
    allowed_methods: tuple[str, ...]
    key_headers: tuple[str, ...]
    versions: tuple[Version, ...]
    standby: bool = False
    """True if this router follows the service but does not serve it. Not a setting."""

    @property
    def uses_keys(self) -> bool:
        """True if clients need a key of this service, to score or to get a token. The keys may not exist yet."""
        return self.auth_enabled or self.token_auth_enabled

    @property
    def default_version(self) -> Version:
        """The version with `is_default`, else the first. It gets the traffic that is left by the other versions."""
        return next((version for version in self.versions if version.is_default), self.versions[0])

    def traffic_shares(self) -> tuple[tuple[Version, int], ...]:
        """Return each version with its share of the traffic in percent; the sum is 100.

        Each version except the default gets its `traffic_percentile`. The default gets the rest; its own value is
        ignored (Azure ML `AksEndpoint`: "traffic that no percentile claims goes to the default").
        """
        default = self.default_version
        rest = 100 - sum(version.traffic_percentile for version in self.versions if version is not default)
        return tuple((version, rest if version is default else version.traffic_percentile) for version in self.versions)
