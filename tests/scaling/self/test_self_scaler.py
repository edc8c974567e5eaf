"""Rules of the self-scaler: growth, room, shrinking, hysteresis, limits."""

from dataclasses import replace
from typing import Any

import pytest

from router.scaling.self.load import FleetLoad
from router.scaling.self.self_scaler import SelfScaler, Size, SizeAction, SizeDecision, SizePolicy

POLICY = SizePolicy(
    steps=(1, 2, 4), min_pods=2, max_pods=4, percentile=95,
    route_time_threshold_seconds=0.003, throttled_threshold=0.05,
    busy_cpu=0.1, cpu_threshold=0.4, scale_in_cpu_threshold=0.3,
    up_cooldown_seconds=15, down_cooldown_seconds=120, no_room_seconds=300,
)  # fmt: skip
SMALLEST = Size(1, 2)


class Harness:
    """A self-scaler, its time, and a cluster that applies each size at once."""

    def __init__(self, size: Size = SMALLEST, **settings: object) -> None:
        self.scaler = SelfScaler(replace(POLICY, **settings))  # type: ignore[arg-type]
        self.size = size
        self.now = 0.0
        self.interval = 1.0

    def observe(
        self, *, slow: bool = False, use: float = 0.5, reporting_pods: int | None = None, **load_fields: float
    ) -> SizeDecision:
        """Observe `interval` seconds after the last time; `use` is the CPU utilization."""
        self.now += self.interval
        reporting_pods = self.size.pods if reporting_pods is None else reporting_pods
        route_time = 0.02 if slow else 0.0002
        used_cpus, cpus = use * self.size.total, self.size.total
        load = FleetLoad(15.0, 1000, route_time, 0.001, used_cpus, cpus, reporting_pods, None)
        return self.scaler.observe(self.now, replace(load, **load_fields), self.size)  # type: ignore[arg-type]

    def observe_until(self, *actions: SizeAction, seconds: int = 600, **load_fields: float) -> SizeDecision:
        """Observe until one of these actions is decided, and apply it; any other change fails."""
        for _ in range(seconds):
            decision = self.observe(**load_fields)  # type: ignore[arg-type]
            if decision.target is not None:
                assert decision.action in actions, decision
                self.apply(decision)
                return decision
        raise AssertionError(f"no {actions} within {seconds} s; {decision}")

    def apply(self, decision: SizeDecision) -> None:
        assert decision.target is not None
        self.size = decision.target
        self.scaler.on_applied(self.now)

    def check_unchanged(self, seconds: int, **load_fields: float) -> SizeDecision:
        """Observe for some seconds, in which nothing may change; return the last decision."""
        for _ in range(seconds):
            decision = self.observe(**load_fields)  # type: ignore[arg-type]
            assert decision.target is None, decision
        return decision


# Growth.


def test_slow_requests_add_one_step_of_cpu() -> None:
    decision = Harness().observe(slow=True, use=0.9)
    assert (decision.action, decision.target) == (SizeAction.MORE_CPU, Size(2, 2))
    assert decision.reason == (
        "route time p95 20 ms, event-loop lag p95 1 ms against 3 ms, CPU use 90% (1.80 of 2): 1 to 2 CPUs"
    )


def test_event_loop_lag_counts_as_slow() -> None:
    assert Harness().observe(loop_lag=0.004).action is SizeAction.MORE_CPU


def test_lag_of_an_idle_router_is_no_reason_to_grow() -> None:
    """Replicas that start delay the event loops of a router without requests. Streams without new requests use CPU."""
    harness = Harness()
    decision = harness.check_unchanged(30, loop_lag=0.1, requests=0, use=0.3)
    assert "slow, but with CPU use below 50% more would not help" in decision.reason
    assert harness.observe(loop_lag=0.1, requests=0, use=0.6).action is SizeAction.MORE_CPU


def test_growth_adds_cpu_then_pods_until_the_limit() -> None:
    harness = Harness()
    sizes = [
        harness.observe_until(SizeAction.MORE_CPU, SizeAction.MORE_PODS, slow=True, use=0.9).target for _ in range(4)
    ]
    assert sizes == [Size(2, 2), Size(4, 2), Size(4, 3), Size(4, 4)]
    harness.check_unchanged(14, slow=True, use=0.9)
    assert not harness.scaler.at_limit
    decision = harness.check_unchanged(60, slow=True, use=0.9)
    assert decision.action is SizeAction.LIMITED
    assert decision.reason.endswith("slow, and 4 CPUs are the maximum, 4 pods are the maximum")
    assert harness.scaler.at_limit
    harness.observe()
    assert not harness.scaler.at_limit


def test_growth_waits_for_the_cooldown() -> None:
    harness = Harness()
    harness.observe_until(SizeAction.MORE_CPU, slow=True, use=0.9)
    assert "the last change is less than 15 s ago" in harness.check_unchanged(14, slow=True, use=0.9).reason
    assert harness.observe(slow=True, use=0.9).action is SizeAction.MORE_CPU


