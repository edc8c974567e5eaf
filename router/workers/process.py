"""The supervisor's side of one worker process: channel, queries, kill deadlines.

Does not contain: how other workers take over from one that exits or hangs (`pool`).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from router.net.channel import Channel
from router.telemetry.journal import Entry
from router.telemetry.log import event
from router.workers.messages import (
    AcceptFrom,
    Drain,
    Explain,
    Explained,
    LeaseRequests,
    ListedRequests,
    ListRequests,
    Ready,
    Traces,
    UnknownTokenKey,
    WorkerReport,
)

_log = logging.getLogger("router.workers")

STUCK_SECONDS = 1.0
"""Time without a message after which other workers take over the listeners of a worker."""

UNRESPONSIVE_SECONDS = 30.0
"""Time without a message after which a worker is killed. High load is no explanation, as reports are sent several times
a second. The kill aborts the requests of the worker, which would otherwise hang forever and keep their slots."""

KILL_MARGIN_SECONDS = 5.0
"""Time between the end of the drain time and the kill."""

_QUERY_SECONDS = 1.0
"""Timeout for a worker's reply about its journal."""

WorkerMessage = LeaseRequests | WorkerReport | UnknownTokenKey | Traces
"""The messages that are passed to `on_message`. `Ready` and replies are handled here."""


class WorkerProcess:
    """One worker process. `on_message` is called with its messages, `on_ready` once it accepts clients."""

    def __init__(
        self,
        name: str,
        process: asyncio.subprocess.Process,
        on_message: Callable[[str, WorkerMessage], None],
        on_ready: Callable[[], None],
    ) -> None:
        self.name = name
        self.process = process
        self.channel = Channel(self._on_channel_message, self._on_channel_closed)
        self.started_at = time.monotonic()
        self.ready = asyncio.Event()
        self.disconnected = asyncio.Event()  # set when the channel is closed
        self._accepts_from: frozenset[int] | None = None  # indexes of listeners
        self._has_sent = True  # True if a message has arrived since the last check
        self._silent_seconds = 0.0
        self._stuck = False
        self._draining = False
        self._max_silent_seconds: float | None = None  # while the worker drains; None: no limit
        self._queries: dict[int, asyncio.Future[Explained | ListedRequests | None]] = {}
        self._on_message = on_message
        self._on_ready = on_ready
        self._killed_as_unresponsive = False
        self._kill_timer: asyncio.TimerHandle | None = None

    @property
    def draining(self) -> bool:
        """True if the worker is to finish its requests and exit."""
        return self._draining

    @property
    def stuck(self) -> bool:
        """True if the worker was ready, but has sent no message for `STUCK_SECONDS`."""
        return self._stuck

    @property
    def silent_seconds(self) -> float:
        """The time without a message at the last check."""
        return self._silent_seconds

    def accept_from(self, indexes: frozenset[int]) -> None:
        """Have the worker accept clients from these listeners only."""
        if indexes != self._accepts_from:
            self._accepts_from = indexes
            self.channel.send(AcceptFrom(indexes))

    def check_responsiveness(self, interval: float) -> bool:
        """Check whether the worker has sent a message in the last `interval` seconds. Return True if `stuck` has
        changed.

        Kills the worker after `UNRESPONSIVE_SECONDS` without a message.
        """
        self._silent_seconds = 0.0 if self._has_sent else self._silent_seconds + interval
        self._has_sent = False
        stuck = self.ready.is_set() and self._silent_seconds >= STUCK_SECONDS
        changed, self._stuck = stuck is not self._stuck, stuck
        if changed and stuck:
            event(_log, logging.WARNING, "worker unresponsive, others take over its listeners", worker=self.name)
        elif changed:
            event(_log, logging.INFO, "worker responsive again", worker=self.name)
        if stuck and self._silent_seconds >= UNRESPONSIVE_SECONDS and not self._killed_as_unresponsive:
            self._killed_as_unresponsive = True
            self._log_and_kill("worker unresponsive, killing it")
        return changed

    def drain(self, message: Drain) -> None:
        """Have the worker exit within the time in the message. Kill it if it does not."""
        self._draining = True
        self._max_silent_seconds = None
        self.kill_after(message.seconds + KILL_MARGIN_SECONDS, "worker did not exit in time, killing it")
        self.channel.send(message)

    def retire(self, seconds: float) -> None:
        """Count the worker as draining. Kill it if it sends no message for `seconds` and a margin."""
        self._draining = True
        self._max_silent_seconds = seconds + KILL_MARGIN_SECONDS
        self.kill_after(self._max_silent_seconds, "replaced worker unresponsive, killing it")

    def kill(self) -> None:
        """Send SIGKILL."""
        try:
            self.process.kill()
        except ProcessLookupError:
            pass  # the process has just exited

    def kill_after(self, seconds: float, log_message: str) -> None:
        """Kill the worker after `seconds`, and log an error then. Replaces a previous deadline."""
        self.cancel_kill()
        self._kill_timer = asyncio.get_running_loop().call_later(seconds, self._log_and_kill, log_message)

    def cancel_kill(self) -> None:
        """Remove the deadline that `kill_after` has set."""
        if self._kill_timer is not None:
            self._kill_timer.cancel()

    def _log_and_kill(self, log_message: str) -> None:
        event(_log, logging.ERROR, log_message, worker=self.name)
        self.kill()

    def _on_channel_message(self, message: object) -> None:
        self._has_sent = True
        if isinstance(message, Ready):
            self.ready.set()
            if not self._draining:
                self.cancel_kill()
            self._on_ready()
        elif isinstance(message, Explained | ListedRequests):
            if (reply := self._queries.pop(message.query_id, None)) is not None and not reply.done():
                reply.set_result(message)
        elif isinstance(message, WorkerMessage):
            if self._max_silent_seconds is not None:
                self.kill_after(self._max_silent_seconds, "replaced worker unresponsive, killing it")
            self._on_message(self.name, message)

    def _on_channel_closed(self) -> None:
        self.disconnected.set()
        for reply in self._queries.values():
            if not reply.done():
                reply.set_result(None)
        self._queries.clear()

    async def explain(self, query_id: int, request_id: bytes) -> Entry | None:
        """Return the worker's journal entry of a request. Return None if it has none or does not reply within a
        second."""
        reply = await self._query(Explain(query_id, request_id))
        return reply.entry if isinstance(reply, Explained) else None

    async def list_requests(self, query_id: int, service: str, limit: int) -> ListedRequests:
        """Return failed and slow requests of a service. Return none if the worker does not reply within a second."""
        reply = await self._query(ListRequests(query_id, service, limit))
        return reply if isinstance(reply, ListedRequests) else ListedRequests(query_id)

    async def _query(self, query: Explain | ListRequests) -> Explained | ListedRequests | None:
        if self.disconnected.is_set():
            return None
        reply: asyncio.Future[Explained | ListedRequests | None] = asyncio.get_running_loop().create_future()
        self._queries[query.query_id] = reply
        self.channel.send(query)
        try:
            async with asyncio.timeout(_QUERY_SECONDS):
                return await reply
        except TimeoutError:
            return None
        finally:
            self._queries.pop(query.query_id, None)
