"""Entry scripts behind azureml-inference-server-http: number of workers, interpreter, modules."""

import json
import sys
from pathlib import Path

import pytest

from router.cluster.local.program import check_program_runs, check_server_installed
from router.cluster.local.service_files import ServiceFiles
from router.config.schema import SettingsError
from router.model.services import VersionKey
from tests.cluster.local.helpers import launch_settings, running_cluster
from tests.processes import send_request

KEY: VersionKey = ("iris", "default")
SCORE = """
import os, sys

def init():
    pass

def run(data):
    with open(f"/proc/{os.getppid()}/task/{os.getppid()}/children") as children:
        workers = len(children.read().split())
    return {"workers": workers, "mark": os.environ.get("MARK"), "path": sys.path, "argv": sys.argv}
"""


async def score(directory: Path, settings: str) -> dict[str, object]:
    """Run an entry script with these settings; return what it reports."""
    (directory / "score.py").write_text(SCORE)
    (directory / "local.yaml").write_text(
        f"services: {{iris: {{entry_script: score.py, num_replicas: 1, {settings}}}}}"
    )
    async with running_cluster(ServiceFiles([directory / "local.yaml"]).load(), directory / "state") as (_, listener):
        await listener.wait_until(lambda: listener.ready("iris") or listener.fields_of("replica cannot start"))
        assert not listener.fields_of("replica cannot start")
        response = send_request(listener.ready("iris")[0].port, "/score", b"{}")
    assert response.status == 200
    result: dict[str, object] = json.loads(response.body)
    return result


@pytest.mark.parametrize(("environment", "workers"), [("{}", 1), ("{WORKER_COUNT: 1}", 1), ("{WORKER_COUNT: 3}", 3)])
async def test_worker_count_is_honoured(tmp_path: Path, environment: str, workers: int) -> None:
    assert (await score(tmp_path, f"environment: {environment}"))["workers"] == workers


async def test_worker_count_of_the_shell_is_honoured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKER_COUNT", "2")
    assert (await score(tmp_path, ""))["workers"] == 2


def other_python(path: Path) -> None:
    """Make a Python interpreter, which sets MARK."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'#!/bin/sh\nMARK=other exec {sys.executable} "$@"\n')
    path.chmod(0o755)


async def test_entry_script_runs_in_another_interpreter(tmp_path: Path) -> None:
    assert (await score(tmp_path, ""))["mark"] is None
    other_python(tmp_path / "venv" / "bin" / "python")
    for python in ("venv/bin/python", str(tmp_path / "venv" / "bin" / "python")):
        assert (await score(tmp_path, f"python: {python}"))["mark"] == "other"
    other_python(tmp_path / "bin" / "my-python")
    path = f"{tmp_path / 'bin'}:/usr/bin:/bin"
    assert (await score(tmp_path, f"python: my-python, environment: {{PATH: '{path}'}}"))["mark"] == "other"


async def test_entry_script_imports_no_module_of_the_router(tmp_path: Path) -> None:
    path = (await score(tmp_path, ""))["path"]
    assert isinstance(path, list)
    assert str(tmp_path) in path
    assert not [directory for directory in path if directory.endswith("router/cluster/local")]


async def test_description_of_an_entry_script_has_the_path_of_its_service(tmp_path: Path) -> None:
    (tmp_path / "score.py").write_text("def init(): pass\ndef run(data): return 1")
    (tmp_path / "local.yaml").write_text("services: {iris: {entry_script: score.py, num_replicas: 1}}")
    config = ServiceFiles([tmp_path / "local.yaml"]).load()
    async with running_cluster(config, tmp_path / "state", scoring_prefix="/models/") as (_, listener):
        await listener.wait_until(lambda: listener.ready("iris"))
        port = listener.ready("iris")[0].port
        paths = json.loads(send_request(port, "/swagger.json").body)["paths"]
        response = send_request(port, "/score", b"{}")
    assert "/models/iris/score" in paths
    assert response.status == 200  # its own routes have no prefix


def test_interpreter_must_exist(tmp_path: Path) -> None:
    script = tmp_path / "score.py"
    script.touch()
    (tmp_path / "not-executable").touch()
    for python in ("no-such-python", "venv/bin/python", "/no/python", "./not-executable"):
        launch = launch_settings(tmp_path, entry_script=script, python=python)
        with pytest.raises(SettingsError, match=r"service iris, version default: python = .*must be an executable"):
            check_server_installed(KEY, launch)


def test_interpreter_is_checked_for_the_inference_server(tmp_path: Path) -> None:
    script = tmp_path / "score.py"
    script.touch()
    other_python(tmp_path / "good")
    check_program_runs(KEY, launch_settings(tmp_path, entry_script=script, python="./good"))
    bare = tmp_path / "bare"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')
    bare.chmod(0o755)
    for python in ("./bare", "/bin/false", "/bin/cat"):
        launch = launch_settings(tmp_path, entry_script=script, python=python)
        check_server_installed(KEY, launch)  # it exists
        with pytest.raises(SettingsError, match=r"python = .* with azureml-inference-server-http"):
            check_program_runs(KEY, launch)
