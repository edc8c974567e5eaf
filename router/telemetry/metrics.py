"""The metrics of the router for Prometheus: their names, labels and help texts, all in the tables below.

A scrape makes a `MetricsView`, plain data that the supervisor fills, and this turns it into metric families: nothing
is counted here and nothing lives between scrapes, so there is no default registry and no metric object to keep in
step. Names start with `azureml_fe_` and use base units (seconds, bytes, ratios).

Labels are bounded: service and version are those that are configured, the rest are constants of the code. The name
that a client asks for is never a label; requests that matched no service have `service=""`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, InfoMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from router.services import ReplicaState, VersionKey
from router.telemetry.counters import (
    DURATION_BOUNDS,
    ROUTE_BOUNDS,
    GatewaySnapshot,
    HistogramSnapshot,
    VersionSnapshot,
)

PREFIX = "azureml_fe_"
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
    scaling_decisions: Mapping[str, int]
    """Decisions so far by direction, one of `DIRECTIONS`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsView:
    """All that one scrape tells."""

    router_version: str
    counters: GatewaySnapshot
    versions: Mapping[VersionKey, VersionFacts]
    workers: int
    slot_leaks_repaired: int
    access_log_dropped: int
    config_errors: int
    config_last_reload_success: bool


class RouterCollector(Collector):
    """Metric families of the view that `read` gives, made anew at each scrape."""

    def __init__(self, read: Callable[[], MetricsView]) -> None:
        self._read = read

    def collect(self) -> Iterable[Metric]:
        view = self._read()
        yield InfoMetricFamily(PREFIX + "build", "Version of the router.", {"version": view.router_version})
        yield from _requests(view.counters)
        yield from _histograms(view.counters)
        yield from _version_counters(view.counters)
        yield from _version_facts(view.versions)
        yield from _process_facts(view)


def registry(read: Callable[[], MetricsView]) -> CollectorRegistry:
    """A registry of its own with the router's metrics and `process_*` of the process that serves them."""
    made = CollectorRegistry()
    made.register(RouterCollector(read))
    ProcessCollector(registry=made)
    return made


def exposition(view: MetricsView, accept: str) -> tuple[bytes, str]:
    """Body and content type of a scrape: OpenMetrics or Prometheus text, as the header `Accept` asks."""
    try:
        encoder, content_type = choose_encoder(accept)
    except (TypeError, ValueError):  # a format version that is not made of numbers
        encoder, content_type = choose_encoder("")
    return encoder(registry(lambda: view)), content_type


_HISTOGRAMS: tuple[tuple[str, str, tuple[float, ...], Callable[[VersionSnapshot], HistogramSnapshot]], ...] = (
    (
        "request_duration_seconds",
        "First byte of a request to last byte of its answer.",
        DURATION_BOUNDS,
        lambda counted: counted["duration"],
    ),
    (
        "queue_wait_seconds",
        "Time a request waited for a slot, 0 when one was free.",
        DURATION_BOUNDS,
        lambda counted: counted["queue_wait"],
    ),
    (
        "route_time_seconds",
        "What the router adds: head read to first byte sent to the replica, less the queue wait.",
        ROUTE_BOUNDS,
        lambda counted: counted["route_time"],
    ),
    (
        "replica_first_byte_seconds",
        "First byte sent to the replica to first byte of its answer.",
        DURATION_BOUNDS,
        lambda counted: counted["first_byte"],
    ),
)

_COUNTERS: tuple[tuple[str, str, Callable[[VersionSnapshot], int]], ...] = (
    ("request_body_bytes", "Bytes of request bodies read from clients.", lambda counted: counted["request_bytes"]),
    ("response_body_bytes", "Bytes of answer bodies sent to clients.", lambda counted: counted["response_bytes"]),
    ("client_aborts", "Requests whose client left before the end.", lambda counted: counted["client_aborts"]),
)

_GAUGES: tuple[tuple[str, str, Callable[[VersionFacts], float | None]], ...] = (
    ("requests_in_flight", "Requests at replicas now.", lambda facts: facts.in_flight),
    ("requests_queued", "Requests that wait for a slot now.", lambda facts: facts.queued),
    ("slots", "Requests that ready replicas may have in flight; absent when not limited.", lambda facts: facts.slots),
    ("slots_in_use", "Slots that carry a request now.", lambda facts: facts.slots_in_use),
    ("leases_idle", "Slots granted to a front-end that carry no request now.", lambda facts: facts.leases_idle),
    ("replicas_desired", "Replicas that the autoscaler wants.", lambda facts: facts.desired),
    (
        "utilization_ratio",
        "In flight and queued per slot, as scaling sees it.",
        lambda facts: facts.utilization,
    ),
)

