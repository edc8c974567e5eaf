"""Conformance of the stand-in and of a real API server: what they refuse, drop and add.

A stand-in that accepts more than a real server would hide errors until the router runs in a cluster.
"""

import gzip
import itertools
import json
import urllib.request

import pytest

from tests.kube_standin.api_server.resources import Object
from tests.kube_standin.api_server.schemas import canonical_quantity
from tests.kube_standin.client import JSON_PATCH, MERGE, STRATEGIC, Reply, path_of
from tests.kube_standin.cluster import NODES, Cluster
from tests.kube_standin.fixtures import require_admission_plugin


def _causes(reply: Reply) -> list[tuple[str, str]]:
    return [(cause["field"], cause["message"]) for cause in reply.body["details"]["causes"]]


# Fields.


def test_unknown_field_is_dropped_with_a_warning_or_refused(cluster: Cluster) -> None:
    path = path_of("configmaps", cluster.namespace)
    obj = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c", "nmae": "d"}, "dtaa": {"a": "1"}}
    reply = cluster.client.request("POST", path, obj, fieldValidation="Strict")
    assert (reply.status, reply.body["reason"]) == (400, "BadRequest")
    assert 'unknown field "dtaa"' in reply.body["message"]
    assert 'unknown field "metadata.nmae"' in reply.body["message"]
    reply = cluster.client.request("POST", path, obj)
    assert reply.status == 201
    assert reply.body.keys() <= {"apiVersion", "kind", "metadata"}
    assert 'unknown field \\"' in reply.headers["Warning"]
    reply = cluster.client.request("PATCH", f"{path}/c", {"dtaa": {"a": "1"}}, MERGE, fieldValidation="Strict")
    assert reply.status in (400, 422)
    reply = cluster.client.request("PATCH", f"{path}/c", {"dtaa": {"a": "1"}}, MERGE)
    assert (reply.status, "dtaa" in reply.body) == (200, False)


@pytest.mark.parametrize(
    "spec",
    [{"replicas": "2"}, {"replicas": 1.5}, {"selector": []}, {"template": {"spec": {"containers": {}}}}],
    ids=lambda spec: next(iter(spec)),
)
def test_value_of_a_wrong_type_is_refused(cluster: Cluster, spec: Object) -> None:
    good = cluster.create_deployment("good")["spec"]
    obj = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "bad"}, "spec": good | spec}
    reply = cluster.client.request("POST", path_of("deployments", cluster.namespace), obj)
    assert (reply.status, reply.body["reason"]) == (400, "BadRequest")


def test_quantities_are_stored_in_canonical_form(cluster: Cluster) -> None:
    sent = {"cpu": ["1000m", "0.5", "1500m", 2], "memory": ["1024Mi", "1.5Gi", "100Mi", "128974848"]}
    stored = []
    for number, (cpu, memory) in enumerate(zip(*sent.values(), strict=True)):
        requests = {"cpu": cpu, "memory": memory}
        container = {"name": "m", "image": "m:1", "resources": {"requests": requests, "limits": requests}}
        obj = {"metadata": {"name": f"p{number}"}, "spec": {"containers": [container]}}
        pod = cluster.client.create("pods", cluster.namespace, obj)
        stored.append(pod["spec"]["containers"][0]["resources"]["limits"])
    assert [each["cpu"] for each in stored] == ["1", "500m", "1500m", "2"]
    assert [each["memory"] for each in stored] == ["1Gi", "1536Mi", "100Mi", "128974848"]
    assert all(canonical_quantity(text) == text for each in stored for text in each.values())


def test_generated_name_is_at_most_63_characters(cluster: Cluster) -> None:
    obj = {"metadata": {"generateName": "a" * 70}}
    name = cluster.client.create("configmaps", cluster.namespace, obj)["metadata"]["name"]
    assert (len(name), name[:58]) == (63, "a" * 58)


def test_large_response_is_compressed_on_request(cluster: Cluster) -> None:
    for name in "ab":
        cluster.client.create(
            "configmaps", cluster.namespace, {"metadata": {"name": name}, "data": {"k": name * 90_000}}
        )
    request = urllib.request.Request(cluster.access.url + path_of("configmaps", cluster.namespace))
    request.add_header("Accept-Encoding", "gzip")
    request.add_header("Authorization", f"Bearer {_configmap_reader_token(cluster)}")
    with urllib.request.urlopen(request, context=cluster.access._replace(certificate=b"").context()) as response:
        assert response.headers["Content-Encoding"] == "gzip"
        items = json.loads(gzip.decompress(response.read()))["items"]
    assert {"a", "b"} <= {item["metadata"]["name"] for item in items}


