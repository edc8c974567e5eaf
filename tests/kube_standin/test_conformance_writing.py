"""Conformance of the stand-in and of a real API server: writes, patches, scale, status."""

import base64

import pytest

from tests.kube_standin.api_server.resources import Object
from tests.kube_standin.client import JSON_PATCH, MERGE, STRATEGIC, path_of
from tests.kube_standin.cluster import Cluster


def _put(cluster: Cluster, plural: str, obj: Object, sub: str = "") -> tuple[int, Object]:
    reply = cluster.client.request("PUT", path_of(plural, cluster.namespace, obj["metadata"]["name"], sub), obj)
    return reply.status, reply.body


# Names, versions, conflicts.


def test_create_of_an_existing_object(cluster: Cluster) -> None:
    cluster.create_deployment("a")
    with pytest.raises(AssertionError) as error:
        cluster.create_deployment("a")
    status = error.value.args[0]
    assert (status["kind"], status["status"], status["code"], status["reason"]) == (
        "Status",
        "Failure",
        409,
        "AlreadyExists",
    )
    assert status["message"] == 'deployments.apps "a" already exists'
    assert status["details"] == {"name": "a", "group": "apps", "kind": "deployments"}


def test_missing_object(cluster: Cluster) -> None:
    for method, body in (("GET", None), ("DELETE", None), ("PATCH", {})):
        reply = cluster.client.request(method, path_of("deployments", cluster.namespace, "a"), body, MERGE)
        assert (reply.status, reply.body["reason"]) == (404, "NotFound")
        assert reply.body["message"] == 'deployments.apps "a" not found'


def test_generated_name(cluster: Cluster) -> None:
    names = [
        cluster.client.create("secrets", cluster.namespace, {"metadata": {"generateName": "s-"}})["metadata"]["name"]
        for _ in range(2)
    ]
    assert len(set(names)) == 2
    assert all(name.startswith("s-") and len(name) == 7 for name in names)


@pytest.mark.parametrize("prefix", ["a.", "-a", "Aa-"])
def test_invalid_prefix_of_a_generated_name_is_refused(cluster: Cluster, prefix: str) -> None:
    obj = {"metadata": {"generateName": prefix}}
    reply = cluster.client.request("POST", path_of("configmaps", cluster.namespace), obj)
    assert (reply.status, reply.body["reason"]) == (422, "Invalid")
    assert "metadata.generateName" in [cause["field"] for cause in reply.body["details"]["causes"]]


@pytest.mark.parametrize("name", ["Upper", "under_score", "-x", "a" * 254])
def test_invalid_name_is_refused(cluster: Cluster, name: str) -> None:
    obj = {"metadata": {"name": name}}
    reply = cluster.client.request("POST", path_of("configmaps", cluster.namespace), obj)
    assert (reply.status, reply.body["reason"]) == (422, "Invalid")
    assert reply.body["details"]["causes"][0]["field"] == "metadata.name"


def test_update_of_an_outdated_version_conflicts(cluster: Cluster) -> None:
    mine = cluster.create_secret("s", {"k": "1"})
    cluster.client.patch("secrets", cluster.namespace, "s", {"metadata": {"labels": {"other": "1"}}})
    status, body = _put(cluster, "secrets", mine)
    assert (status, body["reason"]) == (409, "Conflict")
    assert body["message"] == (
        'Operation cannot be fulfilled on secrets "s": the object has been modified; '
        "please apply your changes to the latest version and try again"
    )
    old = mine["metadata"]["resourceVersion"]
    patch = {"metadata": {"resourceVersion": old, "labels": {"mine": "1"}}}
    reply = cluster.client.request("PATCH", path_of("secrets", cluster.namespace, "s"), patch, MERGE)
    assert (reply.status, reply.body["reason"]) == (409, "Conflict")


def test_update_without_a_version_overwrites(cluster: Cluster) -> None:
    obj = cluster.create_secret("s", {"k": "1"})
    del obj["metadata"]["resourceVersion"]
    obj["data"]["k"] = base64.b64encode(b"2").decode()
    status, body = _put(cluster, "secrets", obj)
    assert (status, body["data"]) == (200, obj["data"])


