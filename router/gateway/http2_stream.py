"""One HTTP/2 stream of a client: the client's side of one exchange, with its flow control.

What is sent of a body is collected until the connection flushes at the end of the turn, so that head, body and end of a
small response leave in one write. A stream that has much to send and a client that does not take it are write-paused,
as a connection of HTTP/1.1 is: the exchange then holds the response within the budget of buffered bytes, or pauses the
replica.

Contains: `ClientStream` for HTTP/2. Does not contain: the connection (`http2_connection`), frames (`http.http2`).
"""

from __future__ import annotations

from abc import abstractmethod
from time import monotonic
from typing import Final

from router.gateway.context import GatewayContext
from router.gateway.exchange import DONE, NEW, Exchange
from router.gateway.http2_request import (
    Http2Request,
    are_trailers_too_large,
    read_trailers,
    response_fields,
    trailer_fields,
)
from router.http import http1, responses
from router.http.http2.codec import Http2Codec, StreamEvents
from router.http.http2.frames import CANCEL, INTERNAL_ERROR, NO_ERROR
from router.http.location import PublicPath
from router.http.responses import LocalResponse
from router.http.streams import UNKNOWN_LENGTH, ClientStream

# A stream with more than this to send is write-paused, and writable again below the second.
_WRITE_HIGH_BYTES: Final = 65536
_WRITE_LOW_BYTES: Final = 16384
# The rest of a refused request's body, up to this size, is read and discarded; else the client is asked to stop.
_MAX_DISCARDED_BYTES: Final = 65536
_UNCOUNTED_INPUT_BYTES: Final = 4096  # as much input is small beside the stream itself
_NO_BODY: Final = frozenset((204, 304))


class StreamOwner(StreamEvents):
    """What a stream needs of its connection."""

    __slots__ = ("address", "forwarded_host", "forwarded_lines", "forwarded_path", "is_trusted_proxy", "secure")

    address: bytes
    is_trusted_proxy: bool
    secure: bool
    # See `ClientStream`: those of the last request on this connection.
    forwarded_lines: tuple[bytes, ...]
    forwarded_host: bytes
    forwarded_path: PublicPath | None

    @abstractmethod
    def flush_later(self) -> None:
        """Send what the codec has at the end of this turn of the event loop."""

    @abstractmethod
    def push_later(self, stream: Http2Stream) -> None:
        """Call `push` of the stream before that."""

    @abstractmethod
    def watch(self, stream: Http2Stream) -> None:
        """Call `on_flushed` of the stream after each flush, until it returns False."""

    @abstractmethod
    def on_response(self, status: int, local: bool) -> None:
        """A response was started, by the router itself if `local`."""


