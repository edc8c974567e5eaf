"""Every input of the corpus through its target, and a short run of the fuzzer on each."""

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
    importlib.util.find_spec("atheris") is None, reason="atheris has no wheel for this Python; .ci/run installs it else"
)


@pytest.mark.parametrize("name", TARGETS)
def test_corpus(name: str) -> None:
    inputs = sorted((CORPUS / name).iterdir())
    assert len(inputs) >= 10
    for path in inputs:
        try:
            TARGETS[name](path.read_bytes())
        except Exception as error:
            raise AssertionError(f"{path.relative_to(ROOT)} breaks its target") from error


def test_a_target_notices_what_must_not_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gateway that copied a bad header through would be found out."""
    monkeypatch.setattr("router.gateway.exchange.request_head", lambda _: b"GET / HTTP/1.1\r\nX : y\r\n\r\n")
    with pytest.raises(AssertionError):
        TARGETS["requests"](b"\0GET /api/v1/service/iris/score HTTP/1.1\r\nHost: fe\r\n\r\n")


@needs_atheris
@pytest.mark.parametrize("name", TARGETS)
def test_short_run(name: str, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "tests.fuzz", name, "--seconds", str(SECONDS)]
    environ = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, env=environ, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    runs = re.search(r"number_of_executed_units: (\d+)", done.stderr)
    assert runs is not None
    assert int(runs[1]) > 100
