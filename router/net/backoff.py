"""Exponential backoff: the delay before an attempt is repeated. No I/O, no clock."""

from __future__ import annotations

import random
from collections.abc import Callable

__all__ = ["Backoff"]


class Backoff:
    """Delays in seconds that grow with each failure in a row.

    The delays are `first`, `first * factor`, `first * factor**2` and so on, at most `cap`. With `immediate`, a delay of
    0 precedes them. A random fraction of each, up to `jitter` (0 to 1), is subtracted, so that clients that failed
    together do not retry together.
    """

    __slots__ = ("_cap", "_delay", "_factor", "_first", "_initial", "_jitter", "_random")

    def __init__(
        self,
        first: float,
        cap: float,
        *,
        factor: float = 2.0,
        jitter: float = 0.0,
        immediate: bool = False,
        random: Callable[[], float] = random.random,
    ) -> None:
        """`random` returns a number from 0 to 1."""
        self._first = first
        self._cap = cap
        self._factor = factor
        self._jitter = jitter
        self._initial = 0.0 if immediate else min(first, cap)
        self._random = random
        self._delay = self._initial

    def next_delay(self, minimum: float = 0.0) -> float:
        """Count one more failure and return the seconds to wait, at least `minimum` (a server's `Retry-After`)."""
        delay = self._delay
        self._delay = min(max(delay * self._factor, self._first), self._cap)
        return max(delay * (1 - self._jitter * self._random()), minimum)

    def reset(self) -> None:
        """Restart with the first delay, after a success."""
        self._delay = self._initial
