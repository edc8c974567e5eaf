"""The worker's part of data collection: copies what passes through exchanges into packets for the collector.

Theory of operation. `CollectionOutbox` gathers frames for some milliseconds, and sends them without waiting. What the
socket does not take is kept, up to a limit. Above it pieces of bodies are dropped, and the exchange is marked as
truncated. An exchange that begins while even its metadata has no room is not collected, and counted. So is one whose
metadata is too long for a packet.

Compiled by mypyc, and imported by the gateway: it needs none of the collector's libraries.
"""

from __future__ import annotations

import asyncio
import os
import random
import select
import socket
from collections import deque
from collections.abc import Iterable
from time import monotonic
from typing import Final

from router.collection.frames import (
    BEGIN,
    END,
    MAX_PACKET_BYTES,
    MAX_PIECE_BYTES,
    REQUEST_COMPLETE,
    REQUEST_DATA,
    REQUEST_TRUNCATED,
    RESPONSE,
    RESPONSE_COMPLETE,
    RESPONSE_DATA,
    RESPONSE_TRUNCATED,
    RESTART,
    end_payload,
    frame,
    join_fields,
    packet_head,
)
from router.model import data_collection
from router.model.data_collection import DataCollector
from router.model.services import VersionKey
from router.telemetry.counters import VersionCounters

_GATHER_SECONDS: Final = 0.02
"""Time in which frames gather in a packet. A system call, and a collector that wakes up, for each request would cost
requests more than all else."""
_MAX_CONTENT_TYPE_BYTES: Final = 1024  # of a response
_RETRY_SECONDS: Final = 0.1  # after an error of the socket other than a full buffer


class CollectionRule:
    """What is collected of a version's exchanges."""

    __slots__ = ("headers", "key", "rate", "requests", "responses")

    def __init__(self, key: VersionKey, collector: DataCollector) -> None:
        self.key = key
        self.rate: float = collector.sampling_rate
        self.requests: bool = collector.collection(data_collection.REQUEST) is not None
        self.responses: bool = collector.collection(data_collection.RESPONSE) is not None
        self.headers = frozenset([name.encode() for name in collector.capture_headers])

    def is_sampled(self) -> bool:
        """Return True if the next exchange is collected."""
        return self.rate >= 1.0 or random.random() < self.rate


def collection_rule(key: VersionKey, collector: DataCollector | None) -> CollectionRule | None:
    """Return the rule of a version; None if the router itself collects nothing of it."""
    if collector is None or not collector.sampling_rate:
        return None
    rule = CollectionRule(key, collector)
    return rule if rule.requests or rule.responses else None


class _Packet:
    """A packet that was not sent yet."""

    __slots__ = ("ended", "frames", "size")

    def __init__(self, head: bytes) -> None:
        self.frames: list[bytes] = [head]
        self.size = len(head)
        self.ended: list[tuple[VersionCounters, int]] = []
        """Of each exchange that ends in this packet: its counters, and its number of events."""


class CollectionOutbox:
    """The packets of one worker that the collector has not taken yet."""

    __slots__ = (
        "_blocked", "_head", "_limit", "_loop", "_metadata_limit", "_number", "_packets", "_scheduled", "_size",
        "_socket", "_waits",
    )  # fmt: skip

    def __init__(self, loop: asyncio.AbstractEventLoop, sock: socket.socket, limit: int) -> None:
        """`sock` does not block. `limit`: maximum bytes that wait; metadata may exceed it by a quarter."""
        self._loop = loop
        self._socket = sock
        self._limit = limit
        self._metadata_limit: int = limit + limit // 4
        self._head = packet_head(os.getpid())
        self._number = 0
        self._packets: deque[_Packet] = deque()
        self._size = 0
        self._scheduled = False  # a flush, soon
        self._blocked = False  # until the socket is writable
        self._waits = False  # after an error

    @property
    def size(self) -> int:
        """Bytes that wait."""
        return self._size

    def has_room(self, size: int) -> bool:
        """Return True if there is room for `size` bytes of bodies."""
        return self._size + size <= self._limit

    def has_room_for_metadata(self, size: int) -> bool:
        """Return True if there is room for `size` bytes of metadata."""
        return self._size + size <= self._metadata_limit

    def next_number(self) -> int:
        """Return the number of the next exchange."""
        self._number += 1
        return self._number

    def put(self, data: bytes) -> _Packet:
        """Send a frame soon. Return its packet."""
        packets = self._packets
        packet = packets[-1] if packets else None
        if packet is None or packet.size + len(data) > MAX_PACKET_BYTES:
            if packet is not None and not self._blocked and not self._waits:
                self.flush()
            packet = _Packet(self._head)
            packets.append(packet)
        packet.frames.append(data)
        packet.size += len(data)
        self._size += len(data)
        if not self._scheduled and not self._blocked and not self._waits:
            self._scheduled = True
            self._loop.call_later(_GATHER_SECONDS, self._flush_scheduled)
        return packet

    def _flush_scheduled(self) -> None:
        self._scheduled = False
        self.flush()

    def flush(self) -> None:
        """Send what the socket takes."""
        self._waits = False
        packets = self._packets
        while packets:
            packet = packets[0]
            try:
                self._socket.sendmsg(packet.frames)
            except BlockingIOError:
                if not self._blocked:
                    self._blocked = True
                    self._loop.add_writer(self._socket.fileno(), self._on_writable)
                return
            except OSError:
                self._waits = True
                self._loop.call_later(_RETRY_SECONDS, self.flush)
                return
            packets.popleft()
            self._size -= packet.size - len(self._head)

    def _on_writable(self) -> None:
        self._loop.remove_writer(self._socket.fileno())
        self._blocked = False
        self.flush()

    def drain(self, seconds: float) -> None:
        """Send everything, at the end of the process. Waits for the collector, for at most `seconds`."""
        poll = select.poll()
        poll.register(self._socket.fileno(), select.POLLOUT)
        deadline = monotonic() + seconds
        self.flush()
        while self._packets and monotonic() < deadline:
            poll.poll(1000 * (deadline - monotonic()))
            self.flush()

    def close(self) -> None:
        """Send no more. Count the events of exchanges whose end was not sent."""
        if self._blocked:
            self._loop.remove_writer(self._socket.fileno())
        self._blocked = True
        for packet in self._packets:
            for counters, events in packet.ended:
                counters.collection_dropped += events
        self._packets.clear()
        self._size = 0


