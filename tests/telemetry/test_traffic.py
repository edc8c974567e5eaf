"""The requests of a service since the last reading, by kind of error."""

import pytest

from router.telemetry.counters import GatewayCounters
from router.telemetry.totals import CounterTotals
from router.telemetry.traffic import ERROR_KINDS, ServiceTraffic, TrafficMeter, error_kind

BLUE, GREEN, UNROUTED = ("iris", "blue"), ("iris", "green"), ("iris", "")


def errors(**counts: int) -> list[int]:
    return [counts.get(kind, 0) for kind in ERROR_KINDS]


@pytest.mark.parametrize(
    ("status", "error_code", "kind"),
    [
        (200, "", None),
        (302, "", None),
        (404, "", "rejected"),
        (500, "", "failed"),
        (401, "unauthorized", "rejected"),
        (413, "payload-too-large", "rejected"),
        (499, "client-closed", "client_left"),
        (200, "client-closed", "client_left"),
        (500, "router-error", "failed"),
        (502, "replica-error", "failed"),
        (502, "replica-closed", "failed"),
        (200, "replica-closed", "failed"),
        (502, "drain-timeout", "timeout"),
        (503, "overloaded", "refused"),
        (503, "no-ready-replicas", "refused"),
        (504, "scoring-timeout", "timeout"),
    ],
)
def test_kind_of_an_error(status: int, error_code: str, kind: str | None) -> None:
    assert error_kind(status, error_code) == kind


def test_meter_returns_what_was_added_since_its_last_reading() -> None:
    counters, totals = GatewayCounters(), CounterTotals()
    meter = TrafficMeter(totals.snapshots_of)
    blue, green = counters.version(BLUE), counters.version(GREEN)
    blue.count_response(200, "")
    blue.duration.observe(0.01)
    blue.request_bytes, blue.response_bytes = 10, 20
    green.count_response(504, "scoring-timeout")
    green.count_retry("connect")
    counters.version(UNROUTED).count_response(401, "unauthorized")
    totals.update("worker-0", 0, counters.report())
    traffic = meter.read(totals.take_changed())
    assert (traffic.requests, sum(traffic.durations), traffic.retries) == (3, 1, 1)
    assert (traffic.request_bytes, traffic.response_bytes) == (10, 20)
    assert traffic.errors == errors(timeout=1, rejected=1)
    assert totals.take_changed() == set()
    blue.count_response(503, "overloaded")
    totals.update("worker-0", 0, counters.report())
    assert totals.take_changed() == {BLUE}
    assert meter.read([BLUE])[:3] == (1, [0] * 23, errors(refused=1))
    assert meter.read([BLUE]).requests == 0


def test_worker_that_ends_and_its_successor_are_counted_once() -> None:
    totals = CounterTotals()
    meter = TrafficMeter(totals.snapshots_of)
    first, second = GatewayCounters(), GatewayCounters()
    for _ in range(3):
        first.version(BLUE).count_response(200, "")
    totals.update("worker-0", 0, first.report())
    assert meter.read([BLUE]).requests == 3
    totals.worker_ended("worker-0", 0)
    second.version(BLUE).count_response(200, "")
    totals.update("worker-1", 0, second.report())
    assert meter.read([BLUE]).requests == 1


def test_totals_of_a_service_that_was_removed_and_added_again_begin_again() -> None:
    totals, counters = CounterTotals(), GatewayCounters()
    meter = TrafficMeter(totals.snapshots_of)
    counters.version(BLUE).count_response(200, "")
    totals.update("worker-0", 0, counters.report())
    assert meter.read([BLUE]).requests == 1
    totals.retain([])
    meter.retain([])
    totals.retain([BLUE])
    counters.retain([])
    counters.version(BLUE).count_response(200, "")
    totals.update("worker-0", 0, counters.report())
    assert meter.read([BLUE]).requests == 1


def test_removed_versions_of_a_service_leave_nothing() -> None:
    """A service may get a new version with each deployment."""
    totals, counters = CounterTotals(), GatewayCounters()
    meter = TrafficMeter(totals.snapshots_of)
    for key in (BLUE, GREEN, UNROUTED):
        counters.version(key).count_response(200, "")
    totals.update("worker-0", 0, counters.report())
    meter.read([BLUE, GREEN, UNROUTED])
    totals.retain([GREEN])
    meter.retain([GREEN])
    assert meter.read([BLUE]).requests == 0
    assert meter._last.keys() == {GREEN, UNROUTED}


def test_traffic_without_requests_is_sent_only_by_the_leader() -> None:
    assert ServiceTraffic().is_empty
    assert not ServiceTraffic(queued_seconds=0.1).is_empty
    assert not ServiceTraffic(needed=0, desired=1).is_empty
