"""The control loop of all versions: decides when a version is due, and gives its reconciler the demand of the interval.

Each version has a `ReplicaReconciler`. This file updates the reconcilers when services or replicas change, and returns
their actions, which the caller applies. No I/O, no clock.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from router.model import usage
from router.model.services import ReplicaState, Service, Version, VersionKey
from router.model.usage import UsageDelta
from router.model.version_replicas import VersionReplicas
from router.scaling.autoscaler import Observation, ScalingDecision
from router.scaling.demand import Demand
from router.scaling.replica_reconciler import Action, ReplicaFacts, ReplicaReconciler

__all__ = ["SHORTEST_REFRESH_SECONDS", "ControlLoop", "InFlight", "ScalingStep", "Streaming"]

SHORTEST_REFRESH_SECONDS = 0.2
"""Lower limit of `autoscale_refresh_seconds`: workers report five times a second."""

InFlight = Callable[[VersionKey, str], int]
"""Returns the number of requests in flight at a replica, given its version and id."""

Streaming = Callable[[str], int]
"""Returns the number of responses in progress at a replica, given its id."""


@dataclass(frozen=True, slots=True)
class ScalingStep:
    """What to do for one version now. `direction` is "up" or "down" if the desired number of replicas has changed."""

    key: VersionKey
    actions: tuple[Action, ...]
    decision: ScalingDecision | None
    direction: str  # "up", "down" or ""


class _ScaledVersion:
    """The reconciler of one version, and the usage that was reported in the current interval."""

    __slots__ = (
        "decisions",
        "due_at",
        "interval_start",
        "reconciler",
        "replicas",
        "reported_seconds",
        "scaling_suspended",
        "settled_replicas",
        "standby",
        "started_at",
        "usage",
        "version",
    )  # fmt: skip

    def __init__(self, version: Version, now: float, reported_seconds: Mapping[str, float], *, standby: bool) -> None:
        self.version = version
        self.standby = standby  # this router only observes the service
        self.reconciler = ReplicaReconciler(version)
        self.usage: dict[str, UsageDelta] = {}  # by source, since interval_start
        self.interval_start = now
        self.reported_seconds = dict(reported_seconds)  # by source, as of interval_start
        self.due_at = now + self.refresh_seconds
        self.replicas: VersionReplicas | None = None  # None: not known yet
        # With these replicas the version is settled: ticks have no effect until a request arrives.
        self.settled_replicas: VersionReplicas | None = None
        self.started_at: dict[str, float] = {}  # by replica id
        self.scaling_suspended = False
        self.decisions: dict[tuple[str, str], int] = {}  # by direction and `bound`

    @property
    def target_replicas(self) -> int:
        """The desired number of replicas. Before the first decision: the requested or present number, whichever is
        larger."""
        if self.reconciler.decision is not None:
            return self.reconciler.decision.desired
        replicas = () if self.replicas is None else self.replicas.replicas
        present = sum(replica.state is not ReplicaState.DRAINING for replica in replicas)
        return (
            present if self.reconciler.requested_replicas is None else max(present, self.reconciler.requested_replicas)
        )

    @property
    def refresh_seconds(self) -> float:
        """The length of an interval."""
        return max(self.version.autoscale_refresh_seconds, SHORTEST_REFRESH_SECONDS)

    def skip_settled_interval(self, now: float, reported_seconds: Mapping[str, float]) -> bool:
        """If the version is settled and was idle in this interval, begin the next interval and return True."""
        if self.usage or self.replicas is None or self.replicas.cordoned or self.settled_replicas is not self.replicas:
            return False
        self.reconciler.autoscaler.observe_idle(now)
        self._begin_interval(now, reported_seconds)
        return True

    def end_interval(self, now: float, reported_seconds: Mapping[str, float]) -> Demand:
        """Return the demand of the interval that ends now, and begin the next one.

        Reports and intervals do not end at the same time: the received reports may cover up to a fifth of a second more
        or less than the interval. So the load that a source has reported is scaled to the length of the interval,
        except for a source that appeared or disappeared within the interval.
        """
        seconds = now - self.interval_start
        total = Demand(seconds=seconds)
        for source, source_usage in self.usage.items():
            covered_seconds = reported_seconds.get(source, 0.0) - self.reported_seconds.get(source, 0.0)
            stayed = source in self.reported_seconds and source in reported_seconds
            total += _demand(source_usage, seconds / covered_seconds if stayed and covered_seconds > 0 else 1.0)
        self._begin_interval(now, reported_seconds)
        return total

    def _begin_interval(self, now: float, reported_seconds: Mapping[str, float]) -> None:
        self.usage = {}
        self.reported_seconds = dict(reported_seconds)
        self.interval_start = now
        self.due_at = max(self.due_at + self.refresh_seconds, now + self.refresh_seconds / 2)


class ControlLoop:
    """Scales all versions. Times are seconds of one monotonic clock.

    Usage is reported by sources: workers of this pod, and other pods as a whole.
    """

    def __init__(self) -> None:
        self._scaled: dict[VersionKey, _ScaledVersion] = {}
        self._reported_seconds: dict[str, float] = {}  # by source: the total time that its reports cover
        # A heap with one entry for each version, at its due time or earlier: usually only few versions are due.
        self._agenda: list[tuple[float, VersionKey]] = []
        self._draining: set[VersionKey] = set()  # versions with a cordoned replica

    def set_services(self, services: Mapping[str, Service], now: float) -> None:
        """Replace all services. A version whose service is no longer on standby, or is now, is scaled as a new one."""
        versions = {
            (service.name, version.name): (version, service.standby)
            for service in services.values()
            for version in service.versions
        }
        for key in [key for key in self._scaled if key not in versions]:
            del self._scaled[key]
        for key, (version, standby) in versions.items():
            scaled = self._scaled.get(key)
            if scaled is None:
                self._scaled[key] = _ScaledVersion(version, now, self._reported_seconds, standby=standby)
                continue
            if scaled.standby is not standby:
                scaled.standby = standby
                scaled = self._restart(key, scaled, now)
            if scaled.version is not version and scaled.version != version:  # the comparison of values is slow
                scaled.version = version
                scaled.reconciler.update(version)
                scaled.due_at = min(scaled.due_at, now + scaled.refresh_seconds)
                scaled.settled_replicas = None
        self._agenda = [(scaled.due_at, key) for key, scaled in self._scaled.items()]
        heapq.heapify(self._agenda)
        self._draining &= self._scaled.keys()

    def set_replicas(self, key: VersionKey, replicas: VersionReplicas, now: float) -> None:
        """Replace the replicas and cordons of a version."""
        scaled = self._scaled.get(key)
        if scaled is not None:
            scaled.replicas = replicas
            scaled.started_at = {each.id: scaled.started_at.get(each.id, now) for each in replicas.replicas}
            if replicas.cordoned:
                self._draining.add(key)
            else:
                self._draining.discard(key)

    def replicas_changed_externally(self, key: VersionKey, replicas: int) -> None:
        """Record that something other than this loop has set the number of a version's replicas."""
        scaled = self._scaled.get(key)
        if scaled is not None:
            scaled.reconciler.record_external_request(replicas)
            scaled.settled_replicas = None

    def set_scaling_suspended(self, key: VersionKey, now: float, *, suspended: bool) -> None:
        """Stop scaling a version, or resume scaling it as a new version."""
        scaled = self._scaled.get(key)
        if scaled is not None and scaled.scaling_suspended is not suspended:
            restarted = self._restart(key, scaled, now)
            restarted.scaling_suspended = suspended
            # More replicas may be present now, for example during a rolling update.
            if (requested := scaled.reconciler.requested_replicas) is not None:
                restarted.reconciler.record_external_request(requested)

    def restart(self, now: float, requested: Mapping[VersionKey, int]) -> None:
        """Begin to scale all versions at `now`. Earlier usage is discarded, cordons are kept.

        `requested` is the number of replicas that was last requested from the cluster, by version.
        """
        for key, scaled in list(self._scaled.items()):
            self._restart(key, scaled, now)
            if key in requested:
                self._scaled[key].reconciler.record_external_request(requested[key])

    def _restart(self, key: VersionKey, scaled: _ScaledVersion, now: float) -> _ScaledVersion:
        restarted = self._scaled[key] = _ScaledVersion(
            scaled.version, now, self._reported_seconds, standby=scaled.standby
        )
        restarted.replicas, restarted.started_at = scaled.replicas, scaled.started_at
        restarted.decisions, restarted.scaling_suspended = scaled.decisions, scaled.scaling_suspended
        return restarted

    def add_usage(self, source: str, seconds: float, reports: Mapping[VersionKey, UsageDelta]) -> None:
        """Add the usage of the last `seconds` that a source has reported. Versions missing in `reports` were idle."""
        self._reported_seconds[source] = self._reported_seconds.get(source, 0.0) + seconds
        for key, reported in reports.items():
            scaled = self._scaled.get(key)
            if scaled is not None:
                before = scaled.usage.get(source)
                scaled.usage[source] = reported if before is None else usage.add(before, reported)

    def remove_source(self, source: str) -> None:
        """Remove a worker or pod that has ended. The usage that it has reported still counts."""
        self._reported_seconds.pop(source, None)

    def due_versions(self, now: float) -> list[VersionKey]:
        """Return the versions that are due or have a cordoned replica, sorted: `step` must be called for them."""
        keys = set(self._draining)
        while self._agenda and self._agenda[0][0] <= now:
            key = self._agenda[0][1]
            scaled = self._scaled[key]
            if scaled.due_at <= now:
                keys.add(key)
            # `step` moves `due_at`; the heap has the new time when this entry is reached again.
            heapq.heapreplace(self._agenda, (max(scaled.due_at, now + SHORTEST_REFRESH_SECONDS / 4), key))
        return sorted(keys)

    def step(
        self, key: VersionKey, now: float, in_flight: InFlight, streaming: Streaming = lambda _: 0
    ) -> ScalingStep | None:
        """Return what to do for a version now, or None if there is nothing to do.

        `in_flight` must not return 0 for a cordoned replica while a worker may still send a request to it.
        """
        scaled = self._scaled.get(key)
        if scaled is None or scaled.replicas is None or scaled.scaling_suspended:
            return None
        is_due = now >= scaled.due_at
        if not (is_due or scaled.replicas.cordoned):
            return None
        if is_due and scaled.skip_settled_interval(now, self._reported_seconds):
            return None
        facts = [
            ReplicaFacts(
                r.id,
                r.state,
                in_flight(key, r.id),
                r.id in scaled.replicas.cordoned,
                scaled.started_at[r.id],
                streaming(r.id),
            )
            for r in scaled.replicas.replicas
        ]
        demand = scaled.end_interval(now, self._reported_seconds) if is_due else None
        if demand is not None:
            scaled.settled_replicas = None
        before = scaled.target_replicas
        actions = scaled.reconciler.tick(now, demand, facts)
        step = ScalingStep(key, actions, scaled.reconciler.decision, _direction(before, scaled.reconciler.decision))
        if step.direction and step.decision is not None:
            reason = step.direction, step.decision.bound
            scaled.decisions[reason] = scaled.decisions.get(reason, 0) + 1
        if actions or step.direction:
            return step
        if demand is not None and demand.is_idle and scaled.reconciler.is_settled:
            scaled.settled_replicas = scaled.replicas
        return None

    def decision(self, key: VersionKey) -> ScalingDecision | None:
        """Return the last decision about a version."""
        scaled = self._scaled.get(key)
        return None if scaled is None else scaled.reconciler.decision

    def history(self, key: VersionKey) -> tuple[Observation, ...]:
        """Return the recent observations of a version's autoscaler, oldest first."""
        scaled = self._scaled.get(key)
        return () if scaled is None else scaled.reconciler.autoscaler.history

    def decisions(self, key: VersionKey) -> Mapping[tuple[str, str], int]:
        """Return how many decisions changed the number of a version's replicas, by direction and `bound`."""
        scaled = self._scaled.get(key)
        return {} if scaled is None else dict(scaled.decisions)


def _demand(reported: UsageDelta, factor: float) -> Demand:
    """Return a usage as demand. Its integrals over time are multiplied by `factor`; its counts are not."""
    busy, queued, arrivals, refused, completed, service = reported
    return Demand(0.0, busy * factor, queued * factor, arrivals, refused, completed, service)


def _direction(before: int, after: ScalingDecision | None) -> str:
    if after is None or before == after.desired:
        return ""
    return "up" if after.desired > before else "down"
