"""One connection with a peer: hand-shake, then messages both ways, until one of its bounds is reached or a side leaves.

    CONNECTING --connected--> PROVING --proven--> AGREED --first sealed frame--> UP
         |                       |   (accepting side)  |                         |
         |                       +--proven--> SECURING --TLS, or none agreed-----+
         |                       |        (dialling side)                        |
         +-----------------------+-- ended ------------+-------------------------+--> ENDED

The dialling side says something as soon as it is up, and only then the accepting side is: so both know that the other
one holds the session's key, and the dialling side may still leave after it has learnt who answers.

Lives here: the bytes of one connection and its clock. Must not live here: which connections there should be (`mesh`),
which of two stays (`roster`).
"""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass
from enum import Enum, auto
from typing import Protocol, cast

from router.peers.encryption import Encryption, TlsStream
from router.peers.endings import Ending
from router.peers.frames import FRAME_LIMIT_BYTES, FrameDecoder, Opener, Sealer, WireError
from router.peers.handshake import (
    HANDSHAKE_FRAME_LIMIT_BYTES,
    ClientHandshake,
    HandshakeError,
    Party,
    ServerHandshake,
    Session,
)
from router.peers.messages import Goodbye, Heartbeat, Message
from router.peers.wire import MessageReader, encode

_LINGER_SECONDS = 1.0  # what was said last may take so long to reach a peer that reads slowly
_HEARTBEAT = encode(Heartbeat())
_GOODBYE = encode(Goodbye())

