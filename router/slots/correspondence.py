"""What the ledger knows of a holder, and what it must still be told. Decides nothing about leases or waiters.

The holder notes here what happens to it, and `flush` says it in as few messages as will do: one turn of the event
loop may bring a hundred waiters and see half of them off again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from router.slots.messages import Avoid, Grant, Hello, Holds, Return, SayHello, ToHolder, ToLedger, Wants, Welcome


class Correspondence:
    """One holder's side of the talk with its ledger. Waiters are numbered from 1, in the order in which they came."""

    __slots__ = (
        "_avoided", "_begin_anew", "_cancelled", "_heard", "_holder", "_known_upto", "_returns", "_session",
        "_told_upto", "_welcomed",
    )  # fmt: skip

    def __init__(self, holder: int) -> None:
        self._holder = holder
        self._session = 0
        self._welcomed = True  # False: a Hello is on its way, and what the ledger says until it has it is void
        self._begin_anew = False
        self._heard = 0  # grants of this session
        self._told_upto = 0  # the last waiter that the ledger was told of
        self._known_upto = 0  # waiters up to here are gone, as far as the ledger knows
        self._cancelled: list[int] = []
        self._returns: dict[str, int] = {}
        self._avoided: frozenset[str] = frozenset()  # as the ledger was told

    # What happens.

    def returned(self, replica_id: str, count: int) -> None:
        """Leases go back."""
        self._returns[replica_id] = self._returns.get(replica_id, 0) + count

    def cancelled(self, number: int) -> None:
        """A waiter has left the queue, maybe from its middle."""
        self._cancelled.append(number)

    def granted(self, want: int) -> None:
        """The ledger has answered a want, and so has none left up to it."""
        self._known_upto = max(self._known_upto, want)

    def misunderstood(self) -> None:
        """The two sides differ in a way that only a `Hello` mends."""
        self._begin_anew = True

    def is_valid(self, message: ToHolder) -> bool:
        """Whether a message was said by a ledger that knows what this side has told it; False also for a `Welcome`."""
        if not self._welcomed:
            self._welcomed = message == Welcome(self._holder, self._session)
            return False
        if isinstance(message, SayHello):
            self._begin_anew = True
        elif isinstance(message, Grant):
            self._heard += 1
        return not isinstance(message, SayHello | Welcome)

    # What is said.

    def hello(
        self, held: Mapping[str, int], avoided: frozenset[str], waiters: OrderedDict[int, Any], last_number: int
    ) -> Hello:
        """Tell everything."""
        self._session += 1
        self._welcomed = False
        self._begin_anew = False
        self._heard = 0
        self._returns.clear()
        self._cancelled.clear()
        self._avoided = avoided
        self._told_upto = last_number
        self._known_upto = served_upto = _served_upto(waiters, last_number)
        gone = tuple(number for number in range(served_upto + 1, last_number + 1) if number not in waiters)
        return Hello(self._holder, self._session, held, avoided, last_number, served_upto, gone)

    def holds(self, held: Mapping[str, int]) -> Holds:
        """Tell once more what the other side should know. To be said when nothing else is left to say."""
        return Holds(self._holder, self._session, self._heard, held)

    @property
    def must_begin_anew(self) -> bool:
        """Whether the next thing to say is `hello`."""
        return self._begin_anew

    def flush(self, avoided: frozenset[str], waiters: OrderedDict[int, Any], last_number: int) -> list[ToLedger]:
        """Tell what has changed; nothing where nothing has."""
        messages: list[ToLedger] = []
        if avoided != self._avoided:
            self._avoided = avoided
            messages.append(Avoid(avoided))
        if self._returns:
            messages += [Return(replica_id, count) for replica_id, count in self._returns.items()]
            self._returns.clear()
        served_upto = _served_upto(waiters, last_number)
        self._cancelled = cancelled = [number for number in self._cancelled if number > served_upto]
        if (
            next(reversed(waiters), 0) > self._told_upto  # waiters it has not heard of
            or min(served_upto, self._told_upto) > self._known_upto  # waiters gone that it still counts
            or any(number <= self._told_upto for number in cancelled)
        ):
            messages.append(Wants(last_number, served_upto, tuple(cancelled)))
            self._told_upto = last_number
            self._known_upto = served_upto
            cancelled.clear()
        return messages


def _served_upto(waiters: OrderedDict[int, Any], last_number: int) -> int:
    return next(iter(waiters)) - 1 if waiters else last_number
