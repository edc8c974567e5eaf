"""The control loop: when versions are due, how usage becomes demand, external changes, and leadership."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from router.config.service import parse_service
from router.model.services import Replica, ReplicaState, Service, VersionKey
from router.model.version_replicas import NO_REPLICAS, VersionReplicas
from router.scaling.demand import Demand
from router.scaling.loop import SHORTEST_REFRESH_SECONDS, ControlLoop, ScalingStep
from router.scaling.replica_reconciler import Cordon, ReplicaReconciler, SetReplicas, Uncordon

IRIS: VersionKey = ("iris", "default")
SETTINGS: Mapping[str, object] = {
    "autoscale_min_replicas": 1,
    "autoscale_max_replicas": 100,
    "autoscale_target_utilization": 100,
    "autoscale_scale_down_seconds": 1.0,
}


def replica(name: str) -> Replica:
    return Replica(name, "127.0.0.1", 1, ReplicaState.READY)


def services(*names: str, **settings: object) -> dict[str, Service]:
    return {name: parse_service(name, {**SETTINGS, **settings}) for name in names or ("iris",)}


class Harness:
    """A control loop, the time, and requests in flight by replica."""

    def __init__(self, *replicas: str, **settings: object) -> None:
        self.loop = ControlLoop()
        self.now = 1000.0
        self.in_flight: dict[str, int] = {}
        self.replicas: dict[VersionKey, VersionReplicas] = {}
        self.loop.set_services(services(**settings), self.now)
        if replicas:
            self.set_replicas(*replicas)

    def set_replicas(self, *names: str, key: VersionKey = IRIS) -> None:
        self._set(key, VersionReplicas(tuple(map(replica, names)), self.cordoned(key).intersection(names)))

    def set_cordoned(self, cordoned: Iterable[str], key: VersionKey = IRIS) -> None:
        replicas = self.replicas[key]
        if replicas.cordoned != frozenset(cordoned):
            self._set(key, replace(replicas, cordoned=frozenset(cordoned)))

    def cordoned(self, key: VersionKey = IRIS) -> frozenset[str]:
        return self.replicas.get(key, NO_REPLICAS).cordoned

    def _set(self, key: VersionKey, replicas: VersionReplicas) -> None:
        self.replicas[key] = replicas
        self.loop.set_replicas(key, replicas, self.now)

    def set_services(self, *names: str, **settings: object) -> None:
        self.loop.set_services(services(*names, **settings), self.now)

    def report(self, worker: str, busy: float, seconds: float, key: VersionKey = IRIS) -> None:
        """Report `busy` requests in flight on average, for the last `seconds`."""
        self.loop.add_usage(worker, seconds, {key: Demand(busy_seconds=busy * seconds).usage})

    def step(self, after: float = 0.0, key: VersionKey = IRIS) -> ScalingStep | None:
        """Call the loop's `step` `after` seconds later."""
        self.now += after
        return self.loop.step(key, self.now, lambda _, name: self.in_flight.get(name, 0))

    def apply_cordons(self, step: ScalingStep | None) -> None:
        """Apply the actions of a step that cordon and uncordon."""
        assert step is not None
        cordoned = set(self.cordoned(step.key))
        for action in step.actions:
            match action:
                case Cordon(ids):
                    cordoned.update(ids)
                case Uncordon(ids):
                    cordoned.difference_update(ids)
        self.set_cordoned(cordoned, step.key)

    def run(self, busy: float, seconds: int = 2) -> None:
        """Report `busy` requests in flight, and step, once a second."""
        for _ in range(seconds):
            self.report("w0", busy, 1.0)
            step = self.step(1.0)
            if step is not None:
                self.apply_cordons(step)

    @property
    def desired(self) -> int:
        decision = self.loop.decision(IRIS)
        assert decision is not None
        return decision.desired


# Due times.


def test_version_is_scaled_when_its_refresh_is_due() -> None:
    harness = Harness("a")
    harness.report("w0", 3.0, 0.9)
    assert harness.step(0.9) is None
    assert harness.loop.decision(IRIS) is None
    assert harness.step(0.1) == ScalingStep(IRIS, (SetReplicas(3),), harness.loop.decision(IRIS), "up")
    assert harness.step(0.9) is None


