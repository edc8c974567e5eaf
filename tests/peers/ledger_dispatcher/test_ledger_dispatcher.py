"""The ledger dispatcher of a pod that connects to other pods, loses them, or was stalled; repair of mismatches."""

import logging

import pytest

from router.model.services import VersionKey
from router.slots.ownership import (
    OWNER_SYNC_SECONDS,
    PARTITION_GRACE_SECONDS,
    RECONNECT_SECONDS,
    STALL_RECOVERY_SECONDS,
    STALL_SECONDS,
)
from router.slots.reachability import SETTLE_SECONDS
from tests.peers.ledger_dispatcher.fleet_simulation import TICK_SECONDS, FleetSimulation, Pod, Worker
from tests.slots.replicas import ready


def add_services(simulation: FleetSimulation, count: int, *, replicas: int = 1) -> None:
    """Add services whose replicas have one slot each."""
    for number in range(count):
        simulation.replicas[f"s{number}", "default"] = ready(*[f"s{number}-r{replica}" for replica in range(replicas)])


def linked_simulation(pods: int, services: int = 8, *, replicas: int = 1) -> FleetSimulation:
    """Return linked pods that have one worker each, and services."""
    simulation = FleetSimulation()
    add_services(simulation, services, replicas=replicas)
    for _ in range(pods):
        simulation.add_pod(workers=1)
    simulation.connect_all()
    simulation.deliver_all()
    simulation.advance_clock()
    return simulation


def worker_of(pod: Pod) -> Worker:
    (worker,) = pod.workers.values()
    return worker


def version_owned_by(pod: Pod, *, in_view_of: Pod | None = None) -> VersionKey:
    ownership = (in_view_of or pod).ledger_dispatcher.ownership
    return next(key for key in sorted(pod.simulation.replicas) if ownership.owner(key[0]) == pod.name)


def end_request(worker: Worker, key: VersionKey) -> None:
    worker.end(next(each for each in worker.in_flight if each.key == key))


# New pods


def test_leases_reported_before_the_owner_has_the_service_are_recorded() -> None:
    simulation = linked_simulation(1)
    (first,) = simulation.pods.values()
    for key in simulation.replicas:
        worker_of(first).arrive(key)
    simulation.deliver_all()
    late = simulation.add_pod(with_services=False, workers=1)
    simulation.connect_all()
    simulation.deliver_all()
    late.update_services()
    simulation.deliver_all()
    key = version_owned_by(late)
    worker_of(late).arrive(key)
    simulation.run(OWNER_SYNC_SECONDS)
    assert not simulation.overloaded_replicas()
    assert worker_of(late).waiting
    end_request(worker_of(first), key)
    simulation.deliver_all()
    assert not worker_of(late).waiting


def test_new_pod_grants_nothing_before_it_has_connected_to_all_pods() -> None:
    simulation = linked_simulation(2)
    one, other = simulation.pods.values()
    for key in simulation.replicas:
        worker_of(other).arrive(key)
    simulation.deliver_all()
    new = simulation.add_pod(workers=1)
    simulation.connect(new, one)
    simulation.deliver_all()
    key = version_owned_by(new)
    worker_of(new).arrive(key)
    simulation.deliver_all()
    assert not worker_of(new).in_flight
    simulation.connect(new, other)
    simulation.deliver_all()
    assert not worker_of(new).in_flight  # the slot is leased to the other pod's worker
    end_request(worker_of(other), key)
    simulation.deliver_all()
    assert worker_of(new).in_flight


def test_new_pod_does_not_wait_longer_than_the_sync_timeout_for_pods_that_it_cannot_reach() -> None:
    simulation = linked_simulation(2)
    one, other = simulation.pods.values()
    new = simulation.add_pod(workers=1)
    simulation.partitioned_pairs.add(frozenset((new.name, other.name)))
    simulation.connect(new, one)
    simulation.deliver_all()
    key = version_owned_by(new)
    worker_of(new).arrive(key)
    simulation.deliver_all()
    assert not worker_of(new).in_flight
    simulation.run(OWNER_SYNC_SECONDS)
    assert worker_of(new).in_flight


# Lost links


def test_short_loss_of_a_link_changes_no_owner() -> None:
    simulation = linked_simulation(2)
    one, other = simulation.pods.values()
    key = version_owned_by(other)
    simulation.partition(one, other)
    worker_of(one).arrive(key)
    simulation.deliver_all()
    assert worker_of(one).waiting  # its message to the owner was lost
    assert not one.ledger_dispatcher.is_partitioned
    simulation.partitioned_pairs.clear()
    simulation.connect_all()
    simulation.deliver_all()
    assert worker_of(one).in_flight
    assert version_owned_by(other) == key


