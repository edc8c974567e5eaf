"""The model autoscaler: from what front-ends saw to how many replicas a version should have.

Everything that decides this number lives here. This file does no I/O, reads no clock (time is an argument: seconds,
monotonic) and does not know one replica from another; who goes when there are too many is `scaler`'s to say.

Theory of operation. An interval's *need* is the number of requests that were, or wanted to be, in flight:

    need    = busy + queued + refused per second * mean service time      (averages over the interval, Little's law)
    desired = ceil(need / (target * max_concurrent)), kept within min..max

- The formula does not multiply the present number of replicas by anything; it appears in the reason and as the number
  to hold at the start only. So replicas that are slow to start cannot make the count run away: waiting for them changes
  neither the load nor the answer. A controller that computes `replicas * utilization / target` has that defect.
- Up: at once, to what the last interval asks for. Down: only to the highest need of the last
  `autoscale_scale_down_seconds`.
- The window remembers needs (requests), not replica counts. A need is a fact about the clients, so a changed target,
  minimum or maximum is applied at once to all that the window knows, and nothing has to be watched anew.
- What was not watched may have been busy. Until a whole window has been watched (after the start, after a long silence,
  after the window was lengthened) the count stays at what it was, or above. The same after
  `replica_max_concurrent_requests` was raised: how many requests are in flight depends on how long they take, which
  depends on how many share a replica, so what was seen before does not tell what will be.
"""

import math
from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

from router.scaling.demand import Demand
from router.scaling.window import SlidingMaximum
from router.services import Version

_HAIR = 1e-9
"""Relative error that is forgiven before rounding up: 0.1 * 3 requests at 30 % are 1 replica, not 2. Far above what
floating point adds (1e-16 per step); a millionth of a replica at 1,000 of them."""

_TRACE = 1e-9
"""Requests; stands for "somebody was there" when an interval's averages are all zero, as for a request that came and
went between two readings of the clock. Not zero, so the last replica stays."""

_LONGEST_SILENCE_SECONDS = 5.0
"""Front-ends report several times a second. A longer stretch that no report covers counts as not watched."""

_LARGEST = 1e9
"""Bound on what `replicas_for` is asked, so that nothing overflows."""

_LASTING = frozenset({"demand", "minimum", "fixed"})
"""What bounds a decision and does not pass with time."""

HISTORY_LENGTH = 256
"""Observations kept per version, of those that differ from the one before: about 60 kB when full, next to nothing for
a service at rest."""


class Observation(NamedTuple):
    """One line of the flight recorder: `at` in seconds (monotonic), loads in requests."""

    at: float
    replicas: int
    busy: float
    queued: float
    refused: float
    utilization: float
    raw_desired: int
    desired: int


@dataclass(frozen=True, slots=True)
class Decision:
    """How many replicas a version should have, and why.

    `utilization` is `(busy + queued) / slots`, 1.0 when every slot is taken; without any replica the slots of one are
    meant, so that it stays a number. `raw_desired` is what the last interval alone asks for, before minimum, maximum
    and window. `reason` is for people; `bound`, one of a few words, names what had the last say: `demand`, `window`,
    `minimum`, `maximum`, `fixed` or `silence`.
    """

    desired: int
    utilization: float
    reason: str
    raw_desired: int
    bound: str = "demand"


def replicas_for(rps: float, seconds: float, target_percent: float, max_concurrent: int) -> int:
    """Replicas that `rps` requests per second of `seconds` each need: ceil(rps * seconds / target / max_concurrent).

    The published sizing formula of Azure ML; 20 rps of 10 s at 70 % and 1 are 286. `max_concurrent` 0 (no limit)
    counts as 1. Raises `ValueError` for a target outside 1..100 and for anything else outside 0..1e9.
    """
    for name, value in (("rps", rps), ("seconds", seconds), ("max_concurrent", max_concurrent)):
        if not 0 <= value <= _LARGEST:
            raise ValueError(f"{name} is {value}, must be a number from 0 to {_LARGEST:g}")
    if not 1 <= target_percent <= 100:
        raise ValueError(f"target_percent is {target_percent}, must be a number from 1 to 100")
    return _replicas_for_need(rps * seconds, target_percent, max_concurrent)