_VERSION = ("service", "version")


def _versions(counters: GatewaySnapshot) -> Iterator[tuple[tuple[str, str], VersionSnapshot]]:
    for service, by_version in counters["versions"].items():
        for version, counted in by_version.items():
            yield (service, version), counted


def _requests(counters: GatewaySnapshot) -> Iterator[Metric]:
    family = CounterMetricFamily(
        PREFIX + "requests",
        "Requests answered, by status; error is the slug of the router's own answer, empty for a replica's.",
        labels=(*_VERSION, "code", "error"),
    )
    matched = ((key, counted["answers"]) for key, counted in _versions(counters))
    for key, answers in (*matched, (("", ""), counters["answers"])):
        for status, by_slug in answers.items():
            for slug, number in by_slug.items():
                family.add_metric((*key, status, slug), number)
    yield family


def _histograms(counters: GatewaySnapshot) -> Iterator[Metric]:
    for name, text, bounds, of in _HISTOGRAMS:
        family = HistogramMetricFamily(PREFIX + name, text, labels=_VERSION)
        edges = [*map(floatToGoString, bounds), "+Inf"]
        for key, counted in _versions(counters):
            histogram = of(counted)
            buckets = list(zip(edges, accumulate(histogram["counts"]), strict=True))
            family.add_metric(key, buckets, histogram["sum"])
        yield family


def _version_counters(counters: GatewaySnapshot) -> Iterator[Metric]:
    for name, text, of in _COUNTERS:
        family = CounterMetricFamily(PREFIX + name, text, labels=_VERSION)
        for key, counted in _versions(counters):
            family.add_metric(key, of(counted))
        yield family
    retries = CounterMetricFamily(PREFIX + "retries", "Requests sent once more.", labels=(*_VERSION, "cause"))
    for key, counted in _versions(counters):
        for cause, number in counted["retry_causes"].items():
            retries.add_metric((*key, cause), number)
    yield retries
    failures = CounterMetricFamily(
        PREFIX + "auth_failures", "Requests without a valid key or token.", labels=("service", "reason")
    )
    for service, by_reason in counters["auth_failures"].items():
        for reason, number in by_reason.items():
            failures.add_metric((service, reason), number)
    yield failures


def _version_facts(versions: Mapping[VersionKey, VersionFacts]) -> Iterator[Metric]:
    for name, text, of in _GAUGES:
        gauge = GaugeMetricFamily(PREFIX + name, text, labels=_VERSION)
        for key, facts in versions.items():
            value = of(facts)
            if value is not None:
                gauge.add_metric(key, value)
        yield gauge
    replicas = GaugeMetricFamily(PREFIX + "replicas", "Replicas by state.", labels=(*_VERSION, "state"))
    decisions = CounterMetricFamily(
        PREFIX + "scaling_decisions", "Changes of the wanted number of replicas.", labels=(*_VERSION, "direction")
    )
    for key, facts in versions.items():
        for state in ReplicaState:
            replicas.add_metric((*key, state.value), facts.replicas_by_state.get(state, 0))
        for direction in DIRECTIONS:
            decisions.add_metric((*key, direction), facts.scaling_decisions.get(direction, 0))
    yield replicas
    yield decisions


def _process_facts(view: MetricsView) -> Iterator[Metric]:
    counters = view.counters
    counts = (
        ("client_connections", "Client connections accepted.", counters["connections_accepted"]),
        ("client_connections_refused", "Client connections refused at a limit.", counters["connections_refused"]),
        ("parse_errors", "Client connections closed over malformed HTTP.", counters["parse_errors"]),
        ("slot_leaks_repaired", "Slots found out of step and repaired; must stay 0.", view.slot_leaks_repaired),
        ("access_log_lines_dropped", "Lines the access log could not write.", view.access_log_dropped),
        ("config_errors", "Settings that were refused.", view.config_errors),
    )
    for name, text, number in counts:
        yield CounterMetricFamily(PREFIX + name, text, number)
    levels = (
        ("client_connections_open", "Client connections open now.", counters["connections_open"]),
        ("workers", "Worker processes that serve clients.", view.workers),
        ("config_last_reload_success", "1 when the latest settings are in force.", view.config_last_reload_success),
    )
    for name, text, level in levels:
        yield GaugeMetricFamily(PREFIX + name, text, level)
