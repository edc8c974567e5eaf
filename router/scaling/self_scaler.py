"""The self-scaler: from what the router feels of its load to how large the router should be.

Everything that decides this size lives here. This file does no I/O, reads no clock (time is an argument: seconds,
monotonic) and does not know how a size is brought about; who does that says how it went (`done`, `no_room`, `failed`).

Theory of operation. A size is CPUs of each pod and a number of pods. Up and down look at different things:

- Up: what the router adds to a request, as a percentile over the window, is above its threshold: one step more CPU; at
  the largest step, or where a node has no room, one pod more. Both the route time and the lag of the event loops count:
  a request that waits in a socket for a busy loop is delayed before its route time begins. While hardly any CPU is in
  use (`busy_cpu`) more of it could not help, as when connects to replicas are slow, or other programs keep the node
  busy.
- Down: the CPU in use is below its threshold: one step less CPU; at the smallest step, and below the scale-in
  threshold, one pod fewer. The highest use of the last `down_seconds` counts, so that no quiet moment is taken for a
  trend; it is remembered in CPUs, not as a share, so a changed size makes nothing anew that was seen before it.

Why no load makes it oscillate. Between the two thresholds nothing happens. A smaller size is refused that would be
fuller than `FULL_AFTER`. And a size that has proved too slow under some load is not gone back to before the load is
clearly below that (`TOO_SLOW_MARGIN`), for a time that doubles each time it is tried again in vain: a load may be
slow for a reason that no arithmetic of CPU use shows (bursts, a throttled container).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import pairwise

from router.scaling.load import Seen
from router.scaling.window import SlidingMaximum

FULL_AFTER = 0.7
"""Highest share of its CPU that a smaller size may have in use, judged beforehand."""

TOO_SLOW_MARGIN = 0.8
"""A size that was too slow is tried again below this share of the load that it was too slow for."""

TOO_SLOW_SECONDS = 3600.0
LONGEST_TOO_SLOW_SECONDS = 86_400.0
"""For how long that is remembered, at first and at most."""

FEWEST_REQUESTS = 20
"""A percentile of fewer requests than this is one request's story."""

SHORTEST_WATCH_SECONDS = 3.0
"""So long at least a size must have been watched before it is called too slow."""


class Kind(StrEnum):
    """What a decision comes to."""

    MORE_CPU = "more-cpu"
    LESS_CPU = "less-cpu"
    MORE_PODS = "more-pods"
    FEWER_PODS = "fewer-pods"
    STAY = "stay"
    """All is well, or nothing may be done yet."""
    LIMITED = "limited"
    """More is wanted, and there is no more to be had."""


CHANGES = frozenset({Kind.MORE_CPU, Kind.LESS_CPU, Kind.MORE_PODS, Kind.FEWER_PODS})
_GROWTH = frozenset({Kind.MORE_CPU, Kind.MORE_PODS})


@dataclass(frozen=True, slots=True)
class Size:
    """CPUs (or workers) of each pod, and pods."""

    cpus: float
    pods: int

    @property
    def total(self) -> float:
        """CPUs of all pods."""
        return self.cpus * self.pods


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Bounds and thresholds. `steps` ascend; shares of CPU are from 0 to 1; `unit` is what a step consists of, in
    words. Raises ValueError when bounds contradict each other."""

    steps: tuple[float, ...]
    min_pods: int
    max_pods: int
    percent: float
    slow_seconds: float
    busy_cpu: float
    down_cpu: float
    scale_in_cpu: float
    up_seconds: float
    down_seconds: float
    no_room_seconds: float
    unit: str = "CPUs"

    def __post_init__(self) -> None:
        if not self.steps or any(low >= high for low, high in pairwise(self.steps)):
            raise ValueError(f"Policy: steps are {self.steps}, must be at least one, each larger than the one before")
        if not 1 <= self.min_pods <= self.max_pods:
            raise ValueError(f"Policy: {self.min_pods} to {self.max_pods} pods, must be at least 1, minimum first")


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do, and why. `target` is the size to bring about; None where nothing is to be done."""

    kind: Kind
    target: Size | None
    reason: str


@dataclass(frozen=True, slots=True)
class _TooSlow:
    cores: float  # the load that it was too slow for
    until: float
    seconds: float  # that it is remembered


@dataclass(frozen=True, slots=True)
class _NoRoom:
    target: Size
    until: float
    why: str


