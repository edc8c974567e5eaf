"""Tracks which pod leads, and exchanges services, replicas, cordons and demand with the leader.

The control loop of one pod, the leader, scales. The other pods report the demand of their workers to the leader. Which
pod leads depends on the cluster:

- A local cluster belongs to one router, which leads. It sends services and replicas to the routers that have joined it.
- In Kubernetes each pod watches the cluster itself, and an election determines the leader. The leader sends its cordons
  to the other pods with its leadership term, so that they ignore the cordons of previous leaders.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple, Protocol

from router.auth.issuers import Issuer
from router.cluster.joined import JoinedCluster
from router.model import usage
from router.model.services import VersionKey
from router.model.usage import UsageDelta
from router.peers.ledger_dispatcher import LedgerDispatcher
from router.peers.messages import (
    CordonsUpdate,
    DemandReport,
    Message,
    ReplicasUpdate,
    ServicesUpdate,
    TokenIssuersUpdate,
)
from router.peers.peer_reports import PeerReports
from router.scaling.demand import Demand

__all__ = ["REPORT_SECONDS", "ClusterTable", "CurrentRequests", "Leadership", "LocalPod"]

REPORT_SECONDS = 0.2
"""Interval of demand reports. The reports of workers to their supervisor have the same interval."""

_CORDON_REPEAT_SECONDS = 1.0
"""Interval after which unchanged cordons are sent again: a new pod may have received them before the replicas."""


ClusterTable = ServicesUpdate | TokenIssuersUpdate | ReplicasUpdate
"""The messages from the router of a local cluster to the routers that have joined it."""


class CurrentRequests(NamedTuple):
    """The requests of this pod, in the order of the fields of `DemandReport`."""

    in_flight: Mapping[str, int]  # by replica id
    waiting: Mapping[VersionKey, int]
    acked_cordons: frozenset[str]  # cordoned replicas to which no worker of this pod sends another request
    streaming: Mapping[str, int] = MappingProxyType({})  # responses in progress by replica id
    abandoned: Mapping[str, int] = MappingProxyType({})  # abandoned requests that hold a slot, by replica id


class LocalPod(Protocol):
    """This pod, as `Leadership` uses it. Implemented in `supervisor.peer_events`."""

    def cluster_tables(self) -> list[ClusterTable]:
        """Return everything that a joined router needs to serve."""

    def set_token_issuers(self, issuers: Mapping[str, Issuer]) -> None:
        """Accept tokens of these issuers, in addition to the router's own."""

    def current_requests(self) -> CurrentRequests:
        """Return the requests of this pod."""

    def set_cordoned(self, key: VersionKey, cordoned: frozenset[str]) -> None:
        """Replace the cordoned replicas of a version."""

    def cordons(self) -> Mapping[VersionKey, frozenset[str]]:
        """Return the cordoned replicas of each version that has any."""

    def set_aborted(self, key: VersionKey, aborted: frozenset[str]) -> None:
        """Abort the requests at these replicas of a version, and at no others."""

    def aborted(self) -> Mapping[VersionKey, frozenset[str]]:
        """Return the replicas of each version whose requests are aborted."""

    def on_demand_report(self, peer: str, demand: Mapping[VersionKey, Demand]) -> None:
        """Another pod has reported its demand since its last report."""

    def on_peer_gone(self, peer: str) -> None:
        """Another pod has ended."""


