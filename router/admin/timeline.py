"""The last hour of each service and of all together, as points for the plots of the status page. No I/O, no clock.

Theory of operation. A step has `STEP_SECONDS`. The traffic that all pods report during a step is added up, and `close`
makes a point of the sums: rates, percentiles, means. There are two ranges: the last minutes in steps, and the last hour
in minutes, whose points are made of their own sums, because percentiles of steps cannot be added.

A value takes two bytes: its logarithm, with an error of 0.02 %. So a service takes less than 4 KiB, and 1,000 services
less than 4 MiB, however many requests and versions they have. Nothing is allocated per request or per replica.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from typing import Final, NamedTuple

from router.scaling.window import percentile
from router.telemetry.histogram import DURATION_BOUNDS
from router.telemetry.traffic import BUCKETS, ERROR_KINDS, ServiceTraffic, TimelinePoints

STEP_SECONDS: Final = 15.0

FIELDS: Final = (
    *("requests", "p50", "p95", "p99", *ERROR_KINDS, "retries", "request_bytes", "response_bytes"),
    *("queued", "needed", "desired", "ready", "utilization"),
)
"""The values of a point. Requests, errors by kind, retries and bytes are per second, durations are in seconds, `queued`
is a mean. `needed` is the highest number of replicas that the demand needed, `desired` the number that there should be,
and `ready` the number that there was at the end."""

_PERCENTILES = (50, 95, 99)


class _RangeSpec(NamedTuple):
    seconds: float
    """Between two points."""
    points: int
    steps: int
    """In one point."""


RANGES: Final[Mapping[str, _RangeSpec]] = {
    "minutes": _RangeSpec(STEP_SECONDS, 20, 1),
    "hour": _RangeSpec(4 * STEP_SECONDS, 60, 4),
}


class Gauges(NamedTuple):
    """The replicas of a service at the end of a step."""

    ready: int = 0
    slots: int = 0
    """Of the ready replicas; 0 if the number is not limited."""


class Timeline:
    """The points of all services. Call `close` for each service, then `end_step`, once in each step."""

    def __init__(self) -> None:
        self._services: dict[str, _Series] = {}
        self._total = _Series()
        self._gauges = Gauges()  # of all services, summed in this step
        self._replica_counts = [0.0, 0.0]  # needed and desired, likewise
        self._step = 0  # number of steps before this one

    def add(self, service: str, traffic: ServiceTraffic) -> None:
        """Add the traffic of one pod to the current step. Unknown services get a timeline."""
        series = self._services.get(service)
        if series is None:
            series = self._services[service] = _Series()
        counts = (traffic.requests, traffic.retries, traffic.request_bytes, traffic.response_bytes)
        values = (*counts, traffic.busy_seconds, traffic.queued_seconds, *traffic.errors, *traffic.durations)
        added = [(index, value) for index, value in enumerate(values) if value]
        series.add(added)
        self._total.add(added)
        if traffic.needed is not None and traffic.desired is not None:
            series.set_replica_counts(traffic.needed, traffic.desired)

    def close(self, service: str, gauges: Gauges, seconds: float) -> None:
        """Make the point of a service for this step, whose length was `seconds`."""
        series = self._services.get(service)
        if series is None:
            series = self._services[service] = _Series()
        series.close(self._step, gauges, seconds)
        self._gauges = Gauges(self._gauges.ready + gauges.ready, self._gauges.slots + gauges.slots)
        self._replica_counts[0] += max(series.needed, 0)
        self._replica_counts[1] += max(series.desired, 0)

    def end_step(self, seconds: float) -> None:
        """Make the point of all services together, and begin the next step. A step of several times `STEP_SECONDS`
        leaves out the points in which this process did not run."""
        self._total.set_replica_counts(*self._replica_counts)
        self._total.close(self._step, self._gauges, seconds)
        self._gauges, self._replica_counts = Gauges(), [0.0, 0.0]
        for _ in range(max(1, min(int(seconds / STEP_SECONDS), 2 * RANGES["hour"].points * RANGES["hour"].steps))):
            self._step += 1
            for series in (*self._services.values(), self._total):
                series.blank(self._step)

    def snapshot(self, service: str | None) -> TimelinePoints:
        """Return the points of a service, or of all together, for `fill` in another pod."""
        series = self._total if service is None else self._services.get(service) or _Series()
        minutes, hour = (series.codes(range_, self._step).tolist() for range_ in RANGES)
        return TimelinePoints(minutes, hour)

    def fill(self, service: str | None, points: TimelinePoints) -> None:
        """Take the points from another pod for the time before this one ran. Points of another length, as another
        release may have, are ignored."""
        series = self._total if service is None else self._services.setdefault(service, _Series())
        for range_, codes in zip(RANGES, points, strict=True):
            series.fill(range_, self._step, codes)

    def retain(self, services: Collection[str]) -> None:
        """Forget services that are not in `services`."""
        self._services = {name: series for name, series in self._services.items() if name in services}

    def points(self, service: str | None, range_: str) -> list[list[float | None]]:
        """Return the values of each of `FIELDS`, oldest first; None where nothing is known. `service` None means all
        together. A service without a point has no known value. Raises KeyError if the range is unknown."""
        series = self._total if service is None else self._services.get(service) or _Series()
        return series.points(range_, self._step)


class _Series:
    """The points of one service, and the sums of its current points."""

    __slots__ = ("desired", "hour", "minutes", "needed", "sums", "sums_of_minute")

    def __init__(self) -> None:
        width = len(FIELDS)
        self.minutes = array("H", [_UNKNOWN]) * (RANGES["minutes"].points * width)
        self.hour = array("H", [_UNKNOWN]) * (RANGES["hour"].points * width)
        self.sums = array("f", [0.0]) * _SUMS
        self.sums_of_minute = array("f", [0.0]) * _SUMS
        self.needed = self.desired = -1.0  # as the leader last reported; -1: never

    def add(self, added: Sequence[tuple[int, float]]) -> None:
        """Add values to the sums with these indexes."""
        for index, value in added:
            self.sums[index] += value
            self.sums_of_minute[index] += value

    def set_replica_counts(self, needed: float, desired: float) -> None:
        """Set the numbers of replicas that are needed and desired from now on."""
        self.needed, self.desired = needed, desired
        for sums in (self.sums, self.sums_of_minute):
            sums[_NEEDED] = max(sums[_NEEDED], needed)

    def close(self, step: int, gauges: Gauges, seconds: float) -> None:
        """Write the point of a step, and that of its minute if it is the last one of the minute."""
        for sums in (self.sums, self.sums_of_minute):
            sums[_NEEDED] = max(sums[_NEEDED], self.needed)
            sums[_SLOT_SECONDS] += gauges.slots * seconds
            sums[_SECONDS] += seconds
        self._write("minutes", step, self.minutes, self.sums, gauges)
        if (step + 1) % RANGES["hour"].steps == 0:
            self._write("hour", step, self.hour, self.sums_of_minute, gauges)

    def blank(self, step: int) -> None:
        """Remove the point whose place a coming point takes."""
        width = len(FIELDS)
        for name, points in (("minutes", self.minutes), ("hour", self.hour)):
            spec = RANGES[name]
            if step % spec.steps == 0:
                at = step // spec.steps % spec.points * width
                points[at : at + width] = _NO_POINT

    def points(self, range_: str, step: int) -> list[list[float | None]]:
        codes, width = self.codes(range_, step), len(FIELDS)
        return [[_decode(code) for code in codes[field::width]] for field in range(width)]

    def codes(self, range_: str, step: int) -> array[int]:
        """Return the encoded points, oldest first, without the one in progress."""
        values, current = self._values(range_), step // RANGES[range_].steps * len(FIELDS) % len(self._values(range_))
        return values[current + len(FIELDS) :] + values[:current]

    def fill(self, range_: str, step: int, codes: Sequence[int]) -> None:
        """Replace the unknown points before the first known one by those of another pod."""
        own, width = self.codes(range_, step), len(FIELDS)
        if len(codes) != len(own) or max(codes, default=0) > _LAST_CODE:
            return
        known = next((at for at in range(0, len(own), width) if own[at] != _UNKNOWN), len(own))
        own[:known] = array("H", codes[:known])
        values, current = self._values(range_), step // RANGES[range_].steps * width % (len(own) + width)
        values[current + width :] = own[: len(values) - current - width]
        values[:current] = own[len(values) - current - width :]

    def _values(self, range_: str) -> array[int]:
        return self.minutes if range_ == "minutes" else self.hour

    def _write(self, name: str, step: int, points: array[int], sums: array[float], gauges: Gauges) -> None:
        spec, width = RANGES[name], len(FIELDS)
        at = step // spec.steps % spec.points * width
        point = _point(sums, gauges, self.desired)
        points[at : at + width] = array("H", [_encode(value) for value in point])
        sums[:] = _NOTHING


_COUNTS = 4  # requests, retries, request_bytes, response_bytes
_BUSY, _QUEUED = _COUNTS, _COUNTS + 1
_ERRORS = _COUNTS + 2
_DURATIONS = _ERRORS + len(ERROR_KINDS)
_NEEDED = _DURATIONS + BUCKETS
_SLOT_SECONDS, _SECONDS = _NEEDED + 1, _NEEDED + 2
_SUMS = _NEEDED + 3
_NOTHING: Final = array("f", [0.0]) * _SUMS


def _point(sums: array[float], gauges: Gauges, desired: float) -> list[float | None]:
    """Return the values of `FIELDS`."""
    seconds = sums[_SECONDS] or STEP_SECONDS
    requests, retries, request_bytes, response_bytes = (count / seconds for count in sums[:_COUNTS])
    percentiles: list[float | None] = [None] * len(_PERCENTILES)
    if sums[0]:
        durations = [int(count) for count in sums[_DURATIONS : _DURATIONS + BUCKETS]]
        percentiles = [percentile(durations, DURATION_BOUNDS, each) for each in _PERCENTILES]
    errors = [count / seconds for count in sums[_ERRORS:_DURATIONS]]
    load = sums[_BUSY] + sums[_QUEUED]
    slot_seconds = sums[_SLOT_SECONDS]
    return [
        *(requests, *percentiles, *errors, retries, request_bytes, response_bytes, sums[_QUEUED] / seconds),
        None if desired < 0 else sums[_NEEDED],
        None if desired < 0 else desired,
        gauges.ready,
        load / slot_seconds if slot_seconds else None,
    ]


# The encoding of a value in two bytes.

_UNKNOWN: Final = 0
_ZERO: Final = 1
_SMALLEST: Final = 1e-5
_PER_E: Final = 2000.0  # codes for each factor of e: 65,534 codes reach from 1e-5 to 1.7e9
_LAST_CODE: Final = 0xFFFF
_LARGEST: Final = 1.7e9
_NO_POINT: Final = array("H", [_UNKNOWN]) * len(FIELDS)


def _encode(value: float | None) -> int:
    if value is None:
        return _UNKNOWN
    if value < _SMALLEST:
        return _ZERO
    if value >= _LARGEST:
        return _LAST_CODE
    return _ZERO + 1 + round(math.log(value / _SMALLEST) * _PER_E)


@lru_cache(maxsize=4096)  # most values occur many times, such as 0
def _decode(code: int) -> float | None:
    if code <= _ZERO:
        return 0.0 if code else None
    return float(f"{_SMALLEST * math.exp((code - _ZERO - 1) / _PER_E):.3g}")