class SelfScaler:
    """Decides the router's size; call `observe` once a second."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._peaks = SlidingMaximum()
        self._watched_since: float | None = None
        self._changed_at = -math.inf
        self._pause_until = -math.inf  # for growth
        self._under_way: tuple[Decision, Size, float] | None = None  # with the size before, and the load
        self._too_slow: dict[float, _TooSlow] = {}  # by CPUs of all pods
        self._no_room: dict[Kind, _NoRoom] = {}
        self.at_limit = False
        """Whether the router is slow and cannot be made larger."""

    @property
    def policy(self) -> Policy:
        """Bounds and thresholds in force."""
        return self._policy

    # How it went.

    def done(self, now: float) -> None:
        """The target of the last decision is reached."""
        decision, before, cores = self._end()
        self._changed_at = now
        self._pause_until = now + self._policy.up_seconds
        if decision.kind in _GROWTH:
            self._remember_too_slow(now, before, cores)
        else:
            self._no_room.clear()  # what was given back may be had again

    def no_room(self, now: float, why: str) -> None:
        """The cluster has no room for the target; things are as they were before."""
        decision, _, _ = self._end()
        assert decision.target is not None
        self._no_room[decision.kind] = _NoRoom(decision.target, now + self._policy.no_room_seconds, why)

    def failed(self, now: float) -> None:
        """The target could not be brought about, for another reason than room; it is tried again after a pause."""
        self._end()
        self._pause_until = now + self._policy.up_seconds

    def _end(self) -> tuple[Decision, Size, float]:
        assert self._under_way is not None, "no decision is under way"
        ended, self._under_way = self._under_way, None
        return ended

    def _remember_too_slow(self, now: float, size: Size, cores: float) -> None:
        before = self._too_slow.get(size.total)
        seconds = TOO_SLOW_SECONDS if before is None else min(before.seconds * 2, LONGEST_TOO_SLOW_SECONDS)
        self._too_slow[size.total] = _TooSlow(cores, now + seconds, seconds)

    # Decisions.

    def observe(self, now: float, seen: Seen, size: Size) -> Decision:
        """What to do, at the present `size`. A decision with a target is under way until one of `done`, `no_room` and
        `failed` is called."""
        if self._watched_since is None:
            self._watched_since = now
        peak = self._peaks.add(now, seen.cores, self._policy.down_seconds)
        if self._under_way is not None:
            return Decision(Kind.STAY, None, f"under way: {self._under_way[0].reason}")
        decision = self._within_bounds(now, size) or self._decide(now, seen, size, peak)
        if decision.target is not None:
            self._under_way = (decision, size, seen.cores)
        return decision

    def _within_bounds(self, now: float, size: Size) -> Decision | None:
        """Back into bounds, if somebody else has left them."""
        policy = self._policy
        pods = min(max(size.pods, policy.min_pods), policy.max_pods)
        cpus = min(max(size.cpus, policy.steps[0]), policy.steps[-1])
        if cpus != size.cpus:
            kind = Kind.MORE_CPU if cpus > size.cpus else Kind.LESS_CPU
            target, bounds = replace(size, cpus=cpus), f"{policy.steps[0]:g} to {policy.steps[-1]:g} {policy.unit}"
        elif pods != size.pods:
            kind = Kind.MORE_PODS if pods > size.pods else Kind.FEWER_PODS
            target, bounds = replace(size, pods=pods), f"{policy.min_pods} to {policy.max_pods} pods"
        else:
            return None
        if now < self._pause_until or self._why_no_room(now, kind, target) is not None:
            return None
        return self._change(kind, size, target, f"{self._named(kind, size)}, outside of {bounds}")

    def _decide(self, now: float, seen: Seen, size: Size, peak: float) -> Decision:
        facts = self._describe(seen)
        if not self._is_slow(seen):
            self.at_limit = False
            return self._shrink(now, seen, size, peak, f"{facts}: well")
        if seen.cpu_use < self._policy.busy_cpu:
            self.at_limit = False
            why = f"slow, but with CPU use below {self._policy.busy_cpu:.0%} more would not help"
            return self._shrink(now, seen, size, peak, f"{facts}: {why}")
        if now < self._pause_until:
            return self._stay(f"{facts}: slow, the last change is less than {self._policy.up_seconds:g} s ago")
        return self._grow(now, size, facts)

    def _is_slow(self, seen: Seen) -> bool:
        if seen.watched_seconds < SHORTEST_WATCH_SECONDS:
            return False
        route_time = seen.route_time if seen.requests >= FEWEST_REQUESTS else None
        return max(route_time or 0.0, seen.loop_lag or 0.0) > self._policy.slow_seconds

    def _grow(self, now: float, size: Size, facts: str) -> Decision:
        """One step more CPU; where that is not to be had, one pod more."""
        policy = self._policy
        reasons = []
        larger = next((step for step in policy.steps if step > size.cpus), None)
        for kind, target in (
            (Kind.MORE_CPU, None if larger is None else replace(size, cpus=larger)),
            (Kind.MORE_PODS, replace(size, pods=size.pods + 1) if size.pods < policy.max_pods else None),
        ):
            if target is None:
                most = policy.max_pods if kind is Kind.MORE_PODS else policy.steps[-1]
                unit = "pods" if kind is Kind.MORE_PODS else policy.unit
                reasons.append(f"{most:g} {unit} are the most")
            elif (why := self._why_no_room(now, kind, target)) is not None:
                reasons.append(f"no room for {self._named(kind, target)} ({why})")
            else:
                self.at_limit = False
                return self._change(kind, size, target, "; ".join((facts, *reasons)))
        self.at_limit = True
        return Decision(Kind.LIMITED, None, f"{facts}: slow, and {', '.join(reasons)}")

    def _why_no_room(self, now: float, kind: Kind, target: Size) -> str | None:
        known = self._no_room.get(kind)
        if known is None or now >= known.until or target.total < known.target.total:
            return None
        return known.why

    def _shrink(self, now: float, seen: Seen, size: Size, peak: float, facts: str) -> Decision:
        """One step less CPU; at the smallest, one pod fewer."""
        policy = self._policy
        smaller = next((step for step in reversed(policy.steps) if step < size.cpus), None)
        if smaller is not None:
            kind, target, threshold = Kind.LESS_CPU, replace(size, cpus=smaller), policy.down_cpu
        elif size.pods > policy.min_pods:
            kind, target, threshold = Kind.FEWER_PODS, replace(size, pods=size.pods - 1), policy.scale_in_cpu
        else:
            return self._stay(f"{facts}, at the smallest size")
        use = peak / size.total
        if use >= threshold:
            return self._stay(f"{facts}, {use:.0%} of the CPU was in use, smaller below {threshold:.0%}")
        hindrance = self._hindrance(now, seen, size, target, peak)
        if hindrance is not None:
            return self._stay(f"{facts}, {use:.0%} of the CPU was in use, below {threshold:.0%}, but {hindrance}")
        why = f"{facts}; at most {use:.0%} in use for {policy.down_seconds:g} s, below {threshold:.0%}"
        return self._change(kind, size, target, why)

    def _hindrance(self, now: float, seen: Seen, size: Size, target: Size, peak: float) -> str | None:
        """Why a smaller size is not tried, though little CPU is in use."""
        assert self._watched_since is not None
        policy = self._policy
        if now - max(self._watched_since, self._changed_at) < policy.down_seconds:
            return f"{policy.down_seconds:g} s must be watched first"
        if seen.pods < size.pods:
            return f"only {seen.pods} of {size.pods} pods report"
        if peak > FULL_AFTER * target.total:
            return f"{self._named(Kind.LESS_CPU, target)} would be {peak / target.total:.0%} full"
        for total, known in self._too_slow.items():
            if target.total <= total and now < known.until and peak >= TOO_SLOW_MARGIN * known.cores:
                return f"{total:g} {policy.unit} in all were too slow for {known.cores:.2f} in use"
        return None

    # Words.

    def _describe(self, seen: Seen) -> str:
        percent = f"p{self._policy.percent:g}"
        return (
            f"route time {percent} {_milliseconds(seen.route_time)}, event-loop lag {percent} "
            f"{_milliseconds(seen.loop_lag)} against {_milliseconds(self._policy.slow_seconds)}, "
            f"CPU use {seen.cpu_use:.0%} ({seen.cores:.2f} of {seen.cpus:g})"
        )

    def _named(self, kind: Kind, size: Size) -> str:
        if kind in (Kind.MORE_PODS, Kind.FEWER_PODS):
            return f"{size.pods} pods"
        return f"{size.cpus:g} {self._policy.unit}"

    def _change(self, kind: Kind, before: Size, after: Size, why: str) -> Decision:
        change = (
            f"{before.pods} to {after.pods} pods"
            if before.pods != after.pods
            else f"{before.cpus:g} to {after.cpus:g} {self._policy.unit}"
        )
        return Decision(kind, after, f"{why}: {change}")

    @staticmethod
    def _stay(reason: str) -> Decision:
        return Decision(Kind.STAY, None, reason)


def _milliseconds(seconds: float | None) -> str:
    return "unknown" if seconds is None else f"{seconds * 1000:.3g} ms"
