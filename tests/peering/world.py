"""Several pods in one process: their `Peering`s and the holders of their workers, with connections that deliver when
told to, break, and are made anew, and a clock that the test moves.

It keeps the truth for itself: which requests are in flight where. Channels between a supervisor and its workers and
links between pods keep order and lose nothing, until they break; then what was under way is lost from some point on.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from router.gateway.control import FromLedger, Reintroduce
from router.peering import Peering
from router.peers.messages import Message
from router.peers.wire import MessageReader as Reader
from router.peers.wire import encode
from router.services import VersionKey
from router.slots.holder import HeldReplica, VersionHolder
from router.slots.messages import Holds, ToLedger

TICK_SECONDS = 0.1
Said = tuple[VersionKey, list[ToLedger]] | dict[VersionKey, Holds]


@dataclass(eq=False)
class Request:
    """One client's request."""

    waiting_since: float = 0.0
    waiter_number: int = 0


@dataclass(eq=False)
class Running:
    """A request in flight."""

    worker: Worker
    key: VersionKey
    lease: HeldReplica[str]


class Worker:
    """A worker process: its holders, and its channel with the supervisor."""

    def __init__(self, name: str, pod: Pod) -> None:
        self.name = name
        self.pod = pod
        self.holders: dict[VersionKey, VersionHolder[Request, str]] = {}
        self.running: list[Running] = []
        self.waiting: list[tuple[VersionKey, Request]] = []
        self.up: deque[Said] = deque()  # to the supervisor
        self.down: deque[object] = deque()  # from it

    @property
    def _now(self) -> float:
        return self.pod.world.now

    def serve(self, key: VersionKey, replicas: Mapping[str, int]) -> None:
        """Know a version."""
        if key not in self.holders:
            seed = self.pod.world.next_number()
            holder: VersionHolder[Request, str] = VersionHolder(unlimited=False, now=self._now, rng=random.Random(seed))
            self.holders[key] = holder
            self.up.append((key, [holder.hello()]))
        self.holders[key].set_replicas({replica: replica for replica in replicas}, self._now)
        self.flush(key)

    def flush(self, key: VersionKey) -> None:
        holder = self.holders[key]
        if holder.news and (messages := holder.flush()):
            self.up.append((key, messages))

    def arrive(self, key: VersionKey) -> None:
        holder, request = self.holders[key], Request()
        lease = holder.acquire(self._now)
        if lease is None:
            self.waiting.append((key, request))
            holder.enqueue(request, self._now)
        else:
            self.running.append(Running(self, key, lease))
        self.flush(key)

    def end(self, running: Running) -> None:
        self.running.remove(running)
        waiter = self.holders[running.key].release(running.lease, self._now, 0.0)
        if waiter is not None:
            self._started(running.key, waiter, running.lease)
        self.flush(running.key)

    def leave(self, key: VersionKey, request: Request) -> None:
        self.waiting.remove((key, request))
        self.holders[key].cancel(request, self._now)
        self.flush(key)

    def _started(self, key: VersionKey, request: Request, lease: HeldReplica[str]) -> None:
        self.waiting.remove((key, request))
        self.running.append(Running(self, key, lease))

    def report(self) -> None:
        """Say what all holders hold, as once a second."""
        for key in self.holders:
            self.flush(key)
        said = {key: holds for key, holder in self.holders.items() if (holds := holder.holds()) is not None}
        assert len(said) == len(self.holders)
        self.up.append(said)

    def hear(self) -> None:
        message = self.down.popleft()
        if isinstance(message, FromLedger):
            holder = self.holders.get(message.key)
            if holder is not None:
                for waiter, lease in holder.handle(message.message, self._now):
                    self._started(message.key, waiter, lease)
                self.flush(message.key)
        elif isinstance(message, Reintroduce):
            for key, holder in self.holders.items():
                if key[0] in message.services:
                    holder.begin_anew()
                    self.flush(key)
        else:
            assert callable(message)
            message()

    def speak(self) -> None:
        """The supervisor hears one of its messages."""
        said = self.up.popleft()
        if isinstance(said, dict):
            self.pod.peering.worker_holds(self.name, {k: h for k, h in said.items() if k in self.pod.versions})
        elif said[0] in self.pod.versions:
            self.pod.peering.worker_said(self.name, *said)


