"""A small world for the slots of one version: front-ends, one ledger, and connections that deliver when told to.

It keeps the truth for itself: which requests are in flight where, who waits, and for how long. Nothing here looks
inside a holder or a ledger; both are only spoken to as the rest of the router speaks to them.
"""

import random
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from router.slots.holder import HeldReplica, Totals, VersionHolder
from router.slots.ledger import Outbox, VersionLedger
from router.slots.messages import Grant, Hello, Holds, Return, ToHolder, ToLedger, Welcome


@dataclass(eq=False)
class Request:
    """One client's request."""

    number: int  # in the order of arrival, across front-ends
    came_at: float
    waiting_since: float = 0.0
    waiter_number: int = 0


@dataclass(eq=False)
class Running:
    """A request in flight."""

    request: Request
    lease: HeldReplica[str]
    since: float


@dataclass(eq=False)
class FrontEnd:
    """A front-end with its connection to the ledger, and the truth about its requests."""

    name: str
    holder: VersionHolder[Request, str]
    since: float
    connected: bool = False
    introduced: bool = False  # whether the ledger has heard its Hello, and has not lost it since
    to_ledger: deque[list[ToLedger] | Holds] = field(default_factory=deque)
    to_holder: deque[ToHolder] = field(default_factory=deque)
    hello: Hello | None = None  # the last one that it said
    running: list[Running] = field(default_factory=list)
    waiting: list[Request] = field(default_factory=list)
    known: tuple[str, ...] = ()
    suspended: dict[str, HeldReplica[str]] = field(default_factory=dict)
    busy_seconds: float = 0.0
    queued_seconds: float = 0.0
    service_seconds: float = 0.0
    arrivals: int = 0
    completed: int = 0

    def grants_on_the_way(self) -> Counter[str]:
        """Leases that the holder will have once it has heard all. What precedes an awaited `Welcome` is void."""
        messages = list(self.to_holder)
        if self.hello is not None:
            welcome = Welcome(self.hello.holder, self.hello.session)
            messages = messages[messages.index(welcome) :] if welcome in messages else []
        return Counter(message.replica for message in messages if isinstance(message, Grant))

    def returns_on_the_way(self) -> Counter[str]:
        """Leases that it has given back and the ledger has not heard of."""
        returns: Counter[str] = Counter()
        for message in (message for batch in self.to_ledger if not isinstance(batch, Holds) for message in batch):
            if isinstance(message, Return):
                returns[message.replica] += message.count
        return returns

    def leases(self) -> Counter[str]:
        """Leases that requests of this front-end can use, now or soon."""
        return Counter(self.holder.held()) + self.grants_on_the_way()


