"""Sums over workers that start and end."""

import random
from bisect import bisect_left

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.telemetry.counters import GatewayCounters
from router.telemetry.histogram import DURATION_BOUNDS
from router.telemetry.totals import CounterTotals, merge
from tests.telemetry.snapshots import snapshot_of

BLUE = ("iris", "blue")
GREEN = ("iris", "green")
RESNET = ("resnet", "default")


def worker_counters(*keys: tuple[str, str], requests: int = 1, connections_open: int = 0) -> GatewayCounters:
    """Return the counters of a worker that has served `requests` of each of the versions `keys`."""
    counters = GatewayCounters()
    counters.connections_accepted = requests
    counters.connections_open = connections_open
    for key in keys:
        version = counters.version(key)
        for _ in range(requests):
            version.count_response(200, "")
            version.duration.observe(0.01)
    return counters


def test_merge_adds_every_leaf_and_does_not_change_the_added_snapshot() -> None:
    total = snapshot_of(worker_counters(BLUE))
    first = snapshot_of(worker_counters(BLUE, GREEN, requests=2))
    second = snapshot_of(worker_counters(GREEN, requests=3))
    unchanged = orjson.dumps([first, second])
    merge(total, first)
    merge(total, second)
    assert orjson.dumps([first, second]) == unchanged
    iris = total["versions"]["iris"]
    assert iris["blue"]["responses"] == {"200": {"": 3}}
    assert iris["green"]["responses"] == {"200": {"": 5}}
    bucket = bisect_left(DURATION_BOUNDS, 0.01)
    assert iris["green"]["duration"]["counts"][bucket] == 5
    assert iris["green"]["duration"]["sum"] == pytest.approx(0.05, abs=1e-5)
    assert total["connections_accepted"] == 6


def test_merge_rejects_histograms_of_different_bounds() -> None:
    total, other = snapshot_of(worker_counters(BLUE)), snapshot_of(worker_counters(BLUE))
    other["versions"]["iris"]["blue"]["duration"]["counts"].pop()
    with pytest.raises(ValueError, match="zip"):
        merge(total, other)


def test_totals_keep_the_counts_of_an_ended_worker_but_not_its_gauges() -> None:
    totals = CounterTotals()
    totals.update("worker-0", 1, worker_counters(BLUE, requests=4, connections_open=7).report())
    totals.worker_ended("worker-0", 1)
    totals.update("worker-0", 2, worker_counters(BLUE, requests=1, connections_open=2).report())
    total = totals.total()
    assert total["versions"]["iris"]["blue"]["responses"] == {"200": {"": 5}}
    assert total["connections_accepted"] == 5
    assert total["connections_open"] == 2


def test_totals_sum_two_generations_while_the_older_one_drains() -> None:
    totals = CounterTotals()
    totals.update("worker-0", 1, worker_counters(BLUE, requests=4).report())
    totals.update("worker-0", 2, worker_counters(BLUE, requests=1).report())
    totals.update("worker-0", 1, worker_counters(BLUE, requests=5).report())
    assert totals.total()["connections_accepted"] == 6


def test_report_that_arrives_after_its_worker_ended_is_ignored() -> None:
    totals = CounterTotals()
    totals.update("worker-0", 1, worker_counters(BLUE, requests=4).report())
    totals.worker_ended("worker-0", 1)
    totals.update("worker-0", 1, worker_counters(BLUE, requests=4).report())
    totals.worker_ended("worker-0", 1)
    assert totals.total()["connections_accepted"] == 4


def test_end_of_a_worker_that_never_reported_changes_nothing() -> None:
    totals = CounterTotals()
    totals.worker_ended("worker-0", 1)
    assert totals.total() == snapshot_of(GatewayCounters())


