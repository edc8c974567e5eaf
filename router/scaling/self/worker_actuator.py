"""Changes the size of a router outside of a cluster, which is its number of workers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from router.scaling.self.actuator import Outcome
from router.scaling.self.self_scaler import Size, SizeDecision, SizePolicy


class WorkerActuator:
    """A `SizeActuator` that changes the number of workers."""

    covers_all_pods = False

    def __init__(
        self, policy: SizePolicy, worker_count: Callable[[], int], resize: Callable[[int], Awaitable[None]]
    ) -> None:
        self.policy = policy
        self._worker_count = worker_count
        self._resize = resize

    def size(self) -> Size | None:
        """See `SizeActuator`."""
        return Size(float(self._worker_count()), 1)

    def cpus_of_new_pods(self) -> None:
        """Return None: there are no pods."""

    async def apply(self, target: Size) -> None:
        """See `SizeActuator`."""
        await self._resize(round(target.cpus))

    def on_outcome(self, decision: SizeDecision, outcome: Outcome, detail: str) -> None:
        """Do nothing: the outcome is logged by the loop."""
