"""The router's autoscaler and the published algorithms of its peers, behind one interface.

Each peer has its documented defaults, except that all aim at 0.7 requests in flight per replica, the router's default
target. Each gets the demand of each second: its own way of measuring is part of its algorithm, the errors of a real
metrics pipeline are not simulated. Sources are in README.md.
"""

import math
from collections import deque
from collections.abc import Callable
from functools import partial
from statistics import fmean

from benchmarks.autoscaler_simulation.simulation import Sample, Scaler
from router.config.service import parse_service
from router.scaling.autoscaler import Autoscaler

TARGET = 0.7
MAX_REPLICAS = 200


def _replicas_for(in_flight: float) -> int:
    return math.ceil(in_flight / TARGET - 1e-9)


class Router:
    """The router's autoscaler: the code of `router.scaling`, unchanged."""

    def __init__(self, min_replicas: int, **settings: object) -> None:
        self.min_replicas = min_replicas
        settings |= {"autoscale_min_replicas": min_replicas, "autoscale_max_replicas": MAX_REPLICAS}
        self._autoscaler = Autoscaler(parse_service("simulated", settings).default_version)

    def desired(self, sample: Sample) -> int:
        return self._autoscaler.observe(sample.now, sample.demand, sample.replicas).desired


class Original:
    """Azure ML's: `(busy + queued) / replicas` against the target, up at once, down after a minute.

    Its exact steps are not published. Here they are those that its documentation describes: a sample each second
    (`autoscale_refresh_seconds`), the sizing formula, and the maximum of the last minute.
    """

    def __init__(self, min_replicas: int) -> None:
        self.min_replicas = max(min_replicas, 1)
        self._wanted: deque[int] = deque(maxlen=60)

    def desired(self, sample: Sample) -> int:
        self._wanted.append(_replicas_for(sample.in_flight))
        return min(max(*self._wanted, self.min_replicas), MAX_REPLICAS)


class KnativeKpa:
    """Knative's KPA: a stable window of 60 s, a panic window of 6 s, a decision every 2 s."""

    _STABLE_SECONDS, _PANIC_SECONDS, _PANIC_THRESHOLD, _GRACE_SECONDS = 60, 6, 2.0, 30

    def __init__(self, min_replicas: int) -> None:
        self.min_replicas = min_replicas
        self._buckets: deque[float] = deque(maxlen=self._STABLE_SECONDS)
        self._panic_since: float | None = None
        self._panic_peak = 0
        self._zero_since: float | None = None
        self._desired = min_replicas

    def desired(self, sample: Sample) -> int:
        self._buckets.append(sample.demand.busy + sample.demand.queued)
        if sample.now % 2 == 0:
            self._desired = min(
                max(self._with_grace(sample.now, self._decide(sample)), self.min_replicas), MAX_REPLICAS
            )
        elif not sample.replicas and self._buckets[-1]:
            self._desired = 1  # the activator reports the first request at once
        return self._desired

    def _decide(self, sample: Sample) -> int:
        ready = max(sample.ready, 1)
        buckets = list(self._buckets)
        stable, panic = (_replicas_for(fmean(part)) for part in (buckets, buckets[-self._PANIC_SECONDS :]))
        if panic / ready >= self._PANIC_THRESHOLD:
            if self._panic_since is None:
                self._panic_peak = 0
            self._panic_since = sample.now
        elif self._panic_since is not None and sample.now - self._panic_since > self._STABLE_SECONDS:
            self._panic_since = None
        lowest, highest = ready // 2, 1000 * ready
        stable, panic = (min(max(each, lowest), highest) for each in (stable, panic))
        if self._panic_since is None:
            return stable
        self._panic_peak = max(self._panic_peak, stable, panic)
        return self._panic_peak

    def _with_grace(self, now: float, desired: int) -> int:
        if desired:
            self._zero_since = None
            return desired
        self._zero_since = now if self._zero_since is None else self._zero_since
        return 0 if now - self._zero_since >= self._GRACE_SECONDS else 1


