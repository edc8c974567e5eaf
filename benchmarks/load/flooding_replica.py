"""A replica for ordinary requests and for floods. ``python -m benchmarks.load.flooding_replica PORT``.

It answers a request when its head and, if it has a length of up to 64 KiB, its body have arrived. A request with
``X-Flood: RATE`` gets an endless response in chunks of one byte, at this rate in bytes of the connection per second. A
request for a WebSocket opens a tunnel. All later data on such connections is discarded.
"""

import asyncio
import sys
import time
from typing import Final, cast

import uvloop

TICK_SECONDS: Final = 0.005
RESPONSE: Final = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 14\r\n\r\n{"result": []}'
ENDLESS: Final = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
SWITCH: Final = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
CHUNKS: Final = b"1\r\nx\r\n" * 10_923


class Connection(asyncio.Protocol):
    """One connection."""

    def __init__(self) -> None:
        self.received = b""
        self.discards = False
        self.paused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self.discards:
            return
        self.received += data
        while not self.discards and b"\r\n\r\n" in self.received:
            head, _, rest = self.received.partition(b"\r\n\r\n")
            lines = dict(line.lower().partition(b": ")[::2] for line in head.split(b"\r\n")[1:])
            length = int(lines.get(b"content-length", b"0"))
            if length > 65_536 or b"transfer-encoding" in lines:
                self.discards = True
            elif b"upgrade" in lines:
                self.discards = True
                self.transport.write(SWITCH)
            elif b"x-flood" in lines:
                self.discards = True
                self.transport.write(ENDLESS)
                self.rate, self.sent, self.started_at = float(lines[b"x-flood"]), 0, time.monotonic()
                self.flood()
            elif len(rest) < length:
                return
            else:
                self.received = rest[length:]
                self.transport.write(RESPONSE)

    def flood(self) -> None:
        """Send the chunks that are due by now."""
        due = int((time.monotonic() - self.started_at) * self.rate)
        while self.sent < due and not self.paused and not self.transport.is_closing():
            self.transport.write(CHUNKS)
            self.sent += len(CHUNKS)
        self.sent = max(self.sent, due - int(self.rate))
        if not self.transport.is_closing():
            asyncio.get_running_loop().call_later(TICK_SECONDS, self.flood)

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False


async def main() -> None:
    """Listen until the process is terminated."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Connection, "127.0.0.1", int(sys.argv[1]), backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())
