"""The links to other pods, for who has something to say over them: the protocol, and the links of a pod on its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from router.peers.messages import Message


class Links(Protocol):
    """What is said to other pods and known of them; a `peers.mesh.Mesh` has it."""

    def send(self, peer: str, message: Message) -> None:
        """Say something to a peer; lost if its link is down."""

    def broadcast(self, message: Message) -> None:
        """Say something to all peers whose link is up."""

    def live(self) -> frozenset[str]:
        """Peers whose link is up."""

    def unreachable(self) -> Mapping[str, float]:
        """Peers that may live but cannot be reached, and since when (monotonic seconds)."""

    def has_tried_all(self) -> bool:
        """Whether it is known of each peer that there should be whether it can be reached."""


class NoLinks:
    """A pod on its own."""

    def send(self, peer: str, message: Message) -> None:
        """There is nobody to hear it."""

    def broadcast(self, message: Message) -> None:
        """There is nobody to hear it."""

    def live(self) -> frozenset[str]:
        """Nobody."""
        return frozenset()

    def unreachable(self) -> Mapping[str, float]:
        """Nobody."""
        return {}

    def has_tried_all(self) -> bool:
        """There is nobody to try."""
        return True
