"""HTTP/1.1 to replicas: one connection, and the parser of its responses.

The connection parses the response, and calls its `ResponseHandler` (the exchange) in the order in which data arrives.
It also reports when it was closed. The handler decides about the consequences.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from time import monotonic
from typing import Final, cast

import httptools

from router.gateway.buffers import join_pieces
from router.gateway.retry_safety import is_unread, unacknowledged_bytes
from router.gateway.turns import Backlog, TurnQueue
from router.http import http1
from router.http.header_rules import (
    CONNECTION_TRAILERS,
    DROP,
    FIRST_NAME,
    FORWARD,
    UNDERSCORE,
    HeaderRules,
    connection_options,
    is_chunked,
    is_reason,
    may_be_trailer,
)
from router.http.http1 import CHUNKED, CONTENT_LENGTH, NO_BODY, UNTIL_CLOSE
from router.http.streams import UNKNOWN_LENGTH, ReplicaStream, ResponseHandler

# A body with a length of at least this is counted, not parsed: llhttp would copy each piece once more.
RAW_BODY_BYTES: Final = 65536
# What one connection parses in a turn of the event loop: slices of a read, until they contain this number of bytes that
# are not data of a body. Each piece of a body costs some calls, and counts as `_PIECE_WORK` bytes.
_SLICE_BYTES: Final = 2048
_SMALL_CHUNKS_SLICE_BYTES: Final = 512
_LARGE_CHUNKS_SLICE_BYTES: Final = 16384
_WORK_PER_TURN: Final = 3072
_PIECE_WORK: Final = 8
_FULL_READ_BYTES: Final = 131072
_WRITE_BUFFER_BYTES: Final = 262144
# The limit of a head, and of framing between two pieces of a body: bounds the memory that a replica can use here.
_MAX_BYTES_WITHOUT_BODY: Final = 262144
# After this time a tunnel that is being closed is aborted, even if the replica has not read the last data.
_TUNNEL_CLOSE_SECONDS: Final = 5.0
# After a replica has closed the connection, up to a megabyte of what it wrote before is read.
_MAX_DRAIN_READS: Final = 16
_READ_BYTES: Final = 65536

_UNKNOWN_FRAMING: Final = -1  # the head is not complete
_NO_PARSER: Final = httptools.HttpResponseParser(None)
_NO_ACTIONS: Final[dict[bytes, bytes]] = {}  # during a chunked body and after a response: no headers are expected
_SECOND_RESPONSE: Final = "bytes after the response"
_HEAD_END: Final = b"\r\n\r\n"
_LENGTH_AS_TRAILER: Final = "Content-Length can't be present with Transfer-Encoding"  # as reported by llhttp


class InvalidResponse(ValueError):
    """Raised in callbacks of the parser: the response violates HTTP in a way that the parser does not detect."""


class ReplicaConnection(ReplicaStream):
    """One connection to a replica."""

    __slots__ = (
        "_actions",
        "_at",
        "_backlog",
        "_bodiless",
        "_captured",
        "_close_error",
        "_complete",
        "_framing",
        "_handler",
        "_head_is_new",
        "_header_lines",
        "_is_ending",
        "_length",
        "_on_idle_closed",
        "_overhead_bytes",
        "_parser",
        "_pieces",
        "_raw_left",
        "_reason",
        "_request_bytes",
        "_request_chunked",
        "_request_complete",
        "_reusable",
        "_rules",
        "_status",
        "_text",
        "_trailers",
        "_tunnel",
        "_unacknowledged",
        "_unparsed_left",
        "_upgrade",
        "_violation",
    )

    def __init__(self, rules: HeaderRules, turns: TurnQueue, on_idle_closed: Callable[[ReplicaStream], None]) -> None:
        """`on_idle_closed` is called when the connection is closed while it is idle."""
        self._rules = rules
        self._on_idle_closed = on_idle_closed
        self._parser = httptools.HttpResponseParser(self)
        self._handler: ResponseHandler | None = None
        self.responses_served = 0
        self.idle_since = 0.0
        self.closed = self._tunnel = self.response_paused = self.write_paused = False
        self._request_chunked = self._request_complete = self._upgrade = False
        self._bodiless = False  # the request is HEAD, so its response has no body
        self._request_bytes = 0  # written for the current request
        self._unacknowledged = 0
        self._trailers: list[bytes] = []
        self._pieces: list[bytes] = []  # of the body, parsed in this read
        self._raw_left = 0  # remaining bytes of a body with a length that are counted, not parsed
        self._unparsed_left = 0  # remaining bytes of a body with a length that is being parsed
        self._backlog = Backlog(turns)
        self._is_ending = False  # the connection is closed, and its end is reported after the backlog
        self._close_error: Exception | None = None
        self._overhead_bytes = 0  # bytes received since the last head or piece of body
        self._status = 0
        self._text = b""  # what was received of a head that is not complete
        self._at = 0  # where in `_text` the head starts
        self._violation: InvalidResponse | None = None
        self._expect_response()

    def _expect_response(self) -> None:
        self._header_lines: list[bytes] = [b""]
        self._captured: dict[bytes, bytes] = {}
        self._reason = b""
        self._framing = _UNKNOWN_FRAMING
        self._length = UNKNOWN_LENGTH
        self._text = b""
        self._at = 0
        self._head_is_new = self._complete = self._reusable = self.response_started = False
        self._actions = self._rules.actions

    # The request.

    def send_request(
        self,
        handler: ResponseHandler,
        method: bytes,
        target: bytes,
        host: bytes,
        lines: list[bytes],
        length: int,
        upgrade: bool,
        pieces: list[bytes],
        trailers: tuple[bytes, ...] | None,
    ) -> None:
        """Send the head of a request and `pieces` of its body, in one write where possible."""
        self._handler = handler
        self._upgrade = upgrade
        self._bodiless = method == b"HEAD"
        self._request_complete = trailers is not None
        self._request_chunked = length == UNKNOWN_LENGTH
        head = http1.request_head(method, target, host, lines, length, upgrade)
        transport = self.transport
        data = head
        if self._request_chunked:
            end = http1.last_chunk(trailers) if trailers is not None else b""
            data = b"".join((head, *http1.chunk(pieces), end))
        elif len(pieces) == 1:
            data = head + pieces[0]
        elif trailers is not None and pieces:
            data = b"".join((head, *pieces))
        self._request_bytes = len(data)
        transport.write(data)
        if trailers is None and len(pieces) > 1 and not self._request_chunked:  # a long body: do not copy it
            self._write_pieces(pieces)

    def send_body(self, pieces: list[bytes], trailers: tuple[bytes, ...] | None) -> None:
        """Send more of the body."""
        transport = self.transport
        if transport.is_closing():
            return  # the handler will be notified of the close
        self._request_complete = trailers is not None
        if self._request_chunked:
            end = http1.last_chunk(trailers) if trailers is not None else b""
            pieces = [b"".join((*http1.chunk(pieces), end))]
        self._write_pieces(pieces)

    def _write_pieces(self, pieces: list[bytes]) -> None:
        for piece in pieces:
            self._request_bytes += len(piece)
            self.transport.write(piece)

    def send_tunnel_data(self, data: bytes) -> None:
        """Pass bytes through the tunnel."""
        if not self.transport.is_closing():
            self.transport.write(data)

    @property
    def is_request_sent(self) -> bool:
        """True if the whole request was handed to the operating system."""
        return self._request_complete and not self.transport.get_write_buffer_size()

    # The connection.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(high=_WRITE_BUFFER_BYTES)

    def pause_writing(self) -> None:
        self.write_paused = True
        if self._handler is not None:
            self._handler.on_replica_write_paused()

    def resume_writing(self) -> None:
        self.write_paused = False
        if self._handler is not None:
            self._handler.on_replica_writable()

    @property
    def response_left(self) -> int:
        """Bytes of the body of the response that have not arrived, or `UNKNOWN_LENGTH`."""
        return self._raw_left + self._unparsed_left if self._framing == CONTENT_LENGTH else UNKNOWN_LENGTH

    def pause_response(self) -> None:
        """Stop reading the response."""
        self.response_paused = True
        self.transport.pause_reading()

    def resume_response(self) -> None:
        """Continue to read the response."""
        self.response_paused = False
        if self._backlog:
            self._yield()
        elif not self._backlog.waiting:
            self.transport.resume_reading()

    def hand_over(self, handler: ResponseHandler) -> None:
        """Let another handler receive the rest of the response, and read it."""
        self._handler = handler
        if self.response_paused:
            self.resume_response()

    def abort(self) -> None:
        """Close the connection at once."""
        self._handler = None
        self.closed = True
        self.transport.abort()

    def close_gracefully(self) -> None:
        """Close the connection once the replica has received what was written."""
        self._handler = None
        self.closed = True
        if self.transport.get_write_buffer_size():
            asyncio.get_running_loop().call_later(_TUNNEL_CLOSE_SECONDS, self.transport.abort)
        self.transport.close()

    def close_idle(self) -> None:
        """Close an idle connection."""
        self.closed = True
        self.transport.close()

    def eof_received(self) -> bool:
        self._unacknowledged = unacknowledged_bytes(self.transport)
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        if exc is not None and self._handler is not None:
            self._drain_socket()
        if isinstance(exc, BrokenPipeError):
            self._unacknowledged = unacknowledged_bytes(self.transport)
        self._is_ending = True
        self._close_error = exc
        self._end_connection()

    def _end_connection(self) -> None:
        """Parse what is left, in turns; then report the end of the connection."""
        self._parse_rest()
        if self._backlog and self._handler is not None:
            self._backlog.wait_for_turn(self._continue)
            return
        self._is_ending = False
        self._parser = _NO_PARSER  # which refers to this connection: see `RequestReader.close`
        exc, handler = self._close_error, self._handler
        if handler is None:
            self._on_idle_closed(self)
            return
        if self._framing == UNTIL_CLOSE and exc is None and not self._complete:
            self._end_response(handler, monotonic())
            return
        self._handler = None
        handler.on_replica_closed(exc, is_unread(exc, self._unacknowledged, self._request_bytes))

    def _drain_socket(self) -> None:
        """Read what the replica wrote before it closed the connection.

        A replica that responds before it has read the whole request, and then closes, makes the next write fail. The
        event loop then stops reading, but the response is still in the socket, which is open until this method returns.
        """
        sock = self.transport.get_extra_info("socket")
        if sock is None:
            return
        for _ in range(_MAX_DRAIN_READS):
            try:
                data = os.read(sock.fileno(), _READ_BYTES)
            except OSError:
                return  # BlockingIOError: there is no more; else the reset
            if not data:
                return
            self.response_started = True
            self._backlog.append(data)

    # The response, in the order in which it arrives.

    def data_received(self, data: bytes) -> None:
        handler = self._handler
        if handler is None:  # there was no request
            self.abort()
            self._on_idle_closed(self)
            return
        self.response_started = True
        try:
            if len(data) >= _FULL_READ_BYTES:
                self._yield(is_bulk=True)
            if self._tunnel:
                handler.on_tunnel_data(data)
            elif self._raw_left:
                self._pass_raw(handler, data)
            else:
                self._parse(handler, data)
        except Exception as error:  # noqa: BLE001 - the slot must not be lost, whatever the error
            handler.on_fault(error)

    def _yield(self, *, is_bulk: bool = False) -> None:
        """Continue in a later turn of the event loop, after other connections were served."""
        if not self._backlog.waiting and not self.closed:
            self.transport.pause_reading()
            self._backlog.wait_for_turn(self._continue, is_bulk=is_bulk)

    def _continue(self) -> None:
        if self._is_ending:
            self._end_connection()
            return
        if self.response_paused:
            return
        self._parse_rest()
        if not self._backlog.waiting and not self.response_paused and not self.transport.is_closing():
            self.transport.resume_reading()

    def _parse_rest(self) -> None:
        handler = self._handler
        if handler is None or not self._backlog:
            return
        try:
            if self._tunnel:
                handler.on_tunnel_data(self._backlog.take_all())
            elif self._raw_left:
                self._pass_raw(handler, self._backlog.take_all())
            else:
                self._parse(handler, b"")
        except Exception as error:  # noqa: BLE001 - the slot must not be lost, whatever the error
            handler.on_fault(error)

    def _parse_slices(self) -> int:
        """Parse as much of the backlog as fits one turn. Return its length. Raises the errors of the parser."""
        pieces, backlog = self._pieces, self._backlog
        length = len(backlog)
        work = 0
        size = _SMALL_CHUNKS_SLICE_BYTES if self._framing == CHUNKED else _SLICE_BYTES
        while backlog and work < _WORK_PER_TURN:
            if self._framing == CONTENT_LENGTH and self._unparsed_left:
                size = self._unparsed_left  # one call of `on_body`
            piece = backlog.take(size)
            if self._framing == _UNKNOWN_FRAMING:
                self._text += piece
            count = len(pieces)
            try:
                self._parser.feed_data(piece)
            except httptools.HttpParserUpgrade as upgrade:
                backlog.put_back(piece[upgrade.args[0] :])
                break
            body_bytes = sum(map(len, pieces[count:]))
            framing = len(piece) - body_bytes
            work += framing + (len(pieces) - count) * _PIECE_WORK
            join_pieces(pieces, count)
            is_small = framing * 16 > body_bytes  # chunks, or headers
            size = _SMALL_CHUNKS_SLICE_BYTES if is_small else _LARGE_CHUNKS_SLICE_BYTES
        if backlog and not self._tunnel:
            self._yield()
        return length - len(backlog)

    def _parse(self, handler: ResponseHandler, data: bytes) -> None:
        """Parse data, and pass on what it contains. If it is long or empty, parse what fits one turn of the backlog."""
        tunnel_data = b""
        violation: BaseException | None = None
        size = len(data)
        try:
            if 0 < size <= _SLICE_BYTES:
                if self._framing == _UNKNOWN_FRAMING:
                    self._text = self._text + data if self._text else data
                self._parser.feed_data(data)
            else:
                if data:
                    self._backlog.append(data)
                size = self._parse_slices()
                if self._tunnel:
                    tunnel_data = self._backlog.take_all()
        except httptools.HttpParserUpgrade as upgrade:
            tunnel_data = data[upgrade.args[0] :]
        except httptools.HttpParserError as error:
            violation = error
            if isinstance(error, httptools.HttpParserCallbackError):
                violation, self._violation = self._violation, None
                if violation is None:
                    raise
            elif self._framing == CHUNKED and str(error) == _LENGTH_AS_TRAILER:
                # The body is complete, and a trailer changes no framing (RFC 9110 section 6.5.1).
                self._complete = True
        if self._handler is not handler:  # the exchange was ended by a callback
            return
        if self._bodiless and self._head_is_new and not self._tunnel:
            self._end_without_body()
        now = monotonic()
        pieces = self._pieces
        if self._head_is_new:
            self._head_is_new = False
            self._text = b""
            handler.on_response_head(
                self._status, self._reason, self._header_lines, self._captured, self._length, pieces, now
            )
            pieces.clear()
            self._overhead_bytes = 0
        elif pieces:
            handler.on_response_body(pieces)
            pieces.clear()
            self._overhead_bytes = 0
        else:
            self._overhead_bytes += size
            if self._framing == _UNKNOWN_FRAMING:
                self._text = self._text[self._at :]
                self._at = 0
        if self._complete:
            if violation is not None:
                self._reusable = False  # something follows the response
            self._end_response(handler, now)
        elif violation is not None:
            handler.on_bad_response(violation)
        elif self._overhead_bytes > _MAX_BYTES_WITHOUT_BODY:
            handler.on_bad_response(InvalidResponse("too many bytes without a body"))
        elif self._tunnel:
            if tunnel_data:
                handler.on_tunnel_data(tunnel_data)
        elif self._framing != _UNKNOWN_FRAMING:
            handler.on_response_progress()
            if self._framing == CONTENT_LENGTH and self._unparsed_left >= RAW_BODY_BYTES:
                self._raw_left, self._unparsed_left = self._unparsed_left, 0

    def _end_without_body(self) -> None:
        """Complete the response to HEAD. The parser does not know the request, and still expects a body."""
        if self._pieces:
            self._pieces.clear()
            self._reusable = False  # something follows the response
        self._complete = True
        self._parser = httptools.HttpResponseParser(self)

    def _pass_raw(self, handler: ResponseHandler, data: bytes) -> None:
        """Pass on a piece of a long body, counted but not parsed."""
        if len(data) > self._raw_left:
            data = data[: self._raw_left]
            self._reusable = False  # something follows the response
        self._raw_left -= len(data)
        handler.on_response_body([data])
        if self._raw_left:
            handler.on_response_progress()
        elif self._handler is handler:
            self._parser = httptools.HttpResponseParser(self)  # the previous one still expects these bytes
            self._end_response(handler, monotonic())

    def on_status(self, reason: bytes) -> None:
        if self._complete:
            raise self._invalid(_SECOND_RESPONSE)
        self._reason += reason

    # `RequestReader.on_header` has the same code. A method shared by both classes would be a fifth slower, as the
    # interpreter specializes attribute lookups within a method for one class at a time (PEP 659).
    def on_header(self, name: bytes, value: bytes) -> None:
        action = self._actions.get(name)
        if not action:
            if action is None:
                self._on_other_field(name, value)
            else:  # FORWARD, which is empty
                self._header_lines.append(name + b": " + value)
        elif action >= FIRST_NAME and action not in self._captured:
            self._captured[action] = value
        else:
            self._apply(action, name, value)

    def _on_other_field(self, name: bytes, value: bytes) -> None:
        """Process a header whose name is not in `HeaderRules.actions`, or a trailer."""
        if self._framing == _UNKNOWN_FRAMING:
            self._apply(self._rules.classify(name), name, value)
        elif self._complete:
            raise self._invalid(_SECOND_RESPONSE)
        elif may_be_trailer(name):
            self._trailers.append(name + b": " + value)
        elif name.lower() in CONNECTION_TRAILERS:  # see `RequestReader._on_trailer`
            self._parser.set_dangerous_leniencies(lenient_keep_alive=True)

    def _apply(self, action: bytes, name: bytes, value: bytes) -> None:
        if action in (FORWARD, UNDERSCORE):
            self._header_lines.append(name + b": " + value)
        elif action != DROP:
            captured = self._captured
            captured[action] = captured[action] + b", " + value if action in captured else value

    def on_headers_complete(self) -> None:
        if self._complete:
            raise self._invalid(_SECOND_RESPONSE)
        handler = self._handler
        if handler is None:  # the exchange was ended by a callback
            return
        if not self._text.startswith(b"HTTP/1.", self._at):
            self._check_protocol()
        self._status = status = self._parser.get_status_code()
        if self._reason != b"OK" and not is_reason(self._reason):
            raise self._invalid("a control character in the reason phrase")
        captured = self._captured
        if status < 200 and status != 101:
            self._check_interim(status, captured)
            handler.on_interim_response(status, self._reason, self._header_lines)
            return
        coding = captured.get(b"transfer-encoding")
        if status == 101:
            if not (self._upgrade and _switches_to_websocket(captured)):
                raise self._invalid("a switch of protocols that was not requested")
            self._framing = NO_BODY
            self._tunnel = True
        elif status == 204 or status == 304:
            self._framing = NO_BODY
            if status == 304:
                self._length = int(captured.get(b"content-length", b"-1"))
        elif self._bodiless:
            self._framing = NO_BODY
            self._length = int(captured.get(b"content-length", b"-1"))
        elif coding is not None:
            self._framing = CHUNKED
            self._actions = _NO_ACTIONS
            if not is_chunked(coding):
                raise self._invalid("a transfer coding other than chunked")
        elif b"content-length" in captured:
            self._framing = CONTENT_LENGTH
            self._length = self._unparsed_left = int(captured[b"content-length"])
        else:
            self._framing = UNTIL_CLOSE
        self._reusable = self._parser.should_keep_alive()
        if not self._reusable and self._bodiless:  # to the parser, a body without length ends with the connection
            is_http11 = self._parser.get_http_version() == "1.1"
            self._reusable = is_http11 and b"close" not in connection_options(captured.get(b"connection", b""))
        if not self._reusable and self._parser.get_http_version() not in ("1.1", "1.0"):
            raise self._invalid("a version of HTTP other than 1.0 and 1.1")
        self._head_is_new = True

    def _check_protocol(self) -> None:
        """Refuse protocols that llhttp accepts as HTTP, such as RTSP. Skips empty lines before the response."""
        if not self._text[self._at :].lstrip(b"\r\n").startswith(b"HTTP/"):
            raise self._invalid("a protocol other than HTTP")

    def _check_interim(self, status: int, captured: dict[bytes, bytes]) -> None:
        if status < 100:
            raise self._invalid("a status below 100")
        # The parser would read a body, but to a client the same bytes would be the next response (RFC 9110 section
        # 15.2).
        if captured.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in captured:
            raise self._invalid("an interim response with a body")

    def _invalid(self, violation: str) -> InvalidResponse:
        """Return the exception to raise in a callback; see `RequestReader._reject`."""
        self._violation = InvalidResponse(violation)
        return self._violation

    def on_body(self, data: bytes) -> None:
        self._unparsed_left -= len(data)
        self._pieces.append(data)

    def on_message_complete(self) -> None:
        if self._framing == _UNKNOWN_FRAMING:  # an interim response, which the final one follows
            self._at = self._text.find(_HEAD_END, self._at) + len(_HEAD_END)
            self._header_lines = [b""]
            self._captured = {}
            self._reason = b""
            return
        if not self._tunnel:
            self._complete = True
            self._actions = _NO_ACTIONS

    def _end_response(self, handler: ResponseHandler, now: float) -> None:
        if self._handler is not handler:  # the exchange was ended by a callback
            return
        self._handler = None
        if self._backlog:
            self._backlog.clear()
            self._reusable = False  # something follows the response
        trailers: tuple[bytes, ...] = ()
        if self._trailers:
            trailers = tuple(self._trailers)
            self._trailers.clear()
        self.responses_served += 1
        reusable = self._reusable and self._request_complete and not self.closed and not self._tunnel
        if reusable:
            self._expect_response()
            if self.response_paused:
                self.resume_response()
        else:
            self.closed = True
            self.transport.close()
        handler.on_response_end(trailers, reusable, now)


def _switches_to_websocket(captured: dict[bytes, bytes]) -> bool:
    options = connection_options(captured.get(b"connection", b""))
    return b"upgrade" in options and captured.get(b"upgrade", b"").strip().lower() == http1.WEBSOCKET
