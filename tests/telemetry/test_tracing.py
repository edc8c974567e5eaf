"""W3C trace context: what is taken from a client, what a replica gets, what is sampled."""

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.telemetry.tracing import MOST_WAITING, TraceContext, Traced, Tracer, parse_traceparent

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.mark.parametrize(
    ("value", "parsed"),
    [
        (f"00-{TRACE}-{PARENT}-01", (TRACE, PARENT, True)),
        (f"00-{TRACE}-{PARENT}-00", (TRACE, PARENT, False)),
        (f"00-{TRACE}-{PARENT}-03", (TRACE, PARENT, True)),  # other flags are for later versions
        (f" 00-{TRACE}-{PARENT}-01\t", (TRACE, PARENT, True)),
        (f"cc-{TRACE}-{PARENT}-01-what-the-future-brings", (TRACE, PARENT, True)),
        (f"00-{TRACE}-{PARENT}-01-more", None),
        (f"cc-{TRACE}-{PARENT}-01.more", None),
        (f"ff-{TRACE}-{PARENT}-01", None),
        (f"00-{TRACE.upper()}-{PARENT}-01", None),
        (f"00-{'0' * 32}-{PARENT}-01", None),
        (f"00-{TRACE}-{'0' * 16}-01", None),
        (f"00-{TRACE[:-1]}-{PARENT}-01", None),
        (f"00-{TRACE}-{PARENT}-1", None),
        (f"00-{TRACE}-{PARENT}", None),
        ("", None),
    ],
)
def test_traceparent(value: str, parsed: tuple[str, str, bool] | None) -> None:
    assert parse_traceparent(value.encode()) == parsed


@given(st.binary(max_size=80))
def test_anything_else_is_no_traceparent_and_no_fault(value: bytes) -> None:
    parsed = parse_traceparent(value)
    assert parsed is None or len(parsed[0]) == 32


def test_the_clients_trace_goes_on_with_the_routers_span_as_parent() -> None:
    context = Tracer(0.0).context(f"00-{TRACE}-{PARENT}-01".encode())
    assert (context.trace_id, context.parent, context.sampled) == (TRACE, PARENT, True)
    assert context.traceparent() == f"00-{TRACE}-{context.client_span}-01".encode()
    assert len({context.server_span, context.client_span, PARENT}) == 3


@pytest.mark.parametrize("value", [None, b"nonsense"])
def test_a_trace_begins_here_where_there_is_none(value: bytes | None) -> None:
    context = Tracer(1.0).context(value)
    assert (context.parent, context.sampled) == ("", True)
    assert parse_traceparent(context.traceparent()) == (context.trace_id, context.client_span, True)


@pytest.mark.parametrize(("ratio", "least", "most"), [(0.0, 0, 0), (0.25, 2300, 2700), (1.0, 10_000, 10_000)])
def test_share_of_the_traces_that_begin_here_is_sampled(ratio: float, least: int, most: int) -> None:
    tracer = Tracer(ratio, rng=random.Random(1))
    assert least <= sum(tracer.context(None).sampled for _ in range(10_000)) <= most


def test_client_decides_whether_its_trace_is_sampled() -> None:
    assert not Tracer(1.0).context(f"00-{TRACE}-{PARENT}-00".encode()).sampled


def test_what_nobody_takes_is_bounded_and_counted() -> None:
    tracer = Tracer(1.0)
    traced: Any = Traced(TraceContext(TRACE, "", PARENT, PARENT, True), "POST", None)  # type: ignore[arg-type]
    for _ in range(MOST_WAITING + 5):
        tracer.ended(traced)
    assert (len(tracer.take()), tracer.dropped, tracer.take()) == (MOST_WAITING, 5, [])
