"""The load of a pod per interval, from totals that its workers report."""

from router.scaling.self.signals import PodSignals
from router.telemetry.counters import GatewayCounters, ProcessCounters
from router.telemetry.histogram import LAG_BOUNDS, ROUTE_BOUNDS
from router.workers.cpu import CpuPeriods


def worker(cpu_seconds: float, *route_times: float, lag: float | None = None) -> GatewayCounters:
    counters = GatewayCounters()
    counters.cpu_seconds = cpu_seconds
    for number, seconds in enumerate(route_times):
        counters.version((f"service-{number}", "default")).route_time.observe(seconds)
    if lag is not None:
        counters.loop_lag.observe(lag)
    return counters


def report(counters: GatewayCounters) -> ProcessCounters:
    process = counters.report().process
    assert process is not None
    return process


def test_counters_are_added_over_workers_and_services() -> None:
    signals = PodSignals()
    signals.on_worker_counters("a", report(worker(0.5, 0.001, 0.002, lag=0.003)))
    signals.on_worker_counters("b", report(worker(0.25, 0.001)))
    load = signals.take(1.0, 2.0, 0.125)
    assert (load.seconds, load.cpus, load.cpu_seconds) == (1.0, 2.0, 0.875)
    assert {bound: load.route_time[i] for i, bound in enumerate(ROUTE_BOUNDS) if load.route_time[i]} == {
        0.001: 2,
        0.002: 1,
    }
    assert [bound for i, bound in enumerate(LAG_BOUNDS) if load.loop_lag[i]] == [0.005]


def test_interval_has_only_its_own_counts() -> None:
    signals = PodSignals(supervisor_cpu_seconds=3.0)
    counters = worker(1.0, 0.001, lag=0.1)
    signals.on_worker_counters("a", report(counters))
    assert signals.take(1.0, 2.0, 3.5).cpu_seconds == 1.5
    counters.cpu_seconds = 1.25
    counters.version(("service-0", "default")).route_time.observe(0.001)
    signals.on_worker_counters("a", report(counters))
    load = signals.take(1.0, 2.0, 3.5)
    assert (load.cpu_seconds, sum(load.route_time), sum(load.loop_lag)) == (0.25, 1, 0)
    assert signals.take(1.0, 2.0, 3.5).cpu_seconds == 0


def test_removed_service_does_not_reduce_the_counts_of_others() -> None:
    signals = PodSignals()
    counters = worker(1.0, 0.001, 0.5)
    signals.on_worker_counters("a", report(counters))
    signals.take(1.0, 1.0, 0.0)
    counters.retain({("service-0", "default")})
    counters.version(("service-0", "default")).route_time.observe(0.001)
    signals.on_worker_counters("a", report(counters))
    assert sum(signals.take(1.0, 1.0, 0.0).route_time) == 1


def test_replacement_of_a_worker_starts_at_zero() -> None:
    signals = PodSignals()
    signals.on_worker_counters("a", report(worker(9.0, 0.001)))
    signals.take(1.0, 1.0, 0.0)
    signals.on_worker_ended("a")
    signals.on_worker_counters("b", report(worker(0.5)))
    assert signals.take(1.0, 1.0, 0.0).cpu_seconds == 0.5


def test_periods_of_the_cpu_quota_are_those_of_the_interval() -> None:
    signals = PodSignals()
    taken = []
    for periods in (
        CpuPeriods(1000, 900),  # before the first interval
        CpuPeriods(1010, 901),
        CpuPeriods(1020, 901),
        None,
        CpuPeriods(1040, 903),
        CpuPeriods(8, 2),  # of another control group
        CpuPeriods(17, 5),
    ):
        load = signals.take(1.0, 1.0, 0.0, periods)
        taken.append((load.periods, load.throttled_periods))
    assert taken == [(0, 0), (10, 1), (10, 0), (0, 0), (0, 0), (0, 0), (9, 3)]
