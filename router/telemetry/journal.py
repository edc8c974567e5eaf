"""The latest requests of one worker, for `/explain/<request-id>`. In memory and bounded.

Theory of operation. Each request that ends may leave an entry in one of three rings:

- `notable`: requests that were refused, failed, were retried or waited in the queue. All of them are recorded.
- `unrouted`: requests that got a response before a version was chosen. Anybody can send such requests, so they have a
  ring of their own, in which they displace only each other. All of them are recorded.
- `routine`: all other requests, which succeeded at once. They have a ring of their own, because they would displace
  notable entries within seconds. At most a thousand per second are recorded, as recording costs time and they are
  hardly ever read.

Never recorded: a path's query, headers, keys, tokens, bodies. Compiled by mypyc.
"""

from __future__ import annotations

import heapq
from collections import deque
from typing import Final, NamedTuple

MAX_ROUTINE: Final = 8192
MAX_NOTABLE: Final = 4096
MAX_UNROUTED: Final = 1024
"""Sizes of the rings, in entries. An entry takes about 600 bytes, so full rings take 8 MB per worker."""

ROUTINE_PER_SECOND: Final = 1000

MAX_REPLICAS_AT_ARRIVAL: Final = 32


ReplicaAtArrival = tuple[str, int, bool, int, bool]
"""A replica: its id, this worker's requests there, whether it was closed to new requests, abandoned requests that held
a slot, and whether it had suspect slots."""


class Abandonment(NamedTuple):
    """What happened at the replica to a request whose client left or got 504. Times as in `Entry`."""

    handling: str
    """`closed`: the connection was closed, and the slot was free. `kept`: the response was awaited. `suspect`: the
    connection was closed, and the slot suspect."""
    at: float
    ended: list[tuple[float, str]]
    """If kept, and once it has ended: when, and whether by `response`, `closed` or `timeout`."""


class Entry(NamedTuple):
    """One request that has ended. Times are seconds of the monotonic clock; 0.0 if the event did not happen."""

    request_id: bytes
    client_request_id: bytes
    service: str
    version: str
    started_at: float
    authenticated_at: float
    slot_acquired_at: float
    connected_at: float
    sent_at: float
    response_started_at: float
    ended_at: float
    status: int
    replica: str
    in_flight_at_dispatch: int
    """Requests of this worker at the chosen replica when it was chosen, including this one."""
    retries: int
    request_bytes: int
    response_bytes: int
    error_code: str
    queued_seconds: float
    queue_position: int
    """Position in this worker's queue on arrival; 0 if the request did not wait."""
    replicas_at_arrival: tuple[ReplicaAtArrival, ...]
    """For a queued request: the replicas."""
    abandoned_at_dispatch: int
    """Abandoned requests of this worker that held a slot at the chosen replica when it was chosen."""
    suspect_at_dispatch: bool
    """The chosen replica had suspect slots."""
    abandonment: Abandonment | None
    body_seconds: float = 0.0
    """Time for which the body was received before the request asked for a slot; 0 if it came with the head or was
    streamed."""
    client: bytes = b""
    """Address of the client, behind trusted proxies the one that they report."""
    method: bytes = b""
    path: bytes = b""
    """Truncated, without query. Empty if no service matched."""
    protocol: str = "http/1.1"
    """The client's: `http/1.1` (or 1.0) or `h2`."""


class Journal:
    """The latest requests of one worker."""

    __slots__ = ("budget", "notable", "routine", "unrouted")

    def __init__(self, *, routine: int = MAX_ROUTINE, notable: int = MAX_NOTABLE) -> None:
        """`routine` and `notable` are the sizes of these rings."""
        self.routine: deque[Entry] = deque(maxlen=routine)
        self.notable: deque[Entry] = deque(maxlen=notable)
        self.unrouted: deque[Entry] = deque(maxlen=MAX_UNROUTED)
        self.budget = ROUTINE_PER_SECOND
        """Number of routine entries that may still be recorded before the next `refill`."""

    def refill(self, seconds: float) -> None:
        """Set the budget for the next `seconds`."""
        self.budget = int(ROUTINE_PER_SECOND * seconds)

    def latest_failed(self, service: str, limit: int) -> list[Entry]:
        """Return the latest requests of a service that have an error code or a status from 400, newest first."""
        failed = [
            entry
            for entries in (self.notable, self.routine, self.unrouted)
            for entry in entries
            if entry.service == service and (entry.error_code or entry.status >= 400)
        ]
        return heapq.nlargest(limit, failed, key=lambda entry: entry.ended_at)

    def slowest(self, service: str, since: float, limit: int) -> list[Entry]:
        """Return the slowest requests of a service that have ended since a time, slowest first."""
        entries = [
            entry
            for entries in (self.notable, self.routine)
            for entry in entries
            if entry.service == service and entry.ended_at >= since
        ]
        return heapq.nlargest(limit, entries, key=lambda entry: entry.ended_at - entry.started_at)

    def find(self, request_id: bytes) -> Entry | None:
        """Return the latest request with this id, either the router's own or the client's; None if there is none."""
        for entries in (self.notable, self.routine, self.unrouted):
            for entry in reversed(entries):
                if request_id in (entry.request_id, entry.client_request_id):
                    return entry
        return None
