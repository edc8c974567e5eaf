"""Which setting is to blame for a port that cannot be listened on; as `local` says it, with real sockets."""

import socket
import subprocess
import sys
from pathlib import Path

from router.listening import cannot_listen


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


def test_an_address_of_nobody_here(tmp_path: Path) -> None:
    said = refusal(tmp_path, "--host", "192.0.2.1", "--state-dir", str(tmp_path / "state"))
    assert said.startswith("azureml-fe: host: 192.0.2.1 cannot be listened on: ")
    assert said.endswith("; allowed: an address of this machine\n")


def test_a_name_of_nothing() -> None:
    fault = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    assert str(cannot_listen("peer_port", 9091, "nowhere", fault, host_setting="pod_ip")) == (
        "pod_ip: nowhere cannot be listened on: Name or service not known; allowed: an address of this machine"
    )


def test_a_state_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    said = refusal(tmp_path, "--state-dir", str(tmp_path / "file" / "state"))
    assert said == (
        f"azureml-fe: state_dir: {tmp_path}/file/state cannot be made: Not a directory; allowed: a folder\n"
    )
