"""One connection with a peer: the handshake, then messages in both directions until the end of the connection.

    CONNECTING --connected--> AUTHENTICATING --authenticated--> AWAITING_FRAME --first signed frame--> UP
         |                       |        (accepting side)         |                                  |
         |                       +--authenticated--> TLS_HANDSHAKE --TLS established, or not used-----+
         |                       |        (dialing side)           |                                  |
         +-----------------------+-------------- end --------------+----------------------------------+--> ENDED

The dialing side sends a signed frame as soon as its link is up. When the accepting side receives this frame, its link
is up, too. The frame proves that the dialing side holds the session's key, and that it keeps the connection although it
now knows the peer's identity.

This module handles the bytes and the timers of one connection. `mesh` decides which connections there should be, and
`peer_table` which of two connections is kept.
"""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass
from enum import Enum, auto
from typing import Protocol, cast

from router.peers.close_reason import CloseReason
from router.peers.frames import FRAME_LIMIT_BYTES, FrameDecoder, FrameSigner, FrameVerifier, WireError
from router.peers.handshake import (
    HANDSHAKE_FRAME_LIMIT_BYTES,
    ClientHandshake,
    HandshakeError,
    PeerIdentity,
    ServerHandshake,
    Session,
)
from router.peers.messages import Goodbye, Heartbeat, Message
from router.peers.tls_stream import PinnedTls, TlsStream
from router.peers.wire import decode, encode

_LINGER_SECONDS = 1.0  # how long a slow peer may read the last data before the connection is aborted
_HEARTBEAT = encode(Heartbeat())
_GOODBYE = encode(Goodbye())

