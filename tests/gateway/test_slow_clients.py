"""Clients that send or read slowly hold no slot: bodies are received first, responses are held."""

import asyncio
import re
import time

import pytest

from tests.gateway.harness import GatewayHarness, ScriptedReplica
from tests.gateway.http_connection import (
    Connection,
    Message,
    chunked,
    get,
    ok,
    ok_chunked,
    post,
    post_chunked,
    run_loop,
)
from tests.gateway.test_tls import TlsPort

MB = 1024 * 1024
BODY = bytes(range(256)) * 1200  # 300 KB: longer than the part that is kept for a retry


def timing(response: Message, name: str) -> float:
    """Return the milliseconds of a phase in `Server-Timing`."""
    found = re.search(rf"\b{name};dur=([0-9.]+)", response["server-timing"])
    assert found is not None, response["server-timing"]
    return float(found[1])


async def is_served(harness: GatewayHarness, replica: ScriptedReplica) -> bool:
    """Return whether another client gets a slot of the replica now."""
    client, connection = await harness.start_request(replica)
    connection.send(ok(b"other", "Connection: close"))
    connection.close()
    return (await client.read_message()).body == b"other"


# Requests


@pytest.mark.parametrize("is_chunked", [False, True])
@pytest.mark.parametrize("size", [10, 60_000, len(BODY)])
async def test_upload_takes_its_slot_when_it_is_complete(harness: GatewayHarness, size: int, is_chunked: bool) -> None:
    replica = await harness.add_replica()
    client = await harness.client()
    body, cut = BODY[:size], size // 2
    client.send(post_chunked(body[:cut], end=False) if is_chunked else post(body[:cut], length=size))
    await harness.wait_until(lambda: harness.gateway.counters.buffered_bytes)
    assert harness.in_flight() == 0
    assert await is_served(harness, replica)
    assert harness.gateway.counters.buffered_bytes >= cut
    client.send(chunked(body[cut:]) if is_chunked else body[cut:])
    connection = await replica.accept()
    request = await connection.read_message()
    assert request.body == body
    assert ("content-length" in request) != is_chunked
    connection.send(ok())
    response = await client.read_message()
    assert response.status == 200
    assert "connection" not in response
    assert harness.gateway.counters.buffered_bytes == 0


@pytest.mark.parametrize("is_chunked", [False, True])
async def test_model_responds_to_each_part_of_an_unbuffered_body(harness: GatewayHarness, is_chunked: bool) -> None:
    harness.set_service("iris", request_buffering=False)
    replica = await harness.add_replica()
    client = await harness.client()
    client.send(post_chunked(end=False) if is_chunked else post(b"", length=3))
    connection = await replica.accept()
    await connection.read_head()
    connection.send(ok_chunked(end=False))
    await client.read_head()
    for part in (b"1", b"2", b"3"):
        sent = chunked(part, end=False) if is_chunked else part
        client.send(sent)
        assert await connection.read_exactly(len(sent)) == sent
        returned = chunked(part, end=False)
        connection.send(returned)
        assert await client.read_exactly(len(returned)) == returned
    assert harness.gateway.counters.buffered_bytes == 0


