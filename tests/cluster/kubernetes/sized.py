"""Routers in a cluster, each with a CPU quota of its own: pods as processes, on nodes that resize them in place."""

import contextlib
import http.client
import json
import re
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
from tests.kubernetes.models import PORT
from tests.kubernetes.resizing import Resizing, cpus, resizing, router_deployment
from tests.kubernetes.rollout import is_active, is_ready
from tests.named_requests import SERVER, Address
from tests.processes import PATIENCE_SECONDS, ask_over, until

MODEL = "iris"
PODS = 3
QUICK = {
    "self_scaling_cpu_steps": "1,2",
    "self_scaling_min_pods": PODS,
    "self_scaling_max_pods": PODS + 1,
    "self_scaling_window_seconds": 3,
    "self_scaling_route_time_threshold_ms": 15,  # above what a busy machine adds by itself
    "self_scaling_up_cooldown_seconds": 1,
    "self_scaling_down_cooldown_seconds": 4,
    # The cores of the machine that runs this are fewer than those of the pods together.
    "self_scaling_busy_cpu_percent": 5,
}
"""Settings by which routers size themselves within seconds."""
_METRIC_LEADER = "\nazureml_fe_leader 1.0"
MAIN = Path(__file__).parents[2] / "kubernetes" / "router_main.py"


@contextlib.contextmanager
def nodes_of(cluster: Cluster, folder: Path) -> Iterator[Resizing]:
    """A node with room, and its kubelet; control groups are folders in `folder`."""
    groups = folder / "control groups"
    groups.mkdir()
    cluster.node("node", cpu="64", memory="64Gi")
    with resizing(cluster, groups) as found:
        yield found


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


def begin(
    cluster: Cluster,
    controller: Controller,
    folder: Path,
    settings: Mapping[str, object],
    access: Access | None = None,
) -> list[Address]:
    """A model that records what it gets, and routers, which reach the API server by `access`. Wait until they serve it;
    where the model's replicas are."""
    _deploy_model(cluster)
    _install(cluster, folder, settings, access)
    replicas = controller.ready(MODEL, 2)
    controller.ready(ROUTER, PODS)
    until(lambda: all(MODEL in ask_at(host, "/metrics") for host, _ in routers(controller)), "the model")
    return [(pod["status"]["podIP"], PORT) for pod in replicas]


def routers(controller: Controller) -> list[Address]:
    """Where the Service would send clients, as of a moment ago."""
    pods = [pod for pod in controller.pods(ROUTER) if is_active(pod) and is_ready(pod)]
    return [(pod["status"]["podIP"], 8080) for pod in pods]


def _deploy_model(cluster: Cluster) -> None:
    container: Object = {
        "command": [*SERVER, "--host", "$(POD_IP)", "--port", str(PORT)],
        "readinessProbe": {"httpGet": {"path": "/", "port": PORT}},
    }
    settings = {
        "auth-enabled": "false",
        "num-replicas": "2",
        "replica-max-concurrent-requests": "100",
        "max-request-wait-time": "10000",
    }
    annotations = {f"azureml-fe/{name}": value for name, value in settings.items()}
    cluster.deployment(MODEL, 2, annotations, **container)


def _install(cluster: Cluster, folder: Path, settings: Mapping[str, object], access: Access | None) -> None:
    """Routers, as the chart installs them."""
    cluster.account(ROUTER)
    cluster.allow(ROUTER, rules("own"))
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
        PODS,
        {"requests": "500m", "limits": "1"},
        command=[sys.executable, str(MAIN), "serve"],
        env=env,
        readinessProbe={"httpGet": {"path": "/readyz", "port": 9090}},
        lifecycle={"preStop": {"sleep": {"seconds": 2}}},
    )


def router_pods(cluster: Cluster) -> list[Object]:
    """Those that stay."""
    return [pod for pod in cluster.pods(ROUTER) if is_active(pod)]


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
        if is_ready(pod) and _METRIC_LEADER in ask_at(pod["status"]["podIP"], "/metrics")
    )
    return next(leading, "")


def workers(cluster: Cluster) -> list[int]:
    """Worker processes of each router; 0 for one that does not answer."""
    found = []
    for pod in router_pods(cluster):
        text = ask_at(pod["status"].get("podIP", ""), "/metrics")
        number = re.search(r"^azureml_fe_workers (\S+)$", text, re.MULTILINE)
        found.append(int(float(number[1])) if number else 0)
    return found


def ask_at(address: str, path: str) -> str:
    """What a router tells operators; nothing when it has just begun or ended."""
    with (
        contextlib.suppress(OSError, http.client.HTTPException),
        contextlib.closing(http.client.HTTPConnection(address, 9090, timeout=PATIENCE_SECONDS)) as line,
    ):
        return ask_over(line, path).body.decode()
    return ""


def decisions(controller: Controller) -> list[Object]:
    """What routers have logged of their decisions, in order of time."""
    found = []
    for log in controller.kubelet.folder.glob(f"{ROUTER}-*.log"):
        whole, _, _ = log.read_text().rpartition("\n")
        found += [json.loads(line) for line in whole.splitlines() if '"self-scaling decision"' in line]
    return sorted(found, key=lambda line: str(line["time"]))
