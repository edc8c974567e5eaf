"""Fetching keys from correct servers, and from servers that misbehave."""

from __future__ import annotations

import asyncio
import json
import os
import ssl
from collections.abc import Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import trustme
from aiohttp import web

from router.auth.issuers import Issuer
from router.auth.issuing import key_fetcher
from router.auth.issuing.key_fetcher import FetchError, fetch_keys
from tests.auth.signing import issuer, key_pair, public_jwk

KEY = {**public_jwk(key_pair("one")), "kid": "one"}
Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def ca_file(authority: trustme.CA, tmp_path: Path) -> str:
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    return str(tmp_path / "ca.pem")


def respond_with(document: object, **headers: str) -> Handler:
    async def handle(_: web.BaseRequest) -> web.Response:
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
        return web.Response(body=body, headers={name.replace("_", "-"): value for name, value in headers.items()})

    return handle


KEYS = respond_with({"keys": [KEY]})


class FakeIssuer:
    """The URL of a server, and the paths that were requested."""

    def __init__(self) -> None:
        self.url = ""
        self.requested: list[str] = []


@asynccontextmanager
async def serve(handlers: Mapping[str, Handler], certificate: trustme.LeafCert | None = None) -> Any:
    server = FakeIssuer()

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        server.requested.append(request.path)
        handler = handlers.get(request.path)
        return await handler(request) if handler is not None else web.Response(status=404)

    context = None
    if certificate is not None:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        certificate.configure_cert(context)
    runner = web.ServerRunner(web.Server(handle), shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    server.url = f"{'http' if context is None else 'https'}://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield server
    finally:
        await runner.cleanup()


async def fetch_error(from_issuer: Issuer) -> str:
    with pytest.raises(FetchError) as caught:
        await fetch_keys(from_issuer)
    return str(caught.value)


def issuer_at(url: str, **settings: Any) -> Issuer:
    return issuer(jwks_url=f"{url}/keys", **settings)


async def test_keys_are_fetched_over_tls(authority: trustme.CA, ca_file: str) -> None:
    handlers = {"/keys": respond_with({"keys": [KEY]}, Cache_Control="public, max-age=90")}
    async with serve(handlers, authority.issue_cert("127.0.0.1")) as server:
        assert await fetch_keys(issuer_at(server.url, ca_file=ca_file)) == ((KEY,), 90.0)


async def test_keys_are_found_by_discovery() -> None:
    handlers: dict[str, Handler] = {"/elsewhere": KEYS}
    async with serve(handlers) as server:
        metadata = {"issuer": server.url, "jwks_uri": f"{server.url}/elsewhere"}
        handlers["/.well-known/openid-configuration"] = respond_with(metadata)
        keys, _ = await fetch_keys(issuer(issuer=server.url, jwks_url=None))
        assert keys == (KEY,)
        metadata["issuer"] = "https://other.example.com"
        handlers["/.well-known/openid-configuration"] = respond_with(metadata)
        assert "belongs to another issuer" in await fetch_error(issuer(issuer=server.url, jwks_url=None))
        metadata |= {"issuer": server.url, "jwks_uri": "http://192.0.2.1/keys"}
        handlers["/.well-known/openid-configuration"] = respond_with(metadata)
        assert "no https URL of keys" in await fetch_error(issuer(issuer=server.url, jwks_url=None))


async def test_certificate_of_another_authority_or_name_is_rejected(authority: trustme.CA, ca_file: str) -> None:
    async with serve({"/keys": KEYS}, trustme.CA().issue_cert("127.0.0.1")) as server:
        assert "certificate verify failed" in await fetch_error(issuer_at(server.url, ca_file=ca_file))
        assert server.requested == []
    async with serve({"/keys": KEYS}, authority.issue_cert("idp.example.com")) as server:
        assert "certificate verify failed" in await fetch_error(issuer_at(server.url, ca_file=ca_file))
    async with serve({"/keys": KEYS}, authority.issue_cert("127.0.0.1")) as server:
        assert "certificate verify failed" in await fetch_error(issuer_at(server.url))


async def test_invalid_ca_file_is_an_error(tmp_path: Path) -> None:
    assert "No such file" in await fetch_error(issuer_at("https://127.0.0.1:1", ca_file=str(tmp_path / "none.pem")))
    os.mkfifo(tmp_path / "pipe.pem")
    assert "Not a regular" in await fetch_error(issuer_at("https://127.0.0.1:1", ca_file=str(tmp_path / "pipe.pem")))
    (tmp_path / "bad.pem").write_text("no certificate")
    assert await fetch_error(issuer_at("https://127.0.0.1:1", ca_file=str(tmp_path / "bad.pem")))


@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_redirect_is_not_followed(status: int) -> None:
    async def elsewhere(_: web.BaseRequest) -> web.Response:
        return web.Response(status=status, headers={"Location": "/other"})

    async with serve({"/keys": elsewhere, "/other": KEYS}) as server:
        assert f"responded with status {status}" in await fetch_error(issuer_at(server.url))
        assert server.requested == ["/keys"]


@pytest.mark.parametrize("status", [204, 400, 404, 429, 500, 503])
async def test_other_status_is_an_error(status: int) -> None:
    async def fails(_: web.BaseRequest) -> web.Response:
        return web.Response(status=status)

    async with serve({"/keys": fails}) as server:
        assert f"responded with status {status}" in await fetch_error(issuer_at(server.url))


@pytest.mark.parametrize("content", [b"", b"<html>s3cret</html>", b"[]", b'{"keys": []}', b'{"keys": 1}', b"\xff"])
async def test_invalid_key_set_is_not_in_the_error(content: bytes) -> None:
    async with serve({"/keys": respond_with(content)}) as server:
        error = await fetch_error(issuer_at(server.url))
        assert error.startswith(f"{server.url}/keys: ")
        assert "s3cret" not in error


async def test_endless_response_is_cut_off() -> None:
    async def endless(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            while True:
                await response.write(b" " * 65536)
        except ConnectionError:
            return response

    async with serve({"/keys": endless}) as server:
        assert "larger than 1048576 bytes" in await fetch_error(issuer_at(server.url))


async def test_compressed_response_is_limited_by_its_decompressed_size() -> None:
    async def bomb(_: web.BaseRequest) -> web.Response:
        response = web.Response(body=b" " * 50_000_000)
        response.enable_compression(web.ContentCoding.gzip)
        return response

    async with serve({"/keys": bomb}) as server:
        assert "larger than 1048576 bytes" in await fetch_error(issuer_at(server.url))


async def test_silent_server_times_out() -> None:
    timed_out = asyncio.Event()

    async def silent(_: web.BaseRequest) -> web.Response:
        await timed_out.wait()
        return web.Response()

    async with serve({"/keys": silent}) as server:
        with mock.patch.object(key_fetcher, "FETCH_TIMEOUT_SECONDS", 0.05):
            assert "no response within 0.05 s" in await fetch_error(issuer_at(server.url))
        timed_out.set()


async def test_closed_port_is_an_error() -> None:
    assert "Cannot connect" in await fetch_error(issuer_at("http://127.0.0.1:1"))
