"""The lease cache: which lease a request gets, which waiter is next, and which leases are returned."""

import random

import pytest

from router.model.usage import UsageTotals
from router.slots.messages import Exclude, Grant, Recall, Return, Revoke, SlotDemand, ToLeaseCache
from router.slots.replica_leases import ReplicaLeases
from tests.slots.lease_caches import Cache, Request, acquire, cache_with, enqueue, names

# Acquire and release


def test_acquire_without_an_idle_lease_returns_none() -> None:
    assert cache_with().acquire(0.0) is None


def test_idle_lease_is_acquired_without_a_message() -> None:
    cache = cache_with("r1")
    lease = acquire(cache)
    assert (lease.id, lease.target) == ("r1", "pool of r1")
    assert cache.acquire(0.0) is None
    assert cache.release(lease, 0.0, 0.0) is None
    assert acquire(cache) is lease
    assert not cache.needs_flush
    assert cache.flush() == []


def test_replica_with_the_fewest_requests_is_acquired() -> None:
    cache = cache_with("r1", "r1", "r1", "r2", "r2")
    assert [acquire(cache).id for _ in range(5)] == ["r1", "r2", "r1", "r2", "r1"]


def test_of_equally_loaded_replicas_the_one_idle_longest_is_acquired() -> None:
    cache = cache_with("r1", "r2", "r3", replicas=("r1", "r2", "r3"))
    first, second, third = (acquire(cache) for _ in range(3))
    for lease in (second, third, first):
        cache.release(lease, 0.0, 0.0)
    assert [acquire(cache).id for _ in range(3)] == ["r2", "r3", "r1"]


def test_lease_that_becomes_idle_is_acquired_after_a_failed_acquire() -> None:
    cache = cache_with("r1", "r1", "r2")
    leases = [acquire(cache) for _ in range(3)]
    assert cache.acquire(0.0) is None
    cache.release(leases[0], 0.0, 0.0)  # one request is left at r1
    assert acquire(cache).id == "r1"


def test_lease_of_finished_request_goes_to_the_oldest_waiter() -> None:
    cache = cache_with("r1")
    lease = acquire(cache)
    first, second = enqueue(cache, "first", "second")
    assert cache.release(lease, 0.0, 0.0) is first
    assert cache.release(lease, 0.0, 0.0) is second
    assert cache.busy == lease.busy == 1
    assert cache.release(lease, 0.0, 0.0) is None
    assert cache.busy == lease.busy == 0


def test_cancelled_waiter_is_not_started() -> None:
    cache = cache_with("r1")
    lease = acquire(cache)
    first, second, third = enqueue(cache, "first", "second", "third")
    cache.cancel(first, 0.0)
    cache.cancel(third, 0.0)
    assert cache.release(lease, 0.0, 0.0) is second
    cache.cancel(second, 0.0)  # no effect, because the request is no longer queued
    assert cache.busy == 1
    assert not cache.waiters


def test_waiters_expire_by_their_waiting_time() -> None:
    cache = cache_with()
    enqueue(cache, "first", now=1.0)
    enqueue(cache, "second", now=2.0)
    enqueue(cache, "third", now=3.0)
    assert cache.expire(0.5, 4.0) == []
    assert [request.name for request in cache.expire(2.0, 4.0)] == ["first", "second"]
    assert [request.name for request in cache.waiters.values()] == ["third"]


def test_request_that_has_waited_before_expires_before_older_waiters() -> None:
    cache = cache_with()
    (first,) = enqueue(cache, "first", now=1.0)
    returned = Request("returned")
    cache.enqueue(returned, 3.0, 2.5)
    assert cache.queue.waiting_longest_since() == 0.5
    cache.flush()
    assert cache.expire(0.5, 4.0) == [returned]
    assert cache.flush() == [SlotDemand(2, 0, (2,))]
    assert cache.queue.waiting_longest_since() == 1.0
    assert cache.expire(1.0, 5.0) == [first]


# Grants


