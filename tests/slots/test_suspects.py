"""Suspect slots: slots whose request was abandoned, so that the replica may still work on it."""

import random

import pytest

from router.slots.coordinator import Coordinator
from router.slots.ledger import VersionLedger
from router.slots.messages import (
    Answered,
    Exclude,
    Grant,
    Recall,
    RecallDone,
    Register,
    Return,
    SlotDemand,
    Suspect,
    ToLeaseCache,
)
from tests.slots.ledgers import A, B, C, grants, ledger_with, registration, sent_to
from tests.slots.replicas import ready
from tests.slots.slot_simulation import SlotSimulation, Worker
from tests.slots.test_unlimited import unlimited_cache


def simulation_with(*replicas: str, workers: int = 1, slots: int = 1) -> tuple[SlotSimulation, list[Worker]]:
    simulation = SlotSimulation(immediate=True)
    simulation.set_replicas(*replicas, slots=slots)
    return simulation, [simulation.add_worker() for _ in range(workers)]


def replica_of_next_request(simulation: SlotSimulation, worker: Worker) -> str:
    """The replica that the next request is sent to; it ends at once."""
    request = simulation.arrive(worker)
    (started,) = [each for each in worker.in_flight if each.request is request]
    simulation.end(worker, started, answered=False)
    return started.replica.id


def abandon_next_request(simulation: SlotSimulation, worker: Worker, seconds: float = 60.0) -> str:
    request = simulation.arrive(worker)
    (started,) = [each for each in worker.in_flight if each.request is request]
    simulation.abandon(worker, started, seconds)
    return started.replica.id


# Choice.


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_suspect_slot_is_used_last(workers: int) -> None:
    simulation, all_workers = simulation_with("r1", "r2", "r3", workers=workers)
    suspect = abandon_next_request(simulation, all_workers[0])
    for _ in range(3):
        for worker in all_workers:
            assert replica_of_next_request(simulation, worker) != suspect


def test_idle_lease_of_another_worker_is_used_before_a_suspect_slot() -> None:
    simulation, (first, second) = simulation_with("r1", "r2", workers=2)
    assert replica_of_next_request(simulation, second) == "r1"  # its lease stays at the second worker
    assert abandon_next_request(simulation, first) == "r2"
    assert replica_of_next_request(simulation, first) == "r1"


def test_suspect_slot_is_used_when_no_other_one_is_free() -> None:
    simulation, (first, second) = simulation_with("r1", "r2", workers=2)
    suspect = abandon_next_request(simulation, first)
    simulation.arrive(second)
    simulation.arrive(first)
    assert [each.replica.id for each in first.in_flight] == [suspect]


def test_slot_that_has_been_suspect_longest_is_used_first() -> None:
    simulation, (worker,) = simulation_with("r1", "r2", "r3")
    assert [abandon_next_request(simulation, worker) for _ in range(3)] == ["r1", "r2", "r3"]
    assert [replica_of_next_request(simulation, worker) for _ in range(4)] == ["r1", "r2", "r3", "r1"]


def test_one_abandoned_request_withholds_one_of_several_slots() -> None:
    simulation, (worker,) = simulation_with("r1", "r2", slots=2)
    assert abandon_next_request(simulation, worker) == "r1"
    for _ in range(4):
        simulation.arrive(worker)
    assert [each.replica.id for each in worker.in_flight] == ["r2", "r1", "r2", "r1"]
    assert simulation.ledger.suspect_slots_of("r1") == 1


def test_replica_has_at_most_as_many_suspect_slots_as_slots() -> None:
    simulation, (worker,) = simulation_with("r1", slots=2)
    for _ in range(5):
        abandon_next_request(simulation, worker)
    assert simulation.ledger.suspect_slots == 2
    simulation.set_replicas("r1", slots=1)
    assert simulation.ledger.suspect_slots == 1
    simulation.set_replicas(slots=1)
    assert simulation.ledger.suspect_slots == 0


def test_lease_of_a_replica_with_suspect_slots_is_not_kept_idle() -> None:
    simulation, (worker,) = simulation_with("r1", slots=2)
    simulation.arrive(worker)
    abandon_next_request(simulation, worker)
    simulation.end(worker, worker.in_flight[0], answered=False)
    assert worker.cache.held() == {}


