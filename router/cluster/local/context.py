"""The state directory, ports, callbacks and background tasks that all versions of one local cluster share.

Does not contain: any state of a version (`process_replicas`, `static_replicas`).
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from router.cluster.local.replica_process import PortAllocator
from router.model.services import Version, VersionKey

DrainReplica = Callable[[str, float], Awaitable[bool]]
"""Called with the id of a replica and a timeout in seconds. Waits until the replica has no request in flight. After the
timeout, aborts its remaining requests and returns False."""

HasRequestsInFlight = Callable[[str], bool]
"""Called with the id of a replica. Returns True if it has requests in flight."""


LogEnvironment = Callable[[VersionKey, Version], Mapping[str, str]]
"""Returns the variables with which the entry script of a replica logs data."""


class Notify(Protocol):
    """The signature of `ClusterListener.notice`."""

    def __call__(
        self, key: VersionKey | None, level: int, message: str, *, text: str | None = "", **fields: object
    ) -> None: ...


class BackgroundTasks:
    """Tasks that no caller awaits. Keeps them from being garbage-collected, and reports their exceptions."""

    def __init__(self, notify: Notify) -> None:
        self._notify = notify
        self._running: set[asyncio.Task[None]] = set()

    def start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run `work` in a task."""
        task = asyncio.ensure_future(work)
        self._running.add(task)
        task.add_done_callback(self._on_done)
        return task

    async def join(self) -> None:
        """Wait for all tasks, including those that start during the wait."""
        while self._running:
            await asyncio.wait(self._running)

    def cancel(self) -> None:
        """Cancel all tasks."""
        for task in self._running:
            task.cancel()

    def _on_done(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if not task.cancelled() and (exception := task.exception()) is not None:
            self._notify(None, logging.ERROR, "a task of the local cluster failed", fault=repr(exception))


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalContext:
    """What the replicas of a local cluster share. `clock` returns monotonic seconds. If `logs_exception_messages`, the
    messages of exceptions that may have data of requests are logged."""

    host: str
    scoring_prefix: str
    state_dir: Path
    ports: PortAllocator
    tasks: BackgroundTasks
    notify: Notify
    drain: DrainReplica
    has_requests: HasRequestsInFlight
    clock: Callable[[], float]
    logs_exception_messages: bool
    log_environment: LogEnvironment
    new_id: Callable[[VersionKey], str]
