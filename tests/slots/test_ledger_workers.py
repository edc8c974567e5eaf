"""The ledger and its workers: registration, excluded replicas, disconnects and crashes."""

import pytest

from router.slots.ledger import VersionLedger
from router.slots.messages import Exclude, Grant, Recall, Registered, Reregister, Return, Revoke, SlotDemand
from tests.slots.ledgers import A, B, C, busy_ledger, grants, leased, ledger_with, registration, sent_to
from tests.slots.replicas import ready


def test_registered_is_sent_before_any_grant() -> None:
    ledger = ledger_with(ready("r"))
    assert ledger.handle(A, registration(wanted_up_to=1, cache_id=7, session=3)) == [
        (A, Registered(7, 3)),
        (A, Grant("r", 1)),
    ]


@pytest.mark.parametrize("message", [SlotDemand(1, 0), Return("r", 1), Exclude(frozenset("r"))])
def test_unknown_worker_must_register_first(message: SlotDemand | Return | Exclude) -> None:
    ledger = ledger_with(ready("r"))
    assert ledger.handle(A, message) == [(A, Reregister())]
    assert ledger.waiting == 0


def test_registration_replaces_the_record_of_a_worker() -> None:
    ledger = ledger_with(ready("r1", "r2", slots=2), A)
    ledger.handle(A, SlotDemand(3, 0))
    ledger.handle(A, registration({"r2": 2}, wanted_up_to=5, served_up_to=3, cancelled=(4,)))
    assert ledger.held_by(A) == {"r1": 1, "r2": 2}  # the lease of r1 is a new grant
    assert ledger.waiting == 0


def test_waiters_keep_their_places_when_their_worker_registers_again() -> None:
    ledger = busy_ledger(1, C, A, B)
    ledger.handle(A, SlotDemand(2, 0))
    ledger.handle(B, SlotDemand(1, 0))
    ledger.handle(A, registration(wanted_up_to=3, session=2, cache_id=1))
    assert grants(ledger.set_replicas(ready("r", slots=5))) == [(A, "r"), (A, "r"), (B, "r"), (A, "r")]


def test_waiter_whose_grant_was_void_is_next() -> None:
    ledger = ledger_with(ready("r"), A, B)
    ledger.handle(A, SlotDemand(2, 0))
    ledger.handle(B, SlotDemand(1, 0))
    outbox = ledger.handle(A, registration(excluded="r", wanted_up_to=2, session=2, cache_id=0))
    assert grants(outbox) == [(B, "r")]
    assert ledger.set_replicas(ready("r", "r2")) == [(A, Grant("r2", 1))]


def test_new_lease_cache_does_not_inherit_the_places_of_the_previous_one() -> None:
    ledger = busy_ledger(1, C, A, B)
    ledger.handle(A, SlotDemand(1, 0))
    ledger.handle(B, SlotDemand(1, 0))
    ledger.handle(A, registration(wanted_up_to=1, cache_id=99))
    assert grants(ledger.set_replicas(ready("r", slots=2))) == [(B, "r")]


def test_registration_of_more_leases_than_slots_revokes_the_replica() -> None:
    ledger = ledger_with(ready("r", slots=2), A, B)
    ledger.handle(A, SlotDemand(1, 0))
    outbox = ledger.handle(B, registration({"r": 2}))
    assert sent_to(A, outbox) == [Revoke("r")]
    assert sent_to(B, outbox) == [Registered(1, 1), Revoke("r")]
    assert leased(ledger, "r") == 3


def test_registered_leases_of_removed_and_cordoned_replicas_are_revoked() -> None:
    ledger = ledger_with(ready("r", slots=2, cordoned=["r"]))
    assert ledger.handle(A, registration({"r": 1, "removed": 1})) == [
        (A, Registered(1, 1)),
        (A, Revoke("r")),
        (A, Revoke("removed")),
    ]


