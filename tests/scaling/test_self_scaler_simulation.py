"""Hours of load against the self-scaler, in seconds: bounds, order, convergence, and no flapping."""

import itertools
import random
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.selfscaling.loads import Scenario, scenarios
from benchmarks.selfscaling.simulation import Simulation, Trace
from router.scaling.self_scaler import Kind, Policy, Size

POLICY = Policy(
    steps=(1, 2, 4), min_pods=3, max_pods=10, percent=95, slow_seconds=0.003, busy_cpu=0.1, down_cpu=0.4,
    scale_in_cpu=0.3, up_seconds=15, down_seconds=120, no_room_seconds=300,
)  # fmt: skip
SMALLEST = Size(1, 3)

UP = (Kind.MORE_CPU, Kind.MORE_PODS)


def run(scenario: Scenario, policy: Policy = POLICY, seed: int = 2) -> Trace:
    return Simulation(policy, random.Random(seed)).run(scenario)


def by_name() -> Iterator[tuple[str, Scenario]]:
    for scenario in scenarios(random.Random(1)):
        yield scenario.name, scenario


def check(trace: Trace, policy: Policy) -> None:
    """What always holds: bounds, vertical first, one step at a time."""
    for size in trace.sizes:
        assert size.cpus in policy.steps
        assert policy.min_pods <= size.pods <= policy.max_pods
    for _, decision, before in trace.decisions:
        after = decision.target
        assert after is not None
        match decision.kind:
            case Kind.MORE_CPU | Kind.LESS_CPU:
                assert after.pods == before.pods
                assert abs(policy.steps.index(after.cpus) - policy.steps.index(before.cpus)) == 1
            case Kind.MORE_PODS:
                assert (before.cpus, after.pods) == (policy.steps[-1], before.pods + 1)
            case Kind.FEWER_PODS:
                assert (before.cpus, after.pods) == (policy.steps[0], before.pods - 1)


def turns(trace: Trace) -> int:
    """How often up follows down or down follows up."""
    directions = [decision.kind in UP for _, decision, _ in trace.decisions]
    return sum(one != other for one, other in itertools.pairwise(directions))


TURNS = {
    "steps": 1,
    "ramp up and down": 1,
    "a day": 1,
    "spikes of 60 s": 2 * 10,  # each spike is a load of its own
    "noise": 24,
    "steady, in bursts": 4,  # in four hours: a smaller size is tried after one hour, and after two more
    "steady, at a threshold": 0,
    "more than there can be": 1,
    "replayed": 15,  # five jobs in the night, two peaks in the day, and a lunch
}


@pytest.mark.parametrize(("name", "scenario"), list(by_name()))
def test_hours_of_load(name: str, scenario: Scenario) -> None:
    trace = run(scenario)
    check(trace, POLICY)
    assert turns(trace) <= TURNS[name], [(at, decision.reason) for at, decision, _ in trace.decisions]
    if name not in ("noise", "steady, in bursts", "steady, at a threshold"):
        assert trace.sizes[-1] == SMALLEST
    if name != "more than there can be":
        assert not any(trace.at_limit)
        assert trace.slow_seconds < 0.015 * scenario.hours * 3600
    else:
        assert max(size.total for size in trace.sizes) == 40
        assert trace.at_limit[4000]
        assert not trace.at_limit[-1]


@pytest.mark.parametrize("cores", [0.0, 0.3, 0.9, 1.3, 2.0, 2.6, 3.3, 4.7, 5.9, 8.0, 11.5, 13.0, 20.0, 33.0, 39.0])
def test_a_steady_load_comes_to_rest(cores: float) -> None:
    trace = run(Scenario("steady", 1.0, lambda t: cores))
    check(trace, POLICY)
    assert turns(trace) == 0
    assert not [at for at, _, _ in trace.decisions if at > 1800]
    assert trace.sizes[-1].total > cores


@given(st.data())
@settings(max_examples=15, deadline=None)
def test_no_load_leads_out_of_bounds_or_around_the_order(data: st.DataObject) -> None:
    draw = data.draw
    steps = tuple(sorted(draw(st.sets(st.sampled_from((0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0)), min_size=1, max_size=4))))
    least = draw(st.integers(1, 3))
    policy = Policy(
        steps=steps, min_pods=least, max_pods=least + draw(st.integers(0, 3)), percent=95, slow_seconds=0.003,
        busy_cpu=0.1, down_cpu=draw(st.floats(0.2, 0.6)), scale_in_cpu=0.3, up_seconds=15, down_seconds=60,
        no_room_seconds=300,
    )  # fmt: skip
    levels = draw(st.lists(st.floats(0, 20), min_size=6, max_size=6))
    bursts = draw(st.sampled_from((1.0, 0.3)))
    check(run(Scenario("drawn", 0.25, lambda t: levels[int(t // 150)], bursts), policy), policy)


@given(st.floats(0.0, 30.0), st.sampled_from((1.0, 0.5, 0.2)))
@settings(max_examples=15, deadline=None)
def test_no_steady_load_makes_it_go_up_and_down(cores: float, bursts: float) -> None:
    """Within half an hour: an attempt at less comes after an hour at the earliest."""
    assert turns(run(Scenario("steady", 0.5, lambda t: cores, bursts))) == 0


def test_without_room_for_more_cpu_it_grows_by_pods() -> None:
    simulation = Simulation(POLICY, random.Random(2), room=lambda size: "nodes have 2 CPUs" if size.cpus > 2 else None)
    trace = simulation.run(Scenario("much", 0.5, lambda t: 9.0))
    assert trace.sizes[-1].cpus == 2
    assert 9 < trace.sizes[-1].total < 13


def test_relief_comes_within_a_few_looks() -> None:
    trace = run(Scenario("a step", 0.2, lambda t: 0.5 if t < 300 else 2.95))
    first = next(at for at, decision, _ in trace.decisions if decision.kind in UP)
    assert 300 <= first <= 310
