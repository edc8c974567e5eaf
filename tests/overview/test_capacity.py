"""How much more a service can take."""

from typing import Any

import pytest

from router.overview.capacity import VersionCapacity, expected_wait, free_slots, of_service

IDLE = VersionCapacity(share=1.0, slots=10, in_flight=0, queued=0, mean_service=2.0, slots_at_most=40, target=0.7)


def with_(**changes: Any) -> VersionCapacity:
    return IDLE._replace(**changes)


def test_free_slots_are_those_that_nobody_has_or_waits_for() -> None:
    assert free_slots(IDLE) == 10
    assert free_slots(with_(in_flight=4)) == 6
    assert free_slots(with_(in_flight=9, queued=5)) == 0


def test_nobody_waits_while_a_slot_is_free() -> None:
    assert expected_wait(with_(in_flight=9)) == 0


def test_wait_is_what_the_queue_takes_to_drain() -> None:
    # Ten slots of 2 s: one becomes free each 0.2 s, the next after 0.1 s on average.
    assert expected_wait(with_(in_flight=10)) == pytest.approx(0.1)
    assert expected_wait(with_(in_flight=10, queued=5)) == pytest.approx(1.1)
    assert expected_wait(with_(in_flight=12)) == pytest.approx(0.5)  # slots were lowered below what is in flight


@pytest.mark.parametrize("changes", [{"slots": 0}, {"in_flight": 10, "mean_service": None}])
def test_wait_is_unknown_without_replicas_or_experience(changes: dict[str, Any]) -> None:
    assert expected_wait(with_(**changes)) is None
    assert of_service([with_(**changes)])["expected_wait_seconds"] is None


def test_suggested_concurrency_keeps_slots_at_their_target() -> None:
    told = of_service([IDLE])
    assert (told["suggested_concurrency"], told["suggested_concurrency_scaled_out"]) == (7, 28)
    assert of_service([with_(slots=1)])["suggested_concurrency"] == 1


def test_tightest_version_by_its_share_bounds_the_service() -> None:
    big, small = with_(share=0.9, slots=90), with_(share=0.1, slots=1, slots_at_most=10)
    assert of_service([big, small])["free_slots"] == 10  # one in ten goes to the small one
    assert of_service([big, small, with_(share=0.0, slots=0)]) == of_service([big, small])


def test_no_limit_is_told_as_none() -> None:
    told = of_service([with_(slots=None, slots_at_most=None)])
    assert (told["free_slots"], told["suggested_concurrency"], told["expected_wait_seconds"]) == (None, None, 0)
