"""The journal: what is remembered of requests, and that it is bounded."""

from typing import Any

from router.telemetry.journal import PLAIN_PER_SECOND, Entry, Journal


def entry(number: int, **changes: Any) -> Entry:
    return Entry(
        request_id=b"id-%d" % number, client_id=b"", service="iris", version="default", began=1.0, checked=1.0,
        granted=1.0, connected_at=1.0, sent=1.0, answered=2.0, ended=2.0, status=200, replica="r", beside=1, attempts=0,
        request_bytes=1, response_bytes=2, slug="", queued_seconds=0.0, position=0, considered=(),
    )._replace(**changes)  # fmt: skip


def test_it_is_bounded_and_forgets_the_oldest() -> None:
    journal = Journal(plain=2, notable=2)
    for number in range(5):
        journal.plain.append(entry(number))
        journal.notable.append(entry(10 + number))
    remembered = [number for number in range(20) if journal.find(b"id-%d" % number)]
    assert remembered == [3, 4, 13, 14]


def test_plain_ones_do_not_drive_out_notable_ones() -> None:
    journal = Journal(plain=2, notable=2)
    journal.notable.append(entry(1, slug="overloaded"))
    for number in range(2, 100):
        journal.plain.append(entry(number))
    found = journal.find(b"id-1")
    assert found is not None
    assert found.slug == "overloaded"


def test_the_latest_of_a_client_id_is_found() -> None:
    journal = Journal()
    journal.plain.append(entry(1, client_id=b"mine", status=200))
    journal.plain.append(entry(2, client_id=b"mine", status=404))
    found = journal.find(b"mine")
    assert found is not None
    assert found.status == 404
    assert journal.find(b"other") is None


def test_room_is_a_thousand_a_second() -> None:
    journal = Journal()
    journal.make_room(0.25)
    assert journal.room == PLAIN_PER_SECOND / 4
