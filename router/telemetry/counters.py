"""The numbers that the data plane writes, and their sum over worker processes.

Theory of operation. A worker writes plain ints, floats and dicts: no locks (one event loop), no metric objects, no
prometheus_client, no clock. Whoever reports takes a `snapshot()`, which orjson can encode; whoever sums, sums
snapshots. A snapshot is nested dicts whose leaves are numbers or lists of numbers, so that one recursive addition
(`merge`) covers every field, present and to come. Every leaf only ever grows while its worker lives, except
those in `LEVELS`, which end with their worker.

Written once per request and measured: a method call with `bisect_left` into a list costs about 0.1 us, and nothing
cleverer (closures, `bisect_left` as a default argument, `dict.get`) is faster by more than noise. The dicts are
`defaultdict(int)` so that the hot path may write `counters.answers[status, slug] += 1` with no call at all.
"""

import math
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Collection
from typing import Any, TypedDict, cast

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
        return {"counts": self.counts.copy(), "sum": _exact(self.sum)}


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
    )

    def __init__(self) -> None:
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

    def snapshot(self) -> VersionSnapshot:
        return {
            "answers": _by_status(self.answers),
            "duration": self.duration.snapshot(),
            "queue_wait": self.queue_wait.snapshot(),
            "route_time": self.route_time.snapshot(),
            "first_byte": self.first_byte.snapshot(),
            "connect": self.connect.snapshot(),
            "connect_failures": dict(self.connect_failures),
            "queue_timeouts": self.queue_timeouts,
            "request_bytes": self.request_bytes,
            "response_bytes": self.response_bytes,
            "retry_causes": dict(self.retry_causes),
            "client_aborts": self.client_aborts,
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
        for key in [key for key in self.versions if not _is_kept(key, keys, services)]:
            del self.versions[key]
        for failure in [failure for failure in self.auth_failures if failure[0] not in services]:
            del self.auth_failures[failure]

    def snapshot(self) -> GatewaySnapshot:
        """All of it as JSON-able data that shares nothing with these counters."""
        versions: dict[str, dict[str, VersionSnapshot]] = {}
        for (service, version), counters in self.versions.items():
            versions.setdefault(service, {})[version] = counters.snapshot()
        failures: dict[str, dict[str, int]] = {}
        for (service, reason), number in self.auth_failures.items():
            failures.setdefault(service, {})[reason] = number
        return {
            "versions": versions,
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


def merge(total: GatewaySnapshot, snapshot: GatewaySnapshot) -> None:
    """Add `snapshot` to `total`, in place; `snapshot` stays as it is.

    Raises ValueError when two histograms of one name have different numbers of buckets.
    """
    _add(cast(dict[str, Any], total), cast(dict[str, Any], snapshot))


class Totals:
    """The sum over workers that come and go; it never goes back when one restarts.

    A worker is known by (name, generation), and a later generation of a name has a greater number. Two generations
    may live at once, while the older one drains.
    """

    __slots__ = ("_ended", "_live", "_newest")

    def __init__(self) -> None:
        self._ended = GatewayCounters().snapshot()
        self._live: dict[tuple[str, int], GatewaySnapshot] = {}
        self._newest: dict[str, int] = {}

    def report(self, name: str, generation: int, snapshot: GatewaySnapshot) -> None:
        """Take a worker's latest snapshot, which replaces its former one.

        A snapshot that arrives after its worker `ended` is already counted and changes nothing.
        """
        worker = name, generation
        if worker not in self._live and generation <= self._newest.get(name, generation - 1):
            return
        self._live[worker] = snapshot
        self._newest[name] = max(generation, self._newest.get(name, generation))

    def ended(self, name: str, generation: int) -> None:
        """Keep what an ended worker counted; what it had open is no more. An unknown worker changes nothing."""
        last = self._live.pop((name, generation), None)
        if last is not None:
            merge(self._ended, cast(GatewaySnapshot, {**last, **dict.fromkeys(LEVELS, 0)}))

    def retain(self, keys: Collection[VersionKey]) -> None:
        """Drop versions and services that are not among `keys` (the complete set), as each worker does."""
        keys = frozenset(keys)
        self._ended = _retained(self._ended, keys)
        self._live = {worker: _retained(snapshot, keys) for worker, snapshot in self._live.items()}

    def total(self) -> GatewaySnapshot:
        """The sum over all workers that live or have lived."""
        total = GatewayCounters().snapshot()
        merge(total, self._ended)
        for snapshot in self._live.values():
            merge(total, snapshot)
        return total


def _exact(seconds: float) -> float:
    """Rounded down to a multiple of 2**-20 s. Such numbers, up to 270 years of them, have the same sum in any order.
    Others may not, and a total that is a hair lower once a worker has ended is a counter that went back."""
    return math.floor(seconds * _STEPS_PER_SECOND) / _STEPS_PER_SECOND


def _is_kept(key: VersionKey, keys: Collection[VersionKey], services: set[str]) -> bool:
    service, version = key
    return key in keys or (version == NO_VERSION and service in services)


def _retained(snapshot: GatewaySnapshot, keys: Collection[VersionKey]) -> GatewaySnapshot:
    services = {service for service, _ in keys}
    versions = {
        service: {name: counted for name, counted in by_name.items() if _is_kept((service, name), keys, services)}
        for service, by_name in snapshot["versions"].items()
        if service in services
    }
    failures = {service: by_reason for service, by_reason in snapshot["auth_failures"].items() if service in services}
    return {**snapshot, "versions": versions, "auth_failures": failures}


def _by_status(answers: dict[tuple[int, str], int]) -> dict[str, dict[str, int]]:
    by_status: dict[str, dict[str, int]] = {}
    for (status, slug), number in answers.items():
        by_status.setdefault(str(status), {})[slug] = number
    return by_status


def _add(total: dict[str, Any], more: dict[str, Any]) -> None:
    for name, value in more.items():
        if isinstance(value, dict):
            _add(total.setdefault(name, {}), value)
        elif name not in total:
            total[name] = value  # a list too: none is written to, the next line makes a new one
        elif isinstance(value, list):
            total[name] = [held + added for held, added in zip(total[name], value, strict=True)]
        else:
            total[name] += value
