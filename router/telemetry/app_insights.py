"""The spans of requests of versions with `enable_app_insights`, in the form in which Application Insights shows
requests and dependencies.

    request      POST /api/v1/service/iris/score    as the client saw it: result code, duration, success
      dependency   POST /score, target iris         as the replica handled it

An operation is a path of a service, not a path as clients send it: Application Insights makes a row of each operation,
and clients can make up paths. The target is a version, as replicas come and go. Each item is billed, so waits and
connects are properties of the request. Microsoft's exporter makes the items of these spans.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from router.model.services import version_label
from router.telemetry.spans import ReplicaLookup, SpanBuilder
from router.telemetry.tracing import TracedRequest

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan

_SAMPLE_RATE = "_MS.sampleRate"  # in percent; Application Insights counts an item as 100 / rate
_OPERATIONS = ("/score", "/swagger.json")
_CLIENT_CLOSED = 499


class AppInsightsSpanBuilder(SpanBuilder):
    """Builds two spans of a request: the exporter makes a request and a dependency of them."""

    def __init__(self, pod: str, scoring_prefix: str, replica: ReplicaLookup, sample_ratio: float) -> None:
        """`scoring_prefix` is the start of the paths of all services. `sample_ratio` is that of the workers."""
        super().__init__(pod, scoring_prefix + "{service}", replica)
        self._scoring_prefix = scoring_prefix
        self._sample_rate = {_SAMPLE_RATE: sample_ratio * 100} if sample_ratio < 1 else {}

    def spans(self, request: TracedRequest, clock_offset: float) -> Iterator[ReadableSpan]:
        """Yield the span of the request, and that of the dependency if it was sent to a replica."""
        rest = self._path_below_service(request)
        yield self._server_span(request, clock_offset, self._request_attributes(request, rest))
        if request.entry.sent_at:
            yield self._client_span(request, clock_offset, self._dependency_attributes(request, rest))

    def _path_below_service(self, request: TracedRequest) -> str:
        path = request.entry.path.decode("ascii", "backslashreplace")
        return path.removeprefix(self._scoring_prefix + request.entry.service)

    def _request_attributes(self, request: TracedRequest, rest: str) -> dict[str, Any]:
        entry = request.entry
        operation = rest if rest in _OPERATIONS else "/*"
        attributes = self._server_attributes(request) | self._sample_rate
        attributes |= {
            "http.route": self._scoring_prefix + entry.service + operation,
            "url.full": self._scoring_prefix + entry.service + rest,
            "http.response.status_code": entry.status or _CLIENT_CLOSED,
            "client.address": entry.client.decode("ascii", "backslashreplace"),
            "azureml_fe.replica": entry.replica,
            "azureml_fe.queue_ms": _milliseconds(entry.queued_seconds),
            "azureml_fe.connect_ms": _milliseconds(
                max(entry.connected_at - entry.slot_acquired_at, 0.0) if entry.sent_at else 0.0
            ),
            "azureml_fe.retries": entry.retries,
            "azureml_fe.request_bytes": entry.request_bytes,
            "azureml_fe.response_bytes": entry.response_bytes,
        }
        if entry.error_code:
            attributes["azureml_fe.error"] = entry.error_code
        return attributes

    def _dependency_attributes(self, request: TracedRequest, rest: str) -> dict[str, Any]:
        entry = request.entry
        attributes = self._client_attributes(request) | self._sample_rate
        # The exporter prefers these two over `peer.service` as the target.
        attributes.pop("server.address", None)
        attributes.pop("server.port", None)
        endpoint = self._replica(entry.service, entry.version, entry.replica)
        if endpoint is not None:
            path = endpoint.scoring_path if rest == "/score" else rest
            host = f"[{endpoint.host}]" if ":" in endpoint.host else endpoint.host
            attributes["url.full"] = f"http://{host}:{endpoint.port}{path}"
        else:
            attributes["url.full"] = rest
        attributes["peer.service"] = version_label((entry.service, entry.version))
        return attributes


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 3)
