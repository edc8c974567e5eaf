"""The interfaces between an exchange and the protocols on its two sides. No I/O.

    client protocol --calls--> exchange --ClientStream--> client protocol
    replica protocol --ResponseHandler--> exchange --ReplicaStream--> replica protocol

An exchange is one request and its response. It is independent of the protocols of its client and its replica, which
today are HTTP/1.1. A new client protocol implements `ClientStream` and creates exchanges. A new replica protocol
implements `ReplicaStream` and calls a `ResponseHandler`.

Header lines are bytes of the form `name: value`, without line ends. The first element of a list of header lines is
reserved for the start line of protocols that have one. A length of `UNKNOWN_LENGTH` means that the end of the body is
only detected when it arrives. Times are seconds of the monotonic clock.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from typing import Final

from router.http.location import PublicPath
from router.http.responses import LocalResponse

UNKNOWN_LENGTH: Final = -1


class ClientStream(ABC):
    """The client's side of the exchange in progress. Once the client has left, all methods do nothing."""

    __slots__ = (
        "address", "forwarded_host", "forwarded_lines", "forwarded_path", "is_trusted_proxy", "secure",
        "write_paused_at",
    )  # fmt: skip

    address: bytes
    """The IP address of the peer: the client, or the last proxy before the router."""
    is_trusted_proxy: bool
    """True if the peer is one of `trusted_proxies`."""
    secure: bool
    """True if the connection uses TLS."""
    forwarded_lines: tuple[bytes, ...]
    """The header lines `X-Forwarded-*` of the last request. They are the same for the next one to the same host and
    service."""
    forwarded_host: bytes
    forwarded_path: PublicPath | None
    write_paused_at: float
    """When the client stopped reading what was written to it; 0 while it reads."""

    @abstractmethod
    def send_continue(self) -> None:
        """Ask the client for the body if it sent `Expect: 100-continue`; does nothing for other requests."""

    @abstractmethod
    def send_interim(self, status: int, reason: bytes, lines: list[bytes]) -> None:
        """Send a 1xx response other than 100 and 101, if the client's version of HTTP allows it."""

    @abstractmethod
    def send_head(self, status: int, reason: bytes, lines: list[bytes], length: int, pieces: list[bytes]) -> None:
        """Send the head of the response, and in the same write the first pieces of its body.

        `length` is that of the body; for status 304, of the body that a 200 response would have. Status 101 opens the
        tunnel.
        """

    @abstractmethod
    def send_body(self, pieces: list[bytes]) -> None:
        """Send more of the body."""

    @abstractmethod
    def hold_response(self, left: int) -> bool:
        """Hold the rest of the response, of which `left` bytes have not arrived, until the client reads again.

        Return False if there is no room for it: the replica must then be paused.
        """

    @abstractmethod
    def close_after_response(self) -> None:
        """Close the client's connection after the response to this request."""

    @abstractmethod
    def send_local(self, response: LocalResponse, extra_lines: list[bytes]) -> None:
        """Send a whole response of the router itself, with `extra_lines` among its headers (no element is reserved).

        `end` must be called next.
        """

    @abstractmethod
    def end(self, trailers: tuple[bytes, ...], now: float) -> None:
        """Complete the response. After that the stream belongs to the client's next exchange."""

    @abstractmethod
    def abort_response(self) -> None:
        """End a response whose head was sent so that the client detects that it is incomplete."""

    @abstractmethod
    def pause_body(self) -> None:
        """Stop reading the body of the request."""

    @abstractmethod
    def resume_body(self) -> None:
        """Continue to read the body of the request."""

    @abstractmethod
    def send_tunnel_data(self, data: bytes) -> None:
        """Pass bytes through the tunnel."""

    @abstractmethod
    def close_tunnel(self) -> None:
        """Close the tunnel once the client has received what was written."""


