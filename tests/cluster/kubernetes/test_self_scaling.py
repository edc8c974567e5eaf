"""The router sizes itself in a cluster: pods as processes, load up and down, and no request notices.

More CPU first, in place; then another pod, of the size of the rest before it is ready; then another leader, which gives
all of it back again.
"""

import http.client
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.cluster.kubernetes.sized import (
    ask_at,
    decisions,
    install,
    leader,
    nodes_of,
    router_pods,
    size,
    workers,
)
from tests.kubernetes.client import Client
from tests.kubernetes.cluster import NAME_LABEL, ROUTER, Cluster
from tests.kubernetes.controller import Controller
from tests.kubernetes.models import deploy_echo
from tests.kubernetes.resizing import Resizing
from tests.kubernetes.rollout import is_ready
from tests.processes import PATIENCE_SECONDS, ask_over, until
from tests.sizing.flood import Flood

QUICK = {
    "self_scaling_cpu_steps": "1,2",
    "self_scaling_min_pods": 3,
    "self_scaling_max_pods": 4,
    "self_scaling_window_seconds": 3,
    "self_scaling_route_time_threshold_ms": 15,  # above what a busy machine adds by itself
    "self_scaling_up_cooldown_seconds": 1,
    "self_scaling_down_cooldown_seconds": 3,
    # The cores of the machine that runs this are fewer than those of the pods together.
    "self_scaling_busy_cpu_percent": 5,
}


@pytest.fixture
def nodes(cluster: Cluster, tmp_path: Path) -> Iterator[Resizing]:
    with nodes_of(cluster, tmp_path) as found:
        yield found


class Clients:
    """Clients of the router's Service: connections go to pods that are ready and stay, until they are told to go."""

    def __init__(self, cluster: Cluster, count: int = 6) -> None:
        self.answers = 0
        self.failures: list[str] = []
        self._cluster = cluster
        self._addresses: list[str] = []
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._follow)]
        self._threads += [threading.Thread(target=self._ask, args=(number,)) for number in range(count)]

    def __enter__(self) -> "Clients":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _follow(self) -> None:
        client = Client(self._cluster.access)
        while not self._over.wait(0.05):
            pods = client.list("pods", self._cluster.namespace, labelSelector=f"{NAME_LABEL}={ROUTER}")
            self._addresses = [
                pod["status"]["podIP"] for pod in pods if is_ready(pod) and "deletionTimestamp" not in pod["metadata"]
            ]
        client.close()

    def _ask(self, number: int) -> None:
        until(lambda: self._addresses or self._over.is_set())
        turn = number
        while not self._over.is_set():
            turn += 1
            addresses = self._addresses
            line = http.client.HTTPConnection(addresses[turn % len(addresses)], 8080, timeout=PATIENCE_SECONDS)
            try:
                for _ in range(50):
                    answer = ask_over(line, "/api/v1/service/iris/score", b"[1]")
                    if answer.status == 200:
                        self.answers += 1
                    else:
                        self.failures.append(f"{answer.status} {answer.body!r}")
                    if answer.headers.get("connection") == "close" or self._over.wait(0.02):
                        break
            except (OSError, http.client.HTTPException) as error:
                self.failures.append(f"{line.host}: {error!r}")
            finally:
                line.close()


def test_it_grows_with_the_load_and_shrinks_again(
    cluster: Cluster, controller: Controller, nodes: Resizing, tmp_path: Path
) -> None:
    deploy_echo(cluster, "iris", settings={"auth-enabled": "false", "replica-max-concurrent-requests": "100"})
    install(cluster, tmp_path, QUICK)
    template = cluster.client.get("deployments", cluster.namespace, ROUTER)["spec"]["template"]
    controller.ready(ROUTER, 3)
    assert size(cluster) == ({1}, 3, 3)
    assert workers(cluster) == [1, 1, 1]
    until(lambda: "iris" in ask_at(router_pods(cluster)[0]["status"]["podIP"], "/metrics"), "the model")
    with Clients(cluster) as clients:
        until(lambda: clients.answers > 20, "answers")
        with ExitStack() as floods:
            for pod in router_pods(cluster):
                floods.enter_context(Flood(8080, pod["status"]["podIP"]))
            until(lambda: size(cluster)[0] == {2}, "more CPU")
            assert size(cluster)[2] == 3  # vertical first
            until(lambda: size(cluster) == ({2}, 4, 4), "another pod, of the size of the rest")
            until(lambda: set(workers(cluster)) == {2}, "two workers each")
            # A leader that ends before it has seen the pod become available has nothing to say of it.
            until(lambda: ("pods-up", "done") in decisions(controller), "the word of it")
            former = leader(cluster)
            cluster.client.delete("pods", cluster.namespace, former)
            until(lambda: size(cluster) == ({2}, 4, 4), "a pod in its place, of the size of the rest")
            until(lambda: leader(cluster) not in ("", former), "another leader")
        until(lambda: size(cluster)[0] == {1}, "less CPU")
        until(lambda: size(cluster) == ({1}, 3, 3), "a pod fewer")
        before = clients.answers
        until(lambda: clients.answers > before + 20, "answers")
    assert not clients.failures, clients.failures[:5]
    until(lambda: ("pods-down", "done") in decisions(controller), "the last word of it")
    done = [action for action, outcome in decisions(controller) if outcome == "done"]
    assert done[0] == "cpu-up"
    assert done[done.index("pods-up") - 1] == "cpu-up"  # another pod only once there is no more CPU
    assert done.index("cpu-down") < done.index("pods-down")
    reasons = {event["reason"] for event in cluster.events(ROUTER)}
    assert {"RouterResized", "RouterScaled"} <= reasons
    assert cluster.client.get("deployments", cluster.namespace, ROUTER)["spec"]["template"] == template