def test_unchanged_object_keeps_its_version(cluster: Cluster) -> None:
    before = cluster.create_deployment("a", 2)
    after = cluster.client.patch("deployments", cluster.namespace, "a", {"spec": {"replicas": 2}})
    assert after["metadata"]["resourceVersion"] == before["metadata"]["resourceVersion"]


def test_secret_data_is_base64_encoded(cluster: Cluster) -> None:
    secret = cluster.create_secret("s", {"primaryKey": "text"})
    assert secret["data"] == {"primaryKey": base64.b64encode(b"text").decode()}
    assert "stringData" not in secret
    assert secret["type"] == "Opaque"
    obj = {"metadata": {"name": "t"}, "data": {"k": "no base64"}}
    assert cluster.client.request("POST", path_of("secrets", cluster.namespace), obj).status == 400


# Patches.


def test_merge_patch(cluster: Cluster) -> None:
    cluster.create_deployment("a", annotations={"x/a": "1", "x/b": "2"})
    patch = {"metadata": {"annotations": {"x/a": None, "x/c": "3"}}}
    patched = cluster.client.patch("deployments", cluster.namespace, "a", patch)
    assert patched["metadata"]["annotations"] == {"x/b": "2", "x/c": "3"}


def test_strategic_merge_patch_merges_containers_by_name(cluster: Cluster) -> None:
    cluster.create_deployment("a", env=[{"name": "A", "value": "1"}, {"name": "B", "value": "2"}])
    container = {"name": "model", "env": [{"name": "B", "value": "3"}, {"name": "C", "value": "4"}]}
    patch = {"spec": {"template": {"spec": {"containers": [container]}}}}
    patched = cluster.client.patch("deployments", cluster.namespace, "a", patch, kind=STRATEGIC)
    (model,) = patched["spec"]["template"]["spec"]["containers"]
    assert model["image"] == "model:1"
    assert sorted((entry["name"], entry["value"]) for entry in model["env"]) == [("A", "1"), ("B", "3"), ("C", "4")]


def test_merge_patch_replaces_lists(cluster: Cluster) -> None:
    cluster.create_deployment("a")
    patch = {"spec": {"template": {"spec": {"containers": [{"name": "other", "image": "o:1"}]}}}}
    patched = cluster.client.patch("deployments", cluster.namespace, "a", patch)
    assert [each["name"] for each in patched["spec"]["template"]["spec"]["containers"]] == ["other"]


def test_json_patch(cluster: Cluster) -> None:
    cluster.create_deployment("a", annotations={"x/a": "1"})
    patch = [
        {"op": "test", "path": "/metadata/annotations/x~1a", "value": "1"},
        {"op": "replace", "path": "/metadata/annotations/x~1a", "value": "2"},
        {"op": "add", "path": "/metadata/annotations/x~1b", "value": "3"},
    ]
    patched = cluster.client.patch("deployments", cluster.namespace, "a", patch, kind=JSON_PATCH)
    assert patched["metadata"]["annotations"] == {"x/a": "2", "x/b": "3"}
    reply = cluster.client.request("PATCH", path_of("deployments", cluster.namespace, "a"), patch, JSON_PATCH)
    assert (reply.status, reply.body["reason"]) == (422, "Invalid")


def test_unknown_patch_type_is_refused(cluster: Cluster) -> None:
    cluster.create_deployment("a")
    reply = cluster.client.request("PATCH", path_of("deployments", cluster.namespace, "a"), {}, "application/json")
    assert (reply.status, reply.body["reason"]) == (415, "UnsupportedMediaType")


# Deployments and their scale.


def test_defaults_of_a_deployment(cluster: Cluster) -> None:
    deployment = cluster.create_deployment("a")
    assert deployment["spec"]["strategy"] == {
        "type": "RollingUpdate",
        "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"},
    }
    assert deployment["spec"]["progressDeadlineSeconds"] == 600
    assert deployment["metadata"]["generation"] == 1


