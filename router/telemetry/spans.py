"""Traces, the supervisor's part: builds spans from the traced requests of workers, and exports them.

Needs the extra `otel` or `azure-monitor`. Names and attributes follow OpenTelemetry's semantic conventions for HTTP;
the router's own attributes begin with `azureml_fe.`. Only the export thread waits for the network. If it is too slow,
requests are dropped and counted.

    server span  POST /api/v1/service/{service}      from the request's head to the last byte of the response
      queue                                          if the request waited for a slot
      connect                                        if a connection had to be opened
      client span  POST                              from the first byte sent to the replica to the last from it

`app_insights` has the form in which Application Insights gets requests.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from router import __version__
from router.config.schema import SettingsError
from router.telemetry.export_thread import ExportThread
from router.telemetry.exporters import ExportTarget, span_exporter
from router.telemetry.log import event
from router.telemetry.tracing import TracedRequest

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import SpanExporter

_log = logging.getLogger("router.telemetry")

MAX_PENDING = 20_000
"""Maximum number of requests that wait for their export, about 20 MB."""

_BATCH = 200  # requests in an export, about 350 KB
_MIN_SECONDS = 1.0  # from one export to the next, if it is smaller
_WARNING_SECONDS = 60.0  # between two log lines about failed exports


class ReplicaEndpoint(NamedTuple):
    """Where a replica is reached."""

    host: str
    port: int
    scoring_path: str


ReplicaLookup = Callable[[str, str, str], ReplicaEndpoint | None]
"""Returns the endpoint of a replica, given service, version and replica id; None if it was removed."""


class SpanSource(Protocol):
    """Builds the spans of requests."""

    def spans(self, request: TracedRequest, clock_offset: float) -> Iterator[ReadableSpan]:
        """Yield the spans of one request; `clock_offset`: the epoch's clock minus the monotonic clock, in seconds."""


class SpanExport:
    """Exports the spans of traced requests in a thread."""

    def __init__(self, target: ExportTarget, make_source: Callable[[], SpanSource]) -> None:
        """Nothing is imported before `prepare`, or before the first export in the thread."""
        self._target = target
        self._make_source = make_source
        self._tools: tuple[SpanExporter, SpanSource] | None = None
        self._thread: ExportThread[tuple[float, TracedRequest]] = ExportThread(
            target.setting, self._export, self._close, capacity=MAX_PENDING, batch=_BATCH, min_seconds=_MIN_SECONDS
        )
        self._warned_at = -_WARNING_SECONDS
        self._failed = 0
        self._rejected = 0
        self.problem: SettingsError | None = None
        """Why nothing can be exported, once it was tried."""

    def prepare(self) -> None:
        """Make the exporter. Raises SettingsError if that is not possible."""
        self._tools = span_exporter(self._target), self._make_source()

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    @property
    def dropped(self) -> int:
        """Number of requests whose spans could not be exported."""
        return self._failed + self._rejected  # each is counted in one thread

    def submit(self, requests: Sequence[TracedRequest], clock_offset: float) -> None:
        """Queue requests for export without waiting; `clock_offset`: the epoch's clock minus the monotonic clock."""
        self._rejected += self._thread.submit((clock_offset, request) for request in requests)

    def stop(self) -> None:
        """Export the queued requests and end the thread. Gives up after a few seconds."""
        self._thread.stop()

    def _export(self, batch: Sequence[tuple[float, TracedRequest]]) -> Iterator[None]:
        if self.problem is None:
            try:
                if self._tools is None:
                    self.prepare()
                assert self._tools is not None
                exporter, source = self._tools
                spans = [span for clock_offset, request in batch for span in source.spans(request, clock_offset)]
                is_exported = exporter.export(spans).name == "SUCCESS"
                reason = self._target.log.take()
            except SettingsError as error:
                is_exported, reason, self.problem = False, str(error), error
            except Exception as error:  # noqa: BLE001  (exporters may raise anything, and serving must not be affected)
                is_exported, reason = False, self._target.log.printable(f"{type(error).__name__}: {error}")
            if not is_exported:
                self._warn(reason)
        else:
            is_exported = False
        if not is_exported:
            self._failed += len(batch)
        yield

    def _close(self) -> None:
        if self._tools is not None:
            self._tools[0].shutdown()

    def _warn(self, reason: str) -> None:
        now = time.monotonic()
        if now - self._warned_at >= _WARNING_SECONDS:
            self._warned_at = now
            event(_log, logging.WARNING, "cannot export spans", setting=self._target.setting, error=reason or "refused")


