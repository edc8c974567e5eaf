"""The text of a scrape, read back by parsers of the formats."""

import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client import parser
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics import parser as openmetrics_parser

from router.cli.metrics_doc import render
from router.model.services import ReplicaState, VersionKey
from router.telemetry.catalogue import LABELS, METRICS, PREFIX, Sample
from router.telemetry.counters import GatewayCounters
from router.telemetry.histogram import DURATION_BOUNDS
from router.telemetry.metrics import MetricsSnapshot, VersionMetrics, render_metrics
from tests.telemetry.snapshots import snapshot_of

METRICS_DOC = Path(__file__).parents[2] / "docs/metrics.md"
BLUE = ("iris", "blue")
GREEN = ("iris", "green")

BLUE_METRICS = VersionMetrics(
    in_flight=3,
    abandoned=1,
    queued=2,
    slots=8,
    slots_in_use=4,
    suspect_slots=2,
    leases_idle=4,
    replicas_by_state={ReplicaState.READY: 8, ReplicaState.STARTING: 1},
    desired=9,
    utilization=0.625,
    target=0.7,
    scaling_decisions={("up", "demand"): 5, ("up", "maximum"): 2},
)


def metrics_of(
    counters: GatewayCounters, versions: Mapping[VersionKey, VersionMetrics] | None = None
) -> MetricsSnapshot:
    return MetricsSnapshot(
        router_version="1.2.3",
        hot_path="compiled",
        counters=snapshot_of(counters),
        versions={BLUE: BLUE_METRICS} if versions is None else versions,
        lag={"supervisor": {"counts": [1] * 13, "sum": 12.0}},
        samples=(
            Sample("workers", 2),
            Sample("slot_leaks_repaired", 0),
            Sample("access_log_lines_dropped", 7),
            Sample("config_errors", 1),
            Sample("config_last_reload_success", True),
        ),
    )


def busy_counters() -> GatewayCounters:
    counters = GatewayCounters()
    blue = counters.version(BLUE)
    for _ in range(3):
        blue.count_response(200, "")
    blue.count_response(503, "overloaded")
    for seconds in (0.00005, 0.5, 0.500001, 1000.0):
        blue.duration.observe(seconds)
    blue.request_bytes, blue.response_bytes, blue.client_aborts = 10, 20, 1
    blue.abandonments["kept"], blue.abandoned_timeouts = 2, 1
    blue.count_retry("connect-refused")
    blue.count_response(504, "scoring-timeout")
    blue.queue_timeouts = 3
    blue.connect_failures["timeout"] += 2
    blue.connect.observe(0.0003)
    counters.version(GREEN).count_response(401, "unauthorized")
    counters.responses[404, "unknown-service"] += 2
    counters.connections_accepted, counters.connections_open = 12, 5
    counters.connections_refused, counters.parse_errors = 3, 4
    counters.auth_failures["iris", "wrong-key"] += 6
    return counters


def scrape(snapshot: MetricsSnapshot, accept: str = "text/plain") -> dict[str, Metric]:
    body, _ = render_metrics(snapshot, accept)
    return {family.name: family for family in parser.text_string_to_metric_families(body.decode())}


def value(families: Mapping[str, Metric], sample_name: str, **labels: str) -> float | None:
    values = [
        sample.value
        for family in families.values()
        for sample in family.samples
        if sample.name == "azureml_fe_" + sample_name and sample.labels == labels
    ]
    assert len(values) <= 1
    return values[0] if values else None


def requests(families: Mapping[str, Metric]) -> dict[tuple[str, ...], float]:
    """Return the requests by service, version, code, code class, sender of the response and error code."""
    names = ("service", "version", "code", "code_class", "answered_by", "error")
    samples = families["azureml_fe_requests"].samples
    return {tuple(sample.labels[name] for name in names): sample.value for sample in samples}


