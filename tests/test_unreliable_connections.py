"""Connections that end at the wrong time, at a router with two workers and at another one that has joined it.

Replicas close or reset connections, or are away for a moment. Clients vanish, do not read, or leave tunnels silent.
"""

import contextlib
import http.client
import json
import os
import signal
import socket
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import pytest

from tests.processes import (
    TIMEOUT_SECONDS,
    descendants,
    running_processes,
    send_request,
    send_request_over,
    stopped,
    wait_until,
)
from tests.routers import ROOT, Router, StartRouter, joined_router

SERVER = ROOT / "tests" / "servers" / "unreliable_server.py"
TCP_REPAIR = 19


def service(**settings: Any) -> dict[str, Any]:
    command = ["python", str(SERVER), "--port", "{port}"]
    return {
        "command": command, "num_replicas": 1, "auth_enabled": False, "success_threshold": 1,
        "replica_max_concurrent_requests": 20, "max_request_wait_time": 15_000, **settings,
    }  # fmt: skip


SERVICES = {
    "careful": service(),
    "repeatable": service(retry_on_reset=True),
    "away": service(),
    "replaced": service(),
    "idle": service(tunnel_idle_timeout_seconds=1),
    "limited": service(max_stream_seconds=2),
    "flood": service(),
    "vanished": service(),
}
SETTINGS = {"client_tcp_user_timeout_seconds": 1, "tcp_keepalive_seconds": 1}


class Routers(NamedTuple):
    """A router, and the port of another one that has joined it."""

    first: Router
    port: int

    @property
    def ports(self) -> list[int]:
        """Ports for several clients; more for the router with two workers."""
        return [self.first.port, self.first.port, self.port] * 2

    def metric(self, name: str, **labels: str) -> float:
        """Return a metric of the first router."""
        return self.first.metric(name, **labels)

    def replica(self, service: str) -> tuple[int, int]:
        """Return the process id and port of the only replica of a service."""
        running = self.first.replicas()
        lines = self.first.log("replica starts")
        return next(
            (each["pid"], each["port"]) for each in lines if each["service"] == service and each["pid"] in running
        )

    def command(self, service: str, path: str) -> None:
        """Send a request to a replica itself."""
        assert send_request(self.replica(service)[1], path, b"").status == 200

    def received(self, service: str) -> Counter[str]:
        """Return how often the replica has received each body."""
        return Counter(json.loads(send_request(self.replica(service)[1], "/received").body))

    def in_flight(self, service: str) -> int:
        """Return the requests in flight of both routers."""
        services = self.first.status()["services"]
        return sum(each["versions"][0]["in_flight"] for each in services if each["name"] == service)


@pytest.fixture(scope="module")
def routers(start_for_all: StartRouter) -> Iterator[Routers]:
    router = start_for_all(SERVICES, workers=2, **SETTINGS)
    with joined_router(router, **SETTINGS) as port:
        yield Routers(router, port)


def path_of(service: str, path: str = "score") -> str:
    return f"/api/v1/service/{service}/{path}"


@contextlib.contextmanager
def connections(service: str, *ports: int) -> Iterator[list[http.client.HTTPConnection]]:
    """Yield a connection to each port over which the replica has served a request."""
    with contextlib.ExitStack() as stack:
        clients = [http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_SECONDS) for port in ports]
        for client in clients:
            stack.callback(client.close)
            assert send_request_over(client, path_of(service), b"first").status == 200
        time.sleep(0.1)  # after this time the routers reuse connections even if the replica closes others early
        yield clients


@contextlib.contextmanager
def stopped_workers() -> Iterator[None]:
    """Stop the workers of all routers."""
    own = descendants(os.getpid())
    pids = [each.pid for each in running_processes() if each.pid in own and "router.workers.main" in each.command_line]
    assert len(pids) == 3
    with stopped(*pids):
        yield


# Retries.


@pytest.mark.parametrize("ending", ["reset", "close"])
@pytest.mark.parametrize(("service", "results"), [("careful", {(502, 1)}), ("repeatable", {(502, 1), (200, 2)})])
def test_request_that_the_replica_has_read_runs_twice_only_if_that_is_allowed(
    routers: Routers, service: str, results: set[tuple[int, int]], ending: str
) -> None:
    retries = routers.metric("retries_total", cause="stale", service=service)
    with connections(service, *routers.ports) as clients:
        for number, client in enumerate(clients):
            body = f"{ending} {number}"
            response = send_request_over(client, path_of(service, ending), body.encode())
            assert (response.status, routers.received(service)[body]) in results
    if service == "repeatable":
        wait_until(lambda: routers.metric("retries_total", cause="stale", service=service) > retries, "retries")


