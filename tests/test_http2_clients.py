"""Clients of others use HTTP/2 with a running router: curl, h2load, httpx, Node.js and Chromium."""

import asyncio
import json
import re
import ssl
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme

from tests.chromium import chromium
from tests.processes import TIMEOUT_SECONDS, wait_until
from tests.routers import Router, StartRouter, open_echo_service

_NODE = """
const http2 = require('node:http2'), fs = require('node:fs');
const [url, path, authority] = process.argv.slice(1);
const session = http2.connect(url, authority ? {ca: fs.readFileSync(authority)} : {});
session.on('error', (error) => { console.error(error); process.exit(1); });
let left = 50;
const found = [];
for (let i = 0; i < 50; i++) {
  const stream = session.request({':method': 'POST', ':path': path, 'content-type': 'application/json'});
  let status, body = '';
  stream.on('response', (headers) => { status = headers[':status']; });
  stream.on('data', (data) => { body += data; });
  stream.on('error', (error) => { console.error(error); process.exit(1); });
  stream.on('end', () => {
    found.push(`${status} ${body}`);
    if (!--left) { console.log(JSON.stringify(found)); session.close(); }
  });
  stream.end(JSON.stringify([i]));
}
"""
PATH = "/api/v1/service/echo/score"


class Served:
    """A router with HTTP/2 on both ports."""

    def __init__(self, start: StartRouter, directory: Path, **settings: Any) -> None:
        authority = trustme.CA(key_type=trustme.KeyType.ECDSA)
        issued = authority.issue_cert("127.0.0.1", "localhost")
        self.authority = directory / "ca.pem"
        authority.cert_pem.write_to_path(self.authority)
        certificate, key = directory / "cert.pem", directory / "key.pem"
        certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        issued.private_key_pem.write_to_path(key)
        key.chmod(0o600)
        self.router: Router = start(
            {"echo": open_echo_service(replica_max_concurrent_requests=0)},
            http2="on",
            https_port=0,
            tls_cert_file=str(certificate),
            tls_key_file=str(key),
            **settings,
        )
        self.router.wait_for_replicas("echo")
        secure_port = self.router.wait_for_stderr(r"and https://127\.0\.0\.1:(\d+)")[1]
        self.plain = f"http://127.0.0.1:{self.router.port}"
        self.secure = f"https://127.0.0.1:{secure_port}"


@pytest.fixture
def served(start: StartRouter, tmp_path: Path) -> Served:
    return Served(start, tmp_path)


def run(*command: str) -> str:
    """Run a program, and return its output."""
    return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS * 3, check=True).stdout


@pytest.mark.needs("curl")
def test_curl(served: Served) -> None:
    common = ("curl", "--silent", "--show-error", "--data", "[1, 2]", "--write-out", " %{http_version} %{http_code}")
    secure = ("--cacert", str(served.authority))
    assert run(*common, "--http2-prior-knowledge", served.plain + PATH) == "[1, 2] 2 200"
    assert run(*common, "--http2", served.plain + PATH) == "[1, 2] 1.1 200"  # `Upgrade: h2c` is ignored
    assert run(*common, "--http2", *secure, served.secure + PATH) == "[1, 2] 2 200"
    assert run(*common, "--http1.1", *secure, served.secure + PATH) == "[1, 2] 1.1 200"
    for protocol in ("h2", "http1"):
        labels = {"service": "echo", "protocol": protocol}
        wait_until(lambda labels=labels: served.router.metric("requests_by_protocol_total", **labels) == 2, protocol)  # type: ignore[misc]


@pytest.mark.needs("curl")
def test_curl_with_large_bodies(served: Served, tmp_path: Path) -> None:
    body, received = tmp_path / "body", tmp_path / "received"
    body.write_bytes(bytes(range(256)) * 40_000)  # 10 MB
    common = ("curl", "--silent", "--show-error", "--data-binary", f"@{body}", "--output", str(received))
    run(*common, "--http2-prior-knowledge", served.plain + PATH)
    assert received.read_bytes() == body.read_bytes()
    received.unlink()
    run(*common, "--http2", "--cacert", str(served.authority), served.secure + PATH)
    assert received.read_bytes() == body.read_bytes()


@pytest.mark.needs("h2load")
def test_h2load(served: Served) -> None:
    for url in (served.plain, served.secure):
        output = run("h2load", "-n", "2000", "-c", "4", "-m", "50", url + PATH)
        assert "2000 succeeded, 0 failed, 0 errored, 0 timeout" in output
        assert re.search(r"status codes: 2000 2xx", output)


async def test_httpx(served: Served) -> None:
    context = ssl.create_default_context(cafile=str(served.authority))
    async with httpx.AsyncClient(http2=True, verify=context, timeout=TIMEOUT_SECONDS) as client:
        responses = await asyncio.gather(*(client.post(served.secure + PATH, json=[i]) for i in range(200)))
        assert [response.json() for response in responses] == [[i] for i in range(200)]
        assert {response.http_version for response in responses} == {"HTTP/2"}
    # The worker reports its counters some time later.
    await asyncio.to_thread(wait_until, lambda: served.router.metric("http2_connections_total") == 1, "a connection")


@pytest.mark.needs("node")
def test_node(served: Served) -> None:
    for arguments in ((served.plain, PATH), (served.secure, PATH, str(served.authority))):
        found = json.loads(run("node", "--eval", _NODE, *arguments))
        assert sorted(found) == sorted(f"200 [{i}]" for i in range(50))


@pytest.mark.needs("chromium")
def test_chromium(served: Served) -> None:
    with chromium() as browser, browser.page("about:blank") as page:
        page.call("Security.setIgnoreCertificateErrors", ignore=True)
        page.call("Page.navigate", url=served.secure + "/")
        page.wait_until("document.body && document.body.textContent === 'Healthy'")
        assert page.evaluate("performance.getEntriesByType('navigation')[0].nextHopProtocol") == "h2"
        scores = page.evaluate(
            f"""Promise.all([...Array(30).keys()].map(
                    i => fetch('{PATH}', {{method: 'POST', body: `[${{i}}]`}}).then(r => r.text())))"""
        )
        assert scores == [f"[{i}]" for i in range(30)]
        assert page.evaluate("performance.getEntriesByType('resource').every(e => e.nextHopProtocol === 'h2')")


@pytest.mark.needs("node")
def test_drain_loses_no_stream(start: StartRouter) -> None:
    """Requests that are in progress when the router stops are answered."""
    service = open_echo_service(replica_max_concurrent_requests=0, delay=1.0)
    router = start({"echo": service}, http2="on")
    router.wait_for_replicas("echo")
    command = ("node", "--eval", _NODE, f"http://127.0.0.1:{router.port}", PATH)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as client:
        assert client.stdout is not None
        wait_until(lambda: router.metric("requests_in_flight") == 50, "requests in flight")
        assert router.stop() == 0
        assert sorted(json.loads(client.stdout.read())) == sorted(f"200 [{i}]" for i in range(50))