def _configmap_reader_token(cluster: Cluster) -> str:
    cluster.create_service_account("reader")
    cluster.grant("reader", [{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["list"]}])
    return cluster.create_token("reader")


# Statuses.


@pytest.mark.parametrize(
    ("status", "field"),
    [
        ({"replicas": 1, "readyReplicas": 2}, "status.readyReplicas"),
        ({"replicas": 1, "updatedReplicas": 2}, "status.updatedReplicas"),
        ({"replicas": 2, "availableReplicas": 2}, "status.availableReplicas"),
        ({"replicas": -1}, "status.replicas"),
    ],
)
def test_inconsistent_deployment_status_is_refused(cluster: Cluster, status: Object, field: str) -> None:
    cluster.create_deployment("a")
    path = path_of("deployments", cluster.namespace, "a", "status")
    reply = cluster.client.request("PATCH", path, {"status": status}, MERGE)
    assert (reply.status, reply.body["reason"]) == (422, "Invalid")
    assert field in [name for name, _ in _causes(reply)]


def test_pod_addresses_are_kept_consistent(cluster: Cluster) -> None:
    cluster.create_pod("p", {})
    path = path_of("pods", cluster.namespace, "p", "status")
    assert cluster.client.request("PATCH", path, {"status": {"podIP": "10.0.0.300"}}, MERGE).status == 422
    cluster.client.patch("pods", cluster.namespace, "p", {"status": {"podIPs": [{"ip": "10.0.0.2"}]}}, sub="status")
    reply = cluster.client.request("PATCH", path, {"status": {"podIP": "127.1.2.3"}}, MERGE)
    assert (reply.ok()["status"]["podIP"], reply.ok()["status"]["podIPs"]) == ("127.1.2.3", [{"ip": "127.1.2.3"}])


# Pods and nodes.


def test_admission_plugins_complete_a_new_pod(cluster: Cluster) -> None:
    pod = cluster.create_pod("p", {})
    spec = pod["spec"]
    require_admission_plugin("Priority", "priority" in spec)
    assert spec["priority"] == 0
    require_admission_plugin("DefaultTolerationSeconds", "tolerations" in spec)
    assert {each["key"] for each in spec["tolerations"]} == {
        "node.kubernetes.io/not-ready",
        "node.kubernetes.io/unreachable",
    }
    require_admission_plugin("ServiceAccount", "serviceAccountName" in spec)
    assert spec["serviceAccountName"] == "default"
    (mount,) = spec["containers"][0]["volumeMounts"]
    assert mount["mountPath"] == "/var/run/secrets/kubernetes.io/serviceaccount"
    (volume,) = spec["volumes"]
    assert volume["name"] == mount["name"]
    assert [next(iter(source)) for source in volume["projected"]["sources"]] == [
        "serviceAccountToken",
        "configMap",
        "downwardAPI",
    ]


def test_new_node_is_tainted_until_it_is_ready(cluster: Cluster) -> None:
    name = f"new-{cluster.namespace}"
    try:
        node = cluster.client.create("nodes", "", {"metadata": {"name": name}})
        require_admission_plugin("TaintNodesByCondition", "taints" in node.get("spec", {}))
        assert [(each["key"], each["effect"]) for each in node["spec"]["taints"]] == [
            ("node.kubernetes.io/not-ready", "NoSchedule")
        ]
    finally:
        cluster.client.delete("nodes", "", name)
    ready = cluster.client.get("nodes", "", cluster.create_node("ready", cpu="4000m"))
    assert not ready["spec"].get("taints")
    assert ready["status"]["allocatable"] == {"cpu": "4", "pods": "110"}


