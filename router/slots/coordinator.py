"""The coordinator: one ledger for each version, and the workers that exchange messages with these ledgers.

No I/O: a `deliver` function carries messages to a worker, whether in this process, over a channel or over a peer link.
The head of `peers.ledger_dispatcher`, which calls the coordinator, lists which event causes which call.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable
from typing import NamedTuple

from router.model.services import VersionKey
from router.model.version_replicas import VersionReplicas
from router.slots.ledger import LeaseMismatch, Outbox, VersionLedger
from router.slots.messages import METRIC_LABELS, HeldSnapshot, ToLeaseCache, ToLedger

Deliver = Callable[[VersionKey, ToLeaseCache], None]


class _Replicas(NamedTuple):
    """The arguments of the last `VersionLedger.set_replicas`."""

    replicas: VersionReplicas
    on_other_side: frozenset[str]


class Coordinator:
    """Routes messages between workers and the ledgers of the versions. Workers have ids that are unique among pods."""

    __slots__ = (
        "_deliver", "_ledgers", "_not_granting", "_replicas", "_suspects", "_unused", "_versions", "_versions_of",
        "messages", "mismatches_repaired",
    )  # fmt: skip

    def __init__(self) -> None:
        self._versions: frozenset[VersionKey] = frozenset()
        self._replicas: dict[VersionKey, _Replicas] = {}
        self._ledgers: dict[VersionKey, VersionLedger] = {}
        self._versions_of: dict[str, set[VersionKey]] = {}  # service -> its versions that have ledgers
        self._unused: set[VersionKey] = set()  # unknown versions without a message since the last sweep
        self._not_granting: set[str] = set()  # services
        self._suspects: set[VersionKey] = set()  # versions that may have suspect slots
        self._deliver: dict[str, Deliver] = {}  # by connected worker
        self.messages: Counter[str] = Counter()
        """Messages received and sent, by their label in metrics."""
        self.mismatches_repaired = 0
        """Leases that a ledger and a worker recorded differently; 0 unless the router has a bug."""

    # Workers.

    def connect_worker(self, worker_id: str, deliver: Deliver) -> None:
        """Add a worker, or reconnect one. `deliver` must not call the coordinator synchronously."""
        self._deliver[worker_id] = deliver

    def is_connected(self, worker_id: str) -> bool:
        """True if a worker is connected."""
        return worker_id in self._deliver

    def disconnect_worker(self, worker_id: str) -> None:
        """Send nothing to a worker whose connection broke. Its leases stay on record, as its process may be running.

        Later it is either connected again and sends `Register`, or removed because its process has ended.
        """
        self._deliver.pop(worker_id, None)
        for key, ledger in self._ledgers.items():
            self._send(key, ledger.disconnect_worker(worker_id))

    def remove_worker(self, worker_id: str) -> None:
        """Remove a worker whose process has ended, and free all its leases."""
        self._deliver.pop(worker_id, None)
        for key, ledger in self._ledgers.items():
            self._send(key, ledger.remove_worker(worker_id))

    def receive(self, worker_id: str, key: VersionKey, messages: Iterable[ToLedger], now: float = 0.0) -> None:
        """Pass the messages of a worker to the ledger of a version, and deliver what the ledger sends to any worker.

        `now` is that of `VersionLedger.handle`.
        """
        self._unused.discard(key)
        received = tuple(messages)
        self._count(received)
        ledger = self._get(key)
        self._send(key, ledger.handle(worker_id, *received, now=now))
        if ledger.suspect_slots:
            self._suspects.add(key)

    def tick(self, now: float) -> None:
        """Let the ledgers end suspicions; see `VersionLedger.tick`."""
        for key in [*self._suspects]:
            ledger = self._ledgers.get(key)
            if ledger is not None and ledger.suspect_slots:
                self._send(key, ledger.tick(now))
            else:
                self._suspects.discard(key)

    def reconcile(self, worker_id: str, key: VersionKey, snapshot: HeldSnapshot) -> list[LeaseMismatch]:
        """Compare a worker's leases of a version with the record and correct the record. Return the differences."""
        self._unused.discard(key)
        mismatches, outbox = self._get(key).reconcile(worker_id, snapshot)
        self.mismatches_repaired += sum(abs(mismatch.held - mismatch.recorded) for mismatch in mismatches)
        self._send(key, outbox)
        return mismatches

    # Services.

    def stop_granting(self, service: str) -> None:
        """Let the ledgers of a service record leases but grant none."""
        self._not_granting.add(service)
        for _, ledger in self._ledgers_of(service):
            ledger.stop_granting()

    def start_granting(self, service: str) -> None:
        """Let the ledgers of a service grant."""
        self._not_granting.discard(service)
        for key, ledger in self._ledgers_of(service):
            self._send(key, ledger.start_granting())

    def reset(self, service: str) -> None:
        """Drop all recorded leases of a service and stop granting, as another pod owns the service now."""
        self._not_granting.add(service)
        for key, _ in self._ledgers_of(service):
            self._drop(key)
            self._get(key)

    def on_sync_complete(self, worker_ids: Collection[str], service: str) -> None:
        """Free the leases of those workers that have not registered since they were disconnected.

        Must be called once all registrations of `worker_ids` for this service have been received: a worker without
        one holds no lease of it.
        """
        for key, ledger in self._ledgers_of(service):
            for worker_id in ledger.disconnected_workers().intersection(worker_ids):
                self._send(key, ledger.remove_worker(worker_id))

    def disconnect_from_service(self, worker_ids: Collection[str], service: str) -> None:
        """Grant these workers no lease of a service: they use another pod's ledgers. Their leases stay on record."""
        for key, ledger in self._ledgers_of(service):
            for worker_id in worker_ids:
                self._send(key, ledger.disconnect_worker(worker_id))

    # Versions and replicas.

    def ledger(self, key: VersionKey) -> VersionLedger | None:
        """Return the ledger of a version for inspection, or None if there is none."""
        return self._ledgers.get(key)

    def set_replicas(
        self, key: VersionKey, replicas: VersionReplicas, on_other_side: frozenset[str] = frozenset()
    ) -> None:
        """Replace the replicas of a version. See `VersionLedger.set_replicas`."""
        self._replicas[key] = _Replicas(replicas, on_other_side)
        self._send(key, self._get(key).set_replicas(replicas, on_other_side))

    def set_versions(self, keys: Collection[VersionKey]) -> None:
        """Replace the versions, and drop the ledgers of removed versions.

        Workers of another pod may use a version before this pod knows it. The ledger of such a version is kept until
        `sweep`.
        """
        before, self._versions = self._versions, frozenset(keys)
        for key in before - self._versions:
            self._drop(key)
        self._not_granting.intersection_update({service for service, _ in keys})
        self._replicas = {key: replicas for key, replicas in self._replicas.items() if key in self._versions}

    def sweep(self) -> None:
        """Drop the ledgers of unknown versions for which no message arrived since the last sweep."""
        for key in self._unused:
            if key not in self._versions:
                self._drop(key)
        self._unused = self._ledgers.keys() - self._versions

    def _ledgers_of(self, service: str) -> list[tuple[VersionKey, VersionLedger]]:
        return [(key, self._ledgers[key]) for key in self._versions_of.get(service, ())]

    def _drop(self, key: VersionKey) -> None:
        if self._ledgers.pop(key, None) is not None:
            versions = self._versions_of[key[0]]
            versions.remove(key)
            if not versions:
                del self._versions_of[key[0]]

    def _get(self, key: VersionKey) -> VersionLedger:
        ledger = self._ledgers.get(key)
        if ledger is None:
            ledger = self._ledgers[key] = VersionLedger()
            self._versions_of.setdefault(key[0], set()).add(key)
            if key[0] in self._not_granting:
                ledger.stop_granting()
            if key in self._replicas:
                self._send(key, ledger.set_replicas(*self._replicas[key]))
        return ledger

    def _send(self, key: VersionKey, outbox: Outbox) -> None:
        for worker_id, message in outbox:
            deliver = self._deliver.get(worker_id)
            if deliver is not None:
                self._count((message,))
                deliver(key, message)

    def _count(self, messages: Iterable[ToLeaseCache | ToLedger]) -> None:
        for message in messages:
            self.messages[METRIC_LABELS[type(message)]] += 1