def test_request_waits_for_the_replies_of_workers_with_leases_before_it_gets_a_suspect_slot() -> None:
    ledger = ledger_with(ready("r1", "r2"), A, B, C)
    ledger.handle(A, SlotDemand(1, 0))
    ledger.handle(B, SlotDemand(1, 0))
    ledger.handle(A, Return("r1", 1, 60.0))
    asked = ledger.handle(A, SlotDemand(2, 1))
    assert asked == [(B, Recall(1, 0, number=1))]
    assert ledger.handle(B, RecallDone(0)) == []  # the reply to another one
    granted = ledger.handle(B, RecallDone(1))
    assert granted == [(A, Suspect("r1", suspect=True)), (A, Grant("r1", 2)), (B, Recall(0, 0))]


def test_worker_that_does_not_reply_delays_a_suspect_slot_for_two_ticks() -> None:
    ledger = ledger_with(ready("r1", "r2"), A, B)
    ledger.handle(A, SlotDemand(1, 0))
    ledger.handle(B, SlotDemand(1, 0))
    ledger.handle(A, Return("r1", 1, 60.0))
    ledger.handle(A, SlotDemand(2, 1))
    assert ledger.tick(0.1) == []
    assert grants(ledger.tick(0.2)) == [(A, "r1")]


def test_recall_in_force_is_repeated_with_a_number_when_a_slot_becomes_suspect() -> None:
    ledger = ledger_with(ready("r1", "r2"), A, B, C)
    ledger.handle(A, SlotDemand(1, 0))
    ledger.handle(B, SlotDemand(1, 0))
    ledger.handle(C, SlotDemand(1, 0))
    assert sent_to(B, ledger.handle(A, Return("r1", 1, 60.0))) == [Recall(1, 0, number=1)]
    assert grants(ledger.handle(B, RecallDone(1))) == [(C, "r1")]


def test_suspect_slot_is_not_granted_to_a_worker_that_excludes_its_replica() -> None:
    ledger = ledger_with(ready("r1"), A, B)
    ledger.handle(A, SlotDemand(1, 0))
    ledger.handle(A, Return("r1", 1, 60.0), Exclude(frozenset({"r1"})))
    assert grants(ledger.handle(A, SlotDemand(2, 1))) == []
    assert grants(ledger.handle(B, SlotDemand(1, 0))) == [(B, "r1")]


# The end of suspicion.


def test_slot_is_trusted_again_when_its_time_is_over() -> None:
    simulation, (worker,) = simulation_with("r1", "r2")
    abandon_next_request(simulation, worker, 2.0)
    simulation.advance_clock(1.9)
    simulation.tick()
    assert simulation.ledger.suspect_slots_of("r1") == 1
    simulation.advance_clock(0.2)
    simulation.tick()
    assert simulation.ledger.suspect_slots == 0
    simulation.set_replicas("r1", "r3")
    assert replica_of_next_request(simulation, worker) == "r1"


def test_slot_is_trusted_again_when_its_replica_completes_a_request() -> None:
    simulation, (first, second) = simulation_with("r1", workers=2)
    abandon_next_request(simulation, first)
    simulation.arrive(second)
    simulation.end(second, second.in_flight[0], answered=False)
    assert simulation.ledger.suspect_slots == 1
    simulation.arrive(second)
    simulation.end(second, second.in_flight[0])
    assert simulation.ledger.suspect_slots == 0


def test_response_beside_other_requests_of_the_replica_ends_no_suspicion() -> None:
    simulation, (first, second) = simulation_with("r1", workers=2, slots=3)
    for worker in (first, first, second):
        simulation.arrive(worker)
    simulation.abandon(first, first.in_flight[0], 60.0)
    simulation.end(first, first.in_flight[0])  # the second worker has a request there
    assert simulation.ledger.suspect_slots == 1
    simulation.end(second, second.in_flight[0])
    assert simulation.ledger.suspect_slots == 0


def test_all_workers_with_leases_report_responses_of_a_replica_with_suspect_slots() -> None:
    simulation, (first, second) = simulation_with("r1", workers=2, slots=2)
    simulation.arrive(second)
    abandon_next_request(simulation, first)
    simulation.end(second, second.in_flight[0])
    assert simulation.ledger.suspect_slots == 0


def test_workers_keep_leases_again_after_the_suspicion() -> None:
    simulation, (worker,) = simulation_with("r1")
    abandon_next_request(simulation, worker)
    simulation.arrive(worker)
    simulation.end(worker, worker.in_flight[0])
    simulation.arrive(worker)
    messages = simulation.message_count
    simulation.end(worker, worker.in_flight[0])
    simulation.arrive(worker)
    assert simulation.message_count == messages
    assert worker.cache.held() == {"r1": 1}


