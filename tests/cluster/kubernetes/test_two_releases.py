"""Two releases of the router, with two pods each, are configured for the models of one namespace."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from router.cli.main import main
from tests.cluster.kubernetes.router_processes import RouterProcess, RouterStarter, deploy_model, starting_routers
from tests.kube_standin.cluster import Cluster, wait_for_event
from tests.kube_standin.fault_proxy import FaultProxy, failure_status
from tests.processes import send_request, wait_until

CLAIM = "azureml-fe-release"


@pytest.fixture
def other_release(cluster: Cluster, tmp_path: Path) -> Iterator[RouterStarter]:
    """A release in a namespace of its own."""
    directory = tmp_path / "other"
    directory.mkdir()
    with starting_routers(cluster, directory, namespace=cluster.create_namespace()) as starter:
        yield starter


def start_release(release: RouterStarter, **settings: Any) -> list[RouterProcess]:
    """Start two pods, and wait until one leads."""
    pods = [release.start(**settings) for _ in range(2)]
    wait_until(lambda: sum(pod.leads for pod in pods) == 1, "a leader")
    return pods


def holder_of(cluster: Cluster) -> str:
    """Return the holder of the claim; "" if there is none."""
    lease = cluster.client.find("leases", cluster.namespace, CLAIM)
    return str(lease["spec"]["holderIdentity"]) if lease else ""


def status_of(router: RouterProcess) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(send_request(router.admin_port, "/status.json").body)
    return document


def reports_conflict(router: RouterProcess, labels: dict[str, str]) -> bool:
    return router.metric("release_conflicts", **labels) == 1


def serves_iris(router: RouterProcess) -> bool:
    return router.score("iris").status == 200


def conflict_of(cluster: Cluster, older: RouterStarter, younger: RouterStarter) -> str:
    return (
        f"namespace {cluster.namespace}: the router releases {older.release} and {younger.release} are both configured "
        f"for its models; {older.release} is older"
    )


@pytest.mark.parametrize("first_is_older", [True, False])
def test_only_the_older_of_two_releases_serves_and_scales(
    cluster: Cluster, routers: RouterStarter, other_release: RouterStarter, model_port: int, first_is_older: bool,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    older, younger = (routers, other_release) if first_is_older else (other_release, routers)
    deploy_model(cluster, model_port, autoscale_max_replicas="4", auth_enabled="false")
    old_pods = start_release(older)
    wait_until(lambda: holder_of(cluster) == older.release, "the claim of the older release")
    young_pods = start_release(younger)
    for pod in old_pods:
        assert pod.score("iris").status == 200
    for pod in young_pods:
        response = pod.score("iris")
        assert (response.status, response.headers["azureml-fe-error"]) == (503, "standby")
    with old_pods[0].load("iris", clients=8, pause=0.0), young_pods[0].load("iris", clients=2, pause=0.01):
        wait_until(lambda: cluster.desired_replicas("iris") == 4, "more replicas")
    assert not any(pod.log_lines("replicas set") for pod in young_pods)

    # Both say so: by metrics, /status, an Event of the leader's pod, and `check`.
    conflict = conflict_of(cluster, older, younger)
    labels = {"model_namespace": cluster.namespace, "holder": older.release, "waiting": younger.release}
    for pod in (*old_pods, *young_pods):
        wait_until(partial(reports_conflict, pod, labels), "the conflict in the metrics")
        assert any(line.startswith(conflict) for line in status_of(pod)["problems"])
        assert status_of(pod)["services"][0]["standby"] is (pod in young_pods)
        assert pod.metric("autoscaler_conflicts") == 0
    for pods in (old_pods, young_pods):
        leader = next(pod for pod in pods if pod.leads)
        event = wait_for_event(cluster, leader.name, "ReleaseConflict", namespace=leader.namespace)
        assert event["message"].startswith(conflict)
    check = ["check", "--kubeconfig", str(cluster.admin), "--namespace", cluster.namespace]
    for release in (None, older, younger):
        if release is not None:
            monkeypatch.setenv("AZUREML_FE_POD_NAMESPACE", release.release.partition("/")[0])
        assert main(check) == 2
        assert f"azureml-fe: {conflict}" in capsys.readouterr().err


def test_restart_of_the_older_release_changes_nothing(
    cluster: Cluster, routers: RouterStarter, other_release: RouterStarter, model_port: int
) -> None:
    deploy_model(cluster, model_port)
    older = start_release(other_release)
    wait_until(lambda: holder_of(cluster) == other_release.release, "the claim of the older release")
    younger = routers.start()
    for pod in older:
        assert pod.stop() == 0
    wait_until(lambda: younger.leads, "a leader")
    assert younger.score("iris").status == 503
    again = other_release.start()
    assert again.score("iris").status == 200
    assert (holder_of(cluster), younger.score("iris").status) == (other_release.release, 503)


def test_release_that_observes_follows_but_neither_serves_nor_scales_nor_claims(
    cluster: Cluster, routers: RouterStarter, other_release: RouterStarter, model_port: int
) -> None:
    deploy_model(cluster, model_port, autoscale_min_replicas="3", auth_enabled="true")
    observers = start_release(other_release, mode="observe")
    leader = next(pod for pod in observers if pod.leads)
    wait_until(lambda: leader.log_lines("scaling decision"), "a decision")
    (decision,) = leader.log_lines("scaling decision")
    assert (decision["desired"], decision["applied"]) == (3, False)
    (service,) = status_of(leader)["services"]
    assert (status_of(leader)["router"]["mode"], service["standby"]) == ("observe", True)
    assert (service["versions"][0]["desired"], leader.metric("replicas_desired", service="iris")) == (3, 3)
    assert leader.metric("replicas", service="iris", state="ready") == 1
    line = "mode = observe: this router neither serves nor scales models"
    assert status_of(leader)["problems"] == [line]
    assert line.encode() in leader.readiness().body
    assert [pod.metric("observing") for pod in observers] == [1, 1]
    for pod in observers:
        assert pod.score("iris").headers["azureml-fe-error"] == "standby"
    assert cluster.desired_replicas("iris") == 1
    assert cluster.client.list("leases", cluster.namespace) == []
    assert not [
        each for each in cluster.client.list("secrets", cluster.namespace) if "keys" in each["metadata"]["name"]
    ]

    # Another release is not in conflict with it.
    serving = start_release(routers)
    wait_until(lambda: cluster.desired_replicas("iris") == 3, "the number of the other release")
    assert sum(pod.metric("release_conflicts") for pod in (*serving, *observers)) == 0
    assert serving[0].metric("observing") == 0


def test_claim_is_handed_over_when_the_older_release_observes(
    cluster: Cluster, routers: RouterStarter, other_release: RouterStarter, model_port: int
) -> None:
    deploy_model(cluster, model_port)
    older = routers.start()
    wait_until(lambda: holder_of(cluster) == routers.release, "the claim of the older release")
    younger = start_release(other_release)
    assert [pod.score("iris").status for pod in younger] == [503, 503]
    assert older.stop() == 0
    observer = routers.start(mode="observe")
    wait_until(lambda: holder_of(cluster) == other_release.release, "the claim of the younger release")
    for pod in younger:
        wait_until(partial(serves_iris, pod), "a response of the younger release")
    assert observer.score("iris").status == 503
    wait_until(lambda: younger[0].metric("release_conflicts") == 0, "the end of the conflict")


def test_deleted_claim_goes_to_a_release_that_runs(
    cluster: Cluster, routers: RouterStarter, other_release: RouterStarter, model_port: int
) -> None:
    deploy_model(cluster, model_port)
    older = routers.start()
    wait_until(lambda: holder_of(cluster) == routers.release, "the claim of the older release")
    younger = other_release.start()
    assert older.stop() == 0
    cluster.client.delete("leases", cluster.namespace, CLAIM)
    wait_until(lambda: younger.score("iris").status == 200, "a response of the younger release")
    wait_until(lambda: holder_of(cluster) == other_release.release, "its claim")


def test_router_that_cannot_write_its_claim_serves(
    cluster: Cluster, proxy: FaultProxy, model_port: int, tmp_path: Path
) -> None:
    deploy_model(cluster, model_port, autoscale_min_replicas="2")
    refused = failure_status(403, "Forbidden", "leases is forbidden")
    claims = f"/namespaces/{cluster.namespace}/leases"
    with (
        starting_routers(cluster, tmp_path, proxy.access, cluster.create_namespace()) as routers,
        proxy.fault(lambda record: record.method == "POST" and record.path.endswith(claims), status=403, body=refused),
    ):
        router = routers.start()
        wait_until(lambda: router.log_lines("the claim cannot be written"), "a refused claim")
        assert router.score("iris").status == 200
        wait_until(lambda: cluster.desired_replicas("iris") == 2, "more replicas")
