"""The latest reports of workers. They show the load of a version at a past time. Bounded. No I/O, no clock."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from typing import NamedTuple

from router.model.services import VersionKey
from router.workers.messages import VersionReport

MAX_REPORTS = 10_000
"""Maximum number of reports of all versions and workers. Each takes about half a kilobyte. A worker reports a version
only when it changes, at most five times a second."""

MAX_REPORT_TIMES = 1000
"""Maximum number of report times of each worker. Reports without a changed version have a time, too."""

MAX_ENDED_WORKERS = 100


class PastLoad(NamedTuple):
    """The load of a version at a past time: the sum of the reports of this pod's workers before that time."""

    age: float
    """Seconds from the last report of the worker that reported least recently to that time."""
    in_flight: Mapping[str, int]
    """Requests by replica."""
    abandoned: Mapping[str, int]
    """Abandoned requests that hold a slot, by replica."""
    queued: int
    idle_leases: int


class ReportHistory:
    """The latest reports. Times are seconds of one monotonic clock."""

    def __init__(self, max_reports: int = MAX_REPORTS) -> None:
        self._reports: deque[tuple[float, VersionKey, str, VersionReport]] = deque(maxlen=max_reports)
        self._report_times: dict[str, deque[float]] = {}  # by worker
        self._ended: deque[tuple[str, float]] = deque(maxlen=MAX_ENDED_WORKERS)

    def add(self, now: float, worker: str, reports: Mapping[VersionKey, VersionReport]) -> None:
        """Add a worker's report of the versions that have changed since its last report."""
        self._report_times.setdefault(worker, deque(maxlen=MAX_REPORT_TIMES)).append(now)
        for key, report in reports.items():
            self._reports.append((now, key, worker, report))

    def worker_ended(self, now: float, worker: str) -> None:
        """Record that a worker and its requests have ended."""
        self._report_times.pop(worker, None)
        self._ended.append((worker, now))

    def at(self, moment: float, key: VersionKey) -> PastLoad | None:
        """Return the load of a version at that time; None if there is no earlier report."""
        ended = {worker for worker, time in self._ended if time <= moment}
        latest: dict[str, tuple[float, VersionReport]] = {}
        for time, report_key, worker, report in reversed(self._reports):
            if report_key == key and time <= moment and worker not in latest and worker not in ended:
                latest[worker] = time, report
        if not latest:
            return None
        in_flight: Counter[str] = Counter()
        abandoned: Counter[str] = Counter()
        for _, report in latest.values():
            in_flight.update(report.in_flight)
            abandoned.update(report.abandoned)
        return PastLoad(
            age=moment - min(self._known_until(worker, time, moment) for worker, (time, _) in latest.items()),
            in_flight=in_flight,
            abandoned=abandoned,
            queued=sum(report.waiting for _, report in latest.values()),
            idle_leases=sum(report.idle_leases for _, report in latest.values()),
        )

    def _known_until(self, worker: str, reported_at: float, moment: float) -> float:
        """Return the time of a worker's last report before `moment`. A report without the version confirms the load
        that was reported at `reported_at`."""
        times = reversed(self._report_times.get(worker, ()))
        return next((time for time in times if reported_at <= time <= moment), reported_at)
