"""What a ledger keeps on record of replicas and front-ends, and which replica is next. Decides nothing."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Collection, Sequence

from router.slots.messages import Recall

_UNCONFIRMED = 1024
"""Grants of one front-end that are remembered until it confirms them: more than a second's worth of any but the
busiest, whose next report, or the one after, is compared instead."""


class ReplicaRecord:
    """One replica: its slots and who holds leases of them."""

    __slots__ = ("cordoned", "holders", "id", "listed", "out", "reserved", "slots")

    def __init__(self, replica_id: str) -> None:
        self.id = replica_id
        self.slots = 0
        self.out = 0
        self.holders: dict[str, int] = {}
        self.cordoned = False
        self.reserved = False  # somebody else grants what is free of it
        self.listed = False  # in the set of replicas; others are kept while leases of them are out

    @property
    def is_overdue(self) -> bool:
        """Whether leases that are out should come back."""
        return self.out > (0 if self.cordoned else self.slots)


class FrontEndRecord:
    """One front-end: what it holds, whom it waits with, and what it was told."""

    __slots__ = (
        "avoided", "granted", "granted_place", "granted_upto", "held", "holder", "lost", "recalled", "session",
        "unconfirmed", "wanted_upto", "wants",
    )  # fmt: skip

    def __init__(self, holder: int, session: int) -> None:
        self.holder = holder
        self.session = session
        self.granted = 0  # leases, since its Hello
        self.unconfirmed: deque[str] = deque(maxlen=_UNCONFIRMED)  # the replicas of the last of these
        self.held = 0
        self.wants: OrderedDict[int, int] = OrderedDict()  # number of the waiter -> place in the queue, both rising
        self.wanted_upto = 0
        self.granted_upto = 0  # the number of the last want that was granted,
        self.granted_place = 0  # and its place
        self.avoided: frozenset[str] = frozenset()
        self.recalled = Recall(0, 0)  # what it was told last, less what it gave back since
        self.lost = False

    def grants_after(self, heard: int) -> Sequence[str] | None:
        """The replicas of the grants after the first `heard`, which are confirmed and so forgotten; None where they are
        not remembered."""
        count = self.granted - heard
        if not 0 <= count <= len(self.unconfirmed):
            return None
        while len(self.unconfirmed) > count:
            self.unconfirmed.popleft()
        return self.unconfirmed


class Shelf:
    """Replicas that have a free slot, by how many leases of them are out: the first of the lowest level is next."""

    __slots__ = ("_levels", "_lowest")

    def __init__(self) -> None:
        self._levels: list[OrderedDict[str, ReplicaRecord]] = [OrderedDict()]
        self._lowest = 0  # no level below has anything

    def put(self, replica: ReplicaRecord) -> None:
        """Add a replica; take it off before its `out` changes."""
        while len(self._levels) <= replica.out:
            self._levels.append(OrderedDict())
        self._levels[replica.out][replica.id] = replica
        self._lowest = min(self._lowest, replica.out)

    def take_off(self, replica: ReplicaRecord) -> None:
        """Remove a replica, if it is there."""
        if replica.out < len(self._levels):
            self._levels[replica.out].pop(replica.id, None)

    def least_loaded(self, avoided: Collection[str] = ()) -> ReplicaRecord | None:
        """The replica with the fewest leases out among those not `avoided`; the one that came first of several."""
        levels = self._levels
        while self._lowest < len(levels) and not levels[self._lowest]:
            self._lowest += 1
        for level in range(self._lowest, len(levels)):
            for replica in levels[level].values():
                if replica.id not in avoided:
                    return replica
        return None
