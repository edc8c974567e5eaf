"""Pushed metrics: the real exporters' payloads compared with the text of `/metrics`."""

import re
from collections import Counter

import pytest
from prometheus_client.parser import text_string_to_metric_families

from router.telemetry.catalogue import Sample
from router.telemetry.counters import GatewayCounters
from router.telemetry.metrics import MetricsSnapshot, render_metrics
from router.telemetry.metrics_push import MAX_POINTS, MetricsPush
from tests.processes import wait_until
from tests.telemetry.collector import INSTRUMENTATION_KEY, Collector, Series
from tests.telemetry.export_targets import export_target
from tests.telemetry.snapshots import snapshot_of


def counters(requests: int, *, versions: int = 2) -> GatewayCounters:
    gateway = GatewayCounters()
    gateway.connections_open = requests
    for number in range(versions):
        version = gateway.version((f"service-{number}", "blue"))
        version.responses[200, ""] = requests
        version.responses[503, "overloaded"] = number
        for _ in range(requests):
            version.duration.observe(0.5)
            version.duration.observe(0.0003)
    return gateway


def snapshot(gateway: GatewayCounters) -> MetricsSnapshot:
    return MetricsSnapshot(
        router_version="1.0",
        hot_path="interpreted",
        counters=snapshot_of(gateway),
        versions={},
        samples=(Sample("leader", True), Sample("config_errors", 2)),
    )


def scraped(current: MetricsSnapshot) -> dict[Series, float]:
    """Return the samples of `/metrics`, without those of the process."""
    body, _ = render_metrics(current, "")
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
        if not sample.name.startswith(("process_", "python_"))
    }


def otlp_push(collector: Collector) -> MetricsPush:
    return started(MetricsPush(export_target("metrics_push", "otlp", endpoint=collector.url), "pod-1"))


def started(push: MetricsPush) -> MetricsPush:
    push.start()
    return push


def results(push: MetricsPush) -> dict[str, float]:
    return {sample.labels[0]: sample.value for sample in push.samples()}


def test_otlp_has_the_names_labels_and_values_of_a_scrape(collector: Collector) -> None:
    push = otlp_push(collector)
    current = snapshot(counters(3))
    push.submit(current)
    push.stop()
    assert collector.last_pushed() == scraped(current)
    assert {metric.name for metric in collector.metrics()} >= {"process_cpu_seconds_total", "process_open_fds"}
    (resource,) = {
        tuple((each.key, each.value.string_value) for each in resource.resource.attributes)
        for export in collector.metric_exports
        for resource in export.resource_metrics
    }
    assert {"service.name": "azureml-fe", "service.instance.id": "pod-1"}.items() <= dict(resource).items()
    assert results(push) == {"ok": 1, "failed": 0}


def test_many_series_are_pushed_in_parts(collector: Collector) -> None:
    push = otlp_push(collector)
    current = snapshot(counters(1, versions=100))
    push.submit(current)
    wait_until(lambda: push.is_idle, "the push")
    push.stop()
    assert collector.last_pushed() == scraped(current)
    sizes = [
        sum(
            len(getattr(metric, metric.WhichOneof("data") or "").data_points)
            for resource in export.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        )
        for export in collector.metric_exports
    ]
    assert len(sizes) > 1
    assert max(sizes) == MAX_POINTS


def test_push_that_fails_loses_no_count(collector: Collector) -> None:
    collector.status = 400
    push = otlp_push(collector)
    push.submit(snapshot(counters(1)))
    wait_until(lambda: push.is_idle, "the push")
    collector.bodies.clear()
    collector.status = 200
    current = snapshot(counters(5))
    push.submit(current)
    push.stop()
    assert collector.last_pushed() == scraped(current)
    assert results(push) == {"ok": 1, "failed": 1}


def test_snapshot_that_waits_for_the_last_push_is_left_out(collector: Collector) -> None:
    collector.hangs.set()
    push = otlp_push(collector)
    push.submit(snapshot(counters(1)))
    wait_until(lambda: collector.bodies, "the first push")
    assert not push.is_idle
    push.leave_out()
    for _ in range(3):
        push.submit(snapshot(counters(2)))  # one waits
    assert results(push)["failed"] == 3
    push.stop()


def azure_values(collector: Collector) -> Counter[tuple[Series, str]]:
    """Return the sums of values and counts in all items, by series."""
    sums: Counter[tuple[Series, str]] = Counter()
    for item in collector.items("MetricData"):
        data = item["data"]["baseData"]
        (point,) = data["metrics"]
        series = point["name"], frozenset(data["properties"].items())
        sums[series, "value"] += point["value"]
        sums[series, "count"] += point["count"]
    return sums


def test_azure_monitor_gets_what_was_added_since_the_last_push_that_succeeded(collector: Collector) -> None:
    push = started(MetricsPush(export_target("metrics_push", "azure-monitor", collector.connection_string), "pod-1"))
    for requests, status in ((2, 200), (5, 400), (7, 200), (7, 200)):
        collector.status = status
        before = len(collector.bodies)
        push.submit(snapshot(counters(requests)))
        wait_until(lambda: push.is_idle, "the push")
        if status == 400:
            del collector.bodies[before:]
    push.stop()
    sums = azure_values(collector)
    labels = {"service": "service-1", "version": "blue"}
    response = {"code": "200", "code_class": "2xx", "answered_by": "replica", "error": ""}
    requests_total = "azureml_fe_requests_total", frozenset({**labels, **response}.items())
    assert sums[requests_total, "value"] == 7
    duration = "azureml_fe_request_duration_seconds", frozenset(labels.items())
    assert sums[duration, "count"] == 14
    assert sums[duration, "value"] == pytest.approx(7 * 0.5003, abs=1e-4)
    connections = "azureml_fe_client_connections_open", frozenset[tuple[str, str]]()
    assert sums[connections, "value"] == 2 + 7 + 7  # a gauge, in each push
    assert results(push) == {"ok": 3, "failed": 1}
    assert {item["iKey"] for item in collector.items("MetricData")} == {INSTRUMENTATION_KEY}
    names = {series[0] for series, _ in sums}
    assert all(re.fullmatch(r"(azureml_fe|process)_\w+", name) for name in names)
