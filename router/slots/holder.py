"""The holder: a front-end's half of a version's slots. Keeps granted leases, queues what must wait. No I/O, no clock.

Theory of operation. A request asks with `acquire`: an idle lease of the replica with the fewest requests of this
front-end is taken at once, which is the only thing that happens in steady traffic. Without one the request is
`enqueue`d and the ledger hears of it at the next `flush`. `release` gives a finished request's lease to the oldest
waiter, unless the ledger has recalled it for someone at another front-end who has waited longer. Nobody is called
back: methods return the waiter that may start now, and the caller starts it.

A lease of a replica that is revoked (it is on its way out) or suspended (it refuses connections here) goes back as
soon as no request uses it, so that nobody at another front-end waits for a slot that lies unused in this one.

A version whose concurrency is not limited (`replica_max_concurrent_requests: 0`) has no leases and wants none: of two
replicas picked at random the one with fewer requests is taken ("power of two choices", Mitzenmacher 2001).

Conservation, checked by tests after every fault: busy + idle leases = granted - returned, busy = requests in flight.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Collection, Mapping
from itertools import islice
from typing import Generic, NamedTuple, Protocol, TypeVar

from router.slots.correspondence import Correspondence
from router.slots.messages import Grant, Hello, Holds, Recall, Revoke, ToHolder, ToLedger


class Waiter(Protocol):
    """A request in the queue. Both attributes belong to the holder while it waits."""

    waiting_since: float
    waiter_number: int


W = TypeVar("W", bound=Waiter)
T = TypeVar("T")


class Totals(NamedTuple):
    """Counts and integrals over time that only grow: the difference of two tells what happened in between."""

    busy_seconds: float  # requests in flight, integrated
    queued_seconds: float  # requests waiting, integrated
    arrivals: int
    refused: int
    completed: int
    service_seconds: float  # times that completed requests held their slots, summed


class HeldReplica(Generic[T]):
    """What this front-end holds of one replica. `target` is the caller's own (its connection pool)."""

    __slots__ = ("busy", "closed", "id", "idle", "revoked", "suspended", "target")

    def __init__(self, replica_id: str, target: T) -> None:
        self.id = replica_id
        self.target = target
        self.busy = 0  # requests in flight
        self.idle = 0  # leases in hand that no request uses
        self.revoked = False  # it is on its way out
        self.suspended = False  # it refused a connection: it gets no request for a while
        self.closed = False  # either: no new request, and its leases go back as soon as they are idle


