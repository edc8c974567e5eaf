"""Ledgers for tests: made with replicas and front-ends, and what they say taken apart."""

from collections.abc import Iterable, Mapping

from router.slots.ledger import Outbox, VersionLedger
from router.slots.messages import Grant, Hello, ToHolder, Wants

A, B, C = "front-a", "front-b", "front-c"


def hello(
    held: Mapping[str, int] | None = None,
    *,
    wanted_upto: int = 0,
    served_upto: int = 0,
    cancelled: tuple[int, ...] = (),
    avoided: Iterable[str] = (),
    holder: int = 1,
    session: int = 1,
) -> Hello:
    return Hello(holder, session, held or {}, frozenset(avoided), wanted_upto, served_upto, cancelled)


def ledger_with(slots: Mapping[str, int], *front_ends: str) -> VersionLedger:
    ledger = VersionLedger()
    ledger.set_replicas(slots)
    for number, front_end in enumerate(front_ends):
        ledger.handle(front_end, hello(holder=number))
    return ledger


def to(front_end: str, outbox: Outbox) -> list[ToHolder]:
    return [message for name, message in outbox if name == front_end]


def granted(outbox: Outbox) -> list[tuple[str, str]]:
    return [(name, message.replica) for name, message in outbox if isinstance(message, Grant)]


def busy_ledger(slots: int, *front_ends: str) -> VersionLedger:
    """The first front-end holds all slots of one replica."""
    ledger = ledger_with({"r": slots}, *front_ends)
    ledger.handle(front_ends[0], Wants(slots, 0))
    return ledger
