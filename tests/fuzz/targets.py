"""What is fuzzed: one function for each parser that reads what strangers write.

A target takes bytes and returns; what must never be raises. For the two sides of the data plane that is more than a
crash: both sides' bytes are read again by a strict reader, and those for a replica by careless ones as well
(`tests/gateway/conformance/readers.py`), which must all find the same requests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache

from router.cluster.kubernetes.annotations import read as read_annotations
from router.peers.frames import FrameDecoder, Opener, WireError
from router.peers.handshake import ClientHandshake, HandshakeError, Party, ServerHandshake
from router.peers.wire import MessageReader, encode
from router.services import parse_service
from router.values import SettingsError
from tests.fuzz.bench import Bench, whole_message
from tests.gateway.conformance.readers import READERS

_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
_REQUEST = b"POST /api/v1/service/iris/score HTTP/1.1\r\nHost: fe\r\nContent-Length: 2\r\n\r\n{}"
_HEALTH = b"GET / HTTP/1.1\r\nHost: fe\r\n\r\n"
_HOP_BY_HOP = {b"keep-alive", b"te", b"proxy-connection", b"proxy-authorization", b"authorization"}
_CARELESS = READERS[::7]


@cache
def _bench() -> Bench:
    return Bench()


def pieces(data: bytes) -> Iterator[bytes]:
    """The first byte says how the rest is cut."""
    if not data:
        return
    size = data[0] or len(data)
    for start in range(1, len(data), size):
        yield data[start : start + size]


def requests(data: bytes) -> None:
    """What a client sends, in front of a replica that answers each request that is whole."""
    bench = _bench()
    client, wire = bench.client()
    read: dict[int, int] = {}  # how far what each replica got is answered
    for piece in pieces(data):
        if wire.closed:
            break
        client.data_received(piece)
        _answer(bench, read)
    _check_requests(bench, read)
    if b"HEAD " not in data:  # whose answers tell a length and have no body
        _check_answers(bytes(wire.written))
    bench.end(client)


def _answer(bench: Bench, read: dict[int, int]) -> None:
    answered = True
    while answered:
        answered = False
        for number, replica in enumerate(bench.replicas):
            message = whole_message(bytes(replica.transport.written), read.get(number, 0))  # type: ignore[attr-defined]
            if message is not None and message.end >= 0 and not replica.closed:
                read[number] = message.end
                replica.data_received(_ANSWER)
                answered = True


def _check_requests(bench: Bench, read: dict[int, int]) -> None:
    for number, replica in enumerate(bench.replicas):
        data = bytes(replica.transport.written)  # type: ignore[attr-defined]
        start, bodies = 0, []
        while start < read.get(number, 0):
            message = whole_message(data, start)
            assert message is not None
            names = [name for name, _ in message.fields]
            assert names.count(b"host") == 1, names
            assert names.count(b"x-request-id") == 1, names
            assert not _HOP_BY_HOP & set(names), names
            bodies.append(message.body)
            start = message.end
        for reader in _CARELESS:
            assert [body for _, _, body in reader.read(data[:start])] == bodies, reader


def _check_answers(data: bytes) -> None:
    """Everything that a client gets is whole answers, but for the last one."""
    start = 0
    while start < len(data):
        message = whole_message(data, start)
        assert message is not None, data[start:]
        if message.end < 0:
            return
        start = message.end


def answers(data: bytes) -> None:
    """What a replica sends as the answer to a request, after which it may close (the last bit of the second byte)."""
    bench = _bench()
    client, wire = bench.client()
    client.data_received(_REQUEST)
    (replica,) = bench.replicas
    for piece in pieces(data[1:]):
        if replica.closed:
            break
        replica.data_received(piece)
    if data[:1] and data[0] & 1 and not replica.closed:
        replica.connection_lost(None)
    written = bytes(wire.written)
    whole = _final_answer(written)
    if whole >= 0:
        assert written[whole:] == b"", "something follows the answer"
        if not wire.closed:
            client.data_received(_HEALTH)
            following = whole_message(bytes(wire.written), whole)
            assert following is not None
            assert following.body == b"Healthy", "the answer to the next request is another one's"
    bench.end(client)


def _final_answer(data: bytes) -> int:
    """Where the final answer ends; -1 if it is not whole."""
    start = 0
    while True:
        message = whole_message(data, start)
        if message is None or message.end < 0:
            return -1
        if message.status >= 200:
            if not {b"content-length", b"transfer-encoding"} & {name for name, _ in message.fields}:
                assert message.status in (204, 304), "an answer whose end nobody can tell"
            return message.end
        assert message.status != 101, "a switch of protocols that nobody asked for"
        start = message.end


def frames(data: bytes) -> None:
    """What another router sends: cut into frames, each read as a message, as a hand-shake and as a sealed frame."""
    decoder, reader = FrameDecoder(limit=65536), MessageReader()
    party = Party("a", "0" * 16, "127.0.0.1", 9091)
    try:
        bodies = [body for piece in pieces(data) for body in decoder.feed(piece)]
    except WireError:
        bodies = []
    for body in [*bodies, data[1:]]:
        _must_refuse(HandshakeError, ServerHandshake(party, b"s" * 16).receive, body)
        dialling = ClientHandshake(party, b"s" * 16)
        with suppress(HandshakeError):
            dialling.answer(body)
        if dialling.is_answered:
            _must_refuse(HandshakeError, dialling.finish, body)
        _must_refuse(WireError, Opener(b"k" * 32).open, body)
        try:
            message = reader.read(body)
        except WireError:
            continue
        if message is not None:
            assert reader.read(encode(message)) == message


def _must_refuse(error: type[Exception], read: Callable[[bytes], object], body: bytes) -> None:
    """Without the secret there is nothing that is taken."""
    try:
        read(body)
    except error:
        return
    raise AssertionError(f"{read.__qualname__} took what nobody with the secret has made")


def settings(data: bytes) -> None:
    """Lines `name=value`, as the annotations of a Deployment and as the settings of a service in a file."""
    lines = [line.partition("=") for line in data.decode(errors="replace").split("\n")]
    given, faults = read_annotations("iris", tuple((name, value) for name, _, value in lines))
    for fault in faults:
        assert isinstance(fault, SettingsError)
        assert "\n" not in str(fault)
    assert 0 < given.port < 65536
    with suppress(SettingsError):
        service = parse_service("iris", {name: value for name, _, value in lines})
        assert service.versions
        assert all(version.scoring_timeout_ms > 0 for version in service.versions)


TARGETS: dict[str, Callable[[bytes], None]] = {
    "requests": requests,
    "answers": answers,
    "frames": frames,
    "annotations": settings,
}
"""By name; the folder of the same name in `corpus` has what each begins with."""
