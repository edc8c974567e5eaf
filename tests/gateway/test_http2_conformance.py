"""What RFC 9113 and RFC 7541 demand of a server, one case for each demand that a client can violate.

The cases cover the list of h2spec (generic, http2 and hpack), written again. A case sends frames after the exchange of
settings, on a connection with a replica that responds to each request, and expects one of:

    GOAWAY    the connection ends, with one of the error codes
    RESET     stream 1 is reset with one of the error codes; a GOAWAY is correct, too (RFC 9113 section 5.4.1)
    RESPONSE  stream 1 gets a complete response with status 200
    PONG      nothing, and the connection goes on

The engine deviates in three points, in which it is harmless: it ignores HEADERS on a skipped stream and PRIORITY on
stream 0 (no request begins), and closes the connection of a client that exceeds an acknowledged number of streams.
"""

from collections.abc import Callable
from dataclasses import dataclass

import hpack
import pytest

from tests.gateway.harness import GatewayHarness
from tests.gateway.http2_client import (
    ACK,
    COMPRESSION_ERROR,
    CONTINUATION,
    DATA,
    ENABLE_PUSH,
    END_HEADERS,
    END_STREAM,
    FLOW_CONTROL_ERROR,
    FRAME_SIZE_ERROR,
    GOAWAY,
    HAS_PRIORITY,
    HEADER_TABLE_SIZE,
    HEADERS,
    INITIAL_WINDOW_SIZE,
    MAX_CONCURRENT_STREAMS,
    MAX_FRAME_SIZE,
    PADDED,
    PING,
    PREFACE,
    PRIORITY,
    PROTOCOL_ERROR,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    STREAM_CLOSED,
    WINDOW_UPDATE,
    Fields,
    Http2Client,
    frame,
    request_fields,
    reset,
    settings,
    window_update,
)
from tests.gateway.http_connection import ok

pytestmark = pytest.mark.gateway(http2="on")

_GET = request_fields(method="GET")
_BODY = b"x" * 100


def block(fields: Fields = _GET) -> bytes:
    """Return a header block that needs no table."""
    return hpack.Encoder().encode(fields, huffman=False)


def head(stream: int = 1, *, end: bool = True, fields: Fields = _GET, extra: int = 0) -> bytes:
    """Return a HEADERS frame."""
    return frame(HEADERS, END_HEADERS | (END_STREAM if end else 0) | extra, stream, block(fields))


def post(stream: int = 1, *more: tuple[str, str]) -> bytes:
    """Return the HEADERS frame of a request whose body follows."""
    return head(stream, end=False, fields=request_fields(*more))


@dataclass(frozen=True)
class Goaway:
    codes: tuple[int, ...]
    or_ignored: bool = False  # the stream may already be closed, as its response is complete


@dataclass(frozen=True)
class Reset:
    codes: tuple[int, ...]


RESPONSE = "a response"
PONG = "nothing"
Expected = Goaway | Reset | str

_PADDED_HEAD = frame(HEADERS, END_HEADERS | END_STREAM | PADDED, 1, b"\x02" + block() + b"\0\0")
_PRIORITY_HEAD = frame(HEADERS, END_HEADERS | END_STREAM | HAS_PRIORITY, 1, b"\0\0\0\x00\x10" + block())
_SPLIT_HEAD = frame(HEADERS, END_STREAM, 1, block()[:10]) + frame(CONTINUATION, END_HEADERS, 1, block()[10:])
_THREE_PARTS = (
    frame(HEADERS, END_STREAM, 1, block()[:10])
    + frame(CONTINUATION, 0, 1, block()[10:20])
    + frame(CONTINUATION, END_HEADERS, 1, block()[20:])
)
_TRAILERS = frame(HEADERS, END_HEADERS | END_STREAM, 1, block([("x-sum", "1")]))

