"""A worker process: one gateway, told what to do by the supervisor at the other end of its channel.

Started as `python -m router.gateway.worker CHANNEL_FD LISTEN_FD...`. Everything else comes over the channel: settings
first, then services, replicas, ledger messages; back go ledger messages and reports. When the supervisor is gone the
worker finishes what it has and ends.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence

import uvloop

from router.channel import Channel
from router.gateway.control import Begin, Drain, FromLedger, Ready, Replicas, Report, Services, ToLedgers, VersionReport
from router.gateway.gateway import Gateway
from router.services import VersionKey
from router.telemetry import log
from router.telemetry.access_log import AccessLog

REPORT_SECONDS = 0.2
_COUNTERS_EVERY = 5  # reports


class Worker:
    """Connects one gateway with its channel."""

    def __init__(self, listeners: Sequence[socket.socket]) -> None:
        self._listeners = listeners
        self._channel = Channel(self._received, self._supervisor_gone)
        self._gateway: Gateway | None = None
        self._reported: dict[VersionKey, VersionReport] = {}
        self._reports = 0
        self._reported_at = time.monotonic()
        self._ending: asyncio.Task[None] | None = None
        self._ended = asyncio.Event()
        self._listening: list[asyncio.Task[None]] = []
        self._drain_seconds = 0.0

    async def run(self, channel: socket.socket) -> None:
        """Serve until told to end."""
        await asyncio.get_running_loop().create_connection(lambda: self._channel, sock=channel)
        await self._ended.wait()

    def _received(self, message: object) -> None:
        gateway = self._gateway
        if isinstance(message, Begin):
            self._begin(message)
        elif gateway is None:
            return
        elif isinstance(message, FromLedger):
            gateway.deliver(message.key, message.message)
        elif isinstance(message, Services):
            gateway.apply(message.services)
            self._listen()
        elif isinstance(message, Replicas):
            gateway.set_replicas(message.key, message.replicas, message.cordoned)
        elif isinstance(message, Drain):
            self._end(message.seconds)

    def _begin(self, message: Begin) -> None:
        log.configure(message.settings.log_level, sys.stderr, human=message.human_log)
        self._drain_seconds = message.settings.drain_seconds
        self._gateway = Gateway(
            message.settings,
            AccessLog(message.settings.access_log, sys.stdout),
            lambda key, messages: self._channel.send(ToLedgers(key, messages)),
        )

    def _listen(self) -> None:
        """Accept clients as soon as it is known what to serve."""
        if not self._listening and self._gateway is not None:
            self._listening = [asyncio.ensure_future(self._gateway.listen(sock)) for sock in self._listeners]
            self._channel.send(Ready())
            self._report()

    def _report(self) -> None:
        gateway = self._gateway
        if gateway is None or self._ended.is_set():
            return
        now = time.monotonic()
        changed: dict[VersionKey, VersionReport] = {}
        for key, route in gateway.versions.items():
            holder = route.holder
            report = VersionReport(holder.totals(now), len(holder.waiters), holder.idle, holder.busy_by_replica())
            if self._reported.get(key) != report:
                changed[key] = self._reported[key] = report
        self._reports += 1
        counters = gateway.counters.snapshot() if self._reports % _COUNTERS_EVERY == 1 or gateway.draining else None
        self._channel.send(Report(now - self._reported_at, changed, counters, gateway.access_log.dropped))
        self._reported_at = now
        asyncio.get_running_loop().call_later(REPORT_SECONDS, self._report)

    def _supervisor_gone(self) -> None:
        self._end(self._drain_seconds)

    def _end(self, seconds: float) -> None:
        if self._ending is None:
            self._ending = asyncio.ensure_future(self._drain(seconds))

    async def _drain(self, seconds: float) -> None:
        if self._gateway is not None:
            await self._gateway.drain(seconds)
            self._report()
        self._ended.set()
        self._channel.close()
        await asyncio.sleep(0)


def main() -> None:
    """Run a worker on inherited descriptors."""
    channel_fd, *listen_fds = map(int, sys.argv[1:])
    # Signals from the terminal are the supervisor's business: it drains its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    channel = socket.socket(fileno=channel_fd)
    listeners = [socket.socket(fileno=fd) for fd in listen_fds]
    for sock in (channel, *listeners):
        sock.setblocking(False)
        os.set_inheritable(sock.fileno(), False)
    uvloop.run(_run(channel, listeners))


async def _run(channel: socket.socket, listeners: Sequence[socket.socket]) -> None:
    await Worker(listeners).run(channel)


if __name__ == "__main__":
    main()
