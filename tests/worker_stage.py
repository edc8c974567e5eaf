"""A stage for tests of worker processes: the test plays the supervisor, workers and model servers are real."""

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace

from router.gateway.control import Replicas, Report, Services, ToLedgers, Traces, UnknownKey
from router.ports import open_ports
from router.services import Replica, ReplicaState, Service, VersionKey, parse_service
from router.settings import load_settings
from router.telemetry.counters import unpack
from router.workers import Workers
from tests.processes import PATIENCE_SECONDS, POLL_SECONDS, Pending, ask, statistics, workers_of

ECHO = "/api/v1/service/echo/score"
SLOW = "/api/v1/service/slow/score"


class Stage:
    """Workers that serve, and what they said."""

    def __init__(self, ports: dict[str, int]) -> None:
        self.ports = ports
        settings = replace(load_settings(environ={}), port=0, drain_seconds=PATIENCE_SECONDS)
        self.ports_of_clients = open_ports(settings)
        self.port = self.ports_of_clients.port
        self.workers = Workers(settings, self, self.ports_of_clients.plain, human_log=True)
        self.now = time.monotonic()  # of the last look
        self.started: list[str] = []
        self.ended: list[str] = []
        self.answered: dict[str, int] = {}  # by worker
        self._answered: dict[tuple[str, VersionKey], int] = {}
        self.open: dict[str, int] = {}  # connections of clients, by worker

    def worker_started(self, name: str) -> None:
        self.started.append(name)
        services = {service: _service(service) for service in self.ports}
        self.workers.send(name, Services(services))
        for service, port in self.ports.items():
            key: VersionKey = (service, "default")
            replicas = (Replica(service, "127.0.0.1", port, ReplicaState.READY),)
            self.workers.send(name, Replicas(key, replicas, frozenset()))

    def worker_said(self, name: str, message: ToLedgers | Report | UnknownKey | Traces) -> None:
        assert name not in self.ended, "words of the dead"
        if isinstance(message, Report):
            if message.counted.process is not None:
                self.open[name] = message.counted.process.snapshot["connections_open"]
            for key, packed in message.counted.versions.items():
                answers = unpack(packed)["answers"].values()
                self._answered[name, key] = sum(sum(slugs.values()) for slugs in answers)
            self.answered[name] = sum(count for (worker, _), count in self._answered.items() if worker == name)

    def worker_ended(self, name: str) -> None:
        assert name in self.started
        self.ended.append(name)

    @property
    def pids(self) -> list[int]:
        return workers_of(os.getpid())

    async def until(self, holds: Callable[[], object], what: str = "what was waited for") -> None:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not holds():
                await asyncio.sleep(POLL_SECONDS)

    async def looking(self, holds: Callable[[], object]) -> None:
        """Wait until something holds, while the supervisor looks at its workers now and then."""

        def holds_now() -> object:
            self.now = time.monotonic()
            self.workers.look(self.now)
            return holds()

        await self.until(holds_now)

    def look_for(self, seconds: float) -> None:
        """Look at the workers as a supervisor would within this time, in none."""
        for _ in range(round(seconds * 10)):
            self.now += 0.1
            self.workers.look(self.now)

    async def ask(self, path: str = ECHO) -> int:
        return (await asyncio.to_thread(ask, self.port, path, b"[1]")).status

    async def under_way(self) -> Pending:
        """A slow request that has reached its replica."""
        pending = Pending(self.port, SLOW)
        await self.until(lambda: statistics(self.ports["slow"])["concurrent"] == 1)
        return pending


def _service(name: str) -> Service:
    settings = {"auth_enabled": False, "num_replicas": 1, "replica_max_concurrent_requests": 0}
    return parse_service(name, settings)


@contextlib.asynccontextmanager
async def stage(ports: dict[str, int], count: int = 0) -> AsyncIterator[Stage]:
    """Some workers, all of which are gone at the end."""
    made = Stage(ports)
    try:
        if count:
            await made.workers.resize(count)
            assert len(made.workers) == count
        yield made
    finally:
        await made.workers.stop(PATIENCE_SECONDS)
        made.ports_of_clients.close()
    assert made.pids == []
    assert sorted(made.ended) == sorted(made.started)
    assert len(asyncio.all_tasks()) == 1
