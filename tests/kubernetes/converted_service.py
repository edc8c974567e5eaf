"""An endpoint of Azure ML with two deployments, as objects that `azureml-fe convert` makes of its files."""

import importlib.metadata
import os
import sys
from pathlib import Path
from typing import Any

import yaml

from router.cli.main import main
from router.cluster.local import exec_wrapper
from tests.kube_standin.echo_model import PORT

IMAGE = "example/model"
SECRET = "a-token-of-the-model"
MODEL = b"\x80\x00weights"

_SCORE = """\
import os

from parts import helper


def init():
    global model
    with open(os.path.join(os.environ["AZUREML_MODEL_DIR"], "weights", "model.bin"), "rb") as file:
        model = file.read()


def run(data):
    return {"version": helper.VERSION, "model": len(model), "token": os.environ["MODEL_TOKEN"]}
"""


def write_files(directory: Path, endpoint: str) -> list[Path]:
    """Write the files of an endpoint whose deployments `blue` and `green` have 90 and 10 percent of the traffic."""
    traffic = {"blue": 90, "green": 10}
    documents: dict[str, Any] = {
        "endpoint.yml": {"name": endpoint, "compute": "azureml:aks", "auth_mode": "key", "traffic": traffic},
    }
    for version in traffic:
        code = directory / version
        (code / "parts").mkdir(parents=True)
        (code / "score.py").write_text(_SCORE)
        (code / "parts" / "__init__.py").touch()
        (code / "parts" / "helper.py").write_text(f"VERSION = {version!r}\n")
        documents[f"{version}.yml"] = {
            "name": version,
            "type": "kubernetes",
            "endpoint_name": endpoint,
            "code_configuration": {"code": version, "scoring_script": "score.py"},
            "model": {"name": "weights", "version": 3, "path": "weights"},
            "environment": {"image": "example/unused"},
            "environment_variables": {"MODEL_TOKEN": SECRET},
            "request_settings": {"request_timeout_ms": 60_000, "max_queue_wait_ms": 25_000},
            "tags": {"team": version},
            "instance_count": 1,
        }
    (directory / "weights").mkdir()
    (directory / "weights" / "model.bin").write_bytes(MODEL)
    for name, document in documents.items():
        (directory / name).write_text(yaml.safe_dump(document))
    return [directory / name for name in documents]


def converted_objects(files: list[Path], namespace: str) -> list[Any]:
    """Convert the files, and return the objects for a namespace."""
    out = files[0].with_name("manifests.yaml")
    command = ["convert", "--to", "kubernetes", "--image", f"{IMAGE}:1", "--out", str(out), *map(str, files)]
    assert main(command) == 0
    objects = list(yaml.safe_load_all(out.read_text()))
    for each in objects:
        each["metadata"]["namespace"] = namespace
    return objects


def entrypoint() -> list[str]:
    """Return the entrypoint of `IMAGE`: Azure's inference server at the address of its pod."""
    # The server would listen on all addresses of the machine, so it gets a socket that is already bound.
    wrapper = f"{sys.executable} -I -S {exec_wrapper.__file__} {os.getpid()} $POD_IP:{PORT}"
    server = f"{sys.executable} -P -m azureml_inference_server_http --port {PORT} --worker_count 1"
    has_control_socket = int(importlib.metadata.version("gunicorn").partition(".")[0]) >= 25
    arguments = "GUNICORN_CMD_ARGS=--no-control-socket " if has_control_socket else ""
    script = '--entry_script "$AML_APP_ROOT/$AZUREML_ENTRY_SCRIPT"'
    return ["sh", "-c", f"{arguments}exec {wrapper} {server} {script}"]
