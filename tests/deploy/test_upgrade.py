"""What an upgrade finds in the cluster and leaves as it is: rendered by Helm beside an API server."""

from __future__ import annotations

import base64
from typing import Any

import pytest
import yaml
from helm_python import Config

from tests.deploy.chart import CHART, Values, smallest
from tests.kubernetes.cluster import Cluster

# Helm touches no object that another release, or nobody, has made.
OWNED = {"labels": {"app.kubernetes.io/managed-by": "Helm"}}


def owned(cluster: Cluster, name: str) -> dict[str, Any]:
    release = {"meta.helm.sh/release-name": "azureml-fe", "meta.helm.sh/release-namespace": cluster.namespace}
    return {"name": name, "annotations": release, **OWNED}


def rendered(cluster: Cluster, kind: str, name: str, **more: Any) -> Any:
    """One object as Helm would bring it to the cluster."""
    values: Values = smallest(networkPolicy={"enabled": False}, **more)
    with Config(kubeconfig_path=cluster.admin, namespace=cluster.namespace, storage_driver="memory") as helm:
        release = helm.install(CHART, "azureml-fe", values, namespace=cluster.namespace, dry_run="server")
    documents = [document for document in yaml.safe_load_all(release["manifest"]) if document]
    (found,) = [each for each in documents if (each["kind"], each["metadata"]["name"]) == (kind, name)]
    return found


def test_secret_of_peers_stays_what_it_is(cluster: Cluster) -> None:
    fresh = rendered(cluster, "Secret", "azureml-fe-peers")["data"]["secret"]
    assert len(base64.b64decode(fresh)) == 64
    assert rendered(cluster, "Secret", "azureml-fe-peers")["data"]["secret"] != fresh
    metadata = owned(cluster, "azureml-fe-peers")
    cluster.client.create("secrets", cluster.namespace, {"metadata": metadata, "data": {"secret": fresh}})
    assert rendered(cluster, "Secret", "azureml-fe-peers")["data"]["secret"] == fresh


@pytest.mark.parametrize(
    ("running", "values", "left"),
    [
        (5, {}, 5),
        (1, {}, 3),
        (5, {"clusterPurpose": "DevTest"}, 3),
        (5, {"router": {"self_scaling_enabled": False}, "inferenceRouterHA": False}, 1),
    ],
    ids=str,
)
def test_number_of_pods_that_the_router_has_come_to_is_left(
    cluster: Cluster, running: int, values: Values, left: int
) -> None:
    labels = {"azuremlappname": "azureml-fe"}
    template = {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "azureml-fe", "image": "router:1"}]}}
    spec = {"replicas": running, "selector": {"matchLabels": labels}, "template": template}
    metadata = owned(cluster, "azureml-fe")
    cluster.client.create("deployments", cluster.namespace, {"metadata": metadata, "spec": spec})
    assert rendered(cluster, "Deployment", "azureml-fe", **values)["spec"]["replicas"] == left
