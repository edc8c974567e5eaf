"""Conformance of the stand-in and of a real API server: pods, deletion, Leases, namespaces."""

import pytest

from tests.kube_standin.api_server.resources import Object
from tests.kube_standin.client import MERGE, STRATEGIC, path_of
from tests.kube_standin.cluster import NODES, Cluster, running_pod_status
from tests.kube_standin.fixtures import require_admission_plugin

# Pods.


def test_pod_needs_an_existing_service_account(cluster: Cluster) -> None:
    spec = {"serviceAccountName": "missing", "containers": [{"name": "m", "image": "m:1"}]}
    obj = {"metadata": {"name": "p"}, "spec": spec}
    reply = cluster.client.request("POST", path_of("pods", cluster.namespace), obj)
    require_admission_plugin("ServiceAccount", reply.status != 201)
    assert (reply.status, reply.body["reason"]) == (403, "Forbidden")
    assert 'serviceaccount "missing" not found' in reply.body["message"]


def test_pod_spec_is_mostly_immutable(cluster: Cluster) -> None:
    cluster.create_pod("p", {})
    path = path_of("pods", cluster.namespace, "p")
    reply = cluster.client.request("PATCH", path, {"spec": {"nodeName": NODES[1]}}, MERGE)
    assert (reply.status, reply.body["reason"]) == (422, "Invalid")
    image = {"spec": {"containers": [{"name": "model", "image": "model:2"}]}}
    assert cluster.client.request("PATCH", path, image, STRATEGIC).status == 200
    cost = {"metadata": {"annotations": {"controller.kubernetes.io/pod-deletion-cost": "-100"}}}
    assert cluster.client.request("PATCH", path, cost, MERGE).status == 200


def test_pod_resize_changes_cpu_and_memory(cluster: Cluster) -> None:
    requests = {"cpu": "500m", "memory": "100Mi"}
    container = {"name": "model", "image": "m:1", "resources": {"requests": requests}}
    obj: Object = {"metadata": {"name": "p"}, "spec": {"nodeName": NODES[0], "containers": [container]}}
    cluster.client.create("pods", cluster.namespace, obj)
    patch: Object = {"spec": {"containers": [{"name": "model", "resources": {"requests": {"cpu": "1"}}}]}}
    pod = cluster.client.patch("pods", cluster.namespace, "p", patch, sub="resize", kind=STRATEGIC)
    assert pod["spec"]["containers"][0]["resources"]["requests"] == {"cpu": "1", "memory": "100Mi"}
    reply = cluster.client.request("PATCH", path_of("pods", cluster.namespace, "p"), patch, STRATEGIC)
    assert reply.status == 200  # changes nothing
    patch["spec"]["containers"][0]["resources"]["requests"]["cpu"] = "2"
    reply = cluster.client.request("PATCH", path_of("pods", cluster.namespace, "p"), patch, STRATEGIC)
    assert (reply.status, reply.body["reason"]) == (422, "Invalid")


def test_scheduled_pod_terminates_with_a_grace_period(cluster: Cluster) -> None:
    cluster.create_pod("p", {}, "10.0.0.1")
    reply = cluster.client.delete("pods", cluster.namespace, "p", gracePeriodSeconds=20)
    assert reply.body["metadata"]["deletionGracePeriodSeconds"] == 20
    assert cluster.client.get("pods", cluster.namespace, "p")["metadata"]["deletionTimestamp"]
    cluster.client.delete("pods", cluster.namespace, "p", gracePeriodSeconds=0)
    assert cluster.client.find("pods", cluster.namespace, "p") is None


def test_unscheduled_pod_is_deleted_immediately(cluster: Cluster) -> None:
    obj = {"metadata": {"name": "p"}, "spec": {"containers": [{"name": "m", "image": "m:1"}]}}
    cluster.client.create("pods", cluster.namespace, obj)
    cluster.client.delete("pods", cluster.namespace, "p")
    assert cluster.client.find("pods", cluster.namespace, "p") is None


def test_finalizer_delays_deletion(cluster: Cluster) -> None:
    obj = {"metadata": {"name": "c", "finalizers": ["example.com/finalizer"]}}
    cluster.client.create("configmaps", cluster.namespace, obj)
    cluster.client.delete("configmaps", cluster.namespace, "c")
    assert cluster.client.get("configmaps", cluster.namespace, "c")["metadata"]["deletionTimestamp"]
    cluster.client.patch("configmaps", cluster.namespace, "c", {"metadata": {"finalizers": None}})
    assert cluster.client.find("configmaps", cluster.namespace, "c") is None


