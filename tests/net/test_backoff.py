"""Delays between repeated attempts."""

import random

from router.net.backoff import Backoff


def delays(backoff: Backoff, count: int) -> list[float]:
    return [backoff.next_delay() for _ in range(count)]


def test_delays_double_up_to_the_cap() -> None:
    assert delays(Backoff(0.5, 3.0), 5) == [0.5, 1.0, 2.0, 3.0, 3.0]


def test_factor_sets_the_growth() -> None:
    assert delays(Backoff(1.0, 50.0, factor=3.0), 4) == [1.0, 3.0, 9.0, 27.0]


def test_immediate_backoff_starts_without_a_delay() -> None:
    assert delays(Backoff(0.5, 3.0, immediate=True), 5) == [0.0, 0.5, 1.0, 2.0, 3.0]


def test_delay_stays_at_the_cap_after_thousands_of_failures() -> None:
    backoff = Backoff(0.2, 10.0)
    assert delays(backoff, 5_000)[-1] == 10.0


def test_first_delay_never_exceeds_the_cap() -> None:
    assert Backoff(5.0, 1.0).next_delay() == 1.0


def test_jitter_shortens_each_delay_by_up_to_its_fraction() -> None:
    shortest = Backoff(1.0, 4.0, jitter=0.5, random=lambda: 1.0)
    longest = Backoff(1.0, 4.0, jitter=0.5, random=lambda: 0.0)
    assert delays(shortest, 4) == [0.5, 1.0, 2.0, 2.0]
    assert delays(longest, 4) == [1.0, 2.0, 4.0, 4.0]


def test_jitter_spreads_clients_that_failed_together() -> None:
    first, second = (Backoff(1.0, 1.0, jitter=0.5, random=random.Random(seed).random) for seed in (1, 2))
    assert delays(first, 5) != delays(second, 5)


def test_delay_is_at_least_the_minimum() -> None:
    backoff = Backoff(1.0, 10.0)
    assert backoff.next_delay(5.0) == 5.0
    assert backoff.next_delay(0.5) == 2.0


def test_reset_starts_with_the_first_delay_again() -> None:
    backoff = Backoff(0.5, 30.0)
    delays(backoff, 3)
    backoff.reset()
    assert backoff.next_delay() == 0.5