def test_nothing_is_decided_before_replicas_are_known() -> None:
    harness = Harness(autoscale_scale_down_seconds=60)
    assert harness.step(5.0) is None
    harness.set_replicas("a", "b")
    assert harness.step() is not None
    assert harness.desired == 2


def test_version_without_replicas_is_scaled_up() -> None:
    harness = Harness()
    harness.set_replicas()
    step = harness.step(1.0)
    assert step is not None
    assert step.actions == (SetReplicas(1),)


def test_versions_are_scaled_at_their_own_intervals() -> None:
    harness = Harness("a", autoscale_refresh_seconds=1)
    slow = services("slow", autoscale_refresh_seconds=3)
    harness.loop.set_services({**services(), **slow}, harness.now)
    harness.set_replicas("b", key=("slow", "default"))
    intervals = {"iris": 0, "slow": 0}
    decided: dict[str, object] = {"iris": None, "slow": None}
    for _ in range(60):
        harness.now += 0.1
        for name in intervals:
            harness.report("w0", harness.now, 0.1, key=(name, "default"))  # a different load each time
            harness.step(key=(name, "default"))
            decision = harness.loop.decision((name, "default"))
            intervals[name] += decision is not decided[name]
            decided[name] = decision
    assert intervals == {"iris": 6, "slow": 2}


def test_no_version_is_scaled_more_often_than_workers_report() -> None:
    harness = Harness("a", autoscale_refresh_seconds=0.001)
    assert harness.step(SHORTEST_REFRESH_SECONDS * 0.9) is None
    assert harness.step(SHORTEST_REFRESH_SECONDS * 0.2) is not None


def test_late_step_delays_the_next_one() -> None:
    harness = Harness("a")
    assert harness.step(5.7) is not None
    harness.report("w0", 2.0, 0.4)
    assert harness.step(0.4) is None
    assert harness.step(0.1) is not None  # half a refresh later at the earliest


# Usage.


def test_usage_of_several_workers_is_added() -> None:
    harness = Harness("a")
    for worker, busy in (("w0", 1.0), ("w1", 2.0), ("w2", 0.5)):
        for _ in range(5):
            harness.report(worker, busy, 0.2)
    harness.step(1.0)
    assert harness.desired == 4


def test_counts_of_several_workers_are_added() -> None:
    harness = Harness("a", autoscale_target_utilization=50)
    reported = Demand(busy_seconds=0.5, queued_seconds=0.25, arrivals=3, refused=1, completed=2, service_seconds=1.0)
    for worker in ("w0", "w1"):
        harness.loop.add_usage(worker, 1.0, {IRIS: reported.usage})
    harness.step(1.0)
    decision = harness.loop.decision(IRIS)
    assert decision is not None
    assert "1.00 busy, 0.50 queued, 0.50 refused" in decision.reason


@pytest.mark.parametrize("reports", [4, 5, 6])
def test_load_is_scaled_to_the_time_that_reports_cover(reports: int) -> None:
    """Reports and intervals are not aligned: one report more or less in an interval does not change the load."""
    harness = Harness("a")
    harness.report("w0", 4.0, 0.2)
    harness.step(1.0)
    for _ in range(reports):
        harness.report("w0", 4.0, 0.2)
    harness.step(1.0)
    decision = harness.loop.decision(IRIS)
    assert decision is not None
    assert decision.raw_desired == 4


def test_load_of_a_worker_that_starts_within_the_interval_is_not_scaled() -> None:
    harness = Harness("a")
    harness.step(1.0)
    harness.report("new", 5.0, 0.2)
    harness.step(1.0)
    assert harness.desired == 1


def test_usage_of_a_worker_that_has_ended_counts() -> None:
    harness = Harness("a")
    harness.report("w0", 0.0, 0.2)
    harness.step(1.0)
    harness.report("w0", 5.0, 0.8)
    harness.loop.remove_source("w0")
    harness.step(1.0)
    assert harness.desired == 4


