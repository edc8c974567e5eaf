"""Clients of the routers: several addresses, as behind a Service; what came of each request, and by whom."""

import contextlib
import http.client
import itertools
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from typing import NamedTuple, Self

from tests.processes import Answer, until

_TIMEOUT_SECONDS = 30.0


def get(
    address: str, port: int, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
) -> Answer:
    """One request over a connection of its own: GET, or POST with a body."""
    line = http.client.HTTPConnection(address, port, timeout=_TIMEOUT_SECONDS)
    try:
        return over(line, path, body, headers)
    finally:
        line.close()


def over(
    line: http.client.HTTPConnection, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
) -> Answer:
    """One request over a connection that may be kept."""
    line.request("GET" if body is None else "POST", path, body, dict(headers or {}))
    response = line.getresponse()
    found = {name.lower(): value for name, value in response.getheaders()}
    return Answer(response.status, found, response.read())


class Failure(NamedTuple):
    """A request that was not answered with 200."""

    address: str
    what: str


class Traffic:
    """Clients that ask until the end, each over one connection for each router."""

    def __init__(self, routers: Callable[[], list[str]], port: int, path: str, clients: int) -> None:
        self.answers: Counter[int] = Counter()
        self.failures: list[Failure] = []
        self._routers = routers
        self._present = routers()
        self._port = port
        self._path = path
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(clients)]
        self._threads.append(threading.Thread(target=self._look))

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def goes_on(self, requests: int = 30) -> None:
        """Wait for so many more answers."""
        before = self.answers.total()
        until(lambda: self.answers.total() >= before + requests, f"answers after {self}")

    @property
    def all_well(self) -> bool:
        """Whether there were answers and each was 200."""
        return not self.failures and set(self.answers) == {200}

    def __repr__(self) -> str:
        return f"{dict(self.answers)} {self.failures[:5]}"

    def _look(self) -> None:
        """Follow which routers there are."""
        while not self._over.wait(0.05):
            self._present = self._routers() or self._present

    def _ask(self, number: int) -> None:
        lines: dict[str, http.client.HTTPConnection] = {}
        for turn in itertools.count(number):
            if self._over.wait(0.005):
                break
            present = self._present
            address = present[turn % len(present)]
            line = lines.setdefault(address, http.client.HTTPConnection(address, self._port, timeout=_TIMEOUT_SECONDS))
            try:
                answer = over(line, self._path, b"[1]")
            except (OSError, http.client.HTTPException) as error:
                line.close()
                with self._lock:
                    self.failures.append(Failure(address, repr(error)))
            else:
                with self._lock:
                    self.answers[answer.status] += 1
                    if answer.status != 200:
                        self.failures.append(Failure(address, f"{answer.status} {answer.body[:200]!r}"))
        for line in lines.values():
            with contextlib.suppress(OSError):
                line.close()
