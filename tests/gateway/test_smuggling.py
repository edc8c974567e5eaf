"""Requests that two parsers may read differently are refused, and their connections are closed."""

import pytest

from tests.gateway.conformance.cases import CHUNKED_POST_HEAD, POST_HEAD_START, POST_HEAD_START_WITHOUT_HOST
from tests.gateway.harness import GatewayHarness
from tests.gateway.http_connection import chunked, get, ok, post, post_chunked, run_loop

SECOND_REQUEST = b"GET /api/v1/service/iris/smuggled HTTP/1.1\r\nHost: fe\r\n\r\n"

REFUSED = {
    "chunked after length": POST_HEAD_START + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "length after chunked": POST_HEAD_START + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    "two lengths": POST_HEAD_START + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
    "same length twice": POST_HEAD_START + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nabcde",
    "list of lengths": POST_HEAD_START + b"Content-Length: 5, 5\r\n\r\nabcde",
    "list of other lengths": POST_HEAD_START + b"Content-Length: 5,6\r\n\r\nabcdef",
    "length with a plus": POST_HEAD_START + b"Content-Length: +5\r\n\r\nabcde",
    "negative length": POST_HEAD_START + b"Content-Length: -5\r\n\r\nabcde",
    "length in hexadecimal": POST_HEAD_START + b"Content-Length: 0x5\r\n\r\nabcde",
    "length with an underscore": POST_HEAD_START + b"Content-Length: 1_0\r\n\r\nabcdeabcde",
    "length with a space in it": POST_HEAD_START + b"Content-Length: 1 0\r\n\r\nabcdeabcde",
    "length in other digits": POST_HEAD_START + b"Content-Length: \xd9\xa5\r\n\r\nabcde",
    "length too long for 64 bits": POST_HEAD_START + b"Content-Length: 18446744073709551621\r\n\r\nabcde",
    "empty length": POST_HEAD_START + b"Content-Length: \r\n\r\n",
    "length with a fraction": POST_HEAD_START + b"Content-Length: 5.0\r\n\r\nabcde",
    "chunked is not last": POST_HEAD_START + b"Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
    "chunked is not alone": POST_HEAD_START + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "chunked twice": POST_HEAD_START + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    "two chunked": POST_HEAD_START + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "identity and chunked": POST_HEAD_START
    + b"Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "identity": POST_HEAD_START + b"Transfer-Encoding: identity\r\nContent-Length: 5\r\n\r\nabcde",
    "almost chunked": POST_HEAD_START + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "chunked in quotes": POST_HEAD_START + b'Transfer-Encoding: "chunked"\r\n\r\n0\r\n\r\n',
    "chunked with a parameter": POST_HEAD_START + b"Transfer-Encoding: chunked;a=b\r\n\r\n0\r\n\r\n",
    "chunked after a vertical tab": POST_HEAD_START + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "empty coding": POST_HEAD_START + b"Transfer-Encoding: \r\nContent-Length: 5\r\n\r\nabcde",
    "space before the colon": POST_HEAD_START + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    "tab before the colon": POST_HEAD_START + b"Content-Length\t: 5\r\n\r\nabcde",
    "space before the name": POST_HEAD_START + b" Content-Length: 5\r\n\r\nabcde",
    "folded header": POST_HEAD_START + b"X-A: b\r\n c\r\nContent-Length: 5\r\n\r\nabcde",
    "folded coding": POST_HEAD_START + b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
    "folded request line": POST_HEAD_START_WITHOUT_HOST + b" X: y\r\nHost: fe\r\n\r\n",
    "bare LF after a header": POST_HEAD_START + b"X-A: b\nContent-Length: 5\r\n\r\nabcde",
    "bare LF after the request line": POST_HEAD_START_WITHOUT_HOST.replace(b"\r\n", b"\n", 1) + b"Host: fe\r\n\r\n",
    "bare LF at the end of the head": POST_HEAD_START + b"Content-Length: 5\r\n\nabcde",
    "bare CR in a value": POST_HEAD_START + b"X-A: b\rContent-Length: 5\r\n\r\nabcde",
    "bare CR at the end of a line": POST_HEAD_START + b"X-A: b\r\rContent-Length: 5\r\n\r\nabcde",
    "NUL in a value": POST_HEAD_START + b"X-A: b\0c\r\n\r\n",
    "NUL in a name": POST_HEAD_START + b"X\0A: b\r\n\r\n",
    "control character in a value": POST_HEAD_START + b"X-A: b\x01c\r\n\r\n",
    "delete character in a value": POST_HEAD_START + b"X-A: b\x7fc\r\n\r\n",
    "non-ASCII in a name": POST_HEAD_START + b"X-\xc4: b\r\n\r\n",
    "no header name": POST_HEAD_START + b": b\r\n\r\n",
    "no colon": POST_HEAD_START + b"Content-Length 5\r\n\r\nabcde",
    "colon in brackets": POST_HEAD_START + b"[X]: b\r\n\r\n",
    "chunk size too large for 64 bits": CHUNKED_POST_HEAD + b"FFFFFFFFFFFFFFFF0\r\nabc",
    "negative chunk size": CHUNKED_POST_HEAD + b"-5\r\nabcde\r\n0\r\n\r\n",
    "chunk size with a prefix": CHUNKED_POST_HEAD + b"0x5\r\nabcde\r\n0\r\n\r\n",
    "chunk size with a plus": CHUNKED_POST_HEAD + b"+5\r\nabcde\r\n0\r\n\r\n",
    "chunk size with a space before": CHUNKED_POST_HEAD + b" 5\r\nabcde\r\n0\r\n\r\n",
    "chunk size with a space after": CHUNKED_POST_HEAD + b"5 \r\nabcde\r\n0\r\n\r\n",
    "chunk size with an underscore": CHUNKED_POST_HEAD + b"0_5\r\nabcde\r\n0\r\n\r\n",
    "no chunk size": CHUNKED_POST_HEAD + b"\r\nabcde\r\n0\r\n\r\n",
    "chunk longer than its size": CHUNKED_POST_HEAD + b"5\r\nabcdef\r\n0\r\n\r\n",
    "chunk without its end": CHUNKED_POST_HEAD + b"5\r\nabcde0\r\n\r\n",
    "chunk that ends in a bare LF": CHUNKED_POST_HEAD + b"5\r\nabcde\n0\r\n\r\n",
    "chunk size that ends in a bare LF": CHUNKED_POST_HEAD + b"5\nabcde\r\n0\r\n\r\n",
    "bare LF in an extension": CHUNKED_POST_HEAD + b"5;a\nb\r\nabcde\r\n0\r\n\r\n",
    "bare CR in an extension": CHUNKED_POST_HEAD + b"5;a\rb\r\nabcde\r\n0\r\n\r\n",
    "line end in a quoted extension": CHUNKED_POST_HEAD + b'5;a="\r\n0\r\n\r\n"\r\nabcde\r\n0\r\n\r\n',
    "folded trailer": CHUNKED_POST_HEAD + b"0\r\nX: y\r\n z\r\n\r\n",
    "length as a trailer": CHUNKED_POST_HEAD + b"0\r\nContent-Length: 5\r\n\r\n",
    "coding as a trailer": CHUNKED_POST_HEAD + b"0\r\nTransfer-Encoding: chunked\r\n\r\n",
    "no host": POST_HEAD_START_WITHOUT_HOST + b"\r\n",
    "two hosts": POST_HEAD_START + b"Host: fe\r\n\r\n",
    "two other hosts": POST_HEAD_START + b"host: other\r\n\r\n",
    "two keys": POST_HEAD_START + b"Authorization: Bearer x\r\n\r\n",
    "absolute target of another host": b"GET http://other/api/v1/service/iris/score HTTP/1.1\r\nHost: fe\r\n\r\n",
    "absolute target with a user": b"GET http://fe@other/api/v1/service/iris/score HTTP/1.1\r\nHost: fe\r\n\r\n",
    "absolute target with another port": b"GET http://fe:81/api/v1/service/iris/score HTTP/1.1\r\nHost: fe\r\n\r\n",
    "absolute target of another scheme": b"GET ftp://fe/api/v1/service/iris/score HTTP/1.1\r\nHost: fe\r\n\r\n",
    "asterisk": b"OPTIONS * HTTP/1.1\r\nHost: fe\r\n\r\n",
    "connect": b"CONNECT fe:80 HTTP/1.1\r\nHost: fe\r\n\r\n",
    "HTTP/2.0": POST_HEAD_START.replace(b"HTTP/1.1", b"HTTP/2.0") + b"\r\n",
    "HTTP/1.2": POST_HEAD_START.replace(b"HTTP/1.1", b"HTTP/1.2") + b"\r\n",
    "HTTP/0.9": POST_HEAD_START.replace(b"HTTP/1.1", b"HTTP/0.9") + b"\r\n",
    "HTTP/3.0": POST_HEAD_START.replace(b"HTTP/1.1", b"HTTP/3.0") + b"\r\n",
    "HTTP/11": POST_HEAD_START.replace(b"HTTP/1.1", b"HTTP/11") + b"\r\n",
    "HTTP/1.1 in lower case": POST_HEAD_START.replace(b"HTTP/1.1", b"http/1.1") + b"\r\n",
    "text after HTTP/1.1": POST_HEAD_START.replace(b"HTTP/1.1", b"HTTP/1.1 x") + b"\r\n",
    "no version": b"GET /api/v1/service/iris/score\r\n\r\n",
    "chunked in HTTP/1.0": CHUNKED_POST_HEAD.replace(b"HTTP/1.1", b"HTTP/1.0") + b"0\r\n\r\n",
    "space in the target": b"GET /api/v1/service/iris/sco re HTTP/1.1\r\nHost: fe\r\n\r\n",
    "control character in the target": b"GET /api/v1/service/iris/\x01 HTTP/1.1\r\nHost: fe\r\n\r\n",
    "non-ASCII in the target": b"GET /api/v1/service/iris/\xff HTTP/1.1\r\nHost: fe\r\n\r\n",
    "unknown method": b"SCORE /api/v1/service/iris/score HTTP/1.1\r\nHost: fe\r\n\r\n",
    "method in lower case": b"get /api/v1/service/iris/score HTTP/1.1\r\nHost: fe\r\n\r\n",
    "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "SSH": b"SSH-2.0-OpenSSH_9.6\r\n",
    "a response": b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    "zeros": b"\0" * 100,
    "text": b"hello\r\n\r\n",
}


