"""Models as tests deploy them: Deployments whose containers the kubelet of the tests can run."""

import http.client
import importlib.metadata
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from router.cluster.local import child, example_path
from tests.kubernetes.cluster import Cluster
from tests.kubernetes.double.resources import Object
from tests.processes import ECHO_SERVER

PORT = 5001


def echo_container(**options: object) -> Object:
    """One that answers with what it gets; `delay` and the like are options of the server.

    It drains on SIGTERM, unless `drain` is None.
    """
    words = [sys.executable, str(ECHO_SERVER), "--host", "$(POD_IP)", "--port", str(PORT)]
    for name, value in {"drain": 1, **options}.items():
        if value is None:
            continue
        words += [f"--{name.replace('_', '-')}", str(value)]
    return {"command": words, "readinessProbe": {"httpGet": {"path": "/", "port": PORT}}}


def deploy_echo(
    cluster: Cluster,
    name: str,
    replicas: int = 1,
    settings: Mapping[str, object] | None = None,
    labels: Mapping[str, str] | None = None,
    **options: object,
) -> Object:
    """A model; `settings` by their names in annotations, without the prefix."""
    annotations = {f"azureml-fe/{name}": str(value) for name, value in (settings or {}).items()}
    return cluster.deployment(name, replicas, annotations, labels, **echo_container(**options))


def azureml_container(folder: Path) -> Object:
    """The shipped example behind the model server of Azure ML; what it trains is kept in `folder`."""
    examples = example_path().parent
    server = [sys.executable, "-P", "-m", "azureml_inference_server_http"]
    # The server would listen on all addresses of the machine; it takes the socket that it is passed.
    words = [sys.executable, "-I", "-S", child.__file__, str(os.getpid()), f"$(POD_IP):{PORT}", *server]
    words += ["--entry_script", str(examples / "score.py"), "--port", str(PORT), "--worker_count", "1"]
    variables = {"AML_APP_ROOT": str(examples), "AZUREML_MODEL_DIR": str(folder)}
    if int(importlib.metadata.version("gunicorn").partition(".")[0]) >= 25:
        variables["GUNICORN_CMD_ARGS"] = "--no-control-socket"
    environment = [{"name": name, "value": value} for name, value in variables.items()]
    return {"command": words, "env": environment, "readinessProbe": {"httpGet": {"path": "/", "port": PORT}}}


def ask_model(address: str, path: str, method: str = "GET", body: bytes | None = None) -> tuple[int, bytes]:
    """Ask a pod past the router."""
    connection = http.client.HTTPConnection(address, PORT, timeout=10)
    try:
        connection.request(method, path, body)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def statistics(pod: Object) -> dict[str, Any]:
    """What a pod's server counts."""
    counts: dict[str, Any] = json.loads(ask_model(pod["status"]["podIP"], "/stats")[1])
    return counts
