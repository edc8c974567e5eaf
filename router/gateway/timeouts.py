"""Timeouts of one duration for many items, at the cost of two dictionary operations each."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")

_CLOCK_GRAIN_SECONDS = 0.002
"""The event loop's clock is coarser than the one that `now` is read from, so the timer may fire this much early."""


class TimeoutList(Generic[T]):
    """Calls `on_expired(item)` for each item that was added `seconds` ago and not discarded since.

    All items have the same timeout, so the order of insertion is the order of deadlines, and one timer for the oldest
    item is sufficient. The timer is only restarted when it fires.
    """

    __slots__ = ("_added_at", "_loop", "_on_expired", "_timer", "seconds")

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float, on_expired: Callable[[T], None]) -> None:
        self._loop = loop
        self.seconds = seconds
        self._on_expired = on_expired
        self._added_at: dict[T, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._added_at)

    def restart(self, item: T, now: float) -> None:
        """Start or restart the timeout of an item at `now`, in seconds of the monotonic clock."""
        self._added_at.pop(item, None)
        self.add(item, now)

    def add(self, item: T, now: float) -> None:
        """Start the timeout of an item that is not in the list at `now`, in seconds of the monotonic clock."""
        self._added_at[item] = now
        if self._timer is None:
            self._timer = self._loop.call_later(self.seconds, self._expire)

    def discard(self, item: T) -> None:
        """Remove an item if it is in the list."""
        self._added_at.pop(item, None)

    def _expire(self) -> None:
        expired_before = self._loop.time() - self.seconds + _CLOCK_GRAIN_SECONDS
        delay = self.seconds
        try:
            while self._added_at:
                item, added_at = next(iter(self._added_at.items()))
                if added_at > expired_before:
                    delay = added_at - expired_before
                    break
                del self._added_at[item]
                self._on_expired(item)  # may add items, which then do not start another timer
        finally:
            self._timer = self._loop.call_later(delay, self._expire) if self._added_at else None
