"""Timeouts of one duration for many objects."""

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from router.gateway.timeouts import TimeoutList


class Clock:
    """An event loop of which a test turns the hands."""

    def __init__(self) -> None:
        self.now = 100.0
        self.timers: list[tuple[float, Callable[[], None]]] = []

    def time(self) -> float:
        return self.now

    def call_later(self, seconds: float, action: Callable[[], None]) -> object:
        self.timers.append((self.now + seconds, action))
        return object()

    def advance(self, seconds: float) -> None:
        """Let time pass, and call what falls due, in its order."""
        until = self.now + seconds
        while self.timers and min(self.timers)[0] <= until:
            due = min(self.timers, key=lambda timer: timer[0])
            self.timers.remove(due)
            self.now = max(self.now, due[0])
            due[1]()
        self.now = until


def watch(clock: Clock, seconds: float) -> tuple[TimeoutList[str], list[tuple[str, float]]]:
    expired: list[tuple[str, float]] = []
    return TimeoutList(clock, seconds, lambda item: expired.append((item, clock.now))), expired  # type: ignore[arg-type]


def test_each_item_expires_after_its_time() -> None:
    clock = Clock()
    timeouts, expired = watch(clock, 1.0)
    timeouts.add("a", clock.now)
    clock.advance(0.4)
    timeouts.add("b", clock.now)
    clock.advance(0.59)
    assert expired == []
    clock.advance(0.02)
    assert [item for item, _ in expired] == ["a"]
    clock.advance(0.5)
    assert [item for item, _ in expired] == ["a", "b"]
    assert clock.timers == []


def test_discarded_item_does_not_expire() -> None:
    clock = Clock()
    timeouts, expired = watch(clock, 1.0)
    timeouts.add("a", clock.now)
    timeouts.discard("a")
    timeouts.discard("never there")
    clock.advance(5)
    assert expired == []
    assert len(timeouts) == 0


def test_item_added_again_has_its_time_anew() -> None:
    clock = Clock()
    timeouts, expired = watch(clock, 1.0)
    for _ in range(5):
        timeouts.add("a", clock.now)
        clock.advance(0.9)
    assert expired == []
    clock.advance(0.2)
    assert [item for item, _ in expired] == ["a"]


def test_items_added_while_others_expire_need_no_second_timer() -> None:
    clock = Clock()

    def expired(item: str) -> None:
        timeouts.add(item + "x", clock.now)

    timeouts = TimeoutList(clock, 1.0, expired)  # type: ignore[arg-type]
    for item in "abc":
        timeouts.add(item, clock.now)
    for _ in range(20):
        clock.advance(1.0)
        assert len(clock.timers) == 1
    assert len(timeouts) == 3


def test_fault_of_one_does_not_keep_the_others_from_expiring() -> None:
    clock = Clock()
    expired: list[str] = []

    def fail_for_a(item: str) -> None:
        expired.append(item)
        if item == "a":
            raise RuntimeError

    timeouts = TimeoutList(clock, 1.0, fail_for_a)  # type: ignore[arg-type]
    for item in "ab":
        timeouts.add(item, clock.now)
    for _ in range(2):
        try:
            clock.advance(1.1)
        except RuntimeError:
            clock.now += 1.1
    clock.advance(1.1)
    assert expired == ["a", "b"]


@given(st.lists(st.tuples(st.sampled_from(["add", "discard"]), st.sampled_from("abcd"), st.floats(0, 0.7))))
def test_what_expires_was_silent_for_its_time(steps: list[tuple[str, str, float]]) -> None:
    clock = Clock()
    timeouts, expired = watch(clock, 1.0)
    since: dict[str, float] = {}
    for action, item, pause in steps:
        if action == "add":
            since[item] = clock.now
            timeouts.add(item, clock.now)
        else:
            since.pop(item, None)
            timeouts.discard(item)
        clock.advance(pause)
        for gone, at in expired:
            assert 0.99 <= at - since.pop(gone) <= 1.01
        expired.clear()
        assert len(timeouts) == len(since)
        assert all(clock.now - began <= 1.01 for began in since.values())
        assert len(clock.timers) <= 1
