"""What a pod of a Deployment exchanges with its leader, and as the leader with other pods."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, cast

from router.auth.issuers import Issuer
from router.model.services import VersionKey
from router.peers.leadership import REPORT_SECONDS, ClusterTable, CurrentRequests, Leadership
from router.peers.ledger_dispatcher import LedgerDispatcher
from router.peers.messages import CordonsUpdate, DemandReport, Message, ReplicasUpdate
from router.peers.peer_reports import PeerReports
from router.scaling.demand import Demand

IRIS: VersionKey = ("iris", "default")


class RecordingLinks:
    """`Links` that record the messages sent."""

    def __init__(self, *live: str) -> None:
        self.sent: list[tuple[str, Message]] = []
        self._live = frozenset(live)

    def send(self, peer: str, message: Message) -> None:
        self.sent.append((peer, message))

    def broadcast(self, message: Message) -> None:
        self.sent.append(("all", message))

    def live(self) -> frozenset[str]:
        return self._live

    def has_tried_all(self) -> bool:
        return True

    def unreachable(self) -> Mapping[str, float]:
        return {}


class Pod:
    """Pod "a" of the pods a, b and c; its own `LocalPod`."""

    def __init__(self) -> None:
        self.links = RecordingLinks("b", "c")
        self.cordoned: dict[VersionKey, frozenset[str]] = {}
        self.aborted_ids: dict[VersionKey, frozenset[str]] = {}
        ledger_dispatcher = LedgerDispatcher("a", lambda name, message: None)
        ledger_dispatcher.links = cast(Any, self.links)
        self.peer_reports = PeerReports(self.links.live)
        self.leadership = Leadership(self, ledger_dispatcher, self.peer_reports, None, by_election=True)
        self.now = time.monotonic()

    def cluster_tables(self) -> list[ClusterTable]:
        raise AssertionError("each pod follows the cluster itself")

    def set_token_issuers(self, issuers: Mapping[str, Issuer]) -> None:
        raise AssertionError("each pod has the issuers from its own file")

    def current_requests(self) -> CurrentRequests:
        return CurrentRequests({"r": 1}, {}, frozenset(), {"r": 2})

    def cordons(self) -> Mapping[VersionKey, frozenset[str]]:
        return {key: replicas for key, replicas in self.cordoned.items() if replicas}

    def set_cordoned(self, key: VersionKey, cordoned: frozenset[str]) -> None:
        self.cordoned[key] = cordoned

    def set_aborted(self, key: VersionKey, aborted: frozenset[str]) -> None:
        self.aborted_ids[key] = aborted

    def aborted(self) -> Mapping[VersionKey, frozenset[str]]:
        return {key: replicas for key, replicas in self.aborted_ids.items() if replicas}

    def on_demand_report(self, peer: str, demand: Mapping[VersionKey, Demand]) -> None:
        pass

    def on_peer_gone(self, peer: str) -> None:
        pass

    def tick(self, seconds: float = REPORT_SECONDS + 0.01) -> list[tuple[str, Message]]:
        """Advance the time, and return the cordons and reports sent."""
        self.now += seconds
        self.links.sent.clear()
        self.leadership.tick(self.now)
        return [sent for sent in self.links.sent if isinstance(sent[1], CordonsUpdate | DemandReport)]


def test_no_pod_leads_before_the_election() -> None:
    pod = Pod()
    assert not pod.leadership.leads
    assert pod.tick() == []


def test_demand_is_reported_to_the_current_leader() -> None:
    pod = Pod()
    pod.leadership.on_leader_change(False, 1, "b")
    pod.leadership.on_usage({IRIS: Demand(busy_seconds=2.0).usage})
    pod.leadership.on_usage({IRIS: Demand(busy_seconds=1.0).usage})
    ((peer, message),) = pod.tick()
    assert peer == "b"
    assert isinstance(message, DemandReport)
    assert message.demand == {IRIS: Demand(busy_seconds=3.0)}
    assert message.in_flight == {"r": 1}
    pod.leadership.on_leader_change(False, 2, "c")
    assert [peer for peer, _ in pod.tick()] == ["c"]
    pod.leadership.on_leader_change(True, 3, "a")
    assert pod.leadership.leads
    assert not [sent for sent in pod.tick() if isinstance(sent[1], DemandReport)]


def test_leader_sends_cordons_after_a_change_and_at_intervals() -> None:
    pod = Pod()
    pod.leadership.on_leader_change(True, 4, "a")
    pod.tick()
    assert pod.tick(0.1) == []
    pod.cordoned[IRIS] = frozenset({"r"})
    assert pod.tick(0.1) == [("all", CordonsUpdate(4, {IRIS: frozenset({"r"})}))]
    assert pod.tick(0.1) == []
    assert pod.tick(1.0) == [("all", CordonsUpdate(4, {IRIS: frozenset({"r"})}))]


def test_leader_sends_the_replicas_whose_drain_time_is_over() -> None:
    leader, other = Pod(), Pod()
    leader.leadership.on_leader_change(True, 4, "b")
    leader.cordoned[IRIS] = frozenset({"r", "s"})
    leader.tick()
    leader.aborted_ids[IRIS] = frozenset({"r"})
    ((_, message),) = leader.tick(0.1)
    assert message == CordonsUpdate(4, {IRIS: frozenset({"r", "s"})}, {IRIS: frozenset({"r"})})
    other.leadership.on_leader_change(False, 4, "b")
    other.leadership.on_peer_message("b", message)
    assert (other.cordons(), other.aborted()) == (leader.cordons(), leader.aborted())
    other.leadership.on_peer_message("b", CordonsUpdate(4, {IRIS: frozenset({"s"})}))
    assert other.aborted() == {}
    other.leadership.on_peer_message("b", CordonsUpdate(3, {}, {IRIS: frozenset({"s"})}))
    assert other.aborted() == {}, "of a previous leader"


def test_responses_in_progress_at_peers_are_added_up() -> None:
    pod = Pod()
    for peer, count in (("b", 2), ("c", 3), ("unknown", 9)):
        pod.leadership.on_peer_message(peer, DemandReport({}, {"r": 5}, {}, streaming={"r": count}))
    assert (pod.peer_reports.streaming("r"), pod.peer_reports.streaming("s")) == (5, 0)


def test_cordons_of_previous_leaders_are_ignored() -> None:
    pod = Pod()
    leadership = pod.leadership
    leadership.on_leader_change(False, 4, "b")
    leadership.on_peer_message("b", CordonsUpdate(4, {IRIS: frozenset({"r", "s"})}))
    # This pod may receive the cordons of a new leader before it sees the new holder of the Lease.
    leadership.on_peer_message("c", CordonsUpdate(5, {IRIS: frozenset({"r"})}))
    leadership.on_peer_message("b", CordonsUpdate(4, {}))
    assert pod.cordoned == {IRIS: frozenset({"r"})}
    leadership.on_peer_message("c", CordonsUpdate(5, {}))
    assert pod.cordons() == {}
    leadership.on_leader_change(True, 6, "a")
    leadership.on_peer_message("c", CordonsUpdate(6, {IRIS: frozenset({"r"})}))
    assert pod.cordons() == {}


def test_replicas_sent_by_another_pod_are_ignored() -> None:
    pod = Pod()
    pod.leadership.on_leader_change(False, 1, "b")
    pod.leadership.on_peer_message("b", ReplicasUpdate(IRIS, (), frozenset({"r"})))
    assert pod.cordoned == {}


def test_cordoned_replica_is_busy_until_all_peers_have_acknowledged_the_cordon() -> None:
    pod = Pod()
    reports = pod.peer_reports

    def report(*acked: str, in_flight: int = 0) -> DemandReport:
        return DemandReport({}, {"r": in_flight}, {}, frozenset(acked))

    assert reports.in_flight("r", cordoned=True) == 1, "b and c have not reported"
    pod.leadership.on_peer_message("b", report("r"))
    pod.leadership.on_peer_message("c", report(in_flight=2))
    assert reports.in_flight("r", cordoned=True) == 2
    pod.leadership.on_peer_message("c", report())
    assert reports.in_flight("r", cordoned=True) == 1, "c may still send requests"
    assert reports.in_flight("r", cordoned=False) == 0
    pod.leadership.on_peer_message("c", report("r"))
    assert reports.in_flight("r", cordoned=True) == 0
