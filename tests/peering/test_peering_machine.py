"""Several pods in any order of events: late messages, links that break and come back, cuts, pauses, deaths of workers
and pods, pods that come, services of which they learn one after another.

The invariants are those the router stands on: no replica gets more requests than it has slots, unless pods that live
could not reach one another and this is not over yet; no slot is lost; nobody waits while a slot is free; the reports of
leases never find a difference.
"""

from collections.abc import Sequence
from typing import TypeVar

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from router.slots.ownership import GATHER_SECONDS, GRACE_SECONDS, RETURN_SECONDS
from router.slots.reach import SETTLE_SECONDS
from tests.peering.world import Pod, Running, Wire, Worker, World

T = TypeVar("T")

MOST_PODS = 4
MOST_WORKERS = 3
MOST_SERVICES = 3
STEP_SECONDS = 0.02

# Methods of the machine; a name that stands here twice happens twice as often.
TRAFFIC = (
    "request_arrives", "request_arrives", "request_arrives", "request_arrives", "request_ends", "request_ends",
    "waiter_leaves", "worker_speaks", "worker_speaks", "worker_speaks", "worker_speaks", "worker_hears",
    "worker_hears", "worker_hears", "worker_hears", "link_delivers", "link_delivers", "link_delivers",
    "link_delivers", "link_delivers", "worker_reports", "time_passes",
)  # fmt: skip
REPAIRS = (
    "break_is_noticed", "break_is_noticed", "link_comes", "link_comes", "link_comes", "death_is_learned",
    "death_is_learned", "services_are_learned", "services_are_learned", "worker_comes",
)  # fmt: skip
FAULTS = (
    "link_breaks", "link_breaks", "pod_leaves", "pod_dies", "pod_comes", "pod_comes", "worker_dies", "service_comes",
    *REPAIRS,
)  # fmt: skip
CUTS = (
    "cut_begins", "cut_begins", "cut_ends", "pod_freezes", "pod_thaws", "nobody_is_reached", "pod_dies", "time_flies",
    "grace_is_over", *REPAIRS,
)  # fmt: skip


def one_of(things: Sequence[T], which: int) -> list[T]:
    """One of them, or none if there is none."""
    return [things[which % len(things)]] if things else []


