"""What pods tell one another where an election says who leads."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, cast

from router.peering import Peering
from router.peers.messages import Cordons, Demand, Message, Replicas
from router.pods import REPORT_SECONDS, Pod, Pods
from router.scaling import demand
from router.scaling.load import Load
from router.services import VersionKey

IRIS: VersionKey = ("iris", "default")


class Links:
    """Keeps what is said."""

    def __init__(self, *live: str) -> None:
        self.said: list[tuple[str, Message]] = []
        self._live = frozenset(live)

    def send(self, peer: str, message: Message) -> None:
        self.said.append((peer, message))

    def broadcast(self, message: Message) -> None:
        self.said.append(("all", message))

    def live(self) -> frozenset[str]:
        return self._live

    def has_tried_all(self) -> bool:
        return True

    def unreachable(self) -> Mapping[str, float]:
        return {}


class Scene:
    """A pod that is one of several, and what its supervisor is told."""

    def __init__(self) -> None:
        self.links = Links("b", "c")
        self.cordoned: dict[VersionKey, frozenset[str]] = {}
        peering = Peering("a", lambda name, message: None)
        peering.links = cast(Any, self.links)
        self.pods = Pods(cast(Pod, self), peering, None, by_election=True)
        self.now = time.monotonic()

    def tables(self) -> list[Any]:
        raise AssertionError("each pod has its own cluster")

    def report(self) -> tuple[Mapping[str, int], Mapping[VersionKey, int], frozenset[str]]:
        return {"r": 1}, {}, frozenset()

    def cordons(self) -> Mapping[VersionKey, frozenset[str]]:
        return {key: ids for key, ids in self.cordoned.items() if ids}

    def cordons_told(self, key: VersionKey, cordoned: frozenset[str]) -> None:
        self.cordoned[key] = cordoned

    def demand_told(self, peer: str, reports: Mapping[VersionKey, demand.Demand]) -> None:
        pass

    def load_told(self, peer: str, load: Load) -> None:
        pass

    def peer_gone(self, peer: str) -> None:
        pass

    def tick(self, seconds: float = REPORT_SECONDS + 0.01) -> list[tuple[str, Message]]:
        self.now += seconds
        self.links.said.clear()
        self.pods.tick(self.now)
        return [said for said in self.links.said if isinstance(said[1], Cordons | Demand)]


def test_nobody_leads_before_the_election() -> None:
    scene = Scene()
    assert not scene.pods.leads
    assert scene.tick() == []


def test_who_does_not_lead_reports_to_who_does() -> None:
    scene = Scene()
    scene.pods.elected(False, 1, "b")
    scene.pods.saw({IRIS: demand.Demand(busy_seconds=2.0).seen})
    scene.pods.saw({IRIS: demand.Demand(busy_seconds=1.0).seen})
    ((peer, message),) = scene.tick()
    assert peer == "b"
    assert isinstance(message, Demand)
    assert message.reports == {IRIS: demand.Demand(busy_seconds=3.0)}
    scene.pods.elected(False, 2, "c")
    assert [peer for peer, _ in scene.tick()] == ["c"]
    scene.pods.elected(True, 3, "a")
    assert scene.pods.leads
    assert not [said for said in scene.tick() if isinstance(said[1], Demand)]


def test_who_leads_tells_what_is_cordoned_when_it_changes_and_now_and_then() -> None:
    scene = Scene()
    scene.pods.elected(True, 4, "a")
    scene.tick()
    assert scene.tick(0.1) == []
    scene.cordoned[IRIS] = frozenset({"r"})
    assert scene.tick(0.1) == [("all", Cordons(4, {IRIS: frozenset({"r"})}))]
    assert scene.tick(0.1) == []
    assert scene.tick(1.0) == [("all", Cordons(4, {IRIS: frozenset({"r"})}))]


def test_cordons_are_those_of_who_leads_and_of_no_earlier_leader() -> None:
    scene = Scene()
    scene.pods.elected(False, 4, "b")
    scene.pods.peer_said("b", Cordons(4, {IRIS: frozenset({"r", "s"})}))
    scene.pods.peer_said("c", Cordons(5, {IRIS: frozenset({"r"})}))  # the Lease may be seen later than its holder
    scene.pods.peer_said("b", Cordons(4, {}))
    assert scene.cordoned == {IRIS: frozenset({"r"})}
    scene.pods.peer_said("c", Cordons(5, {}))
    assert scene.cordons() == {}
    scene.pods.elected(True, 6, "a")
    scene.pods.peer_said("c", Cordons(6, {IRIS: frozenset({"r"})}))
    assert scene.cordons() == {}


def test_nobody_takes_replicas_from_another_pod() -> None:
    scene = Scene()
    scene.pods.elected(False, 1, "b")
    scene.pods.peer_said("b", Replicas(IRIS, (), frozenset({"r"})))
    assert scene.cordoned == {}
