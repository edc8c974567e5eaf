"""The words that holders (front-ends) and ledgers (service routers) exchange about one version's slots.

Plain facts, no behaviour and no encoding. Between one holder and one ledger they travel in order and at most once;
after a break both sides start over with `Hello`, which tells everything a holder holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Wants:
    """Holder to ledger: my waiters now reach from `served_upto` + 1 to `wanted_upto`, without the `cancelled` ones.

    Waiters are numbered in the order in which they came to the holder. The message states what is, not what changed,
    so any number of arrivals and departures in one turn of the event loop fold into one message.
    """

    wanted_upto: int
    served_upto: int
    cancelled: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Return:
    """Holder to ledger: I give back `count` leases of `replica`."""

    replica: str
    count: int


@dataclass(frozen=True, slots=True)
class Hello:
    """Holder to ledger: the leases I hold, per replica, and the waiters I have. Replaces all you knew of me."""

    held: Mapping[str, int]
    wanted_upto: int
    served_upto: int


@dataclass(frozen=True, slots=True)
class Grant:
    """Ledger to holder: one lease of `replica`, in answer to the waiter numbered `want`."""

    replica: str
    want: int


@dataclass(frozen=True, slots=True)
class Recall:
    """Ledger to holder: `count` requests wait at other front-ends. Replaces the recall sent before; 0 lifts it.

    Serve your own waiters up to number `after` first, as they are older; every other lease that is or becomes idle
    goes back, until `count` have.
    """

    count: int
    after: int


@dataclass(frozen=True, slots=True)
class Revoke:
    """Ledger to holder: give back each lease of `replica` as soon as it is idle. The replica is on its way out."""

    replica: str


ToLedger = Wants | Return | Hello
ToHolder = Grant | Recall | Revoke
