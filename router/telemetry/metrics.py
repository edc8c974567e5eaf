"""The metrics of one scrape. Names and help texts are in `catalogue`.

The supervisor (`admin.metrics`) fills a `MetricsSnapshot`, which is plain data, and `render_metrics` converts it to
text (`exposition`). Nothing is counted here and nothing is kept between scrapes, so there is no registry of metric
objects. Other parts of the router (the cluster, tokens, certificates, the self-scaler) contribute `Sample`s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from router.model.services import ReplicaState, VersionKey
from router.telemetry.catalogue import METRICS, MetricKind, MetricSpec, Sample, validate_sample
from router.telemetry.counters import NO_VERSION, GatewaySnapshot, VersionSnapshot
from router.telemetry.exposition import Exemplars, ExpositionFormat, HistogramLines, sample_lines
from router.telemetry.histogram import CONNECT_BOUNDS, DURATION_BOUNDS, LAG_BOUNDS, ROUTE_BOUNDS, HistogramSnapshot

DIRECTIONS = ("up", "down")


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionMetrics:
    """The current gauges of one version, and its scaling decisions."""

    in_flight: int
    abandoned: int
    """Abandoned requests that hold a slot; not in flight."""
    queued: int
    slots: int | None
    """Requests that the ready replicas may have in flight; None if not limited."""
    slots_in_use: int
    suspect_slots: int
    """Slots that may be in use by abandoned requests, if the ledger of this pod grants them."""
    leases_idle: int
    replicas_by_state: Mapping[str, int]
    desired: int
    utilization: float | None
    """(in flight + abandoned + queued) / slots. None if slots are not limited or nothing was measured yet."""
    target: float
    """The target utilization."""
    scaling_decisions: Mapping[tuple[str, str], int]
    """Number of decisions by direction, one of `DIRECTIONS`, and reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsSnapshot:
    """All data of one scrape."""

    router_version: str
    hot_path: str
    counters: GatewaySnapshot
    versions: Mapping[VersionKey, VersionMetrics]
    lag: Mapping[str, HistogramSnapshot] = field(default_factory=dict)
    """Lag of the event loops, by process."""
    exemplars: Mapping[VersionKey, Exemplars] = field(default_factory=dict)
    samples: Sequence[Sample] = ()
    """From other parts of the router."""


def render_metrics(snapshot: MetricsSnapshot, accept: str) -> tuple[bytes, str]:
    """Return the body and the content type of a scrape, in the format that the `accept` header asks for.

    Raises ValueError for a sample that does not match the catalogue.
    """
    format_ = ExpositionFormat(accept)
    return "".join(_lines(snapshot, format_)).encode() + format_.process_metrics(), format_.content_type


def _lines(snapshot: MetricsSnapshot, format_: ExpositionFormat) -> Iterator[str]:
    by_metric = samples_by_metric(snapshot)
    for spec in METRICS.values():
        yield from format_.metric_header(spec)
        if spec.kind is MetricKind.HISTOGRAM:
            histogram = HistogramLines(spec, histogram_bounds(spec), format_)
            for series in histogram_series(spec, snapshot):
                yield from histogram.lines(*series)
        else:
            yield from sample_lines(spec, by_metric.get(spec.name, ()))


def samples_by_metric(snapshot: MetricsSnapshot) -> dict[str, list[Sample]]:
    """Return the samples of all metrics but histograms, by the names in the catalogue.

    Raises ValueError for a sample that does not match the catalogue.
    """
    by_metric = {"build": [Sample("build", 1, (snapshot.router_version, snapshot.hot_path))]}
    for sample in _samples(snapshot):
        by_metric.setdefault(sample.metric, []).append(sample)
    return by_metric


class HistogramSeries(NamedTuple):
    """One histogram of a metric."""

    label_values: Sequence[str]
    histogram: HistogramSnapshot
    exemplars: Exemplars


