"""The decisions of outlier detection: which replica is ejected, when, and for how long."""

from __future__ import annotations

from dataclasses import replace
from itertools import count
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.config.service import parse_service
from router.gateway.outliers import FIRST_AVOIDANCE_SECONDS, OutlierDetector, Suspension
from router.gateway.replica_health import (
    AVOIDED,
    CLOSED,
    EJECTED,
    HALF_OPEN,
    IN_USE,
    INVALID,
    ON_TRIAL,
    REFUSING,
    TIMEOUT,
    ReplicaHealth,
)

SETTINGS = parse_service("iris", {"num_replicas": 1, "auth_enabled": False}).versions[0]
A, B = b"10.0.0.1", b"10.0.0.2"


class World:
    """A detector with its replicas, and the time."""

    def __init__(self, replicas: int, **changed: Any) -> None:
        self.now = 1000.0
        self.detector = OutlierDetector(replace(SETTINGS, **changed), self.now)
        self.healths: dict[str, ReplicaHealth] = {}
        self.set_open(*(f"r{number}" for number in range(replicas)))

    def set_open(self, *replica_ids: str) -> list[ReplicaHealth]:
        self.healths = {each: self.healths.get(each) or ReplicaHealth(each) for each in replica_ids}
        self.detector.set_replicas(self.healths, replica_ids)
        return self.detector.to_readmit()

    def __getitem__(self, number: int) -> ReplicaHealth:
        return self.healths[f"r{number}"]

    def fail(self, number: int, client: bytes = A, kind: str = CLOSED, times: int = 1) -> Suspension | None:
        suspension = None
        for _ in range(times):
            self.now += 0.01
            suspension = self.detector.on_failure(self[number], kind, client, self.now)
            self.detector.to_readmit()
        return suspension

    def respond(self, number: int, status: int = 200, client: bytes = A) -> Suspension | None:
        self.now += 0.01
        if status < 400:
            self[number].successes += 1
        return self.detector.on_response(self[number], status, client, self.now)

    def eject(self, number: int, other: int = 1) -> Suspension:
        """Have a replica ejected by failures, while another one serves the same client."""
        suspension = None
        for _ in range(5):
            suspension = self.fail(number)
            self.respond(other)
        assert self[number].state == EJECTED
        assert suspension is not None
        return suspension

    def try_again(self, number: int, status: int) -> Suspension | None:
        """Let the ejection end, and the trial be answered."""
        health = self[number]
        self.now = max(self.now, health.until)
        self.detector.on_time_over(health)
        assert health.state == HALF_OPEN
        self.detector.begin_trial(health, object(), self.now)
        assert health.state == ON_TRIAL
        early = self.detector.on_trial_responds(health, status, self.now)
        return early if early is not None else self.respond(number, status)


@pytest.mark.parametrize(("kind", "times"), [(CLOSED, 5), (INVALID, 5), (TIMEOUT, 3)])
def test_replica_is_ejected_after_failures_in_a_row(kind: str, times: int) -> None:
    world = World(3)
    for _ in range(times - 1):
        avoided = world.fail(0, kind=kind)
        assert avoided is not None
        assert avoided.reason == ""
        world.respond(1)
    assert world[0].state == AVOIDED
    suspension = world.fail(0, kind=kind)
    assert suspension is not None
    assert (world[0].state, suspension.seconds) == (EJECTED, 10.0)


@pytest.mark.parametrize("status", [502, 503, 504])
def test_unavailable_responses_count_as_failures(status: int) -> None:
    world = World(3)
    for _ in range(5):
        world.respond(0, status)
        world.respond(1)
    assert world[0].state == EJECTED


def test_other_response_ends_the_row() -> None:
    world = World(3)
    for status in (200, 500, 422, 429):
        for _ in range(4):
            world.fail(0)
            world.respond(1)
        world.respond(0, status)
    assert world[0].ejections == 0


