"""The access log: one JSON line per request, written beside the hot path and never in its way.

Theory of operation. The hot path asks `wanted()`, and if so appends a tuple (`add`). A timer calls `flush()`, which
encodes and writes in small steps until the output takes no more or its share of the event loop's time is used up;
what is left waits, bounded by `capacity`, and beyond that is dropped and counted. `flush()` says whether something
is left: a pipe holds 64 KiB, about 150 lines, so a busy gateway should then come back within milliseconds.

Writing never waits, whether or not the descriptor is in non-blocking mode (standard output is shared with others,
whose mode is not ours to change): a write of at most PIPE_BUF bytes to a pipe that polls as writable goes through at
once and whole (pipe(7), poll(2)). As each write ends at the end of a line, lines of several workers that share a pipe
do not mix.

Never here: the query of a path, keys, tokens, bodies.
"""

import os
import select
from collections import deque
from random import random
from typing import NamedTuple, Protocol

import orjson

from router.telemetry.log import rfc3339

CAPACITY = 20_000
"""Records that may wait: one second of what one worker can do at all; about 10 MB."""

_LINES_PER_FLUSH = 500
"""A line takes about 2.5 us; little more than 1 ms is what other requests may be kept waiting."""

_TEXT_LIMIT = 128
"""Characters of a text that the client made; a valid `traceparent` has 55."""


class AccessRecord(NamedTuple):
    """What is told of one request. Times are seconds; None where there was no such thing."""

    time: float
    """When the request's head had been read, seconds since the epoch."""
    request_id: str
    client_request_id: str | None
    traceparent: str | None
    service: str | None
    """None when no service matched: what a client asked for is not told."""
    version: str | None
    replica: str | None
    method: str
    status: int
    """0 when the client left before an answer began."""
    error: str | None
    """The slug of the router's own answer; None for the replica's."""
    request_bytes: int
    response_bytes: int
    queue: float | None
    route: float | None
    replica_time: float | None
    duration: float
    attempt: int


class HasFileno(Protocol):
    """What the log is written to: anything with a file descriptor."""

    def fileno(self) -> int: ...


class AccessLog:
    """A sampled, bounded access log on one file descriptor."""

    __slots__ = ("_backlog", "_capacity", "_encoded", "_poll", "_stream", "dropped", "rate")

    def __init__(self, rate: float, stream: HasFileno, *, capacity: int = CAPACITY) -> None:
        """`rate`: share of requests that are logged, 0 (none) to 1 (all). Raises ValueError outside of it."""
        self.set_rate(rate)
        self.dropped = 0
        """Lines lost because the output took no more, or failed."""
        self._stream = stream
        self._capacity = capacity
        self._backlog: deque[AccessRecord] = deque()
        self._encoded = bytearray()
        self._poll = select.poll()
        self._poll.register(stream.fileno(), select.POLLOUT)

    def set_rate(self, rate: float) -> None:
        """Log this share of the requests from now on. Raises ValueError as the constructor does."""
        if not 0 <= rate <= 1:
            raise ValueError(f"access_log: {rate}; allowed: off, on, or a rate from 0 to 1")
        self.rate = rate

    def wanted(self) -> bool:
        """Whether this request is to be logged. Random, so that it follows no rhythm of the traffic."""
        return random() < self.rate

    def add(self, record: AccessRecord) -> None:
        if len(self._backlog) < self._capacity:
            self._backlog.append(record)
        else:
            self.dropped += 1

    def flush(self) -> bool:
        """Write what the output takes without waiting; True when lines are left that another flush may write."""
        left = _LINES_PER_FLUSH
        try:
            while left > 0 and (self._backlog or self._encoded) and self._poll.poll(0):
                left -= self._encode(left)
                self._write()
        except BlockingIOError:
            pass  # another writer of the same pipe was faster; the lines wait
        except OSError:
            self._drop()  # reader gone or disk full: requests go on, the count tells
        return bool(self._backlog or self._encoded)

    def close(self) -> None:
        """Write what the output still takes without waiting; the rest is dropped and counted. The stream stays open."""
        before = -1
        while self.flush() and self._pending() != before:
            before = self._pending()
        self._drop()

    def _encode(self, lines: int) -> int:
        """Fill the next write with up to `lines` lines; the number taken."""
        taken = 0
        while taken < lines and self._backlog and len(self._encoded) < select.PIPE_BUF:
            taken += 1
            try:
                self._encoded += _line(self._backlog.popleft())
            except orjson.JSONEncodeError:
                self.dropped += 1  # a text with a lone surrogate has no JSON form
        return taken

    def _write(self) -> None:
        encoded = self._encoded
        if len(encoded) <= select.PIPE_BUF:
            end = len(encoded)
        else:
            end = encoded.rfind(b"\n", 0, select.PIPE_BUF) + 1 or select.PIPE_BUF
        del encoded[: os.write(self._stream.fileno(), encoded[:end])]

    def _pending(self) -> int:
        return len(self._backlog) + len(self._encoded)

    def _drop(self) -> None:
        self.dropped += len(self._backlog) + self._encoded.count(b"\n")
        self._backlog.clear()
        self._encoded.clear()


def _line(record: AccessRecord) -> bytes:
    (
        time,
        request_id,
        client_request_id,
        traceparent,
        service,
        version,
        replica,
        method,
        status,
        error,
        request_bytes,
        response_bytes,
        queue,
        route,
        replica_time,
        duration,
        attempt,
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
            "method": method,
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
    return None if seconds is None else int(seconds * 1e6 + 0.5) / 1000  # a fifth of what round() takes
