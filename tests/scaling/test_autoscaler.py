"""Cases of the autoscaler: one interval, the window, changed settings, reasons."""

from dataclasses import replace

import pytest

from router.model.services import Version
from router.scaling.autoscaler import HISTORY_LENGTH, Autoscaler, replicas_for
from router.scaling.demand import Demand
from tests.scaling.builders import demand_of, version


def observe_seconds(autoscaler: Autoscaler, start: int, end: int, demand: Demand, replicas: int = 1) -> list[int]:
    """Observe the same demand at each second from `start` to `end`; return the number desired at each."""
    return [autoscaler.observe(float(now), demand, replicas).desired for now in range(start, end + 1)]


@pytest.mark.parametrize(
    ("rps", "seconds", "target", "max_concurrent", "replicas"),
    [
        (20, 10, 70, 1, 286),  # the published example
        (20, 10, 70, 10, 29),
        (20, 10, 100, 1, 200),
        (0, 10, 70, 1, 0),
        (0.001, 0.001, 70, 1, 1),
        (5, 1, 70, 0, 8),  # unlimited counts as 1
        (0.1, 3, 30, 1, 1),  # 0.1 * 3 is 0.30000000000000004
        (7, 1, 70, 1, 10),  # 7 / 0.7 is 10.000000000000002
        (7.0001, 1, 70, 1, 11),
        (1e9, 1e9, 1, 1, 99_999_999_900_000_000_000),
    ],
)
def test_published_sizing_formula(rps: float, seconds: float, target: int, max_concurrent: int, replicas: int) -> None:
    assert replicas_for(rps, seconds, target, max_concurrent) == pytest.approx(replicas, rel=1e-12)


