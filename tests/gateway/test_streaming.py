"""Streams: server-sent events, streamed responses, websockets."""

import asyncio
import base64
import socket
from typing import Any

import pytest
import websockets

from tests.gateway.harness import GatewayHarness, ScriptedReplica
from tests.gateway.http_connection import KEY, Connection, chunked, get, ok, post, run_loop

UPGRADE = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: abc")
SWITCHING_PROTOCOLS = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nX-Of: model\r\n\r\n"
)


@pytest.mark.parametrize("framing", ["chunked", "length", "until close"])
async def test_each_event_is_forwarded_before_the_next_is_sent(harness: GatewayHarness, framing: str) -> None:
    replica = await harness.add_replica()
    client, connection = await harness.start_request(replica)
    events = [b"data: %d\n\n" % number for number in range(20)]
    headers = ["Content-Type: text/event-stream"]
    if framing == "chunked":
        headers.append("Transfer-Encoding: chunked")
    elif framing == "length":
        headers.append(f"Content-Length: {sum(map(len, events))}")
    connection.send(ok(b"", *headers, length=None))
    head = await client.read_head()
    assert head["content-type"] == "text/event-stream"
    for event in events:
        assert harness.in_flight() == 1
        connection.send(chunked(event, end=False) if framing == "chunked" else event)
        if framing == "length":
            assert await client.read_exactly(len(event)) == event
        else:
            assert int(await client.read_line(), 16) == len(event)
            assert await client.read_exactly(len(event) + 2) == event + b"\r\n"
    if framing == "chunked":
        connection.send(b"0\r\n\r\n")
    elif framing == "until close":
        connection.close()
    if framing != "length":
        assert await client.read_exactly(5) == b"0\r\n\r\n"
    await harness.wait_idle()


async def test_response_head_is_forwarded_before_the_body_arrives(harness: GatewayHarness) -> None:
    replica = await harness.add_replica()
    client, connection = await harness.start_request(replica)
    connection.send(ok(b"", length=3))
    assert (await client.read_head()).status == 200
    connection.send(b"abc")
    assert await client.read_exactly(3) == b"abc"


async def test_stream_may_exceed_the_scoring_timeout_while_data_flows(harness: GatewayHarness) -> None:
    harness.set_service("iris", scoring_timeout_ms=60)
    replica = await harness.add_replica()
    client, connection = await harness.start_request(replica)
    connection.send(ok(b"", "Transfer-Encoding: chunked", length=None))
    for _ in range(8):
        await asyncio.sleep(0.02)
        connection.send(chunked(b"x", end=False))
    connection.send(b"0\r\n\r\n")
    assert (await client.read_message()).body == b"x" * 8


async def test_silent_stream_is_aborted_after_the_scoring_timeout(harness: GatewayHarness) -> None:
    harness.set_service("iris", scoring_timeout_ms=30)
    replica = await harness.add_replica()
    client, connection = await harness.start_request(replica)
    connection.send(ok(b"", "Transfer-Encoding: chunked", length=None) + chunked(b"x", end=False))
    rest = await client.read_to_end()
    assert rest.endswith(b"1\r\nx\r\n")
    await connection.wait_closed()


async def test_client_that_closes_aborts_the_stream_at_the_replica(harness: GatewayHarness) -> None:
    replica = await harness.add_replica()
    client, connection = await harness.start_request(replica)
    connection.send(ok(b"", "Transfer-Encoding: chunked", length=None) + chunked(b"x", end=False))
    await client.wait_until(lambda: client.received.endswith(b"x\r\n"), "first event")
    client.close()
    await connection.wait_closed()
    await harness.wait_idle()
    assert harness.route().counters.client_aborts == 1


# Replicas whose drain time is over.


FRAMINGS = {
    "chunked": (["Transfer-Encoding: chunked"], chunked(b"token", end=False)),
    "length": (["Content-Length: 1000"], b"token"),
    "until close": ([], b"token"),
}


@pytest.mark.parametrize("slots", [1, 0])
@pytest.mark.parametrize("framing", FRAMINGS)
async def test_stream_of_a_replica_whose_drain_time_is_over_ends_before_its_announced_end(
    harness: GatewayHarness, framing: str, slots: int
) -> None:
    harness.set_service("iris", replica_max_concurrent_requests=slots)
    replica = await harness.add_replica()
    client, connection = await harness.start_request(replica)
    headers, piece = FRAMINGS[framing]
    connection.send(ok(b"", *headers, length=None) + piece)
    assert (await client.read_head()).status == 200
    await client.wait_until(lambda: b"token" in client.received, "first token")
    assert harness.gateway.streaming() == {"iris-default-0": 1}
    harness.abort_requests_at("iris-default-1")
    assert harness.in_flight() == 1
    harness.abort_requests_at("iris-default-0")
    rest = await client.read_to_end()
    assert not rest.endswith(b"0\r\n\r\n")
    await connection.wait_closed()
    await harness.wait_idle()
    assert dict(harness.route().counters.responses) == {(200, "drain-timeout"): 1}
    assert harness.gateway.streaming() == {}


