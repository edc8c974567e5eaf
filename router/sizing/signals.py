"""What this pod feels of its load: differences of what its workers have counted. No I/O, no clock."""

from __future__ import annotations

from typing import NamedTuple

from router.scaling.load import Load
from router.scaling.window import Counts, added
from router.telemetry.counters import LAG_BOUNDS, ROUTE_BOUNDS, ProcessCounted


class _Counted(NamedTuple):
    route_time: Counts
    loop_lag: Counts
    cpu_seconds: float


_NOTHING = _Counted((0,) * (len(ROUTE_BOUNDS) + 1), (0,) * (len(LAG_BOUNDS) + 1), 0.0)


class PodSignals:
    """Sums over the workers of this pod, from one `take` to the next."""

    def __init__(self, cpu_seconds: float = 0.0) -> None:
        """`cpu_seconds`: what the supervisor has used so far."""
        self._workers: dict[str, _Counted] = {}
        self._sum = _NOTHING
        self._own_cpu_seconds = cpu_seconds

    def worker_counted(self, name: str, counted: ProcessCounted) -> None:
        """A worker reports all that it has counted since it began."""
        snapshot = counted.snapshot
        now = _Counted(counted.route_time, snapshot["loop_lag"]["counts"], snapshot["cpu_seconds"])
        before = self._workers.get(name, _NOTHING)
        self._workers[name] = now
        self._sum = _Counted(
            added(self._sum.route_time, _more(now.route_time, before.route_time)),
            added(self._sum.loop_lag, _more(now.loop_lag, before.loop_lag)),
            self._sum.cpu_seconds + now.cpu_seconds - before.cpu_seconds,
        )

    def worker_ended(self, name: str) -> None:
        """A worker's process is gone."""
        self._workers.pop(name, None)

    def take(self, seconds: float, cpus: float, cpu_seconds: float) -> Load:
        """What came in the last so many seconds, with so many CPUs; `cpu_seconds` is what the supervisor has used since
        it began."""
        taken, self._sum = self._sum, _NOTHING
        own = max(cpu_seconds - self._own_cpu_seconds, 0.0)
        self._own_cpu_seconds = cpu_seconds
        return Load(seconds, cpus, taken.cpu_seconds + own, tuple(taken.route_time), tuple(taken.loop_lag))


def _more(now: Counts, before: Counts) -> Counts:
    """What has come. Versions that were removed have taken what they counted with them: that is nothing, not less."""
    return [max(new - old, 0) for new, old in zip(now, before, strict=True)]
