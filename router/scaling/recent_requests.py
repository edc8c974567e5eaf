"""What the recent requests of a version tell about its refused ones: how many would be in flight. No I/O, no clock.

A refused request would have been in flight for the mean service time. The time that it has waited in the queue is
already part of the demand. So it counts as one request in flight for

    min(max(mean service time - mean wait, 0), window)      seconds after its refusal

The mean service time is that of the requests completed within the window, or of at least the last
`_MIN_COMPLETED`: the mean of one or two requests may be far off. So a service time that changes is followed within a
window, or within that many completed requests if they take longer.

The mean wait is `max_request_wait_time`, or less if there was not so much time in the queue for each refused request:
some were refused at once, because the queue was full or no replica was ready.
"""

from collections import deque

from router.scaling.demand import Demand

_MIN_COMPLETED = 20
_BINS = 20  # number of sums into which a window is divided

_Bin = tuple[float, int, float]  # start, number of requests, sum of seconds


class RecentRequests:
    """Sums of completed, refused and queued requests over a window, and the refusals within the window by time."""

    __slots__ = ("_completed", "_completed_bins", "_refusals", "_wait_bins")

    def __init__(self) -> None:
        self._completed_bins: deque[_Bin] = deque()  # completed requests, and their service seconds
        self._completed = 0  # in all bins
        self._wait_bins: deque[_Bin] = deque()  # refused requests, and the seconds that all requests were queued
        self._refusals: deque[tuple[float, int]] = deque()  # start of the interval, refused requests

    def add(self, now: float, demand: Demand, window: float) -> None:
        """Add the interval that ended at `now`. `window` is in seconds."""
        refusals, waits, completed = self._refusals, self._wait_bins, self._completed_bins
        while refusals and now - refusals[0][0] >= window + demand.seconds:
            refusals.popleft()
        if demand.refused:
            refusals.append((now - demand.seconds, demand.refused))
        if demand.refused or demand.queued_seconds:
            _add_to_bins(waits, now, demand.refused, demand.queued_seconds, window)
        while waits and now - waits[0][0] >= window:
            waits.popleft()
        if demand.completed:
            _add_to_bins(completed, now, demand.completed, demand.service_seconds, window)
            self._completed += demand.completed
        while completed and now - completed[0][0] >= window and self._completed - completed[0][1] >= _MIN_COMPLETED:
            self._completed -= completed.popleft()[1]

    def refused_in_flight(self, now: float, seconds: float, max_wait: float, window: float) -> float:
        """Return how many refused requests would have been in flight, on average, in the last `seconds`.

        A request counts from the start of its interval, so that many refused requests have their full effect at once.
        Until the first request has completed, its service time is assumed to be `max_wait`: the refused requests waited
        that long, and none completed meanwhile.
        """
        if not self._refusals:
            return 0.0
        counted_seconds = min(self._counted_seconds(max_wait), window)
        start = now - seconds
        total = 0.0
        for refused_at, count in self._refusals:
            total += count * max(min(refused_at + counted_seconds, now) - max(refused_at, start), 0.0)
        return total / seconds

    def _counted_seconds(self, max_wait: float) -> float:
        """Return for how long a refused request would be in flight."""
        mean = sum([each[2] for each in self._completed_bins]) / self._completed if self._completed else max_wait
        refused = sum([each[1] for each in self._wait_bins])
        wait = min(sum([each[2] for each in self._wait_bins]) / refused, max_wait) if refused else max_wait
        return max(mean - wait, 0.0)


def _add_to_bins(bins: deque[_Bin], now: float, requests: int, seconds: float, window: float) -> None:
    """Add to the last bin, or to a new one if the last one is full."""
    if bins and now - bins[-1][0] < window / _BINS:
        start, requests_before, seconds_before = bins[-1]
        bins[-1] = start, requests_before + requests, seconds_before + seconds
    else:
        bins.append((now, requests, seconds))