def test_grant_starts_the_oldest_waiter() -> None:
    cache = cache_with()
    enqueue(cache, "first", "second")
    assert names(cache.handle(Grant("r1", 1), 0.0)) == [("first", "r1")]
    assert names(cache.handle(Grant("r2", 2), 0.0)) == [("second", "r2")]
    assert cache.busy_by_replica() == {"r1": 1, "r2": 1}


def test_grant_for_cancelled_waiter_starts_the_next_one() -> None:
    cache = cache_with()
    first, _ = enqueue(cache, "first", "second")
    cache.flush()
    cache.cancel(first, 0.0)
    assert names(cache.handle(Grant("r1", 1), 0.0)) == [("second", "r1")]
    assert cache.flush() == [SlotDemand(2, 2)]


def test_grant_without_a_waiter_stays_idle() -> None:
    cache = cache_with()
    (only,) = enqueue(cache, "only")
    cache.flush()
    cache.cancel(only, 0.0)
    assert cache.handle(Grant("r1", 1), 0.0) == []
    assert cache.idle == 1
    assert cache.held() == {"r1": 1}
    assert acquire(cache).id == "r1"


# Recalls


def test_recalled_idle_leases_are_returned_at_once_busiest_replica_first() -> None:
    cache = cache_with("r1", "r1", "r2")
    acquire(cache)
    cache.handle(Recall(1, 0), 0.0)
    assert cache.needs_flush
    assert cache.flush() == [Return("r1", 1)]
    assert cache.held() == {"r1": 1, "r2": 1}


def test_recalled_busy_lease_is_returned_when_its_request_ends() -> None:
    cache = cache_with("r1", "r2")
    first, second = acquire(cache), acquire(cache)
    cache.handle(Recall(1, 0), 0.0)
    assert cache.flush() == []
    cache.release(first, 0.0, 0.0)
    cache.release(second, 0.0, 0.0)  # the recall is satisfied
    assert cache.flush() == [Return("r1", 1)]
    assert cache.held() == {"r2": 1}


def test_ended_recall_returns_nothing() -> None:
    cache = cache_with("r1")
    lease = acquire(cache)
    cache.handle(Recall(1, 0), 0.0)
    cache.handle(Recall(0, 0), 0.0)
    cache.release(lease, 0.0, 0.0)
    assert cache.flush() == []


def test_recall_takes_effect_after_older_waiters_of_the_same_worker() -> None:
    cache = cache_with("r1")
    lease = acquire(cache)
    first, second = enqueue(cache, "first", "second")
    cache.flush()
    cache.handle(Recall(5, 1), 0.0)
    assert cache.release(lease, 0.0, 0.0) is first
    assert cache.release(lease, 0.0, 0.0) is None
    assert cache.flush() == [Return("r1", 1), SlotDemand(2, 1)]
    assert list(cache.waiters.values()) == [second]


def test_grant_without_a_waiter_is_returned_for_a_recall() -> None:
    cache = cache_with()
    cache.handle(Recall(1, 0), 0.0)
    cache.handle(Grant("r1", 1), 0.0)
    cache.handle(Grant("r2", 2), 0.0)
    assert cache.flush() == [Return("r1", 1)]
    assert cache.held() == {"r2": 1}


# Revocations and removals


def test_revoked_leases_are_returned_as_soon_as_they_are_idle() -> None:
    cache = cache_with("r1", "r1", "r1")
    first, second = acquire(cache), acquire(cache)
    cache.handle(Revoke("r1"), 0.0)
    assert cache.flush() == [Return("r1", 1)]
    cache.release(first, 0.0, 0.0)
    cache.release(second, 0.0, 0.0)
    assert cache.flush() == [Return("r1", 2)]
    assert cache.held() == {}


def test_revoked_lease_is_not_passed_to_a_waiter() -> None:
    cache = cache_with("r1")
    lease = acquire(cache)
    (waiter,) = enqueue(cache, "waiter")
    cache.handle(Revoke("r1"), 0.0)
    assert cache.release(lease, 0.0, 0.0) is None
    assert list(cache.waiters.values()) == [waiter]


def test_grant_ends_a_revocation() -> None:
    cache = cache_with("r1")
    lease = acquire(cache)
    cache.handle(Revoke("r1"), 0.0)
    cache.handle(Grant("r1", 1), 0.0)
    cache.release(lease, 0.0, 0.0)
    assert cache.held() == {"r1": 2}


