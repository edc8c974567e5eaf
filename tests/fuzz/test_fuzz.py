"""Runs each target with all inputs of its corpus, and fuzzes it for a few seconds."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.targets import TARGETS

ROOT = Path(__file__).parents[2]
CORPUS = Path(__file__).parent / "corpus"
SECONDS = 3
needs_atheris = pytest.mark.skipif(
    importlib.util.find_spec("atheris") is None,
    reason="run `pip install atheris`, which has wheels for x86-64 with glibc",
)


@pytest.mark.parametrize("name", TARGETS)
def test_corpus(name: str) -> None:
    inputs = sorted((CORPUS / name).iterdir())
    assert len(inputs) >= 10
    for path in inputs:
        try:
            TARGETS[name](path.read_bytes())
        except Exception as error:
            raise AssertionError(f"the target fails for {path.relative_to(ROOT)}") from error


def test_target_detects_invalid_output(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulates a gateway that forwards an invalid header."""
    monkeypatch.setattr("router.http.http1.request_head", lambda *_: b"GET / HTTP/1.1\r\nX : y\r\n\r\n")
    with pytest.raises(AssertionError):
        TARGETS["requests"](b"\0GET /api/v1/service/iris/score HTTP/1.1\r\nHost: fe\r\n\r\n")


@needs_atheris
@pytest.mark.parametrize("name", TARGETS)
def test_short_run(name: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.fuzz", name, "--seconds", str(SECONDS)]
    environ = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environ, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    runs = re.search(r"number_of_executed_units: (\d+)", done.stderr)
    assert runs is not None
    assert int(runs[1]) > 100
