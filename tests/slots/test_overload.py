"""More clients than slots, at several front-ends, and messages that take time: everyone gets a turn, slots stay busy.

A simulation of events in virtual time; the same seed gives the same run.
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
from tests.slots.world import FrontEnd, Request, Running, World

SERVICE_SECONDS = 0.020
DELAY_SECONDS = 0.001  # of a message from pod to pod, a slow one
RUN_SECONDS = 3.0


class Overload(World):
    """Each front-end has so many clients; a client sends its next request as soon as the last one is answered."""

    def __init__(
        self, clients: Sequence[int], delays: Sequence[float], *, replicas: int, slots: int, seed: int
    ) -> None:
        super().__init__()
        self.rng = random.Random(seed)
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.ordinals = itertools.count()
        self.capacity = replicas * slots
        self.waits: dict[str, list[float]] = {}
        self.delays: dict[str, float] = {}
        self.under_way: Counter[str] = Counter()  # messages to the ledger
        self.set_slots({f"r{number}": slots for number in range(replicas)})
        for count, delay in zip(clients, delays, strict=True):
            self.delays[f"f{self.made + 1}"] = delay
            front = self.add_front_end()
            self.waits[front.name] = []
            for _ in range(count):
                self.later(self.rng.random() * SERVICE_SECONDS, partial(self.client_sends, front))

    def later(self, seconds: float, event: Callable[[], None]) -> None:
        heapq.heappush(self.events, (self.now + seconds, next(self.ordinals), event))

    # Clients

    def client_sends(self, front: FrontEnd) -> None:
        request = self.arrive(front)
        if request not in front.waiting:
            self.is_served(front, next(running for running in front.running if running.request is request))

    def waiter_started(self, front: FrontEnd, running: Running) -> None:
        self.is_served(front, running)

    def is_served(self, front: FrontEnd, running: Running) -> None:
        self.waits[front.name].append(self.now - running.request.came_at)
        self.later(self.rng.uniform(0.5, 1.5) * SERVICE_SECONDS, partial(self.is_answered, front, running))

    def is_answered(self, front: FrontEnd, running: Running) -> None:
        self.end(front, running)
        self.client_sends(front)

    # Messages

    def _after(self, front: FrontEnd) -> None:
        self.flush(front)
        for _ in range(len(front.to_ledger) - self.under_way[front.name]):
            self.under_way[front.name] += 1
            self.later(self.delays[front.name], partial(self.ledger_hears, front))

    def ledger_hears(self, front: FrontEnd) -> None:
        self.under_way[front.name] -= 1
        self.deliver_to_ledger(front)

    def send(self, outbox: Outbox) -> None:
        super().send(outbox)
        for name, _ in outbox:
            self.later(self.delays[name], partial(self.deliver_to_holder, self.fronts[name]))

    # The outcome

    def run(self, seconds: float) -> None:
        while self.events[0][0] < seconds:
            time, _, event = heapq.heappop(self.events)
            self.wait(time - self.now)
            event()
        for front in self.fronts.values():
            self.waits[front.name] += [self.now - request.came_at for request in front.waiting]

    @property
    def utilization(self) -> float:
        """Busy share of the slots."""
        return sum(front.busy_seconds for front in self.fronts.values()) / (self.now * self.capacity)


@dataclass(frozen=True)
class Story:
    clients: tuple[int, ...]
    replicas: int = 10
    slots: int = 1
    delays: tuple[float, ...] = ()

    def run(self) -> Overload:
        world = Overload(
            self.clients,
            self.delays or (DELAY_SECONDS,) * len(self.clients),
            replicas=self.replicas,
            slots=self.slots,
            seed=1,
        )
        world.run(RUN_SECONDS)
        return world


STORIES = {
    "two front-ends": Story((25, 25)),
    "two front-ends, one with nearly all clients": Story((45, 5)),
    "two front-ends, one client against a crowd": Story((40, 1), replicas=4),
    "three front-ends, one near the ledger": Story((20, 20, 20), delays=(0.0001, 0.001, 0.003)),
    "four front-ends, little overload": Story((3, 3, 3, 3)),
    "five front-ends, replicas with many slots": Story((30,) * 5, replicas=3, slots=10),
    "six front-ends": Story((15,) * 6),
    "six front-ends, one with half of the clients": Story((50, 10, 10, 10, 10, 10)),
    "six front-ends that share two slots": Story((3,) * 6, replicas=2),
    "six front-ends, a long queue": Story((60,) * 6),
}


@pytest.mark.parametrize("story", STORIES.values(), ids=STORIES.keys())
def test_no_front_end_waits_longer_than_the_others(story: Story) -> None:
    """In one queue for all, a request waits for as many service times as there are clients per slot, less its own.

    That is the measure: at no front-end may the longest wait exceed it by more than its spread and what messages cost.
    """
    world = story.run()
    service = SERVICE_SECONDS + 4 * max(world.delays.values())  # a slot that changes hands rests for two messages
    one_queue = max(sum(story.clients) / world.capacity - 1, 0.0)
    for waits in world.waits.values():
        assert max(waits) <= (1.1 * one_queue + 2) * service
    means = [sum(waits) / len(waits) for waits in world.waits.values()]
    assert max(means) - min(means) <= 0.1 * one_queue * service + 0.25 * service


@pytest.mark.parametrize("story", STORIES.values(), ids=STORIES.keys())
def test_slots_stay_busy_but_for_the_time_that_messages_take(story: Story) -> None:
    world = story.run()
    handing_over = 2 * sum(world.delays.values()) / len(world.delays)
    assert world.utilization >= 0.95 * SERVICE_SECONDS / (SERVICE_SECONDS + handing_over)


def test_front_end_whose_clients_wait_alone_keeps_its_slots_busy() -> None:
    """Nobody waits elsewhere, so no lease changes hands: the ledger hears that a waiter came, and that it is served."""
    world = Story((50, 0)).run()
    assert world.utilization >= 0.99
    assert world.messages <= 2 * len(world.waits["f1"]) + 50


def test_waiter_is_served_though_every_slot_is_held_elsewhere_and_in_demand() -> None:
    world = Story((30, 0), replicas=2).run()
    late = list(world.fronts.values())[1]
    request: Request = world.arrive(late)
    world.run(RUN_SECONDS + 1.0)
    assert request not in late.waiting
    assert world.waits[late.name][0] <= 17 * SERVICE_SECONDS
