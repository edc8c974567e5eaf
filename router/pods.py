"""What this router tells other pods, and takes from them, beside slots: tables of a joined router, and demand.

One pod leads: the one whose cluster has the replicas. A router that has joined it gets services and replicas from it,
and reports what its workers see, so that the leader's control loop sums over all front-ends.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Protocol

from router.cluster.joined import JoinedCluster
from router.peering import Peering
from router.peers.wire import Demand, Felt, Message, Replicas, Services
from router.scaling import demand
from router.scaling.load import Load
from router.services import VersionKey

REPORT_SECONDS = 0.2
"""As often as workers report to their supervisor."""


class Pod(Protocol):
    """What is asked of the supervisor of this pod."""

    def tables(self) -> list[Services | Replicas]:
        """All that a joined router must know."""

    def report(self) -> tuple[Mapping[str, int], Mapping[VersionKey, int], frozenset[str]]:
        """Requests in flight by replica, waiting by version, and the replicas that are closed for good."""

    def cordons_told(self, key: VersionKey, cordoned: frozenset[str]) -> None:
        """The leader says which replicas of a version get no new request."""

    def demand_told(self, peer: str, reports: Mapping[VersionKey, demand.Demand]) -> None:
        """Another pod says what its front-ends saw."""

    def load_told(self, peer: str, load: Load) -> None:
        """Another pod says what it feels of its load."""

    def peer_gone(self, peer: str) -> None:
        """Another pod is gone."""


class Pods:
    """The listener of this pod's links."""

    def __init__(self, pod: Pod, peering: Peering, joined: JoinedCluster | None) -> None:
        self._pod = pod
        self._peering = peering
        self._joined = joined
        self._leader: str | None = None  # of a joined router
        self._said: dict[str, Demand] = {}  # each pod's last report
        self._seen: dict[VersionKey, demand.Demand] = {}  # since the leader was told
        self._told_at = time.monotonic()

    @property
    def leads(self) -> bool:
        """Whether this pod's control loop is the one that scales."""
        return self._joined is None

    # Links.

    def peer_up(self, peer: str, incarnation: str) -> None:
        self._peering.peer_up(peer, incarnation)
        if self.leads:
            for table in self._pod.tables():
                self._peering.links.send(peer, table)

    def peer_down(self, peer: str, certain: bool) -> None:
        self._peering.peer_down(peer, certain)
        if certain:
            self._forget(peer)

    def peer_certainly_gone(self, peer: str) -> None:
        self._peering.peer_certainly_gone(peer)
        self._forget(peer)

    def peer_said(self, peer: str, message: Message) -> None:
        match message:
            case Services(services):
                if self._joined is not None:
                    self._leader = peer
                    self._joined.services_told(services)
            case Replicas(key, replicas, cordoned):
                if self._joined is not None:
                    self._joined.replicas_told(key, replicas)
                    self._pod.cordons_told(key, cordoned)
            case Demand():
                self._said[peer] = message
                self._pod.demand_told(peer, message.reports)
            case Felt(load):
                self._pod.load_told(peer, load)
            case _:
                self._peering.peer_said(peer, message)

    def _forget(self, peer: str) -> None:
        self._said.pop(peer, None)
        self._pod.peer_gone(peer)

    # What goes out.

    def share(self, table: Services | Replicas) -> None:
        """Tell joined routers what has changed."""
        if self.leads:
            self._peering.links.broadcast(table)

    def saw(self, reports: Mapping[VersionKey, demand.Demand]) -> None:
        """Add what a worker of this pod saw to what the leader will be told."""
        if not self.leads:
            for key, seen in reports.items():
                self._seen[key] = self._seen.get(key, demand.Demand()) + seen

    def tick(self, now: float) -> None:
        """Report to the leader when it is time."""
        if self._leader is None or now - self._told_at < REPORT_SECONDS:
            return
        self._told_at = now
        busy, waiting, closed = self._pod.report()
        seen, self._seen = self._seen, {}
        self._peering.links.send(self._leader, Demand(seen, busy, waiting, closed))

    # What others said.

    def in_flight(self, replica_id: str, *, closed: bool) -> int:
        """Requests of other pods at a replica. A closed one counts as busy until all of them know."""
        live = self._peering.links.live()
        said = [report for peer, report in self._said.items() if peer in live]
        busy = sum(report.busy.get(replica_id, 0) for report in said)
        if busy or not closed:
            return busy
        return int(len(said) < len(live) or any(replica_id not in report.closed for report in said))

    def waiting(self, key: VersionKey) -> int:
        """Requests of other pods that wait for a slot."""
        return sum(report.waiting.get(key, 0) for report in self._said.values())
