"""The chart's alert rules: right for Prometheus, each shown to fire and not to fire, about metrics that exist."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.chart import render, values_file
from tests.deploy.monitoring import RULE_TESTS, RULES, alerts, metrics_in, needs_prometheus, series

KEPT_APART_BY = {"cluster", "namespace", "pod", "instance"}  # labels that Prometheus puts to each target


def promtool(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["promtool", *map(str, words)], capture_output=True, text=True, check=False)


@needs_prometheus
def test_rules_are_right() -> None:
    checked = promtool("check", "rules", RULES)
    assert (checked.returncode, checked.stderr) == (0, "")


@needs_prometheus
def test_alerts_fire_when_they_must_and_only_then() -> None:
    tested = promtool("test", "rules", RULE_TESTS)
    assert tested.returncode == 0, tested.stdout + tested.stderr


@needs_prometheus
@pytest.mark.parametrize(
    "changed", [{"expr": "vector(1) > 2"}, {"for": "5h"}, {"expr": "vector(1)", "for": "0m"}], ids=str
)
def test_each_alert_has_a_case_that_would_notice(tmp_path: Path, changed: dict[str, str]) -> None:
    for name in alerts():
        document = yaml.safe_load(RULES.read_text())
        for group in document["groups"]:
            group["rules"] = [rule | changed if rule["alert"] == name else rule for rule in group["rules"]]
        (tmp_path / "rules.yaml").write_text(yaml.safe_dump(document))
        tests: dict[str, Any] = yaml.safe_load(RULE_TESTS.read_text())
        tests["tests"] = [test for test in tests["tests"] if f'"{name}"' in str(test)]
        (tmp_path / "tests.yaml").write_text(yaml.safe_dump({**tests, "rule_files": ["rules.yaml"]}))
        assert tests["tests"], name
        assert promtool("test", "rules", tmp_path / "tests.yaml").returncode != 0, name


def test_metrics_and_labels_of_alerts_exist() -> None:
    known = series()
    for name, rule in alerts().items():
        assert metrics_in(rule["expr"]), name
        for metric in metrics_in(rule["expr"]):
            assert metric in known, name
            for matchers in re.findall(metric + r"\{([^}]*)\}", rule["expr"]):
                assert set(re.findall(r"(\w+)=", matchers)) <= set(known[metric]), (name, metric)
        for grouped in re.findall(r"by \(([^)]*)\)", rule["expr"]):
            labels = set(grouped.split(", ")) - KEPT_APART_BY
            assert all(labels <= set(known[metric]) for metric in metrics_in(rule["expr"])), name


def test_alerts_say_what_is_wrong_and_how_bad() -> None:
    assert len(alerts()) == sum(len(group["rules"]) for group in yaml.safe_load(RULES.read_text())["groups"])
    for name, rule in alerts().items():
        assert re.fullmatch(r"AzuremlFe[A-Za-z]+", name)
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert set(rule["annotations"]) == {"summary", "description"}
        used = set(re.findall(r"\$labels\.(\w+)", str(rule["annotations"])))
        kept = {label for labels in re.findall(r"by \(([^)]*)\)", rule["expr"]) for label in labels.split(", ")}
        assert used <= kept, name


def test_rule_object_has_all_alerts_with_their_runbooks() -> None:
    groups = render(values_file("production"))["PrometheusRule", "azureml-fe"]["spec"]["groups"]
    rendered = {rule["alert"]: rule for group in groups for rule in group["rules"]}
    assert set(rendered) == set(alerts())
    for name, rule in rendered.items():
        runbook = rule["annotations"].pop("runbook_url")
        assert runbook == f"https://runbooks.example.com/azureml-fe.html#{name.lower()}"
        assert rule == alerts()[name]
    values = values_file("smallest") | {"prometheusRule": {"enabled": True}}
    plain = render(values)["PrometheusRule", "azureml-fe"]["spec"]["groups"]
    assert "runbook_url" not in str(plain)
