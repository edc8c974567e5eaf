"""The replica for uploads: reads a whole body, discards it, and responds with the number of bytes.

nginx cannot do this. ``return 200`` responds after the head and discards the body afterwards, so a proxy may stop
sending. All ways to make nginx read the whole body first (``proxy_pass`` with buffering, ``mirror``, DAV) write it to a
temporary file. This server reads into one buffer per connection, on uvloop. ``python -m benchmarks.load.sink PORT``.
Bodies need a ``Content-Length``.
"""

import asyncio
import signal
import sys
from typing import cast

import uvloop

BUFFER_BYTES = 262_144  # large compared with the fixed cost of a system call, and fits the L2 cache
HEAD_LIMIT_BYTES = 65_536


class Sink(asyncio.BufferedProtocol):
    """One connection with sequential requests."""

    def __init__(self) -> None:
        self.buffer = bytearray(BUFFER_BYTES)
        self.head = b""
        self.received = 0
        self.remaining = 0
        self.in_body = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def get_buffer(self, sizehint: int) -> bytearray:
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        if self.in_body:
            self.count(nbytes)
            return
        self.head += self.buffer[:nbytes]
        head, end, rest = self.head.partition(b"\r\n\r\n")
        if not end:
            if len(self.head) > HEAD_LIMIT_BYTES:
                self.transport.close()
            return
        self.head = b""
        self.received, self.remaining, self.in_body = 0, content_length(head), True
        self.count(len(rest))

    def count(self, nbytes: int) -> None:
        self.received += nbytes
        self.remaining -= nbytes
        if self.remaining > 0:
            return
        self.in_body = False
        body = b'{"received": %d}' % self.received
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
        self.transport.write(head + body)


def content_length(head: bytes) -> int:
    """Return the ``Content-Length`` of a head, or 0."""
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    return 0


async def serve(port: int) -> None:
    """Listen until SIGTERM."""
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stopped.set)
    server = await loop.create_server(Sink, "127.0.0.1", port, backlog=4096)
    await stopped.wait()
    server.close()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))
