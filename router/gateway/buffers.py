"""Bytes that a worker holds so that slow clients do not hold slots: bounds per message, and one budget for all.

Contains: the limits. Does not contain: the buffers (an exchange holds the request's body, a client connection the
response), and what happens at a limit (both then pass on bytes as they arrive).
"""

from __future__ import annotations

from typing import Final

from router.telemetry.counters import GatewayCounters

_MERGED_BYTES: Final = 65536
_PIECE_OVERHEAD_BYTES: Final = 64  # of a bytes object and its place in a list


class BufferBudget:
    """The buffered bytes of one worker, which it counts in `GatewayCounters`."""

    __slots__ = ("_counters", "_limit", "max_request_bytes", "max_response_bytes")

    def __init__(
        self, counters: GatewayCounters, *, limit: int, max_request_bytes: int, max_response_bytes: int
    ) -> None:
        """`limit`: of all messages together, in bytes. `max_request_bytes`, `max_response_bytes`: longest body that is
        buffered, 0 for none. A body that exceeds the limit alone is never buffered."""
        self._counters = counters
        self.change(limit=limit, max_request_bytes=max_request_bytes, max_response_bytes=max_response_bytes)

    def change(self, *, limit: int, max_request_bytes: int, max_response_bytes: int) -> None:
        """Apply other limits to what is buffered from now on."""
        self._limit: int = limit
        self.max_request_bytes: int = min(max_request_bytes, limit)
        self.max_response_bytes: int = min(max_response_bytes, limit)

    def reserve(self, size: int) -> bool:
        """Reserve bytes. Return False, and count it, if the budget is spent. A negative size gives bytes back."""
        counters = self._counters
        if size > 0 and counters.buffered_bytes + size > self._limit:
            counters.buffer_budget_exceeded += 1
            return False
        counters.buffered_bytes += size
        return True

    def hold(self, size: int) -> None:
        """Count bytes that cannot be refused, also beyond the limit."""
        self._counters.buffered_bytes += size

    def release(self, size: int) -> None:
        """Give reserved bytes back."""
        self._counters.buffered_bytes -= size


def buffered_size(pieces: list[bytes], size: int) -> int:
    """Return the bytes of memory that a body of `size` bytes takes in these pieces."""
    return size + len(pieces) * _PIECE_OVERHEAD_BYTES


def join_pieces(pieces: list[bytes], first: int) -> None:
    """Join the pieces from this index on: those of one read."""
    if len(pieces) > first + 1:
        pieces[first:] = [b"".join(pieces[first:])]


def merge_small_pieces(pieces: list[bytes]) -> None:
    """Join the last pieces of a body while they are small. Must be called after each read."""
    first = len(pieces) - 1
    while first > 0 and len(pieces[first - 1]) < _MERGED_BYTES:
        first -= 1
    if first < len(pieces) - 1:
        pieces[first:] = [b"".join(pieces[first:])]
