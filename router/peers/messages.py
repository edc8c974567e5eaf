"""What peers say to each other: the messages themselves, as facts without any encoding (`wire`).

`Services` carries keys: no message is ever to be logged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from router.auth.issuers import Issuer
from router.scaling import demand
from router.scaling.load import Load
from router.services import Replica, Service, VersionKey
from router.slots import messages as slots


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """I live."""


@dataclass(frozen=True, slots=True)
class Goodbye:
    """My process ends now, and all that its front-ends hold is free."""


@dataclass(frozen=True, slots=True)
class Leaving:
    """My process is about to end: I own no service any more. My front-ends finish what they have."""


@dataclass(frozen=True, slots=True)
class Reaches:
    """My pod is linked with these. Said to each peer at first, and when it changes."""

    peers: frozenset[str]


@dataclass(frozen=True, slots=True)
class ToLedger:
    """A front-end of mine says this to the ledger of a version, which is yours by my view."""

    front_end: str
    key: VersionKey
    messages: tuple[slots.ToLedger, ...]


@dataclass(frozen=True, slots=True)
class ToHolder:
    """My ledger of a version says this to a front-end of yours."""

    front_end: str
    key: VersionKey
    messages: tuple[slots.ToHolder, ...]


@dataclass(frozen=True, slots=True)
class Leases:
    """A front-end of mine holds this of versions that are yours by my view. Said again and again."""

    front_end: str
    holds: Mapping[VersionKey, slots.Holds]


@dataclass(frozen=True, slots=True)
class FrontEndGone:
    """The process of a front-end of mine has ended."""

    front_end: str


@dataclass(frozen=True, slots=True)
class Told:
    """I have told you everything that my front-ends hold of this service; by my view you own it."""

    service: str


@dataclass(frozen=True, slots=True)
class Forget:
    """You no longer own this service by my view; forget what I told."""

    service: str


@dataclass(frozen=True, slots=True)
class Demand:
    """What my front-ends saw since my last report, and what they have now."""

    reports: Mapping[VersionKey, demand.Demand]
    busy: Mapping[str, int]
    """Requests in flight by replica."""
    waiting: Mapping[VersionKey, int]
    closed: frozenset[str] = frozenset()
    """Replicas at which no front-end of mine begins another request, so that what `busy` says of them is final."""


@dataclass(frozen=True, slots=True)
class Felt:
    """What my pod felt of its load since my last report."""

    load: Load


@dataclass(frozen=True, slots=True)
class PodSize:
    """I lead: each pod of the router is to have so many CPUs, and be ready only then. 0: those that it comes with."""

    cpus: float


@dataclass(frozen=True, slots=True)
class Services:
    """The complete set of services, with their keys. For a router that has no cluster of its own."""

    services: Mapping[str, Service] = field(repr=False)


@dataclass(frozen=True, slots=True)
class TokenIssuers:
    """The complete set of token issuers beside the routers themselves. For a router that has no file of its own."""

    issuers: Mapping[str, Issuer]


@dataclass(frozen=True, slots=True)
class Replicas:
    """The complete set of a version's replicas. For a router that has no cluster of its own."""

    key: VersionKey
    replicas: tuple[Replica, ...]
    cordoned: frozenset[str]


@dataclass(frozen=True, slots=True)
class Cordons:
    """I lead: all replicas that get no new request, by version. `term` grows with each other leader."""

    term: int
    cordoned: Mapping[VersionKey, frozenset[str]]


@dataclass(frozen=True, slots=True)
class Explain:
    """What became of the request of this id? The question's number comes back with the answer."""

    question: int
    request_id: str


@dataclass(frozen=True, slots=True)
class Explained:
    """All that my pod knows of the request that was asked for, as JSON has it; None if no worker remembers it."""

    question: int
    explanation: Mapping[str, Any] | None


Message = (
    Heartbeat | Goodbye | Leaving | Reaches | ToLedger | ToHolder | Leases | FrontEndGone | Told | Forget | Demand
    | Felt | PodSize | Services | TokenIssuers | Replicas | Cordons | Explain | Explained
)  # fmt: skip