def test_avoidance_grows_with_each_failure_and_begins_anew_after_a_success() -> None:
    world = World(3, outlier_consecutive_failures=100)
    seconds = [suspension.seconds for _ in range(8) if (suspension := world.fail(0)) is not None]
    assert seconds == [min(FIRST_AVOIDANCE_SECONDS * 2**number, 5.0) for number in range(8)]
    world.detector.on_time_over(world[0])
    world.respond(0)
    again = world.fail(0)
    assert again is not None
    assert again.seconds == FIRST_AVOIDANCE_SECONDS


def test_failed_trial_ejects_for_twice_as_long_and_a_good_one_ends_it() -> None:
    world = World(3)
    world.eject(0)
    seconds = [suspension.seconds for _ in range(6) if (suspension := world.try_again(0, 503)) is not None]
    assert seconds == [20.0, 40.0, 80.0, 160.0, 300.0, 300.0]
    assert world.try_again(0, 200) is None
    assert world[0].state == IN_USE


def test_replica_that_fails_soon_after_its_trial_is_ejected_for_longer_and_later_for_less() -> None:
    world = World(3)
    world.eject(0)
    assert world.try_again(0, 200) is None
    assert world.eject(0).seconds == 20.0
    assert world.try_again(0, 200) is None
    world.now += 1000
    assert world.eject(0).seconds == 10.0


def test_trial_that_begins_to_respond_and_fails_then_ejects_at_once() -> None:
    world = World(3)
    world.eject(0)
    world.now = world[0].until
    world.detector.on_time_over(world[0])
    world.detector.begin_trial(world[0], object(), world.now)
    assert world.detector.on_trial_responds(world[0], 200, world.now) is None
    assert world[0].state == IN_USE
    suspension = world.fail(0)
    assert suspension is not None
    assert suspension.seconds == 20.0


def test_trial_without_result_is_repeated() -> None:
    world = World(3)
    world.eject(0)
    world.detector.on_time_over(world[0])
    world.detector.begin_trial(world[0], object(), world.now)
    assert world.detector.sweep(world.now + 30) == []
    assert world.detector.sweep(world.now + 62) == [world[0]]
    assert world[0].state == HALF_OPEN


def test_only_replica_is_never_suspended() -> None:
    world = World(1)
    assert world.fail(0, times=100) is None
    assert world[0].state == IN_USE


def test_input_of_a_client_that_fails_everywhere_ejects_nobody() -> None:
    world = World(4)
    for number in range(100):
        world.fail(number % 4, client=A, kind=TIMEOUT)
    assert not world.detector.ejected


def test_no_replica_is_ejected_while_most_others_fail() -> None:
    world = World(6)
    for _ in range(20):
        for number in range(4):
            for client in (A, B):
                world.fail(number, client=client)
        world.respond(4)
    assert not world.detector.ejected


def test_two_of_three_hanging_replicas_leave_the_third_in_use() -> None:
    world = World(3)
    for _ in range(20):
        world.fail(0, kind=TIMEOUT)
        world.fail(1, kind=TIMEOUT)
        world.respond(2)
    assert sorted(each.state for each in world.healths.values()) == [IN_USE, AVOIDED, EJECTED]
    assert world[2].state == IN_USE


@pytest.mark.parametrize(
    ("replicas", "percent", "limit"), [(3, 67, 2), (3, 100, 2), (2, 50, 1), (10, 0, 0), (10, 35, 3)]
)
def test_share_holds_after_the_ejection(replicas: int, percent: int, limit: int) -> None:
    world = World(replicas, outlier_max_ejected_percent=percent)
    for number in range(replicas - 1):
        for _ in range(10):
            world.fail(number, client=A)
            world.fail(number, client=B)
            for healthy in range(number + 1, replicas):
                world.respond(healthy)
    assert world.detector.ejected == limit


def test_ejected_replica_is_used_again_when_the_others_are_removed() -> None:
    world = World(4)
    world.eject(0)
    assert world.set_open("r0", "r1") == []
    assert world.set_open("r0") == [world[0]]
    assert world[0].state == IN_USE


def test_ejected_replica_is_used_again_when_the_last_other_one_refuses_connections() -> None:
    world = World(2)
    world.eject(0)
    world.detector.on_refused(world[1])
    assert world.detector.to_readmit() == [world[0]]


