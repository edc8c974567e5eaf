"""Methods: those that a service allows are forwarded, and the response to HEAD has no body on either side."""

from __future__ import annotations

import pytest

from tests.gateway.harness import GatewayHarness, ScriptedReplica
from tests.gateway.http_connection import Connection, get, ok, post, post_chunked

ORIGIN = "https://app.example.com"
HEAD = post(b"", method="HEAD", length=None)


async def exchange_with(
    harness: GatewayHarness, replica: ScriptedReplica, request: bytes
) -> tuple[Connection, Connection]:
    """Send a request, and wait until the replica has read its head. Return both connections."""
    client = await harness.client()
    client.send(request)
    return client, await replica.accept()


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE", "OPTIONS", "HEAD"])
async def test_allowed_method_is_forwarded(harness: GatewayHarness, method: str) -> None:
    harness.set_service("iris", allowed_methods=[method])
    client, connection = await exchange_with(harness, await harness.add_replica(), post(b"abc", method=method))
    request = await connection.read_message()
    assert (request.start_line, request.body) == (f"{method} /score HTTP/1.1", b"abc")
    connection.send(ok(b"", "X-Of: model"))
    assert (await client.read_head())["x-of"] == "model"


@pytest.mark.parametrize(
    ("allowed", "allow"),
    [
        (["POST"], "POST"),
        (["HEAD", "GET"], "HEAD, GET"),
        (["GET", "PUT", "PATCH", "OPTIONS"], "GET, PUT, PATCH, OPTIONS"),
    ],
)
async def test_other_methods_are_405(harness: GatewayHarness, allowed: list[str], allow: str) -> None:
    harness.set_service("iris", allowed_methods=allowed)
    replica = await harness.add_replica()
    for method in ("GET", "POST", "PUT", "DELETE", "TRACE"):
        if method not in allowed:
            response = await harness.response_to(post(b"", method=method))
            assert (response.status, response["allow"]) == (405, allow)
    assert replica.connections == []


@pytest.mark.parametrize("method", ["PUT", "DELETE", "HEAD", "OPTIONS"])
async def test_allowed_method_needs_the_key(harness: GatewayHarness, method: str) -> None:
    harness.set_service("iris", allowed_methods=[method])
    replica = await harness.add_replica()
    client = await harness.client()
    client.send(post(b"", method=method, key=None))
    assert (await client.read_head()).status == 401
    assert replica.connections == []


@pytest.mark.parametrize(
    ("method", "length"), [("PUT", "0"), ("PATCH", "0"), ("DELETE", None), ("OPTIONS", None), ("HEAD", None)]
)
async def test_length_of_a_request_without_a_body(harness: GatewayHarness, method: str, length: str | None) -> None:
    harness.set_service("iris", allowed_methods=[method])
    client, connection = await exchange_with(
        harness, await harness.add_replica(), post(b"", method=method, length=None)
    )
    assert (await connection.read_head()).get("content-length") == length
    connection.send(ok(b""))
    await client.read_head()


# HEAD.


@pytest.mark.parametrize(
    ("head", "length"),
    [
        (ok(b"", length=5), "5"),
        (ok(b"", length=100_000), "100000"),
        (ok(b"", length=0), "0"),
        (ok(b"", "Transfer-Encoding: chunked", length=None), None),
        (ok(b"", length=None), None),
        (ok(b"", length=7, status="404 Not Found"), "7"),
        (ok(b"", length=None, status="204 No Content"), None),
        (ok(b"", length=9, status="304 Not Modified"), "9"),
        (ok(b"", "Transfer-Encoding: gzip", length=None), None),
    ],
)
async def test_response_to_head_ends_with_its_head(harness: GatewayHarness, head: bytes, length: str | None) -> None:
    """Both connections serve the next request."""
    harness.set_service("iris", allowed_methods=["HEAD", "GET"])
    client, connection = await exchange_with(harness, await harness.add_replica(), HEAD)
    await connection.read_message()
    connection.send(head)
    response = await client.read_head()
    assert response.get("content-length") == length
    assert "connection" not in response
    client.send(get())
    assert (await connection.read_message()).start_line == "GET /score HTTP/1.1"
    connection.send(ok(b"next"))
    assert (await client.read_message()).body == b"next"


async def test_pipelined_requests_around_head_get_their_responses(harness: GatewayHarness) -> None:
    harness.set_service("iris", allowed_methods=["HEAD", "GET", "POST"])
    client, connection = await exchange_with(harness, await harness.add_replica(), post(b"1") + HEAD + get())
    for response in (ok(b"one"), ok(b"", length=12), ok(b"three")):
        await connection.read_message()
        connection.send(response)
    assert (await client.read_message()).body == b"one"
    assert (await client.read_head())["content-length"] == "12"
    assert (await client.read_message()).body == b"three"


