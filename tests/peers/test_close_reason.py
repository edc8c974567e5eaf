"""Refusals are counted, and logged at a limited rate."""

from router.peers.close_reason import CloseReason, Refusals


def test_refusals_are_counted_by_reason() -> None:
    refusals = Refusals()
    for reason in (CloseReason.GARBAGE, CloseReason.SECRET, CloseReason.GARBAGE):
        refusals.record("10.0.0.1", reason, now=0.0)
    assert refusals.counts == {"garbage": 2, "secret": 1}


def test_source_is_logged_once_a_minute_for_all_reasons() -> None:
    refusals = Refusals()
    assert refusals.record("10.0.0.1", CloseReason.GARBAGE, now=100.0)
    assert not refusals.record("10.0.0.1", CloseReason.SECRET, now=159.9)
    assert refusals.record("10.0.0.2", CloseReason.SECRET, now=159.9)
    assert refusals.record("10.0.0.1", CloseReason.SECRET, now=160.0)


def test_number_of_remembered_sources_is_bounded() -> None:
    refusals = Refusals()
    for number in range(5000):
        refusals.record(f"10.0.{number // 256}.{number % 256}", CloseReason.GARBAGE, now=0.0)
    assert not refusals.record("10.0.19.135", CloseReason.GARBAGE, now=1.0)
    assert refusals.record("10.0.0.0", CloseReason.GARBAGE, now=1.0)
    assert refusals.counts == {"garbage": 5002}
