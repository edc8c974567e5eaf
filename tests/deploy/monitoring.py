"""Reads the chart's alerts and dashboard, and runs a Prometheus server."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import subprocess
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from router.telemetry.catalogue import METRICS, MetricKind
from tests.deploy.chart import CHART
from tests.processes import is_listening, send_request, wait_until

RULES = CHART / "alerts" / "azureml-fe.yaml"
RULE_TESTS = Path(__file__).parent / "alerts.yaml"
DASHBOARD = CHART / "dashboards" / "azureml-fe.json"

needs_prometheus = pytest.mark.needs("prometheus", "promtool")


def alerts() -> dict[str, Mapping[str, Any]]:
    """Return the chart's alert rules by name."""
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return {rule["alert"]: rule for group in groups for rule in group["rules"]}


def dashboard() -> dict[str, Any]:
    """Return the chart's dashboard."""
    document: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return document


def queries() -> list[tuple[str, str]]:
    """Return the panel title and the expression of each query of the dashboard."""
    return [(panel["title"], target["expr"]) for panel in dashboard()["panels"] for target in panel.get("targets", ())]


def metrics_in(expression: str) -> set[str]:
    """Return the names of the router's series in an expression."""
    return set(re.findall(r"\bazureml_fe_\w+", expression))


def series() -> dict[str, tuple[str, ...]]:
    """Return the names of all series that the router exposes, with their labels."""
    labels_by_name = {}
    for spec in METRICS.values():
        endings = ("_bucket", "_count", "_sum") if spec.kind is MetricKind.HISTOGRAM else ("",)
        for ending in endings:
            labels = (*spec.labels, "le") if ending == "_bucket" else spec.labels
            labels_by_name[spec.full_name + ending] = labels
    return labels_by_name


class Prometheus:
    """A running Prometheus server that scrapes every 250 ms."""

    def __init__(self, port: int) -> None:
        self._port = port

    def query(self, expression: str) -> list[Any]:
        """Return the current result of an expression."""
        query = urllib.parse.urlencode({"query": expression})
        document = json.loads(send_request(self._port, f"/api/v1/query?{query}").body)
        assert document["status"] == "success", (expression, document)
        result: list[Any] = document["data"]["result"]
        return result

    def rules(self) -> list[Any]:
        """Return all rules with their evaluation state."""
        groups = json.loads(send_request(self._port, "/api/v1/rules").body)["data"]["groups"]
        return [rule for group in groups for rule in group["rules"]]


@contextlib.contextmanager
def prometheus(
    directory: Path, targets: Mapping[str, int], labels: Mapping[str, str], rule_files: Sequence[Path] = ()
) -> Iterator[Prometheus]:
    """Run a Prometheus server that scrapes local ports. `targets` has the port of each pod.

    Each target gets `labels`, as from the Prometheus operator. Labels of metrics take precedence, as in the chart's
    ServiceMonitor.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    interval = "250ms"
    scrape = {
        "job_name": "azureml-fe",
        "honor_labels": True,
        "static_configs": [
            {"targets": [f"127.0.0.1:{target}"], "labels": {**labels, "pod": pod}} for pod, target in targets.items()
        ],
    }
    config = {
        "global": {"scrape_interval": interval, "scrape_timeout": interval, "evaluation_interval": interval},
        "rule_files": [str(path) for path in rule_files],
        "scrape_configs": [scrape],
    }
    (directory / "prometheus.json").write_text(json.dumps(config))  # JSON is valid YAML
    command = [
        "prometheus",
        f"--config.file={directory / 'prometheus.json'}",
        f"--storage.tsdb.path={directory / 'data'}",
    ]
    command += [f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn"]
    with (directory / "prometheus.log").open("w") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            wait_until(lambda: process.poll() is not None or is_listening(port), "Prometheus")
            wait_until(lambda: send_request(port, "/-/ready").status == 200, "a ready Prometheus")
            yield Prometheus(port)
        finally:
            process.terminate()
