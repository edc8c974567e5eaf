"""The fuzz targets: one function for each parser of untrusted input.

A target takes bytes and returns, or raises for a violated property. The targets of the data plane check more than the
absence of crashes: a strict parser and lenient parsers (`tests/gateway/conformance/lenient_parsers.py`) must all find
the same requests in the bytes that the gateway sends to a replica.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache

import hpack

from router.cluster.kubernetes.annotations import parse_annotations
from router.config.schema import SettingsError
from router.config.service import parse_service
from router.peers.frames import FrameDecoder, FrameVerifier, WireError
from router.peers.handshake import ClientHandshake, HandshakeError, PeerIdentity, ServerHandshake
from router.peers.wire import decode, encode
from tests.fuzz.in_memory_gateway import Client, InMemoryGateway, parse_message
from tests.gateway.conformance.lenient_parsers import LENIENT_PARSERS
from tests.gateway.http2_client import DATA, END_HEADERS, END_STREAM, HEADERS, PREFACE, settings

_RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
_REQUEST = b"POST /api/v1/service/iris/score HTTP/1.1\r\nHost: fe\r\nContent-Length: 2\r\n\r\n{}"
_HEALTH = b"GET / HTTP/1.1\r\nHost: fe\r\n\r\n"
_HOP_BY_HOP = {b"keep-alive", b"te", b"proxy-connection", b"proxy-authorization", b"authorization"}
_SOME_LENIENT_PARSERS = LENIENT_PARSERS[::7]


@cache
def _gateway() -> InMemoryGateway:
    return InMemoryGateway()


def pieces(data: bytes) -> Iterator[bytes]:
    """Split the data into pieces. The first byte is the size of a piece, 0 for one piece."""
    if not data:
        return
    size = data[0] or len(data)
    for start in range(1, len(data), size):
        yield data[start : start + size]


def requests(data: bytes) -> None:
    """Bytes from a client. A replica responds to each complete request."""
    _gateway().run(_send_requests(_gateway(), data))


async def _send_requests(gateway: InMemoryGateway, data: bytes) -> None:
    client, transport = gateway.connect_client()
    handled: dict[int, int] = {}  # by replica connection: the offset up to which it has responded
    for piece in pieces(data):
        if transport.closed:
            break
        client.data_received(piece)
        await _respond(gateway, client, handled)
    _check_requests(gateway, handled)
    if b"HEAD " not in data:  # responses to HEAD have a length but no body
        _check_responses(bytes(transport.written))
    gateway.finish_input(client)


async def _respond(gateway: InMemoryGateway, client: Client, handled: dict[int, int]) -> None:
    has_responded = True
    while has_responded:
        await gateway.finish_turns(client)
        has_responded = False
        for number, replica in enumerate(gateway.replicas):
            written = bytes(replica.transport.written)  # type: ignore[attr-defined]
            message = parse_message(written, handled.get(number, 0))
            if message is not None and message.end >= 0 and replica.is_open:
                handled[number] = message.end
                replica.data_received(_RESPONSE)
                has_responded = True


def _check_requests(gateway: InMemoryGateway, handled: dict[int, int]) -> None:
    for number, replica in enumerate(gateway.replicas):
        data = bytes(replica.transport.written)  # type: ignore[attr-defined]
        start, bodies = 0, []
        while start < handled.get(number, 0):
            message = parse_message(data, start)
            assert message is not None
            names = [name for name, _ in message.fields]
            assert names.count(b"host") == 1, names
            assert names.count(b"x-request-id") == 1, names
            assert not _HOP_BY_HOP & set(names), names
            bodies.append(message.body)
            start = message.end
        for parser in _SOME_LENIENT_PARSERS:
            assert [body for _, _, body in parser.parse(data[:start])] == bodies, parser


def _check_responses(data: bytes) -> None:
    """Check that a client gets only complete responses, except for the last one."""
    start = 0
    while start < len(data):
        message = parse_message(data, start)
        assert message is not None, data[start:]
        if message.end < 0:
            return
        start = message.end


def responses(data: bytes) -> None:
    """Bytes from a replica after a request. The lowest bit of the first byte decides whether it closes afterwards."""
    _gateway().run(_send_response(_gateway(), data))


async def _send_response(gateway: InMemoryGateway, data: bytes) -> None:
    client, transport = gateway.connect_client()
    client.data_received(_REQUEST)
    (replica,) = gateway.replicas
    for piece in pieces(data[1:]):
        if not replica.is_open:
            break
        replica.data_received(piece)
        await gateway.finish_turns(client)
    if data[:1] and data[0] & 1 and replica.is_open:
        replica.connection_lost(None)
    written = bytes(transport.written)
    end = _final_response_end(written)
    if end >= 0:
        assert written[end:] == b"", "bytes after the response"
        if not transport.closed:
            client.data_received(_HEALTH)
            await gateway.finish_turns(client)
            following = parse_message(bytes(transport.written), end)
            assert following is not None
            assert following.body == b"Healthy", "the next request got the response to another request"
    gateway.finish_input(client)


def _final_response_end(data: bytes) -> int:
    """Return the offset after the final response, or -1 if it is incomplete."""
    start = 0
    while True:
        message = parse_message(data, start)
        if message is None or message.end < 0:
            return -1
        if message.status >= 200:
            if not {b"content-length", b"transfer-encoding"} & {name for name, _ in message.fields}:
                assert message.status in (204, 304), "a response without a detectable end"
            return message.end
        assert message.status != 101, "a protocol switch without a request for it"
        start = message.end


def frames(data: bytes) -> None:
    """Bytes from another router, split into frames. Each is parsed as a message, a handshake and a signed frame."""
    decoder = FrameDecoder(limit=65536)
    identity = PeerIdentity("a", "0" * 16, "127.0.0.1", 9091)
    try:
        bodies = [body for piece in pieces(data) for body in decoder.feed(piece)]
    except WireError:
        bodies = []
    for body in [*bodies, data[1:]]:
        _must_refuse(HandshakeError, ServerHandshake(identity, b"s" * 16).receive_response, body)
        client = ClientHandshake(identity, b"s" * 16)
        with suppress(HandshakeError):
            client.respond(body)
        if client.has_responded:
            _must_refuse(HandshakeError, client.receive_verdict, body)
        _must_refuse(WireError, FrameVerifier(b"k" * 32).verify, body)
        try:
            message = decode(body)
        except WireError:
            continue
        if message is not None:
            assert decode(encode(message)) == message


def _must_refuse(error: type[Exception], parse: Callable[[bytes], object], body: bytes) -> None:
    """Check that `parse` refuses a body that was created without the secret."""
    try:
        parse(body)
    except error:
        return
    raise AssertionError(f"{parse.__qualname__} accepted a body that was created without the secret")


def deployment_annotations(data: bytes) -> None:
    """Lines `name=value`, as a Deployment's annotations and as a service's settings in a local file."""
    lines = [line.partition("=") for line in data.decode(errors="replace").split("\n")]
    parsed, errors = parse_annotations("iris", tuple((name, value) for name, _, value in lines))
    for error in errors:
        assert isinstance(error, SettingsError)
        assert "\n" not in str(error)
    assert 0 < parsed.port < 65536
    with suppress(SettingsError):
        service = parse_service("iris", {name: value for name, _, value in lines})
        assert service.versions
        assert all(version.scoring_timeout_ms > 0 for version in service.versions)


def http2(data: bytes) -> None:
    """Frames from a client of HTTP/2, after its preface. A replica responds to each complete request."""
    _gateway().run(_send_frames(_gateway(), data))


async def _send_frames(gateway: InMemoryGateway, data: bytes) -> None:
    client, transport = gateway.connect_http2_client()
    handled: dict[int, int] = {}
    for piece in (PREFACE + settings(), *pieces(data)):
        if transport.closed:
            break
        client.data_received(piece)
        await _respond(gateway, client, handled)
    _check_requests(gateway, handled)
    _check_frames(bytes(transport.written))
    assert client._codec.waiting_bytes() < 1_000_000
    gateway.finish_input(client)


def _check_frames(data: bytes) -> None:
    """Check that a client gets whole frames, header blocks that it can decode, and no data after the end."""
    decoder = hpack.Decoder()
    ended: set[int] = set()
    while data:
        length, kind, flags = int.from_bytes(data[:3], "big"), data[3], data[4]
        stream = int.from_bytes(data[5:9], "big")
        assert length <= 16384
        assert len(data) >= 9 + length, data
        if kind in (DATA, HEADERS):
            assert stream not in ended
            if flags & END_STREAM:
                ended.add(stream)
        if kind == HEADERS:
            assert flags & END_HEADERS
            names = [name for name, _ in decoder.decode(data[9 : 9 + length])]
            assert not {"connection", "transfer-encoding", "keep-alive"} & set(names), names
        data = data[9 + length :]


TARGETS: dict[str, Callable[[bytes], None]] = {
    "requests": requests,
    "responses": responses,
    "http2": http2,
    "frames": frames,
    "annotations": deployment_annotations,
}
"""The targets by name. The directory of the same name in `corpus` has the initial inputs."""