_VERSION_HISTOGRAMS: dict[str, tuple[tuple[float, ...], Callable[[VersionSnapshot], HistogramSnapshot]]] = {
    "request_duration_seconds": (DURATION_BOUNDS, lambda version: version["duration"]),
    "queue_wait_seconds": (DURATION_BOUNDS, lambda version: version["queue_wait"]),
    "route_time_seconds": (ROUTE_BOUNDS, lambda version: version["route_time"]),
    "replica_first_byte_seconds": (DURATION_BOUNDS, lambda version: version["first_byte"]),
    "replica_connect_seconds": (CONNECT_BOUNDS, lambda version: version["connect"]),
}


def histogram_bounds(spec: MetricSpec) -> tuple[float, ...]:
    """Return the upper bounds of a histogram metric, without +Inf."""
    return _VERSION_HISTOGRAMS[spec.name][0] if spec.name in _VERSION_HISTOGRAMS else LAG_BOUNDS


def histogram_series(spec: MetricSpec, snapshot: MetricsSnapshot) -> Iterator[HistogramSeries]:
    """Yield the histograms of a metric."""
    if spec.name in _VERSION_HISTOGRAMS:
        histogram_of = _VERSION_HISTOGRAMS[spec.name][1]
        for key, version in _versions(snapshot.counters):
            if key[1] != NO_VERSION:  # responses sent before a version was chosen are not timed
                exemplars = snapshot.exemplars.get(key, {}) if spec.name == "request_duration_seconds" else {}
                yield HistogramSeries(key, histogram_of(version), exemplars)
    else:
        for process, lag in snapshot.lag.items():
            yield HistogramSeries((process,), lag, {})


# Counters and gauges.


def _samples(snapshot: MetricsSnapshot) -> Iterator[Sample]:
    counters = snapshot.counters
    yield from _request_samples(counters)
    yield from _version_counter_samples(counters)
    for key, version in snapshot.versions.items():
        yield from _version_samples(key, version)
    yield Sample("client_connections", counters["connections_accepted"])
    yield Sample("client_connections_open", counters["connections_open"])
    yield Sample("client_connections_refused", counters["connections_refused"])
    yield Sample("client_connections_evicted", counters["connections_evicted"])
    yield Sample("client_connections_retired", counters["connections_retired"])
    yield Sample("http2_connections", counters["http2_connections"])
    yield Sample("http2_connections_open", counters["http2_connections_open"])
    yield Sample("http2_floods", counters["http2_floods"])
    yield Sample("tls_handshakes", counters["tls_handshakes"])
    yield Sample("tls_sessions_resumed", counters["tls_sessions_resumed"])
    yield Sample("tls_handshake_failures", counters["tls_handshake_failures"])
    yield Sample("accept_pauses", counters["accept_pauses"])
    yield Sample("buffered_bytes", counters["buffered_bytes"])
    yield Sample("buffer_budget_exceeded", counters["buffer_budget_exceeded"])
    yield Sample("parse_errors", counters["parse_errors"])
    yield Sample("token_cache_entries", counters["token_cache_entries"])
    yield Sample("token_cache_lookups", counters["token_cache_hits"], ("hit",))
    yield Sample("token_cache_lookups", counters["token_cache_misses"], ("miss",))
    yield from map(validate_sample, snapshot.samples)


def _versions(counters: GatewaySnapshot) -> Iterator[tuple[VersionKey, VersionSnapshot]]:
    for service, by_version in counters["versions"].items():
        for name, version in by_version.items():
            yield (service, name), version


_STATUS_BEFORE_RESPONSE = {
    "replica-closed": "502",
    "drain-timeout": "502",
    "scoring-timeout": "504",
    "router-error": "500",
    "request-timeout": "408",
}
"""The router's own status for each error code that can also interrupt a replica's response. With any other status the
replica's response had already started."""


def answered_by(version: str, status: str, error_code: str) -> str:
    """Return the sender of the response: `replica`, `router`, or `nobody` if the client had left."""
    if error_code == "client-closed":
        return "nobody"
    if version == NO_VERSION:
        return "router"
    if error_code in ("", "replica-error") or _STATUS_BEFORE_RESPONSE.get(error_code, status) != status:
        return "replica"
    return "router"


