"""A scrape: what is so right now, as Prometheus reads it. Names and help texts are in `catalogue`.

A scrape makes a `MetricsView`, plain data that the supervisor fills, and this turns it into the text (`exposition`):
nothing is counted here and nothing lives between scrapes, so there is no registry and no metric object to keep in step.
 What other parts of the router tell (the cluster, tokens, certificates, the self-scaler) comes as `Sample`s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from router.services import ReplicaState, VersionKey
from router.telemetry.catalogue import METRICS, Kind, MetricSpec, Sample, checked
from router.telemetry.counters import (
    CONNECT_BOUNDS,
    DURATION_BOUNDS,
    LAG_BOUNDS,
    NO_VERSION,
    ROUTE_BOUNDS,
    GatewaySnapshot,
    HistogramSnapshot,
    VersionSnapshot,
)
from router.telemetry.exposition import Exemplars, Format, HistogramLines, samples

DIRECTIONS = ("up", "down")


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionFacts:
    """What is so of one version right now."""

    in_flight: int
    queued: int
    slots: int | None
    """Requests that its ready replicas may have in flight; None when that is not limited."""
    slots_in_use: int
    leases_idle: int
    replicas_by_state: Mapping[str, int]
    desired: int
    utilization: float | None
    """(busy + queued) / slots, 1.0 is full; None when slots are not limited or not yet measured."""
    target: float
    """The utilization that scaling aims at."""
    scaling_decisions: Mapping[tuple[str, str], int]
    """Decisions so far by direction, one of `DIRECTIONS`, and by what bounded them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsView:
    """All that one scrape tells."""

    router_version: str
    hot_path: str
    counters: GatewaySnapshot
    versions: Mapping[VersionKey, VersionFacts]
    lag: Mapping[str, HistogramSnapshot] = field(default_factory=dict)
    """How late event loops were, by process."""
    exemplars: Mapping[VersionKey, Exemplars] = field(default_factory=dict)
    samples: Sequence[Sample] = ()
    """What other parts tell."""


def exposition(view: MetricsView, accept: str) -> tuple[bytes, str]:
    """Body and content type of a scrape: OpenMetrics or Prometheus text, as the header `Accept` asks.

    Raises `ValueError` for a sample that the catalogue does not know.
    """
    format_ = Format(accept)
    return "".join(_lines(view, format_)).encode() + format_.process(), format_.content_type


def _lines(view: MetricsView, format_: Format) -> Iterator[str]:
    by_metric: dict[str, list[Sample]] = {"build": [Sample("build", 1, (view.router_version, view.hot_path))]}
    for sample in _samples(view):
        by_metric.setdefault(sample.metric, []).append(sample)
    for spec in METRICS.values():
        yield from format_.head(spec)
        if spec.kind is Kind.HISTOGRAM:
            yield from _histogram(spec, view, format_)
        else:
            yield from samples(spec, by_metric.get(spec.name, ()))


_BY_VERSION: dict[str, tuple[tuple[float, ...], Callable[[VersionSnapshot], HistogramSnapshot]]] = {
    "request_duration_seconds": (DURATION_BOUNDS, lambda counted: counted["duration"]),
    "queue_wait_seconds": (DURATION_BOUNDS, lambda counted: counted["queue_wait"]),
    "route_time_seconds": (ROUTE_BOUNDS, lambda counted: counted["route_time"]),
    "replica_first_byte_seconds": (DURATION_BOUNDS, lambda counted: counted["first_byte"]),
    "replica_connect_seconds": (CONNECT_BOUNDS, lambda counted: counted["connect"]),
}


def _histogram(spec: MetricSpec, view: MetricsView, format_: Format) -> Iterator[str]:
    if spec.name in _BY_VERSION:
        bounds, of = _BY_VERSION[spec.name]
        lines = HistogramLines(spec, bounds, format_)
        for key, counted in _versions(view.counters):
            if key[1] != NO_VERSION:  # what was answered before a version was chosen is not timed
                exemplars = view.exemplars.get(key, {}) if spec.name == "request_duration_seconds" else {}
                yield from lines.lines(key, of(counted), exemplars)
    else:
        lines = HistogramLines(spec, LAG_BOUNDS, format_)
        for process, lag in view.lag.items():
            yield from lines.lines((process,), lag, {})


# Counters and gauges.


