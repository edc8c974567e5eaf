"""The counters of one worker, written by the data plane, and the reports that contain them for the supervisor.

Theory of operation. A worker writes plain ints, floats and dicts: it needs no lock (one event loop), no metric objects
and no clock. `report()` returns the totals of the versions whose counters changed since their last report, because most
of a thousand versions have not changed. The totals are packed, because the supervisor needs them only for a scrape. A
snapshot is made of nested dicts whose leaves are numbers or lists of numbers, so that `totals` can add any two and
orjson can encode them. Each leaf only grows while its worker lives, except those in `GAUGES`, which are dropped when
their worker ends.

Compiled by mypyc, and written once per request: the dicts are `defaultdict(int)`, so that the hot path can write
`counters.responses[status, error_code] += 1` without a call.
"""

import pickle
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Final, NamedTuple, TypedDict

from router.model.services import VersionKey
from router.telemetry.histogram import (
    CONNECT_BOUNDS,
    DURATION_BOUNDS,
    LAG_BOUNDS,
    ROUTE_BOUNDS,
    Histogram,
    HistogramSnapshot,
    histogram_snapshot,
    round_down,
)

NO_VERSION: Final = ""
"""The version name under which a service counts responses sent before a version was chosen, for example a 401."""

GAUGES: Final = ("buffered_bytes", "connections_open", "http2_connections_open", "token_cache_entries")
"""Fields of `GatewaySnapshot` that can decrease."""


class VersionSnapshot(TypedDict):
    """`VersionCounters` as JSON; `responses` is status -> error code -> requests."""

    responses: dict[str, dict[str, int]]
    duration: HistogramSnapshot
    queue_wait: HistogramSnapshot
    route_time: HistogramSnapshot
    first_byte: HistogramSnapshot
    connect: HistogramSnapshot
    connect_failures: dict[str, int]
    queue_timeouts: int
    request_bytes: int
    response_bytes: int
    retry_causes: dict[str, int]
    client_aborts: int
    abandonments: dict[str, int]
    abandoned_timeouts: int
    replica_failures: dict[str, int]
    ejections: dict[str, int]
    collection_dropped: int
    http2_requests: int


class GatewaySnapshot(TypedDict):
    """`GatewayCounters` as JSON; `versions` is service -> version, `auth_failures` service -> reason."""

    versions: dict[str, dict[str, VersionSnapshot]]
    responses: dict[str, dict[str, int]]
    connections_accepted: int
    connections_open: int
    connections_refused: int
    connections_evicted: int
    connections_retired: int
    http2_connections: int
    http2_connections_open: int
    http2_floods: int
    tls_handshakes: int
    tls_sessions_resumed: int
    tls_handshake_failures: int
    accept_pauses: int
    buffered_bytes: int
    buffer_budget_exceeded: int
    parse_errors: int
    auth_failures: dict[str, dict[str, int]]
    loop_lag: HistogramSnapshot
    cpu_seconds: float
    token_cache_entries: int
    token_cache_hits: int
    token_cache_misses: int


class ProcessCounters(NamedTuple):
    """The totals of one worker that do not belong to a version."""

    snapshot: GatewaySnapshot
    """Without versions."""
    route_time: Sequence[int]
    """The bucket counts of `VersionCounters.route_time`, summed over all versions."""


class CounterReport(NamedTuple):
    """Totals since the worker started, so that a lost report loses no count."""

    versions: Mapping[VersionKey, bytes]
    """Packed by `VersionCounters.pack`; only versions whose counters changed since their last report."""
    process: ProcessCounters | None
    """None in all shards except the first."""