@pytest.mark.parametrize("target", range(1, 101))
def test_load_exactly_at_the_target_needs_no_extra_replica(target: int) -> None:
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
def test_sizing_formula_rejects_invalid_arguments(arguments: tuple[float, float, int, int], message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011  # the whole message is compared
        replicas_for(*arguments)
    assert str(caught.value) == message


WIDE = {"autoscale_min_replicas": 1, "autoscale_max_replicas": 1000}


@pytest.mark.parametrize(
    ("demand", "desired"),
    [
        (demand_of(), 1),
        (demand_of(busy=0.7), 1),
        (demand_of(busy=0.71), 2),
        (demand_of(busy=7), 10),
        (demand_of(busy=3, queued=4), 10),
        (demand_of(busy=200), 286),
        (demand_of(busy=7, seconds=30.0), 10),
        # 2 in flight, and 9 refused that would take 2 s each: need 11
        (Demand(1.0, busy_seconds=2.0, refused=9, completed=1, service_seconds=2.0), 16),
        (Demand(0.5, busy_seconds=1.0, refused=9, completed=1, service_seconds=2.0), 16),
        # 90 refused that would take 0.1 s each: 9 at a time
        (Demand(1.0, busy_seconds=2.0, refused=90, completed=10, service_seconds=1.0), 16),
        # the same after they have waited for 0.05 s each, which counts as queued
        (Demand(1.0, busy_seconds=2.0, queued_seconds=4.5, refused=90, completed=10, service_seconds=1.0), 16),
        # none completed so far: a refused request counts with max_request_wait_time, 0.5 s
        (Demand(1.0, busy_seconds=2.0, refused=10), 10),
        (demand_of(busy=70_000), 1000),
    ],
)
def test_desired_replicas_after_one_interval(demand: Demand, desired: int) -> None:
    assert Autoscaler(version(**WIDE)).observe(1.0, demand, 1).desired == desired


@pytest.mark.parametrize(("max_concurrent", "desired"), [(0, 29), (1, 29), (2, 15), (10, 3)])
def test_need_is_divided_by_slots_per_replica(max_concurrent: int, desired: int) -> None:
    settings = version(replica_max_concurrent_requests=max_concurrent, **WIDE)
    assert Autoscaler(settings).observe(1.0, demand_of(busy=20), 1).desired == desired


def test_utilization_is_busy_plus_queued_over_slots() -> None:
    autoscaler = Autoscaler(version(replica_max_concurrent_requests=2))
    assert autoscaler.observe(1.0, demand_of(busy=3, queued=2), 5).utilization == 0.5
    assert autoscaler.observe(2.0, demand_of(queued=2), 0).utilization == 1.0, "without replicas, the slots of one"


def test_burst_within_an_interval_counts_by_its_integral() -> None:
    burst = Demand(seconds=1.0, busy_seconds=100 * 0.14, arrivals=100, completed=100, service_seconds=14.0)
    assert Autoscaler(version(**WIDE)).observe(1.0, burst, 1).desired == 20


def test_many_refused_requests_scale_up_in_one_step() -> None:
    """200 requests of 10 s each reach one replica at once: all but one are refused."""
    autoscaler = Autoscaler(version(**WIDE))
    autoscaler.observe(1.0, Demand(1.0, 1.0, completed=1, service_seconds=10.0), 1)
    overload = Demand(1.0, busy_seconds=1.0, queued_seconds=99.5, arrivals=200, refused=199)
    assert autoscaler.observe(2.0, overload, 1).desired >= 286


def test_lasting_overload_scales_up_as_fast_as_requests_would_accumulate() -> None:
    """20 requests/s of 10 s each reach one replica, and nearly all are refused: 200 would be in flight after 10 s."""
    autoscaler = Autoscaler(version(**WIDE))
    autoscaler.observe(1.0, Demand(1.0, 1.0, completed=1, service_seconds=10.0), 1)
    overload = Demand(1.0, busy_seconds=1.0, queued_seconds=10.0, arrivals=20, refused=20)
    decisions = observe_seconds(autoscaler, 2, 60, overload)
    assert decisions[0] >= 29
    assert all(286 <= desired <= 306 for desired in decisions[9:])


def test_one_refused_slow_request_counts_as_one() -> None:
    """One refused request of 30 s counts as one request for 29.5 s, after the 0.5 s for which it was queued."""
    autoscaler = Autoscaler(version(**WIDE))
    completed = Demand(1.0, completed=20, service_seconds=600.0)
    assert autoscaler.observe(1.0, completed, 0).desired == 1
    refused = Demand(1.0, queued_seconds=0.5, arrivals=1, refused=1)
    assert autoscaler.observe(2.0, refused, 1).raw_desired == 3  # 1.5 / 0.7: it was queued in the same second
    following = [autoscaler.observe(float(now), demand_of(), 2).raw_desired for now in range(3, 40)]
    assert following == [2] * 28 + [1] + [0] * 8


def test_refused_requests_count_with_their_wait_time_until_one_completes() -> None:
    """Here they were refused at once. The time that they have waited does not count twice."""
    autoscaler = Autoscaler(version(max_request_wait_time=2000, **WIDE))
    assert autoscaler.observe(1.0, Demand(1.0, refused=7), 1).raw_desired == 10
    assert [autoscaler.observe(float(now), demand_of(), 1).raw_desired for now in (2, 3)] == [10, 0]


def test_slowly_starting_replicas_do_not_make_the_count_run_away() -> None:
    autoscaler = Autoscaler(version(**WIDE))
    assert {autoscaler.observe(float(now), demand_of(busy=1, queued=6), 10).desired for now in range(1, 300)} == {10}


def test_scale_up_is_immediate_and_scale_down_waits_for_the_window() -> None:
    autoscaler = Autoscaler(version())
    observe_seconds(autoscaler, 1, 60, demand_of(busy=0.5))
    assert observe_seconds(autoscaler, 61, 61, demand_of(busy=5)) == [8]
    assert observe_seconds(autoscaler, 62, 120, demand_of(busy=0.5), replicas=8) == [8] * 59
    assert observe_seconds(autoscaler, 121, 122, demand_of(busy=0.5), replicas=8) == [1, 1]


def test_scale_down_stops_at_the_highest_need_of_the_window() -> None:
    autoscaler = Autoscaler(version())
    observe_seconds(autoscaler, 1, 60, demand_of())
    for now, busy in ((61, 5.0), (81, 3.0), (101, 1.0)):
        observe_seconds(autoscaler, now, now + 19, demand_of(busy=busy))
    assert observe_seconds(autoscaler, 121, 180, demand_of(), replicas=8) == [8] * 19 + [5] * 20 + [2] * 20 + [1]


def test_first_count_is_held_until_a_window_was_observed() -> None:
    autoscaler = Autoscaler(version())
    assert observe_seconds(autoscaler, 1, 59, demand_of(), replicas=6) == [6] * 59
    assert observe_seconds(autoscaler, 60, 61, demand_of(), replicas=6) == [1, 1]


def test_first_count_does_not_prevent_scale_up() -> None:
    autoscaler = Autoscaler(version())
    assert observe_seconds(autoscaler, 1, 1, demand_of(busy=5), replicas=6) == [8]
    assert observe_seconds(autoscaler, 2, 2, demand_of(), replicas=6) == [8]


def test_single_interval_as_long_as_the_window_suffices() -> None:
    assert Autoscaler(version()).observe(1000.0, demand_of(busy=1, seconds=60.0), 9).desired == 2


def test_count_stays_while_nothing_is_reported() -> None:
    autoscaler = Autoscaler(version())
    observe_seconds(autoscaler, 1, 60, demand_of(busy=5))
    assert observe_seconds(autoscaler, 61, 500, Demand()) == [8] * 440


def test_long_gap_between_reports_starts_a_new_window() -> None:
    autoscaler = Autoscaler(version())
    observe_seconds(autoscaler, 1, 60, demand_of(busy=5))
    assert observe_seconds(autoscaler, 501, 559, demand_of()) == [8] * 59
    assert observe_seconds(autoscaler, 560, 560, demand_of()) == [1]


def test_occasional_missing_report_does_not_restart_the_window() -> None:
    autoscaler = Autoscaler(version())
    observe_seconds(autoscaler, 1, 60, demand_of(busy=5))
    for now in range(61, 120):
        autoscaler.observe(float(now), demand_of() if now % 3 else Demand(), 8)
    assert observe_seconds(autoscaler, 120, 121, demand_of()) == [1, 1]


class TestCost:
    """`autoscale_objective: cost`: the target applies to the mean of 10 s."""

    settings = version(autoscale_objective="cost", **WIDE)

    @staticmethod
    def alternating(autoscaler: Autoscaler, start: int, end: int) -> int:
        """Observe 3 and 7 requests in flight in turn, 5 on average; return the number desired at the end."""
        return [
            autoscaler.observe(float(now), demand_of(busy=3 + now % 2 * 4), 1).desired for now in range(start, end)
        ][-1]

    def test_steady_load_has_its_headroom_once(self) -> None:
        assert self.alternating(Autoscaler(version(**WIDE)), 1, 200) == 10  # 7 / 0.7
        assert self.alternating(Autoscaler(self.settings), 1, 200) == 8  # 5 / 0.7

    def test_busiest_second_has_a_replica_for_each_request(self) -> None:
        autoscaler = Autoscaler(self.settings)
        self.alternating(autoscaler, 1, 200)
        assert observe_seconds(autoscaler, 200, 200, demand_of(busy=20)) == [20]
        assert observe_seconds(autoscaler, 201, 259, demand_of(busy=5)) == [20] * 59
        assert observe_seconds(autoscaler, 260, 260, demand_of(busy=5))[0] < 20

    def test_overload_is_covered_at_once_and_gets_headroom_within_10_seconds(self) -> None:
        autoscaler = Autoscaler(self.settings)
        observe_seconds(autoscaler, 1, 100, demand_of(busy=1))
        desired = observe_seconds(autoscaler, 101, 110, demand_of(busy=7))
        assert (desired[0], desired[-1]) == (7, 10)

    def test_number_falls_within_a_window(self) -> None:
        autoscaler = Autoscaler(self.settings)
        observe_seconds(autoscaler, 1, 100, demand_of(busy=7))
        desired = observe_seconds(autoscaler, 101, 160, demand_of(busy=0.5), replicas=10)
        assert desired[:50] == [10] * 50, "means whose 10 s are within the window"
        assert (desired[58], desired[59]) == (7, 1), "the busiest second"

    def test_new_version_has_headroom_at_once(self) -> None:
        assert Autoscaler(self.settings).observe(1.0, demand_of(busy=7), 1).desired == 10

    def test_long_intervals_are_their_own_mean(self) -> None:
        autoscaler = Autoscaler(self.settings)
        assert [autoscaler.observe(now, demand_of(busy=7, seconds=30.0), 1).desired for now in (30.0, 60.0)] == [10, 10]

    def test_slots_per_replica_divide_both(self) -> None:
        autoscaler = Autoscaler(version(autoscale_objective="cost", replica_max_concurrent_requests=2, **WIDE))
        assert self.alternating(autoscaler, 1, 200) == 4

    @pytest.mark.parametrize(("before", "after", "desired"), [("latency", "cost", 8), ("cost", "latency", 10)])
    def test_changed_objective_applies_to_the_whole_window(self, before: str, after: str, desired: int) -> None:
        settings = version(autoscale_objective=before, **WIDE)
        autoscaler = Autoscaler(settings)
        self.alternating(autoscaler, 1, 200)
        autoscaler.update(replace(settings, autoscale_objective=after))
        assert observe_seconds(autoscaler, 200, 200, demand_of()) == [desired]


def test_fixed_number_is_desired_when_autoscaling_is_off() -> None:
    autoscaler = Autoscaler(version(num_replicas=3))
    decision = autoscaler.observe(1.0, demand_of(busy=50), 1)
    assert (decision.desired, decision.raw_desired) == (3, 72)


def test_fixed_number_may_be_zero() -> None:
    decision = Autoscaler(version(num_replicas=0)).observe(1.0, demand_of(busy=5), 5)
    assert (decision.desired, decision.bound) == (0, "fixed")


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
    def test_one_request_needs_one_replica_at_once(self, demand: Demand) -> None:
        autoscaler = Autoscaler(self.settings)
        assert observe_seconds(autoscaler, 1, 100, demand_of(), replicas=0) == [0] * 100
        assert observe_seconds(autoscaler, 101, 101, demand, replicas=0) == [1]

    def test_last_replica_is_removed_after_a_window_without_requests(self) -> None:
        autoscaler = Autoscaler(self.settings)
        observe_seconds(autoscaler, 1, 100, demand_of(busy=0.001))
        assert observe_seconds(autoscaler, 101, 159, demand_of()) == [1] * 59
        assert observe_seconds(autoscaler, 160, 160, demand_of()) == [0]


class TestChangedSettings:
    """The window holds requests, not replica counts, so changed settings apply to all of it."""

    @staticmethod
    def updated(before: Version, **settings: object) -> Autoscaler:
        """Return an autoscaler that observed a load of 5, then 2 for 10 s, and then got these settings."""
        autoscaler = Autoscaler(before)
        observe_seconds(autoscaler, 1, 100, demand_of(busy=5))
        observe_seconds(autoscaler, 101, 110, demand_of(busy=2), replicas=8)
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
    def test_changed_settings_apply_from_the_next_interval(self, settings: dict[str, object], desired: int) -> None:
        autoscaler = self.updated(version(autoscale_max_replicas=20), **settings)
        assert observe_seconds(autoscaler, 111, 111, demand_of(busy=2), replicas=8) == [desired]

    def test_changed_settings_keep_the_window(self) -> None:
        autoscaler = self.updated(version(), autoscale_target_utilization=100)
        assert observe_seconds(autoscaler, 111, 159, demand_of(), replicas=8) == [5] * 49
        assert observe_seconds(autoscaler, 160, 160, demand_of(), replicas=5) == [2]

    def test_more_slots_per_replica_lower_the_count_only_after_a_window(self) -> None:
        autoscaler = self.updated(version(), replica_max_concurrent_requests=5)
        assert observe_seconds(autoscaler, 111, 169, demand_of(busy=5), replicas=8) == [8] * 59
        assert observe_seconds(autoscaler, 170, 170, demand_of(busy=5), replicas=8) == [2]

    def test_fewer_slots_per_replica_raise_the_count_at_once(self) -> None:
        autoscaler = self.updated(version(replica_max_concurrent_requests=5), replica_max_concurrent_requests=1)
        assert observe_seconds(autoscaler, 111, 111, demand_of(busy=2)) == [8]

    def test_longer_window_includes_time_that_was_dropped(self) -> None:
        autoscaler = self.updated(version(autoscale_scale_down_seconds=5.0), autoscale_scale_down_seconds=60.0)
        # the last 5 s before the change are still in the window, the 55 s before them are not
        assert observe_seconds(autoscaler, 111, 164, demand_of(), replicas=3) == [3] * 54
        assert observe_seconds(autoscaler, 165, 170, demand_of(), replicas=3) == [3] * 5 + [1]

    def test_shorter_window_applies_at_once(self) -> None:
        autoscaler = self.updated(version(), autoscale_scale_down_seconds=5.0)
        assert observe_seconds(autoscaler, 111, 111, demand_of(busy=2)) == [3]

    def test_autoscaling_that_is_switched_on_uses_the_previous_window(self) -> None:
        off = version(num_replicas=20)
        autoscaler = Autoscaler(off)
        observe_seconds(autoscaler, 1, 100, demand_of(busy=5), replicas=20)
        autoscaler.update(version())
        assert observe_seconds(autoscaler, 101, 101, demand_of(busy=2), replicas=20) == [8]

    def test_limits_apply_while_nothing_is_reported(self) -> None:
        autoscaler = self.updated(version(), autoscale_max_replicas=4)
        assert observe_seconds(autoscaler, 111, 111, Demand()) == [4]

    def test_invalid_settings_are_rejected_and_the_old_ones_stay(self) -> None:
        autoscaler = self.updated(version())
        with pytest.raises(ValueError, match="num_replicas is unset, must be set while autoscaling is off"):
            autoscaler.update(replace(version(), autoscale_enabled=False))
        assert observe_seconds(autoscaler, 111, 111, demand_of(busy=2)) == [8]


@pytest.mark.parametrize(
    ("settings", "demand", "replicas", "reason"),
    [
        (
            {},
            demand_of(busy=2, queued=1.5),
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
            demand_of(),
            2,
            (
                "utilization 0% against a target of 70% (0.00 busy, 0.00 queued, 0.00 refused, 1 per replica): "
                "needs 0, 2 to 3, raised to autoscale_min_replicas"
            ),
        ),
        (
            {},
            demand_of(busy=1),
            4,
            (
                "utilization 25% against a target of 70% (1.00 busy, 0.00 queued, 0.00 refused, 1 per replica): "
                "needs 2, stays at 4, waiting for 60 s of data"
            ),
        ),
        (
            {"num_replicas": 2},
            demand_of(busy=1),
            2,
            (
                "utilization 50% against a target of 70% (1.00 busy, 0.00 queued, 0.00 refused, 1 per replica): "
                "needs 2, stays at 2, autoscaling is off and num_replicas is 2"
            ),
        ),
        ({}, Demand(), 4, "no worker reported: stays at 4"),
    ],
)
def test_reason_states_the_load_and_the_target(
    settings: dict[str, object], demand: Demand, replicas: int, reason: str
) -> None:
    assert Autoscaler(version(**settings)).observe(1.0, demand, replicas).reason == reason


def test_reason_names_the_window() -> None:
    autoscaler = Autoscaler(version())
    observe_seconds(autoscaler, 1, 100, demand_of(busy=5))
    decision = autoscaler.observe(101.0, demand_of(busy=1), 8)
    assert decision.reason.endswith("needs 2, stays at 8, as needed within the last 60 s")


def test_history_omits_repeated_observations() -> None:
    autoscaler = Autoscaler(version())
    observe_seconds(autoscaler, 1, 100, demand_of(busy=0.5))
    observe_seconds(autoscaler, 101, 200, demand_of(busy=5), replicas=8)
    assert [tuple(each) for each in autoscaler.history] == [
        (1.0, 1, 0.5, 0.0, 0.0, 0.5, 1, 1),
        (101.0, 8, 5.0, 0.0, 0.0, 0.625, 8, 8),
    ]


def test_history_is_bounded() -> None:
    autoscaler = Autoscaler(version())
    for now in range(1, 1001):
        autoscaler.observe(float(now), demand_of(busy=now % 2 * 5), 8)
    assert len(autoscaler.history) == HISTORY_LENGTH
    assert autoscaler.history[-1].at == 1000.0
