"""Routers as pods of the stand-in: processes with a CPU quota each, on nodes that resize them in place."""

import contextlib
import http.client
import json
import re
import secrets
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from tests.cluster.kubernetes.roles import admission_policy, cluster_rules, self_scaling_rules
from tests.kube_standin.api_server.resources import Object
from tests.kube_standin.client import Access
from tests.kube_standin.cluster import ROUTER, Cluster
from tests.kube_standin.controller_manager import ControllerManager
from tests.kube_standin.echo_model import PORT
from tests.kube_standin.resizing_nodes import ResizingNodes, cpus, create_router_deployment, running_resizing_nodes
from tests.kube_standin.rollout import is_active, is_ready
from tests.named_requests import SERVER, Address
from tests.processes import TIMEOUT_SECONDS, send_request_over, wait_until

MODEL = "iris"
PODS = 3
QUICK_SELF_SCALING = {
    "self_scaling_cpu_steps": "1,2",
    "self_scaling_min_pods": PODS,
    "self_scaling_max_pods": PODS + 1,
    "self_scaling_window_seconds": 3,
    "self_scaling_route_time_threshold_ms": 15,  # more than the delays of a busy machine
    "self_scaling_up_cooldown_seconds": 1,
    "self_scaling_down_cooldown_seconds": 4,
    # The test machine has fewer cores than the pods together.
    "self_scaling_busy_cpu_percent": 5,
}
"""Settings with which routers change their size within seconds."""
_LEADER_SAMPLE = "\nazureml_fe_leader 1.0"
_SERVE_WITH_QUOTA = Path(__file__).parents[2] / "kubernetes" / "serve_with_cpu_quota.py"


@contextlib.contextmanager
def running_nodes(cluster: Cluster, directory: Path) -> Iterator[ResizingNodes]:
    """Run one large node. The pods' control groups are directories in `directory`."""
    groups = directory / "control groups"
    groups.mkdir()
    cluster.create_node("node", cpu="64", memory="64Gi")
    with running_resizing_nodes(cluster, groups) as nodes:
        yield nodes


def _variable(name: str, value: object) -> Object:
    return {"name": f"AZUREML_FE_{name.upper()}", "value": str(value)}


def _field_variable(name: str, path: str) -> Object:
    return {"name": f"AZUREML_FE_{name.upper()}", "valueFrom": {"fieldRef": {"fieldPath": path}}}


def start_routers(
    cluster: Cluster,
    controller: ControllerManager,
    directory: Path,
    settings: Mapping[str, object],
    access: Access | None = None,
) -> list[Address]:
    """Deploy a model that records its requests, and routers, which use `access` to reach the API server. Wait until the
    routers serve the model. Return the addresses of its replicas."""
    _deploy_model(cluster)
    _deploy_routers(cluster, directory, settings, access)
    replicas = controller.wait_ready(MODEL, 2)
    controller.wait_ready(ROUTER, PODS)
    wait_until(
        lambda: all(MODEL in get_admin_page(host, "/metrics") for host, _ in ready_routers(controller)), "the model"
    )
    return [(pod["status"]["podIP"], PORT) for pod in replicas]


def ready_routers(controller: ControllerManager) -> list[Address]:
    """Return the addresses to which the Service sends clients."""
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
    cluster.create_deployment(MODEL, 2, annotations, **container)


def _deploy_routers(cluster: Cluster, directory: Path, settings: Mapping[str, object], access: Access | None) -> None:
    """Deploy routers as the chart does."""
    cluster.create_service_account(ROUTER)
    cluster.grant(ROUTER, self_scaling_rules())
    cluster.grant(ROUTER, cluster_rules(), everywhere=True)
    cluster.apply(admission_policy(cluster.namespace))
    secret = directory / "peers"
    secret.write_bytes(secrets.token_bytes(32))
    variables = {
        "peer_secret_file": secret,
        "kubeconfig": cluster.write_kubeconfig(ROUTER, access),
        "namespaces": cluster.namespace,
        "pod_namespace": cluster.namespace,
        "allow_insecure_connections": "true",
        "drain_seconds": 20,
        **settings,
    }
    env = [_variable(name, value) for name, value in variables.items()]
    env += [_field_variable("pod_name", "metadata.name")]
    env += [_field_variable(name, "status.podIP") for name in ("pod_ip", "host", "admin_host")]
    env += [{"name": "TESTS_CONTROL_GROUPS", "value": str(directory / "control groups")}]
    create_router_deployment(
        cluster,
        PODS,
        {"requests": "500m", "limits": "1"},
        command=[sys.executable, str(_SERVE_WITH_QUOTA), "serve"],
        env=env,
        readinessProbe={"httpGet": {"path": "/readyz", "port": 9090}},
        lifecycle={"preStop": {"sleep": {"seconds": 2}}},
    )


def router_pods(cluster: Cluster) -> list[Object]:
    """Return the routers' pods that are not being deleted."""
    return [pod for pod in cluster.list_pods(ROUTER) if is_active(pod)]


class RouterSize(NamedTuple):
    """CPU limits of the pods, the number of ready pods, and `spec.replicas`."""

    cpus: set[float]
    ready_pods: int
    desired_pods: int


def router_size(cluster: Cluster) -> RouterSize:
    """Return the present size of the router."""
    pods = router_pods(cluster)
    limits = {cpus(pod["spec"]["containers"][0]["resources"]["limits"]["cpu"]) for pod in pods}
    return RouterSize(limits, sum(map(is_ready, pods)), cluster.desired_replicas(ROUTER))


def leading_pod(cluster: Cluster) -> str:
    """Return the pod of the leader; "" if there is none."""
    leaders = (
        pod["metadata"]["name"]
        for pod in router_pods(cluster)
        if is_ready(pod) and _LEADER_SAMPLE in get_admin_page(pod["status"]["podIP"], "/metrics")
    )
    return next(leaders, "")


def worker_counts(cluster: Cluster) -> list[int]:
    """Return the number of worker processes of each router; 0 if it does not respond."""
    counts = []
    for pod in router_pods(cluster):
        text = get_admin_page(pod["status"].get("podIP", ""), "/metrics")
        number = re.search(r"^azureml_fe_workers (\S+)$", text, re.MULTILINE)
        counts.append(int(float(number[1])) if number else 0)
    return counts


def get_admin_page(address: str, path: str) -> str:
    """Return a page of a router's admin port; "" if it does not respond, as it is starting or has ended."""
    with (
        contextlib.suppress(OSError, http.client.HTTPException),
        contextlib.closing(http.client.HTTPConnection(address, 9090, timeout=TIMEOUT_SECONDS)) as connection,
    ):
        return send_request_over(connection, path).body.decode()
    return ""


def logged_decisions(controller: ControllerManager) -> list[Object]:
    """Return the log lines of all routers about self-scaling decisions, in order of time."""
    decisions = []
    for log in controller.kubelet.directory.glob(f"{ROUTER}-*.log"):
        complete_lines, _, _ = log.read_text().rpartition("\n")
        decisions += [json.loads(line) for line in complete_lines.splitlines() if '"self-scaling decision"' in line]
    return sorted(decisions, key=lambda line: str(line["time"]))