# After these reasons, data that was already written is still sent. After other reasons the peer is dead or not trusted.
_GRACEFUL = frozenset(
    (
        CloseReason.VERSION, CloseReason.UNENCRYPTED, CloseReason.STALE, CloseReason.SAME_ID, CloseReason.SELF,
        CloseReason.DUPLICATE, CloseReason.REPLACED, CloseReason.GOODBYE, CloseReason.STOPPED,
    )
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkLimits:
    """Limits of a link. On each side, `dead_after_seconds` must be well above the other side's `heartbeat_seconds`."""

    handshake_seconds: float = 2.0
    heartbeat_seconds: float = 0.2
    dead_after_seconds: float = 1.0
    """How long nothing may be received before a link is down."""
    frame_limit_bytes: int = FRAME_LIMIT_BYTES
    write_limit_bytes: int = 32 * 1024 * 1024
    """Maximum number of unsent bytes. Beyond it a link is down, because its peer does not read."""


class LinkObserver(Protocol):
    """Receives the events of a link. The methods must not block."""

    def on_authenticated(self, link: Link) -> CloseReason | None:
        """The peer (`link.peer`) is authenticated. Return None to keep the connection, or the reason to refuse it."""

    def on_link_up(self, link: Link) -> None:
        """Messages can be sent and received from now on."""

    def on_link_message(self, link: Link, message: Message) -> None:
        """The peer has sent a message other than a heartbeat or a goodbye."""

    def on_link_ended(self, link: Link, reason: CloseReason) -> None:
        """The link cannot be used any more. Called once, also for a link that was never up."""

    def on_link_closed(self, link: Link) -> None:
        """The link's socket is closed. Called once, after `on_link_ended`."""


class _State(Enum):
    CONNECTING = auto()
    AUTHENTICATING = auto()
    TLS_HANDSHAKE = auto()
    AWAITING_FRAME = auto()
    UP = auto()
    ENDED = auto()


class Link(asyncio.Protocol):
    """One side of a connection.

    `source` is the other side's host, for the log. `tls` must be the object that was passed to `handshake`.
    """

    def __init__(
        self,
        observer: LinkObserver,
        handshake: ServerHandshake | ClientHandshake,
        source: str,
        limits: LinkLimits,
        tls: PinnedTls | None = None,
    ) -> None:
        self.source = source
        self.peer: PeerIdentity | None = None  # set once authenticated
        self.version = 0  # of the protocol, as negotiated
        self.close_reason: CloseReason | None = None
        self.settled = asyncio.Event()  # set once the link is up or has ended
        self.was_connected = False  # True once a transport holds the socket
        self._observer = observer
        self._handshake = handshake
        self._limits = limits
        self._pinned_tls = tls
        self._tls: TlsStream | None = None
        self._state = _State.CONNECTING
        self._decoder = FrameDecoder(HANDSHAKE_FRAME_LIMIT_BYTES)
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._signer: FrameSigner | None = None
        self._verifier: FrameVerifier | None = None
        self._unsent: list[bytes] = []
        self._sent_since_tick = False
        self._silent_ticks = 0

    @property
    def is_outbound(self) -> bool:
        """True if this side dialed."""
        return isinstance(self._handshake, ClientHandshake)

    @property
    def is_up(self) -> bool:
        """True if messages can be sent."""
        return self._state is _State.UP

    @property
    def tls_version(self) -> str | None:
        """The version of TLS within the link or below it, or None without TLS."""
        if self._tls is not None:
            return self._tls.version
        below: ssl.SSLObject | None = self._transport.get_extra_info("ssl_object") if self._transport else None
        return below.version() if below is not None else None

    # Calls of the mesh.

    def send(self, message: Message) -> None:
        """Send a message. It is lost if the link is not up. Raises `WireError` if it exceeds the frame limit."""
        self.send_encoded(encode(message))

    def send_encoded(self, payload: bytes) -> None:
        """Send an encoded message, as `send` does. A broadcast encodes its message only once."""
        if self._signer is None or self._state is not _State.UP:
            return
        signed = self._signer.sign(payload, self._limits.frame_limit_bytes)
        if not self._unsent:  # all frames of one turn of the event loop take one write
            asyncio.get_running_loop().call_soon(self._flush)
        self._unsent.append(signed)
        self._sent_since_tick = True

    def close_gracefully(self) -> None:
        """Send a goodbye, then end the link."""
        self.send_encoded(_GOODBYE)
        self._flush()
        self.end(CloseReason.STOPPED)

    def end(self, reason: CloseReason) -> None:
        """End the link. Does nothing if it has ended already."""
        if self._state is _State.ENDED:
            return
        self._state = _State.ENDED
        self.close_reason = reason
        self._unsent.clear()
        self._stop_timer()
        if self._transport is not None:
            if reason in _GRACEFUL:
                self._transport.close()
            else:
                self._transport.abort()
            self._timer = asyncio.get_running_loop().call_later(_LINGER_SECONDS, self._abort_lingering)
        self.settled.set()
        self._observer.on_link_ended(self, reason)
        if self._transport is None:
            self._observer.on_link_closed(self)

    def _abort_lingering(self) -> None:
        """Abort a transport that has not closed in time.

        Either the peer does not read, or uvloop did not call `connection_lost`. The latter happens if the connecting
        task is cancelled at the moment of connection.
        """
        if self._transport is not None:
            self._transport.abort()
            self._transport = None
            self._observer.on_link_closed(self)

    # Calls of the transport.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.was_connected = True
        if self._state is _State.ENDED:
            cast(asyncio.Transport, transport).abort()
            return
        self._transport = cast(asyncio.Transport, transport)
        self._state = _State.AUTHENTICATING
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._limits.handshake_seconds, self.end, CloseReason.TIMEOUT)
        if isinstance(self._handshake, ServerHandshake):
            self._write(self._handshake.challenge)

    def data_received(self, data: bytes) -> None:
        self._silent_ticks = 0
        try:
            bodies = self._decoder.feed(data if self._tls is None else self._decrypt(self._tls, data))
        except WireError as error:
            self.end(error.close_reason)
            return
        for number, body in enumerate(bodies, 1):
            if self._state is _State.AUTHENTICATING:
                self._on_handshake_frame(body)
                if self._tls is not None and (number < len(bodies) or self._decoder.has_partial_frame):
                    self.end(CloseReason.GARBAGE)  # plaintext after the handshake would pass for TLS-protected data
            elif self._state is not _State.ENDED:
                self._on_frame(body)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._transport is None:
            return  # ended before it was connected, or aborted after lingering
        self._transport = None
        if self._state is _State.ENDED:
            self._stop_timer()
            self._observer.on_link_closed(self)
        else:
            # A router closes silently if it cannot verify the proof of the other side.
            refused = self.is_outbound and self._state is _State.AUTHENTICATING
            self.end(CloseReason.REFUSED if refused else CloseReason.CLOSED)

    # Handshake.

    def _on_handshake_frame(self, body: bytes) -> None:
        try:
            if isinstance(self._handshake, ServerHandshake):
                self._on_response(self._handshake, body)
            elif not self._handshake.has_responded:
                self._write(self._handshake.respond(body))
            else:
                self._on_verdict(self._handshake, body)
        except WireError as error:
            self.end(error.close_reason)
        except HandshakeError as error:
            self.peer = error.peer
            self.end(error.close_reason)

    def _on_response(self, handshake: ServerHandshake, body: bytes) -> None:
        """Verify the dialing side's proof and send the verdict."""
        reason: CloseReason | None
        try:
            self.peer = handshake.receive_response(body)
            reason = self._observer.on_authenticated(self)
        except HandshakeError as error:
            if error.peer is None:
                raise
            self.peer, reason = error.peer, error.close_reason
        if reason is None:
            verdict, session = handshake.accept()
            self._start_session(session)
            self._state = _State.AWAITING_FRAME
        else:
            verdict = handshake.refuse(reason)
        self._write(verdict)
        if reason is not None:
            self.end(reason)

    def _on_verdict(self, handshake: ClientHandshake, body: bytes) -> None:
        """Verify the accepting side's verdict and start the session."""
        self.peer, session = handshake.receive_verdict(body)
        reason = self._observer.on_authenticated(self)
        if reason is not None:
            self.end(reason)
            return
        self._start_session(session)
        if self._tls is None:
            self._go_up()
        else:
            self._state = _State.TLS_HANDSHAKE
            self._decrypt(self._tls, b"")

    def _start_session(self, session: Session) -> None:
        self.version = session.version
        self._signer = FrameSigner(session.send_key)
        self._verifier = FrameVerifier(session.receive_key)
        self._decoder.limit = self._limits.frame_limit_bytes
        if session.certificate_digest is not None and self._pinned_tls is not None:
            self._tls = TlsStream(self._pinned_tls, session.certificate_digest if self.is_outbound else None)

    def _decrypt(self, tls: TlsStream, data: bytes) -> bytes:
        """Return the decrypted data; none during the TLS handshake. Raises `WireError`."""
        decrypted = tls.receive(data)
        self._write(tls.take_outgoing())
        if self._state is _State.TLS_HANDSHAKE and tls.is_established:
            self._go_up()
        return decrypted

    def _go_up(self) -> None:
        self._state = _State.UP
        self.settled.set()
        self._stop_timer()
        self._tick()  # sends the frame that the accepting side waits for
        self._observer.on_link_up(self)

    # Messages.

    def _on_frame(self, body: bytes) -> None:
        assert self._verifier is not None
        try:
            message = decode(self._verifier.verify(body))
        except WireError as error:
            self.end(error.close_reason)
            return
        if self._state is _State.AWAITING_FRAME:
            self._go_up()
        if isinstance(message, Goodbye):
            self.end(CloseReason.GOODBYE)
        elif message is not None and not isinstance(message, Heartbeat) and self._state is _State.UP:
            self._observer.on_link_message(self, message)

    def _flush(self) -> None:
        if self._unsent:
            data = b"".join(self._unsent)
            self._unsent.clear()
            if self._tls is not None:
                self._tls.encrypt(data)
                data = self._tls.take_outgoing()
            self._write(data)
            if self._transport and self._transport.get_write_buffer_size() > self._limits.write_limit_bytes:
                self.end(CloseReason.UNREAD)

    def _write(self, data: bytes) -> None:
        if data and self._transport is not None and not self._transport.is_closing():  # uvloop raises while closing
            self._transport.write(data)

    def _tick(self) -> None:
        """Run once per heartbeat interval: check for silence, and send a heartbeat if nothing else was sent.

        Silence is counted in ticks, not in seconds. Otherwise, after this process was stalled, all peers would seem to
        have been silent.
        """
        if self._silent_ticks * self._limits.heartbeat_seconds >= self._limits.dead_after_seconds:
            self.end(CloseReason.SILENT)
            return
        self._silent_ticks += 1
        if not self._sent_since_tick:
            self.send_encoded(_HEARTBEAT)
        self._sent_since_tick = False
        self._timer = asyncio.get_running_loop().call_later(self._limits.heartbeat_seconds, self._tick)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
