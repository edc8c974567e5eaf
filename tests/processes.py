"""What tests of whole processes share: a look at the processes there are, clients, load, and waiting for events."""

import contextlib
import http.client
import json
import os
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

ECHO_SERVER = Path(__file__).parent / "servers" / "echo_server.py"
PATIENCE_SECONDS = 20.0
POLL_SECONDS = 0.03


def until(holds: Callable[[], object], what: str = "what was waited for", *, seconds: float = PATIENCE_SECONDS) -> None:
    """Wait until something holds; more `seconds` for what takes its time by itself."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"{what} did not come about"
        time.sleep(POLL_SECONDS)


# Processes.


class Process(NamedTuple):
    """A process that runs, as /proc has it (proc_pid_stat(5)); zombies are none."""

    pid: int
    parent: int
    words: str


def processes() -> list[Process]:
    """All there are."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                state, parent = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()[:2]
                words = (entry / "cmdline").read_text(errors="replace").replace("\0", " ")
                if state not in ("Z", "X"):
                    found.append(Process(int(entry.name), int(parent), words))
    return found


def children(pid: int, word: str = "") -> list[int]:
    """Those that a process has started itself, with a word in their command line."""
    return sorted(process.pid for process in processes() if process.parent == pid and word in process.words)


def workers_of(pid: int) -> list[int]:
    """The worker processes of a supervisor."""
    return children(pid, "router.gateway.worker")


def all_gone(pids: Iterable[int]) -> bool:
    """Whether none of these runs."""
    return not {process.pid for process in processes()} & set(pids)


def descendants(pid: int) -> set[int]:
    """All that a process has started, and that these have."""
    found: set[int] = set()
    fresh = {pid}
    while fresh:
        fresh = {process.pid for process in processes() if process.parent in fresh} - found
        found |= fresh
    return found


def descriptors(pid: int | str = "self") -> int:
    """How many files a process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))


@contextlib.contextmanager
def echo_server(**options: object) -> Iterator[int]:
    """A model server beside the router; its port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    words = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    with subprocess.Popen([sys.executable, str(ECHO_SERVER), "--port", str(port), *words]) as server:
        try:
            until(lambda: answers(port), "start of the model server")
            yield port
        finally:
            server.kill()


def answers(port: int) -> bool:
    """Whether somebody listens."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), PATIENCE_SECONDS):
        return True
    return False


# Clients.


class Answer(NamedTuple):
    """What a client got."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def ask(port: int, path: str, body: bytes | None = None, **headers: str) -> Answer:
    """One request over a connection of its own: a POST if it has a body."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_SECONDS)) as line:
        return ask_over(line, path, body, **headers)


def ask_over(line: http.client.HTTPConnection, path: str, body: bytes | None = None, **headers: str) -> Answer:
    """One request over a connection that may be kept."""
    line.request("GET" if body is None else "POST", path, body, headers)
    answer = line.getresponse()
    return Answer(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())


def statistics(port: int) -> dict[str, Any]:
    """What the model server counts."""
    counts: dict[str, Any] = json.loads(ask(port, "/stats").body)
    return counts


class Load:
    """Clients that ask again and again until the end. The share `keep_alive` of them do so over one connection each, as
    long as it lasts, the others over a new one each time; with a `context` over TLS."""

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
        self.answers: Counter[int] = Counter()
        self.failures: list[str] = []
        self._port = port
        self._path = path
        self._pause = pause
        self._headers = headers
        self._over = threading.Event()
        self._context = context
        kept = round(clients * keep_alive)
        self._clients = [threading.Thread(target=self._run, args=(number < kept,)) for number in range(clients)]

    def __enter__(self) -> Self:
        for client in self._clients:
            client.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for client in self._clients:
            client.join()

    def goes_on(self, requests: int = 20) -> None:
        """Wait for so many more answers."""
        before = self.answers.total()
        until(lambda: self.answers.total() >= before + requests or self.failures, "answers")

    @property
    def all_well(self) -> bool:
        """Whether there were answers and each was 200."""
        return not self.failures and set(self.answers) == {200}

    def __repr__(self) -> str:
        return f"{dict(self.answers)} {self.failures[:5]}"

    def _line(self) -> http.client.HTTPConnection:
        if self._context is None:
            return http.client.HTTPConnection("127.0.0.1", self._port, timeout=PATIENCE_SECONDS)
        return http.client.HTTPSConnection("127.0.0.1", self._port, timeout=PATIENCE_SECONDS, context=self._context)

    def _run(self, keep: bool) -> None:
        line = self._line()
        while not self._over.wait(self._pause):
            try:
                answer = ask_over(line, self._path, b'{"data": []}', **self._headers)
            except (OSError, http.client.HTTPException) as error:
                self.failures.append(repr(error))
                line.close()
            else:
                self.answers[answer.status] += 1
                if answer.status != 200:
                    self.failures.append(f"{answer.status} {answer.body[:200]!r}")
                if not keep:
                    line.close()
        line.close()


class Pending:
    """One request that is under way while a test goes on."""

    def __init__(self, port: int, path: str, body: bytes = b"slow", **headers: str) -> None:
        self._result: Answer | Exception | None = None
        self._thread = threading.Thread(target=self._run, args=(port, path, body, headers))
        self._thread.start()

    def _run(self, port: int, path: str, body: bytes, headers: dict[str, str]) -> None:
        try:
            self._result = ask(port, path, body, **headers)
        except (OSError, http.client.HTTPException) as error:
            self._result = error

    def answer(self) -> Answer:
        """Its answer; raises what came instead of one."""
        self._thread.join()
        assert self._result is not None
        if isinstance(self._result, Exception):
            raise self._result
        return self._result
