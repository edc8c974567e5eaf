"""Refusals are all counted, and logged so that the log stays readable."""

from router.peers.endings import Ending, Refusals


def test_refusals_are_counted_by_reason() -> None:
    refusals = Refusals()
    for ending in (Ending.GARBAGE, Ending.SECRET, Ending.GARBAGE):
        refusals.note("10.0.0.1", ending, now=0.0)
    assert refusals.counts == {"garbage": 2, "secret": 1}


def test_a_source_is_logged_once_a_minute_whatever_its_reasons() -> None:
    refusals = Refusals()
    assert refusals.note("10.0.0.1", Ending.GARBAGE, now=100.0)
    assert not refusals.note("10.0.0.1", Ending.SECRET, now=159.9)
    assert refusals.note("10.0.0.2", Ending.SECRET, now=159.9)
    assert refusals.note("10.0.0.1", Ending.SECRET, now=160.0)


def test_what_is_remembered_of_sources_is_bounded() -> None:
    refusals = Refusals()
    for number in range(5000):
        refusals.note(f"10.0.{number // 256}.{number % 256}", Ending.GARBAGE, now=0.0)
    assert not refusals.note("10.0.19.135", Ending.GARBAGE, now=1.0)
    assert refusals.note("10.0.0.0", Ending.GARBAGE, now=1.0)
    assert refusals.counts == {"garbage": 5002}
