"""What holds over the last so many seconds: highest values, and percentiles from histograms. No I/O, no clock.

Percentiles of several processes cannot be averaged: the mean of two 95th percentiles is the 95th percentile of nothing.
Counts by bucket can be added, so each process counts, the counts are added, and the percentile is taken last.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Sequence

Counts = Sequence[int]
"""Observations by bucket, not cumulated; there is one bucket more than bounds, for what is above all of them."""


class SlidingMaximum:
    """The highest value of the last so many seconds.

    A deque of (time, value) whose values fall from left to right: a value is dropped once a later one is as high, for
    then it can never again be the highest. Each enters and leaves once, so `add` costs O(1) on average, and the length
    is at most the number of calls within the window.
    """

    __slots__ = ("_peaks",)

    def __init__(self) -> None:
        self._peaks: deque[tuple[float, float]] = deque()

    def add(self, now: float, value: float, seconds: float) -> float:
        """Adds `value`, forgets what is `seconds` old or older, returns the highest (which may be `value` itself)."""
        peaks = self._peaks
        while peaks and now - peaks[0][0] >= seconds:
            peaks.popleft()
        while peaks and peaks[-1][1] <= value:
            peaks.pop()
        peaks.append((now, value))
        return peaks[0][1]


class SlidingCounts:
    """A histogram of the last so many seconds: the sum of those that were added within them."""

    __slots__ = ("_parts", "_total")

    def __init__(self, buckets: int) -> None:
        self._parts: deque[tuple[float, Counts]] = deque()
        self._total = [0] * buckets

    def add(self, now: float, counts: Counts) -> None:
        """Add what was counted up to `now`. Raises ValueError for another number of buckets."""
        self._total = added(self._total, counts)
        self._parts.append((now, counts))

    def of_the_last(self, now: float, seconds: float) -> Counts:
        """The sum, after forgetting what is `seconds` old or older."""
        while self._parts and now - self._parts[0][0] >= seconds:
            _, gone = self._parts.popleft()
            self._total = [held - less for held, less in zip(self._total, gone, strict=True)]
        return tuple(self._total)


def added(one: Counts, other: Counts) -> list[int]:
    """Two histograms as one. Raises ValueError when they differ in their number of buckets."""
    return [mine + yours for mine, yours in zip(one, other, strict=True)]


def rebinned(counts: Sequence[tuple[float, int]], bounds: Sequence[float]) -> tuple[int, ...]:
    """A histogram of other bounds, as (upper bound, observations), in these bounds; what a bound here does not say
    exactly is taken to be slower than it was."""
    result = [0] * (len(bounds) + 1)
    for bound, count in counts:
        result[bisect_left(bounds, bound)] += count
    return tuple(result)


def percentile(counts: Counts, bounds: Sequence[float], percent: float) -> float | None:
    """The value below which `percent` of the observations are; None when there are none.

    Within a bucket they are taken to be spread evenly, so the error is less than the bucket's width. Above the highest
    bound nothing is known: that bound is the answer.
    """
    total = sum(counts)
    if not total:
        return None
    rank, below, lower = total * percent / 100, 0, 0.0
    for count, upper in zip(counts, bounds, strict=False):
        if count and below + count >= rank:
            return lower + (upper - lower) * (rank - below) / count
        below += count
        lower = upper
    return bounds[-1]