@pytest.mark.parametrize("raw", REFUSED.values(), ids=REFUSED.keys())
async def test_ambiguous_request_is_refused_and_its_connection_closed(harness: GatewayHarness, raw: bytes) -> None:
    replica = await harness.add_replica()
    client = await harness.client()
    client.send(raw + SECOND_REQUEST)
    response = await client.read_message()
    assert (response.status, response.error_code) == (400, "bad-request")
    client.half_close()
    if response.get("connection") == "close":
        assert await client.read_to_end() == b""
    await harness.wait_idle()
    for connection in replica.connections:
        assert b"smuggled" not in connection.received


@pytest.mark.parametrize(
    "line",
    [
        b"POST /api/v1/service/iris/score RTSP/1.1",
        b"POST /api/v1/service/iris/score RTSP/1.0",
        b"SOURCE /api/v1/service/iris/score ICE/1.1",
        b"POST  /api/v1/service/iris/score HTTP/1.1",
        b"POST /api/v1/service/iris/score  HTTP/1.1",
    ],
)
async def test_invalid_request_line_is_refused_on_a_kept_connection(harness: GatewayHarness, line: bytes) -> None:
    replica = (await harness.add_replica()).auto_respond()
    client = await harness.client()
    for _ in range(2):
        client.send(post(b"abcde"))
        assert (await client.read_message()).status == 200
    client.send(post(b"abcde").replace(b"POST /api/v1/service/iris/score HTTP/1.1", line))
    assert (await client.read_message()).status == 400
    await client.wait_closed()
    assert len(replica.connections) == 1


