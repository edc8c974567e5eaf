"""Properties of the autoscaler under any load and any settings."""

from dataclasses import replace

from hypothesis import example, given
from hypothesis import strategies as st

from router.config.service_settings import OBJECTIVES
from router.model.services import Version
from router.scaling.autoscaler import Autoscaler, ScalingDecision, replicas_for
from router.scaling.demand import Demand
from tests.scaling.builders import demand_of, version

loads = st.one_of(st.just(0.0), st.floats(0, 500), st.integers(0, 500).map(float))
counts = st.integers(0, 200)


@st.composite
def versions(draw: st.DrawFn) -> Version:
    minimum = draw(st.integers(0, 20))
    return version(
        autoscale_min_replicas=minimum,
        autoscale_max_replicas=draw(st.integers(max(minimum, 1), 300)),
        autoscale_target_utilization=draw(st.integers(1, 100)),
        autoscale_scale_down_seconds=draw(st.sampled_from([0.5, 3.0, 10.0, 60.0])),
        autoscale_objective=draw(st.sampled_from(OBJECTIVES)),
        replica_max_concurrent_requests=draw(st.integers(0, 10)),
    )


@st.composite
def intervals(draw: st.DrawFn) -> Demand:
    """One second of any demand, or no report."""
    if draw(st.integers(0, 9)) == 0:
        return Demand()
    completed = draw(counts)
    service = draw(st.floats(0, 10)) * completed
    return Demand(1.0, draw(loads), draw(loads), draw(counts), draw(counts), completed, service)


def decide(autoscaler: Autoscaler, demands: list[Demand], replicas: int) -> list[ScalingDecision]:
    return [autoscaler.observe(now + 1.0, demand, replicas) for now, demand in enumerate(demands)]


@given(versions(), st.lists(st.tuples(versions(), intervals(), counts), max_size=30))
def test_desired_is_within_the_current_limits(settings: Version, steps: list[tuple[Version, Demand, int]]) -> None:
    autoscaler = Autoscaler(settings)
    for now, (update, demand, replicas) in enumerate(steps):
        if now % 3 == 2:
            autoscaler.update(update)
            settings = update
        desired = autoscaler.observe(now + 1.0, demand, replicas).desired
        assert settings.autoscale_min_replicas <= desired <= settings.autoscale_max_replicas


@given(versions(), st.data())
def test_overload_scales_up_in_one_step_for_refused_requests_too(settings: Version, data: st.DataObject) -> None:
    autoscaler = Autoscaler(settings)
    service, refused = data.draw(st.floats(0.01, 10)), data.draw(st.integers(1, 200))
    wait = data.draw(st.floats(0, 1)) * settings.max_request_wait_time / 1000
    overload = Demand(1.0, data.draw(loads), refused * wait, refused, refused, 1, service)
    decision = autoscaler.observe(1.0, overload, data.draw(counts))
    would_be_in_flight = refused * min(max(service - wait, 0), settings.autoscale_scale_down_seconds, 1)
    need = overload.busy + overload.queued + would_be_in_flight
    slots = max(settings.replica_max_concurrent_requests, 1) * settings.autoscale_target_utilization / 100
    assert decision.raw_desired * slots >= need * (1 - 1e-6), "enough, for the refused requests too"
    assert (decision.raw_desired - 1) * slots < need * (1 + 1e-6), "not one too many"
    assert decision.desired >= min(decision.raw_desired, settings.autoscale_max_replicas)


@given(versions(), st.lists(intervals(), max_size=30))
def test_each_refused_request_counts_as_at_most_one(settings: Version, demands: list[Demand]) -> None:
    autoscaler = Autoscaler(replace(settings, autoscale_objective="latency"))
    slots = max(settings.replica_max_concurrent_requests, 1) * settings.autoscale_target_utilization / 100
    refused = 0
    for now, demand in enumerate(demands):
        refused += demand.refused
        raw = autoscaler.observe(now + 1.0, demand, 1).raw_desired
        if demand.seconds:
            assert (raw - 1) * slots < (demand.busy + demand.queued + refused) * (1 + 1e-6) + 1e-6


@given(versions(), st.lists(intervals(), min_size=1, max_size=60), counts)
def test_desired_is_not_below_the_need_of_any_interval_of_the_window(
    settings: Version, demands: list[Demand], replicas: int
) -> None:
    settings = replace(settings, autoscale_objective="latency")
    decisions = decide(Autoscaler(settings), demands, replicas)
    window = settings.autoscale_scale_down_seconds
    for now, decision in enumerate(decisions):
        recent = [
            each.raw_desired
            for at, each in enumerate(decisions[: now + 1])
            # An interval without reports has no need of its own: the previous count stays.
            if demands[at].seconds and (at == now or now - at < window)
        ]
        minimum, maximum = settings.autoscale_min_replicas, settings.autoscale_max_replicas
        assert decision.desired >= min(max([*recent, minimum]), maximum)


