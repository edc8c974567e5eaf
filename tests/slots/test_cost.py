"""The cost of an operation must not grow with the number of replicas or workers. Costs are counted in executed lines of
code, not in time."""

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from router.slots.coordinator import Coordinator
from router.slots.ledger import VersionLedger
from router.slots.messages import Grant, Register, Return, SlotDemand
from tests.slots.lease_caches import Cache, Request
from tests.slots.replicas import ready


def lines_run(operation: Callable[[], object]) -> int:
    """Return the number of lines that `operation` executes, those of comprehensions once per item."""
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


def cache_with(replicas: int, slots: int) -> Cache:
    """A lease cache with idle leases for all slots."""
    cache = Cache(unlimited=False, now=0.0)
    cache.set_replicas({f"r{number}": "pool" for number in range(replicas)}, 0.0)
    for _ in range(slots):
        for number in range(replicas):
            cache.handle(Grant(f"r{number}", 0), 0.0)
    return cache


def acquire_and_release(cache: Cache) -> None:
    lease = cache.acquire(0.0)
    assert lease is not None
    cache.release(lease, 0.0, 0.0)


def acquire_all(cache: Cache) -> None:
    while cache.acquire(0.0) is not None:
        pass


def test_acquire_and_release_cost_the_same_for_many_replicas() -> None:
    few, many = cache_with(2, 2), cache_with(1000, 2)
    assert lines_run(lambda: acquire_and_release(many)) == lines_run(lambda: acquire_and_release(few)) < 60


def test_acquire_and_release_cost_the_same_for_many_busy_replicas() -> None:
    costs = []
    for replicas in (2, 1000):
        cache = cache_with(replicas, 3)
        for _ in range(2 * replicas + 1):
            cache.acquire(0.0)
        costs.append(lines_run(lambda cache=cache: acquire_and_release(cache)))  # type: ignore[misc]
    assert costs[0] == costs[1] < 50


def test_acquire_without_an_idle_lease_costs_the_same_for_many_replicas_and_slots() -> None:
    """During overload every request does this."""
    few, many = cache_with(2, 2), cache_with(100, 100)
    acquire_all(few)
    acquire_all(many)
    assert lines_run(lambda: many.acquire(0.0)) == lines_run(lambda: few.acquire(0.0)) < 15


def test_unlimited_acquire_costs_the_same_for_many_replicas() -> None:
    costs = []
    for replicas in (2, 1000):
        cache = Cache(unlimited=True, now=0.0)
        cache.set_replicas({f"r{number}": "pool" for number in range(replicas)}, 0.0)
        costs.append(lines_run(lambda cache=cache: acquire_and_release(cache)))  # type: ignore[misc]
    assert costs[0] == costs[1] < 50


def test_passing_a_lease_to_a_waiter_costs_the_same_for_a_long_queue() -> None:
    costs = []
    for length in (1, 5000):
        cache = cache_with(1, 1)
        lease = cache.acquire(0.0)
        assert lease is not None
        for _ in range(length):
            cache.enqueue(Request(), 0.0)
        cache.flush()

        def enqueue_release_and_flush(cache: Cache = cache) -> None:
            cache.enqueue(Request(), 0.0)
            cache.release(lease, 0.0, 0.0)  # noqa: B023
            cache.flush()

        costs.append(lines_run(enqueue_release_and_flush))
    assert costs[0] == costs[1] < 80


def ledger_with(replicas: int, workers: int) -> VersionLedger:
    ledger = VersionLedger()
    ledger.set_replicas(ready(*[f"r{number}" for number in range(replicas)]))
    for number in range(workers):
        ledger.handle(f"w{number}", Register(number, 1, {}, frozenset(), 0, 0))
    return ledger


def test_grant_costs_the_same_for_many_replicas() -> None:
    few, many = ledger_with(2, 2), ledger_with(1000, 2)
    assert (
        lines_run(lambda: many.handle("w0", SlotDemand(1, 0)))
        == lines_run(lambda: few.handle("w0", SlotDemand(1, 0)))
        < 80
    )


def test_return_under_contention_costs_the_same_for_many_replicas_and_a_long_queue() -> None:
    costs = []
    for replicas, waiting in ((2, 2), (1000, 5000)):
        ledger = ledger_with(replicas, 2)
        ledger.handle("w0", SlotDemand(replicas, 0))
        ledger.handle("w1", SlotDemand(waiting, 0))
        costs.append(lines_run(lambda ledger=ledger: ledger.handle("w0", Return("r0", 1))))  # type: ignore[misc]
    assert costs[0] == costs[1] < 200


@pytest.mark.parametrize("workers", [10, 40])
def test_return_under_contention_costs_a_few_lines_per_worker(workers: int) -> None:
    ledger = ledger_with(workers, workers)
    for number in range(workers):
        ledger.handle(f"w{number}", SlotDemand(10, 0))
    assert lines_run(lambda: ledger.handle("w0", Return("r0", 1))) < 150 + 30 * workers


def test_change_of_owner_costs_the_same_for_many_services() -> None:
    def change_of_owner(services: int) -> Callable[[], object]:
        coordinator = Coordinator()
        coordinator.connect_worker("pod/worker", lambda key, message: None)
        keys = [(f"s{number}", "default") for number in range(services)]
        coordinator.set_versions(keys)
        for service, version in keys:
            coordinator.set_replicas((service, version), ready(f"{service}-r"))

        def change() -> None:
            coordinator.stop_granting("s1")
            coordinator.reset("s1")
            coordinator.on_sync_complete(["pod/worker"], "s1")
            coordinator.start_granting("s1")

        return change

    assert lines_run(change_of_owner(1000)) == lines_run(change_of_owner(2))