def test_totals_drop_removed_versions_of_live_and_ended_workers() -> None:
    totals = CounterTotals()
    for worker in ("worker-0", "worker-1"):
        totals.update(worker, 1, worker_counters(BLUE, GREEN, RESNET).report())
    totals.worker_ended("worker-0", 1)
    totals.retain({BLUE})
    versions = totals.total()["versions"]
    assert {service: set(by_name) for service, by_name in versions.items()} == {"iris": {"blue"}}
    assert versions["iris"]["blue"]["responses"] == {"200": {"": 2}}


def test_later_report_of_a_version_replaces_the_earlier_one() -> None:
    totals, counters = CounterTotals(), worker_counters(BLUE, GREEN, requests=2)
    totals.update("worker-0", 1, counters.report())
    counters.version(GREEN).count_response(200, "")
    report = counters.report()
    assert set(report.versions) == {GREEN}
    totals.update("worker-0", 1, report)
    assert totals.total() == snapshot_of(counters)


def test_late_report_of_a_removed_version_is_ignored() -> None:
    totals, counters = CounterTotals(), worker_counters(BLUE, GREEN)
    totals.retain({BLUE})
    totals.update("worker-0", 1, counters.report())
    assert set(totals.total()["versions"]["iris"]) == {"blue"}


WORKERS = ("worker-0", "worker-1")
KEYS = (BLUE, GREEN, RESNET)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(WORKERS),
            st.sampled_from(["report", "end", "crash", *(f"count {number}" for number in range(len(KEYS)))]),
        ),
        max_size=60,
    )
)
def test_totals_never_decrease_and_equal_all_that_was_reported(steps: list[tuple[str, str]]) -> None:
    """Workers count, report one of two shards at a time, end after a full report, or crash without one."""
    totals = CounterTotals()
    workers = {name: GatewayCounters() for name in WORKERS}
    generation, report_count = dict.fromkeys(workers, 1), dict.fromkeys(workers, 0)
    reported: dict[tuple[str, int, tuple[str, str]], int] = {}
    before = dict.fromkeys(KEYS, 0)
    for name, step in steps:
        worker = workers[name]
        if step.startswith("count"):
            worker.version(KEYS[int(step.removeprefix("count "))]).count_response(200, "")
        elif step != "crash":
            report_count[name] += 1
            report = worker.report() if step == "end" else worker.report(report_count[name] % 2, 2)
            totals.update(name, generation[name], report)
            reported |= {
                (name, generation[name], key): worker.version(key).responses[200, ""] for key in report.versions
            }
        if step in ("crash", "end"):
            totals.worker_ended(name, generation[name])
            workers[name] = GatewayCounters()
            generation[name] += 1
        after = responses_by_version(totals)
        assert after == {
            key: sum(count for (_, _, reported_key), count in reported.items() if reported_key == key) for key in KEYS
        }
        assert all(after[key] >= before[key] for key in KEYS)
        before = after


def responses_by_version(totals: CounterTotals) -> dict[tuple[str, str], int]:
    versions = totals.total()["versions"]
    return {
        (service, version): versions[service][version]["responses"].get("200", {}).get("", 0)
        if version in versions.get(service, {})
        else 0
        for service, version in KEYS
    }


@given(
    st.lists(st.lists(st.floats(0, 300), min_size=1, max_size=5), min_size=2, max_size=6),
    st.randoms(use_true_random=False),
)
def test_sums_stay_exactly_equal_when_workers_end_in_any_order(
    observed: list[list[float]], chance: random.Random
) -> None:
    totals = CounterTotals()
    names = [f"worker-{number}" for number in range(len(observed))]
    for name, durations in zip(names, observed, strict=True):
        counters = GatewayCounters()
        for seconds in durations:
            counters.version(BLUE).duration.observe(seconds)
        counters.cpu_seconds = sum(durations)
        totals.update(name, 1, counters.report())
    before = totals.total()
    assert before["versions"]["iris"]["blue"]["duration"]["sum"] == pytest.approx(sum(map(sum, observed)), abs=1e-5)
    chance.shuffle(names)
    for name in names:
        totals.worker_ended(name, 1)
        assert totals.total() == before
