"""Requests that have names: each must be answered as it should, and have come to a replica exactly once.

Small ones all the time, some over a connection of their own, others over one that is kept until the router closes it;
slow ones and large ones, both ways, when a test wants them in flight.
"""

import contextlib
import hashlib
import http.client
import itertools
import json
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Self

from tests.processes import PATIENCE_SECONDS, answers, until
from tests.servers.recording_server import NAME, PIECE, PIECES, pieces

SLOW_SECONDS = 10.0
LARGE_SECONDS = 12.0
"""So long an upload or a download takes at least, unless the test is over."""
PATIENCE = PATIENCE_SECONDS + max(SLOW_SECONDS, LARGE_SECONDS)
"""What is under way may last so long, with what a busy machine takes for itself."""
SERVER = (sys.executable, "-m", "tests.servers.recording_server", "--slow-seconds", str(SLOW_SECONDS))
ROOT = Path(__file__).parents[1]
_TIMEOUT_SECONDS = 3 * PATIENCE_SECONDS
_PAUSE_SECONDS = 0.005
_MOST_OVER_ONE_CONNECTION = 50
Address = tuple[str, int]


@contextlib.contextmanager
def recording_server() -> Iterator[Address]:
    """A model server that keeps a record of each request; its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        host, port = probe.getsockname()
    words = [*SERVER, "--host", host, "--port", str(port)]
    with subprocess.Popen(words, cwd=ROOT, stdin=subprocess.DEVNULL) as server:
        try:
            until(lambda: answers(port), "start of the model server")
            yield host, port
        finally:
            server.kill()


class NamedRequests:
    """Clients of one service. `routers` are where a load balancer would send them, now."""

    def __init__(
        self, service: str, routers: Callable[[], Sequence[Address]], replicas: Sequence[Address], clients: int = 6
    ) -> None:
        self.failures: list[str] = []
        self._path = f"/api/v1/service/{service}"
        self._routers = routers
        self._replicas = replicas
        self._answered: list[str] = []
        self._numbers = itertools.count()
        self._left = threading.Event()
        self._hurry = threading.Event()
        self._clients = [threading.Thread(target=self._ask, args=(number,)) for number in range(clients)]
        self._others: list[threading.Thread] = []

    def __enter__(self) -> Self:
        for client in self._clients:
            client.start()
        self.goes_on()
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()
        self._hurry.set()
        for other in self._others:
            other.join()

    def goes_on(self, requests: int = 50) -> None:
        """Wait for so many more answers."""
        before = len(self._answered)
        until(lambda: len(self._answered) >= before + requests or self.failures, "answers")
        assert not self.failures, self.failures[:5]

    def in_flight(self, routers: Iterable[Address], slow: int = 2, large: int = 1) -> None:
        """Have so many slow requests, and so many large ones each way, under way through each of these routers."""
        begun = []
        for router in routers:
            kinds = [self._slow] * slow + [self._upload, self._download] * large
            for kind in kinds:
                name = f"{kind.__name__.strip('_')}-{next(self._numbers)}"
                self._others.append(threading.Thread(target=self._once, args=(kind, router, name)))
                self._others[-1].start()
                begun.append(name)
        until(lambda: self.failures or set(begun) <= set(self._told_by_replicas("/in-flight")), "requests in flight")
        assert not self.failures, self.failures[:5]

    def leave(self) -> None:
        """The clients of small requests go elsewhere."""
        self._left.set()
        for client in self._clients:
            client.join()

    def are_whole(self) -> None:
        """After the end: all were answered as they should, and came to the replicas once."""
        assert not self.failures, self.failures[:5]
        seen = Counter(self._told_by_replicas("/seen"))
        assert [name for name, times in seen.items() if times > 1] == []
        assert seen == Counter(self._answered)

    def _told_by_replicas(self, path: str) -> Iterator[str]:
        for host, port in self._replicas:
            with contextlib.closing(http.client.HTTPConnection(host, port, timeout=PATIENCE_SECONDS)) as line:
                line.request("GET", path)
                yield from json.loads(line.getresponse().read())

    # The clients.

    def _ask(self, number: int) -> None:
        most = 1 if number % 3 == 0 else _MOST_OVER_ONE_CONNECTION
        for turn in itertools.count(number):
            if self._left.is_set():
                break
            routers = self._routers()
            self._with_a_line(routers[turn % len(routers)], most)

    def _with_a_line(self, router: Address, most: int) -> None:
        with contextlib.closing(http.client.HTTPConnection(*router, timeout=_TIMEOUT_SECONDS)) as line:
            for _ in range(most):
                name = f"small-{next(self._numbers)}"
                if not self._judged(router, name, self._small, line) or self._left.wait(_PAUSE_SECONDS):
                    break

    def _once(self, kind: Callable[[http.client.HTTPConnection, str], bool], router: Address, name: str) -> None:
        with contextlib.closing(http.client.HTTPConnection(*router, timeout=_TIMEOUT_SECONDS)) as line:
            self._judged(router, name, kind, line)

    def _judged(
        self,
        router: Address,
        name: str,
        kind: Callable[[http.client.HTTPConnection, str], bool],
        line: http.client.HTTPConnection,
    ) -> bool:
        """Ask, and keep what came of it. Whether the connection stays."""
        try:
            stays = kind(line, name)
        except (OSError, http.client.HTTPException, AssertionError) as error:
            self.failures.append(f"{name} by {router[0]}: {error!r}")
            return False
        self._answered.append(name)
        return stays

    def _small(self, line: http.client.HTTPConnection, name: str) -> bool:
        line.request("POST", f"{self._path}/small", name.encode(), {NAME: name})
        answer = line.getresponse()
        body = answer.read()
        assert (answer.status, body) == (200, name.encode()), f"{answer.status} {body[:200]!r}"
        return answer.headers["connection"] != "close"

    def _slow(self, line: http.client.HTTPConnection, name: str) -> bool:
        line.request("POST", f"{self._path}/slow", name.encode(), {NAME: name})
        answer = line.getresponse()
        body = answer.read()
        assert (answer.status, body) == (200, name.encode()), f"{answer.status} {body[:200]!r}"
        return False

    def _upload(self, line: http.client.HTTPConnection, name: str) -> bool:
        line.putrequest("POST", f"{self._path}/upload")
        line.putheader("Content-Length", str(PIECE * PIECES))
        line.putheader(NAME, name)
        line.endheaders()
        digest = hashlib.sha256()
        for piece in pieces(name):
            digest.update(piece)
            line.send(piece)
            self._hurry.wait(LARGE_SECONDS / PIECES)
        answer = line.getresponse()
        body = answer.read()
        assert (answer.status, body) == (200, digest.hexdigest().encode()), f"{answer.status} {body[:200]!r}"
        return False

    def _download(self, line: http.client.HTTPConnection, name: str) -> bool:
        line.request("POST", f"{self._path}/download", b"", {NAME: name})
        answer = line.getresponse()
        got, expected = hashlib.sha256(), hashlib.sha256()
        for piece in pieces(name):
            expected.update(piece)
            got.update(answer.read(PIECE))
            self._hurry.wait(LARGE_SECONDS / PIECES)
        assert (answer.status, answer.read()) == (200, b""), answer.status
        assert got.digest() == expected.digest(), "another body"
        return False
