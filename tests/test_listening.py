"""Which setting is to blame for a port that cannot be listened on; as `local` says it, with real sockets."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest


def refusal(folder: Path, *flags: str) -> str:
    (folder / "f.yaml").write_text("services: {m: {addresses: ['127.0.0.1:1'], auth_enabled: false}}")
    words = ["--admin-port", "0", "--port", "0", *flags]
    command = [sys.executable, "-m", "router", "local", str(folder / "f.yaml"), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    return done.stderr


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = refusal(tmp_path, "--state-dir", str(tmp_path / "state"), "--port", str(port))
    reason = "Address already in use; allowed: a free port"
    assert said == f"azureml-fe: port: {port} cannot be listened on at 127.0.0.1: {reason}\n"


@pytest.mark.parametrize("host", ["192.0.2.1", "no.such.host.invalid"])
def test_an_address_of_nobody_here(tmp_path: Path, host: str) -> None:
    said = refusal(tmp_path, "--host", host, "--state-dir", str(tmp_path / "state"))
    assert said.startswith(f"azureml-fe: host: {host} cannot be listened on: ")
    assert said.endswith("; allowed: an address of this machine\n")


def test_a_state_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    said = refusal(tmp_path, "--state-dir", str(tmp_path / "file" / "state"))
    assert said == (
        f"azureml-fe: state_dir: {tmp_path}/file/state cannot be made: Not a directory; allowed: a folder\n"
    )
