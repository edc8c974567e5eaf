"""A pod's links to its peers, as two protocols: `Links` sends messages, `MeshObserver` receives messages and events.

Events of the links pass from `Mesh` through `supervisor.peer_events` and `Leadership` to `LedgerDispatcher`, where they
take effect on leases.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from router.peers.messages import Message

__all__ = ["Links", "MeshObserver", "NoLinks"]


class Links(Protocol):
    """Sends messages to peers and reports which peers there are. Implemented by `peers.mesh.Mesh`."""

    def send(self, peer: str, message: Message) -> None:
        """Send a message to a peer. It is lost if the peer's link is down."""

    def broadcast(self, message: Message) -> None:
        """Send a message to all peers whose link is up."""

    def live(self) -> frozenset[str]:
        """Return the peers whose link is up."""

    def unreachable(self) -> Mapping[str, float]:
        """Return the peers that have no link but may still run, and since when (seconds of `time.monotonic`)."""

    def has_tried_all(self) -> bool:
        """Return True once each expected peer is connected, or was found unreachable or not running."""


class MeshObserver(Protocol):
    """Receives what happens on the links. The calls must not block.

    A peer is one process as long as its id and its incarnation stay the same.
    """

    def on_peer_up(self, peer: str, incarnation: str) -> None:
        """The link with this peer is up. Its messages arrive in order and at most once until `on_peer_down`."""

    def on_peer_down(self, peer: str, process_ended: bool) -> None:
        """The link is down, or an expected peer that never had a link is unreachable.

        `process_ended` is True if it is certain that the peer's process has ended, else the peer may still run.
        """

    def on_peer_gone(self, peer: str) -> None:
        """An unreachable peer's process is now known to have ended, or the peer is no longer expected."""

    def on_peer_message(self, peer: str, message: Message) -> None:
        """A peer whose link is up has sent a message."""


class NoLinks:
    """The `Links` of a pod without peers."""

    def send(self, peer: str, message: Message) -> None:
        """Do nothing."""

    def broadcast(self, message: Message) -> None:
        """Do nothing."""

    def live(self) -> frozenset[str]:
        """Return no peers."""
        return frozenset()

    def unreachable(self) -> Mapping[str, float]:
        """Return no peers."""
        return {}

    def has_tried_all(self) -> bool:
        """Return True: no peer is expected."""
        return True