# After these the last words are still sent; after the others nobody is left to hear them, or to be trusted with them.
_IN_ORDER = frozenset(
    (
        Ending.VERSION, Ending.UNENCRYPTED, Ending.STALE, Ending.SAME_ID, Ending.SELF, Ending.DUPLICATE,
        Ending.REPLACED, Ending.GOODBYE, Ending.STOPPED,
    )
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkLimits:
    """Bounds of a link. Both ends must have a `dead_after_seconds` well above the other's `heartbeat_seconds`."""

    handshake_seconds: float = 2.0
    heartbeat_seconds: float = 0.2
    dead_after_seconds: float = 1.0
    """Silence after which a link is down."""
    frame_limit_bytes: int = FRAME_LIMIT_BYTES
    write_limit_bytes: int = 32 * 1024 * 1024
    """A peer that leaves more unread is not read for."""


class LinkOwner(Protocol):
    """Who has links. The calls are plain functions and must not block."""

    def link_agreed(self, link: Link) -> Ending | None:
        """`link.peer` has proven itself: None to go on with it, else why not."""

    def link_up(self, link: Link) -> None:
        """Messages can be sent and will come."""

    def link_said(self, link: Link, message: Message) -> None:
        """The peer speaks: anything but a heartbeat or a goodbye."""

    def link_ended(self, link: Link, ending: Ending) -> None:
        """The link is of no use any more; called once, also for one that never was up."""

    def link_closed(self, link: Link) -> None:
        """Its socket is closed; called once, after `link_ended`."""


class _State(Enum):
    CONNECTING = auto()
    PROVING = auto()
    SECURING = auto()
    AGREED = auto()
    UP = auto()
    ENDED = auto()


class Link(asyncio.Protocol):
    """Either end. `source` is the other end's host, for the log; `reader` may be shared by links. `encryption` is what
    the hand-shake goes by."""

    def __init__(
        self,
        owner: LinkOwner,
        handshake: ServerHandshake | ClientHandshake,
        source: str,
        limits: LinkLimits,
        reader: MessageReader,
        encryption: Encryption | None = None,
    ) -> None:
        self.source = source
        self.peer: Party | None = None  # known once it has proven itself
        self.version = 0  # of the protocol, as agreed
        self.ending: Ending | None = None
        self.settled = asyncio.Event()  # set once the link is up or has ended
        self.was_connected = False  # a transport has taken the socket over
        self._owner = owner
        self._handshake = handshake
        self._limits = limits
        self._reader = reader
        self._encryption = encryption
        self._tls: TlsStream | None = None
        self._state = _State.CONNECTING
        self._decoder = FrameDecoder(HANDSHAKE_FRAME_LIMIT_BYTES)
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._sealer: Sealer | None = None
        self._opener: Opener | None = None
        self._unsent: list[bytes] = []
        self._spoke = False  # since the last tick
        self._silent_ticks = 0

    @property
    def dialled(self) -> bool:
        """Whether this side dialled."""
        return isinstance(self._handshake, ClientHandshake)

    @property
    def is_up(self) -> bool:
        """Whether messages can be sent."""
        return self._state is _State.UP

    @property
    def tls_version(self) -> str | None:
        """Of TLS on this connection, be it within the link or around it; None where there is none."""
        if self._tls is not None:
            return self._tls.version
        around: ssl.SSLObject | None = self._transport.get_extra_info("ssl_object") if self._transport else None
        return around.version() if around is not None else None

    # What the owner does.

    def send(self, message: Message) -> None:
        """Say something; lost if the link is not up. Raises `WireError` for a message over the limit of a frame."""
        self.send_payload(encode(message))

    def send_payload(self, payload: bytes) -> None:
        """`send` for a message that is encoded already, as for one that goes to many."""
        if self._sealer is None or self._state is not _State.UP:
            return
        sealed = self._sealer.seal(payload, self._limits.frame_limit_bytes)
        if not self._unsent:  # what is said within one turn of the loop goes out in one write
            asyncio.get_running_loop().call_soon(self._flush)
        self._unsent.append(sealed)
        self._spoke = True

    def leave(self) -> None:
        """Say goodbye, then end."""
        self.send_payload(_GOODBYE)
        self._flush()
        self.end(Ending.STOPPED)

    def end(self, ending: Ending) -> None:
        """End the link, if it has not ended yet."""
        if self._state is _State.ENDED:
            return
        self._state = _State.ENDED
        self.ending = ending
        self._unsent.clear()
        self._stop_timer()
        if self._transport is not None:
            if ending in _IN_ORDER:
                self._transport.close()
            else:
                self._transport.abort()
            self._timer = asyncio.get_running_loop().call_later(_LINGER_SECONDS, self._cut)
        self.settled.set()
        self._owner.link_ended(self, ending)
        if self._transport is None:
            self._owner.link_closed(self)

    def _cut(self) -> None:
        """The transport has not closed yet: its peer does not read, or uvloop does not tell, as when the connecting
        task was cancelled at the moment of connection."""
        if self._transport is not None:
            self._transport.abort()
            self._transport = None
            self._owner.link_closed(self)

    # What the transport does.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.was_connected = True
        if self._state is _State.ENDED:
            cast(asyncio.Transport, transport).abort()
            return
        self._transport = cast(asyncio.Transport, transport)
        self._state = _State.PROVING
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._limits.handshake_seconds, self.end, Ending.TIMEOUT)
        if isinstance(self._handshake, ServerHandshake):
            self._write(self._handshake.challenge)

    def data_received(self, data: bytes) -> None:
        self._silent_ticks = 0
        try:
            bodies = self._decoder.feed(data if self._tls is None else self._decrypted(self._tls, data))
        except WireError as error:
            self.end(error.ending)
            return
        for number, body in enumerate(bodies, 1):
            if self._state is _State.PROVING:
                self._prove(body)
                if self._tls is not None and (number < len(bodies) or self._decoder.has_begun):
                    self.end(Ending.GARBAGE)  # what follows would count as if TLS had protected it
            elif self._state is not _State.ENDED:
                self._hear(body)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._transport is None:
            return  # had ended before it was connected, or was cut
        self._transport = None
        if self._state is _State.ENDED:
            self._stop_timer()
            self._owner.link_closed(self)
        else:
            # Whoever finds no proof in what it is sent says nothing and closes.
            refused = self.dialled and self._state is _State.PROVING
            self.end(Ending.REFUSED if refused else Ending.CLOSED)

    # Proof.

    def _prove(self, body: bytes) -> None:
        try:
            if isinstance(self._handshake, ServerHandshake):
                self._judge(self._handshake, body)
            else:
                self._ask(self._handshake, body)
        except WireError as error:
            self.end(error.ending)
        except HandshakeError as error:
            self.peer = error.peer
            self.end(error.ending)

    def _judge(self, handshake: ServerHandshake, body: bytes) -> None:
        """Take the dialling side's proof in, and answer."""
        ending: Ending | None
        try:
            self.peer = handshake.receive(body)
            ending = self._owner.link_agreed(self)
        except HandshakeError as error:
            if error.peer is None:
                raise
            self.peer, ending = error.peer, error.ending
        if ending is None:
            verdict, session = handshake.accept()
            self._begin(session)
            self._state = _State.AGREED
        else:
            verdict = handshake.refuse(ending)
        self._write(verdict)
        if ending is not None:
            self.end(ending)

    def _ask(self, handshake: ClientHandshake, body: bytes) -> None:
        """Answer the accepting side's challenge, then take its verdict in."""
        if not handshake.is_answered:
            self._write(handshake.answer(body))
            return
        self.peer, session = handshake.finish(body)
        ending = self._owner.link_agreed(self)
        if ending is not None:
            self.end(ending)
            return
        self._begin(session)
        if self._tls is None:
            self._rise()
        else:
            self._state = _State.SECURING
            self._decrypted(self._tls, b"")

    def _begin(self, session: Session) -> None:
        self.version = session.version
        self._sealer = Sealer(session.send_key)
        self._opener = Opener(session.receive_key)
        self._decoder.limit = self._limits.frame_limit_bytes
        if session.certificate is not None and self._encryption is not None:
            self._tls = TlsStream(self._encryption, session.certificate if self.dialled else None)

    def _decrypted(self, tls: TlsStream, data: bytes) -> bytes:
        """What has been said, once TLS's own hand-shake is done. Raises `WireError`."""
        said = tls.receive(data)
        self._write(tls.to_send())
        if self._state is _State.SECURING and tls.is_open:
            self._rise()
        return said

    def _rise(self) -> None:
        self._state = _State.UP
        self.settled.set()
        self._stop_timer()
        self._tick()  # the dialling side's first word must not wait
        self._owner.link_up(self)

    # Messages.

    def _hear(self, body: bytes) -> None:
        assert self._opener is not None
        try:
            message = self._reader.read(self._opener.open(body))
        except WireError as error:
            self.end(error.ending)
            return
        if self._state is _State.AGREED:
            self._rise()
        if isinstance(message, Goodbye):
            self.end(Ending.GOODBYE)
        elif message is not None and not isinstance(message, Heartbeat) and self._state is _State.UP:
            self._owner.link_said(self, message)

    def _flush(self) -> None:
        if self._unsent:
            data = b"".join(self._unsent)
            self._unsent.clear()
            if self._tls is not None:
                self._tls.say(data)
                data = self._tls.to_send()
            self._write(data)
            if self._transport and self._transport.get_write_buffer_size() > self._limits.write_limit_bytes:
                self.end(Ending.UNREAD)

    def _write(self, data: bytes) -> None:
        if data and self._transport is not None and not self._transport.is_closing():  # uvloop's raises once it is
            self._transport.write(data)

    def _tick(self) -> None:
        """Once per heartbeat. Silence is counted in these, not in seconds: a process that stood still itself must not
        take its own pause for its peers'."""
        if self._silent_ticks * self._limits.heartbeat_seconds >= self._limits.dead_after_seconds:
            self.end(Ending.SILENT)
            return
        self._silent_ticks += 1
        if not self._spoke:
            self.send_payload(_HEARTBEAT)
        self._spoke = False
        self._timer = asyncio.get_running_loop().call_later(self._limits.heartbeat_seconds, self._tick)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
