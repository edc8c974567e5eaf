"""Workers and their ledger in any order of events: delayed messages, crashes, disconnects, changes of the owner.

The invariants are what the router guarantees: no replica gets more requests than it has slots, no slot is lost, no
request waits while a slot is free, and both sides agree on the leases of each worker.
"""

from collections import Counter
from collections.abc import Sequence
from typing import TypeVar

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.slots.slot_simulation import InFlight, SlotSimulation, Worker

T = TypeVar("T")

MAX_WORKERS = 4
MAX_REPLICAS = 4

# Names of the machine's methods. A name that is listed twice is chosen twice as often.
MESSAGES = (
    "flush_cache", "flush_cache", "flush_cache", "deliver_to_ledger", "deliver_to_ledger", "deliver_to_ledger",
    "deliver_to_cache", "deliver_to_cache", "deliver_to_cache", "deliver_to_cache", "send_snapshot",
)  # fmt: skip
HIGH_TRAFFIC = (
    *MESSAGES, "request_arrives", "request_arrives", "request_arrives", "request_ends", "request_ends",
    "request_is_abandoned", "waiter_is_cancelled", "waiters_expire", "time_passes", "ledger_ticks",
)  # fmt: skip
LOW_TRAFFIC = (
    *MESSAGES, "request_arrives", "request_ends", "request_ends", "request_ends", "request_is_abandoned", "time_passes",
)  # fmt: skip
CHANGES = (
    "replica_is_added", "replica_is_removed", "slots_change", "replica_is_cordoned", "replica_is_uncordoned",
    "replica_is_suspended", "replica_is_suspended", "replica_is_resumed", "replica_is_resumed",
    "worker_gets_replicas", "worker_gets_replicas",
)  # fmt: skip
FAULTS = (
    "worker_is_added", "worker_crashes", "ledger_removes_crashed_workers", "worker_disconnects",
    "ledger_detects_disconnect", "worker_connects", "worker_connects", "worker_registers_again", "owner_changes",
    "new_owner_opens", "new_owner_opens", "new_owner_gets_replicas",
)  # fmt: skip


def pick(items: Sequence[T], index: int) -> list[T]:
    """Return a list of one of the items, or an empty list if there are no items."""
    return [items[index % len(items)]] if items else []


