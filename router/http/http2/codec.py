"""The state of one HTTP/2 connection of a client: frames, header compression, streams and flow control. No I/O.

This is the only module that uses ngh2, the bindings of libnghttp2. Another engine replaces it by the same class.
docs/design.md has the reasons for the choice.

The engine checks what RFC 9113 demands of a request: pseudo-header fields, names and values of fields, no field that is
specific to a connection, and the length of the body. To a malformed head it responds with RST_STREAM.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import suppress
from typing import Final

import ngh2

from router.http.http2.frames import ENHANCE_YOUR_CALM, PROTOCOL_ERROR, Http2Error, max_continuations

STREAM_WINDOW_BYTES: Final = 262144
"""What a client may send of a body before the router has taken it. A read of HTTP/1.1 has as much."""
_OUTPUT_BYTES: Final = 65536
# A request over the router's own limits gets 431. One that exceeds them by this factor ends the connection.
_HARD_LIMIT_FACTOR: Final = 4
_MAX_WINDOW_BYTES: Final = 2**31 - 1
# The field section of a list entry costs 32 bytes more than its text (RFC 9113 section 6.5.2).
_FIELD_OVERHEAD_BYTES: Final = 32

Fields = list[tuple[bytes, bytes]]


def max_block_bytes(max_head_bytes: int) -> int:
    """Return the limit of one header block as it is sent, for this limit of the head."""
    return 2 * max_head_bytes


class StreamEvents(ABC):
    """What the codec calls for the events of a connection, in the order in which they occur."""

    __slots__ = ()

    @abstractmethod
    def on_request(self, stream_id: int, fields: tuple[tuple[bytes, bytes], ...], complete: bool) -> None:
        """The head of a request has arrived. `complete`: it has no body."""

    @abstractmethod
    def on_data(self, stream_id: int, data: bytes, complete: bool) -> None:
        """A piece of a body has arrived. `acknowledge` must be called for it when the router has taken it."""

    @abstractmethod
    def on_trailers(self, stream_id: int, fields: tuple[tuple[bytes, bytes], ...]) -> None:
        """The trailers have arrived. They complete the request."""

    @abstractmethod
    def on_stream_closed(self, stream_id: int) -> None:
        """The stream has ended in both directions, or was reset. For a malformed head there was no `on_request`."""

    @abstractmethod
    def on_ping_acknowledged(self) -> None:
        """The client has received everything that was sent before `Http2Codec.ping`."""

    @abstractmethod
    def on_client_goaway(self) -> None:
        """The client starts no more streams."""

    @abstractmethod
    def on_finished(self) -> None:
        """Nothing more will be received or sent. The connection must be closed."""


class Http2Codec:
    """The server's side of one connection."""

    __slots__ = ("_connection", "_events", "_failed", "last_stream_id")

    def __init__(self, events: StreamEvents, *, max_streams: int, max_head_bytes: int, max_headers: int) -> None:
        """`max_head_bytes` and `max_headers` are the router's own limits, `max_streams` is announced to the client."""
        self._events = events
        self._failed = False
        self.last_stream_id = 0
        """The last stream on which a request was reported."""
        self._connection = ngh2.Connection(
            ngh2.Role.SERVER,
            ngh2.Configuration(
                auto_window_update=False,
                max_continuations=max_continuations(max_block_bytes(max_head_bytes)),
                max_inbound_header_list_size=(max_head_bytes + _FIELD_OVERHEAD_BYTES * max_headers)
                * _HARD_LIMIT_FACTOR,
                max_inbound_header_count=max_headers * _HARD_LIMIT_FACTOR,
            ),
        )
        settings = ngh2.Setting
        self._connection.initiate_connection(
            {
                settings.MAX_CONCURRENT_STREAMS: max_streams,
                settings.INITIAL_WINDOW_SIZE: STREAM_WINDOW_BYTES,
                settings.MAX_HEADER_LIST_SIZE: max_head_bytes,
            }
        )
        # The windows of streams are the limit: a stream whose body is not taken must not stop the others.
        self._connection.set_local_window_size(min(max_streams * STREAM_WINDOW_BYTES, _MAX_WINDOW_BYTES))

    # Input.

    def receive(self, data: bytes) -> None:
        """Parse data. Raises `Http2Error`; the codec must then not be used any more."""
        try:
            self._connection.receive_data(data)
        except ngh2.DenialOfServiceError as error:
            self._failed = True
            raise Http2Error(ENHANCE_YOUR_CALM, str(error)) from None
        except ngh2.NGH2Error as error:
            self._failed = True
            raise Http2Error(PROTOCOL_ERROR, str(error)) from None
        finally:
            self.report()

    def report(self) -> None:
        """Report what has happened. `receive` does it; it must be called after the last `take_output`, too."""
        events = self._events
        for event in self._connection.events():
            if isinstance(event, ngh2.RequestReceived):
                self.last_stream_id = event.stream_id
                events.on_request(event.stream_id, event.headers, event.end_stream)
            elif isinstance(event, ngh2.DataReceived):
                events.on_data(event.stream_id, event.data, event.end_stream)
            elif isinstance(event, ngh2.StreamClosed):
                events.on_stream_closed(event.stream_id)
            elif isinstance(event, ngh2.TrailersReceived):
                events.on_trailers(event.stream_id, event.headers)
            elif isinstance(event, ngh2.PingAcknowledged):
                events.on_ping_acknowledged()
            elif isinstance(event, ngh2.GoAwayReceived):
                events.on_client_goaway()
            elif isinstance(event, ngh2.ConnectionClosed):
                events.on_finished()

    def acknowledge(self, stream_id: int, size: int) -> None:
        """Let the client send as many bytes more."""
        if not self._failed:
            self._connection.acknowledge_received_data(size, stream_id)

    # Output. It is collected until `take_output`.

    def send_head(self, stream_id: int, fields: Fields, *, end: bool) -> None:
        """Send the head of a response; `end` if it has neither a body nor trailers."""
        self._connection.send_response(stream_id, fields, end_stream=end)

    def send_interim(self, stream_id: int, fields: Fields) -> None:
        """Send a 1xx response."""
        self._connection.send_informational_response(stream_id, fields)

    def send_data(self, stream_id: int, data: bytes, *, end: bool) -> None:
        """Send more of a body. It waits in the codec until the client's windows have room for it."""
        self._connection.send_data(stream_id, data, end_stream=end)

    def send_trailers(self, stream_id: int, fields: Fields) -> None:
        """Complete a response with trailers."""
        self._connection.send_trailers(stream_id, fields)

    def share_connection(self, stream_id: int) -> None:
        """Send the body of this stream in turns with those of others, unless the client has set its priority.

        By default one body after the other is sent (RFC 9218 section 10).
        """
        self._connection.set_stream_priority(stream_id, ngh2.Priority(incremental=True))

    def reset(self, stream_id: int, error_code: int) -> None:
        """Send RST_STREAM. What was not sent of the stream is discarded."""
        self._connection.reset_stream(stream_id, error_code)

    def waiting_bytes(self, stream_id: int | None = None) -> int:
        """Return the bytes of bodies that wait for windows or for `take_output`: of a stream, or of all."""
        return self._connection.queued_body_size(stream_id)

    def take_output(self) -> bytes:
        """Return the next bytes for the client, b"" if there are none. Raises `Http2Error`."""
        try:
            output = self._connection.data_to_send(_OUTPUT_BYTES)
        except ngh2.NGH2Error as error:
            self._failed = True
            raise Http2Error(PROTOCOL_ERROR, str(error)) from None
        return output

    # Shutdown.

    def announce_shutdown(self) -> None:
        """Ask the client to start no more streams. Those that it has started meanwhile are served."""
        with suppress(ngh2.ConnectionStateError):  # the client has ended the connection
            self._connection.send_shutdown_notice()
            self._connection.ping()

    def shut_down(self) -> None:
        """Accept no more streams, and tell the client which one was the last."""
        with suppress(ngh2.ConnectionStateError):
            self._connection.send_goaway()
