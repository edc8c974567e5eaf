"""A simulation of several pods in one process: their `LedgerDispatcher`s and the lease caches of their workers.

The links deliver messages one by one, break and are made again. The clock is simulated.

It records by itself which requests are in flight at which replica. Channels between a supervisor and its workers and
links between pods keep the order of messages. A link that breaks loses the last messages in transit.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from router.model.services import VersionKey
from router.model.version_replicas import VersionReplicas
from router.peers.ledger_dispatcher import LedgerDispatcher
from router.peers.messages import Message
from router.peers.wire import decode, encode
from router.slots.lease_cache import LeaseCache
from router.slots.messages import HeldSnapshot, ToLedger
from router.slots.replica_leases import ReplicaLeases
from router.workers.messages import LedgerReply, ResyncServices

TICK_SECONDS = 0.1
MAX_ROUNDS = 100_000
HEARTBEAT = b""
FromWorker = tuple[VersionKey, list[ToLedger]] | dict[VersionKey, HeldSnapshot]


@dataclass(eq=False)
class Request:
    """One client's request."""

    waiting_since: float = 0.0
    waiter_number: int = 0


@dataclass(eq=False)
class InFlight:
    """A request in flight."""

    worker: Worker
    key: VersionKey
    replica: ReplicaLeases[str]


class Worker:
    """A worker process: its lease caches, and its channel with the supervisor."""

    def __init__(self, name: str, pod: Pod) -> None:
        self.name = name
        self.pod = pod
        self.caches: dict[VersionKey, LeaseCache[Request, str]] = {}
        self.in_flight: list[InFlight] = []
        self.waiting: list[tuple[VersionKey, Request]] = []
        self.to_supervisor: deque[FromWorker] = deque()
        self.from_supervisor: deque[object] = deque()  # messages, and callables that update the replicas

    @property
    def id(self) -> str:
        """The id that ledgers use."""
        return f"{self.pod.name}/{self.name}"

    @property
    def _now(self) -> float:
        return self.pod.simulation.now

    def set_replicas(self, key: VersionKey, replicas: VersionReplicas) -> None:
        if key not in self.caches:
            seed = self.pod.simulation.next_number()
            cache: LeaseCache[Request, str] = LeaseCache(unlimited=False, now=self._now, rng=random.Random(seed))
            self.caches[key] = cache
            self.to_supervisor.append((key, [cache.register()]))
        self.caches[key].set_replicas({replica.id: replica.id for replica in replicas.replicas}, self._now)
        self.flush(key)

    def flush(self, key: VersionKey) -> None:
        cache = self.caches[key]
        if cache.needs_flush and (messages := cache.flush()):
            self.to_supervisor.append((key, messages))

    def arrive(self, key: VersionKey) -> None:
        cache, request = self.caches[key], Request()
        replica = cache.acquire(self._now)
        if replica is None:
            self.waiting.append((key, request))
            cache.enqueue(request, self._now)
        else:
            self.in_flight.append(InFlight(self, key, replica))
        self.flush(key)

    def end(self, ended: InFlight) -> None:
        self.in_flight.remove(ended)
        if ended.replica.suspect:
            self.caches[ended.key].on_answered(ended.replica)
        waiter = self.caches[ended.key].release(ended.replica, self._now, 0.0)
        if waiter is not None:
            self._on_waiter_started(ended.key, waiter, ended.replica)
        self.flush(ended.key)

    def abandon(self, ended: InFlight) -> None:
        """End a request that the replica may still work on."""
        self.in_flight.remove(ended)
        self.caches[ended.key].abandon(ended.replica, self._now, 0.0, 1.0)
        self.flush(ended.key)

    def end_all(self) -> None:
        for ended in [*self.in_flight]:
            self.end(ended)

    def cancel(self, key: VersionKey, request: Request) -> None:
        self.waiting.remove((key, request))
        self.caches[key].cancel(request, self._now)
        self.flush(key)

    def _on_waiter_started(self, key: VersionKey, request: Request, replica: ReplicaLeases[str]) -> None:
        self.waiting.remove((key, request))
        self.in_flight.append(InFlight(self, key, replica))

    def send_snapshots(self) -> None:
        """Send snapshots of all lease caches, as workers do once a second."""
        for key in self.caches:
            self.flush(key)
        snapshots = {key: snapshot for key, cache in self.caches.items() if (snapshot := cache.held_snapshot())}
        assert len(snapshots) == len(self.caches)
        self.to_supervisor.append(snapshots)

    def receive(self) -> None:
        """Process the next message of the supervisor."""
        message = self.from_supervisor.popleft()
        if isinstance(message, LedgerReply):
            cache = self.caches.get(message.key)
            if cache is not None:
                for waiter, replica in cache.handle(message.message, self._now):
                    self._on_waiter_started(message.key, waiter, replica)
                self.flush(message.key)
        elif isinstance(message, ResyncServices):
            for key, cache in self.caches.items():
                if key[0] in message.services:
                    cache.resync()
                    self.flush(key)
        else:
            assert callable(message)
            message()

    def deliver(self) -> None:
        """Let the supervisor process the next message of this worker."""
        message = self.to_supervisor.popleft()
        if isinstance(message, dict):
            known = {key: snapshot for key, snapshot in message.items() if key in self.pod.versions}
            self.pod.ledger_dispatcher.on_held_snapshots(self.name, known)
        elif message[0] in self.pod.versions:
            self.pod.ledger_dispatcher.on_lease_requests(self.name, *message)


