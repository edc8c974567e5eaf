"""The words that holders (front-ends) and ledgers (service routers) exchange about one version's slots.

Plain facts, no behaviour and no encoding. While a connection lasts they travel in order and each at most once; nothing
from before a break arrives after it. A break, and whatever a holder cannot make sense of, is mended by `Hello`, which
tells everything a holder has and so puts both sides on one footing again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar


class _Word:
    """Travels between processes as its class and values: a dataclass alone takes ten times as long to unpickle."""

    __slots__ = ()
    __match_args__: ClassVar[tuple[str, ...]]

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:
        return type(self), tuple(getattr(self, name) for name in self.__match_args__)


@dataclass(frozen=True, slots=True)
class Wants(_Word):
    """Holder to ledger: my waiters now reach from `served_upto` + 1 to `wanted_upto`, without the `cancelled` ones.

    Waiters are numbered in the order in which they came to the holder. The message states what is, not what changed,
    so any number of arrivals and departures in one turn of the event loop fold into one message.
    """

    wanted_upto: int
    served_upto: int
    cancelled: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Return(_Word):
    """Holder to ledger: I give back `count` leases of `replica`."""

    replica: str
    count: int


@dataclass(frozen=True, slots=True)
class Avoid(_Word):
    """Holder to ledger: grant me none of these replicas, as I cannot use them. Replaces the ones named before."""

    replicas: frozenset[str]


@dataclass(frozen=True, slots=True)
class Hello(_Word):
    """Holder to ledger: all that I have. Replaces all you knew of me, and what you said to me before is void.

    `holder` is a number that no other holder has; `session` counts its Hellos. The rest is as in `Wants` and `Avoid`.
    """

    holder: int
    session: int
    held: Mapping[str, int]  # replica -> leases, busy and idle
    avoided: frozenset[str]
    wanted_upto: int
    served_upto: int
    cancelled: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Holds(_Word):
    """Holder to ledger, once a second, when all else is said: the leases that I have, so that you can compare.

    `heard` counts the grants of this session that I took in: those after it are on their way, and in `held` they are
    not. Everything that I gave back was said before this, so there is nothing else that can be under way.
    """

    holder: int
    session: int
    heard: int
    held: Mapping[str, int]  # replica -> leases, busy and idle


@dataclass(frozen=True, slots=True)
class Welcome(_Word):
    """Ledger to holder: I have taken in your Hello. Whatever I said before this you must ignore, for I forgot it."""

    holder: int
    session: int


@dataclass(frozen=True, slots=True)
class SayHello(_Word):
    """Ledger to holder: I do not know you, or have missed some of what you said. Begin anew with `Hello`."""


@dataclass(frozen=True, slots=True)
class Grant(_Word):
    """Ledger to holder: one lease of `replica`, in answer to the waiter numbered `want`."""

    replica: str
    want: int


@dataclass(frozen=True, slots=True)
class Recall(_Word):
    """Ledger to holder: `count` requests wait at other front-ends. Replaces the recall sent before; 0 lifts it.

    Serve your own waiters up to number `after` first, as they are older; every other lease that is or becomes idle
    goes back, until `count` have.
    """

    count: int
    after: int


@dataclass(frozen=True, slots=True)
class Revoke(_Word):
    """Ledger to holder: give back each lease of `replica` that you have, as soon as it is idle.

    The replica is on its way out, or more of its leases are out than it has slots. A later `Grant` ends it.
    """

    replica: str


ToLedger = Wants | Return | Avoid | Hello
ToHolder = Welcome | SayHello | Grant | Recall | Revoke
