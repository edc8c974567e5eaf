"""Counting in one worker, and summing over workers that come and go."""

import math
import random
from bisect import bisect_left

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.telemetry.counters import (
    DURATION_BOUNDS,
    NO_VERSION,
    ROUTE_BOUNDS,
    GatewayCounters,
    GatewaySnapshot,
    Histogram,
    Totals,
    VersionCounters,
    merge,
)

BLUE = ("iris", "blue")
GREEN = ("iris", "green")
RESNET = ("resnet", "default")


def counted(*keys: tuple[str, str], requests: int = 1, connections_open: int = 0) -> GatewaySnapshot:
    counters = GatewayCounters()
    counters.connections_accepted = requests
    counters.connections_open = connections_open
    for key in keys:
        version = counters.version(key)
        for _ in range(requests):
            version.count(200, "")
            version.duration.observe(0.01)
    return counters.snapshot()


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


def test_merge_adds_every_leaf_and_leaves_the_added_snapshot_alone() -> None:
    total, one, two = counted(BLUE), counted(BLUE, GREEN, requests=2), counted(GREEN, requests=3)
    untouched = orjson.dumps([one, two])
    merge(total, one)
    merge(total, two)
    assert orjson.dumps([one, two]) == untouched
    iris = total["versions"]["iris"]
    assert iris["blue"]["answers"] == {"200": {"": 3}}
    assert iris["green"]["answers"] == {"200": {"": 5}}
    bucket = bisect_left(DURATION_BOUNDS, 0.01)
    assert iris["green"]["duration"]["counts"][bucket] == 5
    assert iris["green"]["duration"]["sum"] == pytest.approx(0.05, abs=1e-5)
    assert total["connections_accepted"] == 6


def test_merge_refuses_histograms_of_different_bounds() -> None:
    total, other = counted(BLUE), counted(BLUE)
    other["versions"]["iris"]["blue"]["duration"]["counts"].pop()
    with pytest.raises(ValueError, match="zip"):
        merge(total, other)


def test_totals_keep_what_an_ended_worker_counted_but_not_what_it_had_open() -> None:
    totals = Totals()
    totals.report("worker-0", 1, counted(BLUE, requests=4, connections_open=7))
    totals.ended("worker-0", 1)
    totals.report("worker-0", 2, counted(BLUE, requests=1, connections_open=2))
    total = totals.total()
    assert total["versions"]["iris"]["blue"]["answers"] == {"200": {"": 5}}
    assert total["connections_accepted"] == 5
    assert total["connections_open"] == 2


def test_totals_sum_two_generations_while_the_older_one_drains() -> None:
    totals = Totals()
    totals.report("worker-0", 1, counted(BLUE, requests=4))
    totals.report("worker-0", 2, counted(BLUE, requests=1))
    totals.report("worker-0", 1, counted(BLUE, requests=5))
    assert totals.total()["connections_accepted"] == 6


def test_a_report_that_arrives_after_the_end_is_not_counted_twice() -> None:
    totals = Totals()
    totals.report("worker-0", 1, counted(BLUE, requests=4))
    totals.ended("worker-0", 1)
    totals.report("worker-0", 1, counted(BLUE, requests=4))
    totals.ended("worker-0", 1)
    assert totals.total()["connections_accepted"] == 4


def test_end_of_a_worker_that_never_reported_changes_nothing() -> None:
    totals = Totals()
    totals.ended("worker-0", 1)
    assert totals.total() == GatewayCounters().snapshot()


def test_totals_drop_removed_versions_of_live_and_ended_workers() -> None:
    totals = Totals()
    for worker in ("worker-0", "worker-1"):
        totals.report(worker, 1, counted(BLUE, GREEN, RESNET))
    totals.ended("worker-0", 1)
    totals.retain({BLUE})
    versions = totals.total()["versions"]
    assert {service: set(by_name) for service, by_name in versions.items()} == {"iris": {"blue"}}
    assert versions["iris"]["blue"]["answers"] == {"200": {"": 2}}


@given(st.lists(st.tuples(st.sampled_from(["worker-0", "worker-1"]), st.sampled_from(["count", "restart"]))))
def test_totals_never_go_back_and_equal_all_that_was_counted(steps: list[tuple[str, str]]) -> None:
    totals = Totals()
    workers = {name: GatewayCounters() for name in ("worker-0", "worker-1")}
    generation = dict.fromkeys(workers, 1)
    counts = 0
    for name, step in steps:
        if step == "count":
            workers[name].version(BLUE).count(200, "")
            totals.report(name, generation[name], workers[name].snapshot())
            counts += 1
        else:
            totals.ended(name, generation[name])
            workers[name] = GatewayCounters()
            generation[name] += 1
        blue = totals.total()["versions"].get("iris", {}).get("blue")
        assert (blue["answers"]["200"][""] if blue else 0) == counts


@given(
    st.lists(st.lists(st.floats(0, 300), min_size=1, max_size=5), min_size=2, max_size=6),
    st.randoms(use_true_random=False),
)
def test_sums_do_not_change_by_a_hair_when_workers_end_in_any_order(
    observed: list[list[float]], chance: random.Random
) -> None:
    totals = Totals()
    names = [f"worker-{number}" for number in range(len(observed))]
    for name, durations in zip(names, observed, strict=True):
        counters = GatewayCounters()
        for seconds in durations:
            counters.version(BLUE).duration.observe(seconds)
        counters.cpu_seconds = sum(durations)
        totals.report(name, 1, counters.snapshot())
    before = totals.total()
    assert before["versions"]["iris"]["blue"]["duration"]["sum"] == pytest.approx(sum(map(sum, observed)), abs=1e-5)
    chance.shuffle(names)
    for name in names:
        totals.ended(name, 1)
        assert totals.total() == before