async def test_ambiguous_request_is_refused_byte_by_byte(harness: GatewayHarness) -> None:
    await harness.add_replica()
    for name, raw in REFUSED.items():
        client = await harness.client()
        for start in range(len(raw)):
            client.send(raw[start : start + 1])
            await run_loop(2)
            if client.received:
                break
        assert (await client.read_message()).status == 400, name
        client.close()


ACCEPTED = {
    "chunked in mixed case": POST_HEAD_START + b"transfer-ENCODING: Chunked\r\n\r\n5\r\nabcde\r\n0\r\n\r\n",
    "tab around a value": POST_HEAD_START + b"Content-Length:\t5\t\r\n\r\nabcde",
    "leading zeros of a length": POST_HEAD_START + b"Content-Length: 0005\r\n\r\nabcde",
    "leading zeros of a chunk size": CHUNKED_POST_HEAD + b"0005\r\nabcde\r\n000\r\n\r\n",
    "chunk size in capitals": CHUNKED_POST_HEAD + b"A\r\nabcdeabcde\r\n0\r\n\r\n",
    "empty lines before the request": b"\r\n\r\n" + POST_HEAD_START + b"Content-Length: 5\r\n\r\nabcde",
    "no space after the colon": POST_HEAD_START + b"Content-Length:5\r\n\r\nabcde",
    "upgrade to h2c with a body": POST_HEAD_START
    + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMA\r\nContent-Length: 5\r\n\r\nabcde",
    "upgrade to websocket with a body": POST_HEAD_START
    + b"Connection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 5\r\n\r\nabcde",
    "upgrade with a body in chunks": POST_HEAD_START
    + b"Connection: upgrade\r\nUpgrade: h2c\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n0\r\nX-Sum: 1\r\n\r\n",
    "upgrade with a large body": POST_HEAD_START
    + b"Connection: upgrade\r\nUpgrade: h2c\r\nContent-Length: 200000\r\n\r\n"
    + b"x" * 200_000,
}


