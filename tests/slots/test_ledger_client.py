"""Which messages a lease cache sends to its ledger, and how the two get back in sync."""

import pytest

from router.slots.messages import (
    Exclude,
    Grant,
    Recall,
    Register,
    Registered,
    Reregister,
    Revoke,
    SlotDemand,
    ToLeaseCache,
)
from tests.slots.lease_caches import Cache, acquire, cache_with, enqueue, names, reply_to

# Changes


def test_arrivals_and_departures_of_one_turn_take_one_message() -> None:
    cache = cache_with("r1")
    lease = acquire(cache)
    _, second, _, _ = enqueue(cache, "first", "second", "third", "fourth")
    cache.cancel(second, 0.0)
    cache.release(lease, 0.0, 0.0)
    assert cache.flush() == [SlotDemand(4, 2)]
    assert not cache.needs_flush
    assert cache.flush() == []


def test_waiter_cancelled_between_others_is_reported() -> None:
    cache = cache_with()
    _, second, _ = enqueue(cache, "first", "second", "third")
    cache.flush()
    cache.cancel(second, 0.0)
    assert cache.flush() == [SlotDemand(3, 0, (2,))]
    assert cache.flush() == []


def test_waiter_cancelled_before_the_flush_is_reported_only_as_cancelled() -> None:
    cache = cache_with()
    enqueue(cache, "first")
    cache.flush()
    (second,) = enqueue(cache, "second")
    cache.cancel(second, 0.0)
    assert cache.flush() == []
    enqueue(cache, "third")
    assert cache.flush() == [SlotDemand(3, 0, (2,))]


def test_grant_is_not_confirmed() -> None:
    cache = cache_with()
    enqueue(cache, "only")
    cache.flush()
    cache.handle(Grant("r1", 1), 0.0)
    assert cache.flush() == []


def test_waiter_served_before_the_flush_is_not_reported() -> None:
    cache = cache_with("r1")
    lease = acquire(cache)
    enqueue(cache, "only")
    cache.release(lease, 0.0, 0.0)
    assert cache.flush() == []


def test_waiter_served_with_a_lease_that_the_cache_holds_is_reported_as_served() -> None:
    cache = cache_with("r1")
    lease = acquire(cache)
    enqueue(cache, "only")
    cache.flush()
    cache.release(lease, 0.0, 0.0)
    assert cache.flush() == [SlotDemand(1, 1)]


# Registration


def test_registration_contains_the_complete_state() -> None:
    cache = cache_with("r1", "r1", "r2")
    lease = acquire(cache)
    cache.suspend(acquire(cache), 0.0)
    _, second, _ = enqueue(cache, "first", "second", "third")
    cache.cancel(second, 0.0)
    cache.release(lease, 0.0, 0.0)
    registration = cache.register()
    assert registration == Register(registration.cache_id, 1, {"r1": 2, "r2": 1}, frozenset({"r2"}), 3, 2)
    assert cache.flush() == []


def test_registration_leaves_out_cancelled_waiters() -> None:
    cache = cache_with()
    _, second, _, fourth = enqueue(cache, "first", "second", "third", "fourth")
    cache.cancel(second, 0.0)
    cache.cancel(fourth, 0.0)
    registration = cache.register()
    assert (registration.served_up_to, registration.wanted_up_to, registration.cancelled) == (0, 4, (2, 4))


def test_registration_replaces_pending_messages() -> None:
    cache = cache_with("r1")
    cache.handle(Revoke("r1"), 0.0)
    enqueue(cache, "waiter")
    registration = cache.register()
    assert (registration.held, registration.wanted_up_to) == ({}, 1)
    assert cache.flush() == []


def test_each_lease_cache_has_a_unique_id_and_counts_its_registrations() -> None:
    one = Cache(unlimited=False, now=0.0)
    other = Cache(unlimited=False, now=0.0)
    registrations = [one.register(), one.register(), other.register()]
    assert [registration.session for registration in registrations] == [1, 2, 1]
    assert registrations[0].cache_id == registrations[1].cache_id != registrations[2].cache_id


@pytest.mark.parametrize("message", [Grant("r1", 1), Recall(9, 0), Revoke("r2"), Reregister(), Registered(0, 0)])
def test_messages_of_the_ledger_before_the_reply_to_a_registration_are_ignored(message: ToLeaseCache) -> None:
    cache = cache_with("r2")
    enqueue(cache, "waiter")
    cache.handle(Recall(0, 0), 0.0)
    registration = cache.register()
    assert cache.handle(message, 0.0) == []
    assert cache.flush() == []
    assert cache.held() == {"r2": 1}
    cache.handle(reply_to(registration), 0.0)
    assert names(cache.handle(Grant("r1", 1), 0.0)) == [("waiter", "r1")]


def test_reply_to_an_earlier_registration_is_ignored() -> None:
    cache = cache_with()
    first, second = cache.register(), cache.register()
    cache.handle(reply_to(first), 0.0)
    cache.handle(Grant("r1", 0), 0.0)
    assert cache.held() == {}
    cache.handle(reply_to(second), 0.0)
    cache.handle(Grant("r1", 0), 0.0)
    assert cache.held() == {"r1": 1}


def test_registration_ends_a_recall() -> None:
    cache = cache_with("r1")
    lease = acquire(cache)
    cache.handle(Recall(1, 0), 0.0)
    cache.register()
    cache.release(lease, 0.0, 0.0)
    assert cache.held() == {"r1": 1}


def test_reregister_leads_to_a_registration() -> None:
    cache = cache_with("r1")
    cache.handle(Reregister(), 0.0)
    assert cache.needs_flush
    (registration,) = cache.flush()
    assert isinstance(registration, Register)
    assert registration.held == {"r1": 1}
    assert not cache.needs_flush
    assert cache.flush() == []


@pytest.mark.parametrize("suspended", [True, False])
def test_unusable_grant_leads_to_a_registration_with_the_waiter(suspended: bool) -> None:
    cache = cache_with("r1", replicas=("r1",) if suspended else ("r0", "r1"))
    lease = acquire(cache)
    if suspended:
        cache.suspend(lease, 0.0)
    else:
        cache.set_replicas({"r0": "pool of r0"}, 0.0)
    (waiter,) = enqueue(cache, "waiter")
    cache.flush()
    assert cache.handle(Grant("r1", 1), 0.0) == []
    (registration,) = cache.flush()
    assert isinstance(registration, Register)
    assert (registration.held, registration.excluded) == ({"r1": 1}, frozenset({"r1"}))  # the busy lease
    assert (registration.served_up_to, registration.wanted_up_to) == (0, 1)
    assert list(cache.waiters.values()) == [waiter]


def test_unknown_replica_that_was_granted_is_excluded_until_it_is_added() -> None:
    cache = cache_with()
    cache.handle(Grant("r3", 0), 0.0)
    (registration,) = cache.flush()
    assert isinstance(registration, Register)
    assert registration.excluded == {"r3"}
    cache.handle(reply_to(registration), 0.0)
    assert cache.flush() == []
    cache.set_replicas({"r3": "pool of r3"}, 0.0)
    assert cache.flush() == [Exclude(frozenset())]