async def test_request_without_a_response_gets_502_when_the_drain_time_is_over(harness: GatewayHarness) -> None:
    replica = await harness.add_replica()
    client, connection = await harness.start_request(replica)
    assert harness.gateway.streaming() == {}
    harness.abort_requests_at("iris-default-0")
    response = await client.read_message()
    assert (response.status, response.error_code) == (502, "drain-timeout")
    await connection.wait_closed()


async def test_upload_to_a_replica_whose_drain_time_is_over_is_refused(harness: GatewayHarness) -> None:
    replica = await harness.add_replica()
    client = await harness.client()
    client.send(post(b"x" * 100_000, length=50_000_000))  # too large to be received before it has a slot
    connection = await replica.accept()
    await connection.read_head()
    harness.abort_requests_at("iris-default-0")
    response = await client.read_message()
    assert (response.status, response.error_code) == (502, "drain-timeout")
    await connection.wait_closed()


async def test_requests_at_other_replicas_go_on(harness: GatewayHarness) -> None:
    replicas = [await harness.add_replica(), await harness.add_replica()]
    clients = [await harness.client() for _ in replicas]
    for client in clients:
        client.send(get())
    connections = [await replica.accept() for replica in replicas]  # each has one slot
    for connection in connections:
        await connection.read_message()
    harness.abort_requests_at("iris-default-0")
    await connections[0].wait_closed()
    connections[1].send(ok(b"done"))
    responses = [await client.read_message() for client in clients]
    assert sorted((response.status, response.error_code) for response in responses) == [
        (200, None),
        (502, "drain-timeout"),
    ]
    await harness.wait_idle()


# Websockets.


async def test_tunnel_of_a_replica_whose_drain_time_is_over_is_closed(harness: GatewayHarness) -> None:
    replica = await harness.add_replica()
    client, connection = await open_tunnel(harness, replica)
    assert harness.gateway.streaming() == {"iris-default-0": 1}
    harness.abort_requests_at("iris-default-0")
    await client.wait_closed()
    await connection.wait_closed()
    await harness.wait_idle()
    assert dict(harness.route().counters.responses) == {(101, "drain-timeout"): 1}


async def open_tunnel(harness: GatewayHarness, replica: ScriptedReplica) -> tuple[Connection, Connection]:
    client = await harness.client()
    client.send(get(*UPGRADE))
    connection = await replica.accept()
    request = await connection.read_message()
    assert (request["connection"], request["upgrade"]) == ("Upgrade", "websocket")
    assert request["sec-websocket-key"] == "abc"
    connection.send(SWITCHING_PROTOCOLS)
    response = await client.read_message()
    assert (response.status, response["connection"], response["upgrade"]) == (101, "Upgrade", "websocket")
    assert response["x-of"] == "model"
    assert "content-length" not in response
    return client, connection


async def test_tunnel_forwards_bytes_in_both_directions(harness: GatewayHarness) -> None:
    replica = await harness.add_replica()
    client, connection = await open_tunnel(harness, replica)
    for number in range(20):
        client.send(b"\x00ping%d" % number)
        assert await connection.read_exactly(len(b"\x00ping%d" % number)) == b"\x00ping%d" % number
        connection.send(b"HTTP/1.1 %d" % number)
        assert await client.read_exactly(len(b"HTTP/1.1 %d" % number)) == b"HTTP/1.1 %d" % number
    client.send(b"x" * 3_000_000)
    connection.send(b"y" * 3_000_000)
    assert await connection.read_exactly(3_000_000) == b"x" * 3_000_000
    assert await client.read_exactly(3_000_000) == b"y" * 3_000_000


async def test_tunnel_occupies_a_slot(harness: GatewayHarness) -> None:
    harness.set_service("iris", max_request_wait_time=20)
    replica = await harness.add_replica()
    client, connection = await open_tunnel(harness, replica)
    assert harness.in_flight() == 1
    assert (await harness.response_to(get())).status == 503
    client.close()
    await connection.wait_closed()
    await harness.wait_idle()
    replica.auto_respond()
    assert (await harness.response_to(get())).status == 200


async def test_scoring_timeout_does_not_apply_to_tunnels(harness: GatewayHarness) -> None:
    harness.set_service("iris", scoring_timeout_ms=20)
    replica = await harness.add_replica()
    client, connection = await open_tunnel(harness, replica)
    await asyncio.sleep(0.06)
    client.send(b"still open")
    assert await connection.read_exactly(10) == b"still open"


