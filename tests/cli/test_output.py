"""Commands whose standard output or standard error cannot be written: exit codes 0, 1 and 2, and no traceback."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from router.cli.main import HANDLERS
from tests.processes import TIMEOUT_SECONDS
from tests.routers import router_environment

DISK_FULL = "azureml-fe: cannot write to standard output: No space left on device\n"


def run(
    arguments: str, redirection: str, directory: Path, *descriptors: int, unbuffered: bool = False
) -> tuple[int, str, str]:
    """Run a command in a shell that has these descriptors. Return its exit code, standard output and standard
    error."""
    environment = router_environment()
    environment.pop("PYTHONUNBUFFERED", None)
    completed = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {shlex.quote(sys.executable)} -m router {arguments} {redirection}"],
        cwd=directory, pass_fds=descriptors, env=environment | {"PYTHONUNBUFFERED": "1"} if unbuffered else environment,
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False,
    )  # fmt: skip
    return completed.returncode, completed.stdout, completed.stderr


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A directory with a file of services and the keys of one."""
    services = {"iris": {"command": ["python", "{port}"], "num_replicas": 1}}
    (tmp_path / "models.yaml").write_text(json.dumps({"services": services, "router": {"state_dir": "."}}))
    (tmp_path / "keys.json").write_text(
        json.dumps({"services": {"iris": {"primary": "p" * 32, "secondary": "s" * 32}}})
    )
    (tmp_path / "keys.json").chmod(0o600)
    return tmp_path


COMMANDS_WITH_OUTPUT = (
    ("plan --rps 3 --seconds 2", False),
    ("plan --rps 3 --seconds 2", True),
    ("keys show iris --state-dir .", False),
    ("token iris --state-dir .", False),
    ("check models.yaml", False),
    ("--version", False),
    *((f"{command} --help", False) for command in HANDLERS),
)

with_output = pytest.mark.parametrize(("arguments", "unbuffered"), COMMANDS_WITH_OUTPUT)


@with_output
def test_full_disk_is_a_failure_with_one_line(arguments: str, unbuffered: bool, directory: Path) -> None:
    assert run(arguments, ">/dev/full", directory, unbuffered=unbuffered) == (1, "", DISK_FULL)


@with_output
def test_output_without_a_reader_is_a_failure_without_a_message(
    arguments: str, unbuffered: bool, directory: Path
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        assert run(arguments, f">&{writer}", directory, writer, unbuffered=unbuffered) == (1, "", "")
    finally:
        os.close(writer)


@with_output
def test_closed_output_is_no_failure(arguments: str, unbuffered: bool, directory: Path) -> None:
    assert run(arguments, ">&-", directory, unbuffered=unbuffered) == (0, "", "")


def test_reader_may_close_the_pipe_before_the_end(directory: Path) -> None:
    services = {f"a{number}": {"addresses": ["127.0.0.1:1"]} for number in range(500)}  # more text than a pipe holds
    (directory / "models.yaml").write_text(json.dumps({"services": services}))
    code, output, errors = run("check models.yaml", "2>/dev/null | head -n 1", directory)
    assert (code, errors) == (1, "")
    assert output == "service a0: keys (primary generated, secondary generated)\n"


def test_characters_that_the_encoding_lacks_are_escaped(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (directory / "python-→").symlink_to(sys.executable)
    services = {"iris": {"command": ["./python-→", "{port}"], "num_replicas": 1}}
    (directory / "models.yaml").write_text(json.dumps({"services": services}))
    monkeypatch.setenv("PYTHONIOENCODING", "latin-1")
    code, output, errors = run("check models.yaml", "", directory)
    assert (code, errors) == (0, "")
    assert output.endswith("command ./python-\\u2192\n")


@pytest.mark.parametrize("redirection", ["2>/dev/full", "2>&-", ">&- 2>&-", ">/dev/full 2>&1"])
@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ("check missing.yaml", 2),
        ("serve --port http", 2),
        ("nonsense", 2),
        ("top http://127.0.0.1:1", 1),
        ("local missing.yaml", 2),
    ],
)
def test_exit_code_stays_if_the_error_cannot_be_written(
    arguments: str, code: int, redirection: str, directory: Path
) -> None:
    assert run(arguments, redirection, directory) == (code, "", "")