class ExchangeTap:
    """Copies one exchange into an outbox. Its methods are called in the order of the exchange."""

    __slots__ = (
        "_counters", "_flags", "_number", "_outbox", "_request_bytes", "_responding", "_response_bytes", "_rule",
        "_sent", "response_complete",
    )  # fmt: skip

    def __init__(self, outbox: CollectionOutbox, rule: CollectionRule, counters: VersionCounters) -> None:
        self._outbox = outbox
        self._rule = rule
        self._counters = counters
        self._number = 0  # none: BEGIN had no room, or is too long for a packet
        self._sent = False
        self._flags = self._request_bytes = self._response_bytes = 0
        self._responding = False
        self.response_complete = False
        """Set by the exchange before its end."""

    def on_request(
        self, time: float, request_id: bytes, method: bytes, path: bytes, lines: list[bytes], pieces: list[bytes]
    ) -> None:
        """The request is sent to a replica: its header lines (of which the first element is not one), and what was
        received of its body. Call this again if it is sent to another replica."""
        outbox, rule = self._outbox, self._rule
        if not self._sent:
            self._sent = True
            captured, content_type = _captured(lines, rule.headers)
            logs_request = b"1" if rule.requests else b"0"
            service, version = rule.key
            fields = [
                service.encode(), version.encode(), request_id, b"%.3f" % time, logs_request, method, path,
                content_type, *captured,
            ]  # fmt: skip
            payload = join_fields(fields)
            if len(payload) > MAX_PIECE_BYTES or not outbox.has_room_for_metadata(len(payload)):
                return
            self._number = outbox.next_number()
            outbox.put(frame(BEGIN, self._number, payload))
        elif self._number:
            self._request_bytes = 0
            self._flags &= ~REQUEST_TRUNCATED
            outbox.put(frame(RESTART, self._number, b""))
        self.on_request_body(pieces)

    def on_request_body(self, pieces: list[bytes]) -> None:
        """More of the body is sent to the replica."""
        for piece in pieces:
            self._request_bytes += len(piece)
            if self._number and self._rule.requests and not self._flags & REQUEST_TRUNCATED:
                if self._outbox.has_room(len(piece)):
                    self._put_piece(REQUEST_DATA, piece)
                else:
                    self._flags |= REQUEST_TRUNCATED

    def on_response(self, time: float, status: int, lines: list[bytes], pieces: list[bytes]) -> None:
        """The response has begun: its header lines (of which the first element is not one), and what was received of
        its body."""
        self._responding = True
        if self._number and self._rule.responses:
            _, content_type = _captured(lines, frozenset())
            service, version = self._rule.key
            fields = [
                service.encode(), version.encode(), b"%.3f" % time, b"%d" % status,
                content_type[:_MAX_CONTENT_TYPE_BYTES],
            ]  # fmt: skip
            self._outbox.put(frame(RESPONSE, self._number, join_fields(fields)))
        self.on_response_body(pieces)

    def on_response_body(self, pieces: list[bytes]) -> None:
        """More of the body of the response has arrived."""
        for piece in pieces:
            self._response_bytes += len(piece)
            if self._number and self._rule.responses and not self._flags & RESPONSE_TRUNCATED:
                if self._outbox.has_room(len(piece)):
                    self._put_piece(RESPONSE_DATA, piece)
                else:
                    self._flags |= RESPONSE_TRUNCATED

    def _put_piece(self, kind: int, piece: bytes) -> None:
        if len(piece) <= MAX_PIECE_BYTES:
            if piece:
                self._outbox.put(frame(kind, self._number, piece))
            return
        for start in range(0, len(piece), MAX_PIECE_BYTES):
            self._outbox.put(frame(kind, self._number, piece[start : start + MAX_PIECE_BYTES]))

    def on_end(self, request_complete: bool) -> None:
        """The exchange has ended. `request_complete`: the body of the request was received completely."""
        if not self._sent:
            return
        rule = self._rule
        events = (1 if rule.requests else 0) + (1 if rule.responses and self._responding else 0)
        if not self._number:
            self._counters.collection_dropped += events
            return
        if request_complete:
            self._flags |= REQUEST_COMPLETE
        if self.response_complete:
            self._flags |= RESPONSE_COMPLETE
        payload = end_payload(self._flags, self._request_bytes, self._response_bytes)
        packet = self._outbox.put(frame(END, self._number, payload))
        packet.ended.append((self._counters, events))


def _captured(lines: Iterable[bytes], names: frozenset[bytes]) -> tuple[list[bytes], bytes]:
    """Return the names and values of the header fields with these names, and the value of Content-Type."""
    captured: list[bytes] = []
    content_type = b""
    for line in lines:
        name, _, value = line.partition(b":")
        if len(name) == 12 and name.lower() == b"content-type":
            content_type = value.strip()
        if names and name.lower() in names:
            captured += (name.lower(), value.strip())
    return captured, content_type
