"""What the router itself feels of its load: one pod's report, and what follows from the reports of all pods.

Lives here: facts and sums. Must not live here: what to conclude from them (`self_scaler`), or how they are measured and
carried (the data plane, the supervisor). No I/O, no clock.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from router.scaling.window import Counts, SlidingCounts, percentile

FRESH_SECONDS = 5.0
"""Pods report once a second. One that has been silent for so long is not counted as reporting."""


@dataclass(frozen=True, slots=True)
class Load:
    """What one pod felt in one interval.

    `seconds`: length of the interval. `cpus`: CPUs that the pod may use. `cpu_seconds`: CPU time that it used.
    `route_time`, `loop_lag`: histograms of what requests were kept (head read to first byte towards the replica, less
    the time queued for a slot) and of how late the event loops were, in the bounds that `LoadWindow` was given.

    Raises ValueError when a number is negative or not finite.
    """

    seconds: float
    cpus: float
    cpu_seconds: float
    route_time: Counts
    loop_lag: Counts

    def __post_init__(self) -> None:
        for name in ("seconds", "cpus", "cpu_seconds"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"Load: {name} is {getattr(self, name)}, must be a finite number >= 0")


@dataclass(frozen=True, slots=True)
class Seen:
    """What all pods together felt of late.

    `watched_seconds`: for how long since the last `forget_times`, at most the window's length. `route_time`,
    `loop_lag`: the chosen percentile in seconds; None without observations. `cores`: CPUs in use, on average. `cpus`:
    CPUs that the pods have. `pods`: how many report.
    """

    watched_seconds: float
    requests: int
    route_time: float | None
    loop_lag: float | None
    cores: float
    cpus: float
    pods: int

    @property
    def cpu_use(self) -> float:
        """CPU in use of what there is, 1.0 is all."""
        return self.cores / self.cpus if self.cpus else 0.0


class LoadWindow:
    """The reports of all pods over a sliding window."""

    def __init__(
        self, route_bounds: Sequence[float], lag_bounds: Sequence[float], seconds: float, percent: float
    ) -> None:
        """Upper bounds in seconds of the histograms that come; `seconds`: length of the window."""
        self._route_bounds = route_bounds
        self._lag_bounds = lag_bounds
        self._seconds = seconds
        self._percent = percent
        self._pods: dict[str, deque[tuple[float, Load]]] = {}
        self._since = -math.inf
        self._route_time = SlidingCounts(len(route_bounds) + 1)
        self._loop_lag = SlidingCounts(len(lag_bounds) + 1)

    def add(self, now: float, pod: str, load: Load) -> None:
        """Take in what a pod felt until `now`. Raises ValueError for histograms with another number of buckets."""
        if self._since == -math.inf:
            self._since = now - load.seconds
        self._route_time.add(now, load.route_time)
        self._loop_lag.add(now, load.loop_lag)
        self._pods.setdefault(pod, deque()).append((now, load))

    def forget(self, pod: str) -> None:
        """A pod is gone: its CPUs do not count any more. What its requests felt does, until the window is past."""
        self._pods.pop(pod, None)

    def forget_times(self, now: float) -> None:
        """What requests felt before `now` says nothing any more, for the router has another size."""
        self._since = now
        self._route_time = SlidingCounts(len(self._route_bounds) + 1)
        self._loop_lag = SlidingCounts(len(self._lag_bounds) + 1)

    def seen(self, now: float) -> Seen:
        """What the window holds."""
        route_time = self._route_time.of_the_last(now, self._seconds)
        cores = cpus = 0.0
        reporting = 0
        for reports in self._pods.values():
            while reports and now - reports[0][0] >= self._seconds:
                reports.popleft()
            if reports and now - reports[-1][0] < FRESH_SECONDS:
                seconds = sum(load.seconds for _, load in reports)
                cores += sum(load.cpu_seconds for _, load in reports) / seconds if seconds else 0.0
                cpus += reports[-1][1].cpus
                reporting += 1
        self._pods = {pod: reports for pod, reports in self._pods.items() if reports}
        watched = 0.0 if self._since == -math.inf else min(max(now - self._since, 0.0), self._seconds)
        return Seen(
            watched,
            sum(route_time),
            percentile(route_time, self._route_bounds, self._percent),
            percentile(self._loop_lag.of_the_last(now, self._seconds), self._lag_bounds, self._percent),
            cores,
            cpus,
            reporting,
        )
