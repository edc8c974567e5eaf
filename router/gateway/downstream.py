"""The side towards clients: connections, the parser of their requests, and what they must not do to the router.

Callbacks stand in the order in which data arrives. A request becomes an exchange when its head is complete, and begins
when the data at hand is parsed, so that a small request leaves for its replica in one write. Requests that a client
sends before it has its answer (pipelining) wait in `_pending`; the answers go out in their order.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import deque
from time import monotonic
from typing import TYPE_CHECKING, cast

import httptools

from router.gateway.exchange import CHUNKED_BODY, DONE, NEW, Exchange
from router.gateway.upstream import RAW_BODY_BYTES
from router.http import answers
from router.http.answers import Answer
from router.http.headers import DROP, PASS, UNDERSCORE, connection_options, is_chunked, may_be_trailer

if TYPE_CHECKING:
    from router.gateway.gateway import Gateway

_WRITE_BUFFER_BYTES = 262144
# Of what a client sends ahead, this much is parsed at a time: bounds the requests that one read can bring.
_SLICE_BYTES = 16384
# A refused request's rest of body up to this size is read and dropped, so that the connection can be kept.
_DRAINED_BYTES = 65536
# A client that still sends when it has its answer is read and ignored for a while: a socket that is closed with unread
# data in it is reset, and a reset can destroy an answer that the client has not read yet (RFC 9112 section 9.6).
# A client that has not read its last answer after so long never will.
_LINGER_SECONDS = 30.0
_LINGER_SILENCE_SECONDS = 5.0
_TCP_ESTABLISHED = 1  # <netinet/tcp.h>
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER, socket(7)

# Headers of which there can be only one: with two, who reads which would be a matter of taste.
_SINGLE = frozenset((b"host", b"authorization", b"content-length", b"transfer-encoding"))


class Refusal(Exception):
    """Raised in a parser's callback: the request is refused with this answer."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.slug)
        self.answer = answer


