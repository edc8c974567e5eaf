"""What a ledger costs: operations per second, alone and with 1,000 services of 10 replicas each, and reconciliation.

    python -m benchmarks.ledger

No network, no processes: coordinator, ledgers and messages as they are, driven in one loop. An operation is one message
taken in, with all that follows from it: a want that is granted, a want that must wait and recalls, a return that is
granted to who waits.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from router.services import VersionKey
from router.slots.coordinator import Coordinator
from router.slots.messages import Grant, Hello, Holds, Recall, Return, ToHolder, Wants

FRONT_ENDS = tuple(f"pod-{pod}/worker-{worker}" for pod in range(3) for worker in range(2))
SECONDS = 2.0


class Desk:
    """A coordinator, and front-ends that note what they are granted."""

    def __init__(self, services: int, replicas: int, *, slots: int = 1) -> None:
        self.coordinator = Coordinator()
        self.keys: list[VersionKey] = [(f"s{number}", "default") for number in range(services)]
        self.slots = slots
        self.leases: dict[tuple[str, VersionKey], list[str]] = {}
        self.heard: dict[tuple[str, VersionKey], int] = {}
        self.numbers: dict[tuple[str, VersionKey], int] = {}
        self.recalls = 0
        self.coordinator.set_versions(self.keys)
        for key in self.keys:
            self.coordinator.set_replicas(key, {f"{key[0]}-r{number}": slots for number in range(replicas)})
        for front_end in FRONT_ENDS:
            self.coordinator.attach(front_end, self._deliver(front_end))
            for key in self.keys:
                self.leases[front_end, key], self.heard[front_end, key], self.numbers[front_end, key] = [], 0, 0
                self.coordinator.receive(front_end, key, (Hello(1, 1, {}, frozenset(), 0, 0),))

    def _deliver(self, front_end: str) -> Callable[[VersionKey, ToHolder], None]:
        def deliver(key: VersionKey, message: ToHolder) -> None:
            if isinstance(message, Grant):
                self.leases[front_end, key].append(message.replica)
                self.heard[front_end, key] += 1
            elif isinstance(message, Recall):
                self.recalls += 1

        return deliver

    def want(self, front_end: str, key: VersionKey) -> None:
        """One request more that lacks a lease."""
        self.numbers[front_end, key] = number = self.numbers[front_end, key] + 1
        self.coordinator.receive(front_end, key, (Wants(number, number - 1),))

    def give_back(self, front_end: str, key: VersionKey) -> None:
        """One lease less."""
        self.coordinator.receive(front_end, key, (Return(self.leases[front_end, key].pop(), 1),))

    def reconcile(self, front_end: str, key: VersionKey) -> None:
        """A report of one front-end on one version."""
        held: dict[str, int] = {}
        for replica in self.leases[front_end, key]:
            held[replica] = held.get(replica, 0) + 1
        self.coordinator.reconcile(front_end, key, Holds(1, 1, self.heard[front_end, key], held))


def grant_and_return(desk: Desk, rng: random.Random) -> int:
    """A lease comes and goes. Operations."""
    front_end, key = rng.choice(FRONT_ENDS), rng.choice(desk.keys)
    desk.want(front_end, key)
    desk.give_back(front_end, key)
    return 2


def contend(desk: Desk, rng: random.Random) -> int:
    """All leases are out: one who waits has others recalled, and gets what comes back. Operations."""
    one, other = rng.sample(FRONT_ENDS, 2)
    key = rng.choice(desk.keys)
    if not desk.leases[other, key]:
        return 0
    desk.want(one, key)
    desk.give_back(other, key)
    return 2


def rate(desk: Desk, work: Callable[[Desk, random.Random], int]) -> float:
    """Operations per second."""
    rng, done, began = random.Random(1), 0, time.perf_counter()
    while (took := time.perf_counter() - began) < SECONDS:
        for _ in range(100):
            done += work(desk, rng)
    return done / took


def main() -> None:
    """Measure, and print a table."""
    print("| services x replicas | granted and returned, operations/s | under contention, operations/s | "
          "all reports of one second, ms |")  # fmt: skip
    print("|---|---:|---:|---:|")
    for services, replicas in ((1, 10), (1, 10_000), (1000, 10)):
        desk = Desk(services, replicas)
        calm = rate(desk, grant_and_return)
        rng = random.Random(1)
        for key in desk.keys:  # every slot is leased
            for _ in range(replicas):
                desk.want(rng.choice(FRONT_ENDS), key)
        busy = rate(desk, contend)
        began = time.perf_counter()
        for front_end in FRONT_ENDS:
            for key in desk.keys:
                desk.reconcile(front_end, key)
        reports = (time.perf_counter() - began) * 1000
        assert desk.recalls, "nobody was asked for a lease back"
        assert desk.coordinator.leaks_repaired == 0
        print(f"| {services:,} x {replicas:,} | {calm:,.0f} | {busy:,.0f} | {reports:.1f} |", flush=True)
    print(f"\n{len(FRONT_ENDS)} front-ends; reports of each on each version.")


if __name__ == "__main__":
    main()
