"""Rates of the last seconds."""

import pytest

from router.overview.rates import WINDOW_SECONDS, Rates
from router.scaling.demand import Demand

IRIS = ("iris", "default")


def steady(rates: Rates, since: float, until: float, per_report: int = 2) -> None:
    """Reports five times a second."""
    for step in range(round((until - since) * 5)):
        now = since + (step + 1) / 5
        rates.add(IRIS, Demand(0.2, arrivals=per_report, completed=per_report, service_seconds=0.03).seen, now)


def test_steady_load_shows_as_what_it_is() -> None:
    rates = Rates()
    steady(rates, 0, 30)
    rate = rates.of(IRIS, 30)
    assert rate.arrivals == rate.completed == pytest.approx(10, rel=0.1)
    assert rate.mean_service == pytest.approx(0.015)


def test_load_that_ends_is_gone_after_the_window_but_its_service_time_is_known() -> None:
    rates = Rates()
    steady(rates, 0, 5)
    rate = rates.of(IRIS, 5 + WINDOW_SECONDS + 1)
    assert rate[:3] == (0, 0, 0)
    assert rate.mean_service == pytest.approx(0.015)


def test_reports_of_several_front_ends_add_up() -> None:
    rates = Rates()
    for _ in range(3):
        rates.add(IRIS, Demand(0.2, arrivals=5, refused=1).seen, 1.0)
    assert rates.of(IRIS, 1.0)[:3] == (1.5, 0, 0.3)


def test_version_that_is_at_rest_or_forgotten_has_none() -> None:
    rates = Rates()
    rates.add(IRIS, Demand(0.2).seen, 1.0)
    assert rates.of(IRIS, 1.0) == (0, 0, 0, None)
    steady(rates, 1, 2)
    rates.retain([])
    assert rates.of(IRIS, 2) == (0, 0, 0, None)
