"""A router whose workers run out of file descriptors: nothing ends, and it recovers."""

import contextlib
import resource
import socket
from collections import Counter

from tests.processes import PATIENCE_SECONDS, descriptors, until
from tests.routers import Start, open_echo

REQUEST = b"POST /api/v1/service/echo/score HTTP/1.1\r\nHost: fe\r\nContent-Length: 2\r\n\r\n[]"


def answer_of(client: socket.socket) -> bytes:
    """How its answer begins; empty if it was sent away."""
    try:
        return client.recv(12)
    except OSError:
        return b""


def answer(port: int) -> bytes:
    """The same over a new connection."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), PATIENCE_SECONDS) as client:
        client.sendall(REQUEST)
        return answer_of(client)
    return b""


def test_descriptors_that_run_out_unforeseen(start: Start) -> None:
    router = start({"echo": open_echo()})
    (worker,) = router.workers
    assert router.score("echo").status == 200
    # A limit that the worker has not heard of: what it foresees is tested in tests/gateway/test_doors.py.
    resource.prlimit(worker, resource.RLIMIT_NOFILE, (descriptors(worker) + 20, descriptors(worker) + 20))
    with contextlib.ExitStack() as lines:
        clients = [
            lines.enter_context(socket.create_connection(("127.0.0.1", router.port), PATIENCE_SECONDS))
            for _ in range(60)
        ]
        for client in clients:
            with contextlib.suppress(OSError):  # one that was sent away
                client.sendall(REQUEST)
        until(lambda: descriptors(worker) >= 20, "descriptors in use")
        answered = Counter(answer_of(client) for client in clients)
    assert answered[b"HTTP/1.1 200"] >= 1
    assert set(answered) <= {b"HTTP/1.1 200", b"HTTP/1.1 503", b""}
    until(lambda: answer(router.port) == b"HTTP/1.1 200", "recovery")
    assert router.workers == [worker]
    assert not router.log("worker ended unasked")
