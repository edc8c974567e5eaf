"""The channel between the supervisor and one of its workers: frames over a socket pair.

Both ends run the same code of the same installation and the socket is inherited, never reachable from outside, which
is what makes pickle the right encoding here. Peers, who may run another release, speak a format of their own.
"""

from __future__ import annotations

import asyncio
import pickle
import struct
from collections.abc import Callable
from typing import Any, cast

_LENGTH = struct.Struct("!I")


class Channel(asyncio.Protocol):
    """One end. `received(message)` is called for each message, `closed()` once the other end is gone."""

    def __init__(self, received: Callable[[Any], None], closed: Callable[[], None]) -> None:
        self._received = received
        self._closed = closed
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self.sent = 0  # messages

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
            self._received(message)
        del buffer[:start]

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._closed()

    def send(self, message: object) -> None:
        """Send a message; it is lost if the other end is gone, which `closed` tells."""
        if self._transport is not None and not self._transport.is_closing():
            data = pickle.dumps(message, protocol=5)
            self._transport.write(_LENGTH.pack(len(data)) + data)
            self.sent += 1

    def close(self) -> None:
        """Close this end when all is sent."""
        if self._transport is not None:
            self._transport.close()
