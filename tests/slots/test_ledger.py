"""The ledger: what it grants to which worker, and what it recalls and revokes."""

import pytest

from router.model.version_replicas import NO_REPLICAS
from router.slots.ledger import VersionLedger
from router.slots.messages import Grant, Recall, Return, Revoke, SlotDemand
from router.slots.records import LoadBuckets, ReplicaRecord
from tests.slots.ledgers import A, B, C, busy_ledger, grants, leased, ledger_with, registration, sent_to
from tests.slots.replicas import ready

# Grants


def test_free_slot_is_granted_at_once() -> None:
    ledger = ledger_with(ready("r"), A)
    assert ledger.handle(A, SlotDemand(1, 0)) == [(A, Grant("r", 1))]
    assert ledger.held_by(A) == {"r": 1}
    assert ledger.waiting == 0


def test_waiters_of_one_message_are_granted_leases_in_order() -> None:
    ledger = ledger_with(ready("r", slots=2), A)
    assert ledger.handle(A, SlotDemand(3, 0)) == [(A, Grant("r", 1)), (A, Grant("r", 2))]
    assert ledger.handle(A, Return("r", 1)) == [(A, Grant("r", 3))]


def test_least_loaded_replica_is_granted_first() -> None:
    ledger = ledger_with(ready("r1", "r2", "r3", slots=2), A)
    assert grants(ledger.handle(A, SlotDemand(6, 0))) == [
        (A, replica) for replica in ("r1", "r2", "r3", "r1", "r2", "r3")
    ]


def test_replica_of_returned_leases_is_least_loaded_again() -> None:
    ledger = ledger_with(ready("r1", "r2", slots=2), A)
    ledger.handle(A, SlotDemand(4, 0))
    ledger.handle(A, Return("r2", 2))
    assert grants(ledger.handle(A, SlotDemand(5, 4))) == [(A, "r2")]


def test_waiter_is_granted_the_next_lease_that_is_returned() -> None:
    ledger = ledger_with(ready("r"), A, B)
    ledger.handle(A, SlotDemand(1, 0))
    assert grants(ledger.handle(B, SlotDemand(1, 0))) == []
    assert ledger.waiting == 1
    assert sent_to(B, ledger.handle(A, Return("r", 1))) == [Grant("r", 1)]


def test_oldest_waiter_of_all_workers_is_granted_first() -> None:
    ledger = ledger_with(NO_REPLICAS, A, B)
    ledger.handle(A, SlotDemand(1, 0))
    ledger.handle(B, SlotDemand(1, 0))
    ledger.handle(A, SlotDemand(2, 0))
    assert grants(ledger.set_replicas(ready("r", slots=3))) == [(A, "r"), (B, "r"), (A, "r")]


def test_new_replica_is_granted_to_a_waiter() -> None:
    ledger = ledger_with(NO_REPLICAS, A)
    ledger.handle(A, SlotDemand(1, 0))
    assert ledger.set_replicas(ready("r")) == [(A, Grant("r", 1))]


def test_nothing_is_sent_while_no_request_waits() -> None:
    ledger = ledger_with(ready("r", slots=2), A, B)
    ledger.handle(A, SlotDemand(1, 0))
    assert ledger.handle(A, Return("r", 1)) == []
    assert ledger.handle(A, SlotDemand(1, 1)) == []


@pytest.mark.parametrize(
    ("message", "waiters"),
    [
        (SlotDemand(4, 2), (3, 4)),  # the first two were served by the worker's own leases, or have expired
        (SlotDemand(4, 4), ()),
        (SlotDemand(4, 0, (2, 3)), (1, 4)),
        (SlotDemand(6, 5), (6,)),  # the fifth waiter left before the ledger was notified of it
        (SlotDemand(6, 4, (5,)), (6,)),
        (SlotDemand(4, 0), (1, 2, 3, 4)),
    ],
)
def test_demand_replaces_the_previous_demand(message: SlotDemand, waiters: tuple[int, ...]) -> None:
    ledger = ledger_with(NO_REPLICAS, A)
    ledger.handle(A, SlotDemand(4, 0))
    ledger.handle(A, message)
    assert ledger.waiting == len(waiters)
    assert ledger.set_replicas(ready("r", slots=9)) == [(A, Grant("r", number)) for number in waiters]


