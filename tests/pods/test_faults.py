"""Several pods, real processes under more load than the replicas can do, while something fails: the others go on, and
no replica, all of which count for themselves, ever has more requests than slots.

Only while pods that live cannot reach one another may that be otherwise, and not for longer than it takes a request
to end once they can.
"""

import os
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.pods.stage import SLOT_SECONDS, Pod, Stage, staged
from tests.processes import until


def only_overload(answers: Counter[str]) -> bool:
    """Whether nothing happened to clients that does not come of too much load alone."""
    return set(answers) <= {"200", "503"}


def three(stage: Stage) -> tuple[Pod, Pod, Pod]:
    stage.begin("p0", "p1", "p2", of=3)
    stage.all_linked()
    p0, p1, p2 = stage.pods.values()
    return p0, p1, p2


def nothing_in_excess_from_now_on(stage: Stage) -> float:
    """Requests that are in flight now end first."""
    time.sleep(2 * SLOT_SECONDS)
    return time.monotonic()


def test_a_worker_is_killed(tmp_path: Path) -> None:
    with staged(tmp_path) as stage:
        _, p1, _ = three(stage)
        with stage.load() as clients:
            before = p1.workers
            os.kill(before[0], signal.SIGKILL)
            clients.goes_on("p0", "p1", "p2")
            until(lambda: len(p1.workers) == 2 and set(p1.workers) != set(before), "successor")
            clients.goes_on("p0", "p1", "p2")
        assert stage.replicas.excesses() == []
        assert only_overload(clients.answers["p0"] + clients.answers["p2"])


def test_a_pod_is_killed_and_succeeded(tmp_path: Path) -> None:
    with staged(tmp_path) as stage:
        p0, p1, p2 = three(stage)
        with stage.load() as clients:
            p2.signal_all(signal.SIGKILL)
            until(lambda: p0.is_linked_with(1) and p1.is_linked_with(1), "the loss of p2")
            clients.goes_on("p0", "p1", requests=200)
        assert p0.metric("service_owned") + p1.metric("service_owned") == 6
        assert p0.metric("degraded_services") == 0  # it is certain that p2 has ended
        assert stage.replicas.excesses() == []
        assert only_overload(clients.answers["p0"] + clients.answers["p1"])


def test_a_supervisor_is_killed_and_its_workers_end_before_others_take_over(tmp_path: Path) -> None:
    with staged(tmp_path) as stage:
        _, _, p2 = three(stage)
        with stage.load() as clients:
            orphans = p2.workers
            os.kill(p2.process.pid, signal.SIGKILL)
            clients.goes_on("p0", "p1", requests=200)
        until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in orphans), "end of the orphans")
        assert stage.replicas.excesses() == []
        assert only_overload(clients.answers["p0"] + clients.answers["p1"])


def test_owners_change_under_full_load(tmp_path: Path) -> None:
    with staged(tmp_path) as stage:
        stage.begin("p0", "p1", of=3)
        until(lambda: all(pod.is_linked_with(1) for pod in stage.pods.values()), "links")
        p0, p1 = stage.pods.values()
        with stage.load() as clients:
            stage.begin("p2", of=3)  # it comes
            stage.all_linked()
            clients.goes_on("p0", "p1", requests=100)
            stage.pods["p2"].process.send_signal(signal.SIGTERM)  # and leaves again
            until(lambda: p0.is_linked_with(1) and p1.is_linked_with(1), "farewell")
            clients.goes_on("p0", "p1", requests=100)
        assert stage.pods["p2"].process.wait() == 0
        assert stage.replicas.excesses() == []
        assert only_overload(clients.answers["p0"] + clients.answers["p1"])


def test_a_pod_is_frozen_and_wakes_again(tmp_path: Path) -> None:
    with staged(tmp_path) as stage:
        p0, p1, p2 = three(stage)
        with stage.load() as clients:
            p2.signal_all(signal.SIGSTOP)
            until(lambda: p0.metric("degraded_services") and p1.metric("degraded_services"), "the loss of p2")
            clients.goes_on("p0", "p1")
            p2.signal_all(signal.SIGCONT)
            stage.all_linked()
            until(lambda: not any(pod.metric("degraded_services") for pod in stage.pods.values()), "the end of it")
            clients.goes_on("p0", "p1", "p2")
            settled = nothing_in_excess_from_now_on(stage)
            clients.goes_on("p0", "p1", "p2", requests=200)
        assert stage.replicas.excesses(after=settled) == []
        assert all(only_overload(answers) for answers in clients.answers.values())


@pytest.mark.parametrize(
    "ways",
    [(("p0", "p2"), ("p2", "p0"), ("p1", "p2"), ("p2", "p1")), (("p0", "p2"), ("p1", "p2"))],
    ids=["both directions", "one direction"],
)
def test_the_network_is_cut_and_heals(tmp_path: Path, ways: tuple[tuple[str, str], ...]) -> None:
    """Between p2 and the others. Both sides go on with a share of the replicas each."""
    with staged(tmp_path, network=True) as stage:
        three(stage)
        with stage.load() as clients:
            stage.network.cut(*ways)
            until(lambda: all(pod.metric("degraded_services") == 6 for pod in stage.pods.values()), "the cut")
            clients.goes_on("p0", "p1", "p2")
            for pod in stage.pods.values():
                assert "replicas are shared out between the sides of a cut" in pod.said
            stage.network.heal()
            stage.all_linked()
            until(lambda: not any(pod.metric("degraded_services") for pod in stage.pods.values()), "the end of it")
            clients.goes_on("p0", "p1", "p2")
            settled = nothing_in_excess_from_now_on(stage)
            clients.goes_on("p0", "p1", "p2", requests=200)
        assert stage.replicas.excesses(after=settled) == []
        assert all(only_overload(answers) for answers in clients.answers.values())


def test_two_pods_cannot_reach_each_other_and_a_third_one_reaches_both(tmp_path: Path) -> None:
    with staged(tmp_path, network=True) as stage:
        p0, p1, p2 = three(stage)
        with stage.load() as clients:
            stage.network.cut(("p0", "p2"), ("p2", "p0"))
            said = "not all pods reach each other, those that all reach own the services"
            until(lambda: all(said in pod.said for pod in (p0, p1, p2)), "agreement that p1 owns all")
            settled = nothing_in_excess_from_now_on(stage)
            clients.goes_on("p0", "p1", "p2", requests=200)
            assert stage.replicas.excesses(after=settled) == []
            assert not any(pod.metric("degraded_services") for pod in (p0, p1, p2))
            stage.network.heal()
            stage.all_linked()
            clients.goes_on("p0", "p1", "p2", requests=100)
        assert all(only_overload(answers) for answers in clients.answers.values())
