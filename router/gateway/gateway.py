"""One worker's gateway: builds the parts of the data plane, and connects them with the worker process (`workers`).

It receives settings, services, replicas and ledger messages, and sends messages of lease caches to ledgers. The caller
opens the listening sockets.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping

from router.auth.trust import Trust
from router.collection.outbox import CollectionOutbox
from router.config.router import RouterSettings
from router.gateway.abandoned import AbandonedResponse
from router.gateway.acceptor import Acceptor
from router.gateway.authentication import Authentication
from router.gateway.client_registry import ClientRegistry
from router.gateway.connection_limits import RepeatedSample
from router.gateway.context import GatewayContext
from router.gateway.exchange import Exchange
from router.gateway.ledger_outbox import LedgerOutbox, Send
from router.gateway.pool import ReplicaPool
from router.gateway.routes import ExchangeCallbacks, ServiceRoute, VersionRoute
from router.gateway.routing_table import RoutingTable
from router.http.header_rules import response_rules
from router.model.services import Replica, Service, Version, VersionKey
from router.model.version_replicas import VersionReplicas
from router.slots.messages import HeldSnapshot, ToLeaseCache
from router.telemetry.access_log import AccessLog
from router.telemetry.counters import GatewayCounters
from router.telemetry.journal import Journal
from router.telemetry.tracing import Tracer

_UNLIMITED_DESCRIPTORS = 1_048_576
_CLIENT_CHECK_SECONDS = 0.25  # interval of checks of clients' timeouts and of file descriptors
_POOL_CHECK_SECONDS = 1.0  # interval of checks for idle connections to replicas
_BUSY_SECONDS = 1.0  # a client connection is busy if it had a request in this time
_ACCESS_LOG_SECONDS = 0.2  # interval of writes of the access log
_ACCESS_LOG_BUSY_SECONDS = 0.005  # until the next write while lines remain
_COLLECTION_SECONDS = 3.0  # maximum time until the collector has taken all data, when this process ends
_ACCEPT_TURNS = 3  # of the event loop; after `accept` a connection takes one turn until its protocol is called

_CALLBACKS = ExchangeCallbacks(
    start=Exchange.start,
    restart_wait=Exchange.restart_wait,
    on_wait_timeout=Exchange.on_wait_timeout,
    on_scoring_timeout=Exchange.on_scoring_timeout,
    on_abandoned_timeout=AbandonedResponse.on_timeout,
)


class Gateway:
    """The data plane of one process. Every method must be called in its event loop."""

    def __init__(
        self,
        settings: RouterSettings,
        access_log: AccessLog,
        send: Send,
        request_keys: Callable[[str], None] | None = None,
        *,
        descriptors: int = _UNLIMITED_DESCRIPTORS,
        collection_socket: socket.socket | None = None,
    ) -> None:
        """`send` sends messages of a version's lease cache to its ledger. `request_keys` asks the supervisor to fetch
        the keys of a token issuer; it is None without a supervisor. `descriptors` is the limit of file descriptors of
        this process. `collection_socket` leads to the collector; without one, no data is collected.
        """
        self._loop = asyncio.get_running_loop()
        self.settings = settings
        self.routes = RoutingTable(
            settings.scoring_prefix.encode(),
            settings.max_payload_bytes,
            _max_buffered_body_bytes(settings),
            name_parts=2 if settings.names_have_namespace else 1,
        )
        self.authentication = Authentication(self._loop, time.time, request_keys)
        self._outbox = LedgerOutbox(self._loop, send, self.routes.versions)
        self.context = GatewayContext(
            settings,
            routes=self.routes,
            outbox=self._outbox,
            authentication=self.authentication,
            access_log=access_log,
            wall_clock=time.time,
            collection=None
            if collection_socket is None
            else CollectionOutbox(self._loop, collection_socket, settings.collection_buffer_bytes // 4),
        )
        self.tracer = Tracer(
            settings.trace_sample_ratio if settings.traces != "off" else None,
            app_insights_ratio=settings.app_insights_sample_ratio,
        )
        self._set_tracer()
        if settings.http2 == "on":
            from router.gateway.http2_connection import Http2Connection  # loads the codec

            self.context.http2_client = Http2Connection
        self.clients = ClientRegistry(
            self.counters, settings.max_client_connections, settings.max_connections_per_client_address
        )
        self.acceptor = Acceptor(self.context, self.clients, descriptors)
        self._retirement = RepeatedSample()
        self.accepts = True
        self._drain_until = self._min_idle_seconds = 0.0
        self._response_rules = response_rules()
        self._services: dict[str, Service] = {}
        self._replicas: dict[VersionKey, VersionReplicas] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._repeat(_CLIENT_CHECK_SECONDS, self._check_clients)
        self._repeat(_POOL_CHECK_SECONDS, self._check_pools)
        self.set_access_log_rate(access_log.rate)

    @property
    def versions(self) -> Mapping[VersionKey, VersionRoute]:
        return self.routes.versions

    @property
    def counters(self) -> GatewayCounters:
        return self.context.counters

    @property
    def journal(self) -> Journal:
        return self.context.journal

    @property
    def access_log(self) -> AccessLog:
        return self.context.access_log

    def change_settings(self, settings: RouterSettings) -> None:
        """Apply changed settings of the router: those with the mark `dynamic`. Requests in progress keep those with
        which they began."""
        self.settings = settings
        self.context.change_settings(settings)
        self.tracer.change_ratio(settings.trace_sample_ratio)
        self.routes.max_payload_bytes = settings.max_payload_bytes
        self.routes.max_buffered_body_bytes = _max_buffered_body_bytes(settings)
        self.clients.change_limits(settings.max_client_connections, settings.max_connections_per_client_address)
        for route in self.routes.versions.values():
            for pool in route.pools():
                pool.settings = settings
        self.set_access_log_rate(settings.access_log)

    # Services and replicas.

    def apply(self, services: Mapping[str, Service]) -> None:
        """Replace all services. Requests in progress keep the settings with which they began."""
        versions = self.routes.versions
        keys = {(service.name, version.name) for service in services.values() for version in service.versions}
        now = time.monotonic()
        removed_waiters: list[Exchange] = []
        for key in [key for key in versions if key not in keys]:
            removed_waiters += versions.pop(key).retire(now)
        self._replicas = {key: known for key, known in self._replicas.items() if key in keys}
        routes: dict[bytes, ServiceRoute] = {}
        for service in services.values():
            name = service.name.encode()
            if self._services.get(service.name) is service:  # unchanged, as nearly all are after most changes
                routes[name] = self.routes.services[name]
            else:
                routes[name] = self._apply_service(service)
        self._services = dict(services)
        self.routes.set_services(routes)
        self.authentication.retain(frozenset(s.name for s in services.values() if s.token_auth_enabled))
        self.counters.retain(keys)
        self._set_tracer()
        for waiter in removed_waiters:
            waiter.on_version_removed(now)

    def _set_tracer(self) -> None:
        """Give the tracer to requests if some may be traced. Without it they pay nothing for traces."""
        is_used = self.tracer.exports_traces or any(
            version.settings.enable_app_insights for version in self.routes.versions.values()
        )
        self.context.tracer = self.tracer if is_used else None

    def _apply_service(self, service: Service) -> ServiceRoute:
        for version in service.versions:
            self._apply_version((service.name, version.name), version)
        return ServiceRoute(
            service,
            {version.name.encode(): self.routes.versions[service.name, version.name] for version in service.versions},
            self.authentication.check(service),
            self.routes.scoring_prefix,
        )

    def set_trust(self, trust: Trust) -> None:
        """Accept the tokens of these issuers, and of no others."""
        self.authentication.set_trust(trust)

    def _apply_version(self, key: VersionKey, settings: Version) -> None:
        versions = self.routes.versions
        route = versions.get(key)
        unlimited = settings.replica_max_concurrent_requests == 0
        if route is not None and unlimited == (route.settings.replica_max_concurrent_requests == 0):
            route.change(settings)
            return
        waiters: list[Exchange] = []
        now = time.monotonic()
        if route is not None:  # the limit was added or removed: make a new route, as its lease cache works differently
            waiters = route.retire(now)
            self._outbox.flush(route)
        versions[key] = route = VersionRoute(
            key, settings, self.counters.version(key), self._loop, _CALLBACKS, self._outbox.notify
        )
        self._outbox.register(route)
        if key in self._replicas:
            self.set_replicas(key, self._replicas[key])
        for waiter in waiters:
            waiter.requeue(route, now)

    def set_replicas(self, key: VersionKey, replicas: VersionReplicas) -> None:
        """Replace the replicas of a version."""
        self._replicas[key] = replicas
        route = self.routes.versions.get(key)
        if route is not None:
            route.set_replicas(replicas, self._make_pool)
        if replicas.aborted:
            for client in self.clients:
                client.abort_requests_at(replicas.aborted)

    def streaming(self) -> dict[str, int]:
        """Return the responses in progress by replica. Costs time for each client."""
        return dict(Counter(replica for client in self.clients for replica in client.streaming_replicas))

    def _make_pool(self, replica: Replica) -> ReplicaPool:
        return ReplicaPool(
            self._loop,
            replica.id,
            replica.host,
            replica.port,
            rules=self._response_rules,
            settings=self.settings,
            turns=self.context.turns,
        )

    # Slots.

    def held_snapshots(self, shard: int, shard_count: int) -> dict[VersionKey, HeldSnapshot]:
        """Return snapshots of the lease caches in one of `shard_count` shards of the versions.

        First sends the pending messages of these lease caches, as a snapshot must be sent after them.
        """
        snapshots: dict[VersionKey, HeldSnapshot] = {}
        for route in tuple(self.routes.versions.values())[shard::shard_count]:
            if route.lease_cache.needs_flush:
                self._outbox.flush(route)
            snapshot = route.lease_cache.held_snapshot()
            if snapshot is not None:
                snapshots[route.key] = snapshot
        return snapshots

    def resync(self, services: Collection[str]) -> None:
        """Register the lease caches of these services with their ledgers again."""
        for key, route in self.routes.versions.items():
            if key[0] in services:
                route.lease_cache.resync()
                self._outbox.notify(route)

    def deliver(self, key: VersionKey, message: ToLeaseCache) -> None:
        """Deliver a ledger's message to the lease cache of its version."""
        route = self.routes.versions.get(key)
        if route is None:
            return
        now = time.monotonic()
        waiter: Exchange
        for waiter, lease in route.lease_cache.handle(message, now):
            waiter.start(lease, now)
        if route.lease_cache.needs_flush:
            self._outbox.notify(route)

    # Connections.

    @property
    def connections_idle(self) -> int:
        """Idle connections to replicas."""
        return sum(len(pool) for route in self.routes.versions.values() for pool in route.pools())

    def _connections_to_replicas(self) -> int:
        """Return the approximate number of connections to replicas."""
        return self.connections_idle + sum(route.lease_cache.busy for route in self.routes.versions.values())

    def begin_lame_duck(self) -> None:
        """Close each client connection after its next response from now on."""
        self.context.begin_lame_duck()

    def retire_clients(self, share: float, now: float) -> None:
        """Close this share of the busy client connections, each with its next response."""
        busy = [client for client in self.clients if client.idle_seconds(now) < _BUSY_SECONDS]
        for client in self._retirement.select(busy, share):
            client.retire()

    # Timers.

    def _repeat(self, seconds: float, action: Callable[[], None]) -> None:
        def run() -> None:
            self._timers[action.__name__] = self._loop.call_later(seconds, run)
            action()

        self._timers[action.__name__] = self._loop.call_later(seconds, run)

    def _check_clients(self) -> None:
        now = time.monotonic()
        self.journal.refill(_CLIENT_CHECK_SECONDS)
        for client in self.clients:
            client.enforce_timeouts(now)
        self.acceptor.check_descriptors(self._connections_to_replicas)

    def _check_pools(self) -> None:
        now = time.monotonic()
        idle_since = now - self.settings.replica_idle_connection_seconds
        for route in self.routes.versions.values():
            route.tick(now)
            for pool in route.pools():
                pool.close_idle(idle_since)

    def set_access_log_rate(self, rate: float) -> None:
        """Log this share of the requests from now on."""
        self.access_log.set_rate(rate)
        if rate and self._write_access_log.__name__ not in self._timers:
            self._repeat(_ACCESS_LOG_SECONDS, self._write_access_log)

    def _write_access_log(self) -> None:
        if self.access_log.flush():
            self._loop.call_later(_ACCESS_LOG_BUSY_SECONDS, self._write_access_log)

    # The end.

    async def drain(self, seconds: float, min_idle_seconds: float, accept_queued: bool) -> bool:
        """Stop accepting, let requests in progress finish, then close. Return False if some did not in `seconds`.

        Each client's next response has "Connection: close". If a connection is closed between two requests, the next
        request may already be on its way, and its client cannot safely repeat it. So only a connection that has been
        idle for `min_idle_seconds` is closed. With `accept_queued`, connections in the queues of the sockets are
        accepted first, as no other process will accept them.
        """
        self.begin_lame_duck()
        self.accepts = False
        started_at = now = self._loop.time()
        self._drain_until, self._min_idle_seconds = started_at + seconds, min_idle_seconds
        if accept_queued:
            await self.acceptor.drain_accept_queue()
        self.acceptor.close()
        for _ in range(_ACCEPT_TURNS):  # connections that were just accepted become clients
            await asyncio.sleep(0)
        while now < self._drain_until and (len(self.clients) or self._has_handshakes(now - started_at)):
            self._close_idle_clients(now - started_at)
            await self.clients.wait_until_empty(min(_CLIENT_CHECK_SECONDS, self._drain_until - now))
            now = self._loop.time()
        unfinished = [client for client in self.clients if not client.idle]
        for client in self.clients:
            client.abort()
        await asyncio.sleep(0)
        if self.context.collection is not None:
            self.context.collection.drain(_COLLECTION_SECONDS)
        self.close()
        return not unfinished

    def _has_handshakes(self, drained_seconds: float) -> bool:
        """Return True if a TLS handshake that was in progress may still become a client."""
        return self.acceptor.handshakes > 0 and drained_seconds < self._min_idle_seconds

    def shorten_drain(self, seconds: float, min_idle_seconds: float) -> None:
        """Finish draining in at most `seconds` from now."""
        self._drain_until = min(self._drain_until, self._loop.time() + seconds)
        self._min_idle_seconds = min(self._min_idle_seconds, min_idle_seconds)

    def _close_idle_clients(self, drained_seconds: float) -> None:
        now = time.monotonic()
        for client in self.clients:
            if min(client.idle_seconds(now), drained_seconds) >= self._min_idle_seconds:
                client.close()

    def close(self) -> None:
        """Stop the timers, and close the connections to replicas."""
        self.acceptor.close()
        for timer in self._timers.values():
            timer.cancel()
        for response in tuple(self.context.abandoned):
            response.close()
        now = time.monotonic()
        waiter: Exchange
        for route in self.routes.versions.values():
            for waiter in route.retire(now):
                waiter.on_wait_timeout(now)
        if self.context.collection is not None:
            self.context.collection.close()
        self.access_log.close()


def _max_buffered_body_bytes(settings: RouterSettings) -> int:
    return min(settings.request_buffer_bytes, settings.buffer_budget_bytes)