@dataclass(eq=False)
class Wire:
    """One connection between two pods. `under_way[pod]`: what it will hear. `up[pod]`: whether it takes it for up."""

    ends: tuple[Pod, Pod]
    up: dict[str, bool] = field(default_factory=dict)
    under_way: dict[str, deque[bytes]] = field(default_factory=dict)
    broken: bool = False

    def other(self, pod: Pod) -> Pod:
        one, other = self.ends
        return other if pod is one else one

    def snap(self, which: int) -> None:
        """Break: what is under way is lost, from some message on."""
        if not self.broken:
            self.broken = True
            for queue in self.under_way.values():
                for _ in range(which % (len(queue) + 1)):
                    queue.pop()


class Pod:
    """One router: implements what `Peering` asks of links."""

    def __init__(self, name: str, world: World) -> None:
        self.name = name
        self.world = world
        self.incarnation = f"{world.next_number():016x}"
        self.workers: dict[str, Worker] = {}
        self.wires: dict[str, Wire] = {}  # that are up by this side's view
        self.absent: dict[str, float] = {}  # unreachable -> since
        self.versions: set[VersionKey] = set()
        self.frozen = False
        self.peering = Peering(name, self._to_worker, clock=lambda: world.now)
        self.peering.join(self)
        self.peering.tick()

    def _to_worker(self, name: str, message: object) -> None:
        self.workers[name].down.append(message)

    # Links.

    def send(self, peer: str, message: Message) -> None:
        wire = self.wires.get(peer)
        if wire is not None and not wire.broken:
            wire.under_way[peer].append(encode(message))

    def broadcast(self, message: Message) -> None:
        for peer in self.wires:
            self.send(peer, message)

    def live(self) -> frozenset[str]:
        return frozenset(self.wires)

    def unreachable(self) -> Mapping[str, float]:
        return self.absent

    def has_tried_all(self) -> bool:
        return self.world.pods.keys() - {self.name} <= self.wires.keys() | self.absent.keys()

    # What happens to it.

    def add_worker(self) -> None:
        worker = Worker(f"w{self.world.next_number()}", self)
        self.workers[worker.name] = worker
        self.peering.worker_started(worker.name)
        for key in self.versions:
            self._to_worker(worker.name, self._serving(worker, key))

    def _serving(self, worker: Worker, key: VersionKey) -> Callable[[], None]:
        return lambda: worker.serve(key, self.world.slots[key])

    def learn(self) -> None:
        """Hear from the cluster which services and replicas there are now."""
        self.versions = set(self.world.slots)
        self.peering.services_changed(self.versions)
        for key in self.versions:
            for worker in self.workers.values():
                worker.down.append(self._serving(worker, key))
            self.peering.set_replicas(key, dict(self.world.slots[key]), ())

    @property
    def is_up_to_date(self) -> bool:
        return self.versions == self.world.slots.keys()

    def lose_worker(self, worker: Worker) -> None:
        """Its process dies; the supervisor notices when all that it said was heard."""
        while worker.up:
            worker.speak()
        del self.workers[worker.name]
        self.peering.worker_ended(worker.name)


