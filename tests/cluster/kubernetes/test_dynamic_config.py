"""A dynamic configuration in a ConfigMap: the same in all router pods, over annotations, and kept while it is away."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from router.dynamic.config_map import DOCUMENT_KEY
from tests.cluster.kubernetes.router_processes import RouterProcess, RouterStarter, deploy_model
from tests.collection.azurite import needs_azurite, running_azurite, settings_file
from tests.kube_standin.cluster import ROUTER, Cluster, wait_for_event
from tests.processes import send_request, wait_until

NAME = "dynamic"
STORE = "azureml-fe-settings"
ACCESS = {"apiGroups": [""], "resources": ["configmaps"], "resourceNames": [NAME], "verbs": ["get"]}


@pytest.fixture
def fleet(cluster: Cluster, routers: RouterStarter) -> RouterStarter:
    """Routers that may read the ConfigMap."""
    cluster.grant(ROUTER, [ACCESS])
    return routers


def start(routers: RouterStarter, **settings: Any) -> RouterProcess:
    return routers.start(dynamic_config_map=NAME, dynamic_config_poll_seconds=0.5, **settings)


def write(cluster: Cluster, content: object) -> None:
    text = content if isinstance(content, str) else json.dumps(content)
    if cluster.client.find("configmaps", cluster.namespace, NAME) is None:
        metadata = {"name": NAME, "namespace": cluster.namespace}
        cluster.client.create("configmaps", cluster.namespace, {"metadata": metadata, "data": {DOCUMENT_KEY: text}})
    else:
        cluster.client.patch("configmaps", cluster.namespace, NAME, {"data": {DOCUMENT_KEY: text}})


def status(router: RouterProcess) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(send_request(router.admin_port, "/status.json").body)
    return document


def slots(router: RouterProcess) -> int | None:
    (service,) = status(router)["services"]
    found: int | None = service["versions"][0]["slots"]
    return found


def has_slots(router: RouterProcess, count: int) -> bool:
    return slots(router) == count


def stored(cluster: Cluster) -> dict[str, Any]:
    config_map = cluster.client.find("configmaps", cluster.namespace, STORE)
    document: dict[str, Any] = json.loads(((config_map or {}).get("data") or {}).get("dynamic-config", "{}"))
    return document


def test_two_pods_apply_the_same_settings_within_seconds_over_annotations(
    cluster: Cluster, fleet: RouterStarter, model_port: int
) -> None:
    deploy_model(cluster, model_port, replica_max_concurrent_requests="3", num_replicas="1")
    write(cluster, {"router": {"max_payload_bytes": 15}})
    pods = [start(fleet), start(fleet)]
    for pod in pods:
        wait_until(partial(has_slots, pod, 3), "the annotation")
        assert pod.score("iris", b"x" * 20).status == 413
    with pods[0].load("iris") as load:
        load.wait_for_responses()
        write(cluster, {"router": {}, "services": {"iris": {"replica_max_concurrent_requests": 5}}})
        for pod in pods:
            wait_until(partial(has_slots, pod, 5), "the dynamic configuration")
            assert pod.score("iris", b"x" * 20).status == 200
            (line,) = pod.log_lines("settings of a service changed")
            assert (line["service"], line["settings"]) == ("iris", ["replica_max_concurrent_requests: 3 -> 5"])
        load.wait_for_responses()
    assert load.all_succeeded, load
    write(cluster, "{}")
    for pod in pods:
        wait_until(partial(has_slots, pod, 3), "the annotation again")


def test_refused_document_changes_nothing_in_all_pods(cluster: Cluster, fleet: RouterStarter, model_port: int) -> None:
    deploy_model(cluster, model_port, num_replicas="1")
    write(cluster, {"services": {"iris": {"replica_max_concurrent_requests": 5}}})
    pods = [start(fleet), start(fleet)]
    for pod in pods:
        wait_until(partial(has_slots, pod, 5), "the dynamic configuration")
    write(cluster, {"services": {"iris": {"replica_max_concurrent_requests": 6, "auth_enabled": False}}})
    for pod in pods:
        wait_until(partial(pod.log_lines, "dynamic configuration refused"), "refusal")
        assert slots(pod) == 5
        (problem,) = status(pod)["problems"]
        assert "is refused, the last valid one stays in effect" in problem
        assert "service iris: auth_enabled: not allowed in the dynamic configuration" in problem
        wait_for_event(cluster, pod.name, "DynamicConfigProblem")


def test_last_valid_document_is_kept_for_pods_that_start_while_it_is_away(
    cluster: Cluster, fleet: RouterStarter, model_port: int
) -> None:
    deploy_model(cluster, model_port, num_replicas="1")
    document = {"router": {"max_payload_bytes": 15}, "services": {"iris": {"replica_max_concurrent_requests": 5}}}
    write(cluster, document)
    first = start(fleet)
    wait_until(lambda: stored(cluster), "the stored document")
    assert json.loads(stored(cluster)["text"]) == document
    cluster.client.delete("configmaps", cluster.namespace, NAME)
    second = start(fleet)
    assert first.stop() == 0
    for _ in range(2):
        wait_until(partial(has_slots, second, 5), "the last valid document")
        assert second.score("iris", b"x" * 20).status == 413
        (problem,) = status(second)["problems"]
        assert "cannot be read since" in problem
        assert "the last valid one stays in effect" in problem
        assert second.stop() == 0
        second = start(fleet)
    assert json.loads(stored(cluster)["text"]) == document
    write(cluster, "{}")
    wait_until(partial(has_slots, second, 1), "the ConfigMap again")
    wait_until(lambda: stored(cluster)["text"] == "{}", "the stored document")


def test_settings_that_contradict_annotations_concern_only_their_service(
    cluster: Cluster, fleet: RouterStarter, model_port: int
) -> None:
    deploy_model(cluster, model_port, num_replicas="1", scoring_timeout_ms="60000")
    write(cluster, {"router": {"max_payload_bytes": 15}, "services": {"iris": {"replica_drain_seconds": 5}}})
    router = start(fleet)
    message = wait_for_event(cluster, "iris", "DynamicSettingsRefused")["message"]
    assert "replica_drain_seconds must be at least scoring_timeout_ms" in message
    assert router.score("iris", b"x" * 20).status == 413
    assert any("DynamicSettingsRefused" in problem for problem in status(router)["problems"])


def test_missing_permission_and_missing_config_map_do_not_keep_a_router_from_serving(
    cluster: Cluster, routers: RouterStarter, model_port: int
) -> None:
    deploy_model(cluster, model_port, num_replicas="1")
    router = start(routers)
    wait_until(partial(has_slots, router, 1), "the model")
    assert router.score("iris").status == 200
    (problem,) = status(router)["problems"]
    assert "forbidden" in problem.lower()
    cluster.grant(ROUTER, [ACCESS])
    wait_until(lambda: "not found" in str(status(router)["problems"]), "the missing ConfigMap")
    write(cluster, {"services": {"iris": {"replica_max_concurrent_requests": 5}}})
    wait_until(partial(has_slots, router, 5), "the dynamic configuration")


@needs_azurite[0]
@needs_azurite[1]
def test_two_pods_apply_the_same_blob_and_keep_it_while_storage_is_away(
    cluster: Cluster, routers: RouterStarter, model_port: int, tmp_path: Path
) -> None:
    deploy_model(cluster, model_port, num_replicas="1")
    directory = tmp_path / "azurite"
    directory.mkdir()
    with running_azurite(directory) as azurite:
        azurite.client.upload_blob("dynamic.yaml", "services: {iris: {replica_max_concurrent_requests: 5}}")
        settings: dict[str, Any] = {
            "dynamic_config_blob": f"{azurite.container}/dynamic.yaml",
            "dynamic_config_poll_seconds": 0.5,
            "azure_connection_string_file": settings_file(tmp_path, "login", azurite.connection_string()),
        }
        pods = [routers.start(**settings), routers.start(**settings)]
        for pod in pods:
            wait_until(partial(has_slots, pod, 5), "the blob")
        changed = "services: {iris: {replica_max_concurrent_requests: 6}}"
        azurite.client.upload_blob("dynamic.yaml", changed, overwrite=True)
        for pod in pods:
            wait_until(partial(has_slots, pod, 6), "the changed blob")
        wait_until(lambda: stored(cluster)["text"] == changed, "the stored document")
    pods.append(routers.start(**settings))
    for pod in pods:
        wait_until(partial(has_slots, pod, 6), "the last valid document")
        wait_until(lambda: "unreachable: no connection" in str(status(pod)["problems"]), "the problem")  # noqa: B023
        assert pod.score("iris").status == 200