@pytest.mark.parametrize(
    ("path", "value", "field"),
    [
        (("replicas",), -1, "spec.replicas"),
        (("selector",), {"matchLabels": {"app": "other"}}, "spec.template.metadata.labels"),
        (("template", "spec", "containers"), [], "spec.template.spec.containers"),
    ],
)
def test_invalid_deployment_is_refused(cluster: Cluster, path: tuple[str, ...], value: object, field: str) -> None:
    good = cluster.create_deployment("good")
    obj = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "bad"}, "spec": good["spec"]}
    parent = obj["spec"]
    for name in path[:-1]:
        parent = parent[name]
    parent[path[-1]] = value
    reply = cluster.client.request("POST", path_of("deployments", cluster.namespace), obj)
    assert (reply.status, reply.body["reason"]) == (422, "Invalid")
    assert field in [cause["field"] for cause in reply.body["details"]["causes"]]


def test_generation_counts_changes_of_the_desired_state(cluster: Cluster) -> None:
    cluster.create_deployment("a")

    def generation(patch: Object, sub: str = "") -> int:
        cluster.client.patch("deployments", cluster.namespace, "a", patch, sub=sub)
        found: int = cluster.client.get("deployments", cluster.namespace, "a")["metadata"]["generation"]
        return found

    assert generation({"metadata": {"labels": {"x": "1"}}}) == 1
    assert generation({"status": {"replicas": 1, "observedGeneration": 1}}, "status") == 1
    assert generation({"spec": {"replicas": 2}}) == 2
    assert generation({"spec": {"replicas": 3}}, "scale") == 3
    assert generation({"metadata": {"annotations": {"x": "1"}}}) == 4


def test_scale_of_a_deployment(cluster: Cluster) -> None:
    cluster.create_deployment("a", 2)
    cluster.client.patch("deployments", cluster.namespace, "a", {"status": {"replicas": 2}}, sub="status")
    scale = cluster.client.get("deployments", cluster.namespace, "a", "scale")
    assert (scale["kind"], scale["apiVersion"]) == ("Scale", "autoscaling/v1")
    assert scale["spec"] == {"replicas": 2}
    assert scale["status"] == {"replicas": 2, "selector": "app=a"}
    scale["spec"]["replicas"] = 5
    assert _put(cluster, "deployments", scale, "scale")[1]["spec"] == {"replicas": 5}
    status, body = _put(cluster, "deployments", scale, "scale")
    assert (status, body["reason"]) == (409, "Conflict")
    cluster.client.patch("deployments", cluster.namespace, "a", {"spec": {"replicas": 0}}, sub="scale")
    assert cluster.desired_replicas("a") == 0
    patch = {"spec": {"replicas": -1}}
    reply = cluster.client.request("PATCH", path_of("deployments", cluster.namespace, "a", "scale"), patch, MERGE)
    assert (reply.status, reply.body["reason"]) == (422, "Invalid")


def _scalers(cluster: Cluster) -> list[tuple[str, str]]:
    entries = cluster.client.get("deployments", cluster.namespace, "a")["metadata"]["managedFields"]
    return [
        (entry["manager"], entry.get("subresource", ""))
        for entry in entries
        if "f:replicas" in entry["fieldsV1"].get("f:spec", {})
    ]


def test_managed_fields_record_the_writer_of_replicas(cluster: Cluster) -> None:
    cluster.create_deployment("a", 1)
    assert _scalers(cluster) == [("tests", "")]
    cluster.scale("a", 2, manager="first")
    assert _scalers(cluster) == [("first", "scale")]
    cluster.client.patch("deployments", cluster.namespace, "a", {"spec": {"replicas": 3}}, fieldManager="editor")
    assert _scalers(cluster) == [("editor", "")]
    entry = cluster.client.get("deployments", cluster.namespace, "a")["metadata"]["managedFields"][-1]
    assert entry["operation"] == "Update"
    assert entry["fieldsType"] == "FieldsV1"


