"""What all versions of one local cluster share.

Lives here: the surroundings that `processes` and `addresses` act in, and the tasks they start. Must not live here:
any state of a version.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from router.cluster.local.replica import Ports
from router.services import VersionKey

Drain = Callable[[str, float], Awaitable[bool]]
"""Wait until the replica with this id has no request in flight, at most so many seconds; false when it still has
some."""

Busy = Callable[[str], bool]
"""Whether the replica with this id has requests in flight."""


class Notice(Protocol):
    """`ClusterListener.notice`."""

    def __call__(self, key: VersionKey | None, level: int, message: str, **fields: object) -> None: ...


class Tasks:
    """Tasks that nobody awaits: kept alive, and a fault in one is reported instead of lost."""

    def __init__(self, notice: Notice) -> None:
        self._notice = notice
        self._running: set[asyncio.Task[None]] = set()

    def begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run `work`."""
        task = asyncio.ensure_future(work)
        self._running.add(task)
        task.add_done_callback(self._ended)
        return task

    async def all_ended(self) -> None:
        """Wait for all, those included that begin meanwhile."""
        while self._running:
            await asyncio.wait(self._running)

    def cancel(self) -> None:
        """Cancel all."""
        for task in self._running:
            task.cancel()

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if not task.cancelled() and (fault := task.exception()) is not None:
            self._notice(None, logging.ERROR, "a task of the local cluster failed", fault=repr(fault))


@dataclass(frozen=True, slots=True, kw_only=True)
class Around:
    """Surroundings of the versions of one local cluster; `clock` gives seconds, monotonic."""

    host: str
    state_dir: Path
    ports: Ports
    tasks: Tasks
    notice: Notice
    drain: Drain
    busy: Busy
    clock: Callable[[], float]
    new_id: Callable[[VersionKey], str]
