"""What `check --cluster` finds wrong, and `top` through the API server."""

import asyncio
import json
import re
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from router.cli import main
from router.cluster.kubernetes.commands import unreachable
from router.services import Replica, ReplicaState
from tests.cluster.kubernetes.sized import rules
from tests.kubernetes.cluster import ROUTER, Cluster
from tests.routers import Start, open_echo

_PODS = "/api/v1/namespaces/azureml/pods"


def hpa(target: str) -> dict[str, object]:
    reference = {"apiVersion": "apps/v1", "kind": "Deployment", "name": target}
    return {"metadata": {"name": "by-cpu"}, "spec": {"scaleTargetRef": reference, "maxReplicas": 5}}


def test_check_names_a_model_that_something_else_scales(
    cluster: Cluster, api_server: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.deployment("iris")
    cluster.deployment("resnet")
    cluster.client.create("horizontalpodautoscalers", cluster.namespace, hpa("iris"))
    assert main(["check", "--kubeconfig", str(api_server), "--namespace", cluster.namespace]) == 2
    errors = capsys.readouterr().err
    assert "service iris: Deployment iris is scaled by HorizontalPodAutoscaler by-cpu, so the router leaves" in errors
    assert "service resnet: Deployment" not in errors
    assert "Secret azureml-fe-keys-resnet is missing" in errors


@pytest.mark.parametrize("sizes_itself", [True, False])
def test_check_names_rights_that_self_scaling_lacks(
    cluster: Cluster, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, sizes_itself: bool
) -> None:
    cluster.account(ROUTER)
    cluster.allow(ROUTER, rules("own", withheld="pods/resize"))
    monkeypatch.setenv("AZUREML_FE_POD_NAMESPACE", cluster.namespace)
    monkeypatch.setenv("AZUREML_FE_SELF_SCALING_ENABLED", str(sizes_itself).lower())
    account = str(cluster.kubeconfig(ROUTER))
    assert main(["check", "--kubeconfig", account, "--namespace", cluster.namespace]) == (2 if sizes_itself else 0)
    lacks = {line.rpartition("not allowed: ")[2] for line in capsys.readouterr().err.splitlines()}
    assert lacks == (
        {
            f"patch pods/resize in namespace {cluster.namespace}: the router's pods roll when their CPU changes",
            "list nodes in all namespaces: the router finds no room for more pods of its own",
            "list pods in all namespaces: the router finds no room for more pods of its own",
        }
        if sizes_itself
        else set()
    )


def test_ready_replica_that_accepts_nothing_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening, socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        replicas = [
            Replica("good", "127.0.0.1", listening.getsockname()[1], ReplicaState.READY),
            Replica("deaf", "127.0.0.1", closed.getsockname()[1], ReplicaState.READY),
            Replica("young", "127.0.0.1", closed.getsockname()[1], ReplicaState.STARTING),
        ]
        (told,) = asyncio.run(unreachable({("iris", "blue"): replicas}))
        port = closed.getsockname()[1]
    assert told == f"service iris, version blue: replica deaf is ready but accepts no connection at 127.0.0.1:{port}"


@contextmanager
def api_server_before(admin_port: int, *, forbidden: bool = False) -> Iterator[str]:
    """What an API server is for one who looks: a list of the router's pods, and a way to the port of each."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path, _, query = self.path.partition("?")
            if path == _PODS:
                assert "azuremlappname%3Dazureml-fe" in query
                items = [{"metadata": {"name": name, "namespace": "azureml"}} for name in ("gone", "router-1")]
                metadata = {"resourceVersion": "1"}
                self.answer(200, {"kind": "PodList", "apiVersion": "v1", "metadata": metadata, "items": items})
            elif forbidden:
                self.answer(403, {"kind": "Status", "code": 403, "reason": "Forbidden", "message": "no pods/proxy"})
            elif path == f"{_PODS}/router-1:9090/proxy/status.json":
                with urllib.request.urlopen(f"http://127.0.0.1:{admin_port}/status.json") as status:
                    self.answer(200, json.load(status))
            else:
                self.answer(503, {"kind": "Status", "code": 503, "reason": "ServiceUnavailable", "message": "gone"})

        def answer(self, status: int, thing: object) -> None:
            body = json.dumps(thing).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def kubeconfig(folder: Path, url: str) -> Path:
    context = {"cluster": "it", "user": "me", "namespace": "azureml"}
    file = folder / "kubeconfig"
    file.write_text(
        json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "it",
                "contexts": [{"name": "it", "context": context}],
                "clusters": [{"name": "it", "cluster": {"server": url}}],
                "users": [{"name": "me", "user": {"token": "my-token"}}],
            }
        )
    )
    return file


def test_top_shows_the_leader_through_the_api_server(
    start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    router = start({"iris": open_echo(num_replicas=2)})
    with api_server_before(router.admin_port) as url:
        assert main(["top", "--once", "--kubeconfig", str(kubeconfig(tmp_path, url))]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"^iris +\S+ +0/2 +0 .*··$", shown, re.MULTILINE)
    assert "leader" in shown


def test_top_says_what_right_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with api_server_before(1, forbidden=True) as url:
        assert main(["top", "--once", "--kubeconfig", str(kubeconfig(tmp_path, url))]) == 1
    error = capsys.readouterr().err
    assert "get pods/proxy" in error
    assert error.count("\n") == 1
    assert "my-token" not in error
