"""No request fails and none is sent twice while router pods are resized, deleted, scaled and rolled.

Clients and replicas count the requests. Before each event, slow requests, large uploads and large downloads are in
flight through each router pod. Small requests are sent continuously.
"""

from pathlib import Path

import pytest

from tests.cluster.kubernetes.resizable_routers import (
    MODEL,
    PODS,
    leading_pod,
    ready_routers,
    router_pods,
    router_size,
    start_routers,
    worker_counts,
)
from tests.kube_standin.api_server.resources import Object
from tests.kube_standin.client import STRATEGIC
from tests.kube_standin.cluster import ROUTER, Cluster
from tests.kube_standin.controller_manager import ControllerManager
from tests.kube_standin.resizing_nodes import ResizingNodes
from tests.kube_standin.rollout import is_ready
from tests.named_requests import NamedRequests
from tests.processes import wait_until

DRAIN_SECONDS = 25


class PodEvents:
    """Causes events of router pods and waits until they are over."""

    def __init__(self, cluster: Cluster, controller: ControllerManager) -> None:
        self.cluster = cluster
        self.controller = controller

    def start_long_requests(self, requests: NamedRequests) -> None:
        """Start slow and large requests through each pod."""
        requests.start_slow_and_large(ready_routers(self.controller))

    def resize(self, cpus: int) -> None:
        """Resize all pods in place and wait for their workers."""
        resources = {"requests": {"cpu": str(cpus)}, "limits": {"cpu": str(cpus)}}
        patch = {"spec": {"containers": [{"name": ROUTER, "resources": resources}]}}
        for pod in router_pods(self.cluster):
            name = pod["metadata"]["name"]
            self.cluster.client.patch("pods", self.cluster.namespace, name, patch, sub="resize", kind=STRATEGIC)
        wait_until(lambda: set(worker_counts(self.cluster)) == {cpus}, "workers")

    def delete_leader(self) -> None:
        """Delete the leader's pod; wait for another leader and for a replacement of the pod."""
        wait_until(lambda: leading_pod(self.cluster), "a leader")
        previous = leading_pod(self.cluster)
        self.cluster.client.delete("pods", self.cluster.namespace, previous)
        wait_until(lambda: router_size(self.cluster)[1:] == (PODS, PODS), "a replacement of the pod")
        wait_until(lambda: leading_pod(self.cluster) not in ("", previous), "another leader")

    def scale(self, count: int) -> None:
        """Scale to `count` pods."""
        self.cluster.scale(ROUTER, count)
        wait_until(lambda: router_size(self.cluster)[1:] == (count, count), f"{count} pods")

    def roll(self) -> None:
        """Roll all pods to another template."""
        before = {pod["metadata"]["name"] for pod in router_pods(self.cluster)}
        patch = {"spec": {"template": {"metadata": {"annotations": {"release": "next"}}}}}
        self.cluster.client.patch("deployments", self.cluster.namespace, ROUTER, patch)
        count = self.cluster.desired_replicas(ROUTER)
        wait_until(lambda: before.isdisjoint(_ready_pod_names(self.cluster, count)), "new pods")

    def check_ended_pods(self) -> None:
        """Check that deleted pods ended in time, and that no router logged an error."""
        remaining = {pod["metadata"]["name"] for pod in router_pods(self.cluster)}
        wait_until(
            lambda: {pod["metadata"]["name"] for pod in self.cluster.list_pods(ROUTER)} == remaining,
            "the end of deleted pods",
        )
        assert self.controller.kubelet.killed == []
        for log in self.controller.kubelet.directory.glob(f"{ROUTER}-*.log"):
            text = log.read_text()
            assert "Traceback" not in text, text
            assert "aborted requests" not in text, text


def _ready_pod_names(cluster: Cluster, count: int) -> set[str]:
    """Return the names of the ready pods if `count` are ready and no other exists, else of all pods."""
    pods: list[Object] = router_pods(cluster)
    ready = {pod["metadata"]["name"] for pod in pods if is_ready(pod)}
    return ready if len(ready) == len(pods) == count else {pod["metadata"]["name"] for pod in pods}


@pytest.mark.timeout(300)
def test_no_request_is_lost_or_repeated_during_pod_events(
    cluster: Cluster, controller: ControllerManager, nodes: ResizingNodes, tmp_path: Path
) -> None:
    settings = {"self_scaling_enabled": "false", "drain_seconds": DRAIN_SECONDS}
    replicas = start_routers(cluster, controller, tmp_path, settings)
    events = PodEvents(cluster, controller)
    with NamedRequests(MODEL, lambda: ready_routers(controller), replicas) as requests:
        events.start_long_requests(requests)
        events.resize(2)
        requests.wait_for_responses()
        events.start_long_requests(requests)  # through all workers, including those that the next resize stops
        events.resize(1)
        events.start_long_requests(requests)
        events.delete_leader()
        events.start_long_requests(requests)
        events.scale(PODS - 1)
        events.start_long_requests(requests)
        events.roll()
        requests.wait_for_responses()
        events.check_ended_pods()
    requests.check()
