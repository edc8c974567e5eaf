"""What workers have reported, and what it proves."""

from router.gateway.control import Report, VersionReport
from router.reports import Reports
from router.services import VersionKey
from router.slots.holder import Totals
from router.telemetry.counters import Counted

IRIS: VersionKey = ("iris", "default")
NOTHING = Totals(0.0, 0.0, 0, 0, 0, 0.0)
COUNTED = Counted({}, None)


def report(heard: int = 0, dropped: int = 0, **busy: int) -> Report:
    """Requests in flight of iris by replica."""
    return Report(0.2, heard, {IRIS: VersionReport(NOTHING, 0, 0, busy)}, COUNTED, dropped)


def reports(*workers: str) -> Reports:
    made = Reports()
    for worker in workers:
        made.began(worker)
    return made


def test_requests_of_all_workers_are_summed() -> None:
    seen = reports("w0", "w1")
    seen.take("w0", report(a=1, b=2), {IRIS})
    seen.take("w1", report(a=3), {IRIS})
    assert [seen.in_flight(IRIS, name) for name in "abc"] == [4, 2, 0]
    assert len(seen.of(IRIS)) == 2
    seen.take("w1", report(), {IRIS})
    assert seen.in_flight(IRIS, "a") == 1


def test_what_is_not_reported_anew_stays_as_it_was() -> None:
    seen = reports("w0")
    seen.take("w0", report(a=1), {IRIS})
    seen.take("w0", Report(0.2, 7, {}, COUNTED, 0), {IRIS})
    assert seen.in_flight(IRIS, "a") == 1
    assert seen.come_after({"w0": 7})


def test_requests_end_with_their_worker() -> None:
    seen = reports("w0", "w1")
    seen.take("w0", report(a=1), {IRIS})
    seen.take("w1", report(a=1), {IRIS})
    seen.ended("w0")
    assert seen.in_flight(IRIS, "a") == 1
    assert len(seen.of(IRIS)) == 1


def test_a_closed_replica_is_busy_until_each_worker_has_reported_since_it_knows() -> None:
    seen = reports("w0", "w1")
    seen.close(["a"], {"w0": 5, "w1": 9})
    assert seen.in_flight(IRIS, "a") == 1
    assert seen.in_flight(IRIS, "b") == 0
    seen.take("w0", report(heard=5), {IRIS})
    seen.take("w1", report(heard=8), {IRIS})
    assert seen.in_flight(IRIS, "a") == 1
    seen.take("w1", report(heard=9, a=2), {IRIS})
    assert seen.in_flight(IRIS, "a") == 2
    seen.take("w1", report(heard=9), {IRIS})
    assert seen.in_flight(IRIS, "a") == 0


def test_a_worker_that_has_ended_need_not_report() -> None:
    seen = reports("w0", "w1")
    seen.close(["a"], {"w0": 5, "w1": 5})
    seen.take("w0", report(heard=6), {IRIS})
    seen.ended("w1")
    assert seen.in_flight(IRIS, "a") == 0


def test_a_worker_that_began_later_was_told_from_the_start() -> None:
    seen = reports("w0")
    seen.close(["a"], {"w0": 0})
    seen.began("w1")
    assert seen.in_flight(IRIS, "a") == 0


def test_a_replica_that_is_open_again_counts_as_it_is() -> None:
    seen = reports("w0")
    seen.close(["a", "b"], {"w0": 5})
    seen.reopen(["a", "never closed"])
    assert (seen.in_flight(IRIS, "a"), seen.in_flight(IRIS, "b")) == (0, 1)


def test_a_version_that_is_gone_is_kept_for_as_long_as_it_has_requests() -> None:
    seen = reports("w0", "w1")
    seen.take("w0", report(a=1), {IRIS})
    seen.take("w1", report(), {IRIS})
    seen.retain(())
    assert len(seen.of(IRIS)) == 1
    seen.take("w0", report(a=2), ())
    assert seen.in_flight(IRIS, "a") == 2
    seen.take("w0", report(), ())
    assert seen.of(IRIS) == []


def test_lines_that_were_dropped_stay_counted() -> None:
    seen = reports("w0", "w1")
    seen.take("w0", report(dropped=3), ())
    seen.take("w0", report(dropped=4), ())
    seen.take("w1", report(dropped=1), ())
    seen.ended("w0")
    assert seen.access_log_dropped == 5