def test_scale_to_the_same_number_moves_the_field_to_the_writer(cluster: Cluster) -> None:
    before = cluster.create_deployment("a", 2)["metadata"]
    cluster.scale("a", 2, manager="second")
    after = cluster.client.get("deployments", cluster.namespace, "a")["metadata"]
    assert _scalers(cluster) == [("second", "scale")]
    assert after["resourceVersion"] != before["resourceVersion"]
    assert after["generation"] == before["generation"]


# Status.


def test_status_is_written_through_its_subresource_only(cluster: Cluster) -> None:
    cluster.create_deployment("a")
    both = {"spec": {"replicas": 7}, "status": {"replicas": 7, "readyReplicas": 7}}
    main = cluster.client.patch("deployments", cluster.namespace, "a", both)
    assert main["spec"]["replicas"] == 7
    assert "readyReplicas" not in main["status"]
    both["spec"]["replicas"] = 9
    status = cluster.client.patch("deployments", cluster.namespace, "a", both, sub="status")
    assert (status["spec"]["replicas"], status["status"]["readyReplicas"]) == (7, 7)


def test_status_of_a_pod(cluster: Cluster) -> None:
    pod = cluster.create_pod("p", {"app": "x"})
    assert pod["status"]["phase"] == "Pending"
    cluster.set_pod_running("p", "10.0.0.1", ready=False)
    ready = {"status": {"conditions": [{"type": "Ready", "status": "True"}]}}
    pod = cluster.client.patch("pods", cluster.namespace, "p", ready, sub="status", kind=STRATEGIC)
    conditions = {each["type"]: each["status"] for each in pod["status"]["conditions"]}
    assert conditions["Ready"] == "True"
    assert conditions["PodScheduled"] == "True"
    assert pod["status"]["podIP"] == "10.0.0.1"


def test_dry_run_checks_a_write_and_stores_nothing(cluster: Cluster) -> None:
    client, namespace = cluster.client, cluster.namespace
    before = cluster.create_deployment("a", annotations={"x/a": "1"})
    secret = {"metadata": {"name": "new"}, "stringData": {"a": "1"}}
    path = path_of("secrets", namespace)
    created = client.request("POST", path, {"apiVersion": "v1", "kind": "Secret"} | secret, dryRun="All").ok()
    assert created["data"] == {"a": "MQ=="}
    assert client.find("secrets", namespace, "new") is None
    change = {"metadata": {"annotations": {"x/a": "2"}}}
    patched = client.patch("deployments", namespace, "a", change, dryRun="All")
    assert patched["metadata"]["annotations"]["x/a"] == "2"
    scaled = client.patch("deployments", namespace, "a", {"spec": {"replicas": 7}}, sub="scale", dryRun="All")
    assert scaled["spec"]["replicas"] == 7
    assert client.get("deployments", namespace, "a") == before
    other_uid = {"metadata": {"uid": "11111111-2222-3333-4444-555555555555"}}
    path = path_of("deployments", namespace, "a")
    assert client.request("PATCH", path, other_uid, MERGE, dryRun="All").status in (409, 422)
    assert client.request("PATCH", path, change, MERGE, dryRun="Some").status == 422


def test_dry_run_of_a_deletion_is_an_option_in_its_body(cluster: Cluster) -> None:
    cluster.create_secret("kept", {"a": "1"})
    path = path_of("secrets", cluster.namespace, "kept")
    uid = cluster.client.get("secrets", cluster.namespace, "kept")["metadata"]["uid"]
    assert cluster.client.request("DELETE", path, dryRun="All").status == 200
    options = {"preconditions": {"uid": uid}, "dryRun": ["All"]}
    assert cluster.client.request("DELETE", path, options).status == 200
    assert cluster.client.find("secrets", cluster.namespace, "kept") is not None
    assert cluster.client.request("DELETE", path, options | {"preconditions": {"uid": "other"}}).status == 409
    del options["dryRun"]
    assert cluster.client.request("DELETE", path, options, dryRun="All").status == 200
    assert cluster.client.find("secrets", cluster.namespace, "kept") is None