def test_late_report_is_scaled_to_the_interval_in_which_it_arrives() -> None:
    harness = Harness("a", autoscale_scale_down_seconds=10)
    harness.report("w0", 3.0, 0.2)
    harness.step(1.0)
    harness.step(1.0)
    harness.report("w0", 3.0, 1.8)
    harness.step(1.0)
    decision = harness.loop.decision(IRIS)
    assert decision is not None
    assert decision.raw_desired == 3


def test_usage_counts_in_one_interval_only() -> None:
    harness = Harness("a")
    harness.report("w0", 3.0, 1.0)
    harness.step(1.0)
    assert harness.desired == 3
    harness.set_replicas("a", "b", "c")
    harness.report("w0", 0.0, 1.0)
    harness.step(1.0)
    harness.step(1.0)
    assert harness.desired == 1


def test_usage_of_an_unknown_version_is_ignored() -> None:
    harness = Harness("a")
    harness.loop.add_usage("w0", 1.0, {("unknown", "default"): Demand(busy_seconds=1.0).usage})
    assert harness.step(key=("unknown", "default"), after=1.0) is None


# Steps.


def test_decisions_are_counted_by_direction_and_bound() -> None:
    harness = Harness("a")
    harness.run(1.0)
    harness.run(4.0, 1)
    harness.set_replicas("a", "b", "c", "d")
    harness.run(4.0, 1)
    assert harness.loop.decisions(IRIS) == {("up", "demand"): 1}
    harness.run(2.0)
    assert harness.loop.decisions(IRIS) == {("up", "demand"): 1, ("down", "demand"): 1}


def test_version_with_a_cordoned_replica_is_scaled_at_each_step() -> None:
    harness = Harness("a", "b")
    harness.in_flight = {"a": 1, "b": 1}
    harness.run(1.0)
    (cordoned,) = harness.cordoned()
    assert harness.step(0.1) is None  # it drains
    harness.in_flight[cordoned] = 0
    step = harness.step(0.1)
    assert step is not None
    assert step.actions == (SetReplicas(1, (cordoned,)),)
    assert step.direction == ""


# Changes of versions.


def test_new_version_starts_its_own_interval() -> None:
    harness = Harness("a")
    harness.now += 100.5
    harness.set_services("iris", "new")
    harness.set_replicas("n", key=("new", "default"))
    harness.report("w0", 2.0, 1.0, key=("new", "default"))
    assert harness.step(0.9, key=("new", "default")) is None
    step = harness.step(0.1, key=("new", "default"))
    assert step is not None
    assert step.actions == (SetReplicas(2),)


def test_removed_version_leaves_nothing() -> None:
    harness = Harness("a", "b")
    harness.run(2.0)
    harness.set_services("other")
    assert harness.step(1.0) is None
    assert harness.loop.decision(IRIS) is None
    assert harness.loop.decisions(IRIS) == {}
    harness.set_replicas("late")  # a late report of the cluster
    harness.set_services("iris")
    assert harness.step(1.0) is None  # its replicas are not known again


def test_changed_settings_apply_at_the_next_step() -> None:
    harness = Harness("a")
    harness.run(6.0)
    assert harness.desired == 6
    harness.set_services(autoscale_max_replicas=4)
    harness.run(6.0, 1)
    assert harness.desired == 4
    harness.set_services(autoscale_target_utilization=50)
    harness.run(6.0, 1)
    assert harness.desired == 12


def test_shorter_refresh_applies_at_once() -> None:
    harness = Harness("a", autoscale_refresh_seconds=100)
    harness.now += 10
    harness.set_services(autoscale_refresh_seconds=1)
    assert harness.step(0.9) is None
    assert harness.step(0.1) is not None


def test_longer_refresh_applies_after_the_step_that_is_due() -> None:
    harness = Harness("a", autoscale_refresh_seconds=1)
    harness.set_services(autoscale_refresh_seconds=100)
    assert harness.step(1.0) is not None
    assert harness.step(50.0) is None
    assert harness.step(50.0) is None  # due, with nothing to do
    harness.report("w0", 2.0, 100.0)
    assert harness.step(100.0) is not None


