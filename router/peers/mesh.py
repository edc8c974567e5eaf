"""The links of one router with all others: who is expected, who is connected, who lives.

    addresses --> pursuits --dial--> links <--accept-- peers
                                       |
                                    roster: LIVE, GONE, UNREACHABLE --> listener

A router that dials in is accepted whether it is expected or not, as long as it knows the secret, and says where it
listens. Nobody can tell its death from a cut network by its silence, so that address is dialled as well: once to see
that it is indeed this peer who answers there (which ends as a duplicate), and again when the link is lost.

Lives here: what must be known of all links together. Must not live here: one connection's bytes (`link`), which of two
stays (`roster`), what messages mean (whoever listens).
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import time
from collections.abc import Iterator, Mapping

from router.peers.accepting import Acceptor, listening_socket
from router.peers.dialling import Address, DialPace, Pursuit, connect, is_numeric
from router.peers.encryption import LinkTls
from router.peers.endings import REFUSALS, Ending, Refusals
from router.peers.handshake import SUPPORTED, ClientHandshake, Party, ServerHandshake, Versions, check_secret
from router.peers.link import Link, LinkLimits
from router.peers.messages import Message
from router.peers.roster import MeshListener, Roster, Standing, chooses, judge
from router.peers.wire import MessageReader, encode
from router.telemetry.log import event

__all__ = ["Mesh", "MeshListener"]

_log = logging.getLogger("router.peers")

_STOP_SECONDS = 2.0  # in which connections close; longer than a link takes for its last words
_ANY = ("0.0.0.0", "::")


class Mesh:
    """One router among its peers.

    `listen` is an address to listen on, or a bound socket, which belongs to the mesh from then on. `secret` is shared
    by all routers and must be random. `own_id` must be no other router's. Links are authenticated in any case; without
    `tls` they can be read on the way, service keys included.
    """

    def __init__(
        self,
        own_id: str,
        listen: Address | socket.socket,
        secret: bytes,
        listener: MeshListener,
        *,
        tls: LinkTls | None = None,
        limits: LinkLimits | None = None,
        pace: DialPace | None = None,
        versions: Versions = SUPPORTED,
        incarnation: str | None = None,
    ) -> None:
        """Raises `ValueError` for an id that cannot be one or a secret that is too short."""
        self._own = Party(own_id, incarnation or Party.new_incarnation(), "", 0)
        self._listen = listen
        self._secret = check_secret(secret)
        self._listener = listener
        self._tls = tls or LinkTls()
        self._limits = limits or LinkLimits()
        self._pace = pace or DialPace()
        self._versions = versions
        self._reader = MessageReader()
        self._refusals = Refusals()
        self._roster = Roster()
        self._pursuits: dict[Address, Pursuit] = {}
        self._links: dict[str, Link] = {}  # that are up, by peer
        self._promised: dict[str, Link] = {}  # agreed to by this side, which chooses, and not yet up
        self._open: set[Link] = set()  # whose socket is not closed
        self._tasks: set[asyncio.Task[None]] = set()
        self._acceptor: Acceptor | None = None
        self._stopping = False
        self._all_closed = asyncio.Event()

    # Life.

    async def start(self) -> None:
        """Listen, and dial those who are expected. Raises `OSError` if the address cannot be listened on."""
        sock = self._listen if isinstance(self._listen, socket.socket) else listening_socket(*self._listen)
        host, port = sock.getsockname()[:2]
        self._own = Party(self._own.id, self._own.incarnation, "" if host in _ANY else str(host), int(port))
        self._acceptor = Acceptor(sock, self._accepted, self._tls.accepting, self._limits.handshake_seconds)
        self._acceptor.start()
        for pursuit in self._pursuits.values():
            self._begin(pursuit)

    async def stop(self) -> None:
        """Say goodbye and close. To be called when no front-end of this router has a request any more, as peers take
        this process for ended from then on. The listener hears nothing more."""
        self._stopping = True
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        if self._acceptor is not None:
            await self._acceptor.stop()
        for link in tuple(self._open):
            link.leave()
        if self._open:
            self._all_closed.clear()
            try:
                async with asyncio.timeout(_STOP_SECONDS):
                    await self._all_closed.wait()
            except TimeoutError:
                event(_log, logging.ERROR, "connections with peers do not close", connections=len(self._open))

    @property
    def own(self) -> Party:
        """Who this router says it is; host and port are known once it has started."""
        return self._own

    # What the caller wants.

    def set_expected(self, addresses: Mapping[Address, str | None]) -> None:
        """Make `addresses` the complete set of those to be linked with, each with the id of its router where the caller
        knows it. This router's own may be among them. A peer that cannot be reached and is no longer expected counts as
        gone."""
        former: set[str | None] = {p.peer for p in self._pursuits.values() if p.expected}
        for pursuit in [p for p in self._pursuits.values() if p.expected and p.address not in addresses]:
            pursuit.expected = False
            if pursuit.peer is None or pursuit.peer not in self._links:
                self._drop(pursuit)
        for address, peer in addresses.items():
            pursuit = self._pursuits.get(address) or self._pursue(address)
            pursuit.expected = True
            pursuit.claimant = None
            pursuit.peer = peer or pursuit.peer
            pursuit.wake()
        pursued = {p.peer for p in self._pursuits.values()}
        for peer in former - pursued - self._links.keys():
            if peer is not None:
                self.give_up(peer)

    def give_up(self, peer: str) -> None:
        """The caller knows that a peer, which cannot be reached, has ended. Nothing happens while its link is up."""
        if peer in self._links:
            return
        for pursuit in [p for p in self._pursuits.values() if peer in (p.peer, p.claimant) and not p.expected]:
            self._drop(pursuit)
        self._gone(peer)
        self._roster.forget(peer)

    def send(self, peer: str, message: Message) -> None:
        """Say something to a peer; lost if its link is down. Raises `WireError` for a message that is too large."""
        link = self._links.get(peer)
        if link is not None:
            link.send(message)

    def broadcast(self, message: Message) -> None:
        """Say something to all peers whose link is up. Raises `WireError` for a message that is too large."""
        payload = encode(message)
        for link in tuple(self._links.values()):
            link.send_payload(payload)

    # What is so.

    def live(self) -> frozenset[str]:
        """Peers whose link is up."""
        return frozenset(self._links)

    def unencrypted(self) -> frozenset[str]:
        """Those of them with whom there is no TLS."""
        return frozenset(peer for peer, link in self._links.items() if link.tls_version is None)

    def unreachable(self) -> Mapping[str, float]:
        """Peers that may live but cannot be reached, and since when (seconds of `time.monotonic`)."""
        return self._roster.unreachable()

    def standings(self) -> Mapping[Address, Standing | None]:
        """What is known of who listens at each expected address, None where nothing is yet; without this router's
        own, once that is noticed."""
        return {p.address: self._standing(p) for p in self._pursuits.values() if p.expected and not p.is_self}

    def unmet(self) -> frozenset[Address]:
        """Expected addresses of which nobody knows which router listens there, and that may have one."""
        return frozenset(
            p.address
            for p in self._pursuits.values()
            if p.expected and not p.is_self and p.peer is None and p.standing is not Standing.GONE
        )

    def has_tried_all(self) -> bool:
        """Whether it is known of each expected address who listens there, or that nobody can be reached."""
        return all(standing is not None for standing in self.standings().values())

    @property
    def refusals(self) -> Mapping[str, int]:
        """Connections refused or broken off for what came, by reason, since the start."""
        return self._refusals.counts

    @property
    def unknown_messages(self) -> int:
        """Messages passed over as this release does not know them, since the start."""
        return self._reader.unknown

    def _standing(self, pursuit: Pursuit) -> Standing | None:
        known = self._roster.standing(pursuit.peer) if pursuit.peer is not None else None
        return known or pursuit.standing

    # Dialling.

    def _pursue(self, address: Address) -> Pursuit:
        pursuit = self._pursuits[address] = Pursuit(address, self._pace)
        if self._acceptor is not None:
            self._begin(pursuit)
        return pursuit

    def _begin(self, pursuit: Pursuit) -> None:
        task = pursuit.task = asyncio.ensure_future(pursuit.run(self._is_wanted, self._attempt))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _drop(self, pursuit: Pursuit) -> None:
        del self._pursuits[pursuit.address]
        if pursuit.task is not None:
            pursuit.task.cancel()

    def _is_wanted(self, pursuit: Pursuit) -> bool:
        if pursuit.is_self:
            return False
        return pursuit.peer is None or not (pursuit.peer in self._links or pursuit.peer in self._promised)

    def _pursuits_of(self, peer: str) -> Iterator[Pursuit]:
        return (pursuit for pursuit in tuple(self._pursuits.values()) if pursuit.peer == peer)

    async def _attempt(self, pursuit: Pursuit) -> None:
        host = pursuit.address[0]
        try:
            link = await connect(pursuit.address, lambda: self._dialled(host), self._tls.dialling, self._pace)
        except ConnectionRefusedError:
            self._found_nobody(pursuit)
        except OSError as error:
            if isinstance(error, ssl.SSLError):
                self._refused(host, Ending.TLS, dialled=True)
            self._not_reached(pursuit)
        else:
            try:
                await link.settled.wait()
            finally:
                if not link.is_up:
                    link.end(Ending.STOPPED)
            self._found(pursuit, link)

    def _found(self, pursuit: Pursuit, link: Link) -> None:
        """Somebody answered at this address."""
        former = pursuit.peer
        if link.peer is None or link.ending is Ending.SAME_ID:
            self._not_reached(pursuit)
        elif link.ending is Ending.SELF:
            pursuit.is_self = True
        elif pursuit.claimant not in (None, link.peer.id):
            self._drop(pursuit)  # a peer that is no longer linked gave an address that is another one's
        else:
            pursuit.peer, pursuit.claimant = link.peer.id, None
            if not link.is_up and link.ending is not Ending.DUPLICATE:
                self._not_reached(pursuit)
            if former not in (None, link.peer.id) and is_numeric(pursuit.address):
                self._gone(former)  # it listened where another router does now

    def _not_reached(self, pursuit: Pursuit) -> None:
        pursuit.standing = Standing.UNREACHABLE
        peer = pursuit.peer
        if peer is not None and peer not in self._links and self._roster.not_reached(peer, time.monotonic()):
            self._listener.peer_down(peer, certain=False)

    def _found_nobody(self, pursuit: Pursuit) -> None:
        """Nobody listens at this address. Of a peer that merely says that it listens there this tells nothing."""
        pursuit.standing = Standing.GONE
        if pursuit.peer is not None:
            self._gone(pursuit.peer)
        if not pursuit.expected:
            self._drop(pursuit)

    def _gone(self, peer: str) -> None:
        if peer not in self._links and self._roster.nobody_listens(peer, time.monotonic()):
            event(_log, logging.INFO, "peer is gone", peer=peer)
            self._listener.peer_certainly_gone(peer)

    # Links.

    def _dialled(self, host: str) -> Link:
        return self._made(ClientHandshake(self._own, self._secret, self._versions, self._tls.agreed), host)

    def _accepted(self, source: str) -> Link:
        return self._made(ServerHandshake(self._own, self._secret, self._versions, self._tls.agreed), source)

    def _made(self, handshake: ClientHandshake | ServerHandshake, source: str) -> Link:
        link = Link(self, handshake, source, self._limits, self._reader, self._tls.agreed)
        self._open.add(link)
        return link

    def link_agreed(self, link: Link) -> Ending | None:
        """See `LinkOwner`."""
        peer = _peer(link)
        we_choose = chooses(self._own, peer)
        rival = self._links.get(peer.id) or (self._promised.get(peer.id) if we_choose else None)
        ending = judge(self._own, peer, _peer(rival).incarnation if rival is not None else None)
        if ending is None and we_choose and not link.dialled:
            self._promise(peer.id, link)
        return ending

    def _promise(self, peer: str, link: Link | None) -> None:
        """Let `link`, or none, be the one that is agreed to and about to be up."""
        former = self._promised.pop(peer, None)
        if link is not None:
            self._promised[peer] = link
        if former is not None and former is not link and not former.is_up:
            former.end(Ending.REPLACED)

    def link_up(self, link: Link) -> None:
        """See `LinkOwner`."""
        if self._stopping:
            link.leave()
            return
        peer = _peer(link)
        self._promise(peer.id, None)
        former = self._links.get(peer.id)
        if former is not None and peer.incarnation < _peer(former).incarnation:
            link.end(Ending.STALE)  # came up while this one was under way
            return
        if former is not None:
            self._lost(former, Ending.REPLACED, certain=_peer(former).incarnation < peer.incarnation)
            former.end(Ending.REPLACED)
        self._links[peer.id] = link
        was_gone = self._roster.came_up(peer, time.monotonic())
        event(_log, logging.INFO, "peer is up", peer=peer.id, source=link.source, tls=link.tls_version)
        if not link.dialled:
            self._note_address(peer, link.source)
        if was_gone:
            self._listener.peer_certainly_gone(peer.id)
        self._listener.peer_up(peer.id, peer.incarnation)

    def link_said(self, link: Link, message: Message) -> None:
        """See `LinkOwner`."""
        if not self._stopping:
            self._listener.peer_said(_peer(link).id, message)

    def link_ended(self, link: Link, ending: Ending) -> None:
        """See `LinkOwner`."""
        if ending in REFUSALS:
            self._refused(link.source, ending, dialled=link.dialled)
        if link.peer is not None and self._promised.get(link.peer.id) is link:
            del self._promised[link.peer.id]
            self._wake(link.peer.id)
        if link.peer is not None and self._links.get(link.peer.id) is link:
            self._lost(link, ending, certain=ending is Ending.GOODBYE)

    def link_closed(self, link: Link) -> None:
        """See `LinkOwner`."""
        self._open.discard(link)
        if not self._open:
            self._all_closed.set()

    def _lost(self, link: Link, ending: Ending, *, certain: bool) -> None:
        """The link of a peer is no longer of use."""
        peer = _peer(link).id
        del self._links[peer]
        lived = self._roster.went_down(peer, time.monotonic(), certain=certain)
        if self._stopping:
            return
        event(_log, logging.INFO if certain else logging.WARNING, "peer is down", peer=peer, reason=ending.value)
        for pursuit in self._pursuits_of(peer):
            if lived >= self._pace.longest_pause_seconds:
                pursuit.backoff.reset()
            if ending is Ending.GOODBYE and not pursuit.expected:
                self._drop(pursuit)
        self._wake(peer)
        self._listener.peer_down(peer, certain)

    def _wake(self, peer: str) -> None:
        for pursuit in self._pursuits_of(peer):
            pursuit.wake()

    def _note_address(self, peer: Party, source: str) -> None:
        """A peer has dialled in: see to it that there is an address to dial it at."""
        address = (peer.host or source, peer.port)
        if any(pursuit.expected for pursuit in self._pursuits_of(peer.id)):
            return
        for pursuit in [p for p in self._pursuits.values() if not p.expected and peer.id in (p.peer, p.claimant)]:
            if pursuit.address != address:
                self._drop(pursuit)
        if address not in self._pursuits:
            self._pursue(address).claimant = peer.id

    def _refused(self, source: str, ending: Ending, *, dialled: bool) -> None:
        if self._refusals.note(source, ending, time.monotonic()) and not self._stopping:
            message = "no link with a peer that was dialled" if dialled else "connection on the peer port refused"
            event(_log, logging.WARNING, message, source=source, reason=ending.value)


def _peer(link: Link) -> Party:
    assert link.peer is not None, "asked of a link whose peer has not proven itself"
    return link.peer
