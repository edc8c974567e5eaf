"""Traces, the worker's part: W3C trace context, sampling, and the sampled requests for the supervisor.

Theory of operation. A request is not traced while traces are off and its version does not use Application Insights.
Then `traceparent` and `tracestate` are forwarded like any other header, if the former is valid. Otherwise the router
takes part in the trace: it continues the client's trace or starts a new one, and sends its own span to the replica as
the parent. Requests that have ended are kept here (`Tracer.record`) until the supervisor gets them, which makes the
spans (`spans`, `app_insights`).

Sampling of traces follows the client's decision. Traces that start here are sampled by a configured ratio. Application
Insights has a ratio of its own, for all traces: clients with its older libraries never set the sampled flag. The same
traces are sampled as by Microsoft's samplers (`app_insights_score`).

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
    """True if the request is sampled for the exporter of traces."""
    app_insights: bool = False
    """True if the request is sampled for Application Insights."""

    def traceparent(self) -> bytes:
        """Return the header for the replica."""
        flags = "01" if self.sampled or self.app_insights else "00"
        return f"00-{self.trace_id}-{self.client_span}-{flags}".encode()


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


def app_insights_score(trace_id: str) -> float:
    """Return a number from 0 to 1 for a trace. Application Insights samples the trace if it is below the ratio.

    All programs must sample the same traces, so this is Microsoft's function: the hash DJB2 in 32 bits.
    """
    number = 5381
    for character in trace_id:
        number = number * 33 + ord(character) & 0xFFFFFFFF
    if number >= 2**31:
        number = 2**32 - number
    return min(number, 2**31 - 1) / (2**31 - 1)


class Tracer:
    """Starts and continues traces, and keeps the sampled requests that have ended until `drain`."""

    def __init__(
        self, ratio: float | None, *, app_insights_ratio: float = 1.0, rng: random.Random | None = None
    ) -> None:
        """`ratio` is the share of sampled traces among those that start here, from 0 to 1; None if traces are off.
        `app_insights_ratio` is the share of the requests that Application Insights gets of its versions."""
        self._ratio = ratio
        self._app_insights_ratio = app_insights_ratio
        self._random = rng or random.SystemRandom()
        self._pending: list[TracedRequest] = []
        self.dropped = 0
        """Requests sampled for the exporter of traces that were lost because `MAX_PENDING` was reached."""
        self.app_insights_dropped = 0
        """The same for Application Insights."""

    def change_ratio(self, ratio: float) -> None:
        """Sample this share of the traces that start here from now on. Without effect if traces are off."""
        if self._ratio is not None:
            self._ratio = ratio

    @property
    def exports_traces(self) -> bool:
        """True if traces are on."""
        return self._ratio is not None

    def context_for(self, traceparent: bytes | None, *, app_insights: bool) -> TraceContext | None:
        """Return the trace context of a request that arrived with this header; None if it is not traced.

        `app_insights`: the version of the request uses Application Insights.
        """
        if self._ratio is None and not app_insights:
            return None
        context = self.new_context(traceparent)
        if app_insights and self._samples_for_app_insights(context.trace_id):
            return context._replace(app_insights=True)
        return None if self._ratio is None else context

    def _samples_for_app_insights(self, trace_id: str) -> bool:
        ratio = self._app_insights_ratio
        return ratio == 1.0 or app_insights_score(trace_id) < ratio

    def new_context(self, traceparent: bytes | None) -> TraceContext:
        """Return the trace context of a traced request that arrived with this header."""
        parsed = parse_traceparent(traceparent) if traceparent is not None else None
        if parsed is not None:
            trace_id, parent, sampled = parsed
        else:
            number = self._random.getrandbits(128) or 1
            # The rule of OpenTelemetry's TraceIdRatioBased: all samplers with the same ratio make the same decision.
            trace_id, parent, sampled = f"{number:032x}", "", number & (2**64 - 1) < (self._ratio or 0) * 2**64
        return TraceContext(trace_id, parent, self._new_span_id(), self._new_span_id(), sampled)

    def _new_span_id(self) -> str:
        return f"{self._random.getrandbits(64) or 1:016x}"

    def record(self, request: TracedRequest) -> None:
        """Keep a request that has ended, if it is sampled."""
        context = request.context
        for_traces = context.sampled and self._ratio is not None
        if not for_traces and not context.app_insights:
            return
        if len(self._pending) < MAX_PENDING:
            self._pending.append(request)
            return
        self.dropped += for_traces
        self.app_insights_dropped += context.app_insights

    def drain(self) -> list[TracedRequest]:
        """Return the requests recorded since the last call."""
        pending, self._pending = self._pending, []
        return pending
