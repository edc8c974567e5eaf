"""The engine "bare": ``asyncio.Protocol`` on uvloop, with llhttp (httptools) as the parser on both sides.

It shows the maximum of this stack and is not meant for use: one backend, no authentication, no slots, no metrics, no
timeouts, no pipelining, bodies with a ``Content-Length`` only. The difference to the router is the cost of its
features. ``python -m benchmarks.engines.bare_proxy PORT BACKEND``.
"""

import asyncio
import signal
import sys
from http import HTTPStatus
from typing import cast

import httptools
import uvloop

HOP_BY_HOP = frozenset({b"connection", b"keep-alive", b"te", b"trailer", b"transfer-encoding", b"upgrade"})
STATUS_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}


class Side(asyncio.Protocol):
    """Shared by both connections: the current head, bytes to forward, backpressure on the other side."""

    transport: asyncio.Transport
    other: "Side | None" = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.headers: list[bytes] = []
        self.out: list[bytes] = []

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() not in HOP_BY_HOP:
            self.headers += (name, b": ", value, b"\r\n")

    def on_body(self, body: bytes) -> None:
        self.out.append(body)

    def flush(self) -> None:
        if self.out and self.other and not self.other.transport.is_closing():
            self.other.transport.write(b"".join(self.out))
            self.out.clear()

    def pause_writing(self) -> None:
        if self.other:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.other:
            self.other.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        other, self.other = self.other, None
        if other:
            other.other = None
            other.transport.close()


class Pool:
    """Idle connections to the backend."""

    def __init__(self, host: str, port: int) -> None:
        self.host, self.port = host, port
        self.idle: list[Upstream] = []
        self.connecting: set[asyncio.Task[None]] = set()

    def attach(self, client: "Downstream") -> None:
        if self.idle:
            self.join(client, self.idle.pop())
            return
        task = asyncio.get_running_loop().create_task(self.connect(client))
        self.connecting.add(task)
        task.add_done_callback(self.connecting.discard)

    async def connect(self, client: "Downstream") -> None:
        _, upstream = await asyncio.get_running_loop().create_connection(lambda: Upstream(self), self.host, self.port)
        self.join(client, upstream)
        client.flush()

    @staticmethod
    def join(client: "Downstream", upstream: "Upstream") -> None:
        client.other, upstream.other = upstream, client


class Upstream(Side):
    """A connection to the backend."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.parser = httptools.HttpResponseParser(self)

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)
        self.flush()
        client = self.other
        if self.complete and client:
            client.other = self.other = None
            self.pool.idle.append(self)

    def on_message_begin(self) -> None:
        self.complete = False

    def on_headers_complete(self) -> None:
        self.out += (STATUS_LINES[self.parser.get_status_code()], *self.headers, b"\r\n")
        self.headers.clear()

    def on_message_complete(self) -> None:
        self.complete = True

    def connection_lost(self, exc: Exception | None) -> None:
        if self in self.pool.idle:
            self.pool.idle.remove(self)
        super().connection_lost(exc)


class Downstream(Side):
    """A connection of a client."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.parser = httptools.HttpRequestParser(self)

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)
        self.flush()

    def on_message_begin(self) -> None:
        self.url = b""

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_headers_complete(self) -> None:
        self.out += (self.parser.get_method(), b" ", self.url, b" HTTP/1.1\r\n", *self.headers, b"\r\n")
        self.headers.clear()
        self.pool.attach(self)


async def serve(port: int, backend: str) -> None:
    """Listen until SIGTERM."""
    host, _, backend_port = backend.partition(":")
    pool = Pool(host, int(backend_port))
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stopped.set)
    server = await loop.create_server(lambda: Downstream(pool), "127.0.0.1", port, backlog=4096)
    await stopped.wait()
    server.close()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1]), sys.argv[2]))
