"""Failures of either side in each state of an exchange. Each must release the slot and leave nothing behind."""

import asyncio
import gc
import random
import socket
import sys
import threading
import tracemalloc
from collections.abc import Callable

import pytest

from router.gateway.replica_health import HALF_OPEN, IN_USE
from tests.gateway.harness import GatewayHarness, ScriptedReplica, open_descriptors
from tests.gateway.http_connection import Connection, get, ok, ok_chunked, post, post_chunked, run_loop

Close = Callable[[Connection], None]
EACH_CLIENT_CLOSE = pytest.mark.parametrize(
    "close", [Connection.close, Connection.reset, Connection.half_close], ids=["close", "reset", "half-close"]
)
EACH_REPLICA_CLOSE = pytest.mark.parametrize("close", [Connection.close, Connection.reset], ids=["close", "reset"])

# The client closes.


@EACH_CLIENT_CLOSE
@pytest.mark.parametrize("sent", [b"", b"P", post()[:60], post(b"abc", length=10), post_chunked(b"abc", end=False)])
async def test_client_closes_before_its_request_is_complete(harness: GatewayHarness, close: Close, sent: bytes) -> None:
    replica = await harness.add_replica()
    client = await harness.client()
    client.send(sent)
    await run_loop()
    close(client)
    await harness.wait_until(lambda: not harness.gateway.clients)
    await harness.wait_idle()
    for connection in replica.connections:
        await connection.wait_closed()


@EACH_CLIENT_CLOSE
async def test_client_closes_while_its_request_is_in_flight(harness: GatewayHarness, close: Close) -> None:
    replica = await harness.add_replica()
    client, connection = await harness.start_request(replica)
    close(client)
    await connection.wait_closed()
    await harness.wait_idle()
    counters = harness.route().counters
    assert dict(counters.responses) == {(499, "client-closed"): 1}
    assert counters.client_aborts == 1


@EACH_CLIENT_CLOSE
@pytest.mark.parametrize("start", [ok(b"abc", length=10), ok_chunked(b"abc", end=False), b"HTTP/1.1 200 OK\r\nX-"])
async def test_client_closes_during_the_response(harness: GatewayHarness, close: Close, start: bytes) -> None:
    replica = await harness.add_replica()
    client, connection = await harness.start_request(replica)
    connection.send(start)
    await run_loop()
    close(client)
    await connection.wait_closed()
    await harness.wait_idle()


@EACH_CLIENT_CLOSE
async def test_client_closes_while_its_request_is_queued(harness: GatewayHarness, close: Close) -> None:
    harness.set_service("iris", max_request_wait_time=60_000)
    replica = await harness.add_replica()
    first, connection = await harness.start_request(replica)
    client = await harness.client()
    client.send(post())
    await harness.wait_until(lambda: harness.queued() == 1)
    close(client)
    await harness.wait_until(lambda: harness.queued() == 0)
    connection.send(ok())
    assert (await first.read_message()).status == 200
    await run_loop()
    assert not connection.received


@EACH_CLIENT_CLOSE
@pytest.mark.gateway(connect_timeout_ms=60)
async def test_client_closes_while_the_replica_connection_is_opened(harness: GatewayHarness, close: Close) -> None:
    replica = await harness.add_replica()
    replica.stop_accepting()
    client = await harness.client()
    client.send(post())
    await harness.wait_until(lambda: harness.in_flight() == 1)
    close(client)
    await harness.wait_idle()


@EACH_CLIENT_CLOSE
async def test_client_closes_with_pipelined_requests_pending(harness: GatewayHarness, close: Close) -> None:
    replica = await harness.add_replica()
    client = await harness.client()
    client.send(post(b"1") + post(b"2") + post(b"3"))
    connection = await replica.accept()
    await connection.read_message()
    close(client)
    await connection.wait_closed()
    await harness.wait_idle()
    assert not connection.received
    assert len(replica.connections) == 1


