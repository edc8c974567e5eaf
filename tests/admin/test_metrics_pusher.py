"""Metrics that a router pushes, compared with those of its scrape."""

from tests.processes import wait_until
from tests.routers import StartRouter, open_echo_service
from tests.telemetry.collector import Collector


def test_pushed_counters_equal_those_of_a_scrape_at_the_same_time(start: StartRouter, collector: Collector) -> None:
    router = start(
        {"iris": open_echo_service(), "other": open_echo_service()},
        metrics_push="otlp",
        metrics_push_seconds=1,
        otlp_endpoint=collector.url,
    )
    for service in ("iris", "iris", "other"):
        assert router.score(service).status == 200
    assert router.score("missing").status == 404
    wait_until(lambda: router.metric("requests_total") == 4, "the counters of the workers")
    before = router.metrics()
    received = len(collector.metric_exports)
    wait_until(lambda: len(collector.metric_exports) > received, "a push")
    pushes = router.metric("metrics_pushes_total", result="ok")
    wait_until(lambda: router.metric("metrics_pushes_total", result="ok") > pushes, "a complete push")
    pushed = collector.last_pushed()
    after = router.metrics()
    # Counters that count all the time, such as CPU time, have changed between the scrapes.
    same = {
        series: value
        for series, value in before.items()
        if after.get(series) == value and not series[0].startswith("process_")
    }
    assert {series: pushed.get(series) for series in same} == same
    assert len([series for series in same if series[0].endswith("_total")]) > 20
    assert pushed.keys() == {series for series in after if not series[0].startswith("process_")}
    assert router.metric("metrics_pushes_total", result="failed") == 0


def test_last_counts_are_pushed_at_the_end(start: StartRouter, collector: Collector) -> None:
    router = start(
        {"iris": open_echo_service()}, metrics_push="otlp", metrics_push_seconds=3600, otlp_endpoint=collector.url
    )
    assert router.score("iris").status == 200
    router.stop()
    pushed = collector.last_pushed()
    assert sum(value for (name, _), value in pushed.items() if name == "azureml_fe_requests_total") == 1


def test_collector_that_hangs_costs_no_request_and_is_counted(start: StartRouter, collector: Collector) -> None:
    collector.hangs.set()
    router = start(
        {"iris": open_echo_service()}, metrics_push="otlp", metrics_push_seconds=1, otlp_endpoint=collector.url
    )
    wait_until(lambda: router.metric("metrics_pushes_total", result="failed") >= 2, "pushes that are left out")
    assert len(collector.metric_exports) == 1  # the others neither wait nor pile up
    assert router.score("iris").status == 200


def test_collector_that_refuses_is_logged(start: StartRouter, collector: Collector) -> None:
    collector.status = 400
    router = start(
        {"iris": open_echo_service()}, metrics_push="otlp", metrics_push_seconds=1, otlp_endpoint=collector.url
    )
    wait_until(lambda: router.log("cannot push metrics"), "the log line")
    (line,) = router.log("cannot push metrics")
    assert line["setting"] == "metrics_push"
    assert "400" in line["error"]
    assert router.metric("metrics_pushes_total", result="failed") >= 1
