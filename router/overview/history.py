"""What workers have reported lately, so that it can be told what was so at some moment. No I/O, no clock. Bounded."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import NamedTuple

from router.gateway.control import Row, VersionReport
from router.services import VersionKey

REPORTS_KEPT = 10_000
"""Of all versions and workers; a version's is kept when it says something new, at most five times a second. About half
a kilobyte each."""

TIMES_KEPT = 1000
"""Of each worker's reports, which come a few times a second: a worker that says nothing new still says so."""

ENDS_KEPT = 100
"""Of workers."""


class Moment(NamedTuple):
    """A version at some moment, as all workers of this pod had last reported it."""

    age: float
    """Seconds from the moment until which this is known to have been so to the one that was asked for."""
    busy: Mapping[str, int]
    """Requests in flight by replica."""
    waiting: int
    idle: int
    """Leases."""


class History:
    """The last reports. Times are seconds of one monotonic clock."""

    def __init__(self, most: int = REPORTS_KEPT) -> None:
        self._reports: deque[tuple[float, VersionKey, str, Row]] = deque(maxlen=most)
        self._heard: dict[str, deque[float]] = {}  # by worker
        self._ended: deque[tuple[str, float]] = deque(maxlen=ENDS_KEPT)

    def add(self, now: float, worker: str, reports: Mapping[VersionKey, Row]) -> None:
        """A worker has told what is new of these versions, and thereby that nothing is of the others."""
        self._heard.setdefault(worker, deque(maxlen=TIMES_KEPT)).append(now)
        for key, report in reports.items():
            self._reports.append((now, key, worker, report))

    def ended(self, now: float, worker: str) -> None:
        """A worker is gone, and what it had in flight with it."""
        self._heard.pop(worker, None)
        self._ended.append((worker, now))

    def at(self, when: float, key: VersionKey) -> Moment | None:
        """What was known of a version at that moment; None if nothing is remembered."""
        gone = {worker for worker, at in self._ended if at <= when}
        last: dict[str, tuple[float, VersionReport]] = {}
        for at, its, worker, row in reversed(self._reports):
            if its == key and at <= when and worker not in last and worker not in gone:
                last[worker] = at, VersionReport._make(row)
        if not last:
            return None
        busy: dict[str, int] = {}
        for _, report in last.values():
            for replica, count in report.busy.items():
                busy[replica] = busy.get(replica, 0) + count
        return Moment(
            age=when - min(self._known_until(worker, at, when) for worker, (at, _) in last.items()),
            busy=busy,
            waiting=sum(report.waiting for _, report in last.values()),
            idle=sum(report.idle for _, report in last.values()),
        )

    def _known_until(self, worker: str, told_at: float, when: float) -> float:
        """When a worker last spoke before a moment, which was not before it told what is asked about."""
        return next((at for at in reversed(self._heard.get(worker, ())) if told_at <= at <= when), told_at)
