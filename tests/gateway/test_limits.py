"""Limits of clients (size and time of heads and bodies, number of connections), and timeouts of replicas."""

import asyncio
import time
from unittest import mock

import pytest

from router.gateway.client_connection import _LINGER_SILENCE_SECONDS, _MAX_CLOSE_SECONDS, DISCARDING
from tests.gateway.harness import GatewayHarness
from tests.gateway.http_connection import chunked, get, ok, ok_chunked, post, post_chunked, run_loop

# Size of heads.


@pytest.mark.parametrize(
    "request_bytes",
    [
        get("X-Long: " + "x" * 3000),
        get(*(f"X-{number}: {'x' * 100}" for number in range(30))),
        get(path="/" + "p" * 3000),
        post(key="x" * 3000),
        get("Connection: " + "x" * 3000),
        get("X_Under: " + "x" * 3000),
    ],
)
@pytest.mark.parametrize("in_pieces", [False, True])
@pytest.mark.gateway(max_head_bytes=2000)
async def test_head_over_the_byte_limit_is_refused(
    harness: GatewayHarness, request_bytes: bytes, in_pieces: bool
) -> None:
    client = await harness.client()
    if in_pieces:
        await client.send_in_pieces(*(request_bytes[start : start + 400] for start in range(0, 2800, 400)))
    else:
        client.send(request_bytes)
    response = await client.read_message()
    assert (response.status, response.error_code, response["connection"]) == (431, "headers-too-large", "close")
    client.half_close()
    assert await client.read_to_end() == b""


@pytest.mark.gateway(max_head_bytes=2000)
async def test_head_limit_includes_headers_that_are_not_forwarded(harness: GatewayHarness) -> None:
    client = await harness.client()
    client.send(get(*("Keep-Alive: " + "x" * 1000 for _ in range(40))))
    assert (await client.read_message()).status == 431


# The limit also applies to headers that are not forwarded: names with an underscore, and `Forwarded`.
@pytest.mark.parametrize("name", ["X-Many", "X_Many", "Forwarded"])
@pytest.mark.gateway(max_headers=10)
async def test_head_with_too_many_headers_is_refused(harness: GatewayHarness, name: str) -> None:
    (await harness.add_replica()).auto_respond()
    allowed = get(*(f"{name}: 1" for _ in range(8)))  # together with Host and Authorization these are 10 headers
    too_many = get(*(f"{name}: 1" for _ in range(11)))
    assert (await harness.response_to(allowed)).status == 200
    response = await harness.response_to(too_many)
    assert (response.status, response.error_code) == (431, "headers-too-large")


@pytest.mark.gateway(max_head_bytes=2000)
async def test_head_limit_applies_to_each_request(harness: GatewayHarness) -> None:
    (await harness.add_replica()).auto_respond()
    client = await harness.client()
    request = post(b"x" * 3000, "X-Long: " + "x" * 1500)
    client.send(request * 10)
    for _ in range(10):
        assert (await client.read_message()).status == 200
    for start in range(0, len(request), 500):
        await client.send_in_pieces(request[start : start + 500])
    assert (await client.read_message()).status == 200


@pytest.mark.gateway(max_head_bytes=2000)
async def test_endless_pipelined_head_is_refused_after_earlier_responses(harness: GatewayHarness) -> None:
    replica = await harness.add_replica()
    client, connection = await harness.start_request(replica)
    client.send(b"GET / HTTP/1.1\r\nX-Long: ")
    for _ in range(100):
        await client.send_in_pieces(b"x" * 1000)
    client_connection = harness.client_connection()
    assert client_connection._state == DISCARDING
    connection.send(ok())
    assert (await client.read_message()).status == 200
    assert (await client.read_message()).status == 431


@pytest.mark.parametrize("endless_part", ["0\r\nX-Long: ", "5;extension="])
@pytest.mark.gateway(request_buffer_bytes=0)
async def test_endless_trailer_or_chunk_extension_is_refused(harness: GatewayHarness, endless_part: str) -> None:
    replica = await harness.add_replica()
    client = await harness.client()
    client.send(post_chunked(b"abc", end=False) + endless_part.encode())
    connection = await replica.accept()
    for _ in range(18):
        await client.send_in_pieces(b"x" * 1000)
    response = await client.read_message()
    assert (response.status, response.error_code) == (400, "bad-request")
    await connection.wait_closed()


