"""The numbers that the data plane writes, and what a worker tells of them.

Theory of operation. A worker writes plain ints, floats and dicts: no locks (one event loop), no metric objects, no
prometheus_client, no clock. A snapshot, which orjson can encode, is nested dicts whose leaves are numbers or lists of
numbers, and `totals` sums such. Every leaf only ever grows while its worker lives, except those in `LEVELS`, which end
with their worker. With many versions most of them have nothing new to tell, and nobody looks at what the others told:
so `report` tells of those that counted something, and packed; whoever wants a snapshot unpacks it.

Written once per request and measured: a method call with `bisect_left` into a list costs about 0.1 us, and nothing
cleverer (closures, `bisect_left` as a default argument, `dict.get`) is faster by more than noise. The dicts are
`defaultdict(int)` so that the hot path may write `counters.answers[status, slug] += 1` with no call at all.
"""

import math
import pickle
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple, TypedDict

from router.services import VersionKey

DURATION_BOUNDS: tuple[float, ...] = (
    *(0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0),
    *(30.0, 60.0, 120.0, 300.0, 600.0),
)
"""Upper bounds in seconds: 1-2-5 steps, then minutes. 0.5, 60 and 300 s are the default queue wait, the default and
the longest scoring timeout, so that what timed out is told exactly from what did not."""

ROUTE_BOUNDS: tuple[float, ...] = (
    *(0.000025, 0.00005, 0.000075, 0.0001, 0.00015, 0.0002, 0.0003, 0.0005, 0.00075, 0.001, 0.002, 0.003, 0.005),
    *(0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)
"""Upper bounds in seconds of what the router itself adds. 3 and 15 ms are the published limits (mean, p99) of the
original router."""

CONNECT_BOUNDS: tuple[float, ...] = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0, 5.0)
"""Upper bounds in seconds of opening a connection within a cluster; 1 s is the default of `connect_timeout_ms`."""

LAG_BOUNDS: tuple[float, ...] = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)
"""Upper bounds in seconds of how late an event loop may be."""

_STEPS_PER_SECOND = 2**20

NO_VERSION = ""
"""The version name under which a service counts what was answered before a version was chosen (a 401, say)."""


LEVELS = ("connections_open", "token_cache_entries")


class HistogramSnapshot(TypedDict):
    """Observations per bucket (not cumulated; the last one is above every bound) and their sum in seconds."""

    counts: list[int]
    sum: float


class VersionSnapshot(TypedDict):
    """`VersionCounters` as JSON; `answers` is status -> slug -> requests."""

    answers: dict[str, dict[str, int]]
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


class GatewaySnapshot(TypedDict):
    """`GatewayCounters` as JSON; `versions` is service -> version, `auth_failures` service -> reason."""

    versions: dict[str, dict[str, VersionSnapshot]]
    answers: dict[str, dict[str, int]]
    connections_accepted: int
    connections_open: int
    connections_refused: int
    tls_handshakes: int
    tls_sessions_resumed: int
    tls_handshake_failures: int
    accept_pauses: int
    parse_errors: int
    auth_failures: dict[str, dict[str, int]]
    loop_lag: HistogramSnapshot
    cpu_seconds: float
    token_cache_entries: int
    token_cache_hits: int
    token_cache_misses: int


class ProcessCounted(NamedTuple):
    """What a worker counted in all."""

    snapshot: GatewaySnapshot
    """Without versions."""
    route_time: Sequence[int]
    """Counts of the histogram of that name, summed over versions."""


class Counted(NamedTuple):
    """What a worker tells of what it has counted: totals, so that nothing is lost with a report that is."""

    versions: Mapping[VersionKey, bytes]
    """As `VersionCounters.pack` has it, for those that have counted something since it was last told."""
    process: ProcessCounted | None
    """Once for each time that all versions had their turn."""


