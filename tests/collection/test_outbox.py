"""The worker's part: what passes through exchanges arrives in packets, within a bounded buffer, and never blocks."""

import asyncio
import os
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from router.collection.frame_reader import Frame, begun_events, frames, parse_end, split_fields
from router.collection.frames import (
    BEGIN,
    END,
    MAX_PACKET_BYTES,
    REQUEST_COMPLETE,
    REQUEST_DATA,
    REQUEST_TRUNCATED,
    RESPONSE,
    RESPONSE_COMPLETE,
    RESPONSE_DATA,
    RESTART,
)
from router.collection.outbox import CollectionOutbox, CollectionRule, ExchangeTap, collection_rule
from router.model.data_collection import PAYLOADS, Collection, DataCollector
from router.telemetry.counters import VersionCounters

KEY = ("iris", "blue")
RESPONSES = DataCollector((Collection("response", True),))
LINES = [b"", b"Content-Type: application/json", b"X-Tenant: a", b"Authorization: Bearer secret"]


class Sockets:
    """Both ends of the packets' socket."""

    def __init__(self) -> None:
        self.reader, self.writer = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.reader.setblocking(False)
        self.writer.setblocking(False)
        self.received: list[Frame] = []
        self._outboxes: list[CollectionOutbox] = []

    def outbox(self, limit: int = 2**20) -> CollectionOutbox:
        self._outboxes.append(CollectionOutbox(asyncio.get_running_loop(), self.writer, limit))
        return self._outboxes[-1]

    def read(self) -> list[Frame]:
        """Send what the socket takes, read it, and return all frames so far."""
        for outbox in self._outboxes:
            outbox.flush()
        return self.receive()

    def receive(self) -> list[Frame]:
        """Read the socket, and return all frames so far."""
        while True:
            try:
                packet = self.reader.recv(2 * MAX_PACKET_BYTES)
            except BlockingIOError:
                return self.received
            assert len(packet) <= MAX_PACKET_BYTES
            self.received += frames(memoryview(packet))


@contextmanager
def sockets() -> Iterator[Sockets]:
    pair = Sockets()
    try:
        yield pair
    finally:
        pair.reader.close()
        pair.writer.close()


def score(tap: ExchangeTap, request: bytes, response: bytes) -> None:
    """Let one exchange pass."""
    tap.on_request(12.5, b"id", b"POST", b"/score", LINES, [request])
    tap.on_response(13.0, 200, LINES, [response])
    tap.response_complete = True
    tap.on_end(True)


def body(received: list[Frame], kind: int, number: int = 1) -> bytes:
    return b"".join(bytes(frame.payload) for frame in received if (frame.kind, frame.number) == (kind, number))


async def test_events_of_packets_that_nobody_will_read_are_known_by_their_beginnings() -> None:
    with sockets() as pair:
        outbox = pair.outbox()
        both, responses = CollectionRule(KEY, PAYLOADS), CollectionRule(("iris", "green"), RESPONSES)
        for rule in (both, responses):
            score(ExchangeTap(outbox, rule, VersionCounters()), b"[1]", b"[2]")
        no_response = ExchangeTap(outbox, both, VersionCounters())
        no_response.on_request(12.5, b"id", b"POST", b"/score", LINES, [b"[1]"])
        no_response.on_end(True)
        outbox.flush()
        packet = memoryview(pair.reader.recv(2 * MAX_PACKET_BYTES))
    assert Counter(begun_events(packet)) == {KEY: 3, ("iris", "green"): 1}


async def test_exchange_arrives_with_its_head_and_bodies() -> None:
    with sockets() as pair:
        collector = DataCollector(PAYLOADS.collections, capture_headers=("x-tenant",))
        tap = ExchangeTap(pair.outbox(), CollectionRule(KEY, collector), VersionCounters())
        score(tap, b"[1]", b"[2]")
        await asyncio.sleep(0)
        begin, request, response, data, end = pair.read()
    assert [frame.kind for frame in pair.received] == [BEGIN, REQUEST_DATA, RESPONSE, RESPONSE_DATA, END]
    assert split_fields(begin.payload) == [
        b"iris", b"blue", b"id", b"12.500", b"1", b"POST", b"/score", b"application/json", b"x-tenant", b"a"
    ]  # fmt: skip
    assert (bytes(request.payload), bytes(data.payload)) == (b"[1]", b"[2]")
    assert split_fields(response.payload) == [b"iris", b"blue", b"13.000", b"200", b"application/json"]
    assert parse_end(end.payload) == (REQUEST_COMPLETE | RESPONSE_COMPLETE, 3, 3)
    assert {frame.sender for frame in pair.received} == {os.getpid()}


async def test_long_body_is_cut_into_packets() -> None:
    with sockets() as pair:
        tap = ExchangeTap(pair.outbox(), CollectionRule(KEY, PAYLOADS), VersionCounters())
        data = os.urandom(150_000)
        score(tap, data, b"")
        await asyncio.sleep(0)
        assert body(pair.read(), REQUEST_DATA) == data


