"""What a scrape says, read back by a parser of the format."""

from collections.abc import Mapping
from dataclasses import replace

import pytest
from prometheus_client import parser
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics import parser as openmetrics_parser

from router.services import ReplicaState, VersionKey
from router.telemetry.counters import DURATION_BOUNDS, GatewayCounters
from router.telemetry.metrics import MetricsView, VersionFacts, exposition

BLUE = ("iris", "blue")
GREEN = ("iris", "green")

FACTS = VersionFacts(
    in_flight=3,
    queued=2,
    slots=8,
    slots_in_use=3,
    leases_idle=4,
    replicas_by_state={ReplicaState.READY: 8, ReplicaState.STARTING: 1},
    desired=9,
    utilization=0.625,
    scaling_decisions={"up": 5},
)


def view(counters: GatewayCounters, versions: Mapping[VersionKey, VersionFacts] | None = None) -> MetricsView:
    return MetricsView(
        router_version="1.2.3",
        counters=counters.snapshot(),
        versions={BLUE: FACTS} if versions is None else versions,
        workers=2,
        slot_leaks_repaired=0,
        access_log_dropped=7,
        config_errors=1,
        config_last_reload_success=True,
    )


def busy_counters() -> GatewayCounters:
    counters = GatewayCounters()
    blue = counters.version(BLUE)
    for _ in range(3):
        blue.count(200, "")
    blue.count(503, "overloaded")
    for seconds in (0.00005, 0.5, 0.500001, 1000.0):
        blue.duration.observe(seconds)
    blue.request_bytes, blue.response_bytes, blue.client_aborts = 10, 20, 1
    blue.retried("connect-refused")
    counters.version(GREEN).count(401, "unauthorized")
    counters.answers[404, "unknown-service"] += 2
    counters.connections_accepted, counters.connections_open = 12, 5
    counters.connections_refused, counters.parse_errors = 3, 4
    counters.auth_failures["iris", "wrong-key"] += 6
    return counters


def scrape(seen: MetricsView, accept: str = "text/plain") -> dict[str, Metric]:
    body, _ = exposition(seen, accept)
    return {family.name: family for family in parser.text_string_to_metric_families(body.decode())}


def value(families: Mapping[str, Metric], sample_name: str, **labels: str) -> float | None:
    found = [
        sample.value
        for family in families.values()
        for sample in family.samples
        if sample.name == "azureml_fe_" + sample_name and sample.labels == labels
    ]
    assert len(found) <= 1
    return found[0] if found else None


def test_requests_are_counted_by_service_version_status_and_slug() -> None:
    families = scrape(view(busy_counters()))
    blue = {"service": "iris", "version": "blue"}
    assert value(families, "requests_total", **blue, code="200", error="") == 3
    assert value(families, "requests_total", **blue, code="503", error="overloaded") == 1
    assert value(families, "requests_total", service="", version="", code="404", error="unknown-service") == 2


def test_histogram_buckets_are_cumulative_and_reach_beyond_the_last_bound() -> None:
    families = scrape(view(busy_counters()))
    blue = {"service": "iris", "version": "blue"}
    name = "request_duration_seconds"
    assert value(families, name + "_bucket", **blue, le="0.0001") == 1
    assert value(families, name + "_bucket", **blue, le="0.5") == 2
    assert value(families, name + "_bucket", **blue, le="1.0") == 3
    assert value(families, name + "_bucket", **blue, le="600.0") == 3
    assert value(families, name + "_bucket", **blue, le="+Inf") == 4
    assert value(families, name + "_count", **blue) == 4
    assert value(families, name + "_sum", **blue) == pytest.approx(1001.000051)
    assert value(families, "route_time_seconds_bucket", **blue, le="2.5e-05") == 0
    buckets = [s for s in families["azureml_fe_" + name].samples if s.name.endswith("_bucket")]
    assert len(buckets) == 2 * (len(DURATION_BOUNDS) + 1)


