"""Runs the controllers of a cluster for one namespace, through the API server only.

Deployments become ReplicaSets and ReplicaSets become pods. Rolling updates follow maxSurge and maxUnavailable, and the
pod with the lowest deletion cost is deleted first. `kubelet` runs pods as processes. Objects are removed with their
owner. It works the same with a real API server that has no controllers.
"""

import contextlib
import secrets
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from tests.kube_standin import rollout
from tests.kube_standin.api_server.resources import Object
from tests.kube_standin.client import MERGE, Client, path_of
from tests.kube_standin.cluster import NAME_LABEL, NODES, Cluster
from tests.kube_standin.informer import Informer
from tests.kube_standin.kubelet import Kubelet, PodProcess
from tests.kube_standin.rollout import HASH_LABEL
from tests.processes import wait_until


class ControllerManager:
    """Controllers and one node. `capacity` pods fit onto the node. Others stay pending."""

    def __init__(self, cluster: Cluster, directory: Path, capacity: int = 100) -> None:
        self.capacity = capacity
        self.errors: list[str] = []
        self._client = Client(cluster.access, "controller/1")
        self._namespace = cluster.namespace
        self._changed = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._deployments, self._replica_sets, self._pods = (
            Informer(self._client, plural, self._namespace, self._changed.set)
            for plural in ("deployments", "replicasets", "pods")
        )
        network = f"127.{secrets.randbelow(200) + 20}.{secrets.randbelow(250) + 1}"
        self.kubelet = Kubelet(self._client, self._namespace, self._pods, directory, network)

    def start(self) -> None:
        """Start the informers and the control loop."""
        for informer in (self._deployments, self._replica_sets, self._pods):
            informer.start()
        self._thread.start()

    def stop(self) -> None:
        """Stop, and kill every process. Raises `AssertionError` if there were errors."""
        self._stopping = True
        self._changed.set()
        self._thread.join()
        for informer in (self._deployments, self._replica_sets, self._pods):
            informer.stop()
        self.kubelet.stop()
        self._client.close()
        assert not self.errors + self.kubelet.errors, self.errors + self.kubelet.errors

    def pod_process(self, name: str) -> PodProcess:
        """Return the process of a pod."""
        return self.kubelet.pod_process(name)

    def pods(self, name: str) -> list[Object]:
        """Return the pods of a model or of the router. The list may be slightly out of date."""
        return [pod for pod in self._pods.all() if pod["metadata"].get("labels", {}).get(NAME_LABEL) == name]

    def wait_ready(self, name: str, count: int) -> list[Object]:
        """Wait until a Deployment has exactly `count` pods, all ready and of its current template. Return them."""
        ready: list[Object] = []

        def are_ready() -> bool:
            # From the server: the informers may not have the test's latest write yet.
            deployment = self._client.get("deployments", self._namespace, name)
            template_hash = rollout.template_hash(deployment["spec"]["template"])
            labels = deployment["spec"]["selector"]["matchLabels"]
            selector = ",".join(f"{label}={value}" for label, value in labels.items())
            pods = self._client.list("pods", self._namespace, labelSelector=selector)
            ready[:] = [
                pod
                for pod in pods
                if rollout.is_ready(pod)
                and rollout.is_active(pod)
                and pod["metadata"]["labels"][HASH_LABEL] == template_hash
            ]
            return len(ready) == len(pods) == count

        wait_until(are_ready, f"{count} pods of {name}")
        return ready

    # The control loop.

    def _run(self) -> None:
        while not self._stopping:
            self._changed.wait(1)
            self._changed.clear()
            try:
                self._reconcile()
            except AssertionError as error:  # a conflict: another write was faster, and an informer will report it
                if not self._stopping and "'code': 409" not in str(error) and "'code': 404" not in str(error):
                    self.errors.append(str(error))
                    raise
                self._changed.set()
        self._client.close()

    def _reconcile(self) -> None:
        for deployment in self._deployments.all():
            if "deletionTimestamp" not in deployment["metadata"]:
                self._reconcile_deployment(deployment)
        for replica_set in self._replica_sets.all():
            self._reconcile_replica_set(replica_set)
        self._collect_garbage()
        self.kubelet.reconcile()

    def _reconcile_deployment(self, deployment: Object) -> None:
        template_hash = rollout.template_hash(deployment["spec"]["template"])
        sets = rollout.owned_by(deployment, self._replica_sets.all())
        current = next((each for each in sets if each["metadata"]["labels"][HASH_LABEL] == template_hash), None)
        old = [each for each in sets if each is not current]
        pods = {
            each["metadata"]["name"]: [
                pod for pod in rollout.owned_by(each, self._pods.all()) if rollout.is_active(pod)
            ]
            for each in sets
        }
        step = rollout.next_step(deployment, current, old, pods)
        if current is None:
            current = self._create_replica_set(deployment, template_hash, step.current)
        elif current["spec"]["replicas"] != step.current:
            self._scale(current, step.current)
        for each in old:
            if each["spec"]["replicas"] != step.old[each["metadata"]["name"]]:
                self._scale(each, step.old[each["metadata"]["name"]])
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        old_pods = [pod for each in old for pod in pods[each["metadata"]["name"]]]
        current_pods = pods.get(current["metadata"]["name"], [])
        status = rollout.deployment_status(deployment, current_pods, old_pods, now)
        self._write_status("deployments", self._deployments, deployment, status)

    def _create_replica_set(self, deployment: Object, template_hash: str, replicas: int) -> Object:
        labels = {HASH_LABEL: template_hash}
        template = deployment["spec"]["template"]
        template = template | {
            "metadata": template["metadata"] | {"labels": template["metadata"].get("labels", {}) | labels}
        }
        selector = {"matchLabels": deployment["spec"]["selector"]["matchLabels"] | labels}
        metadata = {
            "name": f"{deployment['metadata']['name']}-{template_hash}",
            "labels": template["metadata"]["labels"],
            "ownerReferences": [_owner_reference(deployment)],
        }
        spec = {"replicas": replicas, "selector": selector, "template": template}
        created = self._client.create("replicasets", self._namespace, {"metadata": metadata, "spec": spec})
        self._replica_sets.store(created)
        return created

    def _scale(self, replica_set: Object, replicas: int) -> None:
        patch = {"spec": {"replicas": replicas}}
        name = replica_set["metadata"]["name"]
        self._replica_sets.store(self._client.patch("replicasets", self._namespace, name, patch))

    def _reconcile_replica_set(self, replica_set: Object) -> None:
        pods = [pod for pod in rollout.owned_by(replica_set, self._pods.all()) if rollout.is_active(pod)]
        missing = replica_set["spec"]["replicas"] - len(pods)
        for _ in range(missing):
            self._create_pod(replica_set)
        if missing < 0:
            # From the server: of two writes by another client, the informers may have only the later one.
            listed = rollout.owned_by(replica_set, self._client.list("pods", self._namespace))
            for pod in rollout.pods_to_delete([pod for pod in listed if rollout.is_active(pod)], -missing):
                self._delete_pod(pod)
        status = rollout.replica_set_status(replica_set, pods)
        self._write_status("replicasets", self._replica_sets, replica_set, status)

    def _create_pod(self, replica_set: Object) -> None:
        template = replica_set["spec"]["template"]
        metadata = template["metadata"] | {
            "generateName": f"{replica_set['metadata']['name']}-",
            "ownerReferences": [_owner_reference(replica_set)],
        }
        spec = dict(template["spec"])
        if sum(bool(pod["spec"].get("nodeName")) for pod in self._pods.all()) < self.capacity:
            spec["nodeName"] = NODES[0]
        created = self._client.create("pods", self._namespace, {"metadata": metadata, "spec": spec})
        self._pods.store(created)

    def _delete_pod(self, pod: Object) -> None:
        reply = self._client.delete("pods", self._namespace, pod["metadata"]["name"])
        if reply.status == 200 and "deletionTimestamp" in reply.body["metadata"]:
            self._pods.store(reply.body)
        else:
            self._pods.remove(pod)

    def _collect_garbage(self) -> None:
        """Delete objects whose owner was deleted."""
        uids = {each["metadata"]["uid"] for each in [*self._deployments.all(), *self._replica_sets.all()]}
        for replica_set in self._replica_sets.all():
            if not _has_owner(replica_set, uids):
                self._client.delete("replicasets", self._namespace, replica_set["metadata"]["name"])
                self._replica_sets.remove(replica_set)
        for pod in self._pods.all():
            if rollout.is_active(pod) and not _has_owner(pod, uids):
                self._delete_pod(pod)

    def _write_status(self, plural: str, informer: Informer, obj: Object, status: Object) -> None:
        written = obj.get("status") or {}
        if {name: written.get(name, 0) for name in status} != status:
            path = path_of(plural, self._namespace, obj["metadata"]["name"], "status")
            reply = self._client.request("PATCH", path, {"status": status}, MERGE)
            if reply.status == 200:
                informer.store(reply.body)


def _owner_reference(owner: Object) -> Object:
    kind = "ReplicaSet" if HASH_LABEL in owner["metadata"].get("labels", {}) else "Deployment"
    name, uid = owner["metadata"]["name"], owner["metadata"]["uid"]
    reference = {"apiVersion": "apps/v1", "kind": kind, "name": name, "uid": uid}
    return reference | {"controller": True, "blockOwnerDeletion": True}


def _has_owner(obj: Object, uids: set[str]) -> bool:
    references = obj["metadata"].get("ownerReferences") or []
    return not references or any(each["uid"] in uids for each in references)


@contextlib.contextmanager
def running_controller_manager(cluster: Cluster, directory: Path, capacity: int = 100) -> Iterator[ControllerManager]:
    """Run controllers for one test's namespace inside the `with` block."""
    controller = ControllerManager(cluster, directory, capacity)
    controller.start()
    try:
        yield controller
    finally:
        controller.stop()
