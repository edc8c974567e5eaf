"""The worker processes of one supervisor: started, watched, replaced, drained.

A worker is replaced when it ends unasked, after a pause that doubles for as long as its successors die young.

Listening sockets belong to the supervisor, and each worker has all of them, so that a connection which waits in an
accept queue outlives any worker. Each worker accepts from its share of them alone, as connections spread unevenly over
processes that wait for the same socket. Who ends, or says nothing for a while, is relieved of its share by the others;
who goes on saying nothing is killed, as it holds slots and connections that nobody else can serve.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple, Protocol

from router.gateway.control import Accept, Begin, Drain, Logging, PartFrom
from router.settings import RouterSettings
from router.telemetry.journal import Entry
from router.telemetry.log import event
from router.worker_process import Said, WorkerProcess, spawn

_log = logging.getLogger("router.workers")

_DRAIN_MARGIN_SECONDS = 5.0  # beyond the time it was given, before a draining worker is killed
_FAREWELL_SECONDS = 1.0  # for which a connection must have been idle before a worker that is to end closes it
# Nobody waits for a worker that others have replaced: its requests may take as long as they like, within reason, and a
# client that has been silent for this long is hardly about to send its next request.
_UNHURRIED_SECONDS = 3600.0
_UNHURRIED_FAREWELL_SECONDS = 10.0
_START_SECONDS = 30.0  # a worker that does not accept clients by then never will; it takes less than one
_STUCK_SECONDS = 1.0  # of silence, until others accept the connections of a worker
_MUTE_SECONDS = 5.0  # of silence, until a worker does not count as one that accepts clients
# Of silence, until a worker is killed. Reports come several times a second, so it is none that a load explains; what it
# has in flight is lost, but would be so without an end, and its slots with it.
_DEAD_SECONDS = 30.0
_LONGEST_LOOK_SECONDS = 0.5  # that one look counts for: who was not awake itself has not heard that others were silent
_LAST_WORDS_SECONDS = 1.0  # for what a worker said before it ended to arrive


class WorkersListener(Protocol):
    """Who hears of workers. A name is never used twice."""

    def worker_started(self, name: str) -> None:
        """A worker has begun: tell it what to serve. It accepts clients after that."""

    def worker_said(self, name: str, message: Said) -> None:
        """A worker speaks."""

    def worker_ended(self, name: str) -> None:
        """A worker's process is gone, and with it its connections; all that it said was heard before."""


class RestartPause:
    """How long to wait before the successor of a worker that ended unasked is started. Seconds."""

    FIRST = 0.1
    LONGEST = 10.0
    YOUNG = 10.0
    """Who ends before this age makes the next pause longer; who ends later was no bad start."""

    def __init__(self) -> None:
        self._last = 0.0

    def after(self, age: float) -> float:
        """The pause after the end of a worker of this age."""
        self._last = min(max(self._last * 2, self.FIRST), self.LONGEST) if age < self.YOUNG else 0.0
        return self._last


def _tell_of_silence(worker: WorkerProcess) -> None:
    if worker.stuck:
        event(_log, logging.WARNING, "worker says nothing, others accept clients in its place", worker=worker.name)
    else:
        event(_log, logging.INFO, "worker speaks again", worker=worker.name)


def share_of_sockets(place: int, workers: int, sockets: int) -> frozenset[int]:
    """The numbers of the sockets that the worker in a place accepts from: about as many for each, and each of them for
    some worker. Where there are fewer sockets than workers, several workers share one."""
    if sockets < workers:
        return frozenset((place % sockets,)) if sockets else frozenset()
    return frozenset(range(place, sockets, workers))


class WorkerFacts(NamedTuple):
    """One worker process; `age` in seconds."""

    name: str
    pid: int
    age: float
    ready: bool
    leaving: bool
    stuck: bool