class SlotsMachine(RuleBasedStateMachine):
    """Slots of one version under random events. Messages arrive in order, but may be delayed for any time."""

    @initialize(workers=st.integers(2, MAX_WORKERS), replicas=st.integers(1, 2), slots=st.integers(1, 3))
    def start(self, workers: int, replicas: int, slots: int) -> None:
        self.simulation = SlotSimulation()
        self.replica_count = replicas
        self.max_leases: dict[str, int] = {}  # by replica
        self.max_in_flight: dict[str, int] = {}  # of replicas that are cordoned and whose leases have been revoked
        self.set_replicas(*[f"r{number}" for number in range(replicas)], slots=slots)
        for _ in range(workers):
            self.simulation.add_worker()

    # With one draw per event there would be too few events between two faults. So each byte is an event.

    @rule(high=st.booleans(), events=st.binary(min_size=20, max_size=100))
    def traffic(self, high: bool, events: bytes) -> None:
        self.apply(HIGH_TRAFFIC if high else LOW_TRAFFIC, events)

    @rule(changes=st.binary(min_size=1, max_size=4), high=st.booleans(), events=st.binary(min_size=10, max_size=40))
    def replicas_change(self, changes: bytes, high: bool, events: bytes) -> None:
        self.apply(CHANGES, changes)
        self.traffic(high, events)

    @rule(faults=st.binary(min_size=1, max_size=3), high=st.booleans(), events=st.binary(min_size=10, max_size=40))
    def faults(self, faults: bytes, high: bool, events: bytes) -> None:
        self.apply(FAULTS, faults)
        self.traffic(high, events)

    def apply(self, names: Sequence[str], data: bytes) -> None:
        for byte in data:
            getattr(self, names[byte % len(names)])(byte // len(names))
            self.leases_do_not_exceed_slots()
            self.ledger_has_the_leases_of_each_worker()
            self.cordoned_replicas_get_no_new_requests()

    # Traffic

    def request_arrives(self, index: int) -> None:
        for worker in pick(self.workers(), index):
            self.simulation.arrive(worker, waited=index % 3 / 4)

    def request_ends(self, index: int) -> None:
        for worker, ending in pick(self.in_flight(), index):
            self.simulation.end(worker, ending, answered=index % 4 > 0)

    def request_is_abandoned(self, index: int) -> None:
        for worker, ending in pick(self.in_flight(), index):
            self.simulation.abandon(worker, ending, (1 + index % 3) / 2)

    def ledger_ticks(self, _: int) -> None:
        self.simulation.tick()

    def waiter_is_cancelled(self, index: int) -> None:
        waiting = [(worker, request) for worker in self.workers() for request in worker.waiting]
        for worker, request in pick(waiting, index):
            self.simulation.cancel(worker, request)

    def waiters_expire(self, index: int) -> None:
        for worker in pick(self.workers(), index):
            self.simulation.expire(worker, 0.25 + index / 4)

    def time_passes(self, index: int) -> None:
        self.simulation.advance_clock(index / 8)

    def flush_cache(self, index: int) -> None:
        for worker in pick([worker for worker in self.workers() if worker.cache.needs_flush], index):
            self.simulation.flush(worker)

    def deliver_to_ledger(self, index: int) -> None:
        for worker in pick([worker for worker in self.workers() if worker.to_ledger], index):
            self.simulation.deliver_to_ledger(worker)

    def send_snapshot(self, index: int) -> None:
        for worker in pick([worker for worker in self.workers() if worker.connected], index):
            self.simulation.send_snapshot(worker)

    def deliver_to_cache(self, index: int) -> None:
        for worker in pick([worker for worker in self.workers() if worker.to_cache], index):
            self.simulation.deliver_to_cache(worker)

    # Changes of the replicas

    def set_replicas(self, *ids: str, slots: int | None = None) -> None:
        leases = self.simulation.leases()
        slots = self.simulation.replicas.slots if slots is None else slots
        for replica_id in {*ids, *self.max_leases}:
            self.max_leases[replica_id] = max(slots if replica_id in ids else 0, leases[replica_id])
        self.max_in_flight = {
            replica_id: count for replica_id, count in self.max_in_flight.items() if replica_id in ids
        }
        self.simulation.set_replicas(*ids, slots=slots)

    def replica_is_added(self, index: int) -> None:
        ids = self.simulation.replica_ids
        if len(ids) < MAX_REPLICAS:
            again = index % 2 and "r0" not in ids
            self.set_replicas(*ids, "r0" if again else f"r{self.replica_count}")
            self.replica_count += 1

    def replica_is_removed(self, index: int) -> None:
        for removed in pick(self.simulation.replica_ids, index):
            self.set_replicas(*[replica_id for replica_id in self.simulation.replica_ids if replica_id != removed])

    def slots_change(self, index: int) -> None:
        self.set_replicas(*self.simulation.replica_ids, slots=1 + index % 4)

    def replica_is_cordoned(self, index: int) -> None:
        for replica_id in pick(self.simulation.replica_ids, index):
            self.simulation.cordon(replica_id)

    def replica_is_uncordoned(self, index: int) -> None:
        for replica_id in pick(sorted(self.simulation.replicas.cordoned), index):
            self.max_in_flight.pop(replica_id, None)
            self.simulation.uncordon(replica_id)

    def worker_gets_replicas(self, index: int) -> None:
        outdated = [worker for worker in self.workers() if worker.replica_ids != self.simulation.replica_ids]
        for worker in pick(outdated, index):
            self.simulation.update_replicas_of(worker)

    def replica_is_suspended(self, index: int) -> None:
        for worker, request in pick(self.in_flight(), index):
            self.simulation.suspend(worker, request.replica)
            if index % 2:
                self.simulation.end(worker, request)

    def replica_is_resumed(self, index: int) -> None:
        suspended = [(worker, replica) for worker in self.workers() for replica in worker.suspended.values()]
        for worker, replica in pick(suspended, index):
            self.simulation.resume(worker, replica)

    # Faults

    def worker_is_added(self, _: int) -> None:
        if len(self.simulation.workers) < MAX_WORKERS:
            self.simulation.add_worker()

    def worker_crashes(self, index: int) -> None:
        for worker in pick(self.workers(), index):
            self.simulation.crash(worker)

    def ledger_removes_crashed_workers(self, _: int) -> None:
        self.simulation.remove_crashed_workers()

    def worker_disconnects(self, index: int) -> None:
        for worker in pick([worker for worker in self.workers() if worker.connected], index):
            self.simulation.disconnect(worker, ledger_detects=index % 2 == 0)

    def ledger_detects_disconnect(self, index: int) -> None:
        """The ledger's side considers a connection broken that the worker's side still uses."""
        for worker in pick(self.workers(), index):
            self.simulation.disconnect_at_ledger(worker)

    def worker_connects(self, index: int) -> None:
        for worker in pick([worker for worker in self.workers() if not worker.connected], index):
            self.simulation.connect(worker)

    def worker_registers_again(self, index: int) -> None:
        """A worker sends `Register` while other messages are in transit."""
        for worker in pick([worker for worker in self.workers() if worker.connected], index):
            self.simulation.connect(worker)

    def owner_changes(self, index: int) -> None:
        self.simulation.move_ledger_to_new_owner(has_replicas=index % 4 < 2)
        if index % 2:
            for worker in self.workers():
                self.simulation.connect(worker)

    def new_owner_opens(self, _: int) -> None:
        if not self.simulation.ledger_is_open:
            self.simulation.open_ledger()

    def new_owner_gets_replicas(self, _: int) -> None:
        if not self.simulation.ledger_has_replicas:
            self.simulation.update_replicas_of_ledger()

    # Invariants at any time

    @invariant()
    def leases_do_not_exceed_slots(self) -> None:
        leases = self.simulation.leases()
        for replica_id, count in leases.items():
            assert self.simulation.in_flight_at(replica_id) <= count
            assert count <= self.max_leases[replica_id], f"{replica_id} has {count} leases"
        for replica_id in self.max_leases:
            # Leases above the slots that were removed are returned, and must not be granted again.
            self.max_leases[replica_id] = max(self.simulation.slots_of(replica_id), leases[replica_id])

    @invariant()
    def cordoned_replicas_get_no_new_requests(self) -> None:
        for replica_id, count in self.max_in_flight.items():
            self.max_in_flight[replica_id] = self.simulation.in_flight_at(replica_id)
            assert self.max_in_flight[replica_id] <= count

    @invariant()
    def ledger_has_the_leases_of_each_worker(self) -> None:
        for worker in self.workers():
            in_sync = worker.connected and worker.registered and worker.pending_register is None
            if in_sync and not worker.cache.needs_flush:
                assert self.simulation.ledger.held_by(worker.name) == worker.leases() + worker.returns_in_transit()

    @invariant()
    def caches_count_requests_in_flight(self) -> None:
        for worker in self.workers():
            in_flight = Counter(each.replica.id for each in worker.in_flight)
            assert worker.cache.busy_by_replica() == in_flight
            assert worker.cache.busy == in_flight.total()
            assert list(worker.cache.waiters.values()) == worker.waiting

    @invariant()
    def suspect_slots_are_slots(self) -> None:
        suspects = {id_: self.simulation.ledger.suspect_slots_of(id_) for id_ in self.max_leases}
        assert sum(suspects.values()) == self.simulation.ledger.suspect_slots
        if self.simulation.ledger_has_replicas:
            for replica_id, count in suspects.items():
                assert count <= self.simulation.slots_of(replica_id)

    # Invariants once all messages have been delivered

    @rule()
    def all_messages_are_delivered(self) -> None:
        self.sync_all()
        self.check_agreement()
        self.check_no_request_waits_for_a_free_slot()
        self.max_in_flight = {
            replica_id: self.simulation.in_flight_at(replica_id) for replica_id in self.simulation.replicas.cordoned
        }
        for worker in self.workers():
            assert worker.cache.totals(self.simulation.now) == self.simulation.totals(worker)

    @rule(index=st.integers(0, 11))
    def request_arrives_when_all_messages_are_delivered(self, index: int) -> None:
        """It gets a suspect slot only if no trusted one is free, at any worker."""
        self.sync_all()
        simulation = self.simulation
        for worker in self.workers():
            for request in [*worker.waiting]:
                simulation.cancel(worker, request)
        self.request_is_abandoned(index)
        for worker, ending in self.in_flight()[index % 3 :]:
            simulation.end(worker, ending, answered=False)
        self.sync_all()
        for worker in pick(self.workers(), index):
            free = {
                id_: simulation.slots_of(id_) - simulation.in_flight_at(id_)
                for id_ in {*worker.replica_ids} & simulation.replicas.open_ids - worker.suspended.keys()
            }
            trusted = {id_ for id_, count in free.items() if count > simulation.ledger.suspect_slots_of(id_)}
            request = simulation.arrive(worker)
            simulation.deliver_all()
            started = [each for each in worker.in_flight if each.request is request]
            if any(count > 0 for count in free.values()):
                assert started, "suspicion alone must not let a request wait"
                assert not trusted or started[0].replica.id in trusted

    @rule()
    def suspicions_end(self) -> None:
        self.sync_all()
        self.simulation.advance_clock(1.5)
        self.simulation.tick()
        self.simulation.deliver_all()
        assert self.simulation.ledger.suspect_slots == 0
        for worker in self.workers():
            assert not any(each.replica.suspect for each in worker.in_flight if each.replica.id in worker.replica_ids)
        self.check_agreement()
        self.check_no_request_waits_for_a_free_slot()

    @rule()
    def all_requests_end(self) -> None:
        for worker in self.workers():
            for request in [*worker.waiting]:
                self.simulation.cancel(worker, request)
            for ending in [*worker.in_flight]:
                self.simulation.end(worker, ending)
        self.sync_all()
        self.check_agreement()
        self.check_no_slot_is_lost()

    def sync_all(self) -> None:
        simulation = self.simulation
        simulation.deliver_all()
        for worker in self.workers():
            if worker.connected and not worker.registered and not worker.to_ledger:
                simulation.disconnect(worker, ledger_detects=True)  # the worker's side detects it too
            if not worker.connected:
                simulation.connect(worker)
            if worker.replica_ids != simulation.replica_ids:
                simulation.update_replicas_of(worker)
        simulation.remove_crashed_workers()
        simulation.deliver_all()
        if not simulation.ledger_is_open:
            simulation.open_ledger()
        if not simulation.ledger_has_replicas:
            simulation.update_replicas_of_ledger()
        simulation.deliver_all()
        assert simulation.ledger_is_open
        self.leases_do_not_exceed_slots()

    def check_agreement(self) -> None:
        simulation = self.simulation
        for worker in self.workers():
            assert simulation.ledger.held_by(worker.name) == worker.cache.held()
        assert simulation.ledger.waiting == sum(len(worker.waiting) for worker in self.workers())
        leases = simulation.leases()
        for replica_id in self.max_leases:
            suspect = simulation.ledger.suspect_slots_of(replica_id)
            if (
                suspect
                or replica_id in simulation.replicas.cordoned
                or leases[replica_id] > simulation.slots_of(replica_id)
            ):
                assert leases[replica_id] == simulation.in_flight_at(replica_id), "idle leases must have been returned"

    def check_no_request_waits_for_a_free_slot(self) -> None:
        for worker in self.workers():
            usable = {*worker.replica_ids} - self.simulation.replicas.cordoned - worker.suspended.keys()
            for replica_id in usable if worker.waiting else ():
                assert self.simulation.in_flight_at(replica_id) >= self.simulation.replicas.slots, (
                    f"{replica_id} is free"
                )

    def check_no_slot_is_lost(self) -> None:
        """Check that all slots can be granted, after all requests have ended."""
        simulation = self.simulation
        for replica_id in self.max_leases:
            idle = sum(worker.cache.held().get(replica_id, 0) for worker in self.workers())
            assert idle <= simulation.slots_of(replica_id)
            assert not idle or replica_id not in simulation.replicas.cordoned
        usable = len(simulation.replicas.open_ids) * simulation.replicas.slots
        for worker in pick([worker for worker in self.workers() if not worker.suspended], 0):
            requests = [simulation.arrive(worker) for _ in range(usable)]
            simulation.deliver_all()
            assert len(worker.in_flight) == len(requests)
            for ending in [*worker.in_flight]:
                simulation.end(worker, ending)
            simulation.deliver_all()

    def workers(self) -> list[Worker]:
        return list(self.simulation.workers.values())

    def in_flight(self) -> list[tuple[Worker, InFlight]]:
        return [(worker, each) for worker in self.workers() for each in worker.in_flight]

    def teardown(self) -> None:
        if hasattr(self, "simulation"):
            self.all_messages_are_delivered()
            self.all_requests_end()


TestSlotsMachine = SlotsMachine.TestCase
TestSlotsMachine.settings = settings(max_examples=100, stateful_step_count=50)
