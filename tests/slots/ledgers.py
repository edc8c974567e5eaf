"""Ledgers for tests, with replicas and registered workers, and filters for the messages that they send."""

from collections.abc import Iterable, Mapping

from router.model.version_replicas import VersionReplicas
from router.slots.ledger import Outbox, VersionLedger
from router.slots.messages import Grant, Register, SlotDemand, ToLeaseCache
from tests.slots.replicas import ready

A, B, C = "worker-a", "worker-b", "worker-c"


def registration(
    held: Mapping[str, int] | None = None,
    *,
    wanted_up_to: int = 0,
    served_up_to: int = 0,
    cancelled: tuple[int, ...] = (),
    excluded: Iterable[str] = (),
    cache_id: int = 1,
    session: int = 1,
) -> Register:
    return Register(cache_id, session, held or {}, frozenset(excluded), wanted_up_to, served_up_to, cancelled)


def ledger_with(replicas: VersionReplicas, *worker_ids: str) -> VersionLedger:
    """A ledger at which these workers have registered; the first one has the cache id 0."""
    ledger = VersionLedger()
    ledger.set_replicas(replicas)
    for number, worker_id in enumerate(worker_ids):
        ledger.handle(worker_id, registration(cache_id=number))
    return ledger


def busy_ledger(slots: int, *worker_ids: str) -> VersionLedger:
    """A ledger with one replica `r`, of which the first worker holds all leases."""
    ledger = ledger_with(ready("r", slots=slots), *worker_ids)
    ledger.handle(worker_ids[0], SlotDemand(slots, 0))
    return ledger


def sent_to(worker_id: str, outbox: Outbox) -> list[ToLeaseCache]:
    return [message for receiver, message in outbox if receiver == worker_id]


def grants(outbox: Outbox) -> list[tuple[str, str]]:
    """The granted leases, each as worker and replica."""
    return [(receiver, message.replica) for receiver, message in outbox if isinstance(message, Grant)]


def leased(ledger: VersionLedger, replica_id: str, *worker_ids: str) -> int:
    """The leases of a replica that these workers hold on record."""
    return sum(ledger.held_by(worker_id).get(replica_id, 0) for worker_id in worker_ids or (A, B, C))
