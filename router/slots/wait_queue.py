"""A worker's queue of requests of one version: their order, their time, their demand. No I/O, no clock.

Waiters are numbered in the order of the queue. A request that returns to the queue, because its replica refused the
connection, goes to the end, but keeps the time that it has waited: so waiters do not expire in the order of the queue.

The integral of the queue's length over time is demand for the autoscaler. While no replica gets requests (`set_away`),
waiting requests do not show that slots are missing. So the queue is not counted then, nor while one of these requests
is left: they count once they are in flight or refused.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, Protocol, TypeVar


class Waiter(Protocol):
    """A request in the queue, which sets both attributes. `waiting_since` includes previous waits."""

    waiting_since: float
    waiter_number: int


W = TypeVar("W", bound=Waiter)


class WaitQueue(Generic[W]):
    """The queue. Times are seconds of one monotonic clock."""

    __slots__ = (
        "_advanced_at", "_is_away", "_returned", "_uncounted", "_uncounted_up_to", "last_number", "queued_seconds",
        "waiters",
    )  # fmt: skip

    def __init__(self, now: float) -> None:
        self.waiters: OrderedDict[int, W] = OrderedDict()  # by number
        self.last_number = 0  # of the last waiter that was added
        self._returned: dict[int, W] = {}  # those that have waited before, and may have left the queue
        self.queued_seconds = 0.0  # the integral up to `_advanced_at`
        self._advanced_at = now
        self._is_away = False
        self._uncounted = 0  # waiters that have waited while `_is_away`
        self._uncounted_up_to = 0  # the last one of them

    def advance(self, now: float) -> None:
        """Extend `queued_seconds` up to now."""
        if not self._uncounted:
            self.queued_seconds += len(self.waiters) * (now - self._advanced_at)
        self._advanced_at = now

    def set_away(self, away: bool, now: float) -> None:
        """Note whether no replica gets requests."""
        if away and not self._is_away:
            self.advance(now)
            self._uncounted, self._uncounted_up_to = len(self.waiters), self.last_number
        self._is_away = away

    def add(self, waiter: W, now: float, waited: float) -> None:
        """Add a request, which has waited before for `waited` seconds."""
        self.advance(now)
        self.last_number += 1
        waiter.waiter_number = self.last_number
        waiter.waiting_since = now - waited
        self.waiters[self.last_number] = waiter
        if waited:
            self._returned[self.last_number] = waiter
        if self._is_away:
            self._uncounted += 1
            self._uncounted_up_to = self.last_number

    def pop_oldest(self, now: float) -> W:
        """Remove and return the first waiter."""
        self.advance(now)
        if self._uncounted:
            self._uncounted -= 1
        return self.waiters.popitem(last=False)[1]

    def remove(self, number: int, now: float) -> bool:
        """Remove a waiter from any position. Return False if it is not in the queue any more."""
        if number not in self.waiters:
            return False
        self.advance(now)
        del self.waiters[number]
        if number <= self._uncounted_up_to:
            self._uncounted -= 1
        return True

    def expire(self, since: float, now: float) -> list[W]:
        """Remove and return the requests that have been waiting since `since` or longer."""
        expired: list[W] = []
        while self.waiters and next(iter(self.waiters.values())).waiting_since <= since:
            expired.append(self.pop_oldest(now))
        if self._returned:
            for number, waiter in self._returned.items():
                if waiter.waiting_since <= since and self.remove(number, now):
                    expired.append(waiter)
            self._returned = {n: waiter for n, waiter in self._returned.items() if n in self.waiters}
        return expired

    def waiting_longest_since(self) -> float:
        """Return the `waiting_since` of the request that has been waiting longest. There must be one."""
        since = next(iter(self.waiters.values())).waiting_since
        for number, waiter in self._returned.items():
            if waiter.waiting_since < since and number in self.waiters:
                since = waiter.waiting_since
        return since
