"""The autoscaler, case by case."""

from dataclasses import replace

import pytest

from router.scaling.autoscaler import HISTORY_LENGTH, Autoscaler, replicas_for
from router.scaling.demand import Demand
from router.services import Version
from tests.scaling.worlds import load, version


def watch(autoscaler: Autoscaler, start: int, end: int, demand: Demand, replicas: int = 1) -> list[int]:
    """Observes the same demand at each second from `start` to `end`; what was desired at each."""
    return [autoscaler.observe(float(now), demand, replicas).desired for now in range(start, end + 1)]


@pytest.mark.parametrize(
    ("rps", "seconds", "target", "max_concurrent", "replicas"),
    [
        (20, 10, 70, 1, 286),  # the published example
        (20, 10, 70, 10, 29),
        (20, 10, 100, 1, 200),
        (0, 10, 70, 1, 0),
        (0.001, 0.001, 70, 1, 1),
        (5, 1, 70, 0, 8),  # no limit counts as 1
        (0.1, 3, 30, 1, 1),  # 0.1 * 3 is 0.30000000000000004
        (7, 1, 70, 1, 10),  # 7 / 0.7 is 10.000000000000002
        (7.0001, 1, 70, 1, 11),
        (1e9, 1e9, 1, 1, 99_999_999_900_000_000_000),
    ],
)
def test_published_sizing_formula(rps: float, seconds: float, target: int, max_concurrent: int, replicas: int) -> None:
    assert replicas_for(rps, seconds, target, max_concurrent) == pytest.approx(replicas, rel=1e-12)


@pytest.mark.parametrize("target", range(1, 101))
def test_a_load_exactly_at_the_target_needs_no_replica_more(target: int) -> None:
    for replicas in range(1, 300):
        assert replicas_for(replicas * target / 100, 1, target, 1) == replicas
        assert replicas_for(replicas * (target / 100), 1, target, 1) == replicas


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1, 1, 70, 1), "rps is -1, must be a number from 0 to 1e+09"),
        ((1, float("nan"), 70, 1), "seconds is nan, must be a number from 0 to 1e+09"),
        ((1, float("inf"), 70, 1), "seconds is inf, must be a number from 0 to 1e+09"),
        ((1, 1, 0, 1), "target_percent is 0, must be a number from 1 to 100"),
        ((1, 1, 101, 1), "target_percent is 101, must be a number from 1 to 100"),
        ((1, 1, 70, -1), "max_concurrent is -1, must be a number from 0 to 1e+09"),
    ],
)
def test_sizing_refuses_what_cannot_be(arguments: tuple[float, float, int, int], message: str) -> None:
    with pytest.raises(ValueError) as refused:  # noqa: PT011  # the whole message is compared
        replicas_for(*arguments)
    assert str(refused.value) == message


WIDE = {"autoscale_min_replicas": 1, "autoscale_max_replicas": 1000}


@pytest.mark.parametrize(
    ("demand", "desired"),
    [
        (load(), 1),
        (load(busy=0.7), 1),
        (load(busy=0.71), 2),
        (load(busy=7), 10),
        (load(busy=3, queued=4), 10),
        (load(busy=200), 286),
        (load(busy=7, seconds=30.0), 10),
        # 2 in flight, 9 refused in a second that take 2 s each: 2 + 18 are wanted
        (Demand(1.0, busy_seconds=2.0, refused=9, completed=1, service_seconds=2.0), 29),
        # half a second: 18 refused per second
        (Demand(0.5, busy_seconds=1.0, refused=9, completed=1, service_seconds=2.0), 55),
        # nothing ever completed: a refused request is taken to last max_request_wait_time, 0.5 s
        (Demand(1.0, busy_seconds=2.0, refused=10), 10),
        (load(busy=70_000), 1000),
    ],
)
def test_desired_of_one_interval(demand: Demand, desired: int) -> None:
    assert Autoscaler(version(**WIDE)).observe(1.0, demand, 1).desired == desired


@pytest.mark.parametrize(("max_concurrent", "desired"), [(0, 29), (1, 29), (2, 15), (10, 3)])
def test_slots_of_a_replica_divide_the_need(max_concurrent: int, desired: int) -> None:
    settings = version(replica_max_concurrent_requests=max_concurrent, **WIDE)
    assert Autoscaler(settings).observe(1.0, load(busy=20), 1).desired == desired


