"""What a pod does when it meets others, loses them, or stood still; and what becomes of a leak."""

import logging

import pytest

from router.services import VersionKey
from router.slots.ownership import GATHER_SECONDS, GRACE_SECONDS, LOOK_SECONDS, RETURN_SECONDS, STILL_SECONDS
from router.slots.reach import SETTLE_SECONDS
from tests.peering.world import TICK_SECONDS, Pod, Worker, World


def world(pods: int, services: int = 8, *, replicas: int = 1) -> World:
    """Pods that are linked and know of services, whose replicas have one slot each."""
    made = World()
    for number in range(services):
        made.slots[f"s{number}", "default"] = {f"s{number}-r{replica}": 1 for replica in range(replicas)}
    for _ in range(pods):
        made.add_pod(workers=1)
    link_all(made)
    made.deliver_all()
    made.wait()
    return made


def link_all(made: World) -> None:
    pods = list(made.pods.values())
    for one in pods:
        for other in pods:
            if made.can_connect(one, other):
                made.connect(one, other)


def the_worker(pod: Pod) -> Worker:
    (worker,) = pod.workers.values()
    return worker


def owned_by(pod: Pod, seen_by: Pod | None = None) -> VersionKey:
    """A version whose ledger is a pod's."""
    view = (seen_by or pod).peering.ownership
    return next(key for key in sorted(pod.world.slots) if view.owner(key[0]) == pod.name)


def passes(made: World, seconds: float) -> None:
    for _ in range(round(seconds / TICK_SECONDS) + 1):
        made.deliver_all()
        made.wait()
    made.deliver_all()


def set_apart(made: World, one: Pod, other: Pod) -> None:
    """Cut two pods off from one another, and let both notice."""
    made.cut.add(frozenset((one.name, other.name)))
    wire = made.wire_between(one, other)
    assert wire is not None
    wire.snap(0)
    made.notice(wire, one)
    made.notice(wire, other)


# Who there is.


def test_what_is_told_of_a_service_before_it_is_known_counts() -> None:
    made = world(1)
    (first,) = made.pods.values()
    for key in made.slots:
        the_worker(first).arrive(key)
    made.deliver_all()
    late = made.add_pod(learns=False, workers=1)
    link_all(made)
    made.deliver_all()
    late.learn()
    made.deliver_all()
    key = owned_by(late)
    the_worker(late).arrive(key)
    passes(made, GATHER_SECONDS)
    assert not made.over()
    assert the_worker(late).waiting
    running = next(running for running in the_worker(first).running if running.key == key)
    the_worker(first).end(running)
    made.deliver_all()
    assert not the_worker(late).waiting


def test_a_new_pod_grants_nothing_before_it_has_met_all() -> None:
    made = world(2)
    one, other = made.pods.values()
    for key in made.slots:
        the_worker(other).arrive(key)
    made.deliver_all()
    new = made.add_pod(workers=1)
    made.connect(new, one)
    made.deliver_all()
    key = owned_by(new)
    the_worker(new).arrive(key)
    made.deliver_all()
    assert not the_worker(new).running
    made.connect(new, other)
    made.deliver_all()
    assert not the_worker(new).running  # it has learnt that the slot is taken
    the_worker(other).end(next(running for running in the_worker(other).running if running.key == key))
    made.deliver_all()
    assert the_worker(new).running


def test_a_new_pod_waits_no_longer_than_it_may_for_those_it_has_not_met() -> None:
    made = world(2)
    one, other = made.pods.values()
    new = made.add_pod(workers=1)
    made.cut.add(frozenset((new.name, other.name)))
    made.connect(new, one)
    made.deliver_all()
    key = owned_by(new)
    the_worker(new).arrive(key)
    made.deliver_all()
    assert not the_worker(new).running
    passes(made, GATHER_SECONDS)
    assert the_worker(new).running


# Links that are lost.


def test_a_link_that_is_back_soon_changes_nothing() -> None:
    made = world(2)
    one, other = made.pods.values()
    key = owned_by(other)
    set_apart(made, one, other)
    the_worker(one).arrive(key)
    made.deliver_all()
    assert the_worker(one).waiting  # what it said is lost
    assert not one.peering.is_cut
    made.cut.clear()
    link_all(made)
    made.deliver_all()
    assert the_worker(one).running
    assert owned_by(other) == key


