"""Limits equal messages of the log, and counts those that it suppresses. No I/O, no clock.

A failing replica or a hostile client can cause the same message for each request. The first ones of a second tell all;
the rest only fills pipes and disks.
"""

from typing import NamedTuple

MAX_PER_SECOND = 10

_WINDOW_SECONDS = 1.0


class MessageKey(NamedTuple):
    """What makes two messages equal. Other fields do not matter."""

    logger: str
    level: int
    message: str
    """Before arguments are inserted."""
    service: str | None


class RepeatLimiter:
    """Admits the first `MAX_PER_SECOND` equal messages of each second."""

    def __init__(self) -> None:
        self._counts: dict[MessageKey, int] = {}
        self._ends_at = 0.0

    def admit(self, key: MessageKey) -> bool:
        """Count a message. Return False if it must be suppressed."""
        count = self._counts[key] = self._counts.get(key, 0) + 1
        return count <= MAX_PER_SECOND

    def take_suppressed(self, now: float) -> list[tuple[MessageKey, int]]:
        """Return the messages that were suppressed in the last second and how often, once that second is over. `now` is
        in seconds of the monotonic clock."""
        if now < self._ends_at:
            return []
        counts, self._counts = self._counts, {}
        self._ends_at = now + _WINDOW_SECONDS
        return [(key, count - MAX_PER_SECOND) for key, count in counts.items() if count > MAX_PER_SECOND]
