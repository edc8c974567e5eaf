"""Traces, the worker's part: W3C trace context, sampling, and the sampled requests for the supervisor.

Theory of operation. While traces are off, `traceparent` and `tracestate` are forwarded like any other header, if the
former is valid. While they are on, the router takes part in each trace: it continues the client's trace or starts a new
one, and sends its own span to the replica as the parent. Requests that have ended are kept here (`Tracer.record`) until
the supervisor gets them, which makes the spans (`spans`).

Sampling follows the client's decision. Traces that start here are sampled by a configured ratio.

Specification: W3C Trace Context, level 1.
"""

from __future__ import annotations

import random
import re
from typing import NamedTuple

from router.telemetry.journal import Entry

MAX_PENDING = 2000
"""Maximum number of sampled requests that a worker keeps between two reports. Further ones are dropped and counted."""

# Not version ff, nothing after the flags of version 00, no id of zeros only (section 3.2.2).
_TRACEPARENT = re.compile(
    rb"(?!ff|00-[0-9a-f-]{52}-)[0-9a-f]{2}-((?!0{32})[0-9a-f]{32})-((?!0{16})[0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?"
)
TRACEPARENT = frozenset((b"traceparent",))
TRACE_FIELDS = TRACEPARENT | {b"tracestate"}
_SAMPLED = 1


class TraceContext(NamedTuple):
    """One request's place in its trace. Ids are lower-case hexadecimal."""

    trace_id: str
    parent: str
    """The client's span; empty if the trace starts here."""
    server_span: str
    client_span: str
    """The parent span in the replica's request."""
    sampled: bool

    def traceparent(self) -> bytes:
        """Return the header for the replica."""
        return f"00-{self.trace_id}-{self.client_span}-{'01' if self.sampled else '00'}".encode()


class TracedRequest(NamedTuple):
    """A sampled request that has ended."""

    context: TraceContext
    method: str
    entry: Entry


def is_traceparent(value: bytes) -> bool:
    """Return True if `value` is a valid `traceparent`."""
    return _TRACEPARENT.fullmatch(value.strip(b" \t")) is not None


def parse_traceparent(value: bytes) -> tuple[str, str, bool] | None:
    """Return the trace id, the parent id and the sampled flag; None if `value` is not a valid `traceparent`."""
    match = _TRACEPARENT.fullmatch(value.strip(b" \t"))
    if match is None:
        return None
    trace_id, parent, flags = match.groups()
    return trace_id.decode(), parent.decode(), bool(int(flags, 16) & _SAMPLED)


class Tracer:
    """Starts and continues traces, and keeps the sampled requests that have ended until `drain`."""

    def __init__(self, ratio: float, *, rng: random.Random | None = None) -> None:
        """`ratio` is the share of sampled traces among those that start here, from 0 to 1."""
        self._ratio = ratio
        self._random = rng or random.SystemRandom()
        self._pending: list[TracedRequest] = []
        self.dropped = 0
        """Sampled requests lost because `MAX_PENDING` was reached."""

    def new_context(self, traceparent: bytes | None) -> TraceContext:
        """Return the trace context of a request that arrived with this header."""
        parsed = parse_traceparent(traceparent) if traceparent is not None else None
        if parsed is not None:
            trace_id, parent, sampled = parsed
        else:
            number = self._random.getrandbits(128) or 1
            # The rule of OpenTelemetry's TraceIdRatioBased: all samplers with the same ratio make the same decision.
            trace_id, parent, sampled = f"{number:032x}", "", number & (2**64 - 1) < self._ratio * 2**64
        return TraceContext(trace_id, parent, self._new_span_id(), self._new_span_id(), sampled)

    def _new_span_id(self) -> str:
        return f"{self._random.getrandbits(64) or 1:016x}"

    def record(self, request: TracedRequest) -> None:
        """Keep a sampled request that has ended."""
        if len(self._pending) < MAX_PENDING:
            self._pending.append(request)
        else:
            self.dropped += 1

    def drain(self) -> list[TracedRequest]:
        """Return the requests recorded since the last call."""
        pending, self._pending = self._pending, []
        return pending