CASES: dict[str, tuple[bytes, Expected]] = {
    # Streams and the normal course of things.
    "idle: HEADERS": (head(), RESPONSE),
    "idle: PRIORITY": (frame(PRIORITY, 0, 1, b"\0\0\0\0\x10") + head(), RESPONSE),
    "half-closed: WINDOW_UPDATE": (head() + window_update(1, 10), RESPONSE),
    "half-closed: PRIORITY": (head() + frame(PRIORITY, 0, 1, b"\0\0\0\0\x10"), RESPONSE),
    "half-closed: RST_STREAM": (head() + reset(1), PONG),
    "closed: PRIORITY": (head() + reset(1) + frame(PRIORITY, 0, 1, b"\0\0\0\0\x10"), PONG),
    "closed: WINDOW_UPDATE": (head() + reset(1) + window_update(1, 10), PONG),
    "closed: RST_STREAM": (head() + reset(1) + reset(1), PONG),
    "DATA": (post() + frame(DATA, END_STREAM, 1, _BODY), RESPONSE),
    "several DATA": (post() + frame(DATA, 0, 1, _BODY) * 3 + frame(DATA, END_STREAM, 1, b""), RESPONSE),
    "padded DATA": (post() + frame(DATA, END_STREAM | PADDED, 1, b"\x05" + _BODY + bytes(5)), RESPONSE),
    "padded HEADERS": (_PADDED_HEAD, RESPONSE),
    "HEADERS with priority": (_PRIORITY_HEAD, RESPONSE),
    "CONTINUATION": (_SPLIT_HEAD, RESPONSE),
    "several CONTINUATION": (_THREE_PARTS, RESPONSE),
    "trailers": (post() + frame(DATA, 0, 1, _BODY) + _TRAILERS, RESPONSE),
    "PING": (frame(PING, payload=b"12345678") + head(), RESPONSE),
    "SETTINGS with all values": (
        settings((1, 4096), (ENABLE_PUSH, 0), (3, 100), (4, 65535), (5, 16384), (6, 100_000)) + head(),
        RESPONSE,
    ),
    "GOAWAY": (head() + frame(GOAWAY, payload=bytes(8)), RESPONSE),
    "RST_STREAM": (post() + reset(1), PONG),
    "header table of size 0": (settings((HEADER_TABLE_SIZE, 0)) + head(), RESPONSE),
    "stream that was skipped": (head(5) + head(7) + head(9), PONG),
    # 3.4 preface, 4.1 format, 4.2 size, 4.3 compression, 5.5 extensions.
    "4.1 unknown frame": (frame(0x16, 0, 0, b"x") + head(), RESPONSE),
    "4.1 unknown flags": (frame(PING, 0x16, 0, bytes(8)) + head(), RESPONSE),
    "4.1 reserved bit": (frame(PING, 0, 1 << 31, bytes(8)) + head(), RESPONSE),
    "4.2 DATA over the limit": (post() + frame(DATA, END_STREAM, 1, bytes(16385)), Goaway((FRAME_SIZE_ERROR,))),
    "4.2 HEADERS over the limit": (frame(HEADERS, END_HEADERS, 1, bytes(16385)), Goaway((FRAME_SIZE_ERROR,))),
    "4.2 largest DATA": (post() + frame(DATA, END_STREAM, 1, bytes(16384)), RESPONSE),
    "4.3 invalid block": (frame(HEADERS, END_HEADERS | END_STREAM, 1, b"\x40"), Goaway((COMPRESSION_ERROR,))),
    "4.3 PRIORITY within a block": (
        frame(HEADERS, END_STREAM, 1, block()) + frame(PRIORITY, 0, 1, b"\0\0\0\0\x10"),
        Goaway((PROTOCOL_ERROR,)),
    ),
    "4.3 HEADERS within a block": (frame(HEADERS, END_STREAM, 1, block()) + head(3), Goaway((PROTOCOL_ERROR,))),
    "5.5 unknown frame within a block": (
        frame(HEADERS, END_STREAM, 1, block()) + frame(0x16, 0, 0, b"x"),
        Goaway((PROTOCOL_ERROR,)),
    ),
    # 5.1 states.
    "5.1 idle: DATA": (frame(DATA, END_STREAM, 1, b"x"), Goaway((PROTOCOL_ERROR,))),
    "5.1 idle: RST_STREAM": (reset(1), Goaway((PROTOCOL_ERROR,))),
    "5.1 idle: WINDOW_UPDATE": (window_update(1, 10), Goaway((PROTOCOL_ERROR,))),
    "5.1 idle: CONTINUATION": (frame(CONTINUATION, END_HEADERS, 1, block()), Goaway((PROTOCOL_ERROR,))),
    "5.1 half-closed: DATA": (head() + frame(DATA, END_STREAM, 1, b"x"), Goaway((STREAM_CLOSED,), or_ignored=True)),
    "5.1 half-closed: HEADERS": (head() + head(), Goaway((STREAM_CLOSED, PROTOCOL_ERROR), or_ignored=True)),
    "5.1 half-closed: CONTINUATION": (
        head() + frame(CONTINUATION, END_HEADERS, 1, block()),
        Goaway((STREAM_CLOSED, PROTOCOL_ERROR)),
    ),
    "5.1 reset: CONTINUATION": (
        head() + reset(1) + frame(CONTINUATION, END_HEADERS, 1, block()),
        Goaway((STREAM_CLOSED, PROTOCOL_ERROR)),
    ),
    "5.1.1 even stream": (head(2), Goaway((PROTOCOL_ERROR,))),
    "5.1.1 skipped stream": (head(5) + head(3), PONG),
    # 6 frames.
    "6.1 DATA on stream 0": (frame(DATA, END_STREAM, 0, b"x"), Goaway((PROTOCOL_ERROR,))),
    "6.1 padding longer than DATA": (post() + frame(DATA, END_STREAM | PADDED, 1, b"\x09x"), Goaway((PROTOCOL_ERROR,))),
    "6.2 HEADERS on stream 0": (head(0), Goaway((PROTOCOL_ERROR,))),
    "6.2 padding longer than HEADERS": (
        frame(HEADERS, END_HEADERS | END_STREAM | PADDED, 1, b"\xff" + block()[:20]),
        Goaway((PROTOCOL_ERROR,)),
    ),
    "6.3 PRIORITY on stream 0": (frame(PRIORITY, 0, 0, b"\0\0\0\x01\x10"), PONG),
    "6.3 PRIORITY of 4 bytes": (head() + frame(PRIORITY, 0, 1, b"\0\0\0\x01"), Reset((FRAME_SIZE_ERROR,))),
    "6.4 RST_STREAM on stream 0": (reset(0), Goaway((PROTOCOL_ERROR,))),
    "6.4 RST_STREAM of 3 bytes": (post() + frame(RST_STREAM, 0, 1, b"\0\0\0"), Goaway((FRAME_SIZE_ERROR,))),
    "6.5 SETTINGS acknowledgement with a payload": (
        frame(SETTINGS, ACK, 0, b"\0\x01\0\0\0\x01"),
        Goaway((FRAME_SIZE_ERROR,)),
    ),
    "6.5 SETTINGS on stream 1": (frame(SETTINGS, 0, 1, b""), Goaway((PROTOCOL_ERROR,))),
    "6.5 SETTINGS of 5 bytes": (frame(SETTINGS, 0, 0, bytes(5)), Goaway((FRAME_SIZE_ERROR,))),
    "6.5.2 ENABLE_PUSH 2": (settings((ENABLE_PUSH, 2)), Goaway((PROTOCOL_ERROR,))),
    "6.5.2 INITIAL_WINDOW_SIZE over the limit": (
        settings((INITIAL_WINDOW_SIZE, 2**31)),
        Goaway((FLOW_CONTROL_ERROR,)),
    ),
    "6.5.2 MAX_FRAME_SIZE 16383": (settings((MAX_FRAME_SIZE, 16383)), Goaway((PROTOCOL_ERROR,))),
    "6.5.2 MAX_FRAME_SIZE over the limit": (settings((MAX_FRAME_SIZE, 2**24)), Goaway((PROTOCOL_ERROR,))),
    "6.5.2 unknown setting": (settings((0xFF, 1)) + head(), RESPONSE),
    "6.5.2 setting twice": (settings((MAX_CONCURRENT_STREAMS, 1), (MAX_CONCURRENT_STREAMS, 2)) + head(), RESPONSE),
    "6.6 PUSH_PROMISE": (frame(PUSH_PROMISE, END_HEADERS, 1, b"\0\0\0\x02" + block()), Goaway((PROTOCOL_ERROR,))),
    "6.7 PING on stream 1": (frame(PING, 0, 1, bytes(8)), Goaway((PROTOCOL_ERROR,))),
    "6.7 PING of 6 bytes": (frame(PING, 0, 0, bytes(6)), Goaway((FRAME_SIZE_ERROR,))),
    "6.7 acknowledged PING": (frame(PING, ACK, 0, bytes(8)), PONG),
    "6.8 GOAWAY on stream 1": (frame(GOAWAY, 0, 1, bytes(8)), Goaway((PROTOCOL_ERROR,))),
    "6.9 increment 0 of the connection": (window_update(0, 0), Goaway((PROTOCOL_ERROR,))),
    "6.9 increment 0 of a stream": (post() + window_update(1, 0), Reset((PROTOCOL_ERROR,))),
    "6.9 WINDOW_UPDATE of 3 bytes": (frame(WINDOW_UPDATE, 0, 0, bytes(3)), Goaway((FRAME_SIZE_ERROR,))),
    "6.9.1 window of the connection over the limit": (
        window_update(0, 2**31 - 1) * 2,
        Goaway((FLOW_CONTROL_ERROR,)),
    ),
    "6.9.1 window of a stream over the limit": (post() + window_update(1, 2**31 - 1), Reset((FLOW_CONTROL_ERROR,))),
    "6.10 CONTINUATION on stream 0": (
        frame(HEADERS, END_STREAM, 1, block()[:5]) + frame(CONTINUATION, END_HEADERS, 0, block()[5:]),
        Goaway((PROTOCOL_ERROR,)),
    ),
    "6.10 CONTINUATION on another stream": (
        frame(HEADERS, END_STREAM, 1, block()[:5]) + frame(CONTINUATION, END_HEADERS, 3, block()[5:]),
        Goaway((PROTOCOL_ERROR,)),
    ),
    "6.10 CONTINUATION after the end": (
        head(end=False, fields=request_fields()) + frame(CONTINUATION, END_HEADERS, 1, block()),
        Goaway((PROTOCOL_ERROR,)),
    ),
    "6.10 CONTINUATION after DATA": (
        post() + frame(DATA, 0, 1, b"x") + frame(CONTINUATION, END_HEADERS, 1, block()),
        Goaway((PROTOCOL_ERROR,)),
    ),
    "6.10 DATA within a block": (
        frame(HEADERS, 0, 1, block()) + frame(DATA, END_STREAM, 1, b"x"),
        Goaway((PROTOCOL_ERROR,)),
    ),
    # 8.1 messages; test_http2_smuggling has malformed fields.
    "8.1 second HEADERS without the end": (
        post() + frame(DATA, 0, 1, b"x") + frame(HEADERS, END_HEADERS, 1, block([("x-sum", "1")])),
        Reset((PROTOCOL_ERROR,)),
    ),
    "8.1 DATA after trailers": (
        post() + _TRAILERS + frame(DATA, END_STREAM, 1, b"x"),
        Goaway((STREAM_CLOSED,), or_ignored=True),
    ),
    "8.1.1 length of several DATA frames": (
        post(1, ("content-length", "3")) + frame(DATA, 0, 1, b"xx") + frame(DATA, END_STREAM, 1, b"xx"),
        Reset((PROTOCOL_ERROR,)),
    ),
    "8.1.1 length before trailers": (
        post(1, ("content-length", "3")) + frame(DATA, 0, 1, b"xx") + _TRAILERS,
        Reset((PROTOCOL_ERROR,)),
    ),
    # RFC 7541.
    "2.3.3 index over the table": (
        frame(HEADERS, END_HEADERS | END_STREAM, 1, block() + b"\xff\x80\x01"),
        Goaway((COMPRESSION_ERROR,)),
    ),
    "2.3.3 index of a name over the table": (
        frame(HEADERS, END_HEADERS | END_STREAM, 1, block() + b"\x7f\x80\x01\x01x"),
        Goaway((COMPRESSION_ERROR,)),
    ),
    "4.2 table size after a field": (
        frame(HEADERS, END_HEADERS | END_STREAM, 1, block() + b"\x20"),
        Goaway((COMPRESSION_ERROR,)),
    ),
    "6.3 table size over the limit": (
        frame(HEADERS, END_HEADERS | END_STREAM, 1, b"\x3f\xe1\xff\x03" + block()),
        Goaway((COMPRESSION_ERROR,)),
    ),
    "5.2 padding of a Huffman string over 7 bits": (
        frame(HEADERS, END_HEADERS | END_STREAM, 1, block() + b"\0\x01x\x82\x1c\xff\xff"),
        Goaway((COMPRESSION_ERROR,)),
    ),
    "5.2 padding of a Huffman string with zeros": (
        frame(HEADERS, END_HEADERS | END_STREAM, 1, block() + b"\0\x01x\x81\x18"),
        Goaway((COMPRESSION_ERROR,)),
    ),
    "5.2 end of a Huffman string within": (
        frame(HEADERS, END_HEADERS | END_STREAM, 1, block() + b"\0\x01x\x84\xff\xff\xff\xff"),
        Goaway((COMPRESSION_ERROR,)),
    ),
    "6.1 index 0": (frame(HEADERS, END_HEADERS | END_STREAM, 1, block() + b"\x80"), Goaway((COMPRESSION_ERROR,))),
}


