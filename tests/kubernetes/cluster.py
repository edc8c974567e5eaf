"""One namespace of a cluster for one test: its objects as tests make them, and its end.

Works the same with the double and with a real API server, with or without controllers in it.
"""

import contextlib
import functools
import secrets
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.kubernetes.client import JSON_PATCH, Access, Client, path_of
from tests.kubernetes.double.resources import RESOURCES, Object
from tests.kubernetes.double.running import kubeconfig, write
from tests.processes import until

MODEL_LABEL = "isazuremlapp"
NAME_LABEL = "azuremlappname"
TESTS_LABEL = "azureml-fe-tests"  # of namespaces and nodes
NODES_LABEL = "azureml-fe-tests-namespace"  # of nodes: whose they are
ROUTER = "azureml-fe"
Rules = Sequence[Mapping[str, Any]]
_CLEANERS = 4  # connections


class Cluster:
    """The admin's view of one namespace, and what tests do in it."""

    def __init__(self, admin: Path, folder: Path) -> None:
        self.admin = admin
        self.access = Access.read(admin)
        self.client = Client(self.access)
        self._folder = folder
        self._namespaces: list[str] = []
        self._cluster_wide: list[tuple[str, str]] = []
        self.namespace = self.another_namespace()

    # Namespaces and access.

    def another_namespace(self) -> str:
        """A fresh one, with the account that pods need."""
        name = f"test-{secrets.token_hex(5)}"
        self.client.create("namespaces", "", {"metadata": {"name": name, "labels": {TESTS_LABEL: "true"}}})
        self._namespaces.append(name)
        self.account("default", name)
        return name

    def account(self, name: str, namespace: str = "") -> None:
        """See that a service account is there: a server without controllers makes none."""
        thing = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name}}
        reply = self.client.ask("POST", path_of("serviceaccounts", namespace or self.namespace), thing)
        assert reply.status in (201, 409), reply.body

    def allow(self, account: str, rules: Rules, namespace: str = "", everywhere: bool = False) -> None:
        """Bind rules to a service account: in a namespace, or in all."""
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
        self._in_force(account, rules, namespace or home)

    def _in_force(self, account: str, rules: Rules, namespace: str) -> None:
        """Wait until the server has heard of its own roles and bindings."""
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
            until(functools.partial(self._is_allowed, spec), f"{attributes} for {account}")

    def _is_allowed(self, spec: Object) -> bool:
        allowed: bool = self.client.create("subjectaccessreviews", "", {"spec": spec})["status"]["allowed"]
        return allowed

    def token(self, account: str) -> str:
        """A fresh token of a service account."""
        spec = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 3600}}
        path = path_of("serviceaccounts", self.namespace, account, "token")
        token: str = self.client.ask("POST", path, spec).ok()["status"]["token"]
        return token

    def kubeconfig(self, account: str, access: Access | None = None) -> Path:
        """A kubeconfig with a fresh token of a service account; `access` says where a proxy is."""
        where = access or self.access
        file = self._folder / f"{account}-{secrets.token_hex(3)}.kubeconfig"
        write(file, kubeconfig(where.url, where.authority, self.token(account), self.namespace))
        return file

    # Objects.

    def deployment(
        self,
        name: str,
        replicas: int = 1,
        annotations: Mapping[str, str] | None = None,
        labels: Mapping[str, str] | None = None,
        namespace: str = "",
        **container: Any,
    ) -> Object:
        """A model's Deployment; `labels` beside those of a model, `container` beside name and image."""
        its = {MODEL_LABEL: "true", NAME_LABEL: name, **(labels or {})}
        template = {
            "metadata": {"labels": its | {"app": name}},
            "spec": {
                "terminationGracePeriodSeconds": 5,
                "containers": [{"name": "model", "image": "model:1", **container}],
            },
        }
        spec = {"replicas": replicas, "selector": {"matchLabels": {"app": name}}, "template": template}
        metadata = {"name": name, "labels": its, "annotations": dict(annotations or {})}
        return self.client.create("deployments", namespace or self.namespace, {"metadata": metadata, "spec": spec})

    def pod(
        self,
        name: str,
        labels: Mapping[str, str],
        address: str = "",
        ready: bool = True,
        namespace: str = "",
        owner: Object | None = None,
    ) -> Object:
        """A pod on a node; with an address it runs."""
        metadata: Object = {"name": name, "labels": dict(labels)}
        if owner:
            reference = {"apiVersion": owner["apiVersion"], "kind": owner["kind"], "name": owner["metadata"]["name"]}
            metadata["ownerReferences"] = [reference | {"uid": owner["metadata"]["uid"], "controller": True}]
        spec = {"nodeName": "node-1", "containers": [{"name": "model", "image": "model:1"}]}
        pod = self.client.create("pods", namespace or self.namespace, {"metadata": metadata, "spec": spec})
        return self.pod_runs(name, address, ready, namespace) if address else pod

    def model_pod(self, service: str, name: str, address: str = "", ready: bool = True) -> Object:
        """A pod of a model, as its Deployment's template makes it."""
        labels = {MODEL_LABEL: "true", NAME_LABEL: service, "app": service}
        return self.pod(name, labels, address, ready)

    def pod_runs(self, name: str, address: str, ready: bool = True, namespace: str = "") -> Object:
        """Say what a kubelet says of a pod that runs."""
        namespace = namespace or self.namespace
        container = self.client.get("pods", namespace, name)["spec"]["containers"][0]
        status = {"status": running_status(container, address, ready)}
        return self.client.patch("pods", namespace, name, status, sub="status")

    @property
    def own_nodes(self) -> dict[str, str]:
        """The label that nodes of this test have, and no others: a cluster's own may have room, or none."""
        return {NODES_LABEL: self.namespace}

    def node(self, name: str, **allocatable: str) -> str:
        """A node that takes pods, with so much to give; its name, which no other test's has."""
        name = f"{name}-{self.namespace}"
        labels = {TESTS_LABEL: "true", **self.own_nodes}
        self.client.create("nodes", "", {"metadata": {"name": name, "labels": labels}})
        self._cluster_wide.append(("nodes", name))
        # The server taints a new node, and a controller takes that back once the node says that it is ready.
        self.client.patch("nodes", "", name, {"spec": {"taints": None}})
        offers = {"pods": "110", **allocatable}
        status = {"allocatable": offers, "capacity": offers, "conditions": [{"type": "Ready", "status": "True"}]}
        self.client.patch("nodes", "", name, {"status": status}, sub="status")
        return name

    def secret(self, name: str, values: Mapping[str, str], namespace: str = "") -> Object:
        """One with the label by which the router finds it."""
        thing = {"metadata": {"name": name, "labels": {MODEL_LABEL: "true"}}, "stringData": dict(values)}
        return self.client.create("secrets", namespace or self.namespace, thing)

    def scale(self, name: str, replicas: int, manager: str = "kubectl", namespace: str = "") -> None:
        """As a hand does it."""
        patch = {"spec": {"replicas": replicas}}
        where = namespace or self.namespace
        self.client.patch("deployments", where, name, patch, sub="scale", fieldManager=manager)

    def replicas(self, name: str, namespace: str = "") -> int:
        """What a Deployment is to have."""
        spec = self.client.get("deployments", namespace or self.namespace, name)["spec"]
        return int(spec["replicas"])

    def pods(self, service: str, namespace: str = "") -> list[Object]:
        """Those of a model or of the router."""
        return self.client.list("pods", namespace or self.namespace, labelSelector=f"{NAME_LABEL}={service}")

    def events(self, name: str, namespace: str = "", **fields: str) -> list[Object]:
        """What has been said about an object, in the form of core/v1."""
        found = self.client.list("events", namespace or self.namespace, fieldSelector=f"involvedObject.name={name}")
        return [event for event in found if all(event.get(field) == value for field, value in fields.items())]

    def apply(self, manifests: Sequence[Mapping[str, Any]]) -> None:
        """Create what the router's chart has made, each in its namespace; Deployments once their pods have their
        rights."""
        programs = [each for each in manifests if each["kind"] == "Deployment"]
        self._apply([each for each in manifests if each not in programs])
        for manifest in manifests:
            if manifest["kind"] == "Role":
                self._in_force(ROUTER, manifest["rules"], manifest["metadata"]["namespace"])
        self._apply(programs)

    def _apply(self, manifests: Sequence[Mapping[str, Any]]) -> None:
        plurals = {(its.api_version, its.kind): its for its in RESOURCES}
        for manifest in manifests:
            its = plurals[manifest["apiVersion"], manifest["kind"]]
            namespace = manifest["metadata"].get("namespace", "") if its.namespaced else ""
            self.client.create(its.plural, namespace, dict(manifest))
            if not its.namespaced:
                self._cluster_wide.append((its.plural, manifest["metadata"]["name"]))

    # The end.

    def close(self) -> None:
        """Remove what the test has made: nobody else may do so."""
        for plural, name in self._cluster_wide:
            self.client.delete(plural, "", name)
        for namespace in self._namespaces:
            self._empty(namespace)
            self.client.delete("namespaces", "", namespace)
            thing = self.client.find("namespaces", "", namespace)
            if thing:
                thing["spec"]["finalizers"] = []
                self.client.ask("PUT", path_of("namespaces", "", namespace, "finalize"), thing)
        self.client.close()

    def _empty(self, namespace: str) -> None:
        """Several kinds at a time: a real server may need a tenth of a second to be sure that a list is up to date."""
        plurals = sorted({its.plural for its in RESOURCES if its.namespaced and not its.virtual})
        shares = [plurals[start::_CLEANERS] for start in range(_CLEANERS)]
        with ThreadPoolExecutor(_CLEANERS) as cleaners:
            list(cleaners.map(functools.partial(self._remove, namespace), shares))

    def _remove(self, namespace: str, plurals: Sequence[str]) -> None:
        try:
            for plural in plurals:
                for thing in self.client.list(plural, namespace):
                    if thing["metadata"].get("finalizers"):
                        path = path_of(plural, namespace, thing["metadata"]["name"])
                        self.client.ask("PATCH", path, [{"op": "remove", "path": "/metadata/finalizers"}], JSON_PATCH)
                self.client.ask("DELETE", path_of(plural, namespace), {"gracePeriodSeconds": 0})
        finally:
            self.client.close()  # this thread's connection