@pytest.mark.gateway(max_headers=10)
async def test_too_many_trailers_are_refused(harness: GatewayHarness) -> None:
    (await harness.add_replica()).auto_respond()
    client = await harness.client()
    client.send(post_chunked(b"abc", trailers="".join(f"X-{number}: 1\r\n" for number in range(11))))
    assert (await client.read_message()).status == 431


@pytest.mark.parametrize("is_trailer", [False, True])
async def test_endless_head_or_trailer_of_a_replica_closes_its_connection(
    harness: GatewayHarness, is_trailer: bool
) -> None:
    replica = await harness.add_replica()
    client, connection = await harness.start_request(replica)
    connection.send(ok_chunked(b"abc", end=False) + b"0\r\n" if is_trailer else b"HTTP/1.1 200 OK\r\n")
    sent = 0
    while not connection.remote_closed and sent < 3_000_000:
        connection.send(b"X-Long: " + b"x" * 10_000 + b"\r\n")
        sent += 10_000
        await run_loop(2)
    await connection.wait_closed()
    assert sent < 1_000_000
    if is_trailer:
        await client.wait_closed()
    else:
        assert (await client.read_message()).status == 502


async def test_endless_interim_responses_of_a_replica_close_its_connection(harness: GatewayHarness) -> None:
    replica = await harness.add_replica()
    client, connection = await harness.start_request(replica)
    for _ in range(100):
        if not connection.remote_closed:
            connection.send(b"HTTP/1.1 102 Processing\r\n\r\n" * 1000)
            await run_loop(3)
    await connection.wait_closed()
    while (response := await client.read_message()).status == 102:
        pass
    assert response.status == 502


# Timeouts of clients.


@pytest.mark.parametrize("start", [b"G", b"GET / HTTP/1.1\r\nHost: fe\r\nX-A", get()[:-2]])
@pytest.mark.gateway(client_head_timeout_seconds=0.05)
async def test_slow_head_is_refused(harness: GatewayHarness, start: bytes) -> None:
    client = await harness.client()
    client.send(start)
    response = await client.read_message()
    assert (response.status, response.error_code, response["connection"]) == (408, "request-timeout", "close")
    assert response.body == b"The request's head did not arrive in time."
    client.half_close()
    assert await client.read_to_end() == b""


@pytest.mark.gateway(client_head_timeout_seconds=0.1)
async def test_head_timeout_applies_to_a_head_sent_byte_by_byte(harness: GatewayHarness) -> None:
    client = await harness.client()
    client.send(b"GET /")
    while not client.received:
        client.send(b"x")
        await asyncio.sleep(0.01)
    assert (await client.read_message()).status == 408


@pytest.mark.gateway(client_head_timeout_seconds=0.05)
async def test_slow_pipelined_head_is_refused_after_earlier_responses(harness: GatewayHarness) -> None:
    replica = await harness.add_replica()
    client, connection = await harness.start_request(replica)
    client.send(b"GET / HTTP/1.1\r\n")
    client_connection = harness.client_connection()
    await harness.wait_until(lambda: client_connection._state == DISCARDING)
    connection.send(ok())
    assert (await client.read_message()).status == 200
    assert (await client.read_message()).status == 408


@pytest.mark.gateway(client_head_timeout_seconds=0.05)
async def test_head_timeout_does_not_run_while_the_router_does_not_read(harness: GatewayHarness) -> None:
    harness.set_service("iris", max_request_wait_time=5000)
    replica = await harness.add_replica()
    client = await harness.client()
    # The third request is not read until the first one has its response.
    client.send(post(b"1") + post(b"2") + get(path="/")[:20])
    connection = await replica.accept()
    await connection.read_message()
    await asyncio.sleep(0.1)
    connection.send(ok())
    await connection.read_message()
    client.send(get(path="/")[20:])
    connection.send(ok())
    for body in (b"[1]", b"[1]", b"Healthy"):
        assert (await client.read_message()).body == body


@pytest.mark.gateway(client_head_timeout_seconds=0.03)
async def test_client_that_sends_nothing_is_disconnected(harness: GatewayHarness) -> None:
    client = await harness.client()
    assert await client.read_to_end() == b""


@pytest.mark.gateway(client_head_timeout_seconds=0.03)
async def test_client_that_sends_only_empty_lines_is_disconnected(harness: GatewayHarness) -> None:
    client = await harness.client()
    client.send(b"\r\n")
    assert await client.read_to_end() == b""


