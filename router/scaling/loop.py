"""The control loop over all versions: who is due, what was seen since, what is to be done. No I/O, no clock.

Each version has a `VersionScaler`. This file keeps the scalers in step with the services and replicas there are, gives
each its demand when its refresh is due, and hands the resulting actions to whoever carries them out.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from router.scaling.autoscaler import Decision, Observation
from router.scaling.demand import Demand
from router.scaling.scaler import Action, ReplicaFacts, VersionScaler
from router.seen import Seen, together
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

    __slots__ = (
        "cordoned", "covered", "decisions", "due", "left_alone", "replicas", "rests_with", "scaler", "seen", "since",
        "started", "version",
    )  # fmt: skip

    def __init__(self, version: Version, now: float, covered: Mapping[str, float]) -> None:
        self.version = version
        self.scaler = VersionScaler(version)
        self.seen: dict[str, Seen] = {}  # by front-end
        self.since = now  # when that began
        self.covered = dict(covered)  # by front-end, at that moment
        self.due = now + self.refresh
        self.replicas: tuple[Replica, ...] | None = None  # not known yet
        self.rests_with: tuple[Replica, ...] | None = None  # with these nothing is to be done while no request comes
        self.started: dict[str, float] = {}
        self.cordoned: frozenset[str] = frozenset()
        self.left_alone = False
        self.decisions: dict[tuple[str, str], int] = {}  # by direction and what bounded it

    @property
    def wanted(self) -> int:
        """Replicas that it is to have so far: before the first decision, those that were asked for or are there."""
        if self.scaler.decision is not None:
            return self.scaler.decision.desired
        there = sum(replica.state is not ReplicaState.DRAINING for replica in self.replicas or ())
        return there if self.scaler.asked is None else max(there, self.scaler.asked)

    @property
    def refresh(self) -> float:
        """Seconds between two looks."""
        return max(self.version.autoscale_refresh_seconds, SHORTEST_REFRESH_SECONDS)

    def rests_until(self, now: float, covered: Mapping[str, float]) -> bool:
        """Whether a look at a version that was at rest would find nothing new. If so, the next interval begins."""
        if self.seen or self.cordoned or self.replicas is None or self.rests_with is not self.replicas:
            return False
        self.scaler.autoscaler.still_at_rest(now)
        self._begin(now, covered)
        return True

    def demand_until(self, now: float, covered: Mapping[str, float]) -> Demand:
        """End the interval: what was seen in it. The next one begins.

        The reports that arrived in it may cover a fifth of a second more or less. A load is an average, so what a
        front-end saw is brought to the interval's length, unless it began or ended within it.
        """
        seconds = now - self.since
        total = Demand(seconds=seconds)
        for front_end, seen in self.seen.items():
            reported = covered.get(front_end, 0.0) - self.covered.get(front_end, 0.0)
            stayed = front_end in self.covered and front_end in covered
            total += _demand(seen, seconds / reported if stayed and reported > 0 else 1.0)
        self._begin(now, covered)
        return total

    def _begin(self, now: float, covered: Mapping[str, float]) -> None:
        self.seen = {}
        self.covered = dict(covered)
        self.since = now
        self.due = max(self.due + self.refresh, now + self.refresh / 2)


class ControlLoop:
    """Scales every version. Times are seconds of one monotonic clock."""

    def __init__(self) -> None:
        self._scaled: dict[VersionKey, _Scaled] = {}
        self._covered: dict[str, float] = {}  # seconds that a front-end has reported on
        # A heap with each version once, not later than it is due. Most are not, most of the time.
        self._agenda: list[tuple[float, VersionKey]] = []
        self._draining: set[VersionKey] = set()  # they have a cordoned replica

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
                self._scaled[key] = _Scaled(version, now, self._covered)
            elif scaled.version != version:
                scaled.version = version
                scaled.scaler.update(version)
                scaled.due = min(scaled.due, now + scaled.refresh)
                scaled.rests_with = None
        self._agenda = [(scaled.due, key) for key, scaled in self._scaled.items()]
        heapq.heapify(self._agenda)
        self._draining &= self._scaled.keys()

    def replicas_changed(self, key: VersionKey, replicas: tuple[Replica, ...], now: float) -> None:
        """Take in the complete set of a version's replicas."""
        scaled = self._scaled.get(key)
        if scaled is not None:
            scaled.replicas = replicas
            scaled.started = {replica.id: scaled.started.get(replica.id, now) for replica in replicas}
            scaled.cordoned &= scaled.started.keys()
            self._note_cordons(key, scaled)

    def count_set(self, key: VersionKey, replicas: int) -> None:
        """Somebody else has set the number of replicas that a version is to have."""
        scaled = self._scaled.get(key)
        if scaled is not None:
            scaled.scaler.asked_by_other(replicas)
            scaled.rests_with = None

    def leave_alone(self, key: VersionKey, now: float, *, alone: bool) -> None:
        """Scale a version no more; or again, as if it were new."""
        scaled = self._scaled.get(key)
        if scaled is not None and scaled.left_alone is not alone:
            self._start_over(key, scaled, now)
            self._scaled[key].left_alone = alone

    def start_over(self, now: float, counts: Mapping[VersionKey, int]) -> None:
        """Scale all versions as from now: nothing that was seen before counts, what is cordoned stays so. `counts`: how
        many replicas each is to have so far."""
        for key, scaled in list(self._scaled.items()):
            self._start_over(key, scaled, now)
            if key in counts:
                self._scaled[key].scaler.asked_by_other(counts[key])

    def _start_over(self, key: VersionKey, scaled: _Scaled, now: float) -> None:
        anew = self._scaled[key] = _Scaled(scaled.version, now, self._covered)
        anew.replicas, anew.started, anew.cordoned = scaled.replicas, scaled.started, scaled.cordoned
        anew.decisions, anew.left_alone = scaled.decisions, scaled.left_alone

    def cordoned(self, key: VersionKey) -> frozenset[str]:
        """The replicas of a version that are to get no new request."""
        scaled = self._scaled.get(key)
        return frozenset() if scaled is None else scaled.cordoned

    def set_cordoned(self, key: VersionKey, replica_ids: Collection[str]) -> None:
        """Note which replicas of a version get no new request from now on; those it has not are ignored."""
        scaled = self._scaled[key]
        scaled.cordoned = frozenset(replica_ids) & scaled.started.keys()
        if scaled.cordoned:
            scaled.rests_with = None
        self._note_cordons(key, scaled)

    def _note_cordons(self, key: VersionKey, scaled: _Scaled) -> None:
        if scaled.cordoned:
            self._draining.add(key)
        else:
            self._draining.discard(key)

    def add_seen(self, front_end: str, seconds: float, reports: Mapping[VersionKey, Seen]) -> None:
        """Add what a front-end saw in the `seconds` since it told last; a version not among `reports` was at rest."""
        self._covered[front_end] = self._covered.get(front_end, 0.0) + seconds
        for key, seen in reports.items():
            scaled = self._scaled.get(key)
            if scaled is not None:
                before = scaled.seen.get(front_end)
                scaled.seen[front_end] = seen if before is None else together(before, seen)

    def front_end_gone(self, front_end: str) -> None:
        """A front-end has ended; what it saw still counts."""
        self._covered.pop(front_end, None)

    def due(self, now: float) -> list[VersionKey]:
        """The versions that `step` is to be called for now; it finds nothing to do for any other."""
        keys = set(self._draining)
        while self._agenda and self._agenda[0][0] <= now:
            key = self._agenda[0][1]
            scaled = self._scaled[key]
            if scaled.due <= now:
                keys.add(key)
            # After the look it is due at another time, which is seen when its turn comes next.
            heapq.heapreplace(self._agenda, (max(scaled.due, now + SHORTEST_REFRESH_SECONDS / 4), key))
        return sorted(keys)

    def step(self, key: VersionKey, now: float, in_flight: InFlight) -> Step | None:
        """What a version needs done now, if anything. `in_flight` tells the requests at a replica; of a cordoned one it
        must not say 0 while a request may be on its way there."""
        scaled = self._scaled.get(key)
        if scaled is None or scaled.replicas is None or scaled.left_alone or not (now >= scaled.due or scaled.cordoned):
            return None
        if now >= scaled.due and scaled.rests_until(now, self._covered):
            return None
        facts = [
            ReplicaFacts(r.id, r.state, in_flight(key, r.id), r.id in scaled.cordoned, scaled.started[r.id])
            for r in scaled.replicas
        ]
        demand = scaled.demand_until(now, self._covered) if now >= scaled.due else None
        if demand is not None:
            scaled.rests_with = None  # until this look has found it at rest
        before = scaled.wanted
        actions = scaled.scaler.tick(now, demand, facts)
        step = Step(key, actions, scaled.scaler.decision, _direction(before, scaled.scaler.decision))
        if step.changed and step.decision is not None:
            kind = step.changed, step.decision.bound
            scaled.decisions[kind] = scaled.decisions.get(kind, 0) + 1
        if actions or step.changed:
            return step
        if demand is not None and demand.is_nothing and scaled.scaler.is_at_rest:
            scaled.rests_with = scaled.replicas
        return None

    def decision(self, key: VersionKey) -> Decision | None:
        """The last decision about a version."""
        scaled = self._scaled.get(key)
        return None if scaled is None else scaled.scaler.decision

    def history(self, key: VersionKey) -> tuple[Observation, ...]:
        """What the autoscaler of a version has observed lately, oldest first."""
        scaled = self._scaled.get(key)
        return () if scaled is None else scaled.scaler.autoscaler.history

    def decisions(self, key: VersionKey) -> Mapping[tuple[str, str], int]:
        """How many decisions changed the number of a version's replicas, by direction and what bounded them."""
        scaled = self._scaled.get(key)
        return {} if scaled is None else dict(scaled.decisions)

    def replicas_by_state(self, key: VersionKey) -> dict[str, int]:
        """How many replicas of a version are in each state."""
        counts = {state.value: 0 for state in ReplicaState}
        scaled = self._scaled.get(key)
        for replica in (scaled.replicas or ()) if scaled is not None else ():
            counts[replica.state.value] += 1
        return counts


def _demand(seen: Seen, factor: float) -> Demand:
    """What was seen, with the load stretched to `factor` times as long; what was counted stays as it is."""
    busy, queued, arrivals, refused, completed, service = seen
    return Demand(0.0, busy * factor, queued * factor, arrivals, refused, completed, service)


def _direction(before: int, after: Decision | None) -> str:
    if after is None or before == after.desired:
        return ""
    return "up" if after.desired > before else "down"
