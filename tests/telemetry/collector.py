"""A local endpoint for the real exporters, with the protocols of OTLP over HTTP and of Application Insights."""

from __future__ import annotations

import gzip
import json
import math
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.metrics.v1.metrics_pb2 import (
    AggregationTemporality,
    HistogramDataPoint,
    Metric,
    NumberDataPoint,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from prometheus_client.utils import floatToGoString

INSTRUMENTATION_KEY = "12345678-0000-4abc-8000-0123456789ab"

Series = tuple[str, frozenset[tuple[str, str]]]
"""Name of a metric, its labels."""


class Collector:
    """An endpoint that keeps what it receives, and responds with `status`, or never while it `hangs`."""

    def __init__(self) -> None:
        self.bodies: list[tuple[str, bytes]] = []
        self.status = 200
        self.hangs = threading.Event()
        self._closing = threading.Event()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                collector.bodies.append((self.path, body))
                if collector.hangs.is_set():
                    collector._closing.wait()
                    return
                response = collector._response(self.path, body)
                self.send_response(collector.status)
                self.send_header("Content-Type", "application/json" if response else "application/x-protobuf")
                self.send_header("Content-Length", str(len(response)))
                self.end_headers()
                self.wfile.write(response)

            def log_message(self, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def close(self) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()

    def _response(self, path: str, body: bytes) -> bytes:
        if not path.endswith("/track"):
            return b""
        count = len(json.loads(body))
        return json.dumps({"itemsReceived": count, "itemsAccepted": count, "errors": []}).encode()

    @property
    def connection_string(self) -> str:
        """A connection string of Application Insights for this endpoint."""
        return f"InstrumentationKey={INSTRUMENTATION_KEY};IngestionEndpoint={self.url}/"

    # OTLP.

    @property
    def trace_exports(self) -> list[ExportTraceServiceRequest]:
        return [ExportTraceServiceRequest.FromString(body) for path, body in self.bodies if path == "/v1/traces"]

    @property
    def spans(self) -> list[Span]:
        return [
            span
            for export in self.trace_exports
            for resource in export.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    @property
    def metric_exports(self) -> list[ExportMetricsServiceRequest]:
        return [ExportMetricsServiceRequest.FromString(body) for path, body in self.bodies if path == "/v1/metrics"]

    def metrics(self) -> Iterator[Metric]:
        """Yield the metrics in the order in which they were received."""
        for export in self.metric_exports:
            for resource in export.resource_metrics:
                for scope in resource.scope_metrics:
                    yield from scope.metrics

    def last_pushed(self) -> dict[Series, float]:
        """Return the metrics `azureml_fe_*` as they were pushed last, with the names that Prometheus gives to the parts
        of a histogram."""
        samples: dict[Series, float] = {}
        for metric in self.metrics():
            if not metric.name.startswith("process_"):
                samples |= dict(_histogram(metric) if metric.HasField("histogram") else _numbers(metric))
        return samples

    # Application Insights.

    def items(self, base_type: str) -> list[dict[str, Any]]:
        """Return the items of a type, such as `RequestData`."""
        items = [item for path, body in self.bodies if path.endswith("/track") for item in json.loads(body)]
        return [item for item in items if item["data"]["baseType"] == base_type]


def _numbers(metric: Metric) -> Iterator[tuple[Series, float]]:
    is_counter = metric.HasField("sum")
    assert is_counter == metric.name.endswith("_total")
    if is_counter:
        assert metric.sum.is_monotonic
        assert metric.sum.aggregation_temporality == AggregationTemporality.AGGREGATION_TEMPORALITY_CUMULATIVE
    for point in (metric.sum if is_counter else metric.gauge).data_points:
        yield (metric.name, frozenset(_labels(point).items())), getattr(point, point.WhichOneof("value") or "")


def _histogram(metric: Metric) -> Iterator[tuple[Series, float]]:
    assert metric.histogram.aggregation_temporality == AggregationTemporality.AGGREGATION_TEMPORALITY_CUMULATIVE
    for point in metric.histogram.data_points:
        labels = _labels(point)
        total = 0
        for bound, count in zip([*point.explicit_bounds, math.inf], point.bucket_counts, strict=True):
            total += count
            le: str = floatToGoString(bound)  # type: ignore[no-untyped-call]
            yield (metric.name + "_bucket", frozenset({**labels, "le": le}.items())), total
        yield (metric.name + "_count", frozenset(labels.items())), point.count
        yield (metric.name + "_sum", frozenset(labels.items())), point.sum


def _labels(point: NumberDataPoint | HistogramDataPoint) -> dict[str, str]:
    return {each.key: each.value.string_value for each in point.attributes}


@pytest.fixture
def collector() -> Iterator[Collector]:
    """A collector that is closed at the end of the test."""
    collector = Collector()
    yield collector
    collector.close()
