"""The problems that `azureml-fe check --cluster` reports."""

import socket
from pathlib import Path

import pytest

from router.cli.main import main
from router.cluster.kubernetes.cluster_check import unreachable_replicas
from router.model.services import Replica, ReplicaState
from tests.cluster.kubernetes.roles import self_scaling_rules, serving_rules
from tests.kube_standin.cluster import ROUTER, Cluster


def hpa(target: str) -> dict[str, object]:
    reference = {"apiVersion": "apps/v1", "kind": "Deployment", "name": target}
    return {"metadata": {"name": "by-cpu"}, "spec": {"scaleTargetRef": reference, "maxReplicas": 5}}


def test_check_reports_a_deployment_that_an_hpa_scales(
    cluster: Cluster, api_server: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.create_deployment("iris")
    cluster.create_deployment("resnet")
    cluster.client.create("horizontalpodautoscalers", cluster.namespace, hpa("iris"))
    assert main(["check", "--kubeconfig", str(api_server), "--namespace", cluster.namespace]) == 2
    errors = capsys.readouterr().err
    assert "service iris: Deployment iris is scaled by HorizontalPodAutoscaler by-cpu, so the router does" in errors
    assert "service resnet: Deployment" not in errors
    assert "Secret azureml-fe-keys-resnet is missing" in errors


@pytest.mark.parametrize("scales_itself", [True, False])
def test_check_reports_permissions_that_self_scaling_lacks(
    cluster: Cluster, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, scales_itself: bool
) -> None:
    cluster.create_service_account(ROUTER)
    cluster.grant(ROUTER, self_scaling_rules(withheld="pods/resize"))
    monkeypatch.setenv("AZUREML_FE_POD_NAMESPACE", cluster.namespace)
    monkeypatch.setenv("AZUREML_FE_SELF_SCALING_ENABLED", str(scales_itself).lower())
    kubeconfig = str(cluster.write_kubeconfig(ROUTER))
    code = main(["check", "--kubeconfig", kubeconfig, "--namespace", cluster.namespace])
    assert code == (2 if scales_itself else 0)
    denied = {line.rpartition("not allowed: ")[2] for line in capsys.readouterr().err.splitlines()}
    expected = {
        f"patch pods/resize in namespace {cluster.namespace}: the router's pods roll when their CPU changes",
        "list nodes in all namespaces: the router cannot add pods, as it cannot check whether a node has room",
        "list pods in all namespaces: the router cannot add pods, as it cannot check whether a node has room",
    }
    assert denied == (expected if scales_itself else set())


def test_check_covers_the_namespaces_of_the_router(
    cluster: Cluster, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a router pod, whose account has no permissions in other namespaces."""
    cluster.create_service_account(ROUTER)
    cluster.grant(ROUTER, serving_rules("scoring"))
    cluster.create_deployment("iris", annotations={"azureml-fe/auth-enabled": "false"})
    monkeypatch.setenv("AZUREML_FE_POD_NAMESPACE", cluster.namespace)
    monkeypatch.setenv("AZUREML_FE_ROUTER_NAME", "scoring")
    monkeypatch.setenv("AZUREML_FE_SELF_SCALING_ENABLED", "false")
    command = ["check", "--kubeconfig", str(cluster.write_kubeconfig(ROUTER))]
    assert main(command) != 0
    capsys.readouterr()
    monkeypatch.setenv("AZUREML_FE_NAMESPACES", cluster.namespace)
    assert main(command) == 0
    output = capsys.readouterr()
    assert f"service iris: namespace {cluster.namespace}" in output.out
    assert output.err == ""


@pytest.mark.parametrize("mode", ["normal", "observe"])
def test_check_reports_unclaimed_names_unless_the_router_observes(
    cluster: Cluster, api_server: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    cluster.create_deployment("iris", annotations={"azureml-fe/auth-enabled": "false"})
    cluster.client.create("configmaps", cluster.namespace, {"metadata": {"name": "azureml-fe-names"}, "data": {}})
    monkeypatch.setenv("AZUREML_FE_POD_NAMESPACE", cluster.namespace)
    monkeypatch.setenv("AZUREML_FE_MODE", mode)
    main(["check", "--kubeconfig", str(api_server), "--namespace", cluster.namespace])
    output = capsys.readouterr()
    assert ("service iris: its name has not been claimed yet" in output.err) == (mode == "normal")
    assert ("service iris: namespace" in output.out) == (mode == "observe")


async def test_ready_replica_that_accepts_no_connection_is_reported() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening, socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        open_port, closed_port = listening.getsockname()[1], closed.getsockname()[1]
        replicas = [
            Replica("accepting", "127.0.0.1", open_port, ReplicaState.READY),
            Replica("refusing", "127.0.0.1", closed_port, ReplicaState.READY),
            Replica("starting", "127.0.0.1", closed_port, ReplicaState.STARTING),
        ]
        (line,) = await unreachable_replicas({("iris", "blue"): replicas})
    assert line == (
        f"service iris, version blue: replica refusing is ready but accepts no connection at 127.0.0.1:{closed_port}"
    )
