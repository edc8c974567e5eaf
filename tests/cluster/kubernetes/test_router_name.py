"""Routers with different names (`router_name`) in one namespace are different releases."""

import functools

import pytest

from router.cli.main import main
from tests.cluster.kubernetes.roles import serving_rules
from tests.cluster.kubernetes.router_processes import RouterStarter, deploy_model
from tests.kube_standin.cluster import ROUTER, Cluster
from tests.processes import wait_until


def test_routers_with_another_name_have_their_own_leader_peers_and_token_keys(
    cluster: Cluster, routers: RouterStarter, model_port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    first = routers.start()
    cluster.grant(ROUTER, serving_rules("second"))
    second = routers.start(router_name="second")
    wait_until(lambda: first.leads and second.leads, "two leaders")
    for lease, router in ((ROUTER, first), ("second", second)):
        holder = cluster.client.get("leases", cluster.namespace, lease)["spec"]["holderIdentity"]
        assert holder.startswith(f"{router.name}_")
    assert [router.metric("peers") for router in (first, second)] == [0, 0]
    deploy_model(cluster, model_port, auth_enabled="false", token_auth_enabled="true")
    for secret in ("azureml-fe-token-keys", "second-token-keys"):
        wait_until(functools.partial(cluster.client.find, "secrets", cluster.namespace, secret), secret)
    command = ["token", "iris", "--kubeconfig", str(cluster.admin), "--namespace", cluster.namespace, "--bare"]
    command += ["--router-namespace", cluster.namespace, "--router-name"]
    tokens = []
    for name in (ROUTER, "second"):
        assert main([*command, name]) == 0
        tokens.append(capsys.readouterr().out.strip())
    wait_until(
        lambda: first.score("iris", Authorization=f"Bearer {tokens[0]}").status == 200, "the token to be accepted"
    )
    assert first.score("iris", Authorization=f"Bearer {tokens[1]}").status == 401
    assert main([*command, "third"]) == 2
    assert "third-token-keys" in capsys.readouterr().err


def test_the_younger_of_two_routers_in_one_namespace_is_on_standby(
    cluster: Cluster, routers: RouterStarter, model_port: int
) -> None:
    deploy_model(cluster, model_port)
    cluster.grant(ROUTER, serving_rules("second"))
    second = routers.start(router_name="second")
    wait_until(lambda: cluster.client.find("leases", cluster.namespace, "azureml-fe-release"), "the claim")
    first = routers.start()
    wait_until(lambda: first.metric("release_conflicts", holder=f"{cluster.namespace}/second") == 1, "the conflict")
    assert second.score("iris").status == 200
    response = first.score("iris")
    assert (response.status, response.headers["azureml-fe-error"]) == (503, "standby")
