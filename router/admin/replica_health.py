"""The replicas that have failed, as the workers of this pod report them, and the latest ejections. No I/O, no clock."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

from router.model.replica_health import ReplicaHealthReport
from router.model.services import VersionKey
from router.telemetry.catalogue import Sample

_MAX_EJECTIONS = 1000

HealthReports = Mapping[VersionKey, Mapping[str, ReplicaHealthReport]]


class Ejection(NamedTuple):
    """An ejection of a replica by a worker. Times are seconds of the monotonic clock."""

    key: VersionKey
    replica: str
    worker: str
    since: float
    until: float
    reason: str


class NewFailures(NamedTuple):
    """What a worker has reported for the first time."""

    ejections: list[Ejection]
    server_errors: list[tuple[VersionKey, str, int]]
    """Version, replica and status of the first response with 500 or more."""


class ReplicaHealthRecord:
    """The last report of each running worker."""

    def __init__(self) -> None:
        self._reports: dict[str, dict[VersionKey, Mapping[str, ReplicaHealthReport]]] = {}  # by worker
        self._ejections: deque[Ejection] = deque(maxlen=_MAX_EJECTIONS)

    def record(self, worker: str, reports: HealthReports, now: float) -> NewFailures:
        """Record the complete state of some versions. Return the failures since the last report about them."""
        known = self._reports.setdefault(worker, {})
        new = NewFailures([], [])
        for key, replicas in reports.items():
            before = known.get(key, {})
            for replica_id, report in replicas.items():
                previous = before.get(replica_id)
                if report.ejected_until and (previous is None or previous.ejected_until != report.ejected_until):
                    new.ejections.append(Ejection(key, replica_id, worker, now, report.ejected_until, report.reason))
                if report.server_error and (previous is None or not previous.server_error):
                    new.server_errors.append((key, replica_id, report.server_error))
            known[key] = replicas
        self._ejections += new.ejections
        return new

    def remove_worker(self, worker: str) -> None:
        """Forget a worker that has ended. Its ejections have ended with it."""
        self._reports.pop(worker, None)

    def retain(self, keys: Collection[VersionKey]) -> None:
        """Forget all versions that are not in `keys`."""
        for known in self._reports.values():
            for key in [key for key in known if key not in keys]:
                del known[key]

    def of_replica(self, key: VersionKey, replica_id: str) -> ReplicaHealthReport | None:
        """Return the sum of what the workers have reported about a replica; None if it has not failed."""
        found = [
            report for known in self._reports.values() if (report := known.get(key, {}).get(replica_id)) is not None
        ]
        if not found:
            return None
        latest = max(found, key=lambda report: report.ejected_until)
        return latest._replace(
            errors=sum(report.errors for report in found),
            is_ejected=any(report.is_ejected for report in found),
            last_probe=next((report.last_probe for report in found if report.last_probe), ""),
        )

    def ejections_during(self, key: VersionKey, start: float, end: float) -> list[Ejection]:
        """Return the ejections of a version's replicas that were in effect in a period."""
        return [each for each in self._ejections if each.key == key and each.since <= end and each.until >= start]

    def samples(self) -> Iterator[Sample]:
        """Return the number of ejected replicas of each version that ever had a failure."""
        ejected: dict[VersionKey, set[str]] = {}
        for known in self._reports.values():
            for key, replicas in known.items():
                ids = ejected.setdefault(key, set())
                ids.update(replica_id for replica_id, report in replicas.items() if report.is_ejected)
        for key, ids in ejected.items():
            yield Sample("replicas_ejected", len(ids), key)
