"""Demand of one interval: averages, sums, and rejected values."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.scaling.demand import Demand

amounts = st.integers(0, 2**40).map(lambda n: n / 1024)  # binary fractions: sums are exact
counts = st.integers(0, 10**6)
demands = st.builds(Demand, amounts, amounts, amounts, counts, counts, counts, amounts)


def test_averages_are_integrals_over_the_interval() -> None:
    demand = Demand(seconds=2.0, busy_seconds=7.0, queued_seconds=1.0)
    assert (demand.busy, demand.queued) == (3.5, 0.5)


def test_averages_of_an_empty_interval_are_zero() -> None:
    demand = Demand(busy_seconds=1.0, queued_seconds=1.0)
    assert (demand.busy, demand.queued) == (0.0, 0.0)


def test_sum_has_the_longer_interval() -> None:
    running = Demand(seconds=1.0, busy_seconds=3.0, arrivals=3)
    started = Demand(seconds=0.25, busy_seconds=0.5, arrivals=2)
    assert running + started == Demand(seconds=1.0, busy_seconds=3.5, arrivals=5)


@given(demands, demands, demands)
def test_addition_is_commutative_and_associative(a: Demand, b: Demand, c: Demand) -> None:
    assert a + b == b + a
    assert (a + b) + c == a + (b + c)
    assert a + Demand() == a


def test_interval_without_requests_is_idle() -> None:
    assert Demand().is_idle
    assert Demand(seconds=60.0).is_idle


@pytest.mark.parametrize("field", ["busy_seconds", "queued_seconds", "arrivals", "refused", "completed"])
def test_interval_with_any_trace_of_a_request_is_not_idle(field: str) -> None:
    assert not Demand(**{"seconds": 1.0, field: 1}).is_idle  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
@pytest.mark.parametrize("field", ["seconds", "busy_seconds", "queued_seconds", "service_seconds"])
def test_negative_or_infinite_value_is_rejected_by_name(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"Demand: {field} is {value}, must be a finite number >= 0"):
        Demand(**{field: value})  # type: ignore[arg-type]
