"""The self-scaler: decides the size of the router from the router's own load.

The whole decision is in this file. There is no I/O and no clock: the time is an argument, in seconds of the monotonic
clock. The caller (`loop`) applies a size, and reports the outcome (`on_applied`, `on_no_room`, `on_failed`).

Theory of operation. A size is the CPUs of each pod and the number of pods. Growth and shrinking use different signals:

- Growth: if the time that the router adds to a request, as a percentile over the window, is above the threshold, each
  pod gets one step more CPU. At the largest step, or if a node has no room, there is one pod more. Both the route time
  and the lag of the event loops count: a request that waits in a socket for a busy loop is delayed before its route
  time begins. If little CPU is in use (`busy_cpu`), the router does not grow, as more CPU would not help. Examples are
  slow connections to replicas, and a node that is kept busy by other processes. The router also grows if its pods are
  throttled: a container that has used up its CPU quota stops for the rest of the period, up to 100 ms. That delays
  the slowest requests long before the percentile shows it. It does not count below `cpu_threshold`, as a start or
  another short burst is throttled too.
- Shrinking: if the CPU in use is below the threshold, each pod gets one step less CPU. At the smallest step, and below
  the scale-in threshold, there is one pod fewer. The highest use of the last `down_cooldown_seconds` counts, so that a
  short idle time has no effect. It is stored in CPUs, not as a share, so it stays valid when the size changes.

Why no load makes the size oscillate. Between the two thresholds nothing changes. A smaller size is not chosen if its
utilization would exceed `MAX_UTILIZATION_AFTER_SHRINKING`. A size that was too slow under some load is not chosen until
the load is clearly lower (`TOO_SLOW_MARGIN`) or a time has passed. This time doubles each time the size is too slow
again, because the reason may be one that CPU utilization does not show (bursts, a throttled container).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import pairwise
from typing import NamedTuple

from router.scaling.self.load import FleetLoad
from router.scaling.window import SlidingMaximum

MAX_UTILIZATION_AFTER_SHRINKING = 0.7
"""Maximum CPU utilization that is expected after shrinking."""

TOO_SLOW_MARGIN = 0.8
"""A size that was too slow under some load is tried again below this share of that load."""

TOO_SLOW_SECONDS = 3600.0
MAX_TOO_SLOW_SECONDS = 86_400.0
"""How long a size that was too slow is not tried again: the first time, and at most."""

MIN_REQUESTS = 20
"""Minimum number of requests for a meaningful percentile."""

BUSY_CPU_WITHOUT_REQUESTS = 0.5
"""Minimum CPU utilization at which a router with fewer requests than that grows. Only streams and tunnels can make such
a router slow. Otherwise other processes have delayed its event loops, for example replicas that start."""

MIN_OBSERVED_SECONDS = 3.0
"""How long a size must be observed before it can count as too slow."""


class SizeAction(StrEnum):
    """The kind of a decision."""

    MORE_CPU = "more-cpu"
    LESS_CPU = "less-cpu"
    MORE_PODS = "more-pods"
    FEWER_PODS = "fewer-pods"
    STAY = "stay"
    """No change is needed, or none is possible yet."""
    LIMITED = "limited"
    """The router is too slow and cannot be made larger."""


_GROWTH = frozenset({SizeAction.MORE_CPU, SizeAction.MORE_PODS})


@dataclass(frozen=True, slots=True)
class Size:
    """CPUs (or workers) of each pod, and the number of pods."""

    cpus: float
    pods: int

    @property
    def total(self) -> float:
        """CPUs of all pods."""
        return self.cpus * self.pods


@dataclass(frozen=True, slots=True, kw_only=True)
class SizePolicy:
    """Limits and thresholds. The fields are named after the settings `self_scaling_*`.

    `steps` are the possible numbers of CPUs (or workers) of a pod, ascending. `throttled_threshold` is a share of
    periods, `busy_cpu`, `cpu_threshold` and `scale_in_cpu_threshold` are utilizations, all from 0 to 1. `unit` is the
    unit of `steps` in texts: CPUs or workers.
    Raises `ValueError` for contradictory limits.
    """

    steps: tuple[float, ...]
    min_pods: int
    max_pods: int
    percentile: float
    route_time_threshold_seconds: float
    throttled_threshold: float
    busy_cpu: float
    cpu_threshold: float
    scale_in_cpu_threshold: float
    up_cooldown_seconds: float
    down_cooldown_seconds: float
    no_room_seconds: float
    unit: str = "CPUs"

    def __post_init__(self) -> None:
        if not self.steps or any(low >= high for low, high in pairwise(self.steps)):
            raise ValueError(
                f"SizePolicy: steps are {self.steps}, must be at least one, each larger than the one before"
            )
        if not 1 <= self.min_pods <= self.max_pods:
            raise ValueError(f"SizePolicy: {self.min_pods} to {self.max_pods} pods, must be at least 1, minimum first")


@dataclass(frozen=True, slots=True)
class SizeDecision:
    """A decision with its reason. `target` is the size to apply, or None if the size stays."""

    action: SizeAction
    target: Size | None
    reason: str


class _PendingChange(NamedTuple):
    """A decision that is being applied, with the size and the used CPUs at the time of the decision."""

    decision: SizeDecision
    before: Size
    used_cpus: float


class _TooSlow(NamedTuple):
    """A size was too slow for a load; valid for `seconds`, until `until`."""

    used_cpus: float
    until: float
    seconds: float


class _NoRoom(NamedTuple):
    """The cluster had no room for `target`; not requested again until `until`."""

    target: Size
    until: float
    reason: str


class SelfScaler:
    """Decides the router's size. Call `observe` once a second."""

    def __init__(self, policy: SizePolicy) -> None:
        self._policy = policy
        self._peaks = SlidingMaximum()  # of the used CPUs
        self._observed_since: float | None = None
        self._applied_at = -math.inf
        self._growth_paused_until = -math.inf
        self._pending: _PendingChange | None = None
        self._too_slow: dict[float, _TooSlow] = {}  # by CPUs of all pods
        self._no_room: dict[SizeAction, _NoRoom] = {}
        self.at_limit = False
        """True while the router is slow and cannot be made larger."""

    def change_policy(self, policy: SizePolicy) -> None:
        """Apply other limits and thresholds. What is known about sizes stays."""
        self._policy = policy

    # Outcomes.

    def on_applied(self, now: float) -> None:
        """The target of the last decision was applied."""
        decision, before, used_cpus = self._end_pending()
        self._applied_at = now
        self._growth_paused_until = now + self._policy.up_cooldown_seconds
        if decision.action in _GROWTH:
            self._remember_too_slow(now, before, used_cpus)
        else:
            self._no_room.clear()  # the released CPUs may be available now

    def on_no_room(self, now: float, reason: str) -> None:
        """The cluster had no room for the target; the size is unchanged."""
        decision, _, _ = self._end_pending()
        assert decision.target is not None
        self._no_room[decision.action] = _NoRoom(decision.target, now + self._policy.no_room_seconds, reason)

    def on_failed(self, now: float) -> None:
        """The target could not be applied for another reason. Growth is tried again after a delay."""
        self._end_pending()
        self._growth_paused_until = now + self._policy.up_cooldown_seconds

    def _end_pending(self) -> _PendingChange:
        assert self._pending is not None, "no decision is being applied"
        ended, self._pending = self._pending, None
        return ended

    def _remember_too_slow(self, now: float, size: Size, used_cpus: float) -> None:
        previous = self._too_slow.get(size.total)
        seconds = TOO_SLOW_SECONDS if previous is None else min(previous.seconds * 2, MAX_TOO_SLOW_SECONDS)
        self._too_slow[size.total] = _TooSlow(used_cpus, now + seconds, seconds)

    # Decisions.

    def observe(self, now: float, load: FleetLoad, size: Size) -> SizeDecision:
        """Decide, given the load and the current size.

        A decision with a target is pending until `on_applied`, `on_no_room` or `on_failed` is called.
        """
        if self._observed_since is None:
            self._observed_since = now
        peak = self._peaks.add(now, load.used_cpus, self._policy.down_cooldown_seconds)
        if self._pending is not None:
            return SizeDecision(SizeAction.STAY, None, f"in progress: {self._pending.decision.reason}")
        decision = self._return_within_limits(now, size) or self._decide(now, load, size, peak)
        if decision.target is not None:
            self._pending = _PendingChange(decision, size, load.used_cpus)
        return decision

    def _return_within_limits(self, now: float, size: Size) -> SizeDecision | None:
        """Return the decision that brings the size within the limits, or None if it is within them already."""
        policy = self._policy
        pods = min(max(size.pods, policy.min_pods), policy.max_pods)
        cpus = min(max(size.cpus, policy.steps[0]), policy.steps[-1])
        if cpus != size.cpus:
            action = SizeAction.MORE_CPU if cpus > size.cpus else SizeAction.LESS_CPU
            target, limits = replace(size, cpus=cpus), f"{policy.steps[0]:g} to {policy.steps[-1]:g} {policy.unit}"
        elif pods != size.pods:
            action = SizeAction.MORE_PODS if pods > size.pods else SizeAction.FEWER_PODS
            target, limits = replace(size, pods=pods), f"{policy.min_pods} to {policy.max_pods} pods"
        else:
            return None
        if now < self._growth_paused_until or self._no_room_reason(now, action, target) is not None:
            return None
        return self._change(action, size, target, f"{self._describe_size(action, size)}, outside of {limits}")

    def _decide(self, now: float, load: FleetLoad, size: Size, peak: float) -> SizeDecision:
        load_text = self._describe_load(load)
        is_throttled = self._is_throttled(load)
        if not is_throttled and not self._is_slow(load):
            self.at_limit = False
            return self._shrink(now, load, size, peak, f"{load_text}: fast enough")
        busy_cpu = self._policy.busy_cpu
        if load.requests < MIN_REQUESTS:
            busy_cpu = max(busy_cpu, BUSY_CPU_WITHOUT_REQUESTS)
        if not is_throttled and load.cpu_utilization < busy_cpu:
            self.at_limit = False
            reason = f"slow, but with CPU use below {busy_cpu:.0%} more would not help"
            return self._shrink(now, load, size, peak, f"{load_text}: {reason}")
        if now < self._growth_paused_until:
            cooldown = f"the last change is less than {self._policy.up_cooldown_seconds:g} s ago"
            return _stay(f"{load_text}: slow, {cooldown}")
        return self._grow(now, size, load_text)

    def _is_slow(self, load: FleetLoad) -> bool:
        if load.observed_seconds < MIN_OBSERVED_SECONDS:
            return False
        route_time = load.route_time if load.requests >= MIN_REQUESTS else None
        return max(route_time or 0.0, load.loop_lag or 0.0) > self._policy.route_time_threshold_seconds

    def _is_throttled(self, load: FleetLoad) -> bool:
        """True if pods use up their CPU quota so often that requests are delayed."""
        is_significant = load.observed_seconds >= MIN_OBSERVED_SECONDS and load.requests >= MIN_REQUESTS
        is_above = load.throttled is not None and load.throttled > self._policy.throttled_threshold
        return is_significant and is_above and load.cpu_utilization >= self._policy.cpu_threshold

    def _grow(self, now: float, size: Size, load_text: str) -> SizeDecision:
        """Add one step of CPU, or one pod if there is no more CPU."""
        policy = self._policy
        obstacles = []
        larger = next((step for step in policy.steps if step > size.cpus), None)
        for action, target in (
            (SizeAction.MORE_CPU, None if larger is None else replace(size, cpus=larger)),
            (SizeAction.MORE_PODS, replace(size, pods=size.pods + 1) if size.pods < policy.max_pods else None),
        ):
            if target is None:
                maximum = policy.max_pods if action is SizeAction.MORE_PODS else policy.steps[-1]
                unit = "pods" if action is SizeAction.MORE_PODS else policy.unit
                obstacles.append(f"{maximum:g} {unit} are the maximum")
            elif (reason := self._no_room_reason(now, action, target)) is not None:
                obstacles.append(f"no room for {self._describe_size(action, target)} ({reason})")
            else:
                self.at_limit = False
                return self._change(action, size, target, "; ".join((load_text, *obstacles)))
        self.at_limit = True
        return SizeDecision(SizeAction.LIMITED, None, f"{load_text}: slow, and {', '.join(obstacles)}")

    def _no_room_reason(self, now: float, action: SizeAction, target: Size) -> str | None:
        """Return the reason why there was recently no room for a size, or None if there may be room."""
        known = self._no_room.get(action)
        if known is None or now >= known.until or target.total < known.target.total:
            return None
        return known.reason

    def _shrink(self, now: float, load: FleetLoad, size: Size, peak: float, load_text: str) -> SizeDecision:
        """Remove one step of CPU, or one pod at the smallest step."""
        policy = self._policy
        smaller = next((step for step in reversed(policy.steps) if step < size.cpus), None)
        if smaller is not None:
            action, target, threshold = SizeAction.LESS_CPU, replace(size, cpus=smaller), policy.cpu_threshold
        elif size.pods > policy.min_pods:
            action, target = SizeAction.FEWER_PODS, replace(size, pods=size.pods - 1)
            threshold = policy.scale_in_cpu_threshold
        else:
            return _stay(f"{load_text}, at the smallest size")
        utilization = peak / size.total
        if utilization >= threshold:
            return _stay(f"{load_text}, {utilization:.0%} of the CPU was in use, smaller below {threshold:.0%}")
        obstacle = self._obstacle_to_shrinking(now, load, size, target, peak)
        if obstacle is not None:
            return _stay(f"{load_text}, {utilization:.0%} of the CPU was in use, below {threshold:.0%}, but {obstacle}")
        use = f"at most {utilization:.0%} in use for {policy.down_cooldown_seconds:g} s, below {threshold:.0%}"
        return self._change(action, size, target, f"{load_text}; {use}")

    def _obstacle_to_shrinking(self, now: float, load: FleetLoad, size: Size, target: Size, peak: float) -> str | None:
        """Return the reason why a smaller size is not tried although little CPU is in use, or None."""
        assert self._observed_since is not None
        policy = self._policy
        if now - max(self._observed_since, self._applied_at) < policy.down_cooldown_seconds:
            return f"waiting for {policy.down_cooldown_seconds:g} s of data"
        if load.reporting_pods < size.pods:
            return f"only {load.reporting_pods} of {size.pods} pods report"
        if peak > MAX_UTILIZATION_AFTER_SHRINKING * target.total:
            return f"{self._describe_size(SizeAction.LESS_CPU, target)} would be {peak / target.total:.0%} full"
        for total, known in self._too_slow.items():
            if target.total <= total and now < known.until and peak >= TOO_SLOW_MARGIN * known.used_cpus:
                return f"{total:g} {policy.unit} in all were too slow for {known.used_cpus:.2f} in use"
        return None

    # Texts.

    def _describe_load(self, load: FleetLoad) -> str:
        percentile = f"p{self._policy.percentile:g}"
        throttled = "" if load.throttled is None else f", throttled in {load.throttled:.0%} of the periods"
        return (
            f"route time {percentile} {_milliseconds(load.route_time)}, event-loop lag {percentile} "
            f"{_milliseconds(load.loop_lag)} against {_milliseconds(self._policy.route_time_threshold_seconds)}, "
            f"CPU use {load.cpu_utilization:.0%} ({load.used_cpus:.2f} of {load.cpus:g}){throttled}"
        )

    def _describe_size(self, action: SizeAction, size: Size) -> str:
        if action in (SizeAction.MORE_PODS, SizeAction.FEWER_PODS):
            return f"{size.pods} pods"
        return f"{size.cpus:g} {self._policy.unit}"

    def _change(self, action: SizeAction, before: Size, after: Size, reason: str) -> SizeDecision:
        change = (
            f"{before.pods} to {after.pods} pods"
            if before.pods != after.pods
            else f"{before.cpus:g} to {after.cpus:g} {self._policy.unit}"
        )
        return SizeDecision(action, after, f"{reason}: {change}")


def _stay(reason: str) -> SizeDecision:
    return SizeDecision(SizeAction.STAY, None, reason)


def _milliseconds(seconds: float | None) -> str:
    return "unknown" if seconds is None else f"{seconds * 1000:.3g} ms"
