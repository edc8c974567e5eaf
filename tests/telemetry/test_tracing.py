"""W3C trace context: parsing, continuing a trace, sampling."""

import random

import pytest
from azure.monitor.opentelemetry.exporter import ApplicationInsightsSampler
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.trace.sampling import Decision

from router.telemetry.tracing import (
    MAX_PENDING,
    TraceContext,
    TracedRequest,
    Tracer,
    app_insights_score,
    is_traceparent,
    parse_traceparent,
)
from tests.telemetry.test_journal import entry

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.mark.parametrize(
    ("value", "parsed"),
    [
        (f"00-{TRACE}-{PARENT}-01", (TRACE, PARENT, True)),
        (f"00-{TRACE}-{PARENT}-00", (TRACE, PARENT, False)),
        (f"00-{TRACE}-{PARENT}-03", (TRACE, PARENT, True)),  # other flags are reserved for later versions
        (f" 00-{TRACE}-{PARENT}-01\t", (TRACE, PARENT, True)),
        (f"cc-{TRACE}-{PARENT}-01-fields-of-a-later-version", (TRACE, PARENT, True)),
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
def test_traceparent_is_parsed(value: str, parsed: tuple[str, str, bool] | None) -> None:
    assert parse_traceparent(value.encode()) == parsed
    assert is_traceparent(value.encode()) == (parsed is not None)


@given(st.binary(max_size=80))
def test_arbitrary_bytes_raise_no_error(value: bytes) -> None:
    parsed = parse_traceparent(value)
    assert is_traceparent(value) == (parsed is not None)
    assert parsed is None or len(parsed[0]) == 32


def test_client_trace_continues_with_the_router_span_as_parent() -> None:
    context = Tracer(0.0).new_context(f"00-{TRACE}-{PARENT}-01".encode())
    assert (context.trace_id, context.parent, context.sampled) == (TRACE, PARENT, True)
    assert context.traceparent() == f"00-{TRACE}-{context.client_span}-01".encode()
    assert len({context.server_span, context.client_span, PARENT}) == 3


@pytest.mark.parametrize("value", [None, b"invalid"])
def test_trace_starts_here_without_a_valid_traceparent(value: bytes | None) -> None:
    context = Tracer(1.0).new_context(value)
    assert (context.parent, context.sampled) == ("", True)
    assert parse_traceparent(context.traceparent()) == (context.trace_id, context.client_span, True)


@pytest.mark.parametrize(("ratio", "least", "most"), [(0.0, 0, 0), (0.25, 2300, 2700), (1.0, 10_000, 10_000)])
def test_ratio_of_traces_that_start_here_is_sampled(ratio: float, least: int, most: int) -> None:
    tracer = Tracer(ratio, rng=random.Random(1))
    assert least <= sum(tracer.new_context(None).sampled for _ in range(10_000)) <= most


def test_client_sampling_decision_is_followed() -> None:
    assert not Tracer(1.0).new_context(f"00-{TRACE}-{PARENT}-00".encode()).sampled


def test_pending_requests_are_bounded_and_drops_are_counted() -> None:
    tracer = Tracer(1.0)
    request = TracedRequest(TraceContext(TRACE, "", PARENT, PARENT, True), "POST", entry(1))
    for _ in range(MAX_PENDING + 5):
        tracer.record(request)
    assert (len(tracer.drain()), tracer.dropped, tracer.drain()) == (MAX_PENDING, 5, [])


def test_requests_dropped_for_each_export_are_counted() -> None:
    tracer = Tracer(1.0)
    for _ in range(MAX_PENDING):
        tracer.record(TracedRequest(TraceContext(TRACE, "", PARENT, PARENT, True), "POST", entry(1)))
    for sampled, app_insights in ((True, True), (False, True), (False, True), (False, False)):
        context = TraceContext(TRACE, "", PARENT, PARENT, sampled, app_insights)
        tracer.record(TracedRequest(context, "POST", entry(1)))
    assert (tracer.dropped, tracer.app_insights_dropped) == (1, 3)


def test_request_is_traced_for_traces_or_for_application_insights() -> None:
    header = f"00-{TRACE}-{PARENT}-00".encode()
    assert Tracer(None).context_for(header, app_insights=False) is None
    context = Tracer(None).context_for(header, app_insights=True)
    assert context is not None
    assert (context.trace_id, context.parent, context.sampled, context.app_insights) == (TRACE, PARENT, False, True)
    assert context.traceparent().endswith(b"-01")
    context = Tracer(1.0).context_for(header, app_insights=False)
    assert context is not None
    assert (context.sampled, context.app_insights) == (False, False)
    assert Tracer(None, app_insights_ratio=0.0).context_for(header, app_insights=True) is None
    context = Tracer(1.0, app_insights_ratio=0.0).context_for(header, app_insights=True)
    assert context is not None
    assert not context.app_insights


def test_application_insights_samples_the_same_traces_as_its_own_sampler() -> None:
    rng = random.Random(1)
    sampler = ApplicationInsightsSampler(0.25)
    tracer = Tracer(None, app_insights_ratio=0.25)
    sampled = 0
    for number in [0, 1, *(rng.getrandbits(128) for _ in range(2_000))]:
        trace = f"{number:032x}"
        expected = sampler.should_sample(None, number, "").decision is Decision.RECORD_AND_SAMPLE
        if number:  # an id of zeros is not valid
            context = tracer.context_for(f"00-{trace}-{PARENT}-00".encode(), app_insights=True)
            assert (context is not None) == expected
        assert app_insights_score(trace) == sampler._get_DJB2_sample_score(trace)
        sampled += expected
    assert 400 < sampled < 600