def test_autoscaling_can_be_switched_on_and_off() -> None:
    harness = Harness("a")
    fixed = {"iris": parse_service("iris", {"num_replicas": 3})}
    harness.loop.set_services(fixed, harness.now)
    harness.step(1.0)
    assert harness.desired == 3
    harness.set_replicas("a", "b", "c")
    harness.set_services()
    harness.run(5.0, 1)
    assert harness.desired == 5


# External changes and leadership.


def test_external_scale_up_is_reverted_through_cordons() -> None:
    harness = Harness("a")
    harness.run(1)
    harness.loop.replicas_changed_externally(IRIS, 3)
    harness.set_replicas("a", "b", "c")
    harness.in_flight = {"a": 1}
    harness.report("w0", 1, 1.0)
    step = harness.step(1.0)
    assert step is not None
    assert step.actions == (Cordon(("b", "c")),) or step.actions == (Cordon(("c", "b")),)
    harness.apply_cordons(step)
    step = harness.step(0.1)
    assert step is not None
    assert step.actions == (SetReplicas(1, ("b", "c")),)


def test_external_scale_down_is_reverted() -> None:
    harness = Harness("a", "b")
    harness.run(2)
    harness.loop.replicas_changed_externally(IRIS, 1)
    harness.report("w0", 2, 1.0)
    step = harness.step(1.0)
    assert step is not None
    assert step.actions == (SetReplicas(2),)


def test_suspended_version_is_not_scaled_and_restarts_when_resumed() -> None:
    harness = Harness("a", autoscale_scale_down_seconds=10.0)
    harness.run(1)
    harness.loop.set_scaling_suspended(IRIS, harness.now, suspended=True)
    harness.report("w0", 50, 1.0)
    assert harness.step(1.0) is None
    harness.loop.set_scaling_suspended(IRIS, harness.now, suspended=False)
    harness.loop.replicas_changed_externally(IRIS, 4)
    harness.report("w0", 1, 1.0)
    harness.step(1.0)
    assert harness.desired == 4, "time without observation may have been busy: the requested number is held"


def test_additional_replica_of_a_rolling_update_is_not_cordoned_when_scaling_resumes() -> None:
    harness = Harness("a")
    harness.loop.replicas_changed_externally(IRIS, 1)
    harness.run(1)
    harness.loop.set_scaling_suspended(IRIS, harness.now, suspended=True)
    harness.set_replicas("a", "b")
    harness.loop.set_scaling_suspended(IRIS, harness.now, suspended=False)
    harness.report("w0", 1, 1.0)
    step = harness.step(1.0)
    assert step is None or not any(isinstance(action, Cordon) for action in step.actions)


def test_new_leader_holds_the_requested_number_and_keeps_cordons() -> None:
    harness = Harness("a", "b", "c", autoscale_scale_down_seconds=10.0)
    harness.report("w0", 50, 1.0)  # reported before it led: ignored
    harness.set_cordoned({"c"})
    harness.loop.restart(harness.now, {IRIS: 3})
    for _ in range(5):
        harness.report("w0", 0.0, 1.0)
        harness.step(1.0)
    assert harness.desired == 2
    assert harness.cordoned() == {"c"}


def test_new_leader_counts_requested_replicas_that_are_not_reported_yet() -> None:
    harness = Harness("a", autoscale_scale_down_seconds=10.0)
    harness.loop.restart(harness.now, {IRIS: 5})
    harness.report("w0", 1.0, 1.0)
    step = harness.step(1.0)
    assert step is None
    assert harness.desired == 5


# Skipped versions: the result is the same as without skipping.


EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("report"), st.sampled_from([0.0, 0.4, 2.5])),
        st.tuples(st.just("replicas"), st.integers(0, 4)),
        st.tuples(st.just("external"), st.integers(0, 4)),
        st.tuples(st.just("minimum"), st.integers(0, 3)),
        st.tuples(st.just("refresh"), st.sampled_from([0.1, 1.0, 7.0])),
        st.tuples(st.just("idle"), st.integers(1, 40)),
    ),
    max_size=25,
)


