"""Passes messages about slots between this pod's workers, its ledgers and other pods, by the rules of `ownership`.

A message of a worker's lease cache goes to the ledger of the service's owner, in this process or over a link. The reply
returns on the same path. When the owner of a service changes in this pod's view, every worker registers its leases with
the new owner (`ResyncServices`), and replies of the previous owner are dropped.

    worker --LeaseRequests--> LedgerDispatcher --own services--> Coordinator (ledgers)
                                   '--other services--> link --> LedgerDispatcher of the owner --> its Coordinator

What an event does to the leases on record in this pod's ledgers:

    event                                      call of `Coordinator`    leases on record
    a worker or a peer's process has ended     remove_worker            freed
    the link with a peer is lost               disconnect_worker        kept; no grants until the worker registers again
    a peer considers another pod the owner     disconnect_from_service  kept; no grants until the worker registers again
    all workers of a peer have registered      on_sync_complete         those of workers that did not register: freed
    this pod is no longer the owner            reset                    dropped: the new owner records them
    leases of other pods may be unknown        stop_granting            kept; no grants (new owner, new link, stall)
    all pods have reported their leases        start_granting           kept; grants
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace

from router.model.services import VersionKey
from router.model.version_replicas import VersionReplicas
from router.peers.links import Links, NoLinks
from router.peers.messages import (
    ForwardedLeaseRequests,
    ForwardedLedgerReplies,
    HeldSnapshots,
    Leaving,
    Message,
    OwnershipRevoked,
    OwnerSyncComplete,
    ReachabilityReport,
    WorkerEnded,
)
from router.slots.coordinator import Coordinator
from router.slots.messages import HeldSnapshot, Register, ToLeaseCache, ToLedger
from router.slots.ownership import (
    OWNER_SYNC_SECONDS,
    RECONNECT_SECONDS,
    STALL_RECOVERY_SECONDS,
    STALL_SECONDS,
    Ownership,
    OwnershipChange,
)
from router.slots.reachability import Reachability
from router.slots.registrations import PendingRegistrations
from router.telemetry.log import event
from router.workers.messages import LedgerReply, ResyncServices

_log = logging.getLogger("router.peers")

_MAX_SNAPSHOTS = 250
"""Maximum number of versions in one `HeldSnapshots`, so that a frame does not grow with the number of services."""

_SWEEP_INTERVAL_SECONDS = 60.0
"""How often ledgers of unknown versions are dropped (`Coordinator.sweep`). Another pod may use a new version earlier
than this pod, so this must be longer than it takes until all pods have the same services."""


class LedgerDispatcher:
    """Connects this pod's workers and ledgers with those of other pods.

    `to_worker(name, message)` sends a message to a worker of this pod.
    """

    def __init__(
        self,
        own_id: str,
        to_worker: Callable[[str, object], None],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.own_id = own_id
        self.ownership = Ownership(own_id)
        self.coordinator = Coordinator()
        self.links: Links = NoLinks()
        self.messages_sent = 0  # to peers, about slots; snapshots excluded
        self.messages_received = 0
        self._to_worker = to_worker
        self._clock = clock
        self._registrations = PendingRegistrations()
        self._replicas: dict[VersionKey, VersionReplicas] = {}
        self._peer_workers: dict[str, set[str]] = {}  # peer -> ids of its workers
        self._incarnations: dict[str, str] = {}  # peer -> incarnation
        self._reconnecting: dict[str, float] = {}  # peer whose link was just lost -> deadline for it to reconnect
        self._reachability = Reachability(own_id)
        self._taken_over: set[str] = set()  # services whose previous owner is on the other side of the partition
        self._partitioned = False
        self._partially_partitioned = False
        self._leaving = False
        self._last_ran_at: float | None = None  # None until the first `tick`
        self._swept_at = self._joined_at = clock()
        self._has_tried_all_peers = True

    def join(self, links: Links) -> None:
        """Join the pods that are the expected peers of `links`.

        Nothing is granted until each of them is connected or was found to be unreachable, or until
        `OWNER_SYNC_SECONDS` have passed.
        """
        self.links = links
        now = self._joined_at = self._clock()
        self._has_tried_all_peers = False
        for service in self.ownership.hold_back(now, now):
            self.coordinator.stop_granting(service)
        self._start_granting_synced()

    # Services and replicas.

    def set_versions(self, versions: Collection[VersionKey]) -> None:
        """Replace the versions of all services."""
        self._check_for_stall()
        now = self._clock()
        synced = self._registrations.set_versions(versions)
        self._replicas = {key: replicas for key, replicas in self._replicas.items() if key in versions}
        self.coordinator.set_versions(versions)
        for change in self.ownership.set_services(self._registrations.services, now):
            self.coordinator.stop_granting(change.service)  # keeps leases that other pods have registered already
            synced.append(change.service)  # workers of this pod have no lease of a new service
        self._report_synced(synced)
        self._start_granting_synced()

    def set_replicas(self, key: VersionKey, replicas: VersionReplicas) -> None:
        """Replace the replicas of a version."""
        self._check_for_stall()
        self._replicas[key] = replicas
        self._apply_replicas(key)

    def _apply_replicas(self, key: VersionKey) -> None:
        """Set the replicas of a ledger. During a partition, leases are granted only of the replicas of this side.

        Leases of the other side's replicas that workers of this side hold are revoked, as the other side may grant the
        same slots. They are kept if this pod has taken the service over from a pod of the other side, because that pod
        has granted them.
        """
        replicas = self._replicas[key]
        on_other_side: frozenset[str] = frozenset()
        if self.ownership.is_partitioned:
            on_other_side = self.ownership.replicas_of_other_sides(replicas.open_ids, self._clock())
        if not on_other_side or key[0] in self._taken_over:
            self.coordinator.set_replicas(key, replicas, on_other_side)
        else:
            self.coordinator.set_replicas(key, replace(replicas, cordoned=replicas.cordoned | on_other_side))

    # Workers of this pod.

    def on_worker_started(self, name: str) -> None:
        """Let a new worker of this pod exchange messages with the ledgers."""
        self._registrations.add_worker(name)

        def deliver(key: VersionKey, message: ToLeaseCache) -> None:
            self._to_worker(name, LedgerReply(key, message))

        self.coordinator.connect_worker(self._worker_id(name), deliver)

    def on_worker_ended(self, name: str) -> None:
        """Free the leases of a worker whose process has ended, here and at other pods."""
        self._check_for_stall()
        worker_id = self._worker_id(name)
        self.coordinator.remove_worker(worker_id)
        self.links.broadcast(WorkerEnded(worker_id))
        self._report_synced(self._registrations.remove_worker(name))
        self._start_granting_synced()

    def on_lease_requests(self, name: str, key: VersionKey, messages: Sequence[ToLedger]) -> None:
        """Pass messages of a worker's lease cache to the ledger of the service's owner."""
        self._check_for_stall()
        owner = self.ownership.owner(key[0])
        if owner == self.own_id:
            self.coordinator.receive(self._worker_id(name), key, messages, self._clock())
        else:
            self.messages_sent += 1
            self.links.send(owner, ForwardedLeaseRequests(self._worker_id(name), key, tuple(messages)))
        if self._registrations.is_pending(key[0]) and any(isinstance(message, Register) for message in messages):
            self._report_synced(self._registrations.on_registered(name, key))
            self._start_granting_synced()

    def on_held_snapshots(self, name: str, snapshots: Mapping[VersionKey, HeldSnapshot]) -> None:
        """Pass snapshots of a worker's leases to the owners of the services."""
        self._check_for_stall()
        worker_id = self._worker_id(name)
        by_owner: dict[str, list[tuple[VersionKey, HeldSnapshot]]] = {}
        for key, snapshot in snapshots.items():
            owner = self.ownership.owner(key[0])
            if owner == self.own_id:
                self._reconcile(worker_id, key, snapshot)
            else:
                by_owner.setdefault(owner, []).append((key, snapshot))
        for owner, forwarded in by_owner.items():
            for start in range(0, len(forwarded), _MAX_SNAPSHOTS):
                self.links.send(owner, HeldSnapshots(worker_id, dict(forwarded[start : start + _MAX_SNAPSHOTS])))

    def _reconcile(self, worker_id: str, key: VersionKey, snapshot: HeldSnapshot) -> None:
        for mismatch in self.coordinator.reconcile(worker_id, key, snapshot):
            event(
                _log, logging.ERROR, "lease mismatch repaired", service=key[0], version=key[1],
                front_end=worker_id, replica=mismatch.replica, recorded=mismatch.recorded, held=mismatch.held,
            )  # fmt: skip

    def _report_synced(self, services: Iterable[str]) -> None:
        """Report to the owners of these services that all workers of this pod have registered their leases."""
        for service in services:
            owner = self.ownership.owner(service)
            if owner == self.own_id:
                self.ownership.on_sync_complete(self.own_id, service)
            else:
                self.links.send(owner, OwnerSyncComplete(service))

    def _worker_id(self, worker: str) -> str:
        return f"{self.own_id}/{worker}"

    # Peers.

    def leave(self) -> None:
        """Let other pods own all services, as this pod is about to end. Its workers finish their requests."""
        self._leaving = True
        self.links.broadcast(Leaving())
        self._apply_ownership_changes(self.ownership.on_leaving(self.own_id, self._clock()))

    def on_peer_up(self, peer: str, incarnation: str) -> None:
        """See `MeshObserver`."""
        self._check_for_stall()
        now = self._clock()
        if self._incarnations.get(peer, incarnation) != incarnation:
            self._remove_workers_of(peer)  # of the previous process, which has ended
        self._incarnations[peer] = incarnation
        self._reconnecting.pop(peer, None)
        if self._leaving:
            self.links.send(peer, Leaving())
        for service in self.ownership.on_session_started(peer, now):
            self.coordinator.stop_granting(service)
        changes = self._update_peers()
        self.links.send(peer, ReachabilityReport(self.ownership.live))  # even if it was broadcast before
        # Messages in transit were lost with the previous link, so all services of this peer must be synced again.
        unchanged = set(self.ownership.owned_by(peer)) - {change.service for change in changes}
        self._apply_ownership_changes(changes, also_sync=unchanged)

    def on_peer_down(self, peer: str, process_ended: bool) -> None:
        """See `MeshObserver`."""
        self._check_for_stall()
        now = self._clock()
        if process_ended:
            self._reconnecting.pop(peer, None)
            self._remove_workers_of(peer)
        else:
            if peer in self.ownership.live:
                self._reconnecting[peer] = now + RECONNECT_SECONDS
            for worker_id in self._peer_workers.get(peer, ()):
                self.coordinator.disconnect_worker(worker_id)
        self._apply_ownership_changes(self._update_peers())

    def on_peer_gone(self, peer: str) -> None:
        """See `MeshObserver`."""
        self._check_for_stall()
        self._reconnecting.pop(peer, None)
        self._remove_workers_of(peer)
        self._apply_ownership_changes(self._update_peers())

    def on_peer_message(self, peer: str, message: Message) -> None:
        """Process a message about slots."""
        self.messages_received += 1
        self._check_for_stall()
        now = self._clock()
        match message:
            case ForwardedLeaseRequests(worker_id, key, requests):
                if self._connect_if_worker_of(peer, worker_id):
                    self.coordinator.receive(worker_id, key, requests, now)
            case ForwardedLedgerReplies(worker_id, key, replies):
                worker = worker_id.removeprefix(f"{self.own_id}/")
                if worker in self._registrations.workers and self.ownership.owner(key[0]) == peer:
                    for reply in replies:
                        self._to_worker(worker, LedgerReply(key, reply))
            case HeldSnapshots(worker_id, snapshots):
                if self._connect_if_worker_of(peer, worker_id):
                    for key, snapshot in snapshots.items():
                        self._reconcile(worker_id, key, snapshot)
            case WorkerEnded(worker_id):
                if self._connect_if_worker_of(peer, worker_id):
                    self._peer_workers[peer].discard(worker_id)
                    self.coordinator.remove_worker(worker_id)
            case ReachabilityReport(peers):
                self._reachability.on_report(peer, peers)
                self._apply_ownership_changes(self._update_peers())
            case Leaving():
                self._apply_ownership_changes(self.ownership.on_leaving(peer, self._clock()))
            case OwnerSyncComplete(service):
                self.coordinator.on_sync_complete(self._peer_workers.get(peer, ()), service)
                self.ownership.on_sync_complete(peer, service)
                self._start_granting_synced()
            case OwnershipRevoked(service):
                self.coordinator.disconnect_from_service(self._peer_workers.get(peer, ()), service)
                if self.ownership.on_ownership_revoked(peer, service, now):
                    self.coordinator.stop_granting(service)

    def _connect_if_worker_of(self, peer: str, worker_id: str) -> bool:
        """Connect a worker of this peer with the ledgers. Return False if its id is that of another pod's worker."""
        if not worker_id.startswith(f"{peer}/"):
            event(_log, logging.WARNING, "peer sent a message for another pod's worker", peer=peer, front_end=worker_id)
            return False
        self._peer_workers.setdefault(peer, set()).add(worker_id)
        if not self.coordinator.is_connected(worker_id):

            def deliver(key: VersionKey, message: ToLeaseCache) -> None:
                self.messages_sent += 1
                self.links.send(peer, ForwardedLedgerReplies(worker_id, key, (message,)))

            self.coordinator.connect_worker(worker_id, deliver)
        return True

    def _remove_workers_of(self, peer: str) -> None:
        for worker_id in self._peer_workers.pop(peer, ()):
            self.coordinator.remove_worker(worker_id)

    # Time and ownership.

    def tick(self) -> None:
        """Apply timeouts. Must be called ten times a second."""
        self._last_ran_at = self._last_ran_at or self._clock()
        self._check_for_stall()
        now = self._clock()
        for peer in [peer for peer, until in self._reconnecting.items() if now >= until]:
            del self._reconnecting[peer]
            event(_log, logging.WARNING, "peer unreachable, keeping its leases and replicas for a while", peer=peer)
            self._apply_ownership_changes(self._update_peers())
        for peer in self.ownership.take_expired(now):
            event(_log, logging.WARNING, "peer still unreachable, taking over its leases and replicas", peer=peer)
            self._remove_workers_of(peer)
        self.coordinator.tick(now)
        if now - self._swept_at >= _SWEEP_INTERVAL_SECONDS:
            self._swept_at = now
            self.coordinator.sweep()
        if self._reachability.is_due(now):
            self._apply_ownership_changes(self._update_peers())
        self._apply_partition()
        self._start_granting_synced()

    @property
    def is_partitioned(self) -> bool:
        """True if an unreachable pod may be running: then slots are granted only of the replicas of this side."""
        return self._partitioned

    def _check_for_stall(self) -> None:
        """Stop granting for `STALL_RECOVERY_SECONDS` if this process was stalled.

        Other pods may own its services now.
        """
        if self._last_ran_at is None:
            return
        now = self._clock()
        stalled_seconds, self._last_ran_at = now - self._last_ran_at, now
        if stalled_seconds >= STALL_SECONDS and self.links.live():
            message = "process was stalled, granting nothing for a moment"
            event(_log, logging.WARNING, message, seconds=f"{stalled_seconds:.3f}")
            for service in self.ownership.hold_back(now, now + STALL_RECOVERY_SECONDS):
                self.coordinator.stop_granting(service)

    def _update_peers(self) -> list[OwnershipChange]:
        """Update reachability and ownership from the current links. Return the services whose owner has changed."""
        live, unreachable = self.links.live().union(self._reconnecting), self.links.unreachable()
        now, before = self._clock(), self.ownership.live
        for peer in before.difference(live):
            self._reachability.on_peer_down(peer)
        self._reachability.update(live, now)
        eligible_owners = self._reachability.eligible_owners
        if eligible_owners is not None:  # a pod that is reached through another one is not on the other side
            unreachable = {
                peer: since for peer, since in unreachable.items() if peer not in self._reachability.all_pods
            }
        self._log_partial_partition(eligible_owners)
        changes = self.ownership.set_peers(live, unreachable, now, eligible_owners)
        if self.ownership.live != before:
            self.links.broadcast(ReachabilityReport(self.ownership.live))
        self._taken_over.update(change.service for change in changes if change.before in unreachable)
        self._apply_partition()
        return changes

    def _log_partial_partition(self, eligible_owners: frozenset[str] | None) -> None:
        partial = eligible_owners is not None
        if partial != self._partially_partitioned:
            self._partially_partitioned = partial
            message = (
                "not all pods reach each other, only pods that every pod reaches own services"
                if partial
                else "all pods reach each other again"
            )
            pods = ",".join(sorted(eligible_owners or ()))
            event(_log, logging.WARNING if partial else logging.INFO, message, owners=pods)

    def _apply_partition(self) -> None:
        """Update the replicas of all ledgers when a partition starts, changes or ends."""
        partitioned = self.ownership.is_partitioned
        if partitioned != self._partitioned:
            message = "replicas are divided between the sides of a partition" if partitioned else "partition has ended"
            level = logging.WARNING if partitioned else logging.INFO
            event(_log, level, message, reachable=len(self.ownership.live))
        if not partitioned:
            self._taken_over.clear()
        if partitioned or self._partitioned:
            self._partitioned = partitioned
            for key in self._replicas:
                self._apply_replicas(key)

    def _apply_ownership_changes(self, changes: Sequence[OwnershipChange], also_sync: Iterable[str] = ()) -> None:
        """Apply new owners to this pod's ledgers, and let its workers register with the new owners.

        `also_sync` are services with the same owner as before for which the workers must register again.
        """
        for change in changes:
            if change.before == self.own_id:
                self.coordinator.reset(change.service)
            elif change.before is not None:
                self.links.send(change.before, OwnershipRevoked(change.service))
            if change.after == self.own_id:
                self.coordinator.stop_granting(change.service)
        services = frozenset([*(change.service for change in changes), *also_sync])
        if services:
            self._resync(services)
            event(
                _log,
                logging.INFO,
                "syncing services with their owners",
                told=len(services),
                pods=len(self.ownership.live),
            )
        self._start_granting_synced()

    def _resync(self, services: frozenset[str]) -> None:
        self._report_synced(self._registrations.restart(services))
        for worker in self._registrations.workers:
            self._to_worker(worker, ResyncServices(services))

    def _start_granting_synced(self) -> None:
        """Start granting for the services that all live pods have synced."""
        if not self._has_tried_all_peers:
            # Until all peers were tried, another pod may own services that this pod seems to own.
            waited = self._clock() - self._joined_at >= OWNER_SYNC_SECONDS
            self._has_tried_all_peers = waited or self.links.has_tried_all()
            if not self._has_tried_all_peers:
                return
        for service in self.ownership.take_synced(self._clock()):
            self.coordinator.start_granting(service)
