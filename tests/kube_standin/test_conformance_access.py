"""Conformance of the stand-in and of a real API server: tokens, authorization, Events."""

from collections.abc import Callable, Iterator

import pytest

from tests.kube_standin.api_server.resources import Object
from tests.kube_standin.client import MERGE, Client, Reply, path_of
from tests.kube_standin.cluster import Cluster
from tests.processes import wait_until

AsAccount = Callable[[str], Client]


@pytest.fixture
def as_account(cluster: Cluster) -> Iterator[AsAccount]:
    """Creates a client with the token of a service account."""
    clients = []

    def log_in(name: str) -> Client:
        cluster.create_service_account(name)
        clients.append(Client(cluster.access._replace(token=cluster.create_token(name), certificate=b"")))
        return clients[-1]

    yield log_in
    for client in clients:
        client.close()


def test_missing_or_unknown_token_is_refused(cluster: Cluster) -> None:
    for token, statuses in (("", (401, 403)), ("unknown", (401,))):
        client = Client(cluster.access._replace(token=token, certificate=b""))
        reply = client.request("GET", path_of("pods", cluster.namespace))
        client.close()
        assert reply.status in statuses
        assert reply.body["kind"] == "Status"


def test_forbidden_message_names_user_verb_and_resource(cluster: Cluster, as_account: AsAccount) -> None:
    client = as_account("powerless")
    user = f"system:serviceaccount:{cluster.namespace}:powerless"
    reply = client.request("GET", path_of("deployments", cluster.namespace))
    assert (reply.status, reply.body["reason"]) == (403, "Forbidden")
    assert reply.body["message"] == (
        f'deployments.apps is forbidden: User "{user}" cannot list resource "deployments" '
        f'in API group "apps" in the namespace "{cluster.namespace}"'
    )
    assert reply.body["details"] == {"group": "apps", "kind": "deployments"}
    path = path_of("deployments", cluster.namespace, "a", "scale")
    reply = client.request("PATCH", path, {"spec": {"replicas": 1}}, MERGE)
    assert reply.body["message"] == (
        f'deployments.apps "a" is forbidden: User "{user}" cannot patch resource "deployments/scale" '
        f'in API group "apps" in the namespace "{cluster.namespace}"'
    )
    reply = client.request("GET", path_of("pods"))
    assert reply.body["message"].endswith('cannot list resource "pods" in API group "" at the cluster scope')


def test_role_allows_only_its_rules(cluster: Cluster, as_account: AsAccount) -> None:
    client = as_account("router")
    cluster.grant(
        "router",
        [
            {"apiGroups": ["apps"], "resources": ["deployments"], "verbs": ["list", "watch"]},
            {"apiGroups": ["apps"], "resources": ["deployments/scale"], "verbs": ["patch"]},
            {"apiGroups": [""], "resources": ["secrets"], "verbs": ["get", "list"], "resourceNames": ["mine"]},
        ],
    )
    cluster.create_deployment("a")
    cluster.create_secret("mine", {})
    cluster.create_secret("other", {})
    namespace = cluster.namespace

    def status(method: str, path: str, body: object = None, **query: str) -> int:
        return client.request(method, path, body, MERGE, **query).status

    assert status("GET", path_of("deployments", namespace)) == 200
    assert status("GET", path_of("deployments", namespace, "a")) == 403
    assert status("PATCH", path_of("deployments", namespace, "a", "scale"), {"spec": {"replicas": 2}}) == 200
    assert status("PATCH", path_of("deployments", namespace, "a"), {"spec": {"replicas": 2}}) == 403
    assert status("GET", path_of("secrets", namespace, "mine")) == 200
    assert status("GET", path_of("secrets", namespace, "other")) == 403
    assert status("GET", path_of("secrets", namespace)) == 403
    assert status("GET", path_of("secrets", namespace), fieldSelector="metadata.name=mine") == 200
    assert status("GET", path_of("deployments", cluster.create_namespace())) == 403