def test_watch_reports_terminating_pod_before_its_removal(cluster: Cluster) -> None:
    pod = cluster.create_pod("p", {}, "10.0.0.1")
    watch = cluster.client.watch("pods", cluster.namespace, resourceVersion=pod["metadata"]["resourceVersion"])
    cluster.client.delete("pods", cluster.namespace, "p")
    cluster.client.delete("pods", cluster.namespace, "p", gracePeriodSeconds=0)
    events = [(kind, obj["metadata"].get("deletionGracePeriodSeconds")) for kind, obj in itertools.islice(watch, 3)]
    assert events == [("MODIFIED", 30), ("MODIFIED", 0), ("DELETED", 0)]


def test_patch_with_another_uid_is_refused(cluster: Cluster) -> None:
    pod = cluster.create_pod("p", {})
    path = path_of("pods", cluster.namespace, "p")
    other = {"metadata": {"uid": "11111111-2222-3333-4444-555555555555", "annotations": {"x/a": "1"}}}
    reply = cluster.client.request("PATCH", path, other, MERGE)
    assert (reply.status, reply.body["reason"]) == (422, "Invalid")
    assert {name for name, _ in _causes(reply)} == {"metadata.uid"}
    other["metadata"]["uid"] = pod["metadata"]["uid"]
    assert cluster.client.request("PATCH", path, other, MERGE).status == 200


# In-place resize.


def _resizable(cluster: Cluster, name: str, **resources: object) -> Object:
    container = {"name": "model", "image": "m:1", "resources": resources}
    obj = {"metadata": {"name": name}, "spec": {"nodeName": NODES[0], "containers": [container]}}
    cluster.client.create("pods", cluster.namespace, obj)
    return cluster.set_pod_running(name, "10.0.0.1")


def _resize(cluster: Cluster, resources: Object, **more: object) -> Reply:
    patch = {"spec": {"containers": [{"name": "model", "resources": resources}], **more}}
    return cluster.client.request("PATCH", path_of("pods", cluster.namespace, "p", "resize"), patch, STRATEGIC)


BURSTABLE = {"requests": {"cpu": "500m", "memory": "64Mi"}, "limits": {"cpu": "1"}}


def test_resize_needs_resources_in_the_container_status(cluster: Cluster) -> None:
    pod = _resizable(cluster, "p", **BURSTABLE)
    assert pod["status"]["qosClass"] == "Burstable"
    wanted = {"requests": {"cpu": "1"}, "limits": {"cpu": "2000m"}}
    resized = _resize(cluster, wanted).ok()
    assert resized["spec"]["containers"][0]["resources"] == {
        "requests": {"cpu": "1", "memory": "64Mi"},
        "limits": {"cpu": "2"},
    }
    assert resized["metadata"]["generation"] == pod["metadata"]["generation"] + 1
    (container_status,) = resized["status"]["containerStatuses"]
    without_resources = {name: value for name, value in container_status.items() if name != "resources"}
    patch = {"status": {"containerStatuses": [without_resources]}}
    cluster.client.patch("pods", cluster.namespace, "p", patch, sub="status")
    reply = _resize(cluster, {"limits": {"cpu": "3"}})
    assert reply.status == 422
    assert "without support for resize" in reply.body["message"]


def test_resize_keeps_qos_class_and_resources(cluster: Cluster) -> None:
    same = {"cpu": "1", "memory": "64Mi"}
    pod = _resizable(cluster, "p", requests=same, limits=same)
    assert pod["status"]["qosClass"] == "Guaranteed"
    reply = _resize(cluster, {"requests": {"cpu": "500m"}})
    assert (reply.status, "QOS" in reply.body["message"]) == (422, True)
    for what in ("requests", "limits"):
        patch = [{"op": "remove", "path": f"/spec/containers/0/resources/{what}"}]
        path = path_of("pods", cluster.namespace, "p", "resize")
        reply = cluster.client.request("PATCH", path, patch, JSON_PATCH)
        assert reply.status in ((200, 422) if what == "requests" else (422,))  # requests follow from limits
    reply = _resize(cluster, {"limits": {"ephemeral-storage": "1Gi"}})
    assert reply.status == 422
    both = {"requests": {"cpu": "2"}, "limits": {"cpu": "2"}}
    reply = _resize(cluster, both, activeDeadlineSeconds=5)
    # Some servers resize pods of this class only on nodes that declare support for it.
    if reply.status == 403:
        assert "node" in reply.body["message"]
        return
    pod = reply.ok()
    assert "activeDeadlineSeconds" not in pod["spec"]  # other changes are dropped
