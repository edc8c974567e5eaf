"""Self-scaling without in-place resize: the template is patched, the pods roll, and no request fails."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.kubernetes.resizable_routers import (
    MODEL,
    PODS,
    QUICK_SELF_SCALING,
    ready_routers,
    router_pods,
    router_size,
    start_routers,
    worker_counts,
)
from tests.kube_standin.cluster import ROUTER, Cluster
from tests.kube_standin.controller_manager import ControllerManager
from tests.kube_standin.fault_proxy import FaultProxy, failure_status
from tests.kube_standin.resizing_nodes import ResizingNodes, cpus
from tests.named_requests import NamedRequests
from tests.processes import wait_until
from tests.scaling.self.wrk import Wrk

pytestmark = pytest.mark.needs("wrk")
ROLLING_SECONDS = 90
"""Three pods start one after another, on a test machine that may be busy."""


@pytest.fixture
def server_without_resize(cluster: Cluster, proxy: FaultProxy) -> Iterator[FaultProxy]:
    """An API server without `pods/resize`, as before Kubernetes 1.33."""
    offered = cluster.client.request("GET", "/api/v1").ok()
    offered["resources"] = [each for each in offered["resources"] if each["name"] != "pods/resize"]
    with (
        proxy.fault(lambda record: record.path == "/api/v1", status=200, body=offered),
        proxy.fault(
            lambda record: record.path.endswith("/resize"), status=404, body=failure_status(404, "NotFound")
        ) as asked,
    ):
        yield proxy
    assert not asked.hit


def template(cluster: Cluster) -> Any:
    return cluster.client.get("deployments", cluster.namespace, ROUTER)["spec"]["template"]


def template_cpus(cluster: Cluster) -> float:
    return cpus(template(cluster)["spec"]["containers"][0]["resources"]["limits"]["cpu"])


@pytest.mark.timeout(360)
def test_pods_roll_to_more_cpu_and_back_without_failed_requests(
    cluster: Cluster,
    controller: ControllerManager,
    nodes: ResizingNodes,
    server_without_resize: FaultProxy,
    tmp_path: Path,
) -> None:
    settings = {**QUICK_SELF_SCALING, "self_scaling_max_pods": PODS, "self_scaling_down_cooldown_seconds": 5}
    replicas = start_routers(cluster, controller, tmp_path, settings, server_without_resize.access)
    template_before = template(cluster)
    first_pods = {pod["metadata"]["name"] for pod in router_pods(cluster)}
    min_ready = PODS

    def has_rolled_to(cpus: float) -> bool:
        nonlocal min_ready
        min_ready = min(min_ready, len(ready_routers(controller)))
        return template_cpus(cluster) == cpus and router_size(cluster) == ({cpus}, PODS, PODS)

    with NamedRequests(MODEL, lambda: ready_routers(controller), replicas) as requests:
        with Wrk(tmp_path, lambda: ready_routers(controller), f"/api/v1/service/{MODEL}/small") as wrk:
            wait_until(lambda: has_rolled_to(2), "pods with two CPUs", seconds=ROLLING_SECONDS)
            wait_until(lambda: set(worker_counts(cluster)) == {2}, "two workers in each pod")
            assert first_pods.isdisjoint(pod["metadata"]["name"] for pod in router_pods(cluster))
        wait_until(lambda: has_rolled_to(1), "pods with one CPU", seconds=ROLLING_SECONDS)
        requests.wait_for_responses()
    requests.check()
    assert min_ready == PODS
    assert template(cluster)["spec"] == template_before["spec"]
    assert not wrk.failures
    assert wrk.total.requests
    assert wrk.total[1:] == (0, 0, 0, 0, 0), wrk.reports
    assert controller.kubelet.killed == []
