"""The holder: a front-end's half of a version's slots. Keeps granted leases, queues what must wait. No I/O, no clock.

Theory of operation. A request asks with `acquire`: an idle lease of the replica with the fewest requests of this
front-end is taken at once, which is the only thing that happens in steady traffic. Without one the request is
`enqueue`d and the ledger hears of it at the next `flush`. `release` gives a finished request's lease to the oldest
waiter, unless the ledger has recalled it for someone at another front-end who has waited longer. Nobody is called
back: methods return the waiter that may start now, and the caller starts it.

A version whose concurrency is not limited (`replica_max_concurrent_requests: 0`) has no leases: of two replicas
picked at random the one with fewer requests is taken ("power of two choices", Mitzenmacher 2001).

Conservation, checked by tests after every fault: busy + idle leases = granted - returned, busy = requests in flight.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Collection, Mapping
from typing import Generic, NamedTuple, Protocol, TypeVar

from router.slots.messages import Grant, Hello, Recall, Return, Revoke, ToHolder, ToLedger, Wants


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

    __slots__ = ("busy", "id", "idle", "revoked", "suspended", "target")

    def __init__(self, replica_id: str, target: T) -> None:
        self.id = replica_id
        self.target = target
        self.busy = 0  # requests in flight
        self.idle = 0  # leases in hand that no request uses
        self.revoked = False  # its leases go back as soon as they are idle
        self.suspended = False  # it refused a connection: it gets no request for a while


class VersionHolder(Generic[W, T]):
    """One front-end's leases and queue of one version. Times are seconds of one monotonic clock."""

    __slots__ = (
        "_cancelled",
        "_choices",
        "_cordoned",
        "_known_upto",
        "_levels",
        "_lowest",
        "_numbers",
        "_random",
        "_recall",
        "_replicas",
        "_returns",
        "_since",
        "_told_upto",
        "_unlimited",
        "arrivals",
        "busy",
        "busy_seconds",
        "completed",
        "news",
        "queued_seconds",
        "refused",
        "service_seconds",
        "waiters",
    )

    def __init__(self, *, unlimited: bool, now: float, rng: random.Random | None = None) -> None:
        self._unlimited = unlimited
        self._random = rng or random.Random()
        self._replicas: dict[str, HeldReplica[T]] = {}
        self._choices: list[HeldReplica[T]] = []  # without a limit: what to pick from
        self._cordoned: frozenset[str] = frozenset()
        # Replicas with an idle lease, by requests in flight; within a level the one that rested longest is first.
        self._levels: list[OrderedDict[str, HeldReplica[T]]] = [OrderedDict()]
        self._lowest = 0
        self.waiters: OrderedDict[int, W] = OrderedDict()
        self._numbers = 0  # the last waiter's number
        self._told_upto = 0  # the last waiter that the ledger was told of
        self._known_upto = 0  # waiters up to here are gone, as far as the ledger knows
        self._cancelled: list[int] = []
        self._returns: dict[str, int] = {}
        self._recall = Recall(0, 0)
        self.news = False  # whether `flush` may have something to say
        # For the control loop: integrals and counts, which only grow.
        self.busy = 0
        self._since = now
        self.busy_seconds = 0.0
        self.queued_seconds = 0.0
        self.arrivals = 0
        self.refused = 0
        self.completed = 0
        self.service_seconds = 0.0

    # What is: read by the control loop, by metrics and by tests.

    @property
    def idle(self) -> int:
        """Leases in hand that no request uses."""
        return sum(replica.idle for replica in self._replicas.values())

    def busy_at(self, replica_id: str) -> int:
        """Requests of this front-end that are in flight at a replica; 0 for one that is unknown."""
        replica = self._replicas.get(replica_id)
        return 0 if replica is None else replica.busy

    def busy_by_replica(self) -> dict[str, int]:
        """Requests in flight, by replica, where there are any."""
        return {r.id: r.busy for r in self._replicas.values() if r.busy}

    def held(self) -> dict[str, int]:
        """Leases in hand, busy and idle, by replica."""
        return {r.id: r.busy + r.idle for r in self._replicas.values() if r.busy + r.idle}

    def has_other(self, replica_id: str) -> bool:
        """Whether there is another replica that accepts connections, as far as is known."""
        return any(r.id != replica_id and not r.suspended and not r.revoked for r in self._replicas.values())

    # The hot path.

    def acquire(self, now: float) -> HeldReplica[T] | None:
        """Take a lease of the least loaded replica for a new request; None: the request must `enqueue` or go."""
        self.arrivals += 1
        if self._unlimited:
            replica = self._better_of_two()
            if replica is None:
                return None
        else:
            levels = self._levels
            lowest = self._lowest
            while not levels[lowest]:
                lowest += 1
                if lowest == len(levels):
                    self._lowest = 0
                    return None
            self._lowest = lowest
            _, replica = levels[lowest].popitem(last=False)
            replica.idle -= 1
            if replica.idle:
                self._shelve(replica, replica.busy + 1)
        elapsed = now - self._since
        self._since = now
        self.busy_seconds += self.busy * elapsed
        self.queued_seconds += len(self.waiters) * elapsed
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
        elapsed = now - self._since
        self._since = now
        self.busy_seconds += self.busy * elapsed
        waiters = self.waiters
        if waiters:
            self.queued_seconds += len(waiters) * elapsed
            usable = not (replica.revoked or replica.suspended)
            if usable and (self._recall.count == 0 or next(iter(waiters)) <= self._recall.after):
                self.news = True
                return waiters.popitem(last=False)[1]
        self.busy -= 1
        replica.busy -= 1
        if self._unlimited:
            return None
        if replica.idle:
            self._unshelve(replica, replica.busy + 1)
        if replica.revoked or self._recall.count:
            self._give_back(replica, 1)
        else:
            replica.idle += 1
        if replica.idle and not replica.suspended:
            self._shelve(replica, replica.busy)
        return None

    def enqueue(self, waiter: W, now: float) -> None:
        """Put a request that got no lease at the end of the queue."""
        self._advance(now)
        self._numbers += 1
        waiter.waiter_number = self._numbers
        waiter.waiting_since = now
        self.waiters[self._numbers] = waiter
        self.news = True

    def cancel(self, waiter: W, now: float) -> None:
        """Take a waiter out of the queue whose client has left. One that waits no more is ignored."""
        self._advance(now)
        if self.waiters.pop(waiter.waiter_number, None) is not None:
            self._cancelled.append(waiter.waiter_number)
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
        """Send a replica nothing more, as it refuses connections; its leases stay. `resume` ends it."""
        if not replica.suspended:
            replica.suspended = True
            if replica.idle:
                self._unshelve(replica, replica.busy)
            self._choose()

    def resume(self, replica: HeldReplica[T], now: float) -> list[tuple[W, HeldReplica[T]]]:
        """Take a suspended replica back into service. Returns waiters that may start now, with their replica."""
        replica.suspended = False
        started: list[tuple[W, HeldReplica[T]]] = []
        if self._replicas.get(replica.id) is not replica:
            return started
        self._choose()
        while replica.idle and self.waiters:
            replica.idle -= 1
            started.append((self._start_oldest(replica, now), replica))
        if replica.idle:
            self._shelve(replica, replica.busy)
            self._honour_recall()
        return started + self._start_unlimited(now)

    def set_replicas(
        self, targets: Mapping[str, T], now: float, *, cordoned: Collection[str] = ()
    ) -> list[tuple[W, HeldReplica[T]]]:
        """Make `targets` the complete set of replicas. Returns waiters that may start now, with their replica.

        `cordoned` replicas get no new request where there is no limit; where there is one, their leases are revoked.
        """
        for replica in [r for r in self._replicas.values() if r.id not in targets]:
            self._revoke(replica)
            del self._replicas[replica.id]
        for replica_id, target in targets.items():
            if replica_id not in self._replicas:
                self._replicas[replica_id] = HeldReplica(replica_id, target)
        self._cordoned = frozenset(cordoned)
        self._choose()
        return self._start_unlimited(now)

    # Talk with the ledger.

    def handle(self, message: ToHolder, now: float) -> list[tuple[W, HeldReplica[T]]]:
        """Take in what the ledger says. Returns waiters that may start now, with their replica."""
        match message:
            case Grant(replica_id, want):
                self._known_upto = max(self._known_upto, want)
                replica = self._replicas.get(replica_id)
                if replica is None:  # it went while the grant was on its way
                    self._returns[replica_id] = self._returns.get(replica_id, 0) + 1
                    self.news = True
                    return []
                replica.revoked = False
                if self.waiters and not replica.suspended:
                    self.news = True
                    return [(self._start_oldest(replica, now), replica)]
                replica.idle += 1
                if not replica.suspended:
                    self._shelve(replica, replica.busy)
                self._honour_recall()
            case Recall():
                self._recall = message
                self._honour_recall()
            case Revoke(replica_id):
                revoked = self._replicas.get(replica_id)
                if revoked is not None:
                    self._revoke(revoked)
        return []

    def hello(self) -> Hello:
        """What a ledger must know that meets this holder for the first time. Forgets what an older one had asked."""
        self._recall = Recall(0, 0)
        self._returns.clear()
        self._cancelled.clear()
        self._told_upto = self._numbers
        self._known_upto = self._served_upto
        return Hello(self.held(), self._told_upto, self._known_upto)

    def flush(self) -> list[ToLedger]:
        """The messages that bring the ledger up to date; empty where it is."""
        self.news = False
        messages: list[ToLedger] = [Return(replica, count) for replica, count in self._returns.items()]
        self._returns.clear()
        served = self._served_upto
        news = (
            next(reversed(self.waiters), 0) > self._told_upto  # waiters it has not heard of
            or min(served, self._told_upto) > self._known_upto  # waiters gone that it still counts
            or any(number <= self._told_upto and number > served for number in self._cancelled)
        )
        if news:
            messages.append(Wants(self._numbers, served, tuple(n for n in self._cancelled if n > served)))
            self._told_upto = self._numbers
            self._known_upto = served
        self._cancelled.clear()
        return messages

    def totals(self, now: float) -> Totals:
        """What this holder has counted since it was made."""
        self._advance(now)
        return Totals(
            self.busy_seconds, self.queued_seconds, self.arrivals, self.refused, self.completed, self.service_seconds
        )

    # Inside.

    @property
    def _served_upto(self) -> int:
        return next(iter(self.waiters)) - 1 if self.waiters else self._numbers

    def _advance(self, now: float) -> None:
        elapsed = now - self._since
        self._since = now
        self.busy_seconds += self.busy * elapsed
        self.queued_seconds += len(self.waiters) * elapsed

    def _shelve(self, replica: HeldReplica[T], level: int) -> None:
        levels = self._levels
        while len(levels) <= level:
            levels.append(OrderedDict())
        levels[level][replica.id] = replica
        if level < self._lowest:
            self._lowest = level

    def _unshelve(self, replica: HeldReplica[T], level: int) -> bool:
        """Take a replica off its level; False if it was not there, as a suspended one is not."""
        return level < len(self._levels) and self._levels[level].pop(replica.id, None) is not None

    def _choose(self) -> None:
        if self._unlimited:
            usable = (r for r in self._replicas.values() if not r.suspended and r.id not in self._cordoned)
            self._choices = list(usable)

    def _start_unlimited(self, now: float) -> list[tuple[W, HeldReplica[T]]]:
        started: list[tuple[W, HeldReplica[T]]] = []
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
        self.busy += 1
        if replica.idle and self._unshelve(replica, replica.busy):
            self._shelve(replica, replica.busy + 1)
        replica.busy += 1
        return self.waiters.popitem(last=False)[1]

    def _give_back(self, replica: HeldReplica[T], count: int) -> None:
        self._returns[replica.id] = self._returns.get(replica.id, 0) + count
        self.news = True
        self._recall = Recall(max(0, self._recall.count - count), self._recall.after)

    def _honour_recall(self) -> None:
        """Give back idle leases, of the busiest replicas first, until the recall is met."""
        for level in reversed(self._levels):
            while level and self._recall.count:
                replica = next(reversed(level.values()))
                count = min(replica.idle, self._recall.count)
                replica.idle -= count
                if not replica.idle:
                    del level[replica.id]
                self._give_back(replica, count)

    def _revoke(self, replica: HeldReplica[T]) -> None:
        """Give back the idle leases of a replica now, and the busy ones as they end."""
        replica.revoked = True
        if replica.idle:
            self._unshelve(replica, replica.busy)
            self._give_back(replica, replica.idle)
            replica.idle = 0
