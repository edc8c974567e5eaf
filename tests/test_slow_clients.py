"""Slow clients hold no slots of a router with two workers, or of a router that has joined it."""

import contextlib
import socket
import time
from collections.abc import Iterator

from tests.processes import send_request, wait_until
from tests.routers import StartRouter, joined_router, open_echo_service

PATH = "/api/v1/service/free/score"
UPLOAD = b"x" * 200_000
DOWNLOAD = b"y" * 16_000_000


def send_head(port: int, length: int, *lines: str) -> socket.socket:
    """Connect, and send the head of a request."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16_384)
    client.connect(("127.0.0.1", port))
    head = [f"POST {PATH} HTTP/1.1", "Host: x", f"Content-Length: {length}", *lines, "", ""]
    client.sendall("\r\n".join(head).encode())
    return client


def read_response(client: socket.socket) -> bytes:
    """Return all data until the router closes the connection."""
    received = bytearray()
    while data := client.recv(1_000_000):
        received += data
    return bytes(received)


@contextlib.contextmanager
def slow_clients(ports: list[int], *, uploads: int, readers: int) -> Iterator[None]:
    """Run slow uploads, clients that wait for 100 Continue, and slow readers at each port.

    At the end, let them finish, and check that they all got their responses.
    """
    with contextlib.ExitStack() as stack:
        sending = [stack.enter_context(send_head(port, len(UPLOAD), "Connection: close")) for port in ports * uploads]
        continued = [
            stack.enter_context(send_head(port, 3, "Connection: close", "Expect: 100-continue"))
            for port in ports * uploads
        ]
        reading = [stack.enter_context(send_head(port, len(DOWNLOAD), "Connection: close")) for port in ports * readers]
        for client in sending:
            client.sendall(UPLOAD[:100_000])
        for client in continued:
            assert client.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        for client in reading:
            client.sendall(DOWNLOAD)
        yield
        for client in sending:
            client.sendall(UPLOAD[100_000:])
        for client in continued:
            client.sendall(b"abc")
        for clients, body in ((sending, UPLOAD), (continued, b"abc"), (reading, DOWNLOAD)):
            for client in clients:
                assert read_response(client).endswith(body)


def longest_request(port: int, count: int) -> float:
    """Send requests one after the other, and return the seconds that the slowest one took."""
    longest = 0.0
    for number in range(count):
        started_at = time.monotonic()
        response = send_request(port, PATH, b"%d" % number)
        longest = max(longest, time.monotonic() - started_at)
        assert (response.status, response.body) == (200, b"%d" % number)
    return longest


def test_slow_clients_hold_no_slots_of_several_workers_and_routers(start: StartRouter) -> None:
    service = open_echo_service(replica_max_concurrent_requests=1, max_request_wait_time=60_000)
    router = start({"free": service}, workers=2)
    with joined_router(router) as other_port, slow_clients([router.port, other_port], uploads=6, readers=2):
        wait_until(lambda: router.metric("buffered_bytes") > 6 * 100_000, "buffered bytes")
        wait_until(lambda: router.metric("requests_in_flight") == 0, "free slot")
        for port in (router.port, other_port):
            assert longest_request(port, 20) < 5
        wait_until(lambda: router.metric("requests_queued") == 0, "empty queue")
        assert router.metric("buffer_budget_exceeded_total") == 0
    wait_until(lambda: router.metric("buffered_bytes") == 0, "released buffers")


def test_two_workers_stream_when_their_budgets_are_spent(start: StartRouter) -> None:
    service = open_echo_service(replica_max_concurrent_requests=20)
    router = start({"free": service}, workers=2, buffer_budget_bytes=250_000)
    with slow_clients([router.port], uploads=8, readers=0):
        wait_until(lambda: router.metric("buffer_budget_exceeded_total") >= 2, "spent budgets")
        assert 0 < router.metric("buffered_bytes") <= 2 * 250_000
        wait_until(lambda: router.metric("requests_in_flight", service="free") >= 2, "streamed requests")
        assert send_request(router.port, PATH, b"small").body == b"small"
    wait_until(lambda: router.metric("buffered_bytes") == 0, "released buffers")