class Histogram:
    """Counts observations by upper bound; a value equal to a bound belongs to that bound, as Prometheus has it."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        """`bounds`: ascending upper bounds in seconds, without +Inf."""
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, seconds: float) -> None:
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.sum += seconds

    def snapshot(self) -> HistogramSnapshot:
        return _histogram(self.counts.copy(), self.sum)


class VersionCounters:
    """What one worker counted of one version.

    An exchange holds on to the object it started with: a version that is removed meanwhile is then not made anew.
    """

    __slots__ = (
        "answers",
        "client_aborts",
        "connect",
        "connect_failures",
        "duration",
        "first_byte",
        "queue_timeouts",
        "queue_wait",
        "request_bytes",
        "response_bytes",
        "retry_causes",
        "route_time",
        "told",
    )

    def __init__(self) -> None:
        self.told = b""
        """As the supervisor knows it."""
        self.answers: defaultdict[tuple[int, str], int] = defaultdict(int)
        """Requests by (status, slug); the slug "" is the replica's own answer."""
        self.duration = Histogram(DURATION_BOUNDS)
        """First byte of the request's head to last byte of the answer."""
        self.queue_wait = Histogram(DURATION_BOUNDS)
        """Time waited for a slot; 0 when one was free at once."""
        self.route_time = Histogram(ROUTE_BOUNDS)
        """What the router adds: head read to first byte sent to the replica, less the queue wait."""
        self.first_byte = Histogram(DURATION_BOUNDS)
        """First byte sent to the replica to first byte of its answer."""
        self.connect = Histogram(CONNECT_BOUNDS)
        """Slot held to connection open, of those that had to be opened."""
        self.connect_failures: defaultdict[str, int] = defaultdict(int)
        """Connections that could not be opened, by one of a few constants."""
        self.queue_timeouts = 0
        """Requests that waited for a slot as long as they may."""
        self.request_bytes = 0
        self.response_bytes = 0
        self.retry_causes: defaultdict[str, int] = defaultdict(int)
        self.client_aborts = 0

    def count(self, status: int, slug: str) -> None:
        """Count one answered request; `slug` is "" for the replica's own answer."""
        self.answers[status, slug] += 1

    def retried(self, cause: str) -> None:
        """Count one request that was sent once more; `cause` is one of a few constants."""
        self.retry_causes[cause] += 1

    @property
    def retries(self) -> int:
        return sum(self.retry_causes.values())

    def pack(self) -> bytes:
        """All of it, for `unpack`. A snapshot takes five times as long to make, write and read, and a thousand versions
        are told each second, but looked at only when somebody scrapes."""
        counted = (
            dict(self.answers),
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
        )
        return pickle.dumps(counted, protocol=5)

    def snapshot(self) -> VersionSnapshot:
        return unpack(self.pack())


def unpack(packed: bytes) -> VersionSnapshot:
    """What `VersionCounters.pack` has packed, in a process of this installation."""
    answers, duration, queue_wait, route_time, first_byte, connect, *others = pickle.loads(packed)  # noqa: S301
    connect_failures, queue_timeouts, request_bytes, response_bytes, retry_causes, client_aborts = others
    return {
        "answers": _by_status(answers),
        "duration": _histogram(*duration),
        "queue_wait": _histogram(*queue_wait),
        "route_time": _histogram(*route_time),
        "first_byte": _histogram(*first_byte),
        "connect": _histogram(*connect),
        "connect_failures": connect_failures,
        "queue_timeouts": queue_timeouts,
        "request_bytes": request_bytes,
        "response_bytes": response_bytes,
        "retry_causes": retry_causes,
        "client_aborts": client_aborts,
    }


