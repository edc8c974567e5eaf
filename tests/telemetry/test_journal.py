"""The journal: which requests it remembers, and that it is bounded."""

from typing import Any

from router.telemetry.journal import ROUTINE_PER_SECOND, Entry, Journal


def entry(number: int, **changes: Any) -> Entry:
    return Entry(
        request_id=b"id-%d" % number, client_request_id=b"", service="iris", version="default", started_at=1.0,
        authenticated_at=1.0, slot_acquired_at=1.0, connected_at=1.0, sent_at=1.0, response_started_at=2.0,
        ended_at=2.0, status=200, replica="r", in_flight_at_dispatch=1, retries=0, request_bytes=1, response_bytes=2,
        error_code="", queued_seconds=0.0, queue_position=0, replicas_at_arrival=(), abandoned_at_dispatch=0,
        suspect_at_dispatch=False, abandonment=None,
    )._replace(**changes)  # fmt: skip


def test_full_ring_drops_the_oldest_entries() -> None:
    journal = Journal(routine=2, notable=2)
    for number in range(5):
        journal.routine.append(entry(number))
        journal.notable.append(entry(10 + number))
    remembered = [number for number in range(20) if journal.find(b"id-%d" % number)]
    assert remembered == [3, 4, 13, 14]


def test_routine_entries_do_not_displace_notable_ones() -> None:
    journal = Journal(routine=2, notable=2)
    journal.notable.append(entry(1, error_code="overloaded"))
    for number in range(2, 100):
        journal.routine.append(entry(number))
    found = journal.find(b"id-1")
    assert found is not None
    assert found.error_code == "overloaded"


def test_find_returns_the_latest_request_of_a_client_request_id() -> None:
    journal = Journal()
    journal.routine.append(entry(1, client_request_id=b"mine", status=200))
    journal.routine.append(entry(2, client_request_id=b"mine", status=404))
    found = journal.find(b"mine")
    assert found is not None
    assert found.status == 404
    assert journal.find(b"other") is None


def test_failed_requests_are_those_of_the_service_newest_first() -> None:
    journal = Journal()
    journal.notable.append(entry(1, ended_at=5.0, error_code="overloaded", status=503))
    journal.notable.append(entry(2, ended_at=9.0, queued_seconds=1.0))
    journal.routine.append(entry(3, ended_at=6.0, status=404))
    journal.unrouted.append(entry(4, ended_at=7.0, error_code="unauthorized", status=401))
    journal.notable.append(entry(5, ended_at=8.0, error_code="overloaded", service="other"))
    assert [each.request_id for each in journal.latest_failed("iris", 10)] == [b"id-4", b"id-3", b"id-1"]
    assert [each.request_id for each in journal.latest_failed("iris", 1)] == [b"id-4"]


def test_slowest_requests_are_those_since_a_time() -> None:
    journal = Journal()
    for number, ended_at in enumerate((3.0, 20.0, 12.0)):
        journal.routine.append(entry(number, started_at=2.0, ended_at=ended_at))
    journal.notable.append(entry(8, started_at=2.0, ended_at=15.0))
    journal.notable.append(entry(9, started_at=2.0, ended_at=30.0, service="other"))
    assert [each.request_id for each in journal.slowest("iris", 10.0, 2)] == [b"id-1", b"id-8"]
    assert [each.request_id for each in journal.slowest("iris", 16.0, 9)] == [b"id-1"]


def test_budget_is_a_thousand_routine_entries_per_second() -> None:
    journal = Journal()
    journal.refill(0.25)
    assert journal.budget == ROUTINE_PER_SECOND / 4