class VersionCounters:
    """The counters of one version in one worker.

    An exchange keeps the object that it started with, so that it does not create the counters of a removed version
    again.
    """

    __slots__ = (
        "abandoned_timeouts",
        "abandonments",
        "client_aborts",
        "collection_dropped",
        "connect",
        "connect_failures",
        "duration",
        "ejections",
        "first_byte",
        "http2_requests",
        "last_reported",
        "queue_timeouts",
        "queue_wait",
        "replica_failures",
        "request_bytes",
        "response_bytes",
        "responses",
        "retry_causes",
        "route_time",
    )

    def __init__(self) -> None:
        self.last_reported = b""
        """The packed counters of the last report."""
        self.responses: defaultdict[tuple[int, str], int] = defaultdict(int)
        """Requests by (status, error code); the error code is "" for a replica's own response."""
        self.duration = Histogram(DURATION_BOUNDS)
        """Time from the end of the request's head to the last byte of the response."""
        self.queue_wait = Histogram(DURATION_BOUNDS)
        """Time spent waiting for a slot; 0 if one was free."""
        self.route_time = Histogram(ROUTE_BOUNDS)
        """Latency added by the router: from the end of the head to the first byte sent, without the queue wait."""
        self.first_byte = Histogram(DURATION_BOUNDS)
        """Time from the first byte sent to the replica to the first byte of its response."""
        self.connect = Histogram(CONNECT_BOUNDS)
        """Time from the slot to an open connection, only of requests for which a connection was opened."""
        self.connect_failures: defaultdict[str, int] = defaultdict(int)
        """Connections that could not be opened, by reason: `refused`, `timeout` or `other`."""
        self.queue_timeouts = 0
        """Requests that waited for a slot until `max_request_wait_time`."""
        self.request_bytes = 0
        self.response_bytes = 0
        self.retry_causes: defaultdict[str, int] = defaultdict(int)
        self.client_aborts = 0
        self.abandonments: defaultdict[str, int] = defaultdict(int)
        """Requests that were abandoned at their replica, by handling; see `Abandonment`."""
        self.abandoned_timeouts = 0
        """Abandoned requests whose response did not come within `abandoned_request_timeout_ms`."""
        self.replica_failures: defaultdict[str, int] = defaultdict(int)
        """Attempts that failed after the connection was open, by kind; kinds are a few constants."""
        self.ejections: defaultdict[str, int] = defaultdict(int)
        """Ejections of replicas by this worker, by reason; reasons are a few constants."""
        self.collection_dropped = 0
        """Events of data collection that this worker has dropped because the collector did not take them in time."""
        self.http2_requests = 0
        """Those of `responses` that came by HTTP/2."""

    def count_response(self, status: int, error_code: str) -> None:
        """Count one request; `error_code` is "" for a replica's own response."""
        self.responses[status, error_code] += 1

    def count_retry(self, cause: str) -> None:
        """Count one retry. The cause is `connect` or `stale`."""
        self.retry_causes[cause] += 1

    def pack(self) -> bytes:
        """Return all counters for `unpack`.

        A thousand versions are packed each second and read only for a scrape; a snapshot takes five times as long to
        build, write and read.
        """
        packed = (
            dict(self.responses),
            (self.duration.counts, self.duration.sum),
            (self.queue_wait.counts, self.queue_wait.sum),
            (self.route_time.counts, self.route_time.sum),
            (self.first_byte.counts, self.first_byte.sum),
            (self.connect.counts, self.connect.sum),
            dict(self.connect_failures),
            self.queue_timeouts,
            self.request_bytes,
            self.response_bytes,
            dict(self.retry_causes),
            self.client_aborts,
            dict(self.abandonments),
            self.abandoned_timeouts,
            dict(self.replica_failures),
            dict(self.ejections),
            self.collection_dropped,
            self.http2_requests,
        )
        return pickle.dumps(packed, protocol=5)


def unpack(packed: bytes) -> VersionSnapshot:
    """Return the snapshot of `VersionCounters.pack`, packed by a process of the same installation."""
    responses, duration, queue_wait, route_time, first_byte, connect, *others = pickle.loads(packed)  # noqa: S301
    connect_failures, queue_timeouts, request_bytes, response_bytes, retry_causes, *failures = others
    client_aborts, abandonments, abandoned_timeouts, replica_failures, ejections, *counts = failures
    collection_dropped, http2_requests = counts
    return {
        "responses": _by_status(responses),
        "duration": histogram_snapshot(*duration),
        "queue_wait": histogram_snapshot(*queue_wait),
        "route_time": histogram_snapshot(*route_time),
        "first_byte": histogram_snapshot(*first_byte),
        "connect": histogram_snapshot(*connect),
        "connect_failures": connect_failures,
        "queue_timeouts": queue_timeouts,
        "request_bytes": request_bytes,
        "response_bytes": response_bytes,
        "retry_causes": retry_causes,
        "client_aborts": client_aborts,
        "abandonments": abandonments,
        "abandoned_timeouts": abandoned_timeouts,
        "replica_failures": replica_failures,
        "ejections": ejections,
        "collection_dropped": collection_dropped,
        "http2_requests": http2_requests,
    }


