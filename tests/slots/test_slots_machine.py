"""Front-ends and their ledger in any order of events: late messages, crashes, breaks, changes of owner.

The invariants are those the router stands on: no replica gets more requests than it has slots, no slot is lost, nobody
waits while a slot is free, and both sides agree on who holds what.
"""

from collections import Counter
from collections.abc import Sequence
from typing import TypeVar

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.slots.world import FrontEnd, Running, World

T = TypeVar("T")

MOST_FRONT_ENDS = 4
MOST_REPLICAS = 4

# Methods of the machine; a name that stands here twice happens twice as often.
MESSAGES = (
    "holder_speaks", "holder_speaks", "holder_speaks", "ledger_hears", "ledger_hears", "ledger_hears",
    "holder_hears", "holder_hears", "holder_hears", "holder_hears", "holder_reports",
)  # fmt: skip
RUSH = (
    *MESSAGES, "request_arrives", "request_arrives", "request_arrives", "request_ends", "request_ends",
    "waiter_leaves", "waiters_expire", "time_passes",
)  # fmt: skip
CALM = (*MESSAGES, "request_arrives", "request_ends", "request_ends", "request_ends", "time_passes")
CHANGES = (
    "replica_comes", "replica_goes", "replica_is_resized", "replica_is_cordoned", "replica_is_taken_back",
    "replica_refuses_connection", "replica_refuses_connection", "replica_is_tried_again", "replica_is_tried_again",
    "front_end_learns_of_replicas", "front_end_learns_of_replicas",
)  # fmt: skip
FAULTS = (
    "front_end_comes", "front_end_crashes", "ledger_learns_of_crashes", "connection_breaks", "ledger_loses_connection",
    "front_end_connects", "front_end_connects", "front_end_begins_anew", "owner_changes", "new_owner_opens_if_it_may",
    "new_owner_opens_if_it_may", "new_owner_learns_of_replicas",
)  # fmt: skip


def one_of(things: Sequence[T], which: int) -> list[T]:
    """One of them, or none if there is none."""
    return [things[which % len(things)]] if things else []


