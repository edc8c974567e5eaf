"""Tokens, authorization and Events are what Kubernetes says they are: of the double, and of a real API server."""

from collections.abc import Callable, Iterator

import pytest

from tests.kubernetes.client import MERGE, Client, path_of
from tests.kubernetes.cluster import Cluster
from tests.kubernetes.double.resources import Object

AsAccount = Callable[[str], Client]


@pytest.fixture
def as_account(cluster: Cluster) -> Iterator[AsAccount]:
    """A client with the token of a service account."""
    clients = []

    def log_in(name: str) -> Client:
        cluster.account(name)
        clients.append(Client(cluster.access._replace(token=cluster.token(name), certificate=b"")))
        return clients[-1]

    yield log_in
    for client in clients:
        client.close()


def test_nobody_and_somebody_unknown(cluster: Cluster) -> None:
    for token, statuses in (("", (401, 403)), ("unknown", (401,))):
        client = Client(cluster.access._replace(token=token, certificate=b""))
        reply = client.ask("GET", path_of("pods", cluster.namespace))
        client.close()
        assert reply.status in statuses
        assert reply.body["kind"] == "Status"


def test_refusal_says_who_what_and_where(cluster: Cluster, as_account: AsAccount) -> None:
    client = as_account("nobody")
    user = f"system:serviceaccount:{cluster.namespace}:nobody"
    reply = client.ask("GET", path_of("deployments", cluster.namespace))
    assert (reply.status, reply.body["reason"]) == (403, "Forbidden")
    assert reply.body["message"] == (
        f'deployments.apps is forbidden: User "{user}" cannot list resource "deployments" '
        f'in API group "apps" in the namespace "{cluster.namespace}"'
    )
    assert reply.body["details"] == {"group": "apps", "kind": "deployments"}
    path = path_of("deployments", cluster.namespace, "a", "scale")
    reply = client.ask("PATCH", path, {"spec": {"replicas": 1}}, MERGE)
    assert reply.body["message"] == (
        f'deployments.apps "a" is forbidden: User "{user}" cannot patch resource "deployments/scale" '
        f'in API group "apps" in the namespace "{cluster.namespace}"'
    )
    reply = client.ask("GET", path_of("pods"))
    assert reply.body["message"].endswith('cannot list resource "pods" in API group "" at the cluster scope')


def test_rules_of_a_role(cluster: Cluster, as_account: AsAccount) -> None:
    client = as_account("router")
    cluster.allow(
        "router",
        [
            {"apiGroups": ["apps"], "resources": ["deployments"], "verbs": ["list", "watch"]},
            {"apiGroups": ["apps"], "resources": ["deployments/scale"], "verbs": ["patch"]},
            {"apiGroups": [""], "resources": ["secrets"], "verbs": ["get", "list"], "resourceNames": ["mine"]},
        ],
    )
    cluster.deployment("a")
    cluster.secret("mine", {})
    cluster.secret("other", {})
    where = cluster.namespace

    def status(method: str, path: str, body: object = None, **query: str) -> int:
        return client.ask(method, path, body, MERGE, **query).status

    assert status("GET", path_of("deployments", where)) == 200
    assert status("GET", path_of("deployments", where, "a")) == 403
    assert status("PATCH", path_of("deployments", where, "a", "scale"), {"spec": {"replicas": 2}}) == 200
    assert status("PATCH", path_of("deployments", where, "a"), {"spec": {"replicas": 2}}) == 403
    assert status("GET", path_of("secrets", where, "mine")) == 200
    assert status("GET", path_of("secrets", where, "other")) == 403
    assert status("GET", path_of("secrets", where)) == 403
    assert status("GET", path_of("secrets", where), fieldSelector="metadata.name=mine") == 200
    assert status("GET", path_of("deployments", cluster.another_namespace())) == 403


