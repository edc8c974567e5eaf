"""Which of two connections with a peer stays, and what is known of each peer. Decides, does no I/O and has no clock.

One link per pair. When both dial at the same time there are two connections, and if each side chose for itself they
might choose differently, or one after the other. So one side chooses: the one with the lexically smaller id goes on
with the connection that it has agreed to first and turns the other one away, while the other side agrees to all and
goes by what is left. Who listens where no answer comes from, or can dial but not be dialled, is thus linked all the
same.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Protocol

from router.peers.endings import Ending
from router.peers.handshake import Party
from router.peers.messages import Message


class Standing(StrEnum):
    """What is known of a peer."""

    LIVE = "live"
    """The link is up."""
    GONE = "gone"
    """Its process has ended: it said so, nobody listens where it did, or a later process goes by its id."""
    UNREACHABLE = "unreachable"
    """It may live."""


class MeshListener(Protocol):
    """Who hears of peers. The calls are plain functions and must not block. A peer is the same process for as long as
    its id and its incarnation are the same."""

    def peer_up(self, peer: str, incarnation: str) -> None:
        """A link with this peer is up; messages come in order and at most once until `peer_down`."""

    def peer_down(self, peer: str, certain: bool) -> None:
        """The link is down, or an expected peer that never was up could not be reached. `certain`: the process that
        was linked has ended."""

    def peer_certainly_gone(self, peer: str) -> None:
        """The process of a peer that could not be reached has ended."""

    def peer_said(self, peer: str, message: Message) -> None:
        """A peer whose link is up speaks."""


def judge(own: Party, peer: Party, linked: str | None) -> Ending | None:
    """Whether to go on with a connection whose peer has proven itself: None, or why not.

    `linked` is the incarnation of this peer to which there is a link, or a connection that was agreed to and is about
    to become one, if this side chooses (`chooses`); None without one.
    """
    if peer.id == own.id:
        return Ending.SELF if peer.incarnation == own.incarnation else Ending.SAME_ID
    if linked is None:
        return None
    if peer.incarnation < linked:
        return Ending.STALE
    if peer.incarnation == linked and chooses(own, peer):
        return Ending.DUPLICATE
    return None


def chooses(own: Party, peer: Party) -> bool:
    """Whether it is this side that chooses which connection stays."""
    return own.id < peer.id


class Roster:
    """What is known of each peer, by its id. Times are seconds of one monotonic clock."""

    __slots__ = ("_incarnations", "_since", "_standings")

    def __init__(self) -> None:
        self._standings: dict[str, Standing] = {}
        self._since: dict[str, float] = {}
        self._incarnations: dict[str, str] = {}

    def standing(self, peer: str) -> Standing | None:
        """What is known of a peer; None if nothing is yet."""
        return self._standings.get(peer)

    def unreachable(self) -> Mapping[str, float]:
        """Peers that cannot be reached but may live, and since when."""
        return {peer: self._since[peer] for peer, known in self._standings.items() if known is Standing.UNREACHABLE}

    def came_up(self, peer: Party, now: float) -> bool:
        """A link is up. True if that proves that an earlier process of this id, so far unreachable, is gone."""
        earlier = self._incarnations.get(peer.id)
        was_unreachable = self.standing(peer.id) is Standing.UNREACHABLE
        self._incarnations[peer.id] = peer.incarnation
        self._set(peer.id, Standing.LIVE, now)
        return was_unreachable and earlier is not None and earlier < peer.incarnation

    def went_down(self, peer: str, now: float, *, certain: bool) -> float:
        """The link is down; `certain`: its process has ended. Returns for how many seconds the link was up."""
        lived = now - self._since[peer]
        self._set(peer, Standing.GONE if certain else Standing.UNREACHABLE, now)
        return lived

    def not_reached(self, peer: str, now: float) -> bool:
        """A peer without a link could not be reached. True if that is news, which it is for one never heard of."""
        if peer in self._standings:
            return False
        self._set(peer, Standing.UNREACHABLE, now)
        return True

    def nobody_listens(self, peer: str, now: float) -> bool:
        """Nobody listens where a peer without a link did. True if that is news."""
        if self.standing(peer) is Standing.GONE:
            return False
        self._set(peer, Standing.GONE, now)
        return True

    def forget(self, peer: str) -> None:
        """Nothing is known of a peer any more."""
        self._standings.pop(peer, None)
        self._since.pop(peer, None)
        self._incarnations.pop(peer, None)

    def _set(self, peer: str, standing: Standing, now: float) -> None:
        self._standings[peer] = standing
        self._since[peer] = now