@given(versions(), st.lists(intervals(), min_size=1, max_size=60), counts)
@example(
    version(
        autoscale_min_replicas=0,
        autoscale_max_replicas=2,
        autoscale_target_utilization=50,
        autoscale_scale_down_seconds=3.0,
        autoscale_objective="cost",
        replica_max_concurrent_requests=0,
    ),
    [Demand(1.0, refused=2), Demand(1.0)],
    0,
)
def test_desired_falls_only_after_a_whole_window(settings: Version, demands: list[Demand], replicas: int) -> None:
    """With the objective `cost`, a mean is kept for the window less the time of which it is the mean."""
    decisions = decide(Autoscaler(settings), demands, replicas)
    window = settings.autoscale_scale_down_seconds
    kept = window - min(10, window / 2) if settings.autoscale_objective == "cost" else window
    for now in range(1, len(decisions)):
        if decisions[now].desired < decisions[now - 1].desired:
            assert now + 1 >= kept, "that long was observed before"


@given(versions(), st.lists(intervals(), max_size=20), loads, counts)
def test_steady_load_converges_to_the_sizing_formula_after_two_windows(
    settings: Version, before: list[Demand], busy: float, replicas: int
) -> None:
    """In the first window, requests that were refused before may still count."""
    autoscaler = Autoscaler(settings)
    decisions = decide(autoscaler, [*before, *[demand_of(busy=busy)] * 122], replicas)
    formula = replicas_for(busy, 1, settings.autoscale_target_utilization, settings.replica_max_concurrent_requests)
    minimum, maximum = settings.autoscale_min_replicas, settings.autoscale_max_replicas
    assert decisions[-1].desired == min(max(formula, minimum), maximum)


@given(versions(), st.lists(st.tuples(intervals(), counts, counts), min_size=1, max_size=30))
def test_only_the_first_replica_count_affects_decisions(
    settings: Version, steps: list[tuple[Demand, int, int]]
) -> None:
    """The same load needs the same number of replicas, for any number of ready or starting replicas."""
    one, other = Autoscaler(settings), Autoscaler(settings)
    for now, (demand, replicas, others) in enumerate(steps):
        first = one.observe(now + 1.0, demand, replicas)
        second = other.observe(now + 1.0, demand, others if now else replicas)
        assert (first.desired, first.raw_desired) == (second.desired, second.raw_desired)


@given(versions(), st.lists(intervals(), min_size=1, max_size=80))
def test_zero_replicas_are_desired_only_after_a_window_without_requests(
    settings: Version, demands: list[Demand]
) -> None:
    decisions = decide(Autoscaler(settings), demands, 1)
    window = settings.autoscale_scale_down_seconds
    for now, decision in enumerate(decisions):
        if decision.desired == 0:
            recent = [each for at, each in enumerate(demands[: now + 1]) if at == now or now - at < window]
            assert all(each.is_idle for each in recent)


@given(st.floats(0, 1e4), st.floats(0, 100), st.integers(1, 100), st.integers(0, 100))
def test_sizing_formula_is_enough_and_not_one_too_many(
    rps: float, seconds: float, target: int, max_concurrent: int
) -> None:
    replicas = replicas_for(rps, seconds, target, max_concurrent)
    per_replica = max(max_concurrent, 1) * target / 100
    need = rps * seconds
    assert replicas * per_replica >= need * (1 - 1e-6)
    assert replicas == 0 or (replicas - 1) * per_replica < need * (1 + 1e-6)


@given(versions(), st.lists(intervals(), min_size=1, max_size=60), counts)
def test_cost_covers_the_busiest_interval_of_the_window(
    settings: Version, demands: list[Demand], replicas: int
) -> None:
    settings = replace(settings, autoscale_objective="cost")
    for now, decision in enumerate(decide(Autoscaler(settings), demands, replicas)):
        window = settings.autoscale_scale_down_seconds
        recent = [each for at, each in enumerate(demands[: now + 1]) if at == now or now - at < window]
        peak = max(each.busy + each.queued for each in recent)
        needed = replicas_for(peak, 1, 100, settings.replica_max_concurrent_requests)
        assert decision.desired >= min(needed, settings.autoscale_max_replicas)


@given(versions(), st.lists(intervals(), max_size=60), counts)
def test_cost_never_needs_more_than_latency(settings: Version, demands: list[Demand], replicas: int) -> None:
    latency, cost = (
        decide(Autoscaler(replace(settings, autoscale_objective=each)), demands, replicas) for each in OBJECTIVES
    )
    assert all(one.desired >= other.desired for one, other in zip(latency, cost, strict=True))
