"""One test's namespace: helpers that create its objects, and its removal.

Works with the stand-in and with a real API server, with or without running controllers.
"""

import contextlib
import functools
import secrets
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.kube_standin.api_server.process import kubeconfig, write_config
from tests.kube_standin.api_server.resources import RESOURCES, Object
from tests.kube_standin.client import JSON_PATCH, Access, Client, path_of
from tests.processes import wait_until

MODEL_LABEL = "isazuremlapp"
NAME_LABEL = "azuremlappname"
TESTS_LABEL = "azureml-fe-tests"  # on namespaces and nodes
NODES_LABEL = "azureml-fe-tests-namespace"  # on nodes: the namespace of the test that created them
NODES = ("node-1", "node-2")
"""The nodes of pods that the tests create or schedule."""
ROUTER = "azureml-fe"
Rules = Sequence[Mapping[str, Any]]
_CLEANUP_CONNECTIONS = 4


class Cluster:
    """One namespace with the administrator's credentials."""

    def __init__(self, admin: Path, directory: Path) -> None:
        self.admin = admin
        self.access = Access.read(admin)
        self.client = Client(self.access)
        self._directory = directory
        self._namespaces: list[str] = []
        self._cluster_wide: list[tuple[str, str]] = []  # plural and name
        self.namespace = self.create_namespace()

    # Namespaces and access.

    def create_namespace(self) -> str:
        """Create a namespace with the service account that pods need. Return its name."""
        name = f"test-{secrets.token_hex(5)}"
        self.client.create("namespaces", "", {"metadata": {"name": name, "labels": {TESTS_LABEL: "true"}}})
        self._namespaces.append(name)
        self.create_service_account("default", name)
        return name

    def create_service_account(self, name: str, namespace: str = "") -> None:
        """Create a service account unless it exists. A server without controllers creates none itself."""
        obj = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name}}
        reply = self.client.request("POST", path_of("serviceaccounts", namespace or self.namespace), obj)
        assert reply.status in (201, 409), reply.body

    def grant(self, account: str, rules: Rules, namespace: str = "", everywhere: bool = False) -> None:
        """Bind rules to a service account, in one namespace or cluster-wide. Wait until they take effect."""
        home = self.namespace
        kind, where = ("ClusterRole", "") if everywhere else ("Role", namespace or home)
        name = f"{account}-{secrets.token_hex(3)}"
        plural = kind.lower() + "s"
        self.client.create(plural, where, {"metadata": {"name": name}, "rules": [dict(rule) for rule in rules]})
        subject = {"kind": "ServiceAccount", "name": account, "namespace": home}
        reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": name}
        binding = {"metadata": {"name": name}, "subjects": [subject], "roleRef": reference}
        self.client.create(f"{kind.lower()}bindings", where, binding)
        if everywhere:
            self._cluster_wide += [(plural, name), (f"{kind.lower()}bindings", name)]
        self._wait_until_granted(account, rules, namespace or home)

    def _wait_until_granted(self, account: str, rules: Rules, namespace: str) -> None:
        """Wait until the server's authorizer has the new roles and bindings."""
        for rule in rules:
            resource, _, sub = rule["resources"][0].partition("/")
            attributes = {
                "group": rule["apiGroups"][0],
                "resource": resource,
                "subresource": sub,
                "verb": rule["verbs"][0],
                "name": next(iter(rule.get("resourceNames", [])), ""),
                "namespace": namespace,
            }
            spec = {"user": f"system:serviceaccount:{self.namespace}:{account}", "resourceAttributes": attributes}
            wait_until(functools.partial(self._is_allowed, spec), f"{attributes} for {account}")

    def _is_allowed(self, spec: Object) -> bool:
        allowed: bool = self.client.create("subjectaccessreviews", "", {"spec": spec})["status"]["allowed"]
        return allowed

    def create_token(self, account: str) -> str:
        """Return a new token of a service account."""
        spec = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 3600}}
        path = path_of("serviceaccounts", self.namespace, account, "token")
        token: str = self.client.request("POST", path, spec).ok()["status"]["token"]
        return token

    def write_kubeconfig(self, account: str, access: Access | None = None) -> Path:
        """Write a kubeconfig with a new token of a service account. `access` is the server or a proxy."""
        server = access or self.access
        file = self._directory / f"{account}-{secrets.token_hex(3)}.kubeconfig"
        write_config(file, kubeconfig(server.url, server.authority, self.create_token(account), self.namespace))
        return file

    # Objects.

    def create_deployment(
        self,
        name: str,
        replicas: int = 1,
        annotations: Mapping[str, str] | None = None,
        labels: Mapping[str, str] | None = None,
        namespace: str = "",
        grace_seconds: int = 5,
        **container: Any,
    ) -> Object:
        """Create a model's Deployment. `labels` and `container` are added to the usual labels and container fields."""
        all_labels = {MODEL_LABEL: "true", NAME_LABEL: name, **(labels or {})}
        template = {
            "metadata": {"labels": all_labels | {"app": name}},
            "spec": {
                "terminationGracePeriodSeconds": grace_seconds,
                "containers": [{"name": "model", "image": "model:1", **container}],
            },
        }
        spec = {"replicas": replicas, "selector": {"matchLabels": {"app": name}}, "template": template}
        metadata = {"name": name, "labels": all_labels, "annotations": dict(annotations or {})}
        return self.client.create("deployments", namespace or self.namespace, {"metadata": metadata, "spec": spec})

    def create_pod(
        self,
        name: str,
        labels: Mapping[str, str],
        address: str = "",
        ready: bool = True,
        namespace: str = "",
        owner: Object | None = None,
    ) -> Object:
        """Create a pod on a node. With an address it is running."""
        metadata: Object = {"name": name, "labels": dict(labels)}
        if owner:
            reference = {"apiVersion": owner["apiVersion"], "kind": owner["kind"], "name": owner["metadata"]["name"]}
            metadata["ownerReferences"] = [reference | {"uid": owner["metadata"]["uid"], "controller": True}]
        spec = {"nodeName": NODES[0], "containers": [{"name": "model", "image": "model:1"}]}
        pod = self.client.create("pods", namespace or self.namespace, {"metadata": metadata, "spec": spec})
        return self.set_pod_running(name, address, ready, namespace) if address else pod

    def create_model_pod(
        self, service: str, name: str, address: str = "", ready: bool = True, namespace: str = ""
    ) -> Object:
        """Create a pod with the labels of a model's Deployment."""
        labels = {MODEL_LABEL: "true", NAME_LABEL: service, "app": service}
        return self.create_pod(name, labels, address, ready, namespace)

    def set_pod_running(self, name: str, address: str, ready: bool = True, namespace: str = "") -> Object:
        """Write the status of a running pod, as a kubelet does."""
        namespace = namespace or self.namespace
        container = self.client.get("pods", namespace, name)["spec"]["containers"][0]
        status = {"status": running_pod_status(container, address, ready)}
        return self.client.patch("pods", namespace, name, status, sub="status")

    @property
    def node_labels(self) -> dict[str, str]:
        """The label that only this test's nodes have. A real cluster's own nodes may or may not have room."""
        return {NODES_LABEL: self.namespace}

    def create_node(self, name: str, **allocatable: str) -> str:
        """Create a ready node with these allocatable resources. Return its name, which is unique in the server."""
        name = f"{name}-{self.namespace}"
        labels = {TESTS_LABEL: "true", **self.node_labels}
        self.client.create("nodes", "", {"metadata": {"name": name, "labels": labels}})
        self._cluster_wide.append(("nodes", name))
        # The server taints a new node. A controller removes the taint when the node reports that it is ready.
        self.client.patch("nodes", "", name, {"spec": {"taints": None}})
        resources = {"pods": "110", **allocatable}
        ready = {"type": "Ready", "status": "True"}
        status = {"allocatable": resources, "capacity": resources, "conditions": [ready]}
        self.client.patch("nodes", "", name, {"status": status}, sub="status")
        return name

    def create_secret(self, name: str, values: Mapping[str, str], namespace: str = "") -> Object:
        """Create a Secret with the label that the router selects."""
        obj = {"metadata": {"name": name, "labels": {MODEL_LABEL: "true"}}, "stringData": dict(values)}
        return self.client.create("secrets", namespace or self.namespace, obj)

    def scale(self, name: str, replicas: int, manager: str = "kubectl", namespace: str = "") -> None:
        """Scale a Deployment, as `kubectl scale` does."""
        patch = {"spec": {"replicas": replicas}}
        namespace = namespace or self.namespace
        self.client.patch("deployments", namespace, name, patch, sub="scale", fieldManager=manager)

    def desired_replicas(self, name: str, namespace: str = "") -> int:
        """Return a Deployment's `spec.replicas`."""
        spec = self.client.get("deployments", namespace or self.namespace, name)["spec"]
        return int(spec["replicas"])

    def list_pods(self, service: str, namespace: str = "") -> list[Object]:
        """Return the pods of a model or of the router."""
        return self.client.list("pods", namespace or self.namespace, labelSelector=f"{NAME_LABEL}={service}")

    def list_events(self, name: str, namespace: str = "", **fields: str) -> list[Object]:
        """Return the Events about an object whose fields have these values, in their core/v1 form."""
        found = self.client.list("events", namespace or self.namespace, fieldSelector=f"involvedObject.name={name}")
        return [event for event in found if all(event.get(field) == value for field, value in fields.items())]

    def apply(self, manifests: Sequence[Mapping[str, Any]]) -> None:
        """Create the objects of the router's chart. Deployments are last, when their roles have taken effect."""
        deployments = [each for each in manifests if each["kind"] == "Deployment"]
        self._create_all([each for each in manifests if each not in deployments])
        for manifest in manifests:
            if manifest["kind"] == "Role":
                self._wait_until_granted(ROUTER, manifest["rules"], manifest["metadata"]["namespace"])
        self._create_all(deployments)

    def _create_all(self, manifests: Sequence[Mapping[str, Any]]) -> None:
        by_kind = {(resource.api_version, resource.kind): resource for resource in RESOURCES}
        for manifest in manifests:
            resource = by_kind[manifest["apiVersion"], manifest["kind"]]
            namespace = manifest["metadata"].get("namespace", "") if resource.namespaced else ""
            self.client.create(resource.plural, namespace, dict(manifest))
            if not resource.namespaced:
                self._cluster_wide.append((resource.plural, manifest["metadata"]["name"]))

    # Removal.

    def close(self) -> None:
        """Remove everything that the test created. The server may have no controller that does."""
        for plural, name in self._cluster_wide:
            self.client.delete(plural, "", name)
        for namespace in [*self._namespaces]:
            self.remove_namespace(namespace)
        self.client.close()

    def remove_namespace(self, namespace: str) -> None:
        """Remove a namespace of this test and all that is in it."""
        self._namespaces.remove(namespace)
        self._empty(namespace)
        self.client.delete("namespaces", "", namespace)
        obj = self.client.find("namespaces", "", namespace)
        if obj:
            obj["spec"]["finalizers"] = []
            self.client.request("PUT", path_of("namespaces", "", namespace, "finalize"), obj)

    def _empty(self, namespace: str) -> None:
        """Remove several resources in parallel: a real server may need 0.1 s to confirm that a list is up to date."""
        plurals = sorted({each.plural for each in RESOURCES if each.namespaced and not each.virtual})
        shares = [plurals[start::_CLEANUP_CONNECTIONS] for start in range(_CLEANUP_CONNECTIONS)]
        with ThreadPoolExecutor(_CLEANUP_CONNECTIONS) as executor:
            list(executor.map(functools.partial(self._remove, namespace), shares))

    def _remove(self, namespace: str, plurals: Sequence[str]) -> None:
        try:
            for plural in plurals:
                for obj in self.client.list(plural, namespace):
                    if obj["metadata"].get("finalizers"):
                        path = path_of(plural, namespace, obj["metadata"]["name"])
                        patch = [{"op": "remove", "path": "/metadata/finalizers"}]
                        self.client.request("PATCH", path, patch, JSON_PATCH)
                self.client.request("DELETE", path_of(plural, namespace), {"gracePeriodSeconds": 0})
        finally:
            self.client.close()  # this thread's connection


