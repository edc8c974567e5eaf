"""The controllers beside the API server do to Deployments and pods what a cluster does."""

import threading

from tests.kubernetes.cluster import Cluster
from tests.kubernetes.controller import Controller
from tests.kubernetes.double.resources import Object
from tests.kubernetes.models import ask_model, deploy_echo, echo_container
from tests.kubernetes.rollout import DELETION_COST
from tests.processes import until

SLOW = 0.3  # seconds of a request that is under way while its pod ends


def _names(pods: list[Object]) -> set[str]:
    return {pod["metadata"]["name"] for pod in pods}


def test_deployment_becomes_processes(cluster: Cluster, controller: Controller) -> None:
    deploy_echo(cluster, "iris", 2)
    pods = controller.ready("iris", 2)
    assert len({pod["status"]["podIP"] for pod in pods}) == 2
    for pod in pods:
        assert ask_model(pod["status"]["podIP"], "/") == (200, b"Healthy")
        assert pod["metadata"]["labels"]["azuremlappname"] == "iris"
        assert pod["metadata"]["labels"]["pod-template-hash"]
    until(lambda: cluster.client.get("deployments", cluster.namespace, "iris")["status"].get("readyReplicas") == 2)
    cluster.scale("iris", 0)
    controller.ready("iris", 0)
    assert cluster.pods("iris") == []
    assert controller.kubelet.killed == []


def test_cheapest_pod_goes_first(cluster: Cluster, controller: Controller) -> None:
    deploy_echo(cluster, "iris", 3)
    first, *rest = controller.ready("iris", 3)
    patch = {"metadata": {"annotations": {DELETION_COST: "-1"}}}
    cluster.client.patch("pods", cluster.namespace, first["metadata"]["name"], patch)
    cluster.scale("iris", 2)
    assert _names(controller.ready("iris", 2)) == _names(rest)


def test_rolling_update_keeps_what_is_wanted_ready(cluster: Cluster, controller: Controller) -> None:
    deploy_echo(cluster, "iris", 2)
    before = controller.ready("iris", 2)
    counts = set()
    container = {"name": "model", "image": "model:2", **echo_container()}
    patch: Object = {"spec": {"template": {"spec": {"containers": [container]}}}}
    patch["spec"]["strategy"] = {"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}
    cluster.client.patch("deployments", cluster.namespace, "iris", patch)

    def is_over() -> bool:
        pods = cluster.pods("iris")
        alive = [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]
        counts.add(len(alive))
        return len(pods) == 2 and not _names(pods) & _names(before)

    until(is_over, "the rollout")
    assert counts <= {2, 3}
    assert _names(controller.ready("iris", 2)).isdisjoint(_names(before))


def test_process_that_ends_is_started_again(cluster: Cluster, controller: Controller) -> None:
    deploy_echo(cluster, "iris")
    (pod,) = controller.ready("iris", 1)
    process = controller.pod_of(pod["metadata"]["name"]).process
    assert process is not None
    process.kill()

    def restarts() -> int:
        (status,) = cluster.pods("iris")[0]["status"]["containerStatuses"]
        return int(status["restartCount"])

    until(lambda: restarts() == 1, "a restart")
    assert controller.ready("iris", 1)[0]["status"]["podIP"] == pod["status"]["podIP"]


def test_pods_beyond_the_node_stay_pending(cluster: Cluster, controller: Controller) -> None:
    controller.capacity = 1
    deploy_echo(cluster, "iris", 3)
    until(lambda: len(cluster.pods("iris")) == 3, "pods")
    until(lambda: [pod["status"]["phase"] for pod in cluster.pods("iris")].count("Running") == 1, "one that runs")
    cluster.scale("iris", 1)
    controller.ready("iris", 1)


def test_grace_lets_a_request_end(cluster: Cluster, controller: Controller) -> None:
    deploy_echo(cluster, "iris", delay=SLOW)
    (pod,) = controller.ready("iris", 1)
    answers: list[tuple[int, bytes]] = []
    asking = threading.Thread(target=lambda: answers.append(ask_model(pod["status"]["podIP"], "/score", "POST", b"x")))
    asking.start()
    until(lambda: b'"concurrent": 1' in ask_model(pod["status"]["podIP"], "/stats")[1], "a request under way")
    cluster.client.delete("deployments", cluster.namespace, "iris")
    until(lambda: cluster.pods("iris") == [], "the end of all pods")
    asking.join()
    assert answers == [(200, b"x")]
