"""A worker that runs out of file descriptors keeps running and recovers."""

import contextlib
import resource
import socket
from collections import Counter

from tests.processes import TIMEOUT_SECONDS, open_descriptors, wait_until
from tests.routers import StartRouter, open_echo_service

REQUEST = b"POST /api/v1/service/echo/score HTTP/1.1\r\nHost: fe\r\nContent-Length: 2\r\n\r\n[]"


def read_response(client: socket.socket) -> bytes:
    """Return the start of the response; empty if the connection was closed."""
    try:
        return client.recv(12)
    except OSError:
        return b""


def request(port: int) -> bytes:
    """Send a request over a new connection and return the start of the response."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), TIMEOUT_SECONDS) as client:
        client.sendall(REQUEST)
        return read_response(client)
    return b""


def test_worker_recovers_after_it_ran_out_of_descriptors(start: StartRouter) -> None:
    router = start({"echo": open_echo_service()})
    (worker,) = router.workers
    assert router.score("echo").status == 200
    # The worker does not notice this lower limit. The limit at its start is tested in tests/gateway/test_acceptor.py.
    resource.prlimit(worker, resource.RLIMIT_NOFILE, (open_descriptors(worker) + 20, open_descriptors(worker) + 20))
    with contextlib.ExitStack() as connections:
        clients = [
            connections.enter_context(socket.create_connection(("127.0.0.1", router.port), TIMEOUT_SECONDS))
            for _ in range(60)
        ]
        for client in clients:
            with contextlib.suppress(OSError):  # the worker has closed it
                client.sendall(REQUEST)
        wait_until(lambda: open_descriptors(worker) >= 20, "descriptors in use")
        responses = Counter(read_response(client) for client in clients)
    assert responses[b"HTTP/1.1 200"] >= 1
    assert set(responses) <= {b"HTTP/1.1 200", b"HTTP/1.1 503", b""}
    wait_until(lambda: request(router.port) == b"HTTP/1.1 200", "recovery")
    assert router.workers == [worker]
    assert not router.log("worker exited unexpectedly")
