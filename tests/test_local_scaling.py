"""`azureml-fe local` under load: replicas follow it, limits hold over several workers, deaths are made good."""

import os
import signal
from collections.abc import Iterator

import pytest

from tests.processes import statistics, until
from tests.routers import Router, Start, open_echo

QUICK = {
    "autoscale_refresh_seconds": 0.2,
    "autoscale_scale_down_seconds": 1,
    "autoscale_target_utilization": 90,
    "max_request_wait_time": 10_000,
}


@pytest.fixture(scope="module")
def shared(start_for_all: Start) -> Router:
    """The router of most of these tests: each gives it another file."""
    return start_for_all({"nobodys": open_echo()}, workers=2)


@pytest.fixture
def router(shared: Router) -> Iterator[Router]:
    """It, at rest after each test."""
    yield shared
    shared.at_rest()


@pytest.mark.parametrize("limit", [1, 0])
def test_replicas_follow_the_load_and_no_request_fails(router: Router, limit: int) -> None:
    service = open_echo(
        delay=0.05, autoscale_min_replicas=1, autoscale_max_replicas=3, replica_max_concurrent_requests=limit, **QUICK
    )
    router.change({"free": service})
    router.ready("free", 1)
    with router.load("free", clients=1, pause=0.1) as light:
        with router.load("free", clients=8) as heavy:
            router.ready("free", 3)
            heavy.goes_on()
        router.ready("free", 1)
        light.goes_on(5)
    for load in (light, heavy):
        assert load.all_well, load
    for direction in ("up", "down"):
        assert router.metric("scaling_decisions_total", service="free", direction=direction) >= 1


def test_the_first_request_starts_the_first_replica(router: Router) -> None:
    router.change({"rare": open_echo(autoscale_min_replicas=0, autoscale_max_replicas=2, **QUICK)})
    router.ready("rare", 0)
    assert router.score("rare").status == 200
    router.ready("rare", 0)


def test_no_replica_has_more_requests_than_its_slots_over_two_workers(router: Router) -> None:
    limit = 2
    service = open_echo(delay=0.01, num_replicas=2, replica_max_concurrent_requests=limit, max_request_wait_time=10_000)
    router.serve({"narrow": service})
    kept, short = (router.load("narrow", clients=8, pause=0.0, keep_alive=keep_alive) for keep_alive in (True, False))
    with kept, short:
        kept.goes_on(200)
        short.goes_on(100)
        until(lambda: router.metric("requests_queued") > 0, "a queue")
    for load in (kept, short):
        assert load.all_well, load
    highest = [statistics(port)["highest"] for port in router.replicas().values()]
    assert highest == [limit, limit]
    assert router.metric("slot_leaks_repaired_total") == 0


def test_a_replica_that_is_killed_is_replaced_and_no_other_request_fails(router: Router) -> None:
    router.serve({"free": open_echo(delay=0.02, num_replicas=2, max_request_wait_time=10_000)})
    with router.load("free", clients=6) as load:
        load.goes_on()
        victim = next(iter(router.replicas()))
        os.kill(victim, signal.SIGKILL)
        router.says("replica died")
        router.ready("free", 2)
        load.goes_on(60)
    assert victim not in router.replicas()
    # The request that it had, and what reached it while it died, connection by connection.
    assert len(load.failures) <= 3, load
    assert set(load.answers) <= {200, 502}, load


def test_a_worker_that_is_killed_is_replaced_and_counts_do_not_go_back(start: Start) -> None:
    router = start({"free": open_echo(num_replicas=2)}, workers=2)
    with router.load("free", clients=6, keep_alive=False) as load:
        load.goes_on(100)
        until(lambda: router.metric("requests_total", service="free", code="200") >= 50)
        victim, other = router.workers
        counts = [router.metric("requests_total", service="free", code="200")]
        os.kill(victim, signal.SIGKILL)
        router.says("worker ended unasked")
        until(lambda: len(router.workers) == 2)
        done = load.answers.total()
        while load.answers.total() < done + 300:
            counts.append(router.metric("requests_total", service="free", code="200"))
    assert other in router.workers
    assert victim not in router.workers
    assert counts == sorted(counts)
    assert set(load.answers) == {200}
    assert len(load.failures) <= 6, load  # those that the worker had
