"""How late an event loop is: what a request that waits in its socket waits for the loop's turn. Nothing else here."""

from __future__ import annotations

import asyncio

from router.telemetry.counters import Histogram

LOOK_SECONDS = 0.05
"""Twenty looks a second: 5 % of a window of 15 s are 15 of them, and they cost nothing that can be measured."""


class LoopLag:
    """Observes, again and again, how much later than it was due a timer is called. libuv's timers have whole
    milliseconds, so less than two of them may be none."""

    def __init__(self, loop: asyncio.AbstractEventLoop, histogram: Histogram) -> None:
        self._loop = loop
        self._histogram = histogram
        self._due = loop.time() + LOOK_SECONDS
        loop.call_at(self._due, self._look)

    def _look(self) -> None:
        now = self._loop.time()
        self._histogram.observe(max(now - self._due, 0.0))
        self._due = now + LOOK_SECONDS
        self._loop.call_at(self._due, self._look)
