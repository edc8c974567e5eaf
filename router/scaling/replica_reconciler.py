"""Decides which replicas of a version stay and which are removed, so that their number becomes the desired one.

The whole decision is in this file. How many replicas are desired is decided in `autoscaler`. There is no I/O and no
clock. The caller (`loop`) passes the actions that `tick` returns to the slot ledger and the cluster.

Theory of operation. A replica is removed in three steps: it is cordoned (gets no further request), it drains (finishes
its requests), it is removed. Until the last step the cluster must keep it, so

    requested replicas = uncordoned replicas that are desired + cordoned ones that still drain

This number is lowered only for a replica that has drained, and the request names that replica. When load returns,
cordoned replicas are uncordoned, which costs nothing, before new ones are requested.

             too many                drained, or drain time is over
    open -------------> cordoned ----------------------------------> removed --> no longer reported
      ^                    |                                             |
      +--------------------+                                             |
      |   load returns                                                   |
      +------------------------------------------------------------------+
          the cluster removed another replica instead

The cluster may lag: for some ticks it may still report replicas that were removed, or not yet report those that were
requested. The cluster will reach the number that was requested, whatever it reports now:

- Fewer reported than requested: the missing ones are starting. If fewer are desired in the meantime, the requested
  number is lowered without naming a replica; the cluster then cancels replicas that it has not reported. These cannot
  be busy, as no worker has their address.
- More reported than requested: some of these are being removed, and it is unknown which. No other replica is cordoned
  or removed until the reports have caught up. Otherwise the number could be lowered for a replica that was about to
  disappear anyway, and the cluster would remove a busy one.
- A replica that was named for removal is neither counted nor uncordoned while it is still reported. The exception:
  if the others are fewer than requested (`REMOVAL_TIMEOUT_SECONDS`), the cluster removed another one in its place.

Every action states the target state, not a change, so repeating it is harmless. `SetReplicas` is returned only when the
number changes. `Cordon` and `Uncordon` are repeated at each tick until `ReplicaFacts` show that they are in effect.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from router.model.services import ReplicaState, Version
from router.scaling.autoscaler import Autoscaler, ScalingDecision
from router.scaling.demand import Demand

ABORT_SECONDS = 5.0
"""Time that workers have to abort the requests of a replica whose drain time is over. A replica that is busy after that
(a leaked lease) is removed nevertheless."""

REMOVAL_TIMEOUT_SECONDS = 30.0
"""How long a replica that was named for removal may still be reported while the others are fewer than requested. After
that it counts again, as the cluster removed another one: Kubernetes deletes pods that are not ready before those of the
lowest deletion cost. Must be longer than the lag of a cluster."""


@dataclass(frozen=True, slots=True)
class ReplicaFacts:
    """One replica as the slot ledger and the cluster report it now.

    `cordoned` is True once the cordon is in effect: no worker starts another request there, so `in_flight` cannot rise.
    `in_flight` is the number of requests, including tunnels, and `streaming` how many of them have a response that has
    started and not ended. `started_at` is in seconds of the monotonic clock.
    """

    id: str
    state: ReplicaState
    in_flight: int
    cordoned: bool
    started_at: float
    streaming: int = 0


@dataclass(frozen=True, slots=True)
class SetReplicas:
    """Ask the cluster for `count` replicas without those in `remove`.

    `remove` repeats earlier names while they are reported, so the latest action is complete.
    """

    count: int
    remove: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Cordon:
    """Send no further request to these replicas."""

    ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Uncordon:
    """Send requests to these replicas again."""

    ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Abort:
    """Abort all requests at these replicas: their drain time is over. Repeated until they are removed."""

    ids: tuple[str, ...]


Action = SetReplicas | Cordon | Uncordon | Abort


@dataclass(slots=True)
class _CordonTimes:
    """When the cordon of a replica was decided, and when `ReplicaFacts` first showed it (None: not yet)."""

    decided_at: float
    in_effect_since: float | None = None


_Replicas = dict[str, ReplicaFacts]  # by id


class ReplicaReconciler:
    """Adjusts the replicas of one version. Call `tick` at each refresh, and when a replica may have drained."""

    __slots__ = ("_cordons", "_decision", "_removed_at", "_requested", "_version", "autoscaler")

    def __init__(self, version: Version) -> None:
        """Raises `ValueError` as `Autoscaler` does."""
        self.autoscaler = Autoscaler(version)
        self._version = version
        self._decision: ScalingDecision | None = None
        self._requested: int | None = None
        self._cordons: dict[str, _CordonTimes] = {}
        self._removed_at: dict[str, float] = {}  # replicas that were named for removal and are still reported

    @property
    def decision(self) -> ScalingDecision | None:
        """The last decision on the number of replicas; None before the first."""
        return self._decision

    @property
    def requested_replicas(self) -> int | None:
        """The number of replicas that was last requested from the cluster: the desired ones and those that drain."""
        return self._requested

    @property
    def is_settled(self) -> bool:
        """True if `tick` has nothing to do until a request arrives or the replicas change.

        Valid only after a tick that returned no action.
        """
        decision = self._decision
        return (
            decision is not None and not self._cordons and not self._removed_at and self.autoscaler.is_settled(decision)
        )

    def update(self, version: Version) -> None:
        """Apply changed settings. Raises `ValueError` as `Autoscaler` does; the old settings then stay in effect."""
        self.autoscaler.update(version)
        self._version = version

    def record_external_request(self, count: int) -> None:
        """Record that something other than this object has asked the cluster for `count` replicas."""
        self._requested = count

    def tick(self, now: float, demand: Demand | None, replicas: Sequence[ReplicaFacts]) -> tuple[Action, ...]:
        """Return what to do now, given the demand of the interval that ends now and all replicas of the version.

        Without `demand` no interval ends: the last decision is kept, and drained replicas are removed. Do not call this
        before the replicas are known: the first call takes their number for the requested one, unless
        `record_external_request` was called with a larger number.
        """
        present = {each.id: each for each in replicas if each.state is not ReplicaState.DRAINING}
        counted = self._counted_replicas(now, present)
        if self._decision is None:
            self._cordons = {each.id: _CordonTimes(now) for each in counted.values() if each.cordoned}
        self._update_cordons(now, counted)
        if demand is not None:
            known = len(counted)
            if self._decision is None and self._requested is not None:
                known = max(known, self._requested)  # the others are starting
            self._decision = self.autoscaler.observe(now, demand, known - len(self._cordons))
        if self._decision is None:
            return ()
        desired, requested = self._decision.desired, len(counted) if self._requested is None else self._requested
        uncordoned = self._uncordon_missing(desired, counted)
        to_abort: list[str] = []
        if len(counted) <= requested:
            self._cordon_surplus(now, desired, counted)
            to_abort = self._remove_drained(now, counted)
            count = max(desired, len(counted) - len(self._cordons)) + len(self._cordons)
        else:
            count = max(desired + len(self._cordons), requested)
        return self._actions(count, uncordoned, to_abort, present)

    def _counted_replicas(self, now: float, present: _Replicas) -> _Replicas:
        """Return the replicas without those that were named for removal, unless the cluster removed others instead."""
        self._removed_at = {name: at for name, at in self._removed_at.items() if name in present}
        counted = {name: facts for name, facts in present.items() if name not in self._removed_at}
        for name, removed_at in list(self._removed_at.items()):
            too_few = self._requested is not None and len(counted) < self._requested
            if too_few and now - removed_at >= REMOVAL_TIMEOUT_SECONDS:
                counted[name] = present[name]
                self._cordons[name] = _CordonTimes(self._removed_at.pop(name))
        return counted

    def _update_cordons(self, now: float, counted: _Replicas) -> None:
        """Drop the cordons of replicas that are no longer reported, and record which of the others are in effect."""
        self._cordons = {name: cordon for name, cordon in self._cordons.items() if name in counted}
        for name, cordon in self._cordons.items():
            if not counted[name].cordoned:
                cordon.in_effect_since = None
            elif cordon.in_effect_since is None:
                cordon.in_effect_since = now

    def _uncordon_missing(self, desired: int, counted: _Replicas) -> list[str]:
        """End the cordons of as many replicas as are missing, and return their ids.

        Order: ready before starting, then last cordoned first, then most responses in progress first, then busiest
        first.
        """
        missing = desired - (len(counted) - len(self._cordons))
        best_first = sorted(
            self._cordons,
            key=lambda name: (
                counted[name].state is not ReplicaState.READY,
                -self._cordons[name].decided_at,
                -counted[name].streaming,
                -counted[name].in_flight,
                counted[name].started_at,
            ),
        )
        uncordoned = best_first[: max(missing, 0)]
        for name in uncordoned:
            del self._cordons[name]
        return uncordoned

    def _cordon_surplus(self, now: float, desired: int, counted: _Replicas) -> None:
        """Cordon the surplus replicas. Order: starting before ready, then fewest responses in progress first, as these
        may last long, then fewest requests in flight first, then youngest first.

        A replica that is still reported as cordoned from a previous cordon is skipped, as that would be mistaken for
        the new cordon.
        """
        surplus = len(counted) - len(self._cordons) - desired
        candidates = (each for each in counted.values() if each.id not in self._cordons and not each.cordoned)
        cheapest_first = sorted(
            candidates,
            key=lambda each: (each.state is ReplicaState.READY, each.streaming, each.in_flight, -each.started_at),
        )
        for each in cheapest_first[: max(surplus, 0)]:
            self._cordons[each.id] = _CordonTimes(now)

    def _remove_drained(self, now: float, counted: _Replicas) -> list[str]:
        """Name for removal the cordoned replicas that are idle. Return those whose requests are to be aborted, as they
        are still busy at the end of their drain time.

        Remove none while a replica that stays has requests and is not ready, for example because it does not respond to
        probes while it computes. Kubernetes would delete that replica first, whichever is named.
        """
        if any(
            each.in_flight and each.state is not ReplicaState.READY and name not in self._cordons
            for name, each in counted.items()
        ):
            return []
        to_abort: list[str] = []
        for name, cordon in list(self._cordons.items()):
            if cordon.in_effect_since is None:
                continue
            overdue = now - cordon.in_effect_since - self._version.replica_drain_seconds
            if counted[name].in_flight == 0 or overdue >= ABORT_SECONDS:
                del self._cordons[name], counted[name]
                self._removed_at[name] = now
            elif overdue >= 0:
                to_abort.append(name)
        return to_abort

    def _actions(
        self, count: int, uncordoned: list[str], to_abort: list[str], present: _Replicas
    ) -> tuple[Action, ...]:
        actions: list[Action] = [Abort(tuple(to_abort))] if to_abort else []
        closed = self._cordons.keys() | self._removed_at.keys()
        stale = [each.id for each in present.values() if each.cordoned and each.id not in closed]
        if to_uncordon := tuple(dict.fromkeys([*uncordoned, *stale])):
            actions.append(Uncordon(to_uncordon))
        if to_cordon := tuple(each.id for each in present.values() if not each.cordoned and each.id in closed):
            actions.append(Cordon(to_cordon))
        if count != self._requested:
            self._requested = count
            actions.append(SetReplicas(count, tuple(self._removed_at)))
        return tuple(actions)
