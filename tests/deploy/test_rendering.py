"""Every file of values makes a release that Helm and Kubernetes accept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from helm_python import lint

from router import __version__
from tests.deploy.chart import CHART, NAMESPACE, VALUE_FILES, container_of, manifests, render, texts, values_file

ERROR, WARNING = 3, 2
OPERATORS = ("ServiceMonitor", "PrometheusRule")  # kinds that Kubernetes itself does not have


@pytest.fixture(params=VALUE_FILES, ids=lambda path: path.stem)
def values(request: pytest.FixtureRequest) -> Any:
    path: Path = request.param
    return yaml.safe_load(path.read_text())


def test_lint_has_nothing_to_say(values: Any) -> None:
    found = lint(CHART, values, strict=True)
    assert found["errors"] == []
    assert [message for message in found["messages"] if message["severity"] >= WARNING] == []


def test_lint_accepts_the_defaults() -> None:
    assert lint(CHART)["errors"] == []


@pytest.mark.parametrize("version", ["1.27", "1.30", "1.33", kubernetes_validate.latest_version()])
def test_objects_fit_the_schemas_of_kubernetes(values: Any, version: str) -> None:
    for each in manifests(values):
        if each["kind"] not in OPERATORS:
            kubernetes_validate.validate(each, version, strict=True)


def test_objects_are_of_the_release_and_its_namespaces(values: Any) -> None:
    of_cluster = {"ClusterRole", "ClusterRoleBinding"}
    for each in manifests(values):
        facts = each["metadata"]
        namespaces = {NAMESPACE, *(values.get("namespaces", []) if "Role" in each["kind"] else [])}
        assert each["kind"] in of_cluster or facts["namespace"] in namespaces
        assert facts["labels"]["azuremlappname"].startswith("azureml-fe")


def test_names_are_those_that_users_know() -> None:
    assert {
        ("Deployment", "azureml-fe"),
        ("ServiceAccount", "azureml-fe"),
        ("Service", "azureml-fe"),
        ("Service", "azureml-fe-int-http"),
        ("ClusterRole", "azureml-fe-role"),
        ("ConfigMap", "azuremlfeconfig"),
        ("Secret", "azureml-fe-peers"),
        ("PodDisruptionBudget", "azureml-fe"),
        ("NetworkPolicy", "azureml-fe"),
    } <= set(render(values_file("smallest")))
    assert ("Secret", "azuremlfessl") in render(values_file("original"))


def test_chart_image_and_package_have_one_version() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == (__version__, __version__)
    image = container_of(render(values_file("smallest")))["image"]
    assert image == f"models.azurecr.io/azureml-fe:{__version__}"
    assert container_of(render(values_file("production")))["image"].endswith("/serving/azureml-fe:0.1.0-patched")


def test_notes_tell_how_to_go_on() -> None:
    notes = texts(values_file("smallest"))["NOTES.txt"]
    assert "helm test azureml-fe --namespace azureml" in notes
    assert "https://" in notes
    assert "unencrypted" not in notes
    notes = texts(values_file("devtest"))["NOTES.txt"]
    assert "port-forward service/azureml-fe 8080:80" in notes
    assert "unencrypted" in notes
    assert "clusterPurpose is DevTest" in notes
    assert "scoring.example.com" in texts(values_file("production"))["NOTES.txt"]
    assert "self_scaling_enabled is false" in texts(values_file("original"))["NOTES.txt"]


def test_monitoring_is_rendered_for_the_operator_that_is_asked_for() -> None:
    objects = render(values_file("production"))
    monitor = objects["ServiceMonitor", "azureml-fe"]
    assert monitor["metadata"]["labels"]["release"] == "prometheus"
    service = objects["Service", "azureml-fe-admin"]
    wanted = monitor["spec"]["selector"]["matchLabels"]
    assert wanted.items() <= service["metadata"]["labels"].items()
    others = [objects["Service", name] for name in ("azureml-fe", "azureml-fe-int-http")]
    assert not any(wanted.items() <= other["metadata"]["labels"].items() for other in others)
    (endpoint,) = monitor["spec"]["endpoints"]
    assert endpoint["port"] in {port["name"] for port in service["spec"]["ports"]}
    assert endpoint["honorLabels"] is True
    values = values_file("production") | {
        "serviceMonitor": {"enabled": True, "apiVersion": "azmonitoring.coreos.com/v1"}
    }
    assert render(values)["ServiceMonitor", "azureml-fe"]["apiVersion"] == "azmonitoring.coreos.com/v1"
    assert not {kind for kind, _ in render(values_file("smallest"))} & set(OPERATORS)
