"""What the supervisor and a worker say to each other over their channel. Plain facts, no behaviour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from router.auth.trust import Trust
from router.seen import Seen
from router.services import Replica, Service, VersionKey
from router.settings import RouterSettings
from router.slots.messages import Holds, ToHolder, ToLedger
from router.telemetry.counters import Counted
from router.telemetry.journal import Entry
from router.telemetry.tracing import Traced
from router.tls import Material

EXIT_CUT = 3
"""Exit code of a worker that ended as it was told, but had to cut requests: their time was up."""


class Begin(NamedTuple):
    """Supervisor to worker, first of all."""

    settings: RouterSettings
    human_log: bool


class Services(NamedTuple):
    """Supervisor to worker: the complete set of services."""

    services: Mapping[str, Service]


class Certificate(NamedTuple):
    """Supervisor to worker: show this to clients that connect with TLS from now on."""

    material: Material


class Trusted(NamedTuple):
    """Supervisor to worker: whose tokens are good."""

    trust: Trust


class Replicas(NamedTuple):
    """Supervisor to worker: the complete set of a version's replicas."""

    key: VersionKey
    replicas: tuple[Replica, ...]
    cordoned: frozenset[str]


class Accept(NamedTuple):
    """Supervisor to worker: you know all that there is to serve, accept clients from the sockets of these numbers, and
    from no other. Said again when the numbers change."""

    sockets: frozenset[int]


class FromLedger(NamedTuple):
    """Supervisor to worker: what the ledger of a version says to this worker's holder."""

    key: VersionKey
    message: ToHolder


class Reintroduce(NamedTuple):
    """Supervisor to worker: somebody else owns these services now, whose ledgers do not know you: say `Hello`."""

    services: frozenset[str]


class Explain(NamedTuple):
    """Supervisor to worker: what became of this request?"""

    question: int
    request_id: bytes


class Explained(NamedTuple):
    """Worker to supervisor: this did; None if it is not remembered."""

    question: int
    entry: Entry | None


class Traces(NamedTuple):
    """Worker to supervisor: sampled requests that have ended, and how many there were no room for so far."""

    traced: Sequence[Traced]
    dropped: int


class Logging(NamedTuple):
    """Supervisor to worker: log from this level on, and this share of the requests."""

    level: str
    access_log: float


class PartFrom(NamedTuple):
    """Supervisor to worker: go on, and ask each client that you answer not to come back over the same connection."""


class Drain(NamedTuple):
    """Supervisor to worker: accept no more, finish within so many seconds, end. May come again with less time."""

    seconds: float
    farewell_seconds: float  # for which a client's connection must have been idle before it is closed
    last: bool  # nobody else takes the connections that wait to be accepted


class ToLedgers(NamedTuple):
    """Worker to supervisor: what the holder of a version says to its ledger."""

    key: VersionKey
    messages: Sequence[ToLedger]


Row = tuple[Seen, int, int, Mapping[str, int]]
"""A `VersionReport` on its way. A thousand of them go over the channel five times a second, and a tuple without a name
takes a tenth of the time to write and a quarter to read."""


class VersionReport(NamedTuple):
    """What a worker has of one version, those requests included that began under settings which are no more."""

    seen: Seen  # since the last report
    waiting: int
    idle: int  # leases
    busy: Mapping[str, int]  # requests in flight by replica


class Report(NamedTuple):
    """Worker to supervisor, a few times a second: what changed since the last report."""

    seconds: float  # since the last report
    heard: int  # messages of the supervisor's that had their effect before this was made
    versions: Mapping[VersionKey, Row]
    counted: Counted  # of each version once a second
    access_log_dropped: int
    connections_idle: int = 0  # to replicas, counted once a second
    leases: Mapping[VersionKey, Holds] = MappingProxyType({})  # of some versions: of each once a second


class UnknownKey(NamedTuple):
    """Worker to supervisor: a token names a key of this issuer that is not known; requests wait for an answer."""

    issuer: str


class Ready(NamedTuple):
    """Worker to supervisor: accepting clients."""