@pytest.mark.parametrize("raw", ACCEPTED.values(), ids=ACCEPTED.keys())
@pytest.mark.parametrize("piece_size", [1_000_000, 7])
async def test_unusual_request_is_forwarded_as_one_request(
    harness: GatewayHarness, raw: bytes, piece_size: int
) -> None:
    """The replica gets one request with one body, serialized again. The request after it is also complete."""
    replica = await harness.add_replica()
    client = await harness.client()
    if len(raw) > 10_000:
        client.send(raw)
    else:
        harness.start_task(
            client.send_in_pieces(*(raw[start : start + piece_size] for start in range(0, len(raw), piece_size)))
        )
    connection = await replica.accept()
    request = await connection.read_message()
    assert raw.replace(b"\r\n", b"").find(request.body) >= 0
    assert len(request.body) in (5, 10, 200_000)
    assert ("content-length" in request) != ("transfer-encoding" in request)
    assert "upgrade" not in request
    assert "connection" not in request
    connection.send(ok(b"first"))
    assert (await client.read_message()).body == b"first"
    client.send(post(b"next"))
    assert (await connection.read_message()).body == b"next"
    connection.send(ok(b"second"))
    assert (await client.read_message()).body == b"second"


async def test_body_of_an_upgrade_request_is_not_parsed_as_a_request(harness: GatewayHarness) -> None:
    replica = await harness.add_replica()
    client = await harness.client()
    client.send(post(SECOND_REQUEST, "Connection: upgrade", "Upgrade: websocket") + post(b"next"))
    connection = await replica.accept()
    for expected in (SECOND_REQUEST, b"next"):
        assert (await connection.read_message()).body == expected
        connection.send(ok())
        assert (await client.read_message()).status == 200


async def test_bytes_after_an_upgrade_request_wait_for_its_response(harness: GatewayHarness) -> None:
    replica = await harness.add_replica()
    client = await harness.client()
    await client.send_in_pieces(get("Connection: upgrade", "Upgrade: websocket"))
    connection = await replica.accept()
    await connection.read_message()
    await client.send_in_pieces(SECOND_REQUEST, b"\x00\x01garbage")
    assert not client.received
    assert not connection.received
    connection.send(ok(b"no upgrade"))
    assert (await client.read_message()).body == b"no upgrade"
    assert (await client.read_message()).status == 401  # SECOND_REQUEST has no key
    assert (await client.read_message()).status == 400


# Responses of replicas.


@pytest.mark.parametrize(
    "raw",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5, 5\r\n\r\nabcde",
        b"HTTP/1.1 200 OK\r\nContent-Length: abc\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX-A: b\r\n c\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX-A: b\0\r\n\r\n",
        b"HTTP/1.1 200 OK\nContent-Length: 0\n\n",
        b"HTTP/2.0 200 OK\r\n\r\n",
        b"HTTP/1.1 2 OK\r\n\r\n",
        b"HTTP/1.1 20x OK\r\n\r\n",
        b"HTTP/1.1 099 OK\r\nContent-Length: 0\r\n\r\n",
        b"hello\r\n",
        b"\0" * 50,
        b"GET / HTTP/1.1\r\n\r\n",
    ],
)
async def test_invalid_response_is_502(harness: GatewayHarness, raw: bytes) -> None:
    replica = await harness.add_replica()
    client, connection = await harness.start_request(replica)
    connection.send(raw)
    connection.half_close()
    response = await client.read_message()
    assert (response.status, response.error_code) == (502, "replica-closed")
    assert "connection" not in response
    await connection.wait_closed()
    client.send(get(path="/"))
    assert (await client.read_message()).body == b"Healthy"


async def test_invalid_chunk_truncates_the_response(harness: GatewayHarness) -> None:
    replica = await harness.add_replica()
    client, connection = await harness.start_request(replica)
    connection.send(ok(b"", "Transfer-Encoding: chunked", length=None) + chunked(b"abc", end=False) + b"zz\r\n")
    rest = await client.read_to_end()
    assert rest.endswith(b"3\r\nabc\r\n")  # no last chunk, so the response is incomplete for the client
    await connection.wait_closed()


async def test_chunk_that_contains_a_request_is_forwarded_as_body(harness: GatewayHarness) -> None:
    replica = await harness.add_replica()
    client = await harness.client()
    client.send(post_chunked(SECOND_REQUEST))
    connection = await replica.accept()
    assert (await connection.read_message()).body == SECOND_REQUEST
    connection.send(ok())
    assert (await client.read_message()).status == 200