def running_pod_status(container: Object, address: str, ready: bool, now: str = "2026-01-01T00:00:00Z") -> Object:
    """Return the status of a pod whose only container is running with the resources of its spec."""
    readiness = "True" if ready else "False"
    conditions = [
        {"type": "PodScheduled", "status": "True", "lastTransitionTime": now},
        {"type": "Initialized", "status": "True", "lastTransitionTime": now},
        {"type": "ContainersReady", "status": readiness, "lastTransitionTime": now},
        {"type": "Ready", "status": readiness, "lastTransitionTime": now},
    ]
    running = {
        "name": container["name"],
        "image": container["image"],
        "imageID": f"{container['image'].partition(':')[0]}@sha256:0",
        "ready": ready,
        "started": True,
        "restartCount": 0,
        "state": {"running": {"startedAt": now}},
        # The server takes this field as a sign that the node can resize pods.
        "resources": container.get("resources", {}),
    }
    return {
        "phase": "Running",
        "podIP": address,
        "podIPs": [{"ip": address}],
        "hostIP": "127.0.0.1",
        "startTime": now,
        "conditions": conditions,
        "containerStatuses": [running],
    }


@contextlib.contextmanager
def temporary_cluster(admin: Path, directory: Path) -> Iterator[Cluster]:
    """Provide a namespace inside the `with` block, and leave nothing in the server."""
    cluster = Cluster(admin, directory)
    try:
        yield cluster
    finally:
        cluster.close()


def wait_for_event(cluster: Cluster, name: str, reason: str, kind: str = "Warning", namespace: str = "") -> Object:
    """Wait for an Event about an object, and return it."""
    found: list[Object] = []

    def has_event() -> bool:
        found[:] = cluster.list_events(name, namespace, reason=reason, type=kind)
        return bool(found)

    wait_until(has_event, f"{kind} Event {reason} of {name}")
    return found[-1]