def test_requests_that_the_replica_cannot_have_read_are_sent_again(routers: Routers) -> None:
    with connections("careful", *routers.ports) as clients:
        with stopped_workers():
            for number, client in enumerate(clients):  # it arrives before the end of the replica's connection
                client.request("POST", path_of("careful"), str(number).encode())
            routers.command("careful", "/close-others")
        assert [client.getresponse().status for client in clients] == [200] * len(clients)
    received = routers.received("careful")
    assert [received[str(number)] for number in range(len(clients))] == [1] * len(clients)
    wait_until(lambda: routers.metric("retries_total", cause="stale", service="careful") >= 1, "retries")


# A replica that is away.


def test_requests_wait_for_a_replica_that_refuses_connections_for_a_moment(routers: Routers) -> None:
    assert ask("away", routers.port) == 200
    routers.command("away", "/away/0.8")
    with ThreadPoolExecutor(6) as clients:
        assert set(clients.map(lambda port: ask("away", port), routers.ports * 8)) == {200}
    labels = {"reason": "refused", "service": "away"}
    wait_until(lambda: routers.metric("replica_connect_failures_total", **labels) >= 1, "refused connections")


def test_requests_wait_for_the_replacement_of_the_only_replica(routers: Routers) -> None:
    """As with a Deployment without surge: the old replica has ended before the new one starts."""
    assert ask("replaced", routers.port) == 200
    before, _ = routers.replica("replaced")
    os.kill(before, signal.SIGKILL)
    with ThreadPoolExecutor(6) as clients:
        results = Counter(clients.map(lambda port: ask("replaced", port), routers.ports * 8))
    assert results[200] >= 48 - 6  # those of before may have been in flight
    assert routers.replica("replaced")[0] != before


def ask(service: str, port: int) -> int:
    return send_request(port, path_of(service), b"[1]").status


# Clients.


def begin(port: int, path: str) -> socket.socket:
    """Connect with a small receive buffer, and ask for a WebSocket."""
    client = socket.socket()
    client.settimeout(TIMEOUT_SECONDS)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(("127.0.0.1", port))
    client.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n".encode())
    return client


def open_tunnel(port: int, service: str) -> socket.socket:
    client = begin(port, path_of(service, "tunnel/echo"))
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += client.recv(1)
    assert head.startswith(b"HTTP/1.1 101 ")
    return client


def test_silent_and_long_tunnels_end(routers: Routers) -> None:
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(open_tunnel(port, "idle")) for port in routers.ports]
        active = [stack.enter_context(open_tunnel(port, "limited")) for port in routers.ports]
        rounds = 0
        while sum(is_open(client, b"x") for client in active):
            rounds += 1
            time.sleep(0.1)
        assert rounds > 0
        assert [client.recv(1) for client in silent] == [b""] * len(silent)
        for service, error in (("idle", "tunnel-idle"), ("limited", "stream-timeout")):
            labels = {"service": service, "error": error}
            wait_until(lambda labels=labels: routers.metric("requests_total", **labels) == 4, error)  # type: ignore[misc]
            wait_until(lambda service=service: routers.in_flight(service) == 0, "free slots")  # type: ignore[misc]


def is_open(client: socket.socket, data: bytes) -> bool:
    """Send data through a tunnel. Return True if it comes back."""
    try:
        client.sendall(data)
        return client.recv(len(data)) == data
    except ConnectionError:
        return False


def test_clients_that_do_not_read_are_disconnected(routers: Routers) -> None:
    with contextlib.ExitStack() as stack:
        for port in routers.ports:
            for path in ("flood", "tunnel/flood"):
                stack.enter_context(begin(port, path_of("flood", path)))
        wait_until(lambda: routers.in_flight("flood") == 12, "requests in flight")
        wait_until(lambda: routers.in_flight("flood") == 0, "end of the requests")
        wait_until(lambda: routers.metric("client_aborts_total", service="flood") == 4, "responses that were not read")


def test_silent_tunnels_end_when_their_clients_have_vanished(routers: Routers) -> None:
    """Their systems have lost the connections, as after a crash: the next probe is answered by a reset."""
    tunnels = [open_tunnel(port, "vanished") for port in routers.ports]
    wait_until(lambda: routers.in_flight("vanished") == 6, "tunnels")
    with contextlib.ExitStack() as stack:
        for tunnel in tunnels:
            stack.callback(tunnel.close)
        try:
            for tunnel in tunnels:
                tunnel.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)  # a close sends nothing
        except PermissionError:
            pytest.skip("run the tests as root (CAP_NET_ADMIN)")
    wait_until(lambda: routers.in_flight("vanished") == 0, "end of the tunnels")
