"""Requests that two readers might understand differently: refused, and the connection with them."""

import pytest

from tests.gateway.wire import KEY, chunked, get, ok, post, post_chunked, turns
from tests.gateway.world import World, story

START = f"POST /api/v1/service/iris/score HTTP/1.1\r\nAuthorization: Bearer {KEY}\r\n".encode()
HEAD = START + b"Host: fe\r\n"
SECOND = b"GET /api/v1/service/iris/smuggled HTTP/1.1\r\nHost: fe\r\n\r\n"
CHUNKS = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"

REFUSED = {
    "chunked after length": HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "length after chunked": HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    "two lengths": HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
    "same length twice": HEAD + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nabcde",
    "list of lengths": HEAD + b"Content-Length: 5, 5\r\n\r\nabcde",
    "list of other lengths": HEAD + b"Content-Length: 5,6\r\n\r\nabcdef",
    "length with a plus": HEAD + b"Content-Length: +5\r\n\r\nabcde",
    "negative length": HEAD + b"Content-Length: -5\r\n\r\nabcde",
    "length in hexadecimal": HEAD + b"Content-Length: 0x5\r\n\r\nabcde",
    "length with an underscore": HEAD + b"Content-Length: 1_0\r\n\r\nabcdeabcde",
    "length with a space in it": HEAD + b"Content-Length: 1 0\r\n\r\nabcdeabcde",
    "length in other digits": HEAD + b"Content-Length: \xd9\xa5\r\n\r\nabcde",
    "length too long for 64 bits": HEAD + b"Content-Length: 18446744073709551621\r\n\r\nabcde",
    "empty length": HEAD + b"Content-Length: \r\n\r\n",
    "length with a fraction": HEAD + b"Content-Length: 5.0\r\n\r\nabcde",
    "chunked is not last": HEAD + b"Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
    "chunked is not alone": HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "chunked twice": HEAD + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    "two chunked": HEAD + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "identity and chunked": HEAD + b"Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "identity": HEAD + b"Transfer-Encoding: identity\r\nContent-Length: 5\r\n\r\nabcde",
    "almost chunked": HEAD + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "chunked in quotes": HEAD + b'Transfer-Encoding: "chunked"\r\n\r\n0\r\n\r\n',
    "chunked with a parameter": HEAD + b"Transfer-Encoding: chunked;a=b\r\n\r\n0\r\n\r\n",
    "chunked after a vertical tab": HEAD + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "empty coding": HEAD + b"Transfer-Encoding: \r\nContent-Length: 5\r\n\r\nabcde",
    "space before the colon": HEAD + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    "tab before the colon": HEAD + b"Content-Length\t: 5\r\n\r\nabcde",
    "space before the name": HEAD + b" Content-Length: 5\r\n\r\nabcde",
    "folded line": HEAD + b"X-A: b\r\n c\r\nContent-Length: 5\r\n\r\nabcde",
    "folded coding": HEAD + b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
    "folded first line": START + b" X: y\r\nHost: fe\r\n\r\n",
    "bare LF after a header": HEAD + b"X-A: b\nContent-Length: 5\r\n\r\nabcde",
    "bare LF after the first line": START.replace(b"\r\n", b"\n", 1) + b"Host: fe\r\n\r\n",
    "bare LF at the end of the head": HEAD + b"Content-Length: 5\r\n\nabcde",
    "bare CR in a value": HEAD + b"X-A: b\rContent-Length: 5\r\n\r\nabcde",
    "bare CR at the end of a line": HEAD + b"X-A: b\r\rContent-Length: 5\r\n\r\nabcde",
    "NUL in a value": HEAD + b"X-A: b\0c\r\n\r\n",
    "NUL in a name": HEAD + b"X\0A: b\r\n\r\n",
    "control character in a value": HEAD + b"X-A: b\x01c\r\n\r\n",
    "delete character in a value": HEAD + b"X-A: b\x7fc\r\n\r\n",
    "non-ASCII in a name": HEAD + b"X-\xc4: b\r\n\r\n",
    "no name": HEAD + b": b\r\n\r\n",
    "no colon": HEAD + b"Content-Length 5\r\n\r\nabcde",
    "colon in brackets": HEAD + b"[X]: b\r\n\r\n",
    "chunk size too large for 64 bits": CHUNKS + b"FFFFFFFFFFFFFFFF0\r\nabc",
    "negative chunk size": CHUNKS + b"-5\r\nabcde\r\n0\r\n\r\n",
    "chunk size with a prefix": CHUNKS + b"0x5\r\nabcde\r\n0\r\n\r\n",
    "chunk size with a plus": CHUNKS + b"+5\r\nabcde\r\n0\r\n\r\n",
    "chunk size with a space before": CHUNKS + b" 5\r\nabcde\r\n0\r\n\r\n",
    "chunk size with a space after": CHUNKS + b"5 \r\nabcde\r\n0\r\n\r\n",
    "chunk size with an underscore": CHUNKS + b"0_5\r\nabcde\r\n0\r\n\r\n",
    "no chunk size": CHUNKS + b"\r\nabcde\r\n0\r\n\r\n",
    "chunk longer than it says": CHUNKS + b"5\r\nabcdef\r\n0\r\n\r\n",
    "chunk without its end": CHUNKS + b"5\r\nabcde0\r\n\r\n",
    "chunk that ends in a bare LF": CHUNKS + b"5\r\nabcde\n0\r\n\r\n",
    "chunk size that ends in a bare LF": CHUNKS + b"5\nabcde\r\n0\r\n\r\n",
    "bare LF in an extension": CHUNKS + b"5;a\nb\r\nabcde\r\n0\r\n\r\n",
    "bare CR in an extension": CHUNKS + b"5;a\rb\r\nabcde\r\n0\r\n\r\n",
    "line end in a quoted extension": CHUNKS + b'5;a="\r\n0\r\n\r\n"\r\nabcde\r\n0\r\n\r\n',
    "folded trailer": CHUNKS + b"0\r\nX: y\r\n z\r\n\r\n",
    "length as a trailer": CHUNKS + b"0\r\nContent-Length: 5\r\n\r\n",
    "coding as a trailer": CHUNKS + b"0\r\nTransfer-Encoding: chunked\r\n\r\n",
    "no host": START + b"\r\n",
    "two hosts": HEAD + b"Host: fe\r\n\r\n",
    "two other hosts": HEAD + b"host: other\r\n\r\n",
    "two keys": HEAD + b"Authorization: Bearer x\r\n\r\n",
    "absolute address of another host": b"GET http://other/api/v1/service/iris/score HTTP/1.1\r\nHost: fe\r\n\r\n",
    "absolute address with a user": b"GET http://fe@other/api/v1/service/iris/score HTTP/1.1\r\nHost: fe\r\n\r\n",
    "absolute address with another port": b"GET http://fe:81/api/v1/service/iris/score HTTP/1.1\r\nHost: fe\r\n\r\n",
    "absolute address of another scheme": b"GET ftp://fe/api/v1/service/iris/score HTTP/1.1\r\nHost: fe\r\n\r\n",
    "asterisk": b"OPTIONS * HTTP/1.1\r\nHost: fe\r\n\r\n",
    "connect": b"CONNECT fe:80 HTTP/1.1\r\nHost: fe\r\n\r\n",
    "HTTP/2.0": HEAD.replace(b"HTTP/1.1", b"HTTP/2.0") + b"\r\n",
    "HTTP/1.2": HEAD.replace(b"HTTP/1.1", b"HTTP/1.2") + b"\r\n",
    "HTTP/0.9": HEAD.replace(b"HTTP/1.1", b"HTTP/0.9") + b"\r\n",
    "HTTP/3.0": HEAD.replace(b"HTTP/1.1", b"HTTP/3.0") + b"\r\n",
    "HTTP/11": HEAD.replace(b"HTTP/1.1", b"HTTP/11") + b"\r\n",
    "HTTP/1.1 in lower case": HEAD.replace(b"HTTP/1.1", b"http/1.1") + b"\r\n",
    "HTTP/1.1 and more": HEAD.replace(b"HTTP/1.1", b"HTTP/1.1 x") + b"\r\n",
    "no version": b"GET /api/v1/service/iris/score\r\n\r\n",
    "chunked in HTTP/1.0": CHUNKS.replace(b"HTTP/1.1", b"HTTP/1.0") + b"0\r\n\r\n",
    "space in the address": b"GET /api/v1/service/iris/sco re HTTP/1.1\r\nHost: fe\r\n\r\n",
    "control character in the address": b"GET /api/v1/service/iris/\x01 HTTP/1.1\r\nHost: fe\r\n\r\n",
    "non-ASCII in the address": b"GET /api/v1/service/iris/\xff HTTP/1.1\r\nHost: fe\r\n\r\n",
    "unknown method": b"SCORE /api/v1/service/iris/score HTTP/1.1\r\nHost: fe\r\n\r\n",
    "method in lower case": b"get /api/v1/service/iris/score HTTP/1.1\r\nHost: fe\r\n\r\n",
    "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "SSH": b"SSH-2.0-OpenSSH_9.6\r\n",
    "an answer": b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    "zeros": b"\0" * 100,
    "text": b"hello\r\n\r\n",
}


