"""The router sizes itself in a cluster: pods as processes, load up and down, and no request notices.

More CPU first, in place; then another pod, of the size of the rest before it is ready; then another leader, which gives
all of it back again.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.kubernetes.sized import (
    MODEL,
    PODS,
    QUICK,
    begin,
    decisions,
    leader,
    nodes_of,
    routers,
    size,
    workers,
)
from tests.kubernetes.cluster import ROUTER, Cluster
from tests.kubernetes.controller import Controller
from tests.kubernetes.resizing import Resizing
from tests.named_requests import NamedRequests
from tests.processes import until
from tests.sizing.wrk import Wrk

pytestmark = pytest.mark.skipif(not shutil.which("wrk"), reason="needs wrk, which .ci/run installs")

SECONDS = 60
"""So long a machine that is busy with other things may take for each step."""


@pytest.fixture
def nodes(cluster: Cluster, tmp_path: Path) -> Iterator[Resizing]:
    with nodes_of(cluster, tmp_path) as found:
        yield found


@pytest.mark.timeout(300)
def test_it_grows_with_the_load_and_shrinks_again(
    cluster: Cluster, controller: Controller, nodes: Resizing, tmp_path: Path
) -> None:
    replicas = begin(cluster, controller, tmp_path, QUICK)
    template = cluster.client.get("deployments", cluster.namespace, ROUTER)["spec"]["template"]
    assert size(cluster) == ({1}, PODS, PODS)
    assert workers(cluster) == [1] * PODS
    with NamedRequests(MODEL, lambda: routers(controller), replicas) as requests:
        with Wrk(tmp_path, lambda: routers(controller), f"/api/v1/service/{MODEL}/small") as wrk:
            until(lambda: size(cluster)[0] == {2}, "more CPU", seconds=SECONDS)
            until(lambda: size(cluster) == ({2}, PODS + 1, PODS + 1), "another pod, of the same size", seconds=SECONDS)
            until(lambda: set(workers(cluster)) == {2}, "two workers each", seconds=SECONDS)
            # A leader that ends before it has seen the pod become available has nothing to say of it.
            until(lambda: "pods-up" in decided(controller), "the word of it", seconds=SECONDS)
            until(lambda: leader(cluster), "a leader", seconds=SECONDS)
            former = leader(cluster)
            cluster.client.delete("pods", cluster.namespace, former)
            until(lambda: size(cluster) == ({2}, PODS + 1, PODS + 1), "a pod in its place", seconds=SECONDS)
            until(lambda: leader(cluster) not in ("", former), "another leader", seconds=SECONDS)
        until(lambda: size(cluster) == ({1}, PODS, PODS), "less CPU, then a pod fewer", seconds=SECONDS)
        requests.goes_on()
        until(lambda: "pods-down" in decided(controller), "the last word of it", seconds=SECONDS)
    requests.are_whole()
    assert not wrk.broken
    assert wrk.total.requests
    assert wrk.total[1:] == (0, 0, 0, 0, 0), wrk.reports
    assert decided(controller)[0] == "cpu-up"
    assert "cpu-down" in decided(controller)
    cpus = {(each["action"], each["cpus"]) for each in decisions(controller) if each["action"].startswith("pods-")}
    assert cpus == {("pods-up", 2), ("pods-down", 1)}  # the other way only once there is no more, or less, CPU
    assert {"RouterResized", "RouterScaled"} <= {event["reason"] for event in cluster.events(ROUTER)}
    assert cluster.client.get("deployments", cluster.namespace, ROUTER)["spec"]["template"] == template
    assert controller.kubelet.killed == []


def decided(controller: Controller) -> list[str]:
    """What routers have decided and said the outcome of. Who had to leave a change to another leader gave it up."""
    return [each["action"] for each in decisions(controller) if each["outcome"] in ("done", "given up")]
