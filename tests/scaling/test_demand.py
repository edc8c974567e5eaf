"""Demand: reports of one interval and how they join."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.scaling.demand import Demand

amounts = st.integers(0, 2**40).map(lambda n: n / 1024)  # binary fractions: sums are exact
counts = st.integers(0, 10**6)
demands = st.builds(Demand, amounts, amounts, amounts, counts, counts, counts, amounts)


def test_averages_are_integral_over_interval() -> None:
    demand = Demand(seconds=2.0, busy_seconds=7.0, queued_seconds=1.0, refused=6, completed=4, service_seconds=10.0)
    assert (demand.busy, demand.queued, demand.refused_rate) == (3.5, 0.5, 3.0)
    assert demand.mean_service_seconds == 2.5


def test_no_interval_has_averages_of_zero() -> None:
    demand = Demand(busy_seconds=1.0, refused=1)
    assert (demand.busy, demand.queued, demand.refused_rate) == (0.0, 0.0, 0.0)
    assert demand.mean_service_seconds is None


def test_front_end_that_started_within_the_interval_adds_what_it_had() -> None:
    old = Demand(seconds=1.0, busy_seconds=3.0, arrivals=3)
    new = Demand(seconds=0.25, busy_seconds=0.5, arrivals=2)
    assert old + new == Demand(seconds=1.0, busy_seconds=3.5, arrivals=5)


def test_intervals_in_a_row_make_a_longer_one() -> None:
    first = Demand(seconds=0.25, busy_seconds=0.25, arrivals=1, refused=1)
    second = Demand(seconds=0.75, queued_seconds=1.5, completed=2, service_seconds=4.0)
    assert first.followed_by(second) == Demand(1.0, 0.25, 1.5, 1, 1, 2, 4.0)


@given(demands, demands, demands)
def test_merging_needs_no_order(a: Demand, b: Demand, c: Demand) -> None:
    assert a + b == b + a
    assert (a + b) + c == a + (b + c)
    assert a + Demand() == a


@given(demands, demands, demands)
def test_intervals_join_in_any_grouping(a: Demand, b: Demand, c: Demand) -> None:
    assert a.followed_by(b).followed_by(c) == a.followed_by(b.followed_by(c))
    assert Demand().followed_by(a) == a


def test_nothing_is_nothing_however_long_it_was_watched() -> None:
    assert Demand().is_nothing
    assert Demand(seconds=60.0).is_nothing


@pytest.mark.parametrize("field", ["busy_seconds", "queued_seconds", "arrivals", "refused", "completed"])
def test_any_sign_of_a_request_is_something(field: str) -> None:
    assert not Demand(**{"seconds": 1.0, field: 1}).is_nothing  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
@pytest.mark.parametrize("field", ["seconds", "busy_seconds", "queued_seconds", "service_seconds"])
def test_a_value_that_cannot_be_is_refused_by_name(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"Demand: {field} is {value}, must be a finite number >= 0"):
        Demand(**{field: value})  # type: ignore[arg-type]