@pytest.mark.gateway(client_idle_timeout_seconds=0.05, client_head_timeout_seconds=60.0)
async def test_idle_client_connection_is_closed(harness: GatewayHarness) -> None:
    client = await harness.client()
    client.send(get(path="/"))
    assert (await client.read_message()).status == 200
    assert await client.read_to_end() == b""
    assert not client.was_reset


@pytest.mark.gateway(client_idle_timeout_seconds=60.0, client_head_timeout_seconds=0.03)
async def test_head_timeout_does_not_run_on_an_idle_connection(harness: GatewayHarness) -> None:
    client = await harness.client()
    for suffix in (b"", b"\r\n"):  # an empty line after a request is ignored (RFC 9112, section 2.2)
        client.send(get(path="/") + suffix)
        assert (await client.read_message()).status == 200
        await client.send_in_pieces(suffix or b"\r\n")
        await asyncio.sleep(0.08)
    assert not client.remote_closed


@pytest.mark.parametrize("is_chunked", [True, False])
@pytest.mark.gateway(request_buffer_bytes=0, client_body_timeout_seconds=0.05)
async def test_body_that_stops_arriving_is_refused(harness: GatewayHarness, is_chunked: bool) -> None:
    replica = await harness.add_replica()
    client = await harness.client()
    client.send(post_chunked(b"abc", end=False) if is_chunked else post(b"abc", length=10))
    connection = await replica.accept()
    response = await client.read_message()
    assert (response.status, response.error_code, response["connection"]) == (408, "request-timeout", "close")
    assert response.body == b"The request's body did not arrive in time."
    await connection.wait_closed()


@pytest.mark.gateway(request_buffer_bytes=0, client_body_timeout_seconds=0.05)
async def test_body_of_a_queued_request_that_stops_arriving_is_refused(harness: GatewayHarness) -> None:
    harness.set_service("iris", max_request_wait_time=60_000)
    replica = await harness.add_replica()
    first, connection = await harness.start_request(replica)
    client = await harness.client()
    client.send(post(b"abc", length=10))
    await harness.wait_until(lambda: harness.queued() == 1)
    assert (await client.read_message()).status == 408
    assert harness.queued() == 0
    connection.send(ok())
    assert (await first.read_message()).status == 200


@pytest.mark.gateway(request_buffer_bytes=0, client_body_timeout_seconds=0.1, body_min_rate_bytes=1000)
async def test_body_below_the_minimum_rate_is_refused(harness: GatewayHarness) -> None:
    replica = await harness.add_replica()
    client = await harness.client()
    client.send(post(b"", length=1_000_000))
    await replica.accept()
    while not client.received and not client.remote_closed:
        client.send(b"x")
        await asyncio.sleep(0.01)
    assert (await client.read_message()).status == 408


@pytest.mark.gateway(request_buffer_bytes=0, client_body_timeout_seconds=0.05)
async def test_body_timeout_does_not_run_while_the_replica_does_not_read(harness: GatewayHarness) -> None:
    replica = await harness.add_replica()
    replica.stop_listening()
    await replica.listen(receive_buffer=65_536)
    client = await harness.client()
    size = 32_000_000
    client.send(post(b"", length=size))
    connection = await replica.accept()
    await connection.read_head()
    connection.pause_reading()
    client.send(b"x" * size)
    client_connection = harness.client_connection()
    await harness.wait_until(lambda: not client_connection._reading)
    await asyncio.sleep(0.15)
    connection.stores_data = False
    received = connection.total_received
    connection.resume_reading()
    await connection.wait_until(lambda: connection.total_received - received + 1_000_000 >= size, "most of the body")
    await connection.wait_until(lambda: connection.total_received > size, "complete body")
    connection.send(ok())
    assert (await client.read_message()).status == 200


@pytest.mark.parametrize("size", [30_000_000, 100_000_000])  # the replica sends all of it, or is paused
@pytest.mark.gateway(client_body_timeout_seconds=0.1)
async def test_client_that_does_not_read_its_response_is_disconnected(harness: GatewayHarness, size: int) -> None:
    replica = await harness.add_replica()
    client = await harness.client(receive_buffer=65_536)
    client.send(post())
    connection = await replica.accept()
    await connection.read_message()
    client.pause_reading()
    connection.send(ok(b"x" * size))
    await harness.wait_idle()
    await harness.wait_until(lambda: not harness.gateway.clients)