class World:
    """Front-ends, their ledger, replicas and requests. `at_once`: whatever is said is heard at once by all."""

    def __init__(self, *, at_once: bool = False) -> None:
        self.at_once = at_once
        self.now = 0.0
        self.ledger = VersionLedger()
        self.ledger_has_replicas = True
        self.ledger_is_open = True
        self.fronts: dict[str, FrontEnd] = {}
        self.gone: list[str] = []  # front-ends that ended, of which the ledger has not heard
        self.slots: dict[str, int] = {}
        self.cordoned: set[str] = set()
        self.started: list[Request] = []  # waiters, in the order in which they were served
        self.messages = 0
        self.made = 0
        self.requests = 0

    # Front-ends.

    def add_front_end(self) -> FrontEnd:
        self.made += 1
        holder: VersionHolder[Request, str] = VersionHolder(unlimited=False, now=self.now, rng=random.Random(self.made))
        front = self.fronts[f"f{self.made}"] = FrontEnd(f"f{self.made}", holder, self.now)
        self.connect(front)
        self.tell_replicas(front)
        return front

    def connect(self, front: FrontEnd) -> None:
        front.connected = True
        front.hello = front.holder.hello()
        front.to_ledger.append([front.hello])
        self._after(front)

    def disconnect(self, front: FrontEnd, *, ledger_notices: bool) -> None:
        front.connected = False
        front.to_ledger.clear()
        front.to_holder.clear()
        if ledger_notices:
            self.lose(front)

    def lose(self, front: FrontEnd) -> None:
        """The ledger's side notices that the connection is broken."""
        front.introduced = False
        self.send(self.ledger.front_end_lost(front.name))

    def crash(self, front: FrontEnd) -> None:
        del self.fronts[front.name]
        self.gone.append(front.name)
        if self.at_once:
            self.tell_who_is_gone()

    def tell_who_is_gone(self) -> None:
        gone, self.gone = self.gone, []
        for name in gone:
            self.send(self.ledger.front_end_gone(name))

    # The ledger.

    def send(self, outbox: Outbox) -> None:
        self.messages += len(outbox)
        for name, message in outbox:
            front = self.fronts.get(name)
            if front is not None and front.connected:
                front.to_holder.append(message)
        if self.at_once:
            self.deliver_all()

    def change_owner(self, *, knows_replicas: bool) -> None:
        """Another ledger takes over, which may know the replicas already, but no front-end."""
        self.ledger = VersionLedger()
        self.ledger.close()
        self.ledger_is_open = False
        self.ledger_has_replicas = False
        self.gone.clear()
        for front in self.fronts.values():
            front.introduced = False
            self.disconnect(front, ledger_notices=False)
        if knows_replicas:
            self.give_ledger_replicas()

    def give_ledger_replicas(self) -> None:
        """A new ledger learns of the replicas."""
        self.ledger_has_replicas = True
        self.send(self.ledger.set_replicas(self.slots, self.cordoned))

    def open_ledger(self) -> None:
        """Once a new ledger has heard all who are there, it may begin."""
        if all(front.introduced for front in self.fronts.values()):
            self.ledger_is_open = True
            self.send(self.ledger.open())

    # Replicas.

    def set_slots(self, slots: dict[str, int]) -> None:
        self.slots = slots
        self.cordoned &= slots.keys()
        at_once, self.at_once = self.at_once, False
        for front in self.fronts.values() if at_once else ():
            self.tell_replicas(front)
        self.at_once = at_once
        if self.ledger_has_replicas:
            self.send(self.ledger.set_replicas(slots))

    def cordon(self, replica: str) -> None:
        self.cordoned.add(replica)
        if self.ledger_has_replicas:
            self.send(self.ledger.cordon([replica]))

    def uncordon(self, replica: str) -> None:
        self.cordoned.discard(replica)
        if self.ledger_has_replicas:
            self.send(self.ledger.uncordon([replica]))

    def tell_replicas(self, front: FrontEnd) -> None:
        """A front-end learns which replicas there are."""
        front.known = tuple(self.slots)
        for gone in [replica for replica in front.suspended if replica not in front.known]:
            del front.suspended[gone]
        assert not front.holder.set_replicas({replica: replica for replica in front.known}, self.now)
        self._after(front)

    def suspend(self, front: FrontEnd, lease: HeldReplica[str]) -> None:
        front.holder.suspend(lease)
        if lease.id in front.known:
            front.suspended[lease.id] = lease
        self._after(front)

    def resume(self, front: FrontEnd, lease: HeldReplica[str]) -> None:
        if front.suspended.get(lease.id) is lease:
            del front.suspended[lease.id]
        self._start(front, front.holder.resume(lease, self.now))

    # Requests.

    def arrive(self, front: FrontEnd) -> Request:
        self.requests += 1
        request = Request(self.requests, self.now)
        front.arrivals += 1
        lease = front.holder.acquire(self.now)
        if lease is None:
            front.waiting.append(request)
            front.holder.enqueue(request, self.now)
        else:
            assert lease not in front.suspended.values()
            front.running.append(Running(request, lease, self.now))
        self._after(front)
        return request

    def end(self, front: FrontEnd, running: Running) -> None:
        front.running.remove(running)
        front.completed += 1
        front.service_seconds += self.now - running.since
        waiter = front.holder.release(running.lease, self.now, self.now - running.since)
        self._start(front, [] if waiter is None else [(waiter, running.lease)])

    def cancel(self, front: FrontEnd, request: Request) -> None:
        front.waiting.remove(request)
        front.holder.cancel(request, self.now)
        self._after(front)

    def expire(self, front: FrontEnd, seconds: float) -> None:
        expected = [request for request in front.waiting if request.came_at <= self.now - seconds]
        assert front.holder.expire(self.now - seconds, self.now) == expected
        front.waiting = front.waiting[len(expected) :]
        self._after(front)

    def _start(self, front: FrontEnd, started: Iterable[tuple[Request, HeldReplica[str]]]) -> None:
        for request, lease in started:
            assert lease not in front.suspended.values()
            assert request is front.waiting.pop(0), "the oldest waiter of a front-end goes first"
            front.running.append(running := Running(request, lease, self.now))
            self.started.append(request)
            self.waiter_started(front, running)
        self._after(front)

    def waiter_started(self, front: FrontEnd, running: Running) -> None:
        """For worlds that act on it."""

    # Time and messages.

    def wait(self, seconds: float) -> None:
        self.now += seconds
        for front in self.fronts.values():
            front.busy_seconds += len(front.running) * seconds
            front.queued_seconds += len(front.waiting) * seconds

    def _after(self, front: FrontEnd) -> None:
        if self.at_once:
            self.flush(front)
            self.deliver_all()

    def flush(self, front: FrontEnd) -> None:
        if front.connected:
            batch = front.holder.flush()
            assert not front.holder.news
            if batch:
                front.to_ledger.append(batch)
                if isinstance(batch[0], Hello):
                    front.hello = batch[0]
            assert not front.holder.flush(), "all was said"

    def report(self, front: FrontEnd) -> None:
        """Say what it holds."""
        self.flush(front)
        holds = front.holder.holds()
        assert holds is not None
        front.to_ledger.append(holds)

    def deliver_to_ledger(self, front: FrontEnd) -> None:
        batch = front.to_ledger.popleft()
        if isinstance(batch, Holds):
            leaks, outbox = self.ledger.reconcile(front.name, batch)
            assert not leaks, "nothing but a fault puts them out of step"
            self.send(outbox)
            return
        self.messages += len(batch)
        front.introduced = front.introduced or isinstance(batch[0], Hello)
        self.send(self.ledger.handle(front.name, *batch))

    def deliver_to_holder(self, front: FrontEnd) -> None:
        message = front.to_holder.popleft()
        if front.hello is not None and message == Welcome(front.hello.holder, front.hello.session):
            front.hello = None
        self._start(front, front.holder.handle(message, self.now))

    def deliver_all(self) -> None:
        """Until nobody has anything to say any more."""
        at_once, self.at_once = self.at_once, False
        for _ in range(10_000):
            fronts = [front for front in self.fronts.values() if front.connected]
            for front in fronts:
                self.flush(front)
            spoke = next((front for front in fronts if front.to_ledger), None)
            heard = next((front for front in fronts if front.to_holder), None)
            if heard is not None:
                self.deliver_to_holder(heard)
            elif spoke is not None:
                self.deliver_to_ledger(spoke)
            else:
                self.at_once = at_once
                return
        raise AssertionError("they talk for ever")

    # What is so.

    def in_flight(self, replica: str) -> int:
        return sum(running.lease.id == replica for front in self.fronts.values() for running in front.running)

    def leases(self) -> Counter[str]:
        return sum((front.leases() for front in self.fronts.values()), Counter())

    def totals(self, front: FrontEnd) -> Totals:
        return Totals(
            front.busy_seconds, front.queued_seconds, front.arrivals, 0, front.completed, front.service_seconds
        )
