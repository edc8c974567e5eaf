"""Where requests may go: services and versions as the data plane needs them, built from their settings.

Each version has one `VersionRoute` for as long as it exists: its queue, leases, counters and timeouts survive a change
of settings. Nothing here knows a connection; pools are made by whoever owns the event loop.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections import deque
from collections.abc import Callable, Collection, Mapping
from time import monotonic
from typing import TYPE_CHECKING

from router.gateway.timeouts import TimeoutList
from router.services import Replica, ReplicaState, Service, Version, VersionKey
from router.slots.holder import VersionHolder
from router.telemetry.counters import VersionCounters

if TYPE_CHECKING:
    from router.auth.keys import KeyCheck
    from router.auth.tokens import TokenCheck
    from router.gateway.admission import Admission
    from router.gateway.exchange import Exchange
    from router.gateway.pool import ReplicaPool

# Sending once more is allowed to this share of the requests of the last seconds, and to a few in any case: when
# everything fails, retries must not double the load (the "retry budget" of Finagle and Envoy, with their defaults).
RETRY_SHARE = 0.2
RETRY_FLOOR = 10
_RATE_SECONDS = 10.0  # drain rate and retry budget look back this far
_LONGEST_RETRY_AFTER = 60


class VersionRoute:
    """One version in the data plane: its settings, queue, leases, connections and counters. Times are seconds."""

    __slots__ = (
        "_loop", "_past", "_pools", "_queue_timer", "_ready", "_retries", "_slots_changed",
        "answer_line", "counters", "holder", "key", "service_name", "settings", "timeouts",
    )  # fmt: skip

    def __init__(
        self,
        key: VersionKey,
        settings: Version,
        counters: VersionCounters,
        loop: asyncio.AbstractEventLoop,
        slots_changed: Callable[[VersionRoute], None],
    ) -> None:
        self.key = key
        self.service_name = key[0]
        self.settings = settings
        self.counters = counters
        self._loop = loop
        self._slots_changed = slots_changed
        self._pools: dict[str, ReplicaPool] = {}
        self._ready: frozenset[str] = frozenset()
        self._queue_timer: asyncio.TimerHandle | None = None
        # When, and how far the holder had counted then: requests that came, completed ones, how long these took.
        self._past: deque[tuple[float, int, int, float]] = deque()
        self._retries: deque[float] = deque(maxlen=1000)
        self.answer_line = b"\r\nazureml-model-deployment: " + key[1].encode()
        self.holder: VersionHolder[Admission, ReplicaPool] = VersionHolder(
            unlimited=settings.replica_max_concurrent_requests == 0, now=monotonic()
        )
        # Who waits for a replica, and for how long at most.
        self.timeouts = self._scoring_timeouts()

    # Settings and replicas.

    def change(self, settings: Version) -> None:
        """Take on changed settings, for requests from now on."""
        before, self.settings = self.settings, settings
        if settings.scoring_timeout_ms != before.scoring_timeout_ms:
            self.timeouts = self._scoring_timeouts()
        if self.holder.waiters:
            self._rearm()

    def _scoring_timeouts(self) -> TimeoutList[Exchange]:
        return TimeoutList(self._loop, self.settings.scoring_timeout_ms / 1000, lambda exchange: exchange.timed_out())

    def set_replicas(
        self, replicas: tuple[Replica, ...], cordoned: Collection[str], make_pool: Callable[[Replica], ReplicaPool]
    ) -> None:
        """Make `replicas` the complete set that may be sent requests, `cordoned` ones only what they already have."""
        now = monotonic()
        pools = {r.id: self._pools[r.id] if r.id in self._pools else make_pool(r) for r in replicas}
        for replica_id, pool in self._pools.items():
            if replica_id not in pools:
                pool.retire()
        self._pools = pools
        had_any = self.has_ready_replicas
        self._ready = frozenset(r.id for r in replicas if r.state is ReplicaState.READY)
        if self.has_ready_replicas and not had_any:
            for waiter in self.holder.waiters.values():
                waiter.wait_anew(now)
            self._rearm()
        leaving = {r.id for r in replicas if r.state is not ReplicaState.READY} | set(cordoned)
        for waiter, lease in self.holder.set_replicas(pools, now, cordoned=leaving):
            waiter.start(lease, now)
        self._slots_changed(self)

    def retire(self, now: float) -> list[Admission]:
        """The version is gone, or begins anew: close connections as they fall idle. Returns who waited, and does so
        here no more."""
        self._ready = frozenset()
        for pool in self._pools.values():
            pool.retire()
        return self.holder.expire(now, now)

    @property
    def has_ready_replicas(self) -> bool:
        return bool(self._ready)

    @property
    def has_something_to_send_to(self) -> bool:
        """Whether a request that waits long enough may be answered."""
        return self.has_ready_replicas or self._starts_from_zero

    def pools(self) -> Collection[ReplicaPool]:
        """The connections to each replica."""
        return self._pools.values()

    def pool(self, replica_id: str) -> ReplicaPool:
        """The connections to one replica. Raises KeyError for one that is unknown."""
        return self._pools[replica_id]

    # The queue.

    @property
    def may_wait(self) -> bool:
        """Whether one more request may queue: there is room, and something to wait for."""
        beyond = len(self.holder.waiters) - self.settings.max_queue_length
        if beyond >= 0 and beyond >= self._slots_to_ask_for:
            return False
        return self.has_something_to_send_to

    @property
    def _slots_to_ask_for(self) -> int:
        """Slots that this worker does not use: they may be free. Who asks the ledger for one of them is no queue yet,
        and must not be turned away before it has answered."""
        return len(self._ready) * self.settings.replica_max_concurrent_requests - self.holder.busy

    @property
    def _starts_from_zero(self) -> bool:
        return self.settings.autoscale_enabled and self.settings.autoscale_min_replicas == 0

    def _longest_wait(self) -> float:
        """Seconds. Where the first replica must start first, that start is waited for as long as for an answer."""
        settings = self.settings
        if self._starts_from_zero and not self.has_ready_replicas:
            return max(settings.max_request_wait_time, settings.scoring_timeout_ms) / 1000
        return settings.max_request_wait_time / 1000

    def watch_queue(self) -> None:
        """See to it that whoever waits too long is turned away."""
        if self._queue_timer is None:
            self._queue_timer = self._loop.call_later(self._longest_wait(), self._expire)

    def _rearm(self) -> None:
        if self._queue_timer is not None:
            self._queue_timer.cancel()
            self._queue_timer = None
            self.watch_queue()

    def _expire(self) -> None:
        self._queue_timer = None
        now = monotonic()
        longest = self._longest_wait()
        expired = self.holder.expire(now - longest, now)
        self.counters.queue_timeouts += len(expired)
        for waiter in expired:
            waiter.waited_too_long(now)
        waiters = self.holder.waiters
        if waiters:
            oldest = next(iter(waiters.values())).waiting_since
            self._queue_timer = self._loop.call_later(max(oldest + longest - now, 0.001), self._expire)
        self._slots_changed(self)

    # What the last seconds were like.

    def tick(self, now: float) -> None:
        """Remember how far the counts are; call about once a second."""
        holder, past = self.holder, self._past
        past.append((now, holder.arrivals, holder.completed, holder.service_seconds))
        while past[0][0] < now - _RATE_SECONDS:
            past.popleft()

    def retry_after(self) -> int:
        """Whole seconds after which a request should find a slot: the queue's length by the rate at which it drains.

        That rate is the one of the slots in use now, at the time that requests took lately. What completed within the
        last seconds would tell too little: there was no queue for most of them, perhaps hardly a request.
        """
        holder = self.holder
        count, seconds = self._past[0][2:] if self._past else (0, 0.0)
        if holder.completed == count:
            count, seconds = 0, 0.0  # nothing lately: as ever
        done = holder.completed - count
        if not done:
            return 1
        mean = (holder.service_seconds - seconds) / done
        wait = (len(holder.waiters) + 1) * mean / max(holder.busy, 1)
        return min(max(1, math.ceil(wait)), _LONGEST_RETRY_AFTER)

    def may_retry(self) -> bool:
        """Spend from the retry budget, if something is left of it."""
        now = monotonic()
        while self._retries and self._retries[0] < now - _RATE_SECONDS:
            self._retries.popleft()
        recent = self.holder.arrivals - (self._past[0][1] if self._past else 0)
        if len(self._retries) >= RETRY_FLOOR + RETRY_SHARE * recent:
            return False
        self._retries.append(now)
        return True


class ServiceRoute:
    """One service in the data plane."""

    __slots__ = (
        "_only",
        "_shares",
        "check",
        "forward_authorization",
        "keep_underscore_headers",
        "name",
        "origins",
        "versions",
    )

    def __init__(
        self, service: Service, versions: Mapping[bytes, VersionRoute], check: KeyCheck | TokenCheck | None
    ) -> None:
        """`check` is None for a service that asks for neither key nor token."""
        self.name = service.name
        self.check = check
        self.forward_authorization = service.forward_authorization
        self.keep_underscore_headers = service.keep_underscore_headers
        origins = frozenset(origin.encode() for origin in service.cors_allowed_origins)
        self.origins = origins or None
        self.versions = versions
        self._shares = [(versions[version.name.encode()], share) for version, share in service.shares() if share]
        self._only = self._shares[0][0] if len(self._shares) == 1 else None

    def choose(self, forced: bytes | None) -> VersionRoute | None:
        """The version that gets a request: the one it asks for by name, else by the traffic's shares. The share of one
        that has nothing to send it to, as it has just been added or its replicas fail, is the others' meanwhile."""
        if forced is not None:
            return self.versions.get(forced.strip())
        if self._only is not None:
            return self._only
        chosen = _by_share(self._shares, 100)
        if chosen.has_something_to_send_to:
            return chosen
        others = [(version, share) for version, share in self._shares if version.has_something_to_send_to]
        return _by_share(others, sum(share for _, share in others)) if others else chosen


def _by_share(shares: list[tuple[VersionRoute, int]], total: int) -> VersionRoute:
    """One of several versions, with the chance of its share in the total."""
    point = random.random() * total
    for version, share in shares:
        point -= share
        if point < 0:
            return version
    return shares[-1][0]