def test_rules_for_the_whole_cluster(cluster: Cluster, as_account: AsAccount) -> None:
    client = as_account("router")
    rules = [{"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]}]
    cluster.allow("router", rules, everywhere=True)
    assert client.ask("GET", path_of("pods"), limit=1).status == 200
    assert client.ask("GET", path_of("pods", cluster.another_namespace())).status == 200
    assert client.ask("GET", path_of("nodes")).status == 403


def test_account_asks_what_it_may(cluster: Cluster, as_account: AsAccount) -> None:
    client = as_account("router")
    cluster.allow("router", [{"apiGroups": ["apps"], "resources": ["deployments"], "verbs": ["list"]}])

    def allowed(**attributes: str) -> bool:
        spec = {"resourceAttributes": {"namespace": cluster.namespace, "group": "apps", **attributes}}
        review = client.create("selfsubjectaccessreviews", "", {"spec": spec})
        found: bool = review["status"]["allowed"]
        return found

    assert allowed(verb="list", resource="deployments")
    assert not allowed(verb="patch", resource="deployments", subresource="scale")


def test_master_asks_what_somebody_may(cluster: Cluster) -> None:
    cluster.account("router")
    cluster.allow("router", [{"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]}])

    def allowed(user: str, namespace: str) -> bool:
        attributes = {"namespace": namespace, "resource": "pods", "verb": "list"}
        spec = {"user": user, "resourceAttributes": attributes}
        found: bool = cluster.client.create("subjectaccessreviews", "", {"spec": spec})["status"]["allowed"]
        return found

    router = f"system:serviceaccount:{cluster.namespace}:router"
    assert allowed(router, cluster.namespace)
    assert not allowed(router, "default")
    assert not allowed(f"system:serviceaccount:{cluster.namespace}:other", cluster.namespace)


def test_token_ends_with_its_account(cluster: Cluster, as_account: AsAccount) -> None:
    client = as_account("router")
    assert client.ask("GET", path_of("pods", cluster.namespace)).status == 403
    cluster.client.delete("serviceaccounts", cluster.namespace, "router")
    # A real server may remember a token that it has seen for some seconds.
    assert client.ask("GET", path_of("pods", cluster.namespace)).status in (401, 403)


def test_token_that_would_be_too_short(cluster: Cluster) -> None:
    path = path_of("serviceaccounts", cluster.namespace, "default", "token")
    spec = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 10}}
    assert cluster.client.ask("POST", path, spec).status == 422


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


def test_event_has_two_faces(cluster: Cluster) -> None:
    path = path_of("events", cluster.namespace, group="events.k8s.io")
    made = cluster.client.ask("POST", path, _event(cluster.namespace)).ok()
    assert made["note"] == "text"
    core = cluster.client.get("events", cluster.namespace, "a.1")
    assert (core["message"], core["involvedObject"]["name"], core["reportingComponent"]) == ("text", "a", "azureml-fe")
    selector = {"fieldSelector": "involvedObject.name=a,involvedObject.kind=Deployment,type=Normal"}
    assert len(cluster.client.list("events", cluster.namespace, **selector)) == 1
    series = {"series": {"count": 2, "lastObservedTime": "2026-01-01T00:01:00.000000Z"}}
    patched = cluster.client.ask("PATCH", f"{path}/a.1", series, MERGE).ok()
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
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_event_that_breaks_a_rule(cluster: Cluster, wrong: Object) -> None:
    path = path_of("events", cluster.namespace, group="events.k8s.io")
    reply = cluster.client.ask("POST", path, _event(cluster.namespace, **wrong))
    assert (reply.status, reply.body["reason"]) == (422, "Invalid")


def test_core_event(cluster: Cluster) -> None:
    about = {"kind": "Deployment", "name": "a", "namespace": cluster.namespace}
    thing: Object = {
        "metadata": {"name": "e"},
        "involvedObject": about,
        "reason": "R",
        "type": "Warning",
        "message": "m",
    }
    thing |= {"firstTimestamp": "2026-01-01T00:00:00Z", "lastTimestamp": "2026-01-01T00:00:00Z", "count": 1}
    cluster.client.create("events", cluster.namespace, thing)
    patched = cluster.client.patch("events", cluster.namespace, "e", {"count": 2})
    assert (patched["count"], patched["reason"]) == (2, "R")
    thing["involvedObject"] = about | {"namespace": "elsewhere"}
    reply = cluster.client.ask("POST", path_of("events", cluster.namespace), thing | {"metadata": {"name": "f"}})
    assert reply.status == 422
