"""Services and NetworkPolicy of the chart: ports, addresses and allowed sources."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.chart import DEFAULTS, VALUE_FILES, container_of, render, smallest, values_file


@pytest.mark.parametrize(
    ("value", "service_type"),
    [
        ("loadBalancer", "LoadBalancer"),
        ("LOADBALANCER", "LoadBalancer"),
        ("nodePort", "NodePort"),
        ("NodePort", "NodePort"),
        ("clusterip", "ClusterIP"),
        ("ClusterIP", "ClusterIP"),
    ],
)
def test_service_type_is_not_case_sensitive(value: str, service_type: str) -> None:
    service = render(smallest(inferenceRouterServiceType=value))["Service", "azureml-fe"]
    assert service["spec"]["type"] == service_type
    assert ("externalTrafficPolicy" in service["spec"]) == (service_type != "ClusterIP")


@pytest.mark.parametrize(
    ("values", "ports"),
    [
        ({"sslSecret": "s"}, [("https", 443)]),
        ({"sslSecret": "", "allowInsecureConnections": True}, [("http", 80)]),
        ({"sslSecret": "s", "allowInsecureConnections": "True"}, [("http", 80), ("https", 443)]),
    ],
)
def test_client_ports(values: Any, ports: list[tuple[str, int]]) -> None:
    objects = render(smallest(**values))
    service = objects["Service", "azureml-fe"]["spec"]
    assert [(port["name"], port["port"]) for port in service["ports"]] == ports
    container_ports = {port["name"] for port in container_of(objects)["ports"]}
    assert {port["targetPort"] for port in service["ports"]} <= container_ports
    (internal_port,) = objects["Service", "azureml-fe-int-http"]["spec"]["ports"]
    assert (internal_port["port"], internal_port["targetPort"]) == (9001, ports[0][0])
    assert objects["Service", "azureml-fe-int-http"]["spec"]["type"] == "ClusterIP"


def test_annotations_for_azure() -> None:
    prefix = "service.beta.kubernetes.io/azure-load-balancer-"
    annotations = render(values_file("production"))["Service", "azureml-fe"]["metadata"]["annotations"]
    assert annotations == {
        f"{prefix}internal": "true",
        f"{prefix}internal-subnet": "apps",
        f"{prefix}tcp-idle-timeout": "10",
    }
    assert f"{prefix}internal" not in render(smallest())["Service", "azureml-fe"]["metadata"]["annotations"]
    own = {"annotations": {f"{prefix}tcp-idle-timeout": "30"}}
    values = smallest(service=DEFAULTS["service"] | own)
    assert render(values)["Service", "azureml-fe"]["metadata"]["annotations"] == own["annotations"]
    assert "annotations" not in render(values_file("devtest"))["Service", "azureml-fe"]["metadata"]


def test_node_ports_and_source_ranges() -> None:
    service = render(values_file("production"))["Service", "azureml-fe"]["spec"]
    assert [port["nodePort"] for port in service["ports"]] == [30080, 30443]
    assert service["loadBalancerSourceRanges"] == ["10.0.0.0/8"]
    assert service["externalTrafficPolicy"] == "Local"
    assert all("nodePort" not in port for port in render(smallest())["Service", "azureml-fe"]["spec"]["ports"])


@pytest.mark.parametrize("policy", [None, "SingleStack", "RequireDualStack"])
def test_all_services_have_the_same_ip_family_policy(policy: str | None) -> None:
    own = {} if policy is None else {"ipFamilyPolicy": policy}
    objects = render(smallest(service=DEFAULTS["service"] | own))
    found = {name: each["spec"]["ipFamilyPolicy"] for (kind, name), each in objects.items() if kind == "Service"}
    assert found == dict.fromkeys(
        ("azureml-fe", "azureml-fe-int-http", "azureml-fe-admin"), policy or "PreferDualStack"
    )


@pytest.mark.parametrize("path", VALUE_FILES, ids=lambda path: path.stem)
def test_selectors_select_router_pods(path: Path) -> None:
    objects = render(yaml.safe_load(path.read_text()))
    labels = objects["Deployment", "azureml-fe"]["spec"]["template"]["metadata"]["labels"]
    for (kind, name), each in objects.items():
        selectors = {
            "Service": lambda spec: spec["selector"],
            "Deployment": lambda spec: spec["selector"]["matchLabels"],
            "PodDisruptionBudget": lambda spec: spec["selector"]["matchLabels"],
            "NetworkPolicy": lambda spec: spec["podSelector"]["matchLabels"],
        }
        if kind in selectors:
            assert selectors[kind](each["spec"]) == {"azuremlappname": "azureml-fe"}, name
    assert labels["azuremlappname"] == "azureml-fe"
    assert "isazuremlapp" not in labels  # the label of models
    test = objects["Pod", "azureml-fe-test"]["metadata"]["labels"]
    assert test["azuremlappname"] != "azureml-fe"  # otherwise the Service would select it


def _sources_by_port(policy: Any) -> dict[str, list[Any] | None]:
    return {port["port"]: rule.get("from") for rule in policy["spec"]["ingress"] for port in rule["ports"]}


def test_network_policy_sources_by_port() -> None:
    sources = _sources_by_port(render(values_file("production"))["NetworkPolicy", "azureml-fe"])
    assert set(sources) == {"http", "https", "peers", "admin", "collection"}
    assert sources["http"] is None
    assert sources["https"] is None
    assert sources["peers"] == [{"podSelector": {"matchLabels": {"azuremlappname": "azureml-fe"}}}]
    assert sources["collection"] == [
        {"namespaceSelector": {}, "podSelector": {"matchLabels": {"isazuremlapp": "true"}}}
    ]
    assert sources["admin"] == [
        {"podSelector": {"matchLabels": {"azuremlappname": "azureml-fe-test"}}},
        *values_file("production")["networkPolicy"]["metricsFrom"],
    ]


def test_empty_metrics_sources_allow_none() -> None:
    """In a NetworkPolicy an empty list of sources allows all sources."""
    values = smallest(networkPolicy={"metricsFrom": []})
    sources = _sources_by_port(render(values)["NetworkPolicy", "azureml-fe"])
    assert sources["admin"] == [{"podSelector": {"matchLabels": {"azuremlappname": "azureml-fe-test"}}}]


def test_optional_objects_can_be_disabled() -> None:
    objects = render(values_file("devtest"))
    assert ("NetworkPolicy", "azureml-fe") not in objects
    assert ("PodDisruptionBudget", "azureml-fe") not in objects
    annotations = objects["Deployment", "azureml-fe"]["spec"]["template"]["metadata"]["annotations"]
    assert "prometheus.io/scrape" not in annotations
    assert "prometheus.io/scrape" in str(render(smallest())["Deployment", "azureml-fe"])
