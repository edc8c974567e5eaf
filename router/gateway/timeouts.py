"""Timeouts of one duration for many objects, at the price of two dictionary operations each."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class TimeoutList(Generic[T]):
    """Calls `expired(item)` for each item that was added `seconds` ago and not discarded since.

    All items wait equally long, so the order of insertion is the order of deadlines and one timer, for the oldest,
    serves them all; it is moved only when it fires. Adding an item again starts its time anew.
    """

    __slots__ = ("_expired", "_loop", "_since", "_timer", "seconds")

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float, expired: Callable[[T], None]) -> None:
        self._loop = loop
        self.seconds = seconds
        self._expired = expired
        self._since: dict[T, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._since)

    def add(self, item: T, now: float) -> None:
        """Start an item's time at `now` (seconds, monotonic)."""
        self._since.pop(item, None)
        self._since[item] = now
        if self._timer is None:
            self._timer = self._loop.call_later(self.seconds, self._fire)

    def begin(self, item: T, now: float) -> None:
        """`add` for an item that is not there."""
        self._since[item] = now
        if self._timer is None:
            self._timer = self._loop.call_later(self.seconds, self._fire)

    def discard(self, item: T) -> None:
        """Forget an item, if it is there."""
        self._since.pop(item, None)

    def _fire(self) -> None:
        # The loop's clock has a coarser grain than `add`'s, so that the timer may fire a little early.
        due = self._loop.time() - self.seconds + 0.002
        delay = self.seconds
        try:
            while self._since:
                item, since = next(iter(self._since.items()))
                if since > due:
                    delay = since - due
                    break
                del self._since[item]
                self._expired(item)  # may add items, which then find the timer set
        finally:
            self._timer = self._loop.call_later(delay, self._fire) if self._since else None
