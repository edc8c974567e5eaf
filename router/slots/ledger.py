"""The ledger: how many leases of which replica of one version each worker holds. Decides; does no I/O.

Theory of operation. A replica has a number of slots. A lease is the right of one worker to have one request in flight
at one replica. Leases of one replica are interchangeable, so the ledger counts them. A worker without an idle lease
sends `SlotDemand`, and each of its waiters gets a place in the version's queue in order of arrival, whichever worker
it is from. After every change free slots are granted to the oldest waiters, least loaded replica first. For the
waiters that remain, leases are recalled: every other worker is notified how many requests wait elsewhere and how many
of its own waiters are older, so that a lease which becomes idle goes to the oldest waiter of all workers. Workers are
not notified while nobody waits, so steady traffic costs no message.

Invariant: the leases of a replica never exceed its slots. If they do, because slots were lowered or a ledger that takes
over finds more, they are revoked and nothing is granted until enough were returned. A removed replica stays on record
until its leases are returned, so that they still count if it is added again. A disconnected worker keeps its leases, as
its requests may be running; its waiters get no grant until it registers again.

Once a second a worker sends a snapshot of its leases (`HeldSnapshot`). Messages arrive in order, so only grants can be
in transit at that time, and the snapshot states how many it includes. The leases of the snapshot plus those in transit
must equal the record. A mismatch is a bug in the router; the worker's state is taken as correct, as the requests run
there (`reconcile`).

A slot whose request was abandoned, which the replica may still work on, is returned as *suspect* (`suspect_slots`). It
is granted only when no trusted slot is free and no other worker has an idle lease. The ledger cannot see that, so it
asks with a recall that is replied to (`Recall.number`), and gives up after two ticks.

A ledger that takes over from another one suspects no slot, and grants nothing until every worker has registered.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from typing import NamedTuple

from router.model.version_replicas import VersionReplicas
from router.slots.messages import (
    Answered,
    Grant,
    HeldSnapshot,
    Recall,
    RecallDone,
    Register,
    Registered,
    Reregister,
    Return,
    Revoke,
    SlotDemand,
    ToLeaseCache,
    ToLedger,
)
from router.slots.records import LoadBuckets, ReplicaRecord, WorkerRecord
from router.slots.suspect_slots import SuspectSlots

Outbox = list[tuple[str, ToLeaseCache]]
"""Messages to send, each with the id of its worker."""


class LeaseMismatch(NamedTuple):
    """A replica for which a worker holds another number of leases than the ledger has recorded."""

    replica: str
    recorded: int
    held: int


class VersionLedger:
    """The slots of one version. Every method that changes something returns the messages to send."""

    def __init__(self) -> None:
        self._replicas: VersionReplicas | None = None  # None: until the first `set_replicas` none counts as removed
        self._granting_stopped = False
        self._records: dict[str, ReplicaRecord] = {}
        self._grantable = LoadBuckets()
        self._workers: dict[str, WorkerRecord] = {}
        self._place = 0  # the last place in the queue that was assigned
        self._waiting: set[str] = set()  # connected workers that have waiters
        self._recalled: set[str] = set()  # workers with a recall in force
        self._recall_number = 0  # of the last recall that asked for a reply
        self._suspects = SuspectSlots(self._grantable)

    @property
    def waiting(self) -> int:
        """Waiters of connected workers that have no grant yet."""
        return sum(len(self._workers[worker_id].waiters) for worker_id in self._waiting)

    def held_by(self, worker_id: str) -> dict[str, int]:
        """Return the recorded leases of a worker, by replica."""
        return {
            replica.id: replica.leases_by_worker[worker_id]
            for replica in self._records.values()
            if worker_id in replica.leases_by_worker
        }

    @property
    def suspect_slots(self) -> int:
        """Slots that are suspect."""
        return self._suspects.count

    def suspect_slots_of(self, replica_id: str) -> int:
        """Slots of a replica that are suspect."""
        return self._suspects.count_of(replica_id)

    def disconnected_workers(self) -> frozenset[str]:
        """Return the workers that were disconnected and have not registered again."""
        return frozenset(worker_id for worker_id, worker in self._workers.items() if not worker.connected)

    # Changes of the replicas and of the ledger itself.

    def set_replicas(self, replicas: VersionReplicas, on_other_side: Collection[str] = ()) -> Outbox:
        """Replace the replicas. Leases of removed, draining and cordoned ones are revoked.

        No lease is granted of replicas `on_other_side` of a network partition, but workers keep those that they hold.
        """
        self._replicas = replicas
        outbox: Outbox = []
        current = {replica.id for replica in replicas.started} if replicas.slots else set()
        for replica in [record for record in self._records.values() if record.id not in current]:
            self._update(replica, slots=0, cordoned=False, on_other_side=False)
            outbox += self._suspects.replace(replica, [])
            outbox += _revokes(replica)
            self._drop_if_unused(replica)
        for replica_id in [replica.id for replica in replicas.started if replicas.slots]:
            replica = self._records.get(replica_id) or self._add_record(replica_id)
            was_cordoned = replica.cordoned
            self._update(
                replica,
                slots=replicas.slots,
                cordoned=replica_id in replicas.closed_ids,
                on_other_side=replica_id in on_other_side,
            )
            if len(replica.suspects) > replica.slots:
                outbox += self._suspects.replace(replica, replica.suspects)
            if replica.leased > replica.slots or (replica.cordoned and not was_cordoned):
                outbox += _revokes(replica)
        return outbox + self._grant_and_recall()

    def stop_granting(self) -> None:
        """Stop granting, as workers may hold leases that are not on record."""
        self._granting_stopped = True

    def start_granting(self) -> Outbox:
        """Grant again, as all leases are on record."""
        self._granting_stopped = False
        return self._grant_and_recall()

    # Messages and changes of the workers.

    def handle(self, worker_id: str, *messages: ToLedger, now: float = 0.0) -> Outbox:
        """Process the messages of a worker as one change. Its first message must be `Register`.

        `now`, in seconds of a monotonic clock, is used only for suspect slots.
        """
        outbox: Outbox = []
        for message in messages:
            worker = self._workers.get(worker_id)
            if isinstance(message, Register):
                outbox += self._register(worker_id, message)
            elif worker is None or not worker.connected:
                outbox.append((worker_id, Reregister()))
            elif isinstance(message, SlotDemand):
                self._update_waiters(worker_id, worker, message)
            elif isinstance(message, Return):
                outbox += self._take_back(worker_id, worker, message, now)
            elif isinstance(message, Answered):
                outbox += self._suspects.on_answered(worker_id, message.replica)
            elif isinstance(message, RecallDone):
                if message.number == worker.recalled.number:
                    worker.recall_done = True
            else:
                worker.excluded = message.replicas
        return outbox + self._grant_and_recall()

    def reconcile(self, worker_id: str, snapshot: HeldSnapshot) -> tuple[list[LeaseMismatch], Outbox]:
        """Compare the record of a worker with its snapshot and correct the record. Return the differences."""
        worker = self._workers.get(worker_id)
        if worker is None or not worker.connected:
            return [], [(worker_id, Reregister())]
        if (worker.cache_id, worker.session) != (snapshot.cache_id, snapshot.session):
            return [], []
        in_transit = worker.grants_after(snapshot.acked_grants)
        if in_transit is None:
            return [], []
        recorded = self.held_by(worker_id)
        if not in_transit and snapshot.held == recorded:
            return [], []
        held = Counter(in_transit)
        held.update(snapshot.held)
        if held == recorded:
            return [], []
        mismatches = sorted(
            LeaseMismatch(replica_id, recorded.get(replica_id, 0), held[replica_id])
            for replica_id in {*held, *recorded}
            if recorded.get(replica_id, 0) != held[replica_id]
        )
        outbox: Outbox = []
        for mismatch in mismatches:
            outbox += self._repair(worker_id, worker, mismatch)
        return mismatches, outbox + self._grant_and_recall()

    def disconnect_worker(self, worker_id: str) -> Outbox:
        """Send a worker nothing until it registers again. Its connection broke, but its process may be running."""
        worker = self._workers.get(worker_id)
        if worker is not None:
            worker.connected = False
            worker.recalled = Recall(0, 0)
            self._waiting.discard(worker_id)
            self._recalled.discard(worker_id)
        return self._grant_and_recall()

    def remove_worker(self, worker_id: str) -> Outbox:
        """Remove a worker whose process has ended: its connections are closed, so its slots are free."""
        self._remove_worker(worker_id)
        return self._grant_and_recall()

    def tick(self, now: float) -> Outbox:
        """End suspicions whose time is over. To be called about ten times a second while there are suspect slots."""
        for worker_id in self._recalled:
            self._workers[worker_id].tick()
        return [*self._suspects.expire(now), *self._grant_and_recall()]

    # Records.

    def _add_record(self, replica_id: str) -> ReplicaRecord:
        replica = self._records[replica_id] = ReplicaRecord(replica_id)
        return replica

    def _drop_if_unused(self, replica: ReplicaRecord) -> None:
        if not replica.slots and not replica.leased:
            del self._records[replica.id]

    def _update(self, replica: ReplicaRecord, *, slots: int, cordoned: bool, on_other_side: bool) -> None:
        if (replica.slots, replica.cordoned, replica.on_other_side) != (slots, cordoned, on_other_side):
            self._grantable.discard(replica)
            replica.slots, replica.cordoned, replica.on_other_side = slots, cordoned, on_other_side
            self._index(replica)

    def _index(self, replica: ReplicaRecord) -> None:
        if replica.is_grantable:
            self._grantable.add(replica)

    def _transfer(self, worker_id: str, worker: WorkerRecord, replica: ReplicaRecord, count: int) -> None:
        """Record `count` more leases for a worker; fewer if `count` is negative."""
        self._grantable.discard(replica)
        replica.leased += count
        worker.held += count
        left = replica.leases_by_worker.get(worker_id, 0) + count
        if left:
            replica.leases_by_worker[worker_id] = left
        else:
            replica.leases_by_worker.pop(worker_id, None)
        self._index(replica)

    def _remove_worker(self, worker_id: str) -> None:
        worker = self._workers.pop(worker_id, None)
        if worker is None:
            return
        for replica in [record for record in self._records.values() if worker_id in record.leases_by_worker]:
            self._transfer(worker_id, worker, replica, -replica.leases_by_worker[worker_id])
            self._drop_if_unused(replica)
        self._suspects.remove_worker(worker_id)
        self._waiting.discard(worker_id)
        self._recalled.discard(worker_id)

    def _register(self, worker_id: str, registration: Register) -> Outbox:
        """Replace the record of a worker. Its waiters keep their places in the queue."""
        before = self._workers.get(worker_id)
        self._remove_worker(worker_id)
        worker = self._workers[worker_id] = WorkerRecord(registration.cache_id, registration.session)
        worker.excluded = registration.excluded
        outbox: Outbox = [(worker_id, Registered(registration.cache_id, registration.session))]
        for replica_id, count in registration.held.items():
            replica = self._records.get(replica_id) or self._add_record(replica_id)
            self._transfer(worker_id, worker, replica, count)
            if self._replicas is not None and replica.is_over_leased:
                outbox += _revokes(replica)
            outbox += self._suspects.notify(replica, (worker_id,))
        cancelled = {*registration.cancelled}
        for number in range(registration.served_up_to + 1, registration.wanted_up_to + 1):
            if number not in cancelled:
                worker.waiters[number] = self._place_of(number, before, registration)
        worker.wanted_up_to = registration.wanted_up_to
        if worker.waiters:
            self._waiting.add(worker_id)
        return outbox

    def _place_of(self, number: int, before: WorkerRecord | None, registration: Register) -> int:
        """Return the place in the queue of a waiter that a worker has registered.

        A waiter that was registered before keeps its place. One whose grant was lost gets the place of the worker's
        latest grant. Any other waiter gets a new place.
        """
        if before is not None and before.cache_id == registration.cache_id:
            if number in before.waiters:
                return before.waiters[number]
            if number <= before.granted_up_to:
                return before.granted_place
        self._place += 1
        return self._place

    def _update_waiters(self, worker_id: str, worker: WorkerRecord, demand: SlotDemand) -> None:
        self._place = worker.update_waiters(demand, self._place)
        if worker.waiters:
            self._waiting.add(worker_id)
        else:
            self._waiting.discard(worker_id)

    def _take_back(self, worker_id: str, worker: WorkerRecord, returned: Return, now: float) -> Outbox:
        outbox: Outbox = []
        replica = self._records.get(returned.replica)
        if replica is not None:
            count = min(returned.count, replica.leases_by_worker.get(worker_id, 0))
            if count:
                self._transfer(worker_id, worker, replica, -count)
                self._drop_if_unused(replica)
                if returned.suspect_seconds and replica.slots:
                    outbox += self._suspects.suspect(replica, now + returned.suspect_seconds, count)
        recalled = worker.recalled  # the lease cache counts every lease that it returns, so this side does too
        if recalled.count:
            count = max(0, recalled.count - returned.count)
            worker.recalled = Recall(count, recalled.after_waiter, recalled.number)
        return outbox

    def _repair(self, worker_id: str, worker: WorkerRecord, mismatch: LeaseMismatch) -> Outbox:
        replica = self._records.get(mismatch.replica) or self._add_record(mismatch.replica)
        self._transfer(worker_id, worker, replica, mismatch.held - mismatch.recorded)
        must_revoke = self._replicas is not None and replica.is_over_leased
        self._drop_if_unused(replica)
        return _revokes(replica) if must_revoke else []

    # Decisions.

    def _grant_and_recall(self) -> Outbox:
        """Grant all free slots, oldest waiter first; then recall leases for the waiters that are left."""
        if self._granting_stopped:
            return []
        outbox = self._grant_trusted()
        if self._suspects and self._waiting and not self._may_have_idle_leases():
            outbox += self._grant_suspects()
        if self._waiting or self._recalled:
            outbox += self._recall()
        return outbox

    def _grant_trusted(self) -> Outbox:
        outbox: Outbox = []
        passed_over: set[str] = set()  # workers that have excluded every replica with a free slot
        while len(self._waiting) > len(passed_over) and self._grantable.least_loaded() is not None:
            worker_id = min(self._waiting - passed_over, key=self._oldest_place)
            worker = self._workers[worker_id]
            replica = self._grantable.least_loaded(worker.excluded)
            if replica is None:
                passed_over.add(worker_id)
                continue
            outbox += self._grant(worker_id, worker, replica)
        return outbox

    def _grant_suspects(self) -> Outbox:
        outbox: Outbox = []
        passed_over: set[str] = set()
        while len(self._waiting) > len(passed_over):
            worker_id = min(self._waiting - passed_over, key=self._oldest_place)
            worker = self._workers[worker_id]
            replica = self._suspects.next_replica(worker.excluded)
            if replica is None:
                passed_over.add(worker_id)
                continue
            outbox += self._grant(worker_id, worker, replica)
            self._suspects.on_granted(replica)
        return outbox

    def _may_have_idle_leases(self) -> bool:
        """True if a worker may have an idle lease. One that has waiters has none, and one that has completed a recall
        returns each lease that becomes idle."""
        return any(
            worker.connected
            and worker.held
            and not worker.waiters
            and not (worker.recalled.count and worker.recall_done)
            for worker in self._workers.values()
        )

    def _grant(self, worker_id: str, worker: WorkerRecord, replica: ReplicaRecord) -> Outbox:
        """Grant a lease to the oldest waiter of a worker."""
        worker.granted_up_to, worker.granted_place = worker.waiters.popitem(last=False)
        if not worker.waiters:
            self._waiting.discard(worker_id)
        self._transfer(worker_id, worker, replica, 1)
        worker.granted += 1
        worker.unconfirmed.append(replica.id)
        return [*self._suspects.notify(replica, (worker_id,)), (worker_id, Grant(replica.id, worker.granted_up_to))]

    def _oldest_place(self, worker_id: str) -> int:
        return next(iter(self._workers[worker_id].waiters.values()))

    def _recall(self) -> Outbox:
        """Send each worker a recall for the requests that wait elsewhere, unless its last recall is sufficient.

        A recall whose count could now be lower is not sent again: the cost is one lease that is returned and granted
        once more. Whether the waiters can use the recalled leases is not checked: replicas are excluded for seconds at
        most.
        """
        outbox: Outbox = []
        waiting = self.waiting
        first, second = self._two_oldest()
        must_ask = bool(self._suspects) and self._suspects.next_replica() is not None
        for worker_id, worker in self._workers.items():
            if not worker.connected:
                continue
            own = len(worker.waiters)
            elsewhere = min(waiting - own, worker.held)
            last = worker.recalled
            after = worker.last_ahead_of(second) if worker_id == first and elsewhere else 0
            last_after = last.after_waiter if own and last.after_waiter >= next(iter(worker.waiters)) else 0
            asks = must_ask and elsewhere > 0 and not own
            if (
                elsewhere > last.count
                or (elsewhere and after != last_after)
                or (last.count and not elsewhere)
                or (asks and not last.number)
            ):
                self._recall_number += asks
                worker.recalled = Recall(elsewhere, after, self._recall_number if asks else 0)
                worker.recall_done, worker.recall_ticks = False, 0
                outbox.append((worker_id, worker.recalled))
            if worker.recalled.count:
                self._recalled.add(worker_id)
            else:
                self._recalled.discard(worker_id)
        return outbox

    def _two_oldest(self) -> tuple[str, int]:
        """Return the worker with the oldest waiter, and the place of the oldest waiter of all other workers."""
        first, oldest, second = "", self._place + 1, self._place + 1
        for worker_id in self._waiting:
            place = self._oldest_place(worker_id)
            if place < oldest:
                first, oldest, second = worker_id, place, oldest
            elif place < second:
                second = place
        return first, second


def _revokes(replica: ReplicaRecord) -> Outbox:
    """Return messages that revoke all leases of a replica."""
    return [(worker_id, Revoke(replica.id)) for worker_id in replica.leases_by_worker]
