"""Exceptions found in the output of a program."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from router.cluster.local.raised_exception import RaisedException, last_exception

_INIT_FAILED = """\
2026-11-29 16:19:08,539 E [20416] azmlinfsrv - Encountered Exception Traceback (most recent call last):
  File "/venv/lib/python3.11/site-packages/azureml_inference_server_http/user_script.py", line 119, in invoke_init
    self._user_init()
  File "/models/score.py", line 4, in init
    load()
  File "/models/lib/weights.py", line 7, in load
    raise RuntimeError("weights not found")
RuntimeError: weights not found

The above exception was the direct cause of the following exception:

Traceback (most recent call last):
  File "/venv/lib/python3.11/site-packages/azureml_inference_server_http/server/aml_blueprint.py", line 109, in setup
    self.user_script.invoke_init()
azureml_inference_server_http.server.user_script.UserScriptException: Caught an unhandled exception

2026-11-29 16:19:08,540 I [20416] gunicorn.error - Worker exiting (pid: 20416)
"""


def test_wrapped_exception_of_a_server_is_that_of_the_script() -> None:
    traceback = tuple(_INIT_FAILED.splitlines()[1:8])
    expected = RaisedException("RuntimeError", "weights not found", "lib/weights.py", 7, traceback)
    assert last_exception(_INIT_FAILED, Path("/models")) == expected
    assert expected.describe(with_message=True) == "RuntimeError: weights not found (lib/weights.py, line 7)"
    assert expected.describe(with_message=False) == "RuntimeError (lib/weights.py, line 7)"


def test_last_traceback_counts() -> None:
    output = (
        _INIT_FAILED + 'Traceback (most recent call last):\n  File "/other/a.py", line 1, in <module>\nKeyError: 5\n'
    )
    assert last_exception(output, Path("/models")) == RaisedException(
        "KeyError", "5", "/other/a.py", 1, ('  File "/other/a.py", line 1, in <module>', "KeyError: 5")
    )


@pytest.mark.parametrize("output", ["", "no trace\n", "Traceback (most recent call last):\n", "Error: 5\n"])
def test_output_without_a_complete_traceback_has_none(output: str) -> None:
    assert last_exception(output, Path("/models")) is None


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        ("def f(:\n    pass\n", ("SyntaxError", 1)),
        ("x = 1\n  y = 2\n", ("IndentationError", 2)),
        ("\nimport json\njson.loads('{')\n", ("json.decoder.JSONDecodeError", 3)),
        ("\n\nimport no_such_module\n", ("ModuleNotFoundError", 3)),
        ("raise Exception\n", ("Exception", 1)),
        ("try:\n    1 / 0\nexcept Exception as e:\n    raise ValueError('1\\n2') from e\n", ("ValueError", 4)),
        ("try:\n    1 / 0\nexcept ZeroDivisionError:\n    raise KeyError(1)\n", ("KeyError", 4)),
    ],
)
def test_exceptions_of_this_python(tmp_path: Path, program: str, expected: tuple[str, int]) -> None:
    (tmp_path / "score.py").write_text(program)
    command = [sys.executable, "-c", "import score"]
    output = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False).stderr
    found = last_exception(output, tmp_path)
    assert found is not None
    assert (found.type, found.line, found.file) == (*expected, "score.py")
