"""The chart's alerts and dashboard as tests read them, and a Prometheus that runs."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import socket
import subprocess
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from router.telemetry.catalogue import METRICS, Kind
from tests.deploy.chart import CHART
from tests.processes import answers, ask, until

RULES = CHART / "alerts" / "azureml-fe.yaml"
RULE_TESTS = Path(__file__).parent / "alerts.yaml"
DASHBOARD = CHART / "dashboards" / "azureml-fe.json"

needs_prometheus = pytest.mark.skipif(
    shutil.which("promtool") is None or shutil.which("prometheus") is None,
    reason="needs promtool and prometheus, of Debian's package prometheus, which .ci/run installs",
)


def alerts() -> dict[str, Mapping[str, Any]]:
    """The chart's alert rules by name."""
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return {rule["alert"]: rule for group in groups for rule in group["rules"]}


def dashboard() -> dict[str, Any]:
    """The chart's dashboard."""
    document: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return document


def queries() -> list[tuple[str, str]]:
    """Title of the panel and query, for each query of the dashboard."""
    return [(panel["title"], target["expr"]) for panel in dashboard()["panels"] for target in panel.get("targets", ())]


def metrics_in(expression: str) -> set[str]:
    """Names of the router's series that an expression reads."""
    return set(re.findall(r"\bazureml_fe_\w+", expression))


def series() -> dict[str, tuple[str, ...]]:
    """Names of all series that the router exposes, with their labels."""
    found = {}
    for spec in METRICS.values():
        endings = ("_bucket", "_count", "_sum") if spec.kind is Kind.HISTOGRAM else ("",)
        for ending in endings:
            labels = (*spec.labels, "le") if ending == "_bucket" else spec.labels
            found[spec.full_name + ending] = labels
    return found


class Prometheus:
    """A Prometheus that scrapes four times a second."""

    def __init__(self, port: int) -> None:
        self._port = port

    def query(self, expression: str) -> list[Any]:
        """What an expression has as its value now."""
        words = urllib.parse.urlencode({"query": expression})
        answer = json.loads(ask(self._port, f"/api/v1/query?{words}").body)
        assert answer["status"] == "success", (expression, answer)
        result: list[Any] = answer["data"]["result"]
        return result

    def rules(self) -> list[Any]:
        """The rules that it evaluates, with how that went."""
        groups = json.loads(ask(self._port, "/api/v1/rules").body)["data"]["groups"]
        return [rule for group in groups for rule in group["rules"]]


@contextlib.contextmanager
def prometheus(
    folder: Path, targets: Mapping[str, int], labels: Mapping[str, str], rule_files: Sequence[Path] = ()
) -> Iterator[Prometheus]:
    """One that scrapes ports of this machine by the name of their pod. `labels` are each target's, as the Prometheus
    operator puts them; labels of the metrics win, as the chart's ServiceMonitor asks."""
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
    (folder / "prometheus.json").write_text(json.dumps(config))  # JSON is YAML
    words = ["prometheus", f"--config.file={folder / 'prometheus.json'}", f"--storage.tsdb.path={folder / 'data'}"]
    words += [f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn"]
    with (folder / "said.txt").open("w") as said, subprocess.Popen(words, stdout=said, stderr=said) as process:
        try:
            until(lambda: process.poll() is not None or answers(port), "Prometheus")
            until(lambda: ask(port, "/-/ready").status == 200, "Prometheus to be ready")
            yield Prometheus(port)
        finally:
            process.terminate()
