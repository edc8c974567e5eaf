"""Several pods in any order of events: delayed messages, links that break and are made again, partitions, stalls,
crashes of workers and pods, new pods, and services that pods get at different times.

The invariants are what the router guarantees: no replica gets more requests than it has slots, except during and just
after a partition; no slot is lost; no request waits while a slot is free; snapshots of leases never find a mismatch.
"""

from collections.abc import Sequence
from typing import TypeVar

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from router.slots.ownership import OWNER_SYNC_SECONDS, PARTITION_GRACE_SECONDS, RECONNECT_SECONDS
from router.slots.reachability import SETTLE_SECONDS
from tests.peers.ledger_dispatcher.fleet_simulation import TICK_SECONDS, FleetSimulation, InFlight, Link, Pod, Worker
from tests.slots.replicas import ready

T = TypeVar("T")

MAX_PODS = 4
MAX_WORKERS = 3
MAX_SERVICES = 3
STEP_SECONDS = 0.02

# Names of the machine's methods. A name that is listed twice is chosen twice as often.
TRAFFIC = (
    "request_arrives", "request_arrives", "request_arrives", "request_arrives", "request_ends", "request_ends",
    "waiter_is_cancelled", "deliver_from_worker", "deliver_from_worker", "deliver_from_worker", "deliver_from_worker",
    "deliver_to_worker", "deliver_to_worker", "deliver_to_worker", "deliver_to_worker", "deliver_to_pod",
    "deliver_to_pod", "deliver_to_pod", "deliver_to_pod", "deliver_to_pod", "worker_sends_snapshots", "time_passes",
)  # fmt: skip
REPAIRS = (
    "pod_detects_broken_link", "pod_detects_broken_link", "link_is_made", "link_is_made", "link_is_made",
    "pod_detects_death", "pod_detects_death", "pod_gets_services", "pod_gets_services", "worker_is_added",
)  # fmt: skip
FAULTS = (
    "link_breaks", "link_breaks", "pod_leaves", "pod_dies", "pod_is_added", "pod_is_added", "worker_crashes",
    "service_is_added", *REPAIRS,
)  # fmt: skip
PARTITIONS = (
    "partition_starts", "partition_starts", "partition_ends", "pod_freezes", "pod_thaws",
    "pods_detect_unreachable_peers", "pod_dies", "time_passes_quickly", "grace_period_passes", *REPAIRS,
)  # fmt: skip


def pick(items: Sequence[T], index: int) -> list[T]:
    """Return a list of one of the items, or an empty list if there are no items."""
    return [items[index % len(items)]] if items else []


