"""HTTP/1.1 connections that a test controls byte by byte, and the messages on them.

`Connection.read_message` parses one message at a time. It has its own parser, because the router's parser is under
test. Nothing here imports the router.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

TIMEOUT_SECONDS = 20.0
"""Limit of each wait. Far more than needed, for busy machines."""

KEY = "k" * 32

Headers = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Message:
    """A request or response as received: start line, headers as spelled, and the body without its framing."""

    start_line: str
    headers: Headers
    body: bytes = b""
    trailers: Headers = ()
    chunks: tuple[bytes, ...] = ()

    @property
    def status(self) -> int:
        return int(self.start_line.split(" ")[1])

    def values(self, name: str) -> list[str]:
        """Return all values of a header."""
        return [value for key, value in self.headers if key.lower() == name.lower()]

    def get(self, name: str) -> str | None:
        """Return the value of a header, which must not occur twice."""
        values = self.values(name)
        assert len(values) <= 1, f"{name} occurs {len(values)} times"
        return values[0] if values else None

    def __getitem__(self, name: str) -> str:
        value = self.get(name)
        assert value is not None, f"no {name} in {self.headers}"
        return value

    def __contains__(self, name: str) -> bool:
        return bool(self.values(name))

    @property
    def error_code(self) -> str | None:
        """The error code of a local response."""
        return self.get("azureml-fe-error")


def post(
    body: bytes = b"{}",
    *headers: str,
    path: str = "/api/v1/service/iris/score",
    method: str = "POST",
    version: str = "1.1",
    host: str | None = "fe",
    key: str | None = KEY,
    length: int | None = -1,
) -> bytes:
    """Return the bytes of a request. `length` is the Content-Length: -1 for that of the body, None for no header."""
    lines = [f"{method} {path} HTTP/{version}"]
    if host is not None:
        lines.append(f"Host: {host}")
    if key is not None:
        lines.append(f"Authorization: Bearer {key}")
    if length is not None:
        lines.append(f"Content-Length: {len(body) if length == -1 else length}")
    return "\r\n".join([*lines, *headers, "", ""]).encode("latin-1") + body


def get(*headers: str, path: str = "/api/v1/service/iris/score") -> bytes:
    """Return the bytes of a request without a body."""
    return post(b"", *headers, path=path, method="GET", length=None)


def chunked(*chunks: bytes, trailers: str = "", end: bool = True) -> bytes:
    """Return chunks. `end` adds the last chunk and the trailers."""
    framed = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    return framed + (b"0\r\n" + trailers.encode() + b"\r\n" if end else b"")


def post_chunked(*chunks: bytes, trailers: str = "", end: bool = True, headers: tuple[str, ...] = ()) -> bytes:
    """Return the bytes of a request with a chunked body."""
    return post(b"", "Transfer-Encoding: chunked", *headers, length=None) + chunked(*chunks, trailers=trailers, end=end)


def ok(body: bytes = b"[1]", *headers: str, status: str = "200 OK", length: int | None = -1) -> bytes:
    """Return the bytes of a response. For `length` see `post`."""
    lines = [f"HTTP/1.1 {status}"]
    if length is not None:
        lines.append(f"Content-Length: {len(body) if length == -1 else length}")
    return "\r\n".join([*lines, *headers, "", ""]).encode("latin-1") + body


def ok_chunked(*chunks: bytes, trailers: str = "", end: bool = True, headers: tuple[str, ...] = ()) -> bytes:
    """Return the bytes of a response with a chunked body."""
    return ok(b"", "Transfer-Encoding: chunked", *headers, length=None) + chunked(*chunks, trailers=trailers, end=end)


async def run_loop(iterations: int = 6) -> None:
    """Run some iterations of the event loop. By default enough for sent bytes to arrive and to be handled."""
    for _ in range(iterations):
        await asyncio.sleep(0)


class Connection(asyncio.Protocol):
    """One end of a TCP connection, controlled by a test. It reads into `received`, and never responds or closes by
    itself."""

    def __init__(self, on_connect: Callable[[Connection], None] | None = None) -> None:
        self.transport: asyncio.Transport
        self.received = bytearray()  # and not yet read by the test
        self.total_received = 0  # bytes
        self.stores_data = True  # False: only count received bytes
        self.remote_closed = False  # by FIN or RST
        self.was_reset = False
        self._on_connect = on_connect
        self._changed = asyncio.Event()

    # Called by the event loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        if self._on_connect is not None:
            self._on_connect(self)

    def data_received(self, data: bytes) -> None:
        self.total_received += len(data)
        if self.stores_data:
            self.received += data
        self._changed.set()

    def eof_received(self) -> bool:
        self.remote_closed = True
        self._changed.set()
        return True  # this end stays open until the test closes it

    def connection_lost(self, exc: Exception | None) -> None:
        self.remote_closed = True
        self.was_reset = self.was_reset or isinstance(exc, ConnectionResetError)
        self._changed.set()

    # Sending and closing.

    def send(self, *pieces: bytes) -> Connection:
        for piece in pieces:
            self.transport.write(piece)
        return self

    async def send_in_pieces(self, *pieces: bytes) -> None:
        """Send pieces so that each arrives separately."""
        for piece in pieces:
            self.transport.write(piece)
            await run_loop()

    def half_close(self) -> None:
        """Send FIN, and continue to read."""
        self.transport.write_eof()

    def close(self) -> None:
        """Close after everything was sent."""
        self.transport.close()

    def close_now(self) -> None:
        """Close the socket in this call, so that its FIN is sent before anything that arrives later."""
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, self.transport.get_extra_info("socket").fileno())
        os.close(null)
        self.transport.abort()

    def reset(self) -> None:
        """Send RST."""
        sock = self.transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    # Reading.

    def pause_reading(self) -> None:
        self.transport.pause_reading()

    def resume_reading(self) -> None:
        self.transport.resume_reading()

    def discard_input(self) -> None:
        """Read everything from now on without storing it."""
        self.stores_data = False
        if not self.transport.is_closing():
            self.transport.resume_reading()

    async def wait_until(self, condition: Callable[[], object], description: str) -> None:
        """Wait until the condition is true. Check it when data arrives and when the other side closes."""
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                while not condition():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            received = bytes(self.received[-2000:])
            raise AssertionError(
                f"no {description}; received: {received!r}, closed by the other side: {self.remote_closed}"
            ) from None

    async def wait_for_data(self) -> bool:
        """Wait without a time limit until there is unread data, and return True; False if the other side closed."""
        while not self.received and not self.remote_closed:
            self._changed.clear()
            await self._changed.wait()
        return bool(self.received)

    async def wait_closed(self) -> None:
        """Wait until the other side has closed."""
        await self.wait_until(lambda: self.remote_closed, "end of the connection")

    async def read_exactly(self, size: int) -> bytes:
        """Return the next `size` bytes."""
        await self.wait_until(lambda: len(self.received) >= size or self.remote_closed, f"{size} bytes")
        assert len(self.received) >= size, f"closed after {bytes(self.received[-2000:])!r}"
        taken = bytes(self.received[:size])
        del self.received[:size]
        return taken

    async def read_line(self) -> bytes:
        return await self._read_through(b"\r\n")

    async def read_to_end(self) -> bytes:
        """Return everything that arrives until the other side closes."""
        await self.wait_closed()
        return await self.read_exactly(len(self.received))

    async def _read_through(self, marker: bytes) -> bytes:
        await self.wait_until(lambda: marker in self.received or self.remote_closed, repr(marker))
        assert marker in self.received, f"closed before {marker!r}: {bytes(self.received[-2000:])!r}"
        return await self.read_exactly(self.received.index(marker) + len(marker))

    async def read_head(self) -> Message:
        """Return the next head."""
        head = await self._read_through(b"\r\n\r\n")
        assert re.fullmatch(rb"(?:[^\r\n\0]+\r\n)+\r\n", head), f"not a head: {head!r}"
        start_line, *lines = head.decode("latin-1").split("\r\n")[:-2]
        return Message(start_line, _fields(lines))

    async def read_message(self, *, until_close: bool = False) -> Message:
        """Return the next complete request or response.

        `until_close`: without Content-Length and chunks, the body ends with the connection; otherwise it is empty.
        Raises `AssertionError` for an incomplete body.
        """
        head = await self.read_head()
        bodiless = head.start_line.startswith("HTTP/1.1 ") and (head.status < 200 or head.status in (204, 304))
        if bodiless:
            return head
        if head.get("transfer-encoding") == "chunked":
            chunks: list[bytes] = []
            while size := int(await self.read_line(), 16):
                chunks.append(await self.read_exactly(size))
                assert await self.read_exactly(2) == b"\r\n"
            lines = []
            while (line := await self.read_line()) != b"\r\n":
                lines.append(line[:-2].decode("latin-1"))
            return Message(head.start_line, head.headers, b"".join(chunks), _fields(lines), tuple(chunks))
        length = head.get("content-length")
        if length is not None:
            return Message(head.start_line, head.headers, await self.read_exactly(int(length)))
        if until_close:
            return Message(head.start_line, head.headers, await self.read_to_end())
        return head


def _fields(lines: list[str]) -> Headers:
    return tuple((name, value) for name, _, value in (line.partition(": ") for line in lines))
