"""Reports versions that refuse many requests because no slot is free: as problems, and in the log. No clock.

Only the router that scales has the data: the requests of all pods, and the scaling decisions. A version is overloaded
while it has refused at least `MIN_REFUSED` requests, and `MIN_SHARE` of all, within the window of `RequestRates`. Its
problem ends with that. The log has a warning at the start, and one when the version has not been overloaded for
`QUIET_SECONDS`, so a load that comes in waves adds two lines a minute at most.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Protocol

from router.admin.rates import WINDOW_SECONDS, RequestRates
from router.model.problems import Problem
from router.model.services import ReplicaState, Version, VersionKey, describe_version
from router.model.version_replicas import VersionReplicas
from router.scaling.autoscaler import ScalingDecision
from router.telemetry.log import event

_log = logging.getLogger("router.admin")

MIN_REFUSED = 10
MIN_SHARE = 0.05
QUIET_SECONDS = 60.0

_CHECK_SECONDS = 1.0

DecisionOf = Callable[[VersionKey], ScalingDecision | None]


class ScaledState(Protocol):
    """The current versions and replicas."""

    @property
    def versions(self) -> Mapping[VersionKey, Version]:
        """The versions of all services."""

    def replicas(self, key: VersionKey) -> VersionReplicas:
        """Return the replicas of a version; none if the version is unknown."""


class _Overload:
    """The overload of one version. Times are seconds of the monotonic clock."""

    __slots__ = ("last_at", "problem", "since")

    def __init__(self, now: float) -> None:
        self.since = self.last_at = now
        self.problem = Problem("")


class OverloadMonitor:
    """Finds overloaded versions."""

    def __init__(
        self, state: ScaledState, rates: RequestRates, decision_of: DecisionOf, leads: Callable[[], bool]
    ) -> None:
        """`decision_of` returns the autoscaler's last decision about a version, which counts while `leads`."""
        self._state = state
        self._rates = rates
        self._decision_of = decision_of
        self._leads = leads
        self._checked_at = float("-inf")
        self._overloads: dict[VersionKey, _Overload] = {}  # ended ones are kept for `QUIET_SECONDS`

    def problems(self) -> list[Problem]:
        """Return a problem for each version that is overloaded."""
        return [each.problem for each in self._overloads.values() if each.last_at == self._checked_at]

    def tick(self, now: float) -> None:
        """Check all versions once a second, and log changes. Call this several times a second."""
        if now - self._checked_at < _CHECK_SECONDS:
            return
        self._checked_at = now
        versions = self._state.versions
        if not self._leads():
            versions = {}  # the leader reports them
        self._overloads = {key: each for key, each in self._overloads.items() if key in versions}
        for key in self._rates.refusing(now):
            if key in versions:
                self._check(key, versions[key], now)
        for key, overload in list(self._overloads.items()):
            if now - overload.last_at >= QUIET_SECONDS:
                del self._overloads[key]
                _log_end(key, overload)

    def _check(self, key: VersionKey, version: Version, now: float) -> None:
        rates = self._rates.of(key, now)
        # A request may have arrived before the window and have been refused in it.
        share = rates.refused / max(rates.arrivals, rates.refused)
        if round(rates.refused * WINDOW_SECONDS) < MIN_REFUSED or share < MIN_SHARE:
            return
        ready = self._state.replicas(key).count_by_state()[ReplicaState.READY]
        problem = describe_overload(key, version, share, self._decision_of(key), ready)
        overload = self._overloads.get(key)
        if overload is None:
            overload = self._overloads[key] = _Overload(now)
            event(
                _log, logging.WARNING, "overload began", text=problem.line, service=key[0], version=key[1],
                refused_share=round(share, 3), replicas_ready=ready, problem=problem.line,
            )  # fmt: skip
        overload.last_at, overload.problem = now, problem


def describe_overload(
    key: VersionKey, version: Version, share: float, decision: ScalingDecision | None, ready: int
) -> Problem:
    """Return the problem. `share` of the requests were refused, and `ready` replicas get requests."""
    reason = f"no slot within {version.max_request_wait_time} ms" if version.max_queue_length else "no free slot"
    detail = f"{int(share * 100)} % of them: "
    if decision is not None and decision.raw_desired > ready:
        detail += f"needs {decision.raw_desired} replicas, "
    detail += f"has {ready}"
    limit = "" if decision is None else _limit(version, decision, ready)
    return Problem(f"refuses many of its requests: {reason}", *key, detail=f"{detail}; {limit}" if limit else detail)


def _limit(version: Version, decision: ScalingDecision, ready: int) -> str:
    """Return why a version has no more replicas."""
    if not version.autoscale_enabled:
        return f"num_replicas is {version.num_replicas}"
    if decision.bound == "maximum":
        return f"autoscale_max_replicas is {version.autoscale_max_replicas}"
    return f"{decision.desired - ready} more requested" if decision.desired > ready else ""


def _log_end(key: VersionKey, overload: _Overload) -> None:
    seconds = overload.last_at - overload.since
    event(
        _log, logging.WARNING, "overload ended", service=key[0], version=key[1], seconds=round(seconds),
        text=f"{describe_version(key)}: no longer refuses many requests, after an overload of {seconds:.0f} s",
    )  # fmt: skip