async def test_bytes_sent_with_the_upgrade_do_not_count_against_the_budget_of_an_open_tunnel(
    harness: GatewayHarness,
) -> None:
    replica = await harness.add_replica()
    client = await harness.client()
    client.send(get(*UPGRADE) + b"x" * 10_000)
    connection = await replica.accept()
    await connection.read_message()
    assert harness.gateway.counters.buffered_bytes == 10_000
    connection.send(SWITCHING_PROTOCOLS)
    assert await connection.read_exactly(10_000) == b"x" * 10_000
    assert harness.gateway.counters.buffered_bytes == 0


async def test_bytes_sent_with_the_upgrade_are_forwarded_in_both_directions(harness: GatewayHarness) -> None:
    replica = await harness.add_replica()
    client = await harness.client()
    client.send(get(*UPGRADE) + b"client")
    connection = await replica.accept()
    await connection.read_head()
    assert not connection.received
    connection.send(SWITCHING_PROTOCOLS + b"replica")
    assert await connection.read_exactly(6) == b"client"
    assert (await client.read_head()).status == 101
    assert await client.read_exactly(7) == b"replica"


@pytest.mark.parametrize("size", [10, 1_000_000])
async def test_last_bytes_of_a_closing_client_are_forwarded(harness: GatewayHarness, size: int) -> None:
    replica = await harness.add_replica()
    client, connection = await open_tunnel(harness, replica)
    client.send(b"x" * size)
    client.close()
    assert len(await connection.read_to_end()) == size


@pytest.mark.parametrize("size", [10, 1_000_000])
async def test_last_bytes_of_a_closing_replica_are_forwarded(harness: GatewayHarness, size: int) -> None:
    replica = await harness.add_replica()
    client, connection = await open_tunnel(harness, replica)
    connection.send(b"x" * size)
    connection.close()
    assert len(await client.read_to_end()) == size


@pytest.mark.parametrize("side", ["client", "replica"])
async def test_reset_of_one_side_of_a_tunnel_closes_the_other(harness: GatewayHarness, side: str) -> None:
    replica = await harness.add_replica()
    client, connection = await open_tunnel(harness, replica)
    one, other = (client, connection) if side == "client" else (connection, client)
    one.reset()
    await other.wait_closed()
    await harness.wait_idle()


@pytest.mark.parametrize("side", ["client", "replica"])
async def test_slow_side_of_a_tunnel_pauses_reading_from_the_other(harness: GatewayHarness, side: str) -> None:
    replica = await harness.add_replica()
    replica.stop_listening()
    await replica.listen(receive_buffer=65_536)
    client, connection = await open_tunnel(harness, replica)
    slow, fast = (client, connection) if side == "client" else (connection, client)
    slow.pause_reading()
    sent = 0
    while sent < 64_000_000 and fast.transport.get_write_buffer_size() < 1_000_000:
        fast.send(b"x" * 65_536)
        sent += 65_536
        await run_loop(3)
    assert sent < 64_000_000
    slow.stores_data = False
    slow.total_received = 0
    slow.resume_reading()
    await slow.wait_until(lambda: slow.total_received == sent, "all data")
    fast.send(b"!")
    await slow.wait_until(lambda: slow.total_received == sent + 1, "last byte")


async def test_declined_upgrade_keeps_the_connection(harness: GatewayHarness) -> None:
    replica = await harness.add_replica()
    client = await harness.client()
    client.send(get(*UPGRADE) + get())
    connection = await replica.accept()
    await connection.read_head()
    connection.send(ok(b"no", status="426 Upgrade Required"))
    assert (await client.read_message()).status == 426
    assert "upgrade" not in await connection.read_message()
    connection.send(ok(b"yes"))
    assert (await client.read_message()).body == b"yes"


@pytest.mark.parametrize(
    "raw",
    [
        SWITCHING_PROTOCOLS,
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
    ],
)
async def test_101_without_an_upgrade_request_is_502(harness: GatewayHarness, raw: bytes) -> None:
    replica = await harness.add_replica()
    client, connection = await harness.start_request(replica)
    connection.send(raw)
    response = await client.read_message()
    assert (response.status, response.error_code) == (502, "replica-closed")
    await connection.wait_closed()


@pytest.mark.parametrize(
    "raw",
    [SWITCHING_PROTOCOLS.replace(b"Upgrade: websocket\r\n", b""), SWITCHING_PROTOCOLS.replace(b"websocket", b"h2c")],
)
async def test_101_to_another_protocol_is_502(harness: GatewayHarness, raw: bytes) -> None:
    replica = await harness.add_replica()
    client = await harness.client()
    client.send(get(*UPGRADE))
    connection = await replica.accept()
    await connection.read_head()
    connection.send(raw)
    assert (await client.read_message()).status == 502
    await connection.wait_closed()


