"""How many refused requests would be in flight: by the service times of the recent requests and the time waited."""

from collections.abc import Sequence

import pytest

from router.scaling.demand import Demand
from router.scaling.recent_requests import RecentRequests

WINDOW = 60.0


def counted_seconds(recent: RecentRequests, now: float, *, queued_seconds: float = 0.0, max_wait: float = 0.5) -> float:
    """Refuse a request in the second that ends at `now`, and return for how long it would be in flight."""
    recent.add(now, Demand(1.0, queued_seconds=queued_seconds, refused=1), WINDOW)
    total = recent.refused_in_flight(now, 1.0, max_wait, WINDOW)
    for second in range(1, 100):
        recent.add(now + second, Demand(1.0), WINDOW)
        total += recent.refused_in_flight(now + second, 1.0, max_wait, WINDOW)
    return total


def after(completed: Sequence[tuple[float, int, float]]) -> RecentRequests:
    """Return the state after intervals of one second: end, completed requests and mean seconds of each."""
    recent = RecentRequests()
    for now, count, seconds in completed:
        recent.add(now, Demand(1.0, completed=count, service_seconds=count * seconds), WINDOW)
    return recent


def test_refused_request_counts_for_the_mean_service_time() -> None:
    assert counted_seconds(after([(1, 10, 2.0), (2, 30, 6.0)]), 3) == pytest.approx(5.0)


def test_time_in_the_queue_is_not_counted_again() -> None:
    assert counted_seconds(after([(1, 20, 3.0)]), 2, queued_seconds=0.5) == pytest.approx(2.5)
    assert counted_seconds(after([(1, 20, 0.2)]), 2, queued_seconds=0.5) == 0.0


def test_request_that_was_refused_at_once_counts_in_full() -> None:
    assert counted_seconds(after([(1, 20, 0.2)]), 2) == pytest.approx(0.2)


def test_time_in_the_queue_of_requests_that_got_a_slot_is_not_subtracted() -> None:
    """More time in the queue than refused requests can have waited."""
    assert counted_seconds(after([(1, 20, 3.0)]), 2, queued_seconds=100.0) == pytest.approx(2.5)


def test_mean_of_a_single_recent_request_does_not_replace_that_of_many() -> None:
    recent = after([(1, 19, 1.0), (2, 1, 30.0)])
    assert counted_seconds(recent, 3) == pytest.approx((19 * 1.0 + 30.0) / 20)


def test_changed_service_time_is_followed_within_a_window() -> None:
    before = [(float(now), 100, 0.1) for now in range(1, 1001)]
    changed = [(float(now), 1, 10.0) for now in range(1001, 1064)]
    assert counted_seconds(after(before + changed), 1064) == pytest.approx(10.0)
    assert counted_seconds(after(before + changed[:30]), 1031) > 0.15, "in part before that"


def test_changed_service_time_of_rare_requests_is_followed_after_20() -> None:
    before = [(100.0 * number, 1, 1.0) for number in range(100)]
    changed = [(100.0 * number, 1, 9.0) for number in range(100, 120)]
    assert counted_seconds(after(before + changed[:10]), 11_000) == pytest.approx(5.0)
    assert counted_seconds(after(before + changed), 12_000) == pytest.approx(9.0)


def test_refused_requests_count_for_at_most_a_window() -> None:
    assert counted_seconds(after([(1, 20, 3600.0)]), 2) == pytest.approx(WINDOW)


def test_requests_refused_before_the_first_completed_one_count_once_it_has() -> None:
    recent = RecentRequests()
    recent.add(1.0, Demand(1.0, queued_seconds=5.0, refused=10), WINDOW)
    assert recent.refused_in_flight(1.0, 1.0, 0.5, WINDOW) == 0.0
    recent.add(5.0, Demand(1.0, completed=1, service_seconds=10.0), WINDOW)
    assert recent.refused_in_flight(5.0, 1.0, 0.5, WINDOW) == 10.0


@pytest.mark.parametrize("seconds", [0.2, 1.0, 7.0])
def test_total_does_not_depend_on_the_length_of_intervals(seconds: float) -> None:
    recent = after([(1, 20, 3.0)])
    recent.add(2.0, Demand(seconds, refused=4), WINDOW)
    total, now = 0.0, 2.0
    while now < 60:
        total += recent.refused_in_flight(now, seconds, 0.5, WINDOW) * seconds
        now += seconds
        recent.add(now, Demand(seconds), WINDOW)
    assert total == pytest.approx(4 * 3.0)


@pytest.mark.parametrize("completed", [0, 1, 3])
def test_memory_is_bounded_by_the_window(completed: int) -> None:
    recent = after([(0, 5, 1.0)])
    for tick in range(10_000):
        recent.add(tick / 5, Demand(0.2, refused=1, completed=completed, service_seconds=1.0), WINDOW)
    assert len(recent._completed_bins) + len(recent._wait_bins) <= 62
    assert len(recent._refusals) <= 302
