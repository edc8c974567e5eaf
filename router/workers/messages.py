"""The messages between the supervisor and a worker over their channel. Data only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from router.auth.trust import Trust
from router.config.router import RouterSettings
from router.model.replica_health import ReplicaHealthReport
from router.model.services import Service, VersionKey
from router.model.usage import UsageDelta
from router.model.version_replicas import VersionReplicas
from router.net.tls import CertificatePair
from router.slots.messages import HeldSnapshot, ToLeaseCache, ToLedger
from router.telemetry.counters import CounterReport
from router.telemetry.journal import Entry
from router.telemetry.tracing import TracedRequest

EXIT_REQUESTS_ABORTED = 3
"""Exit code of a worker that aborted requests at the end of its drain time."""


# Supervisor to worker.


class Configure(NamedTuple):
    """The settings of the worker. This is always the first message."""

    settings: RouterSettings
    human_log: bool


class ServicesUpdate(NamedTuple):
    """The services that were added or changed, and the names of those that were removed. The first message to a worker
    has all services."""

    changed: Mapping[str, Service]
    removed: frozenset[str] = frozenset()


class ReplicasUpdate(NamedTuple):
    """The complete set of a version's replicas."""

    key: VersionKey
    replicas: VersionReplicas


class CertificateUpdate(NamedTuple):
    """The certificate for new TLS connections of clients."""

    pair: CertificatePair


class TrustUpdate(NamedTuple):
    """The issuers and keys whose tokens are accepted."""

    trust: Trust


class ChangeSettings(NamedTuple):
    """Changed settings of the worker. Only those with the mark `dynamic` differ from those in `Configure`."""

    settings: RouterSettings


class AcceptFrom(NamedTuple):
    """Accept clients from these listeners only. Sent for the first time after the serving state, and again when the
    listeners of the worker change."""

    listeners: frozenset[int]  # index of each among the listeners of its port


class LedgerReply(NamedTuple):
    """A message of a version's ledger to this worker's lease cache."""

    key: VersionKey
    message: ToLeaseCache


class ResyncServices(NamedTuple):
    """Register the leases with the ledgers of these services again: they have a new owner, or the link to the owner was
    interrupted."""

    services: frozenset[str]


class Explain(NamedTuple):
    """Look up a request in the journal. The worker replies with `Explained`."""

    query_id: int
    request_id: bytes


class ListRequests(NamedTuple):
    """List failed and slow requests of a service in the journal. The worker replies with `ListedRequests`."""

    query_id: int
    service: str
    limit: int  # of each list


class CloseKeepAlives(NamedTuple):
    """Keep serving, but send `Connection: close` with each response."""


class RetireClients(NamedTuple):
    """Close this share of the busy client connections, each with its next response: other pods have less load."""

    share: float


class SharesSlots(NamedTuple):
    """Other routers use the slots of the same replicas from now on. They will own the services when this supervisor has
    ended."""


class Drain(NamedTuple):
    """Accept no more connections, finish the requests within `seconds`, then exit. May be sent again with less time."""

    seconds: float
    min_idle_seconds: float  # minimum idle time of a client connection before it is closed
    accept_queued: bool  # True: first accept the connections in the listeners' queues, which no other worker accepts


# Worker to supervisor.


class Ready(NamedTuple):
    """The worker accepts clients now."""


class LeaseRequests(NamedTuple):
    """Messages of a version's lease cache to its ledger."""

    key: VersionKey
    messages: Sequence[ToLedger]


class Explained(NamedTuple):
    """The journal entry of a request; None if the journal has none."""

    query_id: int
    entry: Entry | None


class ListedRequests(NamedTuple):
    """The latest failed requests of a service, newest first, and its slowest ones of the last minutes, slowest
    first."""

    query_id: int
    failed: Sequence[Entry] = ()
    slow: Sequence[Entry] = ()


class Traces(NamedTuple):
    """Sampled requests that have ended."""

    traced: Sequence[TracedRequest]
    # Numbers of sampled requests that the worker has dropped since its start because its buffer was full.
    dropped: int  # for the exporter of traces
    app_insights_dropped: int


class UnknownTokenKey(NamedTuple):
    """A token has the id of an unknown key of this issuer. Requests wait until the keys have been fetched."""

    issuer: str


class VersionReport(NamedTuple):
    """A worker's usage and load of one version. It includes requests that began before the latest change of
    settings."""

    usage: UsageDelta  # since the last report
    waiting: int
    idle_leases: int
    in_flight: Mapping[str, int]  # requests by replica
    abandoned: Mapping[str, int]  # abandoned requests that hold a slot, by replica


class VersionReports(dict[VersionKey, VersionReport]):
    """Version reports, pickled by column.

    A worker may send a thousand reports five times a second. Pickling a thousand takes 1.2 ms as named tuples and
    0.4 ms by column. Unpickling them takes 0.7 ms in both cases (CPython 3.11).
    """

    def __reduce__(self) -> tuple[object, ...]:
        columns = zip(*self.values(), strict=True) if self else ((), (), (), (), ())
        return _reports_from_columns, (list(self), *columns)


def _reports_from_columns(
    keys: Sequence[VersionKey],
    usage: Sequence[UsageDelta],
    waiting: Sequence[int],
    idle_leases: Sequence[int],
    in_flight: Sequence[Mapping[str, int]],
    abandoned: Sequence[Mapping[str, int]],
) -> VersionReports:
    reports = map(VersionReport, usage, waiting, idle_leases, in_flight, abandoned)
    return VersionReports(zip(keys, reports, strict=True))


class WorkerReport(NamedTuple):
    """The changes since the last report. Sent a few times a second."""

    seconds: float  # time since the last report
    ack_seq: int  # number of messages of the supervisor that had taken effect before this report
    versions: Mapping[VersionKey, VersionReport]  # versions with changes
    counters: CounterReport  # has each version once a second
    access_log_dropped: int  # lines since the start of the worker
    log_dropped: int = 0  # the same for the application log
    connections_idle: int = 0  # idle connections to replicas, counted once a second
    streaming: Mapping[str, int] = MappingProxyType({})  # responses in progress by replica, counted once a second
    replica_health: Mapping[VersionKey, Mapping[str, ReplicaHealthReport]] = MappingProxyType({})  # if it has changed
    leases: Mapping[VersionKey, HeldSnapshot] = MappingProxyType({})  # has each version once a second