class GatewayCounters:
    """All counters of one worker."""

    __slots__ = (
        "accept_pauses",
        "auth_failures",
        "buffer_budget_exceeded",
        "buffered_bytes",
        "connections_accepted",
        "connections_evicted",
        "connections_open",
        "connections_refused",
        "connections_retired",
        "cpu_seconds",
        "http2_connections",
        "http2_connections_open",
        "http2_floods",
        "loop_lag",
        "parse_errors",
        "responses",
        "tls_handshake_failures",
        "tls_handshakes",
        "tls_sessions_resumed",
        "token_cache_entries",
        "token_cache_hits",
        "token_cache_misses",
        "versions",
    )

    def __init__(self) -> None:
        self.versions: dict[VersionKey, VersionCounters] = {}
        self.responses: defaultdict[tuple[int, str], int] = defaultdict(int)
        """Requests by (status, error code) that matched no service: an unknown name must not become a label."""
        self.connections_accepted = 0
        self.connections_open = 0
        self.connections_refused = 0
        self.connections_evicted = 0  # idle ones, closed at a limit
        self.connections_retired = 0
        self.http2_connections = 0  # among those accepted
        self.http2_connections_open = 0
        self.http2_floods = 0  # connections closed for one, see `http2_connection`
        self.tls_handshakes = 0  # completed
        self.tls_sessions_resumed = 0
        self.tls_handshake_failures = 0
        self.accept_pauses = 0
        self.buffered_bytes = 0
        """Bytes of bodies that are held for slow clients now."""
        self.buffer_budget_exceeded = 0
        self.parse_errors = 0
        self.auth_failures: defaultdict[tuple[str, str], int] = defaultdict(int)
        """Requests by (service, reason). The reasons are those of `auth.keys` and `auth.tokens`."""
        self.loop_lag = Histogram(LAG_BOUNDS)
        """Lag of the event loop, sampled several times a second."""
        self.cpu_seconds = 0.0
        """CPU time of the process at its last report."""
        self.token_cache_entries = 0
        self.token_cache_hits = 0
        self.token_cache_misses = 0

    def version(self, key: VersionKey) -> VersionCounters:
        """Return the counters of a version, created at first use; `(service, NO_VERSION)` before one is chosen."""
        try:
            return self.versions[key]
        except KeyError:
            created = self.versions[key] = VersionCounters()
            return created

    def retain(self, keys: Collection[VersionKey]) -> None:
        """Drop versions and services that are not among `keys`, the complete set."""
        keys = frozenset(keys)
        services = {service for service, _ in keys}
        for key in [key for key in self.versions if not is_retained(key, keys, services)]:
            del self.versions[key]
        for failure in [failure for failure in self.auth_failures if failure[0] not in services]:
            del self.auth_failures[failure]

    def report(self, shard: int = 0, shard_count: int = 1) -> CounterReport:
        """Return the changed versions of one of `shard_count` shards; shard 0 also has the process's counters."""
        versions: dict[VersionKey, bytes] = {}
        for key, counters in tuple(self.versions.items())[shard::shard_count]:
            packed = counters.pack()
            if packed != counters.last_reported:
                versions[key] = counters.last_reported = packed
        if shard:
            return CounterReport(versions, None)
        route_times = [counters.route_time.counts for counters in self.versions.values()]
        route_time = [sum(counts) for counts in zip(*route_times, strict=True)] or [0] * (len(ROUTE_BOUNDS) + 1)
        return CounterReport(versions, ProcessCounters(self.process_snapshot(), route_time))

    def process_snapshot(self) -> GatewaySnapshot:
        """Return all counters except those of versions, as a copy that can be encoded as JSON."""
        failures: dict[str, dict[str, int]] = {}
        for (service, reason), count in self.auth_failures.items():
            failures.setdefault(service, {})[reason] = count
        return {
            "versions": {},
            "responses": _by_status(self.responses),
            "connections_accepted": self.connections_accepted,
            "connections_open": self.connections_open,
            "connections_refused": self.connections_refused,
            "connections_evicted": self.connections_evicted,
            "connections_retired": self.connections_retired,
            "http2_connections": self.http2_connections,
            "http2_connections_open": self.http2_connections_open,
            "http2_floods": self.http2_floods,
            "tls_handshakes": self.tls_handshakes,
            "tls_sessions_resumed": self.tls_sessions_resumed,
            "tls_handshake_failures": self.tls_handshake_failures,
            "accept_pauses": self.accept_pauses,
            "buffered_bytes": self.buffered_bytes,
            "buffer_budget_exceeded": self.buffer_budget_exceeded,
            "parse_errors": self.parse_errors,
            "auth_failures": failures,
            "loop_lag": self.loop_lag.snapshot(),
            "cpu_seconds": round_down(self.cpu_seconds),
            "token_cache_entries": self.token_cache_entries,
            "token_cache_hits": self.token_cache_hits,
            "token_cache_misses": self.token_cache_misses,
        }


def is_retained(key: VersionKey, keys: Collection[VersionKey], services: set[str]) -> bool:
    """Return True if the counters of `key` are kept. `keys` and `services` are all that are configured."""
    service, version = key
    return key in keys or (version == NO_VERSION and service in services)


def _by_status(responses: dict[tuple[int, str], int]) -> dict[str, dict[str, int]]:
    by_status: dict[str, dict[str, int]] = {}
    for (status, error_code), count in responses.items():
        by_status.setdefault(str(status), {})[error_code] = count
    return by_status
