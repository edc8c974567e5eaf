"""Many replicas in one process that count how many requests each of them has at the same time.

`python counting_replicas.py HOST PORT COUNT DELAY_MS LIMIT` listens on COUNT ports starting at PORT (0: free ports) and
prints them as a JSON array. Each replica responds to any request with `{}` after DELAY_MS. A request is in flight from
its last byte until the response is sent or its connection is closed. `GET /` gets a response at once and is not
counted.

Commands on standard input:
- `stats` prints a JSON object: `requests`; `peak`, the maximum of requests in flight by port; `over_limit`, a list
  of [seconds of the monotonic clock, port, requests in flight], one for each request that exceeded LIMIT (0: no limit).
- `reset` sets all counters to zero.
"""

import asyncio
import json
import socket
import sys
import time
from collections.abc import Iterator
from typing import cast

import uvloop

_HEAD_END = b"\r\n\r\n"
_RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
_MAX_RECORDED = 10_000


class Replica:
    """One port and its counters."""

    def __init__(self, port: int, delay_seconds: float, limit: int) -> None:
        self.port = port
        self.delay_seconds = delay_seconds
        self.limit = limit
        self.requests = 0
        self.peak = 0
        self.in_flight: set[Connection] = set()
        self.over_limit: list[tuple[float, int, int]] = []

    def on_request(self, connection: "Connection") -> None:
        self.requests += 1
        self.in_flight.add(connection)
        if self.limit and len(self.in_flight) > self.limit:
            # If a router was killed, the end of its connections may be unread while the next request was read already.
            for other in [other for other in self.in_flight if other.is_closed()]:
                self.in_flight.discard(other)
            if len(self.in_flight) > self.limit and len(self.over_limit) < _MAX_RECORDED:
                self.over_limit.append((time.monotonic(), self.port, len(self.in_flight)))
        self.peak = max(self.peak, len(self.in_flight))

    def reset(self) -> None:
        self.requests, self.peak, self.over_limit = 0, 0, []


class Connection(asyncio.Protocol):
    """One connection of a router."""

    def __init__(self, replica: Replica) -> None:
        self.replica = replica
        self.buffer = b""
        self.timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head, separator, rest = self.buffer.partition(_HEAD_END)
        if not separator or self.timer is not None:
            return
        length = 0
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                length = int(line[15:])
        if len(rest) < length:
            return
        self.buffer = rest[length:]
        if head.startswith(b"GET / "):
            self.transport.write(_RESPONSE)
            return
        self.replica.on_request(self)
        self.timer = asyncio.get_running_loop().call_later(self.replica.delay_seconds, self.respond)

    def respond(self) -> None:
        self.timer = None
        self.replica.in_flight.discard(self)
        if not self.transport.is_closing():
            self.transport.write(_RESPONSE)

    def connection_lost(self, exc: Exception | None) -> None:
        self.replica.in_flight.discard(self)
        if self.timer is not None:
            self.timer.cancel()

    def is_closed(self) -> bool:
        """True if the router has closed its side, even if the event loop has not read that yet."""
        if self.transport.is_closing():
            return True
        transport_socket = self.transport.get_extra_info("socket")
        with socket.fromfd(transport_socket.fileno(), socket.AF_INET, socket.SOCK_STREAM) as sock:
            try:
                return sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
            except BlockingIOError:
                return False
            except OSError:
                return True


def listening_sockets(host: str, port: int, count: int) -> Iterator[socket.socket]:
    for number in range(count):
        yield socket.create_server((host, port + number if port else 0), backlog=1024)


async def main(host: str, port: int, count: int, delay_ms: float, limit: int) -> None:
    """Serve until standard input is closed."""
    loop = asyncio.get_running_loop()
    replicas = []
    for sock in listening_sockets(host, port, count):
        replica = Replica(sock.getsockname()[1], delay_ms / 1000, limit)
        replicas.append(replica)
        await loop.create_server(lambda replica=replica: Connection(replica), sock=sock)  # type: ignore[misc]
    print(json.dumps([replica.port for replica in replicas]), flush=True)
    commands = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    while command := (await commands.readline()).strip():
        if command == b"stats":
            statistics = {
                "requests": sum(replica.requests for replica in replicas),
                "peak": {replica.port: replica.peak for replica in replicas},
                "over_limit": [each for replica in replicas for each in replica.over_limit],
            }
            print(json.dumps(statistics), flush=True)
        elif command == b"reset":
            for replica in replicas:
                replica.reset()


if __name__ == "__main__":
    arguments = sys.argv[1:]
    uvloop.run(main(arguments[0], int(arguments[1]), int(arguments[2]), float(arguments[3]), int(arguments[4])))
