"""Records the timeline: reads the traffic of this pod in each step, adds it, and sends it to all other pods.

    workers --> counters, usage --> TimelineRecorder --> Timeline <-- TrafficReport -- other pods
                                            +------------ TrafficReport --> other pods

So each pod has the timeline of all pods, and loses nothing when another one ends. Only the leader knows how many
replicas are needed, and its reports say so. A new pod gets the points of the time before it from the leader
(`TimelineSnapshot`), so that a rolling upgrade keeps the history.

A step ends for some services after the other (`_SERVICES_PER_TICK`), so that thousands of services do not delay the
supervisor.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Protocol

from router.admin.timeline import STEP_SECONDS, Gauges, Timeline
from router.model.services import ReplicaState, Service, Version, VersionKey
from router.model.usage import UsageDelta
from router.model.version_replicas import VersionReplicas
from router.peers.links import Links
from router.peers.messages import TimelineSnapshot, TrafficReport
from router.scaling.autoscaler import ScalingDecision
from router.telemetry.totals import CounterTotals
from router.telemetry.traffic import ServiceTraffic, TimelinePoints, TrafficMeter

_SERVICES_PER_TICK = 20
"""Services whose step ends in one tick, if there are not thousands. One takes up to 0.1 ms, and there are ten ticks
a second."""

_MAX_TICKS = 100
"""Ticks in which the step of all services ends: 10 s, less than a step."""

_SNAPSHOTS_PER_TICK = 20
"""Services whose points are sent in one tick. One takes up to 6 kB."""

_ALL = ""
"""The name of all services together in a snapshot."""

DecisionOf = Callable[[VersionKey], ScalingDecision | None]


class RecordedState(Protocol):
    """The current services and replicas."""

    @property
    def services(self) -> Mapping[str, Service]:
        """The services, by name."""

    def replicas(self, key: VersionKey) -> VersionReplicas:
        """Return the replicas of a version; none if the version is unknown."""


class TimelineRecorder:
    """Records the traffic of this pod and of its peers. Times are seconds of one monotonic clock."""

    def __init__(
        self,
        state: RecordedState,
        counters: CounterTotals,
        decision_of: DecisionOf,
        leads: Callable[[], bool],
        links: Callable[[], Links],
    ) -> None:
        """`decision_of` returns the autoscaler's last decision about a version, which counts while `leads`."""
        self.timeline = Timeline()
        self._state = state
        self._counters = counters
        self._meter = TrafficMeter(counters.snapshots_of)
        self._decision_of = decision_of
        self._leads = leads
        self._links = links
        self._usage: dict[str, tuple[float, float]] = {}  # busy and queued seconds, by service
        self._step_began_at: float | None = None
        self._seconds = STEP_SECONDS
        self._per_tick = _SERVICES_PER_TICK
        self._ending: deque[str] = deque()  # services whose step has not ended yet
        self._changed: dict[str, list[VersionKey]] = {}
        self._incarnations: dict[str, str] = {}  # of the peers that have got a snapshot
        self._unsent: deque[tuple[str, str]] = deque()  # peers, and services whose points they get

    def add_usage(self, reports: Mapping[VersionKey, UsageDelta]) -> None:
        """Add the usage that a worker of this pod has reported."""
        for (service, _), usage in reports.items():
            if usage[0] or usage[1]:
                busy, queued = self._usage.get(service, (0.0, 0.0))
                self._usage[service] = busy + usage[0], queued + usage[1]

    def on_traffic_report(self, services: Mapping[str, ServiceTraffic]) -> None:
        """Add the traffic that another pod has reported."""
        for name in services.keys() & self._state.services.keys():
            self.timeline.add(name, services[name])

    def on_peer_up(self, peer: str, incarnation: str) -> None:
        """Send a new peer the points of all services, if this pod leads."""
        if self._leads() and self._incarnations.get(peer) != incarnation:
            self._incarnations[peer] = incarnation
            self._unsent.extend((peer, name) for name in (*self._state.services, _ALL))

    def on_timeline_snapshot(self, services: Mapping[str, TimelinePoints]) -> None:
        """Take the points of the time before this pod ran."""
        for name, points in services.items():
            self.timeline.fill(None if name == _ALL else name, points)

    def on_peer_gone(self, peer: str) -> None:
        """Forget a peer that has ended."""
        self._incarnations.pop(peer, None)
        self._unsent = deque(each for each in self._unsent if each[0] != peer)

    def retain(self, keys: Collection[VersionKey]) -> None:
        """Forget versions and services that are not among `keys`, the complete set."""
        services = {service for service, _ in keys}
        self.timeline.retain(services)
        self._meter.retain(keys)
        self._usage = {name: usage for name, usage in self._usage.items() if name in services}

    def tick(self, now: float) -> None:
        """End the step of some services, if it is time. Call ten times a second."""
        self._send_points()
        if self._step_began_at is None:
            self._step_began_at = now
        if self._ending:
            self._end_step_of(self._ending.popleft() for _ in range(min(self._per_tick, len(self._ending))))
            if not self._ending:
                self.timeline.end_step(self._seconds)
        elif now - self._step_began_at >= STEP_SECONDS and self._state.services:
            self._seconds, self._step_began_at = now - self._step_began_at, now
            self._ending.extend(self._state.services)
            self._per_tick = max(_SERVICES_PER_TICK, len(self._ending) // _MAX_TICKS)
            self._changed = {}
            for key in self._counters.take_changed():
                self._changed.setdefault(key[0], []).append(key)

    def _send_points(self) -> None:
        snapshots: dict[str, dict[str, TimelinePoints]] = {}
        for _ in range(min(_SNAPSHOTS_PER_TICK, len(self._unsent))):
            peer, name = self._unsent.popleft()
            snapshots.setdefault(peer, {})[name] = self.timeline.snapshot(None if name == _ALL else name)
        for peer, services in snapshots.items():
            self._links().send(peer, TimelineSnapshot(services))

    def _end_step_of(self, names: Iterable[str]) -> None:
        report: dict[str, ServiceTraffic] = {}
        for name in names:
            service = self._state.services.get(name)
            if service is None:
                continue  # it was removed meanwhile
            traffic = self._traffic_of(service)
            self.timeline.add(name, traffic)
            self.timeline.close(name, self._gauges_of(service), self._seconds)
            if not traffic.is_empty:
                report[name] = traffic
        if report:
            self._links().broadcast(TrafficReport(report))

    def _traffic_of(self, service: Service) -> ServiceTraffic:
        busy, queued = self._usage.pop(service.name, (0.0, 0.0))
        traffic = self._meter.read(self._changed.get(service.name, ()))
        traffic = traffic._replace(busy_seconds=busy, queued_seconds=queued)
        if not self._leads():
            return traffic
        decisions = [self._decision_of((service.name, version.name)) for version in service.versions]
        known = [decision for decision in decisions if decision is not None]
        if not known:
            return traffic
        needed, desired = (sum(counts) for counts in zip(*((d.raw_desired, d.desired) for d in known), strict=True))
        return traffic._replace(needed=needed, desired=desired)

    def _gauges_of(self, service: Service) -> Gauges:
        ready = [self._ready(service, version) for version in service.versions]
        slots = [version.replica_max_concurrent_requests for version in service.versions]
        limited = sum(count * each for count, each in zip(ready, slots, strict=True)) if all(slots) else 0
        return Gauges(sum(ready), limited)

    def _ready(self, service: Service, version: Version) -> int:
        replicas = self._state.replicas((service.name, version.name)).replicas
        return sum(replica.state is ReplicaState.READY for replica in replicas)
