"""The last hour of services as points."""

import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.admin.timeline import FIELDS, RANGES, STEP_SECONDS, Gauges, Timeline
from router.telemetry.counters import GatewayCounters, unpack
from router.telemetry.histogram import DURATION_BOUNDS
from router.telemetry.traffic import BUCKETS, ERROR_KINDS, ServiceTraffic, TimelinePoints, TrafficMeter

ONE_READY = Gauges(ready=1, slots=2)
STEPS_PER_MINUTE = RANGES["hour"].steps


def durations(seconds: float, requests: int) -> list[int]:
    counts = [0] * BUCKETS
    counts[DURATION_BOUNDS.index(seconds)] = requests
    return counts


def run(
    timeline: Timeline, *traffic: ServiceTraffic, gauges: Gauges = ONE_READY, seconds: float = STEP_SECONDS
) -> None:
    """Run a step of one service for each traffic."""
    for each in traffic:
        timeline.add("iris", each)
        timeline.close("iris", gauges, seconds)
        timeline.end_step(seconds)


def values(timeline: Timeline, field: str, range_: str = "minutes", service: str | None = "iris") -> list[Any]:
    """Return the known values of a field."""
    return [value for value in timeline.points(service, range_)[FIELDS.index(field)] if value is not None]


def test_point_of_a_step() -> None:
    timeline = Timeline()
    counts = [3, 0, 0, 30, 0]
    run(timeline, ServiceTraffic(150, durations(0.1, 150), counts, 15, 3000, 6000, 15.0, 7.5, needed=2, desired=3))
    point = {field: values(timeline, field) for field in FIELDS}
    assert point == {
        "requests": [10.0], "p50": [0.075], "p95": [0.0975], "p99": [0.0995],
        "refused": [0.2], "timeout": [0.0], "failed": [0.0], "rejected": [2.0], "client_left": [0.0],
        "retries": [1.0], "request_bytes": [200.0], "response_bytes": [400.0],
        "queued": [0.5], "needed": [2.0], "desired": [3.0], "ready": [1.0], "utilization": [0.75],
    }  # fmt: skip
    assert [len(each) for each in timeline.points("iris", "minutes")] == [19] * len(FIELDS)
    assert {field: values(timeline, field, service=None) for field in FIELDS} == point
    assert values(timeline, "requests", "hour") == []


def test_point_of_a_minute_has_the_percentiles_of_all_its_requests() -> None:
    timeline = Timeline()
    slow = ServiceTraffic(1, durations(10.0, 1))
    run(timeline, *[ServiceTraffic(99, durations(0.01, 99))] * 3, slow)
    assert values(timeline, "requests", "hour") == [pytest.approx(298 / 60, rel=1e-3)]
    assert values(timeline, "p99", "hour")[0] < 0.01
    assert values(timeline, "p99")[-1] > 9


def test_traffic_of_several_pods_and_services_adds_up() -> None:
    timeline = Timeline()
    for service in ("iris", "resnet"):
        for _ in range(3):
            timeline.add(service, ServiceTraffic(15, durations(0.1, 15), busy_seconds=5.0))
        timeline.close(service, Gauges(2, 2), STEP_SECONDS)
    timeline.end_step(STEP_SECONDS)
    assert values(timeline, "requests") == [3.0]
    assert values(timeline, "requests", service=None) == [6.0]
    assert values(timeline, "ready", service=None) == [4.0]
    assert values(timeline, "utilization", service=None) == values(timeline, "utilization") == [0.5]


def test_replica_counts_of_the_leader_stay_until_its_next_report() -> None:
    timeline = Timeline()
    run(timeline, ServiceTraffic(), ServiceTraffic(needed=5, desired=4), ServiceTraffic())
    assert values(timeline, "needed") == [5.0, 5.0]
    assert values(timeline, "desired") == [4.0, 4.0]


