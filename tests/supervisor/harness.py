"""A supervisor for tests. The test plays the role of the cluster; workers and model servers are real processes."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable, Collection
from dataclasses import replace
from typing import Any

from router.cluster import ClusterListener
from router.config.router import SourcedSettings, load_settings
from router.config.service import parse_service
from router.model.services import Replica, ReplicaState, Service, VersionKey
from router.supervisor.readiness import ClusterStatus
from router.supervisor.supervisor import Supervisor
from tests.processes import POLL_SECONDS, TIMEOUT_SECONDS, PendingRequest, send_request, worker_pids

ECHO: VersionKey = ("echo", "default")


class ManualCluster:
    """A cluster whose reports the test makes."""

    def __init__(self, start_error: Exception | None = None) -> None:
        self.requested: dict[VersionKey, int] = {}
        self.stopped = False
        self._listener: ClusterListener | None = None
        self._start_error = start_error

    @property
    def listener(self) -> ClusterListener:
        assert self._listener is not None, "not started"
        return self._listener

    async def start(self, listener: ClusterListener) -> None:
        self._listener = listener
        if self._start_error is not None:
            raise self._start_error

    def report_server_error(self, key: VersionKey, replica_id: str, status: int) -> None:
        pass

    def report_ejection(self, key: VersionKey, replica_id: str, reason: str) -> None:
        pass

    def scale(self, key: VersionKey, replicas: int, remove: Collection[str] = ()) -> None:
        self.requested[key] = replicas

    async def stop(self) -> None:
        self.stopped = True


class SupervisorHarness:
    """A supervisor with one worker."""

    def __init__(self, start_error: Exception | None = None, status: ClusterStatus | None = None) -> None:
        settings = replace(load_settings(environ={}), port=0, admin_port=0, workers=1, drain_seconds=TIMEOUT_SECONDS)
        self.cluster = ManualCluster(start_error)
        self.supervisor = Supervisor(
            SourcedSettings(settings, {}), self.cluster, own_id="pod-1", human_log=True, status=status
        )

    def set_services(self, *names: str, **settings: Any) -> None:
        self.cluster.listener.services_changed({name: _service(name, **settings) for name in names})

    def set_replicas(
        self, port: int, state: ReplicaState = ReplicaState.READY, *, key: VersionKey = ECHO, count: int = 1
    ) -> None:
        """Report `count` replicas, named after the service, with the same port."""
        replicas = tuple(Replica(f"{key[0]}-{number}", "127.0.0.1", port, state) for number in range(1, count + 1))
        self.cluster.listener.replicas_changed(key, replicas)

    def start_request(self, name: str = "echo") -> PendingRequest:
        return PendingRequest(self.supervisor.port, f"/api/v1/service/{name}/score")

    async def send_request(self, name: str = "echo") -> int:
        """Send a request, and return the status of the response."""
        return (
            await asyncio.to_thread(send_request, self.supervisor.port, f"/api/v1/service/{name}/score", b"[1]")
        ).status


def _service(name: str, **settings: Any) -> Service:
    return parse_service(name, {"auth_enabled": False, "num_replicas": 1, **settings})


@contextlib.asynccontextmanager
async def running_supervisor(status: ClusterStatus | None = None) -> AsyncIterator[SupervisorHarness]:
    """Start a supervisor. At the end, stop it, and check that no process is left."""
    harness = SupervisorHarness(status=status)
    try:
        await harness.supervisor.start()
        yield harness
    finally:
        assert await harness.supervisor.stop()
    assert harness.cluster.stopped
    assert worker_pids(os.getpid()) == []


async def wait_until(condition: Callable[[], object]) -> None:
    """Wait until `condition` returns a true value."""
    async with asyncio.timeout(TIMEOUT_SECONDS):
        while not condition():
            await asyncio.sleep(POLL_SECONDS)
