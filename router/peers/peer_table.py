"""Decides which of two connections with a peer is kept, and records the status of each peer. No I/O, no clock.

Each pair of routers has one link. If both routers dial at the same time there are two connections. If both sides
decided independently, they might keep different connections, or none. So one side is the tie-breaker: the router with
the lexically smaller id. It keeps the first connection that it has authenticated and refuses the others. The other side
accepts all connections and uses the one that remains. This also works if only one side can reach the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from router.peers.close_reason import CloseReason
from router.peers.handshake import PeerIdentity


class PeerStatus(StrEnum):
    """The status of a peer. The values are those of the metric label `standing`."""

    LIVE = "live"
    """Its link is up."""
    GONE = "gone"
    """Its process has ended: it sent a goodbye, nothing listens at its address, or a later process uses its id."""
    UNREACHABLE = "unreachable"
    """It has no link, but may still run."""


def resolve_duplicate(own: PeerIdentity, peer: PeerIdentity, connected: str | None) -> CloseReason | None:
    """Return why a connection with an authenticated peer must be refused, or None to keep it.

    `connected` is the incarnation of this peer's other connection: its link, or, if this side is the tie-breaker, a
    connection that was kept and is about to become the link. None if there is no other connection.
    """
    if peer.id == own.id:
        return CloseReason.SELF if peer.incarnation == own.incarnation else CloseReason.SAME_ID
    if connected is None:
        return None
    if peer.incarnation < connected:
        return CloseReason.STALE
    if peer.incarnation == connected and is_tie_breaker(own, peer):
        return CloseReason.DUPLICATE
    return None


def is_tie_breaker(own: PeerIdentity, peer: PeerIdentity) -> bool:
    """Return True if this side decides which of two connections is kept."""
    return own.id < peer.id


class PeerTable:
    """The status of each peer, by its id. Times are seconds of this process's monotonic clock."""

    __slots__ = ("_incarnations", "_since", "_statuses")

    def __init__(self) -> None:
        self._statuses: dict[str, PeerStatus] = {}
        self._since: dict[str, float] = {}
        self._incarnations: dict[str, str] = {}

    def status(self, peer: str) -> PeerStatus | None:
        """Return the status of a peer, or None if it was never connected nor dialed."""
        return self._statuses.get(peer)

    def unreachable(self) -> Mapping[str, float]:
        """Return the unreachable peers, and since when."""
        return {peer: self._since[peer] for peer, status in self._statuses.items() if status is PeerStatus.UNREACHABLE}

    def mark_up(self, peer: PeerIdentity, now: float) -> bool:
        """Record that a link is up.

        Return True if this proves that an unreachable earlier process with the same id has ended.
        """
        previous = self._incarnations.get(peer.id)
        was_unreachable = self.status(peer.id) is PeerStatus.UNREACHABLE
        self._incarnations[peer.id] = peer.incarnation
        self._set(peer.id, PeerStatus.LIVE, now)
        return was_unreachable and previous is not None and previous < peer.incarnation

    def mark_down(self, peer: str, now: float, *, process_ended: bool) -> float:
        """Record that the link of a peer is down, and whether the peer's process has ended.

        Return the number of seconds for which the link was up.
        """
        seconds_up = now - self._since[peer]
        self._set(peer, PeerStatus.GONE if process_ended else PeerStatus.UNREACHABLE, now)
        return seconds_up

    def mark_unreachable(self, peer: str, now: float) -> bool:
        """Record that a peer without a link could not be reached. Return True if it had no status before."""
        if peer in self._statuses:
            return False
        self._set(peer, PeerStatus.UNREACHABLE, now)
        return True

    def mark_gone(self, peer: str, now: float) -> bool:
        """Record that the process of a peer without a link has ended. Return True if its status changed."""
        if self.status(peer) is PeerStatus.GONE:
            return False
        self._set(peer, PeerStatus.GONE, now)
        return True

    def forget(self, peer: str) -> None:
        """Remove a peer."""
        self._statuses.pop(peer, None)
        self._since.pop(peer, None)
        self._incarnations.pop(peer, None)

    def _set(self, peer: str, status: PeerStatus, now: float) -> None:
        self._statuses[peer] = status
        self._since[peer] = now