async def test_head_without_its_body_takes_no_slot(harness: GatewayHarness) -> None:
    replica = await harness.add_replica()
    clients = [await harness.client() for _ in range(20)]
    for client in clients:
        client.send(post(b"", length=100_000))
    await harness.wait_until(lambda: len(harness.gateway.clients) == 20)
    await run_loop(20)
    assert await is_served(harness, replica)
    assert harness.gateway.counters.buffered_bytes == 0  # announced bytes do not count


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (post(b"", length=100, key="wrong"), 401),
        (post(b"", length=100, method="PUT"), 405),
        (post(b"", length=100, path="/api/v1/service/none/score"), 404),
        (post(b"", "azureml-model-deployment: none", length=100), 404),
        (post(b"", length=200_000_000), 413),
    ],
)
@pytest.mark.parametrize("expects", [True, False])
async def test_request_is_refused_before_its_body_arrives(
    harness: GatewayHarness, request_: bytes, status: int, expects: bool
) -> None:
    replica = await harness.add_replica()
    client = await harness.client()
    client.send(request_.replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n") if expects else request_)
    assert (await client.read_message()).status == status  # and no 100 before it
    assert replica.connections == []


async def test_missing_replica_is_reported_before_the_body_arrives(harness: GatewayHarness) -> None:
    harness.set_service("iris")
    client = await harness.client()
    client.send(post(b"", "Expect: 100-continue", length=100))
    response = await client.read_message()
    assert (response.status, response.error_code) == (503, "no-ready-replicas")


async def test_100_continue_is_sent_while_all_slots_are_busy(harness: GatewayHarness) -> None:
    replica = await harness.add_replica()
    first, connection = await harness.start_request(replica)
    client = await harness.client()
    client.send(post(b"", "Expect: 100-continue", length=3))
    assert (await client.read_head()).start_line == "HTTP/1.1 100 Continue"
    assert harness.queued() == 0
    client.send(b"abc")
    await harness.wait_until(lambda: harness.queued() == 1)
    connection.send(ok())
    assert (await first.read_message()).status == 200
    assert (await connection.read_message()).body == b"abc"
    connection.send(ok())
    assert (await client.read_message()).status == 200


@pytest.mark.gateway(request_buffer_bytes=1000)
async def test_100_continue_for_a_longer_body_is_sent_once_the_request_has_a_slot(harness: GatewayHarness) -> None:
    replica = await harness.add_replica()
    first, connection = await harness.start_request(replica)
    client = await harness.client()
    client.send(post(b"", "Expect: 100-continue", length=1001))
    await harness.wait_until(lambda: harness.queued() == 1)
    assert client.total_received == 0
    connection.send(ok())
    assert (await first.read_message()).status == 200
    assert (await client.read_head()).start_line == "HTTP/1.1 100 Continue"
    client.send(b"x" * 1001)
    assert (await connection.read_message()).body == b"x" * 1001
    connection.send(ok())
    assert (await client.read_message()).status == 200


async def test_queue_position_is_that_of_the_complete_request(harness: GatewayHarness) -> None:
    replica = await harness.add_replica()
    first, connection = await harness.start_request(replica)
    slow, quick = await harness.client(), await harness.client()
    slow.send(post(b"sl", length=4))
    await run_loop(20)
    quick.send(post(b"quick"))
    await harness.wait_until(lambda: harness.queued() == 1)
    slow.send(b"ow")
    await harness.wait_until(lambda: harness.queued() == 2)
    connection.send(ok())
    for body in (b"quick", b"slow"):
        assert (await connection.read_message()).body == body
        connection.send(ok())
    for client in (first, quick, slow):
        assert (await client.read_message()).status == 200


async def test_waiting_time_starts_once_the_body_is_complete(harness: GatewayHarness) -> None:
    harness.set_service("iris", max_request_wait_time=1000)
    replica = await harness.add_replica()
    first, connection = await harness.start_request(replica)
    client = await harness.client()
    routed = harness.route().counters.route_time.sum
    started = time.monotonic()
    client.send(post(b"a", length=3))
    await asyncio.sleep(1.1)
    client.send(b"bc")
    await harness.wait_until(lambda: harness.queued() == 1)
    await asyncio.sleep(0.02)
    connection.send(ok())
    assert (await first.read_message()).status == 200
    await connection.read_message()
    connection.send(ok())
    response = await client.read_message()
    seconds = time.monotonic() - started
    assert response.status == 200
    phases = {name: timing(response, name) / 1000 for name in ("body", "queue", "auth", "router")}
    assert phases["body"] >= 1.09
    assert phases["queue"] >= 0.015
    assert sum(phases.values()) <= seconds + 0.005  # no time counts twice; the phases are rounded
    entry = harness.gateway.journal.notable[-1]
    assert entry.body_seconds >= 1.09
    assert entry.body_seconds + entry.queued_seconds <= seconds
    # Self-scaling must not see slow clients.
    routed = harness.route().counters.route_time.sum - routed
    assert routed + entry.body_seconds + entry.queued_seconds <= seconds


async def test_server_timing_of_a_request_in_one_piece_has_no_body_phase(harness: GatewayHarness) -> None:
    (await harness.add_replica()).auto_respond()
    assert "body" not in (await harness.response_to(post()))["server-timing"]


@pytest.mark.parametrize("start", [post(b"", length=100), post(b"ab", length=100), post_chunked(b"ab", end=False)])
@pytest.mark.parametrize("reset", [True, False])
async def test_client_closes_while_its_body_is_received(harness: GatewayHarness, start: bytes, reset: bool) -> None:
    replica = await harness.add_replica()
    client = await harness.client()
    client.send(start)
    await harness.wait_until(lambda: harness.gateway.clients)
    await run_loop(20)
    client.reset() if reset else client.close()
    await harness.wait_until(lambda: not harness.gateway.clients)
    assert harness.route().counters.client_aborts == 1
    assert dict(harness.route().counters.responses) == {(499, "client-closed"): 1}
    assert harness.route().lease_cache.arrivals == 0
    assert replica.connections == []
    assert harness.gateway.counters.buffered_bytes == 0


@pytest.mark.gateway(client_body_timeout_seconds=0.1)
async def test_body_that_stops_arriving_is_refused_and_takes_no_slot(harness: GatewayHarness) -> None:
    replica = await harness.add_replica()
    client = await harness.client()
    client.send(post(b"ab", length=100))
    response = await client.read_message()
    assert (response.status, response["connection"]) == (408, "close")
    assert timing(response, "body") >= 90
    assert timing(response, "router") < 80
    assert replica.connections == []


@pytest.mark.gateway(max_payload_bytes=1000)
async def test_chunks_over_the_limit_are_refused_and_take_no_slot(harness: GatewayHarness) -> None:
    replica = await harness.add_replica()
    client = await harness.client()
    client.send(post_chunked(b"x" * 600, end=False))
    await harness.wait_until(lambda: harness.gateway.counters.buffered_bytes)
    client.send(chunked(b"x" * 401, end=False))
    assert (await client.read_message()).status == 413
    assert replica.connections == []


@pytest.mark.gateway(request_buffer_bytes=100_000)
async def test_chunked_body_over_the_buffer_limit_is_streamed(harness: GatewayHarness) -> None:
    replica = await harness.add_replica()
    first, busy = await harness.start_request(replica)
    client = await harness.client()
    client.send(post_chunked(BODY[:90_000], end=False))
    await harness.wait_until(lambda: harness.gateway.counters.buffered_bytes >= 90_000)
    assert harness.queued() == 0
    client.send(chunked(BODY[90_000:120_000], end=False))
    await harness.wait_until(lambda: harness.queued() == 1)
    client.send(chunked(BODY[120_000:], end=False))  # not read before the request has a slot
    await run_loop(20)
    (waiter,) = harness.route().lease_cache.waiters.values()
    assert waiter.request.body_bytes == 120_000
    busy.send(ok())
    assert (await first.read_message()).status == 200
    await harness.wait_until(lambda: harness.gateway.counters.buffered_bytes == 0)
    client.send(b"0\r\n\r\n")
    assert (await busy.read_message()).body == BODY
    busy.send(ok())
    assert (await client.read_message()).status == 200


@pytest.mark.gateway(buffer_budget_bytes=100_000)
async def test_body_is_streamed_when_the_budget_is_spent(harness: GatewayHarness) -> None:
    harness.set_service("iris", replica_max_concurrent_requests=2)
    replica = await harness.add_replica()
    waiting, streamed = await harness.client(), await harness.client()
    waiting.send(post(BODY[:60_000], length=90_000))
    await harness.wait_until(lambda: harness.gateway.counters.buffered_bytes >= 60_000)
    streamed.send(post(BODY[:50_000], length=90_000))
    connection = await replica.accept()
    await connection.read_head()
    assert await connection.read_exactly(50_000) == BODY[:50_000]
    assert harness.in_flight() == 1
    assert harness.gateway.counters.buffer_budget_exceeded == 1
    streamed.send(BODY[50_000:90_000])
    assert await connection.read_exactly(40_000) == BODY[50_000:90_000]
    connection.send(ok())
    assert (await streamed.read_message()).status == 200
    waiting.send(BODY[60_000:90_000])
    assert (await connection.read_message()).body == BODY[:90_000]
    connection.send(ok())
    assert (await waiting.read_message()).status == 200
    assert harness.gateway.counters.buffer_budget_exceeded == 1


@pytest.mark.parametrize("is_chunked", [False, True])
@pytest.mark.gateway(buffer_budget_bytes=MB)
async def test_long_body_is_streamed_once_the_budget_is_spent(harness: GatewayHarness, is_chunked: bool) -> None:
    """The replica gets the received data first, then the data that arrives later."""
    replica = await harness.add_replica()
    replica.stop_listening()
    await replica.listen(receive_buffer=65_536)
    other = await harness.client()
    other.send(post(b"x" * 500_000, length=600_000))
    await harness.wait_until(lambda: harness.gateway.counters.buffered_bytes >= 500_000)
    client = await harness.client()
    body = BODY * 3
    first = body[:400_000]
    client.send(post_chunked(first, end=False) if is_chunked else post(first, length=len(body)))
    await harness.wait_until(lambda: harness.gateway.counters.buffered_bytes >= 900_000)
    client.send(chunked(body[400_000:]) if is_chunked else body[400_000:])
    connection = await replica.accept()
    connection.pause_reading()
    await run_loop(50)
    connection.resume_reading()
    assert (await connection.read_message()).body == body
    connection.send(ok())
    assert (await client.read_message()).status == 200
    other.send(b"x" * 100_000)
    assert len((await connection.read_message()).body) == 600_000
    connection.send(ok())
    assert (await other.read_message()).status == 200


async def start_long_upload(harness: GatewayHarness, size: int) -> tuple[Connection, Connection]:
    """Upload a body to a replica that does not read. Return both connections once the gateway cannot write more."""
    replica = await harness.add_replica()
    replica.stop_listening()
    await replica.listen(receive_buffer=65_536)
    client = await harness.client()
    client.send(post(b"x", length=size))
    await run_loop(20)
    client.send(b"x" * (size - 1))
    connection = await replica.accept()
    connection.pause_reading()
    exchange = harness.client_connection()._current
    assert exchange is not None
    await harness.wait_until(lambda: exchange._replica is not None and exchange._replica.write_paused)
    return client, connection


async def test_received_body_is_sent_as_fast_as_the_replica_reads(harness: GatewayHarness) -> None:
    size = 24 * MB
    client, connection = await start_long_upload(harness, size)
    assert harness.replica_connection().transport.get_write_buffer_size() <= MB
    assert harness.gateway.counters.buffered_bytes > size - MB
    assert len(harness.route().scoring_timeouts) == 1
    connection.resume_reading()
    assert len((await connection.read_message()).body) == size
    assert harness.gateway.counters.buffered_bytes == 0
    connection.send(ok())
    assert (await client.read_message()).status == 200


async def test_scoring_timeout_applies_to_a_replica_that_does_not_read_a_received_body(harness: GatewayHarness) -> None:
    harness.set_service("iris", scoring_timeout_ms=60)
    client, connection = await start_long_upload(harness, 24 * MB)
    response = await client.read_message()
    assert (response.status, response.error_code) == (504, "scoring-timeout")
    assert harness.gateway.counters.buffered_bytes == 0
    connection.discard_input()
    client.send(get(path="/"))  # its request was complete, so the connection stays open
    assert (await client.read_message()).body == b"Healthy"


async def test_response_that_is_sent_before_a_received_body_was_forwarded(harness: GatewayHarness) -> None:
    client, connection = await start_long_upload(harness, 24 * MB)
    connection.send(ok(b"too much", status="413 Payload Too Large"))
    assert (await client.read_message()).body == b"too much"
    connection.discard_input()
    await harness.wait_idle()


async def test_client_closes_while_its_received_body_is_sent(harness: GatewayHarness) -> None:
    client, connection = await start_long_upload(harness, 24 * MB)
    client.close()
    await harness.wait_idle()
    connection.discard_input()
    assert harness.route().counters.client_aborts == 1


async def test_body_in_several_pieces_is_sent_again_over_a_stale_connection(harness: GatewayHarness) -> None:
    replica = await harness.add_replica()
    client, connection = await harness.start_request(replica)
    connection.send(ok())
    assert (await client.read_message()).status == 200
    client.send(post(b"ab", length=4))
    await harness.wait_until(lambda: harness.gateway.counters.buffered_bytes)
    client.send(b"cd")
    connection.close_now()  # the gateway reads the rest of the body before it detects the close
    fresh = await replica.accept()
    assert (await fresh.read_message()).body == b"abcd"
    fresh.send(ok())
    assert (await client.read_message()).status == 200
    assert dict(harness.route().counters.retry_causes) == {"stale": 1}


async def test_request_goes_to_another_replica_when_the_connection_is_refused(harness: GatewayHarness) -> None:
    first = await harness.add_replica(listening=False)
    second = await harness.add_replica()
    for _ in range(4):
        client = await harness.client()
        client.send(post(BODY[:200_000], length=len(BODY)))
        await harness.wait_until(lambda: harness.gateway.counters.buffered_bytes)
        client.send(BODY[200_000:])
        connection = await second.accept()
        assert (await connection.read_message()).body == BODY
        connection.send(ok(b"", "Connection: close"))
        connection.close()
        assert (await client.read_message()).status == 200
    assert first.connections == []


# Pipelining


async def test_pipelined_upload_takes_its_slot_when_it_is_complete(harness: GatewayHarness) -> None:
    replica = await harness.add_replica()
    client, connection = await harness.start_request(replica, post(b"one") + post(b"tw", length=3))
    connection.send(ok(b"1"))
    assert (await client.read_message()).body == b"1"
    await harness.wait_until(lambda: harness.gateway.counters.buffered_bytes)
    assert harness.in_flight() == 0
    client.send(b"o" + post(b"three") + post(b"fou", length=4))
    for body in (b"two", b"three"):
        assert (await connection.read_message()).body == body
        connection.send(ok(body))
        assert (await client.read_message()).body == body
    await run_loop(20)
    assert harness.in_flight() == 0
    client.send(b"r")
    assert (await connection.read_message()).body == b"four"
    connection.send(ok(b"4"))
    assert (await client.read_message()).body == b"4"


async def test_refused_upload_is_followed_by_the_next_request(harness: GatewayHarness) -> None:
    replica = (await harness.add_replica()).auto_respond()
    client = await harness.client()
    client.send(post(b"on", length=3))
    await harness.wait_until(lambda: harness.gateway.counters.buffered_bytes)
    harness.remove_replica(replica)
    client.send(b"e" + get(path="/"))
    assert (await client.read_message()).status == 503
    assert (await client.read_message()).body == b"Healthy"


async def test_garbage_after_a_received_body_closes_the_connection(harness: GatewayHarness) -> None:
    (await harness.add_replica()).auto_respond()
    client = await harness.client()
    client.send(post(b"on", length=3))
    await harness.wait_until(lambda: harness.gateway.counters.buffered_bytes)
    client.send(b"e" + b"garbage\r\n\r\n")
    assert (await client.read_message()).status in (200, 400)
    await client.wait_closed()


# Changes while a body is received


async def start_upload(harness: GatewayHarness, *headers: str) -> Connection:
    client = await harness.client()
    client.send(post(b"ab", *headers, length=4))
    await harness.wait_until(lambda: harness.gateway.counters.buffered_bytes)
    return client


async def test_version_is_removed_while_a_body_is_received(harness: GatewayHarness) -> None:
    harness.set_service("iris", versions={"blue": {"is_default": True}, "green": {"traffic_percentile": 0}})
    blue = await harness.add_replica("iris", "blue")
    green = (await harness.add_replica("iris", "green")).auto_respond()
    client = await start_upload(harness)
    named = await start_upload(harness, "azureml-model-deployment: blue")
    harness.replicas.pop(("iris", "blue"))
    harness.set_service("iris", versions={"green": {}})
    harness.coordinator.set_versions(harness.gateway.versions.keys())
    client.send(b"cd")
    response = await client.read_message()
    assert (response.status, response["azureml-model-deployment"]) == (200, "green")
    named.send(b"cd")
    assert (await named.read_message()).status == 404
    assert blue.connections == []
    assert len(green.connections) == 1


async def test_service_is_removed_while_a_body_is_received(harness: GatewayHarness) -> None:
    replica = await harness.add_replica()
    client = await start_upload(harness)
    harness.remove_service("iris")
    client.send(b"cd")
    response = await client.read_message()
    assert (response.status, response.error_code) == (404, "unknown-service")
    assert replica.connections == []


async def test_limit_is_removed_while_a_body_is_received(harness: GatewayHarness) -> None:
    (await harness.add_replica()).auto_respond()
    client = await start_upload(harness)
    harness.set_service("iris", replica_max_concurrent_requests=0)
    client.send(b"cd")
    assert (await client.read_message()).status == 200


async def test_drain_lets_an_upload_finish(harness: GatewayHarness) -> None:
    (await harness.add_replica()).auto_respond()
    client = await start_upload(harness)
    drained = asyncio.create_task(harness.gateway.drain(5.0, 0.01, accept_queued=True))
    await asyncio.sleep(0.1)
    assert not drained.done()
    client.send(b"cd")
    response = await client.read_message()
    assert (response.status, response["connection"]) == (200, "close")
    assert await drained


# Responses


async def start_slow_reader(
    harness: GatewayHarness, response: bytes, *headers: str, replica: ScriptedReplica | None = None
) -> tuple[Connection, Connection]:
    """Send a response to a client that does not read it. Return client and replica connection."""
    replica = replica or await harness.add_replica()
    client = await harness.client(receive_buffer=16_384)
    client.pause_reading()
    client.send(post(b"{}", *headers))
    connection = await replica.accept()
    await connection.read_message()
    connection.send(response)
    return client, connection


@pytest.mark.parametrize("size", [8 * MB, 30_000_000])
async def test_slow_reader_of_a_response_of_known_length_holds_no_slot(harness: GatewayHarness, size: int) -> None:
    body = bytes(range(256)) * (size // 256)
    client, connection = await start_slow_reader(harness, ok(body))
    await harness.wait_until(lambda: harness.in_flight() == 0)
    buffered = harness.gateway.counters.buffered_bytes
    assert 0 < buffered <= size + 1000
    other = await harness.client()
    other.send(post(b"other"))
    assert (await connection.read_message()).body == b"other"
    connection.send(ok(b"other"))
    assert (await other.read_message()).body == b"other"
    client.send(post(b"next"))  # waits until its client has read
    await run_loop(20)
    assert harness.in_flight() == 0
    client.resume_reading()
    assert (await client.read_message()).body == body
    assert (await connection.read_message()).body == b"next"
    connection.send(ok(b"next"))
    assert (await client.read_message()).body == b"next"
    assert harness.gateway.counters.buffered_bytes == 0


async def test_silent_replica_of_a_slow_reader_runs_into_the_scoring_timeout(harness: GatewayHarness) -> None:
    """The router reads a held response as the replica sends it, so the scoring timeout still applies to the replica."""
    harness.set_service("iris", scoring_timeout_ms=200)
    client, connection = await start_slow_reader(harness, ok(b"x" * 4 * MB, length=5 * MB))
    await harness.wait_until(lambda: harness.gateway.counters.buffered_bytes)
    assert harness.in_flight() == 1
    await harness.wait_until(lambda: harness.in_flight() == 0)  # the replica was silent for too long
    assert harness.route().counters.responses[200, "scoring-timeout"] == 1
    client.resume_reading()
    received = await client.read_to_end()
    assert len(received) < 5 * MB
    assert connection.remote_closed


@pytest.mark.parametrize("response", [ok_chunked(b"x" * 8 * MB), ok(b"x" * 8 * MB, length=None)])
async def test_response_of_unknown_length_waits_for_the_reader(harness: GatewayHarness, response: bytes) -> None:
    client, connection = await start_slow_reader(harness, response)
    connection.close()
    await harness.wait_until(lambda: harness.client_connection().write_paused_at)
    await run_loop(50)
    assert harness.in_flight() == 1
    assert harness.gateway.counters.buffered_bytes == 0
    assert harness.client_connection().transport.get_write_buffer_size() <= MB
    client.resume_reading()
    assert (await client.read_message()).body == b"x" * 8 * MB


@pytest.mark.gateway(response_buffer_bytes=8 * MB)
async def test_response_over_the_buffer_limit_waits_for_the_reader(harness: GatewayHarness) -> None:
    client, _ = await start_slow_reader(harness, ok(b"x" * (8 * MB + 1)))
    await harness.wait_until(lambda: harness.client_connection().write_paused_at)
    await run_loop(50)
    assert harness.in_flight() == 1
    assert harness.gateway.counters.buffered_bytes == harness.gateway.counters.buffer_budget_exceeded == 0
    client.resume_reading()
    assert len((await client.read_message()).body) == 8 * MB + 1


@pytest.mark.gateway(buffer_budget_bytes=8 * MB)
async def test_response_waits_for_the_reader_when_the_budget_is_spent(harness: GatewayHarness) -> None:
    harness.set_service("iris", replica_max_concurrent_requests=2)
    replica = await harness.add_replica()
    response = ok(b"x" * 8 * MB)
    first, _ = await start_slow_reader(harness, response, replica=replica)
    await harness.wait_until(lambda: harness.in_flight() == 0)
    second = await harness.client(receive_buffer=16_384)
    second.pause_reading()
    second.send(post())
    connection = replica.connections[0]
    await connection.read_message()
    connection.send(response)
    await harness.wait_until(lambda: harness.gateway.counters.buffer_budget_exceeded)
    await run_loop(50)
    assert harness.in_flight() == 1
    for client in (first, second):
        client.resume_reading()
        assert (await client.read_message()).body == b"x" * 8 * MB
    assert harness.gateway.counters.buffered_bytes == 0


@pytest.mark.parametrize("reset", [True, False])
async def test_slow_reader_closes_after_the_replica_has_responded(harness: GatewayHarness, reset: bool) -> None:
    client, _ = await start_slow_reader(harness, ok(b"x" * 8 * MB))
    await harness.wait_until(lambda: harness.in_flight() == 0)
    client.reset() if reset else client.transport.abort()
    await harness.wait_until(lambda: not harness.gateway.clients)
    assert harness.gateway.counters.buffered_bytes == 0


async def read_slowly(client: Connection, size: int, seconds: float) -> None:
    """Read `size` bytes in about this time, in small steps."""
    end = time.monotonic() + seconds
    client.stores_data = False
    while client.total_received < size:
        client.resume_reading()
        await run_loop(2)
        client.pause_reading()
        await asyncio.sleep(0 if time.monotonic() > end else 0.02)
    client.resume_reading()


@pytest.mark.parametrize("headers", [(), ("Connection: close",)])
@pytest.mark.gateway(client_body_timeout_seconds=0.25)
async def test_slow_reader_has_no_time_limit_while_it_reads(harness: GatewayHarness, headers: tuple[str, ...]) -> None:
    size = 16 * MB
    client, _ = await start_slow_reader(harness, ok(b"x" * size), *headers)
    await harness.wait_until(lambda: harness.in_flight() == 0)
    started_at = time.monotonic()
    await read_slowly(client, size, 1.0)
    assert time.monotonic() - started_at > 0.5
    if headers:
        await client.wait_closed()
        assert not client.was_reset
    else:
        await harness.wait_idle()
        client.stores_data = True
        client.received.clear()
        client.send(get(path="/"))
        assert (await client.read_message()).body == b"Healthy"


@pytest.mark.gateway(client_body_timeout_seconds=0.2, body_min_rate_bytes=100_000_000)
async def test_reader_below_the_minimum_rate_is_disconnected(harness: GatewayHarness) -> None:
    client, _ = await start_slow_reader(harness, ok(b"x" * 30_000_000))
    await harness.wait_until(lambda: harness.in_flight() == 0)
    harness.start_task(read_slowly_until_closed(client))
    await harness.wait_until(lambda: not harness.gateway.clients)
    assert harness.gateway.counters.buffered_bytes == 0


@pytest.mark.gateway(client_body_timeout_seconds=0.25)
async def test_slow_reader_over_tls_gets_its_last_response(harness: GatewayHarness) -> None:
    """A connection with TLS that is closed has a limited time for what was written."""
    size = 16 * MB
    port = await TlsPort.open(harness)
    replica = await harness.add_replica()
    client = await port.client()
    client.pause_reading()
    client.send(post(b"{}", "Connection: close"))
    connection = await replica.accept()
    await connection.read_message()
    connection.send(ok(b"x" * size))
    await harness.wait_until(lambda: harness.in_flight() == 0)
    assert harness.gateway.counters.buffered_bytes > 0
    assert not harness.client_connection().transport.is_closing()
    await read_slowly(client, size, 1.0)
    await client.wait_closed()
    assert client.total_received > size
    assert harness.gateway.counters.buffered_bytes == 0


async def read_slowly_until_closed(client: Connection) -> None:
    client.stores_data = False
    while not client.transport.is_closing() and not client.remote_closed:
        client.resume_reading()
        await run_loop(2)
        if not client.transport.is_closing():
            client.pause_reading()
        await asyncio.sleep(0.05)


async def test_drain_waits_for_a_slow_reader(harness: GatewayHarness) -> None:
    client, _ = await start_slow_reader(harness, ok(b"x" * 8 * MB))
    await harness.wait_until(lambda: harness.in_flight() == 0)
    drained = asyncio.create_task(harness.gateway.drain(5.0, 0.01, accept_queued=True))
    await asyncio.sleep(0.1)
    assert not drained.done()
    client.resume_reading()
    assert len((await client.read_message()).body) == 8 * MB
    assert await drained


async def test_drain_that_cuts_off_a_slow_reader_reports_it(harness: GatewayHarness) -> None:
    await start_slow_reader(harness, ok(b"x" * 8 * MB))
    await harness.wait_until(lambda: harness.in_flight() == 0)
    assert not await harness.gateway.drain(0.1, 0.01, accept_queued=True)
