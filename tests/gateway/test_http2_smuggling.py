"""Requests of HTTP/2 that would be read differently as HTTP/1.1 are refused (downgrade attacks), and get no replica."""

import pytest

from tests.gateway.harness import GatewayHarness
from tests.gateway.http2_client import (
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PROTOCOL_ERROR,
    Fields,
    Http2Client,
    frame,
    request_fields,
)
from tests.gateway.http_connection import ok

pytestmark = pytest.mark.gateway(http2="on")

SMUGGLED = "GET /api/v1/service/iris/smuggled HTTP/1.1\r\nHost: fe\r\n\r\n"
PATH = "/api/v1/service/iris/score"


def _with(*more: tuple[str, str]) -> list[tuple[str, str]]:
    return request_fields(*more)


def _without(name: str, *more: tuple[str, str]) -> list[tuple[str, str]]:
    return [*(field for field in request_fields() if field[0] != name), *more]


def _replaced(name: str, value: str) -> list[tuple[str, str]]:
    return [(n, value if n == name else v) for n, v in request_fields()]


# By the body that follows: reset, or a response with 400.
RESET: dict[str, tuple[Fields, bytes]] = {
    "H2.CL: shorter length": (_with(("content-length", "0")), SMUGGLED.encode()),
    "H2.CL: longer length": (_with(("content-length", "100")), b"x"),
    "H2.CL: two lengths": (_with(("content-length", "1"), ("content-length", "2")), b"x"),
    "H2.CL: same length twice": (_with(("content-length", "1"), ("content-length", "1")), b"x"),
    "H2.CL: list of lengths": (_with(("content-length", "1, 1")), b"x"),
    "H2.CL: length with a plus": (_with(("content-length", "+1")), b"x"),
    "H2.CL: length in hexadecimal": (_with(("content-length", "0x1")), b"x"),
    "H2.CL: empty length": (_with(("content-length", "")), b"x"),
    "H2.CL: length with an underscore": (_with(("content-length", "1_0")), b"x" * 10),
    "H2.TE": (_with(("transfer-encoding", "chunked")), b"0\r\n\r\n" + SMUGGLED.encode()),
    "H2.TE: identity": (_with(("transfer-encoding", "identity")), b"x"),
    "connection": (_with(("connection", "close")), b"x"),
    "keep-alive": (_with(("keep-alive", "timeout=5")), b"x"),
    "proxy-connection": (_with(("proxy-connection", "keep-alive")), b"x"),
    "upgrade": (_with(("upgrade", "websocket")), b"x"),
    "te": (_with(("te", "gzip")), b"x"),
    "line end in a value": (_with(("x", f"a\r\n\r\n{SMUGGLED}")), b"x"),
    "line feed in a value": (_with(("x", "a\nContent-Length: 0")), b"x"),
    "carriage return in a value": (_with(("x", "a\rb")), b"x"),
    "NUL in a value": (_with(("x", "a\0b")), b"x"),
    "space before a value": (_with(("x", " a")), b"x"),
    "space after a value": (_with(("x", "a ")), b"x"),
    "line end in a name": (_with(("x\r\ncontent-length: 0\r\ny", "a")), b"x"),
    "colon in a name": (_with(("x: a\r\ny", "a")), b"x"),
    "space in a name": (_with(("x y", "a")), b"x"),
    "capital in a name": (_with(("X-A", "a")), b"x"),
    "empty name": (_with(("", "a")), b"x"),
    "line end in the path": (_replaced(":path", f"{PATH} HTTP/1.1\r\nHost: other\r\n\r\n"), b"x"),
    "space in the path": (_replaced(":path", f"{PATH} HTTP/1.1"), b"x"),
    "absolute path": (_replaced(":path", f"http://other{PATH}"), b"x"),
    "empty path": (_replaced(":path", ""), b"x"),
    "no path": (_without(":path"), b"x"),
    "two paths": ([(":path", PATH), *_with()], b"x"),
    "line end in the method": (_replaced(":method", f"GET {PATH} HTTP/1.1\r\nX: "), b"x"),
    "space in the method": (_replaced(":method", f"GET {PATH}"), b"x"),
    "no method": (_without(":method"), b"x"),
    "two methods": ([(":method", "GET"), *_with()], b"x"),
    "line end in the authority": (_replaced(":authority", "fe\r\nX: y"), b"x"),
    "invalid host": (_without(":authority", ("host", "fe/other")), b"x"),
    "user in the authority": (_replaced(":authority", "user@fe"), b"x"),
    "no authority": (_without(":authority"), b"x"),
    "no scheme": (_without(":scheme"), b"x"),
    "line end in the scheme": (_replaced(":scheme", "http\r\nX: y"), b"x"),
    "status": (_with((":status", "200")), b"x"),
    "protocol": ([*_with()[:4], (":protocol", "websocket"), *_with()[4:]], b"x"),
    "unknown pseudo-header": ([(":x", "y"), *_with()], b"x"),
    "pseudo-header after a header": ([*_with()[1:], _with()[0]], b"x"),
}
BAD_REQUEST: dict[str, Fields] = {
    "host beside another authority": _with(("host", "other")),
    "invalid authority": _replaced(":authority", "fe,other"),
    "two keys": _with(("authorization", "Bearer x")),
    "non-ASCII in the path": _replaced(":path", f"{PATH}\xe4"),
    "CONNECT": [(":method", "CONNECT"), (":authority", "fe")],
    "fragment in the path": _replaced(":path", f"{PATH}#x"),
    "path without a slash": [
        *((n, v) for n, v in request_fields(method="OPTIONS") if n != ":path"),
        (":path", "*"),
    ],
}