def test_revocation_of_unknown_replica_has_no_effect() -> None:
    cache = cache_with("r1")
    assert cache.handle(Revoke("r9"), 0.0) == []
    assert cache.flush() == []


def test_leases_of_removed_replica_are_held_until_its_requests_end() -> None:
    cache = cache_with("r1", "r1", "r2")
    lease = acquire(cache)
    assert lease.id == "r1"
    cache.set_replicas({"r2": "pool of r2"}, 0.0)
    assert cache.flush() == [Return("r1", 1)]
    assert cache.held() == {"r1": 1, "r2": 1}
    assert cache.busy_by_replica() == {"r1": 1}
    cache.release(lease, 0.0, 0.0)
    assert cache.flush() == [Return("r1", 1)]
    assert cache.held() == {"r2": 1}
    assert cache.busy_by_replica() == {}


def test_replica_that_is_added_again_has_a_new_target_and_both_are_counted() -> None:
    cache = cache_with("r1")
    previous = acquire(cache)
    cache.set_replicas({}, 0.0)
    cache.set_replicas({"r1": "new pool"}, 0.0)
    cache.handle(Grant("r1", 1), 0.0)
    lease = acquire(cache)
    assert (previous.target, lease.target) == ("pool of r1", "new pool")
    assert cache.held() == cache.busy_by_replica() == {"r1": 2}
    cache.suspend(previous, 0.0)  # has no effect on the new replica
    cache.resume(previous, 0.0)
    cache.release(previous, 0.0, 0.0)
    cache.set_replicas({"r1": "new pool", "r2": "pool of r2"}, 0.0)
    assert cache.flush() == [Return("r1", 1)]
    assert cache.held() == {"r1": 1}


# Suspensions


def test_suspended_replica_is_excluded_and_its_leases_are_returned() -> None:
    cache = cache_with("r1", "r1", "r1", "r2")
    lease = acquire(cache)
    cache.suspend(lease, 0.0)
    cache.suspend(lease, 0.0)
    assert cache.needs_flush
    assert cache.flush() == [Exclude(frozenset({"r1"})), Return("r1", 2)]
    assert acquire(cache).id == "r2"
    assert cache.acquire(0.0) is None
    enqueue(cache, "waiter")
    assert cache.release(lease, 0.0, 0.0) is None
    assert cache.flush() == [Return("r1", 1), SlotDemand(1, 0)]


def test_resumed_replica_is_not_excluded() -> None:
    cache = cache_with("r1")
    lease = acquire(cache)
    cache.suspend(lease, 0.0)
    cache.flush()
    assert cache.resume(lease, 0.0) == []
    assert cache.needs_flush
    assert cache.flush() == [Exclude(frozenset())]
    cache.release(lease, 0.0, 0.0)
    assert cache.held() == {"r1": 1}


def test_short_suspension_takes_no_message() -> None:
    cache = cache_with("r1")
    lease = acquire(cache)
    cache.suspend(lease, 0.0)
    cache.resume(lease, 0.0)
    assert cache.flush() == []


def test_resumed_replica_that_was_revoked_stays_closed() -> None:
    cache = cache_with("r1", "r2")
    lease = acquire(cache)
    cache.suspend(lease, 0.0)
    cache.handle(Revoke("r1"), 0.0)
    cache.resume(lease, 0.0)
    cache.release(lease, 0.0, 0.0)
    assert cache.held() == {"r2": 1}


def test_removed_replica_is_not_excluded() -> None:
    cache = cache_with("r1")
    cache.suspend(acquire(cache), 0.0)
    cache.flush()
    cache.set_replicas({"r2": "pool of r2"}, 0.0)
    assert cache.flush() == [Exclude(frozenset())]


# Usage


