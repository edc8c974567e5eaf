"""Helpers for tests of whole processes: running processes, HTTP clients, load, and waiting for conditions."""

import contextlib
import http.client
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

import pytest

from router.cluster.local.replica_process import PortAllocator

ECHO_SERVER = Path(__file__).parent / "servers" / "echo_server.py"
TIMEOUT_SECONDS = 20.0
_WAIT_SECONDS = 60.0
"""Timeout of a wait. It allows for a busy machine, on which a router starts slowly."""
POLL_SECONDS = 0.03
_PORT_ALLOCATORS: dict[str, PortAllocator] = {}  # by host


def wait_until(
    condition: Callable[[], object], description: str = "condition", *, seconds: float = _WAIT_SECONDS
) -> None:
    """Poll until `condition` is true, for at most `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"timeout: {description}"
        time.sleep(POLL_SECONDS)


# Processes.


class Process(NamedTuple):
    """A running process, from /proc (see proc_pid_stat(5))."""

    pid: int
    parent: int
    command_line: str


def running_processes(*, with_zombies: bool = False) -> list[Process]:
    """Return all processes. Zombies are not running."""
    running = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                state, parent = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()[:2]
                command_line = (entry / "cmdline").read_text(errors="replace").replace("\0", " ")
                if with_zombies or state not in ("Z", "X"):
                    running.append(Process(int(entry.name), int(parent), command_line))
    return running


def children_of(pid: int, text: str = "") -> list[int]:
    """Return the direct children of a process whose command line contains `text`."""
    return sorted(
        process.pid for process in running_processes() if process.parent == pid and text in process.command_line
    )


def pids_with(text: str) -> list[int]:
    """Return the processes whose command line contains `text`."""
    return [process.pid for process in running_processes() if text in process.command_line]


@contextlib.contextmanager
def stopped(*pids: int) -> Iterator[None]:
    """Stop processes meanwhile. Their kernel still accepts connections for them."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def worker_pids(pid: int) -> list[int]:
    """Return the worker processes of a supervisor."""
    return children_of(pid, "router.workers.main")


def all_ended(pids: Iterable[int]) -> bool:
    """True if none of these processes is running."""
    return not {process.pid for process in running_processes()} & set(pids)


def descendants(pid: int) -> set[int]:
    """Return the children of a process, their children, and so on."""
    all_found: set[int] = set()
    generation = {pid}
    while generation:
        generation = {process.pid for process in running_processes() if process.parent in generation} - all_found
        all_found |= generation
    return all_found


def handles_signal(pid: int, number: signal.Signals) -> bool:
    """True if a process has installed a handler for a signal. Source: SigCgt in /proc/[pid]/status, see proc(5)."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        return bool(int(status["SigCgt"], 16) >> (number - 1) & 1)
    return False


def open_descriptors(pid: int | str = "self") -> int:
    """Return the number of open file descriptors of a process."""
    return len(os.listdir(f"/proc/{pid}/fd"))


@contextlib.contextmanager
def echo_server(**options: object) -> Iterator[int]:
    """Run an echo server that the router does not manage, and yield its port."""
    (port,) = free_ports("127.0.0.1", 1)
    flags = [argument for name, value in options.items() for argument in (f"--{name.replace('_', '-')}", str(value))]
    with subprocess.Popen([sys.executable, str(ECHO_SERVER), "--port", str(port), *flags]) as server:
        try:
            wait_until(lambda: is_listening(port), "start of the echo server")
            yield port
        finally:
            server.kill()


def _has_ipv6() -> bool:
    """Return True if this machine has the address ::1, and sockets for both versions of IP."""
    if not socket.has_dualstack_ipv6():
        return False
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not _has_ipv6(), reason="needs the address ::1, and sockets for both versions of IP")
"""Mark of tests that use IPv6."""


def free_ports(host: str, count: int) -> list[int]:
    """Return ports at which nothing listens. The system assigns none of them to another socket in the meantime."""
    ports = _PORT_ALLOCATORS.setdefault(host, PortAllocator(host))
    return [ports.allocate() for _ in range(count)]


def is_listening(port: int) -> bool:
    """True if something listens on the port."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), TIMEOUT_SECONDS):
        return True
    return False


