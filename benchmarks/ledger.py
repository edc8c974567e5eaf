"""What a ledger costs: operations per second with one service and with 1,000 services of 10 replicas each, and
reconciliation.

    python -m benchmarks.ledger

No network and no processes: coordinator, ledgers and messages are called in one loop. An operation is one message and
all of its effects: a request that is granted a lease, one that must wait and causes recalls, a returned lease that is
granted to a waiting request.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from router.model.services import Replica, ReplicaState, VersionKey
from router.model.version_replicas import VersionReplicas
from router.slots.coordinator import Coordinator
from router.slots.messages import Grant, HeldSnapshot, Recall, Register, Return, SlotDemand, ToLeaseCache

WORKER_IDS = tuple(f"pod-{pod}/worker-{worker}" for pod in range(3) for worker in range(2))
SECONDS = 2.0


class Simulation:
    """A coordinator, and workers that count their leases."""

    def __init__(self, services: int, replicas: int) -> None:
        self.coordinator = Coordinator()
        self.keys: list[VersionKey] = [(f"s{number}", "default") for number in range(services)]
        self.leases: dict[tuple[str, VersionKey], list[str]] = {}
        self.acked_grants: dict[tuple[str, VersionKey], int] = {}
        self.last_waiter: dict[tuple[str, VersionKey], int] = {}
        self.recalls = 0
        self.coordinator.set_versions(self.keys)
        for key in self.keys:
            ready = [
                Replica(f"{key[0]}-r{number}", "127.0.0.1", 5001, ReplicaState.READY) for number in range(replicas)
            ]
            self.coordinator.set_replicas(key, VersionReplicas(tuple(ready), slots=1))
        for worker_id in WORKER_IDS:
            self.coordinator.connect_worker(worker_id, self._deliver_to(worker_id))
            for key in self.keys:
                self.leases[worker_id, key] = []
                self.acked_grants[worker_id, key] = self.last_waiter[worker_id, key] = 0
                self.coordinator.receive(worker_id, key, (Register(1, 1, {}, frozenset(), 0, 0),))

    def _deliver_to(self, worker_id: str) -> Callable[[VersionKey, ToLeaseCache], None]:
        def deliver(key: VersionKey, message: ToLeaseCache) -> None:
            if isinstance(message, Grant):
                self.leases[worker_id, key].append(message.replica)
                self.acked_grants[worker_id, key] += 1
            elif isinstance(message, Recall):
                self.recalls += 1

        return deliver

    def request_lease(self, worker_id: str, key: VersionKey) -> None:
        """Let one more request of a worker wait for a lease."""
        self.last_waiter[worker_id, key] = number = self.last_waiter[worker_id, key] + 1
        self.coordinator.receive(worker_id, key, (SlotDemand(number, number - 1),))

    def return_lease(self, worker_id: str, key: VersionKey) -> None:
        """Return one lease of a worker."""
        self.coordinator.receive(worker_id, key, (Return(self.leases[worker_id, key].pop(), 1),))

    def reconcile(self, worker_id: str, key: VersionKey) -> None:
        """Compare the leases that a worker holds of one version."""
        held: dict[str, int] = {}
        for replica in self.leases[worker_id, key]:
            held[replica] = held.get(replica, 0) + 1
        self.coordinator.reconcile(worker_id, key, HeldSnapshot(1, 1, self.acked_grants[worker_id, key], held))


def grant_and_return(simulation: Simulation, rng: random.Random) -> int:
    """Grant a free slot and return it. Return the number of operations."""
    worker_id, key = rng.choice(WORKER_IDS), rng.choice(simulation.keys)
    simulation.request_lease(worker_id, key)
    simulation.return_lease(worker_id, key)
    return 2


def contend(simulation: Simulation, rng: random.Random) -> int:
    """Request a lease while all slots are leased, which recalls others, and return one. Return the number of
    operations."""
    one, other = rng.sample(WORKER_IDS, 2)
    key = rng.choice(simulation.keys)
    if not simulation.leases[other, key]:
        return 0
    simulation.request_lease(one, key)
    simulation.return_lease(other, key)
    return 2


def rate(simulation: Simulation, work: Callable[[Simulation, random.Random], int]) -> float:
    """Return operations per second."""
    rng, operations, started_at = random.Random(1), 0, time.perf_counter()
    while (elapsed := time.perf_counter() - started_at) < SECONDS:
        for _ in range(100):
            operations += work(simulation, rng)
    return operations / elapsed


def main() -> None:
    """Measure and print a table."""
    print("| services x replicas | granted and returned, operations/s | under contention, operations/s | "
          "all snapshots of one second, ms |")  # fmt: skip
    print("|---|---:|---:|---:|")
    for services, replicas in ((1, 10), (1, 10_000), (1000, 10)):
        simulation = Simulation(services, replicas)
        calm = rate(simulation, grant_and_return)
        rng = random.Random(1)
        for key in simulation.keys:  # until every slot is leased
            for _ in range(replicas):
                simulation.request_lease(rng.choice(WORKER_IDS), key)
        busy = rate(simulation, contend)
        started_at = time.perf_counter()
        for worker_id in WORKER_IDS:
            for key in simulation.keys:
                simulation.reconcile(worker_id, key)
        snapshots_ms = (time.perf_counter() - started_at) * 1000
        assert simulation.recalls, "no lease was recalled"
        assert simulation.coordinator.mismatches_repaired == 0
        print(f"| {services:,} x {replicas:,} | {calm:,.0f} | {busy:,.0f} | {snapshots_ms:.1f} |", flush=True)
    print(f"\n{len(WORKER_IDS)} workers; snapshots of each of them for each version.")


if __name__ == "__main__":
    main()
