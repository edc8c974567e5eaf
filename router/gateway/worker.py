"""A worker process: one gateway, told what to do by the supervisor at the other end of its channel.

Started as `python -m router.gateway.worker CHANNEL_FD LISTEN_FD... tls:LISTEN_FD...`. Everything else comes over the
channel: settings first, then services, replicas, ledger messages; back go ledger messages and reports. When the
supervisor is gone the worker finishes what it has and ends.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence

import uvloop

from router.channel import Channel
from router.gateway.control import (
    EXIT_CUT,
    Accept,
    Begin,
    Certificate,
    Drain,
    Explain,
    Explained,
    FromLedger,
    Logging,
    PartFrom,
    Ready,
    Reintroduce,
    Replicas,
    Report,
    Row,
    Services,
    ToLedgers,
    Traces,
    Trusted,
    UnknownKey,
)
from router.gateway.doors import raise_descriptor_limit
from router.gateway.gateway import Gateway
from router.gateway.lag import LoopLag
from router.gateway.table import VersionRoute
from router.seen import NOTHING, since, together
from router.services import Service, VersionKey
from router.slots.holder import Totals
from router.telemetry import log
from router.telemetry.access_log import AccessLog

REPORT_SECONDS = 0.2
_PARTS = 5  # of the versions: of each, counters and leases are in every fifth report
_FAREWELL_SECONDS = 1.0  # for the last report to reach a supervisor that may hang
_GARBAGE_OBJECTS = 5_000
"""So many more objects than were freed are made between two looks for unreachable ones (Python's default is 700).
Requests leave none that counting references does not free, connections with TLS some; each look costs time."""
_AT_ONCE = Drain(0.0, 0.0, last=False)


class Worker:
    """Connects one gateway with its channel."""

    def __init__(self, listeners: Sequence[socket.socket], tls_listeners: Sequence[socket.socket]) -> None:
        self._listeners = listeners
        self._tls_listeners = tls_listeners
        self._channel = Channel(self._received, self._channel_closed)
        self._gateway: Gateway | None = None
        self._listening: asyncio.Task[None] | None = None
        self._routes = _Routes()
        self._heard = 0
        self._reports = 0
        self._connections_idle = 0
        self._reported_at = time.monotonic()
        self._drain = _AT_ONCE
        self._ending = asyncio.Event()
        self._closed = asyncio.Event()

    @classmethod
    async def serve(
        cls, channel: socket.socket, listeners: Sequence[socket.socket], tls_listeners: Sequence[socket.socket]
    ) -> int:
        """Make one in this event loop and run it."""
        return await cls(listeners, tls_listeners).run(channel)

    async def run(self, channel: socket.socket) -> int:
        """Serve until told to end. Returns the exit code."""
        await asyncio.get_running_loop().create_connection(lambda: self._channel, sock=channel)
        await self._ending.wait()
        if self._listening is not None:
            await self._listening
        complete = True
        if self._gateway is not None:
            complete = await self._gateway.drain(*self._drain)
            self._report(self._gateway, last=True)
        self._channel.close()
        try:
            async with asyncio.timeout(_FAREWELL_SECONDS):
                await self._closed.wait()
        except TimeoutError:
            pass  # it reads no more, so it will not miss the report
        return 0 if complete else EXIT_CUT

    def _channel_closed(self) -> None:
        if not self._ending.is_set():
            self._drain = _AT_ONCE  # nobody keeps account of the slots of whom the supervisor has died
        self._closed.set()
        self._ending.set()

    def _received(self, message: object) -> None:
        gateway = self._gateway
        if isinstance(message, Begin):
            self._begin(message)
        elif gateway is None:
            raise TypeError(f"{type(message).__name__} came before Begin")
        elif isinstance(message, FromLedger):
            gateway.deliver(message.key, message.message)
        elif isinstance(message, Services):
            self._routes.apply(gateway, message.services)
        elif isinstance(message, Replicas):
            gateway.set_replicas(message.key, message.replicas, message.cordoned)
        elif isinstance(message, Certificate):
            gateway.doors.renew_certificate(message.material)
        elif isinstance(message, Trusted):
            gateway.set_trust(message.trust)
        elif isinstance(message, Accept):
            gateway.doors.accept_from(message.sockets)
            if self._listening is None:
                self._listening = asyncio.ensure_future(self._listen(gateway))
                self._listening.add_done_callback(self._listens)
        elif isinstance(message, Reintroduce):
            for key, route in gateway.versions.items():
                if key[0] in message.services:
                    route.holder.begin_anew()
                    gateway.slots_changed(route)
        elif isinstance(message, Explain):
            self._channel.send(Explained(message.question, gateway.journal.find(message.request_id)))
        elif isinstance(message, Logging):
            log.set_level(message.level)
            gateway.set_access_log_rate(message.access_log)
        elif isinstance(message, Drain):
            self._drain = message
            if gateway.accepts:
                self._ending.set()
            else:
                gateway.hasten(message.seconds, message.farewell_seconds)
        elif isinstance(message, PartFrom):
            gateway.draining = True
        self._heard += 1

    def _begin(self, message: Begin) -> None:
        log.configure(message.settings.log_level, sys.stderr, human=message.human_log)
        self._drain = Drain(message.settings.drain_seconds, _FAREWELL_SECONDS, last=True)
        self._gateway = Gateway(
            message.settings,
            AccessLog(message.settings.access_log, sys.stdout),
            lambda key, messages: self._channel.send(ToLedgers(key, messages)),
            lambda issuer: self._channel.send(UnknownKey(issuer)),
            descriptors=raise_descriptor_limit(),
        )
        LoopLag(asyncio.get_running_loop(), self._gateway.counters.loop_lag)

    async def _listen(self, gateway: Gateway) -> None:
        for number, sock in enumerate(self._listeners):
            await gateway.doors.open(sock, number)
        for number, sock in enumerate(self._tls_listeners):
            await gateway.doors.open(sock, number, tls=True)
        self._channel.send(Ready())
        self._report_again(gateway)

    def _listens(self, listening: asyncio.Task[None]) -> None:
        if listening.cancelled() or listening.exception() is not None:
            self._ending.set()  # `run` raises what it was

    def _report_again(self, gateway: Gateway) -> None:
        if not self._closed.is_set():
            asyncio.get_running_loop().call_later(REPORT_SECONDS, self._report_again, gateway)
            self._report(gateway)
            self._reports += 1

    def _report(self, gateway: Gateway, *, last: bool = False) -> None:
        now = time.monotonic()
        changed = self._routes.changed(gateway, now)
        part, parts = (0, 1) if last else (self._reports % _PARTS, _PARTS)
        leases = gateway.holds(part, parts)
        if part == 0:
            gateway.counters.cpu_seconds = time.process_time()
            gateway.authentication.count(gateway.counters)
            self._connections_idle = gateway.connections_idle
        counted = gateway.counters.report(part, parts)
        dropped, idle = gateway.access_log.dropped, self._connections_idle
        self._channel.send(Report(now - self._reported_at, self._heard, changed, counted, dropped, idle, leases))
        self._reported_at = now
        if gateway.tracer is not None and (traced := gateway.tracer.take()):
            self._channel.send(Traces(traced, gateway.tracer.dropped))


class _Routes:
    """What was told of each route, and those that the gateway no longer has while they still have requests."""

    def __init__(self) -> None:
        self._retired: list[VersionRoute] = []
        self._totals: dict[VersionRoute, Totals] = {}
        self._told: dict[VersionKey, Row] = {}

    def apply(self, gateway: Gateway, services: Mapping[str, Service]) -> None:
        """Hand services to the gateway, and keep an eye on the routes that it lets go."""
        former = dict(gateway.versions)
        gateway.apply(services)
        self._retired += [route for key, route in former.items() if gateway.versions.get(key) is not route]

    def changed(self, gateway: Gateway, now: float) -> dict[VersionKey, Row]:
        """What is new of the versions since the last call."""
        told = self._told
        rows: dict[VersionKey, Row] = {}
        retired = {route.key for route in self._retired}
        for key, route in gateway.versions.items():
            before = told.get(key)
            if before is None or not self._rests(route, before) or key in retired:
                rows[key] = self._look(route, now)
        for route in self._retired:
            row = self._look(route, now)
            rows[route.key] = _both(rows[route.key], row) if route.key in rows else row
        for route in [route for route in self._retired if not route.holder.busy]:
            self._retired.remove(route)
            del self._totals[route]
        news = {
            key: row for key, row in rows.items() if row[0] != NOTHING or key not in told or told[key][1:] != row[1:]
        }
        told |= rows
        if len(told) > len(gateway.versions):
            self._told = {key: row for key, row in told.items() if key in gateway.versions or key in rows}
        return news

    def _rests(self, route: VersionRoute, told: Row) -> bool:
        """Whether nothing has happened since `told`: a look costs five times as much, and most versions rest."""
        holder, totals = route.holder, self._totals.get(route)
        _, waiting, idle, busy = told
        return (
            totals is not None
            and not (busy or waiting or holder.busy or holder.waiters)
            and holder.arrivals == totals.arrivals
            and holder.completed == totals.completed
            and holder.refused == totals.refused
            and holder.idle == idle
        )

    def _look(self, route: VersionRoute, now: float) -> Row:
        holder = route.holder
        before, totals = self._totals.get(route, NOTHING), holder.totals(now)
        self._totals[route] = totals
        return since(before, totals), len(holder.waiters), holder.idle, holder.busy_by_replica()


def _both(one: Row, other: Row) -> Row:
    """Two reports of one version as one."""
    seen, waiting, idle, busy = one
    more_seen, more_waiting, more_idle, more_busy = other
    return (
        together(seen, more_seen),
        waiting + more_waiting,
        idle + more_idle,
        {id_: busy.get(id_, 0) + more_busy.get(id_, 0) for id_ in busy.keys() | more_busy.keys()},
    )


def main() -> None:
    """Run a worker on inherited descriptors."""
    channel_fd, *listen_fds = sys.argv[1:]
    # Signals from the terminal are the supervisor's business: it drains its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    channel = socket.socket(fileno=int(channel_fd))
    listeners = [socket.socket(fileno=int(fd)) for fd in listen_fds if ":" not in fd]
    tls_listeners = [socket.socket(fileno=int(fd.removeprefix("tls:"))) for fd in listen_fds if ":" in fd]
    for sock in (channel, *listeners, *tls_listeners):
        sock.setblocking(False)
        os.set_inheritable(sock.fileno(), False)
    gc.collect()
    gc.freeze()  # what is imported stays
    gc.set_threshold(_GARBAGE_OBJECTS, 10, 10)
    sys.exit(uvloop.run(Worker.serve(channel, listeners, tls_listeners)))


if __name__ == "__main__":
    main()
