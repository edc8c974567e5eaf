"""Abandoned requests: the client has left or got 504, and the replica may go on with the request."""

import random
from collections.abc import Callable

import pytest

from tests.gateway.harness import GatewayHarness, ScriptedReplica
from tests.gateway.http_connection import Connection, ok, ok_chunked, post, post_chunked, run_loop

Close = Callable[[Connection], None]
EACH_CLIENT_CLOSE = pytest.mark.parametrize(
    "close", [Connection.close, Connection.reset, Connection.half_close], ids=["close", "reset", "half-close"]
)


async def abandoned_request(
    harness: GatewayHarness, replica: ScriptedReplica, close: Close = Connection.close, request: bytes | None = None
) -> Connection:
    """The replica's end of a connection with a request whose client has just left."""
    client, connection = await harness.start_request(replica, request)
    aborts = harness.route().counters.client_aborts
    close(client)
    await harness.wait_until(lambda: harness.route().counters.client_aborts > aborts)
    await run_loop()
    return connection


async def replica_of_next_request(harness: GatewayHarness, *replicas: ScriptedReplica) -> ScriptedReplica:
    """The replica that the next request is sent to, on a new connection; its client gets the response."""
    client = await harness.client()
    client.send(post())
    await harness.wait_until(lambda: any(replica.has_unaccepted_connection for replica in replicas))
    (used,) = [replica for replica in replicas if replica.has_unaccepted_connection]
    connection = await used.accept()
    await connection.read_message()
    connection.send(ok(b"[2]", "Connection: close"))
    assert (await client.read_message()).body == b"[2]"
    client.close()
    return used


def abandonments(harness: GatewayHarness) -> dict[str, int]:
    return dict(harness.route().counters.abandonments)


# none: the response is read and discarded.


@EACH_CLIENT_CLOSE
async def test_slot_is_in_use_until_the_response_of_an_abandoned_request_has_come(
    harness: GatewayHarness, close: Close
) -> None:
    harness.set_service(cancellation="none", max_request_wait_time=60_000)
    replica = await harness.add_replica()
    connection = await abandoned_request(harness, replica, close)
    cache = harness.route().lease_cache
    assert (cache.busy, cache.abandoned_by_replica()) == (1, {replica.id: 1})
    waiting = await harness.client()
    waiting.send(post(b"[9]"))
    await harness.wait_until(harness.queued)
    connection.send(ok(b"[1]"))
    assert (await connection.read_message()).body == b"[9]"  # on the same connection
    connection.send(ok(b"[2]"))
    assert (await waiting.read_message()).body == b"[2]"
    assert abandonments(harness) == {"kept": 1}


async def test_abandoned_request_is_not_beside_a_request_of_another_client(harness: GatewayHarness) -> None:
    """The example of issue 12: two replicas with one slot each."""
    harness.set_service(cancellation="none")
    busy, idle = await harness.add_replica(), await harness.add_replica()
    connection = await abandoned_request(harness, busy)
    for _ in range(3):
        assert await replica_of_next_request(harness, busy, idle) is idle
    connection.send(ok())


