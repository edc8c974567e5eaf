"""When client connections are retired: after a time, after a number of requests, or to move load to other router pods.

A retired connection is closed with its next response (`Connection: close`), never during a request. Its client opens a
new one, which may reach another pod: without this, clients that keep connections alive would not use added pods.
No I/O, no clock.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

_JITTER: Final = 0.1  # share by which a limit may be shorter or longer, as in gRPC
_NO_LIMIT: Final = 2**60

Item = TypeVar("Item")


class ConnectionLimits:
    """Draws the limits of each connection, which differ so that clients do not reconnect at the same time."""

    def __init__(
        self, max_age_seconds: float, max_requests: int, uniform: Callable[[float, float], float] = random.uniform
    ) -> None:
        """0 means no limit."""
        self._max_age_seconds = max_age_seconds
        self._max_requests = max_requests
        self._uniform = uniform

    def draw_expiry(self, now: float) -> float:
        """Return the time at which a connection that was opened at `now` is retired."""
        return now + self._max_age_seconds * self._jitter() if self._max_age_seconds else math.inf

    def draw_requests(self) -> int:
        """Return the number of requests after which a connection is retired."""
        return max(round(self._max_requests * self._jitter()), 1) if self._max_requests else _NO_LIMIT

    def _jitter(self) -> float:
        return self._uniform(1 - _JITTER, 1 + _JITTER)


class RepeatedSample:
    """Selects a share of some items again and again. The fractions of an item add up, so that few items have their turn
    too."""

    def __init__(self) -> None:
        self._carry = 0.0

    def select(self, items: Sequence[Item], share: float) -> list[Item]:
        """Return randomly selected items: on average this share, from 0 to 1."""
        self._carry += len(items) * share
        count = min(int(self._carry), len(items))
        self._carry -= count
        return random.sample(items, count)
