"""Upgrades keep existing objects: rendered by Helm with an API server."""

from __future__ import annotations

import base64
from typing import Any

import pytest
import yaml
from helm_python import Config, HelmError

from tests.deploy.chart import CHART, Values, smallest, texts
from tests.kube_standin.cluster import Cluster

# Helm refuses to change objects without these labels and annotations.
OWNED = {"labels": {"app.kubernetes.io/managed-by": "Helm"}}


def owned(cluster: Cluster, name: str) -> dict[str, Any]:
    release = {"meta.helm.sh/release-name": "azureml-fe", "meta.helm.sh/release-namespace": cluster.namespace}
    return {"name": name, "annotations": release, **OWNED}


def rendered(cluster: Cluster, kind: str, name: str, **more: Any) -> Any:
    """Return one object of a simulated installation."""
    values: Values = smallest(networkPolicy={"enabled": False}, **more)
    with Config(kubeconfig_path=cluster.admin, namespace=cluster.namespace, storage_driver="memory") as helm:
        release = helm.install(CHART, "azureml-fe", values, namespace=cluster.namespace, dry_run="server")
    documents = [document for document in yaml.safe_load_all(release["manifest"]) if document]
    (selected,) = [each for each in documents if (each["kind"], each["metadata"]["name"]) == (kind, name)]
    return selected


def test_upgrade_keeps_the_peer_secret(cluster: Cluster) -> None:
    secret = rendered(cluster, "Secret", "azureml-fe-peers")["data"]["secret"]
    assert len(base64.b64decode(secret)) == 64
    assert rendered(cluster, "Secret", "azureml-fe-peers")["data"]["secret"] != secret
    metadata = owned(cluster, "azureml-fe-peers")
    cluster.client.create("secrets", cluster.namespace, {"metadata": metadata, "data": {"secret": secret}})
    assert rendered(cluster, "Secret", "azureml-fe-peers")["data"]["secret"] == secret


@pytest.mark.parametrize(
    ("current", "values", "expected"),
    [
        (5, {}, 5),
        (1, {}, 3),
        (5, {"clusterPurpose": "DevTest"}, 3),
        (5, {"router": {"self_scaling_enabled": False}, "inferenceRouterHA": False}, 1),
    ],
    ids=str,
)
def test_upgrade_keeps_the_self_scaled_number_of_pods(
    cluster: Cluster, current: int, values: Values, expected: int
) -> None:
    labels = {"azuremlappname": "azureml-fe"}
    template = {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "azureml-fe", "image": "router:1"}]}}
    spec = {"replicas": current, "selector": {"matchLabels": labels}, "template": template}
    metadata = owned(cluster, "azureml-fe")
    cluster.client.create("deployments", cluster.namespace, {"metadata": metadata, "spec": spec})
    assert rendered(cluster, "Deployment", "azureml-fe", **values)["spec"]["replicas"] == expected


_FORMER: tuple[Values, ...] = (
    {"namespaces": [], "allNamespaces": False},  # --reset-then-reuse-values
    dict.fromkeys(("namespaces", "allNamespaces", "fullnameOverride", "nameOverride", "admissionPolicy")),
)
"""Values of a release for all namespaces, by an earlier chart. With --reuse-values, those of this chart are missing."""


@pytest.mark.parametrize("former", _FORMER, ids=str)
def test_upgrade_of_a_release_for_all_namespaces_fails_until_they_are_named(former: Values) -> None:
    with pytest.raises(HelmError) as refusal:
        texts(smallest(**former), upgrade=True)
    for text in ("namespaces is empty", "has changed nothing", "kubectl get deployments", "allNamespaces=true"):
        assert text in str(refusal.value)
    kinds: dict[str, Values] = {
        "Role": {"namespaces": ["models", "more"]},
        "ClusterRole": {"allNamespaces": True},
    }
    for kind, chosen in kinds.items():
        rbac = texts(smallest(**former | chosen), upgrade=True)["rbac.yaml"]
        roles = [each for each in yaml.safe_load_all(rbac) if each["metadata"]["name"] == "azureml-fe-role.azureml"]
        assert {each["kind"] for each in roles} == {kind, f"{kind}Binding"}
        assert len(roles) == 2 * len(chosen.get("namespaces", "1"))


def test_installation_without_namespaces_does_not_mention_an_upgrade() -> None:
    with pytest.raises(HelmError, match="namespaces is empty") as refusal:
        texts(smallest(namespaces=[]))
    assert "upgrade" not in str(refusal.value)
