"""`azureml-fe local` with clients, replicas and other routers at IPv6 addresses."""

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.processes import (
    ECHO_SERVER,
    TIMEOUT_SECONDS,
    Response,
    free_ports,
    needs_ipv6,
    send_request_over,
    wait_until,
)
from tests.routers import Router, router_environment

pytestmark = needs_ipv6

SCORE = "/api/v1/service/iris/headers"


def request_at(host: str, port: int, path: str, body: bytes | None = None) -> Response:
    with contextlib.closing(http.client.HTTPConnection(host, port, timeout=TIMEOUT_SECONDS)) as connection:
        return send_request_over(connection, path, body)


def json_at(host: str, port: int, path: str) -> dict[str, object]:
    found: dict[str, object] = json.loads(request_at(host, port, path).body)
    return found


@pytest.fixture
def replica() -> Iterator[int]:
    """The port of a replica at ::1."""
    (port,) = free_ports("::1", 1)
    with subprocess.Popen([sys.executable, str(ECHO_SERVER), "--host", "::1", "--port", str(port)]) as server:
        yield port
        server.kill()


@pytest.fixture
def router(tmp_path: Path, replica: int) -> Iterator[Router]:
    """A router that listens on all addresses."""
    services = {"iris": {"addresses": [f"[::1]:{replica}"], "auth_enabled": False}}
    flags = ("--host", "::", "--access-log", "on")
    router = Router(tmp_path, services, *flags, admin_host="::", allow_insecure_connections=True)
    try:
        router.port = int(router.wait_for_stderr(r"serves .+ at http://\[::1\]:(\d+)\n")[1])
        router.admin_port = int(router.wait_for_stderr(r"status page: http://\[::1\]:(\d+)/ ")[1])
        wait_until(lambda: request_at("::1", router.admin_port, "/readyz").status == 200, "readiness")
        yield router
        router.process.send_signal(signal.SIGINT)
        assert router.process.wait(TIMEOUT_SECONDS) == 0
        assert "Traceback" not in router.stderr
    finally:
        if router.process.poll() is None:
            os.killpg(router.pid, signal.SIGKILL)
            router.process.wait()


@pytest.mark.parametrize("client", ["::1", "127.0.0.1"])
def test_client_has_its_own_address_in_headers_logs_and_explanations(router: Router, client: str) -> None:
    """The address of an IPv4 client is IPv4-mapped at a listener for both versions of IP."""
    response = request_at(client, router.port, SCORE, b"{}")
    assert response.status == 200
    at_replica = json.loads(response.body)
    assert at_replica["x-forwarded-for"] == client
    host = f"[{client}]" if ":" in client else client
    assert at_replica["x-forwarded-host"] == f"{host}:{router.port}"
    request_id = response.headers["x-ms-request-id"]
    assert json_at(client, router.admin_port, f"/explain/{request_id}")["client"] == client
    wait_until(lambda: router.access_log, "the access log")
    assert [line["client"] for line in router.access_log] == [client]


def test_status_has_addresses_in_brackets(router: Router, replica: int) -> None:
    def addresses() -> list[str]:
        text = request_at("::1", router.admin_port, "/status.json").body.decode()
        return [text] if f'"[::1]:{replica}"' in text else []

    wait_until(addresses, "the address of the replica")


def test_another_router_joins_at_an_ipv6_address(router: Router, tmp_path: Path) -> None:
    peer_port = router.wait_for_stderr(r"joins with: .+ local --peer \S+:(\d+) ")[1]
    arguments = ["local", "--peer", f"[::1]:{peer_port}", "--host", "::1", "--port", "0", "--admin-port", "0"]
    log_file = tmp_path / "joined.txt"
    with log_file.open("w") as stderr:
        joined = subprocess.Popen(
            [sys.executable, "-m", "router", *arguments, "--workers", "1", "--state-dir", str(router.state_dir)],
            env=router_environment(),
            stdout=subprocess.DEVNULL,
            stderr=stderr,
        )
    try:
        wait_until(lambda: "serves what [::1]" in log_file.read_text(), "the joined router")
        port = int(log_file.read_text().partition(" at http://[::1]:")[2].split()[0])
        wait_until(lambda: request_at("::1", port, SCORE, b"{}").status == 200, "a response of the joined router")
        joined.send_signal(signal.SIGINT)
        assert joined.wait(TIMEOUT_SECONDS) == 0, log_file.read_text()
    finally:
        joined.kill()
        joined.wait()
