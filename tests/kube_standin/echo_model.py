"""Models for tests: Deployments of the echo server, which the kubelet can run."""

import http.client
import json
import sys
from collections.abc import Mapping
from typing import Any

from tests.kube_standin.api_server.resources import Object
from tests.kube_standin.cluster import Cluster
from tests.processes import ECHO_SERVER

PORT = 5001


def echo_container(**options: object) -> Object:
    """Return a container that responds with the request's body. `options` are those of the echo server.

    It drains on SIGTERM unless `drain` is None.
    """
    command = [sys.executable, str(ECHO_SERVER), "--host", "$(POD_IP)", "--port", str(PORT)]
    for name, value in {"drain": 1, **options}.items():
        if value is None:
            continue
        command += [f"--{name.replace('_', '-')}", str(value)]
    return {"command": command, "readinessProbe": {"httpGet": {"path": "/", "port": PORT}}}


def deploy_echo(
    cluster: Cluster,
    name: str,
    replicas: int = 1,
    settings: Mapping[str, object] | None = None,
    labels: Mapping[str, str] | None = None,
    **options: object,
) -> Object:
    """Create an echo model. `settings` are annotations without their prefix."""
    annotations = {f"azureml-fe/{name}": str(value) for name, value in (settings or {}).items()}
    container = echo_container(**options)
    return cluster.create_deployment(name, replicas, annotations, labels, grace_seconds=30, **container)


def request_to_model(address: str, path: str, method: str = "GET", body: bytes | None = None) -> tuple[int, bytes]:
    """Send a request to a pod directly, not through the router. Return the response's status and body."""
    connection = http.client.HTTPConnection(address, PORT, timeout=10)
    try:
        connection.request(method, path, body)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def echo_server_stats(pod: Object) -> dict[str, Any]:
    """Return the request counters of a pod's echo server."""
    counters: dict[str, Any] = json.loads(request_to_model(pod["status"]["podIP"], "/stats")[1])
    return counters
