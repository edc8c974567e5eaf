"""What an operation costs must not grow with replicas or front-ends. Counted in lines of code that run, not in time."""

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from router.slots.coordinator import Coordinator
from router.slots.ledger import VersionLedger
from router.slots.messages import Grant, Hello, Return, Wants
from tests.slots.holders import Holder, Request


def lines_run(operation: Callable[[], object]) -> int:
    """How many lines `operation` runs, those of comprehensions counted once per item."""
    count = 0

    def trace(_: FrameType, event: str, __: Any) -> Any:
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        operation()
    finally:
        sys.settrace(before)
    return count


def holder_with(replicas: int, slots: int) -> Holder:
    holder = Holder(unlimited=False, now=0.0)
    holder.set_replicas({f"r{number}": "pool" for number in range(replicas)}, 0.0)
    for _ in range(slots):
        for number in range(replicas):
            holder.handle(Grant(f"r{number}", 0), 0.0)
    return holder


def start_and_end(holder: Holder) -> None:
    lease = holder.acquire(0.0)
    assert lease is not None
    holder.release(lease, 0.0, 0.0)


def fill(holder: Holder) -> None:
    while holder.acquire(0.0) is not None:
        pass


def test_acquire_and_release_do_not_look_at_other_replicas() -> None:
    few, many = holder_with(2, 2), holder_with(1000, 2)
    assert lines_run(lambda: start_and_end(many)) == lines_run(lambda: start_and_end(few)) < 60


def test_acquire_and_release_do_not_look_at_other_replicas_that_are_busy() -> None:
    costs = []
    for replicas in (2, 1000):
        holder = holder_with(replicas, 3)
        for _ in range(2 * replicas + 1):
            holder.acquire(0.0)
        costs.append(lines_run(lambda holder=holder: start_and_end(holder)))  # type: ignore[misc]
    assert costs[0] == costs[1] < 50


def test_finding_nothing_idle_costs_nothing() -> None:
    """Not a look at each replica, nor at each of a replica's slots: this is what every request of an overload does."""
    few, many = holder_with(2, 2), holder_with(100, 100)
    fill(few)
    fill(many)
    assert lines_run(lambda: many.acquire(0.0)) == lines_run(lambda: few.acquire(0.0)) < 15


def test_unlimited_pick_looks_at_two_replicas() -> None:
    costs = []
    for replicas in (2, 1000):
        holder = Holder(unlimited=True, now=0.0)
        holder.set_replicas({f"r{number}": "pool" for number in range(replicas)}, 0.0)
        costs.append(lines_run(lambda holder=holder: start_and_end(holder)))  # type: ignore[misc]
    assert costs[0] == costs[1] < 50


def test_queue_of_any_length_costs_the_same() -> None:
    costs = []
    for length in (1, 5000):
        holder = holder_with(1, 1)
        lease = holder.acquire(0.0)
        assert lease is not None
        for _ in range(length):
            holder.enqueue(Request(), 0.0)
        holder.flush()

        def serve_one_and_tell(holder: Holder = holder) -> None:
            holder.enqueue(Request(), 0.0)
            holder.release(lease, 0.0, 0.0)  # noqa: B023
            holder.flush()

        costs.append(lines_run(serve_one_and_tell))
    assert costs[0] == costs[1] < 80


def ledger_with(replicas: int, front_ends: int) -> VersionLedger:
    ledger = VersionLedger()
    ledger.set_replicas({f"r{number}": 1 for number in range(replicas)})
    for number in range(front_ends):
        ledger.handle(f"f{number}", Hello(number, 1, {}, frozenset(), 0, 0))
    return ledger


def test_grant_does_not_look_at_other_replicas() -> None:
    few, many = ledger_with(2, 2), ledger_with(1000, 2)
    assert lines_run(lambda: many.handle("f0", Wants(1, 0))) == lines_run(lambda: few.handle("f0", Wants(1, 0))) < 80


def test_return_under_contention_does_not_look_at_replicas_or_at_the_length_of_the_queue() -> None:
    costs = []
    for replicas, waiting in ((2, 2), (1000, 5000)):
        ledger = ledger_with(replicas, 2)
        ledger.handle("f0", Wants(replicas, 0))
        ledger.handle("f1", Wants(waiting, 0))
        costs.append(lines_run(lambda ledger=ledger: ledger.handle("f0", Return("r0", 1))))  # type: ignore[misc]
    assert costs[0] == costs[1] < 200


@pytest.mark.parametrize("front_ends", [10, 40])
def test_contention_costs_a_few_lines_per_front_end(front_ends: int) -> None:
    ledger = ledger_with(front_ends, front_ends)
    for number in range(front_ends):
        ledger.handle(f"f{number}", Wants(10, 0))
    assert lines_run(lambda: ledger.handle("f0", Return("r0", 1))) < 150 + 30 * front_ends


def test_a_change_of_owner_does_not_look_at_other_services() -> None:
    def change_of_owner(services: int) -> Callable[[], object]:
        coordinator = Coordinator()
        coordinator.attach("pod/worker", lambda key, message: None)
        keys = [(f"s{number}", "default") for number in range(services)]
        coordinator.set_versions(keys)
        for service, version in keys:
            coordinator.set_replicas((service, version), {f"{service}-r": 1})

        def change() -> None:
            coordinator.stop_granting("s1")
            coordinator.start_over("s1")
            coordinator.has_told_all(["pod/worker"], "s1")
            coordinator.begin_granting("s1")

        return change

    assert lines_run(change_of_owner(1000)) == lines_run(change_of_owner(2))