async def test_closed_client_connection_is_aborted_if_the_client_does_not_read(harness: GatewayHarness) -> None:
    """The router has written the whole response and closed the connection, but the client never reads it."""
    replica = await harness.add_replica()
    client = await harness.client(receive_buffer=4096)
    client.pause_reading()
    client.send(post(b"", "Connection: close"))
    connection = await replica.accept()
    await connection.read_message()
    client_connection = harness.client_connection()
    connection.send(ok(b"", length=100_000_000))
    while not client_connection.transport.get_write_buffer_size():  # until the socket buffers are full
        connection.send(b"x" * 65_536)
        await run_loop(3)
    connection.close()
    await harness.wait_idle()
    client_connection.enforce_timeouts(time.monotonic() + _MAX_CLOSE_SECONDS - 1)
    assert client_connection in harness.gateway.clients
    client_connection.enforce_timeouts(time.monotonic() + _MAX_CLOSE_SECONDS + 1)
    await harness.wait_until(lambda: not harness.gateway.clients)


async def test_lingering_connection_is_closed_after_silence(harness: GatewayHarness) -> None:
    harness.set_service("iris")
    client = await harness.client()
    client.send(post(b"x" * 1000, key="wrong", length=1_000_000))
    assert (await client.read_message()).status == 401
    client_connection = harness.client_connection()
    client.send(b"x" * 1000)
    await run_loop()
    client_connection.enforce_timeouts(time.monotonic() + _LINGER_SILENCE_SECONDS - 1)
    assert not client.was_reset
    client_connection.enforce_timeouts(time.monotonic() + _LINGER_SILENCE_SECONDS + 1)
    await harness.wait_until(lambda: not harness.gateway.clients)


async def test_lingering_connection_is_closed_after_its_maximum_time(harness: GatewayHarness) -> None:
    harness.set_service("iris")
    client = await harness.client()
    client.send(post(b"", key="wrong", length=1_000_000))
    await client.read_message()
    client_connection = harness.client_connection()
    client_connection._last_input_at = time.monotonic() + _MAX_CLOSE_SECONDS + 1
    client_connection.enforce_timeouts(time.monotonic() + _MAX_CLOSE_SECONDS + 1)
    await harness.wait_until(lambda: not harness.gateway.clients)


