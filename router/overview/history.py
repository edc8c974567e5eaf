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


class Moment(NamedTuple):
    """A version at some moment, as all workers of this pod had last reported it."""

    age: float
    """Seconds from the oldest of these reports to the moment that was asked for."""
    busy: Mapping[str, int]
    """Requests in flight by replica."""
    waiting: int
    idle: int
    """Leases."""


class History:
    """The last reports. Times are seconds of one monotonic clock."""

    def __init__(self, most: int = REPORTS_KEPT) -> None:
        self._reports: deque[tuple[float, VersionKey, str, Row]] = deque(maxlen=most)

    def add(self, now: float, worker: str, reports: Mapping[VersionKey, Row]) -> None:
        """A worker has told what is new of these versions."""
        for key, report in reports.items():
            self._reports.append((now, key, worker, report))

    def at(self, when: float, key: VersionKey) -> Moment | None:
        """What was known of a version at that moment; None if nothing is remembered."""
        last: dict[str, tuple[float, VersionReport]] = {}
        for at, its, worker, row in reversed(self._reports):
            if its == key and at <= when and worker not in last:
                last[worker] = at, VersionReport._make(row)
        if not last:
            return None
        busy: dict[str, int] = {}
        for _, report in last.values():
            for replica, count in report.busy.items():
                busy[replica] = busy.get(replica, 0) + count
        return Moment(
            age=when - min(at for at, _ in last.values()),
            busy=busy,
            waiting=sum(report.waiting for _, report in last.values()),
            idle=sum(report.idle for _, report in last.values()),
        )
