"""Reports of workers, and what they prove about cordoned replicas."""

from router.model.services import VersionKey
from router.model.usage import ZERO
from router.telemetry.counters import CounterReport
from router.workers.messages import VersionReport, WorkerReport
from router.workers.reports import Reports

IRIS: VersionKey = ("iris", "default")
NO_COUNTERS = CounterReport({}, None)


def report(ack_seq: int = 0, dropped: int = 0, **in_flight: int) -> WorkerReport:
    """A report of the requests in flight of iris, by replica."""
    return WorkerReport(0.2, ack_seq, {IRIS: VersionReport(ZERO, 0, 0, in_flight, {})}, NO_COUNTERS, dropped)


def reports_of(*workers: str) -> Reports:
    reports = Reports()
    for worker in workers:
        reports.add_worker(worker)
    return reports


def test_requests_of_all_workers_are_summed() -> None:
    reports = reports_of("w0", "w1")
    reports.record("w0", report(a=1, b=2), {IRIS})
    reports.record("w1", report(a=3), {IRIS})
    assert [reports.in_flight(IRIS, name) for name in "abc"] == [4, 2, 0]
    assert len(reports.of_version(IRIS)) == 2
    reports.record("w1", report(), {IRIS})
    assert reports.in_flight(IRIS, "a") == 1


def test_version_missing_in_a_report_is_unchanged() -> None:
    reports = reports_of("w0")
    reports.record("w0", report(a=1), {IRIS})
    reports.record("w0", WorkerReport(0.2, 7, {}, NO_COUNTERS, 0), {IRIS})
    assert reports.in_flight(IRIS, "a") == 1
    assert reports.all_acked({"w0": 7})


def test_requests_end_with_their_worker() -> None:
    reports = reports_of("w0", "w1")
    reports.record("w0", report(a=1), {IRIS})
    reports.record("w1", report(a=1), {IRIS})
    reports.remove_worker("w0")
    assert reports.in_flight(IRIS, "a") == 1
    assert len(reports.of_version(IRIS)) == 1


def test_cordoned_replica_is_busy_until_all_workers_have_acknowledged_the_cordon() -> None:
    reports = reports_of("w0", "w1")
    reports.cordon(["a"], {"w0": 5, "w1": 9})
    assert reports.in_flight(IRIS, "a") == 1
    assert reports.in_flight(IRIS, "b") == 0
    reports.record("w0", report(ack_seq=5), {IRIS})
    reports.record("w1", report(ack_seq=8), {IRIS})
    assert reports.in_flight(IRIS, "a") == 1
    assert reports.acked_cordons() == frozenset()
    reports.record("w1", report(ack_seq=9, a=2), {IRIS})
    assert reports.in_flight(IRIS, "a") == 2
    assert reports.acked_cordons() == {"a"}
    reports.record("w1", report(ack_seq=9), {IRIS})
    assert reports.in_flight(IRIS, "a") == 0


def test_exited_worker_need_not_acknowledge_a_cordon() -> None:
    reports = reports_of("w0", "w1")
    reports.cordon(["a"], {"w0": 5, "w1": 5})
    reports.record("w0", report(ack_seq=6), {IRIS})
    reports.remove_worker("w1")
    assert reports.in_flight(IRIS, "a") == 0


def test_worker_started_after_a_cordon_need_not_acknowledge_it() -> None:
    reports = reports_of("w0")
    reports.cordon(["a"], {"w0": 0})
    reports.add_worker("w1")
    assert reports.in_flight(IRIS, "a") == 0


def test_uncordoned_replica_counts_as_reported() -> None:
    reports = reports_of("w0")
    reports.cordon(["a", "b"], {"w0": 5})
    reports.uncordon(["a", "never cordoned"])
    assert (reports.in_flight(IRIS, "a"), reports.in_flight(IRIS, "b")) == (0, 1)


def test_removed_version_is_kept_while_it_has_requests() -> None:
    reports = reports_of("w0", "w1")
    reports.record("w0", report(a=1), {IRIS})
    reports.record("w1", report(), {IRIS})
    reports.retain(())
    assert len(reports.of_version(IRIS)) == 1
    reports.record("w0", report(a=2), ())
    assert reports.in_flight(IRIS, "a") == 2
    reports.record("w0", report(), ())
    assert reports.of_version(IRIS) == []


def test_load_of_a_worker_sums_its_versions() -> None:
    reports = reports_of("w0")
    versions = {
        IRIS: VersionReport(ZERO, 2, 0, {"a": 1}, {"a": 5}),
        ("mnist", "default"): VersionReport(ZERO, 1, 0, {"b": 3}, {}),
    }
    reports.record("w0", WorkerReport(0.2, 0, versions, NO_COUNTERS, 0), versions)
    assert reports.load_of("w0") == (4, 3)
    assert reports.load_of("unknown") == (0, 0)


def test_dropped_log_lines_of_exited_workers_stay_counted() -> None:
    reports = reports_of("w0", "w1")
    reports.record("w0", report(dropped=3), ())
    reports.record("w0", report(dropped=4), ())
    reports.record("w1", report(dropped=1), ())
    reports.remove_worker("w0")
    assert reports.access_log_dropped == 5
