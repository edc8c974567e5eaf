"""Plays the controllers of a cluster in one namespace, through the API server only.

Deployments become ReplicaSets and these pods (rolling update with maxSurge and maxUnavailable; the pod that is cheapest
to delete goes first), pods become processes (`kubelet`), and what is left without an owner is removed. A real API
server without controllers behaves the same with it.
"""

import contextlib
import secrets
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from tests.kubernetes import rollout
from tests.kubernetes.client import MERGE, Client, path_of
from tests.kubernetes.cluster import NAME_LABEL, Cluster
from tests.kubernetes.double.resources import Object
from tests.kubernetes.follower import Follower
from tests.kubernetes.kubelet import Kubelet, Running
from tests.kubernetes.rollout import HASH_LABEL
from tests.processes import until


class Controller:
    """Controllers and one node. `capacity` pods fit onto the node; others stay pending."""

    def __init__(self, cluster: Cluster, folder: Path, capacity: int = 100) -> None:
        self.capacity = capacity
        self.errors: list[str] = []
        self._client = Client(cluster.access, "controller/1")
        self._namespace = cluster.namespace
        self._news = threading.Event()
        self._over = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._deployments, self._replica_sets, self._pods = (
            Follower(self._client, plural, self._namespace, self._news.set)
            for plural in ("deployments", "replicasets", "pods")
        )
        network = f"127.{secrets.randbelow(200) + 20}.{secrets.randbelow(250) + 1}"
        self.kubelet = Kubelet(self._client, self._namespace, self._pods, folder, network)

    def start(self) -> None:
        """Begin."""
        for follower in (self._deployments, self._replica_sets, self._pods):
            follower.start()
        self._thread.start()

    def stop(self) -> None:
        """End, and kill every process."""
        self._over = True
        self._news.set()
        self._thread.join()
        for follower in (self._deployments, self._replica_sets, self._pods):
            follower.stop()
        self.kubelet.stop()
        self._client.close()
        assert not self.errors + self.kubelet.errors, self.errors + self.kubelet.errors

    def pod_of(self, name: str) -> Running:
        """The process of a pod."""
        return self.kubelet.life(name)

    def pods(self, name: str) -> list[Object]:
        """Those of a model or of the router, as of a moment ago."""
        return [pod for pod in self._pods.all() if pod["metadata"].get("labels", {}).get(NAME_LABEL) == name]

    def ready(self, name: str, count: int) -> list[Object]:
        """Wait until a Deployment has exactly so many pods, all of its present template and ready; they."""
        found: list[Object] = []

        def are_ready() -> bool:
            # As the server has it: what the followers know may be older than what the test has written.
            deployment = self._client.get("deployments", self._namespace, name)
            its = rollout.template_hash(deployment["spec"]["template"])
            labels = deployment["spec"]["selector"]["matchLabels"]
            selector = ",".join(f"{label}={value}" for label, value in labels.items())
            pods = self._client.list("pods", self._namespace, labelSelector=selector)
            found[:] = [
                pod
                for pod in pods
                if rollout.is_ready(pod) and rollout.is_active(pod) and pod["metadata"]["labels"][HASH_LABEL] == its
            ]
            return len(found) == len(pods) == count

        until(are_ready, f"{count} pods of {name}")
        return found

    # The loop.

    def _run(self) -> None:
        while not self._over:
            self._news.wait(1)
            self._news.clear()
            try:
                self._reconcile()
            except AssertionError as error:  # a conflict: somebody else was faster, and news of it is on its way
                if not self._over and "'code': 409" not in str(error) and "'code': 404" not in str(error):
                    self.errors.append(str(error))
                    raise
                self._news.set()
        self._client.close()

    def _reconcile(self) -> None:
        for deployment in self._deployments.all():
            if "deletionTimestamp" not in deployment["metadata"]:
                self._roll(deployment)
        for replica_set in self._replica_sets.all():
            self._fill(replica_set)
        self._sweep()
        self.kubelet.reconcile()

    def _roll(self, deployment: Object) -> None:
        template = deployment["spec"]["template"]
        its = rollout.template_hash(template)
        sets = rollout.owned(self._replica_sets.all(), deployment)
        fresh = next((each for each in sets if each["metadata"]["labels"][HASH_LABEL] == its), None)
        old = [each for each in sets if each is not fresh]
        pods = {
            each["metadata"]["name"]: [pod for pod in rollout.owned(self._pods.all(), each) if rollout.is_active(pod)]
            for each in sets
        }
        want = rollout.wanted(deployment, fresh, old, pods)
        if fresh is None:
            fresh = self._new_set(deployment, its, want.fresh)
        elif fresh["spec"]["replicas"] != want.fresh:
            self._resize(fresh, want.fresh)
        for each in old:
            if each["spec"]["replicas"] != want.old[each["metadata"]["name"]]:
                self._resize(each, want.old[each["metadata"]["name"]])
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        others = [pod for each in old for pod in pods[each["metadata"]["name"]]]
        mine = pods.get(fresh["metadata"]["name"], [])
        self._say(
            "deployments", self._deployments, deployment, rollout.deployment_status(deployment, mine, others, now)
        )

    def _new_set(self, deployment: Object, its: str, replicas: int) -> Object:
        labels = {HASH_LABEL: its}
        template = deployment["spec"]["template"]
        template = template | {
            "metadata": template["metadata"] | {"labels": template["metadata"].get("labels", {}) | labels}
        }
        selector = {"matchLabels": deployment["spec"]["selector"]["matchLabels"] | labels}
        metadata = {
            "name": f"{deployment['metadata']['name']}-{its}",
            "labels": template["metadata"]["labels"],
            "ownerReferences": [_reference(deployment)],
        }
        spec = {"replicas": replicas, "selector": selector, "template": template}
        made = self._client.create("replicasets", self._namespace, {"metadata": metadata, "spec": spec})
        self._replica_sets.note(made)
        return made

    def _resize(self, replica_set: Object, replicas: int) -> None:
        patch = {"spec": {"replicas": replicas}}
        name = replica_set["metadata"]["name"]
        self._replica_sets.note(self._client.patch("replicasets", self._namespace, name, patch))

    def _fill(self, replica_set: Object) -> None:
        pods = [pod for pod in rollout.owned(self._pods.all(), replica_set) if rollout.is_active(pod)]
        missing = replica_set["spec"]["replicas"] - len(pods)
        for _ in range(missing):
            self._new_pod(replica_set)
        if missing < 0:
            # As the server has them: of two writes by somebody else, the followers may know the later one only.
            present = rollout.owned(self._client.list("pods", self._namespace), replica_set)
            for pod in rollout.victims([pod for pod in present if rollout.is_active(pod)], -missing):
                self._delete_pod(pod)
        self._say("replicasets", self._replica_sets, replica_set, rollout.replica_set_status(replica_set, pods))

    def _new_pod(self, replica_set: Object) -> None:
        template = replica_set["spec"]["template"]
        metadata = template["metadata"] | {
            "generateName": f"{replica_set['metadata']['name']}-",
            "ownerReferences": [_reference(replica_set)],
        }
        spec = dict(template["spec"])
        if sum(bool(pod["spec"].get("nodeName")) for pod in self._pods.all()) < self.capacity:
            spec["nodeName"] = "node-1"
        made = self._client.create("pods", self._namespace, {"metadata": metadata, "spec": spec})
        self._pods.note(made)

    def _delete_pod(self, pod: Object) -> None:
        reply = self._client.delete("pods", self._namespace, pod["metadata"]["name"])
        if reply.status == 200 and "deletionTimestamp" in reply.body["metadata"]:
            self._pods.note(reply.body)
        else:
            self._pods.forget(pod)

    def _sweep(self) -> None:
        """What garbage collection does: those whose owner is gone go, too."""
        uids = {each["metadata"]["uid"] for each in [*self._deployments.all(), *self._replica_sets.all()]}
        for replica_set in self._replica_sets.all():
            if not _has_owner(replica_set, uids):
                self._client.delete("replicasets", self._namespace, replica_set["metadata"]["name"])
                self._replica_sets.forget(replica_set)
        for pod in self._pods.all():
            if rollout.is_active(pod) and not _has_owner(pod, uids):
                self._delete_pod(pod)

    def _say(self, plural: str, follower: Follower, thing: Object, status: Object) -> None:
        known = thing.get("status") or {}
        if {name: known.get(name, 0) for name in status} != status:
            path = path_of(plural, self._namespace, thing["metadata"]["name"], "status")
            reply = self._client.ask("PATCH", path, {"status": status}, MERGE)
            if reply.status == 200:
                follower.note(reply.body)


def _reference(owner: Object) -> Object:
    kind = "ReplicaSet" if HASH_LABEL in owner["metadata"].get("labels", {}) else "Deployment"
    name, uid = owner["metadata"]["name"], owner["metadata"]["uid"]
    names = {"apiVersion": "apps/v1", "kind": kind, "name": name, "uid": uid}
    return names | {"controller": True, "blockOwnerDeletion": True}


def _has_owner(thing: Object, uids: set[str]) -> bool:
    references = thing["metadata"].get("ownerReferences") or []
    return not references or any(each["uid"] in uids for each in references)


@contextlib.contextmanager
def controlling(cluster: Cluster, folder: Path, capacity: int = 100) -> Iterator[Controller]:
    """Controllers for one test's namespace."""
    controller = Controller(cluster, folder, capacity)
    controller.start()
    try:
        yield controller
    finally:
        controller.stop()
