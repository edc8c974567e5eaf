"""Both ends of the wire in the hands of a test: connections that do what they are told, and the messages they carry.

Knows HTTP's framing well enough to read one message, with a reader of its own, so that the parser under test is not
its own judge. Knows nothing of the gateway.
"""

from __future__ import annotations

import asyncio
import re
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

PATIENCE_SECONDS = 5.0
"""What a test waits at most for anything; far more than anything takes."""

KEY = "k" * 32

Headers = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Message:
    """One request or answer as it came: first line, headers as spelt, body without its framing."""

    start: str
    headers: Headers
    body: bytes = b""
    trailers: Headers = ()
    chunks: tuple[bytes, ...] = ()

    @property
    def status(self) -> int:
        return int(self.start.split(" ")[1])

    def all(self, name: str) -> list[str]:
        """Every value of a header."""
        return [value for key, value in self.headers if key.lower() == name.lower()]

    def get(self, name: str) -> str | None:
        """The value of a header that must not stand there twice."""
        values = self.all(name)
        assert len(values) <= 1, f"{name} stands there {len(values)} times"
        return values[0] if values else None

    def __getitem__(self, name: str) -> str:
        value = self.get(name)
        assert value is not None, f"no {name} in {self.headers}"
        return value

    def __contains__(self, name: str) -> bool:
        return bool(self.all(name))

    @property
    def error(self) -> str | None:
        """The slug of an answer that is the router's own."""
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
    """The bytes of a request. `length` None leaves Content-Length out, another number than -1 replaces it."""
    lines = [f"{method} {path} HTTP/{version}"]
    if host is not None:
        lines.append(f"Host: {host}")
    if key is not None:
        lines.append(f"Authorization: Bearer {key}")
    if length is not None:
        lines.append(f"Content-Length: {len(body) if length == -1 else length}")
    return "\r\n".join([*lines, *headers, "", ""]).encode("latin-1") + body


def get(*headers: str, path: str = "/api/v1/service/iris/score") -> bytes:
    """The bytes of a request without a body."""
    return post(b"", *headers, path=path, method="GET", length=None)


def chunked(*pieces: bytes, trailers: str = "", end: bool = True) -> bytes:
    """A body in chunks."""
    framed = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
    return framed + (b"0\r\n" + trailers.encode() + b"\r\n" if end else b"")


def post_chunked(*pieces: bytes, trailers: str = "", end: bool = True, headers: tuple[str, ...] = ()) -> bytes:
    """The bytes of a request whose body comes in chunks."""
    return post(b"", "Transfer-Encoding: chunked", *headers, length=None) + chunked(*pieces, trailers=trailers, end=end)


def ok(body: bytes = b"[1]", *headers: str, status: str = "200 OK", length: int | None = -1) -> bytes:
    """The bytes of an answer."""
    lines = [f"HTTP/1.1 {status}"]
    if length is not None:
        lines.append(f"Content-Length: {len(body) if length == -1 else length}")
    return "\r\n".join([*lines, *headers, "", ""]).encode("latin-1") + body


def ok_chunked(*pieces: bytes, trailers: str = "", end: bool = True, headers: tuple[str, ...] = ()) -> bytes:
    """The bytes of an answer whose body comes in chunks."""
    return ok(b"", "Transfer-Encoding: chunked", *headers, length=None) + chunked(*pieces, trailers=trailers, end=end)


async def turns(count: int = 6) -> None:
    """Let the event loop take a few turns, enough for bytes in flight on this machine to arrive and be handled."""
    for _ in range(count):
        await asyncio.sleep(0)