class SlotsMachine(RuleBasedStateMachine):
    """Messages travel in order, and when the machine pleases."""

    @initialize(fronts=st.integers(2, MOST_FRONT_ENDS), slots=st.lists(st.integers(1, 3), min_size=1, max_size=2))
    def begin(self, fronts: int, slots: list[int]) -> None:
        self.world = World()
        self.replicas_made = len(slots)
        self.bound: dict[str, int] = {}  # most leases that a replica may have out
        self.draining: dict[str, int] = {}  # cordoned, as all have heard: most requests that may be in flight
        self.set_slots({f"r{number}": count for number, count in enumerate(slots)})
        for _ in range(fronts):
            self.world.add_front_end()

    # A draw for each event would leave too few of them between two faults, so that they come in bursts, one per byte.

    @rule(rush=st.booleans(), events=st.binary(min_size=20, max_size=100))
    def traffic(self, rush: bool, events: bytes) -> None:
        self.all_of(RUSH if rush else CALM, events)

    @rule(changes=st.binary(min_size=1, max_size=4), rush=st.booleans(), events=st.binary(min_size=10, max_size=40))
    def replicas_change(self, changes: bytes, rush: bool, events: bytes) -> None:
        self.all_of(CHANGES, changes)
        self.traffic(rush, events)

    @rule(faults=st.binary(min_size=1, max_size=3), rush=st.booleans(), events=st.binary(min_size=10, max_size=40))
    def faults(self, faults: bytes, rush: bool, events: bytes) -> None:
        self.all_of(FAULTS, faults)
        self.traffic(rush, events)

    def all_of(self, names: Sequence[str], data: bytes) -> None:
        for byte in data:
            getattr(self, names[byte % len(names)])(byte // len(names))
            self.no_replica_has_more_leases_out_than_slots()
            self.ledger_knows_where_each_lease_is()
            self.cordoned_replicas_get_nothing_new()

    # Ordinary events

    def request_arrives(self, which: int) -> None:
        for front in one_of(self.fronts(), which):
            self.world.arrive(front)

    def request_ends(self, which: int) -> None:
        for front, running in one_of(self.running(), which):
            self.world.end(front, running)

    def waiter_leaves(self, which: int) -> None:
        waiting = [(front, request) for front in self.fronts() for request in front.waiting]
        for front, request in one_of(waiting, which):
            self.world.cancel(front, request)

    def waiters_expire(self, which: int) -> None:
        for front in one_of(self.fronts(), which):
            self.world.expire(front, 0.25 + which / 4)

    def time_passes(self, which: int) -> None:
        self.world.wait(which / 8)

    def holder_speaks(self, which: int) -> None:
        for front in one_of([front for front in self.fronts() if front.holder.news], which):
            self.world.flush(front)

    def ledger_hears(self, which: int) -> None:
        for front in one_of([front for front in self.fronts() if front.to_ledger], which):
            self.world.deliver_to_ledger(front)

    def holder_reports(self, which: int) -> None:
        for front in one_of([front for front in self.fronts() if front.connected], which):
            self.world.report(front)

    def holder_hears(self, which: int) -> None:
        for front in one_of([front for front in self.fronts() if front.to_holder], which):
            self.world.deliver_to_holder(front)

    # Changes of the replicas

    def set_slots(self, slots: dict[str, int]) -> None:
        leases = self.world.leases()
        for replica in {*slots, *self.bound}:
            self.bound[replica] = max(slots.get(replica, 0), leases[replica])
        self.draining = {replica: count for replica, count in self.draining.items() if replica in slots}
        self.world.set_slots(slots)

    def replica_comes(self, which: int) -> None:
        if len(self.world.slots) < MOST_REPLICAS:
            returns = which % 2 and "r0" not in self.world.slots
            self.set_slots({**self.world.slots, "r0" if returns else f"r{self.replicas_made}": 1 + which % 3})
            self.replicas_made += 1

    def replica_goes(self, which: int) -> None:
        for gone in one_of([*self.world.slots], which):
            self.set_slots({replica: count for replica, count in self.world.slots.items() if replica != gone})

    def replica_is_resized(self, which: int) -> None:
        for replica in one_of([*self.world.slots], which):
            self.set_slots({**self.world.slots, replica: 1 + which % 4})

    def replica_is_cordoned(self, which: int) -> None:
        for replica in one_of([*self.world.slots], which):
            self.world.cordon(replica)

    def replica_is_taken_back(self, which: int) -> None:
        for replica in one_of(sorted(self.world.cordoned), which):
            self.draining.pop(replica, None)
            self.world.uncordon(replica)

    def front_end_learns_of_replicas(self, which: int) -> None:
        for front in one_of([front for front in self.fronts() if front.known != tuple(self.world.slots)], which):
            self.world.tell_replicas(front)

    def replica_refuses_connection(self, which: int) -> None:
        for front, running in one_of(self.running(), which):
            self.world.suspend(front, running.lease)
            if which % 2:
                self.world.end(front, running)

    def replica_is_tried_again(self, which: int) -> None:
        suspended = [(front, lease) for front in self.fronts() for lease in front.suspended.values()]
        for front, lease in one_of(suspended, which):
            self.world.resume(front, lease)

    # Faults

    def front_end_comes(self, _: int) -> None:
        if len(self.world.fronts) < MOST_FRONT_ENDS:
            self.world.add_front_end()

    def front_end_crashes(self, which: int) -> None:
        for front in one_of(self.fronts(), which):
            self.world.crash(front)

    def ledger_learns_of_crashes(self, _: int) -> None:
        self.world.tell_who_is_gone()

    def connection_breaks(self, which: int) -> None:
        for front in one_of([front for front in self.fronts() if front.connected], which):
            self.world.disconnect(front, ledger_notices=which % 2 == 0)

    def ledger_loses_connection(self, which: int) -> None:
        """The ledger's side takes a connection for broken that the holder's side still speaks on."""
        for front in one_of(self.fronts(), which):
            self.world.lose(front)

    def front_end_connects(self, which: int) -> None:
        for front in one_of([front for front in self.fronts() if not front.connected], which):
            self.world.connect(front)

    def front_end_begins_anew(self, which: int) -> None:
        """Says `Hello` while other messages are on their way."""
        for front in one_of([front for front in self.fronts() if front.connected], which):
            self.world.connect(front)

    def owner_changes(self, which: int) -> None:
        self.world.change_owner(knows_replicas=which % 4 < 2)
        if which % 2:
            for front in self.fronts():
                self.world.connect(front)

    def new_owner_opens_if_it_may(self, _: int) -> None:
        if not self.world.ledger_is_open:
            self.world.open_ledger()

    def new_owner_learns_of_replicas(self, _: int) -> None:
        if not self.world.ledger_has_replicas:
            self.world.give_ledger_replicas()

    # What must hold at any time

    @invariant()
    def no_replica_has_more_leases_out_than_slots(self) -> None:
        leases = self.world.leases()
        for replica, count in leases.items():
            assert self.world.in_flight(replica) <= count
            assert count <= self.bound[replica], f"{replica} has {count} leases out, may have {self.bound[replica]}"
        for replica in self.bound:
            # What was out when slots were taken away comes back, and then stays away.
            self.bound[replica] = max(self.world.slots.get(replica, 0), leases[replica])

    @invariant()
    def cordoned_replicas_get_nothing_new(self) -> None:
        for replica, count in self.draining.items():
            self.draining[replica] = self.world.in_flight(replica)
            assert self.draining[replica] <= count

    @invariant()
    def ledger_knows_where_each_lease_is(self) -> None:
        for front in self.fronts():
            if front.connected and front.introduced and front.hello is None and not front.holder.news:
                assert self.world.ledger.held_by(front.name) == front.leases() + front.returns_on_the_way()

    @invariant()
    def holders_count_what_is_in_flight(self) -> None:
        for front in self.fronts():
            in_flight = Counter(running.lease.id for running in front.running)
            assert front.holder.busy_by_replica() == in_flight
            assert front.holder.busy == in_flight.total()
            assert list(front.holder.waiters.values()) == front.waiting

    # What must hold when all is said and heard

    @rule()
    def all_is_said_and_heard(self) -> None:
        self.bring_everyone_up_to_date()
        self.check_agreement()
        self.check_nobody_waits_for_a_free_slot()
        self.draining = {replica: self.world.in_flight(replica) for replica in self.world.cordoned}
        for front in self.fronts():
            assert front.holder.totals(self.world.now) == self.world.totals(front)

    @rule()
    def all_requests_end(self) -> None:
        for front in self.fronts():
            for request in [*front.waiting]:
                self.world.cancel(front, request)
            for running in [*front.running]:
                self.world.end(front, running)
        self.bring_everyone_up_to_date()
        self.check_agreement()
        self.check_all_slots_are_there()

    def bring_everyone_up_to_date(self) -> None:
        world = self.world
        world.deliver_all()
        for front in self.fronts():
            if front.connected and not front.introduced and not front.to_ledger:
                world.disconnect(front, ledger_notices=True)  # its side notices, too
            if not front.connected:
                world.connect(front)
            if front.known != tuple(world.slots):
                world.tell_replicas(front)
        world.tell_who_is_gone()
        world.deliver_all()
        if not world.ledger_is_open:
            world.open_ledger()
        if not world.ledger_has_replicas:
            world.give_ledger_replicas()
        world.deliver_all()
        assert world.ledger_is_open
        self.no_replica_has_more_leases_out_than_slots()

    def check_agreement(self) -> None:
        ledger = self.world.ledger
        for front in self.fronts():
            assert ledger.held_by(front.name) == front.holder.held()
            assert ledger.wants_of(front.name) == tuple(front.holder.waiters)
        assert ledger.waiting == sum(len(front.waiting) for front in self.fronts())
        leases = self.world.leases()
        for replica in self.bound:
            assert ledger.out(replica) == leases[replica]
            if replica in self.world.cordoned or leases[replica] > self.world.slots.get(replica, 0):
                assert leases[replica] == self.world.in_flight(replica), "what lay idle came back"

    def check_nobody_waits_for_a_free_slot(self) -> None:
        for front in self.fronts():
            for replica in {*front.known} - self.world.cordoned - front.suspended.keys() if front.waiting else ():
                assert self.world.in_flight(replica) >= self.world.slots[replica], f"{replica} is free"

    def check_all_slots_are_there(self) -> None:
        world = self.world
        for replica in self.bound:
            idle = sum(front.holder.held().get(replica, 0) for front in self.fronts())
            free = world.slots.get(replica, 0) - world.ledger.out(replica)
            assert free >= 0
            assert free + idle == world.slots.get(replica, 0)
            assert not idle or replica not in world.cordoned

    def fronts(self) -> list[FrontEnd]:
        return list(self.world.fronts.values())

    def running(self) -> list[tuple[FrontEnd, Running]]:
        return [(front, running) for front in self.fronts() for running in front.running]

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.all_is_said_and_heard()
            self.all_requests_end()


TestSlotsMachine = SlotsMachine.TestCase
TestSlotsMachine.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)
