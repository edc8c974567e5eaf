"""What the tests of the local cluster share: files, a listener that remembers, and a look at the processes there
are."""

import asyncio
import contextlib
import http.client
import json
import secrets
import textwrap
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from pathlib import Path
from typing import Any

import uvloop

from router.cluster.local.cluster import LocalCluster
from router.cluster.local.file import LocalConfig, load_local
from router.services import Replica, ReplicaState, Service, VersionKey

ECHO_SERVER = Path(__file__).parents[2] / "servers" / "echo_server.py"
PATIENCE_SECONDS = 20.0

Notice = tuple[VersionKey | None, int, str, dict[str, object]]


def run(work: Coroutine[Any, Any, None]) -> None:
    """Run a test's coroutine as the router would: on uvloop."""
    uvloop.run(work)


def words_of_echo_server(**options: object) -> list[str]:
    """The command of the test server, for `command` in a file."""
    words = ["python", str(ECHO_SERVER), "--port", "{port}"]
    for name, value in options.items():
        words += [f"--{name.replace('_', '-')}", str(value)]
    return words


def config_of(folder: Path, text: str) -> LocalConfig:
    """What a file with this text says."""
    path = folder / "local.yaml"
    path.write_text(textwrap.dedent(text))
    return load_local(path)


class Listener:
    """Remembers what it is told, and lets a test wait for it."""

    def __init__(self) -> None:
        self.services: dict[str, Service] = {}
        self.replicas: dict[VersionKey, tuple[Replica, ...]] = {}
        self.history: list[tuple[VersionKey, tuple[Replica, ...]]] = []
        self.notices: list[Notice] = []
        self._told = asyncio.Event()

    def services_changed(self, services: Mapping[str, Service]) -> None:
        self.services = dict(services)
        self._told.set()

    def replicas_changed(self, key: VersionKey, replicas: tuple[Replica, ...]) -> None:
        assert self.replicas.get(key) != replicas, "nothing has changed"
        self.replicas[key] = replicas
        self.history.append((key, replicas))
        self._told.set()

    def count_set(self, key: VersionKey, replicas: int) -> None:
        raise AssertionError("nobody else sets the number of replicas here")

    def left_alone(self, key: VersionKey, why: str | None) -> None:
        raise AssertionError("every version is scaled here")

    def notice(self, key: VersionKey | None, level: int, message: str, **fields: object) -> None:
        self.notices.append((key, level, message, fields))
        self._told.set()

    def told(self, message: str) -> list[dict[str, object]]:
        """The fields of each notice with this message."""
        return [fields for _, _, text, fields in self.notices if text == message]

    def ready(self, service: str, version: str = "default") -> list[Replica]:
        """Those that are ready."""
        return [r for r in self.replicas.get((service, version), ()) if r.state is ReplicaState.READY]

    async def until(self, holds: Callable[[], object]) -> None:
        """Wait until something told makes it hold."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not holds():
                self._told.clear()
                await self._told.wait()


@contextlib.asynccontextmanager
async def running(config: LocalConfig, state_dir: Path, **hooks: Any) -> AsyncIterator[tuple[LocalCluster, Listener]]:
    """A started cluster that is stopped at the end."""
    cluster, listener = LocalCluster(config, state_dir=state_dir, **hooks), Listener()
    await cluster.start(listener)
    try:
        yield cluster, listener
    finally:
        await cluster.stop()


def pids_with(mark: str) -> list[int]:
    """Processes with this word in their command line; zombies have none."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if mark in (entry / "cmdline").read_text(errors="replace"):
                    found.append(int(entry.name))
    return found


@contextlib.contextmanager
def marked() -> Iterator[str]:
    """A word for command lines; at the end, no process with it may be left."""
    mark = f"mark-{secrets.token_hex(8)}"
    yield mark
    assert pids_with(mark) == []


def ask(port: int, path: str, method: str = "GET", body: str | None = None) -> tuple[int, str]:
    """Status and text of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_SECONDS)
    try:
        connection.request(method, path, body)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def stats(port: int) -> dict[str, Any]:
    """What the test server counts."""
    answer: dict[str, Any] = json.loads(ask(port, "/stats")[1])
    return answer
