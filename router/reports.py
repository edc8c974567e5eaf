"""What workers have reported: requests in flight and waiting, by version and replica. No I/O, no clock.

A report is as old as the way it took, so that "nothing in flight" proves nothing by itself: a request may have begun
since. What proves it is a report that was made after the worker had heard that the replica gets no more. So the
supervisor counts the messages it sends to each worker (`Sent`), and a report says how many of them it comes after.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from router.gateway.control import Report, Row, VersionReport
from router.seen import Seen
from router.services import VersionKey

Sent = Mapping[str, int]
"""How many messages each worker was sent, up to some moment."""


class Reports:
    """The last word of each worker that lives."""

    def __init__(self) -> None:
        self._versions: dict[str, dict[VersionKey, Row]] = {}  # by worker
        self._heard: dict[str, int] = {}  # by worker
        self._closed: dict[str, Sent] = {}  # by replica
        self._dropped: dict[str, int] = {}  # by worker
        self._idle: dict[str, int] = {}  # connections to replicas, by worker
        self._dropped_before = 0  # by workers that have ended

    def began(self, worker: str) -> None:
        """A worker has been started."""
        self._versions[worker] = {}
        self._heard[worker] = 0

    def ended(self, worker: str) -> None:
        """A worker's process is gone, and with it its requests."""
        del self._versions[worker], self._heard[worker]
        self._dropped_before += self._dropped.pop(worker, 0)
        self._idle.pop(worker, None)

    def take(self, worker: str, report: Report, known: Collection[VersionKey]) -> None:
        """Take in a report. Of versions that are not `known` any more, only what is in flight counts."""
        self._heard[worker] = report.heard
        self._dropped[worker] = report.access_log_dropped
        self._idle[worker] = report.connections_idle
        versions = self._versions[worker]
        versions |= report.versions
        for key in report.versions:
            if key not in known and not _busy(versions[key]):
                del versions[key]

    def retain(self, known: Collection[VersionKey]) -> None:
        """Forget versions that are not `known` any more, as soon as they have nothing in flight."""
        for worker, versions in self._versions.items():
            self._versions[worker] = {key: row for key, row in versions.items() if _busy(row) or key in known}

    def of(self, key: VersionKey) -> list[VersionReport]:
        """What each worker said of a version."""
        return [VersionReport._make(versions[key]) for versions in self._versions.values() if key in versions]

    def load_of(self, worker: str) -> tuple[int, int]:
        """Requests in flight and waiting of one worker, as it last reported."""
        versions = [VersionReport._make(row) for row in self._versions.get(worker, {}).values()]
        return sum(sum(said.busy.values()) for said in versions), sum(said.waiting for said in versions)

    def in_flight(self, key: VersionKey, replica_id: str) -> int:
        """Requests at a replica. One that was closed counts as busy until all workers have reported since they know."""
        busy = 0
        for versions in self._versions.values():
            row = versions.get(key)
            if row is not None:
                busy += _busy(row).get(replica_id, 0)
        return busy or int(not self.come_after(self._closed.get(replica_id, {})))

    def close(self, replica_ids: Iterable[str], sent: Sent) -> None:
        """Note replicas that get no new request once workers have heard what they were `sent` up to now."""
        self._closed |= dict.fromkeys(replica_ids, sent)

    def reopen(self, replica_ids: Iterable[str]) -> None:
        """Note replicas that get requests again, or are gone."""
        for replica_id in replica_ids:
            self._closed.pop(replica_id, None)

    def closed_for_good(self) -> frozenset[str]:
        """The closed replicas of which every worker has reported since it knows: none begins a request there."""
        return frozenset(replica for replica, sent in self._closed.items() if self.come_after(sent))

    def come_after(self, sent: Sent) -> bool:
        """Whether each worker that lives has reported since it heard all that it was `sent` up to some moment."""
        return all(self._heard[worker] >= count for worker, count in sent.items() if worker in self._heard)

    @property
    def access_log_dropped(self) -> int:
        """Lines that could not be written, by all workers there were."""
        return self._dropped_before + sum(self._dropped.values())

    @property
    def connections_idle(self) -> int:
        """Connections to replicas that rest in the pools of all workers."""
        return sum(self._idle.values())


def seen_in(report: Report) -> dict[VersionKey, Seen]:
    """What a worker saw of each version; for how long is told apart, as it is the same for all."""
    return {key: row[0] for key, row in report.versions.items()}


def _busy(row: Row) -> Mapping[str, int]:
    return row[3]
