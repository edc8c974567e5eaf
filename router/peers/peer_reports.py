"""The latest demand report of each peer. No I/O, no clock."""

from __future__ import annotations

from collections.abc import Callable

from router.model.services import VersionKey
from router.peers.messages import DemandReport

__all__ = ["PeerReports"]


class PeerReports:
    """The latest demand report of each peer, and sums over all peers."""

    def __init__(self, live: Callable[[], frozenset[str]]) -> None:
        """`live` returns the peers whose link is up."""
        self._live = live
        self._reports: dict[str, DemandReport] = {}

    def record(self, peer: str, report: DemandReport) -> None:
        """Replace the report of a peer."""
        self._reports[peer] = report

    def forget(self, peer: str) -> None:
        """Remove a peer that has ended."""
        self._reports.pop(peer, None)

    def in_flight(self, replica_id: str, *, cordoned: bool) -> int:
        """Return the number of live peers' requests at a replica.

        If the replica is `cordoned`, return at least 1 until all live peers have acknowledged the cordon.
        """
        live = self._live()
        reports = [report for peer, report in self._reports.items() if peer in live]
        requests = sum(report.in_flight.get(replica_id, 0) for report in reports)
        if requests or not cordoned:
            return requests
        return int(len(reports) < len(live) or any(replica_id not in report.acked_cordons for report in reports))

    def streaming(self, replica_id: str) -> int:
        """Return the responses in progress between live peers and a replica."""
        live = self._live()
        return sum(report.streaming.get(replica_id, 0) for peer, report in self._reports.items() if peer in live)

    def abandoned(self, replica_id: str) -> int:
        """Return the abandoned requests of live peers that hold a slot of a replica."""
        live = self._live()
        return sum(report.abandoned.get(replica_id, 0) for peer, report in self._reports.items() if peer in live)

    def waiting(self, key: VersionKey) -> int:
        """Return the requests of peers that wait for a slot of a version."""
        return sum(report.waiting.get(key, 0) for report in self._reports.values())
