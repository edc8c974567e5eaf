"""`azureml-fe local` with entry scripts that fail in `init()` and in `run()`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.processes import wait_until
from tests.routers import StartRouter

SCRIPT = """\
def init():
    {init}

def run(data):
    import json
    return json.loads(data)["secret-of-a-request"]
"""


def entry_script_service(directory: Path, init: str) -> dict[str, Any]:
    """Return a service with two replicas of an entry script whose `init()` is one statement."""
    (directory / "score.py").write_text(SCRIPT.format(init=init))
    return {"entry_script": str(directory / "score.py"), "num_replicas": 2, "auth_enabled": False}


def test_broken_init_is_one_headline_in_log_and_status(start: StartRouter, tmp_path: Path) -> None:
    service = entry_script_service(tmp_path, "raise RuntimeError('weights not found')")
    router = start({"iris": service}, serving=False)
    router.wait_until_serving()
    router.wait_for_stderr("replica starts.*iris-6")  # both replicas have failed twice
    lines = router.log("replica cannot start")
    assert len(lines) <= 3  # of at least 4 failures: the first, second and fourth
    error = f"RuntimeError: weights not found ({tmp_path}/score.py, line 2)"
    assert {(line["how"], line["error"]) for line in lines} == {("exit code 3", error)}
    assert len(lines[0]["output"].splitlines()) == 10
    assert "weights not found" in Path(lines[0]["log"]).read_text()
    (problem,) = router.status()["problems"]
    headline, *details = problem.splitlines()
    assert headline.startswith(f"service iris: cannot start (exit code 3): {error} (")
    assert len(details) == 11
    assert details[-1].startswith(f"whole output: {router.state_dir}/logs/iris/default/iris-")


@pytest.mark.parametrize("with_message", [False, True])
def test_first_exception_in_run_of_each_replica_is_one_line(
    start: StartRouter, tmp_path: Path, with_message: bool
) -> None:
    services = {"iris": entry_script_service(tmp_path, "pass")}
    router = start(services, log_exception_messages=with_message)
    for _ in range(6):  # with alternating replicas
        assert router.score("iris", b"{}").status == 502
    wait_until(lambda: len(router.log("replica has responded with an error")) == 2, "a line for each replica")
    lines = router.log("replica has responded with an error")
    assert {line["replica"] for line in lines} == {"iris-1", "iris-2"}
    for line in lines:
        assert (line["status"], line["error_type"], line["line"]) == (500, "KeyError", 6)
        assert line["file"] == str(tmp_path / "score.py")
        assert "secret-of-a-request" in Path(line["log"]).read_text()
        assert line.get("error_message") == ("'secret-of-a-request'" if with_message else None)
    assert ("secret-of-a-request" in router.stderr) == with_message
