"""A simulation of the slots of one version: workers, one ledger, and connections that deliver messages one by one.

It records by itself which requests are in flight at which replica, which wait, and for how long. Lease caches and the
ledger are used only through their public methods.
"""

import contextlib
import random
from collections import Counter, deque
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field

from router.model.usage import UsageTotals
from router.slots.lease_cache import LeaseCache
from router.slots.ledger import Outbox, VersionLedger
from router.slots.messages import Grant, HeldSnapshot, Register, Registered, Return, ToLeaseCache, ToLedger
from router.slots.replica_leases import ReplicaLeases
from tests.slots.replicas import ready

MAX_DELIVERIES = 10_000


@dataclass(eq=False)
class Request:
    """One client's request."""

    number: int  # in order of arrival, over all workers
    arrived_at: float
    waited: float = 0.0  # before it arrived
    counts_as_queued: bool = True  # False: it has waited while no replica could get a request
    waiting_since: float = 0.0
    waiter_number: int = 0  # set by the lease cache, like `waiting_since`


@dataclass(eq=False)
class InFlight:
    """A request in flight."""

    request: Request
    replica: ReplicaLeases[str]
    since: float


@dataclass(eq=False)
class Worker:
    """A worker, its connection to the ledger, and its requests."""

    name: str
    cache: LeaseCache[Request, str]
    connected: bool = False
    registered: bool = False  # in the ledger
    to_ledger: deque[list[ToLedger] | HeldSnapshot] = field(default_factory=deque)
    to_cache: deque[ToLeaseCache] = field(default_factory=deque)
    pending_register: Register | None = None  # the last one sent, until its reply is received
    in_flight: list[InFlight] = field(default_factory=list)
    waiting: list[Request] = field(default_factory=list)
    replica_ids: tuple[str, ...] = ()  # as the lease cache has them, maybe outdated
    suspended: dict[str, ReplicaLeases[str]] = field(default_factory=dict)
    busy_seconds: float = 0.0
    queued_seconds: float = 0.0
    service_seconds: float = 0.0
    arrivals: int = 0
    completed: int = 0

    def update_queue(self) -> None:
        """To be called when a request has arrived or replicas have changed."""
        if not set(self.replica_ids) - self.suspended.keys():
            for request in self.waiting:
                request.counts_as_queued = False

    def grants_in_transit(self) -> Counter[str]:
        """Return the grants that the cache will receive and use.

        The cache ignores all messages until it receives the reply to its last `Register`.
        """
        messages = list(self.to_cache)
        if self.pending_register is not None:
            reply = Registered(self.pending_register.cache_id, self.pending_register.session)
            messages = messages[messages.index(reply) :] if reply in messages else []
        return Counter(message.replica for message in messages if isinstance(message, Grant))

    def returns_in_transit(self) -> Counter[str]:
        """Return the leases that the cache has returned and the ledger has not received."""
        returns: Counter[str] = Counter()
        for messages in self.to_ledger:
            for message in [] if isinstance(messages, HeldSnapshot) else messages:
                if isinstance(message, Return):
                    returns[message.replica] += message.count
        return returns

    def leases(self) -> Counter[str]:
        """Return the leases that the cache holds or will receive."""
        return Counter(self.cache.held()) + self.grants_in_transit()


