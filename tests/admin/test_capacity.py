"""How much more load a service can take."""

from typing import Any

import pytest

from router.admin.capacity import VersionCapacity, expected_wait, free_slots, service_capacity

IDLE = VersionCapacity(share=1.0, slots=10, in_flight=0, queued=0, mean_service_seconds=2.0, max_slots=40, target=0.7)


def idle_except(**changes: Any) -> VersionCapacity:
    return IDLE._replace(**changes)


def test_free_slots_are_neither_in_use_nor_waited_for() -> None:
    assert free_slots(IDLE) == 10
    assert free_slots(idle_except(in_flight=4)) == 6
    assert free_slots(idle_except(in_flight=9, queued=5)) == 0


def test_expected_wait_is_zero_while_a_slot_is_free() -> None:
    assert expected_wait(idle_except(in_flight=9)) == 0


def test_expected_wait_is_the_time_to_drain_the_queue() -> None:
    # Ten slots of 2 s: one becomes free each 0.2 s, the next after 0.1 s on average.
    assert expected_wait(idle_except(in_flight=10)) == pytest.approx(0.1)
    assert expected_wait(idle_except(in_flight=10, queued=5)) == pytest.approx(1.1)
    assert expected_wait(idle_except(in_flight=12)) == pytest.approx(
        0.5
    )  # the limit was lowered below the requests in flight


@pytest.mark.parametrize("changes", [{"slots": 0}, {"in_flight": 10, "mean_service_seconds": None}])
def test_expected_wait_is_unknown_without_replicas_or_completed_requests(changes: dict[str, Any]) -> None:
    assert expected_wait(idle_except(**changes)) is None
    assert service_capacity([idle_except(**changes)])["expected_wait_seconds"] is None


def test_suggested_concurrency_keeps_slots_at_the_target_utilization() -> None:
    capacity = service_capacity([IDLE])
    assert (capacity["suggested_concurrency"], capacity["suggested_concurrency_scaled_out"]) == (7, 28)
    assert service_capacity([idle_except(slots=1)])["suggested_concurrency"] == 1


def test_service_is_limited_by_the_smallest_version_for_its_share() -> None:
    big, small = idle_except(share=0.9, slots=90), idle_except(share=0.1, slots=1, max_slots=10)
    assert service_capacity([big, small])["free_slots"] == 10  # the small version gets every tenth request
    assert service_capacity([big, small, idle_except(share=0.0, slots=0)]) == service_capacity([big, small])


def test_unlimited_version_has_no_slots() -> None:
    capacity = service_capacity([idle_except(slots=None, max_slots=None)])
    assert (capacity["free_slots"], capacity["suggested_concurrency"], capacity["expected_wait_seconds"]) == (
        None,
        None,
        0,
    )