class ClientConnection(asyncio.Protocol):
    """One client's connection."""

    __slots__ = (
        "_barren_bytes",
        "_broken",
        "_current",
        "_ending_since",
        "_fruitful_bytes",
        "_head_bytes",
        "_head_since",
        "_holds_body",
        "_idle_since",
        "_kept",
        "_known_kinds",
        "_last_body",
        "_lingering",
        "_parser",
        "_parsing",
        "_parts",
        "_paused_at",
        "_paused_seconds",
        "_pending",
        "_pumping",
        "_raw_left",
        "_reading",
        "_rest",
        "_served",
        "_target",
        "_tunnel",
        "_underscored",
        "address",
        "closed",
        "forwarded_host",
        "gateway",
        "stalled_since",
        "transport",
    )

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self._known_kinds = gateway.request_kinds.known
        self.transport: asyncio.Transport
        self.address = b""
        self.forwarded_host = b"\r\nX-Forwarded-Proto: http\r\nX-Forwarded-Host: "
        self.closed = False
        self._parser = httptools.HttpRequestParser(self)
        self._current: Exchange | None = None  # the one that is being answered
        self._parsing: Exchange | None = None  # the one whose body is arriving
        self._pending: deque[Exchange] = deque()
        self._parts: list[bytes] = [b""]
        self._kept: dict[bytes, bytes] = {}
        self._underscored: list[bytes] = []
        self._target = b""
        self._served = False  # whether a head has ever come whole
        self._head_since = 0.0  # 0: no head is on its way
        self._head_bytes = 0
        self._idle_since = 0.0
        self._last_body = 0.0  # when a piece of body came last
        self._paused_at = 0.0
        self._paused_seconds = 0.0  # for which this body was not read, through no fault of the client's
        self._raw_left = 0  # of a body that passes without being parsed
        self._rest: bytes | None = None  # received and not parsed yet; None: what comes is parsed at once
        self._fruitful_bytes = 0  # of a body in chunks, when last looked at
        self._barren_bytes = 0  # that came since it grew
        self._reading = True
        self._holds_body = False
        self._pumping = False
        self._tunnel = False
        self._broken = False  # what comes is no longer looked at
        self._ending_since = 0.0  # 0: it is to go on
        self._lingering = False  # on its way out, and reading what the client still sends
        self.stalled_since = 0.0  # 0: it takes what is written

    # Life of the connection.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._idle_since = monotonic()
        peer = transport.get_extra_info("peername")
        self.address = str(peer[0]).encode() if peer else b"unknown"
        if not self.gateway.admit(self):
            self.closed = True
            self.transport.abort()
            return
        self.transport.set_write_buffer_limits(high=_WRITE_BUFFER_BYTES)

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        self.gateway.forget(self)
        current, self._current = self._current, None
        self._pending.clear()
        self._rest = None
        if current is not None:
            current.client_gone()

    def pause_writing(self) -> None:
        self.stalled_since = monotonic()
        if self._current is not None:
            self._current.client_stalled()

    def resume_writing(self) -> None:
        self.stalled_since = 0.0
        if self._current is not None and self._current.state != NEW:
            self._current.client_flows()
        else:
            self._pump()

    def write(self, data: bytes) -> None:
        """Write, unless the connection is on its way out."""
        if not self.closed and not self.transport.is_closing():
            self.transport.write(data)

    def close(self) -> None:
        """Close the connection once the client has taken what was written."""
        self._ending_since = monotonic()
        self.transport.close()

    # Data, in the order in which it arrives.

    def data_received(self, data: bytes) -> None:
        try:
            if self._broken:
                self._last_body = monotonic()
            elif self._tunnel:
                if self._current is not None:
                    self._current.from_tunnel(data)
            elif self._rest is not None:
                self._rest += data
                self._update_reading()
            elif self._raw_left:
                self._pass_raw(data)
            else:
                self._feed(data)
        except Exception as error:  # noqa: BLE001 - whatever it is, the slot must not be lost with it
            if self._current is None:
                self.gateway.log_fault(error)
                self.transport.abort()
            else:
                self._current.keep_alive = False
                self._current.fault(error)

    def _feed(self, data: bytes) -> None:
        """Parse data, and begin or continue the exchanges that it belongs to."""
        before = self._parsing
        while data:
            if len(data) > _SLICE_BYTES and self._parsing is None:
                piece, data = data[:_SLICE_BYTES], data[_SLICE_BYTES:]
            else:
                piece, data = data, b""
            if self._parsing is None:
                self._head_bytes += len(piece)
            self._parse(piece)
            if self._broken:
                return
            if self._pending or self._rest is not None:
                self._rest = data if self._rest is None else self._rest + data
                break
        current = self._current
        parsing = self._parsing
        if parsing is not None:
            self._last_body = monotonic()
            if parsing.length == CHUNKED_BODY and self._is_barren(parsing, piece):
                self.malformed(self._head_too_large().answer)
                return
            if parsing.length - parsing.body_bytes >= RAW_BODY_BYTES:
                self._raw_left = parsing.length - parsing.body_bytes
        if current is None:
            if self._pending or self._rest is not None:
                self._pump()
            elif parsing is None:
                self._watch_head(piece)
        elif current.state == NEW:
            if self._pending or self._rest is not None or self._pumping or self.stalled_since:
                self._pump()
            else:
                current.begin()
        elif before is current:
            current.advance()
        elif parsing is None and not self._pending:
            self._watch_head(piece)
        if self._pending or self._rest:
            self._update_reading()

    def _parse(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
            return
        except httptools.HttpParserUpgrade as upgrade:
            rest = data[upgrade.args[0] :]
            answer = None
        except httptools.HttpParserCallbackError as error:
            if not isinstance(error.__context__, Refusal):
                raise
            answer = error.__context__.answer
        except httptools.HttpParserError as error:
            answer = answers.bad_request(str(error))
        if answer is None:
            self._after_upgrade(rest)
        else:
            self.malformed(answer)

    def _after_upgrade(self, rest: bytes) -> None:
        """llhttp stops after the head of a request that asks for an upgrade.

        Without a body, what follows is a tunnel's or the next request, and only the answer can tell. With one, the
        upgrade is out of the question and the body is parsed as any other.
        """
        self._parser = httptools.HttpRequestParser(self)
        exchange = self._pending[-1] if self._pending else self._current
        assert exchange is not None
        if exchange.length == 0:
            self._rest = rest
            return
        exchange.body_complete = False
        self._parsing = exchange
        framing = b"Transfer-Encoding: chunked" if exchange.length < 0 else b"Content-Length: %d" % exchange.length
        self._parser.feed_data(b"POST / HTTP/1.1\r\n%b\r\n\r\n" % framing)
        if rest:
            self._parse(rest)

    def _pass_raw(self, data: bytes) -> None:
        """A piece of a long body with a known length: counted, not parsed."""
        exchange = self._parsing
        assert exchange is not None
        rest = b""
        if len(data) > self._raw_left:
            data, rest = data[: self._raw_left], data[self._raw_left :]
        self._raw_left -= len(data)
        exchange.body_bytes += len(data)
        if exchange.state != DONE:
            exchange.body.append(data)
        self._last_body = monotonic()
        if not self._raw_left:
            self._parser = httptools.HttpRequestParser(self)  # the old one still waits for these bytes
            exchange.body_complete = True
            self._parsing = None
        if exchange.state != DONE:
            exchange.advance()
        if rest and not self._broken:
            self._feed(rest)

    def on_url(self, url: bytes) -> None:
        self._target = self._target + url if self._target else url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._parsing is not None:
            if may_be_trailer(name):
                self._parsing.trailers += (name, b": ", value, b"\r\n")
                if len(self._parsing.trailers) > 4 * self.gateway.settings.max_headers:
                    raise self._head_too_large()
            return
        kind = self._known_kinds.get(name)
        if kind is None:
            kind = self.gateway.request_kinds.classify(name)
        if kind == PASS:
            self._parts.append(name + b": " + value)
        elif kind == UNDERSCORE:
            self._underscored.append(name + b": " + value)
        elif kind != DROP:
            if kind[0] == 43:  # READ
                self._parts.append(name + b": " + value)
                kind = kind[1:]
            if kind in self._kept:
                if kind in _SINGLE:
                    raise Refusal(answers.bad_request(f"more than one {kind.decode()} header"))
                value = self._kept[kind] + b", " + value
            self._kept[kind] = value

    def on_headers_complete(self) -> None:
        if self._parsing is not None:  # made up in `_after_upgrade`
            self._target = b""
            return
        parts, self._parts = self._parts, [b""]
        kept, self._kept = self._kept, {}
        target, self._target = self._target, b""
        settings = self.gateway.settings
        self._served = True
        self._head_since = 0.0
        received, self._head_bytes = self._head_bytes, 0  # with what came of the body in the same piece
        self._paused_seconds = 0.0
        if len(parts) - 1 + len(kept) + len(self._underscored) > settings.max_headers or (
            received > settings.max_head_bytes and self._is_large(received, (target, *parts, *kept.values()))
        ):
            raise self._head_too_large()
        parser = self._parser
        length = 0
        if b"content-length" in kept:
            length = int(kept[b"content-length"])
        elif b"transfer-encoding" in kept:
            if not is_chunked(kept[b"transfer-encoding"]):
                raise Refusal(answers.bad_request("a transfer coding other than chunked"))
            length = CHUNKED_BODY
            self._fruitful_bytes = self._barren_bytes = 0
        exchange = Exchange(self, parser.get_method(), target, parts, kept, length)
        if self._underscored:
            exchange.underscored, self._underscored = self._underscored, []
        if not parser.should_keep_alive():
            exchange.keep_alive = False
        if not exchange.keep_alive or b"connection" in kept or b"host" not in kept:
            self._check_version(exchange, kept)
        if b"expect" in kept:
            exchange.expects_continue = exchange.http11 and kept[b"expect"].lower() == b"100-continue"
        self._parsing = exchange
        if self._current is None:
            self._current = exchange
        else:
            self._pending.append(exchange)

    def _is_large(self, received: int, kept: tuple[bytes, ...]) -> bool:
        """Whether a head is over the limit, of which the piece that ended it may have held more than the head."""
        limit = self.gateway.settings.max_head_bytes
        if received > limit + _SLICE_BYTES:  # some of it dropped
            return True
        return sum(map(len, (*kept, *self._underscored))) > limit

    def _check_version(self, exchange: Exchange, kept: dict[bytes, bytes]) -> None:
        """What depends on the version of HTTP, which costs a look that most requests need not pay."""
        version = self._parser.get_http_version()
        if version == "1.0":
            exchange.http11 = False
            if exchange.length == CHUNKED_BODY:
                raise Refusal(answers.bad_request("Transfer-Encoding in HTTP/1.0"))
        elif version != "1.1":
            raise Refusal(answers.bad_request(f"HTTP/{version}; allowed: 1.0 and 1.1"))
        elif b"host" not in kept:
            raise Refusal(answers.bad_request("no Host header"))
        if exchange.http11 and b"upgrade" in kept and b"upgrade" in connection_options(kept.get(b"connection", b"")):
            exchange.upgrade = kept[b"upgrade"].strip().lower() == b"websocket" and exchange.length == 0

    def on_body(self, data: bytes) -> None:
        exchange = self._parsing
        if exchange is None:
            return
        exchange.body_bytes += len(data)
        if exchange.length == CHUNKED_BODY and exchange.body_bytes > self.gateway.settings.max_payload_bytes:
            raise Refusal(answers.payload_too_large(self.gateway.settings.max_payload_bytes))
        if exchange.state != DONE:
            exchange.body.append(data)

    def on_message_complete(self) -> None:
        if self._parsing is not None:
            self._parsing.body_complete = True
            self._parsing = None

    # What parsing leads to.

    def _pump(self) -> None:
        """Begin exchanges, one after another, for as long as each is answered at once."""
        if self._pumping:
            return
        self._pumping = True
        try:
            while not (self.closed or self._ending_since or self.stalled_since):
                if self._current is None and self._pending:
                    self._current = self._pending.popleft()
                if self._current is None or (self._current is self._parsing and self._current.state != NEW):
                    if self._rest is None:
                        break
                    self._take_rest()
                elif self._current.state == NEW:
                    self._current.begin()
                else:
                    break
        finally:
            self._pumping = False
        self._update_reading()

    def _take_rest(self) -> None:
        """Go on with what had to wait for the exchanges before it."""
        data, self._rest = self._rest, None
        if data and self._raw_left:
            self._pass_raw(data)
        elif data:
            self._feed(data)

    def _watch_head(self, piece: bytes) -> None:
        """A head is on its way and not complete."""
        if not self._head_since:
            if not piece.strip(b"\r\n"):
                return  # empty lines before a request mean nothing (RFC 9112 section 2.2)
            self._head_since = monotonic()
        if self._head_bytes > self.gateway.settings.max_head_bytes:
            self.malformed(self._head_too_large().answer)

    def _is_barren(self, exchange: Exchange, piece: bytes) -> bool:
        """Whether a body in chunks has gone on for longer than a head may be without a byte of body."""
        if exchange.body_bytes != self._fruitful_bytes:
            self._fruitful_bytes = exchange.body_bytes
            self._barren_bytes = 0
            return False
        self._barren_bytes += len(piece)
        return self._barren_bytes > self.gateway.settings.max_head_bytes

    def _head_too_large(self) -> Refusal:
        settings = self.gateway.settings
        return Refusal(answers.head_too_large(settings.max_head_bytes, settings.max_headers))

    def malformed(self, answer: Answer) -> None:
        """The client breaks the rules, or is too slow. What came whole before is answered still, this is refused."""
        parsing, self._parsing = self._parsing, None
        if parsing is None:
            last = self._pending[-1] if self._pending else self._current
            if last is not None and not last.keep_alive:
                return  # data after the last request of a connection
        self._broken = True
        self._rest = None
        if answer.status == 400:
            self.gateway.counters.parse_errors += 1
        if parsing is None:
            parsing = Exchange(self, b"", b"", [b""], {}, CHUNKED_BODY)
            if self._current is None:
                self._current = parsing
            else:
                self._pending.append(parsing)
        elif parsing.state == DONE:  # refused before; only the rest of its body was to be drained
            self._end(parsing)
            return
        parsing.keep_alive = False
        if parsing.state == NEW:
            parsing.refusal = answer
            self._pump()
        else:
            parsing.fail(answer)

    # What exchanges ask for.

    def may_drain(self, exchange: Exchange) -> bool:
        """Whether the rest of a refused request's body is so short that the connection can be kept."""
        if self._broken or exchange.expects_continue or exchange.length == CHUNKED_BODY:
            return False
        return exchange.length - exchange.body_bytes <= _DRAINED_BYTES

    def hold_body(self) -> None:
        """Read no more of the body for now."""
        self._holds_body = True
        self._update_reading()

    def release_body(self) -> None:
        """Read on."""
        self._holds_body = False
        self._update_reading()

    def tunnel_opened(self) -> None:
        """From here on bytes are not HTTP any more."""
        self._tunnel = True
        rest, self._rest = self._rest, None
        if rest and self._current is not None:
            self._current.from_tunnel(rest)
        self._update_reading()

    def cut_off(self, *, hard: bool) -> None:
        """An answer that has begun cannot be completed: let the client see that. `hard`: only a reset tells it."""
        if not hard:
            self.close()
            return
        sock = self.transport.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self.transport.abort()

    def exchange_done(self, exchange: Exchange) -> None:
        """The answer is written."""
        if self._current is exchange:
            self._current = None
        if self.closed:
            return
        if not exchange.keep_alive:
            self._end(exchange)
            return
        self._idle_since = monotonic()
        if self._holds_body:
            self.release_body()
        if self._pending or self._rest is not None:
            self._pump()

    def _end(self, exchange: Exchange) -> None:
        """Close the connection, after the client had a chance to read its last answer."""
        self._pending.clear()
        self._rest = None
        if exchange.body_complete and not self._broken and self._reading:
            self.close()
            return
        self._broken = self._lingering = True
        self._ending_since = self._last_body = monotonic()
        if not self.transport.is_closing():
            if self.transport.can_write_eof():
                self.transport.write_eof()
            self._update_reading()

    def _update_reading(self) -> None:
        reading = self._lingering or not (
            self._holds_body
            or self._pending
            or self._rest
            or self._broken
            or (self.stalled_since and (self._current is None or self._current.state == NEW))
        )
        if reading == self._reading or self.closed or self.transport.is_closing():
            return
        self._reading = reading
        now = monotonic()
        if reading:
            self._paused_seconds += now - self._paused_at
            self._last_body = now
            if self._head_since:
                self._head_since = now
            self.transport.resume_reading()
        else:
            self._paused_at = now
            self.transport.pause_reading()

    # What only time tells.

    @property
    def idle(self) -> bool:
        """Whether nothing is under way."""
        return self._current is None and self._parsing is None and not self._head_since and not self._pending

    def check(self, now: float) -> None:
        """Enforce the bounds on what a client may take its time for; called a few times a second."""
        settings = self.gateway.settings
        if self._ending_since:
            silent = self._lingering and now - self._last_body > _LINGER_SILENCE_SECONDS
            if silent or now - self._ending_since > _LINGER_SECONDS:
                self.transport.abort()
        elif self.stalled_since and now - self.stalled_since > settings.client_body_timeout_seconds:
            self.transport.abort()  # it does not read its answer
        elif self._tunnel:
            if not self._reading and now - self._paused_at > settings.client_body_timeout_seconds and self._has_left():
                self.transport.abort()  # and the replica does not read what it said last
        elif self._parsing is not None and self._reading:
            if self._too_slow(self._parsing, now):
                self.malformed(answers.BODY_TIMEOUT)
        elif self._head_since and self._reading:
            if now - self._head_since > settings.client_head_timeout_seconds:
                self.malformed(answers.HEAD_TIMEOUT)
        elif self._current is None:
            longest = settings.client_idle_timeout_seconds if self._served else settings.client_head_timeout_seconds
            if now - self._idle_since > longest:
                self.close()
        elif not self._reading and self._has_left():
            self.transport.abort()

    def _too_slow(self, exchange: Exchange, now: float) -> bool:
        """A body may pause for so long, and on the whole must come at a rate (as Apache's mod_reqtimeout has it)."""
        settings = self.gateway.settings
        if now - self._last_body > settings.client_body_timeout_seconds:
            return True
        allowed = settings.client_body_timeout_seconds + exchange.body_bytes / settings.body_min_rate_bytes
        return now - exchange.began - self._paused_seconds > allowed

    def _has_left(self) -> bool:
        """While nothing is read the event loop sees no end of stream, but the socket knows."""
        sock = self.transport.get_extra_info("socket")
        if sock is None or sock.family == socket.AF_UNIX:
            return False
        return bool(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] != _TCP_ESTABLISHED)
