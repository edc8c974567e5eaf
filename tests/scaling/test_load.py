"""What follows from the reports of all pods."""

import math

import pytest

from router.scaling.load import Load, LoadWindow

BOUNDS = (0.001, 0.01)


def load(cpu_seconds: float = 0.5, cpus: float = 2.0, *, quick: int = 0, slow: int = 0, seconds: float = 1.0) -> Load:
    return Load(seconds, cpus, cpu_seconds, (quick, slow, 0), (1, 0, 0))


def window() -> LoadWindow:
    return LoadWindow(BOUNDS, BOUNDS, 10.0, 95)


def test_nothing_is_seen_before_a_report() -> None:
    seen = window().seen(5.0)
    assert (seen.watched_seconds, seen.requests, seen.route_time, seen.cores, seen.cpu_use) == (0, 0, None, 0, 0)


def test_pods_are_summed() -> None:
    watched = window()
    for second in range(1, 4):
        watched.add(second, "a", load(0.5, quick=10))
        watched.add(second, "b", load(1.5, 4.0, slow=10))
    seen = watched.seen(3.0)
    assert (seen.cores, seen.cpus, seen.pods, seen.requests) == (2.0, 6.0, 2, 60)
    assert seen.cpu_use == pytest.approx(1 / 3)
    assert seen.route_time == pytest.approx(0.0091)
    assert seen.watched_seconds == 3.0


def test_cpu_use_is_an_average_over_the_window() -> None:
    watched = window()
    for second in range(20):
        watched.add(second, "a", load(2.0 if second < 15 else 0.0))
    assert watched.seen(19.0).cores == pytest.approx(1.0)


def test_a_report_of_a_longer_time_weighs_more() -> None:
    watched = window()
    watched.add(1.0, "a", load(1.0))
    watched.add(4.0, "a", load(0.0, seconds=3.0))
    assert watched.seen(4.0).cores == pytest.approx(0.25)


def test_a_pod_that_is_gone_or_silent_has_no_cpus() -> None:
    watched = window()
    for pod in "abc":
        watched.add(1.0, pod, load())
    watched.add(6.5, "a", load())
    watched.forget("c")
    seen = watched.seen(6.5)
    assert (seen.pods, seen.cpus) == (1, 2.0)


def test_times_of_another_size_are_forgotten_and_cpu_is_not() -> None:
    watched = window()
    watched.add(1.0, "a", load(1.0, slow=10))
    watched.forget_times(1.5)
    watched.add(2.0, "a", load(1.0, quick=10))
    seen = watched.seen(2.0)
    assert seen.route_time is not None
    assert seen.route_time < 0.001
    assert (seen.requests, seen.watched_seconds, seen.cores) == (10, 0.5, 1.0)


@pytest.mark.parametrize("bad", [-1.0, math.inf, math.nan])
@pytest.mark.parametrize("name", ["seconds", "cpus", "cpu_seconds"])
def test_numbers_that_are_none_are_refused(name: str, bad: float) -> None:
    numbers = {"seconds": 1.0, "cpus": 1.0, "cpu_seconds": 0.5, name: bad}
    with pytest.raises(ValueError, match=f"Load: {name} is"):
        Load(**numbers, route_time=(), loop_lag=())
