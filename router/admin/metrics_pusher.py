"""Pushes the metrics of this pod at regular times, if `metrics_push` is on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

from router.telemetry.catalogue import Sample
from router.telemetry.exporters import ExportTarget
from router.telemetry.metrics import MetricsSnapshot
from router.telemetry.metrics_push import MetricsPush


class MetricsPusher:
    """Takes the snapshots that are pushed. One whose time comes while the last push is in progress is left out."""

    def __init__(self, snapshot: Callable[[], MetricsSnapshot], seconds: float, now: float) -> None:
        """`seconds` is the time between two pushes, the first of which is that long after `now`, in seconds of the
        monotonic clock."""
        self._snapshot = snapshot
        self._seconds = seconds
        self._due_at = now + seconds
        self._push: MetricsPush | None = None

    def start(self, target: ExportTarget | None, pod: str) -> None:
        """Start to push to a target, if there is one. Raises SettingsError if its exporter is not available."""
        if target is not None:
            self._push = MetricsPush(target, pod)
            self._push.start()

    def tick(self, now: float) -> None:
        """Push if it is time. Call this several times a second."""
        if self._push is None or now < self._due_at:
            return
        self._due_at = max(self._due_at + self._seconds, now)
        if self._push.is_idle:
            self._push.submit(self._snapshot())
        else:
            self._push.leave_out()

    async def stop(self) -> None:
        """Push the last counts, for at most a few seconds."""
        if self._push is None:
            return
        if self._push.is_idle:
            self._push.submit(self._snapshot())
        await asyncio.to_thread(self._push.stop)

    def samples(self) -> Iterator[Sample]:
        """Yield the samples for a scrape."""
        if self._push is not None:
            yield from self._push.samples()