def test_registration_of_a_worker_repeats_the_notice() -> None:
    ledger = ledger_with(ready("r1", slots=2), A)
    ledger.handle(A, SlotDemand(2, 0))
    assert sent_to(A, ledger.handle(A, Return("r1", 1, 60.0))) == [Suspect("r1", suspect=True)]
    assert Suspect("r1", suspect=True) in sent_to(A, ledger.handle(A, registration({"r1": 1}, session=2)))


def test_answer_of_an_unsuspected_or_unknown_replica_is_ignored() -> None:
    ledger = ledger_with(ready("r1"), A)
    assert ledger.handle(A, Answered("r1"), Answered("other")) == []


def test_removed_replica_is_not_suspect_when_it_is_added_again() -> None:
    ledger = ledger_with(ready("r1"), A)
    ledger.handle(A, SlotDemand(1, 0))
    ledger.handle(A, Return("r1", 1, 60.0))
    ledger.set_replicas(ready())
    ledger.set_replicas(ready("r1"))
    assert ledger.suspect_slots == 0


def test_abandoned_request_at_a_removed_replica_makes_nothing_suspect() -> None:
    ledger = ledger_with(ready("r1"), A)
    ledger.handle(A, SlotDemand(1, 0))
    ledger.set_replicas(ready())
    ledger.handle(A, Return("r1", 1, 60.0))
    assert ledger.suspect_slots == 0
    assert ledger.held_by(A) == {}


# Abandoned requests that hold their lease.


def test_kept_abandoned_request_holds_its_lease() -> None:
    simulation, (worker,) = simulation_with("r1")
    simulation.arrive(worker)
    request = worker.in_flight[0]
    worker.cache.keep_abandoned(request.replica)
    simulation.arrive(worker)
    assert worker.cache.abandoned_by_replica() == {"r1": 1}
    assert worker.cache.busy == 1
    waiter = worker.cache.release_abandoned(request.replica, 1.0, 1.0)
    assert waiter is worker.waiting[0]
    assert worker.cache.abandoned_by_replica() == {}


# Unlimited concurrency.


def test_unlimited_abandoned_requests_weigh_like_requests_until_their_time_is_over() -> None:
    cache = unlimited_cache("r1", "r2")
    lease = cache.acquire(0.0)
    assert lease is not None
    cache.abandon(lease, 0.0, 0.0, 10.0)
    assert cache.busy == 0
    cache._random = random.Random(5)  # picks both replicas now and then
    chosen = []
    for _ in range(40):
        other = cache.acquire(5.0)
        assert other is not None
        chosen.append(other)
        cache.release(other, 5.0, 0.0)
    share = sum(each is lease for each in chosen) / len(chosen)
    assert 0 < share < 0.45  # only if both choices are this one
    assert lease.load(9.9) == 1
    assert lease.load(10.1) == 0
    assert not lease.suspect
    assert cache.flush() == []


def test_unlimited_replica_is_trusted_again_when_it_completes_its_only_request() -> None:
    cache = unlimited_cache("r1")
    first, second, third = (cache.acquire(0.0) for _ in range(3))
    assert first is not None
    assert second is not None
    assert third is not None
    cache.abandon(first, 0.0, 0.0, 10.0)
    cache.on_answered(second)
    assert second.suspect
    cache.release(second, 1.0, 1.0)
    cache.on_answered(third)
    assert not third.suspect
    assert third.load(1.0) == 1


# The coordinator.


def test_coordinator_ends_suspicions_as_time_passes() -> None:
    coordinator = Coordinator()
    key = ("iris", "default")
    received: list[ToLeaseCache] = []
    coordinator.connect_worker(A, lambda _, message: received.append(message))
    coordinator.set_replicas(key, ready("r1"))
    coordinator.receive(A, key, [Register(1, 1, {}, frozenset(), 0, 0), SlotDemand(1, 0)], 100.0)
    coordinator.receive(A, key, [Return("r1", 1, 5.0)], 100.0)
    ledger: VersionLedger | None = coordinator.ledger(key)
    assert ledger is not None
    coordinator.tick(104.9)
    assert ledger.suspect_slots == 1
    coordinator.tick(105.1)
    assert ledger.suspect_slots == 0
    coordinator.tick(105.2)
    assert grants([(A, message) for message in received]) == [(A, "r1")]
