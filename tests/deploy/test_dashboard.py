"""Each query of the chart's dashboard has a result in a Prometheus server that scrapes a router."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from router.telemetry.catalogue import Sample
from router.telemetry.counters import GatewayCounters
from router.telemetry.metrics import MetricsSnapshot, render_metrics
from tests.deploy.chart import render, values_file
from tests.deploy.monitoring import (
    DASHBOARD,
    RULES,
    Prometheus,
    alerts,
    dashboard,
    metrics_in,
    needs_prometheus,
    prometheus,
    queries,
    series,
)
from tests.processes import PendingRequest, wait_until
from tests.routers import StartRouter, echo_service, open_echo_service
from tests.telemetry.snapshots import snapshot_of

CLUSTER_SAMPLES = (
    Sample("self_scaling_cpu_cores", 2),
    Sample("self_scaling_pods", 3),
    Sample("self_scaling_at_limit", 0),
    Sample("self_scaling_actions", 4, ("cpu-up",)),
    Sample("self_scaling_route_time_seconds", 0.001),
    Sample("self_scaling_loop_lag_seconds", 0.001),
    Sample("self_scaling_cpu_use_ratio", 0.5),
    Sample("self_scaling_throttled_ratio", 0.01),
    Sample("api_requests", 100, ("list", "200")),
    Sample("api_watch_restarts", 1, ("pods",)),
    Sample("api_staleness_seconds", 0.5, ("pods",)),
    Sample("certificate_expiry_timestamp_seconds", 2e9, ("server",)),
    Sample("token_cache_lookups", 10, ("hit",)),
    Sample("jwks_age_seconds", 60, ("https://issuer",)),
    Sample("autoscaler_conflicts", 0, ("slow", "default")),
    Sample("deployment_problems", 1, ("SettingsRefused",)),
)
"""Metrics that only a router in a cluster has."""


class ClusterMetrics(BaseHTTPRequestHandler):
    """Serves metrics that a local router has rarely or never, rendered by the router's own code."""

    def do_GET(self) -> None:
        counters = GatewayCounters()
        counters.version(("slow", "default")).retry_causes["stale"] += 1
        counters.version(("slow", "default")).connect_failures["refused"] += 1
        view = MetricsSnapshot(
            router_version="1.2.3",
            hot_path="interpreted",
            counters=snapshot_of(counters),
            versions={},
            samples=CLUSTER_SAMPLES,
        )
        body, content_type = render_metrics(view, self.headers.get("Accept", ""))
        self.send_response(200)
        self.send_header("Content-Type", content_type)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def cluster_metrics() -> Iterator[int]:
    with ThreadingHTTPServer(("127.0.0.1", 0), ClusterMetrics) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def scraped(
    start_for_all: StartRouter, cluster_metrics: int, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Prometheus, str]]:
    """A Prometheus server that has scraped a router with all kinds of traffic, and the names of the services."""
    services = {
        "iris": open_echo_service(),
        "locked": echo_service(),
        "slow": open_echo_service(delay=0.4, max_request_wait_time=20, scoring_timeout_ms=60_000),
    }
    router = start_for_all(services)
    path = "/api/v1/service/slow/score"
    targets = {"azureml-fe-0": router.admin_port, "azureml-fe-1": cluster_metrics}
    labels = {"namespace": "azureml", "service": "azureml-fe-admin"}
    with prometheus(tmp_path_factory.mktemp("prometheus"), targets, labels, [RULES]) as server:

        def traffic() -> None:
            for _ in range(20):
                assert router.score("iris").status == 200
            assert router.score("locked").status == 401
            assert router.score("missing").status == 404
            overload = [PendingRequest(router.port, path) for _ in range(3)]
            assert {pending.response().status for pending in overload} == {200, 503}

        traffic()
        # A rate needs two samples. The first sample of a series has no rate.
        wait_until(lambda: server.query('azureml_fe_requests_total{error="overloaded"} > 0'), "the first traffic")
        traffic()
        yield server, "|".join(services)


@needs_prometheus
def test_each_query_has_a_result(scraped: tuple[Prometheus, str]) -> None:
    server, services = scraped
    variables = {"$namespace": "azureml", "$service": services, "$__rate_interval": "1m"}
    for title, query in queries():
        for name, value in variables.items():
            query = query.replace(name, value)
        assert "$" not in query, title
        # NaN is no result: the quantile or ratio of no requests.
        wait_until(lambda q=query: [s for s in server.query(q) if s["value"][1] != "NaN"], f"{title}: {query}")  # type: ignore[misc]


@needs_prometheus
def test_dashboard_variables_have_values(scraped: tuple[Prometheus, str]) -> None:
    server, services = scraped
    for variable in dashboard()["templating"]["list"]:
        if variable["type"] == "query":
            metric, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["query"]["query"]).groups()  # type: ignore[union-attr]
            wait_until(lambda m=metric: server.query(m), metric)  # type: ignore[misc]
            values = {sample["metric"].get(label) for sample in server.query(metric)}
            assert values == {"namespace": {"azureml"}, "service": set(services.split("|"))}[variable["name"]]


@needs_prometheus
def test_alert_rules_evaluate_and_none_fires_when_idle(scraped: tuple[Prometheus, str]) -> None:
    server, _ = scraped
    wait_until(lambda: {rule["health"] for rule in server.rules()} == {"ok"}, "evaluation of all rules")
    assert {rule["name"] for rule in server.rules()} == set(alerts())
    assert server.query('ALERTS{alertstate="firing"}') == []


def test_metrics_and_labels_of_queries_exist() -> None:
    known = series()
    for title, query in queries():
        for metric in metrics_in(query):
            assert metric in known, title
            for matchers in re.findall(metric + r"\{([^}]*)\}", query):
                labels = set(re.findall(r"(\w+)[=!]", matchers))
                assert labels <= {*known[metric], "namespace"}, (title, metric)


def test_panels_do_not_overlap() -> None:
    occupied: set[tuple[int, int]] = set()
    for panel in dashboard()["panels"]:
        position = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(position["x"], position["x"] + position["w"])
            for y in range(position["y"], position["y"] + position["h"])
        }
        assert not occupied & cells, panel["title"]
        assert max(x for x, _ in cells) < 24
        occupied |= cells
    panel_ids = [panel["id"] for panel in dashboard()["panels"]]
    assert len(set(panel_ids)) == len(panel_ids)


def test_dashboard_is_in_its_config_map() -> None:
    data = render(values_file("production"))["ConfigMap", "azureml-fe-dashboard"]
    assert json.loads(data["data"]["azureml-fe.json"]) == json.loads(DASHBOARD.read_text())
    assert data["metadata"]["labels"]["grafana_dashboard"] == "1"
