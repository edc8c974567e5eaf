"""The lease cache: a worker's leases of one version and its queue of requests. No I/O, no clock.

Theory of operation. A request calls `acquire`: an idle lease of the replica with the fewest requests of this worker is
taken at once. In steady traffic nothing else happens. Without an idle lease the request is `enqueue`d, and the next
`flush` notifies the ledger. `release` passes the lease of a finished request to the oldest waiter, unless the ledger
has recalled it for an older request at another worker. There are no callbacks: methods return the waiters that may
start now, and the caller starts them.

A lease of a replica that is revoked (draining, cordoned or over-leased) or suspended (it refused a connection of this
worker) is returned as soon as no request uses it, so that no request at another worker waits for an unused slot. So is
one of a replica with suspect slots, as the ledger uses these last.

An abandoned request, whose client does not need the response any more, ends in one of three ways. `release`: the
replica has stopped working on it. `abandon`: the replica may still work on it, so the slot is suspect. `keep_abandoned`
and later `release_abandoned`: the router reads the response, and the request holds its lease until then.

A version with unlimited concurrency (`replica_max_concurrent_requests: 0`) has no leases and requests none; see
`better_of_two`.

Conservation, checked by tests after every fault: busy + idle leases = granted - returned, busy = requests in flight.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Collection, Mapping
from itertools import islice
from typing import Generic, TypeVar

from router.model.usage import UsageTotals
from router.slots.idle_leases import IdleLeases
from router.slots.ledger_client import LedgerClient
from router.slots.messages import Grant, HeldSnapshot, Recall, Register, Revoke, Suspect, ToLeaseCache, ToLedger
from router.slots.replica_leases import ReplicaLeases, abandoned_by_replica, better_of_two, busy_by_replica
from router.slots.wait_queue import Waiter, WaitQueue

W = TypeVar("W", bound=Waiter)
T = TypeVar("T")


class LeaseCache(Generic[W, T]):
    """One worker's leases and queue of one version. Times are seconds of one monotonic clock."""

    __slots__ = (
        "_closed_ids", "_excluded", "_idle", "_last_busy_seconds", "_ledger_client", "_random",
        "_recall_after", "_recalled", "_removed_replicas", "_replicas", "_start_sum", "_starts_from_zero",
        "_unknown_replicas", "_unlimited", "abandoned", "arrivals", "busy", "completed", "needs_flush",
        "open_replicas", "queue", "refused", "service_seconds", "waiters",
    )  # fmt: skip

    def __init__(self, *, unlimited: bool, now: float, rng: random.Random | None = None) -> None:
        self._unlimited = unlimited
        self._random = rng or random.Random()
        self._replicas: dict[str, ReplicaLeases[T]] = {}
        self._removed_replicas: list[ReplicaLeases[T]] = []  # those with requests in flight
        self._closed_ids: Collection[str] = ()
        self.open_replicas: list[ReplicaLeases[T]] = []  # those that get new requests: neither closed nor suspended
        self._idle: IdleLeases[T] = IdleLeases()
        self.queue: WaitQueue[W] = WaitQueue(now)
        self.waiters = self.queue.waiters  # by number, in the order of the queue
        self._starts_from_zero = False
        # The recall in force: return this many leases, but serve waiters up to `_recall_after` first.
        self._recalled = 0
        self._recall_after = 0
        self._unknown_replicas: set[str] = set()  # granted, but not among `_replicas`
        self._excluded: frozenset[str] = frozenset()
        self._ledger_client = LedgerClient(self._random.getrandbits(53))
        self.needs_flush = False  # True if `flush` may return messages
        # Usage for the control loop: counts and integrals, which only grow. `busy_seconds` is computed from sums: the
        # service times of completed requests, and for requests in flight the time since each started.
        self.busy = 0
        self.abandoned = 0  # of these, abandoned requests
        self._start_sum = 0.0  # sum of the start times of the requests in flight
        self._last_busy_seconds = 0.0  # as last returned
        self.arrivals = 0
        self.refused = 0
        self.completed = 0
        self.service_seconds = 0.0

    # Current state, for reports, metrics and tests.

    @property
    def idle(self) -> int:
        """Leases that no request uses."""
        return sum(replica.idle for replica in self._replicas.values())

    def busy_by_replica(self) -> dict[str, int]:
        """Return the requests in flight of each replica that has any, abandoned ones that hold a lease and removed
        replicas included."""
        only = self._idle.only_replica
        if only is not None and not self._removed_replicas:
            return {only.id: only.busy} if only.busy else {}
        return busy_by_replica((*self._replicas.values(), *self._removed_replicas))

    def abandoned_by_replica(self) -> dict[str, int]:
        """Return the abandoned requests that hold a lease, by replica."""
        if not self.abandoned:
            return {}
        return abandoned_by_replica((*self._replicas.values(), *self._removed_replicas))

    def replica_loads(self, limit: int) -> tuple[tuple[str, int, bool, int, bool], ...]:
        """Return of up to `limit` replicas the id, the requests in flight, whether it gets no requests, the abandoned
        requests that hold a lease, and whether it has suspect slots."""
        return tuple(
            (each.id, each.busy - each.abandoned, each.gets_no_requests, each.abandoned, each.suspect)
            for each in islice(self._replicas.values(), limit)
        )

    def held(self) -> dict[str, int]:
        """Return the leases, busy and idle, by replica."""
        held = {} if self._unlimited else self.busy_by_replica()
        for replica in self._replicas.values():
            if replica.idle:
                held[replica.id] = held.get(replica.id, 0) + replica.idle
        return held

    def leases_of(self, replica_id: str) -> ReplicaLeases[T] | None:
        """Return the leases of a replica; None for an unknown one."""
        return self._replicas.get(replica_id)

    def totals(self, now: float) -> UsageTotals:
        """Return the usage since this cache was made."""
        if self.waiters:
            self.queue.advance(now)
        busy_seconds = self.service_seconds + self.busy * now - self._start_sum
        if busy_seconds > self._last_busy_seconds:  # must not shrink, even by a rounding error
            self._last_busy_seconds = busy_seconds
        integrals = self._last_busy_seconds, self.queue.queued_seconds
        return UsageTotals(*integrals, self.arrivals, self.refused, self.completed, self.service_seconds)

    # The hot path.

    def acquire(self, now: float) -> ReplicaLeases[T] | None:
        """Take a lease of the least loaded replica for a new request. If None, enqueue or refuse the request."""
        self.arrivals += 1
        if self._unlimited:
            replica = better_of_two(self.open_replicas, self._random, now)
            if replica is None:
                return None
        else:
            idle = self._idle
            replica = idle.only_replica
            if replica is not None:
                if not replica.idle:
                    return None
                replica.idle -= 1
            else:
                buckets = idle.buckets
                lowest = idle.lowest
                while not buckets[lowest]:
                    lowest += 1
                    if lowest == len(buckets):
                        idle.lowest = lowest - 1
                        return None
                idle.lowest = lowest
                _, replica = buckets[lowest].popitem(last=False)
                replica.idle -= 1
                if replica.idle:
                    idle.add(replica, replica.busy + 1)
        self._start_sum += now
        self.busy += 1
        replica.busy += 1
        return replica

    def reacquire(self, now: float) -> ReplicaLeases[T] | None:
        """Take a lease for a request whose previous replica turned out to be unavailable. See `acquire`."""
        self.arrivals -= 1
        return self.acquire(now)

    def release(self, replica: ReplicaLeases[T], now: float, seconds: float) -> W | None:
        """End a request that held its slot for `seconds`.

        Return the waiter that now has the lease, if any. The caller must start it.
        """
        self.completed += 1
        self.service_seconds += seconds
        waiters = self.waiters
        if waiters and not replica.closed and (not self._recalled or next(iter(waiters)) <= self._recall_after):
            self.needs_flush = True
            self._start_sum += seconds  # one request started `seconds` ago, the other one starts now
            return self.queue.pop_oldest(now)
        self.busy -= 1
        self._start_sum -= now - seconds
        replica.busy -= 1
        if self._unlimited:
            return None
        if replica.closed or self._recalled:
            if replica.idle:
                self._idle.discard(replica, replica.busy + 1)
                self._idle.add(replica, replica.busy)
            self._return_leases(replica, 1)
            return None
        idle = self._idle
        if idle.only_replica is None:
            if replica.idle:
                idle.discard(replica, replica.busy + 1)
            idle.add(replica, replica.busy)
        replica.idle += 1
        return None

    # Requests that were abandoned.

    def abandon(
        self, replica: ReplicaLeases[T], now: float, seconds: float, suspect_seconds: float, *, kept: bool = False
    ) -> None:
        """End a request that held its slot for `seconds`, and that the replica may still work on.

        The lease is returned even if requests wait, and its slot is suspect for at most `suspect_seconds`. `kept`:
        `keep_abandoned` was called for the request.
        """
        if kept:
            replica.abandoned -= 1
            self.abandoned -= 1
        self.completed += 1
        self.service_seconds += seconds
        self.busy -= 1
        self._start_sum -= now - seconds
        replica.busy -= 1
        if self._unlimited:
            replica.suspect = True
            replica.suspect_until.append(now + suspect_seconds)
            return
        if replica.idle:
            self._idle.discard(replica, replica.busy + 1)
            self._idle.add(replica, replica.busy)
        self._ledger_client.on_abandoned(replica.id, suspect_seconds)
        self.needs_flush = True
        self._recalled = max(0, self._recalled - 1)

    def keep_abandoned(self, replica: ReplicaLeases[T]) -> None:
        """Let an abandoned request hold its lease, until `release_abandoned`."""
        replica.abandoned += 1
        self.abandoned += 1

    def release_abandoned(self, replica: ReplicaLeases[T], now: float, seconds: float) -> W | None:
        """End an abandoned request that held its slot for `seconds`. See `release`."""
        replica.abandoned -= 1
        self.abandoned -= 1
        return self.release(replica, now, seconds)

    def on_answered(self, replica: ReplicaLeases[T]) -> None:
        """Record that a replica with suspect slots has completed a request, which is to be released next.

        If it had no other request of this worker, it can serve: the ledger trusts its slots again, unless other workers
        have requests there.
        """
        if replica.busy > 1:
            return
        if self._unlimited:
            replica.suspect = False
            replica.suspect_until.clear()
        else:
            self._ledger_client.on_answered(replica.id)
            self.needs_flush = True

    # The queue.

    def enqueue(self, waiter: W, now: float, waited: float = 0.0) -> None:
        """Add a request that got no lease to the end of the queue. It has waited before for `waited` seconds."""
        self.queue.add(waiter, now, waited)
        self.needs_flush = True

    def cancel(self, waiter: W, now: float) -> None:
        """Remove a waiter whose client has disconnected. Does nothing if the waiter is not in the queue any more."""
        if self.queue.remove(waiter.waiter_number, now):
            self._ledger_client.on_cancelled(waiter.waiter_number)
            self.needs_flush = True

    def expire(self, since: float, now: float) -> list[W]:
        """Remove and return the requests that have been waiting since `since` or longer."""
        expired = self.queue.expire(since, now)
        for waiter in expired:
            self._ledger_client.on_cancelled(waiter.waiter_number)
            self.needs_flush = True
        return expired

    def refuse(self) -> None:
        """Count a request that was refused because no slot was free: it is demand for the autoscaler."""
        self.refused += 1

    # Changes of the replicas.

    def suspend(self, replica: ReplicaLeases[T], now: float) -> None:
        """Return the leases of a replica that refused a connection, and send no requests to it until `resume`."""
        if not replica.suspended:
            replica.suspended = True
            self._close(replica)
            self._replicas_changed(now)

    def resume(self, replica: ReplicaLeases[T], now: float) -> list[tuple[W, ReplicaLeases[T]]]:
        """Use a suspended replica again. Return waiters to start now, each with its replica."""
        replica.suspended = False
        if self._replicas.get(replica.id) is not replica:
            return []
        self._reopen(replica)
        self._replicas_changed(now)
        return self._start_unlimited(now)

    def set_replicas(
        self, targets: Mapping[str, T], now: float, *, closed: Collection[str] = (), starts_from_zero: bool = False
    ) -> list[tuple[W, ReplicaLeases[T]]]:
        """Replace the replicas. Return waiters to start now, each with its replica.

        `closed` ones get no new request: if concurrency is limited, because the ledger revokes their leases.
        `starts_from_zero`: if there is none, waiters are the reason to start one.
        """
        self._closed_ids = closed
        self._starts_from_zero = starts_from_zero
        self._removed_replicas = [replica for replica in self._removed_replicas if replica.busy]
        for replica in [r for r in self._replicas.values() if r.id not in targets]:
            self._close(replica)
            del self._replicas[replica.id]
            self._removed_replicas.append(replica)
        for replica_id, target in targets.items():
            if replica_id not in self._replicas:
                self._replicas[replica_id] = ReplicaLeases(replica_id, target)
        if self._unlimited:
            for replica in self._replicas.values():
                replica.revoked = replica.id in closed
                replica.closed = replica.revoked or replica.suspended
        self._unknown_replicas.clear()
        self._idle.rebuild(self._replicas.values())
        self._replicas_changed(now)
        return self._start_unlimited(now)

    # Messages from and to the ledger.

    def handle(self, message: ToLeaseCache, now: float) -> list[tuple[W, ReplicaLeases[T]]]:
        """Process a message of the ledger. Return waiters to start now, each with its replica."""
        if not self._ledger_client.accepts(message):
            self.needs_flush = self.needs_flush or self._ledger_client.is_out_of_sync
        elif not self._unlimited:
            match message:
                case Grant():
                    return self._on_grant(message, now)
                case Recall(count, after_waiter, number):
                    self._recalled, self._recall_after = count, after_waiter
                    self._return_recalled()
                    if number:
                        self._ledger_client.on_recall_done(number)
                        self.needs_flush = True
                case Suspect(replica_id, suspect):
                    self._set_suspect(replica_id, suspect)
                case Revoke(replica_id):
                    replica = self._replicas.get(replica_id)
                    if replica is not None:
                        replica.revoked = True
                        self._close(replica)
        return []

    def register(self) -> Register:
        """Return the complete state, for a new ledger or after a disconnect. Ends the recall in force and suspicions,
        of which the ledger notifies again."""
        self._recalled = self._recall_after = 0
        if not self._unlimited:
            for replica in self._replicas.values():
                if replica.suspect:
                    replica.suspect = False
                    self._reopen(replica)
        waiters: OrderedDict[int, W] = OrderedDict() if self._unlimited else self.waiters
        return self._ledger_client.register(self.held(), self._excluded, waiters, self.queue.last_number)

    def resync(self) -> None:
        """Register at the next flush, as the version has another ledger now."""
        self._ledger_client.mark_out_of_sync()
        self.needs_flush = True

    def flush(self) -> list[ToLedger]:
        """Return the messages that bring the ledger up to date, if any."""
        self.needs_flush = False
        if self._ledger_client.is_out_of_sync:
            return [self.register()]
        if self._unlimited:
            return []
        return self._ledger_client.flush(self._excluded, self.waiters, self.queue.last_number)

    def held_snapshot(self) -> HeldSnapshot | None:
        """Return the leases for the ledger to compare with its record.

        Return None if concurrency is unlimited, or if `flush` must be called first.
        """
        return None if self._unlimited or self.needs_flush else self._ledger_client.held_snapshot(self.held())

    # Internals.

    def _replicas_changed(self, now: float) -> None:
        replicas = self._replicas.values()
        self.open_replicas = [r for r in replicas if not r.suspended and r.id not in self._closed_ids]
        is_away = not self.open_replicas and not (self._starts_from_zero and not any(r.suspended for r in replicas))
        self.queue.set_away(is_away, now)
        if self._unlimited:
            return
        excluded = self._unknown_replicas.union(r.id for r in self._replicas.values() if r.suspended)
        if excluded != self._excluded:
            self._excluded = frozenset(excluded)
            self.needs_flush = True

    def _start_unlimited(self, now: float) -> list[tuple[W, ReplicaLeases[T]]]:
        """Start all waiters if concurrency is unlimited and a replica is open."""
        started: list[tuple[W, ReplicaLeases[T]]] = []
        if self._unlimited:
            while self.waiters and (chosen := better_of_two(self.open_replicas, self._random, now)) is not None:
                started.append((self._start_oldest(chosen, now), chosen))
        return started

    def _start_oldest(self, replica: ReplicaLeases[T], now: float) -> W:
        self._start_sum += now
        self.busy += 1
        if replica.idle:
            self._idle.discard(replica, replica.busy)
            self._idle.add(replica, replica.busy + 1)
        replica.busy += 1
        return self.queue.pop_oldest(now)

    def _on_grant(self, grant: Grant, now: float) -> list[tuple[W, ReplicaLeases[T]]]:
        replica = self._replicas.get(grant.replica)
        if replica is None or replica.suspended:
            # It was removed or suspended while the grant was in transit. The ledger has recorded the waiter as served
            # and the lease as held, so the cache must register again.
            if replica is None:
                self._unknown_replicas.add(grant.replica)
                self._replicas_changed(now)
            self.resync()
            return []
        self._ledger_client.on_granted(grant.waiter)
        replica.revoked = False
        replica.closed = replica.suspect
        if self.waiters:
            self.needs_flush = True
            return [(self._start_oldest(replica, now), replica)]
        if replica.suspect:
            self._return_leases(replica, 1)
            return []
        replica.idle += 1
        self._idle.add(replica, replica.busy)
        self._return_recalled()
        return []

    def _return_leases(self, replica: ReplicaLeases[T], count: int) -> None:
        self._ledger_client.on_returned(replica.id, count)
        self.needs_flush = True
        self._recalled = max(0, self._recalled - count)

    def _return_recalled(self) -> None:
        """Return idle leases, of the busiest replicas first, until the recall is satisfied."""
        if self._recalled:
            for replica, count in self._idle.take_back(self._recalled):
                self._return_leases(replica, count)

    def _set_suspect(self, replica_id: str, suspect: bool) -> None:
        replica = self._replicas.get(replica_id)
        if replica is not None:
            replica.suspect = suspect
            if suspect:
                self._close(replica)
            else:
                self._reopen(replica)

    def _reopen(self, replica: ReplicaLeases[T]) -> None:
        replica.closed = replica.revoked or replica.suspended or (replica.suspect and not self._unlimited)

    def _close(self, replica: ReplicaLeases[T]) -> None:
        """Return the idle leases of a replica now, and the busy ones as their requests end."""
        replica.closed = True
        if replica.idle:
            self._idle.discard(replica, replica.busy)
            self._return_leases(replica, replica.idle)
            replica.idle = 0
