"""The idle leases of a lease cache, by the load of their replicas. Part of the hot path."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection
from typing import Generic, TypeVar

from router.slots.replica_leases import ReplicaLeases

T = TypeVar("T")


class IdleLeases(Generic[T]):
    """Replicas with an idle lease, in one bucket per number of requests in flight. In a bucket the one that has been
    idle longest is first.

    If there is only one replica, as for many versions, it is `only_replica` and needs no bucket.
    """

    __slots__ = ("buckets", "lowest", "only_replica")

    def __init__(self) -> None:
        self.only_replica: ReplicaLeases[T] | None = None
        self.buckets: list[OrderedDict[str, ReplicaLeases[T]]] = [OrderedDict()]
        self.lowest = 0  # all buckets below are empty

    def rebuild(self, replicas: Collection[ReplicaLeases[T]]) -> None:
        """Make these the complete set of replicas."""
        self.buckets = [OrderedDict()]
        self.lowest = 0
        self.only_replica = None
        if len(replicas) == 1:
            (self.only_replica,) = replicas
        for replica in replicas:
            if replica.idle:
                self.add(replica, replica.busy)

    def add(self, replica: ReplicaLeases[T], load: int) -> None:
        """Add a replica that has `load` requests in flight."""
        if self.only_replica is not None:
            return
        buckets = self.buckets
        while len(buckets) <= load:
            buckets.append(OrderedDict())
        buckets[load][replica.id] = replica
        if load < self.lowest:
            self.lowest = load

    def discard(self, replica: ReplicaLeases[T], load: int) -> None:
        """Remove a replica that was added with this load."""
        if self.only_replica is None:
            del self.buckets[load][replica.id]

    def take_back(self, count: int) -> list[tuple[ReplicaLeases[T], int]]:
        """Take up to `count` idle leases, of the busiest replicas first. Return the replicas, and how many of each."""
        only = self.only_replica
        if only is not None:
            count = min(only.idle, count)
            only.idle -= count
            return [(only, count)] if count else []
        taken: list[tuple[ReplicaLeases[T], int]] = []
        for bucket in reversed(self.buckets):
            while bucket and count:
                replica = next(reversed(bucket.values()))
                of_replica = min(replica.idle, count)
                replica.idle -= of_replica
                count -= of_replica
                if not replica.idle:
                    del bucket[replica.id]
                taken.append((replica, of_replica))
        return taken
