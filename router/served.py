"""What is served, and everyone who must know of it: services, versions, replicas, and which of those are cordoned.

    cluster -- services, replicas --> Served --> workers, ledgers, other pods, control loop
                                        ^                                          |
                                        +------------- cordons, counts ------------+

Lives here: the one copy of these facts in this process, and the order in which others hear of a change. Must not live
here: who decides on them (the cluster, the control loop) and the life of this process (`supervisor`).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Mapping

from router.cluster import Cluster
from router.gateway.control import Replicas, Services
from router.peering import Peering
from router.peers import messages
from router.pods import Pods
from router.reports import Reports, Sent
from router.scaling.loop import ControlLoop, Step
from router.scaling.scaler import Cordon, SetReplicas, Uncordon
from router.services import Replica, ReplicaState, Service, Version, VersionKey
from router.telemetry.log import event

_log = logging.getLogger("router.supervisor")
_audit = logging.getLogger("router.scaling")

LOOK_SECONDS = 0.1
"""How often the control loop is looked after, and replicas that drain."""


class Served:
    """Services, versions and replicas. `to_workers` tells all workers something, `sent` how much they were told.

    `decided` hears of each decision of the control loop for another number of replicas.
    """

    def __init__(
        self,
        *,
        loop: ControlLoop,
        reports: Reports,
        peering: Peering,
        pods: Pods,
        to_workers: Callable[[object], None],
        sent: Callable[[], Sent],
        decided: Callable[[Step], None],
    ) -> None:
        self.services: Mapping[str, Service] = {}
        self.versions: dict[VersionKey, Version] = {}
        self.cluster: Cluster | None = None
        self._loop = loop
        self._reports = reports
        self._peering = peering
        self._pods = pods
        self._to_workers = to_workers
        self._sent = sent
        self._decided = decided
        self._replicas: dict[VersionKey, tuple[Replica, ...]] = {}
        self._key_of_replica: dict[str, VersionKey] = {}

    # The cluster speaks.

    def set_services(self, services: Mapping[str, Service]) -> None:
        """Make `services` the complete set."""
        former = self.versions.keys()
        self.services = dict(services)
        self.versions = {(s.name, v.name): v for s in services.values() for v in s.versions}
        self._loop.services_changed(services, time.monotonic())
        self._peering.services_changed(self.versions)
        self._pods.share(messages.Services(services))
        # Requests of versions that are gone go on; who drains their replicas asks for them.
        self._replicas = {key: known for key, known in self._replicas.items() if known or key in self.versions}
        self._reports.retain(self.versions)
        self._to_workers(Services(services))
        for key in self.versions:
            if key in former:
                self._set_slots(key)
            elif key in self._replicas:  # it was gone, and comes back while its replicas drain
                self._spread(key)

    def set_replicas(self, key: VersionKey, replicas: tuple[Replica, ...]) -> None:
        """Make `replicas` the complete set of a version's."""
        gone = {r.id for r in self._replicas.get(key, ())} - {r.id for r in replicas}
        self._reports.reopen(gone)
        for replica_id in gone:
            self._key_of_replica.pop(replica_id, None)
        self._key_of_replica |= {r.id: key for r in replicas}
        self._replicas[key] = replicas
        if key in self.versions:
            self._spread(key)
        elif not replicas:
            del self._replicas[key]

    def left_alone(self, key: VersionKey, why: str | None) -> None:
        """Scale a version no more, or again."""
        if key in self.versions:
            self._loop.leave_alone(key, time.monotonic(), alone=why is not None)
            if why is not None:
                self.set_cordoned(key, ())

    # Everyone hears.

    def _spread(self, key: VersionKey) -> None:
        """Tell everyone of a version's replicas."""
        self._loop.replicas_changed(key, self._replicas[key], time.monotonic())
        self._share(key)
        self._set_slots(key)

    def _share(self, key: VersionKey) -> None:
        """Tell workers, and routers that have joined, of a version's replicas."""
        self._to_workers(self.table(key))
        self._pods.share(messages.Replicas(key, self._replicas.get(key, ()), self._loop.cordoned(key)))

    def table(self, key: VersionKey) -> Replicas:
        """What workers know of a version's replicas: also those on their way out, whose requests go on."""
        known = tuple(r for r in self._replicas.get(key, ()) if r.state is not ReplicaState.STARTING)
        return Replicas(key, known, self._loop.cordoned(key))

    def tables(self) -> list[Services | Replicas]:
        """All that a worker must know before it accepts clients."""
        return [Services(self.services), *(self.table(key) for key in self.versions if key in self._replicas)]

    def shared(self) -> list[messages.Services | messages.Replicas]:
        """All that another pod must know, where this one has the cluster."""
        replicas = [messages.Replicas(key, known, self._loop.cordoned(key)) for key, known in self._replicas.items()]
        return [messages.Services(self.services), *replicas]

    def _set_slots(self, key: VersionKey) -> None:
        """Tell the ledger which replicas may be sent requests, and how many each."""
        slots = self.versions[key].replica_max_concurrent_requests
        known = {r.id: r for r in self._replicas.get(key, ()) if r.state is not ReplicaState.STARTING}
        leaving = {r.id for r in known.values() if r.state is ReplicaState.DRAINING}
        self._peering.set_replicas(
            key, dict.fromkeys(known, slots) if slots else {}, leaving | self._loop.cordoned(key)
        )

    # The control loop.

    def scale(self, now: float) -> None:
        """Do what the control loop finds due."""
        for key in self._loop.due(now):
            try:
                step = self._loop.step(key, now, self._in_flight)
                if step is not None:
                    self._carry_out(step)
            except Exception as fault:  # noqa: BLE001  (one version's fault must not stop the scaling of all)
                event(
                    _log, logging.ERROR, "scaling of a version failed",
                    exception=fault, service=key[0], version=key[1],
                )  # fmt: skip

    def _carry_out(self, step: Step) -> None:
        key = step.key
        cordoned = set(self._loop.cordoned(key))
        for action in step.actions:
            match action:
                case SetReplicas(count, remove):
                    if self.cluster is not None:
                        self.cluster.scale(key, count, remove)
                case Cordon(ids):
                    cordoned.update(ids)
                case Uncordon(ids):
                    cordoned.difference_update(ids)
        self.set_cordoned(key, cordoned)
        if step.changed and step.decision is not None:
            self._decided(step)
            event(
                _audit, logging.INFO, "scaling decision", service=key[0], version=key[1],
                desired=step.decision.desired, reason=step.decision.reason,
            )  # fmt: skip

    def cordons(self) -> Mapping[VersionKey, frozenset[str]]:
        """The replicas that are cordoned, by version."""
        return {key: ids for key in self.versions if (ids := self._loop.cordoned(key))}

    def set_cordoned(self, key: VersionKey, cordoned: Collection[str]) -> None:
        """Give these replicas no new request, and those that were cordoned and are not any more requests again."""
        former = self._loop.cordoned(key)
        self._loop.set_cordoned(key, cordoned)
        now = self._loop.cordoned(key)
        if now != former:
            self._share(key)
            self._set_slots(key)
            self._reports.reopen(former - now)
            self._reports.close(now - former, self._sent())

    # What is so.

    def replicas(self, key: VersionKey) -> tuple[Replica, ...]:
        """The replicas of a version, whatever their state."""
        return self._replicas.get(key, ())

    def _in_flight(self, key: VersionKey, replica_id: str) -> int:
        """Requests at a replica, of all pods."""
        closed = replica_id in self._loop.cordoned(key)
        return self._reports.in_flight(key, replica_id) + self._pods.in_flight(replica_id, closed=closed)

    async def drained(self, replica_id: str, seconds: float) -> bool:
        """Wait until a replica that is no longer sent requests has none in flight, at most so long; False when it still
        has."""
        key = self._key_of_replica.get(replica_id)
        told = self._sent()
        until = time.monotonic() + seconds
        while key is not None and (self._in_flight(key, replica_id) or not self._reports.come_after(told)):
            if time.monotonic() >= until:
                return False
            await asyncio.sleep(LOOK_SECONDS)
        return True

    def is_busy(self, replica_id: str) -> bool:
        """Whether a replica has requests in flight."""
        key = self._key_of_replica.get(replica_id)
        return key is not None and self._in_flight(key, replica_id) > 0
