"""Buffers for slow clients: their common budget, and the pieces of a body."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.gateway.buffers import _MERGED_BYTES, BufferBudget, buffered_size, merge_small_pieces
from router.telemetry.counters import GatewayCounters


def test_reservations_of_all_messages_count() -> None:
    counters = GatewayCounters()
    budget = BufferBudget(counters, limit=100, max_request_bytes=80, max_response_bytes=80)
    assert budget.reserve(60)
    assert not budget.reserve(41)
    assert budget.reserve(40)
    assert (counters.buffered_bytes, counters.buffer_budget_exceeded) == (100, 1)
    budget.release(60)
    assert budget.reserve(41)
    assert counters.buffered_bytes == 81


def test_bytes_are_given_back_beyond_the_limit() -> None:
    """The limit was lowered, or bytes were held that could not be refused."""
    counters = GatewayCounters()
    budget = BufferBudget(counters, limit=100, max_request_bytes=80, max_response_bytes=80)
    assert budget.reserve(60)
    budget.hold(150)
    assert budget.reserve(-60)
    assert not budget.reserve(1)
    assert (counters.buffered_bytes, counters.buffer_budget_exceeded) == (150, 1)


@pytest.mark.parametrize("limit", [0, 50])
def test_message_size_limits_do_not_exceed_the_budget(limit: int) -> None:
    budget = BufferBudget(GatewayCounters(), limit=limit, max_request_bytes=80, max_response_bytes=80)
    assert (budget.max_request_bytes, budget.max_response_bytes) == (limit, limit)


@given(st.lists(st.lists(st.binary(max_size=200_000).map(lambda data: data * 40), max_size=4), max_size=30))
def test_merged_pieces_are_the_same_body(reads: list[list[bytes]]) -> None:
    pieces: list[bytes] = []
    for read in reads:
        pieces += read
        merge_small_pieces(pieces)
    assert b"".join(pieces) == b"".join(b"".join(read) for read in reads)


@pytest.mark.parametrize("size", [1, 2, 600, 60_000])
def test_small_pieces_take_about_as_much_memory_as_the_body(size: int) -> None:
    pieces: list[bytes] = []
    count = 1_000_000 // size
    for _ in range(count):
        pieces.append(b"x" * size)
        merge_small_pieces(pieces)
    assert len(pieces) <= 1 + 1_000_000 // _MERGED_BYTES
    assert buffered_size(pieces, count * size) < count * size + 2000
