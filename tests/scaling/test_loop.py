"""When versions are looked at, what is known of them then, and what becomes of it."""

from collections.abc import Mapping

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from router.scaling.demand import Demand
from router.scaling.loop import SHORTEST_REFRESH_SECONDS, ControlLoop, Step
from router.scaling.scaler import Cordon, SetReplicas, Uncordon, VersionScaler
from router.services import Replica, ReplicaState, Service, VersionKey, parse_service

IRIS: VersionKey = ("iris", "default")
AT_WILL: Mapping[str, object] = {
    "autoscale_min_replicas": 1,
    "autoscale_max_replicas": 100,
    "autoscale_target_utilization": 100,
    "autoscale_scale_down_seconds": 1.0,
}


def replica(name: str, state: ReplicaState = ReplicaState.READY) -> Replica:
    return Replica(name, "127.0.0.1", 1, state)


def services(*names: str, **settings: object) -> dict[str, Service]:
    return {name: parse_service(name, {**AT_WILL, **settings}) for name in names or ("iris",)}


class Scene:
    """A loop, the time, and requests by replica."""

    def __init__(self, *replicas: str, **settings: object) -> None:
        self.loop = ControlLoop()
        self.now = 1000.0
        self.in_flight: dict[str, int] = {}
        self.loop.services_changed(services(**settings), self.now)
        if replicas:
            self.have(*replicas)

    def have(self, *names: str, key: VersionKey = IRIS) -> None:
        self.loop.replicas_changed(key, tuple(map(replica, names)), self.now)

    def change(self, *names: str, **settings: object) -> None:
        self.loop.services_changed(services(*names, **settings), self.now)

    def saw(self, front_end: str, busy: float, seconds: float, key: VersionKey = IRIS) -> None:
        """A front-end reports that on average so many requests were in flight."""
        self.loop.add_seen(front_end, seconds, {key: Demand(busy_seconds=busy * seconds).seen})

    def step(self, after: float = 0.0, key: VersionKey = IRIS) -> Step | None:
        """Look `after` seconds later."""
        self.now += after
        return self.loop.step(key, self.now, lambda _, name: self.in_flight.get(name, 0))

    def carry_out(self, step: Step | None) -> None:
        """Do to the cordons what was asked for."""
        assert step is not None
        cordoned = set(self.loop.cordoned(step.key))
        for action in step.actions:
            match action:
                case Cordon(ids):
                    cordoned.update(ids)
                case Uncordon(ids):
                    cordoned.difference_update(ids)
        self.loop.set_cordoned(step.key, cordoned)

    def steady(self, busy: float, seconds: int = 2) -> None:
        """So many requests in flight for some seconds."""
        for _ in range(seconds):
            self.saw("w0", busy, 1.0)
            step = self.step(1.0)
            if step is not None:
                self.carry_out(step)

    @property
    def desired(self) -> int:
        decision = self.loop.decision(IRIS)
        assert decision is not None
        return decision.desired


# When.


def test_a_version_is_looked_at_when_its_refresh_is_due() -> None:
    scene = Scene("a")
    scene.saw("w0", 3.0, 0.9)
    assert scene.step(0.9) is None
    assert scene.loop.decision(IRIS) is None
    assert scene.step(0.1) == Step(IRIS, (SetReplicas(3),), scene.loop.decision(IRIS), "up")
    assert scene.step(0.9) is None


def test_nothing_is_decided_before_the_replicas_are_known() -> None:
    scene = Scene(autoscale_scale_down_seconds=60)
    assert scene.step(5.0) is None
    scene.have("a", "b")
    assert scene.step() is not None
    assert scene.desired == 2


def test_a_version_that_has_no_replica_yet_is_known_to_have_none() -> None:
    scene = Scene()
    scene.have()
    step = scene.step(1.0)
    assert step is not None
    assert step.actions == (SetReplicas(1),)


