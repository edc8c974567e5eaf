"""A gateway with real client and replica connections over in-memory transports.

Nothing here waits for time or a socket, so a fuzzer runs thousands of inputs per second. Its own strict parser
(`parse_message`) checks the bytes that the gateway writes.
"""

from __future__ import annotations

import asyncio
import logging
import re
import sys
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from router.config.router import load_settings
from router.config.service import parse_service
from router.gateway.client_connection import ClientConnection
from router.gateway.gateway import Gateway
from router.gateway.http2_connection import Http2Connection
from router.gateway.pool import ReplicaPool
from router.gateway.replica_connection import ReplicaConnection
from router.http.streams import ReplicaStream
from router.model.services import Replica, ReplicaState, VersionKey
from router.model.version_replicas import VersionReplicas
from router.slots.messages import ToLedger
from router.telemetry.access_log import AccessLog

Client = ClientConnection | Http2Connection

_REQUEST_LINE = re.compile(rb"(?:GET|POST) /[^\x00-\x20#\x7f-\xff]* HTTP/1\.1")
_STATUS_LINE = re.compile(rb"HTTP/1\.1 ([1-9][0-9]{2}) [^\x00-\x08\x0a-\x1f\x7f]*")
_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\x00-\x08\x0a-\x1f\x7f]*)")


class MemoryTransport(asyncio.Transport):
    """Keeps the written bytes, and whether it was closed."""

    def __init__(self) -> None:
        super().__init__()
        self.written = bytearray()
        self.closed = False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("127.0.0.1", 1) if name == "peername" else default

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.closed, "write to a closed connection"
        self.written += data

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    abort = close

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        """Do nothing: the end of the written bytes is already known."""

    def pause_reading(self) -> None:
        """Do nothing: a socket may also deliver data that was read before the pause."""

    def resume_reading(self) -> None:
        """Do nothing, like `pause_reading`."""

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Do nothing: there is no buffer."""

    def get_write_buffer_size(self) -> int:
        return 0


class _Pool(ReplicaPool):
    """Opens connections immediately, and appends them to `opened`."""

    __slots__ = ("_opened",)

    def __init__(self, opened: list[ReplicaConnection], *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._opened = opened

    def take(self, now: float) -> ReplicaStream:
        stream = super().take(now)
        if stream is None:
            stream = connection = ReplicaConnection(self.rules, self.turns, self.discard)
            connection.connection_made(MemoryTransport())
            self._opened.append(connection)
        return stream


class _FaultRecorder(logging.Handler):
    """Keeps what the gateway logs as faults of the router. Invalid responses, which are warnings, are expected here."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.faults: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.faults.append(f"{record.getMessage()}: {record.exc_info}")


class _Gateway(Gateway):
    """Creates in-memory pools. `opened` gets the connections that they open."""

    def __init__(self, send: Callable[[VersionKey, Sequence[ToLedger]], None]) -> None:
        super().__init__(load_settings(environ={}, file={"http2": "on"}), AccessLog(0.0, sys.stderr), send)
        self.opened: list[ReplicaConnection] = []

    def _make_pool(self, replica: Replica) -> ReplicaPool:
        return _Pool(
            self.opened, self._loop, replica.id, "", 0,
            rules=self._response_rules, settings=self.settings, turns=self.context.turns,
        )  # fmt: skip


class InMemoryGateway:
    """One gateway for all inputs, with one service that has no authentication and no concurrency limit."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._recorder = _FaultRecorder()
        logging.getLogger("router.gateway").addHandler(self._recorder)
        self.gateway = self._loop.run_until_complete(self._make())

    async def _make(self) -> _Gateway:
        def send(_: object, messages: Sequence[ToLedger]) -> None:
            """Do nothing: there is no ledger."""

        gateway = _Gateway(send)
        settings = {"auth_enabled": False, "num_replicas": 1, "replica_max_concurrent_requests": 0}
        gateway.apply({"iris": parse_service("iris", settings)})
        replica = Replica("r", "127.0.0.1", 1, ReplicaState.READY)
        gateway.set_replicas(("iris", "default"), VersionReplicas((replica,)))
        return gateway

    def run(self, target: Coroutine[Any, Any, None]) -> None:
        """Run a target in the event loop of the gateway."""
        self._loop.run_until_complete(target)

    async def finish_turns(self, client: Client) -> None:
        """Let the event loop turn until all connections have done the work that they left for later turns."""
        while (
            client._backlog.waiting
            or getattr(client, "_flush_scheduled", False)
            or any(replica._backlog.waiting for replica in self.gateway.opened)
        ):
            await asyncio.sleep(0)

    def connect_client(self) -> tuple[ClientConnection, MemoryTransport]:
        """Connect a client. Called once at the start of each input."""
        self._recorder.faults.clear()  # of other tests
        connection, transport = ClientConnection(self.gateway.context, self.gateway.clients), MemoryTransport()
        connection.connection_made(transport)
        return connection, transport

    def connect_http2_client(self) -> tuple[Http2Connection, MemoryTransport]:
        """Connect a client that has chosen HTTP/2."""
        self._recorder.faults.clear()
        connection = Http2Connection(self.gateway.context, self.gateway.clients, secure=False)
        transport = MemoryTransport()
        connection.connection_made(transport)
        return connection, transport

    @property
    def replicas(self) -> list[ReplicaConnection]:
        """The replica connections that this input has opened."""
        return self.gateway.opened

    def finish_input(self, *clients: Client) -> None:
        """Disconnect the clients. Check that nothing of this input remains in the gateway."""
        for client in clients:
            client.connection_lost(None)
        for replica in self.gateway.opened:
            replica.connection_lost(None)
        self.gateway.opened.clear()
        route = self.gateway.versions["iris", "default"]
        assert not self._recorder.faults, self._recorder.faults
        assert route.lease_cache.busy == 0, "a request is still counted"
        assert not route.lease_cache.waiters, "a request is still queued"
        assert not len(route.scoring_timeouts), "a timeout is still pending"
        assert not len(self.gateway.clients), "a client is still counted"


@dataclass(frozen=True, slots=True)
class ParsedMessage:
    """A complete message, or the start of one with the `end` -1."""

    status: int  # 0 for a request
    fields: list[tuple[bytes, bytes]]
    body: bytes
    end: int  # offset of the next message


def parse_message(data: bytes, start: int) -> ParsedMessage | None:
    """Parse the message at `start` strictly. Return None if its head is incomplete.

    Raises `AssertionError` for bytes that no HTTP/1.1 implementation may write.
    """
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


def _with_body(status: int, fields: list[tuple[bytes, bytes]], data: bytes, start: int) -> ParsedMessage:
    codings = [value for name, value in fields if name == b"transfer-encoding"]
    lengths = [value for name, value in fields if name == b"content-length"]
    assert len(codings) + len(lengths) <= 1, fields
    if 100 <= status < 200 or status in (204, 304):
        assert not codings
        return ParsedMessage(status, fields, b"", start)
    if codings:
        assert codings == [b"chunked"]
        body, end = _chunks(data, start)
        return ParsedMessage(status, fields, body, end)
    length = int(lengths[0]) if lengths else 0
    assert not lengths or lengths[0] == b"%d" % length, lengths
    end = start + length
    return ParsedMessage(status, fields, data[start:end], end if end <= len(data) else -1)


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
