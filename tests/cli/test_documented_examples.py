"""The examples of docs/clients.md that are marked `run`, each against the shipped example."""

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


@pytest.mark.needs("curl", "node")
def test_examples_score(example: Router, tmp_path: Path) -> None:
    assert [language for language, _ in EXAMPLES] == ["sh", "python", "js"]
    command = tmp_path / "bin/azureml-fe"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m router "$@"\n')
    command.chmod(0o755)
    environ = {
        **os.environ,
        "PATH": f"{command.parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "AZUREML_FE_STATE_DIR": str(example.state_dir),
    }
    show_key = [str(command), "keys", "show", "iris", "--key", "primary"]
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
