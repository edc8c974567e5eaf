"""Turns of the event loop: what one connection does in a turn is bounded, and one connection in each turn does more.

A connection whose input does not fit one turn waits in the `TurnQueue` of its worker, and does not read meanwhile.
One waiting connection continues in each turn. So a turn takes no longer when more connections flood the router, and the
requests of other clients are served between two turns. Connections that only pass on long bodies are cheap: a few of
them continue in a turn, because each turn costs some system calls.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final

BULK_READS_PER_TURN: Final = 4  # of connections without a backlog


class TurnQueue:
    """The connections of one worker that wait for a turn, in the order in which they began to wait."""

    __slots__ = ("_is_scheduled", "_waiting")

    def __init__(self) -> None:
        self._is_scheduled = False
        self._waiting: deque[tuple[Backlog, Callable[[], None]]] = deque()

    def add(self, backlog: Backlog, on_turn: Callable[[], None]) -> None:
        """Call `on_turn` in a later turn."""
        self._waiting.append((backlog, on_turn))
        self._schedule()

    def _schedule(self) -> None:
        if self._waiting and not self._is_scheduled:
            self._is_scheduled = True
            asyncio.get_running_loop().call_soon(self._begin_turn)

    def _begin_turn(self) -> None:
        try:
            for _ in range(min(len(self._waiting), BULK_READS_PER_TURN)):
                backlog, on_turn = self._waiting.popleft()
                is_bulk = backlog.is_bulk and not backlog
                backlog.waiting = backlog.is_bulk = False
                on_turn()
                if not is_bulk:
                    break
        finally:
            self._is_scheduled = False
            self._schedule()


class Backlog:
    """What one connection has received and not parsed, and whether the connection waits for a turn."""

    __slots__ = ("_at", "_data", "_turns", "is_bulk", "waiting")

    def __init__(self, turns: TurnQueue) -> None:
        self._turns = turns
        self._data = b""
        self._at = 0  # where in `_data` the backlog starts: each turn takes little of much data
        self.waiting = False
        """True if the connection waits for a turn. Nothing is parsed, begun or read until then."""
        self.is_bulk = False
        """True if it waits only because it has read much at once."""

    def __len__(self) -> int:
        """Return the number of bytes."""
        return len(self._data) - self._at

    def append(self, data: bytes) -> None:
        """Add received data."""
        self._data = self._data[self._at :] + data if self._data else data
        self._at = 0

    def take(self, size: int) -> bytes:
        """Remove and return the first `size` bytes, or all if there are fewer."""
        start, end = self._at, self._at + size
        if end < len(self._data):
            self._at = end
            return self._data[start:end]
        data, self._data, self._at = self._data, b"", 0
        return data[start:]

    def take_all(self) -> bytes:
        """Remove and return all data."""
        return self.take(len(self._data))

    def put_back(self, data: bytes) -> None:
        """Add data that was taken."""
        self._data, self._at = data + self._data[self._at :], 0

    def clear(self) -> None:
        """Discard all data."""
        self._data, self._at = b"", 0

    def wait_for_turn(self, on_turn: Callable[[], None], *, is_bulk: bool = False) -> None:
        """Call `on_turn` in a later turn, unless the connection already waits for one."""
        if not self.waiting:
            self.waiting = True
            self.is_bulk = is_bulk
            self._turns.add(self, on_turn)
