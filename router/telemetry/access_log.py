"""The access log: one JSON line per request, written outside the hot path and without blocking.

Theory of operation. The hot path calls `should_log()` and, if true, appends a tuple (`add`). A timer calls `flush()`,
which encodes at most `_LINES_PER_FLUSH` lines and passes them to the thread of a `LineWriter`, until that has
`_MAX_PENDING_BYTES`. The other records stay in a backlog of `capacity` records; further ones are dropped and counted.
`flush()` returns True if records remain. A busy gateway should then flush again within milliseconds.

Never logged: the query of a path, keys, tokens, bodies.
"""

from collections import deque
from random import random
from typing import NamedTuple, Protocol

import orjson

from router.telemetry.line_writer import LineWriter
from router.telemetry.log import rfc3339

CAPACITY = 20_000
"""Maximum number of records in the backlog, about 10 MB. A worker cannot serve more requests in a second."""

_LINES_PER_FLUSH = 500
"""Maximum number of lines. A line takes about 2 us to encode, so a flush delays requests by about 1 ms."""

_MAX_PENDING_BYTES = 1 << 18
"""Maximum number of encoded bytes that are not written yet. About 600 lines, more than one flush has."""

_MAX_LINE_BYTES = 4096
"""No line is longer: the values of clients are truncated, and others are short."""

_CLOSE_SECONDS = 1.0
"""Maximum time in `close`."""

_TEXT_LIMIT = 128
"""Maximum number of characters of a value that the client has chosen. A valid `traceparent` has 55."""


class AccessRecord(NamedTuple):
    """The fields of one line. Durations are seconds, or None if the event did not happen."""

    time: float
    """When the request's head was read, in seconds since the epoch."""
    request_id: str
    client_request_id: str | None
    traceparent: str | None
    service: str | None
    """None if no service matched: names that a client made up are not logged."""
    version: str | None
    replica: str | None
    client: str
    """Address of the client, behind trusted proxies the one that they report."""
    method: str
    path: str | None
    """Truncated, without query. None if no service matched."""
    status: int
    """0 if the client left before the response started."""
    error: str | None
    """The error code of the router's own response; None for a replica's response."""
    request_bytes: int
    response_bytes: int
    queue: float | None
    route: float | None
    replica_time: float | None
    duration: float
    attempt: int
    protocol: str = "http/1.1"
    """The client's: `http/1.1` (or 1.0) or `h2`."""


class HasFileno(Protocol):
    """Output of the log: anything with a file descriptor."""

    def fileno(self) -> int:
        """Return the descriptor."""


class AccessLog:
    """A sampled, bounded access log on one file descriptor."""

    __slots__ = ("_backlog", "_capacity", "_lost", "_writer", "rate")

    def __init__(self, rate: float, stream: HasFileno, *, capacity: int = CAPACITY) -> None:
        """`rate` is the share of requests to log, from 0 to 1. Raises ValueError if it is out of range."""
        self.set_rate(rate)
        self._capacity = capacity
        self._backlog: deque[AccessRecord] = deque()
        self._lost = 0  # records that did not reach the writer
        self._writer = LineWriter(stream.fileno(), capacity=capacity * _MAX_LINE_BYTES)

    @property
    def dropped(self) -> int:
        """Lines lost because the output accepted no more, or failed."""
        return self._lost + self._writer.dropped

    def set_rate(self, rate: float) -> None:
        """Log this share of the requests from now on. Raises ValueError if it is out of range."""
        if not 0 <= rate <= 1:
            raise ValueError(f"access_log: {rate}; allowed: off, on, or a rate from 0 to 1")
        self.rate = rate

    def should_log(self) -> bool:
        """True if the next request is to be logged. Random, so that periodic traffic does not bias the sample."""
        return random() < self.rate

    def add(self, record: AccessRecord) -> None:
        """Append a record to the backlog, or drop and count it if the backlog is full."""
        if len(self._backlog) < self._capacity:
            self._backlog.append(record)
        else:
            self._lost += 1

    def flush(self) -> bool:
        """Pass on what the writer accepts. True if records remain that another flush may pass on."""
        if self._backlog and self._writer.pending_bytes < _MAX_PENDING_BYTES:
            self._pass_on(_LINES_PER_FLUSH)
        return bool(self._backlog)

    def close(self) -> None:
        """Write the backlog for at most a second, then drop and count the rest. The stream stays open."""
        self._pass_on(len(self._backlog))
        self._writer.close(_CLOSE_SECONDS)

    def _pass_on(self, limit: int) -> None:
        """Encode up to `limit` records for the writer."""
        lines = []
        for _ in range(min(limit, len(self._backlog))):
            try:
                lines.append(_line(self._backlog.popleft()))
            except orjson.JSONEncodeError:
                self._lost += 1  # a text with a lone surrogate cannot be encoded as JSON
        self._writer.write(*lines)


def _line(record: AccessRecord) -> bytes:
    (
        time,
        request_id,
        client_request_id,
        traceparent,
        service,
        version,
        replica,
        client,
        method,
        path,
        status,
        error,
        request_bytes,
        response_bytes,
        queue,
        route,
        replica_time,
        duration,
        attempt,
        protocol,
    ) = record
    return orjson.dumps(
        {
            "time": rfc3339(time),
            "level": "info",
            "logger": "router.access",
            "message": "request",
            "request_id": request_id,
            "client_request_id": client_request_id and client_request_id[:_TEXT_LIMIT],
            "traceparent": traceparent and traceparent[:_TEXT_LIMIT],
            "service": service,
            "version": version,
            "replica": replica,
            "client": client[:_TEXT_LIMIT],
            "protocol": protocol,
            "method": method,
            "path": path,
            "status": status,
            "error": error,
            "request_bytes": request_bytes,
            "response_bytes": response_bytes,
            "queue_ms": _milliseconds(queue),
            "route_ms": _milliseconds(route),
            "replica_ms": _milliseconds(replica_time),
            "duration_ms": _milliseconds(duration),
            "attempt": attempt,
        },
        option=orjson.OPT_APPEND_NEWLINE,
    )


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else int(seconds * 1e6 + 0.5) / 1000  # five times as fast as round()
