"""Applies the supervisor's messages to one worker's gateway, and sends reports a few times a second."""

from __future__ import annotations

import asyncio
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from router.gateway.acceptor import raise_descriptor_limit
from router.gateway.gateway import Gateway
from router.model.services import Service
from router.net.channel import Channel
from router.telemetry import log
from router.telemetry.access_log import AccessLog
from router.telemetry.standard_error import dropped_lines
from router.workers.loop_lag import LoopLag
from router.workers.messages import (
    AcceptFrom,
    CertificateUpdate,
    ChangeSettings,
    CloseKeepAlives,
    Configure,
    Drain,
    Explain,
    Explained,
    LeaseRequests,
    LedgerReply,
    ListedRequests,
    ListRequests,
    Ready,
    ReplicasUpdate,
    ResyncServices,
    RetireClients,
    ServicesUpdate,
    SharesSlots,
    Traces,
    TrustUpdate,
    UnknownTokenKey,
    WorkerReport,
)
from router.workers.version_reporter import VersionReporter

REPORT_SECONDS = 0.2
_SHARD_COUNT = 5  # each report has the counters and leases of one fifth of the versions
_MIN_IDLE_SECONDS = 1.0
"""Minimum idle time of a client connection before it is closed, if the worker drains without a `Drain` message."""
_SLOW_REQUESTS_SECONDS = 600.0
"""The slowest requests are those of this time until now."""
_DRAIN_NOW = Drain(0.0, 0.0, accept_queued=False)


