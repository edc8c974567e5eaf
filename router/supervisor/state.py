"""The serving state: services, versions, replicas, cordons and token issuers. Publishes changes to the other parts.

    cluster -- services, replicas --> ServingState --> workers, ledgers, control loop, joined routers
                                          ^                                  |
                                          +-------- cordons -----------------+

Only this file creates `VersionReplicas`, from the reports of the cluster and the decisions of the control loop. All
other parts use them by reference.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

from router.auth.issuers import Issuer
from router.auth.issuing.token_authority import TokenAuthority
from router.cluster import Cluster
from router.model.services import Replica, Service, Version, VersionKey
from router.model.version_replicas import NO_REPLICAS, VersionReplicas
from router.peers import messages as peer_messages
from router.peers.leadership import ClusterTable
from router.peers.ledger_dispatcher import LedgerDispatcher
from router.peers.peer_reports import PeerReports
from router.scaling.loop import ControlLoop, ScalingStep
from router.scaling.replica_reconciler import ABORT_SECONDS, Abort, Cordon, SetReplicas, Uncordon
from router.telemetry.log import event
from router.workers.channels import WorkerChannels
from router.workers.messages import ReplicasUpdate, ServicesUpdate
from router.workers.reports import Reports

_log = logging.getLogger("router.supervisor")
_audit = logging.getLogger("router.scaling")

_DRAIN_POLL_SECONDS = 0.1
"""Interval of the checks whether a replica has drained."""


class ServingState:
    """The services, versions and replicas of this router."""

    def __init__(
        self,
        cluster: Cluster,
        *,
        loop: ControlLoop,
        reports: Reports,
        peer_reports: PeerReports,
        ledger_dispatcher: LedgerDispatcher,
        tokens: TokenAuthority,
        channels: WorkerChannels,
        publish_to_peers: Callable[[ClusterTable], None],
        on_decision: Callable[[ScalingStep], None],
    ) -> None:
        """`on_decision` is called when the control loop has changed the desired number of replicas. For a service on
        standby, the decisions have no other effect."""
        self.services: Mapping[str, Service] = {}
        self.versions: Mapping[VersionKey, Version] = {}
        self._cluster = cluster
        self._loop = loop
        self._reports = reports
        self._peer_reports = peer_reports
        self._ledger_dispatcher = ledger_dispatcher
        self._tokens = tokens
        self._channels = channels
        self._publish_to_peers = publish_to_peers
        self._on_decision = on_decision
        self._token_issuers: Mapping[str, Issuer] = {}
        self._replicas: dict[VersionKey, VersionReplicas] = {}
        self._version_of_replica: dict[str, VersionKey] = {}

    # Changes.

    def set_token_issuers(self, issuers: Mapping[str, Issuer]) -> None:
        """Accept tokens of these issuers, in addition to the router's own."""
        self._token_issuers = issuers
        self._tokens.set_issuers(issuers)
        self._publish_to_peers(peer_messages.TokenIssuersUpdate(issuers))

    def set_services(self, services: Mapping[str, Service]) -> None:
        """Make `services` the complete set of services."""
        before, services_before = self.versions.keys(), self.services
        self.services = dict(services)
        self.versions = {(s.name, v.name): v for s in services.values() for v in s.versions}
        self._tokens.set_services(services)
        self._loop.set_services(services, time.monotonic())
        if self.versions.keys() != before:
            self._ledger_dispatcher.set_versions(self.versions)
        self._publish_to_peers(peer_messages.ServicesUpdate(services))
        # A removed version keeps its replicas while they drain. It needs no cordons: none of its replicas gets new
        # requests.
        self._replicas = {
            key: replicas if key in self.versions else replace(replicas, cordoned=frozenset())
            for key, replicas in self._replicas.items()
            if key in self.versions or replicas.replicas
        }
        for key, replicas in list(self._replicas.items()):
            if replicas.cordoned and key in self.versions and self.services[key[0]].standby:
                self.set_cordoned(key, ())
        self._reports.retain(self.versions)
        if update := _update_between(services_before, services):
            self._channels.broadcast(update)
        for key, replicas in list(self._replicas.items()):
            if key in self.versions:
                slots = self._slots(key)
                # A removed version may be added again while its replicas drain.
                if slots != replicas.slots or key not in before:
                    self._replicas[key] = replace(replicas, slots=slots)
                    self._publish(key)

    def set_replicas(self, key: VersionKey, replicas: tuple[Replica, ...]) -> None:
        """Make `replicas` the complete set of a version's replicas."""
        before = self.replicas(key)
        current_ids = {replica.id for replica in replicas}
        removed = before.ids - current_ids
        self._reports.uncordon(removed)
        for replica_id in removed:
            self._version_of_replica.pop(replica_id, None)
        self._version_of_replica |= dict.fromkeys(current_ids, key)
        self._replicas[key] = VersionReplicas(
            replicas, before.cordoned & current_ids, self._slots(key), before.aborted & current_ids
        )
        if key in self.versions:
            self._publish(key)
        elif not replicas:
            del self._replicas[key]

    def set_cordoned(self, key: VersionKey, replica_ids: Collection[str]) -> None:
        """Make `replica_ids` the complete set of a version's cordoned replicas. Unknown ids are ignored."""
        replicas = self.replicas(key)
        before, cordoned = replicas.cordoned, replicas.ids.intersection(replica_ids)
        if cordoned != before:
            aborted = replicas.aborted - (before - cordoned)
            self._replicas[key] = replace(replicas, cordoned=cordoned, aborted=aborted)
            self._publish(key)
            self._reports.uncordon(before - cordoned)
            self._reports.cordon(cordoned - before, self._channels.sent_counts())

    def set_aborted(self, key: VersionKey, replica_ids: Collection[str]) -> None:
        """Make `replica_ids` the complete set of a version's replicas whose drain time has ended. All workers abort
        their requests there. Unknown ids are ignored."""
        replicas = self.replicas(key)
        aborted = replicas.ids.intersection(replica_ids)
        if aborted == replicas.aborted:
            return
        for replica_id in sorted(aborted - replicas.aborted):
            event(
                _log, logging.WARNING, "drain time is over, aborting the requests of a replica",
                service=key[0], version=key[1], replica=replica_id, in_flight=self._in_flight(key, replica_id),
            )  # fmt: skip
        self._replicas[key] = replicas = replace(replicas, aborted=aborted)
        if key in self.versions:
            self._publish(key)
        else:  # a removed version that still has requests
            self._channels.broadcast(ReplicasUpdate(key, replicas))
            self._publish_to_peers(_table_of(key, replicas))

    def suspend_scaling(self, key: VersionKey, reason: str | None) -> None:
        """Suspend scaling of a version for this reason. None resumes it."""
        if key in self.versions:
            self._loop.set_scaling_suspended(key, time.monotonic(), suspended=reason is not None)
            if reason is not None:
                self.set_cordoned(key, ())

    def _slots(self, key: VersionKey) -> int:
        version = self.versions.get(key)
        return version.replica_max_concurrent_requests if version is not None else self.replicas(key).slots

    def _publish(self, key: VersionKey) -> None:
        """Send the replicas of a version to all parts that use them."""
        replicas = self._replicas[key]
        self._loop.set_replicas(key, replicas, time.monotonic())
        self._channels.broadcast(ReplicasUpdate(key, replicas))
        self._publish_to_peers(_table_of(key, replicas))
        self._ledger_dispatcher.set_replicas(key, replicas)

    # State.

    def replicas(self, key: VersionKey) -> VersionReplicas:
        """The replicas of a version; none if the version is unknown."""
        return self._replicas.get(key, NO_REPLICAS)

    def cordons(self) -> Mapping[VersionKey, frozenset[str]]:
        """The cordoned replicas of each version that has any."""
        return {key: ids for key in self.versions if (ids := self.replicas(key).cordoned)}

    def aborted(self) -> Mapping[VersionKey, frozenset[str]]:
        """The replicas of each version whose requests are aborted."""
        return {key: ids for key in self.versions if (ids := self.replicas(key).aborted)}

    def worker_updates(self) -> list[ServicesUpdate | ReplicasUpdate]:
        """Return the complete serving state for a new worker."""
        replicas = [ReplicasUpdate(key, self._replicas[key]) for key in self.versions if key in self._replicas]
        return [ServicesUpdate(self.services), *replicas]

    def cluster_tables(self) -> list[ClusterTable]:
        """Return the complete serving state for a router that has joined this one."""
        replicas = [_table_of(key, each) for key, each in self._replicas.items()]
        return [
            peer_messages.TokenIssuersUpdate(self._token_issuers),
            peer_messages.ServicesUpdate(self.services),
            *replicas,
        ]

    # The control loop.

    def scale(self, now: float) -> None:
        """Run the control loop for the versions that are due."""
        streaming = self._reports.streaming()
        for key in self._loop.due_versions(now):
            try:
                step = self._loop.step(
                    key, now, self._in_flight, lambda id_: streaming.get(id_, 0) + self._peer_reports.streaming(id_)
                )
                if step is not None:
                    self._apply(step)
            except Exception as error:  # noqa: BLE001  (other versions must still be scaled)
                event(
                    _log, logging.ERROR, "scaling of a version failed",
                    exception=error, service=key[0], version=key[1],
                )  # fmt: skip

    def _apply(self, step: ScalingStep) -> None:
        service = self.services.get(step.key[0])
        is_applied = service is not None and not service.standby
        if is_applied:
            self._carry_out(step)
        if step.direction and step.decision is not None:
            self._on_decision(step)
            event(
                _audit, logging.INFO, "scaling decision", service=step.key[0], version=step.key[1],
                desired=step.decision.desired, reason=step.decision.reason, applied=is_applied,
            )  # fmt: skip

    def _carry_out(self, step: ScalingStep) -> None:
        key = step.key
        cordoned, aborted = self.replicas(key).cordoned, self.replicas(key).aborted
        for action in step.actions:
            match action:
                case SetReplicas(count, remove):
                    self._cluster.scale(key, count, remove)
                case Cordon(ids):
                    cordoned = cordoned.union(ids)
                case Uncordon(ids):
                    cordoned = cordoned.difference(ids)
                case Abort(ids):
                    aborted = aborted.union(ids)
        self.set_aborted(key, aborted)
        self.set_cordoned(key, cordoned)

    # Drains.

    def _in_flight(self, key: VersionKey, replica_id: str) -> int:
        """Return the number of requests of all pods in flight at a replica."""
        cordoned = replica_id in self.replicas(key).cordoned
        in_peers = self._peer_reports.in_flight(replica_id, cordoned=cordoned)
        return self._reports.in_flight(key, replica_id) + in_peers

    async def wait_until_drained(self, replica_id: str, timeout_seconds: float) -> bool:
        """Wait until a replica that gets no new requests has no request in flight, and return True. After the timeout,
        abort its remaining requests. Return False once they have ended, or after `ABORT_SECONDS`.

        Returns True at once if the replica is unknown.
        """
        key = self._version_of_replica.get(replica_id)
        if key is None or await self._is_drained(key, replica_id, timeout_seconds):
            return True
        self.set_aborted(key, self.replicas(key).aborted | {replica_id})
        await self._is_drained(key, replica_id, ABORT_SECONDS)
        return False

    async def _is_drained(self, key: VersionKey, replica_id: str, timeout_seconds: float) -> bool:
        """Wait until a replica has no request in flight; return False if it still has after the timeout."""
        sent = self._channels.sent_counts()
        deadline = time.monotonic() + timeout_seconds
        while self._in_flight(key, replica_id) or not self._reports.all_acked(sent):
            if time.monotonic() >= deadline:
                return False
            await asyncio.sleep(_DRAIN_POLL_SECONDS)
        return True

    def is_busy(self, replica_id: str) -> bool:
        """True if a replica has requests in flight, or may be working on abandoned ones."""
        key = self._version_of_replica.get(replica_id)
        return key is not None and (self._in_flight(key, replica_id) > 0 or self._may_have_abandoned(key, replica_id))

    def _may_have_abandoned(self, key: VersionKey, replica_id: str) -> bool:
        ledger = self._ledger_dispatcher.coordinator.ledger(key)
        return (
            any(replica_id in report.abandoned for report in self._reports.of_version(key))
            or self._peer_reports.abandoned(replica_id) > 0
            or (ledger is not None and ledger.suspect_slots_of(replica_id) > 0)
        )


def _update_between(before: Mapping[str, Service], services: Mapping[str, Service]) -> ServicesUpdate | None:
    """Return the message to workers about a change of services; None if there is none.

    Most changes concern one of many services. Pickling them all takes a tenth of a second for a few thousand, and a
    worker serves no request while it applies them.
    """
    changed = {
        name: service
        for name, service in services.items()
        if (known := before.get(name)) is not service and known != service
    }
    removed = frozenset(before.keys() - services.keys())
    return ServicesUpdate(changed, removed) if changed or removed else None


def _table_of(key: VersionKey, replicas: VersionReplicas) -> peer_messages.ReplicasUpdate:
    return peer_messages.ReplicasUpdate(key, replicas.replicas, replicas.cordoned, replicas.aborted)
