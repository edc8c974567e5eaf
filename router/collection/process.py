"""The supervisor's side of data collection: the socket of the workers, and the collector process.

The collector is started when the first version collects data. One that ends unexpectedly is replaced after a delay. It
leaves what it has not read in the socket, and what it had read is counted by its last report. When the router stops
before there is another one, a last one is started. What no collector will read is counted here.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import secrets
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping

from router.collection.frame_reader import begun_events
from router.collection.frames import MAX_PACKET_BYTES
from router.collection.messages import (
    CollectorReport,
    CollectorsUpdate,
    ConfigureCollector,
    LogSources,
    StopCollector,
    WorkersEnded,
)
from router.collection.stores import check_store
from router.config.router import RouterSettings
from router.model.data_collection import DataCollector
from router.model.services import Service, Version, VersionKey
from router.model.version_replicas import VersionReplicas
from router.net.backoff import Backoff
from router.net.channel import Channel
from router.net.child_process import spawn
from router.net.listen import bind_listener, listen_error
from router.telemetry.catalogue import Sample
from router.telemetry.log import event

_log = logging.getLogger("router.collection")

_FIRST_RESTART_DELAY_SECONDS = 0.5
_MAX_RESTART_DELAY_SECONDS = 30.0
_MIN_LIFETIME_SECONDS = 30.0
"""A collector that ends before this age delays its replacement."""
_MIN_STOP_SECONDS = 1.0
_KILL_MARGIN_SECONDS = 5.0
"""Time between the end of the time for the rest and the kill. The rest is written to the folder in it."""

_SOURCES_SECONDS = 1.0
"""Interval of checks for changed addresses of replicas."""

ReplicasOf = Callable[[VersionKey], VersionReplicas]

_EMPTY = CollectorReport(
    events=Counter(), sizes=Counter(), truncated=Counter(), dropped=Counter(), failures=Counter(), unstored=Counter(),
    buffered_bytes=0, lag_seconds=0.0, problem="",
)  # fmt: skip


class CollectorProcess:
    """The collector of one router, and all that was counted by it and its predecessors."""

    def __init__(
        self, settings: RouterSettings, own_id: str, replicas_of: ReplicasOf, *, human_log: bool, in_cluster: bool
    ) -> None:
        """`replicas_of` returns the current replicas of a version. Pods are recognized by their addresses, other
        replicas by the `environment` that they were started with."""
        self._replicas_of = replicas_of
        self._in_cluster = in_cluster
        self._log_socket: socket.socket | None = None
        self._tokens: dict[VersionKey, str] = {}
        self._log_sources = LogSources({}, {})
        self._next_sources_at = 0.0
        self._settings = settings
        self._own_id = re.sub("[^A-Za-z0-9.-]", "-", own_id)
        self._human_log = human_log
        self._sockets: tuple[socket.socket, socket.socket] | None = None
        self._services: Mapping[str, Service] = {}
        self._collectors: Mapping[VersionKey, DataCollector] = {}
        self._workers: frozenset[int] = frozenset()
        self._ended_workers: frozenset[int] = frozenset()
        self._channel = Channel(self._on_report, lambda: None)
        self._ended = _EMPTY  # the sum of the last reports of ended collectors
        self._report = _EMPTY  # the last one of the running collector
        self._running: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()
        self._stop_seconds = 0.0
        self._process: asyncio.subprocess.Process | None = None
        self._restarts = 0

    def open(self) -> None:
        """Make the socket for workers. Raises OSError, and `SettingsError` if the store cannot be used."""
        check_store(self._settings, os.environ)
        reader, writer = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        reader.setblocking(False)
        writer.setblocking(False)
        self._sockets = (reader, writer)
        port = self._settings.collection_log_port
        if port is not None:
            try:
                self._log_socket = bind_listener(self._settings.host, port)
            except OSError as error:
                raise listen_error("collection_log_port", port, self._settings.host, error) from None
        elif not self._in_cluster:
            self._log_socket = socket.socket()
            self._log_socket.bind(("127.0.0.1", 0))  # the collector listens on it, if a version needs it

    @property
    def worker_socket(self) -> socket.socket | None:
        """The socket that workers send packets to; None before `open` and after `stop`."""
        return self._sockets[1] if self._sockets is not None else None

    def tick(self, services: Mapping[str, Service], workers: frozenset[int]) -> None:
        """Notify the collector of changed services and of workers that have ended, given the process ids of the running
        ones. Must be called about ten times a second."""
        if services is not self._services:
            self._services = services
            collectors = _collectors(services)
            if collectors != self._collectors:
                self._collectors = collectors
                self._channel.send(CollectorsUpdate(collectors))
        if self._log_socket is not None and (now := time.monotonic()) >= self._next_sources_at:
            self._next_sources_at = now + _SOURCES_SECONDS
            self._update_log_sources()
        if workers != self._workers:
            ended, self._workers = self._workers - workers, workers
            self._ended_workers = (self._ended_workers | ended) - workers
            self._channel.send(WorkersEnded(ended))
        if self._collectors and self._running is None and self._sockets is not None:
            self._running = asyncio.ensure_future(self._keep_running(self._sockets[0]))

    def _update_log_sources(self) -> None:
        custom = [key for key, collector in self._collectors.items() if collector.custom]
        tokens = {token: key for key, token in self._tokens.items()}
        # Other local processes have the same address.
        hosts = (
            {each.host: key for key in custom for each in self._replicas_of(key).replicas} if self._in_cluster else {}
        )
        sources = LogSources(tokens, hosts)
        if sources != self._log_sources:
            self._log_sources = sources
            self._channel.send(sources)

    def environment(self, key: VersionKey, version: Version) -> dict[str, str]:
        """Return the variables with which a replica's entry script logs to this router; none if it does not log."""
        collector = version.collected
        if self._log_socket is None or collector is None or not collector.custom or not collector.sampling_rate:
            return {}
        token = self._tokens.setdefault(key, secrets.token_hex(16))
        self._next_sources_at = 0.0
        return {
            "AZUREML_MDC_ENABLED": "true",
            "AZUREML_MDC_HOST": f"{token}:@127.0.0.1",
            "AZUREML_MDC_PORT": str(self._log_socket.getsockname()[1]),
            "AZUREML_MDC_SAMPLE_RATE": str(max(1, round(100 * collector.sampling_rate))),
        }

    async def _keep_running(self, packets: socket.socket) -> None:
        backoff = Backoff(_FIRST_RESTART_DELAY_SECONDS, _MAX_RESTART_DELAY_SECONDS)
        while True:
            started_at = time.monotonic()
            try:
                exit_code = await self._run(packets)
            except OSError as error:
                event(_log, logging.ERROR, "the collector cannot be started", error=str(error))
                exit_code = -1
            self._on_ended()
            if self._stopping.is_set():
                return
            self._restarts += 1
            event(_log, logging.ERROR, "the collector ended unexpectedly", exit_code=exit_code)
            if time.monotonic() - started_at >= _MIN_LIFETIME_SECONDS:
                backoff.reset()
            with contextlib.suppress(TimeoutError):  # when the router stops, a last one stores what is in the socket
                async with asyncio.timeout(backoff.next_delay()):
                    await self._stopping.wait()

    async def _run(self, packets: socket.socket) -> int:
        """Run one collector until its end. Return its exit code."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        inherited = [theirs, packets, *([self._log_socket] if self._log_socket is not None else [])]
        fds = [sock.fileno() for sock in inherited]
        try:
            with theirs:
                process = await spawn("router.collection.main", list(map(str, fds)), fds)
        except BaseException:
            ours.close()
            raise
        self._process = process
        closed = asyncio.Event()
        self._channel = Channel(self._on_report, closed.set)
        await asyncio.get_running_loop().create_connection(lambda: self._channel, sock=ours)
        instance = f"{self._own_id}-{secrets.token_hex(4)}"
        self._channel.send(ConfigureCollector(self._settings, instance, self._human_log))
        self._channel.send(CollectorsUpdate(self._collectors))
        self._channel.send(self._log_sources)
        self._channel.send(WorkersEnded(self._ended_workers))  # their packets may be in the socket
        if self._stopping.is_set():
            self._channel.send(StopCollector(self._stop_seconds))
        exit_code = await process.wait()
        await closed.wait()  # after the last report
        return exit_code

    def _on_report(self, report: CollectorReport) -> None:
        self._report = report

    def _on_ended(self) -> None:
        """Keep the counts of a collector that has ended. What it had not stored is lost."""
        last, self._report = self._report, _EMPTY
        dropped = last.dropped.copy()
        _warn_of_loss(sum(count for (_, _, reason), count in dropped.items() if reason == "shutdown"), "shutdown")
        for key, count in last.unstored.items():
            dropped[key.service, key.version, "collector-ended"] += count
        _warn_of_loss(last.unstored.total(), "collector-ended")
        ended = self._ended
        self._ended = ended._replace(
            events=ended.events + last.events,
            sizes=ended.sizes + last.sizes,
            truncated=ended.truncated + last.truncated,
            dropped=ended.dropped + dropped,
            failures=ended.failures + last.failures,
        )

    def _drop_unread(self, packets: socket.socket) -> None:
        """Count the events in the socket that no collector will read. All workers, and the collector, have ended."""
        buffer = memoryview(bytearray(2 * MAX_PACKET_BYTES))
        dropped: Counter[tuple[str, str, str]] = Counter()
        with contextlib.suppress(BlockingIOError):  # only if a process still has the other end
            while size := packets.recv_into(buffer):
                dropped.update((*key, "collector-ended") for key in begun_events(buffer[:size]))
        self._ended = self._ended._replace(dropped=self._ended.dropped + dropped)
        _warn_of_loss(dropped.total(), "collector-ended")

    async def stop(self, seconds: float) -> None:
        """Store what is left within this time. All workers must have ended. Does nothing if there is no collector."""
        seconds = self._stop_seconds = max(seconds, _MIN_STOP_SECONDS)
        self._stopping.set()
        if self._sockets is not None:
            self._sockets[1].close()  # the collector reads the end
        if self._running is not None:
            self._channel.send(StopCollector(seconds))
            done, _ = await asyncio.wait((self._running,), timeout=seconds + _KILL_MARGIN_SECONDS)
            if not done:
                event(_log, logging.ERROR, "the collector did not exit in time, killing it")
                self.kill()
                await asyncio.wait((self._running,))
        if self._sockets is not None:
            self._drop_unread(self._sockets[0])
            self._sockets[0].close()
            self._sockets = None
        if self._log_socket is not None:
            self._log_socket.close()
            self._log_socket = None

    def stop_soon(self) -> None:
        """While stopping: store what is left within a second."""
        if self._stopping.is_set():
            self._stop_seconds = _MIN_STOP_SECONDS
            self._channel.send(StopCollector(_MIN_STOP_SECONDS))

    def kill(self) -> None:
        """Kill the collector."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()

    # What operators see.

    def samples(self) -> Iterator[Sample]:
        """Yield the samples for a scrape."""
        ended, current = self._ended, self._report
        for key, count in (ended.events + current.events).items():
            yield Sample("collection_events", count, key)
        for key, count in (ended.sizes + current.sizes).items():
            yield Sample("collection_bytes", count, key)
        for key, count in (ended.truncated + current.truncated).items():
            yield Sample("collection_truncated", count, key)
        for labels, count in (ended.dropped + current.dropped).items():
            yield Sample("collection_dropped", count, labels)
        for reason, count in (ended.failures + current.failures).items():
            yield Sample("collection_storage_failures", count, (reason,))
        if self._running is not None:
            yield Sample("collection_lag_seconds", current.lag_seconds)
            yield Sample("collection_buffered_bytes", current.buffered_bytes)
            yield Sample("collector_restarts", self._restarts)

    def problems(self) -> Iterator[str]:
        """Yield the problem of the storage, if there is one."""
        if self._report.problem:
            yield self._report.problem


def _warn_of_loss(events: int, reason: str) -> None:
    if events:
        event(_log, logging.WARNING, "collected data was dropped", events=events, reason=reason)


def _collectors(services: Mapping[str, Service]) -> dict[VersionKey, DataCollector]:
    return {
        (service.name, version.name): version.collected
        for service in services.values()
        for version in service.versions
        if version.collected is not None
    }
