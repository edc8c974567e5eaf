"""The ledger and its front-ends: how they become known, what they cannot use, what remains when they are gone."""

import pytest

from router.slots.ledger import VersionLedger
from router.slots.messages import Avoid, Grant, Recall, Return, Revoke, SayHello, Wants, Welcome
from tests.slots.ledgers import A, B, C, busy_ledger, granted, hello, ledger_with, to


def test_hello_is_welcomed_before_anything_else_is_said() -> None:
    ledger = ledger_with({"r": 1})
    assert ledger.handle(A, hello(wanted_upto=1, holder=7, session=3)) == [(A, Welcome(7, 3)), (A, Grant("r", 1))]


@pytest.mark.parametrize("message", [Wants(1, 0), Return("r", 1), Avoid(frozenset("r"))])
def test_unknown_front_end_is_asked_who_it_is_and_given_nothing(message: Wants | Return | Avoid) -> None:
    ledger = ledger_with({"r": 1})
    assert ledger.handle(A, message) == [(A, SayHello())]
    assert ledger.waiting == 0


def test_hello_replaces_what_was_known() -> None:
    ledger = ledger_with({"r1": 2, "r2": 2}, A)
    ledger.handle(A, Wants(3, 0))
    ledger.handle(A, hello({"r2": 2}, wanted_upto=5, served_upto=3, cancelled=(4,)))
    assert ledger.held_by(A) == {"r1": 1, "r2": 2}  # of r1 a new grant
    assert ledger.wants_of(A) == ()
    assert ledger.out("r1") == 1


def test_waiters_keep_their_places_through_a_hello() -> None:
    ledger = busy_ledger(1, C, A, B)
    ledger.handle(A, Wants(2, 0))
    ledger.handle(B, Wants(1, 0))
    ledger.handle(A, hello(wanted_upto=3, session=2, holder=1))
    assert granted(ledger.set_replicas({"r": 5})) == [(A, "r"), (A, "r"), (B, "r"), (A, "r")]


def test_waiter_whose_grant_came_to_nothing_is_next() -> None:
    ledger = ledger_with({"r": 1}, A, B)
    ledger.handle(A, Wants(2, 0))
    ledger.handle(B, Wants(1, 0))
    outbox = ledger.handle(A, hello(avoided="r", wanted_upto=2, session=2, holder=0))
    assert granted(outbox) == [(B, "r")]
    assert granted(ledger.set_replicas({"r": 1, "r2": 1})) == [(A, "r2")]
    assert ledger.wants_of(A) == (2,)


def test_new_holder_has_no_claim_to_the_places_of_the_former() -> None:
    ledger = busy_ledger(1, C, A, B)
    ledger.handle(A, Wants(1, 0))
    ledger.handle(B, Wants(1, 0))
    ledger.handle(A, hello(wanted_upto=1, holder=99))
    assert granted(ledger.set_replicas({"r": 2})) == [(B, "r")]


def test_hello_with_more_than_there_is_calls_it_back() -> None:
    ledger = ledger_with({"r": 2}, A, B)
    ledger.handle(A, Wants(1, 0))
    outbox = ledger.handle(B, hello({"r": 2}))
    assert to(A, outbox) == [Revoke("r")]
    assert to(B, outbox) == [Welcome(1, 1), Revoke("r")]
    assert ledger.out("r") == 3


def test_hello_with_leases_of_replicas_that_are_gone_or_cordoned_calls_them_back() -> None:
    ledger = ledger_with({"r": 2})
    ledger.cordon(["r"])
    assert ledger.handle(A, hello({"r": 1, "gone": 1})) == [(A, Welcome(1, 1)), (A, Revoke("r")), (A, Revoke("gone"))]


def test_ledger_that_was_told_of_no_replicas_takes_none_for_gone() -> None:
    ledger = VersionLedger()
    assert ledger.handle(A, hello({"r1": 2, "r2": 1}, wanted_upto=1)) == [(A, Welcome(1, 1))]
    assert ledger.set_replicas({"r1": 3}) == [(A, Revoke("r2")), (A, Grant("r1", 1))]


def test_closed_ledger_grants_and_recalls_nothing_until_it_is_opened() -> None:
    ledger = VersionLedger()
    ledger.close()
    assert ledger.set_replicas({"r": 2}) == []
    assert ledger.handle(A, hello(wanted_upto=2, holder=1)) == [(A, Welcome(1, 1))]
    assert ledger.handle(B, hello({"r": 1}, holder=2)) == [(B, Welcome(2, 1))]
    assert ledger.open() == [(A, Grant("r", 1)), (B, Recall(1, 0))]


def test_what_a_crashed_front_end_held_is_granted_again() -> None:
    ledger = busy_ledger(2, A, B)
    ledger.handle(A, Wants(3, 2))
    ledger.handle(B, Wants(2, 0))
    assert granted(ledger.front_end_gone(A)) == [(B, "r"), (B, "r")]
    assert ledger.waiting == 0
    assert ledger.held_by(A) == {}
    assert ledger.front_end_gone(A) == []


def test_lost_front_end_keeps_its_leases_and_is_granted_nothing() -> None:
    ledger = busy_ledger(2, A, B)
    ledger.handle(A, Wants(3, 2))
    ledger.handle(B, Wants(1, 0))
    ledger.front_end_lost(A)
    assert ledger.held_by(A) == {"r": 2}
    assert ledger.waiting == 1
    assert ledger.handle(A, Return("r", 1)) == [(A, SayHello())]
    assert ledger.set_replicas({"r": 4}) == [(B, Grant("r", 1))]
    assert ledger.front_end_lost("unknown") == []


def test_lost_front_end_that_is_back_has_its_place_again() -> None:
    ledger = busy_ledger(1, C, A, B)
    ledger.handle(A, Wants(1, 0))
    ledger.handle(B, Wants(1, 0))
    ledger.front_end_lost(A)
    ledger.handle(A, hello(wanted_upto=1, session=2, holder=1))
    assert granted(ledger.handle(C, Return("r", 1))) == [(A, "r")]


def test_lost_front_end_is_not_recalled_from() -> None:
    ledger = busy_ledger(1, A, B)
    ledger.front_end_lost(A)
    assert ledger.handle(B, Wants(1, 0)) == []


def test_nobody_is_granted_what_it_avoids() -> None:
    ledger = ledger_with({"r": 1}, A, B)
    ledger.handle(A, Avoid(frozenset("r")))
    assert ledger.handle(A, Wants(1, 0)) == []
    assert granted(ledger.handle(B, Wants(1, 0))) == [(B, "r")]  # who came later does not wait behind it
    ledger.handle(B, Return("r", 1))
    assert ledger.handle(A, Avoid(frozenset())) == [(A, Grant("r", 1))]


def test_avoided_replica_is_passed_over_for_one_with_more_leases_out() -> None:
    ledger = ledger_with({"r1": 1, "r2": 2}, A, B)
    ledger.handle(A, Avoid(frozenset(["r1"])))
    assert granted(ledger.handle(A, Wants(3, 0))) == [(A, "r2"), (A, "r2")]
    assert ledger.wants_of(A) == (3,)


@pytest.mark.parametrize("message", [Return("r", 5), Return("other", 1)])
def test_nobody_gives_back_what_it_has_not_got(message: Return) -> None:
    ledger = busy_ledger(2, A, B)
    ledger.handle(B, message)
    assert ledger.out("r") == 2