def test_who_cannot_reach_the_owner_serves_from_leases_and_then_from_a_fair_share(
    caplog: pytest.LogCaptureFixture,
) -> None:
    made = world(2, replicas=6)
    one, other = made.pods.values()
    key = owned_by(other)
    worker = the_worker(one)
    worker.arrive(key)
    made.deliver_all()
    worker.end(worker.running[0])
    with caplog.at_level(logging.INFO):
        set_apart(made, one, other)
        worker.arrive(key)
        assert len(worker.running) == 1  # the lease that it had
        passes(made, RETURN_SECONDS + GATHER_SECONDS)
        for pod in (one, other):
            assert pod.peering.is_cut
            for _ in range(6):
                the_worker(pod).arrive(key)
        made.deliver_all()
        assert worker.running
        assert the_worker(other).running
        assert len(worker.running) + len(the_worker(other).running) <= 7  # both shares, and the lease from before
        assert "replicas are shared out between the sides of a cut" in caplog.messages
        made.cut.clear()
        link_all(made)
        passes(made, GATHER_SECONDS)
        assert "replicas are shared out no more" in caplog.messages
    for pod in (one, other):
        assert not pod.peering.is_cut
        for running in [*the_worker(pod).running]:
            the_worker(pod).end(running)
    passes(made, TICK_SECONDS)
    assert not made.over()


def test_a_dead_pod_is_succeeded_without_waiting() -> None:
    made = world(3)
    one, other, dying = made.pods.values()
    key = owned_by(dying)
    the_worker(dying).arrive(key)
    made.deliver_all()
    made.kill(dying)
    for pod in (one, other):
        made.learn_of_death(pod, dying.name)
    the_worker(one).arrive(key)
    made.deliver_all()  # no time passes
    assert the_worker(one).running


# Pauses.


def test_who_stood_still_looks_before_it_grants() -> None:
    made = world(3)
    one, other, still = made.pods.values()
    key = owned_by(still)
    still.frozen = True
    for pod in (one, other):
        wire = made.wire_between(pod, still)
        assert wire is not None
        wire.snap(0)
        made.notice(wire, pod)
    passes(made, STILL_SECONDS)
    the_worker(still).arrive(key)
    still.frozen = False
    the_worker(still).speak()
    assert not the_worker(still).down  # it does not know yet that others have taken over
    made.wait(LOOK_SECONDS)
    made.deliver_all()
    assert the_worker(still).running  # nothing that it heard spoke against it


def test_who_is_alone_need_not_look() -> None:
    made = world(1)
    (pod,) = made.pods.values()
    made.now += 10 * STILL_SECONDS
    the_worker(pod).arrive(owned_by(pod))
    made.deliver_all()
    assert the_worker(pod).running


# Leaks.


@pytest.mark.parametrize("elsewhere", [False, True], ids=["own ledger", "another pod's ledger"])
@pytest.mark.parametrize("count", [1, -1], ids=["on record, not held", "held, not on record"])
def test_a_planted_leak_is_repaired(elsewhere: bool, count: int, caplog: pytest.LogCaptureFixture) -> None:
    made = world(2, replicas=2)
    one, other = made.pods.values()
    key = owned_by(other if elsewhere else one, seen_by=one)
    worker = the_worker(one)
    worker.arrive(key)
    worker.report()
    made.deliver_all()
    assert made.leaks() == 0
    ledger = (other if elsewhere else one).peering.coordinator.ledger(key)
    assert ledger is not None
    front_end = f"{one.name}/{worker.name}"
    (replica,) = ledger.held_by(front_end)
    ledger._move(front_end, ledger._fronts[front_end], ledger._replicas[replica], count)
    with caplog.at_level(logging.ERROR):
        worker.report()
        made.deliver_all()
    assert ledger.held_by(front_end) == worker.holders[key].held()
    assert made.leaks() == 1
    assert caplog.messages == ["leases out of step, repaired"]
    worker.report()
    made.deliver_all()
    assert made.leaks() == 1


