"""Histograms with fixed bucket bounds, and the bounds of each kind of duration.

Contains: the bounds, observation of a value, the snapshot. Does not contain: what is measured (`counters`), and the
text format (`exposition`). Compiled by mypyc.
"""

import math
from bisect import bisect_left
from typing import Final, TypedDict

DURATION_BOUNDS: Final[tuple[float, ...]] = (
    *(0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0),
    *(30.0, 60.0, 120.0, 300.0, 600.0),
)
"""Upper bounds in seconds: 1-2-5 steps, then minutes. 0.5 s is the default of `max_request_wait_time`, and 60 and 300 s
are the default and the maximum of `scoring_timeout_ms`. As bounds they separate requests that timed out from others."""

ROUTE_BOUNDS: Final[tuple[float, ...]] = (
    *(0.000025, 0.00005, 0.000075, 0.0001, 0.00015, 0.0002, 0.0003, 0.0005, 0.00075, 0.001, 0.002, 0.003, 0.005),
    *(0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)
"""Upper bounds in seconds of the latency that the router adds. 3 and 15 ms are the published limits (mean and 99th
percentile) of the original router."""

CONNECT_BOUNDS: Final[tuple[float, ...]] = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0, 5.0)
"""Upper bounds in seconds of opening a connection within a cluster; 1 s is the default of `connect_timeout_ms`."""

LAG_BOUNDS: Final[tuple[float, ...]] = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)
"""Upper bounds in seconds of an event loop's lag."""

_STEPS_PER_SECOND: Final = 2**20


class HistogramSnapshot(TypedDict):
    """Observations per bucket (not cumulative; the last bucket is above every bound) and their sum in seconds."""

    counts: list[int]
    sum: float


class Histogram:
    """Counts observations by upper bound. A value equal to a bound belongs to that bound, as in Prometheus."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        """`bounds`: ascending upper bounds in seconds, without +Inf."""
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, seconds: float) -> None:
        """Count one observation. Measured at 0.1 us; closures and a default argument for `bisect_left` do not help."""
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.sum += seconds

    def snapshot(self) -> HistogramSnapshot:
        """Return a copy that later observations do not change."""
        return histogram_snapshot(self.counts.copy(), self.sum)


def histogram_snapshot(counts: list[int], seconds: float) -> HistogramSnapshot:
    """Return the snapshot of a histogram with these counts and this sum in seconds."""
    return {"counts": counts, "sum": round_down(seconds)}


def round_down(seconds: float) -> float:
    """Round down to a multiple of 2**-20 s.

    Sums of such numbers, up to 270 years, do not depend on the order of the addition. Sums of other floats may: a total
    over workers could then decrease by a rounding error when a worker ends, and counters must never decrease.
    """
    return math.floor(seconds * _STEPS_PER_SECOND) / _STEPS_PER_SECOND
