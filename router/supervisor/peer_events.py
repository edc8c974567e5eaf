"""Connects this pod with its peers: dispatches the events of links, and implements the pod that `Leadership` uses.

`PeerEvents` only dispatches. The effects of a lost peer are elsewhere:

    slots.ownership          decides which pods own the services of the lost peer
    peers.ledger_dispatcher  sends the requests of workers to the new owners, and frees the leases of the lost peer
    peers.leadership         forgets the usage and the requests that the lost peer has reported
    scaling.self.loop        forgets the load that the lost peer has reported
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping

from router.admin.activity import Activity
from router.admin.explain_broker import ExplainBroker
from router.admin.timeline_recorder import TimelineRecorder
from router.auth.issuers import Issuer
from router.model.services import VersionKey
from router.peers.leadership import REPORT_SECONDS, ClusterTable, CurrentRequests, Leadership
from router.peers.ledger_dispatcher import LedgerDispatcher
from router.peers.links import MeshObserver
from router.peers.messages import (
    ExplainReply,
    ExplainRequest,
    LoadReport,
    Message,
    PodSize,
    TimelineSnapshot,
    TrafficReport,
)
from router.scaling.demand import Demand
from router.scaling.loop import ControlLoop
from router.scaling.self.load import PodLoad
from router.scaling.self.loop import SelfScalingLoop
from router.supervisor.state import ServingState
from router.workers.reports import Reports


class SupervisedPod:
    """The `LocalPod` of `Leadership`."""

    def __init__(self, serving: ServingState, loop: ControlLoop, reports: Reports, activity: Activity) -> None:
        self._serving = serving
        self._loop = loop
        self._reports = reports
        self._activity = activity

    def cluster_tables(self) -> list[ClusterTable]:
        """See `LocalPod`."""
        return self._serving.cluster_tables()

    def set_token_issuers(self, issuers: Mapping[str, Issuer]) -> None:
        """See `LocalPod`."""
        self._serving.set_token_issuers(issuers)

    def current_requests(self) -> CurrentRequests:
        """See `LocalPod`."""
        in_flight: Counter[str] = Counter()
        abandoned: Counter[str] = Counter()
        waiting: Counter[VersionKey] = Counter()
        for key in self._serving.versions:
            for report in self._reports.of_version(key):
                in_flight.update(report.in_flight)
                abandoned.update(report.abandoned)
                if report.waiting:
                    waiting[key] += report.waiting
        return CurrentRequests(in_flight, waiting, self._reports.acked_cordons(), self._reports.streaming(), abandoned)

    def set_cordoned(self, key: VersionKey, cordoned: frozenset[str]) -> None:
        """See `LocalPod`."""
        if key in self._serving.versions:
            self._serving.set_cordoned(key, cordoned)

    def cordons(self) -> Mapping[VersionKey, frozenset[str]]:
        """See `LocalPod`."""
        return self._serving.cordons()

    def set_aborted(self, key: VersionKey, aborted: frozenset[str]) -> None:
        """See `LocalPod`."""
        self._serving.set_aborted(key, aborted)

    def aborted(self) -> Mapping[VersionKey, frozenset[str]]:
        """See `LocalPod`."""
        return self._serving.aborted()

    def on_demand_report(self, peer: str, demand: Mapping[VersionKey, Demand]) -> None:
        """See `LocalPod`."""
        usage = {key: each.usage for key, each in demand.items()}
        self._loop.add_usage(peer, REPORT_SECONDS, usage)
        self._activity.on_usage(usage, time.monotonic())

    def on_peer_gone(self, peer: str) -> None:
        """See `LocalPod`."""
        self._loop.remove_source(peer)


class LoadBroadcast:
    """Sends load reports and sizes to all peers: the `PeerBroadcast` of self-scaling."""

    def __init__(self, ledger_dispatcher: LedgerDispatcher) -> None:
        self._ledger_dispatcher = ledger_dispatcher

    def broadcast_load(self, load: PodLoad) -> None:
        """See `PeerBroadcast`."""
        self._ledger_dispatcher.links.broadcast(LoadReport(load))

    def broadcast_size(self, cpus: float) -> None:
        """See `PeerBroadcast`."""
        self._ledger_dispatcher.links.broadcast(PodSize(cpus))

    def has_peers(self) -> bool:
        """See `PeerBroadcast`."""
        return bool(self._ledger_dispatcher.links.live())


class PeerEvents(MeshObserver):
    """The observer of this pod's links. Messages about self-scaling, explanations and traffic are handled here,
    all others by `Leadership`."""

    def __init__(
        self,
        leadership: Leadership,
        self_scaling: SelfScalingLoop,
        explain_broker: ExplainBroker,
        recorder: TimelineRecorder,
        share_slots: Callable[[], None],
    ) -> None:
        """`share_slots` is called when another router uses the slots of the same replicas."""
        self._leadership = leadership
        self._self_scaling = self_scaling
        self._explain_broker = explain_broker
        self._recorder = recorder
        self._share_slots = share_slots

    def on_peer_up(self, peer: str, incarnation: str) -> None:
        self._share_slots()
        self._leadership.on_peer_up(peer, incarnation)
        self._recorder.on_peer_up(peer, incarnation)

    def on_peer_down(self, peer: str, process_ended: bool) -> None:
        self._leadership.on_peer_down(peer, process_ended)
        self._explain_broker.on_peer_down(peer)
        if process_ended:
            self._self_scaling.on_peer_gone(peer)
            self._recorder.on_peer_gone(peer)

    def on_peer_gone(self, peer: str) -> None:
        self._leadership.on_peer_gone(peer)
        self._self_scaling.on_peer_gone(peer)
        self._recorder.on_peer_gone(peer)

    def on_peer_message(self, peer: str, message: Message) -> None:
        match message:
            case LoadReport(load):
                self._self_scaling.on_load_report(peer, load)
            case PodSize(cpus):
                self._self_scaling.on_pod_size(cpus)
            case ExplainRequest() | ExplainReply():
                self._explain_broker.on_peer_message(peer, message)
            case TrafficReport(services):
                self._recorder.on_traffic_report(services)
            case TimelineSnapshot(points):
                self._recorder.on_timeline_snapshot(points)
            case _:
                self._leadership.on_peer_message(peer, message)
