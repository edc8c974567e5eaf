"""The parser of a client connection: from bytes of HTTP/1.1 to requests.

Contains: the callbacks of llhttp, in the order in which data arrives, and rules that llhttp does not enforce (a second
`Host`, codings other than chunked, request lines, versions, sizes of heads and chunks, fields in trailers). Does not
contain: the further processing of a request (`exchange`) and of the connection (`client_connection`).

llhttp reports neither positions nor sizes of chunks. So the reader keeps the position of what is parsed next: `_at` in
`_text`. A piece of data that is exactly one request, as nearly always, costs one comparison, of its request line.
"""

from __future__ import annotations

from time import monotonic
from typing import Final

import httptools

from router.config.router import RouterSettings
from router.gateway.buffers import join_pieces
from router.gateway.request import Request
from router.http import http1, responses
from router.http.header_rules import (
    CONNECTION_TRAILERS,
    DROP,
    FIRST_NAME,
    FORWARD,
    FORWARD_AND_CAPTURE,
    UNDERSCORE,
    HeaderRules,
    connection_options,
    is_chunked,
    may_be_trailer,
    without_fields,
)
from router.http.responses import LocalResponse
from router.http.streams import UNKNOWN_LENGTH
from router.http.target import is_host
from router.telemetry.tracing import TRACE_FIELDS, is_traceparent

# A read up to this length is parsed at once, a longer one in slices. Both bound the number of requests, headers and
# chunks that are parsed before other connections are served.
SMALL_READ_BYTES: Final = 2048
_HEAD_SLICE_BYTES: Final = 512
_PIPELINED_SLICE_BYTES: Final = 128  # after a slice with several requests
_SMALL_CHUNKS_SLICE_BYTES: Final = 256
_LARGE_CHUNKS_SLICE_BYTES: Final = 16384
_CHUNK_WORK: Final = 16  # a chunk of one byte costs as much as a header of 80
# A body is refused if its framing (sizes and ends of chunks, extensions, trailers) is longer than its data by more than
# this. net/http of Go has the same limit, but allows 16 bytes for each chunk besides: `excess` in
# src/net/http/internal/chunked.go. Node.js allows as much for all extensions of a body (CVE-2024-22019), hyper too.
MAX_EXCESS_FRAMING_BYTES: Final = 16384
# Headers that must not be repeated: different parsers would use different ones.
_SINGLE: Final = frozenset((b"host", b"authorization", b"content-length", b"transfer-encoding"))
_MIN_HEADER_BYTES: Final = 4
_TLS_HANDSHAKE: Final = b"\x16"  # the type of the first record (RFC 8446 section 5.1)
_HTTP2_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\n"  # RFC 9113 section 3.4
_LINE_END: Final = b"\r\n"
_HEAD_END: Final = b"\r\n\r\n"

_NO_PARSER: Final = httptools.HttpRequestParser(None)
_NO_ACTIONS: Final[dict[bytes, bytes]] = {}  # during a chunked body: fields after it are trailers, not headers


class Rejected(Exception):
    """Raised in callbacks of the parser: the request is malformed and gets `RequestReader._rejection`."""


class RequestLimits:
    """The largest request, shared by the readers of all connections of a gateway."""

    __slots__ = ("max_head_bytes", "max_headers", "max_payload_bytes", "max_small_head_bytes")

    def __init__(self, settings: RouterSettings) -> None:
        self.change(settings)

    def change(self, settings: RouterSettings) -> None:
        """Apply other settings to all requests whose heads are not complete yet."""
        self.max_head_bytes: int = settings.max_head_bytes
        self.max_headers: int = settings.max_headers
        self.max_payload_bytes: int = settings.max_payload_bytes
        # A head up to this size is within all limits.
        self.max_small_head_bytes: int = min(settings.max_head_bytes, _MIN_HEADER_BYTES * settings.max_headers)


