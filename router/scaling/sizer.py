"""Who can change the router's size, and what it says when that cannot be. Protocol and error, nothing else."""

from __future__ import annotations

from typing import Protocol

from router.scaling.self_scaler import Decision, Policy, Size


class NoRoomError(Exception):
    """There is no room for a size; things are as they were before. `str()` says why, in words for operators."""


class Sizer(Protocol):
    """Brings sizes about."""

    @property
    def policy(self) -> Policy:
        """Bounds and thresholds of what it can bring about."""

    @property
    def of_all_pods(self) -> bool:
        """Whether a size is that of all pods of the router, or of this one only."""

    def size(self) -> Size | None:
        """The size that is so now; None while that is not known."""

    def cpus_of_new_pods(self) -> float | None:
        """How many CPUs a new pod is to have before it gets ready; 0: those that it comes with; None while that is not
        known."""

    async def bring_about(self, target: Size) -> None:
        """Return once the router has this size. Raises `NoRoomError`, or anything else for a failure."""

    def decided(self, decision: Decision, outcome: str, why: str) -> None:
        """Hear of a decision that was carried out (or not), to tell whoever looks at the cluster."""
