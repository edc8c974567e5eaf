"""Failures under load above capacity: other pods keep serving, and no replica gets more requests than it has slots.

The limit may be exceeded only while running pods cannot reach each other, and until the requests of that time have
ended.
"""

import os
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.pods.fleet import RESPONSE_SECONDS, Fleet, Pod, running_fleet
from tests.processes import wait_until


def only_overload(results: Counter[str]) -> bool:
    """True if all responses were 200, or 503 due to the overload."""
    return set(results) <= {"200", "503"}


def start_three(fleet: Fleet) -> tuple[Pod, Pod, Pod]:
    fleet.start("p0", "p1", "p2", pod_count=3)
    fleet.wait_until_all_linked()
    p0, p1, p2 = fleet.pods.values()
    return p0, p1, p2


def wait_for_requests_in_flight() -> float:
    """Wait until the requests that are in flight now have ended. Return the monotonic time."""
    time.sleep(2 * RESPONSE_SECONDS)
    return time.monotonic()


def test_killed_worker_is_replaced(tmp_path: Path) -> None:
    with running_fleet(tmp_path) as fleet:
        _, p1, _ = start_three(fleet)
        with fleet.load() as clients:
            before = p1.workers
            os.kill(before[0], signal.SIGKILL)
            clients.wait_for_successes("p0", "p1", "p2")
            wait_until(lambda: len(p1.workers) == 2 and set(p1.workers) != set(before), "replacement of the worker")
            clients.wait_for_successes("p0", "p1", "p2")
        assert fleet.replicas.over_limit() == []
        assert only_overload(clients.results["p0"] + clients.results["p2"])


def test_services_of_killed_pod_are_taken_over(tmp_path: Path) -> None:
    with running_fleet(tmp_path) as fleet:
        p0, p1, p2 = start_three(fleet)
        with fleet.load() as clients:
            p2.signal_all(signal.SIGKILL)
            wait_until(lambda: p0.has_links(1) and p1.has_links(1), "loss of the links with p2")
            clients.wait_for_successes("p0", "p1", requests=200)
        assert p0.metric("service_owned") + p1.metric("service_owned") == 6
        assert p0.metric("degraded_services") == 0  # the other pods have detected that p2 has ended
        assert fleet.replicas.over_limit() == []
        assert only_overload(clients.results["p0"] + clients.results["p1"])


def test_workers_of_killed_supervisor_end_before_other_pods_take_over(tmp_path: Path) -> None:
    with running_fleet(tmp_path) as fleet:
        _, _, p2 = start_three(fleet)
        with fleet.load() as clients:
            orphans = p2.workers
            os.kill(p2.process.pid, signal.SIGKILL)
            clients.wait_for_successes("p0", "p1", requests=200)
        wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in orphans), "end of the orphaned workers")
        assert fleet.replicas.over_limit() == []
        assert only_overload(clients.results["p0"] + clients.results["p1"])


def test_owners_change_when_a_pod_is_added_and_removed(tmp_path: Path) -> None:
    with running_fleet(tmp_path) as fleet:
        fleet.start("p0", "p1", pod_count=3)
        wait_until(lambda: all(pod.has_links(1) for pod in fleet.pods.values()), "links")
        p0, p1 = fleet.pods.values()
        with fleet.load() as clients:
            fleet.start("p2", pod_count=3)
            fleet.wait_until_all_linked()
            clients.wait_for_successes("p0", "p1", requests=100)
            fleet.pods["p2"].begin_termination()
            wait_until(lambda: p0.has_links(1) and p1.has_links(1), "goodbye of p2")
            clients.wait_for_successes("p0", "p1", requests=100)
        assert fleet.pods["p2"].process.wait() == 0
        assert fleet.replicas.over_limit() == []
        assert only_overload(clients.results["p0"] + clients.results["p1"])


def test_stopped_pod_degrades_services_until_it_continues(tmp_path: Path) -> None:
    with running_fleet(tmp_path) as fleet:
        p0, p1, p2 = start_three(fleet)
        with fleet.load() as clients:
            p2.signal_all(signal.SIGSTOP)
            wait_until(lambda: p0.metric("degraded_services") and p1.metric("degraded_services"), "loss of p2")
            clients.wait_for_successes("p0", "p1")
            p2.signal_all(signal.SIGCONT)
            fleet.wait_until_all_linked()
            wait_until(lambda: not any(pod.metric("degraded_services") for pod in fleet.pods.values()), "recovery")
            clients.wait_for_successes("p0", "p1", "p2")
            recovered_at = wait_for_requests_in_flight()
            clients.wait_for_successes("p0", "p1", "p2", requests=200)
        assert fleet.replicas.over_limit(after=recovered_at) == []
        assert all(only_overload(results) for results in clients.results.values())


@pytest.mark.parametrize(
    "directions",
    [(("p0", "p2"), ("p2", "p0"), ("p1", "p2"), ("p2", "p1")), (("p0", "p2"), ("p1", "p2"))],
    ids=["both directions", "one direction"],
)
def test_both_sides_of_a_partition_serve_with_their_share_of_replicas(
    tmp_path: Path, directions: tuple[tuple[str, str], ...]
) -> None:
    with running_fleet(tmp_path, network=True) as fleet:
        start_three(fleet)
        with fleet.load() as clients:
            fleet.network.cut(*directions)
            wait_until(lambda: all(pod.metric("degraded_services") == 6 for pod in fleet.pods.values()), "partition")
            clients.wait_for_successes("p0", "p1", "p2")
            for pod in fleet.pods.values():
                assert "replicas are divided between the sides of a partition" in pod.log
            fleet.network.heal()
            fleet.wait_until_all_linked()
            wait_until(lambda: not any(pod.metric("degraded_services") for pod in fleet.pods.values()), "recovery")
            clients.wait_for_successes("p0", "p1", "p2")
            recovered_at = wait_for_requests_in_flight()
            clients.wait_for_successes("p0", "p1", "p2", requests=200)
        assert fleet.replicas.over_limit(after=recovered_at) == []
        assert all(only_overload(results) for results in clients.results.values())


def test_pod_that_all_pods_reach_owns_all_services_if_two_others_cannot_reach_each_other(tmp_path: Path) -> None:
    with running_fleet(tmp_path, network=True) as fleet:
        p0, p1, p2 = start_three(fleet)
        with fleet.load() as clients:
            fleet.network.cut(("p0", "p2"), ("p2", "p0"))
            message = "not all pods reach each other, only pods that every pod reaches own services"
            wait_until(lambda: all(message in pod.log for pod in (p0, p1, p2)), "agreement that p1 owns all services")
            agreed_at = wait_for_requests_in_flight()
            clients.wait_for_successes("p0", "p1", "p2", requests=200)
            assert fleet.replicas.over_limit(after=agreed_at) == []
            assert not any(pod.metric("degraded_services") for pod in (p0, p1, p2))
            fleet.network.heal()
            fleet.wait_until_all_linked()
            clients.wait_for_successes("p0", "p1", "p2", requests=100)
        assert all(only_overload(results) for results in clients.results.values())
