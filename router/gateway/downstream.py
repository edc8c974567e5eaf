"""The side towards clients: their connections, and what they must not do to the router.

A request becomes an exchange when its head is complete, and begins
when the data at hand is parsed, so that a small request leaves for its replica in one write. Requests that a client
sends before it has its answer (pipelining) wait in `_pending`; the answers go out in their order.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from time import monotonic
from typing import TYPE_CHECKING, Final, cast

import httptools

from router.gateway.exchange import Exchange
from router.gateway.reader import SLICE_BYTES, RequestReader
from router.gateway.request import CHUNKED_BODY, DONE, NEW
from router.gateway.upstream import RAW_BODY_BYTES
from router.http import answers
from router.http.answers import Answer

if TYPE_CHECKING:
    from router.gateway.gateway import Gateway

_WRITE_BUFFER_BYTES: Final = 262144
# A refused request's rest of body up to this size is read and dropped, so that the connection can be kept.
_DRAINED_BYTES: Final = 65536
# A client that still sends when it has its answer is read and ignored for a while: a socket that is closed with unread
# data in it is reset, and a reset can destroy an answer that the client has not read yet (RFC 9112 section 9.6).
# A client that has not read its last answer after so long never will.
_LINGER_SECONDS: Final = 30.0
_LINGER_SILENCE_SECONDS: Final = 5.0
_TCP_ESTABLISHED: Final = 1  # <netinet/tcp.h>
_FORWARDED_HTTP: Final = b"\r\nX-Forwarded-Proto: http\r\nX-Forwarded-Host: "
_FORWARDED_HTTPS: Final = b"\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: "
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)  # SO_LINGER, socket(7)


class ClientConnection(RequestReader):
    """One client's connection."""

    __slots__ = (
        "_broken",
        "_ending_since",
        "_holds_body",
        "_idle_since",
        "_last_body",
        "_lingering",
        "_paused_at",
        "_pumping",
        "_raw_left",
        "_reading",
        "_tunnel",
        "closed",
        "forwarded",
        "stalled_since",
        "transport",
    )

    def __init__(self, gateway: Gateway, *, secure: bool = False) -> None:
        """`secure`: over TLS."""
        super().__init__(gateway)
        self.transport: asyncio.Transport
        # What X-Forwarded-For, -Proto and -Host say, after the address and up to the host.
        self.forwarded = _FORWARDED_HTTPS if secure else _FORWARDED_HTTP
        self.closed = False
        self._idle_since = 0.0
        self._last_body = 0.0  # when a piece of body came last
        self._paused_at = 0.0
        self._raw_left = 0  # of a body that passes without being parsed
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
        address = str(peer[0]).encode() if peer else b"unknown"
        self.forwarded = address + self.forwarded
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

    def eof_received(self) -> bool:
        return False  # nor is a client answered that says nothing more

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
            at_rest = (
                self._current is None
                and self._parsing is None
                and self._rest is None
                and not (self._broken or self.stalled_since)
            )
            if at_rest and len(data) <= SLICE_BYTES:  # most likely a whole small request
                self._head_bytes += len(data)
                self._parse(data)
                current = self._current
                if current is None or self._parsing is not None or self._pending or self._rest is not None:
                    self._parsed(data, None)
                elif not self._broken:
                    current.begin()
            elif self._broken:
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
            if len(data) > SLICE_BYTES and self._parsing is None:
                piece, data = data[:SLICE_BYTES], data[SLICE_BYTES:]
            else:
                piece, data = data, b""
            if self._parsing is None:
                self._head_bytes += len(piece)
            self._parse(piece)
            if self._broken:
                self._complete(before)
                return
            if self._pending or self._rest is not None:
                self._rest = data if self._rest is None else self._rest + data
                break
        self._parsed(piece, before)

    def _parsed(self, piece: bytes, before: Exchange | None) -> None:
        """Begin or continue the exchanges that a piece belongs to; `before`: whose body was arriving before it."""
        if self._broken:
            return
        if self._pending and self._rest is None:
            self._rest = b""
        current = self._current
        parsing = self._parsing
        if parsing is not None:
            self._last_body = monotonic()
            if parsing.length == CHUNKED_BODY and self._is_barren(parsing, piece):
                self.malformed(self._head_too_large().answer)
                self._complete(before)
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

    def _complete(self, before: Exchange | None) -> None:
        """What follows a body is refused; the last piece of the body itself goes to the replica all the same."""
        if before is not None and before is self._current and before.body_complete:
            before.advance()

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

    def exchange_done(self, exchange: Exchange, now: float) -> None:
        """The answer is written."""
        if self._current is exchange:
            self._current = None
        if self.closed:
            return
        if not exchange.keep_alive:
            self._end(exchange)
            return
        self._idle_since = now
        if self._holds_body:
            self.release_body()
        if self._pending or self._rest is not None:
            self._pump()

    def _end(self, exchange: Exchange) -> None:
        """Close the connection, after the client had a chance to read its last answer."""
        self._pending.clear()
        self._rest = None
        # The end of a TLS connection is an exchange of farewells, up to which what still comes is read and dropped.
        if (exchange.body_complete and not self._broken and self._reading) or not self.transport.can_write_eof():
            self.close()
            return
        self._broken = self._lingering = True
        self._ending_since = self._last_body = monotonic()
        if not self.transport.is_closing():
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

    def idle_seconds(self, now: float) -> float:
        """For how long nothing has been under way; less than 0 while something is."""
        return now - self._idle_since if self.idle else -1.0

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
