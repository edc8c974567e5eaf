"""`azureml-fe keys import`: from a file, a pipe and standard input, into the state directory of `azureml-fe local`."""

import io
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from router.cli.main import main
from router.cluster.local.key_store import KeyStore
from router.cluster.local.known_services import KnownServices
from tests.processes import wait_until
from tests.routers import ROOT, StartRouter, echo_service, router_environment

PRIMARY, SECONDARY = "first-key-0123456789", "second-key-0123456789"
DOCUMENT = json.dumps({"primaryKey": PRIMARY, "secondaryKey": SECONDARY})


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    """A file with keys that only its owner can read."""
    file = tmp_path / "credentials.json"
    file.touch(0o600)
    file.write_text(DOCUMENT)
    return file


def test_keys_of_a_file_are_stored_and_not_printed(
    tmp_path: Path, exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = tmp_path / "state"
    command = ["keys", "import", "iris", str(exported), "--state-dir", str(state)]
    assert main(command) == 0
    assert capsys.readouterr() == (f"iris: keys stored in {state}/keys.json\n", "")
    assert stat.S_IMODE((state / "keys.json").stat().st_mode) == 0o600
    assert KeyStore(state).stored_keys("iris") == {"primary": PRIMARY, "secondary": SECONDARY}
    assert main([*command, "--output", "json"]) == 0
    expected = {"service": "iris", "stored_in": f"{state}/keys.json", "changed": False}
    assert json.loads(capsys.readouterr().out) == expected


def test_other_keys_stay_until_they_are_replaced(
    tmp_path: Path, exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = KeyStore(tmp_path).keys_for(["iris"])["iris"]
    command = ["keys", "import", "iris", str(exported), "--state-dir", str(tmp_path)]
    assert main(command) == 2
    assert capsys.readouterr().err == (
        f"azureml-fe: {tmp_path}/keys.json: SERVICE = 'iris': has other keys, which its clients may use; --replace "
        "replaces both of them\n"
    )
    assert KeyStore(tmp_path).keys_for(["iris"])["iris"] == before
    assert main([*command, "--replace"]) == 0
    assert KeyStore(tmp_path).keys_for(["iris"])["iris"] == (PRIMARY, SECONDARY)


def test_all_faults_are_reported_and_nothing_is_stored(
    tmp_path: Path, exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = tmp_path / "state"
    exported.write_text(json.dumps({"service": "resnet", "primaryKey": "a secret", "secondaryKey": ""}))
    assert main(["keys", "import", "iris", str(exported), "--state-dir", str(state)]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.splitlines() == [
        f"azureml-fe: {exported}: service: must be iris; these are the keys of another service",
        f"azureml-fe: {exported}: primaryKey: must be 1 to 256 visible ASCII characters without spaces",
        f"azureml-fe: {exported}: secondaryKey: must be 1 to 256 visible ASCII characters without spaces",
    ]
    assert not state.exists()
    assert main(["keys", "import", "iris", str(tmp_path / "missing"), "--state-dir", str(state)]) == 1
    assert capsys.readouterr().err == f"azureml-fe: {tmp_path}/missing: No such file or directory\n"
    assert main(["keys", "import", "Iris!", str(exported), "--state-dir", str(state)]) == 2
    assert "SERVICE = 'Iris!': must be the name of a service" in capsys.readouterr().err


def test_warnings(tmp_path: Path, exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    KnownServices(tmp_path).add(["resnet"])
    exported.write_text(json.dumps(["short", "short"]))
    exported.chmod(0o644)
    assert main(["keys", "import", "iris", str(exported), "--state-dir", str(tmp_path)]) == 0
    assert capsys.readouterr().err.splitlines() == [
        f"azureml-fe: {exported} is readable by other users (mode 0644); remove it when the keys are imported",
        "azureml-fe: service iris: primary_key has fewer than 16 characters, so it can be guessed",
        "azureml-fe: service iris: secondary_key has fewer than 16 characters, so it can be guessed",
        "azureml-fe: service iris: both keys are equal, so clients cannot move from one to the other",
        "azureml-fe: there is no service iris yet; it will have these keys",
    ]


def test_running_router_accepts_imported_keys_from_standard_input(start: StartRouter) -> None:
    router = start({"echo": echo_service(auth_enabled=True)})
    router.wait_for_replicas("echo", 1)
    generated = router.key("echo")
    command = [sys.executable, "-m", "router", "keys", "import", "echo", "--state-dir", str(router.state_dir)]
    environ = router_environment()
    refused = subprocess.run(command, input=DOCUMENT, text=True, capture_output=True, env=environ, check=False)
    assert (refused.returncode, refused.stdout) == (2, "")
    command.append("--replace")
    done = subprocess.run(command, input=DOCUMENT, text=True, capture_output=True, env=environ, check=True)
    wait_until(lambda: router.score("echo", Authorization=f"Bearer {PRIMARY}").status == 200, "the imported key")
    assert router.score("echo", Authorization=f"Bearer {SECONDARY}").status == 200
    assert not any(key in done.stdout + done.stderr + router.stderr for key in (PRIMARY, SECONDARY))
    assert router.score("echo", Authorization=f"Bearer {generated}").status == 401


def test_keys_from_a_pipe(tmp_path: Path, exported: Path) -> None:
    program = f'"$0" -m router keys import iris <(cat {exported}) --state-dir {tmp_path}'
    subprocess.run(["bash", "-c", program, sys.executable], cwd=ROOT, check=True, capture_output=True)
    assert KeyStore(tmp_path).stored_keys("iris") == {"primary": PRIMARY, "secondary": SECONDARY}


def test_terminal_is_no_source_of_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ours, theirs = os.openpty()
    with open(ours, "wb"), io.TextIOWrapper(open(theirs, "rb")) as terminal:
        monkeypatch.setattr("sys.stdin", terminal)
        assert main(["keys", "import", "iris", "--state-dir", str(tmp_path)]) == 2
    assert capsys.readouterr().err == "azureml-fe: FILE is missing (see azureml-fe keys import --help)\n"
