"""A worker pool for tests. The test plays the role of the supervisor; workers and model servers are real processes."""

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace

from router.config.router import load_settings
from router.config.service import parse_service
from router.model.services import Replica, ReplicaState, Service, VersionKey
from router.model.version_replicas import VersionReplicas
from router.net.backoff import Backoff
from router.telemetry.counters import unpack
from router.workers.channels import WorkerChannels
from router.workers.listeners import ClientListeners
from router.workers.messages import ReplicasUpdate, ServicesUpdate, WorkerReport
from router.workers.pool import WorkerPool
from router.workers.process import WorkerMessage
from tests.processes import POLL_SECONDS, TIMEOUT_SECONDS, PendingRequest, send_request, statistics, worker_pids

ECHO = "/api/v1/service/echo/score"
SLOW = "/api/v1/service/slow/score"


class PoolHarness:
    """A worker pool, and what its workers have reported."""

    def __init__(self, ports: dict[str, int], restart_backoff: Backoff | None = None) -> None:
        """`ports`: the model server of each service."""
        self.ports = ports
        settings = replace(load_settings(environ={}), port=0, drain_seconds=TIMEOUT_SECONDS)
        self.listeners = ClientListeners(settings)
        self.listeners.open()
        self.port = self.listeners.port
        self.channels = WorkerChannels()
        self.workers = WorkerPool(
            settings, self, self.listeners, self.channels, human_log=True, restart_backoff=restart_backoff
        )
        self.now = time.monotonic()  # of the last check of responsiveness
        self.started: list[str] = []
        self.ended: list[str] = []
        self.responses: dict[str, int] = {}  # by worker
        self._responses: dict[tuple[str, VersionKey], int] = {}
        self.open_connections: dict[str, int] = {}  # of clients, by worker

    def on_worker_started(self, name: str) -> None:
        self.started.append(name)
        self.channels.send(name, ServicesUpdate({service: _service(service) for service in self.ports}))
        for service, port in self.ports.items():
            replicas = VersionReplicas((Replica(service, "127.0.0.1", port, ReplicaState.READY),))
            self.channels.send(name, ReplicasUpdate((service, "default"), replicas))

    def on_worker_message(self, name: str, message: WorkerMessage) -> None:
        assert name not in self.ended, "a message after the exit"
        if isinstance(message, WorkerReport):
            if message.counters.process is not None:
                self.open_connections[name] = message.counters.process.snapshot["connections_open"]
            for key, packed in message.counters.versions.items():
                responses = unpack(packed)["responses"].values()
                self._responses[name, key] = sum(sum(by_error_code.values()) for by_error_code in responses)
            self.responses[name] = sum(count for (worker, _), count in self._responses.items() if worker == name)

    def on_worker_ended(self, name: str) -> None:
        assert name in self.started
        self.ended.append(name)

    @property
    def pids(self) -> list[int]:
        return worker_pids(os.getpid())

    async def wait_until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(TIMEOUT_SECONDS):
            while not condition():
                await asyncio.sleep(POLL_SECONDS)

    async def wait_until_with_checks(self, condition: Callable[[], object]) -> None:
        """Wait until `condition` returns a true value, and check the responsiveness of workers in the meantime."""

        def check_and_test() -> object:
            self.now = time.monotonic()
            self.workers.check_responsiveness(self.now)
            return condition()

        await self.wait_until(check_and_test)

    def check_for(self, seconds: float) -> None:
        """Check the responsiveness of workers as often as a supervisor does in this time, without waiting."""
        for _ in range(round(seconds * 10)):
            self.now += 0.1
            self.workers.check_responsiveness(self.now)

    async def send_request(self, path: str = ECHO) -> int:
        """Send a request, and return the status of the response."""
        return (await asyncio.to_thread(send_request, self.port, path, b"[1]")).status

    async def start_slow_request(self) -> PendingRequest:
        """Send a request, and wait until it has reached its replica."""
        pending = PendingRequest(self.port, SLOW)
        await self.wait_until(lambda: statistics(self.ports["slow"])["in_flight"] == 1)
        return pending


def _service(name: str) -> Service:
    settings = {"auth_enabled": False, "num_replicas": 1, "replica_max_concurrent_requests": 0}
    return parse_service(name, settings)


@contextlib.asynccontextmanager
async def running_pool(
    ports: dict[str, int], count: int = 0, *, restart_backoff: Backoff | None = None
) -> AsyncIterator[PoolHarness]:
    """Start `count` workers. At the end, check that none is left."""
    harness = PoolHarness(ports, restart_backoff)
    try:
        if count:
            await harness.workers.resize(count)
            assert len(harness.workers) == count
        yield harness
    finally:
        await harness.workers.stop(TIMEOUT_SECONDS)
        harness.listeners.close()
    assert harness.pids == []
    assert sorted(harness.ended) == sorted(harness.started)
    assert len(asyncio.all_tasks()) == 1