async def _check(client: Http2Client, expected: Expected) -> None:
    if expected == PONG:
        await client.ping()
        assert not client.goaways
    elif isinstance(expected, Goaway) and expected.or_ignored:
        client.send(frame(PING, payload=b"isopened"))
        await client.wait_until(lambda: client.goaways or (b"isopened", True) in client.pings, "GOAWAY or PING")
        assert not client.goaways or client.goaways[-1][1] in expected.codes
    elif isinstance(expected, Goaway):
        assert (await client.goaway())[1] in expected.codes
    elif isinstance(expected, Reset):
        await client.wait_until(
            lambda: client.goaways or (1 in client.streams and client.streams[1].reset is not None), "reset"
        )
        code = client.goaways[0][1] if client.goaways else client.streams[1].reset
        assert code in expected.codes
    else:
        response = await client.response(1)
        assert (response.status, response.data, response.reset) == (200, b"[3]", None)


async def _client(harness: GatewayHarness) -> Http2Client:
    harness.set_service(replica_max_concurrent_requests=0, cancellation="on_close")
    (await harness.add_replica()).auto_respond(ok(b"[3]"))
    client = Http2Client(await harness.client()).start()
    await client.wait_until(lambda: client.settings is not None and client.settings_acknowledged, "settings")
    client.send(frame(SETTINGS, ACK))
    return client


