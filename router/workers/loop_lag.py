"""Measures the lag of an event loop: the time that a request waits in its socket until the loop reads it."""

from __future__ import annotations

import asyncio

from router.telemetry.histogram import Histogram

PROBE_SECONDS = 0.05
"""Interval of the observations. It gives 300 observations in a window of 15 s, so that a 95th percentile has 15 above
it. The cost is not measurable."""


class LoopLag:
    """Periodically observes how late a timer is called. libuv's timers have a resolution of one millisecond, so a
    measured lag below two milliseconds may be no lag."""

    def __init__(self, loop: asyncio.AbstractEventLoop, histogram: Histogram) -> None:
        self._loop = loop
        self._histogram = histogram
        self._due = loop.time() + PROBE_SECONDS
        loop.call_at(self._due, self._probe)

    def _probe(self) -> None:
        now = self._loop.time()
        self._histogram.observe(max(now - self._due, 0.0))
        self._due = now + PROBE_SECONDS
        self._loop.call_at(self._due, self._probe)