class SlotSimulation:
    """Workers, their ledger, replicas and requests.

    With `immediate`, each change delivers all messages that it causes. Without it, the test delivers them.
    """

    def __init__(self, *, immediate: bool = False) -> None:
        self.immediate = immediate
        self.now = 0.0
        self.ledger = VersionLedger()
        self.ledger_has_replicas = True
        self.ledger_is_open = True
        self.workers: dict[str, Worker] = {}
        self.crashed: list[str] = []  # workers that have crashed, before the ledger is notified
        self.replicas = ready()
        self.started_waiters: list[Request] = []
        self.message_count = 0  # sent by the ledger or received by it
        self.worker_count = 0  # including crashed ones
        self.request_count = 0

    # Workers.

    def add_worker(self) -> Worker:
        self.worker_count += 1
        name = f"w{self.worker_count}"
        cache: LeaseCache[Request, str] = LeaseCache(
            unlimited=False, now=self.now, rng=random.Random(self.worker_count)
        )
        worker = self.workers[name] = Worker(name, cache)
        self.connect(worker)
        self.update_replicas_of(worker)
        return worker

    def connect(self, worker: Worker) -> None:
        worker.connected = True
        worker.pending_register = worker.cache.register()
        worker.to_ledger.append([worker.pending_register])
        self._deliver_if_immediate(worker)

    def disconnect(self, worker: Worker, *, ledger_detects: bool) -> None:
        worker.connected = False
        worker.to_ledger.clear()
        worker.to_cache.clear()
        if ledger_detects:
            self.disconnect_at_ledger(worker)

    def disconnect_at_ledger(self, worker: Worker) -> None:
        """Let the ledger's side detect that the connection is broken."""
        worker.registered = False
        self.send(self.ledger.disconnect_worker(worker.name))

    def crash(self, worker: Worker) -> None:
        del self.workers[worker.name]
        self.crashed.append(worker.name)
        if self.immediate:
            self.remove_crashed_workers()

    def remove_crashed_workers(self) -> None:
        crashed, self.crashed = self.crashed, []
        for name in crashed:
            self.send(self.ledger.remove_worker(name))

    # The ledger.

    def send(self, outbox: Outbox) -> None:
        self.message_count += len(outbox)
        for name, message in outbox:
            worker = self.workers.get(name)
            if worker is not None and worker.connected:
                worker.to_cache.append(message)
        if self.immediate:
            self.deliver_all()

    def move_ledger_to_new_owner(self, *, has_replicas: bool) -> None:
        """Replace the ledger with a closed one without workers. It has replicas if `has_replicas`."""
        self.ledger = VersionLedger()
        self.ledger.stop_granting()
        self.ledger_is_open = False
        self.ledger_has_replicas = False
        self.crashed.clear()
        for worker in self.workers.values():
            worker.registered = False
            self.disconnect(worker, ledger_detects=False)
        if has_replicas:
            self.update_replicas_of_ledger()

    def open_ledger(self) -> None:
        """Open the ledger if all workers have registered."""
        if all(worker.registered for worker in self.workers.values()):
            self.ledger_is_open = True
            self.send(self.ledger.start_granting())

    # Replicas.

    @property
    def replica_ids(self) -> tuple[str, ...]:
        return tuple(replica.id for replica in self.replicas.replicas)

    def slots_of(self, replica_id: str) -> int:
        return self.replicas.slots if replica_id in self.replica_ids else 0

    def set_replicas(self, *ids: str, slots: int | None = None) -> None:
        slots = self.replicas.slots if slots is None else slots
        self.replicas = ready(*ids, slots=slots, cordoned=self.replicas.cordoned.intersection(ids))
        if self.immediate:
            with self._delivery_suspended():  # until the ledger has the new replicas, too
                for worker in self.workers.values():
                    self.update_replicas_of(worker)
        if self.ledger_has_replicas:
            self.update_replicas_of_ledger()

    def set_cordoned(self, cordoned: Collection[str]) -> None:
        self.replicas = ready(*self.replica_ids, slots=self.replicas.slots, cordoned=cordoned)
        if self.ledger_has_replicas:
            self.update_replicas_of_ledger()

    def cordon(self, replica_id: str) -> None:
        self.set_cordoned(self.replicas.cordoned | {replica_id})

    def uncordon(self, replica_id: str) -> None:
        self.set_cordoned(self.replicas.cordoned - {replica_id})

    def update_replicas_of_ledger(self) -> None:
        self.ledger_has_replicas = True
        self.send(self.ledger.set_replicas(self.replicas))

    def update_replicas_of(self, worker: Worker) -> None:
        worker.replica_ids = self.replica_ids
        for removed in [replica_id for replica_id in worker.suspended if replica_id not in worker.replica_ids]:
            del worker.suspended[removed]
        targets = {replica_id: replica_id for replica_id in worker.replica_ids}
        assert not worker.cache.set_replicas(targets, self.now)
        worker.update_queue()
        self._deliver_if_immediate(worker)

    def suspend(self, worker: Worker, replica: ReplicaLeases[str]) -> None:
        worker.cache.suspend(replica, self.now)
        if replica.id in worker.replica_ids:
            worker.suspended[replica.id] = replica
        worker.update_queue()
        self._deliver_if_immediate(worker)

    def resume(self, worker: Worker, replica: ReplicaLeases[str]) -> None:
        if worker.suspended.get(replica.id) is replica:
            del worker.suspended[replica.id]
        self._on_waiters_started(worker, worker.cache.resume(replica, self.now))

    # Requests.

    def arrive(self, worker: Worker, *, waited: float = 0.0) -> Request:
        self.request_count += 1
        request = Request(self.request_count, self.now, waited)
        worker.arrivals += 1
        replica = worker.cache.acquire(self.now)
        if replica is None:
            worker.waiting.append(request)
            worker.cache.enqueue(request, self.now, waited)
            worker.update_queue()
        else:
            assert replica not in worker.suspended.values()
            worker.in_flight.append(InFlight(request, replica, self.now))
        self._deliver_if_immediate(worker)
        return request

    def end(self, worker: Worker, ended: InFlight, *, answered: bool = True) -> None:
        """End a request; `answered`: with a response of the replica."""
        worker.in_flight.remove(ended)
        if answered and ended.replica.suspect:
            worker.cache.on_answered(ended.replica)
        worker.completed += 1
        worker.service_seconds += self.now - ended.since
        waiter = worker.cache.release(ended.replica, self.now, self.now - ended.since)
        self._on_waiters_started(worker, [] if waiter is None else [(waiter, ended.replica)])

    def abandon(self, worker: Worker, ending: InFlight, suspect_seconds: float) -> None:
        worker.in_flight.remove(ending)
        worker.completed += 1
        worker.service_seconds += self.now - ending.since
        worker.cache.abandon(ending.replica, self.now, self.now - ending.since, suspect_seconds)
        self._deliver_if_immediate(worker)

    def tick(self) -> None:
        self.send(self.ledger.tick(self.now))

    def cancel(self, worker: Worker, request: Request) -> None:
        worker.waiting.remove(request)
        worker.cache.cancel(request, self.now)
        self._deliver_if_immediate(worker)

    def expire(self, worker: Worker, seconds: float) -> None:
        since = self.now - seconds
        expected = {request for request in worker.waiting if request.arrived_at - request.waited <= since}
        expired = worker.cache.expire(since, self.now)
        assert (set(expired), len(expired)) == (expected, len(expected))
        worker.waiting = [request for request in worker.waiting if request not in expected]
        if worker.waiting:
            oldest = min(request.arrived_at - request.waited for request in worker.waiting)
            assert worker.cache.queue.waiting_longest_since() == oldest
        self._deliver_if_immediate(worker)

    def _on_waiters_started(self, worker: Worker, started: Iterable[tuple[Request, ReplicaLeases[str]]]) -> None:
        for request, replica in started:
            assert replica not in worker.suspended.values()
            assert request is worker.waiting.pop(0), "the oldest waiter of a worker must start first"
            worker.in_flight.append(InFlight(request, replica, self.now))
            self.started_waiters.append(request)
            self.on_waiter_started(worker, worker.in_flight[-1])
        self._deliver_if_immediate(worker)

    def on_waiter_started(self, worker: Worker, started: InFlight) -> None:
        """Called when a queued request starts. A subclass may override it, for example to schedule the end."""

    # Time and messages.

    def advance_clock(self, seconds: float) -> None:
        self.now += seconds
        for worker in self.workers.values():
            worker.busy_seconds += len(worker.in_flight) * seconds
            if all(request.counts_as_queued for request in worker.waiting):
                worker.queued_seconds += len(worker.waiting) * seconds

    def _deliver_if_immediate(self, worker: Worker) -> None:
        if self.immediate:
            self.flush(worker)
            self.deliver_all()

    def flush(self, worker: Worker) -> None:
        if worker.connected:
            messages = worker.cache.flush()
            assert not worker.cache.needs_flush
            if messages:
                worker.to_ledger.append(messages)
                if isinstance(messages[0], Register):
                    worker.pending_register = messages[0]
            assert not worker.cache.flush(), "flush must return all messages"

    def send_snapshot(self, worker: Worker) -> None:
        self.flush(worker)
        snapshot = worker.cache.held_snapshot()
        assert snapshot is not None
        worker.to_ledger.append(snapshot)

    def deliver_to_ledger(self, worker: Worker) -> None:
        messages = worker.to_ledger.popleft()
        if isinstance(messages, HeldSnapshot):
            mismatches, outbox = self.ledger.reconcile(worker.name, messages)
            assert not mismatches, "only a bug leads to a mismatch"
            self.send(outbox)
            return
        self.message_count += len(messages)
        worker.registered = worker.registered or isinstance(messages[0], Register)
        self.send(self.ledger.handle(worker.name, *messages, now=self.now))

    def deliver_to_cache(self, worker: Worker) -> None:
        message = worker.to_cache.popleft()
        pending = worker.pending_register
        if pending is not None and message == Registered(pending.cache_id, pending.session):
            worker.pending_register = None
        self._on_waiters_started(worker, worker.cache.handle(message, self.now))

    def deliver_all(self) -> None:
        """Deliver messages until none is left."""
        with self._delivery_suspended():
            for _ in range(MAX_DELIVERIES):
                workers = [worker for worker in self.workers.values() if worker.connected]
                for worker in workers:
                    self.flush(worker)
                sender = next((worker for worker in workers if worker.to_ledger), None)
                receiver = next((worker for worker in workers if worker.to_cache), None)
                if receiver is not None:
                    self.deliver_to_cache(receiver)
                elif sender is not None:
                    self.deliver_to_ledger(sender)
                else:
                    return
        raise AssertionError("messages never stop")

    @contextlib.contextmanager
    def _delivery_suspended(self) -> Iterator[None]:
        """Keep the calls inside the block from delivering messages by themselves."""
        immediate, self.immediate = self.immediate, False
        yield
        self.immediate = immediate

    # Current state.

    def in_flight_at(self, replica_id: str) -> int:
        return sum(each.replica.id == replica_id for worker in self.workers.values() for each in worker.in_flight)

    def leases(self) -> Counter[str]:
        return sum((worker.leases() for worker in self.workers.values()), Counter())

    def totals(self, worker: Worker) -> UsageTotals:
        return UsageTotals(
            worker.busy_seconds, worker.queued_seconds, worker.arrivals, 0, worker.completed, worker.service_seconds
        )
