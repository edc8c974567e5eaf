"""Each value of the chart is documented, and the chart rejects invalid values by name."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import jsonschema
import pytest
from helm_python import HelmError

from deploy.values_schema import MANAGED, SCHEMA
from deploy.values_schema import render as render_schema
from router.config.router import ROUTER_SETTINGS
from tests.deploy.chart import CHART, DEFAULTS, NAMESPACE, render, smallest, texts, values_file

TEXT = (CHART / "values.yaml").read_text()


def test_schema_of_settings_is_up_to_date() -> None:
    text = SCHEMA.read_text()
    assert render_schema(text) == text, "run: python -m deploy.values_schema"


def test_schema_is_valid_and_complete() -> None:
    whole = json.loads(SCHEMA.read_text())
    jsonschema.Draft7Validator.check_schema(whole)
    assert set(whole["properties"]) == {*DEFAULTS, "global"}

    def compare(part: Mapping[str, Any], values: Mapping[str, Any]) -> None:
        for name, schema in part.get("properties", {}).items():
            if isinstance(values.get(name), dict) and schema.get("properties"):
                assert set(schema["properties"]) == set(values[name]), name
                compare(schema, values[name])

    compare(whole, DEFAULTS)


def _undocumented(text: str) -> Iterator[str]:
    """Yield values without a comment above them or at the end of their line. Groups need none."""
    comment = ""
    groups = {name for name, value in DEFAULTS.items() if isinstance(value, dict) and value and name != "resources"}
    for line in text.splitlines():
        if line.strip().startswith("#"):
            comment += line.strip("# -")
        elif not line.strip():
            comment = ""
        elif match := re.match(r"(?:  )?([A-Za-z]+):", line):
            if not comment and "#" not in line and match[1] not in {*groups, *DEFAULTS["resources"]}:
                yield match[1]
            comment = ""


def test_each_value_has_a_comment() -> None:
    assert list(_undocumented(TEXT)) == []
    assert list(_undocumented(TEXT + "\nundocumented: 1\n")) == ["undocumented"]


def test_settings_managed_by_the_chart_are_not_allowed() -> None:
    settings = json.loads(SCHEMA.read_text())["$defs"]["router"]["properties"]
    assert not MANAGED & set(settings)
    assert set(settings) | MANAGED >= {setting.name for setting in ROUTER_SETTINGS}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"image": {"repository": ""}}, ["image.repository", "required"]),
        ({"image": {"repository": "Models/azureml-fe:1"}}, ["image/repository"]),
        ({"image": {"pullPolicy": "Sometimes"}}, ["image/pullPolicy", "Always"]),
        ({"inferenceRouterServiceType": "Ingress"}, ["inferenceRouterServiceType"]),
        ({"inferenceRouterHA": "maybe"}, ["inferenceRouterHA", "true"]),
        ({"clusterPurpose": "Prod"}, ["clusterPurpose", "FastProd", "DenseProd", "DevTest"]),
        ({"sslSecret": ""}, ["allowInsecureConnections", "sslSecret"]),
        ({"sslCertPemFile": "-----BEGIN CERTIFICATE-----"}, ["sslSecret", "sslCertPemFile", "exclude"]),
        ({"sslSecret": "", "sslCertPemFile": "-----BEGIN CERTIFICATE-----"}, ["sslKeyPemFile", "both"]),
        ({"sslSecret": "", "sslCertPemFile": "cert.pem"}, ["sslCertPemFile"]),
        (
            {"sslSecret": "", "allowInsecureConnections": True, "sslClientCaSecret": "ca"},
            ["sslClientCaSecret", "HTTPS"],
        ),
        ({"sslSecret": "Not A Name"}, ["sslSecret"]),
        ({"internalLoadBalancerProvider": "aws"}, ["internalLoadBalancerProvider", "azure"]),
        (
            {"internalLoadBalancerProvider": "azure", "inferenceRouterServiceType": "nodePort"},
            ["internalLoadBalancerProvider", "loadBalancer", "nodePort"],
        ),
        ({"router": {"self_scaling_max_pods": 2}}, ["router.self_scaling_max_pods=2", "3", "inferenceRouterHA"]),
        ({"namespaces": ["models", "models"]}, ["namespaces"]),
        ({"namespaces": "models"}, ["namespaces", "array"]),
        ({"namespaces": ["models.example"]}, ["namespaces"]),
        ({"namespaces": []}, ["namespaces is empty", "--set 'namespaces={", "kubectl get", "allNamespaces=true"]),
        ({"namespaces": [], "allNamespaces": "False"}, ["namespaces is empty"]),
        ({"allNamespaces": True}, ["namespaces", "allNamespaces", "exclude"]),
        ({"allNamespaces": "all"}, ["allNamespaces"]),
        ({"fullnameOverride": "Router"}, ["fullnameOverride"]),
        ({"fullnameOverride": "r" * 54}, ["fullnameOverride"]),
        ({"fullnameOverride": "azureml-fe-release"}, ["azureml-fe-release", "Leases", "fullnameOverride"]),
        ({"nameOverride": "n" * 50}, ["azureml-fe-nnn", "53", "fullnameOverride"]),
        ({"nodeSelector": {"gpu": True}}, ["nodeSelector/gpu"]),
        ({"router": {"peer_tls": "off"}, "peers": {"tlsSecret": "tls"}}, ["router.peer_tls=off", "peers.tlsSecret"]),
        ({"router": {"peer_tls": False}, "peers": {"tlsSecret": "tls"}}, ["router.peer_tls=off", "peers.tlsSecret"]),
        ({"router": {"peer_tls": "on"}}, ["router/peer_tls", "preferred", "required"]),
        ({"router": {"no_such_setting": 1}}, ["router", "no_such_setting"]),
        ({"router": {"port": 80}}, ["router", "port"]),
        ({"router": {"log_level": "loud"}}, ["router/log_level", "debug"]),
        ({"router": {"max_headers": 0}}, ["router/max_headers", "1"]),
        ({"tokenIssuers": {"corp": {"issuer": "https://login.example.com"}}}, ["tokenIssuers/corp", "audience"]),
        ({"tokenIssuers": {"corp": {"audience": "a", "issuers": "b"}}}, ["tokenIssuers/corp", "issuers"]),
        ({"shutdown": {"drainSeconds": "long"}}, ["shutdown/drainSeconds", "integer"]),
        ({"shutdown": {"marginSeconds": 1}}, ["shutdown/marginSeconds", "15"]),
        ({"service": {"idleTimeoutMinutes": 3}}, ["service/idleTimeoutMinutes", "4"]),
        ({"service": {"loadBalancerSourceRanges": ["10.0.0.1"]}}, ["loadBalancerSourceRanges"]),
        ({"podLabels": {"azuremlappname": "mine"}}, ["podLabels"]),
        ({"podDisruptionBudget": {"maxUnavailable": 0}}, ["maxUnavailable"]),
        ({"resources": {"limits": {"cpu": "many"}}}, ["resources/limits/cpu"]),
        ({"extraEnv": [{"name": "AZUREML_FE_POD_IP", "value": "127.0.0.1"}]}, ["extraEnv"]),
        ({"extraEnv": [{"name": "A", "value": 5}]}, ["extraEnv/0/value", "string"]),
        ({"extraEnv": [{"name": "A", "valueFrm": {}}]}, ["extraEnv/0", "valueFrm"]),
        ({"extraEnv": [{"name": "A", "value": "5", "valueFrom": {}}]}, ["extraEnv/0"]),
        ({"image": {"repository": "r", "tag": 1.5}}, ["image/tag"]),
        ({"image": {"repository": "r", "digest": "sha256:1"}}, ["image/digest"]),
        ({"serviceMonitor": {"interval": "often"}}, ["serviceMonitor/interval"]),
        ({"prometheusRule": {"runbookUrl": "docs/operations.md"}}, ["prometheusRule/runbookUrl"]),
        ({"inferenceRouterHa": True}, ["inferenceRouterHa"]),
    ],
    ids=str,
)
def test_invalid_values_are_rejected_by_name(values: Any, expected: list[str]) -> None:
    with pytest.raises(HelmError) as error:
        texts(smallest(**values))
    for text in expected:
        assert text in str(error.value)


def test_values_of_the_original_extension_are_accepted() -> None:
    objects = render(values_file("original"))
    assert objects["Service", "azureml-fe"]["spec"]["type"] == "NodePort"
    assert objects["Deployment", "azureml-fe"]["spec"]["replicas"] == 3
    assert {"cert.pem", "key.pem"} == set(objects["Secret", "azuremlfessl"]["data"])


def test_peer_secret_is_created_once_and_kept() -> None:
    secret = render(smallest())["Secret", "azureml-fe-peers"]
    assert secret["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    assert len(secret["data"]["secret"]) >= 64
    assert secret["data"] != render(smallest())["Secret", "azureml-fe-peers"]["data"]
    template = (CHART / "templates" / "secrets.yaml").read_text()
    assert 'lookup "v1" "Secret" .Release.Namespace' in template
    own = render(values_file("production"))
    assert not [name for kind, name in own if kind == "Secret"]
    assert "peers-of-mine" in str(own["Deployment", "azureml-fe"])
    assert secret["metadata"]["namespace"] == NAMESPACE