def _request_samples(counters: GatewaySnapshot) -> Iterator[Sample]:
    with_service = ((key, version["responses"]) for key, version in _versions(counters))
    for key, responses in (*with_service, (("", NO_VERSION), counters["responses"])):
        for status, by_error_code in responses.items():
            for error_code, count in by_error_code.items():
                sender = answered_by(key[1], status, error_code)
                yield Sample("requests", count, (*key, status, f"{status[:1]}xx", sender, error_code))


def _version_counter_samples(counters: GatewaySnapshot) -> Iterator[Sample]:
    for key, version in _versions(counters):
        for cause, count in version["retry_causes"].items():
            yield Sample("retries", count, (*key, cause))
        for reason, count in version["connect_failures"].items():
            yield Sample("replica_connect_failures", count, (*key, reason))
        for handling, count in version["abandonments"].items():
            yield Sample("abandonments", count, (*key, handling))
        for reason, count in version["replica_failures"].items():
            yield Sample("replica_failures", count, (*key, reason))
        for reason, count in version["ejections"].items():
            yield Sample("replica_ejections", count, (*key, reason))
        for kind, count in _timeouts(version).items():
            yield Sample("timeouts", count, (*key, kind))
        if version["collection_dropped"]:
            yield Sample("collection_dropped", version["collection_dropped"], (*key, "worker-buffer"))
        yield Sample("request_body_bytes", version["request_bytes"], key)
        yield Sample("response_body_bytes", version["response_bytes"], key)
        yield Sample("client_aborts", version["client_aborts"], key)
        if key[1] != NO_VERSION:
            total = sum(sum(by_error_code.values()) for by_error_code in version["responses"].values())
            yield Sample("requests_by_protocol", max(total - version["http2_requests"], 0), (*key, "http1"))
            yield Sample("requests_by_protocol", version["http2_requests"], (*key, "h2"))
    for service, by_reason in counters["auth_failures"].items():
        for reason, count in by_reason.items():
            yield Sample("auth_failures", count, (service, reason))


def _timeouts(version: VersionSnapshot) -> dict[str, int]:
    """Return the timeouts by kind, without zeros. Scoring and request timeouts are counted by their error codes."""
    responses = version["responses"].values()
    by_kind = {
        "queue": version["queue_timeouts"],
        "connect": version["connect_failures"].get("timeout", 0),
        "scoring": sum(by_error_code.get("scoring-timeout", 0) for by_error_code in responses),
        "abandoned": version["abandoned_timeouts"],
        "request": sum(by_error_code.get("request-timeout", 0) for by_error_code in responses),
    }
    return {kind: count for kind, count in by_kind.items() if count}


_VERSION_GAUGES: tuple[tuple[str, Callable[[VersionMetrics], float | None]], ...] = (
    ("requests_in_flight", lambda version: version.in_flight),
    ("abandoned_requests", lambda version: version.abandoned),
    ("requests_queued", lambda version: version.queued),
    ("slots", lambda version: version.slots),
    ("slots_in_use", lambda version: version.slots_in_use),
    ("suspect_slots", lambda version: version.suspect_slots),
    ("leases_idle", lambda version: version.leases_idle),
    ("replicas_desired", lambda version: version.desired),
    ("utilization_ratio", lambda version: version.utilization),
    ("utilization_target_ratio", lambda version: version.target),
)


def _version_samples(key: VersionKey, version: VersionMetrics) -> Iterator[Sample]:
    for name, gauge_of in _VERSION_GAUGES:
        value = gauge_of(version)
        if value is not None:
            yield Sample(name, value, key)
    for state in ReplicaState:
        yield Sample("replicas", version.replicas_by_state.get(state, 0), (*key, state.value))
    for direction in DIRECTIONS:  # present from the start, so that a rate includes the first decision
        count = version.scaling_decisions.get((direction, "demand"), 0)
        yield Sample("scaling_decisions", count, (*key, direction, "demand"))
    for (direction, reason), count in version.scaling_decisions.items():
        if reason != "demand":
            yield Sample("scaling_decisions", count, (*key, direction, reason))
