"""The router as its pod runs it, against an API server."""

import base64
from collections.abc import Iterator
from pathlib import Path

import pytest

from router.cli import main
from tests.cluster.kubernetes.serving import Routers, routers_in
from tests.kubernetes.cluster import Cluster
from tests.processes import echo_server, until


@pytest.fixture
def routers(cluster: Cluster, tmp_path: Path) -> Iterator[Routers]:
    with routers_in(cluster, tmp_path) as found:
        yield found


@pytest.fixture(scope="module")
def model() -> Iterator[int]:
    """The port of a model server on this machine."""
    with echo_server() as port:
        yield port


SECRET = "azureml-fe-keys-iris"
OPEN = {"azureml-fe/auth-enabled": "false"}


def deploy(cluster: Cluster, port: int, name: str = "iris", replicas: int = 1, **annotations: str) -> None:
    """A model with one ready pod."""
    own = {f"azureml-fe/{key.replace('_', '-')}": value for key, value in annotations.items()}
    cluster.deployment(name, replicas, annotations={"azureml-fe/port": str(port), **OPEN, **own})
    cluster.model_pod(name, f"{name}-abc-1", "127.0.0.1")


def test_a_model_is_found_served_and_gone(cluster: Cluster, routers: Routers, model: int) -> None:
    router = routers.start()
    assert router.score("iris").status == 404
    deploy(cluster, model)
    until(lambda: router.score("iris").status == 200, "the new model")
    cluster.pod_runs("iris-abc-1", "127.0.0.1", ready=False)
    until(lambda: router.score("iris").body.startswith(b"No ready replicas"), "a pod that is not ready")
    cluster.pod_runs("iris-abc-1", "127.0.0.1")
    until(lambda: router.score("iris").status == 200, "the pod that is ready again")
    cluster.client.delete("deployments", cluster.namespace, "iris")
    until(lambda: router.score("iris").status == 404, "the end of the model")


def test_keys_are_made_followed_and_renewed(
    cluster: Cluster, routers: Routers, model: int, capsys: pytest.CaptureFixture[str]
) -> None:
    router = routers.start()
    deploy(cluster, model, auth_enabled="true")
    until(lambda: cluster.client.find("secrets", cluster.namespace, SECRET), "keys")
    until(lambda: router.score("iris", Authorization=f"Bearer {key(cluster)}").status == 200, "the key")
    assert router.score("iris").status == 401
    former, kubeconfig = key(cluster), str(cluster.admin)
    assert main(["keys", "regenerate", "iris", "--key", "primary", "--kubeconfig", kubeconfig]) == 0
    fresh = capsys.readouterr().out.strip()
    assert fresh == key(cluster) != former
    until(lambda: router.score("iris", Authorization=f"Bearer {former}").status == 401, "end of the former key")
    assert router.score("iris", Authorization=f"Bearer {fresh}").status == 200
    second = key(cluster, "secondaryKey")
    assert main(["keys", "show", "iris", "--kubeconfig", kubeconfig, "--namespace", cluster.namespace]) == 0
    assert capsys.readouterr().out == f"primary: {fresh}\nsecondary: {second}\n"
    assert router.score("iris", Authorization=f"Bearer {second}").status == 200
    assert not any(secret in router.said for secret in (former, fresh, second))


def key(cluster: Cluster, field: str = "primaryKey") -> str:
    data = cluster.client.get("secrets", cluster.namespace, SECRET)["data"]
    return base64.b64decode(data[field]).decode()