def test_utilization_is_busy_and_queued_over_slots() -> None:
    autoscaler = Autoscaler(version(replica_max_concurrent_requests=2))
    assert autoscaler.observe(1.0, load(busy=3, queued=2), 5).utilization == 0.5
    assert autoscaler.observe(2.0, load(queued=2), 0).utilization == 1.0, "with no replica, the slots of one"


def test_a_burst_within_an_interval_counts_by_its_integral() -> None:
    burst = Demand(seconds=1.0, busy_seconds=100 * 0.14, arrivals=100, completed=100, service_seconds=14.0)
    assert Autoscaler(version(**WIDE)).observe(1.0, burst, 1).desired == 20


def test_overload_is_answered_in_one_step() -> None:
    """20 requests per second of 10 s each meet one replica: nearly all are refused, and the first look sees it."""
    autoscaler = Autoscaler(version(**WIDE))
    autoscaler.observe(1.0, Demand(1.0, 1.0, completed=1, service_seconds=10.0), 1)
    assert autoscaler.observe(2.0, Demand(1.0, busy_seconds=1.0, arrivals=20, refused=20), 1).desired >= 286


def test_service_time_is_this_intervals_mean_else_the_last_known() -> None:
    autoscaler = Autoscaler(version(**WIDE))
    assert autoscaler.observe(1.0, Demand(1.0, refused=7, completed=2, service_seconds=4.0), 1).raw_desired == 20
    assert autoscaler.observe(2.0, Demand(1.0, refused=7), 1).raw_desired == 20
    assert autoscaler.observe(3.0, Demand(1.0, refused=7, completed=2, service_seconds=2.0), 1).raw_desired == 10


def test_refusals_before_anything_completed_last_as_long_as_they_waited() -> None:
    autoscaler = Autoscaler(version(max_request_wait_time=2000, **WIDE))
    assert autoscaler.observe(1.0, Demand(1.0, refused=7), 1).desired == 20


def test_replicas_that_are_slow_to_start_do_not_make_the_count_run_away() -> None:
    autoscaler = Autoscaler(version(**WIDE))
    assert {autoscaler.observe(float(now), load(busy=1, queued=6), 10).desired for now in range(1, 300)} == {10}


def test_up_at_once_and_down_only_after_the_window() -> None:
    autoscaler = Autoscaler(version())
    watch(autoscaler, 1, 60, load(busy=0.5))
    assert watch(autoscaler, 61, 61, load(busy=5)) == [8]
    assert watch(autoscaler, 62, 120, load(busy=0.5), replicas=8) == [8] * 59
    assert watch(autoscaler, 121, 122, load(busy=0.5), replicas=8) == [1, 1]


def test_down_goes_to_the_highest_need_of_the_window_and_no_further() -> None:
    autoscaler = Autoscaler(version())
    watch(autoscaler, 1, 60, load())
    for now, busy in ((61, 5.0), (81, 3.0), (101, 1.0)):
        watch(autoscaler, now, now + 19, load(busy=busy))
    assert watch(autoscaler, 121, 180, load(), replicas=8) == [8] * 19 + [5] * 20 + [2] * 20 + [1]


def test_the_first_count_stands_until_a_window_was_watched() -> None:
    autoscaler = Autoscaler(version())
    assert watch(autoscaler, 1, 59, load(), replicas=6) == [6] * 59
    assert watch(autoscaler, 60, 61, load(), replicas=6) == [1, 1]


def test_the_first_count_does_not_keep_the_count_from_rising() -> None:
    autoscaler = Autoscaler(version())
    assert watch(autoscaler, 1, 1, load(busy=5), replicas=6) == [8]
    assert watch(autoscaler, 2, 2, load(), replicas=6) == [8]


def test_one_interval_as_long_as_the_window_is_a_window() -> None:
    assert Autoscaler(version()).observe(1000.0, load(busy=1, seconds=60.0), 9).desired == 2


def test_when_nobody_looked_the_count_stays() -> None:
    autoscaler = Autoscaler(version())
    watch(autoscaler, 1, 60, load(busy=5))
    assert watch(autoscaler, 61, 500, Demand()) == [8] * 440


