"""The pool of worker processes: start, health, replacement, drain.

A worker that exits unexpectedly is replaced after a delay. The delay doubles while replacements exit soon after their
start.

The supervisor owns the listeners, and each worker inherits all of them. So connections in an accept queue survive any
worker. Each worker accepts only from its own share of the listeners, because the kernel distributes connections
unevenly over processes that accept from the same socket. If a worker exits or hangs, the others take over its share. A
worker that hangs for `UNRESPONSIVE_SECONDS` is killed, because no other process can use its slots and connections.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

from router.config.router import RouterSettings
from router.net.backoff import Backoff
from router.net.child_process import spawn
from router.telemetry.journal import Entry
from router.telemetry.log import event
from router.workers.channels import WorkerChannels
from router.workers.listeners import ClientListeners
from router.workers.messages import ChangeSettings, CloseKeepAlives, Configure, Drain, RetireClients, SharesSlots
from router.workers.process import WorkerMessage, WorkerProcess

_log = logging.getLogger("router.workers")

_DRAIN_MIN_IDLE_SECONDS = 1.0
"""Minimum idle time of a client connection before a draining worker closes it."""
_REPLACED_DRAIN_SECONDS = 3600.0
_REPLACED_MIN_IDLE_SECONDS = 10.0
"""Drain time and minimum idle time of a replaced worker. They are long because other workers serve new requests. A
client that has been idle for ten seconds is unlikely to send its next request while its connection is being closed."""
_START_SECONDS = 30.0
"""Maximum time for a worker to become ready. It usually takes less than a second."""
_NOT_ACCEPTING_SECONDS = 5.0
"""Time without a message after which a worker does not count as accepting clients."""
_MAX_CHECK_INTERVAL_SECONDS = 0.5
"""Maximum time that one check counts as silence of a worker. A longer interval means that the supervisor was
stalled."""
_LAST_MESSAGES_SECONDS = 1.0
"""Maximum time for the last messages of an exited worker to arrive."""
_FIRST_RESTART_DELAY_SECONDS = 0.1
_MAX_RESTART_DELAY_SECONDS = 10.0
_MIN_LIFETIME_SECONDS = 10.0
"""A worker that exits before this age delays its replacement."""


class WorkerObserver(Protocol):
    """Receives the events of all workers. Each worker has a unique name."""

    def on_worker_started(self, name: str) -> None:
        """A worker was started. The observer must send it the serving state. After that it accepts clients."""

    def on_worker_message(self, name: str, message: WorkerMessage) -> None:
        """A worker has sent a message."""

    def on_worker_ended(self, name: str) -> None:
        """A worker has exited and its connections are closed. No more messages of it arrive."""


class WorkerStatus(NamedTuple):
    """The status of one worker process; `age` is in seconds."""

    name: str
    pid: int
    age: float
    ready: bool
    draining: bool
    stuck: bool


class WorkerPool:
    """A number of worker processes that share the client listeners."""

    def __init__(
        self,
        settings: RouterSettings,
        observer: WorkerObserver,
        listeners: ClientListeners,
        channels: WorkerChannels,
        *,
        human_log: bool,
        peer_listeners: Sequence[socket.socket] = (),
        collection_socket: Callable[[], socket.socket | None] = lambda: None,
        restart_backoff: Backoff | None = None,
    ) -> None:
        """`listeners` must be open before the first `resize`. Each worker keeps the `peer_listeners` open, but does not
        use them. `collection_socket` returns the socket to the collector, if there is one."""
        self._settings = settings
        self._observer = observer
        self._listeners = listeners
        self._channels = channels
        self._peer_listeners = peer_listeners
        self._collection_socket = collection_socket
        self._human_log = human_log
        self._workers: dict[str, WorkerProcess] = {}
        self._target_size = 0
        self._worker_numbers = itertools.count()
        self._query_ids = itertools.count()
        self._watchers: set[asyncio.Task[None]] = set()
        self._restarts: set[asyncio.Task[None]] = set()
        self._restart_backoff = restart_backoff or Backoff(_FIRST_RESTART_DELAY_SECONDS, _MAX_RESTART_DELAY_SECONDS)
        self._resize_lock = asyncio.Lock()
        self._stopping = asyncio.Event()
        self._complete = True
        self._lame_duck = False
        self._shares_slots = False
        self._checked_at = time.monotonic()
        self.unexpected_exits = 0
        """Number of workers that have exited although the pool did not stop them."""

    def __len__(self) -> int:
        return len(self._active())

    @property
    def target_size(self) -> int:
        """The desired number of workers."""
        return self._target_size

    @property
    def accepting(self) -> bool:
        """True if a worker accepts clients and is responsive."""
        return any(w.ready.is_set() and w.silent_seconds < _NOT_ACCEPTING_SECONDS for w in self._active())

    @property
    def stuck(self) -> Mapping[str, float]:
        """The seconds since the last message of each unresponsive worker, by name. Other workers have its share of the
        listeners."""
        return {worker.name: worker.silent_seconds for worker in self._active() if worker.stuck}

    def change_settings(self, settings: RouterSettings) -> None:
        """Apply changed settings in all running and future workers: those with the mark `dynamic`."""
        self._settings = settings
        self._channels.broadcast(ChangeSettings(settings))

    async def explain(self, request_id: bytes) -> tuple[str, Entry] | None:
        """Return the journal entry of a request and the name of the worker that has it; None if no worker has one."""
        names = list(self._workers)
        queries = [self._workers[name].explain(next(self._query_ids), request_id) for name in names]
        for name, entry in zip(names, await asyncio.gather(*queries), strict=True):
            if entry is not None:
                return name, entry
        return None

    async def list_requests(self, service: str, limit: int) -> tuple[list[Entry], list[Entry]]:
        """Return the latest failed requests of a service, newest first, and its slowest ones of the last minutes,
        slowest first: at most `limit` of each."""
        workers = list(self._workers.values())
        queries = [worker.list_requests(next(self._query_ids), service, limit) for worker in workers]
        listed = await asyncio.gather(*queries)
        failed = [entry for each in listed for entry in each.failed]
        slow = [entry for each in listed for entry in each.slow]
        failed.sort(key=lambda entry: entry.ended_at, reverse=True)
        slow.sort(key=lambda entry: entry.started_at - entry.ended_at)
        return failed[:limit], slow[:limit]

    def statuses(self) -> list[WorkerStatus]:
        """Return the status of each running worker, including draining ones."""
        now = time.monotonic()
        return [
            WorkerStatus(name, w.process.pid, now - w.started_at, w.ready.is_set(), w.draining, w.stuck)
            for name, w in self._workers.items()
        ]

    async def resize(self, count: int) -> None:
        """Set the number of workers. Returns once the new workers accept clients or have exited. Surplus workers drain
        in the background. Raises OSError if no process can be started."""
        async with self._resize_lock:
            self._target_size = count
            new = [await self._start() for _ in range(count - len(self)) if not self._stopping.is_set()]
            for worker in self._active()[count:]:
                self._drain_replaced(worker)
            await asyncio.gather(*(self._until_ready(worker) for worker in new))

    async def replace_all(self) -> None:
        """Replace the workers one by one. Each replacement accepts clients before the old worker drains. Gives up if a
        replacement exits before that. Raises OSError if no process can be started."""
        async with self._resize_lock:
            for worker in self._active():
                if self._stopping.is_set() or not await self._until_ready(await self._start()):
                    break
                self._drain_replaced(worker)

    def check_responsiveness(self, now: float) -> None:
        """Reassign the listeners of workers that send no messages, and kill those that have sent none for
        `UNRESPONSIVE_SECONDS`. Call this ten times a second."""
        interval = min(now - self._checked_at, _MAX_CHECK_INTERVAL_SECONDS)
        self._checked_at = now
        changes = [worker.check_responsiveness(interval) for worker in self._active()]
        if any(changes):
            self._assign_listeners()

    def begin_lame_duck(self) -> None:
        """Keep accepting connections, but send `Connection: close` with each response."""
        self._lame_duck = True
        self._channels.broadcast(CloseKeepAlives())

    def retire_clients(self, share: float) -> None:
        """Close this share of the busy client connections, each with its next response."""
        self._channels.broadcast(RetireClients(share))

    def share_slots(self) -> None:
        """Let workers abort their requests if this process ends: other routers use the same slots."""
        if not self._shares_slots:
            self._shares_slots = True
            self._channels.broadcast(SharesSlots())

    async def stop(self, seconds: float) -> bool:
        """Drain all workers for at most `seconds`, and kill those that do not exit soon after. Return False if requests
        were aborted."""
        self._stopping.set()
        for restart in self._restarts:
            restart.cancel()
        async with self._resize_lock:  # a start in progress completes soon, as `_stopping` is set
            for worker in tuple(self._workers.values()):
                worker.drain(Drain(seconds, _DRAIN_MIN_IDLE_SECONDS, accept_queued=True))
        if pending := self._watchers | self._restarts:
            await asyncio.wait(pending)
        return self._complete

    def kill(self) -> None:
        """Kill all workers."""
        for worker in self._workers.values():
            worker.kill()

    def _assign_listeners(self, new: WorkerProcess | None = None) -> None:
        """Distribute the listeners over the workers, about equally. A `new` worker gets its share at once. The others
        keep theirs until this is called again, when the new worker is ready."""
        ready = [worker for worker in self._active() if worker.ready.is_set()]
        accepting = [worker for worker in ready if not worker.stuck] or ready
        if new is not None:
            accepting.append(new)
        for position, worker in enumerate(accepting):
            indexes = listeners_of_worker(position, len(accepting), self._listeners.count)
            if new is None or worker is new:
                worker.accept_from(indexes)

    def _active(self) -> list[WorkerProcess]:
        return [worker for worker in self._workers.values() if not worker.draining]

    def _drain_replaced(self, worker: WorkerProcess) -> None:
        """Drain a worker while others serve new requests. It may take up to an hour while it is responsive."""
        if worker.name in self._workers and not worker.draining:
            worker.retire(self._settings.drain_seconds)
            self._assign_listeners()  # the others accept from its share before it stops
            worker.channel.send(Drain(_REPLACED_DRAIN_SECONDS, _REPLACED_MIN_IDLE_SECONDS, accept_queued=False))

    async def _start(self) -> WorkerProcess:
        name = f"worker-{next(self._worker_numbers)}"
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        plain, tls = self._listeners.plain, self._listeners.tls
        arguments = [str(theirs.fileno()), *(str(s.fileno()) for s in plain), *(f"tls:{s.fileno()}" for s in tls)]
        arguments += [f"peers:{s.fileno()}" for s in self._peer_listeners]
        collection = [each for each in (self._collection_socket(),) if each is not None]
        arguments += [f"collection:{s.fileno()}" for s in collection]
        inherited = (theirs, *plain, *tls, *self._peer_listeners, *collection)
        try:
            with theirs:
                process = await spawn("router.workers.main", arguments, [s.fileno() for s in inherited])
        except BaseException:
            ours.close()
            raise
        worker = WorkerProcess(name, process, self._observer.on_worker_message, self._assign_listeners)
        try:
            await asyncio.get_running_loop().create_connection(lambda: worker.channel, sock=ours)
        except BaseException:
            ours.close()
            worker.kill()
            await process.wait()
            raise
        self._workers[name] = worker
        self._channels.add(name, worker.channel)
        watcher = asyncio.ensure_future(self._watch(worker))
        self._watchers.add(watcher)
        watcher.add_done_callback(self._watchers.discard)
        worker.kill_after(_START_SECONDS, "worker not ready in time, killing it")
        worker.channel.send(Configure(self._settings, self._human_log))
        self._observer.on_worker_started(name)
        self._assign_listeners(worker)
        if self._shares_slots:
            worker.channel.send(SharesSlots())
        if self._lame_duck:
            worker.channel.send(CloseKeepAlives())
        return worker

    async def _until_ready(self, worker: WorkerProcess) -> bool:
        """Wait until a worker accepts clients. Return False if it has exited or the pool is stopping."""
        waits = (worker.ready.wait(), worker.disconnected.wait(), self._stopping.wait())
        tasks = [asyncio.ensure_future(wait) for wait in waits]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        return worker.ready.is_set()

    async def _watch(self, worker: WorkerProcess) -> None:
        exit_code = await worker.process.wait()
        try:
            async with asyncio.timeout(_LAST_MESSAGES_SECONDS):
                await worker.disconnected.wait()
        except TimeoutError:
            worker.channel.close()
        worker.cancel_kill()
        del self._workers[worker.name]
        self._channels.remove(worker.name)
        self._observer.on_worker_ended(worker.name)
        self._assign_listeners()
        if not worker.draining:
            self.unexpected_exits += 1
            event(_log, logging.ERROR, "worker exited unexpectedly", worker=worker.name, exit_code=exit_code)
        elif exit_code:
            event(_log, logging.WARNING, "worker aborted requests", worker=worker.name, exit_code=exit_code)
        if self._stopping.is_set():
            self._complete = self._complete and exit_code == 0
        elif not worker.draining:
            restart = asyncio.ensure_future(self._restart(time.monotonic() - worker.started_at))
            self._restarts.add(restart)
            restart.add_done_callback(self._restarts.discard)

    async def _restart(self, age: float) -> None:
        """Replace a worker that has exited at this age, in seconds. Does nothing if there are enough workers after the
        delay."""
        while True:
            if age < _MIN_LIFETIME_SECONDS:
                await asyncio.sleep(self._restart_backoff.next_delay())
            else:
                self._restart_backoff.reset()
            async with self._resize_lock:
                if self._stopping.is_set() or len(self) >= self._target_size:
                    return
                try:
                    await self._start()
                except OSError as error:
                    event(_log, logging.ERROR, "worker cannot be started", error=str(error))
                    age = 0.0
                else:
                    return


def listeners_of_worker(position: int, worker_count: int, listener_count: int) -> frozenset[int]:
    """Return the indexes of the listeners from which the worker at `position` accepts.

    All workers get about the same number of listeners, and each listener has a worker. If there are fewer listeners
    than workers, several workers share a listener.
    """
    if listener_count < worker_count:
        return frozenset((position % listener_count,)) if listener_count else frozenset()
    return frozenset(range(position, listener_count, worker_count))