def test_slow_router_does_not_grow_while_little_cpu_is_in_use() -> None:
    decision = Harness().check_unchanged(60, slow=True, use=0.05)
    assert decision.reason.endswith("slow, but with CPU use below 10% more would not help, at the smallest size")


def test_slow_router_shrinks_while_little_cpu_is_in_use() -> None:
    """Other processes keep the node busy."""
    assert Harness(Size(2, 2)).observe_until(SizeAction.LESS_CPU, slow=True, use=0.05).target == SMALLEST


def test_few_requests_do_not_count_as_slow() -> None:
    assert Harness().observe(slow=True, use=0.9, requests=19).action is SizeAction.STAY


def test_new_size_is_observed_before_it_counts_as_slow() -> None:
    assert Harness().observe(slow=True, use=0.9, observed_seconds=2.9).action is SizeAction.STAY


def test_nothing_is_decided_while_a_change_is_in_progress() -> None:
    harness = Harness()
    first = harness.observe(slow=True, use=0.9)
    assert harness.check_unchanged(100, slow=True, use=0.9).reason == f"in progress: {first.reason}"
    harness.apply(first)
    harness.observe_until(SizeAction.MORE_CPU, slow=True, use=0.9)


def test_size_between_two_steps_grows_to_the_next_step() -> None:
    assert Harness(Size(1.5, 2)).observe(slow=True, use=0.9).target == Size(2, 2)


# Throttled pods.


def test_throttled_router_grows_although_the_percentile_is_low() -> None:
    harness = Harness()
    decision = harness.observe(use=0.83, throttled=0.12)
    assert (decision.action, decision.target) == (SizeAction.MORE_CPU, Size(2, 2))
    assert decision.reason == (
        "route time p95 0.2 ms, event-loop lag p95 1 ms against 3 ms, CPU use 83% (1.66 of 2), throttled in 12% of the "
        "periods: 1 to 2 CPUs"
    )


def test_throttled_router_at_the_largest_step_grows_by_pods_until_the_limit() -> None:
    harness = Harness(Size(4, 3))
    assert harness.observe_until(SizeAction.MORE_PODS, use=0.83, throttled=0.12).target == Size(4, 4)
    assert harness.check_unchanged(60, use=0.83, throttled=0.12).action is SizeAction.LIMITED
    assert harness.scaler.at_limit


def test_size_that_was_throttled_under_a_load_is_not_chosen_again_for_it() -> None:
    harness = Harness(down_cooldown_seconds=60.0)
    harness.observe_until(SizeAction.MORE_CPU, use=0.6, throttled=0.12)
    decision = harness.check_unchanged(1800, use=0.3, throttled=0.0)
    assert "2 CPUs in all were too slow for 1.20 in use" in decision.reason


@pytest.mark.parametrize(
    "load",
    [
        {"throttled": 0.05},
        {"throttled": 0.12, "use": 0.39},  # a start, or another short burst
        {"throttled": 0.12, "requests": 19},
        {"throttled": 0.12, "observed_seconds": 2.9},
        {"throttled": None},
    ],
)
def test_router_does_not_grow_if_throttling_is_rare_or_insignificant(load: dict[str, Any]) -> None:
    harness = Harness()
    harness.check_unchanged(30, **{"use": 0.83, **load})


# Room.


def test_no_room_for_cpu_adds_pods_at_once() -> None:
    harness = Harness()
    harness.observe(slow=True, use=0.9)
    harness.scaler.on_no_room(harness.now, "Infeasible: node has 2 CPUs")
    decision = harness.observe(slow=True, use=0.9)
    assert (decision.action, decision.target) == (SizeAction.MORE_PODS, Size(1, 3))
    assert "no room for 2 CPUs (Infeasible: node has 2 CPUs)" in decision.reason


def test_no_room_at_all_is_the_limit_and_is_retried_later() -> None:
    harness = Harness()
    for _ in range(2):
        assert harness.observe(slow=True, use=0.9).target is not None
        harness.scaler.on_no_room(harness.now, "Deferred")
    decision = harness.check_unchanged(290, slow=True, use=0.9)
    assert decision.action is SizeAction.LIMITED
    assert "no room for 2 CPUs (Deferred), no room for 3 pods (Deferred)" in decision.reason
    assert harness.observe_until(SizeAction.MORE_CPU, slow=True, use=0.9, seconds=12).action is SizeAction.MORE_CPU


def test_room_is_requested_again_after_shrinking() -> None:
    harness = Harness(Size(2, 3))
    harness.observe(slow=True, use=0.9)
    harness.scaler.on_no_room(harness.now, "Infeasible")
    harness.observe_until(SizeAction.MORE_PODS, slow=True, use=0.9)
    harness.observe_until(SizeAction.LESS_CPU, use=0.05)
    assert harness.observe_until(SizeAction.MORE_CPU, slow=True, use=0.9).target == Size(2, 4)