def _samples(view: MetricsView) -> Iterator[Sample]:
    yield from _requests(view.counters)
    yield from _version_counters(view.counters)
    for key, facts in view.versions.items():
        yield from _version_facts(key, facts)
    counters = view.counters
    yield Sample("client_connections", counters["connections_accepted"])
    yield Sample("client_connections_open", counters["connections_open"])
    yield Sample("client_connections_refused", counters["connections_refused"])
    yield Sample("tls_handshakes", counters["tls_handshakes"])
    yield Sample("tls_sessions_resumed", counters["tls_sessions_resumed"])
    yield Sample("tls_handshake_failures", counters["tls_handshake_failures"])
    yield Sample("accept_pauses", counters["accept_pauses"])
    yield Sample("parse_errors", counters["parse_errors"])
    yield Sample("token_cache_entries", counters["token_cache_entries"])
    yield Sample("token_cache_lookups", counters["token_cache_hits"], ("hit",))
    yield Sample("token_cache_lookups", counters["token_cache_misses"], ("miss",))
    yield from map(checked, view.samples)


def _versions(counters: GatewaySnapshot) -> Iterator[tuple[tuple[str, str], VersionSnapshot]]:
    for service, by_version in counters["versions"].items():
        for version, counted in by_version.items():
            yield (service, version), counted


# Slugs under which a request ends whose answer may have begun: with the router's own status it has not.
_CUT = {"replica-closed": "502", "scoring-timeout": "504", "router-error": "500", "request-timeout": "408"}


def answered_by(version: str, status: str, slug: str) -> str:
    """Whose answer the client got: `replica`, `router`, or `nobody` where it had left."""
    if slug == "client-closed":
        return "nobody"
    if version == NO_VERSION:
        return "router"
    if slug in ("", "replica-error") or _CUT.get(slug, status) != status:
        return "replica"
    return "router"


def _requests(counters: GatewaySnapshot) -> Iterator[Sample]:
    matched = ((key, counted["answers"]) for key, counted in _versions(counters))
    for key, answers in (*matched, (("", NO_VERSION), counters["answers"])):
        for status, by_slug in answers.items():
            for slug, number in by_slug.items():
                by = answered_by(key[1], status, slug)
                yield Sample("requests", number, (*key, status, f"{status[:1]}xx", by, slug))


def _version_counters(counters: GatewaySnapshot) -> Iterator[Sample]:
    for key, counted in _versions(counters):
        for cause, number in counted["retry_causes"].items():
            yield Sample("retries", number, (*key, cause))
        for reason, number in counted["connect_failures"].items():
            yield Sample("replica_connect_failures", number, (*key, reason))
        for kind, number in _timeouts(counted).items():
            yield Sample("timeouts", number, (*key, kind))
        yield Sample("request_body_bytes", counted["request_bytes"], key)
        yield Sample("response_body_bytes", counted["response_bytes"], key)
        yield Sample("client_aborts", counted["client_aborts"], key)
    for service, by_reason in counters["auth_failures"].items():
        for reason, number in by_reason.items():
            yield Sample("auth_failures", number, (service, reason))


def _timeouts(counted: VersionSnapshot) -> dict[str, int]:
    """Limits of time that were reached: the queue's and the connection's are counted, the others end a request."""
    answers = counted["answers"].values()
    kinds = {
        "queue": counted["queue_timeouts"],
        "connect": counted["connect_failures"].get("timeout", 0),
        "scoring": sum(by_slug.get("scoring-timeout", 0) for by_slug in answers),
        "request": sum(by_slug.get("request-timeout", 0) for by_slug in answers),
    }
    return {kind: number for kind, number in kinds.items() if number}


_GAUGES: tuple[tuple[str, Callable[[VersionFacts], float | None]], ...] = (
    ("requests_in_flight", lambda facts: facts.in_flight),
    ("requests_queued", lambda facts: facts.queued),
    ("slots", lambda facts: facts.slots),
    ("slots_in_use", lambda facts: facts.slots_in_use),
    ("leases_idle", lambda facts: facts.leases_idle),
    ("replicas_desired", lambda facts: facts.desired),
    ("utilization_ratio", lambda facts: facts.utilization),
    ("utilization_target_ratio", lambda facts: facts.target),
)


def _version_facts(key: VersionKey, facts: VersionFacts) -> Iterator[Sample]:
    for name, of in _GAUGES:
        value = of(facts)
        if value is not None:
            yield Sample(name, value, key)
    for state in ReplicaState:
        yield Sample("replicas", facts.replicas_by_state.get(state, 0), (*key, state.value))
    for direction in DIRECTIONS:  # told at 0 as well, so that the first one shows in a rate
        yield Sample(
            "scaling_decisions", facts.scaling_decisions.get((direction, "demand"), 0), (*key, direction, "demand")
        )
    for (direction, bound), number in facts.scaling_decisions.items():
        if bound != "demand":
            yield Sample("scaling_decisions", number, (*key, direction, bound))
