"""Deployment files of Azure ML are converted and run on this machine. Their SDK scores with the workspace's keys."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.processes import echo_server, send_request, wait_until
from tests.routers import ROOT, Router, StartRouter
from tests.sdk.management_plane import ManagementPlane
from tests.sdk.sdks import V1, V2, endpoint_of, needs_sdks, run_command, run_sdk, score_v1, score_v2

pytestmark = needs_sdks

KEYS = {"primaryKey": "Zm9yIHRlc3RzIG9ubHksIDE=", "secondaryKey": "Zm9yIHRlc3RzIG9ubHksIDI="}
ENTRY_SCRIPT = """
import json
import os


def init():
    global factor
    factor = int(os.environ["FACTOR"])


def run(data):
    return {"products": [factor * each for each in json.loads(data)["data"]]}
"""
V1_FILES = {
    "score.py": ENTRY_SCRIPT,
    "inferenceconfig.json": json.dumps(
        {
            "entryScript": "score.py",
            "sourceDirectory": ".",
            "environment": {"name": "products", "environmentVariables": {"FACTOR": "2"}},
        }
    ),
    "deploymentconfig.json": json.dumps(
        {
            "computeType": "AKS",
            "autoScaler": {"autoscaleEnabled": True, "minReplicas": 1, "maxReplicas": 3, "targetUtilization": 70},
            "authEnabled": True,
            "containerResourceRequirements": {"cpu": 0.1, "memoryInGB": 0.5},
            "scoringTimeoutMs": 20_000,
            "maxQueueWaitMs": 5_000,
            "maxConcurrentRequestsPerContainer": 1,
            "appInsightsEnabled": True,
        }
    ),
}
ENDPOINT = """
$schema: https://azuremlschemas.azureedge.net/latest/kubernetesOnlineEndpoint.schema.json
name: products
compute: azureml:cluster
auth_mode: key
traffic: {blue: 100, green: 0}
"""
DEPLOYMENT = """
$schema: https://azuremlschemas.azureedge.net/latest/kubernetesOnlineDeployment.schema.json
name: NAME
type: kubernetes
endpoint_name: products
code_configuration: {code: ./source, scoring_script: score.py}
environment: azureml:products:1
environment_variables: {FACTOR: VALUE}
instance_count: 1
request_settings: {request_timeout_ms: 20000, max_queue_wait_ms: 5000}
readiness_probe: {initial_delay: 1, period: 1}
"""
V2_FILES = {
    "source/score.py": ENTRY_SCRIPT,
    "endpoint.yml": ENDPOINT,
    "blue.yml": DEPLOYMENT.replace("NAME", "blue").replace("VALUE", "'2'"),
    "green.yml": DEPLOYMENT.replace("NAME", "green").replace("VALUE", "'3'"),
}

CUSTOM_CONTAINER = """
$schema: https://azuremlschemas.azureedge.net/latest/kubernetesOnlineDeployment.schema.json
name: blue
type: kubernetes
endpoint_name: products
environment:
  image: models.azurecr.io/custom:1
  inference_config:
    liveness_route: {port: PORT, path: /}
    readiness_route: {port: PORT, path: /}
    scoring_route: {port: PORT, path: /headers}
instance_count: 1
request_settings: {request_timeout_ms: 20000}
readiness_probe: {initial_delay: 1, period: 1}
"""


@pytest.fixture
def convert(tmp_path: Path, start: StartRouter) -> Any:
    """Writes files, converts some of them, and starts a router with the result."""

    def convert_files(files: dict[str, str], *converted: str, **settings: Any) -> Router:
        directory = tmp_path / "products"
        for name, text in files.items():
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            (directory / name).write_text(text)
        command = [sys.executable, "-m", "router", "convert", "--to", "local", "--accept-losses"]
        command += ["--out", str(directory / "services.yaml"), *(str(directory / name) for name in converted)]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
        services = yaml.safe_load((directory / "services.yaml").read_text())["services"]
        # The fixture writes a file of its own, in another directory.
        for service in services.values():
            for level in (service, *service.get("versions", {}).values()):
                if "entry_script" in level:
                    level["entry_script"] = str(directory / level["entry_script"])
                    level["environment"]["AML_APP_ROOT"] = str(Path(level["entry_script"]).parent)
        return start(services, **settings)

    return convert_files


def import_keys(plane: ManagementPlane, router: Router, version: int) -> None:
    """Import the keys as the SDK prints those of the workspace. From now on the workspace has the router's keys."""
    prefix = V1 if version == 1 else V2
    plane.endpoints = {
        "products": endpoint_of(router, "products", prefix, versions=("blue", "green")[: version * 2 - 2])
    }
    own_keys, plane.endpoints["products"].keys = plane.endpoints["products"].keys, lambda: KEYS
    printed = run_sdk(plane, version, "products", "keys")
    run_command(router, "keys", "import", "products", "--replace", text=printed)
    plane.endpoints["products"].keys = own_keys
    assert own_keys() == KEYS
    path, authorization = f"{prefix}/products/swagger.json", f"Bearer {KEYS['primaryKey']}"
    wait_until(
        lambda: send_request(router.port, path, Authorization=authorization).status == 200,
        "a ready replica, and the imported keys to be accepted",
        seconds=60,
    )


def test_service_of_v1(plane: ManagementPlane, convert: Any) -> None:
    router = convert(V1_FILES, "deploymentconfig.json", "inferenceconfig.json")
    import_keys(plane, router, 1)
    assert score_v1(plane, "products", {"data": [1, 2]}) == {"class": "AksWebservice", "result": {"products": [2, 4]}}


def test_endpoint_of_v2(plane: ManagementPlane, convert: Any, tmp_path: Path) -> None:
    router = convert(V2_FILES, "endpoint.yml", "blue.yml", "green.yml", compatibility="v2")
    import_keys(plane, router, 2)
    wait_until(lambda: len(router.log("replica is ready")) == 2, "a replica of each deployment", seconds=60)
    body = {"data": [1, 2]}
    assert score_v2(plane, "products", body, directory=tmp_path) == {"result": {"products": [2, 4]}}
    assert score_v2(plane, "products", body, "green", directory=tmp_path) == {"result": {"products": [3, 6]}}


def test_custom_container_of_v2_with_tokens(plane: ManagementPlane, convert: Any, tmp_path: Path) -> None:
    with echo_server() as port:
        files = {
            "endpoint.yml": ENDPOINT.replace("auth_mode: key", "auth_mode: aml_token").replace("green: 0", ""),
            "blue.yml": CUSTOM_CONTAINER.replace("PORT", str(port)),
        }
        router = convert(files, "endpoint.yml", "blue.yml", compatibility="v2")
        plane.endpoints = {"products": endpoint_of(router, "products", V2, auth_mode="aml_token", versions=("blue",))}
        wait_until(lambda: router.log("replica is ready"), "the container", seconds=60)
        (headers,) = score_v2(plane, "products", [1], directory=tmp_path).values()
    assert headers["content-type"] == "application/json"  # that of the path of the scoring route
    assert "authorization" not in headers
