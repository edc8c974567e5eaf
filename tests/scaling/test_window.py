"""Percentiles from histograms, and what holds over the last so many seconds."""

import random
from bisect import bisect_left
from statistics import quantiles

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.scaling.window import SlidingCounts, SlidingMaximum, added, percentile, rebinned

BOUNDS = (0.001, 0.002, 0.005, 0.01, 0.1)


def histogram(values: list[float], bounds: tuple[float, ...] = BOUNDS) -> list[int]:
    counts = [0] * (len(bounds) + 1)
    for value in values:
        counts[bisect_left(bounds, value)] += 1
    return counts


def test_percentile_of_nothing_is_unknown() -> None:
    assert percentile([0] * 6, BOUNDS, 95) is None


def test_percentile_is_spread_evenly_within_its_bucket() -> None:
    assert percentile([100, 0, 0, 0, 0, 0], BOUNDS, 50) == pytest.approx(0.0005)
    assert percentile([0, 10, 0, 0, 0, 0], BOUNDS, 100) == pytest.approx(0.002)
    assert percentile([95, 0, 5, 0, 0, 0], BOUNDS, 95) == pytest.approx(0.001)
    assert percentile([94, 0, 6, 0, 0, 0], BOUNDS, 95) == pytest.approx(0.0025)


def test_what_is_above_every_bound_counts_as_the_highest() -> None:
    assert percentile([0, 0, 0, 0, 0, 7], BOUNDS, 50) == 0.1


def test_percentile_of_the_sum_is_not_the_mean_of_percentiles() -> None:
    quick, slow = [990, 0, 0, 0, 0, 0], [0, 0, 0, 0, 10, 0]
    merged = percentile(added(quick, slow), BOUNDS, 95)
    apart = [percentile(each, BOUNDS, 95) for each in (quick, slow)]
    assert merged is not None
    assert merged < 0.001 < 0.04 < sum(each or 0.0 for each in apart) / 2


@given(st.lists(st.floats(0.0001, 0.1), min_size=1, max_size=200), st.sampled_from((50, 90, 95, 99)))
def test_percentile_is_within_the_bucket_of_the_true_one(values: list[float], percent: int) -> None:
    found = percentile(histogram(values), BOUNDS, percent)
    true = sorted(values)[max(0, -(-len(values) * percent // 100) - 1)]
    bucket = bisect_left(BOUNDS, true)
    assert found is not None
    assert (0.0, *BOUNDS)[bucket] <= found <= BOUNDS[bucket]


def test_percentile_of_many_is_close() -> None:
    source = random.Random(1)
    values = [source.expovariate(300) for _ in range(20_000)]
    bounds = tuple(0.0005 * step for step in range(1, 100))
    found = percentile(histogram(values, bounds), bounds, 95)
    assert found == pytest.approx(quantiles(values, n=20)[-1], rel=0.05)


def test_counts_leave_the_window() -> None:
    window = SlidingCounts(2)
    window.add(1.0, (1, 2))
    window.add(5.0, (10, 20))
    assert window.of_the_last(5.0, 10) == (11, 22)
    assert window.of_the_last(10.9, 10) == (11, 22)
    assert window.of_the_last(11.0, 10) == (10, 20)
    assert window.of_the_last(60.0, 10) == (0, 0)


def test_histograms_of_other_buckets_are_no_sum() -> None:
    with pytest.raises(ValueError, match="zip"):
        SlidingCounts(2).add(1.0, (1, 2, 3))


@given(st.lists(st.tuples(st.floats(0, 5), st.floats(0, 9)), max_size=40))
def test_highest_of_the_last_seconds(steps: list[tuple[float, float]]) -> None:
    peaks, now, known = SlidingMaximum(), 0.0, []
    for pause, value in steps:
        now += pause
        known.append((now, value))
        assert peaks.add(now, value, 10) == max(value for at, value in known if now - at < 10)


def test_counts_in_other_bounds_are_taken_to_be_slower() -> None:
    assert rebinned([(0.0015, 3), (0.002, 4), (7.0, 1), (float("inf"), 2)], BOUNDS) == (0, 7, 0, 0, 0, 3)
