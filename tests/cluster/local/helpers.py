"""Helpers of the tests of the local cluster: files, launch settings, a recording listener, processes and requests."""

import asyncio
import contextlib
import secrets
import textwrap
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from router.cluster.local.cluster import LocalCluster
from router.cluster.local.config_file import LocalConfig
from router.cluster.local.launch import LaunchSettings
from router.cluster.local.service_files import ServiceFiles
from router.model.services import Replica, ReplicaState, Service, VersionKey
from tests.processes import ECHO_SERVER, TIMEOUT_SECONDS, pids_with

Notice = tuple[VersionKey | None, int, str, dict[str, object]]


def echo_server_command(**options: object) -> list[str]:
    """Return the command of the echo server with these options, for `command` in a file."""
    words = ["python", str(ECHO_SERVER), "--port", "{port}"]
    for name, value in options.items():
        words += [f"--{name.replace('_', '-')}", str(value)]
    return words


def config_of(directory: Path, text: str) -> LocalConfig:
    """Return the parsed content of a local file with this text."""
    path = directory / "local.yaml"
    path.write_text(textwrap.dedent(text))
    return ServiceFiles([path]).load()


def launch_settings(
    directory: Path,
    *,
    entry_script: Path | None = None,
    command: tuple[str, ...] = (),
    python: str | None = None,
    addresses: tuple[tuple[str, int], ...] = (),
    readiness_path: str = "/",
    liveness_path: str = "/",
    environment: Mapping[str, str] | None = None,
) -> LaunchSettings:
    """Return launch settings with defaults for what a test does not need."""
    return LaunchSettings(
        entry_script=entry_script,
        command=command,
        python=python,
        addresses=addresses,
        readiness_path=readiness_path,
        liveness_path=liveness_path,
        environment=environment or {},
        directory=directory,
    )


class RecordingListener:
    """A `ClusterListener` that records every report, and lets a test wait for one."""

    def __init__(self) -> None:
        self.services: dict[str, Service] = {}
        self.replicas: dict[VersionKey, tuple[Replica, ...]] = {}
        self.history: list[tuple[VersionKey, tuple[Replica, ...]]] = []
        self.wanted: dict[VersionKey, int] = {}
        self.notices: list[Notice] = []
        self.texts: list[str] = []
        self._reported = asyncio.Event()

    def services_changed(self, services: Mapping[str, Service]) -> None:
        self.services = dict(services)
        self._reported.set()

    def replicas_changed(self, key: VersionKey, replicas: tuple[Replica, ...]) -> None:
        assert self.replicas.get(key) != replicas, "nothing has changed"
        self.replicas[key] = replicas
        self.history.append((key, replicas))
        self._reported.set()

    def replicas_changed_externally(self, key: VersionKey, replicas: int) -> None:
        self.wanted[key] = replicas

    def scaling_suspended(self, key: VersionKey, why: str | None) -> None:
        raise AssertionError("local versions are always scaled")

    def notice(
        self, key: VersionKey | None, level: int, message: str, *, text: str | None = "", **fields: object
    ) -> None:
        self.texts.append(text or "")
        self.notices.append((key, level, message, fields))
        self._reported.set()

    def fields_of(self, message: str) -> list[dict[str, object]]:
        """Return the fields of each notice with this message."""
        return [fields for _, _, text, fields in self.notices if text == message]

    def ready(self, service: str, version: str = "default") -> list[Replica]:
        """Return the ready replicas of a version."""
        replicas = self.replicas.get((service, version), ())
        return [replica for replica in replicas if replica.state is ReplicaState.READY]

    async def wait_until(self, condition: Callable[[], object]) -> None:
        """Wait until a report makes the condition true."""
        async with asyncio.timeout(TIMEOUT_SECONDS):
            while not condition():
                self._reported.clear()
                await self._reported.wait()


@contextlib.asynccontextmanager
async def running_cluster(
    config: LocalConfig, state_dir: Path, **options: Any
) -> AsyncIterator[tuple[LocalCluster, RecordingListener]]:
    """Run a cluster and stop it at the end."""
    cluster, listener = LocalCluster(config, state_dir=state_dir, **options), RecordingListener()
    await cluster.start(listener)
    try:
        yield cluster, listener
    finally:
        await cluster.stop()


@contextlib.contextmanager
def process_mark() -> Iterator[str]:
    """Yield a unique word for command lines. Check at the end that no process with it is left."""
    mark = f"mark-{secrets.token_hex(8)}"
    yield mark
    assert pids_with(mark) == []
