"""The router's own load: the report of one pod, and statistics over the reports of all pods.

Contains: values and sums. Does not contain: decisions based on them (`self_scaler`), measurement (`signals`) and
sending (`loop`). No I/O, no clock.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from router.scaling.window import BucketCounts, SlidingHistogram, percentile

FRESH_SECONDS = 5.0
"""Pods report once a second. A pod whose last report is older than this does not count as reporting."""


@dataclass(frozen=True, slots=True)
class PodLoad:
    """The load of one pod in one interval.

    `seconds`: length of the interval. `cpus`: CPUs that the pod may use. `cpu_seconds`: CPU time that it used.
    `route_time`: histogram of the time that the router added to requests (from the request head to the first byte sent
    to the replica, without the time queued for a slot). `loop_lag`: histogram of the delays of the event loops. Both
    have the bounds that `LoadWindow` was given. `periods`: periods of the CPU quota in which the pod ran;
    `throttled_periods`: those in which it had used up its quota. Both are 0 if this is unknown.

    Raises `ValueError` if a number is negative or not finite.
    """

    seconds: float
    cpus: float
    cpu_seconds: float
    route_time: BucketCounts
    loop_lag: BucketCounts
    periods: int = 0
    throttled_periods: int = 0

    def __post_init__(self) -> None:
        for name in ("seconds", "cpus", "cpu_seconds", "periods", "throttled_periods"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"PodLoad: {name} is {getattr(self, name)}, must be a finite number >= 0")


@dataclass(frozen=True, slots=True)
class FleetLoad:
    """The load of all pods together, over the window.

    `observed_seconds`: time since the last `reset_histograms`, at most the window's length. `requests`: observations of
    `route_time`. `route_time`, `loop_lag`: the configured percentile in seconds; None without observations.
    `used_cpus`: CPUs in use, on average. `cpus`: CPUs of the reporting pods. `reporting_pods`: pods with a recent
    report. `throttled`: the share of the periods of the CPU quota in which a pod was throttled, from 0 to 1; None if no
    pod reports periods.
    """

    observed_seconds: float
    requests: int
    route_time: float | None
    loop_lag: float | None
    used_cpus: float
    cpus: float
    reporting_pods: int
    throttled: float | None

    @property
    def cpu_utilization(self) -> float:
        """The share of the CPUs that is in use, from 0 to 1."""
        return self.used_cpus / self.cpus if self.cpus else 0.0


class LoadWindow:
    """The reports of all pods over a sliding window."""

    def __init__(
        self, route_bounds: Sequence[float], lag_bounds: Sequence[float], seconds: float, percent: float
    ) -> None:
        """`route_bounds`, `lag_bounds`: upper bounds of the histograms, in seconds. `seconds`: length of the window.
        `percent`: the percentile to compute."""
        self._route_bounds = route_bounds
        self._lag_bounds = lag_bounds
        self._seconds = seconds
        self._percent = percent
        self._pods: dict[str, deque[tuple[float, PodLoad]]] = {}
        self._observed_since = -math.inf
        self._route_time = SlidingHistogram(len(route_bounds) + 1)
        self._loop_lag = SlidingHistogram(len(lag_bounds) + 1)

    def change(self, seconds: float, percent: float) -> None:
        """Apply another length and another percentile. A longer window has its reports after that time."""
        self._seconds = seconds
        self._percent = percent

    def add(self, now: float, pod: str, load: PodLoad) -> None:
        """Add the load of a pod in the interval that ended at `now`, and drop reports that have left the window.

        Raises `ValueError` for histograms with another number of buckets.
        """
        if self._observed_since == -math.inf:
            self._observed_since = now - load.seconds
        self._route_time.add(now, load.route_time)
        self._loop_lag.add(now, load.loop_lag)
        self._pods.setdefault(pod, deque()).append((now, load))
        self._drop_expired(now)

    def _drop_expired(self, now: float) -> None:
        self._route_time.drop_expired(now, self._seconds)
        self._loop_lag.drop_expired(now, self._seconds)
        for pod, reports in list(self._pods.items()):
            while reports and now - reports[0][0] >= self._seconds:
                reports.popleft()
            if not reports:
                del self._pods[pod]

    def remove_pod(self, pod: str) -> None:
        """Remove the CPUs of a pod that has ended. Its histograms count until the window has passed."""
        self._pods.pop(pod, None)

    def reset_histograms(self, now: float) -> None:
        """Discard the times and throttled periods that were measured before `now`, when the size of the router has
        changed."""
        self._observed_since = now
        self._route_time = SlidingHistogram(len(self._route_bounds) + 1)
        self._loop_lag = SlidingHistogram(len(self._lag_bounds) + 1)

    def utilizations(self, now: float) -> dict[str, float]:
        """Return the share of its CPUs that each reporting pod has used over the window, from 0 to 1."""
        self._drop_expired(now)
        found = {}
        for pod, reports in self._pods.items():
            last_at, last = reports[-1]
            if last.cpus and now - last_at < FRESH_SECONDS:
                seconds = sum(load.seconds for _, load in reports)
                used = sum(load.cpu_seconds for _, load in reports) / seconds if seconds else 0.0
                found[pod] = used / last.cpus
        return found

    def fleet_load(self, now: float) -> FleetLoad:
        """Return the load of all pods over the window that ends at `now`."""
        self._drop_expired(now)
        route_time = self._route_time.total_within(now, self._seconds)
        used_cpus = cpus = 0.0
        reporting_pods = periods = throttled_periods = 0
        for reports in self._pods.values():
            if now - reports[-1][0] < FRESH_SECONDS:
                seconds = sum(load.seconds for _, load in reports)
                used_cpus += sum(load.cpu_seconds for _, load in reports) / seconds if seconds else 0.0
                cpus += reports[-1][1].cpus
                reporting_pods += 1
                for at, load in reports:
                    if at > self._observed_since:
                        periods += load.periods
                        throttled_periods += load.throttled_periods
        observed = 0.0 if self._observed_since == -math.inf else max(now - self._observed_since, 0.0)
        return FleetLoad(
            min(observed, self._seconds),
            sum(route_time),
            percentile(route_time, self._route_bounds, self._percent),
            percentile(self._loop_lag.total_within(now, self._seconds), self._lag_bounds, self._percent),
            used_cpus,
            cpus,
            reporting_pods,
            throttled_periods / periods if periods else None,
        )
