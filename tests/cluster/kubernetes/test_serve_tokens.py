"""Tokens of routers in a cluster, against an API server."""

import base64
import json
from pathlib import Path

import pytest

from router.cli import main
from tests.cluster.kubernetes.serving import SECRET, RouterPod, Routers, deploy, key
from tests.kubernetes.cluster import Cluster
from tests.processes import ask, until

SIGNING = "azureml-fe-token-keys"


def status(router: RouterPod, token: str) -> int:
    return router.score("iris", Authorization=f"Bearer {token}").status


def test_pods_sign_with_one_ring_and_accept_each_others_tokens(
    cluster: Cluster, routers: Routers, model: int, capsys: pytest.CaptureFixture[str]
) -> None:
    first = routers.start()
    deploy(cluster, model, auth_enabled="false", token_auth_enabled="true")
    until(lambda: cluster.client.find("secrets", cluster.namespace, SIGNING), "signing keys")
    until(lambda: cluster.client.find("secrets", cluster.namespace, SECRET), "keys of the service")
    path = "/api/v1/service/iris/token?ttl=600"
    until(
        lambda: ask(first.admin_port, path, b"", Authorization=f"Bearer {key(cluster)}").status == 200,
        "the first token",
    )
    issued = json.loads(ask(first.admin_port, path, b"", Authorization=f"Bearer {key(cluster)}").body)
    until(lambda: status(first, issued["accessToken"]) == 200, "a request with it")
    second = routers.start()
    until(lambda: status(second, issued["accessToken"]) == 200, "a request at another pod")
    command = ["token", "iris", "--kubeconfig", str(cluster.admin), "--namespace", cluster.namespace]
    assert main(command) == 2
    elsewhere = cluster.access.namespace  # that of the kubeconfig
    assert f"router namespace = '{elsewhere}': must be where the router runs" in capsys.readouterr().err
    assert main([*command, "--router-namespace", cluster.namespace, "--bare"]) == 0
    token = capsys.readouterr().out.strip()
    assert [status(router, token) for router in (first, second)] == [200, 200]
    assert status(first, key(cluster)) == 401  # a key is none where tokens are asked for

    ring = base64.b64decode(cluster.client.get("secrets", cluster.namespace, SIGNING)["data"]["keys"]).decode()
    private = json.loads(ring)["keys"][0]["private"].splitlines()[1]
    for said in (first.said, second.said):
        assert not any(secret in said for secret in (token, issued["accessToken"], key(cluster), private))

    assert main(["token", "resnet", "--kubeconfig", str(cluster.admin), "--namespace", cluster.namespace]) == 2
    assert "must be the label azuremlappname of a Deployment" in capsys.readouterr().err


def test_issuers_come_from_the_mounted_file(cluster: Cluster, routers: Routers, model: int, tmp_path: Path) -> None:
    file = tmp_path / "router.yaml"
    issuer = {"issuer": "https://127.0.0.1:1", "audience": "a"}
    file.write_text(json.dumps({"router": {"token_issuing": False}, "token_issuers": {"corp": issuer}}))
    router = routers.start(config=file)
    deploy(cluster, model, auth_enabled="false", token_auth_enabled="true")
    until(lambda: router.metric("jwks_fetches_total", issuer="corp", result="failed") > 0, "a question")
    assert router.metric("jwks_fetches_total", issuer="router") == 0
    assert cluster.client.find("secrets", cluster.namespace, SIGNING) is None
