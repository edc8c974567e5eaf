"""Self-scaling in a cluster while the load rises and falls, without failed requests.

The leader first adds CPU in place, then a pod, which has the size of the others before it is ready. After a change of
the leader the new one reverts both.
"""

from pathlib import Path

import pytest

from tests.cluster.kubernetes.resizable_routers import (
    MODEL,
    PODS,
    QUICK_SELF_SCALING,
    leading_pod,
    logged_decisions,
    ready_routers,
    router_size,
    start_routers,
    worker_counts,
)
from tests.kube_standin.cluster import ROUTER, Cluster
from tests.kube_standin.controller_manager import ControllerManager
from tests.kube_standin.resizing_nodes import ResizingNodes
from tests.named_requests import NamedRequests
from tests.processes import wait_until
from tests.scaling.self.wrk import Wrk

pytestmark = pytest.mark.needs("wrk")

STEP_SECONDS = 60
"""Timeout of each step on a busy test machine."""


@pytest.mark.timeout(300)
def test_router_grows_under_load_and_shrinks_afterwards(
    cluster: Cluster, controller: ControllerManager, nodes: ResizingNodes, tmp_path: Path
) -> None:
    replicas = start_routers(cluster, controller, tmp_path, QUICK_SELF_SCALING)
    template = cluster.client.get("deployments", cluster.namespace, ROUTER)["spec"]["template"]
    assert router_size(cluster) == ({1}, PODS, PODS)
    assert worker_counts(cluster) == [1] * PODS
    with NamedRequests(MODEL, lambda: ready_routers(controller), replicas) as requests:
        with Wrk(tmp_path, lambda: ready_routers(controller), f"/api/v1/service/{MODEL}/small") as wrk:
            wait_until(lambda: router_size(cluster)[0] == {2}, "more CPU", seconds=STEP_SECONDS)
            wait_until(
                lambda: router_size(cluster) == ({2}, PODS + 1, PODS + 1),
                "another pod of the same size",
                seconds=STEP_SECONDS,
            )
            wait_until(lambda: set(worker_counts(cluster)) == {2}, "two workers in each pod", seconds=STEP_SECONDS)
            # A leader that ends before the new pod is available does not report the outcome.
            wait_until(
                lambda: "pods-up" in finished_actions(controller), "the outcome of pods-up", seconds=STEP_SECONDS
            )
            wait_until(lambda: leading_pod(cluster), "a leader", seconds=STEP_SECONDS)
            previous = leading_pod(cluster)
            cluster.client.delete("pods", cluster.namespace, previous)
            wait_until(
                lambda: router_size(cluster) == ({2}, PODS + 1, PODS + 1),
                "a replacement of the pod",
                seconds=STEP_SECONDS,
            )
            wait_until(lambda: leading_pod(cluster) not in ("", previous), "another leader", seconds=STEP_SECONDS)
        wait_until(
            lambda: router_size(cluster) == ({1}, PODS, PODS), "less CPU and one pod fewer", seconds=STEP_SECONDS
        )
        requests.wait_for_responses()
        wait_until(
            lambda: "pods-down" in finished_actions(controller), "the outcome of pods-down", seconds=STEP_SECONDS
        )
    requests.check()
    assert not wrk.failures
    assert wrk.total.requests
    assert wrk.total[1:] == (0, 0, 0, 0, 0), wrk.reports
    assert finished_actions(controller)[0] == "cpu-up"
    assert "cpu-down" in finished_actions(controller)
    cpus = {
        (each["action"], each["cpus"]) for each in logged_decisions(controller) if each["action"].startswith("pods-")
    }
    assert cpus == {("pods-up", 2), ("pods-down", 1)}  # pods are added only at maximum CPU, removed only at minimum
    assert {"RouterResized", "RouterScaled"} <= {event["reason"] for event in cluster.list_events(ROUTER)}
    assert cluster.client.get("deployments", cluster.namespace, ROUTER)["spec"]["template"] == template
    assert controller.kubelet.killed == []


def finished_actions(controller: ControllerManager) -> list[str]:
    """Return the actions of decisions that were done, or cancelled because another router leads."""
    return [each["action"] for each in logged_decisions(controller) if each["outcome"] in ("done", "given up")]
