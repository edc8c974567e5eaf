"""The replicas of one version as one immutable value, which all parts of the router share by reference.

The serving state (`supervisor.state`) makes it whenever a replica, a cordon or the number of slots changes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from router.model.services import Replica, ReplicaState


@dataclass(frozen=True, slots=True)
class VersionReplicas:
    """All replicas of a version in any state, the ids of the cordoned ones, and the slots that each replica has.

    `slots` is 0 if concurrency is unlimited: then there are no leases. `cordoned` may contain ids of replicas that were
    removed; they have no effect. `aborted` has the ids of replicas whose drain time is over: workers abort all requests
    there. The other fields are derived from these.
    """

    replicas: tuple[Replica, ...] = ()
    cordoned: frozenset[str] = frozenset()
    slots: int = 0
    aborted: frozenset[str] = frozenset()
    started: tuple[Replica, ...] = field(init=False, repr=False, compare=False)
    """The replicas that are ready or draining. Others may at most finish requests of the time when they were ready."""
    open_ids: frozenset[str] = field(init=False, repr=False, compare=False)
    """Ids of the replicas that get new requests: ready and not cordoned."""
    closed_ids: frozenset[str] = field(init=False, repr=False, compare=False)
    """Ids of the replicas that only finish their requests: draining, or ready and cordoned."""

    def __post_init__(self) -> None:
        started = tuple([replica for replica in self.replicas if replica.state is not ReplicaState.STARTING])
        ready_ids = [replica.id for replica in started if replica.state is ReplicaState.READY]
        open_ids = frozenset(ready_ids).difference(self.cordoned)
        object.__setattr__(self, "started", started)
        object.__setattr__(self, "open_ids", open_ids)
        object.__setattr__(self, "closed_ids", frozenset([replica.id for replica in started]) - open_ids)

    def count_by_state(self) -> dict[str, int]:
        """Return the number of replicas in each state."""
        counts = {state.value: 0 for state in ReplicaState}
        for replica in self.replicas:
            counts[replica.state.value] += 1
        return counts

    @property
    def ids(self) -> frozenset[str]:
        """Ids of all replicas, in any state."""
        return frozenset([replica.id for replica in self.replicas])


NO_REPLICAS = VersionReplicas()
"""The value of a version that has no replicas and no limit of concurrency."""
