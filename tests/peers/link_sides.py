"""Both sides of a link with fake transports. Tests move the bytes between them."""

import asyncio

from router.peers.close_reason import CloseReason
from router.peers.handshake import SUPPORTED_VERSIONS, ClientHandshake, PeerIdentity, ProtocolVersions, ServerHandshake
from router.peers.link import Link, LinkLimits
from router.peers.messages import Message
from router.peers.tls_stream import PinnedTls
from tests.peers.mesh_fixtures import SECRET

DIALING_PEER = PeerIdentity("a", "00000000000000a1", "127.0.0.1", 1)
ACCEPTING_PEER = PeerIdentity("b", "00000000000000b1", "127.0.0.1", 2)
NO_TIMEOUTS = LinkLimits(handshake_seconds=60.0, heartbeat_seconds=60.0, dead_after_seconds=600.0)


class FakeTransport(asyncio.Transport):
    """Keeps written data until a test takes it."""

    def __init__(self, protocol: Link) -> None:
        super().__init__()
        self.writes: list[bytes] = []
        self.closed_by = ""  # "close" or "abort"
        self.write_buffer_size = 0
        self._protocol = protocol

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.closed_by, "write to a closed transport, where uvloop raises"
        self.writes.append(bytes(data))

    def is_closing(self) -> bool:
        return bool(self.closed_by)

    def get_write_buffer_size(self) -> int:
        return self.write_buffer_size

    def close(self) -> None:
        self._close("close")

    def abort(self) -> None:
        self._close("abort")

    def _close(self, method: str) -> None:
        if not self.closed_by:
            self.closed_by = method
            asyncio.get_running_loop().call_soon(self._protocol.connection_lost, None)


class RecordingLinkObserver:
    """The `LinkObserver` of a link. Records its calls: "authenticated", "up", messages, the close reason, "closed"."""

    def __init__(self) -> None:
        self.events: list[object] = []
        self.refuse_with: CloseReason | None = None

    def on_authenticated(self, link: Link) -> CloseReason | None:
        self.events.append("authenticated")
        return self.refuse_with

    def on_link_up(self, link: Link) -> None:
        self.events.append("up")

    def on_link_message(self, link: Link, message: Message) -> None:
        self.events.append(message)

    def on_link_ended(self, link: Link, reason: CloseReason) -> None:
        self.events.append(reason)

    def on_link_closed(self, link: Link) -> None:
        self.events.append("closed")


class LinkSide:
    """One side of a link, with its observer and its transport."""

    def __init__(self, link: Link, observer: RecordingLinkObserver) -> None:
        self.link = link
        self.observer = observer
        self.transport = FakeTransport(link)
        link.connection_made(self.transport)

    def take_written(self) -> bytes:
        """Return the data written since the last call."""
        data = b"".join(self.transport.writes)
        self.transport.writes.clear()
        return data


def dialing_side(
    limits: LinkLimits = NO_TIMEOUTS,
    *,
    secret: bytes = SECRET,
    versions: ProtocolVersions = SUPPORTED_VERSIONS,
    tls: PinnedTls | None = None,
) -> LinkSide:
    observer = RecordingLinkObserver()
    handshake = ClientHandshake(DIALING_PEER, secret, versions, tls)
    return LinkSide(Link(observer, handshake, source="127.0.0.2", limits=limits, tls=tls), observer)


def accepting_side(
    limits: LinkLimits = NO_TIMEOUTS,
    *,
    secret: bytes = SECRET,
    versions: ProtocolVersions = SUPPORTED_VERSIONS,
    tls: PinnedTls | None = None,
) -> LinkSide:
    observer = RecordingLinkObserver()
    handshake = ServerHandshake(ACCEPTING_PEER, secret, versions, tls)
    return LinkSide(Link(observer, handshake, source="127.0.0.1", limits=limits, tls=tls), observer)


async def exchange_bytes(one: LinkSide, other: LinkSide) -> None:
    """Deliver written data to the other side, in both directions, until there is none."""
    while True:
        await asyncio.sleep(0)
        from_one, from_other = one.take_written(), other.take_written()
        if not from_one and not from_other:
            return
        for data, receiver in ((from_one, other), (from_other, one)):
            if data and not receiver.transport.closed_by:
                receiver.link.data_received(data)


async def linked_sides(limits: LinkLimits = NO_TIMEOUTS) -> tuple[LinkSide, LinkSide]:
    """Return the dialing and the accepting side of a link that is up."""
    dialing, accepting = dialing_side(limits), accepting_side(limits)
    await exchange_bytes(dialing, accepting)
    assert dialing.observer.events == accepting.observer.events == ["authenticated", "up"]
    return dialing, accepting


def end_both_sides(dialing: LinkSide, accepting: LinkSide) -> None:
    """End the link on both sides, which cancels its timers."""
    dialing.link.end(CloseReason.STOPPED)
    accepting.link.end(CloseReason.STOPPED)
