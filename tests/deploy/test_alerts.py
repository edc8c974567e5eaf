"""The chart's alert rules are valid, fire exactly when they should, and use existing metrics."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.deploy.chart import render, values_file
from tests.deploy.monitoring import RULE_TESTS, RULES, alerts, metrics_in, needs_prometheus, series

TARGET_LABELS = {"cluster", "namespace", "pod", "instance"}  # Prometheus adds them to each target


def promtool(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["promtool", *map(str, arguments)], capture_output=True, text=True, check=False)


@needs_prometheus
def test_alert_rules_are_valid() -> None:
    checked = promtool("check", "rules", RULES)
    assert (checked.returncode, checked.stderr) == (0, "")


@needs_prometheus
def test_alerts_fire_exactly_when_expected() -> None:
    tested = promtool("test", "rules", RULE_TESTS)
    assert tested.returncode == 0, tested.stdout + tested.stderr


@needs_prometheus
@pytest.mark.parametrize(
    "changed", [{"expr": "vector(1) > 2"}, {"for": "5h"}, {"expr": "vector(1)", "for": "0m"}], ids=str
)
def test_each_alert_has_a_case_that_detects_changes(tmp_path: Path, changed: dict[str, str]) -> None:
    rules, cases = yaml.safe_load(RULES.read_text()), yaml.safe_load(RULE_TESTS.read_text())
    for name in alerts():
        groups = [
            group | {"rules": [rule | changed if rule["alert"] == name else rule for rule in group["rules"]]}
            for group in rules["groups"]
        ]
        (tmp_path / f"{name}.rules.yaml").write_text(json.dumps({"groups": groups}))
        cases_of_alert = [case for case in cases["tests"] if f'"{name}"' in str(case)]
        assert cases_of_alert, name
        test_file = cases | {"rule_files": [f"{name}.rules.yaml"], "tests": cases_of_alert}
        (tmp_path / f"{name}.yaml").write_text(json.dumps(test_file))
    tested = promtool("test", "rules", *(tmp_path / f"{name}.yaml" for name in alerts()))
    assert re.findall(r"Unit Testing: .*/(\w+)\.yaml", tested.stdout) == list(alerts())
    assert "SUCCESS" not in tested.stdout, tested.stdout  # printed below the name of the alert


def test_metrics_and_labels_of_alerts_exist() -> None:
    known = series()
    for name, rule in alerts().items():
        assert metrics_in(rule["expr"]), name
        for metric in metrics_in(rule["expr"]):
            assert metric in known, name
            for matchers in re.findall(metric + r"\{([^}]*)\}", rule["expr"]):
                assert set(re.findall(r"(\w+)=", matchers)) <= set(known[metric]), (name, metric)
        for grouped in re.findall(r"by \(([^)]*)\)", rule["expr"]):
            labels = set(grouped.split(", ")) - TARGET_LABELS
            assert all(labels <= set(known[metric]) for metric in metrics_in(rule["expr"])), name


def test_alerts_have_a_severity_and_a_summary() -> None:
    assert len(alerts()) == sum(len(group["rules"]) for group in yaml.safe_load(RULES.read_text())["groups"])
    for name, rule in alerts().items():
        assert re.fullmatch(r"AzuremlFe[A-Za-z]+", name)
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert set(rule["annotations"]) == {"summary", "description"}
        used_labels = set(re.findall(r"\$labels\.(\w+)", str(rule["annotations"])))
        result_labels = {
            label for labels in re.findall(r"by \(([^)]*)\)", rule["expr"]) for label in labels.split(", ")
        }
        assert used_labels <= result_labels, name


def test_prometheus_rule_has_all_alerts_with_runbook_urls() -> None:
    groups = render(values_file("production"))["PrometheusRule", "azureml-fe"]["spec"]["groups"]
    rendered = {rule["alert"]: rule for group in groups for rule in group["rules"]}
    assert set(rendered) == set(alerts())
    for name, rule in rendered.items():
        runbook = rule["annotations"].pop("runbook_url")
        assert runbook == f"https://runbooks.example.com/azureml-fe.html#{name.lower()}"
        assert rule == alerts()[name]
    values = values_file("smallest") | {"prometheusRule": {"enabled": True}}
    groups = render(values)["PrometheusRule", "azureml-fe"]["spec"]["groups"]
    assert "runbook_url" not in str(groups)
