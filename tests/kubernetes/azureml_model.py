"""The shipped example as a container, served by the Azure ML inference HTTP server."""

import importlib.metadata
import os
import sys
from pathlib import Path

from router.cluster.local import example_path, exec_wrapper
from tests.kube_standin.api_server.resources import Object
from tests.kube_standin.echo_model import PORT


def azureml_container(directory: Path) -> Object:
    """Return the example's container. It stores the model that it trains in `directory`."""
    examples = example_path().parent
    server = [sys.executable, "-P", "-m", "azureml_inference_server_http"]
    # The server would listen on all addresses of the machine, so it gets a socket that is already bound.
    command = [sys.executable, "-I", "-S", exec_wrapper.__file__, str(os.getpid()), f"$(POD_IP):{PORT}", *server]
    command += ["--entry_script", str(examples / "score.py"), "--port", str(PORT), "--worker_count", "1"]
    variables = {"AML_APP_ROOT": str(examples), "AZUREML_MODEL_DIR": str(directory)}
    if int(importlib.metadata.version("gunicorn").partition(".")[0]) >= 25:
        variables["GUNICORN_CMD_ARGS"] = "--no-control-socket"
    environment = [{"name": name, "value": value} for name, value in variables.items()]
    return {"command": command, "env": environment, "readinessProbe": {"httpGet": {"path": "/", "port": PORT}}}
