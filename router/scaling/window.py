"""Statistics of a sliding time window: maximum, mean, and percentiles of histograms. No I/O, no clock.

Percentiles of several processes cannot be averaged: the mean of two 95th percentiles is not a percentile. Counts per
bucket can be added. So each process counts, the counts are added, and the percentile is computed from the sum.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Sequence

BucketCounts = Sequence[int]
"""Observations per bucket, not cumulative. The last bucket is for values above the highest bound."""


class SlidingMaximum:
    """The maximum of the values of the last seconds.

    A deque of (time, value) whose values decrease from left to right: a value is dropped when a later value is at least
    as high, as it can never be the maximum again. Each value is added and removed once, so `add` is O(1) on average,
    and the length is at most the number of calls within the window.
    """

    __slots__ = ("_peaks",)

    def __init__(self) -> None:
        self._peaks: deque[tuple[float, float]] = deque()

    def add(self, now: float, value: float, seconds: float) -> float:
        """Add `value`, drop values that are `seconds` old or older, and return the maximum, `value` included."""
        peaks = self._peaks
        while peaks and now - peaks[0][0] >= seconds:
            peaks.popleft()
        while peaks and peaks[-1][1] <= value:
            peaks.pop()
        peaks.append((now, value))
        return peaks[0][1]


class SlidingMean:
    """The mean over time of values that each apply to an interval."""

    __slots__ = ("_intervals",)

    def __init__(self) -> None:
        self._intervals: deque[tuple[float, float, float]] = deque()  # start, end, value

    def add(self, now: float, seconds: float, value: float, since: float) -> float:
        """Add the value of the `seconds` until `now`, and return the mean from `since` to `now`.

        Values are 0 where there is no interval. `since` is before `now` and must not decrease.
        """
        intervals = self._intervals
        while intervals and intervals[0][1] <= since:
            intervals.popleft()
        intervals.append((now - seconds, now, value))
        return sum([(end - max(start, since)) * each for start, end, each in intervals]) / (now - since)


class SlidingHistogram:
    """The sum of the histograms of the last seconds."""

    __slots__ = ("_entries", "_total")

    def __init__(self, buckets: int) -> None:
        self._entries: deque[tuple[float, BucketCounts]] = deque()
        self._total = [0] * buckets

    def add(self, now: float, counts: BucketCounts) -> None:
        """Add the counts of the interval that ended at `now`. Raises `ValueError` for another number of buckets."""
        self._total = add_counts(self._total, counts)
        self._entries.append((now, counts))

    def total_within(self, now: float, seconds: float) -> BucketCounts:
        """Drop entries that are `seconds` old or older, and return the sum of the others."""
        self.drop_expired(now, seconds)
        return tuple(self._total)

    def drop_expired(self, now: float, seconds: float) -> None:
        """Drop entries that are `seconds` old or older."""
        while self._entries and now - self._entries[0][0] >= seconds:
            _, expired = self._entries.popleft()
            self._total = [count - old for count, old in zip(self._total, expired, strict=True)]


def add_counts(one: BucketCounts, other: BucketCounts) -> list[int]:
    """Return the sum of two histograms. Raises `ValueError` when they differ in their number of buckets."""
    return [first + second for first, second in zip(one, other, strict=True)]


def rebin(counts: Sequence[tuple[float, int]], bounds: Sequence[float]) -> tuple[int, ...]:
    """Convert a histogram, as pairs of upper bound and count, to other bounds.

    A bucket whose bound is not among `bounds` is counted at the next higher bound, which overstates its values.
    """
    result = [0] * (len(bounds) + 1)
    for bound, count in counts:
        result[bisect_left(bounds, bound)] += count
    return tuple(result)


def percentile(counts: BucketCounts, bounds: Sequence[float], percent: float) -> float | None:
    """Return the value below which `percent` of the observations are; None without observations.

    Observations are assumed to be spread evenly within a bucket, so the error is less than the bucket's width. A
    percentile above the highest bound is returned as that bound.
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
