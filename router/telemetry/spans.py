"""Traces, the supervisor's part: spans made of what workers hand over, and exported by a thread of their own.

Needs the extra `otel`. The exporter is OpenTelemetry's for OTLP over HTTP, or Azure Monitor's: both are the same hook.
Names and attributes follow OpenTelemetry's semantic conventions for HTTP; what is the router's own begins with
`azureml_fe.`. Nothing here waits for the network but the thread; what it cannot keep up with is dropped and counted.

    server span  POST /api/v1/service/{service}      from the request's head to the last byte of the answer
      queue                                          if it waited for a slot
      connect                                        if a connection had to be opened
      client span  POST                              from the first byte sent to the replica to its last
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from router import __version__
from router.services import SettingsError
from router.telemetry.log import event
from router.telemetry.tracing import Traced

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import SpanExporter

_log = logging.getLogger("router.telemetry")

EXPORTERS = ("otlp", "azure-monitor")

_BATCHES_WAITING = 64
_STOP_SECONDS = 2.0
_COMPLAINT_SECONDS = 60.0  # between two lines about an exporter that fails

Address = Callable[[str, str, str], tuple[str, int] | None]
"""Host and port of a replica of a service's version, where it is still known."""


def make_exporter(kind: str, endpoint: str) -> SpanExporter:
    """The exporter of this name. Raises `SettingsError` where the extra that has it is not installed, or where it does
    not take what it is given."""
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
        raise SettingsError("traces", kind, f"needs the extra: pip install 'azureml-fe[{extra}]'") from error
    return OTLPSpanExporter(endpoint=endpoint.rstrip("/") + "/v1/traces")


class SpanExport:
    """Takes what workers hand over; a thread makes spans of it and exports them."""

    def __init__(self, exporter: SpanExporter, pod: str, route: str, address: Address) -> None:
        self._exporter = exporter
        self._maker = SpanMaker(pod, route, address)
        self._batches: queue.Queue[tuple[float, Sequence[Traced]] | None] = queue.Queue(_BATCHES_WAITING)
        self._thread = threading.Thread(target=self._run, name="spans", daemon=True)
        self._complained_at = -_COMPLAINT_SECONDS
        self.dropped = 0
        """Requests whose spans could not be exported."""

    def start(self) -> None:
        """Begin to export."""
        self._thread.start()

    def take(self, traced: Sequence[Traced], offset: float) -> None:
        """Export these when there is time; `offset` turns the monotonic clock's seconds into the time of day."""
        try:
            self._batches.put_nowait((offset, traced))
        except queue.Full:
            self.dropped += len(traced)

    def stop(self) -> None:
        """Export what waits, within a moment."""
        if self._thread.is_alive():
            try:
                self._batches.put(None, timeout=_STOP_SECONDS)
            except queue.Full:
                return
            self._thread.join(_STOP_SECONDS)

    def _run(self) -> None:
        while (batch := self._batches.get()) is not None:
            offset, traced = batch
            try:
                spans = [span for each in traced for span in self._maker.spans(each, offset)]
                if self._exporter.export(spans).name != "SUCCESS":
                    raise RuntimeError("the exporter gave up")
            except Exception as fault:  # noqa: BLE001  (an exporter may raise anything; requests go on)
                self.dropped += len(traced)
                self._complain(fault)
        self._exporter.shutdown()

    def _complain(self, fault: Exception) -> None:
        now = time.monotonic()
        if now - self._complained_at >= _COMPLAINT_SECONDS:
            self._complained_at = now
            event(_log, logging.WARNING, "spans cannot be exported", error=f"{type(fault).__name__}: {fault}")