class ReplicaStream(ABC):
    """The replica's side of an exchange. It serves one exchange after another, and is idle in between."""

    __slots__ = (
        "closed", "idle_since", "response_paused", "response_started", "responses_served", "transport", "write_paused",
    )  # fmt: skip

    transport: asyncio.Transport
    """The transport of the stream's connection."""
    closed: bool
    """True once no request can be sent any more. See also `is_open`: the transport may already be closing."""
    idle_since: float
    """When the stream was last returned to its pool."""

    write_paused: bool
    """True while the replica does not read what was written to it."""
    response_paused: bool
    """True while the response is not read."""
    response_started: bool
    """True once a byte of the response to the current request has arrived."""
    responses_served: int
    """Complete responses so far."""

    @abstractmethod
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
        """Send the head of a request and `pieces` of its body, in one write. `handler` receives the response.

        `upgrade` asks for a tunnel. `trailers` is None if more of the body will follow. It is empty if the body is
        complete and has no trailers.
        """

    @abstractmethod
    def send_body(self, pieces: list[bytes], trailers: tuple[bytes, ...] | None) -> None:
        """Send more of the body; see `send_request` for `trailers`. Does nothing if the stream is closing."""

    @property
    @abstractmethod
    def is_request_sent(self) -> bool:
        """True if the whole request was handed to the operating system."""

    @property
    @abstractmethod
    def response_left(self) -> int:
        """Bytes of the body of the response that have not arrived, or `UNKNOWN_LENGTH`."""

    @abstractmethod
    def hand_over(self, handler: ResponseHandler) -> None:
        """Let another handler receive the rest of the response, and read it."""

    @abstractmethod
    def pause_response(self) -> None:
        """Stop reading the response."""

    @abstractmethod
    def resume_response(self) -> None:
        """Continue to read the response."""

    @abstractmethod
    def send_tunnel_data(self, data: bytes) -> None:
        """Pass bytes through the tunnel."""

    @abstractmethod
    def close_gracefully(self) -> None:
        """Close the stream once the replica has received what was written. The handler is not called any more."""

    @abstractmethod
    def abort(self) -> None:
        """Close the stream at once. The handler is not called any more."""

    @abstractmethod
    def close_idle(self) -> None:
        """Close an idle stream."""

    @property
    def is_open(self) -> bool:
        """True if a request can be sent."""
        return not self.closed and not self.transport.is_closing()


class ResponseHandler(ABC):
    """The methods that a replica stream calls while it serves an exchange, in the order of the response."""

    __slots__ = ()

    @abstractmethod
    def on_interim_response(self, status: int, reason: bytes, lines: list[bytes]) -> None:
        """A 1xx response other than 101 has arrived."""

    @abstractmethod
    def on_response_head(
        self,
        status: int,
        reason: bytes,
        lines: list[bytes],
        captured: dict[bytes, bytes],
        length: int,
        pieces: list[bytes],
        now: float,
    ) -> None:
        """The head of the response has arrived, and with it `pieces` of the body. `captured` are the header fields
        that the router interprets, by lower-case name."""

    @abstractmethod
    def on_response_body(self, pieces: list[bytes]) -> None:
        """More of the body has arrived."""

    @abstractmethod
    def on_response_progress(self) -> None:
        """Part of the response has arrived and was passed on, and the response is not complete."""

    @abstractmethod
    def on_response_end(self, trailers: tuple[bytes, ...], reusable: bool, now: float) -> None:
        """The response is complete. The stream is released: it is idle if `reusable`, else closed."""

    @abstractmethod
    def on_tunnel_data(self, data: bytes) -> None:
        """The replica has sent bytes through the tunnel."""

    @abstractmethod
    def on_bad_response(self, error: BaseException | None) -> None:
        """The response violates the protocol."""

    @abstractmethod
    def on_replica_closed(self, error: BaseException | None, unread: bool) -> None:
        """The stream was closed before the response was complete.

        `error` is None for an orderly close. `unread` is True if it is proven that the replica's program has read no
        byte of the request (see `gateway.retry_safety`).
        """

    @abstractmethod
    def on_replica_write_paused(self) -> None:
        """The replica does not read what is written to it."""

    @abstractmethod
    def on_replica_writable(self) -> None:
        """The replica reads again."""

    @abstractmethod
    def on_fault(self, error: Exception) -> None:
        """A method of this handler raised an exception, which is a fault of the router."""
