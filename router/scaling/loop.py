"""The control loop over all versions: who is due, what was seen since, what is to be done. No I/O, no clock.

Each version has a `VersionScaler`. This file keeps the scalers in step with the services and replicas there are, gives
each its demand when its refresh is due, and hands the resulting actions to whoever carries them out.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace

from router.scaling.autoscaler import Decision
from router.scaling.demand import Demand
from router.scaling.scaler import Action, ReplicaFacts, VersionScaler
from router.services import Replica, ReplicaState, Service, Version, VersionKey

SHORTEST_REFRESH_SECONDS = 0.2
"""Front-ends report five times a second: a version that is to be looked at more often is looked at this often."""

InFlight = Callable[[VersionKey, str], int]


@dataclass(frozen=True, slots=True)
class Step:
    """What one version needs done now. `changed` tells of a decision for another number than before."""

    key: VersionKey
    actions: tuple[Action, ...]
    decision: Decision | None
    changed: str  # "up", "down" or ""


class _Scaled:
    """One version under control."""

    __slots__ = ("cordoned", "decisions", "demand", "due", "replicas", "scaler", "since", "started", "version")

    def __init__(self, version: Version, now: float) -> None:
        self.version = version
        self.scaler = VersionScaler(version)
        self.demand = Demand()
        self.since = now  # when that demand began
        self.due = now + self.refresh
        self.replicas: tuple[Replica, ...] | None = None  # not known yet
        self.started: dict[str, float] = {}
        self.cordoned: frozenset[str] = frozenset()
        self.decisions = {"up": 0, "down": 0}

    @property
    def refresh(self) -> float:
        """Seconds between two looks."""
        return max(self.version.autoscale_refresh_seconds, SHORTEST_REFRESH_SECONDS)


class ControlLoop:
    """Scales every version. Times are seconds of one monotonic clock."""

    def __init__(self) -> None:
        self._scaled: dict[VersionKey, _Scaled] = {}

    def services_changed(self, services: Mapping[str, Service], now: float) -> None:
        """Make the versions of `services` the complete set."""
        versions = {
            (service.name, version.name): version for service in services.values() for version in service.versions
        }
        for key in [key for key in self._scaled if key not in versions]:
            del self._scaled[key]
        for key, version in versions.items():
            scaled = self._scaled.get(key)
            if scaled is None:
                self._scaled[key] = _Scaled(version, now)
            elif scaled.version != version:
                scaled.version = version
                scaled.scaler.update(version)
                scaled.due = min(scaled.due, now + scaled.refresh)

    def replicas_changed(self, key: VersionKey, replicas: tuple[Replica, ...], now: float) -> None:
        """Take in the complete set of a version's replicas."""
        scaled = self._scaled.get(key)
        if scaled is not None:
            scaled.replicas = replicas
            scaled.started = {replica.id: scaled.started.get(replica.id, now) for replica in replicas}
            scaled.cordoned &= scaled.started.keys()

    def cordoned(self, key: VersionKey) -> frozenset[str]:
        """The replicas of a version that are to get no new request."""
        scaled = self._scaled.get(key)
        return frozenset() if scaled is None else scaled.cordoned

    def set_cordoned(self, key: VersionKey, replica_ids: Collection[str]) -> None:
        """Note which replicas of a version get no new request from now on."""
        self._scaled[key].cordoned = frozenset(replica_ids)

    def add_demand(self, key: VersionKey, demand: Demand) -> None:
        """Add what a front-end saw since it told last; its `seconds` do not matter."""
        scaled = self._scaled.get(key)
        if scaled is not None:
            scaled.demand += demand

    def tick(self, now: float, in_flight: InFlight) -> Iterator[Step]:
        """What is to be done now. `in_flight` tells the requests at a replica, of a cordoned one all leases."""
        for key, scaled in self._scaled.items():
            due = now >= scaled.due
            if scaled.replicas is None or not (due or scaled.cordoned):
                continue
            facts = [
                ReplicaFacts(r.id, r.state, in_flight(key, r.id), r.id in scaled.cordoned, scaled.started[r.id])
                for r in scaled.replicas
            ]
            demand: Demand | None = None
            if due:
                demand, scaled.demand = replace(scaled.demand, seconds=now - scaled.since), Demand()
                scaled.since = now
                scaled.due = max(scaled.due + scaled.refresh, now + scaled.refresh / 2)
            before = scaled.scaler.decision
            actions = scaled.scaler.tick(now, demand, facts)
            step = Step(key, actions, scaled.scaler.decision, _direction(before, scaled.scaler.decision))
            if step.changed:
                scaled.decisions[step.changed] += 1
            if actions or step.changed:
                yield step

    def decision(self, key: VersionKey) -> Decision | None:
        """The last decision about a version."""
        scaled = self._scaled.get(key)
        return None if scaled is None else scaled.scaler.decision

    def decisions(self, key: VersionKey) -> Mapping[str, int]:
        """How many decisions changed the number of a version's replicas, by direction."""
        scaled = self._scaled.get(key)
        return {} if scaled is None else dict(scaled.decisions)

    def replicas_by_state(self, key: VersionKey) -> dict[str, int]:
        """How many replicas of a version are in each state."""
        counts = {state.value: 0 for state in ReplicaState}
        scaled = self._scaled.get(key)
        for replica in (scaled.replicas or ()) if scaled is not None else ():
            counts[replica.state.value] += 1
        return counts


def _direction(before: Decision | None, after: Decision | None) -> str:
    if before is None or after is None or before.desired == after.desired:
        return ""
    return "up" if after.desired > before.desired else "down"
