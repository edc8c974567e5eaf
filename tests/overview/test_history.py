"""What was so at some moment."""

from router.gateway.control import VersionReport
from router.overview.history import History
from router.slots.holder import Totals

IRIS, OTHER = ("iris", "default"), ("other", "default")
SEEN = Totals(0.0, 0.0, 0, 0, 0, 0.0)


def report(waiting: int = 0, idle: int = 0, **busy: int) -> VersionReport:
    return VersionReport(SEEN, waiting, idle, busy)


def test_the_last_report_of_each_worker_before_the_moment_counts() -> None:
    history = History()
    history.add(1.0, "w0", {IRIS: report(a=1), OTHER: report(z=9)})
    history.add(1.1, "w1", {IRIS: report(2, a=2, b=1)})
    history.add(1.2, "w0", {IRIS: report(5, 1)})
    moment = history.at(1.15, IRIS)
    assert moment is not None
    assert (moment.busy, moment.waiting, moment.idle) == ({"a": 3, "b": 1}, 2, 0)
    assert round(moment.age, 3) == 0.15
    later = history.at(2.0, IRIS)
    assert later is not None
    assert (later.busy, later.waiting, later.idle) == ({"a": 2, "b": 1}, 7, 1)


def test_nothing_is_known_of_what_came_before_or_was_forgotten() -> None:
    history = History(most=2)
    assert history.at(1.0, IRIS) is None
    history.add(1.0, "w0", {IRIS: report(a=1)})
    assert history.at(0.9, IRIS) is None
    history.add(2.0, "w0", {OTHER: report()})
    history.add(3.0, "w0", {OTHER: report()})
    assert history.at(4.0, IRIS) is None


def test_who_says_nothing_new_is_known_to_be_as_before() -> None:
    history = History()
    history.add(1.0, "w0", {IRIS: report(a=1)})
    history.add(1.2, "w0", {})
    history.add(30.0, "w0", {OTHER: report()})
    history.add(30.2, "w0", {})
    late, early = history.at(30.1, IRIS), history.at(1.1, IRIS)
    assert late is not None
    assert (late.busy, round(late.age, 3)) == ({"a": 1}, 0.1)
    assert early is not None
    assert round(early.age, 3) == 0.1


def test_what_a_worker_had_in_flight_ends_with_it() -> None:
    history = History()
    history.add(1.0, "w0", {IRIS: report(a=7)})
    history.add(1.0, "w1", {IRIS: report(a=1)})
    history.ended(2.0, "w0")
    before, after = history.at(1.9, IRIS), history.at(2.1, IRIS)
    assert before is not None
    assert before.busy == {"a": 8}
    assert after is not None
    assert after.busy == {"a": 1}
