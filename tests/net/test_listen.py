"""Listening sockets, and the error of `azureml-fe local` when an address cannot be bound."""

import errno
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from router.net.listen import ALL_ADDRESSES, bind_listener, bind_shared_listeners, listen_error
from tests.processes import needs_ipv6


def error_of_local(directory: Path, *flags: str) -> str:
    """Run `azureml-fe local`, which must fail; return its error output."""
    (directory / "f.yaml").write_text("services: {m: {addresses: ['127.0.0.1:1'], auth_enabled: false}}")
    arguments = ["--admin-port", "0", "--port", "0", *flags]
    command = [sys.executable, "-m", "router", "local", str(directory / "f.yaml"), *arguments]
    completed = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert completed.returncode == 1
    return completed.stderr


def test_port_in_use_is_reported(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        error = error_of_local(tmp_path, "--state-dir", str(tmp_path / "state"), "--port", str(port))
    reason = "Address already in use; choose another with --port"
    assert error == f"azureml-fe: port: cannot listen on 127.0.0.1:{port}: {reason}\n"


def test_all_ports_in_use_are_reported(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        port, admin_port = (sock.getsockname()[1] for sock in (one, two))
        ports = ["--port", str(port), "--admin-port", str(admin_port)]
        error = error_of_local(tmp_path, "--state-dir", str(tmp_path / "state"), *ports)
    assert error.splitlines() == [
        f"azureml-fe: {name.replace('-', '_')}: cannot listen on 127.0.0.1:{number}: "
        f"Address already in use; choose another with --{name}"
        for name, number in (("port", port), ("admin-port", admin_port))
    ]


def test_address_of_another_machine_is_reported(tmp_path: Path) -> None:
    error = error_of_local(tmp_path, "--host", "192.0.2.1", "--state-dir", str(tmp_path / "state"))
    assert error.startswith("azureml-fe: host: cannot listen on 192.0.2.1:0: ")
    assert error.endswith("; allowed: an address of this machine\n")


def test_unknown_host_name_is_reported_with_its_setting() -> None:
    error = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    assert str(listen_error("peer_port", 9091, "nowhere", error, host_setting="pod_ip")) == (
        "pod_ip: cannot listen on nowhere:9091: Name or service not known; allowed: an address of this machine"
    )


def test_state_directory_that_cannot_be_created_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    error = error_of_local(tmp_path, "--state-dir", str(tmp_path / "file" / "state"))
    assert error == (
        f"azureml-fe: state_dir: {tmp_path}/file/state cannot be created: Not a directory; allowed: a directory\n"
    )


def test_shared_listeners_share_one_port_with_no_other_socket() -> None:
    sockets = bind_shared_listeners("127.0.0.1", 0, 3)
    try:
        ((host, port),) = {sock.getsockname() for sock in sockets}
        with pytest.raises(OSError, match="Address already in use"):
            bind_shared_listeners(host, port, 2)
        with pytest.raises(OSError, match="Address already in use"):
            bind_listener(host, port)
    finally:
        for sock in sockets:
            sock.close()


@needs_ipv6
def test_listener_on_all_addresses_accepts_ipv6_and_ipv4() -> None:
    with bind_listener(ALL_ADDRESSES, 0) as sock:
        port = sock.getsockname()[1]
        for host in ("::1", "127.0.0.1"):
            socket.create_connection((host, port)).close()


@needs_ipv6
def test_listener_on_an_ipv6_address_or_on_all_of_ipv4_accepts_no_other() -> None:
    for host, other in (("::1", "127.0.0.1"), ("0.0.0.0", "::1")):
        with bind_listener(host, 0) as sock, pytest.raises(ConnectionRefusedError):
            socket.create_connection((other, sock.getsockname()[1])).close()


def test_listener_on_all_addresses_has_those_of_ipv4_on_a_system_without_ipv6(monkeypatch: pytest.MonkeyPatch) -> None:
    class Ipv4Socket(socket.socket):
        """Sockets of a kernel that was started with `ipv6.disable=1`."""

        def __init__(self, family: int = socket.AF_INET, *arguments: int, **options: int) -> None:
            if family == socket.AF_INET6:
                raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
            super().__init__(family, *arguments, **options)

    monkeypatch.setattr(socket, "socket", Ipv4Socket)
    sockets = bind_shared_listeners(ALL_ADDRESSES, 0, 2)
    try:
        ((host, port),) = {sock.getsockname() for sock in sockets}
        assert host == "0.0.0.0"
        socket.create_connection(("127.0.0.1", port)).close()
        with pytest.raises(OSError, match="Address family not supported"):
            bind_listener("::1", 0)
    finally:
        for sock in sockets:
            sock.close()