class Leadership:
    """Tracks which pod leads, and exchanges messages with the leader or, as the leader, with the other pods.

    Handles the events of this pod's links, and passes messages about slots to the `LedgerDispatcher`.
    """

    def __init__(
        self,
        pod: LocalPod,
        ledger_dispatcher: LedgerDispatcher,
        peer_reports: PeerReports,
        joined: JoinedCluster | None,
        *,
        by_election: bool = False,
    ) -> None:
        """`joined` is the cluster of a router that has joined another router, else None.

        With `by_election`, no pod leads before the first `on_leader_change`.
        """
        self._pod = pod
        self._ledger_dispatcher = ledger_dispatcher
        self._peer_reports = peer_reports
        self._joined = joined
        self._by_election = by_election
        self._elected = False
        self._term = 0
        self._leader: str | None = None  # id of the leader if it is another pod
        self._usage: dict[VersionKey, UsageDelta] = {}  # not reported to the leader yet
        self._reported_at = time.monotonic()
        self._last_cordons: CordonsUpdate | None = None  # as last sent
        self._cordons_sent_at = 0.0

    @property
    def leads(self) -> bool:
        """True if this pod is the leader, so that its control loop scales."""
        return self._elected if self._by_election else self._joined is None

    def on_leader_change(self, leads: bool, term: int, leader: str) -> None:
        """Record the result of an election. `leader` is the id of the leader, or "" if there is none."""
        self._elected = leads
        self._term = max(self._term, term)
        self._leader = leader if leader and leader != self._ledger_dispatcher.own_id else None
        self._last_cordons = None

    # Links.

    def on_peer_up(self, peer: str, incarnation: str) -> None:
        """See `MeshObserver`."""
        self._ledger_dispatcher.on_peer_up(peer, incarnation)
        if self._by_election:
            self._cordons_sent_at = 0.0
        elif self.leads:
            for table in self._pod.cluster_tables():
                self._ledger_dispatcher.links.send(peer, table)

    def on_peer_down(self, peer: str, process_ended: bool) -> None:
        """See `MeshObserver`."""
        self._ledger_dispatcher.on_peer_down(peer, process_ended)
        if process_ended:
            self._forget(peer)

    def on_peer_gone(self, peer: str) -> None:
        """See `MeshObserver`."""
        self._ledger_dispatcher.on_peer_gone(peer)
        self._forget(peer)

    def on_peer_message(self, peer: str, message: Message) -> None:
        """See `MeshObserver`."""
        match message:
            case ServicesUpdate(services):
                if self._joined is not None:
                    self._leader = peer
                    self._joined.receive_services(services)
            case TokenIssuersUpdate(issuers):
                if self._joined is not None:
                    self._pod.set_token_issuers(issuers)
            case ReplicasUpdate(key, replicas, cordoned, aborted):
                if self._joined is not None:
                    self._joined.receive_replicas(key, replicas)
                    self._pod.set_cordoned(key, cordoned)
                    self._pod.set_aborted(key, aborted)
            case CordonsUpdate(term, cordons, aborted):
                if self._by_election and term >= self._term and not self._elected:
                    self._term = term
                    for key in self._pod.cordons().keys() | cordons.keys():
                        self._pod.set_cordoned(key, cordons.get(key, frozenset()))
                        self._pod.set_aborted(key, aborted.get(key, frozenset()))
            case DemandReport():
                self._peer_reports.record(peer, message)
                self._pod.on_demand_report(peer, message.demand)
            case _:
                self._ledger_dispatcher.on_peer_message(peer, message)

    def _forget(self, peer: str) -> None:
        self._peer_reports.forget(peer)
        self._pod.on_peer_gone(peer)

    # Reports to the leader, cordons from it.

    def on_usage(self, reports: Mapping[VersionKey, UsageDelta]) -> None:
        """Add the usage that a worker of this pod has reported to the next report to the leader."""
        if not self.leads:
            for key, delta in reports.items():
                before = self._usage.get(key)
                self._usage[key] = delta if before is None else usage.add(before, delta)

    def tick(self, now: float) -> None:
        """Send the cordons, or the report to the leader, if due. Call ten times a second."""
        if self._elected:
            self._send_cordons(now)
        if self._leader is None or now - self._reported_at < REPORT_SECONDS:
            return
        self._reported_at = now
        reported, self._usage = self._usage, {}
        demand = {key: Demand(0.0, *delta) for key, delta in reported.items()}
        self._ledger_dispatcher.links.send(self._leader, DemandReport(demand, *self._pod.current_requests()))

    def _send_cordons(self, now: float) -> None:
        cordons = CordonsUpdate(self._term, dict(self._pod.cordons()), dict(self._pod.aborted()))
        if cordons != self._last_cordons or now - self._cordons_sent_at >= _CORDON_REPEAT_SECONDS:
            self._last_cordons, self._cordons_sent_at = cordons, now
            self._ledger_dispatcher.links.broadcast(cordons)