def test_after_a_long_silence_a_whole_window_is_watched_again() -> None:
    autoscaler = Autoscaler(version())
    watch(autoscaler, 1, 60, load(busy=5))
    assert watch(autoscaler, 501, 559, load()) == [8] * 59
    assert watch(autoscaler, 560, 560, load()) == [1]


def test_a_look_missed_now_and_then_prolongs_nothing() -> None:
    autoscaler = Autoscaler(version())
    watch(autoscaler, 1, 60, load(busy=5))
    for now in range(61, 120):
        autoscaler.observe(float(now), load() if now % 3 else Demand(), 8)
    assert watch(autoscaler, 120, 121, load()) == [1, 1]


def test_autoscaling_off_is_the_number_given() -> None:
    autoscaler = Autoscaler(version(num_replicas=3))
    decision = autoscaler.observe(1.0, load(busy=50), 1)
    assert (decision.desired, decision.raw_desired) == (3, 72)


class TestMinimumOfZero:
    settings = version(autoscale_min_replicas=0)

    @pytest.mark.parametrize(
        "demand",
        [
            Demand(1.0, queued_seconds=1e-6, arrivals=1),
            Demand(1.0, refused=1, arrivals=1),
            Demand(1.0, arrivals=1),
            Demand(1.0, completed=1),
        ],
    )
    def test_one_request_asks_for_one_replica_at_once(self, demand: Demand) -> None:
        autoscaler = Autoscaler(self.settings)
        assert watch(autoscaler, 1, 100, load(), replicas=0) == [0] * 100
        assert watch(autoscaler, 101, 101, demand, replicas=0) == [1]

    def test_the_last_replica_goes_after_a_window_with_no_request(self) -> None:
        autoscaler = Autoscaler(self.settings)
        watch(autoscaler, 1, 100, load(busy=0.001))
        assert watch(autoscaler, 101, 159, load()) == [1] * 59
        assert watch(autoscaler, 160, 160, load()) == [0]


class TestChangedSettings:
    """The window remembers requests, so that a change is applied to all of it."""

    @staticmethod
    def changed(before: Version, **settings: object) -> Autoscaler:
        autoscaler = Autoscaler(before)
        watch(autoscaler, 1, 100, load(busy=5))
        watch(autoscaler, 101, 110, load(busy=2), replicas=8)
        autoscaler.update(replace(before, **settings))  # type: ignore[arg-type]
        return autoscaler

    @pytest.mark.parametrize(
        ("settings", "desired"),
        [
            ({}, 8),
            ({"autoscale_target_utilization": 100}, 5),
            ({"autoscale_target_utilization": 35}, 15),
            ({"autoscale_max_replicas": 4}, 4),
            ({"autoscale_min_replicas": 12}, 12),
            ({"autoscale_enabled": False, "num_replicas": 2}, 2),
        ],
    )
    def test_is_in_force_at_the_next_look(self, settings: dict[str, object], desired: int) -> None:
        autoscaler = self.changed(version(autoscale_max_replicas=20), **settings)
        assert watch(autoscaler, 111, 111, load(busy=2), replicas=8) == [desired]

    def test_keeps_what_the_window_knows(self) -> None:
        autoscaler = self.changed(version(), autoscale_target_utilization=100)
        assert watch(autoscaler, 111, 159, load(), replicas=8) == [5] * 49
        assert watch(autoscaler, 160, 160, load(), replicas=5) == [2]

    def test_more_slots_per_replica_are_believed_once_a_window_was_watched(self) -> None:
        autoscaler = self.changed(version(), replica_max_concurrent_requests=5)
        assert watch(autoscaler, 111, 169, load(busy=5), replicas=8) == [8] * 59
        assert watch(autoscaler, 170, 170, load(busy=5), replicas=8) == [2]

    def test_fewer_slots_per_replica_are_believed_at_once(self) -> None:
        autoscaler = self.changed(version(replica_max_concurrent_requests=5), replica_max_concurrent_requests=1)
        assert watch(autoscaler, 111, 111, load(busy=2)) == [8]

    def test_a_longer_window_reaches_into_what_nobody_remembers(self) -> None:
        autoscaler = self.changed(version(autoscale_scale_down_seconds=5.0), autoscale_scale_down_seconds=60.0)
        # the last 5 s before the change are known, the 55 s before them are not
        assert watch(autoscaler, 111, 164, load(), replicas=3) == [3] * 54
        assert watch(autoscaler, 165, 170, load(), replicas=3) == [3] * 5 + [1]

    def test_a_shorter_window_is_in_force_at_once(self) -> None:
        autoscaler = self.changed(version(), autoscale_scale_down_seconds=5.0)
        assert watch(autoscaler, 111, 111, load(busy=2)) == [3]

    def test_autoscaling_switched_on_starts_from_what_was_watched_while_it_was_off(self) -> None:
        off = version(num_replicas=20)
        autoscaler = Autoscaler(off)
        watch(autoscaler, 1, 100, load(busy=5), replicas=20)
        autoscaler.update(version())
        assert watch(autoscaler, 101, 101, load(busy=2), replicas=20) == [8]

    def test_limits_are_in_force_even_when_nobody_looks(self) -> None:
        autoscaler = self.changed(version(), autoscale_max_replicas=4)
        assert watch(autoscaler, 111, 111, Demand()) == [4]

    def test_that_cannot_be_are_refused_and_the_old_ones_stay(self) -> None:
        autoscaler = self.changed(version())
        with pytest.raises(ValueError, match="num_replicas is unset, must be set while autoscaling is off"):
            autoscaler.update(replace(version(), autoscale_enabled=False))
        assert watch(autoscaler, 111, 111, load(busy=2)) == [8]