def running_status(container: Object, address: str, ready: bool, now: str = "2026-01-01T00:00:00Z") -> Object:
    """The status of a pod whose only container runs, with the resources that it is to have."""
    truth = "True" if ready else "False"
    conditions = [
        {"type": "PodScheduled", "status": "True", "lastTransitionTime": now},
        {"type": "Initialized", "status": "True", "lastTransitionTime": now},
        {"type": "ContainersReady", "status": truth, "lastTransitionTime": now},
        {"type": "Ready", "status": truth, "lastTransitionTime": now},
    ]
    running = {
        "name": container["name"],
        "image": container["image"],
        "imageID": f"{container['image'].partition(':')[0]}@sha256:0",
        "ready": ready,
        "started": True,
        "restartCount": 0,
        "state": {"running": {"startedAt": now}},
        # By this the server knows of a node that it can resize pods.
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
def cluster_of(admin: Path, folder: Path) -> Iterator[Cluster]:
    """A cluster for one test; nothing of it is left in the server afterwards."""
    cluster = Cluster(admin, folder)
    try:
        yield cluster
    finally:
        cluster.close()


def has_event(cluster: Cluster, name: str, reason: str, kind: str = "Warning") -> Object:
    """Wait for an Event about an object; it."""
    until(lambda: cluster.events(name, reason=reason, type=kind), f"{kind} Event {reason} of {name}")
    return cluster.events(name, reason=reason, type=kind)[-1]