class _HpaBehavior:
    """The default behaviour of the HPA: up by 4 or 100 % per 15 s, down to the maximum of 300 s."""

    def __init__(self) -> None:
        self._recommendations: deque[int] = deque(maxlen=300 // 15)

    def limit(self, current: int, desired: int) -> int:
        """Return the number after a recommendation. Called every 15 s."""
        self._recommendations.append(desired)
        if desired > current:
            return min(desired, max(2 * current, current + 4))
        return min(current, max(self._recommendations))


class Hpa:
    """Kubernetes' HPA with a metric of pods: requests in flight and queued per replica, every 15 s.

    The metric is the mean of the last 15 s. Replicas that are not ready count as idle when scaling up.
    """

    def __init__(self, min_replicas: int) -> None:
        self.min_replicas = max(min_replicas, 1)
        self._behavior = _HpaBehavior()
        self._loads: deque[float] = deque(maxlen=15)
        self._desired = self.min_replicas

    def desired(self, sample: Sample) -> int:
        self._loads.append(sample.demand.busy + sample.demand.queued)
        if sample.now % 15 == 0:
            current = self._desired
            wanted = min(max(self._recommend(sample, current), self.min_replicas), MAX_REPLICAS)
            self._desired = self._behavior.limit(current, wanted)
        return self._desired

    def _recommend(self, sample: Sample, current: int) -> int:
        load, ready = fmean(self._loads), max(sample.ready, 1)
        ratio = load / ready / TARGET
        if abs(ratio - 1) <= 0.1:
            return current
        starting = current - sample.ready
        if ratio < 1 or starting <= 0:
            return math.ceil(ratio * ready - 1e-9)
        with_starting = load / current / TARGET
        if with_starting <= 1.1:
            return current
        return math.ceil(with_starting * current - 1e-9)


class Keda:
    """KEDA's HTTP add-on: requests in flight and queued, in total; HPA from 1 to N, KEDA between 0 and 1.

    KEDA adds the first replica at its next poll (30 s) and removes the last one after 300 s without requests.
    """

    _POLL_SECONDS, _COOLDOWN_SECONDS = 30, 300

    def __init__(self, min_replicas: int) -> None:
        self.min_replicas = min_replicas
        self._behavior = _HpaBehavior()
        self._desired = min_replicas
        self._active_at = 0.0

    def desired(self, sample: Sample) -> int:
        load = sample.demand.busy + sample.demand.queued
        if load:
            self._active_at = sample.now
        if not self._desired:
            if sample.now % self._POLL_SECONDS == 0 and load:
                self._desired = 1
        elif sample.now % 15 == 0:
            ratio = load / self._desired / TARGET
            wanted = self._desired if abs(ratio - 1) <= 0.1 else _replicas_for(load)
            self._desired = self._behavior.limit(self._desired, min(max(wanted, 1), MAX_REPLICAS))
        idle = sample.now - self._active_at >= self._COOLDOWN_SECONDS
        if idle and not self.min_replicas and sample.now % self._POLL_SECONDS == 0:
            self._desired = 0
        return self._desired


class RayServe:
    """Ray Serve: the mean of 30 s, pushed every 10 s; up after 30 s of decisions in one direction, down after 600 s."""

    _LOOK_BACK, _PUSH_SECONDS, _UP_SECONDS, _DOWN_SECONDS = 30, 10, 30, 600

    def __init__(self, min_replicas: int) -> None:
        self.min_replicas = min_replicas
        self._loads: deque[float] = deque(maxlen=self._LOOK_BACK)
        self._load = 0.0
        self._up = self._down = 0  # seconds of decisions in this direction without a break
        self._desired = min_replicas

    def desired(self, sample: Sample) -> int:
        self._loads.append(sample.demand.busy + sample.demand.queued)
        if sample.now % self._PUSH_SECONDS == 0:
            self._load = fmean(self._loads)
        if not self._desired:
            if self._loads[-1]:
                self._desired = 1  # from 0 at once
            return self._desired
        wanted = min(max(_replicas_for(self._load), self.min_replicas), MAX_REPLICAS)
        self._up = self._up + 1 if wanted > self._desired else 0
        self._down = self._down + 1 if wanted < self._desired else 0
        if self._up >= self._UP_SECONDS or self._down >= self._DOWN_SECONDS:
            self._up = self._down = 0
            self._desired = wanted
        return self._desired


SCALERS: dict[str, Callable[[int], Scaler]] = {
    "router": Router,
    "router, cost": partial(Router, autoscale_objective="cost"),
    "router, cost, 300 s": partial(Router, autoscale_objective="cost", autoscale_scale_down_seconds=300),
    "original": Original,
    "Knative KPA": KnativeKpa,
    "HPA": Hpa,
    "KEDA": Keda,
    "Ray Serve": RayServe,
}
