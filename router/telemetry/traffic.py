"""The requests of a service in some time, for the history of the status page. No I/O, no clock.

A pod counts the requests of its workers (`TrafficMeter`), adds them to its history, and sends them to all other pods,
so that each pod has the sum of all.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Final, NamedTuple

from router.model.services import VersionKey
from router.telemetry.counters import VersionSnapshot, is_retained
from router.telemetry.histogram import DURATION_BOUNDS

ERROR_KINDS: Final = ("refused", "timeout", "failed", "rejected", "client_left")
"""What became of a request without a good response: `refused` for want of a slot or a replica (503), `timeout` (504 and
other limits of time), `failed` at the replica or in the router (500, 502, and other 5xx of a replica), `rejected` as
the client's error (4xx), `client_left` before the response was complete (499)."""

BUCKETS: Final = len(DURATION_BOUNDS) + 1

_KIND_OF_ERROR_CODE = {
    "overloaded": "refused",
    "no-ready-replicas": "refused",
    "scoring-timeout": "timeout",
    "drain-timeout": "timeout",
    "stream-timeout": "timeout",
    "tunnel-idle": "timeout",
    "replica-closed": "failed",
    "replica-error": "failed",
    "router-error": "failed",
    "client-closed": "client_left",
}


class ServiceTraffic(NamedTuple):
    """The requests of one service in some time at the workers of one pod. Times are in seconds."""

    requests: int = 0
    durations: Sequence[int] = (0,) * BUCKETS
    """Requests by duration, not cumulative; the bounds are `DURATION_BOUNDS`."""
    errors: Sequence[int] = (0,) * len(ERROR_KINDS)
    """Requests by kind of error, in the order of `ERROR_KINDS`."""
    retries: int = 0
    request_bytes: int = 0
    response_bytes: int = 0
    busy_seconds: float = 0.0
    """Requests in flight, integrated over the time."""
    queued_seconds: float = 0.0
    """Waiting requests, integrated over the time."""
    needed: int | None = None
    """Replicas that the demand needs, according to the autoscaler. None if the pod does not lead."""
    desired: int | None = None
    """Replicas that there should be, within minimum and maximum. None if the pod does not lead."""

    @property
    def is_empty(self) -> bool:
        """True if there is nothing to send to other pods."""
        return not (self.requests or self.busy_seconds or self.queued_seconds) and self.desired is None


class TimelinePoints(NamedTuple):
    """The points of a service in the history of a pod, oldest first, as encoded by `admin.timeline`."""

    minutes: Sequence[int]
    hour: Sequence[int]


def error_kind(status: int, error_code: str) -> str | None:
    """Return the kind of error of a response; None if it is none."""
    kind = _KIND_OF_ERROR_CODE.get(error_code)
    if kind is None and status >= 400:
        return "failed" if status >= 500 else "rejected"
    return kind


class TrafficMeter:
    """Returns the requests of each service since its last call, from totals that only grow."""

    def __init__(self, snapshots_of: Callable[[VersionKey], Iterable[VersionSnapshot]]) -> None:
        """`snapshots_of` returns the counters of a version, one snapshot for each worker."""
        self._snapshots_of = snapshots_of
        self._last: dict[VersionKey, array[int]] = {}

    def read(self, keys: Iterable[VersionKey]) -> ServiceTraffic:
        """Return the sum of the requests of `keys`, versions of one service, since they were last read."""
        sums = [0] * _WIDTH
        for key in keys:
            counts = list(map(_counts, self._snapshots_of(key)))
            if not counts:
                continue  # the version was removed
            totals = array("Q", map(sum, zip(_NOTHING, *counts, strict=True)))
            last = self._last.get(key, _NOTHING)
            self._last[key] = totals
            sums = [total + max(now - before, 0) for total, now, before in zip(sums, totals, last, strict=True)]
        requests, retries, request_bytes, response_bytes = sums[:_SCALARS]
        durations, errors = sums[_SCALARS : _SCALARS + BUCKETS], sums[_SCALARS + BUCKETS :]
        return ServiceTraffic(requests, durations, errors, retries, request_bytes, response_bytes)

    def retain(self, keys: Collection[VersionKey]) -> None:
        """Forget the totals of versions and services that are not among `keys`, as `CounterTotals.retain` does."""
        services = {service for service, _ in keys}
        self._last = {key: totals for key, totals in self._last.items() if is_retained(key, keys, services)}


_SCALARS = 4
_WIDTH = _SCALARS + BUCKETS + len(ERROR_KINDS)
_NOTHING = array("Q", [0] * _WIDTH)


def _counts(snapshot: VersionSnapshot) -> list[int]:
    requests = 0
    errors = dict.fromkeys(ERROR_KINDS, 0)
    for status, by_error_code in snapshot["responses"].items():
        for error_code, count in by_error_code.items():
            requests += count
            kind = error_kind(int(status), error_code)
            if kind is not None:
                errors[kind] += count
    retries = sum(snapshot["retry_causes"].values())
    scalars = (requests, retries, snapshot["request_bytes"], snapshot["response_bytes"])
    return [*scalars, *snapshot["duration"]["counts"], *errors.values()]
