"""What a pod feels: differences of what its workers have counted."""

from router.sizing.signals import PodSignals
from router.telemetry.counters import LAG_BOUNDS, ROUTE_BOUNDS, GatewayCounters, ProcessCounted


def worker(cpu_seconds: float, *route_times: float, lag: float | None = None) -> GatewayCounters:
    counters = GatewayCounters()
    counters.cpu_seconds = cpu_seconds
    for number, seconds in enumerate(route_times):
        counters.version((f"service-{number}", "default")).route_time.observe(seconds)
    if lag is not None:
        counters.loop_lag.observe(lag)
    return counters


def told(counters: GatewayCounters) -> ProcessCounted:
    process = counters.report().process
    assert process is not None
    return process


def test_workers_are_summed_over_services() -> None:
    signals = PodSignals()
    signals.worker_counted("a", told(worker(0.5, 0.001, 0.002, lag=0.003)))
    signals.worker_counted("b", told(worker(0.25, 0.001)))
    load = signals.take(1.0, 2.0, 0.125)
    assert (load.seconds, load.cpus, load.cpu_seconds) == (1.0, 2.0, 0.875)
    assert {bound: load.route_time[i] for i, bound in enumerate(ROUTE_BOUNDS) if load.route_time[i]} == {
        0.001: 2,
        0.002: 1,
    }
    assert [bound for i, bound in enumerate(LAG_BOUNDS) if load.loop_lag[i]] == [0.005]


def test_each_interval_has_what_came_in_it() -> None:
    signals = PodSignals(cpu_seconds=3.0)
    counters = worker(1.0, 0.001, lag=0.1)
    signals.worker_counted("a", told(counters))
    assert signals.take(1.0, 2.0, 3.5).cpu_seconds == 1.5
    counters.cpu_seconds = 1.25
    counters.version(("service-0", "default")).route_time.observe(0.001)
    signals.worker_counted("a", told(counters))
    load = signals.take(1.0, 2.0, 3.5)
    assert (load.cpu_seconds, sum(load.route_time), sum(load.loop_lag)) == (0.25, 1, 0)
    assert signals.take(1.0, 2.0, 3.5).cpu_seconds == 0


def test_a_service_that_is_removed_takes_nothing_from_others() -> None:
    signals = PodSignals()
    counters = worker(1.0, 0.001, 0.5)
    signals.worker_counted("a", told(counters))
    signals.take(1.0, 1.0, 0.0)
    counters.retain({("service-0", "default")})
    counters.version(("service-0", "default")).route_time.observe(0.001)
    signals.worker_counted("a", told(counters))
    assert sum(signals.take(1.0, 1.0, 0.0).route_time) == 1


def test_the_successor_of_a_worker_counts_from_nothing() -> None:
    signals = PodSignals()
    signals.worker_counted("a", told(worker(9.0, 0.001)))
    signals.take(1.0, 1.0, 0.0)
    signals.worker_ended("a")
    signals.worker_counted("b", told(worker(0.5)))
    assert signals.take(1.0, 1.0, 0.0).cpu_seconds == 0.5
