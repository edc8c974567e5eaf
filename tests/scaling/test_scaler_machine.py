"""The scaler against a simulated cluster that lags, crashes replicas and, as Kubernetes does, has a will of its own."""

from dataclasses import dataclass, field, replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from router.scaling.autoscaler import Decision
from router.scaling.demand import Demand
from router.scaling.scaler import (
    DRAIN_MARGIN_SECONDS,
    TAKEN_INSTEAD_SECONDS,
    Action,
    Cordon,
    ReplicaFacts,
    SetReplicas,
    Uncordon,
    VersionScaler,
)
from router.services import ReplicaState
from tests.scaling.worlds import load, version

SCORING_TIMEOUT_SECONDS = 10.0
MOST = 6
VERSION = version(
    autoscale_min_replicas=0,
    autoscale_max_replicas=MOST,
    autoscale_target_utilization=100,
    autoscale_scale_down_seconds=1.0,
    scoring_timeout_ms=int(SCORING_TIMEOUT_SECONDS * 1000),
)


@dataclass
class Pod:
    name: str
    started_at: float
    state: ReplicaState = ReplicaState.STARTING
    is_reported: bool = False


@dataclass
class SimulatedCluster:
    """Converges to the count it was last asked for when `reconcile` is called, and not before.

    A replica becomes ready only after it was reported as starting.
    """

    takes_unready_first: bool
    count: int = 0
    named: tuple[str, ...] = ()
    pods: dict[str, Pod] = field(default_factory=dict)
    made: int = 0

    def reconcile(self, now: float) -> list[str]:
        """Makes the number right; the names of those that were stopped for it."""
        standing = [pod for pod in self.pods.values() if pod.state is not ReplicaState.DRAINING]
        standing.sort(key=self._stays_longer)
        stopped = standing[self.count :]
        if not self.takes_unready_first:
            stopped = [pod for pod in standing if pod in stopped or pod.name in self.named]
        for pod in stopped:
            pod.state = ReplicaState.DRAINING
        for _ in range(self.count - len(standing) + len(stopped)):
            self.made += 1
            name = f"pod{self.made}"
            self.pods[name] = Pod(name, now + self.made / 1000)
        return [pod.name for pod in stopped]

    def _stays_longer(self, pod: Pod) -> tuple[bool, bool, float]:
        named, starting = pod.name in self.named, pod.state is ReplicaState.STARTING
        # Kubernetes: not ready before deletion cost before age; the local cluster: those named, then the same.
        return (starting, named, pod.started_at) if self.takes_unready_first else (named, starting, pod.started_at)


@dataclass
class Traffic:
    """What the slot ledger knows: requests in flight and cordons, both in force at once."""

    in_flight: dict[str, int] = field(default_factory=dict)
    cordoned_since: dict[str, float] = field(default_factory=dict)

    def is_done(self, name: str, now: float) -> bool:
        if not self.in_flight.get(name):
            return True
        since = self.cordoned_since.get(name)
        return since is not None and now - since >= SCORING_TIMEOUT_SECONDS + DRAIN_MARGIN_SECONDS


