"""Workers as a size, and who else is to know of a size."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

from router.scaling.load import Load
from router.scaling.self_scaler import Decision, Policy, Size


class Fleet(Protocol):
    """The other pods of the router."""

    def tell_load(self, load: Load) -> None:
        """Let them know what this one feels of its load."""

    def tell_size(self, cpus: float) -> None:
        """Let them know how many CPUs each pod is to have; 0: those that it comes with."""

    def has_peers(self) -> bool:
        """Whether there are others."""


class WorkersSizer:
    """A router on its own machine: its size is its number of workers."""

    of_all_pods = False

    def __init__(self, policy: Policy, count: Callable[[], int], resize: Callable[[int], Awaitable[None]]) -> None:
        self.policy = policy
        self._count = count
        self._resize = resize

    def size(self) -> Size | None:
        """See `Sizer`."""
        return Size(float(self._count()), 1)

    def cpus_of_new_pods(self) -> None:
        """There are no pods."""

    async def bring_about(self, target: Size) -> None:
        """See `Sizer`."""
        await self._resize(round(target.cpus))

    def decided(self, decision: Decision, outcome: str, why: str) -> None:
        """The log says it all."""
