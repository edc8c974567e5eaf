"""The side towards replicas: one connection, and the parser of its answers.

Callbacks stand in the order in which data arrives. What an answer means for the request is the exchange's business:
this file turns bytes into heads, pieces of body and ends, and notices when a connection breaks.
"""

from __future__ import annotations

import asyncio
import os
from time import monotonic
from typing import TYPE_CHECKING, Final, cast

import httptools

from router.gateway.heads import CHUNKED, LENGTH, NO_BODY, UNTIL_CLOSE
from router.gateway.proof import unacknowledged
from router.http.headers import (
    DROP,
    FIRST_NAME,
    PASS,
    UNDERSCORE,
    connection_options,
    is_chunked,
    is_reason,
    may_be_trailer,
)

if TYPE_CHECKING:
    from router.gateway.exchange import Exchange
    from router.gateway.pool import ReplicaPool

# A body with a length of at least this is counted instead of parsed: llhttp would copy each piece once more.
RAW_BODY_BYTES: Final = 65536
_WRITE_BUFFER_BYTES: Final = 262144
# A head, or what stands between two pieces of a body, is no longer than this: bounds what a replica can heap up here.
_MOST_BYTES_WITHOUT_BODY: Final = 262144
# What was said last through a tunnel is given this long to be read by the replica.
_LAST_WORDS_SECONDS: Final = 5.0
# What a replica said last is read up to a megabyte; who waits for the client to take it is not asked any more.
_LAST_WORDS_READS: Final = 16
_READ_BYTES: Final = 65536

# While a body comes in chunks: what follows it is no header but a trailer, whatever its name.
_NONE_KNOWN: Final[dict[bytes, bytes]] = {}


class InvalidAnswer(ValueError):
    """Raised in the parser's callbacks: the replica breaks the rules of HTTP in a way that the parser does not see."""