def run_history(events: list[tuple[str, float]], *, only_due: bool) -> list[tuple[float, ScalingStep | None, str]]:
    """Run events on three services; return each step and the reason of the last decision, at each moment."""
    names = ("a", "b", "c")
    settings: dict[str, object] = {"autoscale_min_replicas": 1, "autoscale_scale_down_seconds": 3.0}
    harness = Harness()
    harness.set_services(*names, **settings)
    results: list[tuple[float, ScalingStep | None, str]] = []

    def step_all() -> None:
        harness.now = round(harness.now + 0.1, 3)
        due = harness.loop.due_versions(harness.now)
        for name in names:
            key = (name, "default")
            step = harness.step(key=key) if key in due or not only_due else None
            if step is not None:
                harness.apply_cordons(step)
            decision = harness.loop.decision(key)
            results.append((harness.now, step, decision.reason if decision is not None else ""))

    for number, (event, value) in enumerate(events):
        key = (names[number % 3], "default")
        match event:
            case "report":
                harness.report("w0", value, 0.1, key)
            case "replicas":
                harness.set_replicas(*(f"{key[0]}{n}" for n in range(int(value))), key=key)
            case "external":
                harness.loop.replicas_changed_externally(key, int(value))
            case "minimum":
                settings["autoscale_min_replicas"] = int(value)
                harness.set_services(*names, **settings)
            case "refresh":
                settings["autoscale_refresh_seconds"] = value
                harness.set_services(*names, **settings)
            case _:
                for _ in range(int(value)):
                    harness.loop.add_usage("w0", 0.1, {})
                    step_all()
        step_all()
    return results


@given(EVENTS)
def test_versions_that_are_not_due_need_no_step(events: list[tuple[str, float]]) -> None:
    assert run_history(events, only_due=True) == run_history(events, only_due=False)


@given(EVENTS)
@example([("report", 0.0)] * 10 + [("report", 0.4), ("idle", 3)])  # idle, some load that changes nothing, idle again
@example(
    [("report", 0.0)] * 3
    + [("replicas", 0)]
    + [("report", 0.0)] * 6
    + [("refresh", 0.1), ("report", 0.0), ("report", 0.4), ("idle", 3)]
)
def test_skipped_intervals_of_a_settled_version_change_no_decision(events: list[tuple[str, float]]) -> None:
    skipped = run_history(events, only_due=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ReplicaReconciler, "is_settled", False)
        assert skipped == run_history(events, only_due=False)


def test_settled_version_is_skipped_until_a_request_arrives() -> None:
    harness = Harness("a")
    harness.run(0.0, seconds=3)
    inspected: list[str] = []

    def in_flight(_: VersionKey, name: str) -> int:
        inspected.append(name)
        return 0

    for _ in range(20):
        harness.now += 1.0
        harness.loop.add_usage("w0", 1.0, {})
        assert harness.loop.due_versions(harness.now) == [IRIS]
        harness.loop.step(IRIS, harness.now, in_flight)
    assert inspected == []
    harness.report("w0", 2.0, 1.0)
    step = harness.step(1.0)
    assert step is not None
    assert step.actions == (SetReplicas(2),)  # from the last second alone, not from the idle time before
    harness.apply_cordons(step)
    harness.set_replicas("a", "b")
    harness.run(0.0, seconds=3)
    assert harness.desired == 1  # and down again


def test_version_with_a_cordoned_replica_is_always_due() -> None:
    harness = Harness("a", "b")
    harness.run(0.0, seconds=3)
    assert harness.cordoned() == {"a"}
    assert harness.loop.due_versions(harness.now) == [IRIS]
    harness.set_replicas("b")
    harness.run(0.0)
    assert harness.loop.due_versions(harness.now + 0.1) == []


def test_version_is_scaled_as_a_new_one_when_its_service_is_no_longer_on_standby() -> None:
    harness = Harness("a", "b", "c", autoscale_scale_down_seconds=60.0)
    standby = {name: replace(service, standby=True) for name, service in services().items()}
    harness.loop.set_services(standby, harness.now)
    step = harness.step(after=2.0)
    assert step is not None
    assert Cordon(("a", "b")) in step.actions  # which the caller does not apply
    harness.loop.set_services(services(autoscale_scale_down_seconds=60.0), harness.now)
    assert harness.loop.decision(IRIS) is None
    step = harness.step(after=2.0)
    assert step is not None
    assert step.actions == (SetReplicas(3),)  # until a whole window has been observed