def test_utilization_is_unknown_without_a_limit_of_concurrency() -> None:
    timeline = Timeline()
    run(timeline, ServiceTraffic(busy_seconds=9.0), gauges=Gauges(2, 0))
    assert values(timeline, "utilization") == []


def test_points_are_the_latest_ones() -> None:
    timeline = Timeline()
    steps = 61 * STEPS_PER_MINUTE
    run(timeline, *[ServiceTraffic(15 * (number + 1)) for number in range(steps)])
    assert values(timeline, "requests") == pytest.approx([steps - 18 + each for each in range(19)], rel=0.01)
    by_minute = [minute * STEPS_PER_MINUTE + 2.5 for minute in range(2, 61)]
    assert values(timeline, "requests", "hour") == pytest.approx(by_minute, rel=0.01)


def test_time_in_which_the_process_did_not_run_has_no_points() -> None:
    timeline = Timeline()
    run(timeline, *[ServiceTraffic(15)] * 8)
    run(timeline, ServiceTraffic(150), seconds=10 * STEP_SECONDS)
    requests = timeline.points("iris", "minutes")[0]
    assert requests[-1] is None
    assert [value for value in requests if value is not None] == [1.0] * 8 + [1.0]
    run(timeline, ServiceTraffic(30), seconds=1e6)
    assert values(timeline, "requests") == values(timeline, "requests", "hour") == []


def test_new_pod_takes_the_points_before_its_start_and_keeps_its_own() -> None:
    old, new = Timeline(), Timeline()
    run(old, *[ServiceTraffic(15 * (number + 1)) for number in range(25)])
    run(new, *[ServiceTraffic(1500)] * 3)
    for service in ("iris", None):
        new.fill(service, old.snapshot(service))
        assert values(new, "requests", service=service) == pytest.approx([*range(7, 23), 100, 100, 100], rel=0.01)
        assert values(new, "requests", "hour", service=service) == values(old, "requests", "hour", service=service)
    run(new, ServiceTraffic(1500))
    assert values(new, "requests") == pytest.approx([*range(8, 23), 100, 100, 100, 100], rel=0.01)


def test_points_of_another_length_or_range_are_ignored() -> None:
    timeline = Timeline()
    width = 19 * len(FIELDS)
    timeline.fill("iris", TimelinePoints([1] * (width + 1), []))
    timeline.fill("iris", TimelinePoints([70_000] * width, [1]))
    assert values(timeline, "requests") == values(timeline, "requests", "hour") == []


def test_removed_service_is_forgotten() -> None:
    timeline = Timeline()
    run(timeline, ServiceTraffic(15))
    timeline.retain([])
    assert values(timeline, "requests") == []
    assert values(timeline, "requests", service=None) == [1.0]


@given(st.floats(0, 1e300))
def test_error_of_a_value_is_small(value: float) -> None:
    timeline = Timeline()
    run(timeline, ServiceTraffic(queued_seconds=value * STEP_SECONDS))
    (shown,) = values(timeline, "queued")
    if value < 1e-5:
        assert shown in (0.0, 1e-5)
    else:
        assert shown == pytest.approx(min(value, 1.7e9), rel=0.01)


def test_thousand_services_take_less_than_four_mebibytes() -> None:
    names = [f"model-{number}" for number in range(1000)]
    traffic = ServiceTraffic(
        1000, [50] * BUCKETS, [7] * len(ERROR_KINDS), 3, 10**9, 10**9, 12.5, 3.25, needed=3, desired=3
    )
    counters = GatewayCounters()
    counters.version(("iris", "default")).count_response(200, "")
    (packed,) = counters.report().versions.values()
    snapshot = unpack(packed)
    keys = [(name, "default") for name in names]
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    timeline, meter = Timeline(), TrafficMeter(lambda _: [snapshot])
    for name in names:
        timeline.add(name, traffic)
        timeline.close(name, ONE_READY, STEP_SECONDS)
    timeline.end_step(STEP_SECONDS)
    for key in keys:
        meter.read([key])
    used = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert used < 4 * 2**20
