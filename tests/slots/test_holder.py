"""The holder: which lease a request gets, who is next in the queue, which leases go back."""

import random

from router.slots.holder import HeldReplica, Totals
from router.slots.messages import Avoid, Grant, Recall, Return, Revoke, ToHolder, Wants
from tests.slots.holders import Holder, acquire, enqueue, holder_with, names

# Acquire and release


def test_without_a_lease_there_is_nothing_to_acquire() -> None:
    assert holder_with().acquire(0.0) is None


def test_idle_lease_is_acquired_without_a_word() -> None:
    holder = holder_with("r1")
    lease = acquire(holder)
    assert (lease.id, lease.target) == ("r1", "pool of r1")
    assert holder.acquire(0.0) is None
    assert holder.release(lease, 0.0, 0.0) is None
    assert acquire(holder) is lease
    assert not holder.news
    assert holder.flush() == []


def test_replica_with_the_fewest_requests_is_acquired() -> None:
    holder = holder_with("r1", "r1", "r1", "r2", "r2")
    assert [acquire(holder).id for _ in range(5)] == ["r1", "r2", "r1", "r2", "r1"]


def test_of_equal_replicas_the_one_that_rested_longest_is_acquired() -> None:
    holder = holder_with("r1", "r2", "r3", replicas=("r1", "r2", "r3"))
    first, second, third = (acquire(holder) for _ in range(3))
    for lease in (second, third, first):
        holder.release(lease, 0.0, 0.0)
    assert [acquire(holder).id for _ in range(3)] == ["r2", "r3", "r1"]


def test_lease_is_found_again_after_none_was_idle() -> None:
    holder = holder_with("r1", "r1", "r2")
    leases = [acquire(holder) for _ in range(3)]
    assert holder.acquire(0.0) is None
    holder.release(leases[0], 0.0, 0.0)  # one request is left at r1
    assert acquire(holder).id == "r1"


def test_finished_request_hands_its_lease_to_the_oldest_waiter() -> None:
    holder = holder_with("r1")
    lease = acquire(holder)
    first, second = enqueue(holder, "first", "second")
    assert holder.release(lease, 0.0, 0.0) is first
    assert holder.release(lease, 0.0, 0.0) is second
    assert holder.busy == lease.busy == 1
    assert holder.release(lease, 0.0, 0.0) is None
    assert holder.busy == lease.busy == 0


def test_has_other_looks_for_replicas_that_accept_requests() -> None:
    holder = holder_with("r1", "r2")
    assert holder.has_other("r1")
    holder.suspend(acquire(holder))
    assert not holder.has_other("r2")
    assert holder.has_other("r1")
    holder.handle(Revoke("r2"), 0.0)
    assert not holder.has_other("r1")


# The queue


def test_cancelled_waiter_is_passed_over() -> None:
    holder = holder_with("r1")
    lease = acquire(holder)
    first, second, third = enqueue(holder, "first", "second", "third")
    holder.cancel(first, 0.0)
    holder.cancel(third, 0.0)
    assert holder.release(lease, 0.0, 0.0) is second
    holder.cancel(second, 0.0)  # it waits no more
    assert holder.busy == 1
    assert not holder.waiters


def test_waiters_expire_by_the_time_they_have_waited() -> None:
    holder = holder_with()
    enqueue(holder, "first", now=1.0)
    enqueue(holder, "second", now=2.0)
    enqueue(holder, "third", now=3.0)
    assert holder.expire(0.5, 4.0) == []
    assert [request.name for request in holder.expire(2.0, 4.0)] == ["first", "second"]
    assert [request.name for request in holder.waiters.values()] == ["third"]


# Grants


def test_grant_starts_the_oldest_waiter() -> None:
    holder = holder_with()
    enqueue(holder, "first", "second")
    assert names(holder.handle(Grant("r1", 1), 0.0)) == [("first", "r1")]
    assert names(holder.handle(Grant("r2", 2), 0.0)) == [("second", "r2")]
    assert holder.busy_by_replica() == {"r1": 1, "r2": 1}


def test_grant_whose_waiter_has_left_serves_the_next_one() -> None:
    holder = holder_with()
    first, _ = enqueue(holder, "first", "second")
    holder.flush()
    holder.cancel(first, 0.0)
    assert names(holder.handle(Grant("r1", 1), 0.0)) == [("second", "r1")]
    assert holder.flush() == [Wants(2, 2)]


def test_grant_that_nobody_waits_for_any_more_stays_idle() -> None:
    holder = holder_with()
    (only,) = enqueue(holder, "only")
    holder.flush()
    holder.cancel(only, 0.0)
    assert holder.handle(Grant("r1", 1), 0.0) == []
    assert holder.idle == 1
    assert holder.held() == {"r1": 1}
    assert acquire(holder).id == "r1"


# Recalls


