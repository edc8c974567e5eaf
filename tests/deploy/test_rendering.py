"""Helm and Kubernetes accept the release of every values file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from helm_python import lint

from router import __version__
from router.config.router import load_settings
from tests.deploy.chart import (
    CHART,
    NAMESPACE,
    VALUE_FILES,
    container_of,
    manifests,
    render,
    router_yaml,
    smallest,
    texts,
    values_file,
)

ERROR, WARNING = 3, 2
OPERATOR_KINDS = ("ServiceMonitor", "PrometheusRule")  # not part of Kubernetes
POLICY_KINDS = ("ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding")  # version v1 since 1.30


@pytest.fixture(params=VALUE_FILES, ids=lambda path: path.stem)
def values(request: pytest.FixtureRequest) -> Any:
    path: Path = request.param
    return yaml.safe_load(path.read_text())


def test_lint_reports_nothing(values: Any) -> None:
    found = lint(CHART, values, strict=True, namespace=NAMESPACE)
    assert found["errors"] == []
    assert [message for message in found["messages"] if message["severity"] >= WARNING] == []


def test_lint_accepts_the_defaults() -> None:
    assert lint(CHART, namespace=NAMESPACE)["errors"] == []


@pytest.mark.parametrize("version", ["1.27", "1.30", "1.33", kubernetes_validate.latest_version()])
def test_objects_fit_the_schemas_of_kubernetes(values: Any, version: str) -> None:
    for each in manifests(values):
        if each["kind"] not in OPERATOR_KINDS and (version >= "1.30" or each["kind"] not in POLICY_KINDS):
            kubernetes_validate.validate(each, version, strict=True)


def test_objects_belong_to_the_release_and_its_namespaces(values: Any) -> None:
    cluster_wide = {"ClusterRole", "ClusterRoleBinding", *POLICY_KINDS}
    for each in manifests(values):
        metadata = each["metadata"]
        namespaces = {NAMESPACE, *(values.get("namespaces", []) if "Role" in each["kind"] else [])}
        assert each["kind"] in cluster_wide or metadata["namespace"] in namespaces
        assert metadata["labels"]["azuremlappname"].startswith("azureml-fe")


def test_object_names_are_stable() -> None:
    assert {
        ("Deployment", "azureml-fe"),
        ("ServiceAccount", "azureml-fe"),
        ("Service", "azureml-fe"),
        ("Service", "azureml-fe-int-http"),
        ("Role", "azureml-fe"),
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


def test_notes_have_the_next_steps() -> None:
    notes = texts(values_file("smallest"))["NOTES.txt"]
    assert "helm test azureml-fe --namespace azureml" in notes
    assert "https://" in notes
    assert "without encryption" not in notes
    notes = texts(values_file("devtest"))["NOTES.txt"]
    assert "port-forward service/azureml-fe 8080:80" in notes
    assert "without encryption" in notes
    assert "clusterPurpose is DevTest" in notes
    assert "scoring.example.com" in texts(values_file("production"))["NOTES.txt"]
    assert "self_scaling_enabled is false" in texts(values_file("original"))["NOTES.txt"]


def test_monitoring_objects_for_each_operator() -> None:
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
    assert not {kind for kind, _ in render(values_file("smallest"))} & set(OPERATOR_KINDS)


@pytest.mark.parametrize("given", [None, ["router.example", "metrics.example"], "router.example,metrics.example"])
def test_admin_port_answers_to_the_names_of_its_service_and_further_ones(given: Any) -> None:
    objects = render(smallest(router={} if given is None else {"admin_hosts": given}))
    settings = load_settings(environ={"HOME": "/"}, file=router_yaml(objects)["router"])
    service = f"azureml-fe-admin.{NAMESPACE}"
    names = ["azureml-fe-admin", service, f"{service}.svc", f"{service}.svc.cluster.local"]
    assert [*settings.admin_hosts] == names + (["router.example", "metrics.example"] if given else [])
    assert ("Service", "azureml-fe-admin") in objects