def test_versions_have_their_own_rhythm() -> None:
    scene = Scene("a", autoscale_refresh_seconds=1)
    slow = services("slow", autoscale_refresh_seconds=3)
    scene.loop.services_changed({**services(), **slow}, scene.now)
    scene.have("b", key=("slow", "default"))
    looks = {"iris": 0, "slow": 0}
    decided: dict[str, object] = {"iris": None, "slow": None}
    for _ in range(60):
        scene.now += 0.1
        for name in looks:
            scene.saw("w0", scene.now, 0.1, key=(name, "default"))  # never twice the same
            scene.step(key=(name, "default"))
            decision = scene.loop.decision((name, "default"))
            looks[name] += decision is not decided[name]
            decided[name] = decision
    assert looks == {"iris": 6, "slow": 2}


def test_no_version_is_looked_at_more_often_than_front_ends_report() -> None:
    scene = Scene("a", autoscale_refresh_seconds=0.001)
    assert scene.step(SHORTEST_REFRESH_SECONDS * 0.9) is None
    assert scene.step(SHORTEST_REFRESH_SECONDS * 0.2) is not None


def test_a_late_look_does_not_bring_two_at_once() -> None:
    scene = Scene("a")
    assert scene.step(5.7) is not None
    scene.saw("w0", 2.0, 0.4)
    assert scene.step(0.4) is None
    assert scene.step(0.1) is not None  # half a refresh later at the earliest


# What was seen.


def test_demand_of_several_front_ends_is_joined() -> None:
    scene = Scene("a")
    for front_end, busy in (("w0", 1.0), ("w1", 2.0), ("w2", 0.5)):
        for _ in range(5):
            scene.saw(front_end, busy, 0.2)
    scene.step(1.0)
    assert scene.desired == 4


def test_counts_are_summed() -> None:
    scene = Scene("a", autoscale_target_utilization=50)
    seen = Demand(busy_seconds=0.5, queued_seconds=0.25, arrivals=3, refused=1, completed=2, service_seconds=0.5)
    for front_end in ("w0", "w1"):
        scene.loop.add_seen(front_end, 1.0, {IRIS: seen.seen})
    scene.step(1.0)
    decision = scene.loop.decision(IRIS)
    assert decision is not None
    assert "1.00 busy, 0.50 queued, 0.50 refused" in decision.reason


@pytest.mark.parametrize("reports", [4, 5, 6])
def test_load_is_that_of_the_time_reports_cover(reports: int) -> None:
    """Reports and looks have their own rhythms: a fifth more or less of the one must not look like load."""
    scene = Scene("a")
    scene.saw("w0", 4.0, 0.2)
    scene.step(1.0)
    for _ in range(reports):
        scene.saw("w0", 4.0, 0.2)
    scene.step(1.0)
    decision = scene.loop.decision(IRIS)
    assert decision is not None
    assert decision.raw_desired == 4


def test_a_front_end_that_begins_within_the_interval_had_nothing_before() -> None:
    scene = Scene("a")
    scene.step(1.0)
    scene.saw("new", 5.0, 0.2)
    scene.step(1.0)
    assert scene.desired == 1


def test_what_a_front_end_saw_before_it_ended_counts() -> None:
    scene = Scene("a")
    scene.saw("w0", 0.0, 0.2)
    scene.step(1.0)
    scene.saw("w0", 5.0, 0.8)
    scene.loop.front_end_gone("w0")
    scene.step(1.0)
    assert scene.desired == 4


def test_a_front_end_that_did_not_report_saw_nothing_and_makes_up_for_it() -> None:
    scene = Scene("a", autoscale_scale_down_seconds=10)
    scene.saw("w0", 3.0, 0.2)
    scene.step(1.0)
    scene.step(1.0)
    scene.saw("w0", 3.0, 1.8)
    scene.step(1.0)
    decision = scene.loop.decision(IRIS)
    assert decision is not None
    assert decision.raw_desired == 3


def test_what_was_seen_counts_once() -> None:
    scene = Scene("a")
    scene.saw("w0", 3.0, 1.0)
    scene.step(1.0)
    assert scene.desired == 3
    scene.have("a", "b", "c")
    scene.saw("w0", 0.0, 1.0)
    scene.step(1.0)
    scene.step(1.0)
    assert scene.desired == 1


