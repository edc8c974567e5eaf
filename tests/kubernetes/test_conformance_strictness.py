"""What a server refuses, drops or adds of what it is sent: of the double, and of a real API server.

Whoever tests against a server that is laxer than a real one finds out in a cluster.
"""

import gzip
import itertools
import json
import urllib.request

import pytest

from tests.kubernetes.client import JSON_PATCH, MERGE, STRATEGIC, Reply, path_of
from tests.kubernetes.cluster import Cluster
from tests.kubernetes.double.resources import Object
from tests.kubernetes.double.schemas import canonical
from tests.kubernetes.fixtures import needs_admission


def _causes(reply: Reply) -> list[tuple[str, str]]:
    return [(cause["field"], cause["message"]) for cause in reply.body["details"]["causes"]]


# Fields.


def test_unknown_field_is_dropped_with_a_warning_or_refused(cluster: Cluster) -> None:
    path = path_of("configmaps", cluster.namespace)
    thing = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c", "nmae": "d"}, "dtaa": {"a": "1"}}
    reply = cluster.client.ask("POST", path, thing, fieldValidation="Strict")
    assert (reply.status, reply.body["reason"]) == (400, "BadRequest")
    assert 'unknown field "dtaa"' in reply.body["message"]
    assert 'unknown field "metadata.nmae"' in reply.body["message"]
    reply = cluster.client.ask("POST", path, thing)
    assert reply.status == 201
    assert reply.body.keys() <= {"apiVersion", "kind", "metadata"}
    assert 'unknown field \\"' in reply.headers["Warning"]
    reply = cluster.client.ask("PATCH", f"{path}/c", {"dtaa": {"a": "1"}}, MERGE, fieldValidation="Strict")
    assert reply.status in (400, 422)
    reply = cluster.client.ask("PATCH", f"{path}/c", {"dtaa": {"a": "1"}}, MERGE)
    assert (reply.status, "dtaa" in reply.body) == (200, False)


@pytest.mark.parametrize(
    "spec",
    [{"replicas": "2"}, {"replicas": 1.5}, {"selector": []}, {"template": {"spec": {"containers": {}}}}],
    ids=lambda spec: next(iter(spec)),
)
def test_value_of_another_type_is_refused(cluster: Cluster, spec: Object) -> None:
    good = cluster.deployment("good")["spec"]
    thing = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "bad"}, "spec": good | spec}
    reply = cluster.client.ask("POST", path_of("deployments", cluster.namespace), thing)
    assert (reply.status, reply.body["reason"]) == (400, "BadRequest")


def test_quantities_are_written_in_one_form(cluster: Cluster) -> None:
    written = {"cpu": ["1000m", "0.5", "1500m", 2], "memory": ["1024Mi", "1.5Gi", "100Mi", "128974848"]}
    names = []
    for number, (cpu, memory) in enumerate(zip(*written.values(), strict=True)):
        requests = {"cpu": cpu, "memory": memory}
        container = {"name": "m", "image": "m:1", "resources": {"requests": requests, "limits": requests}}
        thing = {"metadata": {"name": f"p{number}"}, "spec": {"containers": [container]}}
        pod = cluster.client.create("pods", cluster.namespace, thing)
        names.append(pod["spec"]["containers"][0]["resources"]["limits"])
    assert [each["cpu"] for each in names] == ["1", "500m", "1500m", "2"]
    assert [each["memory"] for each in names] == ["1Gi", "1536Mi", "100Mi", "128974848"]
    assert all(canonical(text) == text for each in names for text in each.values())


def test_generated_name_fits_a_label(cluster: Cluster) -> None:
    thing = {"metadata": {"generateName": "a" * 70}}
    name = cluster.client.create("configmaps", cluster.namespace, thing)["metadata"]["name"]
    assert (len(name), name[:58]) == (63, "a" * 58)


