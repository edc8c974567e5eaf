"""The ledger: what it grants, to whom, and what it asks back."""

import pytest

from router.slots.ledger import VersionLedger
from router.slots.messages import Grant, Hello, Recall, Return, Revoke, Wants
from router.slots.records import ReplicaRecord, Shelf
from tests.slots.ledgers import A, B, C, busy_ledger, granted, ledger_with, to

# Grants


def test_want_is_granted_a_free_slot() -> None:
    ledger = ledger_with({"r": 1}, A)
    assert ledger.handle(A, Wants(1, 0)) == [(A, Grant("r", 1))]
    assert ledger.held_by(A) == {"r": 1}
    assert ledger.out("r") == 1
    assert ledger.waiting == 0


def test_wants_of_one_message_are_granted_in_their_order() -> None:
    ledger = ledger_with({"r": 2}, A)
    assert ledger.handle(A, Wants(3, 0)) == [(A, Grant("r", 1)), (A, Grant("r", 2))]
    assert ledger.wants_of(A) == (3,)


def test_least_loaded_replica_is_granted_first() -> None:
    ledger = ledger_with({"r1": 2, "r2": 2, "r3": 2}, A)
    assert granted(ledger.handle(A, Wants(6, 0))) == [(A, replica) for replica in ("r1", "r2", "r3", "r1", "r2", "r3")]


def test_returned_slot_is_least_loaded_again() -> None:
    ledger = ledger_with({"r1": 2, "r2": 2}, A)
    ledger.handle(A, Wants(4, 0))
    ledger.handle(A, Return("r2", 2))
    assert granted(ledger.handle(A, Wants(5, 4))) == [(A, "r2")]


def test_want_waits_while_nothing_is_free_and_is_granted_what_comes_back() -> None:
    ledger = ledger_with({"r": 1}, A, B)
    ledger.handle(A, Wants(1, 0))
    assert granted(ledger.handle(B, Wants(1, 0))) == []
    assert ledger.waiting == 1
    assert to(B, ledger.handle(A, Return("r", 1))) == [Grant("r", 1)]


def test_oldest_want_across_front_ends_is_granted_first() -> None:
    ledger = ledger_with({}, A, B)
    ledger.handle(A, Wants(1, 0))
    ledger.handle(B, Wants(1, 0))
    ledger.handle(A, Wants(2, 0))
    assert granted(ledger.set_replicas({"r": 3})) == [(A, "r"), (B, "r"), (A, "r")]


def test_new_replica_is_granted_to_who_waits() -> None:
    ledger = ledger_with({}, A)
    ledger.handle(A, Wants(1, 0))
    assert ledger.set_replicas({"r": 1}) == [(A, Grant("r", 1))]


def test_no_want_no_message() -> None:
    ledger = ledger_with({"r": 2}, A, B)
    ledger.handle(A, Wants(1, 0))
    assert ledger.handle(A, Return("r", 1)) == []
    assert ledger.handle(A, Wants(1, 1)) == []


@pytest.mark.parametrize(
    ("message", "left"),
    [
        (Wants(4, 2), (3, 4)),  # the first two were served by the front-end's own leases, or have expired
        (Wants(4, 4), ()),
        (Wants(4, 0, (2, 3)), (1, 4)),
        (Wants(6, 5), (6,)),  # one that came and went untold is never wanted
        (Wants(6, 4, (5,)), (6,)),
        (Wants(4, 0), (1, 2, 3, 4)),
    ],
)
def test_wants_are_what_the_front_end_says_last(message: Wants, left: tuple[int, ...]) -> None:
    ledger = ledger_with({}, A)
    ledger.handle(A, Wants(4, 0))
    ledger.handle(A, message)
    assert ledger.wants_of(A) == left
    assert ledger.waiting == len(left)


def test_what_is_said_at_once_counts_as_one_change() -> None:
    ledger = ledger_with({"r": 1}, A, B)
    ledger.handle(A, Wants(1, 0))
    ledger.handle(B, Wants(1, 0))
    outbox = ledger.handle(B, Wants(1, 1), Wants(2, 1))
    assert granted(outbox) == []
    assert granted(ledger.handle(A, Return("r", 1), Wants(2, 1))) == [(B, "r")]