def test_facts_of_a_version_are_gauges() -> None:
    families = scrape(view(busy_counters()))
    blue = {"service": "iris", "version": "blue"}
    expected = {
        "requests_in_flight": 3,
        "requests_queued": 2,
        "slots": 8,
        "slots_in_use": 3,
        "leases_idle": 4,
        "replicas_desired": 9,
        "utilization_ratio": 0.625,
    }
    assert {name: value(families, name, **blue) for name in expected} == expected


def test_every_state_and_direction_is_told_even_at_0() -> None:
    families = scrape(view(busy_counters()))
    blue = {"service": "iris", "version": "blue"}
    assert [value(families, "replicas", **blue, state=state) for state in ReplicaState] == [1, 8, 0]
    assert value(families, "scaling_decisions_total", **blue, direction="up") == 5
    assert value(families, "scaling_decisions_total", **blue, direction="down") == 0


def test_slots_and_utilization_are_absent_when_slots_are_not_limited() -> None:
    unlimited = replace(FACTS, slots=None, utilization=None)
    families = scrape(view(GatewayCounters(), {BLUE: unlimited}))
    assert value(families, "slots", service="iris", version="blue") is None
    assert value(families, "utilization_ratio", service="iris", version="blue") is None
    assert value(families, "slots_in_use", service="iris", version="blue") == 3


def test_the_process_is_told_without_labels() -> None:
    families = scrape(view(busy_counters()))
    expected = {
        "client_connections_total": 12,
        "client_connections_open": 5,
        "client_connections_refused_total": 3,
        "parse_errors_total": 4,
        "slot_leaks_repaired_total": 0,
        "access_log_lines_dropped_total": 7,
        "config_errors_total": 1,
        "config_last_reload_success": 1,
        "workers": 2,
    }
    assert {name: value(families, name) for name in expected} == expected
    assert value(families, "build_info", version="1.2.3") == 1
    assert "process_resident_memory_bytes" in families


def test_bytes_retries_aborts_and_auth_failures_are_counted() -> None:
    families = scrape(view(busy_counters()))
    blue = {"service": "iris", "version": "blue"}
    assert value(families, "request_body_bytes_total", **blue) == 10
    assert value(families, "response_body_bytes_total", **blue) == 20
    assert value(families, "client_aborts_total", **blue) == 1
    assert value(families, "retries_total", **blue, cause="connect-refused") == 1
    assert value(families, "auth_failures_total", service="iris", reason="wrong-key") == 6


def test_labels_are_those_that_are_promised() -> None:
    allowed = {"service", "version", "code", "error", "cause", "reason", "state", "direction", "le"}
    for family in scrape(view(busy_counters())).values():
        assert family.documentation
        for sample in family.samples:
            assert set(sample.labels) <= allowed, sample


def test_open_metrics_is_served_to_who_asks_for_it_and_is_valid() -> None:
    body, content_type = exposition(view(busy_counters()), "application/openmetrics-text; version=1.0.0")
    assert content_type.startswith("application/openmetrics-text")
    parsed = openmetrics_parser.text_string_to_metric_families(body.decode())  # type: ignore[no-untyped-call]
    families = {family.name: family for family in parsed}
    assert value(families, "client_connections_total") == 12
    assert body.endswith(b"# EOF\n")


@pytest.mark.parametrize(
    "accept", ["", "*/*", "text/html", "text/plain; version=new", "application/openmetrics-text; version=x"]
)
def test_text_is_served_to_everyone_else(accept: str) -> None:
    _, content_type = exposition(view(GatewayCounters()), accept)
    assert content_type.startswith("text/plain")


def test_a_router_without_services_can_be_scraped() -> None:
    families = scrape(view(GatewayCounters(), {}))
    assert families["azureml_fe_requests"].samples == []
    assert value(families, "client_connections_open") == 0


def test_text_in_label_values_is_escaped() -> None:
    odd = ('i"r\\is', "b\nlue")
    counters = GatewayCounters()
    counters.version(odd).count(200, "")
    families = scrape(view(counters, {odd: FACTS}))
    assert value(families, "requests_total", service=odd[0], version=odd[1], code="200", error="") == 1
