"""Traces, the worker's part: W3C trace context, which requests are sampled, and what is handed over for spans.

Theory of operation. While traces are off nothing of this is touched: `traceparent` and `tracestate` pass by like any
other header. While they are on, the router takes part in each trace: it goes on with the client's, or begins one, and
tells the replica its own span as the parent. Spans themselves are made elsewhere (`spans`), from what is handed over
here when a request has ended.

Sampling follows the client's decision; a trace that begins here is sampled by the given share of trace ids.

Specification: W3C Trace Context, level 1.
"""

from __future__ import annotations

import random
import re
from typing import NamedTuple

from router.telemetry.journal import Entry

MOST_WAITING = 2000
"""Of one worker, between two reports: more than this a second no one wants to pay for."""

_TRACEPARENT = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_SAMPLED = 1


class TraceContext(NamedTuple):
    """One request's place in its trace. Identifiers are lower-case hexadecimal."""

    trace_id: str
    parent: str
    """The client's span; empty where the trace begins here."""
    server_span: str
    client_span: str
    """What the replica gets as its parent."""
    sampled: bool

    def traceparent(self) -> bytes:
        """What the replica is told."""
        return f"00-{self.trace_id}-{self.client_span}-{'01' if self.sampled else '00'}".encode()


class Traced(NamedTuple):
    """A sampled request that has ended."""

    context: TraceContext
    method: str
    entry: Entry


def parse_traceparent(value: bytes) -> tuple[str, str, bool] | None:
    """Trace id, parent id and whether it is sampled; None for what is not a `traceparent`."""
    found = _TRACEPARENT.fullmatch(value.strip(b" \t"))
    if found is None:
        return None
    version, trace_id, parent, flags, rest = found.groups()
    if version == b"ff" or (version == b"00" and rest is not None):
        return None
    if not int(trace_id, 16) or not int(parent, 16):
        return None
    return trace_id.decode(), parent.decode(), bool(int(flags, 16) & _SAMPLED)


class Tracer:
    """Begins and continues traces, and keeps what has ended until it is taken."""

    def __init__(self, ratio: float, *, rng: random.Random | None = None) -> None:
        """`ratio`: the share of the traces begun here that is sampled, 0 to 1."""
        self._ratio = ratio
        self._random = rng or random.SystemRandom()
        self._ended: list[Traced] = []
        self.dropped = 0
        """Requests of which nobody will see a span."""

    def context(self, traceparent: bytes | None) -> TraceContext:
        """The place of a request that came with this header."""
        known = parse_traceparent(traceparent) if traceparent is not None else None
        if known is not None:
            trace_id, parent, sampled = known
        else:
            number = self._random.getrandbits(128) or 1
            # As OpenTelemetry's TraceIdRatioBased has it, so that all who sample by the same share agree.
            trace_id, parent, sampled = f"{number:032x}", "", number & (2**64 - 1) < self._ratio * 2**64
        return TraceContext(trace_id, parent, self._span(), self._span(), sampled)

    def _span(self) -> str:
        return f"{self._random.getrandbits(64) or 1:016x}"

    def ended(self, traced: Traced) -> None:
        """A sampled request has ended."""
        if len(self._ended) < MOST_WAITING:
            self._ended.append(traced)
        else:
            self.dropped += 1

    def take(self) -> list[Traced]:
        """What has ended since the last call."""
        ended, self._ended = self._ended, []
        return ended
