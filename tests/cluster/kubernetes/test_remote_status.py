"""`azureml-fe top` through the API server."""

import json
import re
import socket
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from router.cli.main import main
from tests.processes import send_request
from tests.routers import StartRouter, open_echo_service

_PODS = "/api/v1/namespaces/azureml/pods"


@contextmanager
def api_server_in_front_of(admin_port: int, *, forbidden: bool = False) -> Iterator[str]:
    """Serve the list of the router's pods, and a proxy to the admin port of one of them. Yields the URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path, _, query = self.path.partition("?")
            if path == _PODS:
                assert "azuremlappname%3Dazureml-fe" in query
                items = [{"metadata": {"name": name, "namespace": "azureml"}} for name in ("deleted", "router-1")]
                metadata = {"resourceVersion": "1"}
                self.respond(200, {"kind": "PodList", "apiVersion": "v1", "metadata": metadata, "items": items})
            elif forbidden:
                self.respond(403, {"kind": "Status", "code": 403, "reason": "Forbidden", "message": "no pods/proxy"})
            elif path == f"{_PODS}/router-1:9090/proxy/status.json":
                # The API server passes its own name on as Host, with the headers of the client.
                headers = {**self.headers, "Host": "cluster.example:443", "Accept-Encoding": "identity"}
                request = urllib.request.Request(f"http://127.0.0.1:{admin_port}/status.json", headers=headers)
                with urllib.request.urlopen(request) as status:
                    self.respond(200, json.load(status))
            else:
                self.respond(503, {"kind": "Status", "code": 503, "reason": "ServiceUnavailable", "message": "no pod"})

        def respond(self, status: int, content: object) -> None:
            body = json.dumps(content).encode()
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


def write_kubeconfig(directory: Path, url: str) -> Path:
    context = {"cluster": "test", "user": "test", "namespace": "azureml"}
    file = directory / "kubeconfig"
    file.write_text(
        json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "test",
                "contexts": [{"name": "test", "context": context}],
                "clusters": [{"name": "test", "cluster": {"server": url}}],
                "users": [{"name": "test", "user": {"token": "my-token"}}],
            }
        )
    )
    return file


def test_top_shows_the_leader_through_the_api_server(
    start: StartRouter, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    router = start({"iris": open_echo_service(num_replicas=2)})
    with api_server_in_front_of(router.admin_port) as url:
        assert main(["top", "--once", "--kubeconfig", str(write_kubeconfig(tmp_path, url))]) == 0
    screen = capsys.readouterr().out
    assert re.search(r"^iris +2/2 .* 0/2 .*··$", screen, re.MULTILINE)
    assert "leader" in screen


def test_admin_port_answers_to_its_own_names_only(start: StartRouter, monkeypatch: pytest.MonkeyPatch) -> None:
    router = start({"iris": open_echo_service()}, admin_hosts=["router.example"])
    own = {"localhost", "router.example", socket.gethostname()}
    statuses = {
        host: send_request(router.admin_port, "/status.json", Host=host).status for host in own | {"evil.example"}
    }
    assert statuses == dict.fromkeys(own, 200) | {"evil.example": 421}

    # A page cannot imitate `top`, which may use any name.
    resolve = socket.getaddrinfo
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda _, *arguments, **options: resolve("127.0.0.1", *arguments, **options)
    )
    assert main(["top", "--once", f"http://other.example:{router.admin_port}"]) == 0


def test_top_names_the_missing_permission(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with api_server_in_front_of(1, forbidden=True) as url:
        assert main(["top", "--once", "--kubeconfig", str(write_kubeconfig(tmp_path, url))]) == 1
    error = capsys.readouterr().err
    assert "get pods/proxy" in error
    assert error.count("\n") == 1
    assert "my-token" not in error
