"""The autoscaler of models: computes the number of a version's replicas from the demand.

The whole decision is in this file. There is no I/O and no clock: the time is an argument, in seconds of the monotonic
clock. Replicas are not distinguished here; `replica_reconciler` decides which of them are removed.

Theory of operation. The *need* of an interval is the number of requests that were in flight, or would have been if
there had been a slot for each:

    need    = busy + queued + refused ones that would still be in flight      (averages over the interval)
    desired = ceil(need / (target * max_concurrent)), clamped to min..max

- A refused request counts as one for the mean service time (`recent_requests`). So a few refused slow requests add a
  few replicas, and a burst of refused requests adds all that it needs in one decision. The product of refused per
  second and mean service time has the same mean, but one refused request of 30 s would count as 30, as if there was
  one in each second.

- The formula does not contain the current number of replicas. This number is only used in the reason, and as the
  number to hold at the start. So slowly starting replicas cannot cause runaway scaling: waiting for them changes
  neither the load nor the result. A controller that computes `replicas * utilization / target` can run away.
- Scaling up: at once, to the need of the last interval. Scaling down: only to the highest need of the last
  `autoscale_scale_down_seconds` (the window).
- `autoscale_objective: cost`. The busiest second of a window is above the mean even under a steady load, so the formula
  has headroom twice: in the peak, and in the target. With this objective the target applies to the mean of 10 s only:
  desired = ceil(max(mean of 10 s / target, need) / max_concurrent), where each of the two is the highest of the window.
  An overload adds replicas for the need at once, and the headroom within 10 s. A mean is kept for the window less these
  10 s, so that no need older than the window counts. With a window below 20 s, the mean is that of half of the window.
- The window contains needs (requests), not numbers of replicas. A need only depends on the clients, so a changed
  target, minimum or maximum applies at once to the whole window.
- Intervals without reports may have been busy. So the number is not lowered until a whole window has been observed:
  after the start, after a long gap between reports, and after the window was lengthened. The same applies after
  `replica_max_concurrent_requests` was raised: more concurrent requests per replica may take longer, so earlier
  observations do not predict the number of requests in flight.
"""

import math
from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

from router.model.services import Version
from router.scaling.demand import Demand
from router.scaling.recent_requests import RecentRequests
from router.scaling.window import SlidingMaximum, SlidingMean

_EPSILON = 1e-9
"""Relative error that is tolerated before rounding up: 0.1 * 3 requests at 30 % are 1 replica, not 2. It is far above
the rounding error of floating point (1e-16 per operation), and a millionth of a replica if there are 1,000 replicas."""

_MINIMAL_NEED = 1e-9
"""The need, in requests, of an interval with a request whose averages are all zero, because the request began and ended
between two readings of the clock. It is above zero, so that the last replica is kept."""

_MAX_REPORT_GAP_SECONDS = 5.0
"""Workers report several times a second. A time without reports that is longer than this counts as not observed."""

_MEAN_SECONDS = 10.0
"""The time over which needs are averaged for `autoscale_objective: cost`."""

_MAX_ARGUMENT = 1e9
"""Upper limit of the arguments of `replicas_for`, to avoid overflows."""

_STEADY_BOUNDS = frozenset({"demand", "minimum", "fixed"})
"""Values of `bound` that stay the same while there are no requests."""

HISTORY_LENGTH = 256
"""Maximum number of observations kept per version. Only those that differ from the previous one are kept, so the
history takes at most about 60 kB, and very little for an idle service."""


class Observation(NamedTuple):
    """One entry of the history. `at` is in seconds of the monotonic clock. Loads are in requests.

    `refused` are those that would still be in flight.
    """

    at: float
    replicas: int
    busy: float
    queued: float
    refused: float
    utilization: float
    raw_desired: int
    desired: int


@dataclass(frozen=True, slots=True)
class ScalingDecision:
    """The number of replicas that a version should have, and the reason.

    `utilization` is `(busy + queued) / slots`, or with the slots of one replica if there are no replicas. `raw_desired`
    is the number for the last interval alone, before minimum, maximum and window are applied. `reason` is for people.
    `bound` is what determined `desired`: `demand`, `window`, `minimum`, `maximum`, `fixed` or `silence` (no reports).
    """

    desired: int
    utilization: float
    reason: str
    raw_desired: int
    bound: str = "demand"