def test_idle_leases_go_back_at_once_those_of_the_busiest_replica_first() -> None:
    holder = holder_with("r1", "r1", "r2")
    acquire(holder)
    holder.handle(Recall(1, 0), 0.0)
    assert holder.news
    assert holder.flush() == [Return("r1", 1)]
    assert holder.held() == {"r1": 1, "r2": 1}


def test_busy_lease_goes_back_when_its_request_ends() -> None:
    holder = holder_with("r1", "r2")
    first, second = acquire(holder), acquire(holder)
    holder.handle(Recall(1, 0), 0.0)
    assert holder.flush() == []
    holder.release(first, 0.0, 0.0)
    holder.release(second, 0.0, 0.0)  # enough went back
    assert holder.flush() == [Return("r1", 1)]
    assert holder.held() == {"r2": 1}


def test_lifted_recall_lets_leases_stay() -> None:
    holder = holder_with("r1")
    lease = acquire(holder)
    holder.handle(Recall(1, 0), 0.0)
    holder.handle(Recall(0, 0), 0.0)
    holder.release(lease, 0.0, 0.0)
    assert holder.flush() == []


def test_own_waiters_that_are_older_are_served_before_the_recall() -> None:
    holder = holder_with("r1")
    lease = acquire(holder)
    first, second = enqueue(holder, "first", "second")
    holder.flush()
    holder.handle(Recall(5, 1), 0.0)
    assert holder.release(lease, 0.0, 0.0) is first
    assert holder.release(lease, 0.0, 0.0) is None
    assert holder.flush() == [Return("r1", 1), Wants(2, 1)]
    assert list(holder.waiters.values()) == [second]


def test_grant_that_nobody_waits_for_is_recalled_like_any_other() -> None:
    holder = holder_with()
    holder.handle(Recall(1, 0), 0.0)
    holder.handle(Grant("r1", 1), 0.0)
    holder.handle(Grant("r2", 2), 0.0)
    assert holder.flush() == [Return("r1", 1)]
    assert holder.held() == {"r2": 1}


# Revocations and removals


def test_revoked_leases_go_back_idle_ones_at_once_and_busy_ones_as_they_end() -> None:
    holder = holder_with("r1", "r1", "r1")
    first, second = acquire(holder), acquire(holder)
    holder.handle(Revoke("r1"), 0.0)
    assert holder.flush() == [Return("r1", 1)]
    holder.release(first, 0.0, 0.0)
    holder.release(second, 0.0, 0.0)
    assert holder.flush() == [Return("r1", 2)]
    assert holder.held() == {}


def test_revoked_lease_serves_no_waiter() -> None:
    holder = holder_with("r1")
    lease = acquire(holder)
    (waiter,) = enqueue(holder, "waiter")
    holder.handle(Revoke("r1"), 0.0)
    assert holder.release(lease, 0.0, 0.0) is None
    assert list(holder.waiters.values()) == [waiter]


def test_grant_ends_a_revocation() -> None:
    holder = holder_with("r1")
    lease = acquire(holder)
    holder.handle(Revoke("r1"), 0.0)
    holder.handle(Grant("r1", 1), 0.0)
    holder.release(lease, 0.0, 0.0)
    assert holder.held() == {"r1": 2}


def test_revocation_of_an_unknown_replica_is_nothing() -> None:
    holder = holder_with("r1")
    assert holder.handle(Revoke("r9"), 0.0) == []
    assert holder.flush() == []


def test_removed_replica_is_counted_until_its_requests_end() -> None:
    holder = holder_with("r1", "r1", "r2")
    lease = acquire(holder)
    assert lease.id == "r1"
    holder.set_replicas({"r2": "pool of r2"}, 0.0)
    assert holder.flush() == [Return("r1", 1)]
    assert holder.held() == {"r1": 1, "r2": 1}
    assert holder.busy_by_replica() == {"r1": 1}
    holder.release(lease, 0.0, 0.0)
    assert holder.flush() == [Return("r1", 1)]
    assert holder.held() == {"r2": 1}
    assert holder.busy_by_replica() == {}


def test_replica_that_returns_has_new_connections_and_both_are_counted() -> None:
    holder = holder_with("r1")
    former = acquire(holder)
    holder.set_replicas({}, 0.0)
    holder.set_replicas({"r1": "new pool"}, 0.0)
    holder.handle(Grant("r1", 1), 0.0)
    lease = acquire(holder)
    assert (former.target, lease.target) == ("pool of r1", "new pool")
    assert holder.held() == holder.busy_by_replica() == {"r1": 2}
    holder.suspend(former)  # what befell the former says nothing of the new one
    holder.resume(former, 0.0)
    holder.release(former, 0.0, 0.0)
    holder.set_replicas({"r1": "new pool", "r2": "pool of r2"}, 0.0)
    assert holder.flush() == [Return("r1", 1)]
    assert holder.held() == {"r1": 1}


# Suspensions


