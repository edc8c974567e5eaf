"""Tokens of routers as processes with an API server."""

import base64
import json
from pathlib import Path

import pytest

from router.cli.main import main
from tests.cluster.kubernetes.router_processes import (
    KEYS_SECRET,
    RouterProcess,
    RouterStarter,
    deploy_model,
    key_of_iris,
)
from tests.kube_standin.cluster import Cluster
from tests.processes import send_request, wait_until

SIGNING_SECRET = "azureml-fe-token-keys"


def status(router: RouterProcess, token: str) -> int:
    return router.score("iris", Authorization=f"Bearer {token}").status


def test_routers_share_signing_keys_and_accept_each_others_tokens(
    cluster: Cluster, routers: RouterStarter, model_port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    first = routers.start()
    deploy_model(cluster, model_port, auth_enabled="false", token_auth_enabled="true")
    wait_until(lambda: cluster.client.find("secrets", cluster.namespace, SIGNING_SECRET), "signing keys")
    wait_until(lambda: cluster.client.find("secrets", cluster.namespace, KEYS_SECRET), "keys of the service")
    path = "/api/v1/service/iris/token?ttl=600"
    wait_until(
        lambda: send_request(first.admin_port, path, b"", Authorization=f"Bearer {key_of_iris(cluster)}").status == 200,
        "the first token",
    )
    issued = json.loads(send_request(first.admin_port, path, b"", Authorization=f"Bearer {key_of_iris(cluster)}").body)
    wait_until(lambda: status(first, issued["accessToken"]) == 200, "the token to be accepted")
    second = routers.start()
    wait_until(lambda: status(second, issued["accessToken"]) == 200, "the token to be accepted by another router")
    command = ["token", "iris", "--kubeconfig", str(cluster.admin), "--namespace", cluster.namespace]
    assert main(command) == 2
    elsewhere = cluster.access.namespace  # the default namespace of the kubeconfig
    expected = f"router namespace = '{elsewhere}': must be the namespace in which the router runs"
    assert expected in capsys.readouterr().err
    assert main([*command, "--router-namespace", cluster.namespace, "--bare"]) == 0
    token = capsys.readouterr().out.strip()
    assert [status(router, token) for router in (first, second)] == [200, 200]
    assert status(first, key_of_iris(cluster)) == 401  # the service accepts tokens only

    ring = base64.b64decode(cluster.client.get("secrets", cluster.namespace, SIGNING_SECRET)["data"]["keys"]).decode()
    private = json.loads(ring)["keys"][0]["private"].splitlines()[1]
    for log in (first.log, second.log):
        assert not any(secret in log for secret in (token, issued["accessToken"], key_of_iris(cluster), private))

    assert main(["token", "resnet", "--kubeconfig", str(cluster.admin), "--namespace", cluster.namespace]) == 2
    assert "must be the label azuremlappname of a Deployment" in capsys.readouterr().err


def test_issuers_are_read_from_the_config_file(
    cluster: Cluster, routers: RouterStarter, model_port: int, tmp_path: Path
) -> None:
    file = tmp_path / "router.yaml"
    issuer = {"issuer": "https://127.0.0.1:1", "audience": "a"}
    file.write_text(json.dumps({"router": {"token_issuing": False}, "token_issuers": {"corp": issuer}}))
    router = routers.start(config=file)
    deploy_model(cluster, model_port, auth_enabled="false", token_auth_enabled="true")
    wait_until(
        lambda: router.metric("jwks_fetches_total", issuer="corp", result="failed") > 0, "a failed fetch of keys"
    )
    assert router.metric("jwks_fetches_total", issuer="router") == 0
    assert cluster.client.find("secrets", cluster.namespace, SIGNING_SECRET) is None
