"""Summing over workers that come and go."""

import random
from bisect import bisect_left

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.telemetry.counters import DURATION_BOUNDS, GatewayCounters
from router.telemetry.totals import Totals, merge

BLUE = ("iris", "blue")
GREEN = ("iris", "green")
RESNET = ("resnet", "default")


def counted(*keys: tuple[str, str], requests: int = 1, connections_open: int = 0) -> GatewayCounters:
    counters = GatewayCounters()
    counters.connections_accepted = requests
    counters.connections_open = connections_open
    for key in keys:
        version = counters.version(key)
        for _ in range(requests):
            version.count(200, "")
            version.duration.observe(0.01)
    return counters


def test_merge_adds_every_leaf_and_leaves_the_added_snapshot_alone() -> None:
    total = counted(BLUE).snapshot()
    one, two = counted(BLUE, GREEN, requests=2).snapshot(), counted(GREEN, requests=3).snapshot()
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
    total, other = counted(BLUE).snapshot(), counted(BLUE).snapshot()
    other["versions"]["iris"]["blue"]["duration"]["counts"].pop()
    with pytest.raises(ValueError, match="zip"):
        merge(total, other)


def test_totals_keep_what_an_ended_worker_counted_but_not_what_it_had_open() -> None:
    totals = Totals()
    totals.report("worker-0", 1, counted(BLUE, requests=4, connections_open=7).report())
    totals.ended("worker-0", 1)
    totals.report("worker-0", 2, counted(BLUE, requests=1, connections_open=2).report())
    total = totals.total()
    assert total["versions"]["iris"]["blue"]["answers"] == {"200": {"": 5}}
    assert total["connections_accepted"] == 5
    assert total["connections_open"] == 2


def test_totals_sum_two_generations_while_the_older_one_drains() -> None:
    totals = Totals()
    totals.report("worker-0", 1, counted(BLUE, requests=4).report())
    totals.report("worker-0", 2, counted(BLUE, requests=1).report())
    totals.report("worker-0", 1, counted(BLUE, requests=5).report())
    assert totals.total()["connections_accepted"] == 6


def test_a_report_that_arrives_after_the_end_is_not_counted_twice() -> None:
    totals = Totals()
    totals.report("worker-0", 1, counted(BLUE, requests=4).report())
    totals.ended("worker-0", 1)
    totals.report("worker-0", 1, counted(BLUE, requests=4).report())
    totals.ended("worker-0", 1)
    assert totals.total()["connections_accepted"] == 4


def test_end_of_a_worker_that_never_reported_changes_nothing() -> None:
    totals = Totals()
    totals.ended("worker-0", 1)
    assert totals.total() == GatewayCounters().snapshot()


def test_totals_drop_removed_versions_of_live_and_ended_workers() -> None:
    totals = Totals()
    for worker in ("worker-0", "worker-1"):
        totals.report(worker, 1, counted(BLUE, GREEN, RESNET).report())
    totals.ended("worker-0", 1)
    totals.retain({BLUE})
    versions = totals.total()["versions"]
    assert {service: set(by_name) for service, by_name in versions.items()} == {"iris": {"blue"}}
    assert versions["iris"]["blue"]["answers"] == {"200": {"": 2}}


def test_what_is_told_of_a_version_replaces_what_was_told_of_the_same() -> None:
    totals, worker = Totals(), counted(BLUE, GREEN, requests=2)
    totals.report("worker-0", 1, worker.report())
    worker.version(GREEN).count(200, "")
    told = worker.report()
    assert set(told.versions) == {GREEN}
    totals.report("worker-0", 1, told)
    assert totals.total() == worker.snapshot()


def test_what_a_worker_tells_of_a_version_that_was_removed_meanwhile_is_not_kept() -> None:
    totals, late = Totals(), counted(BLUE, GREEN)
    totals.retain({BLUE})
    totals.report("worker-0", 1, late.report())
    assert set(totals.total()["versions"]["iris"]) == {"blue"}


WORKERS = ("worker-0", "worker-1")
KEYS = (BLUE, GREEN, RESNET)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(WORKERS),
            st.sampled_from(["tell", "end", "crash", *(f"count {number}" for number in range(len(KEYS)))]),
        ),
        max_size=60,
    )
)
def test_totals_never_go_back_and_equal_all_that_was_told(steps: list[tuple[str, str]]) -> None:
    """Workers count, tell of one part of their versions at a time, end after a last report, or crash without one."""
    totals = Totals()
    workers = {name: GatewayCounters() for name in WORKERS}
    generation, tellings = dict.fromkeys(workers, 1), dict.fromkeys(workers, 0)
    told: dict[tuple[str, int, tuple[str, str]], int] = {}
    before = dict.fromkeys(KEYS, 0)
    for name, step in steps:
        worker = workers[name]
        if step.startswith("count"):
            worker.version(KEYS[int(step.removeprefix("count "))]).count(200, "")
        elif step != "crash":
            tellings[name] += 1
            said = worker.report() if step == "end" else worker.report(tellings[name] % 2, 2)
            totals.report(name, generation[name], said)
            told |= {(name, generation[name], key): worker.version(key).answers[200, ""] for key in said.versions}
        if step in ("crash", "end"):
            totals.ended(name, generation[name])
            workers[name] = GatewayCounters()
            generation[name] += 1
        after = answered(totals)
        assert after == {key: sum(count for (_, _, its), count in told.items() if its == key) for key in KEYS}
        assert all(after[key] >= before[key] for key in KEYS)
        before = after


def answered(totals: Totals) -> dict[tuple[str, str], int]:
    versions = totals.total()["versions"]
    return {
        key: versions[key[0]][key[1]]["answers"].get("200", {}).get("", 0) if key[1] in versions.get(key[0], {}) else 0
        for key in KEYS
    }


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
        totals.report(name, 1, counters.report())
    before = totals.total()
    assert before["versions"]["iris"]["blue"]["duration"]["sum"] == pytest.approx(sum(map(sum, observed)), abs=1e-5)
    chance.shuffle(names)
    for name in names:
        totals.ended(name, 1)
        assert totals.total() == before