@dataclass(eq=False)
class Link:
    """One connection between two pods."""

    pods: tuple[Pod, Pod]
    is_up: dict[str, bool] = field(default_factory=dict)  # by pod: whether the pod considers the link up
    in_transit: dict[str, deque[bytes]] = field(default_factory=dict)  # by receiving pod
    broken: bool = False

    def other_pod(self, pod: Pod) -> Pod:
        one, other = self.pods
        return other if pod is one else one

    def break_off(self, index: int) -> None:
        """Break the link and lose the last messages in transit."""
        if not self.broken:
            self.broken = True
            for queue in self.in_transit.values():
                for _ in range(index % (len(queue) + 1)):
                    queue.pop()


class Pod:
    """One router pod. It is the `Links` of its `LedgerDispatcher`."""

    def __init__(self, name: str, simulation: FleetSimulation) -> None:
        self.name = name
        self.simulation = simulation
        self.incarnation = f"{simulation.next_number():016x}"
        self.workers: dict[str, Worker] = {}
        self.links: dict[str, Link] = {}  # by peer, those that this pod considers up
        self.absent: dict[str, float] = {}  # by unreachable peer: since when
        self.versions: set[VersionKey] = set()
        self.frozen = False
        self.ledger_dispatcher = LedgerDispatcher(name, self._to_worker, clock=lambda: simulation.now)
        self.ledger_dispatcher.join(self)
        self.ledger_dispatcher.tick()

    def _to_worker(self, name: str, message: object) -> None:
        self.workers[name].from_supervisor.append(message)

    # Links.

    def send(self, peer: str, message: Message) -> None:
        link = self.links.get(peer)
        if link is not None and not link.broken:
            link.in_transit[peer].append(encode(message))

    def broadcast(self, message: Message) -> None:
        for peer in self.links:
            self.send(peer, message)

    def live(self) -> frozenset[str]:
        return frozenset(self.links)

    def unreachable(self) -> Mapping[str, float]:
        return self.absent

    def has_tried_all(self) -> bool:
        return self.simulation.pods.keys() - {self.name} <= self.links.keys() | self.absent.keys()

    # Events.

    def add_worker(self) -> None:
        worker = Worker(f"w{self.simulation.next_number()}", self)
        self.workers[worker.name] = worker
        self.ledger_dispatcher.on_worker_started(worker.name)
        for key in self.versions:
            self._to_worker(worker.name, self._replicas_update(worker, key))

    def _replicas_update(self, worker: Worker, key: VersionKey) -> Callable[[], None]:
        return lambda: worker.set_replicas(key, self.simulation.replicas[key])

    def update_services(self) -> None:
        """Get the current services and replicas from the cluster."""
        self.versions = set(self.simulation.replicas)
        self.ledger_dispatcher.set_versions(self.versions)
        for key in self.versions:
            for worker in self.workers.values():
                worker.from_supervisor.append(self._replicas_update(worker, key))
            self.ledger_dispatcher.set_replicas(key, self.simulation.replicas[key])

    @property
    def is_up_to_date(self) -> bool:
        return self.versions == self.simulation.replicas.keys()

    def crash_worker(self, worker: Worker) -> None:
        """End a worker's process. The supervisor detects this after it has processed the worker's last message."""
        while worker.to_supervisor:
            worker.deliver()
        del self.workers[worker.name]
        self.ledger_dispatcher.on_worker_ended(worker.name)