def test_demand_of_a_version_that_is_not_there_is_nobodys() -> None:
    scene = Scene("a")
    scene.loop.add_seen("w0", 1.0, {("gone", "default"): Demand(busy_seconds=1.0).seen})
    assert scene.step(key=("gone", "default"), after=1.0) is None


# What becomes of it.


def test_changes_of_the_wanted_number_are_counted_by_direction() -> None:
    scene = Scene("a")
    scene.steady(1.0)
    scene.steady(4.0, 1)
    scene.have("a", "b", "c", "d")
    scene.steady(4.0, 1)
    assert scene.loop.decisions(IRIS) == {("up", "demand"): 1}
    scene.steady(2.0)
    assert scene.loop.decisions(IRIS) == {("up", "demand"): 1, ("down", "demand"): 1}


def test_while_one_is_cordoned_it_is_looked_at_each_time() -> None:
    scene = Scene("a", "b")
    scene.in_flight = {"a": 1, "b": 1}
    scene.steady(1.0)
    (cordoned,) = scene.loop.cordoned(IRIS)
    assert scene.step(0.1) is None  # it drains
    scene.in_flight[cordoned] = 0
    step = scene.step(0.1)
    assert step is not None
    assert step.actions == (SetReplicas(1, (cordoned,)),)
    assert step.changed == ""


def test_a_cordon_is_kept_when_settings_change() -> None:
    scene = Scene("a", "b")
    scene.in_flight = {"a": 1, "b": 1}
    scene.steady(1.0)
    cordoned = scene.loop.cordoned(IRIS)
    assert len(cordoned) == 1
    scene.change(scoring_timeout_ms=1234)
    assert scene.loop.cordoned(IRIS) == cordoned
    assert scene.step(0.1) is None
    scene.have("a", "b", "c")
    assert scene.loop.cordoned(IRIS) == cordoned


def test_a_cordon_ends_with_its_replica() -> None:
    scene = Scene("a", "b")
    scene.loop.set_cordoned(IRIS, {"a", "unknown"})
    assert scene.loop.cordoned(IRIS) == {"a"}
    scene.have("b")
    assert scene.loop.cordoned(IRIS) == frozenset()


def test_states_are_counted() -> None:
    scene = Scene()
    assert scene.loop.replicas_by_state(IRIS) == {"starting": 0, "ready": 0, "draining": 0}
    states = (ReplicaState.READY, ReplicaState.STARTING, ReplicaState.READY, ReplicaState.DRAINING)
    scene.loop.replicas_changed(IRIS, tuple(replica(f"r{n}", state) for n, state in enumerate(states)), scene.now)
    assert scene.loop.replicas_by_state(IRIS) == {"starting": 1, "ready": 2, "draining": 1}


# Versions come, change and go.


def test_a_new_version_begins_with_an_interval_of_its_own() -> None:
    scene = Scene("a")
    scene.now += 100.5
    scene.change("iris", "new")
    scene.have("n", key=("new", "default"))
    scene.saw("w0", 2.0, 1.0, key=("new", "default"))
    assert scene.step(0.9, key=("new", "default")) is None
    step = scene.step(0.1, key=("new", "default"))
    assert step is not None
    assert step.actions == (SetReplicas(2),)


def test_a_version_that_is_gone_leaves_nothing() -> None:
    scene = Scene("a", "b")
    scene.steady(2.0)
    scene.change("other")
    assert scene.step(1.0) is None
    assert scene.loop.decision(IRIS) is None
    assert scene.loop.decisions(IRIS) == {}
    assert scene.loop.cordoned(IRIS) == frozenset()
    assert scene.loop.replicas_by_state(IRIS)["ready"] == 0
    scene.have("late")  # a last word of the cluster
    assert scene.loop.replicas_by_state(IRIS)["ready"] == 0
    scene.change("iris")
    assert scene.step(1.0) is None  # begins anew: its replicas are not known


