"""Recent data that the supervisor records for operators: rates, reports, traces, decisions and errors. Bounded."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from router.admin.history import ReportHistory
from router.admin.rates import RequestRates
from router.admin.replica_health import ReplicaHealthRecord
from router.admin.traces import TraceSink
from router.model.services import VersionKey
from router.model.usage import UsageDelta
from router.scaling.autoscaler import ScalingDecision
from router.telemetry.histogram import LAG_BOUNDS, Histogram

_MAX_CONFIG_ERRORS = 20
_MAX_CONFIG_CHANGES = 50
_MAX_DECISIONS = 100


class ConfigError(NamedTuple):
    """A setting that was rejected."""

    time: float
    """Seconds since the epoch."""
    error: str


class ConfigChange(NamedTuple):
    """A setting that has changed while the router ran."""

    time: float
    """Seconds since the epoch."""
    change: str
    """Name, previous value, value and source."""


class ScalingEvent(NamedTuple):
    """A decision to change the number of replicas of a version."""

    time: float
    """Seconds since the epoch."""
    service: str
    version: str
    direction: str
    desired: int
    bound: str
    reason: str


class Activity:
    """The recent activity of this pod."""

    def __init__(self) -> None:
        self.rates = RequestRates()
        self.history = ReportHistory()
        self.traces = TraceSink()
        self.replica_health = ReplicaHealthRecord()
        self.config_errors: deque[ConfigError] = deque(maxlen=_MAX_CONFIG_ERRORS)
        self.config_error_count = 0
        self.last_reload_succeeded = True
        self.config_changes: deque[ConfigChange] = deque(maxlen=_MAX_CONFIG_CHANGES)
        self.decisions: deque[ScalingEvent] = deque(maxlen=_MAX_DECISIONS)
        self.supervisor_lag = Histogram(LAG_BOUNDS)

    def record_config_error(self, now: float, error: str) -> None:
        """Record that a changed file was rejected; `now` is in seconds since the epoch."""
        self.config_error_count += 1
        self.last_reload_succeeded = False
        self.config_errors.append(ConfigError(now, error))

    def record_config_applied(self) -> None:
        """Record that the latest file is in effect."""
        self.last_reload_succeeded = True

    def record_config_changes(self, now: float, changes: Iterable[str]) -> None:
        """Record changed settings; `now` is in seconds since the epoch."""
        self.config_changes.extend(ConfigChange(now, change) for change in changes)

    def record_decision(self, key: VersionKey, direction: str, decision: ScalingDecision, now: float) -> None:
        """Record a change of the desired number of replicas; `now` is in seconds since the epoch."""
        self.decisions.append(ScalingEvent(now, *key, direction, decision.desired, decision.bound, decision.reason))

    def on_usage(self, reports: Mapping[VersionKey, UsageDelta], now: float) -> None:
        """Add the usage that a worker of any pod reported; `now` is in seconds of the monotonic clock."""
        for key, usage in reports.items():
            self.rates.add(key, usage, now)

    def retain(self, keys: Collection[VersionKey]) -> None:
        """Forget rates and traces of versions that are not in `keys`."""
        self.rates.retain(keys)
        self.traces.retain(keys)
        self.replica_health.retain(keys)