class GatewayControl:
    """Controls one gateway by the messages of the supervisor, which arrive over `channel`."""

    def __init__(
        self,
        configuration: Configure,
        channel: Channel,
        listeners: Sequence[socket.socket],
        tls_listeners: Sequence[socket.socket],
        collection_socket: socket.socket | None = None,
    ) -> None:
        settings = configuration.settings
        log.configure(settings.log_level, sys.stderr, human=configuration.human_log)
        self.ending = asyncio.Event()
        """Set when the worker must drain and exit."""
        self._channel = channel
        self._listeners = listeners
        self._tls_listeners = tls_listeners
        self._drain = self.orphan_drain = Drain(settings.drain_seconds, _MIN_IDLE_SECONDS, accept_queued=True)
        self.shares_slots = False
        """True if other routers use the slots of the same replicas."""
        self._gateway = Gateway(
            settings,
            AccessLog(settings.access_log, sys.stdout),
            lambda key, messages: channel.send(LeaseRequests(key, messages)),
            lambda issuer: channel.send(UnknownTokenKey(issuer)),
            descriptors=raise_descriptor_limit(),
            collection_socket=collection_socket,
        )
        self._versions = VersionReporter(self._gateway)
        self._services: Mapping[str, Service] = {}
        self._ack_seq = 1  # messages that have taken effect: `configuration` is the first
        self._report_count = 0
        self._reported_at = time.monotonic()
        self._connections_idle = 0
        self._streaming: Mapping[str, int] = {}
        self._opening: asyncio.Task[None] | None = None  # of the listeners
        LoopLag(asyncio.get_running_loop(), self._gateway.counters.loop_lag)
        self._handlers: Mapping[type, Callable[[Any], None]] = {
            AcceptFrom: self._accept_from,
            CertificateUpdate: self._set_certificate,
            ChangeSettings: self._change_settings,
            CloseKeepAlives: self._close_keep_alives,
            Drain: self._begin_drain,
            Explain: self._explain,
            LedgerReply: self._deliver,
            ListRequests: self._list_requests,
            ReplicasUpdate: self._set_replicas,
            ResyncServices: self._resync,
            RetireClients: self._retire_clients,
            ServicesUpdate: self._set_services,
            SharesSlots: self._on_slots_shared,
            TrustUpdate: self._set_trust,
        }

    def handle(self, message: object) -> None:
        """Apply a message. Raises KeyError if its type is unknown."""
        self._handlers[type(message)](message)
        self._ack_seq += 1

    def on_supervisor_lost(self) -> None:
        """Close the listeners, finish the requests and exit.

        If other routers share the slots, abort the requests instead. Those routers own the services now, and will grant
        the leases of this worker again.
        """
        self._begin_drain(self.orphan_drain)

    async def drain(self) -> bool:
        """Finish the requests, and send the last report. Return False if some requests were aborted.

        Raises OSError if a listener could not be opened.
        """
        if self._opening is not None:
            await self._opening
        complete = await self._gateway.drain(*self._drain)
        self._report(is_last=True)
        return complete

    # Messages.

    def _accept_from(self, message: AcceptFrom) -> None:
        self._gateway.acceptor.accept_from(message.listeners)
        if self._opening is None:
            self._opening = asyncio.ensure_future(self._open_listeners())
            self._opening.add_done_callback(self._on_opened)

    def _set_certificate(self, message: CertificateUpdate) -> None:
        self._gateway.acceptor.set_certificate(message.pair)

    def _close_keep_alives(self, _: CloseKeepAlives) -> None:
        self._gateway.begin_lame_duck()

    def _retire_clients(self, message: RetireClients) -> None:
        self._gateway.retire_clients(message.share, time.monotonic())

    def _begin_drain(self, message: Drain) -> None:
        self._drain = message
        if self._gateway.accepts:
            self.ending.set()
        else:
            self._gateway.shorten_drain(message.seconds, message.min_idle_seconds)

    def _on_slots_shared(self, _: SharesSlots) -> None:
        self.shares_slots = True
        self.orphan_drain = _DRAIN_NOW

    def _explain(self, message: Explain) -> None:
        entry = self._gateway.journal.find(message.request_id)
        self._channel.send(Explained(message.query_id, entry))

    def _list_requests(self, message: ListRequests) -> None:
        journal, since = self._gateway.journal, time.monotonic() - _SLOW_REQUESTS_SECONDS
        failed = journal.latest_failed(message.service, message.limit)
        self._channel.send(
            ListedRequests(message.query_id, failed, journal.slowest(message.service, since, message.limit))
        )

    def _deliver(self, message: LedgerReply) -> None:
        self._gateway.deliver(message.key, message.message)

    def _set_replicas(self, message: ReplicasUpdate) -> None:
        self._gateway.set_replicas(message.key, message.replicas)

    def _resync(self, message: ResyncServices) -> None:
        self._gateway.resync(message.services)

    def _set_services(self, message: ServicesUpdate) -> None:
        services = {name: service for name, service in self._services.items() if name not in message.removed}
        self._services = {**services, **message.changed}
        self._versions.apply(self._services)

    def _change_settings(self, message: ChangeSettings) -> None:
        log.set_level(message.settings.log_level)
        self._gateway.change_settings(message.settings)

    def _set_trust(self, message: TrustUpdate) -> None:
        self._gateway.set_trust(message.trust)

    # Listeners.

    async def _open_listeners(self) -> None:
        for index, sock in enumerate(self._listeners):
            await self._gateway.acceptor.open(sock, index)
        for index, sock in enumerate(self._tls_listeners):
            await self._gateway.acceptor.open(sock, index, tls=True)
        self._channel.send(Ready())
        self._report_periodically()

    def _on_opened(self, opening: asyncio.Task[None]) -> None:
        if opening.cancelled() or opening.exception() is not None:
            self.ending.set()  # `drain` raises the error

    # Reports.

    def _report_periodically(self) -> None:
        if not self._channel.is_closed:
            asyncio.get_running_loop().call_later(REPORT_SECONDS, self._report_periodically)
            self._report()
            self._report_count += 1

    def _report(self, *, is_last: bool = False) -> None:
        log.report_repeats()
        gateway = self._gateway
        now = time.monotonic()
        versions = self._versions.take(now)
        shard, shard_count = (0, 1) if is_last else (self._report_count % _SHARD_COUNT, _SHARD_COUNT)
        leases = gateway.held_snapshots(shard, shard_count)
        if shard == 0:
            gateway.counters.cpu_seconds = time.process_time()
            gateway.authentication.count(gateway.counters)
            self._connections_idle = gateway.connections_idle
            self._streaming = gateway.streaming()
        self._channel.send(
            WorkerReport(
                seconds=now - self._reported_at,
                ack_seq=self._ack_seq,
                versions=versions,
                counters=gateway.counters.report(shard, shard_count),
                access_log_dropped=gateway.access_log.dropped,
                log_dropped=dropped_lines(),
                connections_idle=self._connections_idle,
                streaming=self._streaming,
                replica_health=self._versions.take_replica_health(),
                leases=leases,
            )
        )
        self._reported_at = now
        tracer = gateway.tracer
        if traced := tracer.drain():
            self._channel.send(Traces(traced, tracer.dropped, tracer.app_insights_dropped))