def test_partitioned_pod_uses_its_leases_and_then_the_replicas_of_its_side(caplog: pytest.LogCaptureFixture) -> None:
    simulation = linked_simulation(2, replicas=6)
    one, other = simulation.pods.values()
    key = version_owned_by(other)
    worker = worker_of(one)
    worker.arrive(key)
    simulation.deliver_all()
    worker.end_all()
    with caplog.at_level(logging.INFO):
        simulation.partition(one, other)
        worker.arrive(key)
        assert len(worker.in_flight) == 1  # with the lease from before the partition
        simulation.run(RECONNECT_SECONDS + OWNER_SYNC_SECONDS)
        for pod in (one, other):
            assert pod.ledger_dispatcher.is_partitioned
            for _ in range(6):
                worker_of(pod).arrive(key)
        simulation.deliver_all()
        assert worker.in_flight
        assert worker_of(other).in_flight
        assert len(worker.in_flight) + len(worker_of(other).in_flight) <= 7  # six slots, and the lease from before
        assert "replicas are divided between the sides of a partition" in caplog.messages
        simulation.partitioned_pairs.clear()
        simulation.connect_all()
        simulation.run(OWNER_SYNC_SECONDS)
        assert "partition has ended" in caplog.messages
    for pod in (one, other):
        assert not pod.ledger_dispatcher.is_partitioned
        worker_of(pod).end_all()
    simulation.run(TICK_SECONDS)
    assert not simulation.overloaded_replicas()


def test_services_of_dead_pod_are_taken_over_immediately() -> None:
    simulation = linked_simulation(3)
    one, other, dying = simulation.pods.values()
    key = version_owned_by(dying)
    worker_of(dying).arrive(key)
    simulation.deliver_all()
    simulation.kill(dying)
    for pod in (one, other):
        simulation.detect_death(pod, dying.name)
    worker_of(one).arrive(key)
    simulation.deliver_all()  # no time passes
    assert worker_of(one).in_flight


# Stalls


def test_pod_that_was_stalled_grants_nothing_until_it_has_read_its_messages() -> None:
    simulation = linked_simulation(3)
    one, other, stalled = simulation.pods.values()
    key = version_owned_by(stalled)
    stalled.frozen = True
    for pod in (one, other):
        link = simulation.link_between(pod, stalled)
        assert link is not None
        link.break_off(0)
        simulation.detect_break(link, pod)
    simulation.run(STALL_SECONDS)
    worker_of(stalled).arrive(key)
    stalled.frozen = False
    worker_of(stalled).deliver()
    assert not worker_of(stalled).from_supervisor  # it has not detected yet that others have taken over
    simulation.advance_clock(STALL_RECOVERY_SECONDS)
    simulation.deliver_all()
    assert worker_of(stalled).in_flight


def test_single_pod_that_was_stalled_grants_immediately() -> None:
    simulation = linked_simulation(1)
    (pod,) = simulation.pods.values()
    simulation.now += 10 * STALL_SECONDS
    worker_of(pod).arrive(version_owned_by(pod))
    simulation.deliver_all()
    assert worker_of(pod).in_flight


# Mismatches


@pytest.mark.parametrize("owned_by_other", [False, True], ids=["own ledger", "another pod's ledger"])
@pytest.mark.parametrize("count", [1, -1], ids=["recorded, not held", "held, not recorded"])
def test_lease_mismatch_is_repaired_and_logged(
    owned_by_other: bool, count: int, caplog: pytest.LogCaptureFixture
) -> None:
    simulation = linked_simulation(2, replicas=2)
    one, other = simulation.pods.values()
    owner = other if owned_by_other else one
    key = version_owned_by(owner, in_view_of=one)
    worker = worker_of(one)
    worker.arrive(key)
    worker.send_snapshots()
    simulation.deliver_all()
    assert simulation.mismatches() == 0
    ledger = owner.ledger_dispatcher.coordinator.ledger(key)
    assert ledger is not None
    (replica_id,) = ledger.held_by(worker.id)
    ledger._transfer(worker.id, ledger._workers[worker.id], ledger._records[replica_id], count)
    with caplog.at_level(logging.ERROR):
        worker.send_snapshots()
        simulation.deliver_all()
    assert ledger.held_by(worker.id) == worker.caches[key].held()
    assert simulation.mismatches() == 1
    assert caplog.messages == ["lease mismatch repaired"]
    worker.send_snapshots()
    simulation.deliver_all()
    assert simulation.mismatches() == 1


