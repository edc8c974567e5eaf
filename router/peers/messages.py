"""The messages between peers as plain data. Their encoding is in `wire`.

In each docstring, "the sender" is the router pod that sends the message. `ServicesUpdate` contains keys, so messages
must never be logged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from router.auth.issuers import Issuer
from router.model.services import Replica, Service, VersionKey
from router.scaling.demand import Demand
from router.scaling.self.load import PodLoad
from router.slots import messages as slots
from router.telemetry.traffic import ServiceTraffic, TimelinePoints


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """The sender is alive. Sent if no other message was sent for a while, so that silence means a failure."""


@dataclass(frozen=True, slots=True)
class Goodbye:
    """The sender's process ends now. All leases of its workers are free."""


@dataclass(frozen=True, slots=True)
class Leaving:
    """The sender drains: it must not own services any more, while its workers finish their requests."""


@dataclass(frozen=True, slots=True)
class ReachabilityReport:
    """The peers with which the sender has a link. Sent to each new peer, and to all peers after a change."""

    peers: frozenset[str]


@dataclass(frozen=True, slots=True)
class ForwardedLeaseRequests:
    """From a worker of the sender, to the ledger of a version that the receiver owns in the sender's view."""

    worker_id: str
    key: VersionKey
    messages: tuple[slots.ToLedger, ...]


@dataclass(frozen=True, slots=True)
class ForwardedLedgerReplies:
    """From a ledger of the sender, to a worker of the receiver."""

    worker_id: str
    key: VersionKey
    messages: tuple[slots.ToLeaseCache, ...]


@dataclass(frozen=True, slots=True)
class HeldSnapshots:
    """The leases that a worker of the sender holds, of versions that the receiver owns in the sender's view.

    Sent once a second, for comparison with the ledgers' records.
    """

    worker_id: str
    snapshots: Mapping[VersionKey, slots.HeldSnapshot]


@dataclass(frozen=True, slots=True)
class WorkerEnded:
    """The process of a worker of the sender has ended."""

    worker_id: str


@dataclass(frozen=True, slots=True)
class OwnerSyncComplete:
    """The receiver owns this service in the sender's view, and all workers of the sender have registered with it.

    The registrations were sent before this message.
    """

    service: str


@dataclass(frozen=True, slots=True)
class OwnershipRevoked:
    """The receiver no longer owns this service in the sender's view.

    It must grant no leases of this service to the sender's workers until they register again.
    """

    service: str


@dataclass(frozen=True, slots=True)
class DemandReport:
    """To the leader: the demand at the sender's workers since its last report, and their current requests."""

    demand: Mapping[VersionKey, Demand]
    in_flight: Mapping[str, int]
    """Requests by replica id."""
    waiting: Mapping[VersionKey, int]
    acked_cordons: frozenset[str] = frozenset()
    """Cordoned replicas to which no worker of the sender sends another request, so that their `in_flight` only
    decreases."""
    streaming: Mapping[str, int] = field(default_factory=dict)
    """Responses in progress by replica id."""
    abandoned: Mapping[str, int] = field(default_factory=dict)
    """Abandoned requests that hold a slot, by replica id; not in flight."""


@dataclass(frozen=True, slots=True)
class LoadReport:
    """The load of the sender since its last report, for self-scaling."""

    load: PodLoad


@dataclass(frozen=True, slots=True)
class PodSize:
    """From the leader: the CPUs that each router pod must have to be ready. 0 means the CPUs with which it starts."""

    cpus: float


@dataclass(frozen=True, slots=True)
class ServicesUpdate:
    """The complete set of services with their keys, for a router that has joined the sender's cluster."""

    services: Mapping[str, Service] = field(repr=False)


@dataclass(frozen=True, slots=True)
class TokenIssuersUpdate:
    """All token issuers except the routers themselves, for a router that has joined the sender's cluster."""

    issuers: Mapping[str, Issuer]


@dataclass(frozen=True, slots=True)
class ReplicasUpdate:
    """The complete set of a version's replicas, for a router that has joined the sender's cluster."""

    key: VersionKey
    replicas: tuple[Replica, ...]
    cordoned: frozenset[str]
    aborted: frozenset[str] = frozenset()
    """Replicas whose drain time is over: the receiver aborts its requests there."""


@dataclass(frozen=True, slots=True)
class CordonsUpdate:
    """From the leader: all cordoned replicas, by version. `term` is the leadership term, which increases with each
    leader."""

    term: int
    cordoned: Mapping[VersionKey, frozenset[str]]
    aborted: Mapping[VersionKey, frozenset[str]] = field(default_factory=dict)
    """Replicas whose drain time is over: the receiver aborts its requests there."""


@dataclass(frozen=True, slots=True)
class ExplainRequest:
    """Asks what happened to the request with this id. The reply has the same `query_id`."""

    query_id: int
    request_id: str


@dataclass(frozen=True, slots=True)
class ExplainReply:
    """The record of the request by the sender's workers, as a JSON object. None if no worker remembers the request."""

    query_id: int
    explanation: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True)
class TrafficReport:
    """The traffic of services at the sender's workers since its last report about them, for the history."""

    services: Mapping[str, ServiceTraffic]


@dataclass(frozen=True, slots=True)
class TimelineSnapshot:
    """From the leader to a new peer: the points of some services before that peer ran; "" means all together."""

    services: Mapping[str, TimelinePoints]


Message = (
    Heartbeat | Goodbye | Leaving | ReachabilityReport | ForwardedLeaseRequests | ForwardedLedgerReplies | HeldSnapshots
    | WorkerEnded | OwnerSyncComplete | OwnershipRevoked | DemandReport | LoadReport | PodSize | ServicesUpdate
    | TokenIssuersUpdate | ReplicasUpdate | CordonsUpdate | ExplainRequest | ExplainReply | TrafficReport
    | TimelineSnapshot
)  # fmt: skip