def test_requests_are_counted_by_version_status_sender_and_error_code() -> None:
    assert requests(scrape(metrics_of(busy_counters()))) == {
        ("iris", "blue", "200", "2xx", "replica", ""): 3,
        ("iris", "blue", "503", "5xx", "router", "overloaded"): 1,
        ("iris", "blue", "504", "5xx", "router", "scoring-timeout"): 1,
        ("iris", "green", "401", "4xx", "router", "unauthorized"): 1,
        ("", "", "404", "4xx", "router", "unknown-service"): 2,
    }


@pytest.mark.parametrize(
    ("version", "status", "error_code", "sender"),
    [
        ("blue", "502", "replica-error", "replica"),  # a 500 response of the replica, forwarded as 502
        ("blue", "502", "replica-closed", "router"),
        ("blue", "200", "replica-closed", "replica"),  # truncated
        ("blue", "200", "scoring-timeout", "replica"),
        ("blue", "499", "client-closed", "nobody"),
        ("", "204", "", "router"),  # a preflight
    ],
)
def test_answered_by_names_the_sender_of_the_response(version: str, status: str, error_code: str, sender: str) -> None:
    counters = GatewayCounters()
    counters.version(("iris", version)).count_response(int(status), error_code)
    assert requests(scrape(metrics_of(counters))) == {
        ("iris", version, status, f"{status[0]}xx", sender, error_code): 1
    }


def test_limits_of_time_that_were_reached_are_counted_by_kind() -> None:
    families = scrape(metrics_of(busy_counters()))
    blue = {"service": "iris", "version": "blue"}
    kinds = {kind: value(families, "timeouts_total", **blue, kind=kind) for kind in ("queue", "connect", "scoring")}
    assert kinds == {"queue": 3, "connect": 2, "scoring": 1}
    assert value(families, "replica_connect_failures_total", **blue, reason="timeout") == 2
    assert value(families, "replica_connect_seconds_count", **blue) == 1


def test_histogram_buckets_are_cumulative_up_to_infinity() -> None:
    families = scrape(metrics_of(busy_counters()))
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


def test_version_metrics_are_gauges() -> None:
    families = scrape(metrics_of(busy_counters()))
    blue = {"service": "iris", "version": "blue"}
    expected = {
        "requests_in_flight": 3,
        "abandoned_requests": 1,
        "requests_queued": 2,
        "slots": 8,
        "slots_in_use": 4,
        "suspect_slots": 2,
        "leases_idle": 4,
        "replicas_desired": 9,
        "utilization_ratio": 0.625,
    }
    assert {name: value(families, name, **blue) for name in expected} == expected


def test_replica_states_and_scaling_directions_are_present_at_0() -> None:
    families = scrape(metrics_of(busy_counters()))
    blue = {"service": "iris", "version": "blue"}
    assert [value(families, "replicas", **blue, state=state) for state in ReplicaState] == [1, 8, 0]
    decisions = {
        ("up", "demand"): 5,
        ("up", "maximum"): 2,
        ("down", "demand"): 0,
        ("down", "window"): None,
    }
    assert decisions == {
        (direction, reason): value(families, "scaling_decisions_total", **blue, direction=direction, reason=reason)
        for direction, reason in decisions
    }


def test_slots_and_utilization_are_absent_when_slots_are_not_limited() -> None:
    unlimited = replace(BLUE_METRICS, slots=None, utilization=None)
    families = scrape(metrics_of(GatewayCounters(), {BLUE: unlimited}))
    assert value(families, "slots", service="iris", version="blue") is None
    assert value(families, "utilization_ratio", service="iris", version="blue") is None
    assert value(families, "slots_in_use", service="iris", version="blue") == 4


def test_metrics_of_the_process_have_no_labels() -> None:
    families = scrape(metrics_of(busy_counters()))
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
    assert value(families, "build_info", version="1.2.3", hot_path="compiled") == 1
    assert "process_resident_memory_bytes" in families