async def test_client_resets_while_it_does_not_read(harness: GatewayHarness) -> None:
    replica = await harness.add_replica()
    client = await harness.client(receive_buffer=65_536)
    client.send(post())
    connection = await replica.accept()
    await connection.read_message()
    client.pause_reading()
    connection.send(ok(b"x" * 30_000_000))
    client_connection = harness.client_connection()
    await harness.wait_until(lambda: client_connection.write_paused_at)
    client.reset()
    await connection.wait_closed()
    await harness.wait_idle()


async def test_client_closes_as_the_response_arrives(harness: GatewayHarness) -> None:
    """Both are handled in the same iteration of the event loop."""
    harness.set_service("iris", replica_max_concurrent_requests=100)
    replica = await harness.add_replica()
    pairs = [await harness.start_request(replica) for _ in range(40)]
    for number, (client, connection) in enumerate(pairs):
        if number % 4 < 2:
            connection.send(ok())
        client.reset() if number % 2 else client.close()
        if number % 4 >= 2:
            connection.send(ok())
    await harness.wait_idle()
    await harness.wait_until(lambda: not harness.gateway.clients)


# The replica fails.


@EACH_REPLICA_CLOSE
@pytest.mark.parametrize("start", [b"", b"HTTP/1.1", b"HTTP/1.1 200 OK\r\nContent-Le", b"HTTP/1.1 103 Hints\r\n\r\n"])
async def test_replica_closes_before_the_response_head_is_complete(
    harness: GatewayHarness, close: Close, start: bytes
) -> None:
    replica = await harness.add_replica()
    client, connection = await harness.start_request(replica)
    connection.send(start)
    await run_loop()
    close(connection)
    response = await client.read_message()
    if response.status == 103:
        response = await client.read_message()
    assert (response.status, response.error_code) == (502, "replica-closed")
    assert response.body == b"Replica closed connection before replying"
    client.send(get(path="/"))
    assert (await client.read_message()).body == b"Healthy"


@EACH_REPLICA_CLOSE
async def test_replica_closes_during_a_body_with_content_length(harness: GatewayHarness, close: Close) -> None:
    replica = await harness.add_replica()
    client, connection = await harness.start_request(replica)
    connection.send(ok(b"abc", length=10))
    await run_loop()
    close(connection)
    assert (await client.read_to_end()).endswith(b"\r\n\r\nabc")
    await harness.wait_idle()
    assert dict(harness.route().counters.responses) == {(200, "replica-closed"): 1}


@EACH_REPLICA_CLOSE
async def test_replica_closes_during_a_large_body(harness: GatewayHarness, close: Close) -> None:
    replica = await harness.add_replica()
    client, connection = await harness.start_request(replica)
    connection.send(ok(b"x" * 300_000, length=1_000_000))
    await client.wait_until(lambda: client.total_received > 300_000, "start of the body")
    close(connection)
    await client.wait_closed()
    assert client.received.endswith(b"x" * 300_000)


@EACH_REPLICA_CLOSE
async def test_replica_closes_during_a_chunked_body(harness: GatewayHarness, close: Close) -> None:
    replica = await harness.add_replica()
    client, connection = await harness.start_request(replica)
    connection.send(ok_chunked(b"abc", end=False))
    await run_loop()
    close(connection)
    assert (await client.read_to_end()).endswith(b"\r\n\r\n3\r\nabc\r\n")


@EACH_REPLICA_CLOSE
async def test_http10_client_sees_an_incomplete_response_as_a_reset(harness: GatewayHarness, close: Close) -> None:
    """For an HTTP/1.0 client a chunked response ends with the connection, so only a reset marks it as incomplete."""
    replica = await harness.add_replica()
    client, connection = await harness.start_request(replica, post(version="1.0"))
    connection.send(ok_chunked(b"abc", end=False))
    await client.wait_until(lambda: client.received.endswith(b"abc"), "first chunk")
    close(connection)
    await client.wait_closed()
    assert client.was_reset


async def test_reset_during_a_response_without_length_truncates_it(harness: GatewayHarness) -> None:
    replica = await harness.add_replica()
    client, connection = await harness.start_request(replica)
    connection.send(ok(b"abc", length=None))
    await client.wait_until(lambda: client.received.endswith(b"abc\r\n"), "start of the body")
    connection.reset()
    assert (await client.read_to_end()).endswith(b"\r\n\r\n3\r\nabc\r\n")


