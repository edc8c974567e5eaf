"""Traces of all workers of this pod: to the exporter, if there is one, and as exemplars beside the histograms."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterator, Mapping, Sequence

from router.services import VersionKey
from router.telemetry.catalogue import Sample
from router.telemetry.counters import DURATION_BOUNDS
from router.telemetry.exposition import Exemplars
from router.telemetry.spans import Address, SpanExport, make_exporter
from router.telemetry.tracing import Traced


class TraceSink:
    """Takes what workers hand over. Without an exporter nothing ever comes."""

    def __init__(self) -> None:
        self._export: SpanExport | None = None
        self._exemplars: dict[VersionKey, dict[int, tuple[str, float, float]]] = {}
        self._dropped: dict[str, int] = {}  # by worker
        self._dropped_before = 0  # by workers that have ended

    def start(self, kind: str, endpoint: str, pod: str, route: str, address: Address) -> None:
        """Export from now on. Raises `SettingsError` where that is not possible here."""
        self._export = SpanExport(make_exporter(kind, endpoint), pod, route, address)
        self._export.start()

    def stop(self) -> None:
        """Export what is left, within a moment."""
        if self._export is not None:
            self._export.stop()

    def take(self, worker: str, traced: Sequence[Traced], dropped: int, offset: float) -> None:
        """A worker hands over requests; `offset` turns the monotonic clock's seconds into the time of day."""
        self._dropped[worker] = dropped
        if self._export is not None and traced:
            self._export.take(traced, offset)
        for each in traced:
            entry = each.entry
            seconds = entry.ended - entry.began
            of_version = self._exemplars.setdefault((entry.service, entry.version), {})
            of_version[bisect_left(DURATION_BOUNDS, seconds)] = each.context.trace_id, seconds, offset + entry.ended

    def worker_ended(self, worker: str) -> None:
        """A worker is gone; what it dropped stays counted."""
        self._dropped_before += self._dropped.pop(worker, 0)

    def retain(self, keys: Collection[VersionKey]) -> None:
        """Forget versions that are not among `keys`."""
        self._exemplars = {key: its for key, its in self._exemplars.items() if key in keys}

    @property
    def exemplars(self) -> Mapping[VersionKey, Exemplars]:
        """The latest sampled request of each bucket of the duration, by version."""
        return {key: dict(its) for key, its in self._exemplars.items()}

    def samples(self) -> Iterator[Sample]:
        """What is told of it at a scrape."""
        exported = self._export.dropped if self._export is not None else 0
        yield Sample("spans_dropped", self._dropped_before + sum(self._dropped.values()) + exported)
