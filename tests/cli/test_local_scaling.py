"""`azureml-fe local` under load: scaling, limits across workers, replacement of killed processes."""

import os
import signal
from collections.abc import Iterator

import pytest

from tests.processes import statistics, wait_until
from tests.routers import Router, StartRouter, open_echo_service

QUICK = {
    "autoscale_refresh_seconds": 0.2,
    "autoscale_scale_down_seconds": 1,
    "autoscale_target_utilization": 90,
    "max_request_wait_time": 10_000,
}

WAIT = {"max_request_wait_time": 10_000}


@pytest.fixture(scope="module")
def shared(start_for_all: StartRouter) -> Router:
    """The router of most tests in this module; each writes its own file."""
    return start_for_all({"unused": open_echo_service()}, workers=2)


@pytest.fixture
def router(shared: Router) -> Iterator[Router]:
    """The shared router, idle after each test."""
    yield shared
    shared.wait_until_idle()


@pytest.mark.parametrize("limit", [1, 0])
def test_replicas_follow_the_load_and_no_request_fails(router: Router, limit: int) -> None:
    service = open_echo_service(
        delay=0.05, autoscale_min_replicas=1, autoscale_max_replicas=3, replica_max_concurrent_requests=limit, **QUICK
    )
    router.apply_config({"free": service})
    router.wait_for_replicas("free", 1)
    with router.load("free", clients=1, pause=0.1) as light:
        with router.load("free", clients=8) as heavy:
            router.wait_for_replicas("free", 3)
            heavy.wait_for_responses()
        router.wait_for_replicas("free", 1)
        light.wait_for_responses(5)
    for load in (light, heavy):
        assert load.all_succeeded, load
    for direction in ("up", "down"):
        assert router.metric("scaling_decisions_total", service="free", direction=direction) >= 1


def test_first_request_starts_the_first_replica(router: Router) -> None:
    router.apply_config({"rare": open_echo_service(autoscale_min_replicas=0, autoscale_max_replicas=2, **QUICK)})
    router.wait_for_replicas("rare", 0)
    assert router.score("rare").status == 200
    router.wait_for_replicas("rare", 0)


def test_version_without_replicas_refuses_requests(router: Router) -> None:
    router.apply_config({"parked": open_echo_service(num_replicas=1, **WAIT)})
    router.wait_for_replicas("parked", 1)
    with router.load("parked", clients=2) as load:
        load.wait_for_responses()
    assert load.all_succeeded, load
    router.apply_config({"parked": open_echo_service(num_replicas=0, **WAIT)})
    router.wait_for_replicas("parked", 0)
    response = router.score("parked")
    assert (response.status, response.headers["azureml-fe-error"]) == (503, "no-ready-replicas")
    router.apply_config({"parked": open_echo_service(num_replicas=1, **WAIT)})
    router.wait_for_replicas("parked", 1)
    assert router.score("parked").status == 200


def test_no_replica_has_more_requests_than_slots_with_two_workers(router: Router) -> None:
    limit = 2
    service = open_echo_service(
        delay=0.01, num_replicas=2, replica_max_concurrent_requests=limit, max_request_wait_time=10_000
    )
    router.apply_services({"narrow": service})
    keep_alive_load, short_load = (
        router.load("narrow", clients=8, pause=0.0, keep_alive=keep_alive) for keep_alive in (True, False)
    )
    with keep_alive_load, short_load:
        keep_alive_load.wait_for_responses(200)
        short_load.wait_for_responses(100)
        wait_until(lambda: router.metric("requests_queued") > 0, "a queue")
    for load in (keep_alive_load, short_load):
        assert load.all_succeeded, load
    highest = [statistics(port)["peak"] for port in router.replicas().values()]
    assert highest == [limit, limit]
    assert router.metric("slot_leaks_repaired_total") == 0


def test_killed_replica_is_replaced_and_only_its_requests_fail(router: Router) -> None:
    router.apply_services({"free": open_echo_service(delay=0.02, num_replicas=2, max_request_wait_time=10_000)})
    with router.load("free", clients=6) as load:
        load.wait_for_responses()
        victim = next(iter(router.replicas()))
        os.kill(victim, signal.SIGKILL)
        router.wait_for_stderr("replica died")
        router.wait_for_replicas("free", 2)
        load.wait_for_responses(60)
    assert victim not in router.replicas()
    # The request in flight at it, and requests on connections that it accepted while it ended.
    assert len(load.failures) <= 3, load
    assert set(load.responses) <= {200, 502}, load


def test_killed_worker_is_replaced_and_counters_do_not_decrease(start: StartRouter) -> None:
    router = start({"free": open_echo_service(num_replicas=2)}, workers=2)
    with router.load("free", clients=6, keep_alive=False) as load:
        load.wait_for_responses(100)
        wait_until(lambda: router.metric("requests_total", service="free", code="200") >= 50)
        victim, other = router.workers
        counts = [router.metric("requests_total", service="free", code="200")]
        os.kill(victim, signal.SIGKILL)
        router.wait_for_stderr("worker exited unexpectedly")
        wait_until(lambda: len(router.workers) == 2)
        done = load.responses.total()
        while load.responses.total() < done + 300:
            counts.append(router.metric("requests_total", service="free", code="200"))
    assert other in router.workers
    assert victim not in router.workers
    assert counts == sorted(counts)
    assert set(load.responses) == {200}
    assert len(load.failures) <= 6, load  # requests of the killed worker