def test_no_replica_counts_as_removed_before_the_replicas_are_set() -> None:
    ledger = VersionLedger()
    assert ledger.handle(A, registration({"r1": 2, "r2": 1}, wanted_up_to=1)) == [(A, Registered(1, 1))]
    assert ledger.set_replicas(ready("r1", slots=3)) == [(A, Revoke("r2")), (A, Grant("r1", 1))]


def test_closed_ledger_grants_and_recalls_nothing_until_it_is_opened() -> None:
    ledger = VersionLedger()
    ledger.stop_granting()
    assert ledger.set_replicas(ready("r", slots=2)) == []
    assert ledger.handle(A, registration(wanted_up_to=2, cache_id=1)) == [(A, Registered(1, 1))]
    assert ledger.handle(B, registration({"r": 1}, cache_id=2)) == [(B, Registered(2, 1))]
    assert ledger.start_granting() == [(A, Grant("r", 1)), (B, Recall(1, 0))]


def test_leases_of_crashed_worker_are_granted_again() -> None:
    ledger = busy_ledger(2, A, B)
    ledger.handle(A, SlotDemand(3, 2))
    ledger.handle(B, SlotDemand(2, 0))
    assert grants(ledger.remove_worker(A)) == [(B, "r"), (B, "r")]
    assert ledger.waiting == 0
    assert ledger.held_by(A) == {}
    assert ledger.remove_worker(A) == []


def test_disconnected_worker_keeps_its_leases_and_is_granted_nothing() -> None:
    ledger = busy_ledger(2, A, B)
    ledger.handle(A, SlotDemand(3, 2))
    ledger.handle(B, SlotDemand(1, 0))
    ledger.disconnect_worker(A)
    assert ledger.held_by(A) == {"r": 2}
    assert ledger.waiting == 1
    assert ledger.handle(A, Return("r", 1)) == [(A, Reregister())]
    assert ledger.set_replicas(ready("r", slots=4)) == [(B, Grant("r", 1))]
    assert ledger.disconnect_worker("unknown") == []


def test_waiter_of_reconnected_worker_has_its_previous_place() -> None:
    ledger = busy_ledger(1, C, A, B)
    ledger.handle(A, SlotDemand(1, 0))
    ledger.handle(B, SlotDemand(1, 0))
    ledger.disconnect_worker(A)
    ledger.handle(A, registration(wanted_up_to=1, session=2, cache_id=1))
    assert grants(ledger.handle(C, Return("r", 1))) == [(A, "r")]


def test_disconnected_worker_gets_no_recall() -> None:
    ledger = busy_ledger(1, A, B)
    ledger.disconnect_worker(A)
    assert ledger.handle(B, SlotDemand(1, 0)) == []


def test_excluded_replica_is_not_granted_and_does_not_block_other_workers() -> None:
    ledger = ledger_with(ready("r"), A, B)
    ledger.handle(A, Exclude(frozenset("r")))
    assert ledger.handle(A, SlotDemand(1, 0)) == []
    assert grants(ledger.handle(B, SlotDemand(1, 0))) == [(B, "r")]
    ledger.handle(B, Return("r", 1))
    assert ledger.handle(A, Exclude(frozenset())) == [(A, Grant("r", 1))]


def test_more_loaded_replica_is_granted_if_the_least_loaded_one_is_excluded() -> None:
    ledger = ledger_with(ready("r1", "r2", slots=2), A, B)
    ledger.handle(A, Exclude(frozenset(["r1"])))
    assert grants(ledger.handle(A, SlotDemand(3, 0))) == [(A, "r2"), (A, "r2")]
    assert ledger.waiting == 1


@pytest.mark.parametrize("message", [Return("r", 5), Return("other", 1)])
def test_return_of_leases_that_are_not_held_has_no_effect(message: Return) -> None:
    ledger = busy_ledger(2, A, B)
    ledger.handle(B, message)
    assert leased(ledger, "r") == 2
