"""More clients than slots, at several workers, with delayed messages: every worker gets its share, and slots stay busy.

A discrete event simulation in virtual time; the same seed gives the same run.
"""

import heapq
import itertools
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import pytest

from router.slots.ledger import Outbox
from tests.slots.slot_simulation import InFlight, SlotSimulation, Worker

SERVICE_SECONDS = 0.020
MESSAGE_DELAY_SECONDS = 0.001  # a slow message between pods
RUN_SECONDS = 3.0


class OverloadedSimulation(SlotSimulation):
    """Each worker has a number of clients, which send the next request as soon as they get the response."""

    def __init__(
        self, clients: Sequence[int], delays: Sequence[float], *, replicas: int, slots: int, seed: int
    ) -> None:
        super().__init__()
        self.rng = random.Random(seed)
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.event_numbers = itertools.count()
        self.capacity = replicas * slots
        self.waits: dict[str, list[float]] = {}
        self.delays: dict[str, float] = {}
        self.in_transit: Counter[str] = Counter()  # messages to the ledger
        self.set_replicas(*[f"r{number}" for number in range(replicas)], slots=slots)
        for count, delay in zip(clients, delays, strict=True):
            self.delays[f"w{self.worker_count + 1}"] = delay
            worker = self.add_worker()
            self.waits[worker.name] = []
            for _ in range(count):
                self.schedule(self.rng.random() * SERVICE_SECONDS, partial(self.send_request, worker))

    def schedule(self, seconds: float, event: Callable[[], None]) -> None:
        heapq.heappush(self.events, (self.now + seconds, next(self.event_numbers), event))

    # Clients

    def send_request(self, worker: Worker) -> None:
        request = self.arrive(worker)
        if request not in worker.waiting:
            self.on_started(worker, next(each for each in worker.in_flight if each.request is request))

    def on_waiter_started(self, worker: Worker, started: InFlight) -> None:
        self.on_started(worker, started)

    def on_started(self, worker: Worker, started: InFlight) -> None:
        self.waits[worker.name].append(self.now - started.request.arrived_at)
        self.schedule(self.rng.uniform(0.5, 1.5) * SERVICE_SECONDS, partial(self.on_response, worker, started))

    def on_response(self, worker: Worker, ending: InFlight) -> None:
        self.end(worker, ending)
        self.send_request(worker)

    # Messages

    def _deliver_if_immediate(self, worker: Worker) -> None:
        self.flush(worker)
        for _ in range(len(worker.to_ledger) - self.in_transit[worker.name]):
            self.in_transit[worker.name] += 1
            self.schedule(self.delays[worker.name], partial(self.receive_at_ledger, worker))

    def receive_at_ledger(self, worker: Worker) -> None:
        self.in_transit[worker.name] -= 1
        self.deliver_to_ledger(worker)

    def send(self, outbox: Outbox) -> None:
        super().send(outbox)
        for name, _ in outbox:
            self.schedule(self.delays[name], partial(self.deliver_to_cache, self.workers[name]))

    # The outcome

    def run(self, seconds: float) -> None:
        while self.events[0][0] < seconds:
            time, _, event = heapq.heappop(self.events)
            self.advance_clock(time - self.now)
            event()
        for worker in self.workers.values():
            self.waits[worker.name] += [self.now - request.arrived_at for request in worker.waiting]

    @property
    def utilization(self) -> float:
        """Busy share of the slots."""
        return sum(worker.busy_seconds for worker in self.workers.values()) / (self.now * self.capacity)


@dataclass(frozen=True)
class Scenario:
    clients: tuple[int, ...]  # of each worker
    replicas: int = 10
    slots: int = 1
    delays: tuple[float, ...] = ()

    def run(self) -> OverloadedSimulation:
        simulation = OverloadedSimulation(
            self.clients,
            self.delays or (MESSAGE_DELAY_SECONDS,) * len(self.clients),
            replicas=self.replicas,
            slots=self.slots,
            seed=1,
        )
        simulation.run(RUN_SECONDS)
        return simulation


SCENARIOS = {
    "two workers": Scenario((25, 25)),
    "two workers, one with nearly all clients": Scenario((45, 5)),
    "two workers, one with a single client": Scenario((40, 1), replicas=4),
    "three workers, one near the ledger": Scenario((20, 20, 20), delays=(0.0001, 0.001, 0.003)),
    "four workers, little overload": Scenario((3, 3, 3, 3)),
    "five workers, replicas with many slots": Scenario((30,) * 5, replicas=3, slots=10),
    "six workers": Scenario((15,) * 6),
    "six workers, one with half of the clients": Scenario((50, 10, 10, 10, 10, 10)),
    "six workers that share two slots": Scenario((3,) * 6, replicas=2),
    "six workers, a long queue": Scenario((60,) * 6),
}


@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=SCENARIOS.keys())
def test_waiting_time_is_the_same_at_all_workers(scenario: Scenario) -> None:
    """In a single queue, a request waits for the service times of all requests ahead of it: clients per slot - 1.

    At no worker may a wait exceed this by more than the spread of service times and the delay of messages.
    """
    simulation = scenario.run()
    # Moving a lease to another worker takes two messages each way.
    service = SERVICE_SECONDS + 4 * max(simulation.delays.values())
    single_queue = max(sum(scenario.clients) / simulation.capacity - 1, 0.0)
    for waits in simulation.waits.values():
        assert max(waits) <= (1.1 * single_queue + 2) * service
    means = [sum(waits) / len(waits) for waits in simulation.waits.values()]
    assert max(means) - min(means) <= 0.1 * single_queue * service + 0.25 * service


@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=SCENARIOS.keys())
def test_slots_are_idle_only_while_messages_are_in_transit(scenario: Scenario) -> None:
    simulation = scenario.run()
    idle_seconds = 2 * sum(simulation.delays.values()) / len(simulation.delays)
    assert simulation.utilization >= 0.95 * SERVICE_SECONDS / (SERVICE_SECONDS + idle_seconds)


def test_only_worker_with_clients_keeps_its_slots_busy() -> None:
    """No request waits elsewhere, so no lease moves. The ledger is only notified of added and started waiters."""
    simulation = Scenario((50, 0)).run()
    assert simulation.utilization >= 0.99
    assert simulation.message_count <= 2 * len(simulation.waits["w1"]) + 50


def test_waiter_is_served_though_another_worker_holds_and_needs_all_leases() -> None:
    simulation = Scenario((30, 0), replicas=2).run()
    late = list(simulation.workers.values())[1]
    request = simulation.arrive(late)
    simulation.run(RUN_SECONDS + 1.0)
    assert request not in late.waiting
    assert simulation.waits[late.name][0] <= 17 * SERVICE_SECONDS
