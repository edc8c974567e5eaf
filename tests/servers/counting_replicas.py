"""Many replicas in one process that count for themselves: how many requests each has at a time, and when too many.

Run it as a program: `python counting_replicas.py HOST PORT COUNT DELAY_MS LIMIT` listens on COUNT ports from PORT on
(0: free ones) and prints them as JSON. Each answers any request with `{}` after DELAY_MS. A request is in flight from
its last byte until it is answered, or its connection is closed; `GET /` is answered at once and is none. On standard
input it takes `stats` and `reset`, and answers `stats` with JSON: requests, the highest number at a time by port, and
each excess over LIMIT (0: none is one) as [seconds of the monotonic clock, port, number].
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
_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
_EXCESSES = 10_000  # remembered


class Replica:
    """One port, and what it counts."""

    def __init__(self, port: int, delay: float, limit: int) -> None:
        self.port = port
        self.delay = delay
        self.limit = limit
        self.requests = 0
        self.highest = 0
        self.busy: set[Line] = set()
        self.excesses: list[tuple[float, int, int]] = []

    def began(self, line: "Line") -> None:
        self.requests += 1
        self.busy.add(line)
        if self.limit and len(self.busy) > self.limit:
            # The news that a router was killed may lie unread beside the request that followed from it.
            for other in [other for other in self.busy if other.is_closed()]:
                self.busy.discard(other)
            if len(self.busy) > self.limit and len(self.excesses) < _EXCESSES:
                self.excesses.append((time.monotonic(), self.port, len(self.busy)))
        self.highest = max(self.highest, len(self.busy))


class Line(asyncio.Protocol):
    """One connection of a router."""

    def __init__(self, replica: Replica) -> None:
        self.replica = replica
        self.buffer = b""
        self.timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head, found, rest = self.buffer.partition(_HEAD_END)
        if not found or self.timer is not None:
            return
        length = 0
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                length = int(line[15:])
        if len(rest) < length:
            return
        self.buffer = rest[length:]
        if head.startswith(b"GET / "):
            self.transport.write(_ANSWER)
            return
        self.replica.began(self)
        self.timer = asyncio.get_running_loop().call_later(self.replica.delay, self.answer)

    def answer(self) -> None:
        self.timer = None
        self.replica.busy.discard(self)
        if not self.transport.is_closing():
            self.transport.write(_ANSWER)

    def connection_lost(self, exc: Exception | None) -> None:
        self.replica.busy.discard(self)
        if self.timer is not None:
            self.timer.cancel()

    def is_closed(self) -> bool:
        """Whether the router's side is closed, as the kernel has it."""
        if self.transport.is_closing():
            return True
        inside = self.transport.get_extra_info("socket")
        with socket.fromfd(inside.fileno(), socket.AF_INET, socket.SOCK_STREAM) as sock:
            try:
                return sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
            except BlockingIOError:
                return False
            except OSError:
                return True


def sockets(host: str, port: int, count: int) -> Iterator[socket.socket]:
    for number in range(count):
        yield socket.create_server((host, port + number if port else 0), backlog=1024)


async def main(host: str, port: int, count: int, delay_ms: float, limit: int) -> None:
    """Serve until standard input ends."""
    loop = asyncio.get_running_loop()
    replicas = []
    for sock in sockets(host, port, count):
        replica = Replica(sock.getsockname()[1], delay_ms / 1000, limit)
        replicas.append(replica)
        await loop.create_server(lambda replica=replica: Line(replica), sock=sock)  # type: ignore[misc]
    print(json.dumps([replica.port for replica in replicas]), flush=True)
    commands = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    while command := (await commands.readline()).strip():
        if command == b"stats":
            facts = {
                "requests": sum(replica.requests for replica in replicas),
                "highest": {replica.port: replica.highest for replica in replicas},
                "excesses": [excess for replica in replicas for excess in replica.excesses],
            }
            print(json.dumps(facts), flush=True)
        elif command == b"reset":
            for replica in replicas:
                replica.requests, replica.highest, replica.excesses = 0, 0, []


if __name__ == "__main__":
    given = sys.argv[1:]
    uvloop.run(main(given[0], int(given[1]), int(given[2]), float(given[3]), int(given[4])))