@pytest.mark.parametrize("body", [b"hello", b"he", b"hello and more", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"])
@pytest.mark.parametrize("framing", ["Content-Length: 5", "X-No-Length: 1", "Transfer-Encoding: chunked"])
async def test_body_of_a_response_to_head_is_not_forwarded(harness: GatewayHarness, body: bytes, framing: str) -> None:
    """The replica breaks the rule. Its connection is closed, as nobody knows where its body ends."""
    harness.set_service("iris", allowed_methods=["HEAD", "GET"])
    replica = await harness.add_replica()
    client, connection = await exchange_with(harness, replica, HEAD)
    await connection.read_message()
    connection.send(ok(b"", framing, length=None) + body)
    assert (await client.read_head()).status == 200
    await connection.wait_closed()
    client.send(get())
    second = await replica.accept()
    await second.read_message()
    second.send(ok(b"next"))
    assert (await client.read_message()).body == b"next"


@pytest.mark.parametrize(
    "head", [b"HTTP/2.0 200 OK\r\n\r\n", b"HTTP/1.1 200 O\x01\r\n\r\n", b"HTTP/1.1 101 X\r\n\r\n", b"x"]
)
async def test_invalid_response_to_head_is_502(harness: GatewayHarness, head: bytes) -> None:
    harness.set_service("iris", allowed_methods=["HEAD"])
    client, connection = await exchange_with(harness, await harness.add_replica(), HEAD)
    await connection.read_message()
    connection.send(head)
    response = await client.read_head()
    assert (response.status, response.error_code) == (502, "replica-closed")
    await connection.wait_closed()


@pytest.mark.parametrize("options", ["Connection: close", "Connection: keep-alive, close"])
async def test_replica_may_close_after_head(harness: GatewayHarness, options: str) -> None:
    harness.set_service("iris", allowed_methods=["HEAD"])
    client, connection = await exchange_with(harness, await harness.add_replica(), HEAD)
    await connection.read_message()
    connection.send(ok(b"", options, length=None))
    assert "connection" not in await client.read_head()
    await connection.wait_closed()


async def test_interim_response_may_precede_the_response_to_head(harness: GatewayHarness) -> None:
    harness.set_service("iris", allowed_methods=["HEAD"])
    client, connection = await exchange_with(harness, await harness.add_replica(), HEAD)
    await connection.read_message()
    connection.send(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + ok(b"", length=5))
    assert (await client.read_head()).status == 103
    assert (await client.read_head())["content-length"] == "5"


async def test_head_of_http10_is_kept_alive_without_a_length(harness: GatewayHarness) -> None:
    harness.set_service("iris", allowed_methods=["HEAD"])
    request = post(b"", "Connection: keep-alive", method="HEAD", length=None, version="1.0")
    client, connection = await exchange_with(harness, await harness.add_replica(), request)
    await connection.read_message()
    connection.send(ok(b"", "Transfer-Encoding: chunked", length=None))
    response = await client.read_head()
    assert response["connection"] == "keep-alive"
    assert "transfer-encoding" not in response
    client.send(get(path="/"))
    assert (await client.read_message()).body == b"Healthy"


async def test_local_response_to_an_allowed_head_has_no_body(harness: GatewayHarness) -> None:
    harness.set_service("iris", allowed_methods=["HEAD"], max_request_wait_time=1)
    client = await harness.client()
    for _ in range(2):
        client.send(HEAD)
        response = await client.read_head()
        assert (response.status, response.error_code) == (503, "no-ready-replicas")
        assert int(response["content-length"]) > 0
    client.send(get(path="/"))
    assert (await client.read_message()).body == b"Healthy"


async def test_chunked_put_is_forwarded(harness: GatewayHarness) -> None:
    harness.set_service("iris", allowed_methods=["PUT"])
    request = post_chunked(b"ab", b"c").replace(b"POST", b"PUT", 1)
    client, connection = await exchange_with(harness, await harness.add_replica(), request)
    assert (await connection.read_message()).body == b"abc"
    connection.send(ok())
    await client.read_message()


# OPTIONS and CORS.

PREFLIGHT = (f"Origin: {ORIGIN}", "Access-Control-Request-Method: PUT")


async def test_router_responds_to_a_preflight_although_options_is_allowed(harness: GatewayHarness) -> None:
    harness.set_service("iris", allowed_methods=["PUT", "OPTIONS"], cors_allowed_origins=[ORIGIN])
    replica = await harness.add_replica()
    response = await harness.response_to(post(b"", *PREFLIGHT, method="OPTIONS", key=None))
    assert (response.status, response["access-control-allow-methods"]) == (204, "PUT, OPTIONS")
    assert replica.connections == []


@pytest.mark.parametrize(
    "headers",
    [
        (),
        (f"Origin: {ORIGIN}",),
        ("Access-Control-Request-Method: PUT",),
        ("Origin: https://other.example.com", "Access-Control-Request-Method: PUT"),
    ],
)
async def test_options_that_is_no_preflight_of_an_allowed_origin_is_forwarded(
    harness: GatewayHarness, headers: tuple[str, ...]
) -> None:
    harness.set_service("iris", allowed_methods=["OPTIONS"], cors_allowed_origins=[ORIGIN])
    request = post(b"", *headers, method="OPTIONS", length=None)
    client, connection = await exchange_with(harness, await harness.add_replica(), request)
    assert (await connection.read_message()).start_line == "OPTIONS /score HTTP/1.1"
    connection.send(ok(b"", "Allow: POST"))
    assert (await client.read_message())["allow"] == "POST"


async def test_preflight_without_configured_origins_needs_the_key(harness: GatewayHarness) -> None:
    harness.set_service("iris", allowed_methods=["OPTIONS"])
    replica = await harness.add_replica()
    assert (await harness.response_to(post(b"", *PREFLIGHT, method="OPTIONS", key=None))).status == 401
    assert replica.connections == []
