"""The worker processes of one supervisor: started, watched, replaced, drained.

A worker is replaced when it ends unasked, after a pause that doubles for as long as its successors die young. The
listening socket belongs to the supervisor and is shared by all workers, so a connection that waits in its accept queue
outlives any of them.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import socket
import sys
import time
from collections.abc import Sequence
from typing import Protocol

from router.channel import Channel
from router.gateway.control import Begin, Drain, Ready, Report, ToLedgers
from router.settings import RouterSettings
from router.telemetry.log import event

_log = logging.getLogger("router.workers")

_FIRST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 10.0
_YOUNG_SECONDS = 10.0  # a worker that dies before this age makes the next pause longer
_DRAIN_MARGIN_SECONDS = 5.0  # beyond the time it was given, before a draining worker is killed


class WorkersListener(Protocol):
    """Who hears of workers. A name is never used twice."""

    def worker_started(self, name: str) -> None:
        """A worker has begun: tell it what to serve."""

    def worker_said(self, name: str, message: ToLedgers | Report) -> None:
        """A worker speaks."""

    def worker_ended(self, name: str) -> None:
        """A worker's process is gone, and with it its connections."""


class _Worker:
    def __init__(self, name: str, process: asyncio.subprocess.Process, channel: Channel) -> None:
        self.name = name
        self.process = process
        self.channel = channel
        self.started = time.monotonic()
        self.ready = asyncio.Event()
        self.leaving = False


class Workers:
    """A number of worker processes that share one listening socket."""

    def __init__(
        self, settings: RouterSettings, listener: WorkersListener, sockets: Sequence[socket.socket], *, human_log: bool
    ) -> None:
        self._settings = settings
        self._listener = listener
        self._sockets = sockets
        self._human_log = human_log
        self._workers: dict[str, _Worker] = {}
        self._numbers = itertools.count()
        self._watchers: set[asyncio.Task[None]] = set()
        self._pause = 0.0
        self._stopping = False
        self.restarts = 0  # of workers that ended unasked

    def __len__(self) -> int:
        return sum(1 for worker in self._workers.values() if not worker.leaving)

    @property
    def accepting(self) -> bool:
        """Whether a worker accepts clients."""
        return any(worker.ready.is_set() and not worker.leaving for worker in self._workers.values())

    @property
    def names(self) -> tuple[str, ...]:
        """The workers that live, those that drain included."""
        return tuple(self._workers)

    def send(self, name: str, message: object) -> None:
        """Say something to one worker, if it is still there."""
        worker = self._workers.get(name)
        if worker is not None:
            worker.channel.send(message)

    def broadcast(self, message: object) -> None:
        """Say something to all workers."""
        for worker in self._workers.values():
            worker.channel.send(message)

    async def resize(self, count: int) -> None:
        """Have `count` workers, and return once the new ones accept clients. Surplus ones drain in the background."""
        new = [await self._start() for _ in range(count - len(self))]
        staying = [worker for worker in self._workers.values() if not worker.leaving]
        for worker in staying[count:]:
            self._retire(worker, self._settings.drain_seconds)
        for worker in new:
            await self._until_ready(worker)

    async def replace_all(self) -> None:
        """Replace each worker by a new one, one after another: no moment has fewer than before."""
        for worker in [worker for worker in self._workers.values() if not worker.leaving]:
            await self._until_ready(await self._start())
            self._retire(worker, self._settings.drain_seconds)

    async def stop(self, seconds: float) -> bool:
        """Drain all, at most for `seconds`; whoever has not ended by then is killed. False if one had to be."""
        self._stopping = True
        for worker in tuple(self._workers.values()):
            self._retire(worker, seconds)
        if self._watchers:
            await asyncio.wait(self._watchers, timeout=seconds + _DRAIN_MARGIN_SECONDS)
        left = tuple(self._workers.values())
        for worker in left:
            worker.process.kill()
        if self._watchers:
            await asyncio.wait(self._watchers)
        return not left

    def kill(self) -> None:
        """End all at once."""
        for worker in self._workers.values():
            worker.process.kill()

    def _retire(self, worker: _Worker, seconds: float) -> None:
        worker.leaving = True
        worker.channel.send(Drain(seconds))

    async def _start(self) -> _Worker:
        name = f"worker-{next(self._numbers)}"
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        fds = [theirs.fileno(), *(sock.fileno() for sock in self._sockets)]
        with theirs:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "router.gateway.worker", *map(str, fds)),
                pass_fds=fds,
                stdin=asyncio.subprocess.DEVNULL,
                # Ctrl-C in a terminal goes to the whole foreground group: workers must not be in it.
                start_new_session=True,
                env=_environment(),
            )
        channel = Channel(lambda message: self._received(worker, message), lambda: None)
        worker = _Worker(name, process, channel)
        self._workers[name] = worker
        await asyncio.get_running_loop().create_connection(lambda: channel, sock=ours)
        channel.send(Begin(self._settings, self._human_log))
        self._listener.worker_started(name)
        watcher = asyncio.ensure_future(self._watch(worker))
        self._watchers.add(watcher)
        watcher.add_done_callback(self._watchers.discard)
        return worker

    async def _until_ready(self, worker: _Worker) -> None:
        ended = asyncio.ensure_future(worker.process.wait())
        ready = asyncio.ensure_future(worker.ready.wait())
        await asyncio.wait((ended, ready), return_when=asyncio.FIRST_COMPLETED)
        for task in (ended, ready):
            task.cancel()

    def _received(self, worker: _Worker, message: object) -> None:
        if isinstance(message, Ready):
            worker.ready.set()
        elif isinstance(message, ToLedgers | Report):
            self._listener.worker_said(worker.name, message)

    async def _watch(self, worker: _Worker) -> None:
        code = await worker.process.wait()
        worker.channel.close()
        del self._workers[worker.name]
        self._listener.worker_ended(worker.name)
        if worker.leaving or self._stopping:
            return
        self.restarts += 1
        event(_log, logging.ERROR, "worker ended unasked", worker=worker.name, exit_code=code)
        if time.monotonic() - worker.started < _YOUNG_SECONDS:
            self._pause = min(max(self._pause * 2, _FIRST_PAUSE_SECONDS), _LONGEST_PAUSE_SECONDS)
        else:
            self._pause = 0.0
        await asyncio.sleep(self._pause)
        if not self._stopping:
            await self._start()


def _environment() -> dict[str, str]:
    """A worker imports the package from where the supervisor has it, installed or not."""
    package_parent = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    paths = [package_parent, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return os.environ | {"PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}
