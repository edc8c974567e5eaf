"""Recording of the timeline by several pods."""

from collections.abc import Mapping
from typing import Any

from router.admin.timeline import FIELDS, STEP_SECONDS
from router.admin.timeline_recorder import TimelineRecorder
from router.config.service import parse_service
from router.model.services import Replica, ReplicaState, Service, VersionKey
from router.model.usage import UsageDelta
from router.model.version_replicas import VersionReplicas
from router.peers.links import NoLinks
from router.peers.messages import Message, TimelineSnapshot, TrafficReport
from router.peers.wire import decode, encode
from router.scaling.autoscaler import ScalingDecision
from router.telemetry.counters import GatewayCounters
from router.telemetry.totals import CounterTotals

IRIS = ("iris", "default")


class Pod(NoLinks):
    """A pod without processes. Its messages reach all `peers`."""

    name = "pod"

    def __init__(self, *, leads: bool = False, services: int = 1) -> None:
        names = ["iris", *(f"model-{number}" for number in range(1, services))]
        self.services: Mapping[str, Service] = {name: parse_service(name, {"num_replicas": 2}) for name in names}
        self.peers: list[Pod] = []
        self.counters = GatewayCounters()
        self.totals = CounterTotals()
        self.recorder = TimelineRecorder(self, self.totals, self._decision, lambda: leads, lambda: self)

    def replicas(self, key: VersionKey) -> VersionReplicas:
        return VersionReplicas(tuple(Replica(f"{key[0]}-{n}", "h", 1, ReplicaState.READY) for n in range(2)))

    def _decision(self, key: VersionKey) -> ScalingDecision | None:
        return ScalingDecision(2, 0.5, "", 5) if key == IRIS else None

    def broadcast(self, message: Message) -> None:
        for peer in self.peers:
            peer.receive(message)

    def send(self, peer: str, message: Message) -> None:
        for each in self.peers:
            if each.name == peer:
                each.receive(message)

    def receive(self, message: Message) -> None:
        match decode(encode(message)):
            case TrafficReport(services):
                self.recorder.on_traffic_report(services)
            case TimelineSnapshot(points):
                self.recorder.on_timeline_snapshot(points)

    def serve(self, requests: int, usage: UsageDelta = (0.0, 0.0, 0, 0, 0, 0.0)) -> None:
        version = self.counters.version(IRIS)
        for _ in range(requests):
            version.count_response(200, "")
            version.duration.observe(0.1)
        self.totals.update("worker-0", 0, self.counters.report())
        self.recorder.add_usage({IRIS: usage})

    def last(self, field: str, service: str | None = "iris") -> Any:
        return self.recorder.timeline.points(service, "minutes")[FIELDS.index(field)][-1]


def run_step(*pods: Pod, at: float) -> None:
    """End the step that has begun `STEP_SECONDS` before."""
    for pod in pods:
        pod.recorder.tick(at)
    for pod in pods:
        for tick in range(1, 40):
            pod.recorder.tick(at + tick / 100)


def linked(*pods: Pod) -> None:
    for pod in pods:
        pod.peers = [each for each in pods if each is not pod]
        pod.recorder.tick(0.0)


def test_requests_and_usage_of_a_pod() -> None:
    pod = Pod(leads=True)
    linked(pod)
    pod.serve(30, usage=(12.0, 6.0, 0, 0, 0, 0.0))
    run_step(pod, at=STEP_SECONDS)
    assert (pod.last("requests"), pod.last("queued"), pod.last("utilization")) == (2.0, 0.4, 0.6)
    assert (pod.last("needed"), pod.last("desired"), pod.last("ready")) == (5.0, 2.0, 2.0)
    run_step(pod, at=2 * STEP_SECONDS)
    assert (pod.last("requests"), pod.last("queued"), pod.last("needed")) == (0.0, 0.0, 5.0)


def test_each_pod_has_the_sum_of_all_even_after_one_has_ended() -> None:
    leader, follower = Pod(leads=True), Pod()
    linked(leader, follower)
    leader.serve(15)
    follower.serve(30)
    run_step(leader, follower, at=STEP_SECONDS)
    run_step(leader, follower, at=2 * STEP_SECONDS)
    for pod in (leader, follower):
        total = sum(value or 0 for value in pod.recorder.timeline.points(None, "minutes")[0])
        assert total == 3.0
        assert (pod.last("needed"), pod.last("desired")) == (5.0, 2.0)
    follower.peers = []  # the leader has ended
    run_step(follower, at=3 * STEP_SECONDS)
    assert sum(value or 0 for value in follower.recorder.timeline.points("iris", "minutes")[0]) == 3.0


def test_new_pod_gets_the_points_of_the_time_before_it_from_the_leader() -> None:
    leader, new = Pod(leads=True, services=45), Pod(services=45)
    linked(leader)
    leader.serve(30)
    run_step(leader, at=STEP_SECONDS)
    linked(leader, new)
    leader.recorder.on_peer_up("pod", "incarnation-1")
    new.recorder.on_peer_up("leader", "incarnation-1")
    for _ in range(3):
        leader.recorder.tick(STEP_SECONDS + 5)
    assert new.last("requests") == new.last("requests", None) == 2.0
    assert new.last("ready", "model-44") == 2.0
    new.recorder.timeline.retain([])
    leader.recorder.on_peer_up("pod", "incarnation-1")  # the link was interrupted
    leader.recorder.tick(STEP_SECONDS + 6)
    assert new.last("ready") is None


def test_report_about_an_unknown_service_is_ignored() -> None:
    large, small = Pod(leads=True, services=3), Pod()
    linked(large, small)
    run_step(large, small, at=STEP_SECONDS)
    assert small.last("ready", "model-1") is None


def test_step_of_many_services_takes_several_ticks() -> None:
    pod = Pod(services=55)
    linked(pod)
    pod.recorder.tick(STEP_SECONDS)
    for _ in range(2):
        pod.recorder.tick(STEP_SECONDS)
        assert pod.last("ready", None) is None
    pod.recorder.tick(STEP_SECONDS)
    assert pod.last("ready", None) == 110.0
    assert pod.last("ready", "model-54") == 2.0


def test_removed_services_are_forgotten() -> None:
    pod = Pod(leads=True)
    linked(pod)
    pod.serve(15, usage=(1.0, 1.0, 0, 0, 0, 0.0))
    pod.services = {}
    pod.recorder.retain([])
    run_step(pod, at=STEP_SECONDS)
    assert pod.last("requests") is None
