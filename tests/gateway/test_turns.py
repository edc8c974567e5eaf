"""The work of one connection in a turn of the event loop, whatever its client or replica sends.

The tests count turns, work and writes: none measures time.
"""

from __future__ import annotations

import asyncio
import gc
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from unittest import mock

import pytest

from router.gateway.client_connection import EXCHANGES_PER_TURN, MAX_REFUSALS, WORK_PER_TURN, ClientConnection
from router.gateway.exchange import Exchange
from router.gateway.replica_connection import ReplicaConnection
from router.gateway.request_reader import SMALL_READ_BYTES, RequestReader
from router.net.tls import ClientTls
from router.telemetry.build_info import hot_path
from tests.gateway.harness import GatewayHarness, ScriptedReplica
from tests.gateway.http_connection import KEY, Connection, get, ok, post, post_chunked, run_loop
from tests.gateway.test_tls import TlsPort

COUNTS_CALLS = hot_path() == "interpreted"
"""Compiled code calls methods directly, not by their names, so these tests cannot count its calls."""
needs_counts = pytest.mark.skipif(not COUNTS_CALLS, reason="calls of compiled code cannot be counted")

KEYLESS = b"POST /api/v1/service/iris/score HTTP/1.1\r\nHost: fe\r\nContent-Length: 1\r\n\r\nx"


class Turns:
    """Counts turns of the event loop, and what each object does in them."""

    def __init__(self) -> None:
        self.number = 0
        self.counts: Counter[tuple[int, int]] = Counter()
        self.order: list[object] = []
        self._handle = asyncio.get_running_loop().call_soon(self._tick)

    def _tick(self) -> None:
        self.number += 1
        self._handle = asyncio.get_running_loop().call_soon(self._tick)

    def add(self, actor: object, amount: int = 1) -> None:
        self.counts[self.number, id(actor)] += amount
        if not self.order or self.order[-1] is not actor:
            self.order.append(actor)

    @property
    def most(self) -> int:
        """The most that one object did in a turn; 0 if that cannot be counted."""
        return max(self.counts.values()) if COUNTS_CALLS else 0

    def crowded(self) -> int:
        """Return the number of turns in which more than two objects did something."""
        return sum(count > 2 for count in Counter(turn for turn, _ in self.counts).values())

    def stop(self) -> None:
        self._handle.cancel()


@contextmanager
def counted(owner: type, method: str, count: Callable[..., tuple[object, int]]) -> Iterator[Turns]:
    """Count the calls of a method. `count` gets the arguments of a call, and returns the object and amount to add."""
    turns, original = Turns(), getattr(owner, method)

    def call(*arguments: object) -> object:
        turns.add(*count(*arguments))
        return original(*arguments)

    with mock.patch.object(owner, method, call):
        yield turns
    turns.stop()


def exchanges_begun() -> AbstractContextManager[Turns]:
    """Count the exchanges that each connection begins in a turn."""
    return counted(Exchange, "begin", lambda exchange: (exchange._client, 1))


def bytes_parsed() -> AbstractContextManager[Turns]:
    """Count the bytes that each reader parses in a turn."""
    return counted(RequestReader, "feed", lambda reader, data: (reader, len(data)))


def pieces_parsed() -> AbstractContextManager[Turns]:
    """Count the calls of each parser of a replica in a turn."""
    return counted(ReplicaConnection, "on_body", lambda connection, _: (connection, 1))


# Requests that are answered at once.


@needs_counts
@pytest.mark.parametrize(
    "request_",
    [
        KEYLESS,
        get(path="/nothing"),
        b"DELETE /api/v1/service/iris/score HTTP/1.1\r\nHost:\r\n\r\n",
        b"GET /nothing HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost:\r\n\r\n",
    ],
    ids=["401 with a body", "404", "405", "HTTP/1.0", "200"],
)
async def test_pipelined_requests_are_begun_in_turns(harness: GatewayHarness, request_: bytes) -> None:
    await harness.add_replica()
    client = await harness.client()
    with exchanges_begun() as turns:
        client.send(request_ * (MAX_REFUSALS - 1))
        for _ in range(MAX_REFUSALS - 1):
            await client.read_message()
    assert turns.most <= EXCHANGES_PER_TURN
    assert len(turns.counts) >= (MAX_REFUSALS - 1) // EXCHANGES_PER_TURN
    await harness.response_to(get(path="/"))