# Clients.


class Response(NamedTuple):
    """An HTTP response."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def send_request(port: int, path: str, body: bytes | None = None, **headers: str) -> Response:
    """Send a request over a new connection: a POST if it has a body, else a GET."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_SECONDS)) as connection:
        return send_request_over(connection, path, body, **headers)


def send_request_over(
    connection: http.client.HTTPConnection, path: str, body: bytes | None = None, **headers: str
) -> Response:
    """Send a request over a connection that can be used again."""
    connection.request("GET" if body is None else "POST", path, body, headers)
    with connection.getresponse() as response:  # it has the socket if the server closes the connection
        received = {name.lower(): value for name, value in response.getheaders()}
        return Response(response.status, received, response.read())


def statistics(port: int) -> dict[str, Any]:
    """Return the counters of an echo server."""
    counts: dict[str, Any] = json.loads(send_request(port, "/stats").body)
    return counts


class Load:
    """Clients that send requests in a loop.

    The share `keep_alive` of the clients keep their connection, the others open a new one for each request. With a
    `context` they use TLS.
    """

    def __init__(
        self,
        port: int,
        path: str,
        *,
        clients: int = 4,
        keep_alive: float = 1.0,
        pause: float = 0.01,
        context: ssl.SSLContext | None = None,
        **headers: str,
    ) -> None:
        self.responses: Counter[int] = Counter()
        self.failures: list[str] = []
        self._port = port
        self._path = path
        self._pause = pause
        self._headers = headers
        self._stop = threading.Event()
        self._context = context
        keep_alive_clients = round(clients * keep_alive)
        self._clients = [
            threading.Thread(target=self._run, args=(number < keep_alive_clients,)) for number in range(clients)
        ]

    def __enter__(self) -> Self:
        for client in self._clients:
            client.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for client in self._clients:
            client.join()

    def wait_for_responses(self, count: int = 20) -> None:
        """Wait for this number of further responses, or a failure."""
        before = self.responses.total()
        wait_until(lambda: self.responses.total() >= before + count or self.failures, "responses")

    @property
    def all_succeeded(self) -> bool:
        """True if there were responses, and each was 200."""
        return not self.failures and set(self.responses) == {200}

    def __repr__(self) -> str:
        return f"{dict(self.responses)} {self.failures[:5]}"

    def _new_connection(self) -> http.client.HTTPConnection:
        if self._context is None:
            return http.client.HTTPConnection("127.0.0.1", self._port, timeout=TIMEOUT_SECONDS)
        return http.client.HTTPSConnection("127.0.0.1", self._port, timeout=TIMEOUT_SECONDS, context=self._context)

    def _run(self, keep_alive: bool) -> None:
        connection = self._new_connection()
        while not self._stop.wait(self._pause):
            try:
                response = send_request_over(connection, self._path, b'{"data": []}', **self._headers)
            except (OSError, http.client.HTTPException) as error:
                self.failures.append(repr(error))
                connection.close()
            else:
                self.responses[response.status] += 1
                if response.status != 200:
                    self.failures.append(f"{response.status} {response.body[:200]!r}")
                if not keep_alive:
                    connection.close()
        connection.close()


class PendingRequest:
    """A request on its own thread, in flight while the test continues."""

    def __init__(self, port: int, path: str, body: bytes = b"slow", **headers: str) -> None:
        self._result: Response | Exception | None = None
        self._thread = threading.Thread(target=self._run, args=(port, path, body, headers))
        self._thread.start()

    def _run(self, port: int, path: str, body: bytes, headers: dict[str, str]) -> None:
        try:
            self._result = send_request(port, path, body, **headers)
        except (OSError, http.client.HTTPException) as error:
            self._result = error

    def response(self) -> Response:
        """Wait for the response. Raises OSError or HTTPException if the request failed."""
        self._thread.join()
        assert self._result is not None
        if isinstance(self._result, Exception):
            raise self._result
        return self._result