@pytest.mark.parametrize(
    ("settings", "demand", "replicas", "reason"),
    [
        (
            {},
            load(busy=2, queued=1.5),
            2,
            (
                "utilization 175% against a target of 70% (2.00 busy, 1.50 queued, 0.00 refused, 1 per replica): "
                "needs 5, 2 to 5"
            ),
        ),
        (
            {},
            Demand(1.0, 2.0, refused=20, completed=1, service_seconds=1.0),
            2,
            (
                "utilization 100% against a target of 70% (2.00 busy, 0.00 queued, 20.00 refused, 1 per replica): "
                "needs 32, 2 to 10, limited by autoscale_max_replicas"
            ),
        ),
        (
            {"autoscale_min_replicas": 3},
            load(),
            2,
            (
                "utilization 0% against a target of 70% (0.00 busy, 0.00 queued, 0.00 refused, 1 per replica): "
                "needs 0, 2 to 3, kept up by autoscale_min_replicas"
            ),
        ),
        (
            {},
            load(busy=1),
            4,
            (
                "utilization 25% against a target of 70% (1.00 busy, 0.00 queued, 0.00 refused, 1 per replica): "
                "needs 2, stays at 4, 60 s must be watched first"
            ),
        ),
        (
            {"num_replicas": 2},
            load(busy=1),
            2,
            (
                "utilization 50% against a target of 70% (1.00 busy, 0.00 queued, 0.00 refused, 1 per replica): "
                "needs 2, stays at 2, autoscaling is off and num_replicas is 2"
            ),
        ),
        ({}, Demand(), 4, "no front-end reported: stays at 4"),
    ],
)
def test_reason_says_what_was_seen_against_which_threshold(
    settings: dict[str, object], demand: Demand, replicas: int, reason: str
) -> None:
    assert Autoscaler(version(**settings)).observe(1.0, demand, replicas).reason == reason


def test_reason_names_the_window() -> None:
    autoscaler = Autoscaler(version())
    watch(autoscaler, 1, 100, load(busy=5))
    decision = autoscaler.observe(101.0, load(busy=1), 8)
    assert decision.reason.endswith("needs 2, stays at 8, that many were needed within the last 60 s")


def test_history_keeps_observations_that_differ() -> None:
    autoscaler = Autoscaler(version())
    watch(autoscaler, 1, 100, load(busy=0.5))
    watch(autoscaler, 101, 200, load(busy=5), replicas=8)
    assert [tuple(each) for each in autoscaler.history] == [
        (1.0, 1, 0.5, 0.0, 0.0, 0.5, 1, 1),
        (101.0, 8, 5.0, 0.0, 0.0, 0.625, 8, 8),
    ]


def test_history_is_bounded() -> None:
    autoscaler = Autoscaler(version())
    for now in range(1, 1001):
        autoscaler.observe(float(now), load(busy=now % 2 * 5), 8)
    assert len(autoscaler.history) == HISTORY_LENGTH
    assert autoscaler.history[-1].at == 1000.0
