"""The channel between the supervisor and one of its processes: frames over a socket pair.

Both processes run the same release, and no other process can reach the socket. So pickle is safe here. Links between
pods, which may run different releases, use another format (`peers.wire`).
"""

from __future__ import annotations

import asyncio
import pickle
import struct
from collections.abc import Callable
from typing import Any, cast

_LENGTH = struct.Struct("!I")


def to_frame(message: object) -> bytes:
    """Return the bytes of a message."""
    data = pickle.dumps(message, protocol=5)
    return _LENGTH.pack(len(data)) + data


class Channel(asyncio.Protocol):
    """One side of the channel. Calls `on_message` for each message, and `on_closed` once the other side has closed."""

    def __init__(self, on_message: Callable[[Any], None], on_closed: Callable[[], None]) -> None:
        self._on_message = on_message
        self._on_closed = on_closed
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self.sent_count = 0
        """Number of messages sent by this side."""

    @property
    def is_closed(self) -> bool:
        """True before the channel is connected, and after it has closed."""
        return self._transport is None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer
        buffer += data
        start = 0
        while len(buffer) - start >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(buffer, start)
            end = start + _LENGTH.size + length
            if len(buffer) < end:
                break
            message = pickle.loads(memoryview(buffer)[start + _LENGTH.size : end])  # noqa: S301  (see above)
            start = end
            self._on_message(message)
        del buffer[:start]

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._on_closed()

    def send(self, message: object) -> None:
        """Send a message. It is dropped, and not counted, if the channel is not open."""
        self.send_frame(to_frame(message))

    def send_frame(self, frame: bytes) -> None:
        """Send a message in the form that `to_frame` returns, as `send` does."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(frame)
            self.sent_count += 1

    def close(self) -> None:
        """Close this side after all messages have been written."""
        if self._transport is not None:
            self._transport.close()
