"""Versions without a limit: two choices, no leases, and no queue while a replica is usable."""

import random

import pytest

from router.slots.messages import Grant, Recall, Revoke, ToHolder
from tests.slots.holders import Holder, acquire, enqueue, names, welcome_to


def unlimited_holder(*replicas: str, now: float = 0.0) -> Holder:
    holder = Holder(unlimited=True, now=now, rng=random.Random(2))
    holder.set_replicas(dict.fromkeys(replicas, "pool"), now)
    return holder


def test_unlimited_requests_start_at_once_and_say_nothing() -> None:
    holder = unlimited_holder("r1", "r2")
    leases = [acquire(holder) for _ in range(100)]
    assert holder.release(leases[0], 0.0, 0.0) is None
    assert holder.busy == 99
    assert holder.flush() == []
    assert holder.held() == {}


def test_unlimited_requests_spread_by_two_choices() -> None:
    """The gap between the fullest and the average is about log log n (Mitzenmacher 2001); at random it is above 10."""
    holder = unlimited_holder(*(f"r{number}" for number in range(50)))
    for _ in range(1000):
        acquire(holder)
    assert max(holder.busy_by_replica().values()) <= 20 + 4


def test_unlimited_request_waits_only_while_no_replica_is_usable() -> None:
    holder = unlimited_holder()
    assert holder.acquire(0.0) is None
    enqueue(holder, "first", "second")
    assert holder.flush() == []
    assert names(holder.set_replicas({"r1": "pool"}, 0.0)) == [("first", "r1"), ("second", "r1")]
    assert not holder.waiters


def test_unlimited_suspended_and_cordoned_replicas_get_nothing_new() -> None:
    holder = unlimited_holder("r1", "r2", "r3")
    leases = {lease.id: lease for lease in [acquire(holder) for _ in range(60)]}
    holder.suspend(leases["r1"])
    holder.set_replicas(dict.fromkeys(("r1", "r2", "r3"), "pool"), 0.0, cordoned=["r2"])
    assert {acquire(holder).id for _ in range(30)} == {"r3"}
    assert not holder.has_other("r3")
    holder.resume(leases["r1"], 0.0)
    assert {acquire(holder).id for _ in range(30)} == {"r1", "r3"}
    holder.set_replicas(dict.fromkeys(("r1", "r2", "r3"), "pool"), 0.0)
    assert {acquire(holder).id for _ in range(60)} == {"r1", "r2", "r3"}


def test_unlimited_cordoned_replica_serves_no_waiter() -> None:
    holder = unlimited_holder("r1")
    lease = acquire(holder)
    holder.set_replicas({"r1": "pool"}, 0.0, cordoned=["r1"])
    (waiter,) = enqueue(holder, "waiter")
    assert holder.release(lease, 0.0, 0.0) is None
    assert names(holder.set_replicas({"r1": "pool"}, 0.0)) == [("waiter", "r1")]
    assert waiter.waiter_number == 1


def test_unlimited_waiter_starts_when_a_replica_is_resumed() -> None:
    holder = unlimited_holder("r1")
    lease = acquire(holder)
    holder.suspend(lease)
    enqueue(holder, "waiter")
    assert names(holder.resume(lease, 0.0)) == [("waiter", "r1")]


@pytest.mark.parametrize("message", [Grant("r1", 1), Recall(1, 0), Revoke("r1")])
def test_unlimited_holder_has_no_business_with_leases(message: ToHolder) -> None:
    holder = unlimited_holder("r1")
    holder.handle(message, 0.0)
    assert holder.flush() == []
    assert acquire(holder).id == "r1"


def test_unlimited_hello_holds_and_wants_nothing() -> None:
    holder = unlimited_holder("r1")
    holder.suspend(acquire(holder))
    enqueue(holder, "waiter")
    hello = holder.hello()
    assert (hello.held, hello.avoided, hello.wanted_upto - hello.served_upto) == ({}, frozenset(), 0)
    holder.handle(welcome_to(hello), 0.0)
    assert holder.flush() == []