def test_all_are_used_again_when_detection_is_turned_off() -> None:
    world = World(4)
    world.eject(0)
    world.fail(2)
    world.detector.change(replace(SETTINGS, outlier_detection=False))
    assert {each.replica_id for each in world.detector.to_readmit()} == {"r0", "r2"}
    assert world.fail(0, times=100) is None


def test_replica_that_returns_begins_anew() -> None:
    world = World(3)
    world.eject(0)
    world.set_open("r1", "r2")
    world.set_open("r0", "r1", "r2")
    assert (world[0].state, world[0].errors) == (IN_USE, 0)


# The rate of failures.


@pytest.mark.parametrize("status", [400, 422, 429, 500])
def test_replica_with_a_high_rate_of_failures_of_several_clients_is_ejected(status: int) -> None:
    world = World(3)
    suspension = None
    for number in range(300):
        client = (A, B, b"10.0.0.3")[number % 3]
        for each in range(1, 3):
            world.respond(each, client=client)
        if world[0].state == IN_USE:
            suspension = world.respond(0, status, client) or suspension
    assert world[0].state == EJECTED
    assert suspension is not None
    assert "responses are failures" in suspension.reason


@pytest.mark.parametrize("status", [400, 500])
def test_bad_input_of_one_client_ejects_nobody_even_if_all_of_it_reaches_one_replica(status: int) -> None:
    world = World(3)
    for number in range(2000):
        world.respond(0, status, A)
        world.respond(number % 3, 200, B)
    assert world[0].state == IN_USE


