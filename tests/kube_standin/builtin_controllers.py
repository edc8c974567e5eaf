"""Keeps a real cluster's built-in controllers out of the tests' namespaces.

`controller_manager` and `kubelet` do the work of the controllers, the scheduler and the kubelet. Nothing else may do it
at the same time. An admission policy refuses writes by a kube-controller-manager that has its own user. If it has the
user of the tests, the test run ends with an error.
"""

import contextlib
import json
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kube_standin.api_server.resources import Object
from tests.kube_standin.client import Access, Client
from tests.kube_standin.cluster import TESTS_LABEL
from tests.processes import wait_until

_GROUP = "/apis/admissionregistration.k8s.io/v1"
_NAME = "azureml-fe-tests.example.com"
_ATTEMPTS, _ATTEMPT_SECONDS = 6, 2.0
_CONTROLLERS = "request.userInfo.username.startsWith('system:serviceaccount:kube-system:')"
_COMPONENTS = "request.userInfo.username.startsWith('system:kube-')"
_CLEANERS = "[{}]".format(  # they remove objects without an owner, and the contents of deleted namespaces
    ", ".join(
        f"'system:serviceaccount:kube-system:{name}'" for name in ("generic-garbage-collector", "namespace-controller")
    )
)

# Nodes have no namespace, so the tests' nodes have a label.
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
    allowed = (
        f"!({_CONTROLLERS} || {_COMPONENTS})",
        f"request.userInfo.username in {_CLEANERS}",
        f"request.userInfo.username == {json.dumps(own_user)}",
        _OTHER_NODES,
    )
    validation = {"expression": " || ".join(allowed), "message": "the tests run this controller themselves"}
    spec = {"failurePolicy": "Fail", "matchConstraints": {"resourceRules": rules}, "validations": [validation]}
    return {"metadata": {"name": _NAME}, "spec": spec}


def _binding(_: str) -> Object:
    selector = {"namespaceSelector": {"matchLabels": {TESTS_LABEL: "true"}}}
    spec = {"policyName": _NAME, "validationActions": ["Deny"], "matchResources": selector}
    return {"metadata": {"name": _NAME}, "spec": spec}


@contextlib.contextmanager
def keep_out_builtin_controllers(admin: Path) -> Iterator[None]:
    """Install the admission policy in the server of this kubeconfig inside the `with` block."""
    client = Client(Access.read(admin))
    policies = (
        (f"{_GROUP}/validatingadmissionpolicies", "ValidatingAdmissionPolicy", _policy),
        (f"{_GROUP}/validatingadmissionpolicybindings", "ValidatingAdmissionPolicyBinding", _binding),
    )
    try:
        wait_until(lambda: client.request("GET", "/readyz").status == 200, "a ready API server")
        for attempt in range(_ATTEMPTS):  # a new policy takes effect after a short time
            if not _controllers_are_active(client):
                break
            if attempt == 0:
                own_user = _own_user(client)
                for path, kind, build in policies:
                    typed = {"apiVersion": "admissionregistration.k8s.io/v1", "kind": kind, **build(own_user)}
                    reply = client.request("POST", path, typed, fieldValidation="Strict")
                    assert reply.status in (201, 409), reply.body
        else:
            pytest.exit(
                f"{admin}: the tests and this API server's own controllers have the same user. Run the tests against a "
                "server without kube-controller-manager, or with one that runs as system:kube-controller-manager.",
                returncode=2,
            )
        yield
    finally:
        for path, _, _ in reversed(policies):
            client.request("DELETE", f"{path}/{_NAME}")
        client.close()


def _own_user(client: Client) -> str:
    """Return the name of the tests' user."""
    review = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
    reviewed = client.request("POST", "/apis/authentication.k8s.io/v1/selfsubjectreviews", review).ok()
    name: str = reviewed["status"]["userInfo"]["username"]
    return name


def _controllers_are_active(client: Client) -> bool:
    """True if some controller processes a new Deployment within `_ATTEMPT_SECONDS`."""
    name = f"test-{secrets.token_hex(5)}"
    client.create("namespaces", "", {"metadata": {"name": name, "labels": {TESTS_LABEL: "true"}}})
    found = False
    try:
        labels = {"app": "canary"}
        template = {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "c", "image": "i:1"}]}}
        spec = {"replicas": 1, "selector": {"matchLabels": labels}, "template": template}
        client.create("deployments", name, {"metadata": {"name": "canary"}, "spec": spec})
        deadline = time.monotonic() + _ATTEMPT_SECONDS
        while not found and time.monotonic() < deadline:
            status = client.get("deployments", name, "canary").get("status") or {}
            found = bool(status.get("observedGeneration") or client.list("replicasets", name))
            time.sleep(0.1)
        return found
    finally:
        client.delete("deployments", name, "canary")
        client.delete("namespaces", "", name)
        terminating = None if found else client.find("namespaces", "", name)
        if terminating:  # no namespace controller removes it
            terminating["spec"]["finalizers"] = []
            client.request("PUT", f"/api/v1/namespaces/{name}/finalize", terminating)
