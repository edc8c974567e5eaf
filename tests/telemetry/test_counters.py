"""Counting in one worker, and summing over workers that come and go."""

import math

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.telemetry.counters import (
    DURATION_BOUNDS,
    NO_VERSION,
    ROUTE_BOUNDS,
    GatewayCounters,
    Histogram,
    VersionCounters,
    unpack,
)

BLUE = ("iris", "blue")
GREEN = ("iris", "green")
RESNET = ("resnet", "default")


@pytest.mark.parametrize("bounds", [DURATION_BOUNDS, ROUTE_BOUNDS])
def test_bounds_ascend_so_that_bisection_holds(bounds: tuple[float, ...]) -> None:
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


def test_value_on_a_bound_belongs_to_that_bound() -> None:
    histogram = Histogram((0.5, 1.0))
    histogram.observe(0.5)
    assert histogram.counts == [1, 0, 0]


def test_version_counts_answers_by_status_and_slug() -> None:
    version = VersionCounters()
    version.count(200, "")
    version.count(200, "")
    version.count(502, "")
    version.count(502, "replica-closed")
    assert version.answers == {(200, ""): 2, (502, ""): 1, (502, "replica-closed"): 1}


def test_retries_are_the_sum_over_causes() -> None:
    version = VersionCounters()
    version.retried("stale-connection")
    version.retried("stale-connection")
    version.retried("connect-refused")
    assert version.retries == 3
    assert version.retry_causes == {"stale-connection": 2, "connect-refused": 1}


def test_version_counters_are_made_once() -> None:
    counters = GatewayCounters()
    assert counters.version(BLUE) is counters.version(BLUE)


def test_snapshot_survives_json_and_shares_nothing_with_the_counters() -> None:
    counters = GatewayCounters()
    version = counters.version(BLUE)
    version.count(503, "overloaded")
    version.retried("connect-refused")
    version.route_time.observe(0.00003)
    counters.answers[404, "unknown-service"] += 1
    counters.auth_failures["iris", "wrong-key"] += 1
    snapshot = counters.snapshot()
    assert orjson.loads(orjson.dumps(snapshot)) == snapshot
    before = orjson.dumps(snapshot)
    version.count(503, "overloaded")
    version.route_time.observe(0.00003)
    version.retried("connect-refused")
    counters.answers[404, "unknown-service"] += 1
    assert orjson.dumps(snapshot) == before
    assert snapshot["versions"]["iris"]["blue"]["answers"] == {"503": {"overloaded": 1}}
    assert snapshot["answers"] == {"404": {"unknown-service": 1}}
    assert snapshot["auth_failures"] == {"iris": {"wrong-key": 1}}


def test_retain_drops_removed_versions_and_services() -> None:
    counters = GatewayCounters()
    for key in (BLUE, GREEN, RESNET, ("iris", NO_VERSION), ("resnet", NO_VERSION)):
        counters.version(key).count(200, "")
    counters.auth_failures["iris", "wrong-key"] += 1
    counters.auth_failures["resnet", "wrong-key"] += 1
    counters.retain([BLUE])
    assert set(counters.versions) == {BLUE, ("iris", NO_VERSION)}
    assert set(counters.auth_failures) == {("iris", "wrong-key")}


def test_only_what_counted_something_is_told_again() -> None:
    counters = GatewayCounters()
    for key in (BLUE, GREEN):
        counters.version(key).count(200, "")
    assert set(counters.report().versions) == {BLUE, GREEN}
    assert counters.report().versions == {}
    counters.version(GREEN).request_bytes += 1
    again = counters.report().versions
    assert set(again) == {GREEN}
    assert unpack(again[GREEN]) == counters.version(GREEN).snapshot()


def test_each_version_is_told_in_one_of_the_parts_and_the_process_in_the_first() -> None:
    counters = GatewayCounters()
    keys = [(f"service-{number}", "default") for number in range(7)]
    for key in keys:
        counters.version(key).route_time.observe(0.001)
    parts = [counters.report(part, 3) for part in range(3)]
    assert sorted(key for part in parts for key in part.versions) == keys
    assert [part.process is not None for part in parts] == [True, False, False]
    assert parts[0].process is not None
    assert sum(parts[0].process.route_time) == 7  # of all versions, whatever part they are in


def test_a_version_that_is_removed_and_comes_back_is_told_anew() -> None:
    counters = GatewayCounters()
    counters.version(BLUE).count(200, "")
    counters.report()
    counters.retain([])
    counters.version(BLUE).count(200, "")
    assert set(counters.report().versions) == {BLUE}


def test_every_number_of_a_version_is_told() -> None:
    version = VersionCounters()
    untouched = version.snapshot()
    version.count(503, "overloaded")
    for histogram in (version.duration, version.queue_wait, version.route_time, version.first_byte, version.connect):
        histogram.observe(0.5)
    version.connect_failures["refused"] += 1
    version.queue_timeouts += 1
    version.request_bytes += 1
    version.response_bytes += 1
    version.retried("connect")
    version.client_aborts += 1
    told = unpack(version.pack())
    kept = {name for name in vars(VersionCounters) if name[0] != "_" and not callable(getattr(version, name))}
    assert told.keys() == untouched.keys() == kept - {"retries", "told"}
    assert [name for name in told if told[name] == untouched[name]] == []  # type: ignore[literal-required]
