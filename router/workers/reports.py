"""The last reports of workers: requests in flight and waiting, by version and replica. No I/O, no clock.

A cordoned replica has drained only if the workers have no requests at it in reports that they made after applying the
cordon: after an earlier report, a worker may have sent a request to the replica. So the supervisor counts the messages
that it sends to each worker, and each report has the number of those that have taken effect (`ack_seq`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from router.model.services import VersionKey
from router.workers.messages import VersionReport, WorkerReport

SentCounts = Mapping[str, int]
"""The number of messages sent to each worker up to some time."""


class Reports:
    """The last report of each running worker."""

    def __init__(self) -> None:
        self._versions: dict[str, dict[VersionKey, VersionReport]] = {}  # by worker
        self._ack_seq: dict[str, int] = {}  # by worker
        self._cordoned: dict[str, SentCounts] = {}  # by replica: messages sent up to its cordon
        self._dropped: dict[str, tuple[int, int]] = {}  # by worker: lines of the access log and of the application log
        self._connections_idle: dict[str, int] = {}  # by worker
        self._streaming: dict[str, Mapping[str, int]] = {}  # by worker
        self._dropped_by_exited = 0, 0

    def add_worker(self, worker: str) -> None:
        """Add a worker that was started."""
        self._versions[worker] = {}
        self._ack_seq[worker] = 0

    def remove_worker(self, worker: str) -> None:
        """Forget a worker that has exited, and its requests."""
        del self._versions[worker], self._ack_seq[worker]
        exited, dropped = self._dropped_by_exited, self._dropped.pop(worker, (0, 0))
        self._dropped_by_exited = exited[0] + dropped[0], exited[1] + dropped[1]
        self._connections_idle.pop(worker, None)
        self._streaming.pop(worker, None)

    def record(self, worker: str, report: WorkerReport, served: Collection[VersionKey]) -> None:
        """Record a report. Versions that are not in `served` are recorded only while they have requests in flight."""
        self._ack_seq[worker] = report.ack_seq
        self._dropped[worker] = report.access_log_dropped, report.log_dropped
        self._connections_idle[worker] = report.connections_idle
        self._streaming[worker] = report.streaming
        versions = self._versions[worker]
        versions |= report.versions
        for key in report.versions:
            if key not in served and not versions[key].in_flight:
                del versions[key]

    def retain(self, served: Collection[VersionKey]) -> None:
        """Forget all versions but those in `served` and those that have requests in flight."""
        for worker, versions in self._versions.items():
            self._versions[worker] = {
                key: report for key, report in versions.items() if report.in_flight or key in served
            }

    def of_version(self, key: VersionKey) -> list[VersionReport]:
        """Return the last report of each worker about a version."""
        return [versions[key] for versions in self._versions.values() if key in versions]

    def load_of(self, worker: str) -> tuple[int, int]:
        """Return the number of requests in flight and of waiting requests of one worker."""
        reports = self._versions.get(worker, {}).values()
        return sum(sum(report.in_flight.values()) for report in reports), sum(report.waiting for report in reports)

    def in_flight(self, key: VersionKey, replica_id: str) -> int:
        """Return the number of requests in flight at a replica. For a cordoned replica it is at least 1 until all
        workers have acknowledged the cordon."""
        count = sum(report.in_flight.get(replica_id, 0) for report in self.of_version(key))
        return count or int(not self.all_acked(self._cordoned.get(replica_id, {})))

    def streaming(self) -> dict[str, int]:
        """Return the number of responses in progress at each replica, at most a second old."""
        total: dict[str, int] = {}
        for by_replica in self._streaming.values():
            for replica_id, count in by_replica.items():
                total[replica_id] = total.get(replica_id, 0) + count
        return total

    def cordon(self, replica_ids: Iterable[str], sent: SentCounts) -> None:
        """Record that replicas were cordoned. `sent` is the number of messages that a worker must have acknowledged to
        have applied the cordon."""
        self._cordoned |= dict.fromkeys(replica_ids, sent)

    def uncordon(self, replica_ids: Iterable[str]) -> None:
        """Forget the cordons of replicas that are uncordoned or were removed."""
        for replica_id in replica_ids:
            self._cordoned.pop(replica_id, None)

    def acked_cordons(self) -> frozenset[str]:
        """Return the cordoned replicas to which no worker sends new requests any more."""
        return frozenset(replica_id for replica_id, sent in self._cordoned.items() if self.all_acked(sent))

    def all_acked(self, sent: SentCounts) -> bool:
        """True if each running worker has sent a report after the messages counted in `sent` took effect."""
        return all(self._ack_seq[worker] >= count for worker, count in sent.items() if worker in self._ack_seq)

    @property
    def access_log_dropped(self) -> int:
        """Number of access log lines that running and exited workers could not write."""
        return self._dropped_by_exited[0] + sum(access_log for access_log, _ in self._dropped.values())

    @property
    def log_dropped(self) -> int:
        """Number of lines of the application log that running and exited workers could not write."""
        return self._dropped_by_exited[1] + sum(application_log for _, application_log in self._dropped.values())

    @property
    def connections_idle(self) -> int:
        """Number of idle connections to replicas in the pools of all workers."""
        return sum(self._connections_idle.values())
