"""Lease caches for tests, with the leases that they should have, and shorthands for what tests do with them."""

import random
from collections.abc import Iterable
from dataclasses import dataclass

from router.slots.lease_cache import LeaseCache
from router.slots.messages import Grant, Register, Registered
from router.slots.replica_leases import ReplicaLeases


@dataclass(eq=False)
class Request:
    name: str = ""
    waiting_since: float = 0.0
    waiter_number: int = 0


Cache = LeaseCache[Request, str]


def cache_with(*leases: str, replicas: Iterable[str] = ("r1", "r2"), now: float = 0.0) -> Cache:
    """A lease cache with these replicas and one idle lease for each id in `leases`."""
    cache = Cache(unlimited=False, now=now, rng=random.Random(1))
    cache.set_replicas({replica: f"pool of {replica}" for replica in replicas}, now)
    for replica in leases:
        assert cache.handle(Grant(replica, 0), now) == []
    assert cache.flush() == []
    return cache


def acquire(cache: Cache, now: float = 0.0) -> ReplicaLeases[str]:
    replica = cache.acquire(now)
    assert replica is not None
    return replica


def enqueue(cache: Cache, *names: str, now: float = 0.0) -> list[Request]:
    requests = [Request(name) for name in names]
    for request in requests:
        cache.enqueue(request, now)
    return requests


def names(started: Iterable[tuple[Request, ReplicaLeases[str]]]) -> list[tuple[str, str]]:
    """The waiters that were started, each by name and replica."""
    return [(request.name, replica.id) for request, replica in started]


def reply_to(registration: Register) -> Registered:
    return Registered(registration.cache_id, registration.session)
