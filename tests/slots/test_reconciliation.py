"""Reconciliation: a lease mismatch on either side is detected and repaired; messages in transit are not a mismatch."""

import pytest

from router.slots.lease_cache import LeaseCache
from router.slots.ledger import LeaseMismatch, VersionLedger
from router.slots.messages import HeldSnapshot, Reregister, Revoke
from router.slots.records import _MAX_UNCONFIRMED
from router.slots.replica_leases import ReplicaLeases
from tests.slots.slot_simulation import Request, SlotSimulation, Worker


def simulation_with(*replica_ids: str, slots: int = 1, workers: int = 1) -> SlotSimulation:
    simulation = SlotSimulation(immediate=True)
    simulation.set_replicas(*replica_ids, slots=slots)
    for _ in range(workers):
        simulation.add_worker()
    return simulation


def worker_of(simulation: SlotSimulation, number: int = 1) -> Worker:
    return simulation.workers[f"w{number}"]


def snapshot_of(worker: Worker) -> HeldSnapshot:
    snapshot = worker.cache.held_snapshot()
    assert snapshot is not None
    return snapshot


def replica_of(cache: LeaseCache[Request, str], replica_id: str) -> ReplicaLeases[str]:
    return cache._replicas[replica_id]


def falsify(ledger: VersionLedger, worker_id: str, replica_id: str, count: int) -> None:
    """Add leases to the record of a worker, or remove them, as a bug would."""
    ledger._transfer(worker_id, ledger._workers[worker_id], ledger._records[replica_id], count)


# Mismatches are repaired, and the slot can be used again.


def test_lease_that_a_worker_has_lost_is_granted_again() -> None:
    simulation = simulation_with("r", workers=2)
    one, other = worker_of(simulation, 1), worker_of(simulation, 2)
    simulation.arrive(one)
    simulation.end(one, one.in_flight[0])
    replica_of(one.cache, "r").idle = 0  # the bug: the lease is neither held nor returned
    simulation.arrive(other)
    assert other.waiting
    mismatches, outbox = simulation.ledger.reconcile(one.name, snapshot_of(one))
    assert mismatches == [LeaseMismatch("r", recorded=1, held=0)]
    simulation.send(outbox)
    simulation.deliver_all()
    assert other.in_flight
    assert not other.waiting


def test_lease_that_the_ledger_has_lost_is_recorded_again() -> None:
    simulation = simulation_with("r", workers=2)
    one, other = worker_of(simulation, 1), worker_of(simulation, 2)
    simulation.arrive(one)
    falsify(simulation.ledger, one.name, "r", -1)  # the ledger considers the slot free while a request is in flight
    mismatches, outbox = simulation.ledger.reconcile(one.name, snapshot_of(one))
    assert mismatches == [LeaseMismatch("r", recorded=0, held=1)]
    assert outbox == []
    simulation.arrive(other)
    assert other.waiting
    simulation.end(one, one.in_flight[0])
    assert other.in_flight


def test_replica_that_is_over_leased_by_a_mismatch_is_revoked() -> None:
    simulation = simulation_with("r", workers=2)
    one, other = worker_of(simulation, 1), worker_of(simulation, 2)
    simulation.arrive(one)
    falsify(simulation.ledger, one.name, "r", -1)
    simulation.arrive(other)
    assert simulation.in_flight_at("r") == 2  # the effect of the mismatch
    mismatches, outbox = simulation.ledger.reconcile(one.name, snapshot_of(one))
    assert mismatches == [LeaseMismatch("r", recorded=0, held=1)]
    assert {name for name, message in outbox if message == Revoke("r")} == {one.name, other.name}
    simulation.send(outbox)
    simulation.deliver_all()
    simulation.end(one, one.in_flight[0])
    assert (simulation.ledger.held_by(one.name), simulation.ledger.held_by(other.name)) == ({}, {"r": 1})
    simulation.arrive(one)
    assert simulation.in_flight_at("r") == 1


def test_mismatch_of_removed_replica_is_recorded_until_the_lease_is_returned() -> None:
    simulation = simulation_with("r", "s")
    one = worker_of(simulation)
    simulation.arrive(one)
    (replica_id,) = simulation.leases()
    falsify(simulation.ledger, one.name, replica_id, -1)
    simulation.set_replicas("t")
    mismatches, _ = simulation.ledger.reconcile(one.name, snapshot_of(one))
    assert mismatches == [LeaseMismatch(replica_id, recorded=0, held=1)]
    simulation.set_replicas("t", replica_id)
    assert simulation.ledger.held_by(one.name) == {replica_id: 1}


# Messages in transit are not a mismatch.


@pytest.mark.parametrize("received", [0, 1, 2])
def test_grants_in_transit_are_no_mismatch(received: int) -> None:
    simulation = simulation_with("r", slots=2)
    one = worker_of(simulation)
    simulation.immediate = False
    for _ in range(2):
        simulation.arrive(one)
    simulation.flush(one)
    simulation.deliver_to_ledger(one)
    for _ in range(received):
        simulation.deliver_to_cache(one)
    assert len(one.to_cache) == 2 - received
    simulation.send_snapshot(one)
    simulation.deliver_all()  # asserts that there is no mismatch
    assert one.in_flight


def test_snapshot_of_a_previous_session_is_ignored() -> None:
    simulation = simulation_with("r")
    one = worker_of(simulation)
    simulation.arrive(one)
    previous = snapshot_of(one)
    simulation.end(one, one.in_flight[0])
    simulation.connect(one)
    falsify(simulation.ledger, one.name, "r", -1)
    assert simulation.ledger.reconcile(one.name, previous) == ([], [])


def test_unknown_or_disconnected_worker_must_register_after_a_snapshot() -> None:
    simulation = simulation_with("r")
    one = worker_of(simulation)
    assert simulation.ledger.reconcile("unknown", snapshot_of(one)) == ([], [("unknown", Reregister())])
    simulation.disconnect_at_ledger(one)
    assert simulation.ledger.reconcile(one.name, snapshot_of(one)) == ([], [(one.name, Reregister())])


def test_snapshot_is_ignored_if_too_many_grants_are_unconfirmed() -> None:
    grants = _MAX_UNCONFIRMED + 1
    simulation = simulation_with("r", slots=grants + 1)
    one = worker_of(simulation)
    before = snapshot_of(one)
    for _ in range(grants):
        simulation.arrive(one)
    assert simulation.ledger.reconcile(one.name, before) == ([], [])
    falsify(simulation.ledger, one.name, "r", 1)
    mismatches, _ = simulation.ledger.reconcile(one.name, snapshot_of(one))
    assert mismatches == [LeaseMismatch("r", recorded=grants + 1, held=grants)]


def test_lease_cache_has_a_snapshot_only_if_it_is_limited_and_flushed() -> None:
    cache: LeaseCache[Request, str] = LeaseCache(unlimited=False, now=0.0)
    cache.enqueue(Request(1, 0.0), 0.0)
    assert cache.held_snapshot() is None
    cache.flush()
    assert cache.held_snapshot() is not None
    unlimited: LeaseCache[Request, str] = LeaseCache(unlimited=True, now=0.0)
    assert unlimited.held_snapshot() is None
