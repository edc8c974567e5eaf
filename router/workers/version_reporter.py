"""Makes a worker's reports about versions: the changes since the last report. No I/O, no clock."""

from __future__ import annotations

from collections.abc import Mapping

from router.gateway.gateway import Gateway
from router.gateway.routes import VersionRoute
from router.model.replica_health import ReplicaHealthReport
from router.model.services import Service, VersionKey
from router.model.usage import ZERO, UsageTotals, add, delta
from router.workers.messages import VersionReport, VersionReports


class VersionReporter:
    """Reports the versions of one gateway. Includes replaced routes until their requests have ended."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._retired: list[VersionRoute] = []  # no longer in the gateway's table
        self._totals: dict[VersionRoute, UsageTotals] = {}  # as of the last report
        self._last_sent: dict[VersionKey, VersionReport] = {}
        self._health_revisions: dict[VersionRoute, int] = {}  # as of the last report

    def apply(self, services: Mapping[str, Service]) -> None:
        """Make `services` the gateway's complete set of services. Remember the routes that this replaces."""
        before = dict(self._gateway.versions)
        self._gateway.apply(services)
        self._retired += [route for key, route in before.items() if self._gateway.versions.get(key) is not route]

    def take(self, now: float) -> VersionReports:
        """Return the reports of the versions that have changed since the last call."""
        versions, last_sent = self._gateway.versions, self._last_sent
        reports: dict[VersionKey, VersionReport] = {}
        retired_keys = {route.key for route in self._retired}
        for key, route in versions.items():
            last = last_sent.get(key)
            if last is None or key in retired_keys or not self._is_unchanged(route, last):
                reports[key] = self._report(route, now)
        for route in self._retired:
            report = self._report(route, now)
            reports[route.key] = _sum(reports[route.key], report) if route.key in reports else report
        for route in [route for route in self._retired if not route.lease_cache.busy]:
            self._retired.remove(route)
            del self._totals[route]
        changed = VersionReports(
            (key, report)
            for key, report in reports.items()
            if report.usage != ZERO or key not in last_sent or not _is_same_state(report, last_sent[key])
        )
        last_sent |= reports
        if len(last_sent) > len(versions):
            self._last_sent = {key: row for key, row in last_sent.items() if key in versions or key in reports}
        return changed

    def take_replica_health(self) -> dict[VersionKey, dict[str, ReplicaHealthReport]]:
        """Return the health of the replicas of the versions where it has changed since the last call."""
        known, versions = self._health_revisions, self._gateway.versions
        changed = [route for route in versions.values() if known.get(route, 0) != route.outliers.revision]
        if changed:
            known = {route: known[route] for route in versions.values() if route in known}
            self._health_revisions = known | {route: route.outliers.revision for route in changed}
        return {route.key: route.outliers.report() for route in changed}

    def _is_unchanged(self, route: VersionRoute, last: VersionReport) -> bool:
        """True if a version has not changed since `last`. This check saves time, since a report costs five times as
        much, and most versions are idle most of the time."""
        cache, totals = route.lease_cache, self._totals.get(route)
        return (
            totals is not None
            and not (last.in_flight or last.abandoned or last.waiting or cache.busy or cache.waiters)
            and cache.arrivals == totals.arrivals
            and cache.completed == totals.completed
            and cache.refused == totals.refused
            and cache.idle == last.idle_leases
        )

    def _report(self, route: VersionRoute, now: float) -> VersionReport:
        cache = route.lease_cache
        before, totals = self._totals.get(route, ZERO), cache.totals(now)
        self._totals[route] = totals
        in_flight, abandoned = cache.busy_by_replica(), cache.abandoned_by_replica()
        if abandoned:
            in_flight = {id_: busy - abandoned.get(id_, 0) for id_, busy in in_flight.items()}
            in_flight = {id_: requests for id_, requests in in_flight.items() if requests}
        return VersionReport(delta(before, totals), len(cache.waiters), cache.idle, in_flight, abandoned)


def _is_same_state(one: VersionReport, other: VersionReport) -> bool:
    """True if two reports are equal except for their usage."""
    return one._replace(usage=other.usage) == other


def _sum(one: VersionReport, other: VersionReport) -> VersionReport:
    """Return the sum of two reports of one version."""
    return VersionReport(
        add(one.usage, other.usage),
        one.waiting + other.waiting,
        one.idle_leases + other.idle_leases,
        _add_counts(one.in_flight, other.in_flight),
        _add_counts(one.abandoned, other.abandoned),
    )


def _add_counts(one: Mapping[str, int], other: Mapping[str, int]) -> dict[str, int]:
    return {id_: one.get(id_, 0) + other.get(id_, 0) for id_ in one.keys() | other.keys()}
