"""How fast each version's requests came and went in the last seconds. No I/O, no clock."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from typing import NamedTuple

from router.scaling.demand import Demand
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


class _Seen:
    """One version: what was seen in each step of the window."""

    __slots__ = ("mean_service", "steps")

    def __init__(self) -> None:
        self.steps: deque[tuple[float, Demand]] = deque()  # by the beginning of a step
        self.mean_service: float | None = None


class Rates:
    """The rates of all versions. Times are seconds of one monotonic clock."""

    def __init__(self) -> None:
        self._seen: dict[VersionKey, _Seen] = {}

    def add(self, key: VersionKey, demand: Demand, now: float) -> None:
        """Take in what a front-end saw of a version up to `now`."""
        if not (demand.arrivals or demand.completed or demand.refused):
            return
        seen = self._seen.get(key)
        if seen is None:
            seen = self._seen[key] = _Seen()
        if seen.steps and now - seen.steps[-1][0] < _STEP_SECONDS:
            since, before = seen.steps.pop()
            seen.steps.append((since, before + demand))
        else:
            seen.steps.append((now, demand))
        self._forget(seen, now)
        mean = demand.mean_service_seconds
        if mean is not None:
            seen.mean_service = mean

    def retain(self, keys: Collection[VersionKey]) -> None:
        """Forget versions that are not among `keys`."""
        self._seen = {key: seen for key, seen in self._seen.items() if key in keys}

    def of(self, key: VersionKey, now: float) -> Rate:
        """The rates of a version up to `now`."""
        seen = self._seen.get(key)
        if seen is None:
            return _AT_REST
        self._forget(seen, now)
        arrivals = completed = refused = 0
        service_seconds = 0.0
        for _, demand in seen.steps:
            arrivals += demand.arrivals
            completed += demand.completed
            refused += demand.refused
            service_seconds += demand.service_seconds
        mean = service_seconds / completed if completed else seen.mean_service
        return Rate(arrivals / WINDOW_SECONDS, completed / WINDOW_SECONDS, refused / WINDOW_SECONDS, mean)

    @staticmethod
    def _forget(seen: _Seen, now: float) -> None:
        while seen.steps and seen.steps[0][0] <= now - WINDOW_SECONDS:
            seen.steps.popleft()