class Http2Stream(ClientStream):
    """One stream."""

    __slots__ = (
        "_codec", "_context", "_given_bytes", "_held_bytes", "_held_input_bytes", "_owner", "_pieces", "_progress_at",
        "_sends_body", "_sent_at_pause", "_sent_bytes", "_trailers", "_unacknowledged", "body_paused", "closed",
        "ended", "exchange", "last_input_at", "paused_at", "paused_seconds", "request", "stream_id",
    )  # fmt: skip

    def __init__(
        self, context: GatewayContext, owner: StreamOwner, codec: Http2Codec, stream_id: int, request: Http2Request
    ) -> None:
        self._context = context
        self._owner = owner
        self._codec = codec
        self.stream_id = stream_id
        self.request = request
        self.address = owner.address
        self.is_trusted_proxy = owner.is_trusted_proxy
        self.secure = owner.secure
        self.forwarded_lines = owner.forwarded_lines
        self.forwarded_host = owner.forwarded_host
        self.forwarded_path = owner.forwarded_path
        self.write_paused_at = 0.0
        self.closed = False
        """True once nothing can be sent: the client has reset the stream, or all was sent."""
        self.ended = False
        """True if the response is complete, though perhaps not yet sent."""
        self.body_paused = False
        self.last_input_at = self.paused_at = self.paused_seconds = 0.0
        self._pieces: list[bytes] = []  # of the body, to be sent by `push`
        self._trailers: tuple[bytes, ...] = ()
        self._sends_body = False  # the head was sent, and a body may follow
        self._unacknowledged = 0  # bytes of the body that the client cannot replace by others yet
        self._held_input_bytes = 0  # bytes of the buffer budget, for these
        self._held_bytes = 0  # bytes of the buffer budget, for a response that the client has yet to read
        self._given_bytes = 0  # of the body, to the codec
        self._sent_bytes = 0  # by the codec, at the last check
        self._sent_at_pause = 0
        self._progress_at = 0.0  # when more was sent, or nothing waited
        self.exchange = Exchange(context, self, request)

    # The request's body.

    def on_data(self, data: bytes, complete: bool) -> LocalResponse | None:
        """Add a piece of the body. Return the response if there is a reason to refuse it."""
        request = self.request
        size = len(data)
        request.body_bytes += size
        self._unacknowledged += size
        if complete:
            self.complete_body(())
        if self.exchange.state == DONE:
            return None
        if size:
            request.body.append(data)
        if request.body_bytes > self._context.settings.max_payload_bytes:
            return responses.payload_too_large(self._context.settings.max_payload_bytes)
        return None

    def on_trailers(self, fields: tuple[tuple[bytes, bytes], ...]) -> LocalResponse | None:
        """Complete the request with trailers. Return the response if there is a reason to refuse it."""
        settings = self._context.settings
        if are_trailers_too_large(fields, settings):
            self.complete_body(())
            return responses.head_too_large(settings.max_head_bytes, settings.max_headers)
        self.complete_body(fields)
        return None

    def complete_body(self, fields: tuple[tuple[bytes, bytes], ...]) -> None:
        """The request is complete, with these trailers."""
        request = self.request
        request.body_complete = True
        if fields:
            request.trailers = read_trailers(fields)
        if not request.sent_at and request.length == UNKNOWN_LENGTH and not request.trailers:
            request.length = request.body_bytes  # known before the replica gets the head

    def advance(self) -> None:
        """Begin the exchange, or continue it, after all that has arrived was added."""
        exchange = self.exchange
        if exchange.state == NEW:
            exchange.begin()
        else:
            exchange.on_client_body()
        if self._unacknowledged and not self.closed:
            self._acknowledge_or_hold()

    def _acknowledge_or_hold(self) -> None:
        if not self.body_paused or self.exchange.state == DONE:
            self.acknowledge()
            return
        size = self._unacknowledged if self._unacknowledged >= _UNCOUNTED_INPUT_BYTES else 0
        if self._context.buffers.reserve(size - self._held_input_bytes):
            self._held_input_bytes = size
        else:
            self.refuse(responses.INPUT_NOT_BUFFERED)

    def acknowledge(self) -> None:
        """Let the client send more in place of what it has sent."""
        if self._unacknowledged:
            self._codec.acknowledge(self.stream_id, self._unacknowledged)
            self._unacknowledged = 0
            self._owner.flush_later()
        if self._held_input_bytes:
            self._context.buffers.release(self._held_input_bytes)
            self._held_input_bytes = 0

    def refuse(self, response: LocalResponse) -> None:
        """Respond to a request that is too large or too slow. Stop a body that nobody reads."""
        exchange = self.exchange
        if exchange.state == NEW:
            self.request.rejection = response
            exchange.begin()
        elif exchange.state != DONE:
            exchange.fail(response)
        elif not self.closed:
            self.reset(NO_ERROR if self.ended else CANCEL)

    def pause_body(self) -> None:
        """Let the client send no more of the body than it may already."""
        if not self.body_paused:
            self.body_paused = True
            self.paused_at = monotonic()

    def resume_body(self) -> None:
        """Continue to read the body of the request."""
        if self.body_paused:
            self.body_paused = False
            self.last_input_at = now = monotonic()
            self.paused_seconds += now - self.paused_at
        if not self.closed:
            self.acknowledge()

    # The response.

    def send_continue(self) -> None:
        """Send 100 (Continue) if the client waits for it."""
        if self.request.expects_continue and not self.closed:
            self.request.expects_continue = False
            self._codec.send_interim(self.stream_id, [(b":status", b"100")])
            self._owner.flush_later()

    def send_interim(self, status: int, reason: bytes, lines: list[bytes]) -> None:
        """Send a 1xx response."""
        if not self.closed:
            self._codec.send_interim(self.stream_id, response_fields(status, lines, UNKNOWN_LENGTH))
            self._owner.flush_later()

    def send_head(self, status: int, reason: bytes, lines: list[bytes], length: int, pieces: list[bytes]) -> None:
        """Send the head of a response and the first pieces of its body."""
        if self.closed:
            return
        self._start_response(status, response_fields(status, lines, length if status != 204 else UNKNOWN_LENGTH))
        if pieces:
            self.send_body(pieces)
        if length == UNKNOWN_LENGTH or length > _WRITE_HIGH_BYTES:
            self._codec.share_connection(self.stream_id)
        self._owner.on_response(status, local=False)

    def _start_response(self, status: int, fields: list[tuple[bytes, bytes]]) -> None:
        self._sends_body = not (status in _NO_BODY or self.request.method == b"HEAD")
        self._codec.send_head(self.stream_id, fields, end=not self._sends_body)
        self._owner.push_later(self)

    def send_body(self, pieces: list[bytes]) -> None:
        """Send more of the body of a response."""
        if self.closed or not self._sends_body:
            return
        self._pieces += pieces
        self._owner.push_later(self)

    def close_after_response(self) -> None:
        """Do nothing: a request that fails does not affect the other streams of its connection."""

    def send_local(self, response: LocalResponse, extra_lines: list[bytes]) -> None:
        """Send a response of the router."""
        if self.closed:
            return
        body = b"" if response.status == 204 else response.text.encode()
        lines = [b"", http1.date_line(self._context.wall_clock())]
        if response.status != 204:
            lines.append(b"content-type: text/plain; charset=utf-8")
        if response.error_code:
            lines.append(b"azureml-fe-error: " + response.error_code.encode())
        lines += [f"{name}: {value}".encode() for name, value in response.headers]
        lines += extra_lines
        length = UNKNOWN_LENGTH if response.status == 204 else len(body)
        self._start_response(response.status, response_fields(response.status, lines, length))
        self.send_body([body])
        self._owner.on_response(response.status, local=True)

    def end(self, trailers: tuple[bytes, ...], now: float) -> None:
        """Complete the response."""
        self.ended = True
        self._trailers = trailers
        owner = self._owner
        owner.forwarded_lines = self.forwarded_lines
        owner.forwarded_host = self.forwarded_host
        owner.forwarded_path = self.forwarded_path
        if self.closed:
            return
        if self.body_paused:
            self.resume_body()
        owner.push_later(self)
        if not self.request.body_complete and not self._may_discard_body():
            owner.watch(self)  # until all was sent

    def _may_discard_body(self) -> bool:
        """Return True if the rest of a refused request's body is short."""
        request = self.request
        if request.expects_continue or request.length == UNKNOWN_LENGTH:
            return False
        return request.length - request.body_bytes <= _MAX_DISCARDED_BYTES

    def push(self) -> None:
        """Give the codec what is to be sent."""
        if self.closed or not self._sends_body:
            return
        ends = self.ended and not self._trailers
        if self._pieces or ends:
            data = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
            self._pieces = []
            self._codec.send_data(self.stream_id, data, end=ends)
            self._given_bytes += len(data)
            if self._given_bytes - self._sent_bytes > _WRITE_HIGH_BYTES:
                self._owner.watch(self)
        if self.ended:
            self._sends_body = False
            if self._trailers:
                self._codec.send_trailers(self.stream_id, trailer_fields(self._trailers))

    def on_flushed(self, now: float) -> bool:
        """Check what the client has taken. Return False if the stream need not be watched any more."""
        if self.closed:
            return False
        waiting = self._note_progress(now)
        if self.write_paused_at:
            if waiting <= _WRITE_LOW_BYTES:
                self.write_paused_at = 0.0
                self._release_response()
                self.exchange.on_client_writable()
        elif waiting > _WRITE_HIGH_BYTES:
            self.write_paused_at = now
            self._sent_at_pause = self._sent_bytes
            self.exchange.on_client_write_paused()
        if self.ended and not self.request.body_complete and not waiting and not self._sends_body:
            self.reset(NO_ERROR)  # the client needs to send no more (RFC 9113 section 8.1)
            return False
        return bool(waiting or self._sends_body or not self.request.body_complete)

    def hold_response(self, left: int) -> bool:
        """Hold the rest of the response, of which `left` bytes have not arrived, until the client reads again."""
        size = left + self._given_bytes - self._sent_bytes
        if not self._context.buffers.reserve(size):
            return False
        self._held_bytes += size
        return True

    def _release_response(self) -> None:
        if self._held_bytes:
            self._context.buffers.release(self._held_bytes)
            self._held_bytes = 0

    @property
    def held_bytes(self) -> int:
        """Bytes of the response that are counted in the budget of buffered bytes."""
        return self._held_bytes

    def abort_response(self) -> None:
        """Reset the stream before the end of the response."""
        self.reset(INTERNAL_ERROR)

    def reset(self, error_code: int) -> None:
        """Reset the stream. Does nothing if it is closed."""
        if not self.closed:
            self._codec.reset(self.stream_id, error_code)
            self._owner.flush_later()
            self.close()

    def close(self) -> None:
        """Release what the stream holds; nothing can be sent any more. The exchange is not notified."""
        if self.closed:
            return
        self.acknowledge()  # for the connection's window
        self.closed = True
        self._pieces = []
        self._release_response()

    def send_tunnel_data(self, data: bytes) -> None:
        """Never called: `Request.upgrade` is False, so no tunnel is opened."""
        raise AssertionError

    def close_tunnel(self) -> None:
        """Never called, as `send_tunnel_data`."""
        raise AssertionError

    # Timeouts.

    def is_body_too_slow(self, now: float) -> bool:
        """Return True if a body paused too long or its mean rate is too low (as in Apache's mod_reqtimeout)."""
        request, settings = self.request, self._context.settings
        if request.body_complete or self.body_paused:
            return False
        if now - self.last_input_at > settings.client_body_timeout_seconds:
            return True
        allowed = settings.client_body_timeout_seconds + request.body_bytes / settings.body_min_rate_bytes
        return bool(now - request.started_at - self.paused_seconds > allowed)

    def is_reader_too_slow(self, now: float) -> bool:
        """Return True if the client takes nothing of what waits for it, or takes a paused response too slowly."""
        if not self._note_progress(now):
            return False
        settings = self._context.settings
        if now - self._progress_at > settings.client_body_timeout_seconds:
            return True
        if not self.write_paused_at:
            return False
        read = self._sent_bytes - self._sent_at_pause
        return now - self.write_paused_at > settings.client_body_timeout_seconds + read / settings.body_min_rate_bytes

    def _note_progress(self, now: float) -> int:
        """Note what was sent so far. Return the bytes that wait."""
        waiting = self._codec.waiting_bytes(self.stream_id)
        sent = self._given_bytes - waiting
        if sent != self._sent_bytes or not waiting:
            self._sent_bytes, self._progress_at = sent, now
        return waiting