class PeeringMachine(RuleBasedStateMachine):
    """Messages travel in order, and when the machine pleases."""

    @initialize(pods=st.integers(2, 3), slots=st.lists(st.integers(1, 2), min_size=1, max_size=2))
    def begin(self, pods: int, slots: list[int]) -> None:
        self.world = World()
        self.apart = 0.0  # seconds for which some could not reach one another
        self.late = 0.0  # seconds for which something was under way
        self.excused = False
        self.leaving: set[str] = set()
        for count in slots:
            self.add_service(count)
        for _ in range(pods):
            self.world.add_pod()
        self.all_is_said_and_heard()
        assert not self.excused

    def add_service(self, slots: int) -> None:
        name = f"s{self.world.next_number()}"
        self.world.slots[name, "default"] = {f"{name}-r{number}": slots for number in range(2)}

    # A draw for each event would leave too few of them between two faults, so that they come in bursts, one per byte.

    @rule(events=st.binary(min_size=30, max_size=120))
    def traffic(self, events: bytes) -> None:
        self.all_of(TRAFFIC, events)

    @rule(faults=st.binary(min_size=1, max_size=4), events=st.binary(min_size=5, max_size=60))
    def faults(self, faults: bytes, events: bytes) -> None:
        self.all_of(FAULTS, faults)
        self.all_of(TRAFFIC, events)

    @rule(faults=st.binary(min_size=1, max_size=5), events=st.binary(min_size=5, max_size=30))
    def cuts(self, faults: bytes, events: bytes) -> None:
        self.all_of(CUTS, faults)
        self.all_of(TRAFFIC, events)

    def all_of(self, names: Sequence[str], data: bytes) -> None:
        for byte in data:
            getattr(self, names[byte % len(names)])(byte // len(names))
            self.no_replica_has_more_requests_than_slots()

    # Ordinary events

    def request_arrives(self, which: int) -> None:
        for worker, key in one_of([(w, key) for w in self.awake() for key in w.holders], which * 7):
            worker.arrive(key)

    def request_ends(self, which: int) -> None:
        for running in one_of(self.running(), which):
            running.worker.end(running)

    def waiter_leaves(self, which: int) -> None:
        for worker, waiting in one_of([(w, waiting) for w in self.awake() for waiting in w.waiting], which):
            worker.leave(*waiting)

    def worker_speaks(self, which: int) -> None:
        for worker in one_of([worker for worker in self.awake() if worker.up], which):
            for _ in range(min(len(worker.up), 1 + which % 5)):
                worker.speak()

    def worker_hears(self, which: int) -> None:
        for worker in one_of([worker for worker in self.awake() if worker.down], which):
            for _ in range(min(len(worker.down), 1 + which % 5)):
                worker.hear()

    def worker_reports(self, which: int) -> None:
        for worker in one_of(self.awake(), which):
            worker.report()

    def link_delivers(self, which: int) -> None:
        speaking = [(wire, pod) for wire, pod in self.ends() if wire.under_way[pod.name] and not pod.frozen]
        for wire, pod in one_of(speaking, which):
            for _ in range(min(len(wire.under_way[pod.name]), 1 + which % 7)):
                if wire.under_way[pod.name]:
                    self.world.deliver(wire, pod)

    def time_passes(self, _: int) -> None:
        self.wait(STEP_SECONDS)

    def wait(self, seconds: float) -> None:
        pods = self.world.pods.values()
        whole = all(one.wires.keys() == self.world.pods.keys() - {one.name} for one in pods)
        calm = whole and not any(pod.frozen or not pod.is_up_to_date for pod in pods)
        self.apart = 0.0 if calm else self.apart + seconds
        self.late = 0.0 if self.world.is_silent() else self.late + seconds
        if self.apart >= RETURN_SECONDS or self.late >= GATHER_SECONDS:
            self.excused = True
        self.world.wait(seconds)

    # Faults that are over soon

    def link_breaks(self, which: int) -> None:
        for wire in one_of([wire for wire in self.world.wires if not wire.broken], which):
            wire.snap(which)

    def break_is_noticed(self, which: int) -> None:
        broken = [(wire, pod) for wire, pod in self.ends() if wire.broken and wire.up[pod.name] and not pod.frozen]
        for wire, pod in one_of(broken, which):
            self.world.notice(wire, pod)

    def link_comes(self, which: int) -> None:
        for one, other in one_of(self.unlinked(), which):
            self.world.connect(one, other)

    def pod_leaves(self, which: int) -> None:
        """It is about to end, and so owns nothing any more."""
        for pod in one_of([pod for pod in self.pods() if not pod.frozen], which):
            pod.peering.leave()
            self.leaving.add(pod.name)

    def pod_dies(self, which: int) -> None:
        if len(self.world.pods) > 1:
            for pod in one_of(self.pods(), which):
                self.world.kill(pod)

    def death_is_learned(self, which: int) -> None:
        for pod, gone in one_of([each for each in self.world.dead if not each[0].frozen], which):
            self.world.learn_of_death(pod, gone)

    def pod_comes(self, which: int) -> None:
        if len(self.world.pods) < MOST_PODS:
            self.world.add_pod(learns=which % 3 != 0)

    def worker_dies(self, which: int) -> None:
        for worker in one_of(self.awake(), which):
            worker.pod.lose_worker(worker)

    def worker_comes(self, which: int) -> None:
        for pod in one_of([p for p in self.pods() if len(p.workers) < MOST_WORKERS and not p.frozen], which):
            pod.add_worker()

    def service_comes(self, which: int) -> None:
        if len(self.world.slots) < MOST_SERVICES:
            self.add_service(1 + which % 2)
            for pod in one_of(self.pods(), which):
                pod.learn()

    def services_are_learned(self, which: int) -> None:
        for pod in one_of([pod for pod in self.pods() if not pod.is_up_to_date and not pod.frozen], which):
            pod.learn()

    # Faults that set pods apart

    def cut_begins(self, which: int) -> None:
        pairs = [(one, other) for one in self.pods() for other in self.pods() if one.name < other.name]
        for one, other in one_of(pairs, which):
            self.world.cut.add(frozenset((one.name, other.name)))
            wire = self.world.wire_between(one, other)
            if wire is not None:
                wire.snap(which)

    def cut_ends(self, which: int) -> None:
        for pair in one_of(sorted(self.world.cut, key=sorted), which):
            self.world.cut.remove(pair)

    def pod_freezes(self, which: int) -> None:
        for pod in one_of([pod for pod in self.pods() if not pod.frozen], which):
            pod.frozen = True

    def pod_thaws(self, which: int) -> None:
        for pod in one_of([pod for pod in self.pods() if pod.frozen], which):
            pod.frozen = False

    def nobody_is_reached(self, which: int) -> None:
        """Those who are dialled for long do not answer, those who are linked are silent for long."""
        if not self.excused:
            return
        frozen = {pod.name for pod in self.pods() if pod.frozen}
        for wire, pod in self.ends():
            if wire.other(pod).name in frozen and pod.name not in frozen:
                wire.snap(which)
                self.world.notice(wire, pod)
        for one in self.pods():
            for other in self.pods():
                if not one.frozen and frozenset((one.name, other.name)) in self.world.cut:
                    self.world.not_reached(one, other)

    def time_flies(self, _: int) -> None:
        for _ in range(8):
            self.wait(0.1)

    def grace_is_over(self, _: int) -> None:
        self.excused = True
        for _ in range(int(GRACE_SECONDS / 0.5) + 1):
            self.wait(0.5)

    # What must hold at any time

    @invariant()
    def no_replica_has_more_requests_than_slots(self) -> None:
        if not self.excused:
            assert not self.world.over()

    @invariant()
    def nothing_is_taken_for_a_leak(self) -> None:
        assert self.world.leaks() == 0

    # What must hold when all is well again

    @rule()
    def all_is_said_and_heard(self) -> None:
        self.mend()
        for worker in self.world.workers():
            worker.report()
        self.world.deliver_all()
        assert self.world.leaks() == 0
        self.check_agreement()
        self.check_nobody_waits_for_a_free_slot()
        self.excused = bool(self.world.over())
        self.apart = self.late = 0.0

    @rule()
    def all_requests_end(self) -> None:
        self.mend()
        for worker in self.world.workers():
            for waiting in [*worker.waiting]:
                worker.leave(*waiting)
        for running in self.running():
            running.worker.end(running)
        self.all_is_said_and_heard()
        assert not self.excused
        self.check_all_slots_are_there()

    @rule(which=st.integers(0, 20))
    def two_do_not_reach_each_other_and_others_reach_both(self, which: int) -> None:
        self.mend()
        if len(self.world.pods) < 3:
            return
        self.cut_begins(which)
        (pair,) = self.world.cut
        for wire, pod in self.ends():
            if wire.broken and wire in self.world.wires:
                self.world.notice(wire, pod)
        if self.world.pods.keys() - pair - self.leaving:  # else nobody is left who could be the owner for all
            for _ in range(round((SETTLE_SECONDS + GATHER_SECONDS) / 0.1) + 2):
                self.world.deliver_all()
                self.wait(0.1)
            self.world.deliver_all()
            self.check_agreement()
            self.check_nobody_waits_for_a_free_slot()
        self.all_is_said_and_heard()

    def mend(self) -> None:
        world = self.world
        world.cut.clear()
        for pod in self.pods():
            pod.frozen = False
        for wire, pod in self.ends():
            if wire.broken and wire in world.wires:
                world.notice(wire, pod)
        for pod, gone in [*world.dead]:
            world.learn_of_death(pod, gone)
        for pod in self.pods():
            if not pod.is_up_to_date:
                pod.learn()
        while pairs := self.unlinked():
            world.connect(*pairs[0])
        for _ in range(14):  # until those who must wait have waited
            world.deliver_all()
            world.wait(0.1)
        world.deliver_all()

    def check_agreement(self) -> None:
        world = self.world
        for key, replicas in world.slots.items():
            (owner,) = {pod.peering.ownership.owner(key[0]) for pod in self.pods()}
            ledger = world.pods[owner].peering.coordinator.ledger(key)
            assert ledger is not None
            assert world.pods[owner].peering.ownership.may_grant(key[0])
            for worker in world.workers():
                front_end = f"{worker.pod.name}/{worker.name}"
                assert ledger.held_by(front_end) == worker.holders[key].held()
                assert ledger.wants_of(front_end) == tuple(worker.holders[key].waiters)
            for replica in replicas:
                assert ledger.out(replica) == sum(w.holders[key].held().get(replica, 0) for w in world.workers())

    def check_nobody_waits_for_a_free_slot(self) -> None:
        in_flight = self.world.in_flight()
        for key in {key for worker in self.world.workers() for key, _ in worker.waiting}:
            for replica, slots in self.world.slots[key].items():
                assert in_flight[replica] >= slots, f"{replica} is free"

    def check_all_slots_are_there(self) -> None:
        """Each can be had, at any worker, now."""
        for key, replicas in self.world.slots.items():
            for worker in one_of(self.world.workers(), len(replicas)):
                for _ in range(sum(replicas.values())):
                    worker.arrive(key)
                self.world.deliver_all()
                assert {r: self.world.in_flight()[r] for r in replicas} == replicas

    # Who there is

    def pods(self) -> list[Pod]:
        return list(self.world.pods.values())

    def awake(self) -> list[Worker]:
        return self.world.awake()

    def running(self) -> list[Running]:
        return [running for worker in self.world.workers() for running in worker.running]

    def ends(self) -> list[tuple[Wire, Pod]]:
        return [(wire, pod) for wire in self.world.wires for pod in wire.ends if pod.name in self.world.pods]

    def unlinked(self) -> list[tuple[Pod, Pod]]:
        pods = self.pods()
        return [(one, other) for one in pods for other in pods if self.world.can_connect(one, other)]

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.all_is_said_and_heard()
            self.all_requests_end()


TestPeeringMachine = PeeringMachine.TestCase
TestPeeringMachine.settings = settings(max_examples=150, stateful_step_count=25, deadline=None)