def test_failed_change_is_retried_after_the_cooldown() -> None:
    harness = Harness()
    harness.observe(slow=True, use=0.9)
    harness.scaler.on_failed(harness.now)
    harness.check_unchanged(14, slow=True, use=0.9)
    assert harness.observe(slow=True, use=0.9).target == Size(2, 2)


# Shrinking.


def test_shrinking_removes_cpu_then_pods_until_the_minimum() -> None:
    harness = Harness(Size(4, 4))
    sizes = [harness.observe_until(SizeAction.LESS_CPU, SizeAction.FEWER_PODS, use=0.05).target for _ in range(4)]
    assert sizes == [Size(2, 4), Size(1, 4), Size(1, 3), Size(1, 2)]
    assert harness.check_unchanged(600, use=0.05).reason.endswith("fast enough, at the smallest size")


def test_peak_of_the_cooldown_prevents_shrinking() -> None:
    harness = Harness(Size(4, 2))
    for _ in range(10):
        harness.observe(use=0.5)
        harness.check_unchanged(100, use=0.1)
    decision = harness.observe_until(SizeAction.LESS_CPU, use=0.1, seconds=21)
    assert "at most 10% in use for 120 s, below 40%: 4 to 2 CPUs" in decision.reason


def test_smaller_size_that_would_be_full_is_not_chosen() -> None:
    harness = Harness(Size(4, 2), steps=(1, 4))
    assert "1 CPUs would be 120% full" in harness.check_unchanged(300, use=0.3).reason
    harness.observe_until(SizeAction.LESS_CPU, use=0.17)


def test_pods_are_removed_below_their_own_threshold() -> None:
    harness = Harness(Size(1, 4))
    assert "smaller below 30%" in harness.check_unchanged(300, use=0.35).reason
    assert harness.observe_until(SizeAction.FEWER_PODS, use=0.25).target == Size(1, 3)


def test_router_does_not_shrink_while_pods_do_not_report() -> None:
    assert "only 2 of 4 pods report" in Harness(Size(1, 4)).check_unchanged(300, use=0.1, reporting_pods=2).reason


def test_new_leader_observes_before_it_shrinks() -> None:
    harness = Harness(Size(4, 2))
    assert "waiting for 120 s of data" in harness.check_unchanged(120, use=0.01).reason
    harness.observe_until(SizeAction.LESS_CPU, use=0.01, seconds=1)


# Hysteresis.


def test_size_that_was_too_slow_is_not_chosen_again_under_the_same_load() -> None:
    """The load comes in bursts. One CPU per pod is too slow for a burst, although its average use is low."""
    harness = Harness()
    harness.observe_until(SizeAction.MORE_CPU, slow=True, use=0.3)
    decision = harness.check_unchanged(3500, use=0.15)
    assert "2 CPUs in all were too slow for 0.60 in use" in decision.reason
    harness.observe_until(SizeAction.LESS_CPU, use=0.15, seconds=200)


def test_each_failed_attempt_doubles_the_time_to_the_next() -> None:
    harness = Harness()
    harness.interval = 15.0
    waits = []
    for _ in range(7):
        harness.observe_until(SizeAction.MORE_CPU, slow=True, use=0.3)
        since = harness.now
        harness.observe_until(SizeAction.LESS_CPU, use=0.15, seconds=90_000)
        waits.append(round((harness.now - since) / 3600))
    assert waits == [1, 2, 4, 8, 16, 24, 24]


def test_size_that_was_too_slow_is_tried_again_under_a_lower_load() -> None:
    harness = Harness()
    harness.observe_until(SizeAction.MORE_CPU, slow=True, use=0.9)
    harness.observe_until(SizeAction.LESS_CPU, use=0.2, seconds=240)


# Limits.


def test_size_outside_the_limits_is_corrected() -> None:
    for size, target in (
        (Size(1, 1), Size(1, 2)),
        (Size(1, 9), Size(1, 4)),
        (Size(0.5, 2), Size(1, 2)),
        (Size(8, 2), Size(4, 2)),
    ):
        decision = Harness(size).observe()
        assert decision.target == target
        assert "outside of" in decision.reason


def test_refused_correction_is_retried_later() -> None:
    harness = Harness(Size(1, 1))
    harness.observe()
    harness.scaler.on_no_room(harness.now, "nodes are full")
    harness.check_unchanged(299)
    assert harness.observe().target == Size(1, 2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": ()}, "steps are"),
        ({"steps": (1, 1)}, "each larger"),
        ({"min_pods": 0}, "pods, must be"),
        ({"min_pods": 5}, "5 to 4 pods"),
    ],
)
def test_contradictory_limits_are_rejected(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(POLICY, **settings)  # type: ignore[arg-type]