async def test_repeated_request_restarts_its_body() -> None:
    with sockets() as pair:
        tap = ExchangeTap(pair.outbox(), CollectionRule(KEY, PAYLOADS), VersionCounters())
        tap.on_request(1.0, b"id", b"POST", b"/score", LINES, [b"ab"])
        tap.on_request(2.0, b"id", b"POST", b"/score", LINES, [b"ab", b"c"])
        tap.on_end(True)
        await asyncio.sleep(0)
        received = pair.read()
    kinds = [BEGIN, REQUEST_DATA, RESTART, REQUEST_DATA, REQUEST_DATA, END]
    assert [frame.kind for frame in received] == kinds
    assert parse_end(received[-1].payload).request_bytes == 3


async def test_full_buffer_truncates_bodies_and_then_drops_exchanges_without_waiting() -> None:
    with sockets() as pair:
        counters = VersionCounters()
        outbox = pair.outbox(limit=100_000)
        number = 0
        while not counters.collection_dropped:  # nothing is read
            number += 1
            score(ExchangeTap(outbox, CollectionRule(KEY, PAYLOADS), counters), b"x" * 40_000, b"y")
            await asyncio.sleep(0)
            assert outbox.size <= 130_000
            assert number < 100_000
        while outbox.size:
            pair.read()
            await asyncio.sleep(0)
        received = pair.read()
        ends = {frame.number: parse_end(frame.payload) for frame in received if frame.kind == END}
    assert counters.collection_dropped == 2
    assert len(ends) == number - 1  # all but the dropped one have their metadata
    kinds = Counter(bool(end.flags & REQUEST_TRUNCATED) for end in ends.values())
    assert kinds[True] > 0
    for exchange, end in ends.items():
        assert end.request_bytes == 40_000
        if not end.flags & REQUEST_TRUNCATED:
            assert len(body(received, REQUEST_DATA, exchange)) == 40_000


async def test_heads_that_are_too_long_for_a_packet_do_not_stop_others() -> None:
    with sockets() as pair:
        counters = VersionCounters()
        outbox, rule = pair.outbox(), CollectionRule(KEY, PAYLOADS)
        long_path, long_type = ExchangeTap(outbox, rule, counters), ExchangeTap(outbox, rule, counters)
        for tap, path, value in ((long_path, b"/" + b"p" * 300_000, b"a/b"), (long_type, b"/score", b"a" * 300_000)):
            tap.on_request(12.5, b"id", b"POST", path, LINES, [b"1"])
            tap.on_response(13.0, 200, [b"", b"Content-Type: " + value], [b"2"])
            tap.on_end(True)
        score(ExchangeTap(outbox, rule, counters), b"request", b"response")
        received = pair.read()
    assert counters.collection_dropped == 2  # those of the long path
    assert [frame.kind for frame in received if frame.number == 1][-1] == END
    assert (body(received, RESPONSE_DATA, 1), body(received, RESPONSE_DATA, 2)) == (b"2", b"response")
    assert outbox.size == 0


async def test_events_that_were_not_sent_are_counted_at_the_end() -> None:
    with sockets() as pair:
        counters = VersionCounters()
        outbox = pair.outbox()
        total = 0
        while outbox.size < 200_000:  # the socket is full
            score(ExchangeTap(outbox, CollectionRule(KEY, PAYLOADS), counters), b"x" * 10_000, b"y")
            total += 1
            await asyncio.sleep(0)
        outbox.drain(0.01)
        outbox.close()
        received = pair.read()
        arrived = sum(frame.kind == END for frame in received)
    assert 0 < arrived < total
    assert counters.collection_dropped == 2 * (total - arrived)


async def test_drain_waits_for_the_collector() -> None:
    with sockets() as pair:
        outbox = pair.outbox()
        counters = VersionCounters()
        while outbox.size < 200_000:
            score(ExchangeTap(outbox, CollectionRule(KEY, PAYLOADS), counters), b"x" * 10_000, b"y")
            await asyncio.sleep(0)

        def read_all() -> None:
            while outbox.size:
                pair.receive()  # an outbox belongs to one thread

        reading = asyncio.get_running_loop().run_in_executor(None, read_all)
        outbox.drain(60.0)
        assert outbox.size == 0
        await reading
        outbox.close()
    assert counters.collection_dropped == 0


async def test_workers_share_the_socket_without_mixing_their_packets() -> None:
    with sockets() as pair:
        outboxes = [pair.outbox(), pair.outbox()]
        for number in range(50):
            for name, outbox in zip((b"a", b"b"), outboxes, strict=True):
                score(ExchangeTap(outbox, CollectionRule(KEY, PAYLOADS), VersionCounters()), name * 3_000, b"")
            await asyncio.sleep(0)
            pair.read()
            assert number < 50
        while any(outbox.size for outbox in outboxes):
            await asyncio.sleep(0)
            pair.read()
        data = [bytes(frame.payload) for frame in pair.read() if frame.kind == REQUEST_DATA]
    assert Counter(data) == {b"a" * 3_000: 50, b"b" * 3_000: 50}


def test_versions_that_collect_no_payload_have_no_rule() -> None:
    only_custom = DataCollector((Collection("model_inputs", True), Collection("request", False)))
    assert collection_rule(KEY, None) is None
    assert collection_rule(KEY, only_custom) is None
    assert collection_rule(KEY, DataCollector(PAYLOADS.collections, 0.0)) is None
    rule = collection_rule(KEY, DataCollector((Collection("response", True),), 0.25))
    assert rule is not None
    assert (rule.requests, rule.responses) == (False, True)
    assert 0.2 < sum(rule.is_sampled() for _ in range(10_000)) / 10_000 < 0.3