class ScalerMachine(RuleBasedStateMachine):
    @initialize(takes_unready_first=st.booleans(), pods=st.integers(0, MOST))
    def begin(self, takes_unready_first: bool, pods: int) -> None:
        self.now = 0.0
        self.cluster = SimulatedCluster(takes_unready_first, pods)
        self.traffic = Traffic()
        self.scaler = VersionScaler(VERSION)
        self.reported: dict[str, Pod] = {}
        self.unsaid: list[Action] = []  # cordons and uncordons on their way to the ledger
        self.wanted = pods
        self.closed: set[str] = set()  # what the scaler's actions add up to
        self.named: set[str] = set()
        for _ in range(3):
            self.an_ordinary_second(pods)

    # The world

    @rule(choice=st.integers(0, 2**MOST - 1))
    def requests_begin_at_some(self, choice: int) -> None:
        able = [
            pod.name
            for pod in self.reported.values()
            if pod.state is ReplicaState.READY
            and pod.name not in self.traffic.cordoned_since
            and pod.name in self.cluster.pods
        ]
        for bit, name in enumerate(able):
            if choice >> bit & 1:
                self.traffic.in_flight[name] = self.traffic.in_flight.get(name, 0) + 1

    @rule(choice=st.integers(0, 2**MOST - 1))
    def requests_end_at_some(self, choice: int) -> None:
        for bit, name in enumerate(sorted(self.traffic.in_flight)):
            if choice >> bit & 1:
                del self.traffic.in_flight[name]

    @rule(they_become_ready=st.booleans())
    def cluster_acts(self, they_become_ready: bool) -> None:
        for name in self.cluster.reconcile(self.now):
            assert self.traffic.is_done(name, self.now), f"{name} was busy"
        for pod in list(self.cluster.pods.values()):
            if pod.state is ReplicaState.DRAINING:
                self._gone(pod.name)
            elif they_become_ready and pod.is_reported:
                pod.state = ReplicaState.READY

    @precondition(lambda self: self.cluster.pods)
    @rule(which=st.integers(0, 9))
    def one_crashes(self, which: int) -> None:
        names = sorted(self.cluster.pods)
        self._gone(names[which % len(names)])

    @rule()
    def cluster_reports(self) -> None:
        for pod in self.cluster.pods.values():
            pod.is_reported = True
        self.reported = {pod.name: replace(pod) for pod in self.cluster.pods.values()}
        for name in self.traffic.cordoned_since.keys() - self.reported.keys():
            del self.traffic.cordoned_since[name]

    @rule(actions=st.integers(1, 9))
    def ledger_hears(self, actions: int) -> None:
        for action in self.unsaid[:actions]:
            for name in [] if isinstance(action, SetReplicas) else action.ids:
                if isinstance(action, Uncordon):
                    self.traffic.cordoned_since.pop(name, None)
                elif name in self.reported:
                    self.traffic.cordoned_since.setdefault(name, self.now)
        del self.unsaid[:actions]

    @precondition(lambda self: self.unsaid)
    @rule()
    def ledger_never_hears(self) -> None:
        self.unsaid.clear()

    @rule(wanted=st.integers(0, MOST))
    def an_ordinary_second(self, wanted: int) -> None:
        """All that must happen in a world without faults, so that runs get far."""
        self.wanted = wanted
        self.cluster_acts(they_become_ready=True)
        self.cluster_reports()
        self.ledger_hears(len(self.unsaid))
        self.refresh(1.0, wanted)

    @rule(wanted=st.integers(0, MOST))
    def made_and_reported_when_no_longer_wanted(self, wanted: int) -> None:
        self.refresh(1.0, MOST)
        self.cluster_acts(they_become_ready=False)
        self.refresh(1.0, wanted)
        self.cluster_reports()

    def _gone(self, name: str) -> None:
        del self.cluster.pods[name]
        self.traffic.in_flight.pop(name, None)

    # The scaler

    @rule(seconds=st.sampled_from([1.0, 1.0, 16.0, 40.0]), wanted=st.integers(0, MOST))
    def refresh(self, seconds: float, wanted: int) -> None:
        self.wanted = wanted
        self._tick(seconds, load(busy=wanted, seconds=seconds))

    @rule()
    def look_between_refreshes(self) -> None:
        self._tick(0.1, None)

    def _tick(self, seconds: float, demand: Demand | None) -> None:
        self.now += seconds
        before, decided = self.scaler.asked, self.scaler.decision
        actions = self.scaler.tick(self.now, demand, self._facts())
        self.named &= self._standing()
        for action in actions:
            if isinstance(action, SetReplicas):
                self._set_replicas(action, before, decided)
            else:
                self.unsaid.append(action)
                self.closed = self.closed | {*action.ids} if isinstance(action, Cordon) else self.closed - {*action.ids}
        self.named -= {name for action in actions if isinstance(action, Uncordon) for name in action.ids}
        self.closed &= self._standing()
        self._check_enough_stay_open()

    def _set_replicas(self, action: SetReplicas, before: int | None, decided: Decision | None) -> None:
        assert action.count != before, "said only when it is new"
        if before is not None and action.count > before:
            assert decided is not None
            assert self.scaler.decision is not None
            assert self.scaler.decision.desired > decided.desired, "more are asked for only when more are desired"
        for name in {*action.remove} - self.named:
            assert self.traffic.is_done(name, self.now), f"{name} is busy"
            assert name in self.traffic.cordoned_since, f"{name} is not cordoned"
        self.named = {*action.remove}
        if before is not None and action.count < before:
            assert len(self._standing() - self.named) <= action.count, "nobody goes unnamed but the unreported"
        self.cluster.count, self.cluster.named = action.count, action.remove

    def _check_enough_stay_open(self) -> None:
        decision = self.scaler.decision
        if decision is None:
            return
        counted = self._standing() - self.named
        still_open = len(counted - self.closed)
        assert still_open >= min(decision.desired, len(counted)), "cordoned too many"

    def _facts(self) -> tuple[ReplicaFacts, ...]:
        traffic = self.traffic
        return tuple(
            ReplicaFacts(
                pod.name,
                pod.state,
                traffic.in_flight.get(pod.name, 0),
                pod.name in traffic.cordoned_since,
                pod.started_at,
            )
            for pod in self.reported.values()
        )

    def _standing(self) -> set[str]:
        return {pod.name for pod in self.reported.values() if pod.state is not ReplicaState.DRAINING}

    # What must hold

    @invariant()
    def asks_for_what_is_desired_and_what_drains(self) -> None:
        if self.scaler.decision is not None and self.scaler.asked is not None:
            assert self.scaler.decision.desired <= self.scaler.asked <= 2 * MOST

    @rule(requests_end=st.booleans())
    def settles_when_the_load_does(self, requests_end: bool) -> None:
        """Every cordoned replica is taken back or removed, and the count is what is desired."""
        for _ in range(16):
            if requests_end:
                self.traffic.in_flight.clear()
            self.an_ordinary_second(self.wanted)
            self.now += TAKEN_INSTEAD_SECONDS / 4
        self.an_ordinary_second(self.wanted)
        assert self.scaler.asked == self.wanted
        assert len(self.cluster.pods) == self.wanted
        assert not self.traffic.cordoned_since
        assert not self.unsaid
        assert not self.closed


TestScalerMachine = ScalerMachine.TestCase
TestScalerMachine.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
