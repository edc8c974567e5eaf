"""The leases of one replica that a worker holds, and what the worker knows of the replica's requests."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Generic, TypeVar

T = TypeVar("T")


class ReplicaLeases(Generic[T]):
    """The leases of one replica. `target` belongs to the caller of the lease cache (its connection pool)."""

    __slots__ = (
        "abandoned", "busy", "closed", "id", "idle", "revoked", "suspect", "suspect_until", "suspended", "target",
    )  # fmt: skip

    def __init__(self, replica_id: str, target: T) -> None:
        self.id = replica_id
        self.target = target
        self.busy = 0  # requests in flight and abandoned ones that hold a lease
        self.abandoned = 0  # of these, abandoned ones
        self.idle = 0  # leases that no request uses
        self.revoked = False  # by the ledger
        self.suspended = False  # it refused a connection and gets no request for a while
        self.suspect = False  # it has suspect slots
        self.suspect_until: list[float] = []  # only if unlimited: until when it may work on abandoned requests
        self.closed = False  # leases are returned as soon as they are idle: revoked, suspended or suspect

    @property
    def gets_no_requests(self) -> bool:
        """True if it is revoked or suspended."""
        return self.revoked or self.suspended

    def load(self, now: float) -> int:
        """Return the requests in flight and those that may still run. Only if unlimited."""
        if self.suspect_until:
            self.suspect_until = [until for until in self.suspect_until if until > now]
            self.suspect = bool(self.suspect_until)
        return self.busy + len(self.suspect_until)


def better_of_two(replicas: list[ReplicaLeases[T]], rng: random.Random, now: float) -> ReplicaLeases[T] | None:
    """Return of two replicas picked at random the one with fewer requests ("power of two choices", Mitzenmacher 2001);
    None if there is none. Only if unlimited. Suspect requests of this worker count as requests."""
    if not replicas:
        return None
    one = replicas[int(rng.random() * len(replicas))]
    other = replicas[int(rng.random() * len(replicas))]
    if one.suspect or other.suspect:
        return one if one.load(now) <= other.load(now) else other
    return one if one.busy <= other.busy else other


def busy_by_replica(replicas: Iterable[ReplicaLeases[T]]) -> dict[str, int]:
    """Return the requests in flight by replica id. Several replicas may have the same id."""
    busy: dict[str, int] = {}
    for replica in replicas:
        if replica.busy:
            busy[replica.id] = busy.get(replica.id, 0) + replica.busy
    return busy


def abandoned_by_replica(replicas: Iterable[ReplicaLeases[T]]) -> dict[str, int]:
    """Return the abandoned requests that hold a lease, by replica id."""
    abandoned: dict[str, int] = {}
    for replica in replicas:
        if replica.abandoned:
            abandoned[replica.id] = abandoned.get(replica.id, 0) + replica.abandoned
    return abandoned
