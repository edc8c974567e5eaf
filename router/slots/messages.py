"""The messages between lease caches (in workers) and ledgers (in supervisors) about one version's slots.

Plain values without behaviour or encoding. On one connection they arrive in order and at most once. A message that was
sent before a disconnect never arrives after it. After a disconnect, and whenever a lease cache finds a message
inconsistent, the cache sends `Register`. This message contains the complete state of the cache, so both sides are in
sync again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Final


class _Message:
    """Base class. It is pickled as class and values, which is unpickled ten times as fast as a plain dataclass."""

    __slots__ = ()
    __match_args__: ClassVar[tuple[str, ...]]

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:
        return type(self), tuple(getattr(self, name) for name in self.__match_args__)


@dataclass(frozen=True, slots=True)
class SlotDemand(_Message):
    """Lease cache to ledger: waiters `served_up_to` + 1 to `wanted_up_to`, except the `cancelled` ones, want a lease.

    A lease cache numbers its waiters in order of arrival. The message contains the current state, not a change, so any
    number of arrivals and departures in one turn of the event loop takes one message.
    """

    wanted_up_to: int
    served_up_to: int
    cancelled: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Return(_Message):
    """Lease cache to ledger: returns `count` leases of `replica`.

    `suspect_seconds` above 0: the requests of these leases were abandoned, and the replica may still work on them. The
    slots are suspect for at most this time.
    """

    replica: str
    count: int
    suspect_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Answered(_Message):
    """Lease cache to ledger: `replica`, which has suspect slots, has completed a request of this cache, which had no
    other request there."""

    replica: str


@dataclass(frozen=True, slots=True)
class RecallDone(_Message):
    """Lease cache to ledger: the reply to the `Recall` of this number. All leases that it asked for and that were idle
    have been returned."""

    number: int


@dataclass(frozen=True, slots=True)
class Exclude(_Message):
    """Lease cache to ledger: do not grant leases of these replicas to this cache. Replaces the previous `Exclude`."""

    replicas: frozenset[str]


@dataclass(frozen=True, slots=True)
class Register(_Message):
    """Lease cache to ledger: the complete state of the cache. The ledger drops what it recorded of the cache before,
    and the cache ignores everything that the ledger sends before it replies with `Registered`.

    `cache_id` is unique among all lease caches, `session` counts the registrations of this one. The other fields are
    as in `SlotDemand` and `Exclude`.
    """

    cache_id: int
    session: int
    held: Mapping[str, int]  # replica -> leases, busy and idle
    excluded: frozenset[str]
    wanted_up_to: int
    served_up_to: int
    cancelled: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class HeldSnapshot(_Message):
    """Lease cache to ledger, once a second: the leases that it holds, for the ledger to compare with its record.

    Sent only when the cache has nothing else to send, so that only grants can be in transit: those after the first
    `acked_grants` of this session, which `held` does not include.
    """

    cache_id: int
    session: int
    acked_grants: int
    held: Mapping[str, int]  # replica -> leases, busy and idle


@dataclass(frozen=True, slots=True)
class Registered(_Message):
    """Ledger to lease cache: the `Register` of this session was processed; everything sent before is void."""

    cache_id: int
    session: int


@dataclass(frozen=True, slots=True)
class Reregister(_Message):
    """Ledger to lease cache: this cache is unknown, or messages of it were lost. Send `Register`."""


@dataclass(frozen=True, slots=True)
class Grant(_Message):
    """Ledger to lease cache: one lease of `replica`, for the waiter numbered `waiter`."""

    replica: str
    waiter: int


@dataclass(frozen=True, slots=True)
class Recall(_Message):
    """Ledger to lease cache: return `count` idle leases, as that many requests wait at other workers.

    Serve waiters up to number `after_waiter` first, as they are older; then return every lease that is or becomes idle
    until `count` are returned. Replaces the previous recall; a `count` of 0 ends it. A recall with a `number` above 0
    is replied to with `RecallDone`.
    """

    count: int
    after_waiter: int
    number: int = 0


@dataclass(frozen=True, slots=True)
class Revoke(_Message):
    """Ledger to lease cache: return each lease of `replica` as soon as it is idle. A later `Grant` of it ends this.

    The replica is draining or cordoned, or has more leases than slots.
    """

    replica: str


@dataclass(frozen=True, slots=True)
class Suspect(_Message):
    """Ledger to lease cache: `replica` has suspect slots, or has none any more if `suspect` is False.

    While it has, return each lease of it as soon as it is idle, and send `Answered` when it completes a request.
    """

    replica: str
    suspect: bool


ToLedger = SlotDemand | Return | Answered | RecallDone | Exclude | Register
ToLeaseCache = Registered | Reregister | Grant | Recall | Revoke | Suspect

METRIC_LABELS: Final[Mapping[type[ToLedger] | type[ToLeaseCache], str]] = {
    SlotDemand: "wants",
    Return: "return",
    Answered: "answered",
    RecallDone: "recalled",
    Exclude: "avoid",
    Register: "hello",
    Registered: "welcome",
    Reregister: "sayhello",
    Grant: "grant",
    Recall: "recall",
    Revoke: "revoke",
    Suspect: "suspect",
}
"""The values of the label `message` of the metric `slot_messages`, on which dashboards depend."""
