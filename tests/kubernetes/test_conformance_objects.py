"""Pods, deletion, leases and namespaces are what Kubernetes says they are: of the double, and of a real API server."""

import pytest

from tests.kubernetes.client import MERGE, STRATEGIC, path_of
from tests.kubernetes.cluster import Cluster, running_status
from tests.kubernetes.double.resources import Object
from tests.kubernetes.fixtures import needs_admission

# Pods.


def test_pod_needs_its_account(cluster: Cluster) -> None:
    spec = {"serviceAccountName": "nobody", "containers": [{"name": "m", "image": "m:1"}]}
    thing = {"metadata": {"name": "p"}, "spec": spec}
    reply = cluster.client.ask("POST", path_of("pods", cluster.namespace), thing)
    needs_admission("ServiceAccount", reply.status != 201)
    assert (reply.status, reply.body["reason"]) == (403, "Forbidden")
    assert 'serviceaccount "nobody" not found' in reply.body["message"]


def test_pod_is_fixed_but_for_little(cluster: Cluster) -> None:
    cluster.pod("p", {})
    path = path_of("pods", cluster.namespace, "p")
    reply = cluster.client.ask("PATCH", path, {"spec": {"nodeName": "other"}}, MERGE)
    assert (reply.status, reply.body["reason"]) == (422, "Invalid")
    image = {"spec": {"containers": [{"name": "model", "image": "model:2"}]}}
    assert cluster.client.ask("PATCH", path, image, STRATEGIC).status == 200
    cost = {"metadata": {"annotations": {"controller.kubernetes.io/pod-deletion-cost": "-100"}}}
    assert cluster.client.ask("PATCH", path, cost, MERGE).status == 200


def test_pod_is_resized_in_place(cluster: Cluster) -> None:
    requests = {"cpu": "500m", "memory": "100Mi"}
    container = {"name": "model", "image": "m:1", "resources": {"requests": requests}}
    thing: Object = {"metadata": {"name": "p"}, "spec": {"nodeName": "node-1", "containers": [container]}}
    cluster.client.create("pods", cluster.namespace, thing)
    patch: Object = {"spec": {"containers": [{"name": "model", "resources": {"requests": {"cpu": "1"}}}]}}
    pod = cluster.client.patch("pods", cluster.namespace, "p", patch, sub="resize", kind=STRATEGIC)
    assert pod["spec"]["containers"][0]["resources"]["requests"] == {"cpu": "1", "memory": "100Mi"}
    reply = cluster.client.ask("PATCH", path_of("pods", cluster.namespace, "p"), patch, STRATEGIC)
    assert reply.status == 200  # nothing is left to change
    patch["spec"]["containers"][0]["resources"]["requests"]["cpu"] = "2"
    reply = cluster.client.ask("PATCH", path_of("pods", cluster.namespace, "p"), patch, STRATEGIC)
    assert (reply.status, reply.body["reason"]) == (422, "Invalid")


def test_pod_on_a_node_ends_gracefully(cluster: Cluster) -> None:
    cluster.pod("p", {}, "10.0.0.1")
    reply = cluster.client.delete("pods", cluster.namespace, "p", gracePeriodSeconds=20)
    assert reply.body["metadata"]["deletionGracePeriodSeconds"] == 20
    assert cluster.client.get("pods", cluster.namespace, "p")["metadata"]["deletionTimestamp"]
    cluster.client.delete("pods", cluster.namespace, "p", gracePeriodSeconds=0)
    assert cluster.client.find("pods", cluster.namespace, "p") is None


def test_pod_without_a_node_goes_at_once(cluster: Cluster) -> None:
    thing = {"metadata": {"name": "p"}, "spec": {"containers": [{"name": "m", "image": "m:1"}]}}
    cluster.client.create("pods", cluster.namespace, thing)
    cluster.client.delete("pods", cluster.namespace, "p")
    assert cluster.client.find("pods", cluster.namespace, "p") is None


def test_finalizer_keeps_an_object(cluster: Cluster) -> None:
    thing = {"metadata": {"name": "c", "finalizers": ["example.com/kept"]}}
    cluster.client.create("configmaps", cluster.namespace, thing)
    cluster.client.delete("configmaps", cluster.namespace, "c")
    assert cluster.client.get("configmaps", cluster.namespace, "c")["metadata"]["deletionTimestamp"]
    cluster.client.patch("configmaps", cluster.namespace, "c", {"metadata": {"finalizers": None}})
    assert cluster.client.find("configmaps", cluster.namespace, "c") is None


