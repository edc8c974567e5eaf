"""What holds for the autoscaler under any load and any settings."""

from hypothesis import given
from hypothesis import strategies as st

from router.scaling.autoscaler import Autoscaler, Decision, replicas_for
from router.scaling.demand import Demand
from router.services import Version
from tests.scaling.worlds import load, version

loads = st.one_of(st.just(0.0), st.floats(0, 500), st.integers(0, 500).map(float))
counts = st.integers(0, 200)


@st.composite
def versions(draw: st.DrawFn) -> Version:
    least = draw(st.integers(0, 20))
    return version(
        autoscale_min_replicas=least,
        autoscale_max_replicas=draw(st.integers(max(least, 1), 300)),
        autoscale_target_utilization=draw(st.integers(1, 100)),
        autoscale_scale_down_seconds=draw(st.sampled_from([0.5, 3.0, 10.0, 60.0])),
        replica_max_concurrent_requests=draw(st.integers(0, 10)),
    )


@st.composite
def intervals(draw: st.DrawFn) -> Demand:
    """One second (or nobody looked) of anything."""
    if draw(st.integers(0, 9)) == 0:
        return Demand()
    completed = draw(counts)
    service = draw(st.floats(0, 10)) * completed
    return Demand(1.0, draw(loads), draw(loads), draw(counts), draw(counts), completed, service)


def decide(autoscaler: Autoscaler, demands: list[Demand], replicas: int) -> list[Decision]:
    return [autoscaler.observe(now + 1.0, demand, replicas) for now, demand in enumerate(demands)]


@given(versions(), st.lists(st.tuples(versions(), intervals(), counts), max_size=30))
def test_never_outside_the_limits_in_force(settings: Version, steps: list[tuple[Version, Demand, int]]) -> None:
    autoscaler = Autoscaler(settings)
    for now, (changed, demand, replicas) in enumerate(steps):
        if now % 3 == 2:
            autoscaler.update(changed)
            settings = changed
        desired = autoscaler.observe(now + 1.0, demand, replicas).desired
        assert settings.autoscale_min_replicas <= desired <= settings.autoscale_max_replicas


@given(versions(), st.lists(intervals(), max_size=10), st.data())
def test_an_overload_is_answered_in_one_step_refused_requests_included(
    settings: Version, before: list[Demand], data: st.DataObject
) -> None:
    autoscaler = Autoscaler(settings)
    decide(autoscaler, before, 1)
    service, refused = data.draw(st.floats(0.01, 10)), data.draw(st.integers(1, 200))
    overload = Demand(1.0, data.draw(loads), data.draw(loads), refused, refused, 1, service)
    decision = autoscaler.observe(len(before) + 1.0, overload, data.draw(counts))
    need = overload.busy + overload.queued + refused * service
    slots = max(settings.replica_max_concurrent_requests, 1) * settings.autoscale_target_utilization / 100
    assert decision.raw_desired * slots >= need * (1 - 1e-6), "enough, all refused requests included"
    assert (decision.raw_desired - 1) * slots < need * (1 + 1e-6), "and not one too many"
    assert decision.desired >= min(decision.raw_desired, settings.autoscale_max_replicas)


@given(versions(), st.lists(intervals(), min_size=1, max_size=60), counts)
def test_never_below_what_any_interval_of_the_window_asked_for(
    settings: Version, demands: list[Demand], replicas: int
) -> None:
    decisions = decide(Autoscaler(settings), demands, replicas)
    window = settings.autoscale_scale_down_seconds
    for now, decision in enumerate(decisions):
        recent = [
            each.raw_desired
            for at, each in enumerate(decisions[: now + 1])
            # Where nobody looked, nothing was asked for: the count of before stands.
            if demands[at].seconds and (at == now or now - at < window)
        ]
        least, most = settings.autoscale_min_replicas, settings.autoscale_max_replicas
        assert decision.desired >= min(max([*recent, least]), most)


@given(versions(), st.lists(intervals(), min_size=1, max_size=60), counts)
def test_falls_only_when_nothing_in_a_whole_window_needed_more(
    settings: Version, demands: list[Demand], replicas: int
) -> None:
    decisions = decide(Autoscaler(settings), demands, replicas)
    for now in range(1, len(decisions)):
        if decisions[now].desired < decisions[now - 1].desired:
            assert now + 1 >= settings.autoscale_scale_down_seconds, "a whole window was watched before"


@given(versions(), st.lists(intervals(), max_size=20), loads, counts)
def test_a_steady_load_gets_what_the_formula_says_after_one_window(
    settings: Version, before: list[Demand], busy: float, replicas: int
) -> None:
    autoscaler = Autoscaler(settings)
    decisions = decide(autoscaler, [*before, *[load(busy=busy)] * 62], replicas)
    formula = replicas_for(busy, 1, settings.autoscale_target_utilization, settings.replica_max_concurrent_requests)
    least, most = settings.autoscale_min_replicas, settings.autoscale_max_replicas
    assert decisions[-1].desired == min(max(formula, least), most)


@given(versions(), st.lists(st.tuples(intervals(), counts, counts), min_size=1, max_size=30))
def test_the_present_count_has_no_say_but_for_the_first(
    settings: Version, steps: list[tuple[Demand, int, int]]
) -> None:
    """No runaway: whatever number of replicas is there, or still starting, the same load asks for the same number."""
    one, other = Autoscaler(settings), Autoscaler(settings)
    for now, (demand, replicas, others) in enumerate(steps):
        first = one.observe(now + 1.0, demand, replicas)
        second = other.observe(now + 1.0, demand, others if now else replicas)
        assert (first.desired, first.raw_desired) == (second.desired, second.raw_desired)


@given(versions(), st.lists(intervals(), min_size=1, max_size=80))
def test_a_minimum_of_zero_is_reached_only_after_a_window_without_any_request(
    settings: Version, demands: list[Demand]
) -> None:
    decisions = decide(Autoscaler(settings), demands, 1)
    window = settings.autoscale_scale_down_seconds
    for now, decision in enumerate(decisions):
        if decision.desired == 0:
            recent = [each for at, each in enumerate(demands[: now + 1]) if at == now or now - at < window]
            assert all(each.is_nothing for each in recent)


@given(st.floats(0, 1e4), st.floats(0, 100), st.integers(1, 100), st.integers(0, 100))
def test_sizing_is_enough_and_not_one_too_many(rps: float, seconds: float, target: int, max_concurrent: int) -> None:
    replicas = replicas_for(rps, seconds, target, max_concurrent)
    per_replica = max(max_concurrent, 1) * target / 100
    need = rps * seconds
    assert replicas * per_replica >= need * (1 - 1e-6)
    assert replicas == 0 or (replicas - 1) * per_replica < need * (1 + 1e-6)
