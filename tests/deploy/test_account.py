"""What the router's account can do with the roles and the admission policy of the chart, at an API server."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from router.cluster.kubernetes.key_secrets import secret_body
from router.cluster.kubernetes.objects import DELETION_COST_ANNOTATION, NamespacedName
from tests.kube_standin.client import MERGE, Client, Reply, path_of
from tests.kube_standin.cluster import ROUTER, Cluster
from tests.kubernetes.helm_release import manifests
from tests.processes import wait_until

_RIGHTS = ("ServiceAccount", "Role", "RoleBinding", "ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding")


@pytest.fixture
def account(cluster: Cluster) -> Iterator[Client]:
    """The router's account, with all that the chart says about its rights. A model has the pod iris-1."""
    cluster.apply([each for each in manifests(cluster.namespace) if each["kind"] in _RIGHTS])
    cluster.create_model_pod("iris", "iris-1")
    client = Client(cluster.access._replace(token=cluster.create_token(ROUTER), certificate=b""))
    forbidden = functools.partial(_annotate, client, cluster, "other", "1")
    wait_until(lambda: forbidden().status == 403, "the admission policy")  # it takes effect after a short time
    yield client
    client.close()


def _annotate(client: Client, cluster: Cluster, name: str, value: str | None) -> Reply:
    path = path_of("pods", cluster.namespace, "iris-1")
    return client.request("PATCH", path, {"metadata": {"annotations": {name: value}}}, MERGE)


def test_account_of_the_router_can_do_its_work(cluster: Cluster, account: Client) -> None:
    for value in ("5", "-1", None):
        _annotate(account, cluster, DELETION_COST_ANNOTATION, value).ok()
    assert not cluster.client.get("pods", cluster.namespace, "iris-1")["metadata"].get("annotations")
    keys: Any = secret_body(NamespacedName(cluster.namespace, "azureml-fe-keys-iris"), "iris")
    account.request("POST", path_of("secrets", cluster.namespace), keys).ok()


def test_account_of_the_router_cannot_write_anything_else(cluster: Cluster, account: Client) -> None:
    reply = _annotate(account, cluster, "other", "1")
    name = f"azureml-fe-writes.{cluster.namespace}"
    assert f"ValidatingAdmissionPolicy '{name}' with binding '{name}' denied request" in reply.body["message"]
    pod, secrets = path_of("pods", cluster.namespace, "iris-1"), path_of("secrets", cluster.namespace)
    token: Any = secret_body(NamespacedName(cluster.namespace, "token"), "iris")
    token |= {"type": "kubernetes.io/service-account-token"}
    token["metadata"]["annotations"] = {"kubernetes.io/service-account.name": "default"}
    attempts: list[Callable[[], Reply]] = [
        lambda: account.request("PATCH", pod, {"metadata": {"labels": {"azuremlappname": "other"}}}, MERGE),
        lambda: account.request("PATCH", pod, {"spec": {"activeDeadlineSeconds": 1}}, MERGE),
        lambda: account.request("DELETE", pod),
        lambda: account.request("POST", secrets, token),
        lambda: account.request("POST", secrets, {"metadata": {"name": "other"}, "type": "Opaque"}),
        lambda: account.request("GET", path_of("secrets", cluster.namespace, "other")),
    ]
    for attempt in attempts:
        assert attempt().status == 403
    # Others may.
    cluster.client.request("PATCH", pod, {"metadata": {"labels": {"azuremlappname": "other"}}}, MERGE).ok()


def test_account_of_the_router_has_no_rights_elsewhere(cluster: Cluster, account: Client) -> None:
    elsewhere = cluster.create_namespace()
    for plural in ("secrets", "pods", "deployments"):
        assert account.request("GET", path_of(plural, elsewhere)).status == 403
        assert account.request("GET", path_of(plural)).status == 403
