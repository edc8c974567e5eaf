"""Repeats of refused requests: detected by id, within a time, in bounded memory."""

from router.gateway.refused_ids import MAX_REFUSED_IDS, RefusedIds


def test_id_counts_once_within_the_time() -> None:
    ids = RefusedIds()
    assert [ids.is_repeat(b"a", now, 60.0) for now in (0.0, 1.0, 59.9, 60.0, 61.0)] == [False, True, True, False, True]


def test_other_id_counts() -> None:
    ids = RefusedIds()
    assert [ids.is_repeat(each, 1.0, 60.0) for each in (b"a", b"b", b"a", b"b")] == [False, False, True, True]


def test_changed_time_applies_to_earlier_ids() -> None:
    ids = RefusedIds()
    assert not ids.is_repeat(b"a", 0.0, 60.0)
    assert not ids.is_repeat(b"a", 10.0, 5.0)


def test_oldest_ids_are_forgotten_if_there_are_too_many() -> None:
    ids = RefusedIds()
    for number in range(MAX_REFUSED_IDS + 1):
        assert not ids.is_repeat(b"%d" % number, 1.0, 60.0)
    assert len(ids) == MAX_REFUSED_IDS
    assert ids.is_repeat(b"1", 1.0, 60.0)
    assert not ids.is_repeat(b"0", 1.0, 60.0)


def test_nothing_is_kept_after_the_time() -> None:
    ids = RefusedIds()
    for number in range(10):
        ids.is_repeat(b"%d" % number, float(number), 60.0)
    ids.expire(64.0, 60.0)
    assert len(ids) == 5
    ids.expire(69.0, 60.0)
    assert len(ids) == 0
