"""The script of `helm test` against a router and a TLS server."""

from __future__ import annotations

import importlib.util
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType

import pytest
import trustme

from tests.deploy.chart import CHART
from tests.routers import StartRouter, open_echo_service


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("reachable", CHART / "files" / "reachable.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Healthy(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"Healthy")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def https(tmp_path: Path) -> Iterator[tuple[int, list[str | None]]]:
    """The port of a TLS server with an untrusted certificate, and the server names of its clients."""
    authority, names = trustme.CA(), list[str | None]()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("scoring.example.com").configure_cert(context)
    context.sni_callback = lambda _socket, name, _context: names.append(name)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Healthy)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server.server_address[1], names
    server.shutdown()
    thread.join()
    server.server_close()


def test_serving_router_passes(start: StartRouter, script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    router = start({"echo": open_echo_service()})
    urls = [f"http://127.0.0.1:{router.port}/", f"http://127.0.0.1:{router.admin_port}/readyz"]
    assert script.main(urls) == 0
    assert capsys.readouterr().out.splitlines() == [f"ok {urls[0]}: 200 Healthy", f"ok {urls[1]}: 200 ok"]


def test_other_responses_fail_and_are_printed(
    start: StartRouter, script: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    router = start({"echo": open_echo_service()})
    url = f"http://127.0.0.1:{router.port}/api/v1/service/missing/score"
    assert script.main([url], 0.0) == 1
    assert capsys.readouterr().out == f"FAILED {url}: 404 No service missing.\n"
    assert script.main(["http://127.0.0.9:9/"], 0.1) == 1
    assert "Connection refused" in capsys.readouterr().out


def test_tls_sends_the_server_name(https: tuple[int, list[str | None]], script: ModuleType) -> None:
    port, names = https
    assert script.main([f"https://127.0.0.1:{port}/#scoring.example.com"]) == 0
    assert names == ["scoring.example.com"]