def test_cluster_role_allows_all_namespaces(cluster: Cluster, as_account: AsAccount) -> None:
    client = as_account("router")
    rules = [{"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]}]
    cluster.grant("router", rules, everywhere=True)
    assert client.request("GET", path_of("pods"), limit=1).status == 200
    assert client.request("GET", path_of("pods", cluster.create_namespace())).status == 200
    assert client.request("GET", path_of("nodes")).status == 403


def test_self_subject_access_review(cluster: Cluster, as_account: AsAccount) -> None:
    client = as_account("router")
    cluster.grant("router", [{"apiGroups": ["apps"], "resources": ["deployments"], "verbs": ["list"]}])

    def allowed(**attributes: str) -> bool:
        spec = {"resourceAttributes": {"namespace": cluster.namespace, "group": "apps", **attributes}}
        review = client.create("selfsubjectaccessreviews", "", {"spec": spec})
        is_allowed: bool = review["status"]["allowed"]
        return is_allowed

    assert allowed(verb="list", resource="deployments")
    assert not allowed(verb="patch", resource="deployments", subresource="scale")


def test_subject_access_review(cluster: Cluster) -> None:
    cluster.create_service_account("router")
    cluster.grant("router", [{"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]}])

    def allowed(user: str, namespace: str) -> bool:
        attributes = {"namespace": namespace, "resource": "pods", "verb": "list"}
        spec = {"user": user, "resourceAttributes": attributes}
        review = cluster.client.create("subjectaccessreviews", "", {"spec": spec})
        is_allowed: bool = review["status"]["allowed"]
        return is_allowed

    router = f"system:serviceaccount:{cluster.namespace}:router"
    assert allowed(router, cluster.namespace)
    assert not allowed(router, "default")
    assert not allowed(f"system:serviceaccount:{cluster.namespace}:other", cluster.namespace)


def test_token_is_revoked_with_its_service_account(cluster: Cluster, as_account: AsAccount) -> None:
    client = as_account("router")
    assert client.request("GET", path_of("pods", cluster.namespace)).status == 403
    cluster.client.delete("serviceaccounts", cluster.namespace, "router")
    # A real server may cache a valid token for some seconds.
    assert client.request("GET", path_of("pods", cluster.namespace)).status in (401, 403)


def test_token_lifetime_below_the_minimum_is_refused(cluster: Cluster) -> None:
    path = path_of("serviceaccounts", cluster.namespace, "default", "token")
    spec = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 10}}
    assert cluster.client.request("POST", path, spec).status == 422


# Events.


def _event(namespace: str, **fields: object) -> Object:
    regarding = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "a", "namespace": namespace, "uid": "1-2"}
    return {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": "a.1"},
        "eventTime": "2026-01-01T00:00:00.000000Z",
        "reportingController": "azureml-fe",
        "reportingInstance": "pod-1",
        "action": "Scale",
        "reason": "ScaledUp",
        "type": "Normal",
        "note": "text",
        "regarding": regarding,
        **fields,
    }


def test_event_is_shown_in_both_api_groups(cluster: Cluster) -> None:
    path = path_of("events", cluster.namespace, group="events.k8s.io")
    created = cluster.client.request("POST", path, _event(cluster.namespace)).ok()
    assert created["note"] == "text"
    core = cluster.client.get("events", cluster.namespace, "a.1")
    assert (core["message"], core["involvedObject"]["name"], core["reportingComponent"]) == ("text", "a", "azureml-fe")
    selector = {"fieldSelector": "involvedObject.name=a,involvedObject.kind=Deployment,type=Normal"}
    assert len(cluster.client.list("events", cluster.namespace, **selector)) == 1
    series = {"series": {"count": 2, "lastObservedTime": "2026-01-01T00:01:00.000000Z"}}
    patched = cluster.client.request("PATCH", f"{path}/a.1", series, MERGE).ok()
    assert patched["series"]["count"] == 2
    assert cluster.client.get("events", cluster.namespace, "a.1")["series"]["count"] == 2


@pytest.mark.parametrize(
    "wrong",
    [
        {"reportingController": ""},
        {"reportingInstance": ""},
        {"action": ""},
        {"reason": ""},
        {"type": "Bad"},
        {"note": "x" * 1025},
        {"eventTime": None},
        {"deprecatedCount": 2},
        {"regarding": {"kind": "Deployment", "name": "a"}},
        {"metadata": {"generateName": "a."}},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_invalid_event_is_refused(cluster: Cluster, wrong: Object) -> None:
    path = path_of("events", cluster.namespace, group="events.k8s.io")
    reply = cluster.client.request("POST", path, _event(cluster.namespace, **wrong))
    assert (reply.status, reply.body["reason"]) == (422, "Invalid")


def test_event_of_the_core_group(cluster: Cluster) -> None:
    about = {"kind": "Deployment", "name": "a", "namespace": cluster.namespace}
    obj: Object = {
        "metadata": {"name": "e"},
        "involvedObject": about,
        "reason": "R",
        "type": "Warning",
        "message": "m",
    }
    obj |= {"firstTimestamp": "2026-01-01T00:00:00Z", "lastTimestamp": "2026-01-01T00:00:00Z", "count": 1}
    cluster.client.create("events", cluster.namespace, obj)
    patched = cluster.client.patch("events", cluster.namespace, "e", {"count": 2})
    assert (patched["count"], patched["reason"]) == (2, "R")
    obj["involvedObject"] = about | {"namespace": "other-namespace"}
    reply = cluster.client.request("POST", path_of("events", cluster.namespace), obj | {"metadata": {"name": "f"}})
    assert reply.status == 422


def test_admission_policy_denies_what_an_expression_does_not_allow(cluster: Cluster, as_account: AsAccount) -> None:
    client = as_account("limited")
    rules = [{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["create", "patch", "delete"]}]
    cluster.grant("limited", rules)
    name = f"limited.{cluster.namespace}"
    rule = {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE", "UPDATE"], "resources": ["configmaps"]}
    user = f"system:serviceaccount:{cluster.namespace}:limited"
    policy = {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": name},
        "spec": {
            "failurePolicy": "Fail",
            "matchConstraints": {"resourceRules": [rule]},
            "matchConditions": [{"name": "account", "expression": f"request.userInfo.username == '{user}'"}],
            "variables": [{"name": "data", "expression": "has(object.data) ? object.data : {}"}],
            "validations": [
                {"expression": "variables.data.all(key, key.startsWith('a'))", "message": "begin with a"},
                {"expression": "'a' in variables.data", "message": "set a", "reason": "Forbidden"},
                {"expression": "request.operation == 'CREATE' || oldObject.data['b'] == '1' || 'ab' in object.data"},
            ],
        },
    }
    binding = {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingAdmissionPolicyBinding",
        "metadata": {"name": name},
        "spec": {"policyName": name, "validationActions": ["Deny"]},
    }
    cluster.apply([policy, binding])
    path = path_of("configmaps", cluster.namespace)

    def create(**data: str) -> Reply:
        return client.request("POST", path, {"metadata": {"generateName": "limited-"}, "data": data})

    wait_until(lambda: create(b="1", a="1").status == 422, "the policy")
    reply = create(b="1", a="1")
    denial = f"ValidatingAdmissionPolicy '{name}' with binding '{name}' denied request: "
    assert reply.body["reason"] == "Invalid"
    assert reply.body["message"].endswith(f"is forbidden: {denial}begin with a")
    reply = create(ab="1")
    assert (reply.status, reply.body["reason"]) == (403, "Forbidden")
    assert reply.body["message"].endswith(f"{denial}set a")
    one = create(a="1").ok()["metadata"]["name"]
    reply = client.request("PATCH", f"{path}/{one}", {"data": {"a": "2"}}, MERGE)
    assert reply.status == 422  # the last expression fails, as there is no key b
    client.request("PATCH", f"{path}/{one}", {"data": {"ab": "2"}}, MERGE).ok()
    client.request("DELETE", f"{path}/{one}").ok()  # no rule of the policy matches
    cluster.client.create("configmaps", cluster.namespace, {"metadata": {"name": "other"}, "data": {"b": "1"}})