class Autoscaler:
    """Decides the number of replicas of one version; call `observe` every `autoscale_refresh_seconds`."""

    __slots__ = ("_desired", "_held", "_history", "_mean_service", "_needs", "_seen", "_version", "_watched_since")

    def __init__(self, version: Version) -> None:
        """Raises `ValueError` when autoscaling is off and `num_replicas` is not set."""
        _limits(version)
        self._version = version
        self._needs = SlidingMaximum()
        self._history: deque[Observation] = deque(maxlen=HISTORY_LENGTH)
        self._mean_service: float | None = None
        self._seen: float | None = None
        self._watched_since = -math.inf
        self._held = 0
        self._desired: int | None = None

    @property
    def history(self) -> tuple[Observation, ...]:
        """The last observations that differ from the one before in any count of replicas, oldest first."""
        return tuple(self._history)

    def update(self, version: Version) -> None:
        """Takes changed settings; they are in force from the next `observe`.

        Raises `ValueError` as the constructor does, and then keeps the settings it has.
        """
        _limits(version)
        before, self._version = self._version, version
        if self._seen is None or self._desired is None:
            return
        if _slots(version) > _slots(before):
            self._hold(self._desired, since=self._seen)
        elif version.autoscale_scale_down_seconds > before.autoscale_scale_down_seconds:
            known_since = self._seen - before.autoscale_scale_down_seconds
            self._hold(self._desired, since=max(self._watched_since, known_since))

    def observe(self, now: float, demand: Demand, replicas: int) -> Decision:
        """What to do after the interval that ended at `now`, with `replicas` there, those still starting included.

        A demand of 0 seconds means that nobody looked: the count stays, within minimum and maximum. The first number of
        `replicas` is held until a whole window has been watched, so call this only once the replicas are known.
        """
        before = replicas if self._desired is None else self._desired
        utilization = (demand.busy + demand.queued) / (max(replicas, 1) * _slots(self._version))
        if demand.seconds:
            self._hold_over_silence(now - demand.seconds, before)
            self._seen = now
            need = self._need(demand)
            raw = self._replicas_for(need)
            wanted, why_not_fewer = self._within_window(now, need, raw)
            desired = self._clamp(wanted)
            verdict = self._verdict(before, raw, wanted, desired, why_not_fewer)
            reason = f"{self._describe(demand, utilization)}: {verdict}"
            bound = self._bound(raw, wanted, desired)
        else:
            raw, desired = before, self._clamp(before)
            reason = f"no front-end reported: {_step(before, desired)}"
            bound = "silence"
        decision = Decision(desired, utilization, reason, raw, bound)
        self._desired = desired
        self._record(now, demand, replicas, decision)
        return decision

    def rests(self, decision: Decision) -> bool:
        """Whether neither time nor another `observe` changes the last decision, as long as no request comes."""
        return decision.desired == self._clamp(0) and decision.bound in _LASTING

    def still_at_rest(self, now: float) -> None:
        """The same as to `observe` an interval up to `now` in which no request came, while it `rests`."""
        self._seen = now

    def _hold_over_silence(self, start: float, before: int) -> None:
        """The interval begins at `start`; if nobody watched what precedes it, the count stays at `before`, or above."""
        silence = math.inf if self._seen is None else start - self._seen
        if silence > min(_LONGEST_SILENCE_SECONDS, self._version.autoscale_scale_down_seconds):
            self._hold(before, since=start)

    def _hold(self, replicas: int, since: float) -> None:
        self._held, self._watched_since = replicas, since

    def _need(self, demand: Demand) -> float:
        """Requests that were or wanted to be in flight."""
        mean = demand.mean_service_seconds
        if mean is not None:
            self._mean_service = mean
        need = demand.busy + demand.queued + self._refused(demand)
        return need if need or demand.is_nothing else _TRACE

    def _refused(self, demand: Demand) -> float:
        """Requests that would have been in flight, had they not been refused.

        While no request has ever completed, its time is taken to be `max_request_wait_time`: the refused ones waited
        that long, and nothing completed meanwhile.
        """
        mean = self._mean_service
        if mean is None:
            mean = self._version.max_request_wait_time / 1000
        return demand.refused_rate * mean

    def _within_window(self, now: float, need: float, raw: int) -> tuple[int, str]:
        """The count that the last interval and the window ask for, and what keeps it above `raw`."""
        window = self._version.autoscale_scale_down_seconds
        peak = self._replicas_for(self._needs.add(now, need, window))
        if now - self._watched_since < window and self._held > max(peak, raw):
            return self._held, f"{window:g} s must be watched first"
        return max(peak, raw), f"that many were needed within the last {window:g} s"

    def _replicas_for(self, need: float) -> int:
        version = self._version
        return _replicas_for_need(need, version.autoscale_target_utilization, version.replica_max_concurrent_requests)

    def _clamp(self, replicas: int) -> int:
        least, most = _limits(self._version)
        return min(max(replicas, least), most)

    def _describe(self, demand: Demand, utilization: float) -> str:
        return (
            f"utilization {utilization:.0%} against a target of {self._version.autoscale_target_utilization}% "
            f"({demand.busy:.2f} busy, {demand.queued:.2f} queued, {self._refused(demand):.2f} refused, "
            f"{_slots(self._version)} per replica)"
        )

    def _verdict(self, before: int, raw: int, wanted: int, desired: int, why_not_fewer: str) -> str:
        """What follows, in words: what is needed, what becomes of the count, and what bounds it."""
        verdict = f"needs {raw}, {_step(before, desired)}"
        if not self._version.autoscale_enabled:
            return f"{verdict}, autoscaling is off and num_replicas is {desired}"
        if wanted > desired:
            return f"{verdict}, limited by autoscale_max_replicas"
        if wanted < desired:
            return f"{verdict}, kept up by autoscale_min_replicas"
        return f"{verdict}, {why_not_fewer}" if wanted > raw else verdict

    def _bound(self, raw: int, wanted: int, desired: int) -> str:
        """What had the last say, in one word."""
        if not self._version.autoscale_enabled:
            return "fixed"
        if wanted != desired:
            return "maximum" if wanted > desired else "minimum"
        return "window" if wanted > raw else "demand"

    def _record(self, now: float, demand: Demand, replicas: int, decision: Decision) -> None:
        observation = Observation(
            now,
            replicas,
            demand.busy,
            demand.queued,
            self._refused(demand),
            decision.utilization,
            decision.raw_desired,
            decision.desired,
        )
        if not self._history or _counts(self._history[-1]) != _counts(observation):
            self._history.append(observation)


def _replicas_for_need(need: float, target_percent: float, max_concurrent: int) -> int:
    # Percent stay whole and are multiplied first: 7 / 0.7 is 10.000000000000002, 7 * 100 / 70 is 10.
    exact = need * 100 / (target_percent * max(max_concurrent, 1))
    return max(math.ceil(exact * (1 - _HAIR)), need > 0)


def _step(before: int, desired: int) -> str:
    return f"stays at {desired}" if desired == before else f"{before} to {desired}"


def _counts(observation: Observation) -> tuple[int, int, int]:
    return observation.replicas, observation.raw_desired, observation.desired


def _slots(version: Version) -> int:
    """Requests that one replica is meant to handle at a time.

    Without a limit (0) it is 1: the target then means requests in flight per replica, and a service that wants another
    number there says so with `replica_max_concurrent_requests`.
    """
    return max(version.replica_max_concurrent_requests, 1)


def _limits(version: Version) -> tuple[int, int]:
    """Fewest and most replicas."""
    if version.autoscale_enabled:
        return version.autoscale_min_replicas, version.autoscale_max_replicas
    if version.num_replicas is None:
        raise ValueError(f"version {version.name}: num_replicas is unset, must be set while autoscaling is off")
    return version.num_replicas, version.num_replicas
