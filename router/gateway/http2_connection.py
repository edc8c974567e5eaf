"""HTTP/2 to clients: one connection with its streams.

Each stream is an exchange like a request of HTTP/1.1 (`http2_stream`), and no stream has a task. A turn of the event
loop parses one slice of what was received (`FrameReader`), begins and continues the exchanges that it belongs to, and
sends what they have written (`_flush`). If more was received, the connection waits in the `TurnQueue` and is not read
meanwhile, as one of HTTP/1.1.

    state     new streams                                next states
    OPEN      are accepted                               RETIRING, SHUT_DOWN
    RETIRING  are accepted: the client was asked to stop SHUT_DOWN, when it must have heard of it
    SHUT_DOWN are ignored: the client may repeat them    CLOSING, when the last stream has ended
    CLOSING   input is ignored, the output is being sent CLOSED

Each state also leads to CLOSED, and to CLOSING after a violation of the protocol. A client that resets streams again
and again is disconnected: so it cannot make the router begin requests for nothing (CVE-2023-44487), nor have the router
reset them (CVE-2025-8671).
"""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import Final, cast

from router.gateway.client_connection import FULL_READ_BYTES, MAX_REFUSALS, WORK_PER_TURN
from router.gateway.client_registry import ClientConnectionControl, ClientRegistry
from router.gateway.context import GatewayContext
from router.gateway.exchange import DONE, NEW
from router.gateway.http2_request import read_request
from router.gateway.http2_stream import Http2Stream, StreamOwner
from router.gateway.turns import Backlog
from router.http import responses
from router.http.forwarding import normalize_address
from router.http.http2.codec import Http2Codec, max_block_bytes
from router.http.http2.frames import (
    CANCEL,
    CREDIT_PER_SECOND,
    ENHANCE_YOUR_CALM,
    FrameReader,
    Http2Error,
    goaway,
)
from router.http.responses import LocalResponse
from router.net.tcp import CLOSE_WAIT, ESTABLISHED, tcp_state

OPEN: Final = 0
RETIRING: Final = 1
SHUT_DOWN: Final = 2
CLOSING: Final = 3
CLOSED: Final = 4

# A client may reset this number of streams, and as many more as half of those that it has let end.
MAX_RESETS: Final = 100
_WRITE_BUFFER_BYTES: Final = 262144
# What may wait for windows on all streams together before it counts against the budget of buffered bytes.
_UNCOUNTED_OUTPUT_BYTES: Final = 262144
_UNCOUNTED_INPUT_BYTES: Final = 4096
# A client may respond to each DATA frame with a WINDOW_UPDATE for the stream, one for the connection, and a PING. What
# is sent without new data, as the acknowledgement of a PING or a byte for which a window was opened, earns nothing.
_CREDIT_PER_PUSH: Final = 4
_CREDIT_SHIFT: Final = 10  # one credit for each KiB: some clients send two WINDOW_UPDATEs for 4 KiB
# A client acknowledges the first GOAWAY by its acknowledgement of a PING, or it is assumed to have heard of it.
_GOAWAY_SECONDS: Final = 1.0
_MAX_CLOSE_SECONDS: Final = 30.0
_LINGER_SILENCE_SECONDS: Final = 5.0


