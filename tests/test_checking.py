"""`check FILE` on what a file refers to: what it passes, `local` can run."""

import json
import socket
import sys
from pathlib import Path

import pytest

from router.cli import main


def check(folder: Path, text: str) -> int:
    file = folder / "f.yaml"
    file.write_text(text)
    return main(["check", str(file)])


def complaint(capsys: pytest.CaptureFixture[str]) -> str:
    said = capsys.readouterr()
    assert said.err.startswith("azureml-fe: ")
    assert said.err.count("\n") == 1
    return said.err


@pytest.mark.parametrize("program", ["no-such-program", "./m.py", "/no/such/program", "."])
def test_a_program_that_cannot_be_run(tmp_path: Path, capsys: pytest.CaptureFixture[str], program: str) -> None:
    (tmp_path / "m.py").touch()  # not executable
    assert check(tmp_path, f"services: {{m: {{command: [{program}, '{{port}}']}}}}") == 2
    said = complaint(capsys)
    assert f"service m, version default: command = '{program}': must be a program that can be run" in said


@pytest.mark.parametrize("program", ["python", "sh", "./m.py", sys.executable])
def test_a_program_that_can_be_run(tmp_path: Path, program: str) -> None:
    (tmp_path / "m.py").touch(0o755)
    assert check(tmp_path, f"services: {{m: {{command: [{program}, '{{port}}']}}}}") == 0


def test_a_program_is_looked_for_where_its_replicas_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "serve-it").touch(0o755)
    service = f"{{command: [serve-it, '{{port}}'], environment: {{PATH: '{tmp_path}'}}}}"
    assert check(tmp_path, f"services: {{m: {service}}}") == 0
    assert check(tmp_path, f"services: {{m: {service.replace(str(tmp_path), '/none')}}}") == 2


REMOTE = "services: {m: {addresses: ['127.0.0.1:1'], auth_enabled: false}}\n"


@pytest.mark.parametrize(
    ("router", "word"),
    [
        ("host: 0.0.0.0", "allow_insecure_connections: must be true"),
        ("tls_cert_file: none.pem", "tls_key_file"),
        ("{tls_cert_file: none.pem, tls_key_file: none.pem}", "none.pem"),
        ("{peer_tls_cert_file: none.pem, peer_tls_key_file: none.pem}", "peer_tls_ca_file"),
    ],
)
def test_what_local_would_not_start_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], router: str, word: str
) -> None:
    section = router if router.startswith("{") else f"{{{router}}}"
    assert check(tmp_path, f"{REMOTE}router: {section}") == 2
    assert word in complaint(capsys)


def test_an_address_that_does_not_answer_is_told_and_no_fault_of_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        where = f"127.0.0.1:{nobody.getsockname()[1]}"
        assert check(tmp_path, f"services: {{m: {{addresses: {json.dumps([where])}, auth_enabled: false}}}}") == 0
    assert f"service m, version default: {where} does not answer GET / now: Connection refused" in complaint(capsys)