def test_suspended_replica_is_avoided_and_its_leases_go_back() -> None:
    holder = holder_with("r1", "r1", "r1", "r2")
    lease = acquire(holder)
    holder.suspend(lease)
    holder.suspend(lease)
    assert holder.news
    assert holder.flush() == [Avoid(frozenset({"r1"})), Return("r1", 2)]
    assert acquire(holder).id == "r2"
    assert holder.acquire(0.0) is None
    enqueue(holder, "waiter")
    assert holder.release(lease, 0.0, 0.0) is None
    assert holder.flush() == [Return("r1", 1), Wants(1, 0)]


def test_resumed_replica_is_avoided_no_more() -> None:
    holder = holder_with("r1")
    lease = acquire(holder)
    holder.suspend(lease)
    holder.flush()
    assert holder.resume(lease, 0.0) == []
    assert holder.news
    assert holder.flush() == [Avoid(frozenset())]
    holder.release(lease, 0.0, 0.0)
    assert holder.held() == {"r1": 1}


def test_suspension_that_was_short_is_not_worth_a_word() -> None:
    holder = holder_with("r1")
    lease = acquire(holder)
    holder.suspend(lease)
    holder.resume(lease, 0.0)
    assert holder.flush() == []


def test_resumed_replica_that_was_revoked_stays_closed() -> None:
    holder = holder_with("r1", "r2")
    lease = acquire(holder)
    holder.suspend(lease)
    holder.handle(Revoke("r1"), 0.0)
    holder.resume(lease, 0.0)
    holder.release(lease, 0.0, 0.0)
    assert holder.held() == {"r2": 1}


def test_removed_replica_is_avoided_no_more() -> None:
    holder = holder_with("r1")
    holder.suspend(acquire(holder))
    holder.flush()
    holder.set_replicas({"r2": "pool of r2"}, 0.0)
    assert holder.flush() == [Avoid(frozenset())]


# Counts


def test_totals_are_integrals_over_time() -> None:
    holder = holder_with("r1", now=0.0)
    lease = acquire(holder, 1.0)
    assert holder.acquire(2.0) is None
    (waiter,) = enqueue(holder, "waiter", now=2.0)
    assert holder.acquire(4.0) is None
    enqueue(holder, "impatient", now=4.0)
    assert holder.release(lease, 4.5, 3.5) is waiter
    holder.expire(4.0, 5.0)
    holder.refuse()
    holder.release(lease, 7.0, 2.5)
    totals = Totals(busy_seconds=6.0, queued_seconds=3.5, arrivals=3, refused=1, completed=2, service_seconds=6.0)
    assert holder.totals(8.0) == totals
    assert holder.totals(9.0) == totals


def test_request_that_is_sent_to_another_replica_has_arrived_once() -> None:
    holder = holder_with("r1", "r2")
    lease = acquire(holder)
    holder.suspend(lease)
    holder.release(lease, 0.0, 0.0)
    other = holder.acquire_again(0.0)
    assert other is not None
    assert other.id == "r2"
    assert holder.totals(0.0).arrivals == 1


# Leases are where they should be, whatever happened


def test_each_idle_lease_is_on_the_shelf_of_its_replicas_load() -> None:
    """White box: a replica on a wrong shelf would be lost, or found with nothing to give."""
    replicas = ("r1", "r2", "r3")
    holder = holder_with(*replicas * 3, replicas=replicas)
    rng = random.Random(3)
    running: list[HeldReplica[str]] = []
    suspended: list[HeldReplica[str]] = []
    asked: list[ToHolder] = [Recall(1, 0), Recall(0, 0), Revoke("r1")]
    for _ in range(3000):
        action = rng.randrange(12)
        if action < 5 and (lease := holder.acquire(0.0)) is not None:
            running.append(lease)
        elif action < 9 and running:
            holder.release(running.pop(rng.randrange(len(running))), 0.0, 0.0)
        elif action == 9 and running and len(suspended) < 2:
            holder.suspend(running[-1])
            suspended.append(running[-1])
        elif action == 10 and suspended:
            holder.resume(suspended.pop(), 0.0)
        elif action == 11:
            holder.handle(rng.choice(asked), 0.0)
        usable = [replica for replica in replicas if replica not in {lease.id for lease in suspended}]
        for word in holder.flush():
            for _ in range(word.count if isinstance(word, Return) else 0):
                holder.handle(Grant(rng.choice(usable), 0), 0.0)
        check_shelves(holder)


def check_shelves(holder: Holder) -> None:
    if holder._sole is not None:
        assert [*holder._replicas.values()] == [holder._sole]
        return
    shelves = {replica.id: level for level, row in enumerate(holder._levels) for replica in row.values()}
    expected = {replica.id: replica.busy for replica in holder._replicas.values() if replica.idle}
    assert shelves == expected
    assert not any(holder._levels[: holder._lowest])
    assert all(not replica.idle for replica in holder._replicas.values() if replica.closed)
