"""The protocol of actuators, which change the router's size, with their error and their outcomes.

Implemented by `WorkerActuator` (`worker_actuator`), and for pods by `cluster.kubernetes.pod_actuator`.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Protocol

from router.scaling.self.self_scaler import Size, SizeDecision, SizePolicy


class NoRoomError(Exception):
    """The cluster has no room for the new size. The size is unchanged. `str()` is the reason, for operators."""


class Outcome(StrEnum):
    """The outcome of a decision. The values are in log lines."""

    DONE = "done"
    NO_ROOM = "no room"
    FAILED = "failed"
    AT_LIMIT = "not done"
    CANCELLED = "given up"


class SizeActuator(Protocol):
    """Applies sizes."""

    policy: SizePolicy
    """Limits and thresholds of the sizes that this actuator can apply. The loop replaces it when settings change."""

    @property
    def covers_all_pods(self) -> bool:
        """True if a size is the size of all pods of the router, False if it is the size of this process only."""

    def size(self) -> Size | None:
        """Return the current size; None while it is unknown."""

    def cpus_of_new_pods(self) -> float | None:
        """Return the CPUs that a new pod must have before it becomes ready.

        0 means the CPUs with which it was created. None means that the number is unknown at present.
        """

    async def apply(self, target: Size) -> None:
        """Change the router to this size; return when it has the size.

        Raises `NoRoomError`, or any other exception for a failure.
        """

    def on_outcome(self, decision: SizeDecision, outcome: Outcome, detail: str) -> None:
        """Report the outcome of a decision to operators of the cluster. `detail` is "" or the reason of a failure."""
