"""The reconciler against a simulated cluster that lags, loses replicas and, like Kubernetes, ignores removal names."""

from dataclasses import dataclass, field, replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from router.model.services import ReplicaState
from router.scaling.autoscaler import ScalingDecision
from router.scaling.demand import Demand
from router.scaling.replica_reconciler import (
    ABORT_SECONDS,
    REMOVAL_TIMEOUT_SECONDS,
    Abort,
    Action,
    Cordon,
    ReplicaFacts,
    ReplicaReconciler,
    SetReplicas,
    Uncordon,
)
from tests.scaling.builders import demand_of, version

DRAIN_SECONDS = 15.0
MAX_REPLICAS = 6
VERSION = version(
    autoscale_min_replicas=0,
    autoscale_max_replicas=MAX_REPLICAS,
    autoscale_target_utilization=100,
    autoscale_scale_down_seconds=1.0,
    scoring_timeout_ms=10_000,
    replica_drain_seconds=DRAIN_SECONDS,
)


@dataclass
class Pod:
    name: str
    started_at: float
    state: ReplicaState = ReplicaState.STARTING
    is_reported: bool = False


@dataclass
class SimulatedCluster:
    """Starts and stops replicas only when `reconcile` is called, until there are `count`.

    A replica becomes ready only after it was reported as starting.
    """

    stops_unready_first: bool
    count: int = 0
    named: tuple[str, ...] = ()
    pods: dict[str, Pod] = field(default_factory=dict)
    started: int = 0

    def reconcile(self, now: float) -> list[str]:
        """Start or stop replicas; return the names of those that were stopped."""
        running = [pod for pod in self.pods.values() if pod.state is not ReplicaState.DRAINING]
        running.sort(key=self._removal_order)
        stopped = running[self.count :]
        if not self.stops_unready_first:
            stopped = [pod for pod in running if pod in stopped or pod.name in self.named]
        for pod in stopped:
            pod.state = ReplicaState.DRAINING
        for _ in range(self.count - len(running) + len(stopped)):
            self.started += 1
            name = f"pod{self.started}"
            self.pods[name] = Pod(name, now + self.started / 1000)
        return [pod.name for pod in stopped]

    def _removal_order(self, pod: Pod) -> tuple[bool, bool, float]:
        named, starting = pod.name in self.named, pod.state is ReplicaState.STARTING
        # The last ones are stopped. Kubernetes: unready, then deletion cost, then age; local cluster: named ones first.
        return (starting, named, pod.started_at) if self.stops_unready_first else (named, starting, pod.started_at)


@dataclass
class SimulatedLedger:
    """The slot ledger: requests in flight, and cordons with the time since which they are in effect."""

    in_flight: dict[str, int] = field(default_factory=dict)
    cordoned_since: dict[str, float] = field(default_factory=dict)

    def is_drained(self, name: str, now: float) -> bool:
        if not self.in_flight.get(name):
            return True
        since = self.cordoned_since.get(name)
        return since is not None and now - since >= DRAIN_SECONDS + ABORT_SECONDS