# Shares.


def test_a_service_with_one_replica_is_served_on_both_sides_of_a_cut() -> None:
    made = world(2)
    one, other = made.pods.values()
    set_apart(made, one, other)
    passes(made, RETURN_SECONDS + GATHER_SECONDS)
    for key in made.slots:
        for pod in (one, other):
            the_worker(pod).arrive(key)
            made.deliver_all()
            assert [running.key for running in the_worker(pod).running] == [key]
            the_worker(pod).end(the_worker(pod).running[0])


def test_leases_of_the_owner_that_is_cut_off_stay_and_others_go_back() -> None:
    """It knows what it has granted, and grants that to nobody else; of its successor's past grants it knows nothing."""
    made = world(2, services=12, replicas=4)
    one, other = made.pods.values()
    for key in made.slots:
        for _ in range(4):
            the_worker(one).arrive(key)
    made.deliver_all()
    for running in [*the_worker(one).running]:
        the_worker(one).end(running)
    set_apart(made, one, other)
    passes(made, RETURN_SECONDS + GATHER_SECONDS)
    for key, holder in the_worker(one).holders.items():
        others = one.peering.ownership.others_share(made.slots[key], made.now)
        was_others = key[0] in one.peering._inherited
        assert set(holder.held()) == (set(made.slots[key]) if was_others else set(made.slots[key]) - others)
    assert one.peering._inherited
    made.cut.clear()
    link_all(made)
    passes(made, GATHER_SECONDS)
    assert not one.peering._inherited


# Some reach each other only by way of others.


def owners(made: World, key: VersionKey) -> set[str]:
    return {pod.peering.ownership.owner(key[0]) for pod in made.pods.values()}


def test_two_pods_that_do_not_reach_each_other_are_served_by_one_that_both_reach(
    caplog: pytest.LogCaptureFixture,
) -> None:
    made = world(3)
    one, between, other = made.pods.values()
    key = owned_by(other)
    with caplog.at_level(logging.INFO):
        set_apart(made, one, other)
        passes(made, SETTLE_SECONDS + GATHER_SECONDS)
        assert all(owners(made, each) == {between.name} for each in made.slots)
        assert not any(pod.peering.is_cut for pod in made.pods.values())
        for pod in made.pods.values():
            the_worker(pod).arrive(key)
        made.deliver_all()
        assert len([running for worker in made.workers() for running in worker.running]) == 1
        while any(worker.running for worker in made.workers()):  # and each has its turn
            for worker in made.workers():
                for running in [*worker.running]:
                    worker.end(running)
            made.deliver_all()
            assert not made.over()
        assert not any(worker.waiting for worker in made.workers())
        made.cut.clear()
        link_all(made)
        passes(made, GATHER_SECONDS)
        assert owners(made, key) == {other.name}
    said = "not all pods reach each other, those that all reach own the services"
    assert caplog.messages.count(said) == 3
    assert caplog.messages.count("all pods reach each other again") == 3


def test_it_stays_so_for_as_long_as_they_do_not_reach_each_other() -> None:
    made = world(3)
    one, between, other = made.pods.values()
    set_apart(made, one, other)
    passes(made, GRACE_SECONDS + SETTLE_SECONDS)
    for key in made.slots:
        assert owners(made, key) == {between.name}
        for pod in (one, other):
            the_worker(pod).arrive(key)
    made.deliver_all()
    assert not made.over()


def test_routers_that_have_each_joined_the_first_one_are_served_by_it() -> None:
    made = World()
    for number in range(8):
        made.slots[f"s{number}", "default"] = {f"s{number}-r0": 1}
    first, *joined = [made.add_pod(workers=1) for _ in range(4)]
    for pod in joined:
        made.connect(pod, first)
    passes(made, SETTLE_SECONDS + GATHER_SECONDS)
    for number, key in enumerate(made.slots):
        the_worker(joined[number % 3]).arrive(key)
    made.deliver_all()
    assert sum(len(worker.running) for worker in made.workers()) == len(made.slots)
    assert not made.over()
