"""Request rates of the last seconds."""

import pytest

from router.admin.rates import WINDOW_SECONDS, RequestRates
from router.scaling.demand import Demand

IRIS = ("iris", "default")


def add_steady_load(rates: RequestRates, since: float, until: float, per_report: int = 2) -> None:
    """Add five reports a second."""
    for step in range(round((until - since) * 5)):
        now = since + (step + 1) / 5
        rates.add(IRIS, Demand(0.2, arrivals=per_report, completed=per_report, service_seconds=0.03).usage, now)


def test_rates_of_a_steady_load() -> None:
    rates = RequestRates()
    add_steady_load(rates, 0, 30)
    rate = rates.of(IRIS, 30)
    assert rate.arrivals == rate.completed == pytest.approx(10, rel=0.1)
    assert rate.mean_service_seconds == pytest.approx(0.015)


def test_rates_are_zero_after_the_window_but_the_service_time_is_kept() -> None:
    rates = RequestRates()
    add_steady_load(rates, 0, 5)
    rate = rates.of(IRIS, 5 + WINDOW_SECONDS + 1)
    assert rate[:3] == (0, 0, 0)
    assert rate.mean_service_seconds == pytest.approx(0.015)


def test_reports_of_several_workers_add_up() -> None:
    rates = RequestRates()
    for _ in range(3):
        rates.add(IRIS, Demand(0.2, arrivals=5, refused=1).usage, 1.0)
    assert rates.of(IRIS, 1.0)[:3] == (1.5, 0, 0.3)


def test_idle_or_dropped_version_has_no_rates() -> None:
    rates = RequestRates()
    rates.add(IRIS, Demand(0.2).usage, 1.0)
    assert rates.of(IRIS, 1.0) == (0, 0, 0, None)
    add_steady_load(rates, 1, 2)
    rates.retain([])
    assert rates.of(IRIS, 2) == (0, 0, 0, None)