async def _client(harness: GatewayHarness) -> Http2Client:
    return Http2Client(await harness.client()).start()


@pytest.mark.parametrize("case", RESET)
async def test_malformed_request_is_reset(harness: GatewayHarness, case: str) -> None:
    replica = await harness.add_replica()
    client = await _client(harness)
    fields, body = RESET[case]
    stream = client.next_stream()
    client.send(client.head(fields, end=False, stream=stream), frame(DATA, END_STREAM, stream, body))
    response = await client.response(stream)
    assert (response.reset, response.headers) == (PROTOCOL_ERROR, [])
    await client.ping()  # the connection is still open
    await harness.wait_idle()
    for connection in replica.connections:  # what is known to be malformed only at its end, was incomplete there
        await connection.wait_closed()
        assert not connection.received.endswith(b"\r\n\r\n" + SMUGGLED.encode())
        assert b"smuggled" not in connection.received
    assert harness.route().counters.responses.get((200, ""), 0) == 0


@pytest.mark.parametrize("case", BAD_REQUEST)
async def test_refused_request_gets_a_response(harness: GatewayHarness, case: str) -> None:
    replica = await harness.add_replica()
    client = await _client(harness)
    stream = client.next_stream()
    client.send(client.head(sorted(BAD_REQUEST[case], key=lambda f: f[0][0] != ":"), end=True, stream=stream))
    response = await client.response(stream)
    assert (response.status, response.response["azureml-fe-error"]) == (400, "bad-request")
    assert not replica.connections


@pytest.mark.parametrize("host", ["fe", "FE"])
async def test_host_equal_to_the_authority(harness: GatewayHarness, host: str) -> None:
    replica = await harness.add_replica()
    client = await _client(harness)
    stream = client.get(("host", host))
    connection = await replica.accept()
    assert (await connection.read_message()).values("host") == ["fe"]
    connection.send(ok())
    assert (await client.response(stream)).status == 200


async def test_fields_that_a_client_must_not_set(harness: GatewayHarness) -> None:
    replica = await harness.add_replica()
    client = await _client(harness)
    stream = client.get(
        ("x-request-id", "1"), ("x-forwarded-for", "1.2.3.4"), ("x_request_id", "1"), ("forwarded", "for=1.2.3.4")
    )
    connection = await replica.accept()
    request = await connection.read_message()
    assert request["x-forwarded-for"] == "127.0.0.1"
    assert request["x-request-id"] != "1"
    assert "forwarded" not in request
    assert "x_request_id" not in request
    connection.send(ok())
    await client.response(stream)


@pytest.mark.parametrize("trailer", [":path", "Upper", "connection", "x\r\ny"])
async def test_malformed_trailers(harness: GatewayHarness, trailer: str) -> None:
    replica = await harness.add_replica()
    client = await _client(harness)
    stream = client.next_stream()
    client.send(client.head(request_fields(), end=False, stream=stream), frame(DATA, 0, stream, b"x"))
    client.send(frame(HEADERS, END_HEADERS | END_STREAM, stream, client.encoder.encode([(trailer, "y")])))
    response = await client.response(stream)
    assert (response.reset, response.headers) == (PROTOCOL_ERROR, [])
    await harness.wait_idle()
    assert all(not connection.received.endswith(b"0\r\n\r\n") for connection in replica.connections)