class VersionHolder(Generic[W, T]):
    """One front-end's leases and queue of one version. Times are seconds of one monotonic clock."""

    __slots__ = (
        "_after", "_avoided", "_busy_seconds", "_choices", "_departed", "_last_number", "_levels", "_lowest", "_random",
        "_recalled", "_replicas", "_since", "_sole", "_starts", "_talk", "_unknown", "_unlimited", "arrivals", "busy",
        "completed", "news", "queued_seconds", "refused", "service_seconds", "waiters",
    )  # fmt: skip

    def __init__(self, *, unlimited: bool, now: float, rng: random.Random | None = None) -> None:
        self._unlimited = unlimited
        self._random = rng or random.Random()
        self._replicas: dict[str, HeldReplica[T]] = {}
        self._departed: list[HeldReplica[T]] = []  # not in the set any more, with requests in flight
        self._choices: list[HeldReplica[T]] = []  # without a limit: what to pick from
        # The only replica there is, if there is one: it needs no place among others. Many versions have just one.
        self._sole: HeldReplica[T] | None = None
        # Replicas with an idle lease, by requests in flight; within a level the one that rested longest is first.
        self._levels: list[OrderedDict[str, HeldReplica[T]]] = [OrderedDict()]
        self._lowest = 0  # no level below has anything
        self.waiters: OrderedDict[int, W] = OrderedDict()
        self._last_number = 0  # of a waiter
        # The recall in force: so many leases go back, but own waiters up to `_after` come first.
        self._recalled = 0
        self._after = 0
        self._unknown: set[str] = set()  # replicas that were granted but are not in the set
        self._avoided: frozenset[str] = frozenset()
        self._talk = Correspondence(self._random.getrandbits(53))
        self.news = False  # whether `flush` may have something to say
        # For the control loop: integrals and counts, which only grow.
        # The first integral is made of sums: what completed requests took, and for those in flight the time since each
        # began. The second one is kept up to `_since`, whenever the queue changes.
        self.busy = 0
        self._starts = 0.0  # when the requests in flight began, summed
        self._busy_seconds = 0.0  # as last told
        self._since = now
        self.queued_seconds = 0.0
        self.arrivals = 0
        self.refused = 0
        self.completed = 0
        self.service_seconds = 0.0

    # What is: read by the control loop, by metrics and by tests.

    @property
    def idle(self) -> int:
        """Leases in hand that no request uses."""
        if self._sole is not None:
            return self._sole.idle
        return sum(replica.idle for replica in self._replicas.values())

    def busy_by_replica(self) -> dict[str, int]:
        """Requests in flight, by replica, where there are any; also at replicas that are not in the set any more."""
        sole = self._sole
        if sole is not None and not self._departed:
            return {sole.id: sole.busy} if sole.busy else {}
        busy: dict[str, int] = {}
        for replica in (*self._replicas.values(), *self._departed):
            if replica.busy:
                busy[replica.id] = busy.get(replica.id, 0) + replica.busy
        return busy

    def seen(self, most: int) -> tuple[tuple[str, int, bool], ...]:
        """Up to `most` replicas, the requests at each, and whether it gets no new ones."""
        return tuple((replica.id, replica.busy, replica.closed) for replica in islice(self._replicas.values(), most))

    def held(self) -> dict[str, int]:
        """Leases in hand, busy and idle, by replica."""
        held = {} if self._unlimited else self.busy_by_replica()
        for replica in self._replicas.values():
            if replica.idle:
                held[replica.id] = held.get(replica.id, 0) + replica.idle
        return held

    def has_other(self, replica_id: str) -> bool:
        """Whether there is another replica that accepts connections, as far as is known."""
        return any(r.id != replica_id and not r.closed for r in self._replicas.values())

    # The hot path.

    def acquire(self, now: float) -> HeldReplica[T] | None:
        """Take a lease of the least loaded replica for a new request; None: the request must `enqueue` or go."""
        self.arrivals += 1
        if self._unlimited:
            replica = self._better_of_two()
            if replica is None:
                return None
        elif self._sole is not None:
            replica = self._sole
            if not replica.idle:
                return None
            replica.idle -= 1
        else:
            levels = self._levels
            lowest = self._lowest
            while not levels[lowest]:
                lowest += 1
                if lowest == len(levels):
                    self._lowest = lowest - 1
                    return None
            self._lowest = lowest
            _, replica = levels[lowest].popitem(last=False)
            replica.idle -= 1
            if replica.idle:
                self._shelve(replica, replica.busy + 1)
        self._starts += now
        self.busy += 1
        replica.busy += 1
        return replica

    def acquire_again(self, now: float) -> HeldReplica[T] | None:
        """Take a lease for a request that had one before, of a replica that turned out to be gone."""
        self.arrivals -= 1
        return self.acquire(now)

    def release(self, replica: HeldReplica[T], now: float, seconds: float) -> W | None:
        """End a request that held its slot for `seconds`. The waiter returned, if any, has the lease now: start it."""
        self.completed += 1
        self.service_seconds += seconds
        waiters = self.waiters
        if waiters:
            self._advance(now)
            if not replica.closed and (not self._recalled or next(iter(waiters)) <= self._after):
                self.news = True
                self._starts += seconds  # the one began so long ago, the other begins now
                return waiters.popitem(last=False)[1]
        self.busy -= 1
        self._starts -= now - seconds
        replica.busy -= 1
        if self._unlimited:
            return None
        if replica.closed or self._recalled:
            if replica.idle:
                self._unshelve(replica, replica.busy + 1)
                self._shelve(replica, replica.busy)
            self._give_back(replica, 1)
            return None
        if self._sole is None:
            if replica.idle:
                self._unshelve(replica, replica.busy + 1)
            self._shelve(replica, replica.busy)
        replica.idle += 1
        return None

    def enqueue(self, waiter: W, now: float) -> None:
        """Put a request that got no lease at the end of the queue."""
        self._advance(now)
        self._last_number += 1
        waiter.waiter_number = self._last_number
        waiter.waiting_since = now
        self.waiters[self._last_number] = waiter
        self.news = True

    def cancel(self, waiter: W, now: float) -> None:
        """Take a waiter out of the queue whose client has left. One that waits no more is ignored."""
        self._advance(now)
        if self.waiters.pop(waiter.waiter_number, None) is not None:
            self._talk.cancelled(waiter.waiter_number)
            self.news = True

    def expire(self, since: float, now: float) -> list[W]:
        """Take out of the queue, and return, whoever has waited since `since` or longer."""
        self._advance(now)
        expired: list[W] = []
        while self.waiters and next(iter(self.waiters.values())).waiting_since <= since:
            expired.append(self.waiters.popitem(last=False)[1])
            self.news = True
        return expired

    def refuse(self) -> None:
        """Count a request that is refused for want of a slot: demand that the autoscaler must hear of."""
        self.refused += 1

    # Replicas come, fail and go.

    def suspend(self, replica: HeldReplica[T]) -> None:
        """Send a replica nothing more, as it refuses connections, and let others have its slots. `resume` ends it."""
        if not replica.suspended:
            replica.suspended = True
            self._close(replica)
            self._replicas_changed()

    def resume(self, replica: HeldReplica[T], now: float) -> list[tuple[W, HeldReplica[T]]]:
        """Take a suspended replica back into service. Returns waiters that may start now, with their replica."""
        replica.suspended = False
        if self._replicas.get(replica.id) is not replica:
            return []
        replica.closed = replica.revoked
        self._replicas_changed()
        return self._start_unlimited(now)

    def set_replicas(
        self, targets: Mapping[str, T], now: float, *, cordoned: Collection[str] = ()
    ) -> list[tuple[W, HeldReplica[T]]]:
        """Make `targets` the complete set of replicas. Returns waiters that may start now, with their replica.

        `cordoned` replicas get no new request where there is no limit; where there is one, the ledger sees to that.
        """
        self._departed = [replica for replica in self._departed if replica.busy]
        for replica in [r for r in self._replicas.values() if r.id not in targets]:
            self._close(replica)
            del self._replicas[replica.id]
            self._departed.append(replica)
        for replica_id, target in targets.items():
            if replica_id not in self._replicas:
                self._replicas[replica_id] = HeldReplica(replica_id, target)
        if self._unlimited:
            for replica in self._replicas.values():
                replica.revoked = replica.id in cordoned
                replica.closed = replica.revoked or replica.suspended
        self._unknown.clear()
        self._reshelve_all()
        self._replicas_changed()
        return self._start_unlimited(now)

    # Talk with the ledger.

    def handle(self, message: ToHolder, now: float) -> list[tuple[W, HeldReplica[T]]]:
        """Take in what the ledger says. Returns waiters that may start now, with their replica."""
        if not self._talk.is_valid(message):
            self.news = self.news or self._talk.must_begin_anew
        elif not self._unlimited:
            match message:
                case Grant():
                    return self._take(message, now)
                case Recall(count, after):
                    self._recalled, self._after = count, after
                    self._honour_recall()
                case Revoke(replica_id):
                    replica = self._replicas.get(replica_id)
                    if replica is not None:
                        replica.revoked = True
                        self._close(replica)
        return []

    def hello(self) -> Hello:
        """What a ledger must know that meets this holder, or meets it anew. Forgets who waited elsewhere."""
        self._recalled = self._after = 0
        waiters: OrderedDict[int, W] = OrderedDict() if self._unlimited else self.waiters
        return self._talk.hello(self.held(), self._avoided, waiters, self._last_number)

    def begin_anew(self) -> None:
        """Say `Hello` at the next flush: another ledger is to be spoken to from now on."""
        self._talk.misunderstood()
        self.news = True

    def flush(self) -> list[ToLedger]:
        """The messages that bring the ledger up to date; empty where it is."""
        self.news = False
        if self._talk.must_begin_anew:
            return [self.hello()]
        if self._unlimited:
            return []
        return self._talk.flush(self._avoided, self.waiters, self._last_number)

    def holds(self) -> Holds | None:
        """For the ledger to compare with its record; None without leases, or while something else must be said first
        (`flush`)."""
        return None if self._unlimited or self.news else self._talk.holds(self.held())

    def totals(self, now: float) -> Totals:
        """What this holder has counted since it was made."""
        if self.waiters:
            self._advance(now)
        busy_seconds = self.service_seconds + self.busy * now - self._starts
        if busy_seconds > self._busy_seconds:  # floats are not exact, and what only grows must not seem to shrink
            self._busy_seconds = busy_seconds
        integrals = self._busy_seconds, self.queued_seconds
        return Totals(*integrals, self.arrivals, self.refused, self.completed, self.service_seconds)

    # Inside.

    def _advance(self, now: float) -> None:
        self.queued_seconds += len(self.waiters) * (now - self._since)
        self._since = now

    def _reshelve_all(self) -> None:
        """Give each replica its place anew; none to one that is alone."""
        self._levels = [OrderedDict()]
        self._lowest = 0
        self._sole = None
        if len(self._replicas) == 1:
            (self._sole,) = self._replicas.values()
        for replica in self._replicas.values():
            if replica.idle:
                self._shelve(replica, replica.busy)

    def _shelve(self, replica: HeldReplica[T], level: int) -> None:
        if self._sole is not None:
            return
        levels = self._levels
        while len(levels) <= level:
            levels.append(OrderedDict())
        levels[level][replica.id] = replica
        if level < self._lowest:
            self._lowest = level

    def _unshelve(self, replica: HeldReplica[T], level: int) -> None:
        if self._sole is None:
            del self._levels[level][replica.id]

    def _replicas_changed(self) -> None:
        if self._unlimited:
            self._choices = [replica for replica in self._replicas.values() if not replica.closed]
            return
        avoided = self._unknown.union(replica.id for replica in self._replicas.values() if replica.suspended)
        if avoided != self._avoided:
            self._avoided = frozenset(avoided)
            self.news = True

    def _start_unlimited(self, now: float) -> list[tuple[W, HeldReplica[T]]]:
        started: list[tuple[W, HeldReplica[T]]] = []
        if self._unlimited:
            while self.waiters and (chosen := self._better_of_two()) is not None:
                started.append((self._start_oldest(chosen, now), chosen))
        return started

    def _better_of_two(self) -> HeldReplica[T] | None:
        choices = self._choices
        if not choices:
            return None
        one = choices[int(self._random.random() * len(choices))]
        other = choices[int(self._random.random() * len(choices))]
        return one if one.busy <= other.busy else other

    def _start_oldest(self, replica: HeldReplica[T], now: float) -> W:
        self._advance(now)
        self._starts += now
        self.busy += 1
        if replica.idle:
            self._unshelve(replica, replica.busy)
            self._shelve(replica, replica.busy + 1)
        replica.busy += 1
        return self.waiters.popitem(last=False)[1]

    def _take(self, grant: Grant, now: float) -> list[tuple[W, HeldReplica[T]]]:
        replica = self._replicas.get(grant.replica)
        if replica is None or replica.suspended:
            # It went while the grant was on its way. The ledger takes the waiter for served and the lease for used.
            if replica is None:
                self._unknown.add(grant.replica)
                self._replicas_changed()
            self._talk.misunderstood()
            self.news = True
            return []
        self._talk.granted(grant.want)
        replica.revoked = replica.closed = False
        if self.waiters:
            self.news = True
            return [(self._start_oldest(replica, now), replica)]
        replica.idle += 1
        self._shelve(replica, replica.busy)
        self._honour_recall()
        return []

    def _give_back(self, replica: HeldReplica[T], count: int) -> None:
        self._talk.returned(replica.id, count)
        self.news = True
        self._recalled = max(0, self._recalled - count)

    def _honour_recall(self) -> None:
        """Give back idle leases, of the busiest replicas first, until the recall is met."""
        if not self._recalled:
            return
        if self._sole is not None and (count := min(self._sole.idle, self._recalled)):
            self._sole.idle -= count
            self._give_back(self._sole, count)
        for level in reversed(self._levels):
            while level and self._recalled:
                replica = next(reversed(level.values()))
                count = min(replica.idle, self._recalled)
                replica.idle -= count
                if not replica.idle:
                    del level[replica.id]
                self._give_back(replica, count)

    def _close(self, replica: HeldReplica[T]) -> None:
        """Give back the idle leases of a replica now, and the busy ones as they end."""
        replica.closed = True
        if replica.idle:
            self._unshelve(replica, replica.busy)
            self._give_back(replica, replica.idle)
            replica.idle = 0
