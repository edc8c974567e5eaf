"""The load of a version at a past moment."""

from router.admin.history import ReportHistory
from router.model.usage import UsageTotals
from router.workers.messages import VersionReport

IRIS, OTHER = ("iris", "default"), ("other", "default")
NO_USAGE = UsageTotals(0.0, 0.0, 0, 0, 0, 0.0)


def report(queued: int = 0, idle_leases: int = 0, **in_flight: int) -> VersionReport:
    return VersionReport(NO_USAGE, queued, idle_leases, in_flight, {})


def test_load_is_the_sum_of_the_latest_reports_before_the_moment() -> None:
    history = ReportHistory()
    history.add(1.0, "w0", {IRIS: report(a=1), OTHER: report(z=9)})
    history.add(1.1, "w1", {IRIS: report(2, a=2, b=1)})
    history.add(1.2, "w0", {IRIS: report(5, 1)})
    load = history.at(1.15, IRIS)
    assert load is not None
    assert (load.in_flight, load.queued, load.idle_leases) == ({"a": 3, "b": 1}, 2, 0)
    assert round(load.age, 3) == 0.15
    later = history.at(2.0, IRIS)
    assert later is not None
    assert (later.in_flight, later.queued, later.idle_leases) == ({"a": 2, "b": 1}, 7, 1)


def test_load_is_unknown_before_the_first_and_after_a_dropped_report() -> None:
    history = ReportHistory(max_reports=2)
    assert history.at(1.0, IRIS) is None
    history.add(1.0, "w0", {IRIS: report(a=1)})
    assert history.at(0.9, IRIS) is None
    history.add(2.0, "w0", {OTHER: report()})
    history.add(3.0, "w0", {OTHER: report()})
    assert history.at(4.0, IRIS) is None


def test_report_without_a_version_confirms_its_last_load() -> None:
    history = ReportHistory()
    history.add(1.0, "w0", {IRIS: report(a=1)})
    history.add(1.2, "w0", {})
    history.add(30.0, "w0", {OTHER: report()})
    history.add(30.2, "w0", {})
    late, early = history.at(30.1, IRIS), history.at(1.1, IRIS)
    assert late is not None
    assert (late.in_flight, round(late.age, 3)) == ({"a": 1}, 0.1)
    assert early is not None
    assert round(early.age, 3) == 0.1


def test_requests_of_an_ended_worker_are_not_counted() -> None:
    history = ReportHistory()
    history.add(1.0, "w0", {IRIS: report(a=7)})
    history.add(1.0, "w1", {IRIS: report(a=1)})
    history.worker_ended(2.0, "w0")
    before, after = history.at(1.9, IRIS), history.at(2.1, IRIS)
    assert before is not None
    assert before.in_flight == {"a": 8}
    assert after is not None
    assert after.in_flight == {"a": 1}