class World:
    """Pods, the replicas that they share, and the truth."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slots: dict[VersionKey, dict[str, int]] = {}
        self.pods: dict[str, Pod] = {}
        self.wires: list[Wire] = []
        self.cut: set[frozenset[str]] = set()  # pairs that cannot reach one another
        self.dead: list[tuple[Pod, str]] = []  # who has yet to learn that whose process has ended
        self._numbers = itertools.count(1)
        self._reader = Reader()

    def next_number(self) -> int:
        return next(self._numbers)

    def add_pod(self, *, learns: bool = True, workers: int = 2) -> Pod:
        pod = Pod(f"p{self.next_number()}", self)
        self.pods[pod.name] = pod
        for _ in range(workers):
            pod.add_worker()
        if learns:
            pod.learn()
        return pod

    # Links.

    def wire_between(self, one: Pod, other: Pod) -> Wire | None:
        return next((wire for wire in self.wires if set(wire.ends) == {one, other}), None)

    def can_connect(self, one: Pod, other: Pod) -> bool:
        return (
            one is not other
            and self.wire_between(one, other) is None
            and not one.frozen
            and not other.frozen
            and frozenset((one.name, other.name)) not in self.cut
        )

    def connect(self, one: Pod, other: Pod) -> None:
        """Make a link: up at once where it was dialled; at the other end with the first message."""
        wire = Wire((one, other), {one.name: False, other.name: False}, {one.name: deque(), other.name: deque()})
        self.wires.append(wire)
        wire.under_way[other.name].append(b"")  # a heartbeat
        self._rise(wire, one)

    def _rise(self, wire: Wire, pod: Pod) -> None:
        peer = wire.other(pod)
        wire.up[pod.name] = True
        pod.wires[peer.name] = wire
        pod.absent.pop(peer.name, None)
        pod.peering.peer_up(peer.name, peer.incarnation)

    def deliver(self, wire: Wire, pod: Pod) -> None:
        """A pod hears the next message of a link, unless that broke before it was up."""
        if wire.broken and not wire.up[pod.name]:
            wire.under_way[pod.name].clear()
            return
        payload = wire.under_way[pod.name].popleft()
        if not wire.up[pod.name]:
            self._rise(wire, pod)
        if payload and (message := self._reader.read(payload)) is not None:
            pod.peering.peer_said(wire.other(pod).name, message)

    def notice(self, wire: Wire, pod: Pod) -> None:
        """A pod notices that a link is broken, after all that came over it."""
        peer = wire.other(pod).name
        while wire.under_way[pod.name] and wire.up[pod.name]:
            self.deliver(wire, pod)
        was_up, wire.up[pod.name] = wire.up[pod.name], False
        if was_up:
            del pod.wires[peer]
            pod.absent[peer] = self.now
            pod.peering.peer_down(peer, certain=False)
        self.forget_if_done(wire)

    def forget_if_done(self, wire: Wire) -> None:
        if wire.broken and not any(wire.up[pod.name] and pod.name in self.pods for pod in wire.ends):
            self.wires.remove(wire)

    def not_reached(self, pod: Pod, peer: Pod) -> None:
        """Somebody who should be there cannot be dialled."""
        if peer.name not in pod.wires and peer.name not in pod.absent:
            pod.absent[peer.name] = self.now
            pod.peering.peer_down(peer.name, certain=False)

    # Ends.

    def kill(self, pod: Pod) -> None:
        """All processes of a pod end."""
        del self.pods[pod.name]
        for wire in [wire for wire in self.wires if pod in wire.ends]:
            wire.snap(0)
            self.forget_if_done(wire)
        self.dead = [(other, name) for other, name in self.dead if other is not pod]
        self.dead += [(other, pod.name) for other in self.pods.values()]

    def learn_of_death(self, pod: Pod, gone: str) -> None:
        """The port of the dead refuses, which a pod finds when it has noticed that the link is down."""
        self.dead.remove((pod, gone))
        for wire in [wire for wire in self.wires if pod in wire.ends and gone in (end.name for end in wire.ends)]:
            self.notice(wire, pod)
        pod.absent.pop(gone, None)
        pod.peering.peer_certainly_gone(gone)

    # Time.

    def wait(self, seconds: float = TICK_SECONDS) -> None:
        self.now += seconds
        for pod in self.pods.values():
            if not pod.frozen:
                pod.peering.tick()

    # What is so.

    def workers(self) -> list[Worker]:
        return [worker for pod in self.pods.values() for worker in pod.workers.values()]

    def in_flight(self) -> Counter[str]:
        return Counter(running.lease.id for worker in self.workers() for running in worker.running)

    def over(self) -> dict[str, int]:
        """Replicas that have more requests than slots."""
        slots = {replica: count for replicas in self.slots.values() for replica, count in replicas.items()}
        return {replica: count for replica, count in self.in_flight().items() if count > slots[replica]}

    def leaks(self) -> int:
        return sum(pod.peering.coordinator.leaks_repaired for pod in self.pods.values())

    def is_silent(self) -> bool:
        """Whether nothing is under way."""
        return not any(worker.up or worker.down for worker in self.awake()) and not any(
            wire.under_way[pod.name] for wire in self.wires for pod in wire.ends if self.hears(pod)
        )

    def hears(self, pod: Pod) -> bool:
        return pod.name in self.pods and not pod.frozen

    def awake(self) -> list[Worker]:
        return [worker for worker in self.workers() if not worker.pod.frozen]

    def deliver_all(self) -> None:
        """Until nobody has anything to say any more."""
        for _ in range(100_000):
            if self.is_silent():
                return
            for worker in self.awake():
                while worker.up:
                    worker.speak()
                while worker.down:
                    worker.hear()
            for wire in tuple(self.wires):
                for pod in wire.ends:
                    while self.hears(pod) and wire.under_way[pod.name]:
                        self.deliver(wire, pod)
        raise AssertionError("they talk for ever")
