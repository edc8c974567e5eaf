"""The suspect slots of a ledger: the replica may still work on an abandoned request there. Decides; does no I/O.

Suspect slots are granted last, those of the replica that has been suspect longest first. Suspicion ends when its time
is over, or when the replica completes a request while it has no other one (`Answered`). Workers that hold leases of a
replica with suspect slots are notified (`Suspect`), so that they report this, and keep no lease of it idle. A slot is
never suspect twice: the suspect slots of a replica never exceed its slots.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection

from router.slots.messages import Suspect
from router.slots.records import LoadBuckets, ReplicaRecord

Notices = list[tuple[str, Suspect]]
"""Messages to send, each with the id of its worker."""


class SuspectSlots:
    """Replicas with suspect slots, in the order of use. `grantable` is the ledger's."""

    __slots__ = ("_grantable", "_replicas")

    def __init__(self, grantable: LoadBuckets) -> None:
        self._grantable = grantable
        self._replicas: OrderedDict[str, ReplicaRecord] = OrderedDict()

    def __bool__(self) -> bool:
        """True if there are any."""
        return bool(self._replicas)

    @property
    def count(self) -> int:
        return sum(len(replica.suspects) for replica in self._replicas.values())

    def count_of(self, replica_id: str) -> int:
        replica = self._replicas.get(replica_id)
        return 0 if replica is None else len(replica.suspects)

    # Begin and end of suspicions.

    def suspect(self, replica: ReplicaRecord, until: float, count: int) -> Notices:
        """Suspect `count` more slots of a replica."""
        return self.replace(replica, [*replica.suspects, *[until] * count])

    def replace(self, replica: ReplicaRecord, suspects: list[float]) -> Notices:
        """Replace the suspect slots of a replica; of too many the last ones stay. Notify workers of the first and of
        the end of the last one."""
        suspects = suspects[-replica.slots :] if replica.slots else []
        self._grantable.discard(replica)
        replica.suspects = suspects
        if replica.is_grantable:
            self._grantable.add(replica)
        if suspects:
            self._replicas.setdefault(replica.id, replica)
            return self.notify(replica, replica.leases_by_worker)
        self._replicas.pop(replica.id, None)
        notified, replica.notified = replica.notified, set()
        return [(worker_id, Suspect(replica.id, suspect=False)) for worker_id in notified]

    def notify(self, replica: ReplicaRecord, worker_ids: Collection[str]) -> Notices:
        """Notify workers that hold leases of a replica, or are granted one, if it has suspect slots."""
        if not replica.suspects:
            return []
        unaware = [worker_id for worker_id in worker_ids if worker_id not in replica.notified]
        replica.notified.update(unaware)
        return [(worker_id, Suspect(replica.id, suspect=True)) for worker_id in unaware]

    def on_answered(self, worker_id: str, replica_id: str) -> Notices:
        """Trust the slots of a replica again if no other worker has a lease of it."""
        replica = self._replicas.get(replica_id)
        if replica is None or replica.leased > replica.leases_by_worker.get(worker_id, 0):
            return []
        return self.replace(replica, [])

    def expire(self, now: float) -> Notices:
        """End suspicions whose time is over."""
        notices: Notices = []
        for replica in [*self._replicas.values()]:
            suspects = [until for until in replica.suspects if until > now]
            if len(suspects) < len(replica.suspects):
                notices += self.replace(replica, suspects)
        return notices

    def remove_worker(self, worker_id: str) -> None:
        """Forget that a worker was notified."""
        for replica in self._replicas.values():
            replica.notified.discard(worker_id)

    # Use.

    def next_replica(self, excluded: Collection[str] = ()) -> ReplicaRecord | None:
        """Return the next replica of which a suspect slot is granted, or None if no suspect slot is free."""
        for replica in self._replicas.values():
            if replica.has_free_slot and replica.id not in excluded:
                return replica
        return None

    def on_granted(self, replica: ReplicaRecord) -> None:
        """Use the other replicas before this one."""
        self._replicas.move_to_end(replica.id)