# Recalls


def test_holder_is_told_how_many_wait_elsewhere() -> None:
    ledger = busy_ledger(3, A, B, C)
    assert ledger.handle(B, Wants(1, 0)) == [(A, Recall(1, 0))]
    assert ledger.handle(C, Wants(1, 0)) == [(A, Recall(2, 0))]


def test_recall_asks_for_no_more_than_is_held() -> None:
    ledger = busy_ledger(2, A, B)
    assert ledger.handle(B, Wants(5, 0)) == [(A, Recall(2, 0))]


def test_front_end_without_leases_is_not_disturbed() -> None:
    ledger = busy_ledger(2, A, B, C)
    assert to(C, ledger.handle(B, Wants(1, 0))) == []


def test_own_waiters_that_are_older_come_first() -> None:
    ledger = busy_ledger(2, A, B)
    ledger.handle(A, Wants(4, 2))
    assert ledger.handle(B, Wants(1, 0)) == [(A, Recall(1, 4))]
    assert ledger.handle(A, Wants(5, 2)) == []  # younger than the one elsewhere: nothing new to say


def test_recall_is_repeated_when_the_order_has_changed() -> None:
    ledger = busy_ledger(2, A, B)
    ledger.handle(B, Wants(1, 0))
    ledger.handle(A, Wants(3, 2))
    ledger.handle(B, Wants(2, 0))
    assert ledger.handle(B, Wants(2, 1)) == [(A, Recall(1, 3))]


def test_recall_is_lifted_when_nobody_waits_elsewhere() -> None:
    ledger = busy_ledger(2, A, B)
    ledger.handle(B, Wants(1, 0))
    assert ledger.handle(B, Wants(1, 1)) == [(A, Recall(0, 0))]
    assert ledger.handle(B, Wants(1, 1)) == []


def test_recall_that_was_met_needs_no_lifting() -> None:
    ledger = busy_ledger(2, A, B)
    ledger.handle(B, Wants(1, 0))
    assert ledger.handle(A, Return("r", 1)) == [(B, Grant("r", 1))]


def test_fewer_waiters_are_not_worth_a_message() -> None:
    ledger = busy_ledger(3, A, B)
    ledger.handle(B, Wants(2, 0))
    assert ledger.handle(B, Wants(2, 1)) == []


def test_recall_met_with_something_useless_is_repeated() -> None:
    """A lease of a replica on its way out counts at the holder, but serves nobody."""
    ledger = ledger_with({"r1": 1, "r2": 1}, A, B)
    ledger.handle(A, Wants(2, 0))
    ledger.cordon(["r1"])
    assert to(A, ledger.handle(B, Wants(1, 0))) == [Recall(1, 0)]
    assert to(A, ledger.handle(A, Return("r1", 1))) == [Recall(1, 0)]


def test_long_run_of_waiters_is_named_in_stretches() -> None:
    """Not waiter by waiter, nor at the cost of the whole run."""
    ledger = busy_ledger(1, A, B)
    ledger.handle(A, Wants(201, 1))
    ledger.handle(B, Wants(1, 0))
    outboxes = [ledger.handle(A, Wants(201, served)) for served in range(2, 202)]
    recalls = [message for outbox in outboxes for message in to(A, outbox)]
    assert len(recalls) < 10
    assert all(isinstance(message, Recall) and message.count == 1 for message in recalls)
    assert recalls[-1] == Recall(1, 201)


# Replicas


def test_removed_replica_is_called_back_and_stays_on_record_until_it_is_back() -> None:
    ledger = ledger_with({"r": 2}, A)
    ledger.handle(A, Wants(2, 0))
    assert ledger.set_replicas({}) == [(A, Revoke("r"))]
    assert ledger.slots == 0
    assert ledger.out("r") == 2
    ledger.handle(A, Return("r", 1))
    assert ledger.held_by(A) == {"r": 1}
    ledger.handle(A, Return("r", 1))
    assert ledger.held_by(A) == {}
    assert ledger.out("r") == 0


def test_replica_that_returns_has_only_the_slots_that_are_free() -> None:
    ledger = ledger_with({"r": 2}, A, B)
    ledger.handle(A, Wants(1, 0))
    ledger.set_replicas({})
    ledger.handle(B, Wants(2, 0))
    assert granted(ledger.set_replicas({"r": 2})) == [(B, "r")]


