"""Receives the traced requests of this pod's workers. Exports them as spans and to Application Insights, and keeps
exemplars for the duration histograms."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterator, Mapping, Sequence

from router.model.problems import Problem
from router.model.services import VersionKey
from router.telemetry.app_insights import AppInsightsSpanBuilder
from router.telemetry.catalogue import Sample
from router.telemetry.exporters import ExportTargets
from router.telemetry.exposition import Exemplars
from router.telemetry.histogram import DURATION_BOUNDS
from router.telemetry.spans import ReplicaLookup, SpanBuilder, SpanExport
from router.telemetry.tracing import TracedRequest


class TraceSink:
    """Receives the traced requests of workers, which send only those that are sampled."""

    def __init__(self) -> None:
        self._traces: SpanExport | None = None
        self._app_insights: SpanExport | None = None
        self._app_insights_started = False
        self._app_insights_gets_all = False  # `traces` is azure-monitor, so a request must not be exported twice
        self._exemplars: dict[VersionKey, dict[int, tuple[str, float, float]]] = {}
        self._dropped: dict[str, tuple[int, int]] = {}  # by live worker: for traces, for Application Insights
        self._dropped_by_ended_workers = 0, 0

    def start(
        self, targets: ExportTargets, pod: str, scoring_prefix: str, replica: ReplicaLookup, app_insights_ratio: float
    ) -> None:
        """Start to export spans.

        `scoring_prefix` is the start of the paths of all services, `app_insights_ratio` the share of the requests that
        workers sample for Application Insights. Raises SettingsError if the exporter of traces is not available. That
        of Application Insights is made for the first request that needs it.
        """
        if (target := targets.traces) is not None:
            self._traces = SpanExport(target, lambda: SpanBuilder(pod, scoring_prefix + "{service}", replica))
            self._traces.prepare()
            self._traces.start()
            self._app_insights_gets_all = target.kind == "azure-monitor"
        self._app_insights = SpanExport(
            targets.app_insights, lambda: AppInsightsSpanBuilder(pod, scoring_prefix, replica, app_insights_ratio)
        )

    def stop(self) -> None:
        """Export the queued requests, for at most a few seconds."""
        for export in (self._traces, self._app_insights):
            if export is not None:
                export.stop()

    def add(
        self, worker: str, requests: Sequence[TracedRequest], dropped: tuple[int, int], clock_offset: float
    ) -> None:
        """Add traced requests of a worker.

        `dropped` has the numbers of requests that the worker has dropped since its start: for traces, and for
        Application Insights. `clock_offset` is the epoch time minus the time of the monotonic clock, in seconds.
        """
        self._dropped[worker] = dropped
        for_app_insights = [request for request in requests if request.context.app_insights]
        if self._app_insights is not None and for_app_insights:
            if not self._app_insights_started:
                self._app_insights_started = True
                self._app_insights.start()
            self._app_insights.submit(for_app_insights, clock_offset)
        if self._traces is not None:
            sampled = [request for request in requests if request.context.sampled]
            if self._app_insights_gets_all:
                sampled = [request for request in sampled if not request.context.app_insights]
            self._traces.submit(sampled, clock_offset)
        for request in requests:
            entry = request.entry
            seconds = entry.ended_at - entry.started_at
            exemplars = self._exemplars.setdefault((entry.service, entry.version), {})
            bucket = bisect_left(DURATION_BOUNDS, seconds)
            exemplars[bucket] = request.context.trace_id, seconds, clock_offset + entry.ended_at

    def worker_ended(self, worker: str) -> None:
        """Keep the number of requests that an ended worker dropped."""
        for_traces, for_app_insights = self._dropped.pop(worker, (0, 0))
        ended = self._dropped_by_ended_workers
        self._dropped_by_ended_workers = ended[0] + for_traces, ended[1] + for_app_insights

    def retain(self, keys: Collection[VersionKey]) -> None:
        """Drop the exemplars of versions that are not in `keys`."""
        self._exemplars = {key: exemplars for key, exemplars in self._exemplars.items() if key in keys}

    @property
    def exemplars(self) -> Mapping[VersionKey, Exemplars]:
        """The latest sampled request in each bucket of the duration histogram, by version."""
        return {key: dict(exemplars) for key, exemplars in self._exemplars.items()}

    def samples(self) -> Iterator[Sample]:
        """Yield the samples for a scrape."""
        workers = [self._dropped_by_ended_workers, *self._dropped.values()]
        exports = (("spans_dropped", self._traces), ("app_insights_requests_dropped", self._app_insights))
        for index, (name, export) in enumerate(exports):
            dropped = sum(counts[index] for counts in workers)
            yield Sample(name, dropped + (export.dropped if export is not None else 0))

    def problems(self) -> Iterator[Problem]:
        """Yield why Application Insights gets no requests."""
        if self._app_insights is not None and (problem := self._app_insights.problem) is not None:
            yield Problem(f"Application Insights gets no requests: {problem}")