@pytest.mark.gateway(request_buffer_bytes=0)
@EACH_REPLICA_CLOSE
async def test_replica_closes_during_the_request_body(harness: GatewayHarness, close: Close) -> None:
    replica = await harness.add_replica()
    client = await harness.client()
    client.send(post(b"x" * 1000, length=1_000_000))
    connection = await replica.accept()
    await connection.read_head()
    await connection.read_exactly(1000)
    close(connection)
    response = await client.read_message()
    assert (response.status, response["connection"]) == (502, "close")
    client.send(b"x" * 100_000)
    client.half_close()
    assert await client.read_to_end() == b""


def refuse_uploads(listener: socket.socket, rng: random.Random) -> None:
    """A replica in a thread: reads a part of each body, responds and closes."""
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        size = rng.randrange(1000, 900_000)
        with connection:
            while size > 0:
                size -= len(connection.recv(65_536)) or size
            connection.sendall(ok(b"no", "Connection: close", status="403 Forbidden"))


@pytest.mark.gateway(request_buffer_bytes=0)
async def test_early_response_of_a_closing_replica_is_not_lost(harness: GatewayHarness) -> None:
    """The replica responds and closes while it receives the body: a write to it fails before its response is read."""
    replica = await harness.add_replica()
    replica.stop_listening()
    listener = socket.create_server(("127.0.0.1", replica.port))
    thread = threading.Thread(target=refuse_uploads, args=(listener, random.Random(7)), daemon=True)
    thread.start()
    for _ in range(50):
        client = await harness.client()
        client.send(post(b"x" * 3_000_000, length=6_000_000))
        response = await client.read_message()
        assert (response.status, response.body) == (403, b"no")
        client.close()
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    await asyncio.to_thread(thread.join)


async def test_hanging_replica_runs_into_the_scoring_timeout(harness: GatewayHarness) -> None:
    harness.set_service("iris", scoring_timeout_ms=40)
    replica = await harness.add_replica()
    for start, expected in ((b"", 504), (b"HTTP/1.1 200 OK\r\nX-", 504), (ok(b"abc", length=10), 200)):
        client, connection = await harness.start_request(replica)
        connection.send(start)
        assert (await client.read_head()).status == expected
        if expected == 200:
            assert await client.read_to_end() == b"abc"
        await connection.wait_closed()


async def test_queued_request_is_refused_when_the_last_replica_is_removed(harness: GatewayHarness) -> None:
    harness.set_service("iris", max_request_wait_time=40)
    replica = await harness.add_replica()
    first, connection = await harness.start_request(replica)
    client = await harness.client()
    client.send(post())
    await harness.wait_until(lambda: harness.queued() == 1)
    harness.remove_replica(replica)
    response = await client.read_message()
    assert (response.status, response.error_code) == (503, "no-ready-replicas")
    connection.send(ok())
    assert (await first.read_message()).status == 200


async def test_fault_of_the_router_during_a_response(harness: GatewayHarness) -> None:
    replica = await harness.add_replica()
    client, connection = await harness.start_request(replica)
    harness.route().counters.first_byte.counts.clear()
    connection.send(ok())
    response = await client.read_message()
    assert (response.status, response.error_code) == (500, "router-error")
    await connection.wait_closed()


async def test_fault_of_the_router_while_a_request_is_sent(harness: GatewayHarness) -> None:
    await harness.add_replica()
    harness.route().counters.route_time.counts.clear()
    client = await harness.client()
    for _ in range(2):
        client.send(post())
        response = await client.read_message()
        assert (response.status, response.error_code) == (500, "router-error")