def replicas_for(rps: float, seconds: float, target_percent: float, max_concurrent: int) -> int:
    """Return the replicas that `rps` requests per second need: ceil(rps * seconds / target / max_concurrent).

    `seconds` is the duration of each request. This is the published sizing formula of Azure ML: 20 requests/s of 10 s
    at a target of 70 % and 1 request per replica need 286 replicas. `max_concurrent` 0 (unlimited) counts as 1. Raises
    `ValueError` for a target outside 1..100, and for another argument outside 0..1e9.
    """
    for name, value in (("rps", rps), ("seconds", seconds), ("max_concurrent", max_concurrent)):
        if not 0 <= value <= _MAX_ARGUMENT:
            raise ValueError(f"{name} is {value}, must be a number from 0 to {_MAX_ARGUMENT:g}")
    if not 1 <= target_percent <= 100:
        raise ValueError(f"target_percent is {target_percent}, must be a number from 1 to 100")
    return _replicas_for_need(rps * seconds, target_percent, max_concurrent)


class Autoscaler:
    """Decides the number of replicas of one version. Call `observe` every `autoscale_refresh_seconds`."""

    __slots__ = (
        "_desired", "_held_replicas", "_history", "_mean_need", "_mean_needs", "_needs", "_observed_since",
        "_observed_until", "_recent", "_version",
    )  # fmt: skip

    def __init__(self, version: Version) -> None:
        """Raises `ValueError` if autoscaling is off and `num_replicas` is not set."""
        _replica_limits(version)
        self._version = version
        self._needs = SlidingMaximum()
        self._mean_need = SlidingMean()
        self._mean_needs = SlidingMaximum()
        self._history: deque[Observation] = deque(maxlen=HISTORY_LENGTH)
        self._recent = RecentRequests()
        self._observed_until: float | None = None
        self._observed_since = -math.inf  # start of the period without gaps that ends at _observed_until
        self._held_replicas = 0  # lower limit until a whole window has passed since _observed_since
        self._desired: int | None = None

    @property
    def history(self) -> tuple[Observation, ...]:
        """The last observations that differ from the previous one in a number of replicas, oldest first."""
        return tuple(self._history)

    def update(self, version: Version) -> None:
        """Apply changed settings from the next `observe` on.

        Raises `ValueError` as the constructor does; the old settings then stay in effect.
        """
        _replica_limits(version)
        before, self._version = self._version, version
        if self._observed_until is None or self._desired is None:
            return
        if _slots_per_replica(version) > _slots_per_replica(before):
            self._hold(self._desired, since=self._observed_until)
        elif version.autoscale_scale_down_seconds > before.autoscale_scale_down_seconds:
            window_start = self._observed_until - before.autoscale_scale_down_seconds
            self._hold(self._desired, since=max(self._observed_since, window_start))

    def observe(self, now: float, demand: Demand, replicas: int) -> ScalingDecision:
        """Decide after the interval that ended at `now`. `replicas` is the present number, including starting ones.

        A demand of 0 seconds means that there were no reports: the number stays, within minimum and maximum. Do not
        call this before the replicas are known: the first value of `replicas` is the minimum until a whole window has
        been observed.
        """
        before = replicas if self._desired is None else self._desired
        utilization = (demand.busy + demand.queued) / (max(replicas, 1) * _slots_per_replica(self._version))
        if demand.seconds:
            self._hold_after_gap(now - demand.seconds, before)
            self._observed_until = now
            refused = self._refused_in_flight(now, demand)
            need = demand.busy + demand.queued + refused
            if not (need or demand.is_idle):
                need = _MINIMAL_NEED
            mean_need = self._mean_need.add(
                now, demand.seconds, need, max(now - self._mean_seconds, self._observed_since)
            )
            raw = self._replicas_for(need, mean_need)
            wanted, held_reason = self._within_window(now, need, mean_need, raw)
            desired = self._clamp(wanted)
            outcome = self._describe_outcome(before, raw, wanted, desired, held_reason)
            reason = f"{self._describe_demand(demand, refused, utilization)}: {outcome}"
            bound = self._bound(raw, wanted, desired)
        else:
            refused, raw, desired = 0.0, before, self._clamp(before)
            reason = f"no worker reported: {_describe_step(before, desired)}"
            bound = "silence"
        decision = ScalingDecision(desired, utilization, reason, raw, bound)
        self._desired = desired
        self._record(now, demand, refused, replicas, decision)
        return decision

    def is_settled(self, decision: ScalingDecision) -> bool:
        """Return True if the last decision stays the same until a request arrives."""
        return decision.desired == self._clamp(0) and decision.bound in _STEADY_BOUNDS

    def observe_idle(self, now: float) -> None:
        """Record an idle interval that ended at `now`, as `observe` would. Call this only while `is_settled`."""
        self._observed_until = now

    def _hold_after_gap(self, start: float, before: int) -> None:
        """Hold the number `before` if there were no reports for too long before `start`, the start of the interval."""
        gap = math.inf if self._observed_until is None else start - self._observed_until
        if gap > min(_MAX_REPORT_GAP_SECONDS, self._version.autoscale_scale_down_seconds):
            self._hold(before, since=start)

    def _hold(self, replicas: int, since: float) -> None:
        self._held_replicas, self._observed_since = replicas, since

    def _refused_in_flight(self, now: float, demand: Demand) -> float:
        """Return the refused requests that would have been in flight in the interval that ended at `now`."""
        window, max_wait = self._version.autoscale_scale_down_seconds, self._version.max_request_wait_time / 1000
        self._recent.add(now, demand, window)
        return self._recent.refused_in_flight(now, demand.seconds, max_wait, window)

    def _within_window(self, now: float, need: float, mean_need: float, raw: int) -> tuple[int, str]:
        """Return the number for the last interval and the window, and the reason if it is above `raw`."""
        window = self._version.autoscale_scale_down_seconds
        peak = self._replicas_for(
            self._needs.add(now, need, window),
            # A mean includes earlier needs. None of them may be older than the window.
            self._mean_needs.add(now, mean_need, window - self._mean_seconds),
        )
        if now - self._observed_since < window and self._held_replicas > max(peak, raw):
            return self._held_replicas, f"waiting for {window:g} s of data"
        return max(peak, raw), f"as needed within the last {window:g} s"

    @property
    def _mean_seconds(self) -> float:
        # At most half of the window: the highest mean is kept for the rest of it.
        return min(_MEAN_SECONDS, self._version.autoscale_scale_down_seconds / 2)

    def _replicas_for(self, need: float, mean_need: float) -> int:
        version = self._version
        target, max_concurrent = version.autoscale_target_utilization, version.replica_max_concurrent_requests
        if version.autoscale_objective == "cost":
            return max(
                _replicas_for_need(mean_need, target, max_concurrent), _replicas_for_need(need, 100, max_concurrent)
            )
        return _replicas_for_need(need, target, max_concurrent)

    def _clamp(self, replicas: int) -> int:
        minimum, maximum = _replica_limits(self._version)
        return min(max(replicas, minimum), maximum)

    def _describe_demand(self, demand: Demand, refused: float, utilization: float) -> str:
        return (
            f"utilization {utilization:.0%} against a target of {self._version.autoscale_target_utilization}% "
            f"({demand.busy:.2f} busy, {demand.queued:.2f} queued, {refused:.2f} refused, "
            f"{_slots_per_replica(self._version)} per replica)"
        )

    def _describe_outcome(self, before: int, raw: int, wanted: int, desired: int, held_reason: str) -> str:
        """Describe how many replicas are needed, how their number changes, and what limits it."""
        outcome = f"needs {raw}, {_describe_step(before, desired)}"
        if not self._version.autoscale_enabled:
            return f"{outcome}, autoscaling is off and num_replicas is {desired}"
        if wanted > desired:
            return f"{outcome}, limited by autoscale_max_replicas"
        if wanted < desired:
            return f"{outcome}, raised to autoscale_min_replicas"
        return f"{outcome}, {held_reason}" if wanted > raw else outcome

    def _bound(self, raw: int, wanted: int, desired: int) -> str:
        """Return the `bound` of a decision."""
        if not self._version.autoscale_enabled:
            return "fixed"
        if wanted != desired:
            return "maximum" if wanted > desired else "minimum"
        return "window" if wanted > raw else "demand"

    def _record(self, now: float, demand: Demand, refused: float, replicas: int, decision: ScalingDecision) -> None:
        observation = Observation(
            now,
            replicas,
            demand.busy,
            demand.queued,
            refused,
            decision.utilization,
            decision.raw_desired,
            decision.desired,
        )
        if not self._history or _replica_counts(self._history[-1]) != _replica_counts(observation):
            self._history.append(observation)


