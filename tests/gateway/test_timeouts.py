"""Timeouts of one duration for many items."""

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from router.gateway.timeouts import TimeoutList


class Clock:
    """An event loop whose time the test advances."""

    def __init__(self) -> None:
        self.now = 100.0
        self.timers: list[tuple[float, Callable[[], None]]] = []

    def time(self) -> float:
        return self.now

    def call_later(self, seconds: float, callback: Callable[[], None]) -> object:
        self.timers.append((self.now + seconds, callback))
        return object()

    def advance(self, seconds: float) -> None:
        """Advance the time, and call due timers in their order."""
        until = self.now + seconds
        while self.timers and min(self.timers)[0] <= until:
            due = min(self.timers, key=lambda timer: timer[0])
            self.timers.remove(due)
            self.now = max(self.now, due[0])
            due[1]()
        self.now = until


def make_timeouts(clock: Clock, seconds: float) -> tuple[TimeoutList[str], list[tuple[str, float]]]:
    """Return timeouts of this duration, and the list of expired items and their times."""
    expired: list[tuple[str, float]] = []
    return TimeoutList(clock, seconds, lambda item: expired.append((item, clock.now))), expired  # type: ignore[arg-type]


def test_each_item_expires_after_its_timeout() -> None:
    clock = Clock()
    timeouts, expired = make_timeouts(clock, 1.0)
    timeouts.restart("a", clock.now)
    clock.advance(0.4)
    timeouts.restart("b", clock.now)
    clock.advance(0.59)
    assert expired == []
    clock.advance(0.02)
    assert [item for item, _ in expired] == ["a"]
    clock.advance(0.5)
    assert [item for item, _ in expired] == ["a", "b"]
    assert clock.timers == []


def test_discarded_item_does_not_expire() -> None:
    clock = Clock()
    timeouts, expired = make_timeouts(clock, 1.0)
    timeouts.restart("a", clock.now)
    timeouts.discard("a")
    timeouts.discard("never added")
    clock.advance(5)
    assert expired == []
    assert len(timeouts) == 0


def test_restart_restarts_the_timeout() -> None:
    clock = Clock()
    timeouts, expired = make_timeouts(clock, 1.0)
    for _ in range(5):
        timeouts.restart("a", clock.now)
        clock.advance(0.9)
    assert expired == []
    clock.advance(0.2)
    assert [item for item, _ in expired] == ["a"]


def test_items_added_during_expiry_start_no_second_timer() -> None:
    clock = Clock()

    def on_expired(item: str) -> None:
        timeouts.restart(item + "x", clock.now)

    timeouts = TimeoutList(clock, 1.0, on_expired)  # type: ignore[arg-type]
    for item in "abc":
        timeouts.restart(item, clock.now)
    for _ in range(20):
        clock.advance(1.0)
        assert len(clock.timers) == 1
    assert len(timeouts) == 3


def test_exception_for_one_item_does_not_prevent_the_expiry_of_others() -> None:
    clock = Clock()
    expired: list[str] = []

    def fail_for_a(item: str) -> None:
        expired.append(item)
        if item == "a":
            raise RuntimeError

    timeouts = TimeoutList(clock, 1.0, fail_for_a)  # type: ignore[arg-type]
    for item in "ab":
        timeouts.restart(item, clock.now)
    for _ in range(2):
        try:
            clock.advance(1.1)
        except RuntimeError:
            clock.now += 1.1
    clock.advance(1.1)
    assert expired == ["a", "b"]


@given(st.lists(st.tuples(st.sampled_from(["add", "discard"]), st.sampled_from("abcd"), st.floats(0, 0.7))))
def test_items_expire_only_after_their_timeout(steps: list[tuple[str, str, float]]) -> None:
    clock = Clock()
    timeouts, expired = make_timeouts(clock, 1.0)
    added_at: dict[str, float] = {}
    for action, item, pause in steps:
        if action == "add":
            added_at[item] = clock.now
            timeouts.restart(item, clock.now)
        else:
            added_at.pop(item, None)
            timeouts.discard(item)
        clock.advance(pause)
        for expired_item, time in expired:
            assert 0.99 <= time - added_at.pop(expired_item) <= 1.01
        expired.clear()
        assert len(timeouts) == len(added_at)
        assert all(clock.now - added <= 1.01 for added in added_at.values())
        assert len(clock.timers) <= 1
