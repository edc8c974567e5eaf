"""`azureml-fe local` with files of Azure ML instead of a local file."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from router.cli.main import main
from tests.processes import wait_until
from tests.routers import Router, StartRouter

NAME = "my-endpoint"
KEY = "a-key-of-the-first-sdk"

SCORE = """\
import os


def init():
    global weights
    with open(os.path.join(os.environ["AZUREML_MODEL_DIR"], "weights", "weights.txt")) as file:
        weights = file.read()


def run(data):
    return {"version": VERSION, "weights": weights, "greeting": os.environ["GREETING"]}
"""


def deployment(version: str, **fields: Any) -> dict[str, Any]:
    """Return the content of a file of a deployment, and create the files that it names."""
    return {
        "$schema": "https://azuremlschemas.azureedge.net/latest/kubernetesOnlineDeployment.schema.json",
        "name": version,
        "type": "kubernetes",
        "endpoint_name": NAME,
        "model": {"path": "weights"},
        "code_configuration": {"code": version, "scoring_script": "score.py"},
        "environment_variables": {"GREETING": "hello"},
        "readiness_probe": {"initial_delay": 0},
        "request_settings": {"max_queue_wait_ms": 60_000, "request_timeout_ms": 60_000},
        "instance_count": 1,
        **fields,
    }


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """An endpoint with two deployments; `green` has a key without a counterpart."""
    directory = tmp_path / "files"
    (directory / "weights").mkdir(parents=True)
    (directory / "weights" / "weights.txt").write_text("heavy")
    documents = {
        "endpoint.yml": {"name": NAME, "auth_mode": "key", "traffic": {"blue": 100, "green": 0}},
        "blue.yml": deployment("blue"),
        "green.yml": deployment("green", instance_type="large"),
    }
    for version in ("blue", "green"):
        (directory / version).mkdir()
        (directory / version / "score.py").write_text(f"VERSION = {version!r}\n{SCORE}")
    for name, document in documents.items():
        (directory / name).write_text(yaml.safe_dump(document))
    return [directory / name for name in documents]


def score(router: Router, version: str = "") -> dict[str, Any]:
    headers = {"azureml-model-deployment": version} if version else {}
    response = router.score(NAME, b"{}", Authorization=f"Bearer {router.key(NAME)}", **headers)
    assert response.status == 200, response
    document: dict[str, Any] = json.loads(response.body)
    return document


def test_endpoint_and_deployments_are_served(start: StartRouter, files: list[Path]) -> None:
    router = start({}, files=files)
    router.wait_for_replicas(NAME, 2)
    assert router.score(NAME).status == 401
    assert score(router) == {"version": "blue", "weights": "heavy", "greeting": "hello"}
    assert score(router, "green")["version"] == "green"
    (warning,) = router.log("key without effect")
    assert re.search(r"green\.yml, line \d+: instance_type: instance types are objects of Azure", warning["loss"])

    # A change of any file is applied, an invalid one is rejected.
    files[1].write_text(yaml.safe_dump(deployment("blue", environment_variables={"GREETING": "good evening"})))
    wait_until(lambda: score(router)["greeting"] == "good evening", "the changed environment")
    files[2].write_text(yaml.safe_dump(deployment("green", instance_count=-1)))
    (error,) = router.log("changed file rejected, keeping the previous one") or [
        json.loads(router.wait_for_stderr(r"\{.*changed file rejected.*\}")[0])
    ]
    assert "green.yml" in error["error"]
    assert "instance_count: service my-endpoint, version green: num_replicas" in error["error"]
    assert score(router, "green")["version"] == "green"


def test_converted_file_is_served(start: StartRouter, files: list[Path], tmp_path: Path) -> None:
    """Paths of the written file are relative to its directory, and work there."""
    out = tmp_path / "services.yaml"
    assert main(["convert", "--to", "local", "--accept-losses", "--out", str(out), *map(str, files)]) == 0
    assert (
        yaml.safe_load(out.read_text())["services"][NAME]["versions"]["blue"]["entry_script"] == "files/blue/score.py"
    )
    router = start({}, files=[out])
    router.wait_for_replicas(NAME, 2)
    assert score(router) == {"version": "blue", "weights": "heavy", "greeting": "hello"}


def test_files_of_v1_are_served(start: StartRouter, tmp_path: Path) -> None:
    directory = tmp_path / "iris"
    directory.mkdir()
    (directory / "score.py").write_text("def init(): pass\ndef run(data): return {'v': 1}\n")
    config = {"computeType": "AKS", "numReplicas": 1, "maxQueueWaitMs": 60000, "keys": {"primaryKey": KEY}}
    (directory / "deploymentconfig.json").write_text(json.dumps(config))
    (directory / "inferenceconfig.json").write_text(json.dumps({"entryScript": "score.py"}))
    router = start({}, files=[directory / "deploymentconfig.json", directory / "inferenceconfig.json"])
    router.wait_for_replicas("iris")
    response = router.score("iris", b"{}", Authorization=f"Bearer {KEY}")
    assert (response.status, json.loads(response.body)) == (200, {"v": 1})
    assert KEY not in router.stderr