def test_long_answers_are_compressed_for_who_takes_that(cluster: Cluster) -> None:
    for name in "ab":
        cluster.client.create(
            "configmaps", cluster.namespace, {"metadata": {"name": name}, "data": {"k": name * 90_000}}
        )
    request = urllib.request.Request(cluster.access.url + path_of("configmaps", cluster.namespace))
    request.add_header("Accept-Encoding", "gzip")
    request.add_header("Authorization", f"Bearer {_reader_of_maps(cluster)}")
    with urllib.request.urlopen(request, context=cluster.access._replace(certificate=b"").context()) as answer:
        assert answer.headers["Content-Encoding"] == "gzip"
        items = json.loads(gzip.decompress(answer.read()))["items"]
    assert {"a", "b"} <= {item["metadata"]["name"] for item in items}


def _reader_of_maps(cluster: Cluster) -> str:
    cluster.account("reader")
    cluster.allow("reader", [{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["list"]}])
    return cluster.token("reader")


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
def test_counts_of_a_deployment_agree(cluster: Cluster, status: Object, field: str) -> None:
    cluster.deployment("a")
    path = path_of("deployments", cluster.namespace, "a", "status")
    reply = cluster.client.ask("PATCH", path, {"status": status}, MERGE)
    assert (reply.status, reply.body["reason"]) == (422, "Invalid")
    assert field in [name for name, _ in _causes(reply)]


def test_addresses_of_a_pod_agree(cluster: Cluster) -> None:
    cluster.pod("p", {})
    path = path_of("pods", cluster.namespace, "p", "status")
    assert cluster.client.ask("PATCH", path, {"status": {"podIP": "10.0.0.300"}}, MERGE).status == 422
    cluster.client.patch("pods", cluster.namespace, "p", {"status": {"podIPs": [{"ip": "10.0.0.2"}]}}, sub="status")
    reply = cluster.client.ask("PATCH", path, {"status": {"podIP": "127.1.2.3"}}, MERGE)
    assert (reply.ok()["status"]["podIP"], reply.ok()["status"]["podIPs"]) == ("127.1.2.3", [{"ip": "127.1.2.3"}])


# Pods and nodes.


def test_pod_gets_what_admission_adds(cluster: Cluster) -> None:
    pod = cluster.pod("p", {})
    spec = pod["spec"]
    needs_admission("Priority", "priority" in spec)
    assert spec["priority"] == 0
    needs_admission("DefaultTolerationSeconds", "tolerations" in spec)
    assert {each["key"] for each in spec["tolerations"]} == {
        "node.kubernetes.io/not-ready",
        "node.kubernetes.io/unreachable",
    }
    needs_admission("ServiceAccount", "serviceAccountName" in spec)
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


def test_new_node_takes_no_pods_before_it_is_ready(cluster: Cluster) -> None:
    name = f"fresh-{cluster.namespace}"
    try:
        node = cluster.client.create("nodes", "", {"metadata": {"name": name}})
        needs_admission("TaintNodesByCondition", "taints" in node.get("spec", {}))
        assert [(each["key"], each["effect"]) for each in node["spec"]["taints"]] == [
            ("node.kubernetes.io/not-ready", "NoSchedule")
        ]
    finally:
        cluster.client.delete("nodes", "", name)
    ready = cluster.client.get("nodes", "", cluster.node("ready", cpu="4000m"))
    assert not ready["spec"].get("taints")
    assert ready["status"]["allocatable"] == {"cpu": "4", "pods": "110"}


def test_pod_is_seen_ending_before_it_is_gone(cluster: Cluster) -> None:
    pod = cluster.pod("p", {}, "10.0.0.1")
    watch = cluster.client.watch("pods", cluster.namespace, resourceVersion=pod["metadata"]["resourceVersion"])
    cluster.client.delete("pods", cluster.namespace, "p")
    cluster.client.delete("pods", cluster.namespace, "p", gracePeriodSeconds=0)
    seen = [(kind, it["metadata"].get("deletionGracePeriodSeconds")) for kind, it in itertools.islice(watch, 3)]
    assert seen == [("MODIFIED", 30), ("MODIFIED", 0), ("DELETED", 0)]