def test_deletion_preconditions(cluster: Cluster) -> None:
    cluster.create_secret("s", {})
    reply = cluster.client.delete("secrets", cluster.namespace, "s", preconditions={"uid": "another"})
    assert (reply.status, reply.body["reason"]) == (409, "Conflict")
    reply = cluster.client.delete("secrets", cluster.namespace, "s")
    assert (reply.status, reply.body["status"]) == (200, "Success")
    assert reply.body["details"]["name"] == "s"


def test_delete_collection_with_a_selector(cluster: Cluster) -> None:
    for name, label in (("a", "x"), ("b", "x"), ("c", "y")):
        cluster.client.create("secrets", cluster.namespace, {"metadata": {"name": name, "labels": {"l": label}}})
    assert cluster.client.request("DELETE", path_of("secrets", cluster.namespace), labelSelector="l=x").status == 200
    remaining = cluster.client.list("secrets", cluster.namespace, labelSelector="l")
    assert [obj["metadata"]["name"] for obj in remaining] == ["c"]


# Leases, namespaces, others.


def _lease(**spec: object) -> Object:
    return {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": "l"},
        "spec": {"holderIdentity": "first", "leaseDurationSeconds": 15, **spec},
    }


def test_lease_update_needs_the_current_version(cluster: Cluster) -> None:
    path = path_of("leases", cluster.namespace)
    lease = cluster.client.request("POST", path, _lease(renewTime="2026-01-01T00:00:00.000000Z")).ok()
    stale = dict(lease, metadata={"name": "l"})
    assert cluster.client.request("PUT", f"{path}/l", stale).status == 422
    lease["spec"]["holderIdentity"] = "second"
    assert cluster.client.request("PUT", f"{path}/l", lease).ok()["spec"]["holderIdentity"] == "second"
    assert cluster.client.request("PUT", f"{path}/l", lease).status == 409


@pytest.mark.parametrize("time", ["2026-01-01T00:00:00Z", "2026-01-01T00:00:00.123Z", "yesterday"])
def test_invalid_lease_is_refused(cluster: Cluster, time: str) -> None:
    path = path_of("leases", cluster.namespace)
    assert cluster.client.request("POST", path, _lease(renewTime=time)).status == 400
    assert cluster.client.request("POST", path, _lease(leaseDurationSeconds=0)).status == 422


def test_missing_namespace(cluster: Cluster) -> None:
    obj = {"metadata": {"name": "s"}}
    reply = cluster.client.request("POST", path_of("secrets", f"{cluster.namespace}-no"), obj)
    assert (reply.status, reply.body["details"]["kind"]) == (404, "namespaces")
    assert cluster.client.list("secrets", f"{cluster.namespace}-no") == []


def test_terminating_namespace_accepts_no_new_object(cluster: Cluster) -> None:
    other = cluster.create_namespace()
    cluster.client.delete("namespaces", "", other)
    obj = {"metadata": {"name": "s"}}
    reply = cluster.client.request("POST", path_of("secrets", other), obj)
    assert reply.status in (403, 404)  # 404 if a controller has already removed it
    if reply.status == 403:
        assert reply.body["details"]["causes"][0]["reason"] == "NamespaceTerminating"


def test_horizontal_pod_autoscaler(cluster: Cluster) -> None:
    target = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "a"}
    obj: Object = {"metadata": {"name": "h"}, "spec": {"maxReplicas": 3, "scaleTargetRef": target}}
    created = cluster.client.create("horizontalpodautoscalers", cluster.namespace, obj)
    assert created["spec"]["minReplicas"] == 1
    obj["spec"]["maxReplicas"] = 0
    reply = cluster.client.request("POST", path_of("horizontalpodautoscalers", cluster.namespace), obj)
    assert reply.status == 422


def test_status_of_a_running_pod_is_stored(cluster: Cluster) -> None:
    pod = cluster.create_pod("p", {}, "10.0.0.1")
    stored = cluster.client.get("pods", cluster.namespace, "p")["status"]
    for name, value in running_pod_status(pod["spec"]["containers"][0], "10.0.0.1", ready=True).items():
        if not isinstance(value, list):
            assert stored[name] == value
    assert [(each["ready"], each["resources"]) for each in stored["containerStatuses"]] == [(True, {})]
