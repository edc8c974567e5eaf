"""Fetching keys: from servers that do it right, and from all kinds that do not."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import trustme
import uvloop
from aiohttp import web

from router.auth.issuers import Issuer
from router.tokens import fetching
from router.tokens.fetching import FetchError, fetch_keys
from tests.auth.signing import issuer, pair, published

KEY = {**published(pair("one")), "kid": "one"}
Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def ca_file(authority: trustme.CA, tmp_path: Path) -> str:
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    return str(tmp_path / "ca.pem")


def answers(document: object, **headers: str) -> Handler:
    async def handle(_: web.BaseRequest) -> web.Response:
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
        return web.Response(body=body, headers={name.replace("_", "-"): value for name, value in headers.items()})

    return handle


KEYS = answers({"keys": [KEY]})


class Served:
    """What a server was asked, and where it is."""

    def __init__(self) -> None:
        self.url = ""
        self.asked: list[str] = []


@asynccontextmanager
async def server(handlers: Mapping[str, Handler], certificate: trustme.LeafCert | None = None) -> Any:
    served = Served()

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        served.asked.append(request.path)
        found = handlers.get(request.path)
        return await found(request) if found is not None else web.Response(status=404)

    context = None
    if certificate is not None:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        certificate.configure_cert(context)
    runner = web.ServerRunner(web.Server(handle), shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    served.url = f"{'http' if context is None else 'https'}://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield served
    finally:
        await runner.cleanup()


def run(story: Callable[[], Awaitable[None]]) -> None:
    uvloop.run(story())  # type: ignore[arg-type]


async def refusal(asked: Issuer) -> str:
    with pytest.raises(FetchError) as caught:
        await fetch_keys(asked)
    return str(caught.value)


def at(url: str, **settings: Any) -> Issuer:
    return issuer(jwks_url=f"{url}/keys", **settings)


def test_keys_over_tls(authority: trustme.CA, ca_file: str) -> None:
    async def story() -> None:
        handlers = {"/keys": answers({"keys": [KEY]}, Cache_Control="public, max-age=90")}
        async with server(handlers, authority.issue_cert("127.0.0.1")) as served:
            assert await fetch_keys(at(served.url, ca_file=ca_file)) == ((KEY,), 90.0)

    run(story)


def test_keys_by_discovery() -> None:
    async def story() -> None:
        handlers: dict[str, Handler] = {"/elsewhere": KEYS}
        async with server(handlers) as served:
            metadata = {"issuer": served.url, "jwks_uri": f"{served.url}/elsewhere"}
            handlers["/.well-known/openid-configuration"] = answers(metadata)
            keys, _ = await fetch_keys(issuer(issuer=served.url, jwks_url=None))
            assert keys == (KEY,)
            metadata["issuer"] = "https://other.example.com"
            handlers["/.well-known/openid-configuration"] = answers(metadata)
            assert "is of another issuer" in await refusal(issuer(issuer=served.url, jwks_url=None))
            metadata |= {"issuer": served.url, "jwks_uri": "http://192.0.2.1/keys"}
            handlers["/.well-known/openid-configuration"] = answers(metadata)
            assert "no https address of keys" in await refusal(issuer(issuer=served.url, jwks_url=None))

    run(story)


def test_certificate_of_another_authority_or_name_is_refused(authority: trustme.CA, ca_file: str) -> None:
    async def story() -> None:
        async with server({"/keys": KEYS}, trustme.CA().issue_cert("127.0.0.1")) as served:
            assert "certificate verify failed" in await refusal(at(served.url, ca_file=ca_file))
            assert served.asked == []
        async with server({"/keys": KEYS}, authority.issue_cert("idp.example.com")) as served:
            assert "certificate verify failed" in await refusal(at(served.url, ca_file=ca_file))
        async with server({"/keys": KEYS}, authority.issue_cert("127.0.0.1")) as served:
            assert "certificate verify failed" in await refusal(at(served.url))

    run(story)


def test_bundle_that_cannot_be_read(tmp_path: Path) -> None:
    async def story() -> None:
        assert "No such file" in await refusal(at("https://127.0.0.1:1", ca_file=str(tmp_path / "none.pem")))
        (tmp_path / "bad.pem").write_text("no certificate")
        assert await refusal(at("https://127.0.0.1:1", ca_file=str(tmp_path / "bad.pem")))

    run(story)


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_redirect_is_not_followed(status: int) -> None:
    async def story() -> None:
        async def elsewhere(_: web.BaseRequest) -> web.Response:
            return web.Response(status=status, headers={"Location": "/other"})

        async with server({"/keys": elsewhere, "/other": KEYS}) as served:
            assert f"answered with status {status}" in await refusal(at(served.url))
            assert served.asked == ["/keys"]

    run(story)


@pytest.mark.parametrize("status", [204, 400, 404, 429, 500, 503])
def test_other_status_is_a_failure(status: int) -> None:
    async def story() -> None:
        async def fails(_: web.BaseRequest) -> web.Response:
            return web.Response(status=status)

        async with server({"/keys": fails}) as served:
            assert f"answered with status {status}" in await refusal(at(served.url))

    run(story)


@pytest.mark.parametrize("content", [b"", b"<html>s3cret</html>", b"[]", b'{"keys": []}', b'{"keys": 1}', b"\xff"])
def test_answer_that_is_no_key_set_is_not_repeated(content: bytes) -> None:
    async def story() -> None:
        async with server({"/keys": answers(content)}) as served:
            said = await refusal(at(served.url))
            assert said.startswith(f"{served.url}/keys: ")
            assert "s3cret" not in said

    run(story)


def test_answer_without_end_is_cut_off() -> None:
    async def story() -> None:
        async def endless(request: web.BaseRequest) -> web.StreamResponse:
            response = web.StreamResponse()
            await response.prepare(request)
            try:
                while True:
                    await response.write(b" " * 65536)
            except ConnectionError:
                return response

        async with server({"/keys": endless}) as served:
            assert "larger than 1048576 bytes" in await refusal(at(served.url))

    run(story)


def test_compressed_answer_is_bounded_by_what_it_becomes() -> None:
    async def story() -> None:
        async def bomb(_: web.BaseRequest) -> web.Response:
            response = web.Response(body=b" " * 50_000_000)
            response.enable_compression(web.ContentCoding.gzip)
            return response

        async with server({"/keys": bomb}) as served:
            assert "larger than 1048576 bytes" in await refusal(at(served.url))

    run(story)


def test_silent_server_is_given_up() -> None:
    async def story() -> None:
        async def silent(_: web.BaseRequest) -> web.Response:
            await asyncio.Event().wait()
            raise AssertionError

        async with server({"/keys": silent}) as served:
            with mock.patch.object(fetching, "LONGEST_FETCH_SECONDS", 0.05):
                assert "no answer within 0.05 s" in await refusal(at(served.url))

    run(story)


def test_nobody_there() -> None:
    async def story() -> None:
        assert "Cannot connect" in await refusal(at("http://127.0.0.1:1"))

    run(story)