class ReconcilerMachine(RuleBasedStateMachine):
    """A reconciler, its cluster and its ledger under random events."""

    @initialize(stops_unready_first=st.booleans(), aborts=st.booleans(), pods=st.integers(0, MAX_REPLICAS))
    def begin(self, stops_unready_first: bool, aborts: bool, pods: int) -> None:
        self.now = 0.0
        self.aborts = aborts  # whether workers follow `Abort`
        self.cluster = SimulatedCluster(stops_unready_first, pods)
        self.ledger = SimulatedLedger()
        self.reconciler = ReplicaReconciler(VERSION)
        self.reported: dict[str, Pod] = {}
        self.pending: list[Action] = []  # cordons and uncordons that have not reached the ledger
        self.wanted = pods
        self.closed: set[str] = set()  # replicas that the reconciler has cordoned
        self.named: set[str] = set()
        for _ in range(3):
            self.run_for_a_second(pods)

    # The cluster and the ledger

    @rule(choice=st.integers(0, 2**MAX_REPLICAS - 1))
    def start_requests(self, choice: int) -> None:
        open_names = [
            pod.name
            for pod in self.reported.values()
            if pod.state is ReplicaState.READY
            and pod.name not in self.ledger.cordoned_since
            and pod.name in self.cluster.pods
        ]
        for bit, name in enumerate(open_names):
            if choice >> bit & 1:
                self.ledger.in_flight[name] = self.ledger.in_flight.get(name, 0) + 1

    @rule(choice=st.integers(0, 2**MAX_REPLICAS - 1))
    def end_requests(self, choice: int) -> None:
        for bit, name in enumerate(sorted(self.ledger.in_flight)):
            if choice >> bit & 1:
                del self.ledger.in_flight[name]

    @rule(become_ready=st.booleans())
    def reconcile(self, become_ready: bool) -> None:
        for name in self.cluster.reconcile(self.now):
            assert self.ledger.is_drained(name, self.now), f"{name} was busy"
        for pod in list(self.cluster.pods.values()):
            if pod.state is ReplicaState.DRAINING:
                self._remove(pod.name)
            elif become_ready and pod.is_reported:
                pod.state = ReplicaState.READY

    @precondition(lambda self: self.cluster.pods)
    @rule(which=st.integers(0, 9))
    def crash_one(self, which: int) -> None:
        names = sorted(self.cluster.pods)
        self._remove(names[which % len(names)])

    @rule()
    def report(self) -> None:
        for pod in self.cluster.pods.values():
            pod.is_reported = True
        self.reported = {pod.name: replace(pod) for pod in self.cluster.pods.values()}
        for name in self.ledger.cordoned_since.keys() - self.reported.keys():
            del self.ledger.cordoned_since[name]

    @rule(actions=st.integers(1, 9))
    def apply_cordons(self, actions: int) -> None:
        for action in self.pending[:actions]:
            for name in [] if isinstance(action, SetReplicas) else action.ids:
                if isinstance(action, Uncordon):
                    self.ledger.cordoned_since.pop(name, None)
                elif name in self.reported:
                    self.ledger.cordoned_since.setdefault(name, self.now)
        del self.pending[:actions]

    @precondition(lambda self: self.pending)
    @rule()
    def lose_cordons(self) -> None:
        self.pending.clear()

    @rule(wanted=st.integers(0, MAX_REPLICAS))
    def run_for_a_second(self, wanted: int) -> None:
        """Let a second without faults pass, in which the cluster, the ledger and the reconciler all do their work."""
        self.wanted = wanted
        self.reconcile(become_ready=True)
        self.report()
        self.apply_cordons(len(self.pending))
        self.refresh(1.0, wanted)

    @rule(wanted=st.integers(0, MAX_REPLICAS))
    def lower_the_demand_while_replicas_start(self, wanted: int) -> None:
        self.refresh(1.0, MAX_REPLICAS)
        self.reconcile(become_ready=False)
        self.refresh(1.0, wanted)
        self.report()

    def _remove(self, name: str) -> None:
        del self.cluster.pods[name]
        self.ledger.in_flight.pop(name, None)

    # The reconciler

    @rule(seconds=st.sampled_from([1.0, 1.0, 16.0, 40.0]), wanted=st.integers(0, MAX_REPLICAS))
    def refresh(self, seconds: float, wanted: int) -> None:
        self.wanted = wanted
        self._tick(seconds, demand_of(busy=wanted, seconds=seconds))

    @rule()
    def tick_between_refreshes(self) -> None:
        self._tick(0.1, None)

    def _tick(self, seconds: float, demand: Demand | None) -> None:
        self.now += seconds
        before, decided = self.reconciler.requested_replicas, self.reconciler.decision
        actions = self.reconciler.tick(self.now, demand, self._facts())
        self.named &= self._reported_names()
        for action in actions:
            if isinstance(action, SetReplicas):
                self._set_replicas(action, before, decided)
            elif isinstance(action, Abort):
                self._abort(action)
            else:
                self.pending.append(action)
                self.closed = self.closed | {*action.ids} if isinstance(action, Cordon) else self.closed - {*action.ids}
        self.named -= {name for action in actions if isinstance(action, Uncordon) for name in action.ids}
        self.closed &= self._reported_names()
        self._check_enough_stay_open()

    def _abort(self, action: Abort) -> None:
        for name in action.ids:
            assert self.now - self.ledger.cordoned_since[name] >= DRAIN_SECONDS, f"{name} had more time to drain"
            assert name in self.closed, f"{name} is open"
            if self.aborts:
                self.ledger.in_flight.pop(name, None)

    def _set_replicas(self, action: SetReplicas, before: int | None, decided: ScalingDecision | None) -> None:
        assert action.count != before, "only when the number changes"
        if before is not None and action.count > before:
            assert decided is not None
            assert self.reconciler.decision is not None
            assert self.reconciler.decision.desired > decided.desired, "more are requested only when more are desired"
        for name in {*action.remove} - self.named:
            assert self.ledger.is_drained(name, self.now), f"{name} is busy"
            assert name in self.ledger.cordoned_since, f"{name} is not cordoned"
        self.named = {*action.remove}
        if before is not None and action.count < before:
            assert len(self._reported_names() - self.named) <= action.count, "every reported surplus replica is named"
        self.cluster.count, self.cluster.named = action.count, action.remove

    def _check_enough_stay_open(self) -> None:
        decision = self.reconciler.decision
        if decision is None:
            return
        counted = self._reported_names() - self.named
        still_open = len(counted - self.closed)
        assert still_open >= min(decision.desired, len(counted)), "cordoned too many"

    def _facts(self) -> tuple[ReplicaFacts, ...]:
        ledger = self.ledger
        return tuple(
            ReplicaFacts(
                pod.name,
                pod.state,
                ledger.in_flight.get(pod.name, 0),
                pod.name in ledger.cordoned_since,
                pod.started_at,
            )
            for pod in self.reported.values()
        )

    def _reported_names(self) -> set[str]:
        return {pod.name for pod in self.reported.values() if pod.state is not ReplicaState.DRAINING}

    # Invariants

    @invariant()
    def requested_replicas_are_the_desired_and_the_draining_ones(self) -> None:
        if self.reconciler.decision is not None and self.reconciler.requested_replicas is not None:
            assert self.reconciler.decision.desired <= self.reconciler.requested_replicas <= 2 * MAX_REPLICAS

    @rule(requests_end=st.booleans())
    def converge_under_steady_load(self, requests_end: bool) -> None:
        """Check that every cordoned replica is uncordoned or removed, and that the count becomes the desired one."""
        for _ in range(16):
            if requests_end:
                self.ledger.in_flight.clear()
            self.run_for_a_second(self.wanted)
            self.now += REMOVAL_TIMEOUT_SECONDS / 4
        self.run_for_a_second(self.wanted)
        assert self.reconciler.requested_replicas == self.wanted
        assert len(self.cluster.pods) == self.wanted
        assert not self.ledger.cordoned_since
        assert not self.pending
        assert not self.closed


TestReconcilerMachine = ReconcilerMachine.TestCase
TestReconcilerMachine.settings = settings(max_examples=100, stateful_step_count=40)
