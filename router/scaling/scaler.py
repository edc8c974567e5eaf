"""Which replicas of a version stay and which go: from the wanted number and facts about replicas to actions.

Everything that decides this lives here. This file does no I/O, reads no clock and does not decide how many replicas
there should be (`autoscaler` does); the shell that calls `tick` carries the actions to the slot ledger and the cluster.

Theory of operation. A replica goes in three steps: it is cordoned (gets no further request), it drains (what it has in
flight ends), it is removed. Until the last step it counts as a replica that the cluster must keep, so

    count asked of the cluster = uncordoned replicas that are wanted + cordoned ones that still drain

and the count falls only together with the name of the one that has drained. New load takes cordoned replicas back,
which costs nothing, before it asks for new ones.

                 too many                     drained, or drain bound over
    uncordoned -----------> cordoned --------------------------------------> leaving --> gone
         ^                     |                                                |
         +---------------------+                                                |
         |    load is back                                                      |
         +----------------------------------------------------------------------+
              the cluster took another one instead

The cluster may lag: for some ticks it may report replicas that have left, or not yet report those it was asked for.
So what was asked of it, not what it reports, is taken for the count it is bound for, and three rules keep them apart:

- Fewer reported than asked for: the missing ones are on their way. When fewer are wanted meanwhile, the count falls
  with no name; the cluster then cancels what has not been reported, which cannot be busy, as nobody has its address.
- More reported than asked for: some of these are leaving, nobody knows which. Nobody else is cordoned or removed until
  the reports have caught up; otherwise the count could be lowered for one who was gone anyway, and a busy one would go.
- A replica that was named for removal is never counted or taken back, however long it is reported, unless the others
  are fewer than asked for: then the cluster took another one in its place.

Every action states what should be, not a change, so that doing it twice does no harm. `SetReplicas` comes only when it
says something new; `Cordon` and `Uncordon` are repeated at each tick until the facts show them in effect.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from router.scaling.autoscaler import Autoscaler, Decision
from router.scaling.demand import Demand
from router.services import ReplicaState, Version

DRAIN_MARGIN_SECONDS = 5.0
"""A request may last `scoring_timeout_ms` at the replica; this is for sending it there and its answer back. A cordoned
replica that is busy for longer than both together (a tunnel, a leak) is removed all the same."""

TAKEN_INSTEAD_SECONDS = 30.0
"""A replica that is still reported so long after it was named for removal, while the others are too few, is believed to
stay: another one went in its place. It does happen: Kubernetes deletes pods that are not ready before those whose
deletion cost says so. Longer than a cluster lags."""


@dataclass(frozen=True, slots=True)
class ReplicaFacts:
    """One replica as the slot ledger and the cluster report it now.

    `cordoned` means in effect: no front-end begins another request there, so that `in_flight` 0 is final.
    `in_flight` counts requests, tunnels included. `started_at`: seconds (monotonic).
    """

    id: str
    state: ReplicaState
    in_flight: int
    cordoned: bool
    started_at: float


@dataclass(frozen=True, slots=True)
class SetReplicas:
    """Ask the cluster for `count` replicas; `remove` names those that must not be among them.

    `remove` repeats names that were given before for as long as they are reported, so the latest action says it all.
    """

    count: int
    remove: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Cordon:
    """Begin no further request at these replicas."""

    ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Uncordon:
    """Requests may begin at these replicas again."""

    ids: tuple[str, ...]


Action = SetReplicas | Cordon | Uncordon


@dataclass(slots=True)
class _Draining:
    """A cordoned replica: when that was decided, and since when the facts show it (None: not yet)."""

    decided_at: float
    in_effect_since: float | None = None


_Replicas = dict[str, ReplicaFacts]


class VersionScaler:
    """Scales one version; call `tick` at each refresh, and whenever a replica may have drained."""

    __slots__ = ("_asked", "_cordons", "_decision", "_leaving", "_version", "autoscaler")

    def __init__(self, version: Version) -> None:
        """Raises `ValueError` as `Autoscaler` does."""
        self.autoscaler = Autoscaler(version)
        self._version = version
        self._decision: Decision | None = None
        self._asked: int | None = None
        self._cordons: dict[str, _Draining] = {}
        self._leaving: dict[str, float] = {}

    @property
    def decision(self) -> Decision | None:
        """The last decision on how many replicas there should be; None before the first."""
        return self._decision

    @property
    def asked(self) -> int | None:
        """The number of replicas that the cluster was last asked for: the desired ones and those that drain."""
        return self._asked

    @property
    def is_at_rest(self) -> bool:
        """Whether, as long as no request comes and the replicas stay as they are, no `tick` has anything to do: to be
        asked after one that had nothing to do."""
        decision = self._decision
        return decision is not None and not self._cordons and not self._leaving and self.autoscaler.rests(decision)

    def update(self, version: Version) -> None:
        """Takes changed settings. Raises `ValueError` as `Autoscaler` does, and then keeps those it has."""
        self.autoscaler.update(version)
        self._version = version

    def asked_by_other(self, count: int) -> None:
        """Somebody else has asked the cluster for so many replicas."""
        self._asked = count

    def tick(self, now: float, demand: Demand | None, replicas: Sequence[ReplicaFacts]) -> tuple[Action, ...]:
        """What to do now, given the demand of the interval that ends now and all replicas of the version.

        With `demand` None no interval ends: the last decision stands, drained replicas are removed. The first call
        takes the replicas that it is given for what the cluster was asked for, unless `asked_by_other` has said more,
        so call it once they are known.
        """
        present = {each.id: each for each in replicas if each.state is not ReplicaState.DRAINING}
        live = self._live(now, present)
        if self._decision is None:
            self._cordons = {each.id: _Draining(now) for each in live.values() if each.cordoned}
        self._note_effect(now, live)
        if demand is not None:
            there = len(live)
            if self._decision is None and self._asked is not None:
                there = max(there, self._asked)  # the others are on their way
            self._decision = self.autoscaler.observe(now, demand, there - len(self._cordons))
        if self._decision is None:
            return ()
        desired, asked = self._decision.desired, len(live) if self._asked is None else self._asked
        uncordon = self._take_back(desired, live)
        if len(live) <= asked:
            self._cordon_surplus(now, desired, live)
            self._remove_drained(now, live)
            count = max(desired, len(live) - len(self._cordons)) + len(self._cordons)
        else:
            count = max(desired + len(self._cordons), asked)
        return self._actions(count, uncordon, present)

    def _live(self, now: float, present: _Replicas) -> _Replicas:
        """The replicas that count: neither on their way out by the cluster's own account nor named for removal."""
        self._leaving = {name: since for name, since in self._leaving.items() if name in present}
        live = {name: facts for name, facts in present.items() if name not in self._leaving}
        for name, since in list(self._leaving.items()):
            if self._asked is not None and len(live) < self._asked and now - since >= TAKEN_INSTEAD_SECONDS:
                live[name] = present[name]
                self._cordons[name] = _Draining(self._leaving.pop(name))
        return live

    def _note_effect(self, now: float, live: _Replicas) -> None:
        """Forgets cordons of replicas that are gone, and notes since when the others are in effect."""
        self._cordons = {name: cordon for name, cordon in self._cordons.items() if name in live}
        for name, cordon in self._cordons.items():
            if not live[name].cordoned:
                cordon.in_effect_since = None
            elif cordon.in_effect_since is None:
                cordon.in_effect_since = now

    def _take_back(self, desired: int, live: _Replicas) -> list[str]:
        """Ends the cordon of as many as are missing: ready before starting, latest cordoned first, busiest first."""
        missing = desired - (len(live) - len(self._cordons))
        best_first = sorted(
            self._cordons,
            key=lambda name: (
                live[name].state is not ReplicaState.READY,
                -self._cordons[name].decided_at,
                -live[name].in_flight,
                live[name].started_at,
            ),
        )
        back = best_first[: max(missing, 0)]
        for name in back:
            del self._cordons[name]
        return back

    def _cordon_surplus(self, now: float, desired: int, live: _Replicas) -> None:
        """Cordons as many as are too many: starting before ready, fewest in flight first, youngest first.

        One whose former cordon has not been seen to end is passed over: its `cordoned` would not be this one's.
        """
        surplus = len(live) - len(self._cordons) - desired
        candidates = (each for each in live.values() if each.id not in self._cordons and not each.cordoned)
        least_missed_first = sorted(
            candidates, key=lambda each: (each.state is ReplicaState.READY, each.in_flight, -each.started_at)
        )
        for each in least_missed_first[: max(surplus, 0)]:
            self._cordons[each.id] = _Draining(now)

    def _remove_drained(self, now: float, live: _Replicas) -> None:
        """Moves from the cordoned to the leaving those that are idle, or busy for longer than a request may last.

        None while one that stays has requests and is not ready, as a program that answers no probe while it computes:
        Kubernetes would take that one first, whatever it is told.
        """
        if any(
            each.in_flight and each.state is not ReplicaState.READY and name not in self._cordons
            for name, each in live.items()
        ):
            return
        bound = self._version.scoring_timeout_ms / 1000 + DRAIN_MARGIN_SECONDS
        for name, cordon in list(self._cordons.items()):
            since = cordon.in_effect_since
            if since is not None and (live[name].in_flight == 0 or now - since >= bound):
                del self._cordons[name], live[name]
                self._leaving[name] = now

    def _actions(self, count: int, back: list[str], present: _Replicas) -> tuple[Action, ...]:
        actions: list[Action] = []
        closed = self._cordons.keys() | self._leaving.keys()
        strays = [each.id for each in present.values() if each.cordoned and each.id not in closed]
        if uncordon := tuple(dict.fromkeys([*back, *strays])):
            actions.append(Uncordon(uncordon))
        if cordon := tuple(each.id for each in present.values() if not each.cordoned and each.id in closed):
            actions.append(Cordon(cordon))
        if count != self._asked:
            self._asked = count
            actions.append(SetReplicas(count, tuple(self._leaving)))
        return tuple(actions)
