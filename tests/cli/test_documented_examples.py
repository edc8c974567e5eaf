"""The examples that are marked `run`: those of docs/clients.md, each against the shipped example, and the commands of
docs/migrate.md in a directory with files of Azure ML."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from router.cluster.local import example_path
from tests.processes import wait_until
from tests.routers import ROOT, Router, StartRouter

PAGE = (ROOT / "docs/clients.md").read_text()
EXAMPLES = re.findall(r"^```(\w+) run\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
MIGRATION = re.findall(r"^```sh run\n(.*?)^```", (ROOT / "docs/migrate.md").read_text(), re.MULTILINE | re.DOTALL)
PROGRAMS: dict[str, list[str]] = {
    "sh": ["bash", "-c"],
    "python": [sys.executable, "-c"],
    "js": ["node", "--input-type=module", "--eval"],
}


@pytest.fixture
def example(start: StartRouter) -> Router:
    service = yaml.safe_load(example_path().read_text())["services"]["iris"]
    entry_script = str(example_path().with_name(service["entry_script"]))
    router = start({"iris": {**service, "entry_script": entry_script}})
    wait_until(lambda: router.log("replica is ready"), "example", seconds=60)
    return router


def environment_with_command(directory: Path, state_dir: Path) -> dict[str, str]:
    """Return an environment with the command `azureml-fe`, which is made in `directory`."""
    command = directory / "bin/azureml-fe"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m router "$@"\n')
    command.chmod(0o755)
    return {
        **os.environ,
        "PATH": f"{command.parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "AZUREML_FE_STATE_DIR": str(state_dir),
    }


@pytest.mark.needs("curl", "node")
def test_examples_score(example: Router, tmp_path: Path) -> None:
    assert [language for language, _ in EXAMPLES] == ["sh", "python", "js"]
    environ = environment_with_command(tmp_path, example.state_dir)
    show_key = [str(tmp_path / "bin/azureml-fe"), "keys", "show", "iris", "--key", "primary"]
    key = subprocess.run(show_key, env=environ, capture_output=True, text=True, check=True).stdout.strip()
    for language, text in EXAMPLES:
        done = subprocess.run(
            [*PROGRAMS[language], text.replace("http://127.0.0.1:8080", f"http://127.0.0.1:{example.port}")],
            env=environ if language == "sh" else {**environ, "KEY": key},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout.replace("'", '"')) == {"predictions": ["setosa"]}


def test_migration_on_one_machine(tmp_path: Path) -> None:
    inference = {"entryScript": "score.py", "sourceDirectory": "."}
    deployment = {
        "computeType": "AKS",
        "authEnabled": True,
        "autoScaler": {"maxReplicas": 4},
        "scoringTimeoutMs": 30_000,
    }
    files = {
        "inferenceconfig.json": json.dumps(inference),
        "deploymentconfig.json": json.dumps(deployment),
        "iris.json": json.dumps(["first-key-0123456789", "second-key-0123456789"]),
        "score.py": "def init(): pass\ndef run(data): return data\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    environ = environment_with_command(tmp_path, tmp_path / "state")
    (commands,) = MIGRATION
    done = subprocess.run(
        ["bash", "-e", "-c", commands], cwd=tmp_path, env=environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "service iris: keys (primary generated, secondary generated)" in done.stdout
    assert f"iris: keys stored in {tmp_path}/state/keys.json" in done.stdout