class Workers:
    """A number of worker processes that share the listening sockets."""

    def __init__(
        self,
        settings: RouterSettings,
        listener: WorkersListener,
        sockets: Sequence[socket.socket],
        *,
        tls_sockets: Sequence[socket.socket] = (),
        human_log: bool,
        kept: Sequence[socket.socket] = (),
    ) -> None:
        """`sockets` are listened on. `kept` ones stay open for as long as a worker lives, and are not used by it."""
        self._settings = settings
        self._listener = listener
        self._sockets = sockets
        self._tls_sockets = tls_sockets
        self._kept = kept
        self._human_log = human_log
        self._workers: dict[str, WorkerProcess] = {}
        self._wanted = 0
        self._numbers = itertools.count()
        self._questions = itertools.count()
        self._watchers: set[asyncio.Task[None]] = set()
        self._restarts: set[asyncio.Task[None]] = set()
        self._pause = RestartPause()
        self._changing = asyncio.Lock()  # one at a time changes how many there are
        self._stopping = asyncio.Event()
        self._complete = True
        self._parting = False
        self._looked_at = time.monotonic()
        self.ended_unasked = 0  # workers that did

    def __len__(self) -> int:
        return len(self._staying())

    @property
    def wanted(self) -> int:
        """How many there are to be."""
        return self._wanted

    @property
    def accepting(self) -> bool:
        """Whether a worker accepts clients, and gives signs of life."""
        return any(worker.ready.is_set() and worker.silence < _MUTE_SECONDS for worker in self._staying())

    @property
    def stuck(self) -> Mapping[str, float]:
        """The workers for which others accept clients now, as they say nothing, and for how many seconds."""
        return {worker.name: worker.silence for worker in self._staying() if worker.stuck}

    def send(self, name: str, message: object) -> None:
        """Say something to one worker, if it is still there."""
        worker = self._workers.get(name)
        if worker is not None:
            worker.channel.send(message)

    def set_logging(self, level: str, access_log: float) -> None:
        """Have all workers, those to come included, log from this level on, and this share of the requests."""
        self._settings = replace(self._settings, log_level=level, access_log=access_log)
        self.broadcast(Logging(level, access_log))

    def broadcast(self, message: object) -> None:
        """Say something to all workers."""
        for worker in self._workers.values():
            worker.channel.send(message)

    async def explain(self, request_id: bytes) -> tuple[str, Entry] | None:
        """What became of a request that a worker remembers, and which worker that is."""
        names = list(self._workers)
        asked = [self._workers[name].explain(next(self._questions), request_id) for name in names]
        for name, entry in zip(names, await asyncio.gather(*asked), strict=True):
            if entry is not None:
                return name, entry
        return None

    def facts(self) -> list[WorkerFacts]:
        """The workers there are."""
        now = time.monotonic()
        return [
            WorkerFacts(
                name, worker.process.pid, now - worker.started, worker.ready.is_set(), worker.leaving, worker.stuck
            )
            for name, worker in self._workers.items()
        ]

    def sent(self) -> Mapping[str, int]:
        """How many messages each worker that lives was sent so far; its reports say how many it has heard."""
        return {name: worker.channel.sent for name, worker in self._workers.items()}

    async def resize(self, count: int) -> None:
        """Have `count` workers, and return once the new ones accept clients, or cannot. Surplus ones drain in the
        background. Raises OSError when no process can be made."""
        async with self._changing:
            self._wanted = count
            new = [await self._start() for _ in range(count - len(self)) if not self._stopping.is_set()]
            for worker in self._staying()[count:]:
                self._retire(worker)
            await asyncio.gather(*(self._becomes_ready(worker) for worker in new))

    async def replace_all(self) -> None:
        """Replace each worker by a new one, one after another: no moment has fewer than before. Stops at the first
        successor that does not accept clients. Raises OSError when no process can be made."""
        async with self._changing:
            for worker in self._staying():
                if self._stopping.is_set() or not await self._becomes_ready(await self._start()):
                    break
                self._retire(worker)

    def look(self, now: float) -> None:
        """See who says nothing, though workers report several times a second; call ten times a second."""
        looked_for = min(now - self._looked_at, _LONGEST_LOOK_SECONDS)
        self._looked_at = now
        changed = False
        for worker in self._staying():
            worker.silence = 0.0 if worker.spoke else worker.silence + looked_for
            worker.spoke = False
            stuck = worker.ready.is_set() and worker.silence >= _STUCK_SECONDS
            if stuck is not worker.stuck:
                worker.stuck, changed = stuck, True
                _tell_of_silence(worker)
            if stuck and worker.silence >= _DEAD_SECONDS:
                worker.give_up()
        if changed:
            self._spread()

    def part(self) -> None:
        """Have clients told not to come back over their connections, while new ones are still accepted."""
        self._parting = True
        self.broadcast(PartFrom())

    async def stop(self, seconds: float) -> bool:
        """Drain all, at most for `seconds`; whoever has not ended soon after is killed. False if requests were cut."""
        self._stopping.set()
        for restart in self._restarts:
            restart.cancel()
        async with self._changing:  # who starts one at this moment is done soon, as `_stopping` is set
            for worker in tuple(self._workers.values()):
                self._end(worker, seconds)
        if ending := self._watchers | self._restarts:
            await asyncio.wait(ending)
        return self._complete

    def kill(self) -> None:
        """End all at once."""
        for worker in self._workers.values():
            worker.kill()

    def _spread(self, new: WorkerProcess | None = None) -> None:
        """Have somebody accept from each socket, and all workers from about as many. A new one takes its share before
        the others let go of it, which they do once it is ready."""
        ready = [worker for worker in self._staying() if worker.ready.is_set()]
        accepting = [worker for worker in ready if not worker.stuck] or ready
        if new is not None:
            accepting.append(new)
        for place, worker in enumerate(accepting):
            numbers = share_of_sockets(place, len(accepting), max(len(self._sockets), len(self._tls_sockets)))
            if worker is new or (new is None and numbers != worker.accepts_from):
                worker.accepts_from = numbers
                worker.channel.send(Accept(numbers))

    def _staying(self) -> list[WorkerProcess]:
        return [worker for worker in self._workers.values() if not worker.leaving]

    def _retire(self, worker: WorkerProcess) -> None:
        """Let a worker end that others go on for: it has its time, as long as it gives signs of life."""
        if worker.name in self._workers and not worker.leaving:
            worker.leaving = True
            worker.longest_silence = self._settings.drain_seconds + _DRAIN_MARGIN_SECONDS
            worker.kill_after(worker.longest_silence, "worker that was replaced is stuck, it is killed")
            self._spread()  # who takes over from it, before it lets go
            worker.channel.send(Drain(_UNHURRIED_SECONDS, _UNHURRIED_FAREWELL_SECONDS, last=False))

    @staticmethod
    def _end(worker: WorkerProcess, seconds: float) -> None:
        """Let a worker end, at most so long from now."""
        worker.leaving = True
        worker.longest_silence = None
        worker.kill_after(seconds + _DRAIN_MARGIN_SECONDS, "worker does not end, it is killed")
        worker.channel.send(Drain(seconds, _FAREWELL_SECONDS, last=True))

    async def _start(self) -> WorkerProcess:
        name = f"worker-{next(self._numbers)}"
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        words = [str(sock.fileno()) for sock in self._sockets] + [f"tls:{s.fileno()}" for s in self._tls_sockets]
        fds = [theirs.fileno(), *(sock.fileno() for sock in (*self._sockets, *self._tls_sockets))]
        try:
            with theirs:
                process = await spawn([str(theirs.fileno()), *words], [*fds, *(sock.fileno() for sock in self._kept)])
        except BaseException:
            ours.close()
            raise
        worker = WorkerProcess(name, process, self._listener.worker_said, self._spread)
        try:
            await asyncio.get_running_loop().create_connection(lambda: worker.channel, sock=ours)
        except BaseException:
            ours.close()
            worker.kill()
            await process.wait()
            raise
        self._workers[name] = worker
        watcher = asyncio.ensure_future(self._watch(worker))
        self._watchers.add(watcher)
        watcher.add_done_callback(self._watchers.discard)
        worker.kill_after(_START_SECONDS, "worker does not accept clients, it is killed")
        worker.channel.send(Begin(self._settings, self._human_log))
        self._listener.worker_started(name)
        self._spread(worker)
        if self._parting:
            worker.channel.send(PartFrom())
        return worker

    async def _becomes_ready(self, worker: WorkerProcess) -> bool:
        """Wait until a worker accepts clients; False if it ended, or all are to end."""
        waits = (worker.ready.wait(), worker.silent.wait(), self._stopping.wait())
        tasks = [asyncio.ensure_future(wait) for wait in waits]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        return worker.ready.is_set()

    async def _watch(self, worker: WorkerProcess) -> None:
        code = await worker.process.wait()
        try:
            async with asyncio.timeout(_LAST_WORDS_SECONDS):
                await worker.silent.wait()
        except TimeoutError:
            worker.channel.close()
        worker.spare()
        del self._workers[worker.name]
        self._listener.worker_ended(worker.name)
        self._spread()
        if not worker.leaving:
            self.ended_unasked += 1
            event(_log, logging.ERROR, "worker ended unasked", worker=worker.name, exit_code=code)
        elif code:
            event(_log, logging.WARNING, "worker had to cut requests", worker=worker.name, exit_code=code)
        if self._stopping.is_set():
            self._complete = self._complete and code == 0
        elif not worker.leaving:
            restart = asyncio.ensure_future(self._restart(time.monotonic() - worker.started))
            self._restarts.add(restart)
            restart.add_done_callback(self._restarts.discard)

    async def _restart(self, age: float) -> None:
        """Start the successor of a worker that ended at this age, if there are too few still."""
        while True:
            await asyncio.sleep(self._pause.after(age))
            async with self._changing:
                if self._stopping.is_set() or len(self) >= self._wanted:
                    return
                try:
                    await self._start()
                except OSError as error:
                    event(_log, logging.ERROR, "worker cannot be started", error=str(error))
                    age = 0.0
                else:
                    return
