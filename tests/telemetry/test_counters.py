"""Counting in one worker and reporting the counters."""

import math

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.telemetry.counters import NO_VERSION, GatewayCounters, VersionCounters, unpack
from router.telemetry.histogram import DURATION_BOUNDS, ROUTE_BOUNDS, Histogram
from tests.telemetry.snapshots import snapshot_of

BLUE = ("iris", "blue")
GREEN = ("iris", "green")
RESNET = ("resnet", "default")


@pytest.mark.parametrize("bounds", [DURATION_BOUNDS, ROUTE_BOUNDS])
def test_bounds_ascend(bounds: tuple[float, ...]) -> None:
    assert list(bounds) == sorted(set(bounds))


def test_default_timeouts_are_bounds() -> None:
    assert {0.5, 60.0, 300.0} <= set(DURATION_BOUNDS)


@given(st.lists(st.floats(min_value=0, max_value=1e6)))
def test_histogram_counts_each_value_under_the_first_bound_not_below_it(values: list[float]) -> None:
    histogram = Histogram(DURATION_BOUNDS)
    for value in values:
        histogram.observe(value)
    edges = (*DURATION_BOUNDS, math.inf)
    for index, upper in enumerate(edges):
        lower = edges[index - 1] if index else -math.inf
        assert histogram.counts[index] == sum(lower < value <= upper for value in values)
    assert histogram.sum == pytest.approx(math.fsum(values))


def test_value_equal_to_a_bound_belongs_to_that_bound() -> None:
    histogram = Histogram((0.5, 1.0))
    histogram.observe(0.5)
    assert histogram.counts == [1, 0, 0]


def test_responses_are_counted_by_status_and_error_code() -> None:
    version = VersionCounters()
    version.count_response(200, "")
    version.count_response(200, "")
    version.count_response(502, "")
    version.count_response(502, "replica-closed")
    assert version.responses == {(200, ""): 2, (502, ""): 1, (502, "replica-closed"): 1}


def test_retries_are_counted_by_cause() -> None:
    version = VersionCounters()
    version.count_retry("stale")
    version.count_retry("stale")
    version.count_retry("connect")
    assert version.retry_causes == {"stale": 2, "connect": 1}


def test_version_counters_are_created_once() -> None:
    counters = GatewayCounters()
    assert counters.version(BLUE) is counters.version(BLUE)


def test_snapshot_is_json_and_is_not_changed_by_later_requests() -> None:
    counters = GatewayCounters()
    version = counters.version(BLUE)
    version.count_response(503, "overloaded")
    version.count_retry("connect")
    version.route_time.observe(0.00003)
    counters.responses[404, "unknown-service"] += 1
    counters.auth_failures["iris", "wrong-key"] += 1
    snapshot = snapshot_of(counters)
    assert orjson.loads(orjson.dumps(snapshot)) == snapshot
    before = orjson.dumps(snapshot)
    version.count_response(503, "overloaded")
    version.route_time.observe(0.00003)
    version.count_retry("connect")
    counters.responses[404, "unknown-service"] += 1
    assert orjson.dumps(snapshot) == before
    assert snapshot["versions"]["iris"]["blue"]["responses"] == {"503": {"overloaded": 1}}
    assert snapshot["responses"] == {"404": {"unknown-service": 1}}
    assert snapshot["auth_failures"] == {"iris": {"wrong-key": 1}}


def test_retain_drops_removed_versions_and_services() -> None:
    counters = GatewayCounters()
    for key in (BLUE, GREEN, RESNET, ("iris", NO_VERSION), ("resnet", NO_VERSION)):
        counters.version(key).count_response(200, "")
    counters.auth_failures["iris", "wrong-key"] += 1
    counters.auth_failures["resnet", "wrong-key"] += 1
    counters.retain([BLUE])
    assert set(counters.versions) == {BLUE, ("iris", NO_VERSION)}
    assert set(counters.auth_failures) == {("iris", "wrong-key")}


def test_report_has_only_versions_that_changed_since_their_last_report() -> None:
    counters = GatewayCounters()
    for key in (BLUE, GREEN):
        counters.version(key).count_response(200, "")
    assert set(counters.report().versions) == {BLUE, GREEN}
    assert counters.report().versions == {}
    counters.version(GREEN).request_bytes += 1
    changed = counters.report().versions
    assert set(changed) == {GREEN}
    assert unpack(changed[GREEN]) == snapshot_of(counters)["versions"]["iris"]["green"]


def test_report_has_each_version_in_one_shard_and_the_process_in_the_first() -> None:
    counters = GatewayCounters()
    keys = [(f"service-{number}", "default") for number in range(7)]
    for key in keys:
        counters.version(key).route_time.observe(0.001)
    reports = [counters.report(shard, 3) for shard in range(3)]
    assert sorted(key for report in reports for key in report.versions) == keys
    assert [report.process is not None for report in reports] == [True, False, False]
    assert reports[0].process is not None
    assert sum(reports[0].process.route_time) == 7  # of all versions, in whichever shard they are


def test_version_that_was_removed_and_added_is_reported_again() -> None:
    counters = GatewayCounters()
    counters.version(BLUE).count_response(200, "")
    counters.report()
    counters.retain([])
    counters.version(BLUE).count_response(200, "")
    assert set(counters.report().versions) == {BLUE}


def test_report_has_every_counter_of_a_version() -> None:
    version = VersionCounters()
    initial = unpack(version.pack())
    version.count_response(503, "overloaded")
    for histogram in (version.duration, version.queue_wait, version.route_time, version.first_byte, version.connect):
        histogram.observe(0.5)
    version.connect_failures["refused"] += 1
    version.queue_timeouts += 1
    version.request_bytes += 1
    version.response_bytes += 1
    version.count_retry("connect")
    version.client_aborts += 1
    version.abandonments["kept"] += 1
    version.abandoned_timeouts += 1
    version.replica_failures["closed"] += 1
    version.ejections["rate"] += 1
    version.collection_dropped += 1
    version.http2_requests += 1
    reported = unpack(version.pack())
    attributes = {name for name in vars(VersionCounters) if name[0] != "_" and not callable(getattr(version, name))}
    assert reported.keys() == initial.keys() == attributes - {"last_reported"}
    assert [name for name in reported if reported[name] == initial[name]] == []  # type: ignore[literal-required]
