"""Traces, the supervisor's part: builds spans from the traced requests of workers, and exports them.

Needs the extra `otel`. The exporter is OpenTelemetry's for OTLP over HTTP or Azure Monitor's; both have the same
interface. Names and attributes follow OpenTelemetry's semantic conventions for HTTP; the router's own attributes begin
with `azureml_fe.`. Only the export thread waits for the network. If it is too slow, requests are dropped and counted.

    server span  POST /api/v1/service/{service}      from the request's head to the last byte of the response
      queue                                          if the request waited for a slot
      connect                                        if a connection had to be opened
      client span  POST                              from the first byte sent to the replica to the last from it
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from router import __version__
from router.config.schema import SettingsError
from router.telemetry.log import event
from router.telemetry.tracing import TracedRequest

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import SpanExporter

_log = logging.getLogger("router.telemetry")

_MAX_PENDING_BATCHES = 64
_STOP_SECONDS = 2.0  # for the last export when the router stops
_WARNING_SECONDS = 60.0  # between two log lines about failed exports

ReplicaAddressLookup = Callable[[str, str, str], tuple[str, int] | None]
"""Returns the host and port of a replica, given service, version and replica id; None if it was removed."""


def make_exporter(kind: str, endpoint: str) -> SpanExporter:
    """Return the exporter for `otlp` or `azure-monitor`.

    Raises SettingsError if its extra is not installed or its connection string is missing or invalid.
    """
    try:
        if kind == "azure-monitor":
            from azure.monitor.opentelemetry.exporter import AzureMonitorTraceExporter

            try:
                azure: SpanExporter = AzureMonitorTraceExporter()  # reads APPLICATIONINSIGHTS_CONNECTION_STRING
            except ValueError as error:
                raise SettingsError(
                    "traces", kind, "needs the environment variable APPLICATIONINSIGHTS_CONNECTION_STRING"
                ) from error
            return azure
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError as error:
        extra = "azure-monitor" if kind == "azure-monitor" else "otel"
        raise SettingsError("traces", kind, f"needs the extra: in the checkout: pip install '.[{extra}]'") from error
    return OTLPSpanExporter(endpoint=endpoint.rstrip("/") + "/v1/traces")


class SpanExportThread:
    """A thread that builds the spans of traced requests and exports them."""

    def __init__(self, exporter: SpanExporter, pod: str, route: str, replica_address: ReplicaAddressLookup) -> None:
        """`pod` and `route`: see `SpanBuilder`."""
        self._exporter = exporter
        self._builder = SpanBuilder(pod, route, replica_address)
        self._batches: queue.Queue[tuple[float, Sequence[TracedRequest]] | None] = queue.Queue(_MAX_PENDING_BATCHES)
        self._thread = threading.Thread(target=self._run, name="spans", daemon=True)
        self._warned_at = -_WARNING_SECONDS
        self.dropped = 0
        """Requests whose spans could not be exported."""

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def submit(self, requests: Sequence[TracedRequest], clock_offset: float) -> None:
        """Queue requests for export without waiting; `clock_offset`: the epoch's clock minus the monotonic clock."""
        try:
            self._batches.put_nowait((clock_offset, requests))
        except queue.Full:
            self.dropped += len(requests)

    def stop(self) -> None:
        """Export the queued requests and end the thread. Gives up after a few seconds."""
        if self._thread.is_alive():
            try:
                self._batches.put(None, timeout=_STOP_SECONDS)
            except queue.Full:
                return
            self._thread.join(_STOP_SECONDS)

    def _run(self) -> None:
        while (batch := self._batches.get()) is not None:
            clock_offset, requests = batch
            try:
                spans = [span for request in requests for span in self._builder.spans(request, clock_offset)]
                if self._exporter.export(spans).name != "SUCCESS":
                    raise RuntimeError("the exporter reported a failure")
            except Exception as error:  # noqa: BLE001  (exporters may raise anything, and serving must not be affected)
                self.dropped += len(requests)
                self._warn(error)
        self._exporter.shutdown()

    def _warn(self, error: Exception) -> None:
        now = time.monotonic()
        if now - self._warned_at >= _WARNING_SECONDS:
            self._warned_at = now
            event(_log, logging.WARNING, "cannot export spans", error=f"{type(error).__name__}: {error}")


class SpanBuilder:
    """Builds the spans of a request."""

    def __init__(self, pod: str, route: str, replica_address: ReplicaAddressLookup) -> None:
        """`pod`: id of this router pod. `route`: path of all services, with `{service}` for the name."""
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.util.instrumentation import InstrumentationScope

        self._replica_address = replica_address
        self._route = route
        self._resource = Resource.create(
            {"service.name": "azureml-fe", "service.version": __version__, "service.instance.id": pod}
        )
        self._scope = InstrumentationScope("azureml-fe", __version__)

    def spans(self, request: TracedRequest, clock_offset: float) -> Iterator[ReadableSpan]:
        """Yield the spans of one request; `clock_offset`: the epoch's clock minus the monotonic clock, in seconds."""
        from opentelemetry.trace import SpanKind

        context, method, entry = request
        yield self._span(
            name=f"{method} {self._route}",
            kind=SpanKind.SERVER,
            trace_id=context.trace_id,
            span_id=context.server_span,
            parent=context.parent,
            start=clock_offset + entry.started_at,
            end=clock_offset + entry.ended_at,
            attributes=self._server_attributes(request),
            failed=entry.status >= 500,
        )
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
        yield self._span(
            name=method,
            kind=SpanKind.CLIENT,
            trace_id=context.trace_id,
            span_id=context.client_span,
            parent=context.server_span,
            start=connected_at,
            end=clock_offset + entry.ended_at,
            attributes=self._client_attributes(request),
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
        address = self._replica_address(entry.service, entry.version, entry.replica)
        if address is not None:
            attributes |= {"server.address": address[0], "server.port": address[1]}
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
