"""Spans that a collector receives over the real protocol."""

import json
import time
from typing import Any

from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from router.telemetry.spans import ReplicaEndpoint, SpanBuilder, SpanExport
from router.telemetry.tracing import TracedRequest, Tracer
from tests.processes import Response, send_request, wait_until
from tests.routers import StartRouter, open_echo_service
from tests.telemetry.collector import Collector
from tests.telemetry.export_targets import export_target
from tests.telemetry.test_journal import entry

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


def attributes(span: Span) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value") or "") for each in span.attributes}


def trace_fields(response: Response) -> dict[str, str]:
    """Return the trace headers that the replica received, which it echoes in its response."""
    headers: dict[str, str] = json.loads(response.body)
    return {name: value for name, value in headers.items() if name.startswith("trace")}


def test_spans_of_a_request_continue_the_client_trace(start: StartRouter, collector: Collector) -> None:
    router = start({"iris": open_echo_service()}, traces="otlp", otlp_endpoint=collector.url, trace_sample_ratio=0)
    before = time.time()
    sent = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "vendor=1"}
    response = send_request(router.port, "/api/v1/service/iris/headers", b"[1]", **sent)
    expected = {"POST /api/v1/service/{service}", "queue", "connect", "POST"}
    wait_until(lambda: expected <= {span.name for span in collector.spans}, "spans")
    spans = {span.name: span for span in collector.spans}
    spans.pop("body", None)  # there is one if the body arrived later than the head
    assert set(spans) == expected
    server, client = spans["POST /api/v1/service/{service}"], spans["POST"]
    assert {span.trace_id.hex() for span in spans.values()} == {TRACE}
    assert server.parent_span_id.hex() == PARENT
    assert {spans[name].parent_span_id for name in ("queue", "connect", "POST")} == {server.span_id}
    assert len({span.span_id for span in spans.values()}) == 4
    assert (server.kind, client.kind) == (Span.SPAN_KIND_SERVER, Span.SPAN_KIND_CLIENT)
    assert trace_fields(response) == {"traceparent": f"00-{TRACE}-{client.span_id.hex()}-01", "tracestate": "vendor=1"}
    server_attributes = attributes(server)
    assert server_attributes["http.response.status_code"] == 200
    assert server_attributes["azureml_fe.request_id"] == response.headers["x-ms-request-id"]
    assert (server_attributes["azureml_fe.service"], server_attributes["http.request.method"]) == ("iris", "POST")
    (port,) = router.replicas().values()
    assert (attributes(client)["server.address"], attributes(client)["server.port"]) == ("127.0.0.1", port)
    for span in spans.values():
        assert before <= span.start_time_unix_nano / 1e9 <= span.end_time_unix_nano / 1e9 <= time.time()
        assert span.status.code == Status.STATUS_CODE_UNSET
    resource = {
        each.key: each.value.string_value for each in collector.trace_exports[0].resource_spans[0].resource.attributes
    }
    assert resource["service.name"] == "azureml-fe"


def test_sampled_spans_of_rejected_requests(start: StartRouter, collector: Collector) -> None:
    services = {"iris": open_echo_service(), "keys": {**open_echo_service(), "auth_enabled": True}}
    router = start(services, traces="otlp", otlp_endpoint=collector.url, trace_sample_ratio="on")
    assert router.score("iris", traceparent=f"00-{TRACE}-{PARENT}-00").status == 200
    assert router.score("keys").status == 401
    wait_until(lambda: collector.spans, "a span")
    (span,) = collector.spans  # the client's decision not to sample is followed
    assert span.parent_span_id == b""
    assert attributes(span)["error.type"] == "unauthorized"
    assert span.status.code == Status.STATUS_CODE_UNSET  # a client error is not an error of the server
    assert router.score("nothing").status == 404  # no span without a service, as any client can cause such requests
    assert router.score("iris").status == 200
    wait_until(lambda: len(collector.spans) > 1, "more spans")
    assert {attributes(each).get("azureml_fe.service") for each in collector.spans} <= {"keys", "iris", None}
    scrape = send_request(
        router.admin_port, "/metrics", Accept="application/openmetrics-text; version=1.0.0"
    ).body.decode()
    trace = next(
        each.trace_id.hex() for each in collector.spans if attributes(each).get("azureml_fe.service") == "iris"
    )
    assert f'trace_id="{trace}"' in scrape


def test_failing_collector_drops_spans_but_not_requests(start: StartRouter, collector: Collector) -> None:
    collector.status = 400
    router = start({"iris": open_echo_service()}, traces="otlp", otlp_endpoint=collector.url, trace_sample_ratio="on")
    assert router.score("iris").status == 200
    wait_until(lambda: router.metric("spans_dropped_total") > 0, "a dropped span")
    assert router.log("cannot export spans")
    assert router.score("iris").status == 200


def test_trace_headers_are_forwarded_while_traces_are_off(start: StartRouter) -> None:
    router = start({"iris": open_echo_service()})
    sent = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "a=1"}
    assert trace_fields(send_request(router.port, "/api/v1/service/iris/headers", b"[1]", **sent)) == sent
    assert trace_fields(send_request(router.port, "/api/v1/service/iris/headers", b"[1]")) == {}


def test_azure_monitor_gets_the_same_spans(collector: Collector) -> None:
    target = export_target("traces", "azure-monitor", collector.connection_string)
    export = SpanExport(
        target,
        lambda: SpanBuilder("pod-1", "/score/{service}", lambda *_: ReplicaEndpoint("10.0.0.1", 5001, "/score")),
    )
    export.prepare()
    export.start()
    context = Tracer(0.0).new_context(f"00-{TRACE}-{PARENT}-01".encode())
    export.submit([TracedRequest(context, "POST", entry(1, queued_seconds=0.0))], 1.7e9)
    export.stop()
    assert export.dropped == 0
    (request,) = collector.items("RequestData")
    (dependency,) = collector.items("RemoteDependencyData")
    assert request["tags"]["ai.operation.id"] == dependency["tags"]["ai.operation.id"] == TRACE
    assert request["data"]["baseData"]["name"] == "POST /score/{service}"
    assert dependency["data"]["baseData"]["target"] == "10.0.0.1:5001"
    assert len(collector.bodies) == 1  # no telemetry about the exporter itself
