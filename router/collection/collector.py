"""The collector: reads the packets of workers, and stores their events until it is stopped."""

from __future__ import annotations

import asyncio
import socket
import time
import uuid
from collections.abc import Callable, Mapping

from router.collection.assembly import Assembly
from router.collection.buffer import Budget
from router.collection.custom_log import CustomLogServer
from router.collection.event_log import EventLog
from router.collection.events import Layout
from router.collection.frame_reader import frames
from router.collection.frames import MAX_PACKET_BYTES
from router.collection.messages import CollectorReport, LogSources
from router.collection.store import Store
from router.collection.writer import Writer
from router.config.router import RouterSettings
from router.model.data_collection import DataCollector
from router.model.services import VersionKey

_TICK_SECONDS = 0.05
_REPORT_TICKS = 10
_PACKETS_PER_TURN = 64
_FALLBACK_SECONDS = 4.0
"""Time for the rest to be written to the folder, after the time for the storage."""


class Collector:
    """Runs in the event loop of a process of its own."""

    def __init__(
        self,
        settings: RouterSettings,
        instance: str,
        packets: socket.socket,
        log_socket: socket.socket | None,
        store: Store,
        fallback: Store | None,
        report: Callable[[CollectorReport], None],
    ) -> None:
        """`packets` does not block. `log_socket` is bound; entry scripts connect to it. `fallback` gets what
        `store` has not taken at the end."""
        layout = Layout(instance, settings.collection_workspace)
        budget = Budget(settings.collection_buffer_bytes)
        self._budget = budget
        flush_seconds = settings.collection_flush_seconds
        self.log = EventLog(layout, budget, flush_seconds=flush_seconds, url=self._url)
        self.assembly = Assembly(self.log, lambda: str(uuid.uuid4()))
        self._writer = Writer(self.log, store)
        self._custom_log = (
            CustomLogServer(log_socket, self.log, settings.max_payload_bytes) if log_socket is not None else None
        )
        self._starting: asyncio.Task[None] | None = None  # of the custom log
        self._packets = packets
        self._fallback = fallback
        self._report = report
        self._buffer = bytearray(2 * MAX_PACKET_BYTES)
        self._has_ended = False  # the socket: all workers have
        self._stop_at: float | None = None
        asyncio.get_running_loop().add_reader(packets.fileno(), self._read)

    def set_collectors(self, collectors: Mapping[VersionKey, DataCollector]) -> None:
        """Apply the complete settings of all versions."""
        self.assembly.collectors = collectors
        if self._custom_log is not None:
            self._custom_log.collectors = collectors
            if self._starting is None and any(collector.custom for collector in collectors.values()):
                self._starting = asyncio.ensure_future(self._custom_log.start())

    def set_log_sources(self, sources: LogSources) -> None:
        """Apply how the replicas whose entry scripts log are recognized."""
        if self._custom_log is not None:
            self._custom_log.sources = sources

    def _url(self, name: str) -> str:
        return self._writer.store.url(name)

    def stop(self, seconds: float) -> None:
        """Store what is left within this time. `run` then returns."""
        stop_at = time.monotonic() + seconds
        self._stop_at = stop_at if self._stop_at is None else min(stop_at, self._stop_at)

    def on_workers_ended(self, pids: frozenset[int]) -> None:
        """Give up the exchanges of workers that have ended, after all that they have sent."""
        while self._read():
            pass
        for pid in pids:
            self.assembly.drop_sender(pid)

    def _read(self) -> bool:
        """Read some packets. Return False if there are no more."""
        view, now = memoryview(self._buffer), time.monotonic()
        for _ in range(_PACKETS_PER_TURN):
            try:
                size = self._packets.recv_into(view)
            except BlockingIOError:
                return False
            if not size:
                self._has_ended = True
                asyncio.get_running_loop().remove_reader(self._packets.fileno())
                return False
            for frame in frames(view[:size]):
                self.assembly.feed(frame, now)
        return True

    async def run(self) -> None:
        """Store events until `stop`, then the rest. Sends the last report."""
        ticks = 0
        while self._stop_at is None:
            await asyncio.sleep(_TICK_SECONDS)
            self._writer.dispatch()
            ticks += 1
            if ticks % _REPORT_TICKS == 0:
                self._send_report()
        if self._custom_log is not None and self._starting is not None:
            await self._starting
            await self._custom_log.stop()
        self._writer.begin_stop()
        await self._write_rest(self._stop_at)
        if self._fallback is not None and not self._is_done:
            self._writer.use(self._fallback)
            await self._write_rest(time.monotonic() + _FALLBACK_SECONDS)
        self.assembly.drop_all("shutdown")
        self.log.drop_rest("shutdown")
        self._send_report(is_last=True)

    @property
    def _is_done(self) -> bool:
        return self._has_ended and self._writer.idle and self.log.is_empty

    async def _write_rest(self, until: float) -> None:
        """Write until everything is stored, or this time is over."""
        while time.monotonic() < until:
            if self._has_ended and len(self.assembly):
                self.assembly.drop_all("worker-ended")
            self._writer.dispatch()
            if self._is_done:
                return
            await asyncio.sleep(_TICK_SECONDS)

    def _send_report(self, *, is_last: bool = False) -> None:
        counts, oldest = self.log.counts, self.log.oldest()
        unstored = self.log.unstored() + self.assembly.unstored()
        self._report(
            CollectorReport(
                events=counts.events.copy(),
                sizes=counts.sizes.copy(),
                truncated=counts.truncated.copy(),
                dropped=counts.dropped.copy(),
                failures=self._writer.failures.copy(),
                unstored=type(unstored)() if is_last else unstored,
                buffered_bytes=0 if is_last else self._budget.used,
                lag_seconds=0.0 if oldest is None or is_last else time.monotonic() - oldest,
                problem="" if is_last else self._writer.problem,
            )
        )
