"""Requests and dependencies that Application Insights receives from the real exporter."""

import json
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from router.telemetry.tracing import app_insights_score
from tests.processes import running_processes, send_request, wait_until
from tests.routers import StartRouter, open_echo_service
from tests.telemetry.collector import INSTRUMENTATION_KEY, Collector

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
VARIABLE = "APPLICATIONINSIGHTS_CONNECTION_STRING"


@pytest.fixture(autouse=True)
def _no_connection_string(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)


def connection_file(directory: Path, collector: Collector) -> str:
    path = directory / "connection string"
    path.write_text(collector.connection_string + "\n")
    return str(path)


def of_service(items: Sequence[dict[str, Any]], service: str) -> list[dict[str, Any]]:
    return [item for item in items if item["data"]["baseData"]["properties"].get("azureml_fe.service") == service]


def test_request_and_dependency_continue_the_client_trace(
    start: StartRouter, collector: Collector, tmp_path: Path
) -> None:
    services = {"iris": open_echo_service(enable_app_insights=True), "other": open_echo_service()}
    router = start(services, app_insights_connection_string_file=connection_file(tmp_path, collector))
    before = time.time()
    # Clients with the older libraries of Application Insights do not set the sampled flag.
    sent = {"traceparent": f"00-{TRACE}-{PARENT}-00", "tracestate": "vendor=1", "x-ms-client-request-id": "mine"}
    assert send_request(router.port, "/api/v1/service/other/headers", b"[1]", **sent).status == 200
    response = send_request(router.port, "/api/v1/service/iris/headers", b"[1]", **sent)
    seconds = time.time() - before
    wait_until(lambda: collector.items("RequestData"), "a request")
    (request,) = collector.items("RequestData")
    (dependency,) = collector.items("RemoteDependencyData")
    data, dependency_data = request["data"]["baseData"], dependency["data"]["baseData"]

    assert request["iKey"] == dependency["iKey"] == INSTRUMENTATION_KEY
    for item in (request, dependency):
        assert item["tags"]["ai.operation.id"] == TRACE
        assert item["tags"]["ai.cloud.role"] == "azureml-fe"
        assert item["tags"]["ai.cloud.roleInstance"] == router.status()["router"]["pod"]
        assert 0 < duration(item["data"]["baseData"]["duration"]) <= seconds
        assert item["sampleRate"] == 100
    assert request["tags"]["ai.operation.name"] == data["name"] == "POST /api/v1/service/iris/*"
    assert request["tags"]["ai.operation.parentId"] == PARENT
    assert request["tags"]["ai.location.ip"] == "127.0.0.1"
    assert (data["responseCode"], data["success"]) == ("200", True)
    assert data["url"] == "/api/v1/service/iris/headers"
    properties = data["properties"]
    assert (properties["azureml_fe.service"], properties["azureml_fe.version"]) == ("iris", "default")
    assert properties["azureml_fe.request_id"] == response.headers["x-ms-request-id"]
    assert properties["azureml_fe.client_request_id"] == "mine"

    (port,) = (each["port"] for each in router.log("replica starts") if each["service"] == "iris")
    assert dependency["tags"]["ai.operation.parentId"] == data["id"]
    assert (dependency_data["type"], dependency_data["target"]) == ("HTTP", "iris")
    assert dependency_data["name"] == "POST /headers"
    assert dependency_data["data"] == f"http://127.0.0.1:{port}/headers"
    assert (dependency_data["resultCode"], dependency_data["success"]) == ("200", True)
    # The replica's own telemetry belongs to the dependency.
    received = json.loads(response.body)
    assert received["traceparent"] == f"00-{TRACE}-{dependency_data['id']}-01"
    assert received["tracestate"] == "vendor=1"
    assert router.metric("app_insights_requests_dropped_total") == 0
    imported = [line for line in Path(f"/proc/{router.workers[0]}/maps").read_text().splitlines() if "azure/" in line]
    assert imported == []


def test_failed_requests_have_their_result_code(start: StartRouter, collector: Collector, tmp_path: Path) -> None:
    services = {
        "keys": {**open_echo_service(enable_app_insights=True), "auth_enabled": True},
        "gone": {"addresses": ["127.0.0.1:1"], "auth_enabled": False, "enable_app_insights": True},
    }
    router = start(services, serving=False, app_insights_connection_string_file=connection_file(tmp_path, collector))
    router.wait_until_serving()
    wait_until(lambda: router.score("keys").status == 401, "the service")
    assert router.score("gone").status == 503
    wait_until(lambda: of_service(collector.items("RequestData"), "gone"), "a failed request")
    (unauthorized, *_) = of_service(collector.items("RequestData"), "keys")
    (refused,) = of_service(collector.items("RequestData"), "gone")
    for item, code, error in ((unauthorized, "401", "unauthorized"), (refused, "503", "no-ready-replicas")):
        data = item["data"]["baseData"]
        assert (data["responseCode"], data["success"]) == (code, False)
        assert data["properties"]["azureml_fe.error"] == error
        assert data["name"].endswith("/score")
    assert collector.items("RemoteDependencyData") == []  # they did not reach a replica