async def test_fault_of_the_router_for_each_request_of_a_long_queue(harness: GatewayHarness) -> None:
    """The faults must not be nested, otherwise the stack would overflow and slots would be lost."""
    count = 300
    harness.set_service("iris", replica_max_concurrent_requests=count, max_request_wait_time=60_000)
    replica = await harness.add_replica()
    clients = [await harness.client() for _ in range(count)]
    for client in clients:
        client.send(post())
    connections = [await replica.accept() for _ in clients]
    for connection in connections:
        await connection.read_message()
        connection.send(ok())
    for client in clients:
        assert (await client.read_message()).status == 200
    harness.set_service("iris", replica_max_concurrent_requests=1, max_request_wait_time=60_000)
    await harness.wait_until(lambda: not harness.route().lease_cache.idle, "release of the other slots")
    for client in clients:
        client.send(post())
    await harness.wait_until(lambda: (harness.in_flight(), harness.queued()) == (1, count - 1), "queue")
    harness.route().counters.route_time.counts.clear()
    await harness.wait_until(
        lambda: any(connection.received for connection in connections), "first request at the replica"
    )
    next(connection for connection in connections if connection.received).send(ok())
    statuses = [(await client.read_message()).status for client in clients]
    assert statuses == [200] + [500] * (count - 1)


# Ten thousand faults.

FAULTY_REQUESTS = (
    post(),
    post(b"x" * 2000),
    post_chunked(b"abc", b"defg"),
    get(),
    post() + post() + get(path="/"),
    post(key="wrong"),
    post(path="/api/v1/service/none/score"),
    post(method="PUT"),
    post(b"abc", length=100),
    post_chunked(b"abc", end=False),
    post_chunked(b"abc", end=False) + b"zz\r\n",
    post(b"x" * 20_000),
    post(b"", length=20_000),
    post_chunked(b"x" * 9000, b"y" * 9000),
    post(b"", "Expect: 100-continue", length=5),
    post(version="1.0"),
    get("Connection: upgrade", "Upgrade: websocket") + b"early",
    post(b"", "X-Long: " + "x" * 3000),
    b"garbage\r\n\r\n",
    b"POST / HT",
    b"",
    post(b"", "azureml-model-deployment: none"),
)

FAULTY_RESPONSES = (
    ok(),
    ok(),
    ok(b"x" * 20_000),
    ok_chunked(b"abc", b"de"),
    ok(b"", status="204 No Content", length=None),
    ok(b"bad", status="500 Internal Server Error"),
    ok(b"abc", length=10),
    ok_chunked(b"abc", end=False),
    ok(b"abc", "Connection: close"),
    ok(b"abc", length=None),
    b"HTTP/1.1 200 OK\r\nContent-",
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\nhello",
    b"garbage\r\n\r\n",
    ok() + ok(),
    b"",
)


async def run_faulty_client(harness: GatewayHarness, rng: random.Random) -> None:
    """Send a random request in two pieces, wait for the response or not, and close in a random way."""
    client = await harness.client()
    request = rng.choice(FAULTY_REQUESTS)
    cut = rng.randrange(len(request) + 1)
    client.send(request[:cut])
    if rng.random() < 0.5:
        await run_loop(rng.randrange(6))
    if not client.remote_closed:
        client.send(request[cut:])
    if rng.random() < 0.8:
        try:
            async with asyncio.timeout(rng.choice((0.001, 0.01, 0.4))):
                await client.read_head()
        except (TimeoutError, AssertionError):
            pass
    if rng.random() < 0.4 or client.transport.is_closing():
        client.reset() if not client.transport.is_closing() else None
    elif rng.random() < 0.1:
        client.half_close()
        await run_loop()
        client.transport.abort()
    else:
        client.close()
    harness.clients.remove(client)


async def run_faulty_replica(connection: Connection, rng: random.Random) -> None:
    """Respond to requests in random ways until the connection is closed."""
    while await connection.wait_for_data():
        if rng.random() < 0.9:
            try:
                async with asyncio.timeout(0.05):
                    await connection.read_message()
            except (TimeoutError, AssertionError):
                pass
        if connection.transport.is_closing():
            return
        if rng.random() < 0.05:
            connection.pause_reading()
            await asyncio.sleep(0.05)
            connection.reset()
            return
        connection.send(rng.choice(FAULTY_RESPONSES))
        if rng.random() < 0.3:
            connection.reset() if rng.random() < 0.5 else connection.close()
            return
    connection.close()


