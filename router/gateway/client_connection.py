"""HTTP/1.1 to clients: one connection, its states, and the responses written to it.

An exchange is created when the head of a request is complete. It begins when all available data is parsed, so that a
small request is sent to its replica in one write. Requests that a client sends before it has received the previous
response (pipelining) wait in `_pending`. Responses are sent in the order of the requests.

How received bytes are handled depends on the state of the connection:

    state       received bytes are                             next states
    READ_HEAD   parsed as a head                               READ_BODY, RAW_BODY, BUFFERED, DISCARDING
    READ_BODY   parsed as a body                               READ_HEAD, RAW_BODY, BUFFERED, DISCARDING
    RAW_BODY    counted, not parsed: a long body               READ_HEAD, READ_BODY, BUFFERED, DISCARDING
    BUFFERED    kept until the exchanges before them are done  READ_HEAD, READ_BODY, RAW_BODY, TUNNEL, DISCARDING
    TUNNEL      passed to the replica                          CLOSING
    DISCARDING  ignored: they follow a malformed request       LINGERING, CLOSING
    LINGERING   ignored: the last response was sent            CLOSED
    CLOSING     ignored: the rest of the output is being sent  CLOSED
    CLOSED      none

READ_HEAD, READ_BODY, RAW_BODY and BUFFERED also lead to LINGERING and CLOSING, and each state to CLOSED.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import deque
from time import monotonic
from typing import Final, cast

from router.gateway.client_registry import ClientRegistry
from router.gateway.context import GatewayContext, Http2ClientFactory
from router.gateway.exchange import DONE, NEW, Exchange
from router.gateway.replica_connection import RAW_BODY_BYTES
from router.gateway.request import Request
from router.gateway.request_reader import SMALL_READ_BYTES, RequestReader
from router.gateway.turns import Backlog
from router.http import http1, responses
from router.http.forwarding import normalize_address
from router.http.http1 import CHUNKED, CONTENT_LENGTH, NO_BODY, UNTIL_CLOSE
from router.http.responses import LocalResponse
from router.http.streams import UNKNOWN_LENGTH, ClientStream
from router.net.tcp import CLOSE_WAIT, ESTABLISHED, acknowledged_bytes, tcp_state, unread_bytes

READ_HEAD: Final = 0
READ_BODY: Final = 1
RAW_BODY: Final = 2
BUFFERED: Final = 3
TUNNEL: Final = 4
DISCARDING: Final = 5
LINGERING: Final = 6
CLOSING: Final = 7
CLOSED: Final = 8

# What one connection may do in a turn of the event loop; then the others are served.
EXCHANGES_PER_TURN: Final = 2  # begun, if each is answered at once
WORK_PER_TURN: Final = 4096  # see `RequestReader.work`
# uvloop reads at most 250 KiB at once, and reads up to 32 times in a turn while it gets as much.
FULL_READ_BYTES: Final = 131072
# A connection is closed after this number of responses 4xx in a row, if it had none of a replica before.
MAX_REFUSALS: Final = 20
_UNCOUNTED_INPUT_BYTES: Final = 4096  # as much input is small beside the connection itself
_WRITE_BUFFER_BYTES: Final = 262144
# The rest of a refused request's body, up to this size, is read and discarded so that the connection can be kept.
_MAX_DISCARDED_BYTES: Final = 65536
# After the last response the connection is still read for a while (LINGERING): closing a socket with unread data resets
# the connection, which can destroy a response that the client has not read yet (RFC 9112 section 9.6).
_MAX_CLOSE_SECONDS: Final = 30.0  # from the last response to the close, at most
_LINGER_SILENCE_SECONDS: Final = 5.0  # a client that sends nothing for this long is not read any more
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)  # SO_LINGER, socket(7)


class ClientConnection(ClientStream):
    """One connection of a client."""

    __slots__ = (
        "_acknowledged",
        "_acknowledged_at",
        "_acknowledged_at_pause",
        "_backlog",
        "_body_paused",
        "_close_started_at",
        "_context",
        "_current",
        "_half_closed",
        "_held_bytes",
        "_held_input_bytes",
        "_idle_since",
        "_last_input_at",
        "_output",
        "_paused_at",
        "_paused_seconds",
        "_pending",
        "_raw_left",
        "_reader",
        "_reading",
        "_refusals",
        "_registry",
        "_response_framing",
        "_responses_left",
        "_retire_at",
        "_runs_pipeline",
        "_state",
        "has_been_served",
        "transport",
    )

    def __init__(self, context: GatewayContext, registry: ClientRegistry, *, secure: bool = False) -> None:
        """See `ClientStream` for `secure`."""
        self._context = context
        self._registry = registry
        self._reader = RequestReader(context.request_limits, context.request_rules)
        self.transport: asyncio.Transport
        self.address = b"unknown"
        self.is_trusted_proxy = False
        self.secure = secure
        self.forwarded_lines = ()
        self.forwarded_host = b""
        self.forwarded_path = None
        self.write_paused_at = 0.0
        self._state = READ_HEAD
        self._current: Exchange | None = None  # the exchange whose response is sent next
        self._pending: deque[Exchange] = deque()
        self._backlog = Backlog(context.turns)  # to be parsed after BUFFERED
        self._raw_left = 0  # remaining bytes of a body that are counted, not parsed
        self._response_framing = NO_BODY
        self._responses_left = context.connection_limits.draw_requests()  # then the connection is retired
        self._retire_at = 0.0
        self._runs_pipeline = False
        self._output: list[bytes] = []  # written by `_run_pipeline`, to be sent at its end
        self.has_been_served = False
        self._refusals = 0  # responses 4xx in a row, before the first one of a replica
        self._held_input_bytes = 0  # bytes of the buffer budget, for input that is not parsed yet
        self._reading = True
        self._body_paused = False
        self._half_closed = False  # the client has sent FIN and gets the responses to its complete requests
        self._idle_since = self._last_input_at = self._paused_at = self._close_started_at = 0.0
        self._paused_seconds = 0.0  # time for which this router did not read the current body
        self._held_bytes = 0  # bytes of the buffer budget, for a response that the client has yet to read
        # While a response is held: bytes that the client's system has acknowledged, now and when it was held.
        self._acknowledged: int
        self._acknowledged_at_pause: int
        self._acknowledged_at: float

    # Life of the connection.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._idle_since = monotonic()
        self._retire_at = self._context.connection_limits.draw_expiry(self._idle_since)
        peer = transport.get_extra_info("peername")
        if peer:
            address = normalize_address(str(peer[0]))
            self.address = address.encode()
            if self._context.trusted_proxies.trusts(address):
                self.is_trusted_proxy = True
                self._reader.use_rules(self._context.proxy_request_rules)
        if not self._registry.add(self):
            self._state = CLOSED
            self.transport.abort()
            return
        self.transport.set_write_buffer_limits(high=_WRITE_BUFFER_BYTES)
        if self.secure:
            transport.get_extra_info("ssl_object").on_input_limit = self.pause_for_turn

    def connection_lost(self, exc: Exception | None) -> None:
        self._state = CLOSED
        self._release_response()
        self._context.buffers.release(self._held_input_bytes)
        self._held_input_bytes = 0
        self._registry.remove(self)
        if self.secure:
            self.transport.get_extra_info("ssl_object").on_input_limit = None  # so that there is no reference cycle
        self._reader.close()
        current, self._current = self._current, None
        self._pending.clear()
        self._backlog.clear()
        if current is not None:
            current.on_client_closed()

    def eof_received(self) -> bool:
        """Continue for the responses to complete requests, unless the FIN cancels the current one.

        A return value of True means that. asyncio ignores it for TLS.
        """
        current, reader = self._current, self._reader
        if self._state >= TUNNEL or current is None or reader.body_of is not None or not self.transport.can_write_eof():
            return False
        if current.is_cancelled_by_fin:
            return False
        self._half_closed = True
        reader.head_started_at = 0.0  # an incomplete head is ignored
        if not self._backlog:
            last = self._pending[-1] if self._pending else current
            last.request.keep_alive = False
        return True

    def pause_writing(self) -> None:
        self.write_paused_at = monotonic()
        if self._current is not None:
            self._current.on_client_write_paused()

    def resume_writing(self) -> None:
        self.write_paused_at = 0.0
        self._release_response()
        if self._state == CLOSING:
            self.transport.close()
        elif self._current is not None and self._current.state != NEW:
            self._current.on_client_writable()
        else:
            self._run_pipeline()

    def hold_response(self, left: int) -> bool:
        """Hold the rest of the response, of which `left` bytes have not arrived, until the client reads again."""
        size = left + self.transport.get_write_buffer_size()
        if not self._context.buffers.reserve(size):
            return False
        self._held_bytes = size
        self._acknowledged = self._acknowledged_at_pause = acknowledged_bytes(self.transport)
        self._acknowledged_at = self.write_paused_at
        return True

    def _release_response(self) -> None:
        if not self._held_bytes:
            return
        self._context.buffers.release(self._held_bytes)
        self._held_bytes = 0
        # What limits an idle or closing connection counts from the end of the response.
        self._idle_since = self._last_input_at = now = monotonic()
        if self._close_started_at:
            self._close_started_at = now

    def close(self) -> None:
        """Close the connection once the client has received what was written."""
        self._flush()
        if not self._close_started_at:
            self._close_started_at = monotonic()
        if self._state < LINGERING:
            self._state = CLOSING
        if not self._held_bytes:  # else when it is nearly read: TLS limits the time between this and the end
            self.transport.close()

    def abort(self) -> None:
        """Close the connection at once."""
        self.transport.abort()

    def _write(self, data: bytes) -> None:
        if self._runs_pipeline:
            self._output.append(data)
        elif self._state < CLOSING and not self.transport.is_closing():
            self.transport.write(data)

    def _flush(self) -> None:
        """Send the responses of the router to pipelined requests in one write."""
        if self._output:
            output, self._output = self._output, []
            if not self.transport.is_closing():
                self.transport.write(b"".join(output))

    # Data, in the order in which it arrives.

    def data_received(self, data: bytes) -> None:
        try:
            state = self._state
            if state == READ_HEAD:
                if (
                    self._current is not None
                    or len(data) > SMALL_READ_BYTES
                    or self.write_paused_at
                    or self._held_input_bytes
                ):
                    self._feed(data)
                    return
                reader = self._reader
                rejection = reader.feed(data)
                request = reader.request
                if (
                    request is not None
                    and rejection is None
                    and reader.body_of is None
                    and reader.after_upgrade is None
                    and not reader.more_requests
                ):  # one whole request, as nearly always
                    self._current = exchange = Exchange(self._context, self, request)
                    exchange.begin()
                else:
                    self._on_first_piece(rejection)
            elif state == RAW_BODY:
                self._pass_raw(data)
            elif state == READ_BODY:
                self._feed(data)
            elif state == BUFFERED:
                self._backlog.append(data)
                self._update_reading()
                self._hold_input()
            elif state == TUNNEL:
                self._last_input_at = monotonic()
                if self._current is not None:
                    self._current.on_client_tunnel_data(data)
                if len(data) >= FULL_READ_BYTES:
                    self._yield(is_bulk=True)
                    self._update_reading()
            else:
                self._last_input_at = monotonic()
        except Exception as error:  # noqa: BLE001 - the slot must not be lost, whatever the error
            self._on_fault(error)

    def _on_first_piece(self, rejection: LocalResponse | None) -> None:
        """Process the first piece of data on an idle connection that was not exactly one request."""
        reader = self._reader
        self._add_exchanges()
        if rejection is not None and self._reject(rejection):
            return
        if rejection is None and reader.after_upgrade is not None:
            self._backlog.append(reader.after_upgrade)
            self._state = BUFFERED
        self._on_parsed(None)

    def _feed(self, data: bytes) -> None:
        """Parse data, and begin or continue the exchanges that it belongs to. Parse only as much as fits one turn."""
        if len(data) >= FULL_READ_BYTES:
            self._yield(is_bulk=True)
        self._backlog.append(data)
        self._parse_backlog()

    def _parse_backlog(self) -> None:
        reader, backlog = self._reader, self._backlog
        body_of = reader.body_of
        work = 0
        reader.begin_read()
        while backlog:
            rejection = reader.feed_slice(backlog.take(reader.next_slice_bytes))
            self._add_exchanges()
            if rejection is not None:
                if self._reject(rejection):
                    self._forward_last_piece(body_of)
                    return
                break
            if reader.after_upgrade is not None:
                backlog.put_back(reader.after_upgrade)
                self._state = BUFFERED
                break
            work += reader.work
            if self._pending or (work >= WORK_PER_TURN and backlog):
                self._state = BUFFERED
                if not self._pending:
                    self._yield()
                break
        self._on_parsed(body_of)

    def pause_for_turn(self) -> bool:
        """Read more in a later turn of the event loop. Return False if no more is needed: the connection is closing."""
        if self._state >= CLOSING:
            return False
        self._yield()
        self._update_reading()
        return True

    def _yield(self, *, is_bulk: bool = False) -> None:
        """Continue in a later turn of the event loop, after other connections were served."""
        self._backlog.wait_for_turn(self._continue, is_bulk=is_bulk)

    def _continue(self) -> None:
        try:
            self._run_pipeline()
        except Exception as error:  # noqa: BLE001 - the slot must not be lost, whatever the error
            self._on_fault(error)

    def _on_fault(self, error: Exception) -> None:
        if self._current is None or not self._current.request.started_at:  # not begun
            self._context.log_fault(error)
            self.transport.abort()
        else:
            self.close_after_response()
            self._current.on_fault(error)

    def _add_exchanges(self) -> None:
        reader = self._reader
        if reader.request is None:
            return
        for request in (reader.request, *reader.more_requests):
            exchange = Exchange(self._context, self, request)
            if self._current is None:
                self._current = exchange
            else:
                self._pending.append(exchange)

    def _on_parsed(self, body_of: Request | None) -> None:
        """Begin or continue the exchanges that the parsed data belongs to.

        `body_of` is the request whose body was being read before, if any.
        """
        if self._pending and self._state < BUFFERED:
            self._state = BUFFERED
        unfinished = self._reader.body_of
        if unfinished is not None:
            self._last_input_at = monotonic()
            if unfinished is not body_of:
                self._paused_seconds = 0.0
            if unfinished.length - unfinished.body_bytes >= RAW_BODY_BYTES:
                self._raw_left = unfinished.length - unfinished.body_bytes
        if self._state < BUFFERED:
            self._state = self._parsing_state()
        current = self._current
        if current is None:
            if self._state == BUFFERED:
                self._run_pipeline()
        elif current.state == NEW:
            if self._state == BUFFERED or self._runs_pipeline or self.write_paused_at:
                self._run_pipeline()
            else:
                current.begin()
        elif body_of is current.request:
            current.on_client_body()
        if self._pending or self._backlog or self._backlog.waiting:
            self._update_reading()
        self._hold_input()

    def _hold_input(self) -> None:
        """Count input that is not parsed yet against the budget of buffered bytes. Refuse it if the budget is spent.

        A body that waits for a turn is not refused: the connection reads no more of it, and parses it soon.
        """
        size = self._reader.unfinished_bytes + len(self._backlog)
        if size < _UNCOUNTED_INPUT_BYTES or self._state >= DISCARDING:
            size = 0
        more = size - self._held_input_bytes
        buffers = self._context.buffers
        if more > 0 and not buffers.reserve(more):
            if self._reader.body_of is None or not self._backlog.waiting:
                self._reject(responses.INPUT_NOT_BUFFERED)
                return
            buffers.hold(more)
        if more < 0:
            buffers.release(-more)
        self._held_input_bytes = size

    def _parsing_state(self) -> int:
        """Return the state in which data is parsed now."""
        if self._raw_left:
            return RAW_BODY
        return READ_HEAD if self._reader.body_of is None else READ_BODY

    def _forward_last_piece(self, body_of: Request | None) -> None:
        """Pass on the last piece of a body that is followed by malformed data."""
        current = self._current
        if current is not None and current.request is body_of and current.request.body_complete:
            current.on_client_body()

    def _pass_raw(self, data: bytes) -> None:
        """Pass on a piece of a long body, which is counted, not parsed."""
        reader = self._reader
        request = reader.body_of
        assert request is not None
        rest = b""
        if len(data) > self._raw_left:
            data, rest = data[: self._raw_left], data[self._raw_left :]
        if len(data) >= FULL_READ_BYTES:
            self._yield(is_bulk=True)
            self._update_reading()
        self._raw_left -= len(data)
        reader.on_raw_body(data)
        self._last_input_at = monotonic()
        self._state = self._parsing_state()
        current = self._current
        if current is not None and current.request is request:
            current.on_client_body()
        if rest and self._state == READ_HEAD:
            self._feed(rest)

    # Pipelining.

    def _run_pipeline(self) -> None:
        """Begin the next exchange; repeat while each one ends at once, for a bounded number in a turn."""
        if self._runs_pipeline:
            return
        self._runs_pipeline = True
        begun = 0
        try:
            while self._state < LINGERING and not self.write_paused_at and not self._backlog.waiting:
                if self._current is None and self._pending:
                    self._current = self._pending.popleft()
                current = self._current
                if current is None or (current.request is self._reader.body_of and current.state != NEW):
                    if self._state != BUFFERED:
                        break
                    self._parse_buffered()
                elif current.state == NEW:
                    if begun == EXCHANGES_PER_TURN:
                        self._yield()
                        break
                    begun += 1
                    current.begin()
                else:
                    break
        finally:
            self._runs_pipeline = False
            self._flush()
        self._update_reading()
        if self._held_input_bytes or self._backlog:
            self._hold_input()

    def _parse_buffered(self) -> None:
        self._state = self._parsing_state()
        if self._backlog:
            if self._state == RAW_BODY:
                self._pass_raw(self._backlog.take_all())
            else:
                self._parse_backlog()

    def _reject(self, response: LocalResponse) -> bool:
        """Respond to a request that is malformed or too slow, after the responses to earlier requests.

        Data that follows is discarded. Return False if the connection is already to be closed after the previous
        request, which is then answered as usual.
        """
        if response is responses.HTTP2_IS_OFF and self._context.http2_client is not None and not self.secure:
            self._switch_to_http2(self._context.http2_client)
            return True
        request = self._reader.abandon_body()
        last = self._pending[-1] if self._pending else self._current
        self._state = DISCARDING
        if request is None and last is not None and not last.request.keep_alive:
            return False
        self._raw_left = 0
        self._backlog.clear()
        if response.status == 400:
            self._context.counters.parse_errors += 1
            if response is responses.TLS_ON_HTTP_PORT:
                self._context.log_tls_on_http_port(self.address)
        if request is None:
            last = Exchange(self._context, self, Request(b"", b"", [b""], {}, UNKNOWN_LENGTH))
            if self._current is None:
                self._current = last
            else:
                self._pending.append(last)
        elif last is None or last.request is not request or last.state == DONE:
            self._finish(request)  # it already has a response; only the rest of its body was being discarded
            return True
        last.request.keep_alive = False
        if last.state == NEW:
            last.request.rejection = response
            self._run_pipeline()
        else:
            last.fail(response)
        return True

    def _switch_to_http2(self, http2_client: Http2ClientFactory) -> None:
        """Hand the connection over, as the client has sent the preface of HTTP/2."""
        data = self._reader.preface + self._backlog.take_all()
        self._state = CLOSED
        self._reader.close()
        http2_client(self._context, self._registry, False).take_over(self.transport, data, self)

    # The stream of the current exchange.

    def send_continue(self) -> None:
        """Send 100 (Continue) if the client waits for it."""
        current = self._current
        if current is not None and current.request.expects_continue:
            current.request.expects_continue = False
            self._write(http1.CONTINUE)

    def send_interim(self, status: int, reason: bytes, lines: list[bytes]) -> None:
        """Send a 1xx response to a client of HTTP/1.1."""
        if self._current is not None and self._current.request.http11:
            self._write(http1.interim_response(status, reason, lines))

    def send_head(self, status: int, reason: bytes, lines: list[bytes], length: int, pieces: list[bytes]) -> None:
        """Send the head of a response and the first pieces of its body in one write."""
        if self._current is None:
            return
        request = self._current.request
        self.has_been_served = True
        # The replica needs no more of the body once the response has started.
        if not request.body_complete or self._context.lame_duck or status == 101:
            request.keep_alive = False
        self._responses_left -= 1
        if self._responses_left <= 0:
            self._close_if_retired(request)
        framing = CONTENT_LENGTH
        if status != 200 or length == UNKNOWN_LENGTH:
            framing = http1.response_framing(request.method, status, length, request.http11)
            if framing == UNTIL_CLOSE:
                request.keep_alive = False
        self._response_framing = framing
        head = http1.response_head(status, reason, lines, length, framing, request.keep_alive, request.http11)
        if framing == CHUNKED:
            pieces = http1.chunk(pieces)
        if self._state < CLOSING and not self.transport.is_closing():
            self.transport.write(head + pieces[0] if len(pieces) == 1 else b"".join((head, *pieces)))
        if status == 101:
            self._open_tunnel()

    def send_body(self, pieces: list[bytes]) -> None:
        """Send more of the body of a response."""
        if self._response_framing == CHUNKED:
            pieces = http1.chunk(pieces)
        self._write(pieces[0] if len(pieces) == 1 else b"".join(pieces))

    def close_after_response(self) -> None:
        """Close the connection after the response of the current exchange."""
        if self._current is not None:
            self._current.request.keep_alive = False

    def send_local(self, response: LocalResponse, extra_lines: list[bytes]) -> None:
        """Send a response of the router."""
        if self._current is None:
            return
        request = self._current.request
        if self._context.lame_duck or not (request.body_complete or self._may_discard_body(request)):
            request.keep_alive = False
        if response.status < 400:
            self._refusals = 0
        elif response.status < 500 and not self.has_been_served and not self.is_trusted_proxy:
            self._refusals += 1
            if self._refusals >= MAX_REFUSALS:
                request.keep_alive = False
        self._responses_left -= 1
        if self._responses_left <= 0:
            self._close_if_retired(request)
        self._response_framing = NO_BODY
        self._write(
            http1.local_response(
                response,
                extra_lines,
                date=self._context.wall_clock(),
                keep_alive=request.keep_alive,
                http11=request.http11,
                bodiless=request.method == b"HEAD",
            )
        )

    def retire(self) -> None:
        """See `ClientConnectionControl`."""
        self._responses_left = 0

    def _close_if_retired(self, request: Request) -> None:
        """Close the connection after this response, unless the client has already sent more, which would be lost."""
        # While it waits for a turn, more may be decrypted.
        has_sent_more = self._pending or self._backlog or self._backlog.waiting or self._reader.head_started_at
        if request.keep_alive and not has_sent_more and not unread_bytes(self.transport):
            request.keep_alive = False
            self._context.counters.connections_retired += 1

    def end(self, trailers: tuple[bytes, ...], now: float) -> None:
        """Complete a response, and continue with the next request."""
        current, self._current = self._current, None
        if current is None:
            return
        request = current.request
        if self._response_framing == CHUNKED:
            self._response_framing = NO_BODY
            self._write(http1.last_chunk(trailers))
        if self._state == CLOSED:
            return
        if not request.keep_alive:
            self._finish(request)
            return
        self._idle_since = now
        if self._body_paused:
            self.resume_body()
        if self._reader.body_of is request:
            self._reader.discard_body()
        if self._pending or self._state == BUFFERED:
            self._run_pipeline()

    def abort_response(self) -> None:
        """Close the connection before the end of the response.

        A response without announced length ends at the close, so that only a reset shows that it is incomplete.
        """
        if self._response_framing != UNTIL_CLOSE:
            self.close()
            return
        sock = self.transport.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self.transport.abort()

    def pause_body(self) -> None:
        """Stop reading the body of the current request."""
        self._body_paused = True
        self._update_reading()

    def resume_body(self) -> None:
        """Continue to read the body of the current request."""
        self._body_paused = False
        self._update_reading()

    def _open_tunnel(self) -> None:
        if self._state >= LINGERING:
            return
        self._state = TUNNEL
        self._last_input_at = monotonic()
        data = self._backlog.take_all()
        if data and self._current is not None:
            self._current.on_client_tunnel_data(data)
        self._update_reading()
        self._hold_input()

    def send_tunnel_data(self, data: bytes) -> None:
        """Send the client bytes from the tunnel."""
        self._last_input_at = monotonic()
        self._write(data)

    def close_tunnel(self) -> None:
        """Close the connection once the client has received what was written."""
        self.close()

    def _may_discard_body(self, request: Request) -> bool:
        """Return True if the rest of a refused request's body is so short that the connection can be kept."""
        if self._state == DISCARDING or request.expects_continue or request.length == UNKNOWN_LENGTH:
            return False
        return request.length - request.body_bytes <= _MAX_DISCARDED_BYTES

    def _finish(self, request: Request) -> None:
        """Close the connection, after the client had time to read its last response."""
        self._flush()
        self._pending.clear()
        self._backlog.clear()
        # TLS has a closing handshake, during which data that still arrives is read and dropped.
        received_all = request.body_complete and self._state != DISCARDING and self._reading
        if received_all or not self.transport.can_write_eof():
            self.close()
            return
        self._state = LINGERING
        self._close_started_at = self._last_input_at = monotonic()
        if not self.transport.is_closing():
            self.transport.write_eof()
            self._update_reading()

    def _update_reading(self) -> None:
        """Pause or resume reading from the client."""
        reading = self._state == LINGERING or not (
            self._body_paused
            or self._pending
            or self._backlog
            or self._backlog.waiting
            or self._state == DISCARDING
            or (self.write_paused_at and (self._current is None or self._current.state == NEW))
        )
        if reading == self._reading or self._state >= CLOSING or self._half_closed or self.transport.is_closing():
            return
        self._reading = reading
        now = monotonic()
        if reading:
            self._paused_seconds += now - self._paused_at
            self._last_input_at = now
            self._reader.restart_head_timer(now)
            self.transport.resume_reading()
        else:
            self._paused_at = now
            self.transport.pause_reading()

    # Timeouts.

    @property
    def idle(self) -> bool:
        """True if no request is in progress."""
        reader = self._reader
        return (
            self._current is None
            and not self._pending
            and reader.body_of is None
            and not reader.head_started_at
            and not self._held_bytes
        )

    def evictable_seconds(self, now: float) -> float:
        """See `ClientConnectionControl`."""
        if self._current is not None or self._pending or self._reader.body_of is not None or self._held_bytes:
            return -1.0
        return now - self._idle_since

    def idle_seconds(self, now: float) -> float:
        """Return for how long no request has been in progress; negative if one is."""
        return now - self._idle_since if self.idle else -1.0

    @property
    def streaming_replicas(self) -> list[str]:
        """See `ClientConnectionControl`."""
        replica = self._current.streaming_replica if self._current is not None else ""
        return [replica] if replica else []

    def abort_requests_at(self, replica_ids: frozenset[str]) -> None:
        """See `ClientConnectionControl`."""
        if self._current is not None:
            self._current.on_drain_timeout(replica_ids)

    def enforce_timeouts(self, now: float) -> None:
        """Close the connection, or refuse its request, if the client is too slow. Called several times a second."""
        settings, reader, current = self._context.settings, self._reader, self._current
        if now >= self._retire_at:
            self.retire()
        if self._held_bytes:
            if self._is_reader_too_slow(now):
                self.transport.abort()
            return
        if self._close_started_at:
            silent = self._state == LINGERING and now - self._last_input_at > _LINGER_SILENCE_SECONDS
            if silent or now - self._close_started_at > _MAX_CLOSE_SECONDS:
                self.transport.abort()
            return
        if self.write_paused_at and now - self.write_paused_at > settings.client_body_timeout_seconds:
            self.transport.abort()  # the client does not read the response
            return
        if current is not None and (self._state == TUNNEL or self._response_framing >= CHUNKED):
            current.enforce_stream_limits(now, now - self._last_input_at)
            if self._close_started_at or self.transport.is_closing():
                return
        if self._state == TUNNEL:
            stuck = not self._reading and now - self._paused_at > settings.client_body_timeout_seconds
            if stuck and self._has_left():
                self.transport.abort()  # the replica does not read what the client sent last
        elif reader.body_of is not None and self._reading:
            if self._is_body_too_slow(reader.body_of, now):
                self._reject(responses.BODY_TIMEOUT)
        elif reader.head_started_at and self._reading:
            if now - reader.head_started_at > settings.client_head_timeout_seconds:
                self._reject(responses.HEAD_TIMEOUT)
        elif self._current is None:
            is_new = not reader.has_read_a_head
            timeout = settings.client_head_timeout_seconds if is_new else settings.client_idle_timeout_seconds
            if now - self._idle_since > timeout:
                self.close()
        elif (self._half_closed or not self._reading) and self._has_left():
            self.transport.abort()

    def _is_body_too_slow(self, request: Request, now: float) -> bool:
        """Return True if a body paused too long or its mean rate is too low (as in Apache's mod_reqtimeout)."""
        settings = self._context.settings
        if now - self._last_input_at > settings.client_body_timeout_seconds:
            return True
        allowed = settings.client_body_timeout_seconds + request.body_bytes / settings.body_min_rate_bytes
        return bool(now - request.started_at - self._paused_seconds > allowed)

    def _is_reader_too_slow(self, now: float) -> bool:
        """Return True if the client of a held response paused too long or its mean rate is too low.

        The limits are those of a request's body.
        """
        settings = self._context.settings
        acknowledged = acknowledged_bytes(self.transport)
        if acknowledged != self._acknowledged:
            self._acknowledged, self._acknowledged_at = acknowledged, now
        elif now - self._acknowledged_at > settings.client_body_timeout_seconds:
            return True
        read = acknowledged - self._acknowledged_at_pause
        allowed = settings.client_body_timeout_seconds + read / settings.body_min_rate_bytes
        return bool(now - self.write_paused_at > allowed)

    def _has_left(self) -> bool:
        """Return True if the client has closed the connection, or cancels the current request by FIN.

        The event loop does not detect this while reading is paused, but the state of the socket shows it.
        """
        state, current = tcp_state(self.transport), self._current
        if state != CLOSE_WAIT or current is None:
            return state != ESTABLISHED
        if current.is_cancelled_by_fin or not self.transport.can_write_eof():
            return True
        request = self._reader.body_of
        return (
            request is current.request
            and request.length != UNKNOWN_LENGTH
            and request.length - request.body_bytes > len(self._backlog) + unread_bytes(self.transport)
        )
