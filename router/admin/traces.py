"""Receives the traced requests of this pod's workers. Exports them as spans, and keeps exemplars for the duration
histograms."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterator, Mapping, Sequence

from router.model.services import VersionKey
from router.telemetry.catalogue import Sample
from router.telemetry.exposition import Exemplars
from router.telemetry.histogram import DURATION_BOUNDS
from router.telemetry.spans import ReplicaAddressLookup, SpanExportThread, make_exporter
from router.telemetry.tracing import TracedRequest


class TraceSink:
    """Receives the traced requests of workers. If traces are off, workers send none."""

    def __init__(self) -> None:
        self._export: SpanExportThread | None = None
        self._exemplars: dict[VersionKey, dict[int, tuple[str, float, float]]] = {}
        self._dropped: dict[str, int] = {}  # by live worker
        self._dropped_by_ended_workers = 0

    def start(self, kind: str, endpoint: str, pod: str, route: str, replica_address: ReplicaAddressLookup) -> None:
        """Start to export spans. Raises SettingsError if the exporter is not available."""
        self._export = SpanExportThread(make_exporter(kind, endpoint), pod, route, replica_address)
        self._export.start()

    def stop(self) -> None:
        """Export the queued requests, for at most a few seconds."""
        if self._export is not None:
            self._export.stop()

    def add(self, worker: str, requests: Sequence[TracedRequest], dropped: int, clock_offset: float) -> None:
        """Add traced requests of a worker.

        `dropped` is the number of requests that the worker has dropped since its start. `clock_offset` is the epoch
        time minus the time of the monotonic clock, in seconds.
        """
        self._dropped[worker] = dropped
        if self._export is not None and requests:
            self._export.submit(requests, clock_offset)
        for request in requests:
            entry = request.entry
            seconds = entry.ended_at - entry.started_at
            exemplars = self._exemplars.setdefault((entry.service, entry.version), {})
            bucket = bisect_left(DURATION_BOUNDS, seconds)
            exemplars[bucket] = request.context.trace_id, seconds, clock_offset + entry.ended_at

    def worker_ended(self, worker: str) -> None:
        """Keep the number of requests that an ended worker dropped."""
        self._dropped_by_ended_workers += self._dropped.pop(worker, 0)

    def retain(self, keys: Collection[VersionKey]) -> None:
        """Drop the exemplars of versions that are not in `keys`."""
        self._exemplars = {key: exemplars for key, exemplars in self._exemplars.items() if key in keys}

    @property
    def exemplars(self) -> Mapping[VersionKey, Exemplars]:
        """The latest sampled request in each bucket of the duration histogram, by version."""
        return {key: dict(exemplars) for key, exemplars in self._exemplars.items()}

    def samples(self) -> Iterator[Sample]:
        """Yield the samples for a scrape."""
        exported = self._export.dropped if self._export is not None else 0
        yield Sample("spans_dropped", self._dropped_by_ended_workers + sum(self._dropped.values()) + exported)