class RequestReader:
    """Reads the requests of one client connection."""

    __slots__ = (
        "_actions",
        "_at",
        "_captured",
        "_checked_host",
        "_discards_body",
        "_dropped",
        "_excess_bytes",
        "_first_piece",
        "_header_lines",
        "_in_head",
        "_limits",
        "_parser",
        "_rejection",
        "_rules",
        "_slice_bytes",
        "_target",
        "_text",
        "_trailers",
        "_underscore_lines",
        "_unfinished",
        "after_upgrade",
        "body_of",
        "has_read_a_head",
        "head_started_at",
        "more_requests",
        "preface",
        "request",
        "work",
    )

    def __init__(self, limits: RequestLimits, rules: HeaderRules) -> None:
        self._limits = limits
        self._rules = rules
        self._actions = rules.actions
        self._parser = httptools.HttpRequestParser(self)
        self.request: Request | None = None
        """The first request whose head was completed by the last `feed`."""
        self.more_requests: list[Request] = []
        """The other requests whose heads were completed by the last `feed`."""
        self.body_of: Request | None = None
        """The request whose body is being read."""
        self.after_upgrade: bytes | None = None
        """The bytes after a request for an upgrade in the last `feed`. They belong to the tunnel, or to the next
        request if the upgrade is refused."""
        self.preface: bytes
        """All that the client has sent, if the last `feed` returned `HTTP2_IS_OFF`."""
        self.head_started_at = 0.0
        """When the head that is being read started to arrive, if it arrives in several pieces; else 0."""
        self.has_read_a_head = False
        self._header_lines: list[bytes] = [b""]
        self._captured: dict[bytes, bytes] = {}
        self._underscore_lines: list[bytes] = []
        self._dropped = 0  # number of headers of this head that are neither forwarded nor captured
        self._target = b""
        self._checked_host = b""  # the last valid Host
        self._text = b""  # the data that is being parsed, after `_unfinished`
        self._at = 0  # where in `_text`, or in data to come, the next head, chunk size or trailer section starts
        self._unfinished = b""  # a head, chunk size or trailer section that is incomplete
        self._in_head = False
        self._rejection: LocalResponse | None = None
        self._trailers: list[bytes] = []
        self.work = 0
        """The work of parsing the last slice, in bytes of a head that would cost as much."""
        self._slice_bytes = _HEAD_SLICE_BYTES
        self._first_piece = 0  # index of the first piece of the current body that is from this read
        self._excess_bytes = 0  # by which the framing of a chunked body exceeds its data
        self._discards_body = False

    def close(self) -> None:
        """Release the parser, which refers to this reader: a reference cycle costs the garbage collector time."""
        self._parser = _NO_PARSER

    def use_rules(self, rules: HeaderRules) -> None:
        """Apply other rules from the first head on."""
        self._rules = rules
        self._actions = rules.actions

    def feed(self, data: bytes) -> LocalResponse | None:
        """Parse data. Return the response to a malformed request. Nothing more may be parsed after that."""
        self.request = self.after_upgrade = None
        if self.more_requests:
            self.more_requests = []
        self._text = self._unfinished + data if self._unfinished else data
        rest: bytes | None = None
        rejection: LocalResponse | None = None
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            rest = data[upgrade.args[0] :]
        except httptools.HttpParserCallbackError:
            rejection, self._rejection = self._rejection, None
            if rejection is None:
                raise
        except httptools.HttpParserError as error:
            rejection = responses.bad_request(str(error))
            if data.startswith(_TLS_HANDSHAKE) and not self.has_read_a_head and not self._unfinished:
                rejection = responses.TLS_ON_HTTP_PORT
            elif self._text.startswith(_HTTP2_PREFACE) and not self.has_read_a_head:
                rejection = responses.HTTP2_IS_OFF
                self.preface = self._text
        if rest is not None:
            return self._continue_after_upgrade(rest)
        if rejection is None and (self._in_head or self.body_of is not None):
            rejection = self._keep_unfinished()
        else:
            self._unfinished = b""
            self._at = 0
        self._text = b""
        return rejection

    def _keep_unfinished(self) -> LocalResponse | None:
        """Keep the part of a head, chunk size or trailer section. Return the response if a head is too large."""
        self._skip_last_request()
        text, at = self._text, self._at
        if at >= len(text):
            self._unfinished = b""
            self._at = at - len(text)
            return None
        self._unfinished = text[at:]
        self._at = 0
        if self.body_of is None:
            if not self.head_started_at:
                self.head_started_at = monotonic()
            if len(self._unfinished) > self._limits.max_head_bytes:
                return self._head_too_large()
        return None

    def _skip_last_request(self) -> None:
        """Move `_at` from the last head in `_text` to the end of the request. If chunked, it is there already."""
        last = self.more_requests[-1] if self.more_requests else self.request
        if last is not None and last.length != UNKNOWN_LENGTH:
            self._at = self._text.index(_HEAD_END, self._at) + len(_HEAD_END) + last.length

    @property
    def unfinished_bytes(self) -> int:
        """Bytes of memory that an incomplete head takes: its text, and the headers in it."""
        return 2 * len(self._unfinished) if self.body_of is None else 0

    def begin_read(self) -> None:
        """Begin to parse the slices of a read."""
        self._first_piece = len(self.body_of.body) if self.body_of is not None else 0

    @property
    def next_slice_bytes(self) -> int:
        """The length of the next slice for `feed_slice`."""
        request = self.body_of
        if request is not None and request.length != UNKNOWN_LENGTH:
            return request.length - request.body_bytes  # one call of `on_body`
        return self._slice_bytes

    def feed_slice(self, piece: bytes) -> LocalResponse | None:
        """Parse the next slice of a read, as `feed` does, and bound what it leaves behind.

        Each header, chunk and request costs some calls, whatever its length. So `work` counts what is not data of a
        body. Data of a body in one read is joined, and bodies that are mostly framing are refused.
        """
        request = self.body_of
        bytes_before = 0 if request is None else request.body_bytes
        rejection = self.feed(piece)
        data = 0
        if request is not None:
            data = request.body_bytes - bytes_before
            join_pieces(request.body, self._first_piece)
        if self.request is not None:
            self._first_piece = 0
            for started in (self.request, *self.more_requests):
                data += started.body_bytes
                join_pieces(started.body, 0)
        framing = len(piece) - data
        self.work = framing
        self._slice_bytes = _PIPELINED_SLICE_BYTES if self.more_requests else _HEAD_SLICE_BYTES
        if request is not None and request is self.body_of and request.length == UNKNOWN_LENGTH:
            self.work = framing * _CHUNK_WORK
            is_small = self.work > data
            self._slice_bytes = _SMALL_CHUNKS_SLICE_BYTES if is_small else _LARGE_CHUNKS_SLICE_BYTES
            self._excess_bytes = max(self._excess_bytes + framing - data, 0)
            if self._excess_bytes > MAX_EXCESS_FRAMING_BYTES and rejection is None:
                rejection = responses.MOSTLY_FRAMING
        return rejection

    def _continue_after_upgrade(self, rest: bytes) -> LocalResponse | None:
        """Continue after the head of a request for an upgrade, at which llhttp stops.

        If the request has no body, the following bytes belong to a tunnel or to the next request, depending on the
        response. A request with a body is not upgraded, and the body is parsed as usual.
        """
        self._parser = httptools.HttpRequestParser(self)
        self._text = self._unfinished = b""
        request = self.more_requests[-1] if self.more_requests else self.request
        assert request is not None
        self._at = max(request.length, 0)
        if request.length == 0:
            self.after_upgrade = rest
            return None
        request.body_complete = False
        self.body_of = request
        self._actions = _NO_ACTIONS
        self._parser.feed_data(http1.dummy_head(request.length))
        first, more = self.request, self.more_requests
        rejection = self.feed(rest)
        if self.request is not None:
            more = [*more, self.request, *self.more_requests]
        self.request, self.more_requests = first, more
        return rejection

    # Callbacks of the parser.

    def on_message_begin(self) -> None:
        self._in_head = True

    def on_url(self, url: bytes) -> None:
        self._target = self._target + url if self._target else url

    # `ReplicaConnection.on_header` has the same code. A method shared by both classes would be a fifth slower, as the
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
        if self.body_of is not None:
            self._on_trailer(name, value)
        else:
            self._apply(self._rules.classify(name), name, value)

    def _apply(self, action: bytes, name: bytes, value: bytes) -> None:
        if action == FORWARD:
            self._header_lines.append(name + b": " + value)
        elif action == UNDERSCORE:
            self._underscore_lines.append(name + b": " + value)
        elif action == DROP:
            self._dropped += 1
        else:
            if action.startswith(FORWARD_AND_CAPTURE):
                self._header_lines.append(name + b": " + value)
                action = action[len(FORWARD_AND_CAPTURE) :]
            if action in self._captured:
                if action in _SINGLE:
                    raise self._reject(responses.bad_request(f"more than one {action.decode()} header"))
                value = self._captured[action] + b", " + value
            self._captured[action] = value

    def _on_trailer(self, name: bytes, value: bytes) -> None:
        if name.lower() in CONNECTION_TRAILERS:
            # The parser would refuse the next request. With this it also parses requests after one whose head closes
            # the connection; they are not begun.
            self._parser.set_dangerous_leniencies(lenient_keep_alive=True)
        elif may_be_trailer(name):
            self._trailers.append(name + b": " + value)
            if len(self._trailers) > self._limits.max_headers:
                raise self._reject(self._head_too_large())

    def on_headers_complete(self) -> None:
        self._in_head = False
        if self.body_of is not None:  # this is the head from `http1.dummy_head`
            self._target = b""
            return
        parser = self._parser
        method = parser.get_method()
        lines, self._header_lines = self._header_lines, [b""]
        captured, self._captured = self._captured, {}
        target, self._target = self._target, b""
        self.has_read_a_head = True
        if self.head_started_at:
            self.head_started_at = 0.0
        if self.request is not None:
            self._skip_last_request()
        if not self._text.startswith(b" HTTP/1.", self._at + len(method) + 1 + len(target)):
            self._check_request_line(method, target)
        if len(self._text) > self._limits.max_small_head_bytes and self._is_large(lines, captured):
            raise self._reject(self._head_too_large())
        if (host := captured.get(b"host", b"")) != self._checked_host:
            if not is_host(host.rstrip(b" \t")):
                raise self._reject(responses.bad_request("an invalid Host header"))
            self._checked_host = host
        length = 0
        if b"content-length" in captured:
            length = int(captured[b"content-length"])
        elif b"transfer-encoding" in captured:
            if not is_chunked(captured[b"transfer-encoding"]):
                raise self._reject(responses.bad_request("a transfer coding other than chunked"))
            length = UNKNOWN_LENGTH
            self._actions = _NO_ACTIONS
            self._excess_bytes = 0
            self._at = self._text.index(_HEAD_END, self._at) + len(_HEAD_END)
        if b"traceparent" in captured and not is_traceparent(captured[b"traceparent"]):
            # Malformed or repeated: a new trace starts (W3C Trace Context, section 4.3).
            del captured[b"traceparent"]
            lines = without_fields(lines, TRACE_FIELDS)
        request = Request(method, target, lines, captured, length)
        if self._dropped:
            self._dropped = 0
        if self._underscore_lines:
            request.underscore_lines, self._underscore_lines = self._underscore_lines, []
        if not parser.should_keep_alive():
            request.keep_alive = False
        if not request.keep_alive or b"connection" in captured or b"host" not in captured:
            self._check_version(request, captured)
        if b"expect" in captured:
            request.expects_continue = request.http11 and captured[b"expect"].lower() == b"100-continue"
        self.body_of = request
        if self.request is None:
            self.request = request
        else:
            self.more_requests.append(request)

    def _check_request_line(self, method: bytes, target: bytes) -> None:
        """Reject what llhttp accepts: more than one space between the parts, and other protocols than HTTP.

        Skips empty lines before a request (RFC 9112 section 2.2).
        """
        while self._text[self._at : self._at + 1] in (b"\r", b"\n"):
            self._at += 1
        if not self._text.startswith(b"%b %b HTTP/" % (method, target), self._at):
            raise self._reject(responses.bad_request("an invalid request line"))

    def _is_large(self, lines: list[bytes], captured: dict[bytes, bytes]) -> bool:
        """Return True if a head exceeds a limit."""
        limits = self._limits
        if len(lines) - 1 + len(captured) + len(self._underscore_lines) + self._dropped > limits.max_headers:
            return True
        return self._text.index(_HEAD_END, self._at) + len(_HEAD_END) - self._at > limits.max_head_bytes

    def _check_version(self, request: Request, captured: dict[bytes, bytes]) -> None:
        """Apply the rules that depend on the version of HTTP. Most requests do not need this."""
        version = self._parser.get_http_version()
        if version == "1.0":
            request.http11 = False
            if request.length == UNKNOWN_LENGTH:
                raise self._reject(responses.bad_request("Transfer-Encoding in HTTP/1.0"))
        elif version != "1.1":
            raise self._reject(responses.bad_request(f"HTTP/{version}; allowed: 1.0 and 1.1"))
        elif b"host" not in captured:
            raise self._reject(responses.bad_request("no Host header"))
        if (
            request.http11
            and b"upgrade" in captured
            and b"upgrade" in connection_options(captured.get(b"connection", b""))
        ):
            request.upgrade = captured[b"upgrade"].strip().lower() == http1.WEBSOCKET and request.length == 0

    def on_body(self, data: bytes) -> None:
        request = self.body_of
        if request is None:
            return
        request.body_bytes += len(data)
        if not self._discards_body:
            request.body.append(data)

    def on_chunk_header(self) -> None:
        """Refuse a chunk over the limit before its data arrives."""
        request = self.body_of
        if request is None:
            return
        line_end = self._text.index(_LINE_END, self._at)
        size = int(self._text[self._at : line_end].partition(b";")[0], 16)
        if size > self._limits.max_payload_bytes - request.body_bytes:
            raise self._reject(responses.payload_too_large(self._limits.max_payload_bytes))
        # The trailer section includes the line end of the last chunk: so it ends in an empty line even without fields.
        self._at = line_end + len(_LINE_END) + size + len(_LINE_END) if size else line_end

    def on_message_complete(self) -> None:
        request = self.body_of
        if request is not None:
            request.body_complete = True
            if self._trailers:
                request.trailers = tuple(self._trailers)
                self._trailers.clear()
            self.body_of = None
            self._discards_body = False
            if not self._actions:
                self._actions = self._rules.actions
                if request.length == UNKNOWN_LENGTH:  # not found after the head of an upgrade, see there
                    self._at = self._text.find(_HEAD_END, self._at) + len(_HEAD_END)

    def _reject(self, response: LocalResponse) -> Rejected:
        """Return the exception to raise in a callback so that `feed` returns this response.

        `feed` does not find the response by the context of the parser's error: within an exception handler of a caller
        that is another exception.
        """
        self._rejection = response
        return Rejected()

    # The rest of a body, and of a head.

    def discard_body(self) -> None:
        """Discard the rest of the body that is being read."""
        self._discards_body = True

    def abandon_body(self) -> Request | None:
        """Stop reading the current body. Return its request, or None if no body is being read."""
        request, self.body_of = self.body_of, None
        return request

    def restart_head_timer(self, now: float) -> None:
        """Restart the timeout of the head that is being read, if any."""
        if self.head_started_at:
            self.head_started_at = now

    def on_raw_body(self, data: bytes) -> None:
        """Add a piece of a long body with a length, which is counted, not parsed."""
        request = self.body_of
        assert request is not None
        request.body_bytes += len(data)
        if not self._discards_body:
            request.body.append(data)
        if request.body_bytes == request.length:
            self._parser = httptools.HttpRequestParser(self)  # the previous one still expects these bytes
            self._at = 0
            request.body_complete = True
            self.body_of = None
            self._discards_body = False

    def _head_too_large(self) -> LocalResponse:
        return responses.head_too_large(self._limits.max_head_bytes, self._limits.max_headers)