class SpanMaker:
    """Makes the spans of a request."""

    def __init__(self, pod: str, route: str, address: Address) -> None:
        """`route`: what the addresses of all services look like, with `{service}` for the name."""
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.util.instrumentation import InstrumentationScope

        self._address = address
        self._route = route
        self._resource = Resource.create(
            {"service.name": "azureml-fe", "service.version": __version__, "service.instance.id": pod}
        )
        self._scope = InstrumentationScope("azureml-fe", __version__)

    def spans(self, traced: Traced, offset: float) -> Iterator[ReadableSpan]:
        """The spans of one request; `offset` turns the monotonic clock's seconds into the time of day."""
        from opentelemetry.trace import SpanKind

        context, method, entry = traced
        begins = entry.began
        yield self._span(
            f"{method} {self._route}", SpanKind.SERVER, traced, context.server_span, context.parent,
            offset + begins, offset + entry.ended, self._server(traced), entry.status >= 500,
        )  # fmt: skip
        if entry.queued_seconds:
            granted = entry.granted or entry.ended
            yield self._inner("queue", traced, 1, offset + granted - entry.queued_seconds, offset + granted)
        if entry.sent and entry.connected_at > entry.granted:
            yield self._inner("connect", traced, 2, offset + entry.granted, offset + entry.connected_at)
        if entry.sent:
            yield self._span(
                method, SpanKind.CLIENT, traced, context.client_span, context.server_span,
                offset + entry.connected_at, offset + entry.ended, self._client(traced),
                entry.status >= 400 or not entry.answered,
            )  # fmt: skip

    def _server(self, traced: Traced) -> dict[str, Any]:
        entry = traced.entry
        attributes: dict[str, Any] = {
            "http.request.method": traced.method,
            "http.route": self._route,
            "http.response.status_code": entry.status,
            "http.request.body.size": entry.request_bytes,
            "http.response.body.size": entry.response_bytes,
            "azureml_fe.service": entry.service,
            "azureml_fe.version": entry.version,
            "azureml_fe.request_id": entry.request_id.decode(),
            "azureml_fe.queue.position": entry.position,
        }
        if entry.client_id:
            attributes["azureml_fe.client_request_id"] = entry.client_id.decode()
        if entry.slug or entry.status >= 500:
            attributes["error.type"] = entry.slug or str(entry.status)
        return attributes

    def _client(self, traced: Traced) -> dict[str, Any]:
        entry = traced.entry
        attributes: dict[str, Any] = {"http.request.method": traced.method, "azureml_fe.replica": entry.replica}
        address = self._address(entry.service, entry.version, entry.replica)
        if address is not None:
            attributes |= {"server.address": address[0], "server.port": address[1]}
        if entry.attempts:
            attributes["http.request.resend_count"] = entry.attempts
        if entry.answered:
            # A replica's 500 goes to the client as 502.
            attributes["http.response.status_code"] = 500 if entry.slug == "replica-error" else entry.status
        if entry.slug:
            attributes["error.type"] = entry.slug
        return attributes

    def _inner(self, name: str, traced: Traced, number: int, begins: float, ends: float) -> ReadableSpan:
        from opentelemetry.trace import SpanKind

        server = traced.context.server_span
        own = f"{int(server, 16) ^ number or number:016x}"
        return self._span(name, SpanKind.INTERNAL, traced, own, server, begins, ends, {}, failed=False)

    def _span(
        self,
        name: str,
        kind: Any,
        traced: Traced,
        own: str,
        parent: str,
        begins: float,
        ends: float,
        attributes: dict[str, Any],
        failed: bool,
    ) -> ReadableSpan:
        from opentelemetry.sdk.trace import ReadableSpan
        from opentelemetry.trace import Status, StatusCode

        return ReadableSpan(
            name=name,
            context=_context(traced.context.trace_id, own, remote=False),
            parent=_context(traced.context.trace_id, parent, remote=kind.name == "SERVER") if parent else None,
            resource=self._resource,
            attributes=attributes,
            kind=kind,
            status=Status(StatusCode.ERROR) if failed else Status(StatusCode.UNSET),
            start_time=int(begins * 1e9),
            end_time=int(ends * 1e9),
            instrumentation_scope=self._scope,
        )


def _context(trace_id: str, span_id: str, *, remote: bool) -> Any:
    from opentelemetry.trace import SpanContext, TraceFlags

    return SpanContext(int(trace_id, 16), int(span_id, 16), remote, TraceFlags(TraceFlags.SAMPLED))
