"""Spans arrive at a collector that is asked over the real protocol."""

import gzip
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from router.services import SettingsError
from router.telemetry.spans import SpanExport, make_exporter
from router.telemetry.tracing import Traced, Tracer
from tests.processes import Answer, ask, until
from tests.routers import Start, open_echo
from tests.telemetry.test_journal import entry

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


class Collector:
    """Takes what is exported to it."""

    def __init__(self) -> None:
        self.bodies: list[tuple[str, bytes]] = []
        self.status = 200
        self.answer = b""
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                collector.bodies.append((self.path, body))
                answer = collector.answer
                self.send_response(collector.status)
                self.send_header("Content-Type", "application/json" if answer else "application/x-protobuf")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def exports(self) -> list[ExportTraceServiceRequest]:
        assert {path for path, _ in self.bodies} <= {"/v1/traces"}
        return [ExportTraceServiceRequest.FromString(body) for _, body in self.bodies]

    @property
    def spans(self) -> list[Span]:
        return [
            span
            for export in self.exports
            for resource in export.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.close()


def attributes(span: Span) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value") or "") for each in span.attributes}


def trace_fields(answer: Answer) -> dict[str, str]:
    """What the replica was told of the trace."""
    headers: dict[str, str] = json.loads(answer.body)
    return {name: value for name, value in headers.items() if name.startswith("trace")}


def test_spans_of_a_request_within_its_clients_trace(start: Start, collector: Collector) -> None:
    router = start({"iris": open_echo()}, traces="otlp", otlp_endpoint=collector.url, trace_sample_ratio=0)
    before = time.time()
    sent = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "vendor=1"}
    answer = ask(router.port, "/api/v1/service/iris/headers", b"[1]", **sent)
    until(lambda: len(collector.spans) >= 4, "spans")
    spans = {span.name: span for span in collector.spans}
    assert set(spans) == {"POST /api/v1/service/{service}", "queue", "connect", "POST"}
    server, client = spans["POST /api/v1/service/{service}"], spans["POST"]
    assert {span.trace_id.hex() for span in spans.values()} == {TRACE}
    assert server.parent_span_id.hex() == PARENT
    assert {spans[name].parent_span_id for name in ("queue", "connect", "POST")} == {server.span_id}
    assert len({span.span_id for span in spans.values()}) == 4
    assert (server.kind, client.kind) == (Span.SPAN_KIND_SERVER, Span.SPAN_KIND_CLIENT)
    assert trace_fields(answer) == {"traceparent": f"00-{TRACE}-{client.span_id.hex()}-01", "tracestate": "vendor=1"}
    known = attributes(server)
    assert known["http.response.status_code"] == 200
    assert known["azureml_fe.request_id"] == answer.headers["x-ms-request-id"]
    assert (known["azureml_fe.service"], known["http.request.method"]) == ("iris", "POST")
    (port,) = router.replicas().values()
    assert (attributes(client)["server.address"], attributes(client)["server.port"]) == ("127.0.0.1", port)
    for span in spans.values():
        assert before <= span.start_time_unix_nano / 1e9 <= span.end_time_unix_nano / 1e9 <= time.time()
        assert span.status.code == Status.STATUS_CODE_UNSET
    resource = {
        each.key: each.value.string_value for each in collector.exports[0].resource_spans[0].resource.attributes
    }
    assert resource["service.name"] == "azureml-fe"


def test_sampling_and_what_went_wrong(start: Start, collector: Collector) -> None:
    services = {"iris": open_echo(), "keys": {**open_echo(), "auth_enabled": True}}
    router = start(services, traces="otlp", otlp_endpoint=collector.url, trace_sample_ratio="on")
    assert router.score("iris", traceparent=f"00-{TRACE}-{PARENT}-00").status == 200
    assert router.score("keys").status == 401
    until(lambda: collector.spans, "a span")
    (span,) = collector.spans  # what the client does not sample is not sampled
    assert span.parent_span_id == b""
    assert attributes(span)["error.type"] == "unauthorized"
    assert span.status.code == Status.STATUS_CODE_UNSET  # a client's fault is no error of the server
    assert router.score("nothing").status == 404  # no service: no span, as anybody could make them
    assert router.score("iris").status == 200
    until(lambda: len(collector.spans) > 1, "more spans")
    assert {attributes(each).get("azureml_fe.service") for each in collector.spans} <= {"keys", "iris", None}
    scrape = ask(router.admin_port, "/metrics", Accept="application/openmetrics-text; version=1.0.0").body.decode()
    trace = next(
        each.trace_id.hex() for each in collector.spans if attributes(each).get("azureml_fe.service") == "iris"
    )
    assert f'trace_id="{trace}"' in scrape


def test_a_collector_that_fails_costs_spans_and_nothing_else(start: Start, collector: Collector) -> None:
    collector.status = 400
    router = start({"iris": open_echo()}, traces="otlp", otlp_endpoint=collector.url, trace_sample_ratio="on")
    assert router.score("iris").status == 200
    until(lambda: router.metric("spans_dropped_total") > 0, "a dropped span")
    assert router.log("spans cannot be exported")
    assert router.score("iris").status == 200


def test_off_means_that_all_passes_by(start: Start) -> None:
    router = start({"iris": open_echo()})
    sent = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "a=1"}
    assert trace_fields(ask(router.port, "/api/v1/service/iris/headers", b"[1]", **sent)) == sent
    assert trace_fields(ask(router.port, "/api/v1/service/iris/headers", b"[1]")) == {}


def test_azure_monitor_is_told_where_to_find_its_connection_string(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("APPLICATIONINSIGHTS_CONNECTION_STRING", raising=False)
    with pytest.raises(SettingsError, match="APPLICATIONINSIGHTS_CONNECTION_STRING"):
        make_exporter("azure-monitor", "")


def test_azure_monitor_gets_the_same_spans(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APPLICATIONINSIGHTS_STATSBEAT_DISABLED_ALL", "True")  # what the exporter tells of itself
    monkeypatch.setenv(
        "APPLICATIONINSIGHTS_CONNECTION_STRING",
        f"InstrumentationKey=00000000-0000-0000-0000-000000000001;IngestionEndpoint={collector.url}/",
    )
    collector.answer = b'{"itemsReceived": 2, "itemsAccepted": 2, "errors": []}'
    export = SpanExport(make_exporter("azure-monitor", ""), "pod-1", "/score/{service}", lambda *_: ("10.0.0.1", 5001))
    export.start()
    context = Tracer(0.0).context(f"00-{TRACE}-{PARENT}-01".encode())
    export.take([Traced(context, "POST", entry(1, queued_seconds=0.0))], 1.7e9)
    export.stop()
    assert export.dropped == 0
    ((path, body),) = collector.bodies
    assert path.endswith("/track")
    items = {item["data"]["baseType"]: item for item in json.loads(body)}
    assert set(items) == {"RequestData", "RemoteDependencyData"}
    assert items["RequestData"]["tags"]["ai.operation.id"] == TRACE
    assert items["RequestData"]["data"]["baseData"]["name"] == "POST /score/{service}"
