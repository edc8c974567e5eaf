"""The last requests of one worker, so that `/explain/<request-id>` can tell what became of one. Bounded, in memory.

Theory of operation. A request that ends leaves an entry: always, if it was refused, failed, was retried or waited.
Those that got no version, as anybody can make them, drive out only each other. What just went well is kept apart, as it
would otherwise drive the rest out within seconds, and leaves an entry while there is `room`: a thousand a second, so
that a busy worker spends little on what nobody asks for.

Never here: a path's query, headers, keys, tokens, bodies.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

PLAIN_KEPT = 8192
NOTABLE_KEPT = 4096
REFUSED_KEPT = 1024
"""Entries: about 500 bytes each, 7 MB of a worker that has all full."""

PLAIN_PER_SECOND = 1000

REPLICAS_KEPT = 32
"""Of those that a queued request found busy."""


class Entry(NamedTuple):
    """One request that has ended. Times are seconds of the monotonic clock; 0.0 where something did not happen."""

    request_id: bytes
    client_id: bytes
    service: str
    version: str
    began: float
    checked: float
    granted: float
    connected_at: float
    sent: float
    answered: float
    ended: float
    status: int
    replica: str
    beside: int
    """Requests of this worker at the chosen replica, this one included, when it was chosen."""
    attempts: int
    """How often it was sent once more."""
    request_bytes: int
    response_bytes: int
    slug: str
    queued_seconds: float
    position: int
    """Its place in this worker's queue when it came; 0 if it did not wait."""
    considered: tuple[tuple[str, int, bool], ...]
    """What it found then: replicas, the requests of this worker at each, and whether it took no more."""


class Journal:
    """The last requests of one worker."""

    __slots__ = ("notable", "plain", "refused", "room")

    def __init__(self, *, plain: int = PLAIN_KEPT, notable: int = NOTABLE_KEPT) -> None:
        self.plain: deque[Entry] = deque(maxlen=plain)
        """Of requests that just went well."""
        self.notable: deque[Entry] = deque(maxlen=notable)
        self.refused: deque[Entry] = deque(maxlen=REFUSED_KEPT)
        """Of requests that were answered before a version was chosen."""
        self.room = PLAIN_PER_SECOND
        """How many more of the plain ones may be entered until `make_room`."""

    def make_room(self, seconds: float) -> None:
        """So many seconds have gone by since the last call."""
        self.room = int(PLAIN_PER_SECOND * seconds)

    def find(self, request_id: bytes) -> Entry | None:
        """The latest request of this id, be it the router's or the client's own; None if it is not remembered."""
        for entries in (self.notable, self.plain, self.refused):
            for entry in reversed(entries):
                if request_id in (entry.request_id, entry.client_id):
                    return entry
        return None
