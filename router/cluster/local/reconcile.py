"""Decides which replicas of a version to start and stop next. No I/O; `process_replicas` starts and stops them."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from router.model.services import ReplicaState


@dataclass(frozen=True, slots=True)
class Candidate:
    """A replica with a process. `is_current` is False if it has outdated launch settings."""

    id: str
    state: ReplicaState
    is_current: bool


@dataclass(frozen=True, slots=True)
class ReconcilePlan:
    """How many replicas to start now, and the ids of those to stop."""

    start: int
    stop: tuple[str, ...]


def plan_next_step(
    replicas: Sequence[Candidate], wanted: int, *, remove: Collection[str] = (), held_back: int = 0
) -> ReconcilePlan:
    """Return the next step towards `wanted` replicas with the current launch settings.

    `replicas` is in the order of their start. `remove` has the ids of replicas that are stopped first. `held_back` is
    the number of replicas that must not be started yet (restart backoff).

    1. An outdated replica that is not ready serves no request: stop it at once.
    2. If there are too few replicas, start the missing ones.
    3. If the number is right, some replica is outdated and none is starting, start one more to replace it.
    4. If there are too many replicas, stop those in `remove`, then outdated ones, then those not ready, then the
       newest. The one that step 3 has started does not count until it is ready.
    """
    live = [replica for replica in replicas if replica.state is not ReplicaState.DRAINING]
    unneeded = tuple(replica.id for replica in live if _is_unneeded(replica))
    live = [replica for replica in live if not _is_unneeded(replica)]
    has_outdated = any(not replica.is_current for replica in live)
    has_starting = any(replica.state is ReplicaState.STARTING for replica in live)
    surplus = len(live) - wanted
    if surplus < 0:
        return ReconcilePlan(start=max(0, -surplus - held_back), stop=unneeded)
    if surplus == 0:
        return ReconcilePlan(start=1 if has_outdated and not has_starting and not held_back else 0, stop=unneeded)
    replacements = 1 if has_outdated and has_starting and wanted else 0

    def stop_order(indexed: tuple[int, Candidate]) -> tuple[bool, bool, bool, int]:
        index, replica = indexed
        return (replica.id not in remove, replica.is_current, replica.state is not ReplicaState.STARTING, -index)

    candidates = [replica.id for _, replica in sorted(enumerate(live), key=stop_order)]
    return ReconcilePlan(start=0, stop=(*unneeded, *candidates[: surplus - replacements]))


def _is_unneeded(replica: Candidate) -> bool:
    return not replica.is_current and replica.state is ReplicaState.STARTING
