"""A gateway on a bench: real connections of clients and replicas, whose transports are lists of bytes.

Nothing here waits or touches a socket, so that a fuzzer plays thousands of stories a second. What it hands in is judged
by a reader of its own (`whole_message`), which takes nothing but the strictest HTTP.
"""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from router.gateway.downstream import ClientConnection
from router.gateway.gateway import Gateway
from router.gateway.pool import ReplicaPool
from router.gateway.upstream import ReplicaConnection
from router.services import Replica, ReplicaState, parse_service
from router.settings import load_settings
from router.slots.messages import ToLedger
from router.telemetry.access_log import AccessLog

_TURN_EVERY = 200  # stories, after which the event loop may forget its cancelled timers
_REQUEST_LINE = re.compile(rb"(?:GET|POST) /[^\x00-\x20#\x7f-\xff]* HTTP/1\.1")
_STATUS_LINE = re.compile(rb"HTTP/1\.1 ([1-9][0-9]{2}) [^\x00-\x08\x0a-\x1f\x7f]*")
_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\x00-\x08\x0a-\x1f\x7f]*)")


class Wire(asyncio.Transport):
    """What is written to one end, and whether it is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.written = bytearray()
        self.closed = False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("127.0.0.1", 1) if name == "peername" else default

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.closed, "written to a connection that is closed"
        self.written += data

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    abort = close

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        """The other side reads no more than this."""

    def pause_reading(self) -> None:
        """The story goes on to hand in data: so may a socket whose data has been read already."""

    def resume_reading(self) -> None:
        """See `pause_reading`."""

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """There is no buffer."""

    def get_write_buffer_size(self) -> int:
        return 0


class _Pool(ReplicaPool):
    """Opens connections at once."""

    __slots__ = ("opened",)

    opened: list[ReplicaConnection]

    def take(self) -> ReplicaConnection | None:
        connection = super().take()
        if connection is None:
            connection = ReplicaConnection(self)
            connection.connection_made(Wire())
            self.opened.append(connection)
        return connection


class _Gateway(Gateway):
    """Keeps its faults, and makes pools of this bench."""

    faults: list[BaseException]
    opened: list[ReplicaConnection]

    def log_fault(self, error: BaseException) -> None:
        self.faults.append(error)

    def log_garbled(self, *_: object) -> None:
        """That a replica is garbled is what the story is about."""

    def _make_pool(self, replica: Replica) -> ReplicaPool:
        pool = _Pool(self._loop, replica.id, "", 0, kinds=self._answer_kinds, connect_timeout_seconds=1.0)
        pool.opened = self.opened
        return pool


class Bench:
    """One gateway with one service that needs no key and has no limit, for all stories."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._stories = 0
        self.gateway = self._loop.run_until_complete(self._make())

    async def _make(self) -> _Gateway:
        def send(_: object, messages: Sequence[ToLedger]) -> None:
            """There is no ledger."""

        gateway = _Gateway(load_settings(environ={}), AccessLog(0.0, sys.stderr), send)
        gateway.faults, gateway.opened = [], []
        described = {"auth_enabled": False, "num_replicas": 1, "replica_max_concurrent_requests": 0}
        gateway.apply({"iris": parse_service("iris", described)})
        gateway.set_replicas(("iris", "default"), (Replica("r", "127.0.0.1", 1, ReplicaState.READY),), ())
        return gateway

    def client(self) -> tuple[ClientConnection, Wire]:
        """One more client."""
        connection, wire = ClientConnection(self.gateway), Wire()
        connection.connection_made(wire)
        return connection, wire

    @property
    def replicas(self) -> list[ReplicaConnection]:
        """Connections to replicas that this story has opened."""
        return self.gateway.opened

    def end(self, *clients: ClientConnection) -> None:
        """The clients leave; nothing may be left of them."""
        for client in clients:
            client.connection_lost(None)
        for replica in self.gateway.opened:
            replica.connection_lost(None)
        self.gateway.opened.clear()
        route = self.gateway.versions["iris", "default"]
        faults = self.gateway.faults.copy()
        self.gateway.faults.clear()
        assert not faults, faults
        assert route.holder.busy == 0, "a request is still counted"
        assert not route.holder.waiters, "a request still waits"
        assert not len(route.timeouts), "a timeout is still pending"
        assert not self.gateway.connections, "a client is still counted"
        self._stories += 1
        if self._stories % _TURN_EVERY == 0:
            self._loop.run_until_complete(asyncio.sleep(0))


@dataclass(frozen=True, slots=True)
class Parsed:
    """A message that is whole, or the beginning of one (`end` is then -1)."""

    status: int  # 0: of a request
    fields: list[tuple[bytes, bytes]]
    body: bytes
    end: int  # where the next one begins


def whole_message(data: bytes, start: int) -> Parsed | None:
    """The next message, by the strictest reading; None while its head is not whole. Raises `AssertionError` for what
    nobody may write."""
    head_end = data.find(b"\r\n\r\n", start)
    if head_end < 0:
        return None
    first, *lines = data[start:head_end].split(b"\r\n")
    status_line = _STATUS_LINE.fullmatch(first)
    assert status_line or _REQUEST_LINE.fullmatch(first), first
    status = int(status_line[1]) if status_line else 0
    fields = []
    for line in lines:
        field = _FIELD.fullmatch(line)
        assert field, line
        fields.append((field[1].lower(), field[2]))
    return _with_body(status, fields, data, head_end + 4)


def _with_body(status: int, fields: list[tuple[bytes, bytes]], data: bytes, start: int) -> Parsed:
    codings = [value for name, value in fields if name == b"transfer-encoding"]
    lengths = [value for name, value in fields if name == b"content-length"]
    assert len(codings) + len(lengths) <= 1, fields
    if 100 <= status < 200 or status in (204, 304):
        assert not codings
        return Parsed(status, fields, b"", start)
    if codings:
        assert codings == [b"chunked"]
        body, end = _chunks(data, start)
        return Parsed(status, fields, body, end)
    length = int(lengths[0]) if lengths else 0
    assert not lengths or lengths[0] == b"%d" % length, lengths
    end = start + length
    return Parsed(status, fields, data[start:end], end if end <= len(data) else -1)


def _chunks(data: bytes, start: int) -> tuple[bytes, int]:
    body = b""
    while True:
        line_end = data.find(b"\r\n", start)
        if line_end < 0:
            return body, -1
        line = data[start:line_end]
        assert re.fullmatch(rb"0|[1-9a-f][0-9a-f]{0,15}", line), line
        size = int(line, 16)
        start = line_end + 2
        if not size:
            break
        if len(data) < start + size + 2:
            return body, -1
        assert data[start + size : start + size + 2] == b"\r\n"
        body += data[start : start + size]
        start += size + 2
    while True:
        line_end = data.find(b"\r\n", start)
        if line_end < 0:
            return body, -1
        line, start = data[start:line_end], line_end + 2
        if not line:
            return body, start
        assert _FIELD.fullmatch(line), line