def test_messages_that_arrive_together_are_one_change() -> None:
    ledger = ledger_with(ready("r"), A, B)
    ledger.handle(A, SlotDemand(1, 0))
    ledger.handle(B, SlotDemand(1, 0))
    outbox = ledger.handle(B, SlotDemand(1, 1), SlotDemand(2, 1))
    assert grants(outbox) == []
    assert grants(ledger.handle(A, Return("r", 1), SlotDemand(2, 1))) == [(B, "r")]


# Recalls


def test_recall_counts_the_requests_that_wait_at_other_workers() -> None:
    ledger = busy_ledger(3, A, B, C)
    assert ledger.handle(B, SlotDemand(1, 0)) == [(A, Recall(1, 0))]
    assert ledger.handle(C, SlotDemand(1, 0)) == [(A, Recall(2, 0))]


def test_recall_does_not_exceed_the_leases_held() -> None:
    ledger = busy_ledger(2, A, B)
    assert ledger.handle(B, SlotDemand(5, 0)) == [(A, Recall(2, 0))]


def test_worker_without_leases_gets_no_recall() -> None:
    ledger = busy_ledger(2, A, B, C)
    assert sent_to(C, ledger.handle(B, SlotDemand(1, 0))) == []


def test_recall_takes_effect_after_older_waiters_of_the_same_worker() -> None:
    ledger = busy_ledger(2, A, B)
    ledger.handle(A, SlotDemand(4, 2))
    assert ledger.handle(B, SlotDemand(1, 0)) == [(A, Recall(1, 4))]
    assert ledger.handle(A, SlotDemand(5, 2)) == []  # younger than the other waiter, so the recall is unchanged


def test_recall_is_sent_again_when_the_order_has_changed() -> None:
    ledger = busy_ledger(2, A, B)
    ledger.handle(B, SlotDemand(1, 0))
    ledger.handle(A, SlotDemand(3, 2))
    ledger.handle(B, SlotDemand(2, 0))
    assert ledger.handle(B, SlotDemand(2, 1)) == [(A, Recall(1, 3))]


def test_recall_ends_when_no_request_waits_at_another_worker() -> None:
    ledger = busy_ledger(2, A, B)
    ledger.handle(B, SlotDemand(1, 0))
    assert ledger.handle(B, SlotDemand(1, 1)) == [(A, Recall(0, 0))]
    assert ledger.handle(B, SlotDemand(1, 1)) == []


def test_satisfied_recall_ends_without_a_message() -> None:
    ledger = busy_ledger(2, A, B)
    ledger.handle(B, SlotDemand(1, 0))
    assert ledger.handle(A, Return("r", 1)) == [(B, Grant("r", 1))]


def test_recall_is_not_sent_again_for_fewer_waiters() -> None:
    ledger = busy_ledger(3, A, B)
    ledger.handle(B, SlotDemand(2, 0))
    assert ledger.handle(B, SlotDemand(2, 1)) == []


def test_recall_satisfied_with_a_cordoned_replica_is_sent_again() -> None:
    """The worker counts such a lease as returned, but the ledger cannot grant it."""
    ledger = ledger_with(ready("r1", "r2"), A, B)
    ledger.handle(A, SlotDemand(2, 0))
    ledger.set_replicas(ready("r1", "r2", cordoned=["r1"]))
    assert sent_to(A, ledger.handle(B, SlotDemand(1, 0))) == [Recall(1, 0)]
    assert sent_to(A, ledger.handle(A, Return("r1", 1))) == [Recall(1, 0)]


def test_long_run_of_older_waiters_takes_few_recalls() -> None:
    ledger = busy_ledger(1, A, B)
    ledger.handle(A, SlotDemand(201, 1))
    ledger.handle(B, SlotDemand(1, 0))
    outboxes = [ledger.handle(A, SlotDemand(201, served)) for served in range(2, 202)]
    recalls = [message for outbox in outboxes for message in sent_to(A, outbox)]
    assert len(recalls) < 10
    assert all(isinstance(message, Recall) and message.count == 1 for message in recalls)
    assert recalls[-1] == Recall(1, 201)


# Replicas


def test_removed_replica_is_revoked_and_stays_on_record_until_all_leases_are_returned() -> None:
    ledger = ledger_with(ready("r", slots=2), A)
    ledger.handle(A, SlotDemand(2, 0))
    assert ledger.set_replicas(NO_REPLICAS) == [(A, Revoke("r"))]
    assert ledger.held_by(A) == {"r": 2}
    ledger.handle(A, Return("r", 1))
    assert ledger.held_by(A) == {"r": 1}
    ledger.handle(A, Return("r", 1))
    assert ledger.held_by(A) == {}


