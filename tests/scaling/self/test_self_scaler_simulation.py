"""Hours of simulated load against the self-scaler: limits, order of changes, convergence, no oscillation."""

import itertools
import random
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.selfscaling.loads import Scenario, scenarios
from benchmarks.selfscaling.simulation import Simulation, Trace
from router.scaling.self.self_scaler import Size, SizeAction, SizePolicy

POLICY = SizePolicy(
    steps=(1, 2, 4), min_pods=3, max_pods=10, percentile=95,
    route_time_threshold_seconds=0.003, throttled_threshold=0.05,
    busy_cpu=0.1, cpu_threshold=0.4, scale_in_cpu_threshold=0.3,
    up_cooldown_seconds=15, down_cooldown_seconds=120, no_room_seconds=300,
)  # fmt: skip
SMALLEST = Size(1, 3)

GROWTH = (SizeAction.MORE_CPU, SizeAction.MORE_PODS)


def run(scenario: Scenario, policy: SizePolicy = POLICY, seed: int = 2) -> Trace:
    return Simulation(policy, random.Random(seed)).run(scenario)


def by_name() -> Iterator[tuple[str, Scenario]]:
    for scenario in scenarios(random.Random(1)):
        yield scenario.name, scenario


def check(trace: Trace, policy: SizePolicy) -> None:
    """Check what always holds: sizes within limits, CPU before pods, one step at a time."""
    for size in trace.sizes:
        assert size.cpus in policy.steps
        assert policy.min_pods <= size.pods <= policy.max_pods
    for _, decision, before in trace.decisions:
        after = decision.target
        assert after is not None
        match decision.action:
            case SizeAction.MORE_CPU | SizeAction.LESS_CPU:
                assert after.pods == before.pods
                assert abs(policy.steps.index(after.cpus) - policy.steps.index(before.cpus)) == 1
            case SizeAction.MORE_PODS:
                assert (before.cpus, after.pods) == (policy.steps[-1], before.pods + 1)
            case SizeAction.FEWER_PODS:
                assert (before.cpus, after.pods) == (policy.steps[0], before.pods - 1)


def reversals(trace: Trace) -> int:
    """Return how often growth follows shrinking, or shrinking growth."""
    directions = [decision.action in GROWTH for _, decision, _ in trace.decisions]
    return sum(one != other for one, other in itertools.pairwise(directions))


MAX_REVERSALS = {
    "steps": 1,
    "ramp up and down": 1,
    "a day": 1,
    "spikes of 60 s": 2 * 10,  # one growth and one shrinking per spike
    "noise": 24,
    "steady, in bursts": 4,  # in four hours: a smaller size is tried after one hour, and after two more
    "steady, at a threshold": 0,
    "more than the maximum": 1,
    "replayed": 15,  # five jobs in the night, two peaks in the day, and a lunch break
}


@pytest.mark.parametrize(("name", "scenario"), list(by_name()))
def test_size_follows_the_load_without_oscillating(name: str, scenario: Scenario) -> None:
    trace = run(scenario)
    check(trace, POLICY)
    assert reversals(trace) <= MAX_REVERSALS[name], [(at, decision.reason) for at, decision, _ in trace.decisions]
    if name not in ("noise", "steady, in bursts", "steady, at a threshold"):
        assert trace.sizes[-1] == SMALLEST
    if name != "more than the maximum":
        assert not any(trace.at_limit)
        assert trace.slow_seconds < 0.015 * scenario.hours * 3600
    else:
        assert max(size.total for size in trace.sizes) == 40
        assert trace.at_limit[4000]
        assert not trace.at_limit[-1]


@pytest.mark.parametrize("cpus", [0.0, 0.3, 0.9, 1.3, 2.0, 2.6, 3.3, 4.7, 5.9, 8.0, 11.5, 13.0, 20.0, 33.0, 39.0])
def test_size_converges_under_a_steady_load(cpus: float) -> None:
    trace = run(Scenario("steady", 1.0, lambda t: cpus))
    check(trace, POLICY)
    assert reversals(trace) == 0
    assert not [at for at, _, _ in trace.decisions if at > 1800]
    assert trace.sizes[-1].total > cpus


@given(st.data())
@settings(max_examples=15)
def test_size_stays_within_limits_and_changes_in_order_under_any_load(data: st.DataObject) -> None:
    draw = data.draw
    steps = tuple(sorted(draw(st.sets(st.sampled_from((0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0)), min_size=1, max_size=4))))
    min_pods = draw(st.integers(1, 3))
    policy = SizePolicy(
        steps=steps, min_pods=min_pods, max_pods=min_pods + draw(st.integers(0, 3)), percentile=95,
        route_time_threshold_seconds=0.003, throttled_threshold=0.05,
        busy_cpu=0.1, cpu_threshold=draw(st.floats(0.2, 0.6)),
        scale_in_cpu_threshold=0.3, up_cooldown_seconds=15, down_cooldown_seconds=60, no_room_seconds=300,
    )  # fmt: skip
    levels = draw(st.lists(st.floats(0, 20), min_size=6, max_size=6))
    bursts = draw(st.sampled_from((1.0, 0.3)))
    check(run(Scenario("drawn", 0.25, lambda t: levels[int(t // 150)], bursts), policy), policy)


@given(st.floats(0.0, 30.0), st.sampled_from((1.0, 0.5, 0.2)))
@settings(max_examples=15)
def test_size_does_not_oscillate_under_a_steady_load(cpus: float, bursts: float) -> None:
    """The test covers half an hour, because a smaller size is tried after an hour at the earliest."""
    assert reversals(run(Scenario("steady", 0.5, lambda t: cpus, bursts))) == 0


def test_router_grows_by_pods_when_nodes_have_no_cpu() -> None:
    simulation = Simulation(POLICY, random.Random(2), room=lambda size: "nodes have 2 CPUs" if size.cpus > 2 else None)
    trace = simulation.run(Scenario("much", 0.5, lambda t: 9.0))
    assert trace.sizes[-1].cpus == 2
    assert 9 < trace.sizes[-1].total < 13


def test_growth_starts_within_ten_seconds_of_an_overload() -> None:
    trace = run(Scenario("a step", 0.2, lambda t: 0.5 if t < 300 else 2.95))
    first = next(at for at, decision, _ in trace.decisions if decision.action in GROWTH)
    assert 300 <= first <= 310