class FleetSimulation:
    """Pods, the links between them, and the replicas that they share."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.replicas: dict[VersionKey, VersionReplicas] = {}
        self.pods: dict[str, Pod] = {}
        self.links: list[Link] = []
        self.partitioned_pairs: set[frozenset[str]] = set()  # pods that cannot reach each other
        self.undetected_deaths: list[tuple[Pod, str]] = []  # a pod, and a dead pod whose end it has not detected
        self._numbers = itertools.count(1)

    def next_number(self) -> int:
        return next(self._numbers)

    def add_pod(self, *, with_services: bool = True, workers: int = 2) -> Pod:
        pod = Pod(f"p{self.next_number()}", self)
        self.pods[pod.name] = pod
        for _ in range(workers):
            pod.add_worker()
        if with_services:
            pod.update_services()
        return pod

    # Links.

    def link_between(self, one: Pod, other: Pod) -> Link | None:
        return next((link for link in self.links if set(link.pods) == {one, other}), None)

    def can_connect(self, one: Pod, other: Pod) -> bool:
        return (
            one is not other
            and self.link_between(one, other) is None
            and not one.frozen
            and not other.frozen
            and frozenset((one.name, other.name)) not in self.partitioned_pairs
        )

    def connect(self, one: Pod, other: Pod) -> None:
        """Link two pods. The link is up immediately for `one`, which dials, and with the first message for `other`."""
        link = Link((one, other), {one.name: False, other.name: False}, {one.name: deque(), other.name: deque()})
        self.links.append(link)
        link.in_transit[other.name].append(HEARTBEAT)
        self._bring_up(link, one)

    def connect_all(self) -> None:
        for one, other in self.unlinked_pairs():
            if self.can_connect(one, other):
                self.connect(one, other)

    def unlinked_pairs(self) -> list[tuple[Pod, Pod]]:
        pods = self.pods.values()
        return [(one, other) for one in pods for other in pods if self.can_connect(one, other)]

    def _bring_up(self, link: Link, pod: Pod) -> None:
        peer = link.other_pod(pod)
        link.is_up[pod.name] = True
        pod.links[peer.name] = link
        pod.absent.pop(peer.name, None)
        pod.ledger_dispatcher.on_peer_up(peer.name, peer.incarnation)

    def deliver(self, link: Link, pod: Pod) -> None:
        """Let a pod process the next message of a link. Drop it if the link broke before it was up."""
        if link.broken and not link.is_up[pod.name]:
            link.in_transit[pod.name].clear()
            return
        payload = link.in_transit[pod.name].popleft()
        if not link.is_up[pod.name]:
            self._bring_up(link, pod)
        if payload != HEARTBEAT and (message := decode(payload)) is not None:
            pod.ledger_dispatcher.on_peer_message(link.other_pod(pod).name, message)

    def detect_break(self, link: Link, pod: Pod) -> None:
        """Let a pod detect that a link is broken, after it has processed all messages of the link."""
        peer = link.other_pod(pod).name
        while link.in_transit[pod.name] and link.is_up[pod.name]:
            self.deliver(link, pod)
        was_up, link.is_up[pod.name] = link.is_up[pod.name], False
        if was_up:
            del pod.links[peer]
            pod.absent[peer] = self.now
            pod.ledger_dispatcher.on_peer_down(peer, process_ended=False)
        self._remove_if_unused(link)

    def _remove_if_unused(self, link: Link) -> None:
        if link.broken and not any(link.is_up[pod.name] and pod.name in self.pods for pod in link.pods):
            self.links.remove(link)

    def partition(self, one: Pod, other: Pod) -> None:
        """Separate two linked pods, and let both detect that the link is broken."""
        self.partitioned_pairs.add(frozenset((one.name, other.name)))
        link = self.link_between(one, other)
        assert link is not None
        link.break_off(0)
        self.detect_break(link, one)
        self.detect_break(link, other)

    def fail_to_reach(self, pod: Pod, peer: Pod) -> None:
        """Let a pod detect that an expected peer cannot be dialled."""
        if peer.name not in pod.links and peer.name not in pod.absent:
            pod.absent[peer.name] = self.now
            pod.ledger_dispatcher.on_peer_down(peer.name, process_ended=False)

    # Deaths of pods.

    def kill(self, pod: Pod) -> None:
        """End all processes of a pod."""
        del self.pods[pod.name]
        for link in [link for link in self.links if pod in link.pods]:
            link.break_off(0)
            self._remove_if_unused(link)
        self.undetected_deaths = [(other, name) for other, name in self.undetected_deaths if other is not pod]
        self.undetected_deaths += [(other, pod.name) for other in self.pods.values()]

    def detect_death(self, pod: Pod, dead: str) -> None:
        """Let a pod detect that another pod has ended, as its port refuses connections."""
        self.undetected_deaths.remove((pod, dead))
        for link in [link for link in self.links if pod in link.pods and dead in (each.name for each in link.pods)]:
            self.detect_break(link, pod)
        pod.absent.pop(dead, None)
        pod.ledger_dispatcher.on_peer_gone(dead)

    # Time.

    def advance_clock(self, seconds: float = TICK_SECONDS) -> None:
        self.now += seconds
        for pod in self.pods.values():
            if not pod.frozen:
                pod.ledger_dispatcher.tick()

    def run(self, seconds: float) -> None:
        """Advance the clock in ticks, and deliver all messages at each tick."""
        for _ in range(round(seconds / TICK_SECONDS) + 1):
            self.deliver_all()
            self.advance_clock()
        self.deliver_all()

    # Current state.

    def workers(self) -> list[Worker]:
        return [worker for pod in self.pods.values() for worker in pod.workers.values()]

    def running_workers(self) -> list[Worker]:
        return [worker for worker in self.workers() if not worker.pod.frozen]

    def in_flight(self) -> Counter[str]:
        """Requests in flight, by replica."""
        return Counter(each.replica.id for worker in self.workers() for each in worker.in_flight)

    def overloaded_replicas(self) -> dict[str, int]:
        """Replicas that have more requests in flight than slots."""
        slots = {replica.id: version.slots for version in self.replicas.values() for replica in version.replicas}
        return {replica_id: count for replica_id, count in self.in_flight().items() if count > slots[replica_id]}

    def mismatches(self) -> int:
        return sum(pod.ledger_dispatcher.coordinator.mismatches_repaired for pod in self.pods.values())

    # Messages.

    def is_quiet(self) -> bool:
        """True if no message is in transit."""
        return not any(worker.to_supervisor or worker.from_supervisor for worker in self.running_workers()) and not any(
            link.in_transit[pod.name] for link in self.links for pod in link.pods if self.can_receive(pod)
        )

    def can_receive(self, pod: Pod) -> bool:
        return pod.name in self.pods and not pod.frozen

    def deliver_all(self) -> None:
        """Deliver messages until none is in transit."""
        for _ in range(MAX_ROUNDS):
            if self.is_quiet():
                return
            for worker in self.running_workers():
                while worker.to_supervisor:
                    worker.deliver()
                while worker.from_supervisor:
                    worker.receive()
            for link in tuple(self.links):
                for pod in link.pods:
                    while self.can_receive(pod) and link.in_transit[pod.name]:
                        self.deliver(link, pod)
        raise AssertionError("messages never stop")