@pytest.mark.parametrize("bytes_", REFUSED.values(), ids=REFUSED.keys())
@story()
async def test_refused_with_its_connection(world: World, bytes_: bytes) -> None:
    replica = await world.replica()
    client = await world.client()
    client.send(bytes_ + SECOND)
    answer = await client.message()
    assert (answer.status, answer.error) == (400, "bad-request")
    client.finish()
    if answer.get("connection") == "close":
        assert await client.rest() == b""
    await world.at_rest()
    for line in replica.lines:
        assert b"smuggled" not in line.received


@story()
async def test_refused_byte_by_byte(world: World) -> None:
    await world.replica()
    for name, bytes_ in REFUSED.items():
        client = await world.client()
        for start in range(len(bytes_)):
            client.send(bytes_[start : start + 1])
            await turns(2)
            if client.received:
                break
        assert (await client.message()).status == 400, name
        client.close()


ACCEPTED = {
    "chunked in other letters": HEAD + b"transfer-ENCODING: Chunked\r\n\r\n5\r\nabcde\r\n0\r\n\r\n",
    "tab around a value": HEAD + b"Content-Length:\t5\t\r\n\r\nabcde",
    "leading zeros of a length": HEAD + b"Content-Length: 0005\r\n\r\nabcde",
    "leading zeros of a chunk size": CHUNKS + b"0005\r\nabcde\r\n000\r\n\r\n",
    "chunk size in capitals": CHUNKS + b"A\r\nabcdeabcde\r\n0\r\n\r\n",
    "empty lines before": b"\r\n\r\n" + HEAD + b"Content-Length: 5\r\n\r\nabcde",
    "no space after the colon": HEAD + b"Content-Length:5\r\n\r\nabcde",
    "upgrade to h2c with a body": HEAD
    + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMA\r\nContent-Length: 5\r\n\r\nabcde",
    "upgrade to websocket with a body": HEAD
    + b"Connection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 5\r\n\r\nabcde",
    "upgrade with a body in chunks": HEAD
    + b"Connection: upgrade\r\nUpgrade: h2c\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n0\r\nX-Sum: 1\r\n\r\n",
    "upgrade with a large body": HEAD
    + b"Connection: upgrade\r\nUpgrade: h2c\r\nContent-Length: 200000\r\n\r\n"
    + b"x" * 200_000,
}