def test_replica_that_is_added_again_has_only_its_free_slots() -> None:
    ledger = ledger_with(ready("r", slots=2), A, B)
    ledger.handle(A, SlotDemand(1, 0))
    ledger.set_replicas(NO_REPLICAS)
    ledger.handle(B, SlotDemand(2, 0))
    assert grants(ledger.set_replicas(ready("r", slots=2))) == [(B, "r")]


def test_replica_that_is_added_again_is_not_cordoned() -> None:
    ledger = ledger_with(ready("r"), A)
    ledger.handle(A, SlotDemand(1, 0))
    ledger.set_replicas(ready("r", cordoned=["r"]))
    ledger.set_replicas(NO_REPLICAS)
    ledger.set_replicas(ready("r", slots=2))
    assert grants(ledger.handle(A, SlotDemand(2, 1))) == [(A, "r")]


def test_additional_slots_are_granted() -> None:
    ledger = busy_ledger(1, A)
    ledger.handle(A, SlotDemand(2, 1))
    assert ledger.set_replicas(ready("r", slots=2)) == [(A, Grant("r", 2))]


def test_over_leased_replica_is_revoked_and_granted_again_once_leases_are_below_its_slots() -> None:
    ledger = busy_ledger(3, A, B)
    assert sent_to(A, ledger.set_replicas(ready("r"))) == [Revoke("r")]
    ledger.handle(B, SlotDemand(1, 0))
    assert grants(ledger.handle(A, Return("r", 2))) == []
    assert grants(ledger.handle(A, Return("r", 1))) == [(B, "r")]


def test_removing_free_slots_revokes_nothing() -> None:
    ledger = ledger_with(ready("r", slots=3), A)
    ledger.handle(A, SlotDemand(1, 0))
    assert ledger.set_replicas(ready("r")) == []


def test_cordoned_replica_is_revoked_once_and_not_granted() -> None:
    ledger = ledger_with(ready("r", slots=2), A, B)
    ledger.handle(A, SlotDemand(1, 0))
    cordoned = ready("r", slots=2, cordoned=["r", "unknown"])
    assert ledger.set_replicas(cordoned) == [(A, Revoke("r"))]
    assert ledger.set_replicas(cordoned) == []
    assert grants(ledger.handle(B, SlotDemand(1, 0))) == []
    assert grants(ledger.handle(A, Return("r", 1))) == []


def test_uncordoned_replica_is_granted_to_a_waiter() -> None:
    ledger = ledger_with(ready("r", cordoned=["r"]), A)
    ledger.handle(A, SlotDemand(1, 0))
    assert ledger.set_replicas(ready("r")) == [(A, Grant("r", 1))]
    assert ledger.set_replicas(ready("r")) == []


def test_new_replica_that_is_cordoned_is_not_granted() -> None:
    ledger = ledger_with(NO_REPLICAS, A)
    ledger.handle(A, SlotDemand(2, 0))
    assert ledger.set_replicas(ready("r1", "r2", cordoned=["r1"])) == [(A, Grant("r2", 1))]


def test_replica_on_the_other_side_keeps_its_leases_and_is_not_granted() -> None:
    ledger = VersionLedger()
    ledger.set_replicas(ready("r", slots=2))
    ledger.handle(A, registration(), SlotDemand(1, 0))
    assert leased(ledger, "r") == 1
    assert ledger.set_replicas(ready("r", slots=2), on_other_side=["r"]) == []
    assert ledger.handle(A, SlotDemand(2, 1)) == []
    assert leased(ledger, "r") == 1
    assert ledger.set_replicas(ready("r", slots=2)) == [(A, Grant("r", 2))]


def test_load_buckets_return_the_least_loaded_replica_that_is_not_excluded() -> None:
    buckets = LoadBuckets()
    low, high = ReplicaRecord("low"), ReplicaRecord("high")
    high.leased = 7
    assert buckets.least_loaded() is None
    buckets.discard(high)
    buckets.add(high)
    assert buckets.least_loaded() is high
    buckets.add(low)
    assert buckets.least_loaded() is low
    assert buckets.least_loaded({"low"}) is high
    assert buckets.least_loaded({"low", "high"}) is None
    buckets.discard(low)
    buckets.discard(high)
    assert buckets.least_loaded() is None
    buckets.add(low)
    assert buckets.least_loaded() is low