def test_changed_settings_are_in_force_at_the_next_look() -> None:
    scene = Scene("a")
    scene.steady(6.0)
    assert scene.desired == 6
    scene.change(autoscale_max_replicas=4)
    scene.steady(6.0, 1)
    assert scene.desired == 4
    scene.change(autoscale_target_utilization=50)
    scene.steady(6.0, 1)
    assert scene.desired == 12


def test_a_shorter_refresh_does_not_wait_for_the_longer_one() -> None:
    scene = Scene("a", autoscale_refresh_seconds=100)
    scene.now += 10
    scene.change(autoscale_refresh_seconds=1)
    assert scene.step(0.9) is None
    assert scene.step(0.1) is not None


def test_a_longer_refresh_begins_after_the_look_that_is_due() -> None:
    scene = Scene("a", autoscale_refresh_seconds=1)
    scene.change(autoscale_refresh_seconds=100)
    assert scene.step(1.0) is not None
    assert scene.step(50.0) is None
    assert scene.step(50.0) is None  # looked at, and nothing to do
    scene.saw("w0", 2.0, 100.0)
    assert scene.step(100.0) is not None


def test_autoscaling_may_come_and_go() -> None:
    scene = Scene("a")
    fixed = {"iris": parse_service("iris", {"num_replicas": 3})}
    scene.loop.services_changed(fixed, scene.now)
    scene.step(1.0)
    assert scene.desired == 3
    scene.have("a", "b", "c")
    scene.change()
    scene.steady(5.0, 1)
    assert scene.desired == 5


# Who else scales, and who did before.


def test_a_number_that_somebody_else_set_is_brought_back_through_cordons() -> None:
    scene = Scene("a")
    scene.steady(1)
    scene.loop.count_set(IRIS, 3)
    scene.have("a", "b", "c")
    scene.in_flight = {"a": 1}
    scene.saw("w0", 1, 1.0)
    step = scene.step(1.0)
    assert step is not None
    assert step.actions == (Cordon(("b", "c")),) or step.actions == (Cordon(("c", "b")),)
    scene.carry_out(step)
    step = scene.step(0.1)
    assert step is not None
    assert step.actions == (SetReplicas(1, ("b", "c")),)


def test_a_number_that_somebody_else_set_too_low_is_raised_again() -> None:
    scene = Scene("a", "b")
    scene.steady(2)
    scene.loop.count_set(IRIS, 1)
    scene.saw("w0", 2, 1.0)
    step = scene.step(1.0)
    assert step is not None
    assert step.actions == (SetReplicas(2),)


def test_a_version_that_is_left_alone_is_not_scaled_and_begins_anew_afterwards() -> None:
    scene = Scene("a", autoscale_scale_down_seconds=10.0)
    scene.steady(1)
    scene.loop.leave_alone(IRIS, scene.now, alone=True)
    scene.saw("w0", 50, 1.0)
    assert scene.step(1.0) is None
    scene.loop.leave_alone(IRIS, scene.now, alone=False)
    scene.loop.count_set(IRIS, 4)
    scene.saw("w0", 1, 1.0)
    scene.step(1.0)
    assert scene.desired == 4, "what was not watched may have been busy: the number that is set is held"


def test_who_begins_to_lead_holds_what_is_there_and_goes_on_with_what_drains() -> None:
    scene = Scene("a", "b", "c", autoscale_scale_down_seconds=10.0)
    scene.saw("w0", 50, 1.0)  # seen before it led: counts no more
    scene.loop.set_cordoned(IRIS, {"c"})
    scene.loop.start_over(scene.now, {IRIS: 3})
    for _ in range(5):
        scene.saw("w0", 0.0, 1.0)
        scene.step(1.0)
    assert scene.desired == 2
    assert scene.loop.cordoned(IRIS) == {"c"}


def test_who_begins_to_lead_counts_replicas_that_are_on_their_way() -> None:
    scene = Scene("a", autoscale_scale_down_seconds=10.0)
    scene.loop.start_over(scene.now, {IRIS: 5})
    scene.saw("w0", 1.0, 1.0)
    step = scene.step(1.0)
    assert step is None
    assert scene.desired == 5


# Not to look is as good as to look.


EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("saw"), st.sampled_from([0.0, 0.4, 2.5])),
        st.tuples(st.just("have"), st.integers(0, 4)),
        st.tuples(st.just("count"), st.integers(0, 4)),
        st.tuples(st.just("minimum"), st.integers(0, 3)),
        st.tuples(st.just("refresh"), st.sampled_from([0.1, 1.0, 7.0])),
        st.tuples(st.just("rest"), st.integers(1, 40)),
    ),
    max_size=25,
)


def told(events: list[tuple[str, float]], *, by_agenda: bool) -> list[tuple[float, Step | None, str]]:
    """What the loop said, and its last words on why, at each moment of a history of three services."""
    names = ("a", "b", "c")
    settings: dict[str, object] = {"autoscale_min_replicas": 1, "autoscale_scale_down_seconds": 3.0}
    scene = Scene()
    scene.change(*names, **settings)
    said: list[tuple[float, Step | None, str]] = []

    def look() -> None:
        scene.now = round(scene.now + 0.1, 3)
        due = scene.loop.due(scene.now)
        for name in names:
            key = (name, "default")
            step = scene.step(key=key) if key in due or not by_agenda else None
            if step is not None:
                scene.carry_out(step)
            decision = scene.loop.decision(key)
            said.append((scene.now, step, decision.reason if decision is not None else ""))

    for number, (event, value) in enumerate(events):
        key = (names[number % 3], "default")
        match event:
            case "saw":
                scene.saw("w0", value, 0.1, key)
            case "have":
                scene.have(*(f"{key[0]}{n}" for n in range(int(value))), key=key)
            case "count":
                scene.loop.count_set(key, int(value))
            case "minimum":
                settings["autoscale_min_replicas"] = int(value)
                scene.change(*names, **settings)
            case "refresh":
                settings["autoscale_refresh_seconds"] = value
                scene.change(*names, **settings)
            case _:
                for _ in range(int(value)):
                    scene.loop.add_seen("w0", 0.1, {})
                    look()
        look()
    return said


@given(EVENTS)
def test_versions_that_are_not_due_have_nothing_to_do(events: list[tuple[str, float]]) -> None:
    assert told(events, by_agenda=True) == told(events, by_agenda=False)


@given(EVENTS)
@example([("saw", 0.0)] * 10 + [("saw", 0.4), ("rest", 3)])  # at rest, some load that changes nothing, at rest again
@example(
    [("saw", 0.0)] * 3
    + [("have", 0)]
    + [("saw", 0.0)] * 6
    + [("refresh", 0.1), ("saw", 0.0), ("saw", 0.4), ("rest", 3)]
)
def test_a_version_at_rest_is_decided_on_as_if_it_were_looked_at(events: list[tuple[str, float]]) -> None:
    passed_over = told(events, by_agenda=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(VersionScaler, "is_at_rest", False)
        assert passed_over == told(events, by_agenda=False)


def test_a_version_at_rest_costs_no_look_until_a_request_comes() -> None:
    scene = Scene("a")
    scene.steady(0.0, seconds=3)
    asked: list[str] = []
    for _ in range(20):
        scene.now += 1.0
        scene.loop.add_seen("w0", 1.0, {})
        assert scene.loop.due(scene.now) == [IRIS]
        scene.loop.step(IRIS, scene.now, lambda _, name: asked.append(name) or 0)  # type: ignore[func-returns-value]
    assert asked == []
    scene.saw("w0", 2.0, 1.0)
    step = scene.step(1.0)
    assert step is not None
    assert step.actions == (SetReplicas(2),)  # of the last second alone, not of all that it rested
    scene.carry_out(step)
    scene.have("a", "b")
    scene.steady(0.0, seconds=3)
    assert scene.desired == 1  # and down again


def test_a_version_with_a_cordoned_replica_is_always_due() -> None:
    scene = Scene("a", "b")
    scene.steady(0.0, seconds=3)
    assert scene.loop.cordoned(IRIS) == {"a"}
    assert scene.loop.due(scene.now) == [IRIS]
    scene.have("b")
    scene.steady(0.0)
    assert scene.loop.due(scene.now + 0.1) == []
