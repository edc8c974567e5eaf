"""Whatever becomes of the router's pods, no request fails and none is sent twice: counted at clients and at replicas.

Three router pods as processes. Each event finds slow requests and large ones, both ways, under way through each pod
that it concerns, and small ones all the time. Who may do what to pods is tested elsewhere; here it is done to them.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.kubernetes.sized import MODEL, PODS, begin, leader, nodes_of, router_pods, routers, size, workers
from tests.kubernetes.client import STRATEGIC
from tests.kubernetes.cluster import ROUTER, Cluster
from tests.kubernetes.controller import Controller
from tests.kubernetes.double.resources import Object
from tests.kubernetes.resizing import Resizing
from tests.kubernetes.rollout import is_ready
from tests.named_requests import PATIENCE, NamedRequests
from tests.processes import until

DRAIN_SECONDS = 25


@pytest.fixture
def nodes(cluster: Cluster, tmp_path: Path) -> Iterator[Resizing]:
    with nodes_of(cluster, tmp_path) as found:
        yield found


class Stage:
    """The routers, and what is done to them."""

    def __init__(self, cluster: Cluster, controller: Controller) -> None:
        self.cluster = cluster
        self.controller = controller

    def in_flight(self, requests: NamedRequests) -> None:
        """Have slow and large requests under way through each pod."""
        requests.in_flight(routers(self.controller))

    def resize(self, cpus: int) -> None:
        """All pods, in place, and wait for their workers."""
        resources = {"requests": {"cpu": str(cpus)}, "limits": {"cpu": str(cpus)}}
        patch = {"spec": {"containers": [{"name": ROUTER, "resources": resources}]}}
        for pod in router_pods(self.cluster):
            name = pod["metadata"]["name"]
            self.cluster.client.patch("pods", self.cluster.namespace, name, patch, sub="resize", kind=STRATEGIC)
        until(lambda: set(workers(self.cluster)) == {cpus}, "workers")

    def delete_leader(self) -> None:
        """And wait until another one leads, and there is another pod."""
        until(lambda: leader(self.cluster), "a leader")
        former = leader(self.cluster)
        self.cluster.client.delete("pods", self.cluster.namespace, former)
        until(lambda: size(self.cluster)[1:] == (PODS, PODS), "a pod in its place")
        until(lambda: leader(self.cluster) not in ("", former), "another leader")

    def scale(self, count: int) -> None:
        """To so many pods."""
        self.cluster.scale(ROUTER, count)
        until(lambda: size(self.cluster)[1:] == (count, count), f"{count} pods")

    def roll(self) -> None:
        """To another template."""
        before = {pod["metadata"]["name"] for pod in router_pods(self.cluster)}
        patch = {"spec": {"template": {"metadata": {"annotations": {"release": "next"}}}}}
        self.cluster.client.patch("deployments", self.cluster.namespace, ROUTER, patch)
        count = self.cluster.replicas(ROUTER)
        until(lambda: before.isdisjoint(_ready(self.cluster, count)), "new pods", seconds=PATIENCE)

    def ended(self) -> None:
        """Pods that are to end have ended, in time, and nothing was amiss."""
        there = {pod["metadata"]["name"] for pod in router_pods(self.cluster)}
        until(
            lambda: {pod["metadata"]["name"] for pod in self.cluster.pods(ROUTER)} == there, "the end", seconds=PATIENCE
        )
        assert self.controller.kubelet.killed == []
        for log in self.controller.kubelet.folder.glob(f"{ROUTER}-*.log"):
            said = log.read_text()
            assert "Traceback" not in said, said
            assert "had to cut requests" not in said, said


def _ready(cluster: Cluster, count: int) -> set[str]:
    """The names of pods that stay, all if not so many are ready."""
    pods: list[Object] = router_pods(cluster)
    ready = {pod["metadata"]["name"] for pod in pods if is_ready(pod)}
    return ready if len(ready) == len(pods) == count else {pod["metadata"]["name"] for pod in pods}


@pytest.mark.timeout(300)
def test_nothing_is_lost_whatever_becomes_of_the_pods(
    cluster: Cluster, controller: Controller, nodes: Resizing, tmp_path: Path
) -> None:
    settings = {"self_scaling_enabled": "false", "drain_seconds": DRAIN_SECONDS}
    replicas = begin(cluster, controller, tmp_path, settings)
    stage = Stage(cluster, controller)
    with NamedRequests(MODEL, lambda: routers(controller), replicas) as requests:
        stage.in_flight(requests)
        stage.resize(2)
        requests.goes_on()
        stage.in_flight(requests)  # by all workers, also those that are to go
        stage.resize(1)
        stage.in_flight(requests)
        stage.delete_leader()
        stage.in_flight(requests)
        stage.scale(PODS - 1)
        stage.in_flight(requests)
        stage.roll()
        requests.goes_on()
        stage.ended()
    requests.are_whole()
