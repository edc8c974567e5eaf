"""The load of this pod per interval, from the counters that its workers report. No I/O, no clock."""

from __future__ import annotations

from typing import NamedTuple

from router.scaling.self.load import PodLoad
from router.scaling.window import BucketCounts, add_counts
from router.telemetry.counters import ProcessCounters
from router.telemetry.histogram import LAG_BOUNDS, ROUTE_BOUNDS
from router.workers.cpu import CpuPeriods


class _Totals(NamedTuple):
    route_time: BucketCounts
    loop_lag: BucketCounts
    cpu_seconds: float


_ZERO = _Totals((0,) * (len(ROUTE_BOUNDS) + 1), (0,) * (len(LAG_BOUNDS) + 1), 0.0)


class PodSignals:
    """Sums over the workers of this pod since the last `take`."""

    def __init__(self, supervisor_cpu_seconds: float = 0.0) -> None:
        """`supervisor_cpu_seconds` is the CPU time that the supervisor has used so far."""
        self._workers: dict[str, _Totals] = {}
        self._sum = _ZERO
        self._supervisor_cpu_seconds = supervisor_cpu_seconds
        self._periods: CpuPeriods | None = None

    def on_worker_counters(self, name: str, counters: ProcessCounters) -> None:
        """Add the increase of a worker's counters since its last report. `counters` are totals since it started."""
        snapshot = counters.snapshot
        now = _Totals(counters.route_time, snapshot["loop_lag"]["counts"], snapshot["cpu_seconds"])
        before = self._workers.get(name, _ZERO)
        self._workers[name] = now
        self._sum = _Totals(
            add_counts(self._sum.route_time, _growth(now.route_time, before.route_time)),
            add_counts(self._sum.loop_lag, _growth(now.loop_lag, before.loop_lag)),
            self._sum.cpu_seconds + now.cpu_seconds - before.cpu_seconds,
        )

    def on_worker_ended(self, name: str) -> None:
        """Drop the totals of a worker that has ended."""
        self._workers.pop(name, None)

    def take(
        self, seconds: float, cpus: float, supervisor_cpu_seconds: float, periods: CpuPeriods | None = None
    ) -> PodLoad:
        """Return the load since the last call, `seconds` ago, and begin the next interval.

        `cpus`: CPUs that the pod may use. `supervisor_cpu_seconds`: CPU time that the supervisor has used since its
        start. `periods`: those of the CPU quota up to now; None if unknown.
        """
        taken, self._sum = self._sum, _ZERO
        supervisor = max(supervisor_cpu_seconds - self._supervisor_cpu_seconds, 0.0)
        self._supervisor_cpu_seconds = supervisor_cpu_seconds
        new_periods, throttled_periods = self._take_periods(periods)
        return PodLoad(
            seconds,
            cpus,
            taken.cpu_seconds + supervisor,
            tuple(taken.route_time),
            tuple(taken.loop_lag),
            new_periods,
            throttled_periods,
        )

    def _take_periods(self, now: CpuPeriods | None) -> tuple[int, int]:
        """Return the periods since the last call, and those that were throttled; 0 for the first call, or if the counts
        are lower, as they are of another control group."""
        before, self._periods = self._periods, now
        if before is None or now is None or now.total < before.total or now.throttled < before.throttled:
            return 0, 0
        return now.total - before.total, now.throttled - before.throttled


def _growth(now: BucketCounts, before: BucketCounts) -> BucketCounts:
    """Return the increase per bucket, or 0 if a count is lower because a version was removed."""
    return [max(new - old, 0) for new, old in zip(now, before, strict=True)]
