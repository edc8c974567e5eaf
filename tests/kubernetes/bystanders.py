"""Keeps the controllers that a real cluster has of its own out of the tests' namespaces.

Tests play Deployment and ReplicaSet controllers, scheduler and kubelet themselves (`controller`), and nobody else may
do so beside them. A kube-controller-manager that runs with an account of its own is refused by an admission policy
there; one that cannot be told from the tests is an error that says so.
"""

import contextlib
import json
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kubernetes.client import Access, Client
from tests.kubernetes.cluster import TESTS_LABEL
from tests.kubernetes.double.resources import Object
from tests.processes import until

_GROUP = "/apis/admissionregistration.k8s.io/v1"
_NAME = "azureml-fe-tests.example.com"
_LOOKS, _LOOK_SECONDS = 6, 2.0
_CONTROLLERS = "request.userInfo.username.startsWith('system:serviceaccount:kube-system:')"
_COMPONENTS = "request.userInfo.username.startsWith('system:kube-')"
_CLEANERS = "[{}]".format(  # of what is left without an owner, or in a namespace that ends
    ", ".join(
        f"'system:serviceaccount:kube-system:{name}'" for name in ("generic-garbage-collector", "namespace-controller")
    )
)

# Of no namespace, so that they are told apart by their label.
_OTHER_NODES = (
    "(request.resource.resource == 'nodes' && "
    f"!(has(object.metadata.labels) && '{TESTS_LABEL}' in object.metadata.labels))"
)


def _rule(group: str, operations: list[str], *resources: str) -> Object:
    return {"apiGroups": [group], "apiVersions": ["v1"], "operations": operations, "resources": list(resources)}


def _policy(own_user: str) -> Object:
    writes = ["CREATE", "UPDATE"]
    owners = [f"{plural}{sub}" for plural in ("deployments", "replicasets") for sub in ("", "/status", "/scale")]
    rules = [
        _rule("apps", writes, *owners),
        _rule("", [*writes, "DELETE"], "pods", "pods/status", "pods/binding"),
        _rule("", writes, "events"),
        _rule("events.k8s.io", writes, "events"),
        _rule("", ["UPDATE"], "nodes", "nodes/status"),
    ]
    may = (
        f"!({_CONTROLLERS} || {_COMPONENTS})",
        f"request.userInfo.username in {_CLEANERS}",
        f"request.userInfo.username == {json.dumps(own_user)}",
        _OTHER_NODES,
    )
    expression = " || ".join(may)
    validation = {"expression": expression, "message": "tests play this controller themselves"}
    spec = {"failurePolicy": "Fail", "matchConstraints": {"resourceRules": rules}, "validations": [validation]}
    return {"metadata": {"name": _NAME}, "spec": spec}


def _binding(_: str) -> Object:
    where = {"namespaceSelector": {"matchLabels": {TESTS_LABEL: "true"}}}
    spec = {"policyName": _NAME, "validationActions": ["Deny"], "matchResources": where}
    return {"metadata": {"name": _NAME}, "spec": spec}


@contextlib.contextmanager
def kept_out(admin: Path) -> Iterator[None]:
    """While tests run against the server of this kubeconfig."""
    client = Client(Access.read(admin))
    kinds = (
        (f"{_GROUP}/validatingadmissionpolicies", "ValidatingAdmissionPolicy", _policy),
        (f"{_GROUP}/validatingadmissionpolicybindings", "ValidatingAdmissionPolicyBinding", _binding),
    )
    try:
        until(lambda: client.ask("GET", "/readyz").status == 200, "an API server that is ready")
        for look in range(_LOOKS):  # it takes a moment until a policy is in force
            if not _are_at_work(client):
                break
            if look == 0:
                own_user = _own_user(client)
                for path, kind, made in kinds:
                    typed = {"apiVersion": "admissionregistration.k8s.io/v1", "kind": kind, **made(own_user)}
                    reply = client.ask("POST", path, typed, fieldValidation="Strict")
                    assert reply.status in (201, 409), reply.body
        else:
            pytest.exit(
                f"{admin}: this API server's own controllers cannot be told from the tests. Run tests against one "
                "without kube-controller-manager, or one that runs as system:kube-controller-manager.",
                returncode=2,
            )
        yield
    finally:
        for path, _, _ in reversed(kinds):
            client.ask("DELETE", f"{path}/{_NAME}")
        client.close()


def _own_user(client: Client) -> str:
    """As whom the tests ask."""
    review = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
    answer = client.ask("POST", "/apis/authentication.k8s.io/v1/selfsubjectreviews", review).ok()
    name: str = answer["status"]["userInfo"]["username"]
    return name


def _are_at_work(client: Client) -> bool:
    """Whether somebody acts on a Deployment that is made, within a moment."""
    name = f"test-{secrets.token_hex(5)}"
    client.create("namespaces", "", {"metadata": {"name": name, "labels": {TESTS_LABEL: "true"}}})
    found = False
    try:
        labels = {"app": "nobody"}
        template = {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "c", "image": "i:1"}]}}
        spec = {"replicas": 1, "selector": {"matchLabels": labels}, "template": template}
        client.create("deployments", name, {"metadata": {"name": "nobody"}, "spec": spec})
        deadline = time.monotonic() + _LOOK_SECONDS
        while not found and time.monotonic() < deadline:
            status = client.get("deployments", name, "nobody").get("status") or {}
            found = bool(status.get("observedGeneration") or client.list("replicasets", name))
            time.sleep(0.1)
        return found
    finally:
        client.delete("deployments", name, "nobody")
        client.delete("namespaces", "", name)
        ending = None if found else client.find("namespaces", "", name)
        if ending:  # nobody else ends it
            ending["spec"]["finalizers"] = []
            client.ask("PUT", f"/api/v1/namespaces/{name}/finalize", ending)
