"""Clients whose requests have names, to check that each one got its response and reached a replica exactly once.

Small requests are sent continuously, some over a new connection, others over one that is kept until the router closes
it. Slow requests, large uploads and large downloads are started when a test needs them in flight.
"""

import contextlib
import hashlib
import http.client
import itertools
import json
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Self

from tests.processes import TIMEOUT_SECONDS, free_ports, is_listening, wait_until
from tests.servers.recording_server import LARGE_BODY_BYTES, NAME_HEADER, PIECE_BYTES, PIECE_COUNT, large_body

SLOW_SECONDS = 10.0
LARGE_SECONDS = 12.0
"""Minimum duration of an upload or a download. It is shorter once the test has ended."""
LONG_TIMEOUT_SECONDS = TIMEOUT_SECONDS + max(SLOW_SECONDS, LARGE_SECONDS)
"""Timeout for the end of slow and large requests, on a busy machine."""
SERVER = (sys.executable, "-m", "tests.servers.recording_server", "--slow-seconds", str(SLOW_SECONDS))
ROOT = Path(__file__).parents[1]
_TIMEOUT_SECONDS = 3 * TIMEOUT_SECONDS
_PAUSE_SECONDS = 0.005  # between small requests
_MAX_REQUESTS_PER_CONNECTION = 50
Address = tuple[str, int]


@contextlib.contextmanager
def recording_server() -> Iterator[Address]:
    """Run a recording server and yield its address."""
    host = "127.0.0.1"
    (port,) = free_ports(host, 1)
    command = [*SERVER, "--host", host, "--port", str(port)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL) as server:
        try:
            wait_until(lambda: is_listening(port), "start of the recording server")
            yield host, port
        finally:
            server.kill()