async def test_closed_tunnel_to_a_replica_that_does_not_read_is_aborted(harness: GatewayHarness) -> None:
    replica = await harness.add_replica()
    replica.stop_listening()
    await replica.listen(receive_buffer=65_536)
    client = await harness.client()
    client.send(get("Connection: upgrade", "Upgrade: websocket"))
    connection = await replica.accept()
    await connection.read_head()
    connection.send(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n")
    await client.read_head()
    connection.pause_reading()
    client_connection = harness.client_connection()
    while client_connection._reading:
        client.send(b"x" * 65_536)
        await run_loop(3)
    client.reset()
    timeout = client_connection._context.settings.client_body_timeout_seconds
    client_connection.enforce_timeouts(time.monotonic() + timeout - 1)
    await run_loop()
    assert harness.in_flight() == 1
    client_connection.enforce_timeouts(time.monotonic() + timeout + 1)
    await harness.wait_idle()


# Number of client connections.


@pytest.mark.gateway(max_client_connections=3)
async def test_connection_over_the_limit_is_refused(harness: GatewayHarness) -> None:
    (await harness.add_replica()).auto_respond()
    clients = [await harness.client() for _ in range(3)]
    for client in clients:
        client.send(post(b"[1", length=3))
    await harness.wait_until(lambda: sum(not client.idle for client in harness.gateway.clients) == 3)
    refused = await harness.client()
    await refused.wait_closed()
    assert refused.total_received == 0
    assert harness.gateway.counters.connections_refused == 1
    clients[0].close()
    await harness.wait_until(lambda: harness.gateway.counters.connections_open == 2)
    assert (await harness.response_to(get(path="/"))).status == 200


@pytest.mark.gateway(max_client_connections=3)
@pytest.mark.parametrize("start", [b"", b"POST / HT", b"\r\n", get(path="/nothing")])
async def test_connection_that_is_idle_for_longest_makes_room(harness: GatewayHarness, start: bytes) -> None:
    """A client that was served is kept for longer than those that were not, however old it is."""
    (await harness.add_replica()).auto_respond()
    served, *others = [await harness.client() for _ in range(3)]
    served.send(post())
    assert (await served.read_message()).status == 200
    for client in others:
        client.send(start)
    await harness.wait_until(lambda: harness.gateway.counters.connections_open == 3)
    with mock.patch("router.gateway.client_registry.MIN_IDLE_SECONDS", 0.0):
        new = [await harness.client() for _ in range(2)]
        for client in others:
            await client.wait_closed()
    assert harness.gateway.counters.connections_evicted == 2
    assert harness.gateway.counters.connections_refused == 0
    for client in (served, *new):
        client.send(post())
        assert (await client.read_message()).status == 200


@pytest.mark.gateway(max_connections_per_client_address=2, trusted_proxies=("127.0.0.3",))
async def test_connections_from_one_address_are_limited(harness: GatewayHarness) -> None:
    clients = [await harness.client(address="127.0.0.2") for _ in range(2)]
    await (await harness.client(address="127.0.0.2")).wait_closed()
    assert harness.gateway.counters.connections_refused == 1
    proxies = [await harness.client(address="127.0.0.3") for _ in range(3)]
    clients[0].close()
    await harness.wait_until(lambda: harness.gateway.counters.connections_open == 4)
    for client in (*proxies, clients[1], await harness.client(address="127.0.0.2")):
        client.send(get(path="/"))
        assert (await client.read_message()).status == 200


# Timeouts of replicas.


@pytest.mark.gateway(request_buffer_bytes=0)
async def test_scoring_timeout_starts_when_the_body_was_sent(harness: GatewayHarness) -> None:
    harness.set_service("iris", scoring_timeout_ms=50)
    replica = await harness.add_replica()
    client = await harness.client()
    client.send(post_chunked(b"abc", end=False))
    connection = await replica.accept()
    await asyncio.sleep(0.1)
    assert not client.received
    client.send(chunked())
    assert (await client.read_message()).status == 504
    await connection.wait_closed()


async def test_scoring_timeout_applies_to_a_replica_that_does_not_read_the_body(harness: GatewayHarness) -> None:
    harness.set_service("iris", scoring_timeout_ms=50)
    replica = await harness.add_replica()
    replica.stop_listening()
    await replica.listen(receive_buffer=65_536)
    client = await harness.client()
    client.send(post(b"", length=64_000_000))
    connection = await replica.accept()
    connection.pause_reading()
    client.send(b"x" * 32_000_000)
    response = await client.read_message()
    assert (response.status, response.error_code) == (504, "scoring-timeout")


@pytest.mark.gateway(request_buffer_bytes=0)
async def test_scoring_timeout_applies_after_an_early_response_has_started(harness: GatewayHarness) -> None:
    harness.set_service("iris", scoring_timeout_ms=50)
    replica = await harness.add_replica()
    client = await harness.client()
    client.send(post_chunked(b"abc", end=False))
    connection = await replica.accept()
    await connection.read_head()
    connection.send(ok_chunked(b"1", end=False))
    await client.read_head()
    client.send(chunked())
    await connection.wait_until(lambda: connection.received.endswith(b"0\r\n\r\n"), "end of the body")
    await client.wait_closed()
    await connection.wait_closed()


@pytest.mark.gateway(response_buffer_bytes=0)
async def test_scoring_timeout_does_not_run_while_the_client_does_not_read(harness: GatewayHarness) -> None:
    harness.set_service("iris", scoring_timeout_ms=50)
    replica = await harness.add_replica()
    client = await harness.client(receive_buffer=65_536)
    client.send(post())
    connection = await replica.accept()
    await connection.read_message()
    client.pause_reading()
    size = 30_000_000
    connection.send(ok(b"x" * size))
    client_connection = harness.client_connection()
    await harness.wait_until(lambda: client_connection.write_paused_at)
    await asyncio.sleep(0.12)
    client.resume_reading()
    assert len((await client.read_message()).body) == size


async def test_scoring_timeout_applies_to_each_of_many_requests(harness: GatewayHarness) -> None:
    harness.set_service("iris", scoring_timeout_ms=40, replica_max_concurrent_requests=100)
    await harness.add_replica()
    clients = [await harness.client() for _ in range(50)]
    for client in clients:
        client.send(post() * 2)
    for client in clients:
        for _ in range(2):
            assert (await client.read_message()).status == 504