@needs_counts
@pytest.mark.parametrize("count", [100, 5000])
async def test_other_clients_are_served_between_pipelined_requests(harness: GatewayHarness, count: int) -> None:
    (await harness.add_replica()).auto_respond()
    flooder, other = await harness.client(), await harness.client()
    flooder.discard_input()
    with exchanges_begun() as turns:
        flooder.send(get(path="/") * count)
        await harness.wait_until(lambda: turns.order, "flood")
        for _ in range(3):
            other.send(post())
            assert (await other.read_message()).status == 200
    assert turns.most <= EXCHANGES_PER_TURN
    assert len(turns.order) >= 6  # each was served between requests of the other
    flooder.close()


async def test_responses_of_one_turn_are_one_write(harness: GatewayHarness) -> None:
    client = await harness.client()
    client.send(get(path="/"))
    await client.read_message()
    with writes_to(harness) as writes:
        client.send(get(path="/") * 10)
        for _ in range(10):
            assert (await client.read_message()).status == 200
    assert len(writes) <= -(-10 // EXCHANGES_PER_TURN) + 1


@pytest.mark.parametrize("request_", [KEYLESS, get(path="/nothing"), get(path="/api/v1/service/none/x")])
@pytest.mark.parametrize("pipelined", [False, True])
async def test_client_that_only_gets_errors_is_closed(
    harness: GatewayHarness, request_: bytes, pipelined: bool
) -> None:
    await harness.add_replica()
    client = await harness.client()
    if pipelined:
        client.send(request_ * 50)
    for number in range(MAX_REFUSALS):
        if not pipelined:
            client.send(request_)
        response = await client.read_message()
        assert response.get("connection") == ("close" if number == MAX_REFUSALS - 1 else None)
    await client.wait_closed()


async def test_client_that_was_served_is_not_closed_for_errors(harness: GatewayHarness) -> None:
    (await harness.add_replica()).auto_respond()
    client = await harness.client()
    client.send(post())
    await client.read_message()
    for _ in range(MAX_REFUSALS + 1):
        client.send(KEYLESS)
        assert (await client.read_message()).status == 401
    client.send(post())
    assert (await client.read_message()).status == 200


# Bodies in small chunks.


def chunks(body: bytes, size: int, extension: bytes = b"") -> bytes:
    """Return a body in chunks of `size` bytes."""
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%x%b\r\n%b\r\n" % (len(piece), extension, piece) for piece in pieces)


HEAD = post_chunked(end=False)
RESPONSE_HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
MAX_RECORDS = 70
"""That a connection may decrypt in a turn, if they are tiny. The last read of a turn finds no more."""


@pytest.mark.parametrize("buffered", [True, False])
@pytest.mark.parametrize(("size", "extension"), [(2, b""), (3, b""), (1, b";a"), (9, b";extension=12345678")], ids=str)
async def test_body_that_is_mostly_framing_is_refused(
    harness: GatewayHarness, size: int, extension: bytes, buffered: bool
) -> None:
    harness.set_service("iris", request_buffering=buffered)
    await harness.add_replica()
    client = await harness.client()
    with bytes_parsed() as turns:
        client.send(HEAD + chunks(b"x" * 60_000, size, extension))
        response = await client.read_message()
    assert (response.status, response.error_code) == (400, "bad-request")
    assert b"framing" in response.body or b"chunks" in response.body
    assert turns.most <= WORK_PER_TURN


@pytest.mark.parametrize(
    ("size", "length"), [(1, 4_000), (2, 10_000), (5, 300_000), (20, 300_000), (4_000, 600_000)], ids=str
)
async def test_body_in_small_chunks_is_passed_on_in_few(harness: GatewayHarness, size: int, length: int) -> None:
    """The allowance is that for bodies of a few kilobytes that are sent byte by byte."""
    body = bytes(index % 251 for index in range(length))
    replica = await harness.add_replica()
    client = await harness.client()
    with bytes_parsed() as turns:
        client.send(HEAD + chunks(body, size) + b"0\r\n\r\n")
        connection = await replica.accept()
        request = await connection.read_message()
    connection.send(ok())
    assert request.body == body
    assert (await client.read_message()).status == 200
    assert size > 1000 or turns.most <= SMALL_READ_BYTES + WORK_PER_TURN


@needs_counts
async def test_large_chunks_are_parsed_in_large_slices(harness: GatewayHarness) -> None:
    replica = await harness.add_replica()
    client = await harness.client()
    with bytes_parsed() as turns:
        client.send(HEAD + chunks(b"x" * 500_000, 50_000) + b"0\r\n\r\n")
        connection = await replica.accept()
        assert len((await connection.read_message()).body) == 500_000
    connection.send(ok())
    assert (await client.read_message()).status == 200
    assert turns.most > 10 * WORK_PER_TURN


@pytest.mark.parametrize(("size", "count"), [(1, 4_000), (2, 4_000), (7, 8_000)])
async def test_queued_body_takes_no_more_memory_than_its_data(harness: GatewayHarness, size: int, count: int) -> None:
    """The body is received whole, and waits for a slot."""
    replica = await harness.add_replica()
    first, connection = await harness.start_request(replica)
    client = await harness.client()
    client.send(HEAD + chunks(b"x" * size * count, size) + b"0\r\n\r\n")
    await harness.wait_until(lambda: harness.queued(), "queued request")
    (exchange,) = harness.route().lease_cache.waiters.values()
    assert isinstance(exchange, Exchange)
    assert sum(map(sys.getsizeof, exchange.request.body)) < size * count + 100 * 40
    connection.send(ok())
    assert (await connection.read_message()).body == b"x" * size * count
    connection.send(ok())
    for each in (first, client):
        assert (await each.read_message()).status == 200


async def test_body_written_byte_by_byte_is_kept_in_few_pieces(harness: GatewayHarness) -> None:
    """For the case that the request must be sent again."""
    harness.set_service("iris", request_buffering=False)
    replica = await harness.add_replica()
    client = await harness.client()
    client.send(post(b"", length=300))
    connection = await replica.accept()
    for _ in range(300):
        await client.send_in_pieces(b"x")
    assert (await connection.read_message()).body == b"x" * 300
    exchange = harness.client_connection()._current
    assert exchange is not None
    assert len(exchange.request.body) <= 2
    connection.send(ok())
    assert (await client.read_message()).status == 200


# Many connections at once.


@needs_counts
@pytest.mark.parametrize("tls", [False, True])
async def test_one_of_many_flooding_clients_continues_in_a_turn(harness: GatewayHarness, tls: bool) -> None:
    await harness.add_replica()
    port = await TlsPort.open(harness)
    clients = [await (port.client() if tls else harness.client()) for _ in range(6)]
    with bytes_parsed() as turns:
        for client in clients:
            client.send(HEAD + chunks(b"x" * 60_000, 2))
        for client in clients:
            assert (await client.read_message()).status == 400
    assert len(turns.counts) > 20 * len(clients)
    assert turns.crowded() <= len(clients)  # when they begin


@needs_counts
async def test_one_of_many_flooding_replicas_continues_in_a_turn(harness: GatewayHarness) -> None:
    harness.set_service("iris", replica_max_concurrent_requests=6)
    replica = await harness.add_replica()
    with pieces_parsed() as turns:
        exchanges = [await harness.start_request(replica) for _ in range(6)]
        for _, connection in exchanges:
            connection.send(RESPONSE_HEAD + chunks(b"x" * 10_000, 1) + b"0\r\n\r\n")
        for client, _ in exchanges:
            assert (await client.read_message()).body == b"x" * 10_000
    assert len(turns.counts) > 20 * len(exchanges)
    assert turns.crowded() <= len(exchanges)


# Records of TLS.


def records_decrypted() -> AbstractContextManager[Turns]:
    """Count the records that each connection decrypts in a turn."""
    return counted(ClientTls, "read", lambda tls, *_: (tls, 1))


async def test_tiny_records_are_decrypted_in_turns(harness: GatewayHarness) -> None:
    replica = await harness.add_replica()
    body = bytes(index % 251 for index in range(3000))
    with records_decrypted() as turns:
        client = await (await TlsPort.open(harness)).client()
        client.send(post(b"", length=len(body)), *(body[at : at + 1] for at in range(len(body))))
        connection = await replica.accept()
        assert (await connection.read_message()).body == body
    assert turns.most <= MAX_RECORDS
    connection.send(ok())
    assert (await client.read_message()).status == 200
    client.send(post())
    await connection.read_message()
    connection.send(ok())
    assert (await client.read_message()).status == 200


async def test_tiny_records_in_a_tunnel_are_decrypted_in_turns(harness: GatewayHarness) -> None:
    replica = await harness.add_replica()
    with records_decrypted() as turns:
        client = await (await TlsPort.open(harness)).client()
        connection = await _open_tunnel(client, replica)
        client.send(*[b"\x82\x01x"] * 2000)
        assert await connection.read_exactly(6000) == b"\x82\x01x" * 2000
    assert turns.most <= MAX_RECORDS
    await _send_and_compare(connection, client, b"y" * 300_000)
    client.close()


async def test_records_after_the_last_response_are_not_decrypted(harness: GatewayHarness) -> None:
    await harness.add_replica()
    with records_decrypted() as turns:
        client = await (await TlsPort.open(harness)).client()
        client.send(HEAD + chunks(b"x" * 20_000, 1), *[b"1\r\nx\r\n"] * 3000)
        response = await client.read_message()
        assert (response.status, response.error_code) == (400, "bad-request")
        await client.wait_closed()
    assert 0 < sum(turns.counts.values()) < 1000


def parsers_and_connections() -> dict[int, object]:
    """Return all objects of both types, by id."""
    return {id(each): each for each in gc.get_objects() if isinstance(each, (RequestReader, ClientConnection))}


async def test_closed_connections_leave_no_garbage(harness: GatewayHarness) -> None:
    """The garbage collector would stop the worker for the longer, the more connections were closed."""
    (await harness.add_replica()).auto_respond()
    port = await TlsPort.open(harness)
    gc.collect()
    gc.disable()
    earlier = parsers_and_connections()  # of other tests, if a traceback keeps them
    try:
        for connect in (harness.client, port.client):
            client = await connect()
            client.send(post())
            await client.read_message()
            client.close()
            await client.wait_closed()
        await harness.wait_until(lambda: not harness.gateway.clients.count, "end of the connections")
        await harness.wait_until(
            lambda: parsers_and_connections().keys() <= earlier.keys(),
            "release of the connections without a collection",
        )
    finally:
        gc.enable()


# Heads that arrive in parts.


@pytest.mark.gateway(buffer_budget_bytes=100_000)
@pytest.mark.parametrize(
    "line", [b"X-Long: " + b"x" * 20_000, b"x-a: b\r\n" * 60 + b"X-Long: " + b"x" * 12_000], ids=len
)
async def test_partial_heads_count_against_the_budget(harness: GatewayHarness, line: bytes) -> None:
    (await harness.add_replica()).auto_respond()
    clients = [await harness.client() for _ in range(8)]
    for client in clients:
        client.send(b"GET / HTTP/1.1\r\nHost: fe\r\n" + line)
    counters = harness.gateway.counters
    await harness.wait_until(lambda: counters.buffer_budget_exceeded, "spent budget")
    assert 0 < counters.buffered_bytes <= 100_000
    await harness.wait_until(lambda: any(client.received for client in clients), "refusal")
    refused = [client for client in clients if client.received]
    for client in refused:
        response = await client.read_message()
        assert (response.status, response.error_code) == (503, "overloaded")
    assert (await harness.response_to(post())).status == 200  # needs no memory of the budget
    for client in clients:
        if client not in refused and not client.received:
            client.send(b"\r\n\r\n")
            assert (await client.read_message()).status in (200, 503)
    await harness.wait_until(lambda: not counters.buffered_bytes, "free budget")


@pytest.mark.gateway(buffer_budget_bytes=50_000, request_buffer_bytes=0)
async def test_pipelined_requests_that_wait_count_against_the_budget(harness: GatewayHarness) -> None:
    replica = await harness.add_replica()
    client, connection = await harness.start_request(replica)
    client.send(post(b"x" * 1000) * 100)
    await harness.wait_until(lambda: harness.gateway.counters.buffer_budget_exceeded, "spent budget")
    connection.send(ok())
    assert (await client.read_message()).status == 200
    other = await harness.client()
    other.send(get(path="/"))
    assert (await other.read_message()).status == 200
    client.close()
    connection.discard_input()


@pytest.mark.gateway(buffer_budget_bytes=50_000, request_buffer_bytes=0)
async def test_body_that_waits_for_a_turn_counts_and_is_not_refused(harness: GatewayHarness) -> None:
    counters = harness.gateway.counters
    body = bytes(index % 251 for index in range(60_000))
    replica = await harness.add_replica()
    client = await harness.client()
    peak = 0

    def observe() -> None:
        nonlocal peak
        peak = max(peak, counters.buffered_bytes)
        if peak <= 50_000:
            asyncio.get_running_loop().call_soon(observe)

    observe()
    client.send(post_chunked(end=False) + chunks(body, 20) + b"0\r\n\r\n")
    connection = await replica.accept()
    assert (await connection.read_message()).body == body
    assert peak > 50_000
    connection.send(ok())
    assert (await client.read_message()).status == 200
    assert counters.buffered_bytes == 0


@pytest.mark.gateway(buffer_budget_bytes=50_000)
async def test_requests_that_wait_for_a_turn_are_refused_beyond_the_budget(harness: GatewayHarness) -> None:
    client = await harness.client()
    client.send(get(path="/") * 5000)
    statuses = {(await client.read_message()).status}
    while 503 not in statuses:
        statuses.add((await client.read_message()).status)
    assert statuses == {200, 503}
    await harness.wait_until(lambda: not harness.gateway.counters.buffered_bytes, "free budget")


# Responses of replicas.


@contextmanager
def writes_to(harness: GatewayHarness) -> Iterator[list[bytes]]:
    """Record the writes to the only client."""
    connection = harness.client_connection()
    transport = connection.transport
    writes: list[bytes] = []

    def write(data: bytes) -> None:
        writes.append(data)
        transport.write(data)

    connection.transport = mock.Mock(wraps=transport, write=write)
    yield writes
    connection.transport = transport


@pytest.mark.parametrize(("size", "extension"), [(1, b""), (2, b";a=b"), (3, b";" + b"x" * 50), (40, b"")], ids=str)
async def test_small_chunks_of_a_replica_are_passed_on_in_few(
    harness: GatewayHarness, size: int, extension: bytes
) -> None:
    body = bytes(index % 251 for index in range(size * 5000))
    replica = await harness.add_replica()
    with pieces_parsed() as turns:
        client, connection = await harness.start_request(replica)
        with writes_to(harness) as writes:
            connection.send(RESPONSE_HEAD + chunks(body, size, extension) + b"0\r\n\r\n")
            assert (await client.read_message()).body == body
    assert turns.most <= 700
    assert len(writes) <= 5000 // 25
    client.send(post())
    await connection.read_message()  # the connection is used again
    connection.send(ok())
    assert (await client.read_message()).status == 200


@pytest.mark.parametrize("end", ["close", "trailers", "reset"])
async def test_end_of_a_response_in_small_chunks_is_passed_on(harness: GatewayHarness, end: str) -> None:
    replica = await harness.add_replica()
    client, connection = await harness.start_request(replica)
    client.send(b"")
    trailers = b"".join(b"X-%d: 1\r\n" % number for number in range(50)) if end == "trailers" else b""
    connection.send(RESPONSE_HEAD + chunks(b"x" * 3000, 1) + b"0\r\n" + trailers + b"\r\n")
    if end != "trailers":
        connection.close()
    response = await client.read_message()
    assert response.body == b"x" * 3000


@needs_counts
async def test_response_before_a_reset_is_parsed_in_turns(harness: GatewayHarness) -> None:
    """The event loop reads nothing after a reset, so the router then reads all that is left."""
    harness.set_service("iris", request_buffering=False)
    replica = await harness.add_replica()
    client = await harness.client()
    body = b"x" * 50_000
    with pieces_parsed() as turns:
        client.send(post(b"", length=1000))
        connection = await replica.accept()
        await connection.read_head()
        harness.replica_connection().transport.pause_reading()
        connection.send(RESPONSE_HEAD + chunks(body, 1) + b"0\r\n\r\n")
        await run_loop()
        harness.replica_connection().connection_lost(ConnectionResetError())
        response = await client.read_message()
    assert response.body == body
    assert turns.most <= 700
    connection.reset()


async def test_response_until_close_is_complete(harness: GatewayHarness) -> None:
    replica = await harness.add_replica()
    client, connection = await harness.start_request(replica)
    connection.send(b"HTTP/1.1 200 OK\r\nX-Padding: " + b"x" * 3000 + b"\r\n\r\n" + b"y" * 200_000)
    connection.close()
    assert (await client.read_message()).body == b"y" * 200_000


@needs_counts
async def test_interim_responses_are_passed_on_in_turns(harness: GatewayHarness) -> None:
    """A thousand of them do not keep other clients waiting."""
    replica = await harness.add_replica()
    client, connection = await harness.start_request(replica)
    client.discard_input()
    with counted(Exchange, "on_interim_response", lambda exchange, *_: (exchange, 1)) as turns:
        connection.send(b"HTTP/1.1 103 Early Hints\r\n\r\n" * 1000 + ok())
        await harness.wait_until(lambda: sum(turns.counts.values()) == 1000, "interim responses")
    assert turns.most <= 200
    await harness.wait_until(lambda: harness.gateway.connections_idle == 1, "end of the response")


async def test_client_that_does_not_read_stops_small_chunks(harness: GatewayHarness) -> None:
    """What was received before is kept until the client reads again."""
    replica = await harness.add_replica()
    client = await harness.client(receive_buffer=4096)
    client.send(post())
    connection = await replica.accept()
    await connection.read_message()
    client.pause_reading()
    body = b"x" * 8_000_000
    connection.send(RESPONSE_HEAD + chunks(body, 500) + b"0\r\n\r\n")
    await harness.wait_until(lambda: harness.replica_connection().response_paused, "pause")
    client.resume_reading()
    assert (await client.read_message()).body == body


# Long reads.


@pytest.mark.parametrize("length", [2_000_000, 300_000])
async def test_long_bodies_are_read_in_turns(harness: GatewayHarness, length: int) -> None:
    body = bytes(length)
    replica = await harness.add_replica()
    client = await harness.client()
    client.send(post(body))
    connection = await replica.accept()
    assert (await connection.read_message()).body == body
    connection.send(ok(body))
    assert (await client.read_message()).body == body


async def test_tunnel_with_much_data_passes_all_of_it(harness: GatewayHarness) -> None:
    replica = await harness.add_replica()
    client = await harness.client()
    connection = await _open_tunnel(client, replica)
    frames = b"\x82\x01x" * 700_000
    await _send_and_compare(client, connection, frames)
    await _send_and_compare(connection, client, frames)
    client.close()


async def _open_tunnel(client: Connection, replica: ScriptedReplica) -> Connection:
    client.send(
        b"GET /api/v1/service/iris/score HTTP/1.1\r\nHost: fe\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Authorization: Bearer " + KEY.encode() + b"\r\n\r\n"
    )
    connection = await replica.accept()
    await connection.read_head()
    connection.send(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
    await client.read_head()
    return connection


async def _send_and_compare(sender: Connection, receiver: Connection, data: bytes) -> None:
    sender.send(data)
    assert await receiver.read_exactly(len(data)) == data