def test_bytes_retries_aborts_and_auth_failures_are_counted() -> None:
    families = scrape(metrics_of(busy_counters()))
    blue = {"service": "iris", "version": "blue"}
    assert value(families, "request_body_bytes_total", **blue) == 10
    assert value(families, "response_body_bytes_total", **blue) == 20
    assert value(families, "client_aborts_total", **blue) == 1
    assert value(families, "abandonments_total", **blue, handling="kept") == 2
    assert value(families, "timeouts_total", **blue, kind="abandoned") == 1
    assert value(families, "retries_total", **blue, cause="connect-refused") == 1
    assert value(families, "auth_failures_total", service="iris", reason="wrong-key") == 6


def test_every_metric_is_in_the_catalogue_with_these_labels() -> None:
    for family in scrape(metrics_of(busy_counters())).values():
        if family.name.startswith(PREFIX):
            spec = METRICS[family.name.removeprefix(PREFIX).removesuffix("_info")]
            assert family.documentation == spec.help
            for sample in family.samples:
                assert set(sample.labels) - {"le"} == set(spec.labels), sample


def test_every_label_is_documented_and_used() -> None:
    assert {label for spec in METRICS.values() for label in spec.labels} == LABELS.keys()


@pytest.mark.parametrize("sample", [Sample("unknown", 1), Sample("workers", 1, ("one",)), Sample("build", 1)])
def test_sample_that_does_not_match_the_catalogue_is_an_error(sample: Sample) -> None:
    with pytest.raises(ValueError, match=sample.metric):
        render_metrics(replace(metrics_of(GatewayCounters()), samples=(sample,)), "")


def test_metrics_doc_is_up_to_date() -> None:
    assert METRICS_DOC.read_text() == render(), "python -m router.cli.metrics_doc > docs/metrics.md"


@pytest.mark.needs("promtool")
def test_promtool_accepts_the_text() -> None:
    body, _ = render_metrics(metrics_of(busy_counters()), "text/plain")
    completed = subprocess.run(["promtool", "check", "metrics"], input=body, capture_output=True, check=False)
    assert (completed.returncode, completed.stdout, completed.stderr) == (0, b"", b"")


def test_exemplar_of_a_bucket_names_a_trace() -> None:
    snapshot = replace(metrics_of(busy_counters()), exemplars={BLUE: {0: ("ab" * 16, 0.00005, 1700000000.5)}})
    body, _ = render_metrics(snapshot, "application/openmetrics-text; version=1.0.0")
    (line,) = [line for line in body.decode().splitlines() if "# {" in line]
    assert line.startswith('azureml_fe_request_duration_seconds_bucket{le="0.0001",service="iris",version="blue"} 1.0')
    assert line.endswith(' # {trace_id="' + "ab" * 16 + '"} 5e-05 1700000000.5')
    assert b"# {" not in render_metrics(snapshot, "text/plain")[0]


def test_open_metrics_text_is_valid_and_served_on_request() -> None:
    body, content_type = render_metrics(metrics_of(busy_counters()), "application/openmetrics-text; version=1.0.0")
    assert content_type.startswith("application/openmetrics-text")
    parsed = openmetrics_parser.text_string_to_metric_families(body.decode())  # type: ignore[no-untyped-call]
    families = {family.name: family for family in parsed}
    assert value(families, "client_connections_total") == 12
    assert body.endswith(b"# EOF\n")


@pytest.mark.parametrize(
    "accept", ["", "*/*", "text/html", "text/plain; version=new", "application/openmetrics-text; version=x"]
)
def test_prometheus_text_is_served_for_any_other_accept_header(accept: str) -> None:
    _, content_type = render_metrics(metrics_of(GatewayCounters()), accept)
    assert content_type.startswith("text/plain")


def test_router_without_services_can_be_scraped() -> None:
    families = scrape(metrics_of(GatewayCounters(), {}))
    assert families["azureml_fe_requests"].samples == []
    assert value(families, "client_connections_open") == 0


def test_text_in_label_values_is_escaped() -> None:
    key = ('i"r\\is', "b\nlue")
    counters = GatewayCounters()
    counters.version(key).count_response(200, "")
    families = scrape(metrics_of(counters, {key: BLUE_METRICS}))
    assert requests(families) == {(*key, "200", "2xx", "replica", ""): 1}