def test_patch_for_another_object_of_the_name_is_invalid(cluster: Cluster) -> None:
    pod = cluster.pod("p", {})
    path = path_of("pods", cluster.namespace, "p")
    other = {"metadata": {"uid": "11111111-2222-3333-4444-555555555555", "annotations": {"x/a": "1"}}}
    reply = cluster.client.ask("PATCH", path, other, MERGE)
    assert (reply.status, reply.body["reason"]) == (422, "Invalid")
    assert [name for name, _ in _causes(reply)] == ["metadata.uid"]
    other["metadata"]["uid"] = pod["metadata"]["uid"]
    assert cluster.client.ask("PATCH", path, other, MERGE).status == 200


# In-place resize.


def _resizable(cluster: Cluster, name: str, **resources: object) -> Object:
    container = {"name": "model", "image": "m:1", "resources": resources}
    thing = {"metadata": {"name": name}, "spec": {"nodeName": "node-1", "containers": [container]}}
    cluster.client.create("pods", cluster.namespace, thing)
    return cluster.pod_runs(name, "10.0.0.1")


def _resize(cluster: Cluster, resources: Object, **more: object) -> Reply:
    patch = {"spec": {"containers": [{"name": "model", "resources": resources}], **more}}
    return cluster.client.ask("PATCH", path_of("pods", cluster.namespace, "p", "resize"), patch, STRATEGIC)


BURSTABLE = {"requests": {"cpu": "500m", "memory": "64Mi"}, "limits": {"cpu": "1"}}


def test_running_pod_is_resized_only_where_its_node_says_what_it_was_given(cluster: Cluster) -> None:
    pod = _resizable(cluster, "p", **BURSTABLE)
    assert pod["status"]["qosClass"] == "Burstable"
    wanted = {"requests": {"cpu": "1"}, "limits": {"cpu": "2000m"}}
    resized = _resize(cluster, wanted).ok()
    assert resized["spec"]["containers"][0]["resources"] == {
        "requests": {"cpu": "1", "memory": "64Mi"},
        "limits": {"cpu": "2"},
    }
    assert resized["metadata"]["generation"] == pod["metadata"]["generation"] + 1
    (own,) = resized["status"]["containerStatuses"]
    silent = {name: value for name, value in own.items() if name != "resources"}
    patch = {"status": {"containerStatuses": [silent]}}
    cluster.client.patch("pods", cluster.namespace, "p", patch, sub="status")
    reply = _resize(cluster, {"limits": {"cpu": "3"}})
    assert reply.status == 422
    assert "without support for resize" in reply.body["message"]


def test_resize_keeps_the_class_of_service_and_takes_nothing_away(cluster: Cluster) -> None:
    same = {"cpu": "1", "memory": "64Mi"}
    pod = _resizable(cluster, "p", requests=same, limits=same)
    assert pod["status"]["qosClass"] == "Guaranteed"
    reply = _resize(cluster, {"requests": {"cpu": "500m"}})
    assert (reply.status, "QOS" in reply.body["message"]) == (422, True)
    for what in ("requests", "limits"):
        patch = [{"op": "remove", "path": f"/spec/containers/0/resources/{what}"}]
        path = path_of("pods", cluster.namespace, "p", "resize")
        reply = cluster.client.ask("PATCH", path, patch, JSON_PATCH)
        assert reply.status in ((200, 422) if what == "requests" else (422,))  # requests follow from limits
    reply = _resize(cluster, {"limits": {"ephemeral-storage": "1Gi"}})
    assert reply.status == 422
    both = {"requests": {"cpu": "2"}, "limits": {"cpu": "2"}}
    reply = _resize(cluster, both, activeDeadlineSeconds=5)
    # Some servers let pods of this class be resized only on nodes that declare that they can do so.
    if reply.status == 403:
        assert "node" in reply.body["message"]
        return
    pod = reply.ok()
    assert "activeDeadlineSeconds" not in pod["spec"]  # other changes are dropped
