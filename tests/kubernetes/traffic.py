"""Clients that send requests to several router addresses, as a Service distributes them, and record the results."""

import contextlib
import http.client
import itertools
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from typing import NamedTuple, Self

from tests.processes import Response, wait_until

_TIMEOUT_SECONDS = 30.0
_POLL_SECONDS = 0.05
_PAUSE_SECONDS = 0.005  # between two requests of a client


def get(
    address: str, port: int, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
) -> Response:
    """Send one request over a new connection: GET, or POST with a body."""
    connection = http.client.HTTPConnection(address, port, timeout=_TIMEOUT_SECONDS)
    try:
        return send(connection, path, body, headers)
    finally:
        connection.close()


def send(
    connection: http.client.HTTPConnection,
    path: str,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """Send one request over an open connection."""
    connection.request("GET" if body is None else "POST", path, body, dict(headers or {}))
    response = connection.getresponse()
    response_headers = {name.lower(): value for name, value in response.getheaders()}
    return Response(response.status, response_headers, response.read())


class Failure(NamedTuple):
    """A request without a 200 response."""

    address: str
    reason: str


class Traffic:
    """Clients that send requests inside the `with` block, each over one connection to each router."""

    def __init__(self, routers: Callable[[], list[str]], port: int, path: str, clients: int) -> None:
        self.statuses: Counter[int] = Counter()
        self.failures: list[Failure] = []
        self._list_routers = routers
        self._routers = routers()
        self._port = port
        self._path = path
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._send_requests, args=(number,)) for number in range(clients)]
        self._threads.append(threading.Thread(target=self._follow_routers))

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def wait_responses(self, count: int = 30) -> None:
        """Wait for `count` more responses."""
        before = self.statuses.total()
        wait_until(lambda: self.statuses.total() >= before + count, f"responses after {self}")

    @property
    def all_succeeded(self) -> bool:
        """True if there were responses and each was a 200."""
        return not self.failures and set(self.statuses) == {200}

    def __repr__(self) -> str:
        return f"{dict(self.statuses)} {self.failures[:5]}"

    def _follow_routers(self) -> None:
        """Keep the list of routers up to date."""
        while not self._stopping.wait(_POLL_SECONDS):
            self._routers = self._list_routers() or self._routers

    def _send_requests(self, client: int) -> None:
        connections: dict[str, http.client.HTTPConnection] = {}
        for turn in itertools.count(client):
            if self._stopping.wait(_PAUSE_SECONDS):
                break
            routers = self._routers
            address = routers[turn % len(routers)]
            connection = connections.setdefault(
                address, http.client.HTTPConnection(address, self._port, timeout=_TIMEOUT_SECONDS)
            )
            try:
                response = send(connection, self._path, b"[1]")
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                with self._lock:
                    self.failures.append(Failure(address, repr(error)))
            else:
                with self._lock:
                    self.statuses[response.status] += 1
                    if response.status != 200:
                        self.failures.append(Failure(address, f"{response.status} {response.body[:200]!r}"))
        for connection in connections.values():
            with contextlib.suppress(OSError):
                connection.close()
