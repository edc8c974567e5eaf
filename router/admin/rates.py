"""Request rates of each version over the last seconds. No I/O, no clock."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from typing import NamedTuple

from router.model.services import VersionKey
from router.model.usage import UsageDelta

WINDOW_SECONDS = 10.0
"""Length of the window. It is long enough to show one request a second as a steady rate, and short enough to follow
changes of the load."""

_STEP_SECONDS = 1.0
"""Length of the parts of the window, which are dropped as a whole."""


class VersionRates(NamedTuple):
    """Averages over the window, in requests per second and in seconds."""

    arrivals: float
    completed: float
    refused: float
    mean_service_seconds: float | None
    """Mean time that a request holds its slot. If no request has completed in the window, this is the last known value;
    None if there is none."""


_NO_REQUESTS = VersionRates(0.0, 0.0, 0.0, None)


class _Step:
    """The usage in a part of the window."""

    __slots__ = ("arrivals", "completed", "refused", "service_seconds", "since")

    def __init__(self, since: float) -> None:
        self.since = since
        self.arrivals = self.completed = self.refused = 0
        self.service_seconds = 0.0


class _Window:
    """The steps of one version's window."""

    __slots__ = ("last", "mean_service_seconds", "steps")

    def __init__(self, now: float) -> None:
        self.last = _Step(now)
        self.steps: deque[_Step] = deque((self.last,))
        self.mean_service_seconds: float | None = None  # before the window

    def drop_old_steps(self, now: float) -> None:
        while self.steps and self.steps[0].since <= now - WINDOW_SECONDS:
            step = self.steps.popleft()
            if step.completed:
                self.mean_service_seconds = step.service_seconds / step.completed


class RequestRates:
    """The request rates of all versions. Times are seconds of one monotonic clock."""

    def __init__(self) -> None:
        self._windows: dict[VersionKey, _Window] = {}
        self._refused_at: dict[VersionKey, float] = {}  # of the last report with refused requests

    def add(self, key: VersionKey, usage: UsageDelta, now: float) -> None:
        """Add the usage of a version that a worker reported at `now`."""
        _, _, arrivals, refused, completed, service_seconds = usage
        if not (arrivals or completed or refused):
            return
        if refused:
            self._refused_at[key] = now
        window = self._windows.get(key)
        if window is None:
            window = self._windows[key] = _Window(now)
        step = window.last
        if now - step.since >= _STEP_SECONDS:
            window.drop_old_steps(now)
            step = window.last = _Step(now)
            window.steps.append(step)
        step.arrivals += arrivals
        step.refused += refused
        step.completed += completed
        step.service_seconds += service_seconds

    def retain(self, keys: Collection[VersionKey]) -> None:
        """Drop the rates of versions that are not in `keys`."""
        self._windows = {key: window for key, window in self._windows.items() if key in keys}
        self._refused_at = {key: at for key, at in self._refused_at.items() if key in keys}

    def refusing(self, now: float) -> Collection[VersionKey]:
        """Return the versions that have refused requests in the window that ends at `now`."""
        self._refused_at = {key: at for key, at in self._refused_at.items() if at > now - WINDOW_SECONDS}
        return self._refused_at.keys()

    def of(self, key: VersionKey, now: float) -> VersionRates:
        """Return the rates of a version in the window that ends at `now`."""
        window = self._windows.get(key)
        if window is None:
            return _NO_REQUESTS
        window.drop_old_steps(now)
        arrivals = completed = refused = 0
        service_seconds = 0.0
        for step in window.steps:
            arrivals += step.arrivals
            completed += step.completed
            refused += step.refused
            service_seconds += step.service_seconds
        mean = service_seconds / completed if completed else window.mean_service_seconds
        return VersionRates(arrivals / WINDOW_SECONDS, completed / WINDOW_SECONDS, refused / WINDOW_SECONDS, mean)
