"""What a holder tells its ledger, in how many words, and how the two find together again."""

import pytest

from router.slots.messages import Avoid, Grant, Hello, Recall, Revoke, SayHello, ToHolder, Wants, Welcome
from tests.slots.holders import Holder, acquire, enqueue, holder_with, names, welcome_to

# What the ledger is told


def test_arrivals_and_departures_of_one_turn_fold_into_one_message() -> None:
    holder = holder_with("r1")
    lease = acquire(holder)
    _, second, _, _ = enqueue(holder, "first", "second", "third", "fourth")
    holder.cancel(second, 0.0)
    holder.release(lease, 0.0, 0.0)
    assert holder.flush() == [Wants(4, 2)]
    assert not holder.news
    assert holder.flush() == []


def test_waiter_that_left_from_the_middle_is_named() -> None:
    holder = holder_with()
    _, second, _ = enqueue(holder, "first", "second", "third")
    holder.flush()
    holder.cancel(second, 0.0)
    assert holder.flush() == [Wants(3, 0, (2,))]
    assert holder.flush() == []


def test_waiter_that_came_and_left_untold_is_never_wanted() -> None:
    holder = holder_with()
    enqueue(holder, "first")
    holder.flush()
    (second,) = enqueue(holder, "second")
    holder.cancel(second, 0.0)
    assert holder.flush() == []
    enqueue(holder, "third")
    assert holder.flush() == [Wants(3, 0, (2,))]


def test_answered_want_needs_no_confirmation() -> None:
    holder = holder_with()
    enqueue(holder, "only")
    holder.flush()
    holder.handle(Grant("r1", 1), 0.0)
    assert holder.flush() == []


def test_waiter_served_before_the_ledger_heard_of_it_is_not_mentioned() -> None:
    holder = holder_with("r1")
    lease = acquire(holder)
    enqueue(holder, "only")
    holder.release(lease, 0.0, 0.0)
    assert holder.flush() == []


def test_waiter_served_by_a_lease_in_hand_is_wanted_no_more() -> None:
    holder = holder_with("r1")
    lease = acquire(holder)
    enqueue(holder, "only")
    holder.flush()
    holder.release(lease, 0.0, 0.0)
    assert holder.flush() == [Wants(1, 1)]


# Hello


def test_hello_tells_all() -> None:
    holder = holder_with("r1", "r1", "r2")
    lease = acquire(holder)
    holder.suspend(acquire(holder))
    _, second, _ = enqueue(holder, "first", "second", "third")
    holder.cancel(second, 0.0)
    holder.release(lease, 0.0, 0.0)
    hello = holder.hello()
    assert hello == Hello(hello.holder, 1, {"r1": 2, "r2": 1}, frozenset({"r2"}), 3, 2)
    assert holder.flush() == []


def test_hello_leaves_out_who_has_left_the_queue() -> None:
    holder = holder_with()
    _, second, _, fourth = enqueue(holder, "first", "second", "third", "fourth")
    holder.cancel(second, 0.0)
    holder.cancel(fourth, 0.0)
    hello = holder.hello()
    assert (hello.served_upto, hello.wanted_upto, hello.cancelled) == (0, 4, (2, 4))


def test_hello_makes_what_was_to_be_said_superfluous() -> None:
    holder = holder_with("r1")
    holder.handle(Revoke("r1"), 0.0)
    enqueue(holder, "waiter")
    hello = holder.hello()
    assert (hello.held, hello.wanted_upto) == ({}, 1)
    assert holder.flush() == []


def test_each_holder_has_a_number_of_its_own_and_counts_its_hellos() -> None:
    one = Holder(unlimited=False, now=0.0)
    other = Holder(unlimited=False, now=0.0)
    hellos = [one.hello(), one.hello(), other.hello()]
    assert [hello.session for hello in hellos] == [1, 2, 1]
    assert hellos[0].holder == hellos[1].holder != hellos[2].holder


@pytest.mark.parametrize("message", [Grant("r1", 1), Recall(9, 0), Revoke("r2"), SayHello(), Welcome(0, 0)])
def test_what_the_ledger_said_before_it_heard_hello_is_void(message: ToHolder) -> None:
    holder = holder_with("r2")
    enqueue(holder, "waiter")
    holder.handle(Recall(0, 0), 0.0)
    hello = holder.hello()
    assert holder.handle(message, 0.0) == []
    assert holder.flush() == []
    assert holder.held() == {"r2": 1}
    holder.handle(welcome_to(hello), 0.0)
    assert names(holder.handle(Grant("r1", 1), 0.0)) == [("waiter", "r1")]


def test_welcome_to_an_earlier_hello_is_not_enough() -> None:
    holder = holder_with()
    first, second = holder.hello(), holder.hello()
    holder.handle(welcome_to(first), 0.0)
    holder.handle(Grant("r1", 0), 0.0)
    assert holder.held() == {}
    holder.handle(welcome_to(second), 0.0)
    holder.handle(Grant("r1", 0), 0.0)
    assert holder.held() == {"r1": 1}


def test_hello_ends_a_recall() -> None:
    holder = holder_with("r1")
    lease = acquire(holder)
    holder.handle(Recall(1, 0), 0.0)
    holder.hello()
    holder.release(lease, 0.0, 0.0)
    assert holder.held() == {"r1": 1}


def test_ledger_that_does_not_know_the_holder_hears_hello() -> None:
    holder = holder_with("r1")
    holder.handle(SayHello(), 0.0)
    assert holder.news
    (hello,) = holder.flush()
    assert isinstance(hello, Hello)
    assert hello.held == {"r1": 1}
    assert not holder.news
    assert holder.flush() == []


@pytest.mark.parametrize("suspended", [True, False])
def test_grant_that_cannot_be_used_is_mended_by_a_hello_in_which_the_waiter_still_waits(suspended: bool) -> None:
    holder = holder_with("r1", replicas=("r1",) if suspended else ("r0", "r1"))
    lease = acquire(holder)
    if suspended:
        holder.suspend(lease)
    else:
        holder.set_replicas({"r0": "pool of r0"}, 0.0)
    (waiter,) = enqueue(holder, "waiter")
    holder.flush()
    assert holder.handle(Grant("r1", 1), 0.0) == []
    (hello,) = holder.flush()
    assert isinstance(hello, Hello)
    assert (hello.held, hello.avoided) == ({"r1": 1}, frozenset({"r1"}))  # the busy one
    assert (hello.served_upto, hello.wanted_upto) == (0, 1)
    assert list(holder.waiters.values()) == [waiter]


def test_replica_granted_before_it_was_known_is_avoided_until_replicas_change() -> None:
    holder = holder_with()
    holder.handle(Grant("r3", 0), 0.0)
    (hello,) = holder.flush()
    assert isinstance(hello, Hello)
    assert hello.avoided == {"r3"}
    holder.handle(welcome_to(hello), 0.0)
    assert holder.flush() == []
    holder.set_replicas({"r3": "pool of r3"}, 0.0)
    assert holder.flush() == [Avoid(frozenset())]
