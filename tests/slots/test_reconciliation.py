"""Reports of leases: a leak on either side is found and mended, and what is merely under way is none."""

import pytest

from router.slots.holder import HeldReplica, VersionHolder
from router.slots.ledger import Leak, VersionLedger
from router.slots.messages import Holds, Revoke, SayHello
from tests.slots.world import FrontEnd, Request, World


def world(*, fronts: int = 1, **slots: int) -> World:
    made = World(at_once=True)
    made.set_slots(slots)
    for _ in range(fronts):
        made.add_front_end()
    for front in made.fronts.values():
        made.tell_replicas(front)
    return made


def front_of(made: World, number: int = 1) -> FrontEnd:
    return made.fronts[f"f{number}"]


def holds(front: FrontEnd) -> Holds:
    said = front.holder.holds()
    assert said is not None
    return said


def replica_of(holder: VersionHolder[Request, str], replica_id: str) -> HeldReplica[str]:
    return holder._replicas[replica_id]


# What is planted is found, and mended so that the slot is of use again.


def test_a_lease_that_a_front_end_has_lost_is_free_again() -> None:
    made = world(fronts=2, r=1)
    one, other = front_of(made, 1), front_of(made, 2)
    made.arrive(one)
    made.end(one, one.running[0])
    replica_of(one.holder, "r").idle = 0  # the leak: a lease is gone without a word
    made.arrive(other)
    assert other.waiting
    leaks, outbox = made.ledger.reconcile(one.name, holds(one))
    assert leaks == [Leak("r", recorded=1, held=0)]
    made.send(outbox)
    made.deliver_all()
    assert other.running
    assert not other.waiting


def test_a_lease_that_the_ledger_has_lost_is_on_record_again() -> None:
    made = world(fronts=2, r=1)
    one, other = front_of(made, 1), front_of(made, 2)
    made.arrive(one)
    plant(made.ledger, one.name, "r", -1)  # the leak: the slot seems free while a request runs
    leaks, outbox = made.ledger.reconcile(one.name, holds(one))
    assert leaks == [Leak("r", recorded=0, held=1)]
    assert outbox == []
    made.arrive(other)
    assert other.waiting
    made.end(one, one.running[0])
    assert other.running


def test_a_lease_too_many_is_called_back() -> None:
    made = world(fronts=2, r=1)
    one, other = front_of(made, 1), front_of(made, 2)
    made.arrive(one)
    plant(made.ledger, one.name, "r", -1)
    made.arrive(other)
    assert made.in_flight("r") == 2  # what the leak led to
    leaks, outbox = made.ledger.reconcile(one.name, holds(one))
    assert leaks == [Leak("r", recorded=0, held=1)]
    assert {name for name, message in outbox if message == Revoke("r")} == {one.name, other.name}
    made.send(outbox)
    made.deliver_all()
    made.end(one, one.running[0])
    assert made.ledger.out("r") == 1
    made.arrive(one)
    assert made.in_flight("r") == 1


def test_a_lease_of_a_replica_that_is_gone_is_known_until_it_is_back() -> None:
    made = world(r=1, s=1)
    one = front_of(made)
    made.arrive(one)
    (replica,) = made.leases()
    plant(made.ledger, one.name, replica, -1)
    made.set_slots({"t": 1})
    leaks, _ = made.ledger.reconcile(one.name, holds(one))
    assert leaks == [Leak(replica, recorded=0, held=1)]
    made.set_slots({"t": 1, replica: 1})
    assert made.ledger.out(replica) == 1


# What is under way is no leak.


@pytest.mark.parametrize("heard", [0, 1, 2])
def test_grants_on_their_way_are_counted(heard: int) -> None:
    made = world(r=2)
    one = front_of(made)
    made.at_once = False
    for _ in range(2):
        made.arrive(one)
    made.flush(one)
    made.deliver_to_ledger(one)
    for _ in range(heard):
        made.deliver_to_holder(one)
    assert len(one.to_holder) == 2 - heard
    made.report(one)
    made.deliver_all()  # fails if the world sees a leak
    assert one.running


def test_a_report_of_a_former_session_says_nothing() -> None:
    made = world(r=1)
    one = front_of(made)
    made.arrive(one)
    former = holds(one)
    made.end(one, one.running[0])
    made.connect(one)
    plant(made.ledger, one.name, "r", -1)
    assert made.ledger.reconcile(one.name, former) == ([], [])


def test_a_report_of_someone_unknown_or_lost_leads_to_a_hello() -> None:
    made = world(r=1)
    one = front_of(made)
    assert made.ledger.reconcile("nobody", holds(one)) == ([], [("nobody", SayHello())])
    made.lose(one)
    assert made.ledger.reconcile(one.name, holds(one)) == ([], [(one.name, SayHello())])


def test_more_grants_than_are_remembered_are_compared_later() -> None:
    made = world(r=3000)
    one = front_of(made)
    before = holds(one)
    for _ in range(2000):
        made.arrive(one)
    assert made.ledger.reconcile(one.name, before) == ([], [])  # 2,000 are not heard of yet
    plant(made.ledger, one.name, "r", 1)
    leaks, _ = made.ledger.reconcile(one.name, holds(one))
    assert leaks == [Leak("r", recorded=2001, held=2000)]


def test_a_holder_reports_when_it_has_nothing_else_to_say_and_leases_to_speak_of() -> None:
    holder: VersionHolder[Request, str] = VersionHolder(unlimited=False, now=0.0)
    holder.enqueue(Request(1, 0.0), 0.0)
    assert holder.holds() is None
    holder.flush()
    assert holder.holds() is not None
    unlimited: VersionHolder[Request, str] = VersionHolder(unlimited=True, now=0.0)
    assert unlimited.holds() is None


def plant(ledger: VersionLedger, front_end: str, replica_id: str, count: int) -> None:
    """Put the record out of step, as a fault of the program would."""
    ledger._move(front_end, ledger._fronts[front_end], ledger._replicas[replica_id], count)