class GatewayCounters:
    """What one worker counted in all."""

    __slots__ = (
        "accept_pauses",
        "answers",
        "auth_failures",
        "connections_accepted",
        "connections_open",
        "connections_refused",
        "cpu_seconds",
        "loop_lag",
        "parse_errors",
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
        self.answers: defaultdict[tuple[int, str], int] = defaultdict(int)
        """Requests by (status, slug) that matched no service: an unknown name must not become a label."""
        self.connections_accepted = 0
        self.connections_open = 0
        self.connections_refused = 0
        self.tls_handshakes = 0  # completed
        self.tls_sessions_resumed = 0
        self.tls_handshake_failures = 0
        self.accept_pauses = 0
        self.parse_errors = 0
        self.auth_failures: defaultdict[tuple[str, str], int] = defaultdict(int)
        """Requests by (service, reason); a reason is one of a few constants."""
        self.loop_lag = Histogram(LAG_BOUNDS)
        """How late the event loop was, looked at several times a second."""
        self.cpu_seconds = 0.0
        """CPU time of the process, as of its last report."""
        self.token_cache_entries = 0
        self.token_cache_hits = 0
        self.token_cache_misses = 0

    def version(self, key: VersionKey) -> VersionCounters:
        """The counters of a version, made at first use. `(service, NO_VERSION)` serves before one is chosen."""
        try:
            return self.versions[key]
        except KeyError:
            made = self.versions[key] = VersionCounters()
            return made

    def retain(self, keys: Collection[VersionKey]) -> None:
        """Drop what was counted of versions and services that are not among `keys` (the complete set)."""
        keys = frozenset(keys)
        services = {service for service, _ in keys}
        for key in [key for key in self.versions if not is_kept(key, keys, services)]:
            del self.versions[key]
        for failure in [failure for failure in self.auth_failures if failure[0] not in services]:
            del self.auth_failures[failure]

    def report(self, part: int = 0, parts: int = 1) -> Counted:
        """What is new of one of `parts` parts of the versions; the first part comes with what is not of a version."""
        versions: dict[VersionKey, bytes] = {}
        for key, counters in tuple(self.versions.items())[part::parts]:
            packed = counters.pack()
            if packed != counters.told:
                versions[key] = counters.told = packed
        if part:
            return Counted(versions, None)
        route_times = [counters.route_time.counts for counters in self.versions.values()]
        route_time = [sum(counts) for counts in zip(*route_times, strict=True)] or [0] * (len(ROUTE_BOUNDS) + 1)
        return Counted(versions, ProcessCounted(self._process(), route_time))

    def snapshot(self) -> GatewaySnapshot:
        """All of it as JSON-able data that shares nothing with these counters."""
        snapshot = self._process()
        for (service, version), counters in self.versions.items():
            snapshot["versions"].setdefault(service, {})[version] = counters.snapshot()
        return snapshot

    def _process(self) -> GatewaySnapshot:
        failures: dict[str, dict[str, int]] = {}
        for (service, reason), number in self.auth_failures.items():
            failures.setdefault(service, {})[reason] = number
        return {
            "versions": {},
            "answers": _by_status(self.answers),
            "connections_accepted": self.connections_accepted,
            "connections_open": self.connections_open,
            "connections_refused": self.connections_refused,
            "tls_handshakes": self.tls_handshakes,
            "tls_sessions_resumed": self.tls_sessions_resumed,
            "tls_handshake_failures": self.tls_handshake_failures,
            "accept_pauses": self.accept_pauses,
            "parse_errors": self.parse_errors,
            "auth_failures": failures,
            "loop_lag": self.loop_lag.snapshot(),
            "cpu_seconds": _exact(self.cpu_seconds),
            "token_cache_entries": self.token_cache_entries,
            "token_cache_hits": self.token_cache_hits,
            "token_cache_misses": self.token_cache_misses,
        }


def _histogram(counts: list[int], seconds: float) -> HistogramSnapshot:
    return {"counts": counts, "sum": _exact(seconds)}


def _exact(seconds: float) -> float:
    """Rounded down to a multiple of 2**-20 s. Such numbers, up to 270 years of them, have the same sum in any order.
    Others may not, and a total that is a hair lower once a worker has ended is a counter that went back."""
    return math.floor(seconds * _STEPS_PER_SECOND) / _STEPS_PER_SECOND


def is_kept(key: VersionKey, keys: Collection[VersionKey], services: set[str]) -> bool:
    """Whether what was counted under `key` is kept where `keys` are all versions, of all `services`, that there are."""
    service, version = key
    return key in keys or (version == NO_VERSION and service in services)


def _by_status(answers: dict[tuple[int, str], int]) -> dict[str, dict[str, int]]:
    by_status: dict[str, dict[str, int]] = {}
    for (status, slug), number in answers.items():
        by_status.setdefault(str(status), {})[slug] = number
    return by_status
