"""The controllers and the kubelet handle Deployments and pods like a real cluster."""

import threading

from tests.kube_standin.api_server.resources import Object
from tests.kube_standin.cluster import Cluster
from tests.kube_standin.controller_manager import ControllerManager
from tests.kube_standin.echo_model import deploy_echo, echo_container, request_to_model
from tests.kube_standin.rollout import DELETION_COST
from tests.processes import wait_until

SLOW = 0.3  # seconds; a request that is in flight while its pod terminates


def _names(pods: list[Object]) -> set[str]:
    return {pod["metadata"]["name"] for pod in pods}


def test_deployment_runs_as_processes(cluster: Cluster, controller: ControllerManager) -> None:
    deploy_echo(cluster, "iris", 2)
    pods = controller.wait_ready("iris", 2)
    assert len({pod["status"]["podIP"] for pod in pods}) == 2
    for pod in pods:
        assert request_to_model(pod["status"]["podIP"], "/") == (200, b"Healthy")
        assert pod["metadata"]["labels"]["azuremlappname"] == "iris"
        assert pod["metadata"]["labels"]["pod-template-hash"]
    wait_until(lambda: cluster.client.get("deployments", cluster.namespace, "iris")["status"].get("readyReplicas") == 2)
    cluster.scale("iris", 0)
    controller.wait_ready("iris", 0)
    assert cluster.list_pods("iris") == []
    assert controller.kubelet.killed == []


def test_pod_with_lowest_deletion_cost_is_deleted_first(cluster: Cluster, controller: ControllerManager) -> None:
    deploy_echo(cluster, "iris", 3)
    first, *rest = controller.wait_ready("iris", 3)
    patch = {"metadata": {"annotations": {DELETION_COST: "-1"}}}
    cluster.client.patch("pods", cluster.namespace, first["metadata"]["name"], patch)
    cluster.scale("iris", 2)
    assert _names(controller.wait_ready("iris", 2)) == _names(rest)


def test_rolling_update_stays_within_its_bounds(cluster: Cluster, controller: ControllerManager) -> None:
    deploy_echo(cluster, "iris", 2)
    before = controller.wait_ready("iris", 2)
    counts = set()
    container = {"name": "model", "image": "model:2", **echo_container()}
    patch: Object = {"spec": {"template": {"spec": {"containers": [container]}}}}
    patch["spec"]["strategy"] = {"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}
    cluster.client.patch("deployments", cluster.namespace, "iris", patch)

    def is_complete() -> bool:
        pods = cluster.list_pods("iris")
        active = [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]
        counts.add(len(active))
        return len(pods) == 2 and not _names(pods) & _names(before)

    wait_until(is_complete, "the rollout")
    assert counts <= {2, 3}
    assert _names(controller.wait_ready("iris", 2)).isdisjoint(_names(before))


def test_crashed_process_is_restarted(cluster: Cluster, controller: ControllerManager) -> None:
    deploy_echo(cluster, "iris")
    (pod,) = controller.wait_ready("iris", 1)
    process = controller.pod_process(pod["metadata"]["name"]).process
    assert process is not None
    process.kill()

    def restarts() -> int:
        (status,) = cluster.list_pods("iris")[0]["status"]["containerStatuses"]
        return int(status["restartCount"])

    wait_until(lambda: restarts() == 1, "a restart")
    assert controller.wait_ready("iris", 1)[0]["status"]["podIP"] == pod["status"]["podIP"]


def test_pods_beyond_the_capacity_stay_pending(cluster: Cluster, controller: ControllerManager) -> None:
    controller.capacity = 1
    deploy_echo(cluster, "iris", 3)
    wait_until(lambda: len(cluster.list_pods("iris")) == 3, "pods")
    wait_until(
        lambda: [pod["status"]["phase"] for pod in cluster.list_pods("iris")].count("Running") == 1, "one running pod"
    )
    cluster.scale("iris", 1)
    controller.wait_ready("iris", 1)


def test_request_completes_within_the_grace_period(cluster: Cluster, controller: ControllerManager) -> None:
    deploy_echo(cluster, "iris", delay=SLOW)
    (pod,) = controller.wait_ready("iris", 1)
    responses: list[tuple[int, bytes]] = []
    sender = threading.Thread(
        target=lambda: responses.append(request_to_model(pod["status"]["podIP"], "/score", "POST", b"x"))
    )
    sender.start()
    wait_until(
        lambda: b'"in_flight": 1' in request_to_model(pod["status"]["podIP"], "/stats")[1], "a request in flight"
    )
    cluster.client.delete("deployments", cluster.namespace, "iris")
    wait_until(lambda: cluster.list_pods("iris") == [], "the removal of all pods")
    sender.join()
    assert responses == [(200, b"x")]
