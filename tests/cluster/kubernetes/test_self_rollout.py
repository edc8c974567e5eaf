"""The router sizes itself where pods cannot be resized: its template is patched, pods roll, and no request notices."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.kubernetes.sized import (
    MODEL,
    PODS,
    QUICK,
    begin,
    nodes_of,
    router_pods,
    routers,
    size,
    workers,
)
from tests.kubernetes.cluster import ROUTER, Cluster
from tests.kubernetes.controller import Controller
from tests.kubernetes.proxy import Proxy, status
from tests.kubernetes.resizing import Resizing, cpus
from tests.named_requests import NamedRequests
from tests.processes import until
from tests.sizing.wrk import Wrk

pytestmark = pytest.mark.skipif(not shutil.which("wrk"), reason="needs wrk, which .ci/run installs")
ROLLING_SECONDS = 90
"""Three pods begin one after another, on a machine that may be busy."""


@pytest.fixture
def nodes(cluster: Cluster, tmp_path: Path) -> Iterator[Resizing]:
    with nodes_of(cluster, tmp_path) as found:
        yield found


@pytest.fixture
def server_without_resize(cluster: Cluster, proxy: Proxy) -> Iterator[Proxy]:
    """The API server as it was before Kubernetes 1.33."""
    offered = cluster.client.ask("GET", "/api/v1").ok()
    offered["resources"] = [each for each in offered["resources"] if each["name"] != "pods/resize"]
    with (
        proxy.fault(lambda record: record.path == "/api/v1", status=200, body=offered),
        proxy.fault(lambda record: record.path.endswith("/resize"), status=404, body=status(404, "NotFound")) as asked,
    ):
        yield proxy
    assert not asked.hit


def template(cluster: Cluster) -> Any:
    return cluster.client.get("deployments", cluster.namespace, ROUTER)["spec"]["template"]


def template_cpus(cluster: Cluster) -> float:
    return cpus(template(cluster)["spec"]["containers"][0]["resources"]["limits"]["cpu"])


@pytest.mark.timeout(360)
def test_pods_roll_to_more_cpu_and_back_and_no_request_notices(
    cluster: Cluster, controller: Controller, nodes: Resizing, server_without_resize: Proxy, tmp_path: Path
) -> None:
    settings = {**QUICK, "self_scaling_max_pods": PODS, "self_scaling_down_cooldown_seconds": 5}
    replicas = begin(cluster, controller, tmp_path, settings, server_without_resize.access)
    before, first = template(cluster), {pod["metadata"]["name"] for pod in router_pods(cluster)}
    fewest = PODS

    def is_rolled(to: float) -> bool:
        nonlocal fewest
        fewest = min(fewest, len(routers(controller)))
        return template_cpus(cluster) == to and size(cluster) == ({to}, PODS, PODS)

    with NamedRequests(MODEL, lambda: routers(controller), replicas) as requests:
        with Wrk(tmp_path, lambda: routers(controller), f"/api/v1/service/{MODEL}/small") as wrk:
            until(lambda: is_rolled(2), "pods of two CPUs", seconds=ROLLING_SECONDS)
            until(lambda: set(workers(cluster)) == {2}, "two workers each")
            assert first.isdisjoint(pod["metadata"]["name"] for pod in router_pods(cluster))
        until(lambda: is_rolled(1), "pods of one CPU", seconds=ROLLING_SECONDS)
        requests.goes_on()
    requests.are_whole()
    assert fewest == PODS
    assert template(cluster)["spec"] == before["spec"]
    assert not wrk.broken
    assert wrk.total.requests
    assert wrk.total[1:] == (0, 0, 0, 0, 0), wrk.reports
    assert controller.kubelet.killed == []
