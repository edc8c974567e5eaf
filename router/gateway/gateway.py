"""One worker's gateway: holds the parts of the data plane together and talks with whoever runs it.

From above it gets settings, services, replicas and ledger messages (`apply`, `set_replicas`, `deliver`); it hands up
what its holders say to ledgers (`send`) and what it has counted. Sockets are opened by others and passed in.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from router.auth.trust import Trust
from router.gateway.authentication import Authentication
from router.gateway.doors import Doors
from router.gateway.downstream import ClientConnection
from router.gateway.pool import ReplicaPool
from router.gateway.table import ServiceRoute, VersionRoute
from router.http.headers import answer_kinds, request_kinds
from router.http.ids import RequestIds
from router.services import Replica, Service, Version, VersionKey
from router.settings import RouterSettings
from router.slots.holder import HeldReplica
from router.slots.messages import Holds, ToHolder, ToLedger
from router.telemetry.access_log import AccessLog
from router.telemetry.counters import GatewayCounters
from router.telemetry.journal import Journal
from router.telemetry.log import event
from router.telemetry.tracing import Tracer

if TYPE_CHECKING:
    from router.gateway.admission import Admission

_log = logging.getLogger("router.gateway")

Send = Callable[[VersionKey, Sequence[ToLedger]], None]

_MANY_DESCRIPTORS = 1_048_576
_SWEEP_SECONDS = 0.25
_TICK_SECONDS = 1.0
_ACCESS_LOG_SECONDS = 0.2
_MOST_REMEMBERED_ADDRESSES = 4096
_LONGEST_REMEMBERED_ADDRESS = 256
_ACCEPTING_TURNS = 3  # of the event loop; a connection takes one from being accepted to its protocol
# A replica that refuses connections is left alone this long, doubling with each further refusal.
_SUSPENSION_SECONDS = 0.1
_LONGEST_SUSPENSION_SECONDS = 5.0


class Gateway:
    """The data plane of one process. Every method must be called in its event loop."""

    def __init__(
        self,
        settings: RouterSettings,
        access_log: AccessLog,
        send: Send,
        ask_for_keys: Callable[[str], None] | None = None,
        *,
        descriptors: int = _MANY_DESCRIPTORS,
    ) -> None:
        """`ask_for_keys` is called with the name of a token issuer of whom a new key may be known by now; None where
        nobody can tell. `descriptors`: how many files this process may have open."""
        self._loop = asyncio.get_running_loop()
        self.settings = settings
        self.access_log = access_log
        self.counters = GatewayCounters()
        self.journal = Journal()
        self.tracer = Tracer(settings.trace_sample_ratio) if settings.traces != "off" else None
        self.ids = RequestIds()
        self.scoring_prefix = settings.scoring_prefix.encode()
        self.request_kinds = request_kinds()
        # A head up to this size is within all limits: no header takes less than four bytes.
        self.small_head_bytes = min(settings.max_head_bytes, 4 * settings.max_headers)
        self.services: dict[bytes, ServiceRoute] = {}
        self.addresses: dict[bytes, tuple[ServiceRoute, bytes]] = {}  # of services, with the replica's path
        self.versions: dict[VersionKey, VersionRoute] = {}
        self.draining = False  # whoever is answered is asked not to come back over the same connection
        self.accepts = True
        self._drain_until = self._farewell_seconds = 0.0
        self.wall_clock = time.time
        self.authentication = Authentication(self._loop, time.time, ask_for_keys)
        self._answer_kinds = answer_kinds()
        self._send = send
        self._replicas: dict[VersionKey, tuple[tuple[Replica, ...], frozenset[str]]] = {}
        self._changed: dict[VersionRoute, None] = {}
        self._clients: set[ClientConnection] = set()
        self.doors = Doors(self, descriptors)
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._drained = asyncio.Event()
        self._every(_SWEEP_SECONDS, self._sweep)
        self._every(_TICK_SECONDS, self._tick)
        self.set_access_log_rate(access_log.rate)

    # What is served.

    def apply(self, services: Mapping[str, Service]) -> None:
        """Make `services` the complete set. Requests under way go on as they began."""
        keys = {(service.name, version.name) for service in services.values() for version in service.versions}
        now = time.monotonic()
        left_over: list[Admission] = []
        for key in [key for key in self.versions if key not in keys]:
            left_over += self.versions.pop(key).retire(now)
        self._replicas = {key: known for key, known in self._replicas.items() if key in keys}
        for service in services.values():
            for version in service.versions:
                self._apply_version((service.name, version.name), version)
        self.services = {
            service.name.encode(): ServiceRoute(
                service,
                {v.name.encode(): self.versions[service.name, v.name] for v in service.versions},
                self.authentication.check(service),
            )
            for service in services.values()
        }
        self.authentication.retain(frozenset(s.name for s in services.values() if s.token_auth_enabled))
        self.addresses.clear()
        self.counters.retain(keys)
        for waiter in left_over:
            waiter.version_gone(now)

    def remember_address(self, target: bytes, service: ServiceRoute, path: bytes) -> None:
        """Spare the next request to the same address its parsing."""
        if len(target) <= _LONGEST_REMEMBERED_ADDRESS and b"?" not in target:
            if len(self.addresses) >= _MOST_REMEMBERED_ADDRESSES:
                self.addresses.clear()
            self.addresses[target] = service, path

    def set_trust(self, trust: Trust) -> None:
        """Make `trust` all that tokens are held against."""
        self.authentication.set_trust(trust)

    def _apply_version(self, key: VersionKey, settings: Version) -> None:
        route = self.versions.get(key)
        unlimited = settings.replica_max_concurrent_requests == 0
        if route is not None and unlimited == (route.settings.replica_max_concurrent_requests == 0):
            route.change(settings)
            return
        waiters: list[Admission] = []
        now = time.monotonic()
        if route is not None:  # the limit came or went: begin anew, so that nothing is counted by the other rule
            waiters = route.retire(now)
            self._send_news(route)
        counters = self.counters.version(key)
        self.versions[key] = route = VersionRoute(key, settings, counters, self._loop, self.slots_changed)
        self._send(key, [route.holder.hello()])
        if key in self._replicas:
            self.set_replicas(key, *self._replicas[key])
        for waiter in waiters:
            waiter.queue_anew(route, now)

    def set_replicas(self, key: VersionKey, replicas: tuple[Replica, ...], cordoned: Collection[str]) -> None:
        """Make `replicas` the complete set of a version's; those `cordoned` finish what they have."""
        self._replicas[key] = (replicas, frozenset(cordoned))
        route = self.versions.get(key)
        if route is not None:
            route.set_replicas(replicas, cordoned, self._make_pool)

    def _make_pool(self, replica: Replica) -> ReplicaPool:
        return ReplicaPool(
            self._loop,
            replica.id,
            replica.host,
            replica.port,
            kinds=self._answer_kinds,
            connect_timeout_seconds=self.settings.connect_timeout_ms / 1000,
        )

    # Slots.

    def slots_changed(self, route: VersionRoute) -> None:
        """A holder may have something to say; it says it once this turn of the event loop is over."""
        if not self._changed:
            self._loop.call_soon(self._flush)
        self._changed[route] = None

    def _flush(self) -> None:
        changed, self._changed = self._changed, {}
        for route in changed:
            if self.versions.get(route.key) is route:
                self._send_news(route)

    def _send_news(self, route: VersionRoute) -> None:
        messages = route.holder.flush()
        if messages:
            self._send(route.key, messages)

    def holds(self, part: int, parts: int) -> dict[VersionKey, Holds]:
        """What the holders of one of `parts` parts of the versions hold, after all that there was to say is said."""
        leases: dict[VersionKey, Holds] = {}
        for route in tuple(self.versions.values())[part::parts]:
            if route.holder.news:
                self._send_news(route)
            holds = route.holder.holds()
            if holds is not None:
                leases[route.key] = holds
        return leases

    def deliver(self, key: VersionKey, message: ToHolder) -> None:
        """Take in what a ledger says."""
        route = self.versions.get(key)
        if route is None:
            return
        now = time.monotonic()
        for waiter, lease in route.holder.handle(message, now):
            waiter.start(lease, now)
        if route.holder.news:
            self.slots_changed(route)

    def replica_refused(self, route: VersionRoute, lease: HeldReplica[ReplicaPool], error: BaseException) -> None:
        """A replica does not accept connections: spare it for a while."""
        route.counters.connect_failures[_why_refused(error)] += 1
        if lease.suspended:
            return
        lease.target.failures = failures = lease.target.failures + 1
        seconds = min(_SUSPENSION_SECONDS * 2 ** min(failures - 1, 10), _LONGEST_SUSPENSION_SECONDS)
        route.holder.suspend(lease)
        self._loop.call_later(seconds, self._resume, route, lease)
        level = logging.WARNING if failures == 1 else logging.DEBUG
        event(
            _log, level, "replica refuses connections",
            service=route.key[0], version=route.key[1], replica=lease.id, error=str(error) or type(error).__name__,
        )  # fmt: skip

    def _resume(self, route: VersionRoute, lease: HeldReplica[ReplicaPool]) -> None:
        now = time.monotonic()
        for waiter, replica in route.holder.resume(lease, now):
            waiter.start(replica, now)
        self.slots_changed(route)

    def log_garbled(self, route: VersionRoute | None, replica_id: str, error: BaseException | None) -> None:
        """A replica answers with something that is not HTTP."""
        service, version = route.key if route is not None else ("", "")
        event(
            _log, logging.WARNING, "replica sent an invalid answer",
            service=service, version=version, replica=replica_id, error=str(error),
        )  # fmt: skip

    def log_fault(self, error: BaseException) -> None:
        """This program has a fault; the request at hand is answered 500."""
        event(_log, logging.ERROR, "request failed through a fault of the router", exception=error)

    # Clients.

    @property
    def connections(self) -> int:
        """Clients that are connected."""
        return len(self._clients)

    def admit(self, client: ClientConnection) -> bool:
        """Count a new connection; False if there are too many."""
        if len(self._clients) >= self.settings.max_client_connections:
            self.counters.connections_refused += 1
            return False
        self.counters.connections_accepted += 1
        self.counters.connections_open += 1
        self._clients.add(client)
        return True

    def forget(self, client: ClientConnection) -> None:
        """A connection has closed."""
        if client in self._clients:
            self._clients.discard(client)
            self.counters.connections_open -= 1
            if self.draining and not self._clients:
                self._drained.set()

    @property
    def connections_idle(self) -> int:
        """Connections to replicas that rest in their pools."""
        return sum(len(pool) for route in self.versions.values() for pool in route.pools())

    # Time.

    def _every(self, seconds: float, action: Callable[[], None]) -> None:
        def again() -> None:
            self._timers[action.__name__] = self._loop.call_later(seconds, again)
            action()

        self._timers[action.__name__] = self._loop.call_later(seconds, again)

    def _sweep(self) -> None:
        now = time.monotonic()
        self.journal.make_room(_SWEEP_SECONDS)
        for client in tuple(self._clients):
            client.check(now)
        self.doors.look(self._upstream_connections)

    def _upstream_connections(self) -> int:
        """Connections to replicas, about."""
        return sum(route.holder.busy + sum(len(pool) for pool in route.pools()) for route in self.versions.values())

    def _tick(self) -> None:
        now = time.monotonic()
        old = now - self.settings.replica_idle_connection_seconds
        for route in self.versions.values():
            route.tick(now)
            for pool in route.pools():
                pool.close_idle(old)

    def set_access_log_rate(self, rate: float) -> None:
        """Log this share of the requests from now on."""
        self.access_log.set_rate(rate)
        if rate and self._write_access_log.__name__ not in self._timers:
            self._every(_ACCESS_LOG_SECONDS, self._write_access_log)

    def _write_access_log(self) -> None:
        if self.access_log.flush():
            self._loop.call_later(0.005, self._write_access_log)

    # The end.

    async def drain(self, seconds: float, farewell_seconds: float, last: bool) -> bool:
        """Accept no more, let requests under way finish, then close. False if some did not within `seconds`.

        A client that sends one request after another gets its next answer with "Connection: close". To close its
        connection between two of them would be a race with the next, which it could not safely repeat: so that is done
        only to one that has been idle for `farewell_seconds` since. `last`: connections that wait to be accepted are
        taken in before, as nobody else will.
        """
        self.draining, self.accepts = True, False
        began = now = self._loop.time()
        self._drain_until, self._farewell_seconds = began + seconds, farewell_seconds
        if last:
            await self.doors.take_in_who_waits()
        self.doors.close()
        for _ in range(_ACCEPTING_TURNS):  # who has just been accepted is a client of ours in a moment
            await asyncio.sleep(0)
        while now < self._drain_until and (self._clients or self._shakes_hands(now - began)):
            self._send_idle_clients_away(now - began)
            await self._all_have_left(min(_SWEEP_SECONDS, self._drain_until - now))
            now = self._loop.time()
        unfinished = [client for client in self._clients if not client.idle]
        for client in tuple(self._clients):
            client.transport.abort()
        await asyncio.sleep(0)
        self.close()
        return not unfinished

    def _shakes_hands(self, drained_seconds: float) -> bool:
        """Whether a client may still come out of a hand-shake that had begun before."""
        return self.doors.handshakes > 0 and drained_seconds < self._farewell_seconds

    def hasten(self, seconds: float, farewell_seconds: float) -> None:
        """While draining: be done within so many seconds from now, if not sooner."""
        self._drain_until = min(self._drain_until, self._loop.time() + seconds)
        self._farewell_seconds = min(self._farewell_seconds, farewell_seconds)

    def _send_idle_clients_away(self, drained_seconds: float) -> None:
        now = time.monotonic()
        for client in tuple(self._clients):
            if min(client.idle_seconds(now), drained_seconds) >= self._farewell_seconds:
                client.close()

    async def _all_have_left(self, seconds: float) -> None:
        """Wait for the last client to go, at most so long."""
        self._drained.clear()
        try:
            async with asyncio.timeout(seconds):
                await self._drained.wait()
        except TimeoutError:
            pass

    def close(self) -> None:
        """Stop the timers and close the connections to replicas."""
        self.doors.close()
        for timer in self._timers.values():
            timer.cancel()
        now = time.monotonic()
        for route in self.versions.values():
            for waiter in route.retire(now):
                waiter.waited_too_long(now)
        self.access_log.close()


def _why_refused(error: BaseException) -> str:
    """A constant for a connection that could not be opened."""
    if isinstance(error, ConnectionRefusedError):
        return "refused"
    return "timeout" if isinstance(error, TimeoutError) else "other"