@pytest.mark.parametrize(
    "rest",
    [
        (ok(b"x" * 300_000),),
        (ok_chunked(b"a", b"b", end=False), b"1\r\nc\r\n0\r\n\r\n"),
        (b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 204 No Content\r\n\r\n"),
        (b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 3\r\n\r\n", b"abc"),
    ],
    ids=["long", "chunked", "interim", "500"],
)
async def test_any_response_of_an_abandoned_request_frees_slot_and_connection(
    harness: GatewayHarness, rest: tuple[bytes, ...]
) -> None:
    harness.set_service(cancellation="none")
    replica = await harness.add_replica()
    connection = await abandoned_request(harness, replica)
    for piece in rest:
        connection.send(piece)
        await run_loop()
    await harness.wait_idle()
    assert harness.gateway.connections_idle == 1


@pytest.mark.parametrize(
    ("piece", "close"),
    [
        (ok(b"[1]", "Connection: close"), None),
        (b"HTTP/1.0 200 OK\r\n\r\nabc", Connection.close),
        (b"", Connection.close),
        (b"", Connection.reset),
        (ok(b"abc", length=10), Connection.close),
        (b"nonsense\r\n\r\n", None),
        (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n", None),
    ],
    ids=["connection-close", "until-close", "closed", "reset", "cut", "nonsense", "tunnel"],
)
async def test_end_of_the_connection_of_an_abandoned_request_frees_the_slot(
    harness: GatewayHarness, piece: bytes, close: Close | None
) -> None:
    harness.set_service(cancellation="none")
    replica = await harness.add_replica()
    connection = await abandoned_request(harness, replica)
    assert harness.in_flight() == 1
    connection.send(piece)
    if close is not None:
        close(connection)
    await harness.wait_idle()
    assert harness.gateway.connections_idle == 0
    assert harness.route().counters.abandoned_timeouts == 0


async def test_abandoned_response_that_has_started_is_read_to_its_end(harness: GatewayHarness) -> None:
    harness.set_service(cancellation="none")
    replica = await harness.add_replica()
    client, connection = await harness.start_request(replica)
    connection.send(ok_chunked(b"first", end=False))
    await client.read_head()
    client.close()
    await harness.wait_until(lambda: harness.route().lease_cache.abandoned)
    connection.send(b"4\r\nmore\r\n0\r\n\r\n")
    await harness.wait_idle()
    assert harness.gateway.connections_idle == 1


async def test_abandoned_response_that_the_client_did_not_read_is_read(harness: GatewayHarness) -> None:
    harness.set_service(cancellation="none")
    replica = await harness.add_replica()
    client = await harness.client(receive_buffer=4096)
    client.send(post())
    connection = await replica.accept()
    await connection.read_message()
    client.pause_reading()
    connection.send(ok(b"x" * 20_000_000))
    await harness.wait_until(lambda: harness.client_connection().write_paused_at)
    client.reset()
    await harness.wait_idle()
    assert harness.gateway.connections_idle == 1


async def test_slot_is_free_when_the_bound_has_passed(harness: GatewayHarness) -> None:
    harness.set_service(cancellation="none", abandoned_request_timeout_ms=50)
    replica = await harness.add_replica()
    connection = await abandoned_request(harness, replica)
    connection.send(ok_chunked(b"a piece does not extend it", end=False))
    await connection.wait_closed()
    await harness.wait_idle()
    assert harness.route().counters.abandoned_timeouts == 1
    assert abandonments(harness) == {"kept": 1}


async def test_bound_is_the_scoring_timeout_by_default_and_504_abandons_a_request(harness: GatewayHarness) -> None:
    harness.set_service(cancellation="none", scoring_timeout_ms=100)
    replica, idle = await harness.add_replica(), await harness.add_replica()
    client, connection = await harness.start_request(replica)
    response = await client.read_message()
    assert (response.status, response.error_code) == (504, "scoring-timeout")
    assert harness.route().lease_cache.abandoned_by_replica() == {replica.id: 1}
    assert await replica_of_next_request(harness, replica, idle) is idle
    await connection.wait_closed()
    await harness.wait_idle()
    assert harness.route().counters.abandoned_timeouts == 1


@pytest.mark.gateway(request_buffer_bytes=0)
@pytest.mark.parametrize("cancellation", ["on_close", "none", "unknown"])
@pytest.mark.parametrize("request_bytes", [post(b"abc", length=10), post_chunked(b"abc", end=False)])
async def test_request_that_was_not_completely_sent_is_closed_and_its_slot_free(
    harness: GatewayHarness, cancellation: str, request_bytes: bytes
) -> None:
    harness.set_service(cancellation=cancellation)
    replica = await harness.add_replica()
    client = await harness.client()
    client.send(request_bytes)
    connection = await replica.accept()
    await connection.read_head()
    client.close()
    await harness.wait_idle()
    connection.discard_input()
    await connection.wait_closed()
    assert abandonments(harness) == {"closed": 1}
    assert harness.suspect_slots() == 0


async def test_body_that_the_replica_does_not_read_is_closed(harness: GatewayHarness) -> None:
    harness.set_service(cancellation="none")
    replica = await harness.add_replica()
    client = await harness.client()
    client.send(post(b"x" * 30_000_000))
    connection = await replica.accept()
    connection.pause_reading()
    await run_loop(50)
    client.reset()
    await harness.wait_idle()
    connection.resume_reading()
    assert abandonments(harness) == {"closed": 1}


@pytest.mark.parametrize("change", ["settings", "service", "replica"])
async def test_abandoned_request_outlives_changes(harness: GatewayHarness, change: str) -> None:
    harness.set_service(cancellation="none")
    replica = await harness.add_replica()
    connection = await abandoned_request(harness, replica)
    if change == "settings":
        harness.set_service(cancellation="unknown", abandoned_request_timeout_ms=50)
    elif change == "service":
        harness.remove_service("iris")
    else:
        harness.remove_replica(replica)
    connection.send(ok())
    await harness.wait_until(lambda: not harness.gateway.context.abandoned)


async def test_slot_of_an_abandoned_request_is_suspect_when_the_worker_ends(harness: GatewayHarness) -> None:
    harness.set_service(cancellation="none")
    replica = await harness.add_replica()
    connection = await abandoned_request(harness, replica)
    harness.gateway.close()
    await connection.wait_closed()
    await harness.wait_until(harness.suspect_slots)
    assert not harness.leftovers()


# on_close: the slot is free at once.


@EACH_CLIENT_CLOSE
async def test_slot_is_free_at_once_if_the_end_of_the_connection_ends_the_work(
    harness: GatewayHarness, close: Close
) -> None:
    harness.set_service(cancellation="on_close")
    replica = await harness.add_replica()
    connection = await abandoned_request(harness, replica, close)
    await connection.wait_closed()
    await harness.wait_idle()
    assert harness.suspect_slots() == 0
    assert abandonments(harness) == {"closed": 1}


# unknown: the slot is suspect.


async def test_suspect_slot_is_used_last(harness: GatewayHarness) -> None:
    busy, idle, other = [await harness.add_replica() for _ in range(3)]
    connection = await abandoned_request(harness, busy)
    await connection.wait_closed()
    assert abandonments(harness) == {"suspect": 1}
    for _ in range(4):
        assert await replica_of_next_request(harness, busy, idle, other) in (idle, other)
    _, first = await harness.start_request(idle)
    _, second = await harness.start_request(other)
    assert await replica_of_next_request(harness, busy, idle, other) is busy
    assert harness.suspect_slots() == 0  # it has responded
    first.send(ok())
    second.send(ok())


async def test_suspicion_alone_refuses_no_request(harness: GatewayHarness) -> None:
    """Leaving clients are no denial of service."""
    harness.set_service(max_request_wait_time=100)
    replicas = [await harness.add_replica() for _ in range(2)]
    for _ in range(6):
        client = await harness.client()
        client.send(post())
        await harness.wait_until(lambda: any(replica.has_unaccepted_connection for replica in replicas))
        for replica in replicas:
            if replica.has_unaccepted_connection:
                await (await replica.accept()).read_message()
        client.reset()
        await harness.wait_until(lambda: not harness.in_flight())
    assert harness.suspect_slots() == 2
    await replica_of_next_request(harness, *replicas)


@pytest.mark.parametrize("status", ["200 OK", "404 Not Found"])
async def test_slot_is_trusted_again_after_a_response(harness: GatewayHarness, status: str) -> None:
    replica = await harness.add_replica()
    await abandoned_request(harness, replica)
    client, connection = await harness.start_request(replica)
    connection.send(ok(status=status))
    await client.read_message()
    await harness.wait_until(lambda: not harness.suspect_slots())


@pytest.mark.parametrize("response", [ok(status="500 Error"), ok(status="503 Busy"), b"HTTP/1.1 200 OK\r\n"])
async def test_slot_is_suspect_after_a_failure(harness: GatewayHarness, response: bytes) -> None:
    replica = await harness.add_replica()
    await abandoned_request(harness, replica)
    client, connection = await harness.start_request(replica)
    connection.send(response)
    connection.close()
    assert (await client.read_message()).status >= 500
    await harness.wait_idle()
    assert harness.suspect_slots() == 1


async def test_slot_is_trusted_again_when_the_bound_has_passed(harness: GatewayHarness) -> None:
    harness.set_service(abandoned_request_timeout_ms=200)
    replica = await harness.add_replica()
    await abandoned_request(harness, replica)
    harness.coordinator.tick(harness.loop.time() + 0.1)
    assert harness.suspect_slots() == 1
    harness.coordinator.tick(harness.loop.time() + 0.3)
    assert harness.suspect_slots() == 0


async def test_504_makes_the_slot_suspect(harness: GatewayHarness) -> None:
    harness.set_service(scoring_timeout_ms=50)
    busy, idle = await harness.add_replica(), await harness.add_replica()
    client, connection = await harness.start_request(busy)
    assert (await client.read_message()).status == 504
    await connection.wait_closed()
    assert await replica_of_next_request(harness, busy, idle) is idle


async def test_client_that_waits_gets_the_slot_of_an_abandoned_request(harness: GatewayHarness) -> None:
    harness.set_service(max_request_wait_time=60_000)
    replica = await harness.add_replica()
    client, _ = await harness.start_request(replica)
    waiting = await harness.client()
    waiting.send(post())
    await harness.wait_until(harness.queued)
    client.close()
    connection = await replica.accept()
    await connection.read_message()
    connection.send(ok(b"[5]"))
    assert (await waiting.read_message()).body == b"[5]"


async def test_unlimited_abandoned_requests_weigh_in_the_choice(harness: GatewayHarness) -> None:
    harness.set_service(replica_max_concurrent_requests=0)
    busy, idle = await harness.add_replica(), await harness.add_replica()
    harness.route().lease_cache._random = random.Random(1)
    for _ in range(60):
        client = await harness.client()
        client.send(post())
        await harness.wait_until(lambda: busy.has_unaccepted_connection or idle.has_unaccepted_connection)
        if busy.has_unaccepted_connection:
            await (await busy.accept()).read_message()
            client.close()
            await harness.wait_until(lambda: not harness.in_flight())
        else:
            await (await idle.accept()).read_message()
            idle.connections[-1].send(ok(b"[1]", "Connection: close"))
            await client.read_message()
            client.close()
    # A quarter, when both choices are this replica; half, if the choice did not know.
    assert len(busy.connections) < 23
    loads = {id_: suspect for id_, _, _, _, suspect in harness.route().lease_cache.replica_loads(2)}
    assert loads == {busy.id: True, idle.id: False}


# Explanations.


@pytest.mark.parametrize(
    ("cancellation", "handling"), [("on_close", "closed"), ("none", "kept"), ("unknown", "suspect")]
)
async def test_journal_has_what_happened_to_an_abandoned_request(
    harness: GatewayHarness, cancellation: str, handling: str
) -> None:
    harness.set_service(cancellation=cancellation)
    replica = await harness.add_replica()
    connection = await abandoned_request(harness, replica, request=post(b"{}", "x-ms-client-request-id: gone"))
    entry = harness.gateway.journal.find(b"gone")
    assert entry is not None
    assert entry.abandonment is not None
    assert (entry.status, entry.abandonment.handling, entry.abandonment.ended) == (499, handling, [])
    if handling == "kept":
        connection.send(ok())
        await harness.wait_idle()
        ((ended_at, end),) = entry.abandonment.ended
        assert end == "response"
        assert ended_at >= entry.abandonment.at