def test_failures_at_all_replicas_alike_eject_nobody() -> None:
    world = World(4)
    for number in range(4000):
        world.respond(number % 4, 500 if number % 3 else 200, (A, B)[number // 4 % 2])
    assert not world.detector.ejected


def test_few_requests_eject_nobody() -> None:
    world = World(3)
    for number in range(18):
        world.respond(0, 500, (A, B)[number % 2])
        world.respond(1)
        world.respond(2)
    assert world[0].state == IN_USE


@pytest.mark.parametrize("healthy", [0, 30, 3000])
@pytest.mark.parametrize("clients", [2, 8, 100])
def test_replica_that_always_fails_is_ejected_within_a_few_requests(clients: int, healthy: int) -> None:
    world = World(3)
    names = [b"10.0.1.%d" % number for number in range(clients)]
    for number in range(healthy):
        world.respond(number % 3, client=names[number % clients])
    failures = 0
    while world[0].state == IN_USE:
        name = names[failures % clients]
        world.respond(1, client=name)
        world.respond(2, client=name)
        world.now += 0.1
        world.respond(0, 500, name)
        failures += 1
        assert failures <= 20
    assert failures > 10


def test_failures_of_all_replicas_at_the_same_time_eject_nobody() -> None:
    world = World(3)
    for number in range(3000):
        world.respond(number % 3, client=(A, B)[number % 2])
    for number in range(300):
        world.respond(number % 3, 500, (A, B)[number // 3 % 2])
        world.now += 0.1
    assert not world.detector.ejected


def test_one_success_begins_another_run() -> None:
    world = World(3)
    for number in range(200):
        for each in (1, 2):
            world.respond(each)
        world.respond(0, 200 if number % 9 == 8 else 500, (A, B)[number % 2])
        if number == 17:
            assert world[0].state == IN_USE
    assert world[0].state == EJECTED  # by its rate
    assert world[0].reason.startswith(("8", "9"))


def test_rate_forgets_what_is_long_ago() -> None:
    world = World(3)
    for number in range(30):
        world.respond(0, 500, (A, B)[number % 2])
    for _ in range(8):
        world.now += 30
        world.detector.sweep(world.now)
    assert (world[0].failures, world[0].failures_by_client) == (0, {})


def test_trial_after_an_ejection_by_rate_is_not_decided_by_bad_input() -> None:
    world = World(3)
    for number in range(100):
        world.respond(1)
        world.respond(2)
        if world[0].state == IN_USE:
            world.respond(0, 500, (A, B)[number % 2])
    assert world[0].state == EJECTED
    world.try_again(0, 422)
    assert world[0].state == HALF_OPEN
    world.detector.begin_trial(world[0], object(), world.now)
    assert world.detector.on_trial_responds(world[0], 500, world.now) is not None
    assert world[0].state == EJECTED


# Properties.


ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["fail", "timeout", "respond", "error", "unavailable", "refuse", "accept", "time", "open"]),
        st.integers(0, 9),
        st.integers(0, 3),
    ),
    max_size=300,
)


@settings(max_examples=300)
@given(replicas=st.integers(1, 8), percent=st.integers(0, 100), actions=ACTIONS)
def test_limits_hold_whatever_happens(replicas: int, percent: int, actions: list[tuple[str, int, int]]) -> None:
    """One replica that accepts connections is always in use, the share is kept, ejections in a row take longer."""
    world = World(replicas, outlier_max_ejected_percent=percent)
    detector = world.detector
    last_ejection: dict[str, tuple[int, float]] = {}
    names = count(replicas)
    for action, index, who in actions:
        health = list(world.healths.values())[index % len(world.healths)]
        number = int(health.replica_id[1:])
        client = b"client %d" % who
        match action:
            case "fail" | "timeout":
                world.fail(number, client, CLOSED if action == "fail" else TIMEOUT)
            case "respond" | "error" | "unavailable":
                status = {"respond": 200, "error": 500, "unavailable": 503}[action]
                if health.state == ON_TRIAL and detector.on_trial_responds(health, status, world.now) is not None:
                    pass
                else:
                    world.respond(number, status, client)
            case "refuse":
                if health.state in (IN_USE, AVOIDED):
                    detector.on_refused(health)
            case "accept":
                if health.state == REFUSING:
                    detector.on_time_over(health)
            case "time":
                world.now += who
                for each in world.healths.values():
                    if each.state in (AVOIDED, EJECTED) and each.until <= world.now:
                        detector.on_time_over(each)
                    elif each.state == HALF_OPEN:
                        detector.begin_trial(each, object(), world.now)
                detector.sweep(world.now)
            case "open":
                kept = [each for each in world.healths if each != health.replica_id or len(world.healths) == 1]
                world.set_open(*kept, *([f"r{next(names)}"] if who % 2 else []))
        detector.to_readmit()
        healths = world.healths.values()
        assert all(each.state == REFUSING for each in healths) or any(each.state == IN_USE for each in healths)
        ejected = [each for each in healths if each.is_ejected]
        assert len(ejected) <= (max(1, len(healths) * percent // 100) if percent else 0)
        assert len(ejected) < len(healths)
        for each in ejected:
            before, seconds = last_ejection.get(each.replica_id, (0, 0.0))
            if each.ejections > before:
                assert each.last_ejection > seconds or each.last_ejection == 300.0 or not before
            last_ejection[each.replica_id] = (each.ejections, each.last_ejection)


@settings(max_examples=200)
@given(
    replicas=st.integers(2, 6),
    requests=st.lists(
        st.tuples(st.integers(0, 5), st.booleans(), st.sampled_from([0, 400, 500, 503, 504])), max_size=400
    ),
)
def test_bad_input_of_one_client_ejects_nobody(replicas: int, requests: list[tuple[int, bool, int]]) -> None:
    """Whatever it leads to, at whichever replica, in whatever order with the requests of others."""
    world = World(replicas)
    for index, is_bad, outcome in requests:
        number = index % replicas
        if not is_bad:
            world.respond(number, 200, B)
        elif outcome:
            world.respond(number, outcome, A)
        else:
            world.fail(number, A, TIMEOUT)
        assert not world.detector.ejected


def test_slots_are_given_back_at_most_ten_times_a_second_and_only_beside_another_replica() -> None:
    world = World(2)
    assert [world.detector.should_return_slots(world[0], world.now + tenth / 20) for tenth in range(5)] == [
        True, False, True, False, True,
    ]  # fmt: skip
    world.detector.on_refused(world[1])
    assert not world.detector.should_return_slots(world[0], world.now + 10)