class Http2Connection(StreamOwner):
    """One connection of a client."""

    __slots__ = (
        "_backlog", "_begun", "_close_started_at", "_codec", "_context", "_credit_at", "_ended_streams",
        "_flush_scheduled", "_frames", "_half_closed", "_held_input_bytes", "_held_output_bytes", "_idle_since",
        "_in_turn", "_last_input_at", "_linger", "_paused_at", "_pushed", "_reading", "_refusals", "_refused",
        "_registry", "_resets", "_responses_left", "_retire_at", "_retiring_since", "_rules", "_state", "_streams",
        "_touched", "_unfinished_since", "_watched", "has_been_served", "transport", "write_paused_at",
    )  # fmt: skip

    def __init__(self, context: GatewayContext, registry: ClientRegistry, secure: bool) -> None:
        """`secure`: the connection uses TLS."""
        settings = context.settings
        self._context = context
        self._registry = registry
        self._rules = context.request_rules
        self.transport: asyncio.Transport
        self.address = b"unknown"
        self.is_trusted_proxy = False
        self.secure = secure
        self.forwarded_lines = ()
        self.forwarded_host = b""
        self.forwarded_path = None
        self.has_been_served = False
        self.write_paused_at = 0.0
        self._state = OPEN
        self._frames = FrameReader(max_block_bytes(settings.max_head_bytes))
        self._codec = Http2Codec(
            self,
            max_streams=settings.http2_max_streams,
            max_head_bytes=settings.max_head_bytes,
            max_headers=settings.max_headers,
        )
        self._backlog = Backlog(context.turns)  # only to wait for turns: `_frames` has the data
        self._streams: dict[int, Http2Stream] = {}
        self._touched: dict[int, Http2Stream] = {}  # to which the current slice belongs
        self._refused: list[tuple[Http2Stream, LocalResponse]] = []  # by the current slice
        self._pushed: dict[int, Http2Stream] = {}  # that have written since the last flush
        self._watched: dict[int, Http2Stream] = {}
        self._in_turn = self._flush_scheduled = False
        self._reading = True
        self._half_closed = False  # the client has sent FIN, and gets the responses to its requests
        self._linger = False  # all was sent, and input is discarded until the client closes
        self._held_input_bytes = 0  # bytes of the buffer budget, for incomplete frames
        self._held_output_bytes = 0  # bytes of the buffer budget, for what waits beside held responses
        self._resets = self._ended_streams = self._refusals = 0
        self._responses_left = context.connection_limits.draw_requests()
        self._retire_at = self._retiring_since = 0.0
        self._idle_since = self._last_input_at = self._paused_at = self._close_started_at = 0.0
        self._unfinished_since = 0.0  # since when a frame or header block is incomplete
        self._credit_at = 0.0

    # Life of the connection.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start a connection whose client has chosen HTTP/2 by ALPN."""
        self._attach(transport)
        if not self._registry.add(self):
            self._state = CLOSED
            self.transport.abort()
            return
        self._start()

    def take_over(self, transport: asyncio.Transport, data: bytes, previous: ClientConnectionControl) -> None:
        """Replace a connection of HTTP/1.1 whose client has sent the preface of HTTP/2. `data` is all that it sent."""
        self._attach(transport)
        self._registry.replace(previous, self)
        transport.set_protocol(cast(asyncio.Protocol, self))
        self._start()
        self.data_received(data)

    def _attach(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._idle_since = self._last_input_at = self._credit_at = now = monotonic()
        self._retire_at = self._context.connection_limits.draw_expiry(now)
        peer = transport.get_extra_info("peername")
        if peer:
            address = normalize_address(str(peer[0]))
            self.address = address.encode()
            if self._context.trusted_proxies.trusts(address):
                self.is_trusted_proxy = True
                self._rules = self._context.proxy_request_rules

    def _start(self) -> None:
        counters = self._context.counters
        counters.http2_connections += 1
        counters.http2_connections_open += 1
        self.transport.set_write_buffer_limits(high=_WRITE_BUFFER_BYTES)
        if self.secure:
            self.transport.get_extra_info("ssl_object").on_input_limit = self.pause_for_turn
        self._flush()

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel all requests."""
        if self._state == CLOSED:
            return
        self._state = CLOSED
        self._context.counters.http2_connections_open -= 1
        self._registry.remove(self)
        if self.secure:
            self.transport.get_extra_info("ssl_object").on_input_limit = None  # so that there is no reference cycle
        streams = tuple(self._streams.values())
        for registered in (self._streams, self._touched, self._pushed, self._watched):
            registered.clear()
        self._refused.clear()
        for stream in streams:
            self._forget(stream)
        buffers = self._context.buffers
        buffers.release(self._held_input_bytes + self._held_output_bytes)
        self._held_input_bytes = self._held_output_bytes = 0

    def eof_received(self) -> bool:
        """Continue for the responses to complete requests, unless the FIN cancels them.

        A return value of True means that. asyncio ignores it for TLS.
        """
        if self._state >= CLOSING or not self.transport.can_write_eof():
            return False
        for stream in tuple(self._streams.values()):
            if stream.exchange.is_cancelled_by_fin or not stream.request.body_complete:
                stream.reset(CANCEL)
                self._cancel(stream)
        self._half_closed = True
        self._flush()
        self._shut_down()
        return self._state < CLOSING

    def _forget(self, stream: Http2Stream) -> None:
        """End a stream, whose exchange is cancelled if it is in progress."""
        stream.close()
        self._cancel(stream)
        version = stream.request.version
        if version is not None:
            version.counters.http2_requests += 1

    def _cancel(self, stream: Http2Stream) -> None:
        """Notify the exchange of a stream that its client has left."""
        try:
            stream.exchange.on_client_closed()
        except Exception as error:  # noqa: BLE001 - the slot must not be lost, whatever the error
            stream.exchange.on_fault(error)

    # Input.

    def data_received(self, data: bytes) -> None:
        """Process received bytes."""
        self._last_input_at = monotonic()
        if self._state >= CLOSING:
            return
        try:
            self._frames.append(data)
            if len(data) >= FULL_READ_BYTES:
                self._backlog.wait_for_turn(self._continue, is_bulk=True)
                self._update_reading()
            elif not self._backlog.waiting:
                self._take_turn()
        except Exception as error:  # noqa: BLE001 - the connection must not be left half processed
            self._on_fault(error)

    def _continue(self) -> None:
        try:
            self._take_turn()
            self._update_reading()
        except Exception as error:  # noqa: BLE001 - the connection must not be left half processed
            self._on_fault(error)

    def _on_fault(self, error: Exception) -> None:
        self._context.log_fault(error)
        self.transport.abort()

    def _take_turn(self) -> None:
        """Parse one slice, and begin or continue the exchanges that it belongs to."""
        if self._state >= CLOSING:
            return
        self._in_turn = True
        piece = b""
        try:
            piece = self._frames.next_slice(WORK_PER_TURN)
            if piece:
                self._codec.receive(piece)
        except Http2Error as error:
            self._close_for(error)
        else:
            self._advance()
        finally:
            self._in_turn = False
        if self._state < CLOSING:
            if piece:
                self._unfinished_since = 0.0  # what is incomplete now is another frame
            self._hold_input()
        if self._state < CLOSING and self._frames.is_cut:
            self._backlog.wait_for_turn(self._continue)
            self._update_reading()
        self._flush()

    def _advance(self) -> None:
        """Begin or continue the exchanges to which the current slice belongs."""
        refused, self._refused = self._refused, []
        for stream, response in refused:
            stream.refuse(response)
        touched, self._touched = self._touched, {}
        for stream in touched.values():
            if stream.closed:
                continue
            try:
                stream.advance()
            except Exception as error:  # noqa: BLE001 - the slot must not be lost, whatever the error
                stream.exchange.on_fault(error)

    def _hold_input(self) -> None:
        """Count incomplete frames against the budget of buffered bytes, and note since when there is one."""
        size = 0 if self._frames.is_cut else self._frames.unfinished_bytes
        if not size:
            self._unfinished_since = 0.0
        elif not self._unfinished_since:
            self._unfinished_since = monotonic()
        if size < _UNCOUNTED_INPUT_BYTES:
            size = 0
        if size == self._held_input_bytes:
            return
        if not self._context.buffers.reserve(size - self._held_input_bytes):
            self._close_for(Http2Error(ENHANCE_YOUR_CALM, "no memory is left for requests that arrive in parts"))
            return
        self._held_input_bytes = size

    def pause_for_turn(self) -> bool:
        """Read more in a later turn of the event loop. Return False if no more is needed: the connection is closing."""
        if self._state >= CLOSING:
            return False
        self._backlog.wait_for_turn(self._continue)
        self._update_reading()
        return True

    def _update_reading(self) -> None:
        """Pause or resume reading. A client that does not read may cause no more output."""
        reading = self._state >= CLOSING or not (self._backlog.waiting or self.write_paused_at)
        if reading == self._reading or self._half_closed or self.transport.is_closing():
            return
        self._reading = reading
        if reading:
            now = monotonic()
            paused = now - self._paused_at
            for stream in self._streams.values():
                stream.paused_seconds += paused
                stream.last_input_at += paused
            self.transport.resume_reading()
        else:
            self._paused_at = monotonic()
            self.transport.pause_reading()

    # Events of the codec.

    def on_request(self, stream_id: int, fields: tuple[tuple[bytes, bytes], ...], complete: bool) -> None:
        if self._state >= CLOSING:
            return
        request = read_request(fields, complete, self._rules, self._context.settings)
        stream = Http2Stream(self._context, self, self._codec, stream_id, request)
        stream.last_input_at = self._last_input_at
        self._streams[stream_id] = self._touched[stream_id] = stream
        if request.rejection is not None:
            self._context.counters.parse_errors += 1
        self._responses_left -= 1
        if self._responses_left <= 0:
            self.retire()

    def on_data(self, stream_id: int, data: bytes, complete: bool) -> None:
        stream = self._streams.get(stream_id)
        if stream is None or stream.closed:
            self._codec.acknowledge(stream_id, len(data))
            return
        if data:
            stream.last_input_at = self._last_input_at
        refusal = stream.on_data(data, complete)
        if refusal is not None:
            self._refused.append((stream, refusal))
        self._touched[stream_id] = stream

    def on_trailers(self, stream_id: int, fields: tuple[tuple[bytes, bytes], ...]) -> None:
        stream = self._streams.get(stream_id)
        if stream is not None and not stream.closed:
            refusal = stream.on_trailers(fields)
            if refusal is not None:
                self._refused.append((stream, refusal))
            self._touched[stream_id] = stream

    def on_stream_closed(self, stream_id: int) -> None:
        stream = self._streams.pop(stream_id, None)
        self._pushed.pop(stream_id, None)
        self._watched.pop(stream_id, None)
        if stream is None:
            self._count_reset()  # a malformed head: no request was reported
            return
        was_reset_by_client = not (stream.ended or stream.closed)
        self._forget(stream)
        self._idle_since = monotonic()
        if was_reset_by_client:
            self._count_reset()
        else:
            self._ended_streams += 1
        if not self._streams and (self._state == SHUT_DOWN or self._half_closed):
            self.flush_later()

    def _count_reset(self) -> None:
        """Disconnect a client that resets its streams, or has the router reset them, again and again."""
        self._resets += 1
        if self._resets > MAX_RESETS + self._ended_streams // 2:
            self._close_for(Http2Error(ENHANCE_YOUR_CALM, "too many streams were reset"))

    def on_ping_acknowledged(self) -> None:
        if self._state == RETIRING:
            self._shut_down()

    def on_client_goaway(self) -> None:
        self._shut_down()

    def on_finished(self) -> None:
        self._finish()

    # Output.

    def push_later(self, stream: Http2Stream) -> None:
        self._pushed[stream.stream_id] = stream
        self.flush_later()

    def flush_later(self) -> None:
        if not (self._in_turn or self._flush_scheduled):
            self._flush_scheduled = True
            asyncio.get_running_loop().call_soon(self._flush_now)

    def watch(self, stream: Http2Stream) -> None:
        self._watched[stream.stream_id] = stream

    def _flush_now(self) -> None:
        self._flush_scheduled = False
        try:
            self._flush()
        except Exception as error:  # noqa: BLE001 - the connection must not be left half processed
            self._on_fault(error)

    def _flush(self) -> None:
        """Send what the streams have written, as far as the client's windows and the connection have room for it."""
        if self._state >= CLOSING:
            return
        pushed, self._pushed = self._pushed, {}
        if pushed:
            self._frames.earn(_CREDIT_PER_PUSH * len(pushed))
        for stream in pushed.values():
            stream.push()
        try:
            while not self.write_paused_at and not self.transport.is_closing():
                output = self._codec.take_output()
                if not output:
                    break
                self._frames.earn(len(output) >> _CREDIT_SHIFT)
                self.transport.write(output)
            self._codec.report()
        except Http2Error as error:
            self._close_for(error)
        if self._state >= CLOSING:
            return
        if self._watched:
            self._check_watched()
        self._hold_output()
        if not self._streams and (self._state == SHUT_DOWN or self._half_closed) and not self.write_paused_at:
            self._finish()

    def _check_watched(self) -> None:
        now = monotonic()
        for stream_id, stream in tuple(self._watched.items()):
            if not stream.on_flushed(now):
                self._watched.pop(stream_id, None)

    def _hold_output(self) -> None:
        """Count what waits for the client's windows against the budget of buffered bytes."""
        waiting = self._codec.waiting_bytes()
        if waiting <= _UNCOUNTED_OUTPUT_BYTES and not self._held_output_bytes:
            return
        held = sum(stream.held_bytes for stream in self._watched.values())
        size = max(waiting - held - _UNCOUNTED_OUTPUT_BYTES, 0)
        if size == self._held_output_bytes:
            return
        if size > self._held_output_bytes and not self._context.buffers.reserve(size - self._held_output_bytes):
            self._close_for(Http2Error(ENHANCE_YOUR_CALM, "no memory is left for responses that are not read"))
            return
        if size < self._held_output_bytes:
            self._context.buffers.release(self._held_output_bytes - size)
        self._held_output_bytes = size

    def pause_writing(self) -> None:
        """Read no more from a client that does not read."""
        self.write_paused_at = monotonic()
        self._update_reading()

    def resume_writing(self) -> None:
        """Continue to send."""
        self.write_paused_at = 0.0
        self._update_reading()
        self.flush_later()

    def on_response(self, status: int, local: bool) -> None:
        if not local:
            self.has_been_served = True
        elif status < 400:
            self._refusals = 0
        elif status < 500 and not self.has_been_served and not self.is_trusted_proxy:
            self._refusals += 1
            if self._refusals >= MAX_REFUSALS:
                self._shut_down()

    # Shutdown.

    def retire(self) -> None:
        """Ask the client for no more streams; see `ClientConnectionControl`. Those on their way are served."""
        if self._state != OPEN:
            return
        self._state = RETIRING
        self._retiring_since = monotonic()
        if not self._context.lame_duck:
            self._context.counters.connections_retired += 1
        self._codec.announce_shutdown()
        self.flush_later()

    def _shut_down(self) -> None:
        """Accept no more streams. Close when the last one has ended."""
        if self._state < SHUT_DOWN:
            self._state = SHUT_DOWN
            self._codec.shut_down()
            self.flush_later()

    def close(self) -> None:
        """Close the connection once all streams have ended."""
        self._shut_down()

    def abort(self) -> None:
        """Close the connection at once."""
        self.transport.abort()

    def _close_for(self, error: Http2Error) -> None:
        """Close the connection because the client violates the protocol or a limit."""
        if self._state >= CLOSING:
            return
        self._context.counters.parse_errors += 1
        if error.code == ENHANCE_YOUR_CALM:
            self._context.counters.http2_floods += 1
        if not self.transport.is_closing():
            self.transport.write(goaway(self._codec.last_stream_id, error))
        self._finish()

    def _finish(self) -> None:
        """Close the connection, after the client had time to read what was sent."""
        if self._state >= CLOSING:
            return
        self._state = CLOSING
        self._close_started_at = self._last_input_at = monotonic()
        streams = tuple(self._streams.values())
        for registered in (self._streams, self._touched, self._pushed, self._watched):
            registered.clear()
        for stream in streams:
            self._forget(stream)
        if self.transport.is_closing():
            return
        # TLS has a closing handshake, during which data that still arrives is read and dropped.
        if self._half_closed or not self.transport.can_write_eof():
            self.transport.close()
            return
        self._linger = True
        self.transport.write_eof()
        self._update_reading()

    # Timeouts, and control by the gateway.

    @property
    def idle(self) -> bool:
        """True if no request is in progress."""
        return not self._streams

    def evictable_seconds(self, now: float) -> float:
        """See `ClientConnectionControl`."""
        return -1.0 if self._streams else now - self._idle_since

    def idle_seconds(self, now: float) -> float:
        """Return for how long no request has been in progress; negative if one is, or may be on its way."""
        return -1.0 if self._streams or self._state == RETIRING else now - self._idle_since

    @property
    def streaming_replicas(self) -> list[str]:
        """See `ClientConnectionControl`."""
        replicas = [stream.exchange.streaming_replica for stream in self._streams.values()]
        return [replica for replica in replicas if replica]

    def abort_requests_at(self, replica_ids: frozenset[str]) -> None:
        """See `ClientConnectionControl`."""
        for stream in tuple(self._streams.values()):
            stream.exchange.on_drain_timeout(replica_ids)

    def enforce_timeouts(self, now: float) -> None:
        """Close the connection, or refuse requests, if the client is too slow. Called several times a second."""
        settings = self._context.settings
        if self._state >= CLOSING:
            silent = self._linger and now - self._last_input_at > _LINGER_SILENCE_SECONDS
            if silent or now - self._close_started_at > _MAX_CLOSE_SECONDS:
                self.transport.abort()
            return
        self._frames.earn(int((now - self._credit_at) * CREDIT_PER_SECOND))
        self._credit_at = now
        if self.write_paused_at and now - self.write_paused_at > settings.client_body_timeout_seconds:
            self.transport.abort()  # the client does not read
            return
        if not (self._reading or self._backlog.waiting) and self._has_left():
            self.transport.abort()
            return
        unfinished = now - self._unfinished_since if self._unfinished_since and self._reading else 0.0
        if unfinished > settings.client_head_timeout_seconds:
            self._close_for(Http2Error(ENHANCE_YOUR_CALM, "a frame did not arrive in time"))
            return
        if self._context.lame_duck or now >= self._retire_at:
            self.retire()
        if self._state == RETIRING and now - self._retiring_since > _GOAWAY_SECONDS:
            self._shut_down()
        if not self._streams:
            is_new = not self._codec.last_stream_id
            timeout = settings.client_head_timeout_seconds if is_new else settings.client_idle_timeout_seconds
            if self._unfinished_since:  # perhaps a request, which has its own timeout
                timeout += settings.client_head_timeout_seconds
            if now - self._idle_since > timeout:
                self._shut_down()
        for stream in tuple(self._streams.values()):
            self._enforce_stream_timeouts(stream, now)

    def _has_left(self) -> bool:
        """Return True if the client has closed the connection, or cancels all requests by FIN.

        The event loop does not detect this while reading is paused, but the state of the socket shows it.
        """
        state = tcp_state(self.transport)
        if state != CLOSE_WAIT or not self.transport.can_write_eof():
            return state != ESTABLISHED
        streams = self._streams.values()
        return bool(streams) and all(stream.exchange.is_cancelled_by_fin for stream in streams)

    def _enforce_stream_timeouts(self, stream: Http2Stream, now: float) -> None:
        if stream.closed:
            return
        if self._reading and stream.is_body_too_slow(now):
            stream.refuse(responses.BODY_TIMEOUT)
        elif stream.is_reader_too_slow(now):
            stream.reset(CANCEL)
            self._cancel(stream)
        elif stream.exchange.state not in (NEW, DONE):
            stream.exchange.enforce_stream_limits(now, 0.0)
