"""All links of one router, and the status of its peers: expected, live, ended or unreachable.

    addresses --> dialers --dial--> links <--accept-- peers
                                      |
                              peer table: LIVE, GONE, UNREACHABLE --> observer

A router that connects and holds the secret is accepted, whether it is expected or not. In the handshake it gives the
address on which it listens. This router dials that address as well, because silence does not distinguish a dead peer
from a partitioned one, but a refused connect does (`dialer`). It dials once to verify that the peer listens there; this
connection is closed as a duplicate. It dials again when the link is lost.

The bytes of one connection are handled in `link`. Which of two connections is kept is decided in `peer_table`. Messages
are interpreted by the observer (`supervisor.peer_events`, which passes them on).
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import time
from collections.abc import Mapping

from router.net.listen import bind_listener
from router.peers.close_reason import REFUSALS, CloseReason, Refusals
from router.peers.dialer import Dialer, Dialers, DialPolicy, PeerAddress, connect, is_ip_address
from router.peers.handshake import (
    SUPPORTED_VERSIONS,
    ClientHandshake,
    PeerIdentity,
    ProtocolVersions,
    ServerHandshake,
    check_secret,
)
from router.peers.link import Link, LinkLimits
from router.peers.links import MeshObserver
from router.peers.listener import PeerListener
from router.peers.messages import Message
from router.peers.peer_table import PeerStatus, PeerTable, is_tie_breaker, resolve_duplicate
from router.peers.tls_stream import LinkTls
from router.peers.wire import encode
from router.telemetry.log import event

_log = logging.getLogger("router.peers")

_STOP_TIMEOUT_SECONDS = 2.0  # for connections to close; longer than a link lingers
_WILDCARD_HOSTS = ("0.0.0.0", "::")


class Mesh:
    """The links of one router with its peers. Implements `peers.links.Links`.

    `listen` is the address to listen on, or a bound socket, which the mesh closes at the end. `secret` is shared by all
    routers and must be random. `own_id` must be unique. Links are always authenticated. Without `tls` they are not
    encrypted, and messages on them contain the keys of services.
    """

    def __init__(
        self,
        own_id: str,
        listen: PeerAddress | socket.socket,
        secret: bytes,
        observer: MeshObserver,
        *,
        tls: LinkTls | None = None,
        limits: LinkLimits | None = None,
        dial_policy: DialPolicy | None = None,
        versions: ProtocolVersions = SUPPORTED_VERSIONS,
        incarnation: str | None = None,
    ) -> None:
        """Raises `ValueError` for an invalid id or a secret that is too short."""
        self._own = PeerIdentity(own_id, incarnation or PeerIdentity.new_incarnation(), "", 0)
        self._listen = listen
        self._secret = check_secret(secret)
        self._observer = observer
        self._tls = tls or LinkTls()
        self._limits = limits or LinkLimits()
        self._dial_policy = dial_policy or DialPolicy()
        self._versions = versions
        self._refusals = Refusals()
        self._peer_table = PeerTable()
        self._dialers = Dialers(self._dial_policy, self._should_dial, self._dial)
        self._links: dict[str, Link] = {}  # links that are up, by peer
        self._pending_up: dict[str, Link] = {}  # links that this side keeps as the tie-breaker, not yet up; by peer
        self._open_links: set[Link] = set()  # all links whose socket is not closed
        self._listener: PeerListener | None = None
        self._stopping = False
        self._all_closed = asyncio.Event()

    # Start and stop.

    async def start(self) -> None:
        """Listen, and dial the expected peers. Raises `OSError` if listening fails."""
        sock = self._listen if isinstance(self._listen, socket.socket) else bind_listener(*self._listen)
        host, port = sock.getsockname()[:2]
        given_host = "" if host in _WILDCARD_HOSTS else str(host)
        self._own = PeerIdentity(self._own.id, self._own.incarnation, given_host, int(port))
        handshake_seconds = self._limits.handshake_seconds
        self._listener = PeerListener(sock, self._make_inbound_link, self._tls.server_context, handshake_seconds)
        self._listener.start()
        self._dialers.start()

    async def stop(self) -> None:
        """Send a goodbye to all peers and close the links. The observer receives no more calls.

        Must be called after the last request of this router's workers has ended, because peers then consider this
        process ended.
        """
        self._stopping = True
        await self._dialers.stop()
        if self._listener is not None:
            await self._listener.stop()
        for link in tuple(self._open_links):
            link.close_gracefully()
        if self._open_links:
            self._all_closed.clear()
            try:
                async with asyncio.timeout(_STOP_TIMEOUT_SECONDS):
                    await self._all_closed.wait()
            except TimeoutError:
                event(_log, logging.ERROR, "connections with peers do not close", connections=len(self._open_links))

    # Calls of the supervisor.

    def set_expected_peers(self, addresses: Mapping[PeerAddress, str | None]) -> None:
        """Replace the addresses to connect to, each with the id of its router if known.

        This router's own address may be among them. An unreachable peer that is no longer expected is marked as gone.
        """
        previous = {d.peer for d in self._dialers if d.is_expected and d.peer is not None}
        for dialer in [d for d in self._dialers if d.is_expected and d.address not in addresses]:
            dialer.is_expected = False
            if dialer.peer is None or dialer.peer not in self._links:
                self._dialers.remove(dialer)
        for address, peer in addresses.items():
            dialer = self._dialers.get(address) or self._dialers.add(address)
            dialer.is_expected = True
            dialer.claimed_by = None
            dialer.peer = peer or dialer.peer
            dialer.wake()
        dialed = {d.peer for d in self._dialers}
        for peer in previous - dialed - self._links.keys():
            for dialer in [d for d in self._dialers if d.claimed_by == peer]:
                self._dialers.remove(dialer)
            self._mark_gone(peer)
            self._peer_table.forget(peer)

    def send(self, peer: str, message: Message) -> None:
        """Send a message to a peer. It is lost if the link is down. Raises `WireError` if it exceeds the frame
        limit."""
        link = self._links.get(peer)
        if link is not None:
            link.send(message)

    def broadcast(self, message: Message) -> None:
        """Send a message to all peers whose link is up. Raises `WireError` if it exceeds the frame limit."""
        payload = encode(message)
        for link in tuple(self._links.values()):
            link.send_encoded(payload)

    # Current state.

    @property
    def own(self) -> PeerIdentity:
        """This router's identity. Host and port are set by `start`."""
        return self._own

    def live(self) -> frozenset[str]:
        """Return the peers whose link is up."""
        return frozenset(self._links)

    def unencrypted(self) -> frozenset[str]:
        """Return the peers whose link is up without TLS."""
        return frozenset(peer for peer, link in self._links.items() if link.tls_version is None)

    def unreachable(self) -> Mapping[str, float]:
        """Return the peers that have no link but may still run, and since when (seconds of `time.monotonic`)."""
        return self._peer_table.unreachable()

    def expected_statuses(self) -> Mapping[PeerAddress, PeerStatus | None]:
        """Return the status of each expected address, or None before its first result.

        Excludes this router's own address once it is detected.
        """
        return {d.address: self._status_of(d) for d in self._dialers if d.is_expected and not d.is_self}

    def unidentified(self) -> frozenset[PeerAddress]:
        """Return the expected addresses at which a router with an unknown id may listen."""
        return frozenset(
            d.address
            for d in self._dialers
            if d.is_expected and not d.is_self and d.peer is None and d.last_failure is not PeerStatus.GONE
        )

    def has_tried_all(self) -> bool:
        """Return True once each expected address has a status."""
        return all(status is not None for status in self.expected_statuses().values())

    @property
    def refusals(self) -> Mapping[str, int]:
        """Refused connections by reason, since the start."""
        return self._refusals.counts

    def _status_of(self, dialer: Dialer) -> PeerStatus | None:
        status = self._peer_table.status(dialer.peer) if dialer.peer is not None else None
        return status or dialer.last_failure

    # Dialing.

    def _should_dial(self, dialer: Dialer) -> bool:
        if dialer.is_self:
            return False
        return dialer.peer is None or not (dialer.peer in self._links or dialer.peer in self._pending_up)

    async def _dial(self, dialer: Dialer) -> None:
        host = dialer.address[0]
        try:
            link = await connect(
                dialer.address, lambda: self._make_outbound_link(host), self._tls.client_context, self._dial_policy
            )
        except ConnectionRefusedError:
            self._on_refused(dialer)
        except OSError as error:
            if isinstance(error, ssl.SSLError):
                self._record_refusal(host, CloseReason.TLS, outbound=True)
            self._on_unreachable(dialer)
        else:
            try:
                await link.settled.wait()
            finally:
                if not link.is_up:
                    link.end(CloseReason.STOPPED)
            self._on_connected(dialer, link)

    def _on_connected(self, dialer: Dialer, link: Link) -> None:
        """Record which router listens at a dialed address."""
        previous = dialer.peer
        if link.peer is None or link.close_reason is CloseReason.SAME_ID:
            self._on_unreachable(dialer)
        elif link.close_reason is CloseReason.SELF:
            dialer.is_self = True
        elif dialer.claimed_by not in (None, link.peer.id):
            self._dialers.remove(dialer)  # the peer that gave this address does not listen there
        else:
            dialer.peer, dialer.claimed_by = link.peer.id, None
            if not link.is_up and link.close_reason is not CloseReason.DUPLICATE:
                self._on_unreachable(dialer)
            if previous not in (None, link.peer.id) and is_ip_address(dialer.address):
                self._mark_gone(previous)  # its address is now used by another router

    def _on_unreachable(self, dialer: Dialer) -> None:
        dialer.last_failure = PeerStatus.UNREACHABLE
        peer = dialer.peer
        if peer is not None and peer not in self._links and self._peer_table.mark_unreachable(peer, time.monotonic()):
            self._observer.on_peer_down(peer, process_ended=False)

    def _on_refused(self, dialer: Dialer) -> None:
        """Nothing listens at the address. This proves nothing about a peer that only claims the address."""
        dialer.last_failure = PeerStatus.GONE
        if dialer.peer is not None:
            self._mark_gone(dialer.peer)
        if not dialer.is_expected:
            self._dialers.remove(dialer)

    def _mark_gone(self, peer: str) -> None:
        if peer not in self._links and self._peer_table.mark_gone(peer, time.monotonic()):
            event(_log, logging.INFO, "peer has ended", peer=peer)
            self._observer.on_peer_gone(peer)

    def _learn_address(self, peer: PeerIdentity, source: str) -> None:
        """Dial the address that an inbound peer has given in its handshake, unless an address of it is known."""
        address = (peer.host or source, peer.port)
        if any(dialer.is_expected for dialer in self._dialers.of_peer(peer.id)):
            return
        for dialer in [d for d in self._dialers if not d.is_expected and peer.id in (d.peer, d.claimed_by)]:
            if dialer.address != address:
                self._dialers.remove(dialer)
        if self._dialers.get(address) is None:
            self._dialers.add(address).claimed_by = peer.id

    # Links.

    def _make_outbound_link(self, host: str) -> Link:
        return self._make_link(ClientHandshake(self._own, self._secret, self._versions, self._tls.pinned), host)

    def _make_inbound_link(self, source: str) -> Link:
        return self._make_link(ServerHandshake(self._own, self._secret, self._versions, self._tls.pinned), source)

    def _make_link(self, handshake: ClientHandshake | ServerHandshake, source: str) -> Link:
        link = Link(self, handshake, source, self._limits, self._tls.pinned)
        self._open_links.add(link)
        return link

    def on_authenticated(self, link: Link) -> CloseReason | None:
        """See `LinkObserver`."""
        peer = _peer_of(link)
        breaks_ties = is_tie_breaker(self._own, peer)
        other = self._links.get(peer.id) or (self._pending_up.get(peer.id) if breaks_ties else None)
        reason = resolve_duplicate(self._own, peer, _peer_of(other).incarnation if other is not None else None)
        if reason is None and breaks_ties and not link.is_outbound:
            self._set_pending_up(peer.id, link)
        return reason

    def _set_pending_up(self, peer: str, link: Link | None) -> None:
        """Make `link` the only connection with this peer that is about to be up."""
        previous = self._pending_up.pop(peer, None)
        if link is not None:
            self._pending_up[peer] = link
        if previous is not None and previous is not link and not previous.is_up:
            previous.end(CloseReason.REPLACED)

    def on_link_up(self, link: Link) -> None:
        """See `LinkObserver`."""
        if self._stopping:
            link.close_gracefully()
            return
        peer = _peer_of(link)
        self._set_pending_up(peer.id, None)
        previous = self._links.get(peer.id)
        if previous is not None and peer.incarnation < _peer_of(previous).incarnation:
            link.end(CloseReason.STALE)  # a later process of this peer has connected during this handshake
            return
        if previous is not None:
            process_ended = _peer_of(previous).incarnation < peer.incarnation
            self._on_link_lost(previous, CloseReason.REPLACED, process_ended=process_ended)
            previous.end(CloseReason.REPLACED)
        self._links[peer.id] = link
        previous_process_ended = self._peer_table.mark_up(peer, time.monotonic())
        event(_log, logging.INFO, "peer is up", peer=peer.id, source=link.source, tls=link.tls_version)
        if not link.is_outbound:
            self._learn_address(peer, link.source)
        if previous_process_ended:
            self._observer.on_peer_gone(peer.id)
        self._observer.on_peer_up(peer.id, peer.incarnation)

    def on_link_message(self, link: Link, message: Message) -> None:
        """See `LinkObserver`."""
        if not self._stopping:
            self._observer.on_peer_message(_peer_of(link).id, message)

    def on_link_ended(self, link: Link, reason: CloseReason) -> None:
        """See `LinkObserver`."""
        if reason in REFUSALS:
            self._record_refusal(link.source, reason, outbound=link.is_outbound)
        if link.peer is not None and self._pending_up.get(link.peer.id) is link:
            del self._pending_up[link.peer.id]
            self._dialers.wake(link.peer.id)
        if link.peer is not None and self._links.get(link.peer.id) is link:
            self._on_link_lost(link, reason, process_ended=reason is CloseReason.GOODBYE)

    def on_link_closed(self, link: Link) -> None:
        """See `LinkObserver`."""
        self._open_links.discard(link)
        if not self._open_links:
            self._all_closed.set()

    def _on_link_lost(self, link: Link, reason: CloseReason, *, process_ended: bool) -> None:
        """Record that a link, which was up, is down. `process_ended`: it is certain that the peer has ended."""
        peer = _peer_of(link).id
        del self._links[peer]
        seconds_up = self._peer_table.mark_down(peer, time.monotonic(), process_ended=process_ended)
        if self._stopping:
            return
        event(_log, logging.INFO if process_ended else logging.WARNING, "peer is down", peer=peer, reason=reason.value)
        for dialer in self._dialers.of_peer(peer):
            if seconds_up >= self._dial_policy.max_retry_seconds:
                dialer.backoff.reset()
            if reason is CloseReason.GOODBYE and not dialer.is_expected:
                self._dialers.remove(dialer)
        self._dialers.wake(peer)
        self._observer.on_peer_down(peer, process_ended)

    def _record_refusal(self, source: str, reason: CloseReason, *, outbound: bool) -> None:
        if self._refusals.record(source, reason, time.monotonic()) and not self._stopping:
            message = "cannot link with a dialed peer" if outbound else "connection on the peer port refused"
            event(_log, logging.WARNING, message, source=source, reason=reason.value)


def _peer_of(link: Link) -> PeerIdentity:
    assert link.peer is not None, "peer of the link is not authenticated"
    return link.peer