def test_sampled_share_has_its_rate(start: StartRouter, collector: Collector, tmp_path: Path) -> None:
    router = start(
        {"iris": open_echo_service(enable_app_insights=True)},
        app_insights_connection_string_file=connection_file(tmp_path, collector),
        app_insights_sample_ratio=0.5,
    )
    rng = random.Random(1)
    traces = [f"{rng.getrandbits(128):032x}" for _ in range(40)]
    expected = [trace for trace in traces if app_insights_score(trace) < 0.5]
    assert 0 < len(expected) < len(traces)
    for trace in traces:
        response = send_request(
            router.port, "/api/v1/service/iris/headers", b"[1]", traceparent=f"00-{trace}-{PARENT}-01"
        )
        # Nobody records a span of the router for the others, so the client's span stays the parent.
        is_parent = json.loads(response.body)["traceparent"] == f"00-{trace}-{PARENT}-01"
        assert is_parent == (trace not in expected)
    wait_until(lambda: len(collector.items("RequestData")) == len(expected), "the sampled requests")
    assert {item["tags"]["ai.operation.id"] for item in collector.items("RequestData")} == set(expected)
    assert {item["sampleRate"] for item in collector.items("RequestData")} == {50}


def test_enabled_and_disabled_at_run_time(start: StartRouter, collector: Collector, tmp_path: Path) -> None:
    settings = {"app_insights_connection_string_file": connection_file(tmp_path, collector)}
    router = start({"iris": open_echo_service()}, **settings)
    header = {"traceparent": f"00-{TRACE}-{PARENT}-01"}

    def is_traced() -> bool:
        response = send_request(router.port, "/api/v1/service/iris/headers", b"[1]", **header)
        return bool(json.loads(response.body)["traceparent"] != header["traceparent"])

    assert not is_traced()
    router.apply_services({"iris": open_echo_service(enable_app_insights=True)})
    wait_until(is_traced, "the changed setting")
    router.apply_services({"iris": open_echo_service()})
    wait_until(lambda: not is_traced(), "the changed setting")


def test_request_is_sent_once_if_traces_go_to_application_insights_too(
    start: StartRouter, collector: Collector, tmp_path: Path
) -> None:
    router = start(
        {"iris": open_echo_service(enable_app_insights=True), "other": open_echo_service()},
        app_insights_connection_string_file=connection_file(tmp_path, collector),
        traces="azure-monitor",
        trace_sample_ratio="on",
    )
    assert router.score("iris").status == router.score("other").status == 200
    wait_until(lambda: len(collector.items("RequestData")) >= 2, "both requests")
    router.stop()
    assert sorted(item["data"]["baseData"]["name"] for item in collector.items("RequestData")) == [
        "POST /api/v1/service/iris/score",
        "POST /api/v1/service/{service}",
    ]


@pytest.mark.parametrize("fault", ["refuses", "fails", "hangs"])
def test_endpoint_without_a_good_response_costs_no_request(
    start: StartRouter, collector: Collector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    monkeypatch.setenv(VARIABLE, collector.connection_string)
    if fault == "refuses":
        collector.close()
    elif fault == "fails":
        collector.status = 400
    else:
        collector.hangs.set()
    router = start({"iris": open_echo_service(enable_app_insights=True)})
    assert {router.score("iris").status for _ in range(20)} == {200}
    if fault == "hangs":
        wait_until(lambda: collector.bodies, "an export")
    else:
        wait_until(lambda: router.metric("app_insights_requests_dropped_total") >= 1, "dropped requests")
        (line, *_) = router.log("cannot export spans")
        assert line["setting"] == "enable_app_insights"
        assert line["error"]
    assert router.score("iris").status == 200
    # The connection string is in the environment, and nowhere else.
    shown = [router.stderr, router.stdout, json.dumps(router.status()), *map(str, router.metrics())]
    shown += [str(each) for each in running_processes()]
    assert not [text for text in shown if INSTRUMENTATION_KEY in text]


def test_missing_connection_string_is_a_problem_and_costs_no_request(start: StartRouter) -> None:
    router = start({"iris": open_echo_service(enable_app_insights=True)})
    assert router.score("iris").status == 200
    wait_until(lambda: router.metric("app_insights_requests_dropped_total") == 1, "a dropped request")
    problems = json.dumps(router.status()["problems"])
    assert "Application Insights gets no requests" in problems
    assert "app_insights_connection_string_file" in problems


def duration(text: str) -> float:
    """Return the seconds of a duration such as `0.00:00:01.234`."""
    days, _, time_of_day = text.partition(".")
    hours, minutes, seconds = time_of_day.split(":")
    return int(days) * 86_400 + int(hours) * 3600 + int(minutes) * 60 + float(seconds)