TOKEN_PROTOCOL = "base64url.bearer.authorization.k8s.io." + base64.urlsafe_b64encode(KEY.encode()).decode().rstrip("=")


@pytest.mark.parametrize(
    ("options", "protocol"),
    [
        ({"additional_headers": {"Authorization": f"Bearer {KEY}"}}, None),
        ({"subprotocols": ["chat", TOKEN_PROTOCOL]}, "chat"),  # all that a browser can do
    ],
)
async def test_websocket_library_works_through_the_router(
    harness: GatewayHarness, options: dict[str, Any], protocol: str | None
) -> None:
    """Client and server use the websockets package: handshake, messages, close handshake."""
    subprotocols = [websockets.Subprotocol(protocol)] if protocol else None

    async def echo(connection: websockets.ServerConnection) -> None:
        async for message in connection:
            await connection.send(message)

    harness.set_service("iris")
    async with websockets.serve(echo, "127.0.0.1", 0, subprotocols=subprotocols) as server:
        replica = await harness.add_replica()
        replica.stop_listening()
        replica.id, replica.port = "websocket", server.sockets[0].getsockname()[1]
        harness.publish_replicas(("iris", "default"))
        address = f"ws://127.0.0.1:{harness.port}/api/v1/service/iris/stream"
        async with websockets.connect(address, **options) as socket:
            assert socket.subprotocol == protocol
            for message in ("hello", b"\x00\xff", "x" * 200_000):
                await socket.send(message)
                assert await socket.recv() == message
            assert harness.in_flight() == 1
        await harness.wait_idle()
    assert socket.close_code == 1000


# Limits of tunnels and streams.


def last_error_code(harness: GatewayHarness) -> str:
    """Return the error code of the last request in the journal."""
    return harness.gateway.journal.notable[-1].error_code


@pytest.mark.parametrize("active", [None, "client", "replica"])
async def test_tunnel_without_data_for_too_long_is_closed(harness: GatewayHarness, active: str | None) -> None:
    harness.set_service("iris", tunnel_idle_timeout_seconds=0.1)
    replica = await harness.add_replica()
    client, connection = await open_tunnel(harness, replica)
    for _ in range(8):  # twice the limit
        if active == "client":
            client.send(b"x")
        elif active == "replica":
            connection.send(b"x")
        await asyncio.sleep(0.025)
    if active is not None:
        assert harness.in_flight() == 1
    await client.wait_closed()
    await connection.wait_closed()
    assert last_error_code(harness) == "tunnel-idle"
    assert harness.gateway.journal.notable[-1].status == 101


async def test_tunnel_that_lasts_too_long_is_closed(harness: GatewayHarness) -> None:
    harness.set_service("iris", max_stream_seconds=0.1)
    replica = await harness.add_replica()
    client, connection = await open_tunnel(harness, replica)
    while not client.remote_closed:
        client.send(b"x")
        await asyncio.sleep(0.01)
    await connection.wait_closed()
    assert last_error_code(harness) == "stream-timeout"


@pytest.mark.parametrize("framing", ["chunked", "until close"])
async def test_stream_that_lasts_too_long_is_aborted(harness: GatewayHarness, framing: str) -> None:
    harness.set_service("iris", max_stream_seconds=0.1)
    replica = await harness.add_replica()
    client, connection = await harness.start_request(replica)
    headers = ["Transfer-Encoding: chunked"] if framing == "chunked" else []
    connection.send(ok(b"", *headers, length=None))
    await client.read_head()
    while not connection.remote_closed:
        connection.send(chunked(b"x", end=False) if framing == "chunked" else b"x")
        await asyncio.sleep(0.01)
    assert not (await client.read_to_end()).endswith(b"0\r\n\r\n")  # so that the client sees that it is incomplete
    assert last_error_code(harness) == "stream-timeout"


async def test_response_of_known_length_has_no_limit_of_duration(harness: GatewayHarness) -> None:
    harness.set_service("iris", max_stream_seconds=0.05)
    replica = await harness.add_replica()
    client, connection = await harness.start_request(replica)
    connection.send(ok(b"", length=10))
    for _ in range(10):
        await asyncio.sleep(0.02)
        connection.send(b"x")
    assert (await client.read_message()).body == b"x" * 10


@pytest.mark.gateway(tcp_keepalive_seconds=7, replica_tcp_user_timeout_seconds=9)
async def test_vanished_replica_is_detected_by_tcp(harness: GatewayHarness) -> None:
    replica = await harness.add_replica()
    await open_tunnel(harness, replica)
    sock = harness.replica_connection().transport.get_extra_info("socket")
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 7
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 9000