class SpanBuilder:
    """Builds the spans of a request for collectors of traces."""

    def __init__(self, pod: str, route: str, replica: ReplicaLookup) -> None:
        """`pod`: id of this router pod. `route`: path of all services, with `{service}` for the name."""
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.util.instrumentation import InstrumentationScope

        self._replica = replica
        self._route = route
        self._resource = Resource.create(
            {"service.name": "azureml-fe", "service.version": __version__, "service.instance.id": pod}
        )
        self._scope = InstrumentationScope("azureml-fe", __version__)

    def spans(self, request: TracedRequest, clock_offset: float) -> Iterator[ReadableSpan]:
        """Yield the spans of one request; `clock_offset`: the epoch's clock minus the monotonic clock, in seconds."""
        entry = request.entry
        yield self._server_span(request, clock_offset, self._server_attributes(request))
        if entry.body_seconds:
            started_at = clock_offset + entry.authenticated_at
            yield self._internal_span("body", request, 3, started_at, started_at + entry.body_seconds)
        if entry.queued_seconds:
            dequeued_at = clock_offset + (entry.slot_acquired_at or entry.ended_at)
            yield self._internal_span("queue", request, 1, dequeued_at - entry.queued_seconds, dequeued_at)
        if not entry.sent_at:
            return
        connected_at = clock_offset + entry.connected_at
        if entry.connected_at > entry.slot_acquired_at:
            yield self._internal_span("connect", request, 2, clock_offset + entry.slot_acquired_at, connected_at)
        yield self._client_span(request, clock_offset, self._client_attributes(request))

    def _server_span(self, request: TracedRequest, clock_offset: float, attributes: dict[str, Any]) -> ReadableSpan:
        from opentelemetry.trace import SpanKind

        context, method, entry = request
        return self._span(
            name=f"{method} {attributes['http.route']}",
            kind=SpanKind.SERVER,
            trace_id=context.trace_id,
            span_id=context.server_span,
            parent=context.parent,
            start=clock_offset + entry.started_at,
            end=clock_offset + entry.ended_at,
            attributes=attributes,
            failed=entry.status >= 500,
        )

    def _client_span(self, request: TracedRequest, clock_offset: float, attributes: dict[str, Any]) -> ReadableSpan:
        from opentelemetry.trace import SpanKind

        context, method, entry = request
        return self._span(
            name=method,
            kind=SpanKind.CLIENT,
            trace_id=context.trace_id,
            span_id=context.client_span,
            parent=context.server_span,
            start=clock_offset + entry.connected_at,
            end=clock_offset + entry.ended_at,
            attributes=attributes,
            failed=entry.status >= 400 or not entry.response_started_at,
        )

    def _server_attributes(self, request: TracedRequest) -> dict[str, Any]:
        entry = request.entry
        attributes: dict[str, Any] = {
            "http.request.method": request.method,
            "http.route": self._route,
            "http.response.status_code": entry.status,
            "http.request.body.size": entry.request_bytes,
            "http.response.body.size": entry.response_bytes,
            "azureml_fe.service": entry.service,
            "azureml_fe.version": entry.version,
            "azureml_fe.request_id": entry.request_id.decode(),
            "azureml_fe.queue.position": entry.queue_position,
        }
        if entry.client_request_id:
            attributes["azureml_fe.client_request_id"] = entry.client_request_id.decode()
        if entry.error_code or entry.status >= 500:
            attributes["error.type"] = entry.error_code or str(entry.status)
        return attributes

    def _client_attributes(self, request: TracedRequest) -> dict[str, Any]:
        entry = request.entry
        attributes: dict[str, Any] = {"http.request.method": request.method, "azureml_fe.replica": entry.replica}
        endpoint = self._replica(entry.service, entry.version, entry.replica)
        if endpoint is not None:
            attributes |= {"server.address": endpoint.host, "server.port": endpoint.port}
        if entry.retries:
            attributes["http.request.resend_count"] = entry.retries
        if entry.response_started_at:
            # The client gets a replica's 500 as 502.
            attributes["http.response.status_code"] = 500 if entry.error_code == "replica-error" else entry.status
        if entry.error_code:
            attributes["error.type"] = entry.error_code
        return attributes

    def _internal_span(self, name: str, request: TracedRequest, number: int, start: float, end: float) -> ReadableSpan:
        """Return a child of the server span; its id is derived from the server span's and `number`."""
        from opentelemetry.trace import SpanKind

        server_span = request.context.server_span
        return self._span(
            name=name,
            kind=SpanKind.INTERNAL,
            trace_id=request.context.trace_id,
            span_id=f"{int(server_span, 16) ^ number or number:016x}",
            parent=server_span,
            start=start,
            end=end,
            attributes={},
            failed=False,
        )

    def _span(
        self,
        *,
        name: str,
        kind: Any,
        trace_id: str,
        span_id: str,
        parent: str,
        start: float,
        end: float,
        attributes: dict[str, Any],
        failed: bool,
    ) -> ReadableSpan:
        from opentelemetry.sdk.trace import ReadableSpan
        from opentelemetry.trace import Status, StatusCode

        return ReadableSpan(
            name=name,
            context=_span_context(trace_id, span_id, remote=False),
            parent=_span_context(trace_id, parent, remote=kind.name == "SERVER") if parent else None,
            resource=self._resource,
            attributes=attributes,
            kind=kind,
            status=Status(StatusCode.ERROR) if failed else Status(StatusCode.UNSET),
            start_time=int(start * 1e9),
            end_time=int(end * 1e9),
            instrumentation_scope=self._scope,
        )


def _span_context(trace_id: str, span_id: str, *, remote: bool) -> Any:
    from opentelemetry.trace import SpanContext, TraceFlags

    return SpanContext(int(trace_id, 16), int(span_id, 16), remote, TraceFlags(TraceFlags.SAMPLED))
