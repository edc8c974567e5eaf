"""Plays the part of kubelets that resizes pods in place: gives containers what they are to have, or says why not.

As a kubelet does, it writes what was given into `status.containerStatuses[].resources`, and a condition
`PodResizePending` with the reason `Deferred` or `Infeasible` where the node has no room. With a folder, what was given
is also the CPU quota in a control group of each pod's own there, as cgroups(7) has it.
"""

import contextlib
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.kubernetes.client import MERGE, Client
from tests.kubernetes.cluster import NAME_LABEL, ROUTER, Cluster
from tests.kubernetes.double.resources import Object

_LOOK_SECONDS = 0.05


class Resizing:
    """The nodes of one namespace's router pods. `refusals` says of which CPUs on nodes refuse more, and why."""

    def __init__(self, cluster: Cluster, folder: Path | None = None) -> None:
        self.refusals: dict[float, str] = {}
        self.given: dict[str, list[str]] = {}
        """Every CPU limit that a pod was given, by its name."""
        self._cluster = cluster
        self._client = Client(cluster.access, "kubelet/1")
        self._folder = folder
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End."""
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(_LOOK_SECONDS):
            selector = f"{NAME_LABEL}={ROUTER}"
            for pod in self._client.list("pods", self._cluster.namespace, labelSelector=selector):
                if "deletionTimestamp" not in pod["metadata"] and pod.get("status", {}).get("containerStatuses"):
                    with contextlib.suppress(AssertionError):  # it is gone, or was changed meanwhile
                        self._look(pod)
        self._client.close()  # the connection is this thread's

    def _look(self, pod: Object) -> None:
        name, status = pod["metadata"]["name"], pod["status"]
        container = pod["spec"]["containers"][0]
        resources = container.get("resources", {})
        wanted = resources.get("limits", {}).get("cpu")
        if wanted is None:
            return
        own = status["containerStatuses"][0]
        refusal = next((why for most, why in self.refusals.items() if cpus(wanted) > most), None)
        conditions = [each for each in status.get("conditions", []) if each["type"] != "PodResizePending"]
        if refusal is not None:
            message = f"node has no room for {wanted}"
            conditions.append({"type": "PodResizePending", "status": "True", "reason": refusal, "message": message})
            given = own.get("resources")
        else:
            given = resources
            if self.given.setdefault(name, [])[-1:] != [wanted]:
                self.given[name].append(wanted)
            self._write_quota(name, cpus(wanted))
        if conditions != status.get("conditions") or given != own.get("resources"):
            fresh = {"conditions": conditions, "containerStatuses": [own | ({"resources": given} if given else {})]}
            version = {"resourceVersion": pod["metadata"]["resourceVersion"]}
            patch = {"metadata": version, "status": fresh}
            self._client.patch("pods", self._cluster.namespace, name, patch, sub="status", kind=MERGE)

    def _write_quota(self, name: str, cpus: float) -> None:
        if self._folder is not None:
            group = self._folder / name
            group.mkdir(exist_ok=True)
            fresh = group / "cpu.max.new"
            fresh.write_text(f"{round(cpus * 100_000)} 100000\n")
            fresh.replace(group / "cpu.max")


def cpus(text: str) -> float:
    """CPUs of a quantity."""
    return float(text[:-1]) / 1000 if text.endswith("m") else float(text)


@contextlib.contextmanager
def resizing(cluster: Cluster, folder: Path | None = None) -> Iterator[Resizing]:
    """While it plays."""
    nodes = Resizing(cluster, folder)
    try:
        yield nodes
    finally:
        nodes.stop()


def router_deployment(cluster: Cluster, replicas: int, cpu: Mapping[str, str], **pod: object) -> Object:
    """The router's own; `cpu` is what its container requests and its limit."""
    labels = {NAME_LABEL: ROUTER}
    resources = {"requests": {"cpu": cpu["requests"], "memory": "64Mi"}, "limits": {"cpu": cpu["limits"]}}
    container = {"name": ROUTER, "image": "azureml-fe:1", "resources": resources, **pod}
    spec = {
        "replicas": replicas,
        "selector": {"matchLabels": labels},
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
        "template": {
            "metadata": {"labels": labels},
            "spec": {
                "terminationGracePeriodSeconds": 30,
                "nodeSelector": cluster.own_nodes,
                "containers": [container],
            },
        },
    }
    return cluster.client.create(
        "deployments", cluster.namespace, {"metadata": {"name": ROUTER, "labels": labels}, "spec": spec}
    )
