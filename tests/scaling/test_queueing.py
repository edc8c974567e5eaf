"""Queueing theory against known values, and against a simulation of the queue itself."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.scaling.queueing import erlang_c, slots_for, waits_longer


@pytest.mark.parametrize(
    ("slots", "load", "chance"),
    [(1, 0.5, 0.5), (2, 1.0, 1 / 3), (10, 8.0, 0.409180), (5, 0.0, 0.0), (0, 0.0, 1.0), (3, 3.0, 1.0), (3, 4.0, 1.0)],
)
def test_known_values(slots: int, load: float, chance: float) -> None:
    assert erlang_c(slots, load) == pytest.approx(chance, abs=1e-6)


def test_large_systems_neither_overflow_nor_lose_precision() -> None:
    assert 0.0 < erlang_c(100_000, 99_900) < 1.0
    assert erlang_c(100_000, 50_000) == pytest.approx(0.0, abs=1e-12)


def simulated(slots: int, rate: float, service: float, limit: float, requests: int) -> float:
    """The share of requests that wait longer than `limit`, first come, first served."""
    chance = random.Random(7)
    free_at = [0.0] * slots
    now = late = 0.0
    for _ in range(requests):
        now += chance.expovariate(rate)
        free_at.sort()
        begins = max(now, free_at[0])
        late += begins - now > limit
        free_at[0] = begins + chance.expovariate(1 / service)
    return late / requests


@pytest.mark.parametrize(
    ("slots", "rate", "service", "limit"), [(4, 3.0, 1.0, 0.5), (10, 75.0, 0.1, 0.05), (2, 1.0, 1.2, 1.0)]
)
def test_waits_are_those_of_a_simulated_queue(slots: int, rate: float, service: float, limit: float) -> None:
    expected = waits_longer(slots, rate * service, service, limit)
    assert simulated(slots, rate, service, limit, 60_000) == pytest.approx(expected, abs=0.02)


@given(
    load=st.floats(0.01, 500), service=st.floats(0.001, 60), limit=st.floats(0.001, 5),
    chance=st.floats(0.0001, 0.5), per_replica=st.integers(1, 8),
)  # fmt: skip
def test_slots_for_are_enough_and_not_one_replica_too_many(
    load: float, service: float, limit: float, chance: float, per_replica: int
) -> None:
    slots = slots_for(load, service, limit, chance, per_replica)
    assert slots % per_replica == 0
    assert waits_longer(slots, load, service, limit) <= chance
    fewer = slots - per_replica
    assert fewer <= load or waits_longer(fewer, load, service, limit) > chance


@pytest.mark.parametrize(("slots", "load"), [(-1, 1.0), (1, -1.0), (10**7, 1.0), (1, float("inf"))])
def test_what_cannot_be_is_refused(slots: int, load: float) -> None:
    with pytest.raises(ValueError, match="allowed"):
        erlang_c(slots, load)
