"""`azureml-fe local` with a number of workers that follows the load, with real processes."""

from typing import Any

import pytest

from tests.processes import wait_until
from tests.routers import Router, StartRouter, open_echo_service
from tests.scaling.self.flood import Flood

FAST_SCALING = {
    "workers": None,
    "self_scaling_window_seconds": 3,
    "self_scaling_route_time_threshold_ms": 15,  # more than the delays of a busy machine
    "self_scaling_up_cooldown_seconds": 1,
    "self_scaling_down_cooldown_seconds": 1,
}


@pytest.fixture
def router(start: StartRouter) -> Router:
    return start({"echo": open_echo_service()}, "--min-workers", "1", "--max-workers", "2", **FAST_SCALING)


def first_outcomes(router: Router) -> dict[str, dict[str, Any]]:
    """Return the first log line of each action, in order. On a busy machine an action may repeat."""
    lines: dict[str, dict[str, Any]] = {}
    for line in router.log("self-scaling decision"):
        lines.setdefault(line["action"], line)
    return lines


def test_workers_follow_the_load_without_failed_requests(router: Router) -> None:
    assert len(router.workers) == 1
    with router.load("echo", clients=4, pause=0.01) as load:
        with Flood(router.port):
            wait_until(lambda: len(router.workers) == 2, "a second worker")
            wait_until(lambda: router.metric("self_scaling_at_limit") == 1, "the limit")
        wait_until(lambda: len(router.workers) == 1, "the end of the second worker")
    assert load.all_succeeded, load
    wait_until(
        lambda: "cpu-down" in first_outcomes(router), "the log line of it"
    )  # the worker may end before it is logged
    logged = first_outcomes(router)
    assert next(iter(logged)) == "cpu-up"
    assert (logged["cpu-up"]["outcome"], logged["cpu-up"]["workers"]) == ("done", 2)
    assert "1 to 2 workers" in logged["cpu-up"]["reason"]
    assert logged["limited"]["outcome"] == "not done"
    assert "2 workers are the maximum" in logged["limited"]["reason"]
    assert (logged["cpu-down"]["outcome"], logged["cpu-down"]["workers"]) == ("done", 1)
    assert router.metric("self_scaling_actions_total", action="cpu-up") >= 1
    assert router.metric("self_scaling_actions_total", action="cpu-down") >= 1
    assert not router.log("worker exited unexpectedly")


def test_fixed_number_of_workers_does_not_change(start: StartRouter) -> None:
    router = start({"echo": open_echo_service()}, "--workers", "2", "--min-workers", "1", **FAST_SCALING)
    assert len(router.workers) == 2
    assert router.metric("self_scaling_cpu_cores") == 0  # there is no such metric
    wait_until(
        lambda: router.metric("event_loop_lag_seconds_count", process="worker") > 0, "a first measurement of the lag"
    )
    assert router.metric("worker_cpu_seconds_total") > 0


def test_all_cpus_are_used_when_self_scaling_is_off(start: StartRouter) -> None:
    settings = {**FAST_SCALING, "self_scaling_enabled": False, "max_workers": 2}
    assert len(start({"echo": open_echo_service()}, **settings).workers) == 2
