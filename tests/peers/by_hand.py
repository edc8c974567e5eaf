"""Both ends of a link, whose bytes a test carries by hand."""

import asyncio

from router.peers.encryption import Encryption
from router.peers.endings import Ending
from router.peers.handshake import SUPPORTED, ClientHandshake, Party, ServerHandshake, Versions
from router.peers.link import Link, LinkLimits
from router.peers.messages import Message
from router.peers.wire import MessageReader
from tests.peers.world import SECRET

ANN = Party("a", "00000000000000a1", "127.0.0.1", 1)
BEN = Party("b", "00000000000000b1", "127.0.0.1", 2)
STEADY = LinkLimits(handshake_seconds=60.0, heartbeat_seconds=60.0, dead_after_seconds=600.0)


class Hand(asyncio.Transport):
    """Keeps what is written until a test carries it over."""

    def __init__(self, protocol: Link) -> None:
        super().__init__()
        self.writes: list[bytes] = []
        self.closed = ""
        self.unread = 0
        self._protocol = protocol

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.closed, "uvloop's raises"
        self.writes.append(bytes(data))

    def is_closing(self) -> bool:
        return bool(self.closed)

    def get_write_buffer_size(self) -> int:
        return self.unread

    def close(self) -> None:
        self._close("in order")

    def abort(self) -> None:
        self._close("aborted")

    def _close(self, how: str) -> None:
        if not self.closed:
            self.closed = how
            asyncio.get_running_loop().call_soon(self._protocol.connection_lost, None)


class Owner:
    """Remembers what a link tells."""

    def __init__(self) -> None:
        self.told: list[object] = []
        self.verdict: Ending | None = None

    def link_agreed(self, link: Link) -> Ending | None:
        self.told.append("agreed")
        return self.verdict

    def link_up(self, link: Link) -> None:
        self.told.append("up")

    def link_said(self, link: Link, message: Message) -> None:
        self.told.append(message)

    def link_ended(self, link: Link, ending: Ending) -> None:
        self.told.append(ending)

    def link_closed(self, link: Link) -> None:
        self.told.append("closed")


class End:
    """One end of a link."""

    def __init__(self, link: Link, owner: Owner) -> None:
        self.link = link
        self.owner = owner
        self.hand = Hand(link)
        link.connection_made(self.hand)

    def takes(self) -> bytes:
        """All that the link has written since the last time."""
        data = b"".join(self.hand.writes)
        self.hand.writes.clear()
        return data


def dials(
    limits: LinkLimits = STEADY,
    *,
    secret: bytes = SECRET,
    versions: Versions = SUPPORTED,
    encryption: Encryption | None = None,
) -> End:
    owner = Owner()
    handshake = ClientHandshake(ANN, secret, versions, encryption)
    return End(Link(owner, handshake, "127.0.0.2", limits, MessageReader(), encryption), owner)


def accepts(
    limits: LinkLimits = STEADY,
    *,
    secret: bytes = SECRET,
    versions: Versions = SUPPORTED,
    encryption: Encryption | None = None,
) -> End:
    owner = Owner()
    handshake = ServerHandshake(BEN, secret, versions, encryption)
    return End(Link(owner, handshake, "127.0.0.1", limits, MessageReader(), encryption), owner)


async def carry(one: End, other: End) -> None:
    """Carry over what both have written, until there is nothing more."""
    while True:
        await asyncio.sleep(0)
        there, back = one.takes(), other.takes()
        if not there and not back:
            return
        for data, to in ((there, other), (back, one)):
            if data and not to.hand.closed:
                to.link.data_received(data)


async def linked(limits: LinkLimits = STEADY) -> tuple[End, End]:
    dialling, accepting = dials(limits), accepts(limits)
    await carry(dialling, accepting)
    assert dialling.owner.told == accepting.owner.told == ["agreed", "up"]
    return dialling, accepting
