"""The part of a kubelet that resizes pods in place.

It copies a container's resources to `status.containerStatuses[].resources`. If the node has no room, it sets the
condition `PodResizePending` with the reason `Deferred` or `Infeasible` instead. With a directory it also writes the CPU
quota of each pod to a `cpu.max` file of the pod's own control group there (cgroups(7)).
"""

import contextlib
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.kube_standin.api_server.resources import Object
from tests.kube_standin.client import MERGE, Client
from tests.kube_standin.cluster import NAME_LABEL, ROUTER, Cluster

_POLL_SECONDS = 0.05


class ResizingNodes:
    """The nodes of one namespace's router pods. `refusals` maps the CPU count above which they refuse to the reason."""

    def __init__(self, cluster: Cluster, directory: Path | None = None) -> None:
        self.refusals: dict[float, str] = {}
        self.applied_limits: dict[str, list[str]] = {}
        """All CPU limits that each pod has had, by pod name."""
        self._cluster = cluster
        self._client = Client(cluster.access, "kubelet/1")
        self._directory = directory
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread."""
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping.wait(_POLL_SECONDS):
            selector = f"{NAME_LABEL}={ROUTER}"
            for pod in self._client.list("pods", self._cluster.namespace, labelSelector=selector):
                if "deletionTimestamp" not in pod["metadata"] and pod.get("status", {}).get("containerStatuses"):
                    with contextlib.suppress(AssertionError):  # it was deleted or changed in the meantime
                        self._reconcile(pod)
        self._client.close()  # this thread's connection

    def _reconcile(self, pod: Object) -> None:
        name, status = pod["metadata"]["name"], pod["status"]
        container = pod["spec"]["containers"][0]
        resources = container.get("resources", {})
        limit = resources.get("limits", {}).get("cpu")
        if limit is None:
            return
        container_status = status["containerStatuses"][0]
        refusal = next((reason for maximum, reason in self.refusals.items() if cpus(limit) > maximum), None)
        conditions = [each for each in status.get("conditions", []) if each["type"] != "PodResizePending"]
        if refusal is not None:
            message = f"node has no room for {limit}"
            conditions.append({"type": "PodResizePending", "status": "True", "reason": refusal, "message": message})
            applied = container_status.get("resources")
        else:
            applied = resources
            if self.applied_limits.setdefault(name, [])[-1:] != [limit]:
                self.applied_limits[name].append(limit)
            self._write_quota(name, cpus(limit))
        if conditions != status.get("conditions") or applied != container_status.get("resources"):
            new_container_status = container_status | ({"resources": applied} if applied else {})
            version = {"resourceVersion": pod["metadata"]["resourceVersion"]}
            new_status = {"conditions": conditions, "containerStatuses": [new_container_status]}
            patch = {"metadata": version, "status": new_status}
            self._client.patch("pods", self._cluster.namespace, name, patch, sub="status", kind=MERGE)

    def _write_quota(self, name: str, cpus: float) -> None:
        if self._directory is not None:
            group = self._directory / name
            group.mkdir(exist_ok=True)
            temporary = group / "cpu.max.new"
            temporary.write_text(f"{round(cpus * 100_000)} 100000\n")
            temporary.replace(group / "cpu.max")


def cpus(quantity: str) -> float:
    """Return the number of CPUs of a quantity such as `500m` or `2`."""
    return float(quantity[:-1]) / 1000 if quantity.endswith("m") else float(quantity)


@contextlib.contextmanager
def running_resizing_nodes(cluster: Cluster, directory: Path | None = None) -> Iterator[ResizingNodes]:
    """Resize pods inside the `with` block."""
    nodes = ResizingNodes(cluster, directory)
    try:
        yield nodes
    finally:
        nodes.stop()


def create_router_deployment(
    cluster: Cluster, replicas: int, cpu: Mapping[str, str], **container_fields: object
) -> Object:
    """Create the router's Deployment. `cpu` has the `requests` and `limits` of its container."""
    labels = {NAME_LABEL: ROUTER}
    resources = {"requests": {"cpu": cpu["requests"], "memory": "64Mi"}, "limits": {"cpu": cpu["limits"]}}
    container = {"name": ROUTER, "image": "azureml-fe:1", "resources": resources, **container_fields}
    spec = {
        "replicas": replicas,
        "selector": {"matchLabels": labels},
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
        "template": {
            "metadata": {"labels": labels, "annotations": {"azureml-fe/cpu-limit": cpu["limits"]}},
            "spec": {
                "terminationGracePeriodSeconds": 30,
                "nodeSelector": cluster.node_labels,
                "containers": [container],
            },
        },
    }
    return cluster.client.create(
        "deployments", cluster.namespace, {"metadata": {"name": ROUTER, "labels": labels}, "spec": spec}
    )