class NamedRequests:
    """Clients of one service. `routers` returns the routers to which a load balancer currently sends requests."""

    def __init__(
        self, service: str, routers: Callable[[], Sequence[Address]], replicas: Sequence[Address], clients: int = 6
    ) -> None:
        self.failures: list[str] = []
        self._path = f"/api/v1/service/{service}"
        self._routers = routers
        self._replicas = replicas
        self._succeeded: list[str] = []
        self._numbers = itertools.count()
        self._stop_small = threading.Event()
        self._speed_up = threading.Event()  # ends the pauses of large requests
        self._clients = [
            threading.Thread(target=self._send_small_requests, args=(number,)) for number in range(clients)
        ]
        self._slow_and_large: list[threading.Thread] = []

    def __enter__(self) -> Self:
        for client in self._clients:
            client.start()
        self.wait_for_responses()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop_small_requests()
        self._speed_up.set()
        for thread in self._slow_and_large:
            thread.join()

    def wait_for_responses(self, count: int = 50) -> None:
        """Wait for this number of further responses."""
        before = len(self._succeeded)
        wait_until(lambda: len(self._succeeded) >= before + count or self.failures, "responses")
        assert not self.failures, self.failures[:5]

    def start_slow_and_large(self, routers: Iterable[Address], slow: int = 2, large: int = 1) -> None:
        """Start `slow` slow requests, `large` uploads and `large` downloads through each of these routers, and wait
        until they are in flight at replicas."""
        started = []
        for router in routers:
            methods = [self._slow] * slow + [self._upload, self._download] * large
            for method in methods:
                name = f"{method.__name__.strip('_')}-{next(self._numbers)}"
                self._slow_and_large.append(threading.Thread(target=self._send_once, args=(method, router, name)))
                self._slow_and_large[-1].start()
                started.append(name)
        wait_until(
            lambda: self.failures or set(started) <= set(self._from_replicas("/in-flight")), "requests in flight"
        )
        assert not self.failures, self.failures[:5]

    def stop_small_requests(self) -> None:
        """Stop the clients that send small requests."""
        self._stop_small.set()
        for client in self._clients:
            client.join()

    def check(self) -> None:
        """After the end, check that each request got its response and reached a replica exactly once."""
        assert not self.failures, self.failures[:5]
        received = Counter(self._from_replicas("/received"))
        assert [name for name, times in received.items() if times > 1] == []
        assert received == Counter(self._succeeded)

    def _from_replicas(self, path: str) -> Iterator[str]:
        for host, port in self._replicas:
            with contextlib.closing(http.client.HTTPConnection(host, port, timeout=TIMEOUT_SECONDS)) as connection:
                connection.request("GET", path)
                yield from json.loads(connection.getresponse().read())

    # The clients.

    def _send_small_requests(self, number: int) -> None:
        max_requests = 1 if number % 3 == 0 else _MAX_REQUESTS_PER_CONNECTION
        for turn in itertools.count(number):
            if self._stop_small.is_set():
                break
            routers = self._routers()
            self._send_over_one_connection(routers[turn % len(routers)], max_requests)

    def _send_over_one_connection(self, router: Address, max_requests: int) -> None:
        with contextlib.closing(http.client.HTTPConnection(*router, timeout=_TIMEOUT_SECONDS)) as connection:
            for _ in range(max_requests):
                name = f"small-{next(self._numbers)}"
                if not self._send(router, name, self._small, connection) or self._stop_small.wait(_PAUSE_SECONDS):
                    break

    def _send_once(self, method: Callable[[http.client.HTTPConnection, str], bool], router: Address, name: str) -> None:
        with contextlib.closing(http.client.HTTPConnection(*router, timeout=_TIMEOUT_SECONDS)) as connection:
            self._send(router, name, method, connection)

    def _send(
        self,
        router: Address,
        name: str,
        method: Callable[[http.client.HTTPConnection, str], bool],
        connection: http.client.HTTPConnection,
    ) -> bool:
        """Send a request and record its result. Return True if the connection can be used again."""
        try:
            reusable = method(connection, name)
        except (OSError, http.client.HTTPException, AssertionError) as error:
            self.failures.append(f"{name} by {router[0]}: {error!r}")
            return False
        self._succeeded.append(name)
        return reusable

    def _small(self, connection: http.client.HTTPConnection, name: str) -> bool:
        connection.request("POST", f"{self._path}/small", name.encode(), {NAME_HEADER: name})
        response = connection.getresponse()
        body = response.read()
        assert (response.status, body) == (200, name.encode()), f"{response.status} {body[:200]!r}"
        return response.headers["connection"] != "close"

    def _slow(self, connection: http.client.HTTPConnection, name: str) -> bool:
        connection.request("POST", f"{self._path}/slow", name.encode(), {NAME_HEADER: name})
        response = connection.getresponse()
        body = response.read()
        assert (response.status, body) == (200, name.encode()), f"{response.status} {body[:200]!r}"
        return False

    def _upload(self, connection: http.client.HTTPConnection, name: str) -> bool:
        connection.putrequest("POST", f"{self._path}/upload")
        connection.putheader("Content-Length", str(LARGE_BODY_BYTES))
        connection.putheader(NAME_HEADER, name)
        connection.endheaders()
        digest = hashlib.sha256()
        for piece in large_body(name):
            digest.update(piece)
            connection.send(piece)
            self._speed_up.wait(LARGE_SECONDS / PIECE_COUNT)
        response = connection.getresponse()
        body = response.read()
        assert (response.status, body) == (200, digest.hexdigest().encode()), f"{response.status} {body[:200]!r}"
        return False

    def _download(self, connection: http.client.HTTPConnection, name: str) -> bool:
        connection.request("POST", f"{self._path}/download", b"", {NAME_HEADER: name})
        response = connection.getresponse()
        received, expected = hashlib.sha256(), hashlib.sha256()
        for piece in large_body(name):
            expected.update(piece)
            received.update(response.read(PIECE_BYTES))
            self._speed_up.wait(LARGE_SECONDS / PIECE_COUNT)
        assert (response.status, response.read()) == (200, b""), response.status
        assert received.digest() == expected.digest(), "wrong body"
        return False
