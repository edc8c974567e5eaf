"""Runs Azure ML's SDKs as programs in an environment of their own, with a management plane instead of Azure's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.routers import ROOT, Router, router_environment
from tests.sdk.management_plane import Endpoint, ManagementPlane

DIRECTORY = Path(__file__).parent
SDK_PYTHON = DIRECTORY / ".venv/bin/python"

needs_sdks = pytest.mark.skipif(
    not SDK_PYTHON.exists(),
    reason="run `python3 -m venv tests/sdk/.venv && tests/sdk/.venv/bin/pip install -r tests/sdk/requirements.txt`",
)

V1, V2 = "/api/v1/service", "/api/v1/endpoint"


def run_command(router: Router, *arguments: str, text: str = "") -> str:
    command = [sys.executable, "-m", "router", *arguments, "--state-dir", str(router.state_dir)]
    environ = router_environment()
    done = subprocess.run(command, cwd=ROOT, env=environ, input=text, capture_output=True, text=True, check=True)
    return done.stdout


def endpoint_of(router: Router, name: str, prefix: str, **options: Any) -> Endpoint:
    return Endpoint(
        f"http://127.0.0.1:{router.port}{prefix}/{name}/score",
        lambda: json.loads(run_command(router, "keys", "show", name, "--output", "sdk")),
        lambda: json.loads(run_command(router, "token", name)),
        **options,
    )


def run_sdk(
    plane: ManagementPlane, version: int, *arguments: str, body: str = "", directory: Path = ROOT, aad_token: str = ""
) -> str:
    """Run the program of an SDK, without the user's credentials and home, and return its output."""
    url = f"{plane.url}/discovery" if version == 1 else plane.url
    environ = {
        "PATH": os.environ["PATH"],
        "REQUESTS_CA_BUNDLE": str(plane.ca_file),
        "HOME": str(plane.ca_file.parent),
        "AAD_TOKEN": aad_token,
    }
    command = [str(SDK_PYTHON), "-W", "ignore", str(DIRECTORY / f"client_v{version}.py"), url, *arguments]
    done = subprocess.run(command, cwd=directory, env=environ, input=body, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def score_v1(plane: ManagementPlane, name: str, body: object) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(run_sdk(plane, 1, name, "run", body=json.dumps(body)))
    return document


def score_v2(
    plane: ManagementPlane, name: str, body: object, *deployment: str, directory: Path, aad_token: str = ""
) -> dict[str, Any]:
    """Score with the second SDK, which reads the body from a file. It is written to `directory`."""
    request_file = directory / "request.json"
    request_file.write_text(json.dumps(body))
    arguments = (name, str(request_file), *deployment)
    document: dict[str, Any] = json.loads(run_sdk(plane, 2, *arguments, aad_token=aad_token))
    return document