async def run_faulty_exchanges(
    harness: GatewayHarness, replicas: list[ScriptedReplica], count: int, rng: random.Random
) -> None:
    """Run `count` faulty exchanges, 64 at a time, while the replicas stop and resume listening."""
    remaining = count

    async def run_clients() -> None:
        nonlocal remaining
        while remaining > 0:
            remaining -= 1
            await run_faulty_client(harness, rng)

    async def restart_listeners() -> None:
        while remaining > 0:
            await asyncio.sleep(0.02)
            replica = rng.choice(replicas)
            replica.stop_listening()
            await asyncio.sleep(0.01)
            await replica.listen()

    async with asyncio.TaskGroup() as group:
        group.create_task(restart_listeners())
        for _ in range(64):
            group.create_task(run_clients())
    # Clients leave without waiting to be accepted, and the gateway accepts one in each turn of the event loop.
    while not harness.accept_queue_is_empty():
        await asyncio.sleep(0)


@pytest.mark.parametrize("limit", [1, 0])
@pytest.mark.gateway(
    client_head_timeout_seconds=0.1,
    client_body_timeout_seconds=0.1,
    max_payload_bytes=15_000,
    max_head_bytes=2500,
    buffer_budget_bytes=30_000,  # spent at times
)
async def test_ten_thousand_faults_leave_nothing_behind(harness: GatewayHarness, limit: int) -> None:
    count = 5000
    harness.set_service(
        "iris",
        scoring_timeout_ms=50,
        max_request_wait_time=2,
        max_queue_length=1,
        replica_max_concurrent_requests=limit,
        outlier_ejection_seconds=0.05,
    )
    rng = random.Random(limit)
    replicas = [await harness.add_replica() for _ in range(4)]
    for replica in replicas:
        replica.run_script(lambda connection: run_faulty_replica(connection, rng))

    def has_no_connections() -> bool:
        """Close idle connections, to which those are added that were still being opened."""
        for route in harness.gateway.versions.values():
            for pool in route.pools():
                pool.close_idle(float("inf"))
        return all(connection.remote_closed for replica in replicas for connection in replica.connections)

    async def count_descriptors_when_idle() -> int:
        """Wait until everything has ended. Return the number of open file descriptors."""
        await harness.wait_until(lambda: not harness.gateway.clients)
        await harness.wait_idle()
        pools = list(harness.route().pools())
        await harness.wait_until(lambda: all(pool.health.state in (IN_USE, HALF_OPEN) for pool in pools), "no probes")
        await harness.wait_until(has_no_connections, "end of the replica connections")
        await harness.wait_for_tasks()
        for replica in replicas:
            replica.connections.clear()
        journal = harness.gateway.journal
        for entries in (journal.notable, journal.routine, journal.unrouted):
            entries.clear()  # bounded, but not full yet, so they would count as growth
        gc.collect()
        return open_descriptors()

    await run_faulty_exchanges(harness, replicas, 1000, rng)
    descriptors = await count_descriptors_when_idle()
    tasks = len(asyncio.all_tasks())
    blocks = sys.getallocatedblocks()
    await run_faulty_exchanges(harness, replicas, count - 2000, rng)
    assert await count_descriptors_when_idle() == descriptors
    assert len(asyncio.all_tasks()) == tasks
    assert sys.getallocatedblocks() - blocks < count - 2000  # less than one object per exchange
    tracemalloc.start()  # counts large objects too, but makes everything several times slower
    before = tracemalloc.get_traced_memory()[0]
    await run_faulty_exchanges(harness, replicas, 1000, rng)
    assert await count_descriptors_when_idle() == descriptors
    growth = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert growth < 250_000
    counters = harness.gateway.counters
    statuses = {status for status, _ in counters.responses}
    statuses |= {status for version in counters.versions.values() for status, _ in version.responses}
    expected = {101, 200, 204, 400, 401, 404, 405, 408, 413, 431, 499, 502, 504}
    assert statuses >= (expected | {503} if limit else expected)
