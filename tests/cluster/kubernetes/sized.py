"""Routers in a cluster, each with a CPU quota of its own: pods as processes, on nodes that resize them in place."""

import contextlib
import http.client
import json
import secrets
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from router.cluster.kubernetes.access import ACCESS, SIZING_ACCESS
from tests.kubernetes.client import Access
from tests.kubernetes.cluster import ROUTER, Cluster
from tests.kubernetes.controller import Controller
from tests.kubernetes.double.resources import Object
from tests.kubernetes.resizing import Resizing, cpus, resizing, router_deployment
from tests.kubernetes.rollout import is_ready
from tests.processes import PATIENCE_SECONDS, ask_over

MAIN = Path(__file__).parents[2] / "kubernetes" / "router_main.py"


@contextlib.contextmanager
def nodes_of(cluster: Cluster, folder: Path) -> Iterator[Resizing]:
    """A node with room, and its kubelet; control groups are folders in `folder`."""
    groups = folder / "control groups"
    groups.mkdir()
    name = f"node-{cluster.namespace}"
    cluster.client.create("nodes", "", {"metadata": {"name": name}})
    allocatable = {"cpu": "64", "memory": "64Gi", "pods": "110"}
    status = {"allocatable": allocatable, "capacity": allocatable}
    cluster.client.patch("nodes", "", name, {"status": status}, sub="status")
    try:
        with resizing(cluster, groups) as found:
            yield found
    finally:
        cluster.client.delete("nodes", "", name)


def variable(name: str, value: object) -> Object:
    return {"name": f"AZUREML_FE_{name.upper()}", "value": str(value)}


def field(name: str, path: str) -> Object:
    return {"name": f"AZUREML_FE_{name.upper()}", "valueFrom": {"fieldRef": {"fieldPath": path}}}


def rules(scope: str, withheld: str = "") -> list[dict[str, Any]]:
    """What the router may do, less what is `withheld`: `own` and `models` are one namespace here."""
    return [
        {"apiGroups": [entry.group], "resources": [entry.resource], "verbs": list(entry.verbs)}
        | ({"resourceNames": [entry.name]} if entry.name else {})
        for entry in (*ACCESS, *SIZING_ACCESS)
        if (entry.scope == "cluster") is (scope == "cluster") and entry.resource != withheld
    ]


def install(
    cluster: Cluster, folder: Path, settings: Mapping[str, object], *, access: Access | None = None, withheld: str = ""
) -> None:
    """Three routers, as the chart installs them. `access`: how they reach the API server; `withheld`: a resource on
    which they have no rights."""
    cluster.account(ROUTER)
    cluster.allow(ROUTER, rules("own", withheld))
    cluster.allow(ROUTER, rules("cluster"), everywhere=True)
    secret = folder / "peers"
    secret.write_bytes(secrets.token_bytes(32))
    variables = {
        "peer_secret_file": secret,
        "kubeconfig": cluster.kubeconfig(ROUTER, access),
        "namespaces": cluster.namespace,
        "pod_namespace": cluster.namespace,
        "allow_insecure_connections": "true",
        "drain_seconds": 20,
        **settings,
    }
    env = [variable(name, value) for name, value in variables.items()]
    env += [field("pod_name", "metadata.name")]
    env += [field(name, "status.podIP") for name in ("pod_ip", "host", "admin_host")]
    env += [{"name": "TESTS_CONTROL_GROUPS", "value": str(folder / "control groups")}]
    router_deployment(
        cluster,
        3,
        {"requests": "500m", "limits": "1"},
        command=[sys.executable, str(MAIN), "serve"],
        env=env,
        readinessProbe={"httpGet": {"path": "/readyz", "port": 9090}},
        lifecycle={"preStop": {"sleep": {"seconds": 2}}},
    )


def router_pods(cluster: Cluster) -> list[Object]:
    """Those that stay."""
    return [pod for pod in cluster.pods(ROUTER) if "deletionTimestamp" not in pod["metadata"]]


def size(cluster: Cluster) -> tuple[set[float], int, int]:
    """CPU limits of the pods, how many are ready, and how many there are to be."""
    pods = router_pods(cluster)
    limits = {cpus(pod["spec"]["containers"][0]["resources"]["limits"]["cpu"]) for pod in pods}
    return limits, sum(map(is_ready, pods)), cluster.replicas(ROUTER)


def leader(cluster: Cluster) -> str:
    """The pod that leads; "" if none says so."""
    leading = (
        pod["metadata"]["name"]
        for pod in router_pods(cluster)
        if is_ready(pod) and "\nazureml_fe_leader 1.0" in ask_at(pod["status"]["podIP"], "/metrics")
    )
    return next(leading, "")


def workers(cluster: Cluster) -> list[int]:
    """Worker processes of each router."""
    found = []
    for pod in router_pods(cluster):
        text = ask_at(pod["status"]["podIP"], "/metrics")
        found.append(int(float(text.split("\nazureml_fe_workers ")[1].split("\n")[0])))
    return found


def ask_at(address: str, path: str) -> str:
    line = http.client.HTTPConnection(address, 9090, timeout=PATIENCE_SECONDS)
    try:
        return ask_over(line, path).body.decode()
    finally:
        line.close()


def decisions(controller: Controller) -> list[tuple[str, str]]:
    """Actions and outcomes that routers have logged."""
    found = []
    for log in sorted(controller.kubelet.folder.glob(f"{ROUTER}-*.log")):
        for line in log.read_text().splitlines():
            if '"self-scaling decision"' in line:
                said = json.loads(line)
                found.append((said["time"], said["action"], said["outcome"]))
    return [(action, outcome) for _, action, outcome in sorted(found)]
