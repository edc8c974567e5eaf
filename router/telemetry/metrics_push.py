"""Pushes the metrics of `/metrics`, with their names and labels, by an exporter of OpenTelemetry.

A thread converts a `MetricsSnapshot`, the data of one scrape, and exports it in parts. OTLP gets totals since the start
of the router, so a push that fails loses nothing. Azure Monitor adds up what it gets, so it gets the differences since
the last push that succeeded, and no bucket counts, which it does not have.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, NamedTuple

from router import __version__
from router.telemetry.catalogue import METRICS, MetricKind, MetricSpec, Sample
from router.telemetry.export_thread import ExportThread
from router.telemetry.exporters import ExportTarget, metric_exporter
from router.telemetry.exposition import process_values
from router.telemetry.log import event
from router.telemetry.metrics import MetricsSnapshot, histogram_bounds, histogram_series, samples_by_metric

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics.export import Metric, MetricExporter

MAX_POINTS = 1000
"""Maximum number of series in a request to the collector, about 300 KB."""

_WARNING_SECONDS = 60.0  # between two log lines about failed pushes

_log = logging.getLogger("router.telemetry")

SeriesKey = tuple[str, tuple[str, ...]]
"""Name of a metric, values of its labels."""


class Point(NamedTuple):
    """One series at the time of a push. A histogram has `counts` (not cumulative) and `bounds`."""

    name: str
    help: str
    kind: MetricKind
    labels: Mapping[str, str]
    value: float
    """The sum of a histogram."""
    counts: Sequence[int] = ()
    bounds: Sequence[float] = ()

    @property
    def key(self) -> SeriesKey:
        """Identifies the series."""
        return self.name, tuple(self.labels.values())


def points_of(snapshot: MetricsSnapshot) -> Iterator[Point]:
    """Yield all series of a snapshot, as `/metrics` has them. Raises ValueError as `render_metrics` does."""
    by_metric = samples_by_metric(snapshot)
    for spec in METRICS.values():
        if spec.kind is MetricKind.HISTOGRAM:
            bounds = histogram_bounds(spec)
            for label_values, histogram, _ in histogram_series(spec, snapshot):
                labels = _labels(spec, label_values)
                yield Point(spec.full_name, spec.help, spec.kind, labels, histogram["sum"], histogram["counts"], bounds)
        else:
            for sample in by_metric.get(spec.name, ()):
                yield _sample_point(spec, sample)


def process_points() -> Iterator[Point]:
    """Yield the metrics `process_*` of this process."""
    for name, is_counter, text, value in process_values():
        yield Point(name, text, MetricKind.COUNTER if is_counter else MetricKind.GAUGE, {}, value)


def _sample_point(spec: MetricSpec, sample: Sample) -> Point:
    # Some samples are bools.
    value = sample.value if isinstance(sample.value, float) else int(sample.value)
    return Point(spec.full_name, spec.help, spec.kind, _labels(spec, sample.labels), value)


def _labels(spec: MetricSpec, values: Sequence[str]) -> dict[str, str]:
    return dict(zip(spec.labels, values, strict=True))


class DeltaTracker:
    """The differences between pushes, of counters and histograms."""

    def __init__(self) -> None:
        self._pushed: dict[SeriesKey, Point] = {}
        self._seen: set[SeriesKey] = set()  # in this push

    def deltas(self, points: Sequence[Point]) -> list[Point]:
        """Return gauges as they are, and what has been added to others since the last `commit`. Series to which nothing
        was added are left out."""
        deltas = []
        for point in points:
            self._seen.add(point.key)
            if point.kind not in (MetricKind.COUNTER, MetricKind.HISTOGRAM):
                deltas.append(point)
                continue
            delta = _difference(point, self._pushed.get(point.key))
            if delta.value or any(delta.counts):
                deltas.append(delta)
        return deltas

    def commit(self, points: Sequence[Point]) -> None:
        """Record that these points, as given to `deltas`, were pushed."""
        self._pushed |= {point.key: point for point in points}

    def end_push(self) -> None:
        """Forget the series that this push did not have: their versions were removed."""
        self._pushed = {key: point for key, point in self._pushed.items() if key in self._seen}
        self._seen.clear()


def _difference(point: Point, before: Point | None) -> Point:
    if before is None or point.value < before.value or sum(point.counts) < sum(before.counts):
        return point  # a version was removed and added again
    counts = [now - then for now, then in zip(point.counts, before.counts, strict=True)]
    return point._replace(value=point.value - before.value, counts=counts)


class MetricsPush:
    """Pushes snapshots of the metrics in a thread."""

    def __init__(self, target: ExportTarget, pod: str) -> None:
        """`pod`: id of this router pod. Raises SettingsError if the exporter is not available."""
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.util.instrumentation import InstrumentationScope

        self._target = target
        self._exporter: MetricExporter = metric_exporter(target)
        self._deltas = DeltaTracker() if target.kind == "azure-monitor" else None
        self._resource = Resource.create(
            {"service.name": "azureml-fe", "service.version": __version__, "service.instance.id": pod}
        )
        self._scope = InstrumentationScope("azureml-fe", __version__)
        self._started_at = time.time_ns()
        self._warned_at = -_WARNING_SECONDS
        self._thread: ExportThread[tuple[MetricsSnapshot, int]] = ExportThread(
            target.setting, self._export, self._exporter.shutdown, capacity=1
        )
        self._results: Counter[str] = Counter(ok=0, failed=0)
        self._left_out = 0

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    @property
    def is_idle(self) -> bool:
        """True if no push is in progress."""
        return self._thread.is_idle

    def leave_out(self) -> None:
        """Count a push that is due, but would have to wait for the last one."""
        self._left_out += 1

    def submit(self, snapshot: MetricsSnapshot) -> None:
        """Push a snapshot without waiting."""
        self._left_out += self._thread.submit([(snapshot, time.time_ns())])

    def stop(self) -> None:
        """Finish the push, and end the thread. Gives up after a few seconds."""
        self._thread.stop()

    def samples(self) -> Iterator[Sample]:
        """Yield the samples for a scrape."""
        yield Sample("metrics_pushes", self._results["ok"], ("ok",))
        yield Sample("metrics_pushes", self._results["failed"] + self._left_out, ("failed",))

    def _export(self, batch: Sequence[tuple[MetricsSnapshot, int]]) -> Iterator[None]:
        snapshot, now = batch[0]
        points = chain(points_of(snapshot), process_points())
        try:
            while part := list(islice(points, MAX_POINTS)):
                self._export_part(part, now)
                yield
        except Exception as error:  # noqa: BLE001  (exporters may raise anything, and serving must not be affected)
            self._results["failed"] += 1
            self._warn(self._target.log.take() or self._target.log.printable(f"{type(error).__name__}: {error}"))
        else:
            self._results["ok"] += 1
            if self._deltas is not None:
                self._deltas.end_push()

    def _export_part(self, points: Sequence[Point], now: int) -> None:
        """Export some points; `now`: the time of the snapshot, in ns of the epoch. Raises what the exporter raises, and
        RuntimeError if the export failed."""
        from opentelemetry.sdk.metrics.export import MetricsData, ResourceMetrics, ScopeMetrics

        exported = points if self._deltas is None else self._deltas.deltas(points)
        if exported:
            scope_metrics = ScopeMetrics(self._scope, list(self._metrics(exported, now)), "")
            data = MetricsData([ResourceMetrics(self._resource, [scope_metrics], "")])
            if self._exporter.export(data).name != "SUCCESS":
                raise RuntimeError("the export was refused")
            self._target.log.take()
        if self._deltas is not None:
            self._deltas.commit(points)

    def _metrics(self, points: Sequence[Point], now: int) -> Iterator[Metric]:
        """Yield a metric for each run of points with the same name."""
        from opentelemetry.sdk.metrics.export import (
            AggregationTemporality,
            Gauge,
            Histogram,
            HistogramDataPoint,
            Metric,
            NumberDataPoint,
            Sum,
        )

        temporality = AggregationTemporality.CUMULATIVE if self._deltas is None else AggregationTemporality.DELTA
        by_name: dict[str, list[Point]] = {}
        for point in points:
            by_name.setdefault(point.name, []).append(point)
        for name, series in by_name.items():
            data: Any
            if series[0].kind is MetricKind.HISTOGRAM:
                histograms = [
                    HistogramDataPoint(
                        attributes=point.labels,
                        start_time_unix_nano=self._started_at,
                        time_unix_nano=now,
                        count=sum(point.counts),
                        sum=point.value,
                        bucket_counts=point.counts,
                        explicit_bounds=point.bounds,
                        min=None,  # type: ignore[arg-type]  # not measured, and optional in both formats
                        max=None,  # type: ignore[arg-type]
                    )
                    for point in series
                ]
                data = Histogram(histograms, temporality)
            else:
                numbers = [NumberDataPoint(point.labels, self._started_at, now, point.value) for point in series]
                is_counter = series[0].kind is MetricKind.COUNTER
                data = Sum(numbers, temporality, is_monotonic=True) if is_counter else Gauge(numbers)
            yield Metric(name, series[0].help, "", data)

    def _warn(self, reason: str) -> None:
        now = time.monotonic()
        if now - self._warned_at >= _WARNING_SECONDS:
            self._warned_at = now
            event(_log, logging.WARNING, "cannot push metrics", setting=self._target.setting, error=reason)