class ReplicaConnection:
    """One connection to a replica. Serves one exchange at a time, and rests in its pool in between."""

    __slots__ = (
        "_barren_bytes",
        "_complete",
        "_framing",
        "_kept",
        "_kinds",
        "_known_kinds",
        "_left",
        "_parser",
        "_parts",
        "_raw_left",
        "_reason",
        "_reusable",
        "_trailers",
        "_unacknowledged",
        "answer_begun",
        "closed",
        "exchange",
        "out",
        "pool",
        "served",
        "transport",
        "tunnelled",
    )

    def __init__(self, pool: ReplicaPool) -> None:
        self.pool = pool
        self._kinds = pool.kinds
        self._parser = httptools.HttpResponseParser(self)
        self.transport: asyncio.Transport
        self.exchange: Exchange | None = None
        self.closed = False
        self.served = 0  # answers that came over this connection
        self.tunnelled = False
        self._unacknowledged = 0
        self._trailers: list[bytes] = []
        self._raw_left = 0  # of a body with a length, once the rest passes without being parsed
        self.out: list[bytes] = []  # for the client, written in one go when the data at hand is parsed
        self._await_answer()

    def _await_answer(self) -> None:
        """Be ready for the next answer."""
        self._parts: list[bytes] = []
        self._kept: dict[bytes, bytes] = {}
        self._reason = b""
        self._framing = -1  # not known before the head is complete
        self._left = 0  # of a body with a length, as far as the parser has come
        self._barren_bytes = 0  # that came since the last piece of body
        self._complete = self._reusable = self.answer_begun = False
        self._known_kinds = self._kinds.known

    # Life of the connection.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(high=_WRITE_BUFFER_BYTES)

    def pause_writing(self) -> None:
        if self.exchange is not None:
            self.exchange.replica_stalled()

    def resume_writing(self) -> None:
        if self.exchange is not None:
            self.exchange.replica_flows()

    def eof_received(self) -> bool:
        self._unacknowledged = unacknowledged(self.transport)
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        if exc is not None and self.exchange is not None:
            self._hear_out()
        exchange = self.exchange
        if exchange is None:
            self.pool.forget(self)
            return
        if self._framing == UNTIL_CLOSE and exc is None and not self._complete:
            self._end_answer(monotonic())
            return
        self.exchange = None
        exchange.replica_lost(self, exc, self._unacknowledged)

    def _hear_out(self) -> None:
        """Take in what the replica said before it closed.

        A replica that answers before it has read the whole request and then closes makes the next write fail, and the
        event loop reads no more then. Its answer lies in the socket, which stays open for as long as this is called.
        """
        sock = self.transport.get_extra_info("socket")
        if sock is None:
            return
        for _ in range(_LAST_WORDS_READS):
            try:
                data = os.read(sock.fileno(), _READ_BYTES)
            except OSError:
                return  # there is nothing more: BlockingIOError, or the reset itself
            if not data or self.exchange is None:
                return
            self.data_received(data)

    def abort(self) -> None:
        """Drop the connection and whatever goes on over it."""
        self.exchange = None
        self.closed = True
        self.transport.abort()

    def hang_up(self) -> None:
        """Close the connection once the replica has taken what was sent to it."""
        self.exchange = None
        self.closed = True
        if self.transport.get_write_buffer_size():
            asyncio.get_running_loop().call_later(_LAST_WORDS_SECONDS, self.transport.abort)
        self.transport.close()

    # Data, in the order in which it arrives.

    def data_received(self, data: bytes) -> None:
        exchange = self.exchange
        if exchange is None:  # a replica that speaks unasked
            self.abort()
            self.pool.forget(self)
            return
        self.answer_begun = True
        try:
            if self.tunnelled:
                exchange.to_client(data)
            elif self._raw_left:
                self._pass_raw(exchange, data)
            else:
                self._parse(exchange, data)
        except Exception as error:  # noqa: BLE001 - whatever it is, the slot must not be lost with it
            exchange.fault(error)

    def _parse(self, exchange: Exchange, data: bytes) -> None:
        begins = self._framing < 0
        rest = b""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            rest = data[upgrade.args[0] :]
        except httptools.HttpParserError as error:
            cause: BaseException | None = error
            if isinstance(error, httptools.HttpParserCallbackError):
                cause = error.__context__
                if not isinstance(cause, InvalidAnswer):
                    raise
            if not self._complete:  # after the answer's end, it only tells that this connection is of no more use
                self._garbled(exchange, cause)
                return
            self._reusable = False
        if self.exchange is not exchange:  # what was parsed has ended the exchange
            return
        if self._complete:
            if self.out:
                self.flush(exchange)
            self._end_answer(exchange.answered if begins else monotonic())
            return
        if self.out:
            self.flush(exchange)
            self._barren_bytes = 0
        else:
            self._barren_bytes += len(data)
        if self._barren_bytes > _MOST_BYTES_WITHOUT_BODY:
            self._garbled(exchange, InvalidAnswer("too many bytes without a body"))
        elif self.tunnelled:
            if rest:
                exchange.to_client(rest)
        elif self._framing >= 0:
            exchange.replica_spoke()
            if self._framing == LENGTH and self._left >= RAW_BODY_BYTES:
                self._raw_left = self._left

    def _garbled(self, exchange: Exchange, error: BaseException | None) -> None:
        self.flush(exchange)
        exchange.replica_garbled(self, error)

    def _pass_raw(self, exchange: Exchange, data: bytes) -> None:
        if len(data) > self._raw_left:
            data = data[: self._raw_left]
            self._reusable = False  # more than was announced
        self._raw_left -= len(data)
        exchange.answer_bytes += len(data)
        exchange.to_client(data)
        if self._raw_left:
            exchange.replica_spoke()
        if not self._raw_left and self.exchange is exchange:
            self._parser = httptools.HttpResponseParser(self)  # the old one still waits for these bytes
            self._end_answer(monotonic())

    def on_message_begin(self) -> None:
        if self._complete:  # something follows the answer
            self._reusable = False

    def on_status(self, reason: bytes) -> None:
        self._reason += reason

    def on_header(self, name: bytes, value: bytes) -> None:
        kind = self._known_kinds.get(name)
        if not kind:
            if kind is None:
                self._on_other_header(name, value)
            else:  # PASS, which is empty
                self._parts.append(name + b": " + value)
        elif kind >= FIRST_NAME and kind not in self._kept:
            self._kept[kind] = value
        else:
            self._sort(kind, name, value)

    def _on_other_header(self, name: bytes, value: bytes) -> None:
        """A name that is not remembered, or a field that follows the body."""
        if self._framing < 0:
            self._sort(self._kinds.classify(name), name, value)
        elif not self._complete and may_be_trailer(name):
            self._trailers += (name, b": ", value, b"\r\n")

    def _sort(self, kind: bytes, name: bytes, value: bytes) -> None:
        """Put a header where those of its kind belong."""
        if kind in (PASS, UNDERSCORE):
            self._parts.append(name + b": " + value)
        elif kind != DROP:
            self._kept[kind] = self._kept[kind] + b", " + value if kind in self._kept else value

    def on_headers_complete(self) -> None:
        exchange = self.exchange
        if self._complete or exchange is None:  # a second answer to one request
            self._reusable = False
            return
        status = self._parser.get_status_code()
        if self._reason != b"OK" and not is_reason(self._reason):
            raise InvalidAnswer("a control character in the reason of a status")
        if status < 200 and status != 101:
            if status < 100:
                raise InvalidAnswer("a status below 100")
            # The parser would take it for a body all the same, and a client for the answer (RFC 9110 section 15.2).
            if self._kept.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in self._kept:
                raise InvalidAnswer("an interim answer with a body")
            exchange.interim_answer(status, self._reason, self._parts)
            return
        kept = self._kept
        coding = kept.get(b"transfer-encoding")
        length = -1
        if status == 101:
            if not (exchange.upgrade and _switches_to_websocket(kept)):
                raise InvalidAnswer("a switch of protocols that nobody asked for")
            self._framing = NO_BODY
        elif status == 204 or status == 304:
            self._framing = NO_BODY
            length = int(kept.get(b"content-length", b"-1")) if status == 304 else -1
        elif coding is not None:
            self._framing = CHUNKED
            self._known_kinds = _NONE_KNOWN
            if not is_chunked(coding):
                raise InvalidAnswer("transfer coding other than chunked")
        elif b"content-length" in kept:
            self._framing = LENGTH
            length = int(kept[b"content-length"])
        else:
            self._framing = UNTIL_CLOSE
        self._left = length
        self._reusable = self._parser.should_keep_alive()
        if not self._reusable and self._parser.get_http_version() not in ("1.1", "1.0"):
            raise InvalidAnswer("a version of HTTP other than 1.0 and 1.1")
        exchange.answer_head(self, status, self._reason, self._parts, kept, self._framing, length)

    def on_body(self, data: bytes) -> None:
        exchange = self.exchange
        if exchange is None or self._complete:
            return
        size = len(data)
        self._left -= size
        exchange.answer_bytes += size
        if exchange.answer_chunked:
            self.out += (b"%x\r\n" % size, data, b"\r\n")
        else:
            self.out.append(data)

    def on_message_complete(self) -> None:
        if self._framing < 0:  # an interim answer: the real one is still to come
            self._parts = []
            self._kept = {}
            self._reason = b""
            return
        self._complete = not self.tunnelled

    def flush(self, exchange: Exchange) -> None:
        """Write what the parser has made of the data at hand to the client."""
        out = self.out
        if out:
            exchange.client.write(out[0] + out[1] if len(out) == 2 else b"".join(out))
            out.clear()

    def _end_answer(self, now: float) -> None:
        exchange = self.exchange
        if exchange is None:
            return
        self.exchange = None
        trailers = self._trailers
        if trailers:
            self._trailers = []
        self.served += 1
        if self._reusable and exchange.body_complete and not self.closed and not self.tunnelled:
            self._await_answer()
            if exchange.client.stalled_since:
                self.transport.resume_reading()  # which it was told not to do, while this answer was under way
            self.pool.put(self, now)
        else:
            self.closed = True
            self.transport.close()
        exchange.finish(trailers, now)


def _switches_to_websocket(kept: dict[bytes, bytes]) -> bool:
    named = connection_options(kept.get(b"connection", b""))
    return b"upgrade" in named and kept.get(b"upgrade", b"").strip().lower() == b"websocket"
