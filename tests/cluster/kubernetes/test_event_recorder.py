"""Which Events are sent."""

import re
from dataclasses import replace

import pytest

from router.cluster.kubernetes.event_recorder import (
    BURST,
    MAX_REMEMBERED,
    REFILL_SECONDS,
    REPEAT_SECONDS,
    EventFilter,
    ObjectEvent,
)
from router.cluster.kubernetes.objects import NamespacedName

REFUSED = ObjectEvent("Deployment", NamespacedName("models", "iris"), "uid", "Warning", "SettingsRefused", "wrong")


def test_event_is_not_repeated_within_the_repeat_time() -> None:
    event_filter = EventFilter()
    assert event_filter.admit(REFUSED, 0.0)
    assert not event_filter.admit(REFUSED, REPEAT_SECONDS - 1)
    assert event_filter.admit(replace(REFUSED, message="still wrong"), 1.0)
    assert event_filter.admit(REFUSED, REPEAT_SECONDS)


def test_equal_events_have_equal_names_and_other_events_other_names() -> None:
    assert REFUSED.name == replace(REFUSED).name
    assert REFUSED.name != replace(REFUSED, message="other").name != replace(REFUSED, uid="other").name


@pytest.mark.parametrize("name", ["i" * 253, f"{'i' * 219}.{'i' * 33}", f"{'i' * 218}--{'i' * 33}"])
def test_event_of_an_object_with_a_long_name_has_a_valid_name(name: str) -> None:
    """The name begins with a part of that of the object, which may end with a point or a hyphen."""
    long = replace(REFUSED, object=NamespacedName("models", name))
    assert re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*", long.name)
    assert len(long.name) <= 253


def test_flood_of_events_is_limited_to_a_burst_and_a_rate() -> None:
    event_filter = EventFilter()
    flood = [replace(REFUSED, message=str(number)) for number in range(2 * BURST)]
    assert sum(event_filter.admit(each, 0.0) for each in flood) == BURST
    assert event_filter.admit(flood[-1], REFILL_SECONDS)
    assert not event_filter.admit(flood[-2], REFILL_SECONDS)


def test_number_of_remembered_events_is_bounded() -> None:
    event_filter = EventFilter()
    for number in range(MAX_REMEMBERED + 100):
        event_filter.admit(replace(REFUSED, message=str(number)), number * REFILL_SECONDS)
    assert len(event_filter._sent_at) == MAX_REMEMBERED
