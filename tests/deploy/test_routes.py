"""Ingress, HTTPRoute and additional volumes, which are off by default."""

from __future__ import annotations

from typing import Any

import kubernetes_validate
import pytest
from helm_python import HelmError

from tests.deploy.chart import container_of, pod_of, render, smallest

_HTTP = {"sslSecret": "", "allowInsecureConnections": True}


def test_there_are_no_routes_by_default() -> None:
    assert not {"Ingress", "HTTPRoute"} & {kind for kind, _ in render(smallest())}


@pytest.mark.parametrize(("values", "port"), [(_HTTP, 80), ({}, 443), ({"allowInsecureConnections": True}, 80)])
def test_routes_lead_to_a_port_of_the_service(values: dict[str, Any], port: int) -> None:
    route = {"enabled": True, "parentRefs": [{"name": "public", "namespace": "gateways"}], "hosts": ["a.example"]}
    objects = render(smallest(**values, ingress={"enabled": True}, httpRoute=route))
    assert port in {each["port"] for each in objects["Service", "azureml-fe"]["spec"]["ports"]}
    ingress = objects["Ingress", "azureml-fe"]
    kubernetes_validate.validate(ingress, "1.33", strict=True)
    (rule,) = ingress["spec"]["rules"]
    assert "host" not in rule
    assert rule["http"]["paths"][0]["backend"]["service"] == {"name": "azureml-fe", "port": {"number": port}}
    spec = objects["HTTPRoute", "azureml-fe"]["spec"]
    assert (spec["parentRefs"], spec["hostnames"]) == (route["parentRefs"], ["a.example"])
    assert spec["rules"][0]["backendRefs"] == [{"name": "azureml-fe", "port": port}]


def test_ingress_with_hosts_and_tls() -> None:
    ingress = {
        "enabled": True, "className": "nginx", "hosts": ["a.example", "*.b.example"], "tlsSecret": "tls",
        "annotations": {"nginx.ingress.kubernetes.io/proxy-body-size": "0"},
    }  # fmt: skip
    rendered = render(smallest(**_HTTP, ingress=ingress))["Ingress", "azureml-fe"]
    kubernetes_validate.validate(rendered, "1.33", strict=True)
    spec = rendered["spec"]
    assert [rule["host"] for rule in spec["rules"]] == ingress["hosts"]
    assert (spec["ingressClassName"], spec["tls"]) == ("nginx", [{"secretName": "tls", "hosts": ingress["hosts"]}])
    assert rendered["metadata"]["annotations"] == ingress["annotations"]


def test_additional_volumes_are_mounted() -> None:
    volume = {"name": "corporate-ca", "configMap": {"name": "corporate-ca"}}
    mount = {"name": "corporate-ca", "mountPath": "/etc/corporate-ca", "readOnly": True}
    objects = render(smallest(extraVolumes=[volume], extraVolumeMounts=[mount]))
    kubernetes_validate.validate(objects["Deployment", "azureml-fe"], "1.33", strict=True)
    assert volume in pod_of(objects)["volumes"]
    assert mount in container_of(objects)["volumeMounts"]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"httpRoute": {"enabled": True}}, "httpRoute/parentRefs"),
        ({"ingress": {"enabled": True, "hosts": ["a_b"]}}, "ingress/hosts/0"),
        ({"ingress": {"enabled": "yes"}}, "ingress/enabled"),
        ({"extraVolumes": [{"name": "tls", "secret": {"secretName": "x"}}]}, "extraVolumes/0/name"),
        ({"extraVolumeMounts": [{"name": "x", "mountPath": "etc"}]}, "extraVolumeMounts/0/mountPath"),
    ],
)
def test_invalid_routes_and_volumes_are_rejected_by_name(values: dict[str, Any], expected: str) -> None:
    with pytest.raises(HelmError, match=expected):
        render(smallest(**values))
