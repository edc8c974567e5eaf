"""Percentiles of histograms, and statistics of a sliding window."""

import random
from bisect import bisect_left
from statistics import quantiles

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.scaling.window import SlidingHistogram, SlidingMaximum, SlidingMean, add_counts, percentile, rebin

BOUNDS = (0.001, 0.002, 0.005, 0.01, 0.1)


def histogram(values: list[float], bounds: tuple[float, ...] = BOUNDS) -> list[int]:
    counts = [0] * (len(bounds) + 1)
    for value in values:
        counts[bisect_left(bounds, value)] += 1
    return counts


def test_percentile_without_observations_is_none() -> None:
    assert percentile([0] * 6, BOUNDS, 95) is None


def test_percentile_interpolates_within_its_bucket() -> None:
    assert percentile([100, 0, 0, 0, 0, 0], BOUNDS, 50) == pytest.approx(0.0005)
    assert percentile([0, 10, 0, 0, 0, 0], BOUNDS, 100) == pytest.approx(0.002)
    assert percentile([95, 0, 5, 0, 0, 0], BOUNDS, 95) == pytest.approx(0.001)
    assert percentile([94, 0, 6, 0, 0, 0], BOUNDS, 95) == pytest.approx(0.0025)


def test_percentile_above_every_bound_is_the_highest_bound() -> None:
    assert percentile([0, 0, 0, 0, 0, 7], BOUNDS, 50) == 0.1


def test_percentile_of_the_sum_is_not_the_mean_of_percentiles() -> None:
    quick, slow = [990, 0, 0, 0, 0, 0], [0, 0, 0, 0, 10, 0]
    merged = percentile(add_counts(quick, slow), BOUNDS, 95)
    separate = [percentile(each, BOUNDS, 95) for each in (quick, slow)]
    assert merged is not None
    assert merged < 0.001 < 0.04 < sum(each or 0.0 for each in separate) / 2


@given(st.lists(st.floats(0.0001, 0.1), min_size=1, max_size=200), st.sampled_from((50, 90, 95, 99)))
def test_percentile_is_in_the_bucket_of_the_exact_one(values: list[float], percent: int) -> None:
    found = percentile(histogram(values), BOUNDS, percent)
    exact = sorted(values)[max(0, -(-len(values) * percent // 100) - 1)]
    bucket = bisect_left(BOUNDS, exact)
    assert found is not None
    assert (0.0, *BOUNDS)[bucket] <= found <= BOUNDS[bucket]


def test_percentile_of_many_observations_is_close() -> None:
    source = random.Random(1)
    values = [source.expovariate(300) for _ in range(20_000)]
    bounds = tuple(0.0005 * step for step in range(1, 100))
    found = percentile(histogram(values, bounds), bounds, 95)
    assert found == pytest.approx(quantiles(values, n=20)[-1], rel=0.05)


def test_histogram_drops_counts_that_leave_the_window() -> None:
    window = SlidingHistogram(2)
    window.add(1.0, (1, 2))
    window.add(5.0, (10, 20))
    assert window.total_within(5.0, 10) == (11, 22)
    assert window.total_within(10.9, 10) == (11, 22)
    assert window.total_within(11.0, 10) == (10, 20)
    assert window.total_within(60.0, 10) == (0, 0)


def test_histograms_with_different_buckets_cannot_be_added() -> None:
    with pytest.raises(ValueError, match="zip"):
        SlidingHistogram(2).add(1.0, (1, 2, 3))


@given(st.lists(st.tuples(st.floats(0, 5), st.floats(0, 9)), max_size=40))
def test_maximum_is_of_the_last_seconds(steps: list[tuple[float, float]]) -> None:
    peaks, now, known = SlidingMaximum(), 0.0, []
    for pause, value in steps:
        now += pause
        known.append((now, value))
        assert peaks.add(now, value, 10) == max(value for at, value in known if now - at < 10)


def test_rebin_rounds_values_up() -> None:
    assert rebin([(0.0015, 3), (0.002, 4), (7.0, 1), (float("inf"), 2)], BOUNDS) == (0, 7, 0, 0, 0, 3)


def test_mean_is_that_of_the_time_since() -> None:
    mean = SlidingMean()
    assert mean.add(1.0, 1.0, 4.0, since=0.0) == 4.0
    assert mean.add(2.0, 1.0, 8.0, since=0.0) == 6.0
    assert mean.add(4.0, 2.0, 3.0, since=1.5) == pytest.approx((0.5 * 8.0 + 2.0 * 3.0) / 2.5)


def test_mean_of_a_long_interval_is_its_value() -> None:
    assert SlidingMean().add(100.0, 60.0, 5.0, since=90.0) == 5.0


def test_time_without_values_counts_as_zero_in_the_mean() -> None:
    mean = SlidingMean()
    mean.add(1.0, 1.0, 4.0, since=0.0)
    assert mean.add(4.0, 1.0, 4.0, since=0.0) == 2.0
