"""How fast each version's requests came and went in the last seconds. No I/O, no clock."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from typing import NamedTuple

from router.seen import Seen
from router.services import VersionKey

WINDOW_SECONDS = 10.0
"""Long enough for one request a second to show as steady, short enough to follow a load that changes."""

_STEP_SECONDS = 1.0


class Rate(NamedTuple):
    """Averages over the window; requests per second, and seconds."""

    arrivals: float
    completed: float
    refused: float
    mean_service: float | None
    """How long a request holds its slot; the last known where none has completed lately, None where none ever has."""


_AT_REST = Rate(0.0, 0.0, 0.0, None)


class _Step:
    """What was seen in a part of the window."""

    __slots__ = ("arrivals", "completed", "refused", "service_seconds", "since")

    def __init__(self, since: float) -> None:
        self.since = since
        self.arrivals = self.completed = self.refused = 0
        self.service_seconds = 0.0


class _Version:
    """One version: what was seen in each step of the window."""

    __slots__ = ("last", "mean_service", "steps")

    def __init__(self, now: float) -> None:
        self.last = _Step(now)
        self.steps: deque[_Step] = deque((self.last,))
        self.mean_service: float | None = None  # before the window


class Rates:
    """The rates of all versions. Times are seconds of one monotonic clock."""

    def __init__(self) -> None:
        self._versions: dict[VersionKey, _Version] = {}

    def add(self, key: VersionKey, seen: Seen, now: float) -> None:
        """Take in what a front-end saw of a version up to `now`."""
        _, _, arrivals, refused, completed, service_seconds = seen
        if not (arrivals or completed or refused):
            return
        version = self._versions.get(key)
        if version is None:
            version = self._versions[key] = _Version(now)
        step = version.last
        if now - step.since >= _STEP_SECONDS:
            self._forget(version, now)
            step = version.last = _Step(now)
            version.steps.append(step)
        step.arrivals += arrivals
        step.refused += refused
        step.completed += completed
        step.service_seconds += service_seconds

    def retain(self, keys: Collection[VersionKey]) -> None:
        """Forget versions that are not among `keys`."""
        self._versions = {key: version for key, version in self._versions.items() if key in keys}

    def of(self, key: VersionKey, now: float) -> Rate:
        """The rates of a version up to `now`."""
        version = self._versions.get(key)
        if version is None:
            return _AT_REST
        self._forget(version, now)
        arrivals = completed = refused = 0
        service_seconds = 0.0
        for step in version.steps:
            arrivals += step.arrivals
            completed += step.completed
            refused += step.refused
            service_seconds += step.service_seconds
        mean = service_seconds / completed if completed else version.mean_service
        return Rate(arrivals / WINDOW_SECONDS, completed / WINDOW_SECONDS, refused / WINDOW_SECONDS, mean)

    @staticmethod
    def _forget(version: _Version, now: float) -> None:
        while version.steps and version.steps[0].since <= now - WINDOW_SECONDS:
            step = version.steps.popleft()
            if step.completed:
                version.mean_service = step.service_seconds / step.completed