def _replicas_for_need(need: float, target_percent: float, max_concurrent: int) -> int:
    # Multiply by whole percents before dividing: 7 / 0.7 is 10.000000000000002, 7 * 100 / 70 is 10.
    exact = need * 100 / (target_percent * max(max_concurrent, 1))
    return max(math.ceil(exact * (1 - _EPSILON)), need > 0)


def _describe_step(before: int, desired: int) -> str:
    return f"stays at {desired}" if desired == before else f"{before} to {desired}"


def _replica_counts(observation: Observation) -> tuple[int, int, int]:
    return observation.replicas, observation.raw_desired, observation.desired


def _slots_per_replica(version: Version) -> int:
    """Return the number of slots of a replica.

    With unlimited concurrency (0) this is 1: the target is then the number of requests in flight per replica. A service
    that needs another number sets `replica_max_concurrent_requests`.
    """
    return max(version.replica_max_concurrent_requests, 1)


def _replica_limits(version: Version) -> tuple[int, int]:
    """Return the minimum and maximum number of replicas."""
    if version.autoscale_enabled:
        return version.autoscale_min_replicas, version.autoscale_max_replicas
    if version.num_replicas is None:
        raise ValueError(f"version {version.name}: num_replicas is unset, must be set while autoscaling is off")
    return version.num_replicas, version.num_replicas