def test_deletion_under_conditions(cluster: Cluster) -> None:
    cluster.secret("s", {})
    reply = cluster.client.delete("secrets", cluster.namespace, "s", preconditions={"uid": "another"})
    assert (reply.status, reply.body["reason"]) == (409, "Conflict")
    reply = cluster.client.delete("secrets", cluster.namespace, "s")
    assert (reply.status, reply.body["status"]) == (200, "Success")
    assert reply.body["details"]["name"] == "s"


def test_all_that_a_selector_means_is_deleted(cluster: Cluster) -> None:
    for name, label in (("a", "x"), ("b", "x"), ("c", "y")):
        cluster.client.create("secrets", cluster.namespace, {"metadata": {"name": name, "labels": {"l": label}}})
    assert cluster.client.ask("DELETE", path_of("secrets", cluster.namespace), labelSelector="l=x").status == 200
    left = cluster.client.list("secrets", cluster.namespace, labelSelector="l")
    assert [thing["metadata"]["name"] for thing in left] == ["c"]


# Leases, namespaces, others.


def _lease(**spec: object) -> Object:
    return {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": "l"},
        "spec": {"holderIdentity": "me", "leaseDurationSeconds": 15, **spec},
    }


def test_lease_is_updated_by_its_version_only(cluster: Cluster) -> None:
    path = path_of("leases", cluster.namespace)
    lease = cluster.client.ask("POST", path, _lease(renewTime="2026-01-01T00:00:00.000000Z")).ok()
    stale = dict(lease, metadata={"name": "l"})
    assert cluster.client.ask("PUT", f"{path}/l", stale).status == 422
    lease["spec"]["holderIdentity"] = "you"
    assert cluster.client.ask("PUT", f"{path}/l", lease).ok()["spec"]["holderIdentity"] == "you"
    assert cluster.client.ask("PUT", f"{path}/l", lease).status == 409


@pytest.mark.parametrize("moment", ["2026-01-01T00:00:00Z", "2026-01-01T00:00:00.123Z", "yesterday"])
def test_times_of_a_lease_have_microseconds(cluster: Cluster, moment: str) -> None:
    path = path_of("leases", cluster.namespace)
    assert cluster.client.ask("POST", path, _lease(renewTime=moment)).status == 400
    assert cluster.client.ask("POST", path, _lease(leaseDurationSeconds=0)).status == 422


def test_namespace_that_is_not_there(cluster: Cluster) -> None:
    thing = {"metadata": {"name": "s"}}
    reply = cluster.client.ask("POST", path_of("secrets", f"{cluster.namespace}-no"), thing)
    assert (reply.status, reply.body["details"]["kind"]) == (404, "namespaces")
    assert cluster.client.list("secrets", f"{cluster.namespace}-no") == []


def test_namespace_that_ends_takes_nothing_new(cluster: Cluster) -> None:
    other = cluster.another_namespace()
    cluster.client.delete("namespaces", "", other)
    thing = {"metadata": {"name": "s"}}
    reply = cluster.client.ask("POST", path_of("secrets", other), thing)
    assert reply.status in (403, 404)  # 404 where a controller has removed it already
    if reply.status == 403:
        assert reply.body["details"]["causes"][0]["reason"] == "NamespaceTerminating"


def test_autoscaler(cluster: Cluster) -> None:
    target = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "a"}
    thing: Object = {"metadata": {"name": "h"}, "spec": {"maxReplicas": 3, "scaleTargetRef": target}}
    made = cluster.client.create("horizontalpodautoscalers", cluster.namespace, thing)
    assert made["spec"]["minReplicas"] == 1
    thing["spec"]["maxReplicas"] = 0
    reply = cluster.client.ask("POST", path_of("horizontalpodautoscalers", cluster.namespace), thing)
    assert reply.status == 422


def test_status_of_a_running_pod_is_stored_whole(cluster: Cluster) -> None:
    pod = cluster.pod("p", {}, "10.0.0.1")
    stored = cluster.client.get("pods", cluster.namespace, "p")["status"]
    for name, value in running_status(pod["spec"]["containers"][0], "10.0.0.1", ready=True).items():
        if not isinstance(value, list):
            assert stored[name] == value
    assert [(each["ready"], each["resources"]) for each in stored["containerStatuses"]] == [(True, {})]