def test_replica_that_returns_is_not_cordoned() -> None:
    ledger = ledger_with({"r": 1}, A)
    ledger.handle(A, Wants(1, 0))
    ledger.cordon(["r"])
    ledger.set_replicas({})
    ledger.set_replicas({"r": 2})
    assert granted(ledger.handle(A, Wants(2, 1))) == [(A, "r")]


def test_raised_slots_are_granted() -> None:
    ledger = busy_ledger(1, A)
    ledger.handle(A, Wants(2, 1))
    assert ledger.set_replicas({"r": 2}) == [(A, Grant("r", 2))]


def test_lowered_slots_are_called_back_and_granted_once_enough_are() -> None:
    ledger = busy_ledger(3, A, B)
    assert to(A, ledger.set_replicas({"r": 1})) == [Revoke("r")]
    ledger.handle(B, Wants(1, 0))
    assert granted(ledger.handle(A, Return("r", 2))) == []
    assert granted(ledger.handle(A, Return("r", 1))) == [(B, "r")]


def test_lowered_slots_that_nobody_has_disturb_nobody() -> None:
    ledger = ledger_with({"r": 3}, A)
    ledger.handle(A, Wants(1, 0))
    assert ledger.set_replicas({"r": 1}) == []


def test_cordoned_replica_is_called_back_and_not_granted() -> None:
    ledger = ledger_with({"r": 2}, A, B)
    ledger.handle(A, Wants(1, 0))
    assert ledger.cordon(["r", "unknown"]) == [(A, Revoke("r"))]
    assert ledger.cordon(["r"]) == []
    assert ledger.slots == 0
    assert ledger.is_cordoned("r")
    assert not ledger.is_cordoned("unknown")
    assert granted(ledger.handle(B, Wants(1, 0))) == []
    assert granted(ledger.handle(A, Return("r", 1))) == []


def test_uncordoned_replica_is_granted_to_who_waits() -> None:
    ledger = ledger_with({"r": 1}, A)
    ledger.cordon(["r"])
    ledger.handle(A, Wants(1, 0))
    assert ledger.uncordon(["r", "unknown"]) == [(A, Grant("r", 1))]
    assert ledger.uncordon(["r"]) == []


def test_cordon_outlasts_a_change_of_replicas() -> None:
    ledger = ledger_with({"r1": 1}, A)
    ledger.cordon(["r1"])
    ledger.set_replicas({"r1": 2, "r2": 1})
    assert granted(ledger.handle(A, Wants(3, 0))) == [(A, "r2")]


def test_replica_that_comes_cordoned_is_never_granted() -> None:
    ledger = ledger_with({}, A)
    ledger.handle(A, Wants(1, 0))
    assert ledger.set_replicas({"r": 1}, cordoned=["r"]) == []


def test_shelf_forgets_what_is_taken_off_and_finds_the_lowest_after_growth() -> None:
    shelf = Shelf()
    low, high = ReplicaRecord("low"), ReplicaRecord("high")
    high.out = 7
    assert shelf.least_loaded() is None
    shelf.take_off(high)
    shelf.put(high)
    assert shelf.least_loaded() is high
    shelf.put(low)
    assert shelf.least_loaded() is low
    assert shelf.least_loaded({"low"}) is high
    assert shelf.least_loaded({"low", "high"}) is None
    shelf.take_off(low)
    shelf.take_off(high)
    assert shelf.least_loaded() is None
    shelf.put(low)
    assert shelf.least_loaded() is low


def test_of_a_reserved_replica_what_is_out_stays_and_no_more_is_granted() -> None:
    ledger = VersionLedger()
    ledger.set_replicas({"r": 2})
    ledger.handle("a", Hello(1, 1, {}, frozenset(), 0, 0), Wants(1, 0))
    assert ledger.out("r") == 1
    assert ledger.set_replicas({"r": 2}, reserved=["r"]) == []
    assert ledger.handle("a", Wants(2, 1)) == []
    assert ledger.out("r") == 1
    assert ledger.set_replicas({"r": 2}) == [("a", Grant("r", 2))]