def test_totals_are_integrals_over_time() -> None:
    cache = cache_with("r1", now=0.0)
    lease = acquire(cache, 1.0)
    assert cache.acquire(2.0) is None
    (waiter,) = enqueue(cache, "waiter", now=2.0)
    assert cache.acquire(4.0) is None
    enqueue(cache, "expiring", now=4.0)
    assert cache.release(lease, 4.5, 3.5) is waiter
    cache.expire(4.0, 5.0)
    cache.refuse()
    cache.release(lease, 7.0, 2.5)
    totals = UsageTotals(busy_seconds=6.0, queued_seconds=3.5, arrivals=3, refused=1, completed=2, service_seconds=6.0)
    assert cache.totals(8.0) == totals
    assert cache.totals(9.0) == totals


def test_requests_that_wait_while_no_replica_is_usable_do_not_count_as_queued() -> None:
    cache = cache_with("r1", replicas=["r1"])
    lease = acquire(cache)
    early, cancelled = enqueue(cache, "early", "cancelled", now=1.0)
    cache.suspend(lease, 2.0)  # both have waited for 1 s
    enqueue(cache, "late", now=3.0)
    cache.resume(lease, 5.0)
    enqueue(cache, "after", now=6.0)
    cache.cancel(cancelled, 7.0)
    assert cache.release(lease, 7.0, 7.0) is early
    cache.expire(3.0, 8.0)  # removes the late one: the queue counts from now on
    assert [waiter.name for waiter in cache.waiters.values()] == ["after"]
    assert cache.totals(10.0).queued_seconds == 2.0 + 2.0


@pytest.mark.parametrize(("starts_from_zero", "queued_seconds"), [(True, 4.0), (False, 0.0)])
def test_requests_that_wait_for_a_start_from_zero_count_as_queued(
    starts_from_zero: bool, queued_seconds: float
) -> None:
    cache = cache_with()
    cache.set_replicas({}, 0.0, starts_from_zero=starts_from_zero)
    enqueue(cache, "waiter", now=1.0)
    assert cache.totals(5.0).queued_seconds == queued_seconds


def test_request_that_is_sent_to_another_replica_counts_as_one_arrival() -> None:
    cache = cache_with("r1", "r2")
    lease = acquire(cache)
    cache.suspend(lease, 0.0)
    cache.release(lease, 0.0, 0.0)
    other = cache.reacquire(0.0)
    assert other is not None
    assert other.id == "r2"
    assert cache.totals(0.0).arrivals == 1


# The index of idle leases


def test_each_replica_with_idle_leases_is_in_the_bucket_of_its_load() -> None:
    """White box: a replica in a wrong bucket would not be found, or be found without an idle lease."""
    replicas = ("r1", "r2", "r3")
    cache = cache_with(*replicas * 3, replicas=replicas)
    rng = random.Random(3)
    running: list[ReplicaLeases[str]] = []
    suspended: list[ReplicaLeases[str]] = []
    messages: list[ToLeaseCache] = [Recall(1, 0), Recall(0, 0), Revoke("r1")]
    for _ in range(3000):
        action = rng.randrange(12)
        if action < 5 and (lease := cache.acquire(0.0)) is not None:
            running.append(lease)
        elif action < 9 and running:
            cache.release(running.pop(rng.randrange(len(running))), 0.0, 0.0)
        elif action == 9 and running and len(suspended) < 2:
            cache.suspend(running[-1], 0.0)
            suspended.append(running[-1])
        elif action == 10 and suspended:
            cache.resume(suspended.pop(), 0.0)
        elif action == 11:
            cache.handle(rng.choice(messages), 0.0)
        usable = [replica for replica in replicas if replica not in {lease.id for lease in suspended}]
        for message in cache.flush():
            for _ in range(message.count if isinstance(message, Return) else 0):
                cache.handle(Grant(rng.choice(usable), 0), 0.0)
        check_buckets(cache)


def check_buckets(cache: Cache) -> None:
    if cache._idle.only_replica is not None:
        assert [*cache._replicas.values()] == [cache._idle.only_replica]
        return
    buckets = {replica.id: load for load, bucket in enumerate(cache._idle.buckets) for replica in bucket.values()}
    expected = {replica.id: replica.busy for replica in cache._replicas.values() if replica.idle}
    assert buckets == expected
    assert not any(cache._idle.buckets[: cache._idle.lowest])
    assert all(not replica.idle for replica in cache._replicas.values() if replica.closed)
