"""All router pods use the same settings of a Deployment whose annotations are invalid, whenever they start."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import pytest

from router.cli.main import main
from tests.cluster.kubernetes.router_processes import RouterProcess, RouterStarter, deploy_model
from tests.kube_standin.cluster import Cluster, wait_for_event
from tests.processes import send_request, wait_until

STORE = "azureml-fe-settings"


def stored(cluster: Cluster) -> dict[str, str]:
    config_map = cluster.client.find("configmaps", cluster.namespace, STORE)
    return (config_map or {}).get("data") or {}


def annotate(cluster: Cluster, **annotations: str) -> None:
    named = {f"azureml-fe/{name.replace('_', '-')}": text for name, text in annotations.items()}
    cluster.client.patch("deployments", cluster.namespace, "iris", {"metadata": {"annotations": named}})


def slots_and_problems(router: RouterProcess) -> tuple[int, list[str]]:
    """Return the slots of the model, which has one replica, and the problems in the status."""
    status: dict[str, Any] = json.loads(send_request(router.admin_port, "/status.json").body)
    (service,) = status["services"]
    return service["versions"][0]["slots"], status["problems"]


def has_slots(router: RouterProcess, slots: int) -> bool:
    return slots_and_problems(router)[0] == slots


def test_all_pods_and_commands_agree_on_settings_that_are_invalid_now(
    cluster: Cluster, routers: RouterStarter, model_port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    deploy_model(cluster, model_port, replica_max_concurrent_requests="3", num_replicas="1")
    pods = [routers.start(), routers.start()]
    for pod in pods:
        wait_until(partial(has_slots, pod, 3), "the model")
    annotate(cluster, replica_max_concurrent_requests="many", max_queue_length="7")
    event = wait_for_event(cluster, "iris", "SettingsRefused")
    wait_until(lambda: stored(cluster), "stored settings")
    pods.append(routers.start())

    def check_agreement() -> None:
        assert event["message"].endswith("; the previous settings stay in effect")
        problem = f"service iris: SettingsRefused: {event['message']} (Deployment {cluster.namespace}/iris)"
        for pod in pods:
            assert slots_and_problems(pod) == (3, [problem])
        assert [each["message"] for each in cluster.list_events("iris", reason="SettingsRefused")] == [event["message"]]
        capsys.readouterr()
        assert main(["check", "--kubeconfig", str(cluster.admin), "--namespace", cluster.namespace]) == 2
        assert f"azureml-fe: {problem}\n" in capsys.readouterr().err

    check_agreement()
    for pod in pods:
        assert pod.stop() == 0
    pods[:] = [routers.start(), routers.start()]
    wait_until(lambda: any(pod.leads for pod in pods), "a leader")
    check_agreement()

    annotate(cluster, replica_max_concurrent_requests="2")
    for pod in pods:
        wait_until(partial(has_slots, pod, 2), "the corrected settings")
    wait_until(lambda: not stored(cluster), "the removal of the stored settings")
    annotate(cluster, replica_max_concurrent_requests="none")
    wait_until(lambda: stored(cluster), "stored settings")
    assert '"2"' in "".join(stored(cluster).values())
    cluster.client.delete("deployments", cluster.namespace, "iris")
    wait_until(lambda: not stored(cluster), "the removal of the settings of a deleted Deployment")