@pytest.mark.parametrize("case", CASES)
async def test_case(harness: GatewayHarness, case: str) -> None:
    client = await _client(harness)
    sent, expected = CASES[case]
    client.send(sent)
    await _check(client, expected)
    client.connection.close()


@pytest.mark.parametrize("case", CASES)
async def test_case_in_pieces(harness: GatewayHarness, case: str) -> None:
    """The result does not depend on how the bytes arrive."""
    client = await _client(harness)
    sent, expected = CASES[case]
    step = max(len(sent) // 40, 1)
    for start in range(0, len(sent), step):
        if client.connection.transport.is_closing():
            break
        await client.connection.send_in_pieces(sent[start : start + step])
    await _check(client, expected)
    client.connection.close()


@pytest.mark.parametrize(
    "preface",
    [
        pytest.param(lambda: PREFACE[:20] + b"XX\r\n" + settings(), id="another preface"),
        pytest.param(lambda: PREFACE + frame(PING, payload=bytes(8)), id="no settings"),
        pytest.param(lambda: PREFACE + head(), id="a request before the settings"),
    ],
)
async def test_preface(harness: GatewayHarness, preface: Callable[[], bytes]) -> None:
    client = Http2Client(await harness.client())
    client.send(preface())
    await client.connection.wait_closed()
    if client.connection.received.startswith(b"HTTP/1.1 400 "):  # the text was no preface of HTTP/2 at all
        return
    client.parse()
    assert client.goaways[-1][1] == PROTOCOL_ERROR


async def test_settings_of_the_router(harness: GatewayHarness) -> None:
    client = await _client(harness)
    assert client.settings == {MAX_CONCURRENT_STREAMS: 100, INITIAL_WINDOW_SIZE: 262_144, 6: 65_536}
    await client.wait_until(lambda: 0 in client.window_updates, "window of the connection")
    assert client.window_updates[0] + 65_535 == 100 * 262_144
