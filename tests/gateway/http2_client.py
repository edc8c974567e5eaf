"""An HTTP/2 client that a test controls frame by frame.

It has its own frames, and `hpack` for header blocks, because the router's codec is under test. It acknowledges nothing
by itself, neither settings nor pings, and opens no windows. Nothing here imports the router.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import hpack

from tests.gateway.http_connection import KEY, Connection

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, ACK, END_HEADERS, PADDED, HAS_PRIORITY = 1, 1, 4, 8, 32
NO_ERROR, PROTOCOL_ERROR, INTERNAL_ERROR, FLOW_CONTROL_ERROR = 0, 1, 2, 3
STREAM_CLOSED, FRAME_SIZE_ERROR, REFUSED_STREAM, CANCEL, COMPRESSION_ERROR = 5, 6, 7, 8, 9
ENHANCE_YOUR_CALM = 11
HEADER_TABLE_SIZE, ENABLE_PUSH, MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE = 1, 2, 3, 4, 5

Fields = Sequence[tuple[str, str]]


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    """Return a frame. `stream` may have the reserved bit."""
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def settings(*values: tuple[int, int]) -> bytes:
    """Return a SETTINGS frame."""
    return frame(SETTINGS, payload=b"".join(i.to_bytes(2, "big") + v.to_bytes(4, "big") for i, v in values))


def window_update(stream: int, increment: int) -> bytes:
    """Return a WINDOW_UPDATE frame."""
    return frame(WINDOW_UPDATE, stream=stream, payload=increment.to_bytes(4, "big"))


def reset(stream: int, code: int = CANCEL) -> bytes:
    """Return a RST_STREAM frame."""
    return frame(RST_STREAM, stream=stream, payload=code.to_bytes(4, "big"))


def request_fields(
    *more: tuple[str, str],
    method: str = "POST",
    path: str = "/api/v1/service/iris/score",
    authority: str = "fe",
    key: str | None = KEY,
) -> list[tuple[str, str]]:
    """Return the fields of a request."""
    fields = [(":method", method), (":scheme", "http"), (":path", path), (":authority", authority)]
    if key is not None:
        fields.append(("authorization", f"Bearer {key}"))
    return [*fields, *more]


@dataclass(slots=True)
class StreamState:
    """What the server has sent on a stream."""

    headers: list[dict[str, str]] = field(default_factory=list)  # interim responses, the response, trailers
    data: bytes = b""
    ended: bool = False
    reset: int | None = None

    @property
    def status(self) -> int:
        """The status of the final response."""
        return int(next(h[":status"] for h in self.headers if not h[":status"].startswith("1")))

    @property
    def response(self) -> dict[str, str]:
        """The head of the final response."""
        return next(h for h in self.headers if not h[":status"].startswith("1"))

    @property
    def done(self) -> bool:
        """True if nothing more can arrive."""
        return self.ended or self.reset is not None


class Http2Client:
    """A client on one connection."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.encoder = hpack.Encoder()
        self._decoder = hpack.Decoder()
        self.streams: dict[int, StreamState] = {}
        self.settings: dict[int, int] | None = None
        self.settings_acknowledged = 0
        self.pings: list[tuple[bytes, bool]] = []  # with True for an acknowledgement
        self.goaways: list[tuple[int, int, bytes]] = []  # last stream, error code, text
        self.window_updates: dict[int, int] = {}
        self._block = b""
        self._next = 1

    def send(self, *frames: bytes) -> Http2Client:
        """Send frames in one write."""
        self.connection.send(b"".join(frames))
        return self

    def start(self, *values: tuple[int, int]) -> Http2Client:
        """Send the preface and settings."""
        return self.send(PREFACE, settings(*values))

    def head(self, fields: Fields, *, end: bool, stream: int = 0) -> bytes:
        """Return the header block of a request in frames, on the next stream unless one is named."""
        number = stream or self.next_stream()
        block = self.encoder.encode(fields, huffman=False)
        first, *more = [block[i : i + 16384] for i in range(0, len(block), 16384)]
        flags = (END_STREAM if end else 0) | (0 if more else END_HEADERS)
        continuations = [frame(CONTINUATION, 0, number, piece) for piece in more[:-1]]
        if more:
            continuations.append(frame(CONTINUATION, END_HEADERS, number, more[-1]))
        return frame(HEADERS, flags, number, first) + b"".join(continuations)

    def next_stream(self) -> int:
        """Return the next stream, and skip it."""
        self._next += 2
        return self._next - 2

    def request(self, body: bytes = b"{}", *more: tuple[str, str], **named: str | None) -> int:
        """Send a request with a body, and return its stream."""
        stream = self.next_stream()
        fields = request_fields(("content-length", str(len(body))), *more, **named)  # type: ignore[arg-type]
        self.send(self.head(fields, end=False, stream=stream), frame(DATA, END_STREAM, stream, body))
        return stream

    def get(self, *more: tuple[str, str], **named: str | None) -> int:
        """Send a request without a body, and return its stream."""
        stream = self.next_stream()
        fields = request_fields(*more, **{"method": "GET", **named})  # type: ignore[arg-type]
        self.send(self.head(fields, end=True, stream=stream))
        return stream

    # Reading.

    def parse(self) -> None:
        """Parse the complete frames that have arrived."""
        received = self.connection.received
        while len(received) >= 9:
            length = int.from_bytes(received[:3], "big")
            if len(received) < 9 + length:
                return
            kind, flags = received[3], received[4]
            stream = int.from_bytes(received[5:9], "big")
            payload = bytes(received[9 : 9 + length])
            del received[: 9 + length]
            self._on_frame(kind, flags, stream, payload)

    def _on_frame(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        state = self.streams.setdefault(stream, StreamState()) if stream else StreamState()
        if kind == DATA:
            state.data += payload
        elif kind in (HEADERS, CONTINUATION):
            self._block += payload
            if flags & END_HEADERS:
                state.headers.append({str(name): str(value) for name, value in self._decoder.decode(self._block)})
                self._block = b""
        elif kind == RST_STREAM:
            state.reset = int.from_bytes(payload, "big")
        elif kind == SETTINGS and flags & ACK:
            self.settings_acknowledged += 1
        elif kind == SETTINGS:
            pairs = [payload[i : i + 6] for i in range(0, len(payload), 6)]
            self.settings = {int.from_bytes(p[:2], "big"): int.from_bytes(p[2:], "big") for p in pairs}
        elif kind == PING:
            self.pings.append((payload, bool(flags & ACK)))
        elif kind == GOAWAY:
            last, code = int.from_bytes(payload[:4], "big"), int.from_bytes(payload[4:8], "big")
            self.goaways.append((last, code, payload[8:]))
        elif kind == WINDOW_UPDATE:
            self.window_updates[stream] = self.window_updates.get(stream, 0) + int.from_bytes(payload, "big")
        else:
            raise AssertionError(f"unexpected frame {kind}")
        if kind in (DATA, HEADERS) and flags & END_STREAM:
            state.ended = True

    async def wait_until(self, condition: Callable[[], object], description: str) -> None:
        """Wait until a condition about received frames is true."""

        def check() -> object:
            self.parse()
            return condition()

        try:
            await self.connection.wait_until(check, description)
        except AssertionError as error:
            raise AssertionError(f"{error}; {self.streams} {self.goaways}") from None

    async def response(self, stream: int) -> StreamState:
        """Wait until the stream has ended, and return what was received on it."""
        await self.wait_until(lambda: stream in self.streams and self.streams[stream].done, f"response on {stream}")
        return self.streams[stream]

    async def head_of(self, stream: int) -> dict[str, str]:
        """Wait for the head of a response."""
        await self.wait_until(lambda: stream in self.streams and self.streams[stream].headers, f"head on {stream}")
        return self.streams[stream].response

    async def goaway(self) -> tuple[int, int, bytes]:
        """Wait for a GOAWAY frame with an error, and for the end of the connection. Return the frame."""
        await self.wait_until(lambda: self.goaways and self.connection.remote_closed, "GOAWAY and close")
        return self.goaways[-1]

    async def ping(self) -> None:
        """Wait until the server has processed all that was sent before."""
        payload = len(self.pings).to_bytes(8, "big")  # none before had it
        self.send(frame(PING, payload=payload))
        await self.wait_until(lambda: (payload, True) in self.pings, "PING")