class Line(asyncio.Protocol):
    """One end of a TCP connection, played by a test. Never reads, answers or closes by itself."""

    def __init__(self, made: Callable[[Line], None] | None = None) -> None:
        self.transport: asyncio.Transport
        self.received = bytearray()
        self.total = 0  # bytes received in all
        self.keeps = True  # False: count only, for bodies too large to look at
        self.ended = False  # the other side has closed or reset
        self.was_reset = False
        self._made = made
        self._news = asyncio.Event()

    # Told by the event loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        if self._made is not None:
            self._made(self)

    def data_received(self, data: bytes) -> None:
        self.total += len(data)
        if self.keeps:
            self.received += data
        self._news.set()

    def eof_received(self) -> bool:
        self.ended = True
        self._news.set()
        return True  # this end stays open until the test closes it

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended = True
        self.was_reset = self.was_reset or isinstance(exc, ConnectionResetError)
        self._news.set()

    # Speak.

    def send(self, *pieces: bytes) -> Line:
        """Send bytes."""
        for piece in pieces:
            self.transport.write(piece)
        return self

    async def dribble(self, *pieces: bytes) -> None:
        """Send bytes so that each piece arrives by itself."""
        for piece in pieces:
            self.transport.write(piece)
            await turns()

    def finish(self) -> None:
        """Close the direction away from here (FIN), go on reading."""
        self.transport.write_eof()

    def close(self) -> None:
        """Close in good order, after what was sent."""
        self.transport.close()

    def reset(self) -> None:
        """Break the connection off (RST)."""
        sock = self.transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    def stop_reading(self) -> None:
        self.transport.pause_reading()

    def read_on(self) -> None:
        self.transport.resume_reading()

    def listen_on(self) -> None:
        """Read whatever comes from now on, and forget it."""
        self.keeps = False
        if not self.transport.is_closing():
            self.transport.resume_reading()

    # Listen.

    async def until(self, holds: Callable[[], object], what: str) -> None:
        """Wait until bytes or the end make it hold."""
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                while not holds():
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            raise AssertionError(f"no {what}; so far: {bytes(self.received[-2000:])!r}, ended: {self.ended}") from None

    async def take(self, size: int) -> bytes:
        """The next so many bytes."""
        await self.until(lambda: len(self.received) >= size or self.ended, f"{size} bytes")
        assert len(self.received) >= size, f"ended after {bytes(self.received[-2000:])!r}"
        taken = bytes(self.received[:size])
        del self.received[:size]
        return taken

    async def take_line(self) -> bytes:
        return await self._through(b"\r\n")

    async def _through(self, marker: bytes) -> bytes:
        await self.until(lambda: marker in self.received or self.ended, repr(marker))
        assert marker in self.received, f"ended before {marker!r}: {bytes(self.received[-2000:])!r}"
        return await self.take(self.received.index(marker) + len(marker))

    async def head(self) -> Message:
        """The next head."""
        head = await self._through(b"\r\n\r\n")
        assert re.fullmatch(rb"(?:[^\r\n\0]+\r\n)+\r\n", head), f"not a head: {head!r}"
        start, *lines = head.decode("latin-1").split("\r\n")[:-2]
        return Message(start, _fields(lines))

    async def message(self, *, until_close: bool = False) -> Message:
        """The next request or answer, whole. `until_close`: its body ends with the connection if nothing else ends it.

        Fails when the body is cut short.
        """
        head = await self.head()
        bodiless = head.start.startswith("HTTP/1.1 ") and (head.status < 200 or head.status in (204, 304))
        if bodiless:
            return head
        if head.get("transfer-encoding") == "chunked":
            chunks: list[bytes] = []
            while size := int(await self.take_line(), 16):
                chunks.append(await self.take(size))
                assert await self.take(2) == b"\r\n"
            lines = []
            while (line := await self.take_line()) != b"\r\n":
                lines.append(line[:-2].decode("latin-1"))
            return Message(head.start, head.headers, b"".join(chunks), _fields(lines), tuple(chunks))
        length = head.get("content-length")
        if length is not None:
            return Message(head.start, head.headers, await self.take(int(length)))
        if until_close:
            return Message(head.start, head.headers, await self.rest())
        return head

    async def end(self) -> None:
        """Wait until the other side has closed."""
        await self.until(lambda: self.ended, "end")

    async def rest(self) -> bytes:
        """All that comes before the other side closes."""
        await self.end()
        return await self.take(len(self.received))


def _fields(lines: list[str]) -> Headers:
    return tuple((name, value) for name, _, value in (line.partition(": ") for line in lines))
