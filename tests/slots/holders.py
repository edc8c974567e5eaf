"""Holders for tests: made with the leases they should have, and spoken to in few words."""

import random
from collections.abc import Iterable
from dataclasses import dataclass

from router.slots.holder import HeldReplica, VersionHolder
from router.slots.messages import Grant, Hello, Welcome


@dataclass(eq=False)
class Request:
    name: str = ""
    waiting_since: float = 0.0
    waiter_number: int = 0


Holder = VersionHolder[Request, str]


def holder_with(*leases: str, replicas: Iterable[str] = ("r1", "r2"), now: float = 0.0) -> Holder:
    """A holder that knows these replicas and has these idle leases."""
    holder = Holder(unlimited=False, now=now, rng=random.Random(1))
    holder.set_replicas({replica: f"pool of {replica}" for replica in replicas}, now)
    for replica in leases:
        assert holder.handle(Grant(replica, 0), now) == []
    assert holder.flush() == []
    return holder


def acquire(holder: Holder, now: float = 0.0) -> HeldReplica[str]:
    lease = holder.acquire(now)
    assert lease is not None
    return lease


def enqueue(holder: Holder, *names: str, now: float = 0.0) -> list[Request]:
    requests = [Request(name) for name in names]
    for request in requests:
        holder.enqueue(request, now)
    return requests


def names(started: Iterable[tuple[Request, HeldReplica[str]]]) -> list[tuple[str, str]]:
    return [(request.name, replica.id) for request, replica in started]


def welcome_to(hello: Hello) -> Welcome:
    return Welcome(hello.holder, hello.session)
