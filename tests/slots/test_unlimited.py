"""Unlimited concurrency: two choices, no leases, and no queue while a replica is open."""

import random

import pytest

from router.slots.messages import Grant, Recall, Revoke, ToLeaseCache
from tests.slots.lease_caches import Cache, acquire, enqueue, names, reply_to


def unlimited_cache(*replicas: str, now: float = 0.0) -> Cache:
    cache = Cache(unlimited=True, now=now, rng=random.Random(2))
    cache.set_replicas(dict.fromkeys(replicas, "pool"), now)
    return cache


def test_unlimited_requests_start_at_once_without_messages() -> None:
    cache = unlimited_cache("r1", "r2")
    leases = [acquire(cache) for _ in range(100)]
    assert cache.release(leases[0], 0.0, 0.0) is None
    assert cache.busy == 99
    assert cache.flush() == []
    assert cache.held() == {}


def test_unlimited_requests_are_spread_by_two_choices() -> None:
    """The highest load exceeds the mean by about log log n (Mitzenmacher 2001); with one choice by more than 10."""
    cache = unlimited_cache(*(f"r{number}" for number in range(50)))
    for _ in range(1000):
        acquire(cache)
    assert max(cache.busy_by_replica().values()) <= 20 + 4


def test_unlimited_request_waits_only_while_no_replica_is_open() -> None:
    cache = unlimited_cache()
    assert cache.acquire(0.0) is None
    enqueue(cache, "first", "second")
    assert cache.flush() == []
    assert names(cache.set_replicas({"r1": "pool"}, 0.0)) == [("first", "r1"), ("second", "r1")]
    assert not cache.waiters


def test_unlimited_suspended_and_cordoned_replicas_get_no_new_requests() -> None:
    cache = unlimited_cache("r1", "r2", "r3")
    leases = {lease.id: lease for lease in [acquire(cache) for _ in range(60)]}
    cache.suspend(leases["r1"], 0.0)
    cache.set_replicas(dict.fromkeys(("r1", "r2", "r3"), "pool"), 0.0, closed=["r2"])
    assert {acquire(cache).id for _ in range(30)} == {"r3"}
    cache.resume(leases["r1"], 0.0)
    assert {acquire(cache).id for _ in range(30)} == {"r1", "r3"}
    cache.set_replicas(dict.fromkeys(("r1", "r2", "r3"), "pool"), 0.0)
    assert {acquire(cache).id for _ in range(60)} == {"r1", "r2", "r3"}


def test_unlimited_cordoned_replica_is_not_given_a_waiter() -> None:
    cache = unlimited_cache("r1")
    lease = acquire(cache)
    cache.set_replicas({"r1": "pool"}, 0.0, closed=["r1"])
    (waiter,) = enqueue(cache, "waiter")
    assert cache.release(lease, 0.0, 0.0) is None
    assert names(cache.set_replicas({"r1": "pool"}, 0.0)) == [("waiter", "r1")]
    assert waiter.waiter_number == 1


def test_unlimited_waiter_starts_when_a_replica_is_resumed() -> None:
    cache = unlimited_cache("r1")
    lease = acquire(cache)
    cache.suspend(lease, 0.0)
    enqueue(cache, "waiter")
    assert names(cache.resume(lease, 0.0)) == [("waiter", "r1")]


@pytest.mark.parametrize("message", [Grant("r1", 1), Recall(1, 0), Revoke("r1")])
def test_unlimited_cache_ignores_messages_about_leases(message: ToLeaseCache) -> None:
    cache = unlimited_cache("r1")
    cache.handle(message, 0.0)
    assert cache.flush() == []
    assert acquire(cache).id == "r1"


def test_unlimited_registration_contains_no_leases_and_no_waiters() -> None:
    cache = unlimited_cache("r1")
    cache.suspend(acquire(cache), 0.0)
    enqueue(cache, "waiter")
    registration = cache.register()
    assert (registration.held, registration.excluded, registration.wanted_up_to - registration.served_up_to) == (
        {},
        frozenset(),
        0,
    )
    cache.handle(reply_to(registration), 0.0)
    assert cache.flush() == []