# Replicas during a partition


def test_service_with_one_replica_is_served_on_both_sides_of_a_partition() -> None:
    simulation = linked_simulation(2)
    one, other = simulation.pods.values()
    simulation.partition(one, other)
    simulation.run(RECONNECT_SECONDS + OWNER_SYNC_SECONDS)
    for key in simulation.replicas:
        for pod in (one, other):
            worker_of(pod).arrive(key)
            simulation.deliver_all()
            assert [each.key for each in worker_of(pod).in_flight] == [key]
            worker_of(pod).end_all()


def test_leases_granted_by_the_other_side_stay_and_others_are_returned() -> None:
    """The other side has a record of the leases that it has granted itself, and grants them to no other worker. It has
    no record of the leases that this side's ledgers have granted."""
    simulation = linked_simulation(2, services=12, replicas=4)
    one, other = simulation.pods.values()
    for key in simulation.replicas:
        for _ in range(4):
            worker_of(one).arrive(key)
    simulation.deliver_all()
    worker_of(one).end_all()
    owned_by_other = {key for key in simulation.replicas if one.ledger_dispatcher.ownership.owner(key[0]) == other.name}
    assert owned_by_other
    simulation.partition(one, other)
    simulation.run(RECONNECT_SECONDS + OWNER_SYNC_SECONDS)
    for key, cache in worker_of(one).caches.items():
        ids = simulation.replicas[key].ids
        elsewhere = one.ledger_dispatcher.ownership.replicas_of_other_sides(ids, simulation.now)
        assert set(cache.held()) == (ids if key in owned_by_other else ids - elsewhere)


# Partial partitions


def owners_of(simulation: FleetSimulation, key: VersionKey) -> set[str]:
    """Return the owners of a version in the views of all pods."""
    return {pod.ledger_dispatcher.ownership.owner(key[0]) for pod in simulation.pods.values()}


def test_pod_that_reaches_all_owns_the_services_of_pods_that_do_not_reach_each_other(
    caplog: pytest.LogCaptureFixture,
) -> None:
    simulation = linked_simulation(3)
    one, between, other = simulation.pods.values()
    key = version_owned_by(other)
    with caplog.at_level(logging.INFO):
        simulation.partition(one, other)
        simulation.run(SETTLE_SECONDS + OWNER_SYNC_SECONDS)
        assert all(owners_of(simulation, each) == {between.name} for each in simulation.replicas)
        assert not any(pod.ledger_dispatcher.is_partitioned for pod in simulation.pods.values())
        for pod in simulation.pods.values():
            worker_of(pod).arrive(key)
        simulation.deliver_all()
        assert sum(len(worker.in_flight) for worker in simulation.workers()) == 1
        while any(worker.in_flight for worker in simulation.workers()):  # until all requests have been served
            for worker in simulation.workers():
                worker.end_all()
            simulation.deliver_all()
            assert not simulation.overloaded_replicas()
        assert not any(worker.waiting for worker in simulation.workers())
        simulation.partitioned_pairs.clear()
        simulation.connect_all()
        simulation.run(OWNER_SYNC_SECONDS)
        assert owners_of(simulation, key) == {other.name}
    assert caplog.messages.count("not all pods reach each other, only pods that every pod reaches own services") == 3
    assert caplog.messages.count("all pods reach each other again") == 3


def test_owner_stays_the_same_for_as_long_as_the_partial_partition_lasts() -> None:
    simulation = linked_simulation(3)
    one, between, other = simulation.pods.values()
    simulation.partition(one, other)
    simulation.run(PARTITION_GRACE_SECONDS + SETTLE_SECONDS)
    for key in simulation.replicas:
        assert owners_of(simulation, key) == {between.name}
        for pod in (one, other):
            worker_of(pod).arrive(key)
    simulation.deliver_all()
    assert not simulation.overloaded_replicas()


def test_first_router_owns_the_services_of_routers_that_have_each_joined_only_it() -> None:
    simulation = FleetSimulation()
    add_services(simulation, 8)
    first, *joined = [simulation.add_pod(workers=1) for _ in range(4)]
    for pod in joined:
        simulation.connect(pod, first)
    simulation.run(SETTLE_SECONDS + OWNER_SYNC_SECONDS)
    for number, key in enumerate(simulation.replicas):
        worker_of(joined[number % 3]).arrive(key)
    simulation.deliver_all()
    assert sum(len(worker.in_flight) for worker in simulation.workers()) == len(simulation.replicas)
    assert not simulation.overloaded_replicas()