@pytest.mark.parametrize("bytes_", ACCEPTED.values(), ids=ACCEPTED.keys())
@pytest.mark.parametrize("piece", [1_000_000, 7])
@story()
async def test_understood_as_one_request(world: World, bytes_: bytes, piece: int) -> None:
    """The replica gets one request with one body, framed anew, and the next request is the next."""
    replica = await world.replica()
    client = await world.client()
    if len(bytes_) > 10_000:
        client.send(bytes_)
    else:
        world.do(client.dribble(*(bytes_[start : start + piece] for start in range(0, len(bytes_), piece))))
    line = await replica.accept()
    request = await line.message()
    assert bytes_.replace(b"\r\n", b"").find(request.body) >= 0
    assert len(request.body) in (5, 10, 200_000)
    assert ("content-length" in request) != ("transfer-encoding" in request)
    assert "upgrade" not in request
    assert "connection" not in request
    line.send(ok(b"first"))
    assert (await client.message()).body == b"first"
    client.send(post(b"next"))
    assert (await line.message()).body == b"next"
    line.send(ok(b"second"))
    assert (await client.message()).body == b"second"


@story()
async def test_body_of_an_upgrade_is_no_request(world: World) -> None:
    replica = await world.replica()
    client = await world.client()
    body = SECOND
    client.send(post(body, "Connection: upgrade", "Upgrade: websocket") + post(b"next"))
    line = await replica.accept()
    for expected in (body, b"next"):
        assert (await line.message()).body == expected
        line.send(ok())
        assert (await client.message()).status == 200


@story()
async def test_bytes_after_an_upgrade_wait_for_the_answer(world: World) -> None:
    replica = await world.replica()
    client = await world.client()
    await client.dribble(get("Connection: upgrade", "Upgrade: websocket"))
    line = await replica.accept()
    await line.message()
    await client.dribble(SECOND, b"\x00\x01garbage")
    assert not client.received
    assert not line.received
    line.send(ok(b"no upgrade here"))
    assert (await client.message()).body == b"no upgrade here"
    assert (await client.message()).status == 401  # SECOND has no key
    assert (await client.message()).status == 400


# Answers of replicas


@pytest.mark.parametrize(
    "answer",
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
@story()
async def test_invalid_answer_is_502(world: World, answer: bytes) -> None:
    replica = await world.replica()
    client, line = await world.in_flight(replica)
    line.send(answer)
    line.finish()
    answer_ = await client.message()
    assert (answer_.status, answer_.error) == (502, "replica-closed")
    assert "connection" not in answer_
    await line.end()
    client.send(get(path="/"))
    assert (await client.message()).body == b"Healthy"


@story()
async def test_chunks_that_break_within_an_answer(world: World) -> None:
    replica = await world.replica()
    client, line = await world.in_flight(replica)
    line.send(ok(b"", "Transfer-Encoding: chunked", length=None) + chunked(b"abc", end=False) + b"zz\r\n")
    rest = await client.rest()
    assert rest.endswith(b"3\r\nabc\r\n")  # and no last chunk: the client can tell
    await line.end()


@story()
async def test_post_in_chunks_cannot_carry_a_second_request(world: World) -> None:
    replica = await world.replica()
    client = await world.client()
    client.send(post_chunked(SECOND))
    line = await replica.accept()
    assert (await line.message()).body == SECOND
    line.send(ok())
    assert (await client.message()).status == 200
