"""The `x-ms-client-request-id` of recently refused requests of one version, so that repeats are detected. No I/O.

A client that repeats a refused request sends the same id. The repeat is not one more request for the autoscaler: for
that, each id counts once within `autoscale_scale_down_seconds`. Each worker detects the repeats that it gets: a client
that keeps its connection stays at its worker.
"""

from typing import Final

MAX_REFUSED_IDS: Final = 1000
"""Maximum number of ids kept per version. If there are more, the oldest are forgotten, and their repeats count."""


class RefusedIds:
    """Times of refusals by id, oldest first. Ids are kept as hashes: 8 bytes instead of up to 40."""

    __slots__ = ("_refused_at",)

    def __init__(self) -> None:
        self._refused_at: dict[int, float] = {}

    def __len__(self) -> int:
        return len(self._refused_at)

    def is_repeat(self, client_request_id: bytes, now: float, seconds: float) -> bool:
        """Return True if the id counted within the last `seconds`; else it counts at `now`."""
        self.expire(now, seconds)
        refused_at, key = self._refused_at, hash(client_request_id)
        if key in refused_at:
            return True
        if len(refused_at) >= MAX_REFUSED_IDS:
            del refused_at[next(iter(refused_at))]
        refused_at[key] = now
        return False

    def expire(self, now: float, seconds: float) -> None:
        """Forget the ids that counted `seconds` ago or earlier."""
        refused_at = self._refused_at
        while refused_at:
            oldest = next(iter(refused_at))
            if now - refused_at[oldest] < seconds:
                break
            del refused_at[oldest]