class LedgerDispatcherMachine(RuleBasedStateMachine):
    """Linked pods under random events. Messages arrive in order, but may be delayed for any time."""

    @initialize(pods=st.integers(2, 3), slots=st.lists(st.integers(1, 2), min_size=1, max_size=2))
    def start(self, pods: int, slots: list[int]) -> None:
        self.simulation = FleetSimulation()
        self.separated_seconds = 0.0  # since all pods were last linked
        self.delayed_seconds = 0.0  # since no message was last in transit
        self.may_overload = False  # True after longer separations or delays than the router tolerates
        self.leaving: set[str] = set()
        for count in slots:
            self.add_service(count)
        for _ in range(pods):
            self.simulation.add_pod()
        self.all_messages_are_delivered()
        assert not self.may_overload

    def add_service(self, slots: int) -> None:
        name = f"s{self.simulation.next_number()}"
        self.simulation.replicas[name, "default"] = ready(f"{name}-r0", f"{name}-r1", slots=slots)

    # With one draw per event there would be too few events between two faults. So each byte is an event.

    @rule(events=st.binary(min_size=30, max_size=120))
    def traffic(self, events: bytes) -> None:
        self.apply(TRAFFIC, events)

    @rule(faults=st.binary(min_size=1, max_size=4), events=st.binary(min_size=5, max_size=60))
    def faults(self, faults: bytes, events: bytes) -> None:
        self.apply(FAULTS, faults)
        self.apply(TRAFFIC, events)

    @rule(faults=st.binary(min_size=1, max_size=5), events=st.binary(min_size=5, max_size=30))
    def partitions(self, faults: bytes, events: bytes) -> None:
        self.apply(PARTITIONS, faults)
        self.apply(TRAFFIC, events)

    def apply(self, names: Sequence[str], data: bytes) -> None:
        for byte in data:
            getattr(self, names[byte % len(names)])(byte // len(names))
            self.no_replica_has_more_requests_than_slots()

    # Traffic

    def request_arrives(self, index: int) -> None:
        caches = [(worker, key) for worker in self.running_workers() for key in worker.caches]
        for worker, key in pick(caches, index * 7):
            worker.arrive(key)

    def request_ends(self, index: int) -> None:
        for ended in pick(self.in_flight(), index):
            if index % 5:
                ended.worker.end(ended)
            else:
                ended.worker.abandon(ended)

    def waiter_is_cancelled(self, index: int) -> None:
        waiting = [(worker, each) for worker in self.running_workers() for each in worker.waiting]
        for worker, (key, request) in pick(waiting, index):
            worker.cancel(key, request)

    def deliver_from_worker(self, index: int) -> None:
        for worker in pick([worker for worker in self.running_workers() if worker.to_supervisor], index):
            for _ in range(min(len(worker.to_supervisor), 1 + index % 5)):
                worker.deliver()

    def deliver_to_worker(self, index: int) -> None:
        for worker in pick([worker for worker in self.running_workers() if worker.from_supervisor], index):
            for _ in range(min(len(worker.from_supervisor), 1 + index % 5)):
                worker.receive()

    def worker_sends_snapshots(self, index: int) -> None:
        for worker in pick(self.running_workers(), index):
            worker.send_snapshots()

    def deliver_to_pod(self, index: int) -> None:
        pending = [(link, pod) for link, pod in self.link_sides() if link.in_transit[pod.name] and not pod.frozen]
        for link, pod in pick(pending, index):
            for _ in range(min(len(link.in_transit[pod.name]), 1 + index % 7)):
                if link.in_transit[pod.name]:
                    self.simulation.deliver(link, pod)

    def time_passes(self, _: int) -> None:
        self.advance_clock(STEP_SECONDS)

    def advance_clock(self, seconds: float) -> None:
        simulation = self.simulation
        all_linked = all(pod.links.keys() == simulation.pods.keys() - {pod.name} for pod in self.pods())
        together = all_linked and not any(pod.frozen or not pod.is_up_to_date for pod in self.pods())
        self.separated_seconds = 0.0 if together else self.separated_seconds + seconds
        self.delayed_seconds = 0.0 if simulation.is_quiet() else self.delayed_seconds + seconds
        if self.separated_seconds >= RECONNECT_SECONDS or self.delayed_seconds >= OWNER_SYNC_SECONDS:
            self.may_overload = True
        simulation.advance_clock(seconds)

    # Faults that do not separate pods for long

    def link_breaks(self, index: int) -> None:
        for link in pick([link for link in self.simulation.links if not link.broken], index):
            link.break_off(index)

    def pod_detects_broken_link(self, index: int) -> None:
        broken = [
            (link, pod) for link, pod in self.link_sides() if link.broken and link.is_up[pod.name] and not pod.frozen
        ]
        for link, pod in pick(broken, index):
            self.simulation.detect_break(link, pod)

    def link_is_made(self, index: int) -> None:
        for one, other in pick(self.simulation.unlinked_pairs(), index):
            self.simulation.connect(one, other)

    def pod_leaves(self, index: int) -> None:
        """A pod that is about to end gives up its services."""
        for pod in pick([pod for pod in self.pods() if not pod.frozen], index):
            pod.ledger_dispatcher.leave()
            self.leaving.add(pod.name)

    def pod_dies(self, index: int) -> None:
        if len(self.simulation.pods) > 1:
            for pod in pick(self.pods(), index):
                self.simulation.kill(pod)

    def pod_detects_death(self, index: int) -> None:
        undetected = [(pod, dead) for pod, dead in self.simulation.undetected_deaths if not pod.frozen]
        for pod, dead in pick(undetected, index):
            self.simulation.detect_death(pod, dead)

    def pod_is_added(self, index: int) -> None:
        if len(self.simulation.pods) < MAX_PODS:
            self.simulation.add_pod(with_services=index % 3 != 0)

    def worker_crashes(self, index: int) -> None:
        for worker in pick(self.running_workers(), index):
            worker.pod.crash_worker(worker)

    def worker_is_added(self, index: int) -> None:
        for pod in pick([pod for pod in self.pods() if len(pod.workers) < MAX_WORKERS and not pod.frozen], index):
            pod.add_worker()

    def service_is_added(self, index: int) -> None:
        if len(self.simulation.replicas) < MAX_SERVICES:
            self.add_service(1 + index % 2)
            for pod in pick(self.pods(), index):
                pod.update_services()

    def pod_gets_services(self, index: int) -> None:
        for pod in pick([pod for pod in self.pods() if not pod.is_up_to_date and not pod.frozen], index):
            pod.update_services()

    # Faults that separate pods

    def partition_starts(self, index: int) -> None:
        pairs = [(one, other) for one in self.pods() for other in self.pods() if one.name < other.name]
        for one, other in pick(pairs, index):
            self.simulation.partitioned_pairs.add(frozenset((one.name, other.name)))
            link = self.simulation.link_between(one, other)
            if link is not None:
                link.break_off(index)

    def partition_ends(self, index: int) -> None:
        for pair in pick(sorted(self.simulation.partitioned_pairs, key=sorted), index):
            self.simulation.partitioned_pairs.remove(pair)

    def pod_freezes(self, index: int) -> None:
        for pod in pick([pod for pod in self.pods() if not pod.frozen], index):
            pod.frozen = True

    def pod_thaws(self, index: int) -> None:
        for pod in pick([pod for pod in self.pods() if pod.frozen], index):
            pod.frozen = False

    def pods_detect_unreachable_peers(self, index: int) -> None:
        """Frozen peers have been silent for too long, and peers on the other side of a partition cannot be dialled."""
        if not self.may_overload:
            return
        frozen = {pod.name for pod in self.pods() if pod.frozen}
        for link, pod in self.link_sides():
            if link.other_pod(pod).name in frozen and pod.name not in frozen:
                link.break_off(index)
                self.simulation.detect_break(link, pod)
        for one in self.pods():
            for other in self.pods():
                if not one.frozen and frozenset((one.name, other.name)) in self.simulation.partitioned_pairs:
                    self.simulation.fail_to_reach(one, other)

    def time_passes_quickly(self, _: int) -> None:
        for _ in range(8):
            self.advance_clock(TICK_SECONDS)

    def grace_period_passes(self, _: int) -> None:
        self.may_overload = True
        for _ in range(int(PARTITION_GRACE_SECONDS / 0.5) + 1):
            self.advance_clock(0.5)

    # Invariants at any time

    @invariant()
    def no_replica_has_more_requests_than_slots(self) -> None:
        if not self.may_overload:
            assert not self.simulation.overloaded_replicas()

    @invariant()
    def no_snapshot_finds_a_mismatch(self) -> None:
        assert self.simulation.mismatches() == 0

    # Invariants once all faults are repaired and all messages delivered

    @rule()
    def all_messages_are_delivered(self) -> None:
        self.repair_all()
        for worker in self.simulation.workers():
            worker.send_snapshots()
        self.simulation.deliver_all()
        assert self.simulation.mismatches() == 0
        self.check_agreement()
        self.check_no_request_waits_for_a_free_slot()
        self.may_overload = bool(self.simulation.overloaded_replicas())
        self.separated_seconds = self.delayed_seconds = 0.0

    @rule()
    def all_requests_end(self) -> None:
        self.repair_all()
        for worker in self.simulation.workers():
            for key, request in [*worker.waiting]:
                worker.cancel(key, request)
            worker.end_all()
        self.all_messages_are_delivered()
        assert not self.may_overload
        self.check_no_slot_is_lost()

    @rule(index=st.integers(0, 20))
    def two_pods_reach_each_other_only_through_others(self, index: int) -> None:
        self.repair_all()
        if len(self.simulation.pods) < 3:
            return
        self.partition_starts(index)
        (pair,) = self.simulation.partitioned_pairs
        self.detect_broken_links()
        if self.simulation.pods.keys() - pair - self.leaving:  # otherwise no pod can be the owner for all
            for _ in range(round((SETTLE_SECONDS + OWNER_SYNC_SECONDS) / TICK_SECONDS) + 2):
                self.simulation.deliver_all()
                self.advance_clock(TICK_SECONDS)
            self.simulation.deliver_all()
            self.check_agreement()
            self.check_no_request_waits_for_a_free_slot()
        self.all_messages_are_delivered()

    def repair_all(self) -> None:
        simulation = self.simulation
        simulation.partitioned_pairs.clear()
        for pod in self.pods():
            pod.frozen = False
        self.detect_broken_links()
        for pod, dead in [*simulation.undetected_deaths]:
            simulation.detect_death(pod, dead)
        for pod in self.pods():
            if not pod.is_up_to_date:
                pod.update_services()
        simulation.connect_all()
        for _ in range(14):  # longer than any timeout of a pod that is reachable
            simulation.deliver_all()
            simulation.advance_clock()
        simulation.deliver_all()

    def detect_broken_links(self) -> None:
        for link, pod in self.link_sides():
            if link.broken and link in self.simulation.links:
                self.simulation.detect_break(link, pod)

    def check_agreement(self) -> None:
        simulation = self.simulation
        for key in simulation.replicas:
            (owner,) = {pod.ledger_dispatcher.ownership.owner(key[0]) for pod in self.pods()}
            ledger = simulation.pods[owner].ledger_dispatcher.coordinator.ledger(key)
            assert ledger is not None
            for worker in simulation.workers():
                assert ledger.held_by(worker.id) == worker.caches[key].held()
            assert ledger.waiting == sum(len(worker.caches[key].waiters) for worker in simulation.workers())

    def check_no_request_waits_for_a_free_slot(self) -> None:
        in_flight = self.simulation.in_flight()
        for key in {key for worker in self.simulation.workers() for key, _ in worker.waiting}:
            for replica_id in self.simulation.replicas[key].ids:
                assert in_flight[replica_id] >= self.simulation.replicas[key].slots, f"{replica_id} is free"

    def check_no_slot_is_lost(self) -> None:
        """Check that one worker can use all slots at the same time."""
        for key, replicas in self.simulation.replicas.items():
            for worker in pick(self.simulation.workers(), 2):
                for _ in range(len(replicas.ids) * replicas.slots):
                    worker.arrive(key)
                self.simulation.deliver_all()
                in_flight = self.simulation.in_flight()
                assert all(in_flight[replica_id] == replicas.slots for replica_id in replicas.ids)

    # Current state

    def pods(self) -> list[Pod]:
        return list(self.simulation.pods.values())

    def running_workers(self) -> list[Worker]:
        return self.simulation.running_workers()

    def in_flight(self) -> list[InFlight]:
        return [each for worker in self.simulation.workers() for each in worker.in_flight]

    def link_sides(self) -> list[tuple[Link, Pod]]:
        return [(link, pod) for link in self.simulation.links for pod in link.pods if pod.name in self.simulation.pods]

    def teardown(self) -> None:
        if hasattr(self, "simulation"):
            self.all_messages_are_delivered()
            self.all_requests_end()


TestLedgerDispatcherMachine = LedgerDispatcherMachine.TestCase
TestLedgerDispatcherMachine.settings = settings(max_examples=150, stateful_step_count=25)
