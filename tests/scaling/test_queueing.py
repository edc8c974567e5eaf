"""Queueing formulas against known values, and against a simulation of the queue."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.scaling.queueing import erlang_c, slots_for, wait_probability


@pytest.mark.parametrize(
    ("slots", "load", "probability"),
    [(1, 0.5, 0.5), (2, 1.0, 1 / 3), (10, 8.0, 0.409180), (5, 0.0, 0.0), (0, 0.0, 1.0), (3, 3.0, 1.0), (3, 4.0, 1.0)],
)
def test_erlang_c_has_known_values(slots: int, load: float, probability: float) -> None:
    assert erlang_c(slots, load) == pytest.approx(probability, abs=1e-6)


def test_erlang_c_of_many_slots_neither_overflows_nor_loses_precision() -> None:
    assert 0.0 < erlang_c(100_000, 99_900) < 1.0
    assert erlang_c(100_000, 50_000) == pytest.approx(0.0, abs=1e-12)


def simulated_late_share(slots: int, rate: float, service: float, limit: float, requests: int) -> float:
    """Return the share of requests that wait longer than `limit`, served in order of arrival."""
    source = random.Random(7)
    free_at = [0.0] * slots
    now = late = 0.0
    for _ in range(requests):
        now += source.expovariate(rate)
        free_at.sort()
        start = max(now, free_at[0])
        late += start - now > limit
        free_at[0] = start + source.expovariate(1 / service)
    return late / requests


@pytest.mark.parametrize(
    ("slots", "rate", "service", "limit"), [(4, 3.0, 1.0, 0.5), (10, 75.0, 0.1, 0.05), (2, 1.0, 1.2, 1.0)]
)
def test_wait_probability_matches_a_simulated_queue(slots: int, rate: float, service: float, limit: float) -> None:
    expected = wait_probability(slots, rate * service, service, limit)
    assert simulated_late_share(slots, rate, service, limit, 60_000) == pytest.approx(expected, abs=0.02)


@given(
    load=st.floats(0.01, 500), service=st.floats(0.001, 60), limit=st.floats(0.001, 5),
    probability=st.floats(0.0001, 0.5), per_replica=st.integers(1, 8),
)  # fmt: skip
def test_slots_for_returns_enough_and_not_one_replica_too_many(
    load: float, service: float, limit: float, probability: float, per_replica: int
) -> None:
    slots = slots_for(load, service, limit, probability, per_replica)
    assert slots % per_replica == 0
    assert wait_probability(slots, load, service, limit) <= probability
    fewer = slots - per_replica
    assert fewer <= load or wait_probability(fewer, load, service, limit) > probability


@pytest.mark.parametrize(("slots", "load"), [(-1, 1.0), (1, -1.0), (10**7, 1.0), (1, float("inf"))])
def test_invalid_arguments_are_rejected(slots: int, load: float) -> None:
    with pytest.raises(ValueError, match="allowed"):
        erlang_c(slots, load)
