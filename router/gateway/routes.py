"""Routes of the data plane: each service and version with the objects that requests need.

A version has one `VersionRoute` for as long as it exists, so that its queue, leases, counters and timeouts are kept
when its settings change. A `ServiceRoute` is replaced whenever the settings of its service change. Waiters are
exchanges. `exchange` imports this module, so they are called through `ExchangeCallbacks`.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections import deque
from collections.abc import Callable, Collection, Mapping
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple

from router.auth.credentials import AUTHORIZATION
from router.auth.keys import KeyCheck
from router.collection.outbox import collection_rule
from router.gateway.outliers import OutlierDetector
from router.gateway.pool import ReplicaPool
from router.gateway.refused_ids import RefusedIds
from router.gateway.replica_health import REFUSING
from router.gateway.suspensions import Suspensions
from router.gateway.timeouts import TimeoutList
from router.http.location import PublicPath
from router.model.services import Replica, ReplicaState, Service, Version, VersionKey
from router.model.version_replicas import VersionReplicas
from router.slots.lease_cache import LeaseCache
from router.slots.replica_leases import ReplicaLeases
from router.telemetry.counters import VersionCounters

if TYPE_CHECKING:
    from router.auth.tokens import TokenCheck

# The retry budget, as in Finagle and Envoy with their defaults: a share of the recent requests, and always a few
# retries. When all requests fail, retries must not double the load.
RETRY_SHARE = 0.2
RETRY_FLOOR = 10
_RATE_SECONDS = 10.0  # the period of the drain rate and the retry budget
_MAX_RETRY_AFTER = 60  # seconds
_MIN_TIMER_SECONDS = 0.001  # so that the timer of the queue cannot fire in each turn of the event loop
_REPLACEMENT_SECONDS = 10.0  # maximum time between the end of a replica and the report of its replacement


class ExchangeCallbacks(NamedTuple):
    """The functions that a route calls for exchanges. The first argument is the exchange."""

    start: Callable[[Any, ReplicaLeases[ReplicaPool], float], None]
    """The exchange got a slot."""
    restart_wait: Callable[[Any, float], None]
    """The first replica is ready: the usual timeout of the wait starts now."""
    on_wait_timeout: Callable[[Any, float], None]
    """The exchange waited too long, and was removed from the queue."""
    on_scoring_timeout: Callable[[Any], None]
    """The replica was silent for `scoring_timeout_ms`."""
    on_abandoned_timeout: Callable[[Any], None]
    """The response to an abandoned request has not come in time. The argument is an `AbandonedResponse`."""


class _Totals(NamedTuple):
    """Totals of a lease cache at some time, in seconds of the monotonic clock."""

    time: float
    arrivals: int
    completed: int
    service_seconds: float


class VersionRoute:
    """One version in the data plane: settings, queue, leases, connections and counters. Times are in seconds."""

    __slots__ = (
        "_callbacks", "_history", "_loop", "_lost_at", "_on_slots_changed", "_pools", "_queue_timer", "_ready",
        "_refused_ids", "_retries", "_starting", "abandoned_timeouts", "collection", "counters", "key", "lease_cache",
        "outliers",
        "response_line", "scoring_path", "scoring_timeouts", "service_name", "settings", "suspensions",
    )  # fmt: skip

    def __init__(
        self,
        key: VersionKey,
        settings: Version,
        counters: VersionCounters,
        loop: asyncio.AbstractEventLoop,
        callbacks: ExchangeCallbacks,
        on_slots_changed: Callable[[VersionRoute], None],
    ) -> None:
        """`on_slots_changed` is called when the lease cache may have messages for its ledger."""
        self.key = key
        self.service_name = key[0]
        self.settings = settings
        self.counters = counters
        self._loop = loop
        self._callbacks = callbacks
        self._on_slots_changed = on_slots_changed
        self._pools: dict[str, ReplicaPool] = {}
        self._ready: frozenset[str] = frozenset()
        self._starting = False  # a replica is starting
        self._lost_at = -math.inf  # when the last ready replica was lost
        self._queue_timer: asyncio.TimerHandle | None = None
        self._history: deque[_Totals] = deque()
        self._retries: deque[float] = deque(maxlen=1000)  # times of recent retries
        self._refused_ids = RefusedIds()
        self.response_line = b"azureml-model-deployment: " + key[1].encode()
        self.lease_cache: LeaseCache[Any, ReplicaPool] = LeaseCache(
            unlimited=settings.replica_max_concurrent_requests == 0, now=monotonic()
        )
        self.scoring_path = _scoring_path(settings)
        self.collection = collection_rule(key, settings.collected)
        self.scoring_timeouts = self._make_scoring_timeouts()
        self.abandoned_timeouts = self._make_abandoned_timeouts()
        self.outliers = OutlierDetector(settings, monotonic())
        self.suspensions = Suspensions(key, self.outliers, self.lease_cache, counters, loop, self._on_resumed)

    # Settings and replicas.

    def change(self, settings: Version) -> None:
        """Apply changed settings to requests from now on."""
        previous, self.settings = self.settings, settings
        self.scoring_path = _scoring_path(settings)
        self.collection = collection_rule(self.key, settings.collected)
        if settings.scoring_timeout_ms != previous.scoring_timeout_ms:
            self.scoring_timeouts = self._make_scoring_timeouts()
        if settings.abandoned_timeout_ms != previous.abandoned_timeout_ms:
            self.abandoned_timeouts = self._make_abandoned_timeouts()
        self._restart_queue_timer()
        self.outliers.change(settings)
        self.suspensions.readmit()

    def _make_scoring_timeouts(self) -> TimeoutList[Any]:
        return TimeoutList(self._loop, self.settings.scoring_timeout_ms / 1000, self._callbacks.on_scoring_timeout)

    def _make_abandoned_timeouts(self) -> TimeoutList[Any]:
        return TimeoutList(self._loop, self.settings.abandoned_timeout_ms / 1000, self._callbacks.on_abandoned_timeout)

    def set_replicas(self, replicas: VersionReplicas, make_pool: Callable[[Replica], ReplicaPool]) -> None:
        """Replace the replicas. Closed ones get no new requests, and complete those that they have."""
        now = monotonic()
        pools = {}
        for replica in replicas.started:
            known = self._pools.get(replica.id)
            pools[replica.id] = make_pool(replica) if known is None else known
            if known is not None and (known.host, known.port) != (replica.host, replica.port):
                known.move(replica.host, replica.port)
        for replica_id, pool in self._pools.items():
            if replica_id not in pools:
                pool.retire()
        self._pools = pools
        had_ready_replicas = self.has_ready_replicas
        self._ready = frozenset(r.id for r in replicas.started if r.state is ReplicaState.READY)
        self._starting = any(r.state is ReplicaState.STARTING for r in replicas.replicas)
        if had_ready_replicas and not self.has_ready_replicas:
            self._lost_at = now
        if self.has_ready_replicas and not had_ready_replicas and self._starts_from_zero:
            for waiter in self.lease_cache.waiters.values():
                self._callbacks.restart_wait(waiter, now)
            self._restart_queue_timer()
        started = self.lease_cache.set_replicas(
            pools, now, closed=replicas.closed_ids, starts_from_zero=self._starts_from_zero
        )
        for waiter, lease in started:
            self._callbacks.start(waiter, lease, now)
        self.outliers.set_replicas({replica_id: pool.health for replica_id, pool in pools.items()}, replicas.open_ids)
        self.suspensions.readmit()
        self._on_slots_changed(self)

    def retire(self, now: float) -> list[Any]:
        """Remove all waiters, and close connections once they are idle. Return the waiters.

        Called when the version was removed or gets another route.
        """
        self._ready = frozenset()
        self._starting = False
        self._lost_at = -math.inf
        self.suspensions.stop()
        for pool in self._pools.values():
            pool.retire()
        return self.lease_cache.expire(now, now)

    @property
    def has_ready_replicas(self) -> bool:
        return bool(self._ready)

    @property
    def all_replicas_refuse(self) -> bool:
        """True if no replica accepts connections."""
        return all(pool.health.state == REFUSING for pool in self._pools.values())

    @property
    def may_serve(self) -> bool:
        """True if a waiting request may be served: there is a ready replica, or the version starts from zero."""
        return self.has_ready_replicas or self._starts_from_zero

    @property
    def _expects_replica(self) -> bool:
        """True if a replica is on its way: it is starting, or the last one was lost just now."""
        return self._starting or monotonic() - self._lost_at < _REPLACEMENT_SECONDS

    def pools(self) -> Collection[ReplicaPool]:
        """Return the connection pool of each replica."""
        return self._pools.values()

    def pool(self, replica_id: str) -> ReplicaPool:
        """Return the connection pool of one replica. Raises KeyError for an unknown one."""
        return self._pools[replica_id]

    def _on_resumed(self, started: list[tuple[Any, ReplicaLeases[ReplicaPool]]]) -> None:
        """Start waiters, and notify the ledger, as a replica may be used again."""
        now = monotonic()
        for waiter, lease in started:
            self._callbacks.start(waiter, lease, now)
        self._on_slots_changed(self)

    # Abandoned requests.

    def return_suspect(
        self, lease: ReplicaLeases[ReplicaPool], now: float, slot_seconds: float, suspect_seconds: float, *, kept: bool
    ) -> None:
        """Give back the slot of an abandoned request, held for `slot_seconds`, that the replica may still work on.

        `kept`: the request has held its lease as an abandoned one.
        """
        self.lease_cache.abandon(lease, now, slot_seconds, suspect_seconds, kept=kept)
        self._on_slots_changed(self)

    def release_abandoned(self, lease: ReplicaLeases[ReplicaPool], now: float, slot_seconds: float) -> None:
        """Give back the slot of an abandoned request that has held its lease for `slot_seconds`, and start the waiter
        that gets it."""
        waiter = self.lease_cache.release_abandoned(lease, now, slot_seconds)
        if self.lease_cache.needs_flush:
            self._on_slots_changed(self)
        if waiter is not None:
            self._callbacks.start(waiter, lease, now)

    # The queue.

    @property
    def may_queue(self) -> bool:
        """True if the queue has room for one more request, and a slot may become free."""
        excess = len(self.lease_cache.waiters) - self.settings.max_queue_length
        if excess >= 0 and not self._has_more_slots_than(excess):
            return False
        return self.may_serve or self._expects_replica

    def _has_more_slots_than(self, count: int) -> bool:
        """True if more than `count` slots are not used by this worker, and may be free.

        That number of waiters may exceed `max_queue_length`: the ledger may be about to grant leases to them.
        """
        slots = self.settings.replica_max_concurrent_requests
        for replica in self.lease_cache.open_replicas:
            if replica.busy < slots:
                count -= slots - replica.busy
                if count < 0:
                    return True
        return False

    @property
    def _starts_from_zero(self) -> bool:
        return self.settings.autoscale_enabled and self.settings.autoscale_min_replicas == 0

    def _max_wait(self) -> float:
        """Return the timeout of the wait in seconds.

        While the first replica of a version starts from zero, it is `scoring_timeout_ms` if that is longer.
        """
        settings = self.settings
        if self._starts_from_zero and not self.has_ready_replicas:
            return max(settings.max_request_wait_time, settings.scoring_timeout_ms) / 1000
        return settings.max_request_wait_time / 1000

    def watch_queue(self, waited: float) -> None:
        """Start the timer that removes requests from the queue that wait too long, for one that was enqueued and has
        waited for `waited` seconds before."""
        if self._queue_timer is None or waited:
            self._restart_queue_timer()

    def _restart_queue_timer(self) -> None:
        if self._queue_timer is not None:
            self._queue_timer.cancel()
            self._queue_timer = None
        if self.lease_cache.waiters:
            seconds = self.lease_cache.queue.waiting_longest_since() + self._max_wait() - monotonic()
            self._queue_timer = self._loop.call_later(max(seconds, _MIN_TIMER_SECONDS), self._expire)

    def _expire(self) -> None:
        self._queue_timer = None
        now = monotonic()
        expired = self.lease_cache.expire(now - self._max_wait(), now)
        self.counters.queue_timeouts += len(expired)
        for waiter in expired:
            self._callbacks.on_wait_timeout(waiter, now)
        self._restart_queue_timer()
        self._on_slots_changed(self)

    def count_refusal(self, client_request_id: bytes) -> None:
        """Count a request that got no slot as demand for the autoscaler, unless it repeats one that counts already.

        `client_request_id` is empty if the client sent none.
        """
        if client_request_id:
            window = self.settings.autoscale_scale_down_seconds
            if self._refused_ids.is_repeat(client_request_id, monotonic(), window):
                return
        self.lease_cache.refuse()

    # Recent rates.

    def tick(self, now: float) -> None:
        """Record the totals of the lease cache, and end trials without a result. Must be called about once a second."""
        self.suspensions.sweep(now)
        self._refused_ids.expire(now, self.settings.autoscale_scale_down_seconds)
        cache, history = self.lease_cache, self._history
        history.append(_Totals(now, cache.arrivals, cache.completed, cache.service_seconds))
        while history[0].time < now - _RATE_SECONDS:
            history.popleft()

    def retry_after(self) -> int:
        """Return the whole seconds after which a request should get a slot: queue length divided by drain rate.

        The drain rate is the number of slots in use divided by the recent mean service time. The rate of recently
        completed requests would be misleading, as there was no queue for most of them.
        """
        cache = self.lease_cache
        completed, service_seconds = cache.completed, cache.service_seconds
        if self._history and self._history[0].completed != completed:
            completed -= self._history[0].completed
            service_seconds -= self._history[0].service_seconds
        if not completed:
            return 1
        wait = (len(cache.waiters) + 1) * (service_seconds / completed) / max(cache.busy, 1)
        return min(max(1, math.ceil(wait)), _MAX_RETRY_AFTER)

    def may_retry(self) -> bool:
        """Spend one retry of the budget; return False if it is exhausted."""
        now = monotonic()
        while self._retries and self._retries[0] < now - _RATE_SECONDS:
            self._retries.popleft()
        recent = self.lease_cache.arrivals - (self._history[0].arrivals if self._history else 0)
        if len(self._retries) >= RETRY_FLOOR + RETRY_SHARE * recent:
            return False
        self._retries.append(now)
        return True


class ServiceRoute:
    """One service in the data plane."""

    __slots__ = (
        "_shares",
        "allow",
        "check",
        "forward_authorization",
        "is_special",
        "keep_underscore_headers",
        "key_headers",
        "methods",
        "name",
        "only_version",
        "origins",
        "path",
        "removed_fields",
        "standby",
        "uses_app_insights",
        "versions",
    )

    def __init__(
        self,
        service: Service,
        versions: Mapping[bytes, VersionRoute],
        check: KeyCheck | TokenCheck | None,
        scoring_prefix: bytes,
    ) -> None:
        """`check` is None for a service that requires neither key nor token."""
        self.name = service.name
        self.path = PublicPath(scoring_prefix, service.name)
        self.check = check
        self.forward_authorization = service.forward_authorization
        self.keep_underscore_headers = service.keep_underscore_headers
        origins = frozenset(origin.encode() for origin in service.cors_allowed_origins)
        self.origins = origins or None
        self.methods = frozenset(method.encode() for method in service.allowed_methods)
        preflight = ["OPTIONS"] if origins and b"OPTIONS" not in self.methods else []
        self.allow = ", ".join([*service.allowed_methods, *preflight])
        """The value of the header Allow."""
        key_headers = tuple(name.encode() for name in service.key_headers)
        self.key_headers = None if key_headers == (AUTHORIZATION,) else key_headers
        """The headers that may have a key or token; None if it is only Authorization."""
        self.removed_fields = frozenset((*key_headers, *(name.replace(b"-", b"_") for name in key_headers)))
        self.standby = service.standby
        self.is_special = self.standby or self.origins is not None or self.key_headers is not None
        """True if `admission` has to check more than the method and Authorization."""
        self.uses_app_insights = service.default_version.enable_app_insights
        """For requests that were refused before a version was chosen: True if Application Insights gets them."""
        self.versions = versions
        self._shares = [
            (versions[version.name.encode()], share) for version, share in service.traffic_shares() if share
        ]
        self.only_version = self._shares[0][0] if len(self._shares) == 1 else None
        """The version of all requests that do not name a version, if only one version has a share of the traffic."""

    def choose(self, forced: bytes | None) -> VersionRoute | None:
        """Return the version for a request: the version that it names (`forced`), else one at random by traffic share.

        The share of a version that cannot serve, because it was just added or its replicas fail, is given to the
        others. Return None if the named version does not exist.
        """
        if forced is not None:
            return self.versions.get(forced.strip())
        if self.only_version is not None:
            return self.only_version
        chosen = _by_share(self._shares, 100)
        if chosen.may_serve:
            return chosen
        others = [(version, share) for version, share in self._shares if version.may_serve]
        return _by_share(others, sum(share for _, share in others)) if others else chosen


def _scoring_path(settings: Version) -> bytes | None:
    """Return the path at the replicas that `/score` stands for, None if it is the same."""
    return None if settings.scoring_path == "/score" else settings.scoring_path.encode()


def _by_share(shares: list[tuple[VersionRoute, int]], total: int) -> VersionRoute:
    """Return one of several versions at random. The probability of each is its share of the total."""
    point = random.random() * total
    for version, share in shares:
        point -= share
        if point < 0:
            return version
    return shares[-1][0]
