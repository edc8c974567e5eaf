"""What this router tells other pods, and takes from them, beside slots: tables of a joined router, cordons, demand.

One pod leads. The others report to it what their workers see, so that its control loop sums over all front-ends. Which
one, depends on the cluster:

- a local one is of one router. It leads; routers that have joined it get services and replicas from it;
- in Kubernetes each pod follows the cluster itself, and an election says who leads (`Pods.elected`). The leader tells
  the others what it has cordoned, with the election's term, so that nobody takes the word of one who led before.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Protocol

from router.auth.issuers import Issuer
from router.cluster.joined import JoinedCluster
from router.peering import Peering
from router.peers.messages import (
    Cordons,
    Demand,
    Explain,
    Explained,
    Felt,
    Message,
    PodSize,
    Replicas,
    Services,
    TokenIssuers,
)
from router.scaling import demand
from router.scaling.load import Load
from router.seen import Seen, together
from router.services import VersionKey

REPORT_SECONDS = 0.2
"""As often as workers report to their supervisor."""
_REPEAT_SECONDS = 1.0
"""Cordons are told again so often: a router that just began may not have known the replicas when it heard of them."""


class Pod(Protocol):
    """What is asked of the supervisor of this pod."""

    def tables(self) -> list[Services | TokenIssuers | Replicas]:
        """All that a joined router must know."""

    def set_token_issuers(self, issuers: Mapping[str, Issuer]) -> None:
        """The leader says whose tokens are accepted, beside the routers' own."""

    def report(self) -> tuple[Mapping[str, int], Mapping[VersionKey, int], frozenset[str]]:
        """Requests in flight by replica, waiting by version, and the replicas that are closed for good."""

    def cordons_told(self, key: VersionKey, cordoned: frozenset[str]) -> None:
        """The leader says which replicas of a version get no new request."""

    def cordons(self) -> Mapping[VersionKey, frozenset[str]]:
        """The replicas that get no new request, of each version that has such."""

    def demand_told(self, peer: str, reports: Mapping[VersionKey, demand.Demand]) -> None:
        """Another pod says what its front-ends saw."""

    def load_told(self, peer: str, load: Load) -> None:
        """Another pod says what it feels of its load."""

    def size_told(self, cpus: float) -> None:
        """The leader says how many CPUs each pod is to have."""

    def peer_gone(self, peer: str) -> None:
        """Another pod is gone."""


class Inquiries(Protocol):
    """Questions of one pod to another about requests (`overview.inquiries`)."""

    def heard(self, pod: str, message: Explain | Explained) -> None:
        """Another pod asks, or answers."""

    def lost(self, pod: str) -> None:
        """The link of a pod is down."""


class Pods:
    """The listener of this pod's links. Questions are passed over as long as there are no `inquiries`."""

    def __init__(self, pod: Pod, peering: Peering, joined: JoinedCluster | None, *, by_election: bool = False) -> None:
        self._by_election = by_election
        self._elected = False
        self._term = 0
        self._cordoned: dict[VersionKey, frozenset[str]] = {}  # as others were told
        self._repeated_at = 0.0
        self._pod = pod
        self._peering = peering
        self._joined = joined
        self._leader: str | None = None  # another pod
        self._said: dict[str, Demand] = {}  # each pod's last report
        self._seen: dict[VersionKey, Seen] = {}  # since the leader was told
        self._told_at = time.monotonic()
        self.inquiries: Inquiries | None = None

    @property
    def leads(self) -> bool:
        """Whether this pod's control loop is the one that scales."""
        return self._elected if self._by_election else self._joined is None

    def elected(self, leads: bool, term: int, leader: str) -> None:
        """Whether this pod leads from now on, and the pod that does; "" if nobody is known to."""
        self._elected = leads
        self._term = max(self._term, term)
        self._leader = leader if leader and leader != self._peering.own_id else None
        self._cordoned = {}

    # Links.

    def peer_up(self, peer: str, incarnation: str) -> None:
        self._peering.peer_up(peer, incarnation)
        if self._by_election:
            self._repeated_at = 0.0
        elif self.leads:
            for table in self._pod.tables():
                self._peering.links.send(peer, table)

    def peer_down(self, peer: str, certain: bool) -> None:
        self._peering.peer_down(peer, certain)
        if self.inquiries is not None:
            self.inquiries.lost(peer)
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
            case TokenIssuers(issuers):
                if self._joined is not None:
                    self._pod.set_token_issuers(issuers)
            case Replicas(key, replicas, cordoned):
                if self._joined is not None:
                    self._joined.replicas_told(key, replicas)
                    self._pod.cordons_told(key, cordoned)
            case Cordons(term, told):
                if self._by_election and term >= self._term and not self._elected:
                    self._term = term
                    for key in self._pod.cordons().keys() | told.keys():
                        self._pod.cordons_told(key, told.get(key, frozenset()))
            case Demand():
                self._said[peer] = message
                self._pod.demand_told(peer, message.reports)
            case Felt(load):
                self._pod.load_told(peer, load)
            case PodSize(cpus):
                self._pod.size_told(cpus)
            case Explain() | Explained():
                if self.inquiries is not None:
                    self.inquiries.heard(peer, message)
            case _:
                self._peering.peer_said(peer, message)

    def _forget(self, peer: str) -> None:
        self._said.pop(peer, None)
        self._pod.peer_gone(peer)

    # What goes out.

    def share(self, table: Services | TokenIssuers | Replicas) -> None:
        """Tell joined routers what has changed."""
        if self.leads and not self._by_election:
            self._peering.links.broadcast(table)

    def saw(self, reports: Mapping[VersionKey, Seen]) -> None:
        """Add what a worker of this pod saw to what the leader will be told."""
        if not self.leads:
            for key, seen in reports.items():
                before = self._seen.get(key)
                self._seen[key] = seen if before is None else together(before, seen)

    def tick(self, now: float) -> None:
        """Report to the leader, or tell what is cordoned, when it is time."""
        if self._elected:
            self._tell_cordons(now)
        if self._leader is None or now - self._told_at < REPORT_SECONDS:
            return
        self._told_at = now
        busy, waiting, closed = self._pod.report()
        seen, self._seen = self._seen, {}
        demands = {key: demand.Demand(0.0, *each) for key, each in seen.items()}
        self._peering.links.send(self._leader, Demand(demands, busy, waiting, closed))

    def _tell_cordons(self, now: float) -> None:
        cordoned = dict(self._pod.cordons())
        if cordoned != self._cordoned or now - self._repeated_at >= _REPEAT_SECONDS:
            self._cordoned, self._repeated_at = cordoned, now
            self._peering.links.broadcast(Cordons(self._term, cordoned))

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
