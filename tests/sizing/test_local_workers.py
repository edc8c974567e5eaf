"""`azureml-fe local` with workers that follow the load: real processes, and a load that keeps one of them busy."""

from typing import Any

import pytest

from tests.processes import until
from tests.routers import Router, Start, open_echo
from tests.sizing.flood import Flood

QUICK = {
    "workers": None,
    "self_scaling_window_seconds": 3,
    "self_scaling_route_time_threshold_ms": 15,  # above what a busy machine adds by itself
    "self_scaling_up_cooldown_seconds": 1,
    "self_scaling_down_cooldown_seconds": 1,
}


@pytest.fixture
def router(start: Start) -> Router:
    return start({"echo": open_echo()}, "--min-workers", "1", "--max-workers", "2", **QUICK)


def outcomes(router: Router) -> dict[str, dict[str, Any]]:
    """The first word of each action, in order: a machine that is busy otherwise may lead to more than one."""
    said: dict[str, dict[str, Any]] = {}
    for line in router.log("self-scaling decision"):
        said.setdefault(line["action"], line)
    return said


def test_workers_follow_the_load_and_no_request_notices(router: Router) -> None:
    assert len(router.workers) == 1
    with router.load("echo", clients=4, pause=0.01) as load:
        with Flood(router.port):
            until(lambda: len(router.workers) == 2, "a second worker")
            until(lambda: router.metric("self_scaling_at_limit") == 1, "the limit")
        until(lambda: len(router.workers) == 1, "the end of the second worker")
    assert load.all_well, load
    until(lambda: "cpu-down" in outcomes(router), "the word of it")  # the worker may have been quicker
    said = outcomes(router)
    assert next(iter(said)) == "cpu-up"
    assert (said["cpu-up"]["outcome"], said["cpu-up"]["workers"]) == ("done", 2)
    assert "1 to 2 workers" in said["cpu-up"]["reason"]
    assert said["limited"]["outcome"] == "not done"
    assert "2 workers are the most" in said["limited"]["reason"]
    assert (said["cpu-down"]["outcome"], said["cpu-down"]["workers"]) == ("done", 1)
    assert router.metric("self_scaling_actions_total", action="cpu-up") >= 1
    assert router.metric("self_scaling_actions_total", action="cpu-down") >= 1
    assert not router.log("worker ended unasked")


def test_a_fixed_number_of_workers_stays(start: Start) -> None:
    router = start({"echo": open_echo()}, "--workers", "2", "--min-workers", "1", **QUICK)
    assert len(router.workers) == 2
    assert router.metric("self_scaling_cpu_cores") == 0  # there is no such metric
    until(lambda: router.metric("event_loop_lag_seconds_count", process="worker") > 0, "a first look at the loop")
    assert router.metric("worker_cpu_seconds_total") > 0


def test_sizing_that_is_off_uses_all_cpus(start: Start) -> None:
    settings = {**QUICK, "self_scaling_enabled": False, "max_workers": 2}
    assert len(start({"echo": open_echo()}, **settings).workers) == 2
