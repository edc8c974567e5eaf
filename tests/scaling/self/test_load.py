"""Statistics over the load reports of all pods."""

import dataclasses
import math
import pickle
from typing import Any

import pytest

from router.scaling.self.load import LoadWindow, PodLoad

BOUNDS = (0.001, 0.01)


def pod_load(
    cpu_seconds: float = 0.5, cpus: float = 2.0, *, fast: int = 0, slow: int = 0, seconds: float = 1.0
) -> PodLoad:
    return PodLoad(seconds, cpus, cpu_seconds, (fast, slow, 0), (1, 0, 0))


def new_window() -> LoadWindow:
    return LoadWindow(BOUNDS, BOUNDS, 10.0, 95)


def test_load_without_reports_is_zero() -> None:
    fleet = new_window().fleet_load(5.0)
    assert (fleet.observed_seconds, fleet.requests, fleet.route_time, fleet.used_cpus, fleet.cpu_utilization) == (
        0,
        0,
        None,
        0,
        0,
    )


def test_load_of_pods_is_added() -> None:
    window = new_window()
    for second in range(1, 4):
        window.add(second, "a", pod_load(0.5, fast=10))
        window.add(second, "b", pod_load(1.5, 4.0, slow=10))
    fleet = window.fleet_load(3.0)
    assert (fleet.used_cpus, fleet.cpus, fleet.reporting_pods, fleet.requests) == (2.0, 6.0, 2, 60)
    assert fleet.cpu_utilization == pytest.approx(1 / 3)
    assert fleet.route_time == pytest.approx(0.0091)
    assert fleet.observed_seconds == 3.0


def test_used_cpus_are_an_average_over_the_window() -> None:
    window = new_window()
    for second in range(20):
        window.add(second, "a", pod_load(2.0 if second < 15 else 0.0))
    assert window.fleet_load(19.0).used_cpus == pytest.approx(1.0)


def test_report_of_a_longer_interval_weighs_more() -> None:
    window = new_window()
    window.add(1.0, "a", pod_load(1.0))
    window.add(4.0, "a", pod_load(0.0, seconds=3.0))
    assert window.fleet_load(4.0).used_cpus == pytest.approx(0.25)


def test_removed_or_silent_pod_has_no_cpus() -> None:
    window = new_window()
    for pod in "abc":
        window.add(1.0, pod, pod_load())
    window.add(6.5, "a", pod_load())
    window.remove_pod("c")
    fleet = window.fleet_load(6.5)
    assert (fleet.reporting_pods, fleet.cpus) == (1, 2.0)


def test_reset_discards_histograms_but_not_cpu_time() -> None:
    window = new_window()
    window.add(1.0, "a", pod_load(1.0, slow=10))
    window.reset_histograms(1.5)
    window.add(2.0, "a", pod_load(1.0, fast=10))
    fleet = window.fleet_load(2.0)
    assert fleet.route_time is not None
    assert fleet.route_time < 0.001
    assert (fleet.requests, fleet.observed_seconds, fleet.used_cpus) == (10, 0.5, 1.0)


def throttled(periods: int, throttled_periods: int) -> PodLoad:
    return dataclasses.replace(pod_load(fast=1), periods=periods, throttled_periods=throttled_periods)


def test_throttled_share_is_that_of_the_periods_of_all_pods() -> None:
    window = new_window()
    window.add(1.0, "a", throttled(10, 2))
    window.add(1.0, "b", throttled(0, 0))  # idle, or an earlier release
    assert window.fleet_load(1.0).throttled == pytest.approx(0.2)
    window.add(2.0, "b", throttled(10, 0))
    assert window.fleet_load(2.0).throttled == pytest.approx(0.1)
    window.add(11.5, "b", throttled(10, 5))
    assert window.fleet_load(11.5).throttled == pytest.approx(0.25)  # b alone, without its first report


def test_throttled_share_is_unknown_without_periods() -> None:
    window = new_window()
    window.add(1.0, "a", throttled(0, 0))
    assert window.fleet_load(1.0).throttled is None


def test_periods_before_a_change_of_size_do_not_count() -> None:
    window = new_window()
    window.add(1.0, "a", throttled(10, 9))
    window.reset_histograms(1.0)
    assert window.fleet_load(1.0).throttled is None
    window.add(2.0, "a", throttled(10, 1))
    assert window.fleet_load(2.0).throttled == pytest.approx(0.1)


@pytest.mark.parametrize("value", [-1.0, math.inf, math.nan])
@pytest.mark.parametrize("name", ["seconds", "cpus", "cpu_seconds", "periods", "throttled_periods"])
def test_negative_or_infinite_number_is_rejected(name: str, value: float) -> None:
    numbers: dict[str, Any] = {"seconds": 1.0, "cpus": 1.0, "cpu_seconds": 0.5, name: value}
    with pytest.raises(ValueError, match=f"PodLoad: {name} is"):
        PodLoad(**numbers, route_time=(), loop_lag=())


def test_reports_of_which_nobody_asks_for_the_load_are_dropped() -> None:
    """As at pods that do not lead: only the leader decides on the size."""
    window = new_window()
    window.add(0, "ended", pod_load())
    after: list[int] = []
    for second in range(1, 1001):
        for pod in ("a", "b"):
            window.add(second, pod, pod_load(fast=1))
        if second in (20, 1000):
            after.append(len(pickle.dumps(window)))
    assert after[1] < after[0] * 1.1
    assert window.fleet_load(1000.0).requests == 20
