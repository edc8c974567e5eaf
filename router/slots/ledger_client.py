"""Composes the messages from one lease cache to its ledger. Decides nothing about leases.

The lease cache records each change here, and `flush` returns as few messages as possible: one turn of the event loop
may add a hundred waiters and remove half of them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from router.slots.messages import (
    Answered,
    Exclude,
    Grant,
    HeldSnapshot,
    RecallDone,
    Register,
    Registered,
    Reregister,
    Return,
    SlotDemand,
    ToLeaseCache,
    ToLedger,
)


class LedgerClient:
    """A lease cache's side of the connection with its ledger. Waiters are numbered from 1 in order of arrival."""

    __slots__ = (
        "_acked_grants", "_cache_id", "_cancelled", "_excluded", "_is_registered", "_ledger_served_up_to",
        "_out_of_sync", "_recall_done", "_reported_up_to", "_returns", "_session", "_suspicions",
    )  # fmt: skip

    def __init__(self, cache_id: int) -> None:
        self._cache_id = cache_id
        self._session = 0
        self._is_registered = True  # False: a `Register` is in transit, and messages before the reply to it are void
        self._out_of_sync = False
        self._acked_grants = 0  # in this session
        self._reported_up_to = 0  # the last waiter that the ledger was notified of
        self._ledger_served_up_to = 0  # in the ledger's record, all waiters up to this one have left the queue
        self._cancelled: list[int] = []
        self._returns: dict[str, int] = {}
        self._suspicions: list[Return | Answered] = []  # what begins and ends suspicions, in its order
        self._recall_done = 0  # the recall to reply to; 0 for none
        self._excluded: frozenset[str] = frozenset()  # as last sent to the ledger

    # Changes.

    def on_returned(self, replica_id: str, count: int) -> None:
        """Record that leases are returned."""
        self._returns[replica_id] = self._returns.get(replica_id, 0) + count

    def on_abandoned(self, replica_id: str, suspect_seconds: float) -> None:
        """Record that the lease of an abandoned request is returned, and its slot suspect for at most this time."""
        self._suspicions.append(Return(replica_id, 1, suspect_seconds))

    def on_answered(self, replica_id: str) -> None:
        """Record that a replica with suspect slots has completed the only request that it had of this cache."""
        self._suspicions.append(Answered(replica_id))

    def on_recall_done(self, number: int) -> None:
        """Record that the recall of this number must be replied to once the returned leases have been sent."""
        self._recall_done = number

    def on_cancelled(self, number: int) -> None:
        """Record that a waiter has left the queue from any position."""
        self._cancelled.append(number)

    def on_granted(self, number: int) -> None:
        """Record a grant for the waiter `number`: the ledger has no waiters up to this one."""
        self._ledger_served_up_to = max(self._ledger_served_up_to, number)

    def mark_out_of_sync(self) -> None:
        """Record that the two sides differ in a way that requires a `Register`."""
        self._out_of_sync = True

    def accepts(self, message: ToLeaseCache) -> bool:
        """Return True if the lease cache must process a message.

        False for a message that is void, and for one about the registration, which is processed here.
        """
        if not self._is_registered:
            self._is_registered = message == Registered(self._cache_id, self._session)
            return False
        if isinstance(message, Reregister):
            self._out_of_sync = True
        elif isinstance(message, Grant):
            self._acked_grants += 1
        return not isinstance(message, Reregister | Registered)

    # Messages.

    def register(
        self, held: Mapping[str, int], excluded: frozenset[str], waiters: OrderedDict[int, Any], last_number: int
    ) -> Register:
        """Return the message that contains the complete state, and start a new session."""
        self._session += 1
        self._is_registered = False
        self._out_of_sync = False
        self._acked_grants = 0
        self._returns.clear()
        self._suspicions.clear()
        self._recall_done = 0
        self._cancelled.clear()
        self._excluded = excluded
        self._reported_up_to = last_number
        self._ledger_served_up_to = served_up_to = _served_up_to(waiters, last_number)
        left = tuple(number for number in range(served_up_to + 1, last_number + 1) if number not in waiters)
        return Register(self._cache_id, self._session, held, excluded, last_number, served_up_to, left)

    def held_snapshot(self, held: Mapping[str, int]) -> HeldSnapshot:
        """Return the snapshot that the ledger compares with its record. Valid only if nothing is left to flush."""
        return HeldSnapshot(self._cache_id, self._session, self._acked_grants, held)

    @property
    def is_out_of_sync(self) -> bool:
        """True if the next message must be `register`."""
        return self._out_of_sync

    def flush(self, excluded: frozenset[str], waiters: OrderedDict[int, Any], last_number: int) -> list[ToLedger]:
        """Return the messages for all changes since the last call; empty if there are none."""
        messages: list[ToLedger] = []
        if excluded != self._excluded:
            self._excluded = excluded
            messages.append(Exclude(excluded))
        if self._returns:
            messages += [Return(replica_id, count) for replica_id, count in self._returns.items()]
            self._returns.clear()
        if self._suspicions:
            messages += self._suspicions
            self._suspicions = []
        if self._recall_done:
            messages.append(RecallDone(self._recall_done))
            self._recall_done = 0
        served_up_to = _served_up_to(waiters, last_number)
        self._cancelled = cancelled = [number for number in self._cancelled if number > served_up_to]
        if (
            next(reversed(waiters), 0) > self._reported_up_to  # the ledger lacks a waiter
            or min(served_up_to, self._reported_up_to)
            > self._ledger_served_up_to  # it has a waiter that left the queue
            or any(number <= self._reported_up_to for number in cancelled)
        ):
            messages.append(SlotDemand(last_number, served_up_to, tuple(cancelled)))
            self._reported_up_to = last_number
            self._ledger_served_up_to = served_up_to
            cancelled.clear()
        return messages


def _served_up_to(waiters: OrderedDict[int, Any], last_number: int) -> int:
    return next(iter(waiters)) - 1 if waiters else last_number
