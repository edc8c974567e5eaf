"""Several front-ends with more clients than slots, messages that take time: everyone gets a turn, and slots stay busy.

A simulation of events in virtual time; the same seed gives the same run.
"""

import heapq
import itertools
import random
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pytest

from router.slots.ledger import Outbox
from tests.slots.world import FrontEnd, Request, Running, World

SERVICE_SECONDS = 0.020


@dataclass(frozen=True)
class Outcome:
    """What front-ends have seen. Seconds, unless said otherwise."""

    longest_waits: Mapping[str, float]  # by front-end
    mean_waits: Mapping[str, float]
    served: int  # requests
    utilization: float  # of the slots
    messages: int


class Overload(World):
    """Each front-end has so many clients; a client sends its next request as soon as the last one is answered."""

    def __init__(self, clients: list[int], replicas: int, slots: int, delay: Callable[[str], float], seed: int) -> None:
        super().__init__()
        self.rng = random.Random(seed)
        self.delay = delay  # of a message between a front-end and the ledger
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.ordinals = itertools.count()
        self.capacity = replicas * slots
        self.waits: dict[str, list[float]] = {}
        self.under_way: Counter[str] = Counter()  # messages to the ledger
        self.set_slots({f"r{number}": slots for number in range(replicas)})
        for count in clients:
            front = self.add_front_end()
            self.waits[front.name] = []
            for _ in range(count):
                self.at(self.rng.random() * SERVICE_SECONDS, lambda front=front: self.client_sends(front))

    def at(self, seconds: float, event: Callable[[], None]) -> None:
        heapq.heappush(self.events, (self.now + seconds, next(self.ordinals), event))

    def client_sends(self, front: FrontEnd) -> None:
        if self.arrive(front) not in front.waiting:
            self.served_at(front, front.running[-1])

    def served_at(self, front: FrontEnd, running: Running) -> None:
        self.waits[front.name].append(self.now - running.request.came_at)
        self.at(self.rng.uniform(0.5, 1.5) * SERVICE_SECONDS, lambda: self.answered(front, running))

    def answered(self, front: FrontEnd, running: Running) -> None:
        self.end(front, running)
        self.client_sends(front)

    def waiter_started(self, front: FrontEnd, running: Running) -> None:
        self.served_at(front, running)

    def _after(self, front: FrontEnd) -> None:
        self.flush(front)
        for _ in range(len(front.to_ledger) - self.under_way[front.name]):
            self.under_way[front.name] += 1
            self.at(self.delay(front.name), lambda: self.ledger_hears(front))

    def ledger_hears(self, front: FrontEnd) -> None:
        self.under_way[front.name] -= 1
        self.deliver_to_ledger(front)

    def send(self, outbox: Outbox) -> None:
        super().send(outbox)
        for name, _ in outbox:
            front = self.fronts[name]
            self.at(self.delay(name), lambda front=front: self.deliver_to_holder(front))

    def run(self, seconds: float) -> Outcome:
        while self.events[0][0] < seconds:
            time, _, event = heapq.heappop(self.events)
            self.wait(time - self.now)
            event()
        for front in self.fronts.values():
            self.waits[front.name] += [self.now - request.came_at for request in front.waiting]
        return Outcome(
            {name: max(waits) for name, waits in self.waits.items()},
            {name: sum(waits) / len(waits) for name, waits in self.waits.items()},
            sum(map(len, self.waits.values())),
            sum(front.busy_seconds for front in self.fronts.values()) / (self.now * self.capacity),
            self.messages,
        )
