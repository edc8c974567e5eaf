"""Client connections: keep-alive and pipelining. Replica connections: pool, stale and refused connections, retries."""

import asyncio
from typing import Any

import pytest

from router.gateway import pool
from router.gateway.connecting import open_replica_connection
from router.gateway.routes import RETRY_FLOOR
from tests.gateway.harness import GatewayHarness, ScriptedReplica
from tests.gateway.http_connection import Connection, get, ok, ok_chunked, post, post_chunked, run_loop

# Client connections.


async def test_client_connection_serves_consecutive_requests(harness: GatewayHarness) -> None:
    replica = (await harness.add_replica()).auto_respond()
    client = await harness.client()
    for request in (post(), get(), post_chunked(b"abc"), post(b"x" * 100_000), post(b"")):
        client.send(request)
        response = await client.read_message()
        assert response.status == 200
        assert "connection" not in response
    assert len(replica.connections) == 1


async def test_connection_close_closes_after_the_response(harness: GatewayHarness) -> None:
    (await harness.add_replica()).auto_respond()
    client = await harness.client()
    client.send(post(b"", "Connection: close"))
    response = await client.read_message()
    assert (response.status, response["connection"]) == (200, "close")
    assert await client.read_to_end() == b""
    assert not client.was_reset


async def test_data_after_a_request_with_connection_close_is_ignored(harness: GatewayHarness) -> None:
    (await harness.add_replica()).auto_respond()
    client = await harness.client()
    client.send(post(b"", "Connection: close") + post() + b"garbage")
    assert (await client.read_message())["connection"] == "close"
    client.half_close()
    assert await client.read_to_end() == b""


async def test_empty_lines_between_requests_are_ignored(harness: GatewayHarness) -> None:
    (await harness.add_replica()).auto_respond()
    client = await harness.client()
    for _ in range(2):
        client.send(b"\r\n\r\n" + post())
        assert (await client.read_message()).status == 200
    await client.send_in_pieces(b"\r\n", post())
    assert (await client.read_message()).status == 200


@pytest.mark.parametrize("batch_size", [1, 100])
async def test_pipelined_requests_get_their_responses_in_order(harness: GatewayHarness, batch_size: int) -> None:
    harness.set_service("iris", replica_max_concurrent_requests=10)

    async def echo(connection: Connection) -> None:
        while await connection.wait_for_data():
            request = await connection.read_message()
            connection.send(ok(request.body))

    for _ in range(2):
        (await harness.add_replica()).run_script(echo)
    client = await harness.client()
    for start in range(0, 400, batch_size):
        client.send(b"".join(post(b"%d" % number) for number in range(start, start + batch_size)))
    for number in range(400):
        assert (await client.read_message()).body == b"%d" % number


async def test_pipelined_forwarded_and_refused_requests_get_their_responses(harness: GatewayHarness) -> None:
    (await harness.add_replica()).auto_respond(ok_chunked(b"abc"))
    client = await harness.client()
    client.send(
        get(path="/")
        + post_chunked(b"abc", trailers="X: y\r\n")
        + post(key="wrong")
        + post(b"x" * 3000)
        + get(path="/nowhere")
        + get()
    )
    assert [(await client.read_message()).status for _ in range(6)] == [200, 200, 401, 200, 404, 200]


async def test_malformed_pipelined_request_is_refused_after_earlier_responses(harness: GatewayHarness) -> None:
    replica = await harness.add_replica()
    client = await harness.client()
    client.send(post(b"1") + post(b"2") + b"POST / HTTP/1.1\r\nbroken\r\n\r\n" + post(b"3"))
    connection = await replica.accept()
    for body in (b"1", b"2"):
        assert (await connection.read_message()).body == body
        connection.send(ok(body))
        assert (await client.read_message()).body == body
    response = await client.read_message()
    assert (response.status, response["connection"]) == (400, "close")
    client.half_close()
    assert await client.read_to_end() == b""
    assert not connection.received


async def test_refused_pipelined_request_does_not_close_the_connection(harness: GatewayHarness) -> None:
    (await harness.add_replica()).auto_respond()
    client = await harness.client()
    client.send((post() + post(key="wrong")) * 50)
    assert [(await client.read_message()).status for _ in range(100)] == [200, 401] * 50


@pytest.mark.parametrize("size", [20_000, 100_000, 1_000_000])
@pytest.mark.parametrize("is_chunked", [True, False])
async def test_large_pipelined_body_is_forwarded(harness: GatewayHarness, size: int, is_chunked: bool) -> None:
    replica = await harness.add_replica()
    client = await harness.client()
    body = b"x" * size
    client.send(post(b"1") + (post_chunked(body[:5000], body[5000:]) if is_chunked else post(body)) + post(b"3"))
    connection = await replica.accept()
    for expected in (b"1", body, b"3"):
        assert (await connection.read_message()).body == expected
        connection.send(ok())
        assert (await client.read_message()).status == 200


async def test_pipelined_body_received_in_pieces_is_forwarded(harness: GatewayHarness) -> None:
    replica = await harness.add_replica()
    client = await harness.client()
    client.send(post(b"1") + post(b"x" * 1000, length=200_000))
    connection = await replica.accept()
    await connection.read_message()
    client.send(b"x" * 199_000 + post(b"3"))
    await run_loop(20)
    connection.send(ok())
    for size in (200_000, 1):
        assert len((await connection.read_message()).body) == size
        connection.send(ok())
    for _ in range(3):
        assert (await client.read_message()).status == 200


async def test_pipelined_requests_wait_while_the_client_does_not_read(harness: GatewayHarness) -> None:
    """Responses to pipelined requests must not pile up in memory."""
    served = 0

    async def send_large_responses(connection: Connection) -> None:
        nonlocal served
        while await connection.wait_for_data():
            await connection.read_message()
            served += 1
            connection.send(ok(b"x" * 1_000_000))

    (await harness.add_replica()).run_script(send_large_responses)
    client = await harness.client(receive_buffer=65_536)
    client.pause_reading()
    client.send(post() * 60)
    client_connection = harness.client_connection()
    await harness.wait_until(lambda: client_connection.write_paused_at)
    await run_loop(200)
    assert client_connection.transport.get_write_buffer_size() < 2_500_000
    client.resume_reading()
    for _ in range(60):
        assert (await client.read_message()).status == 200
    assert served == 60


# Replica connections.


async def close_after_response(connection: Connection) -> None:
    """Serve one request per connection, like gunicorn's sync worker."""
    await connection.read_message()
    connection.send(ok(b"[1]", "Connection: close"))
    connection.close()


async def test_replica_that_announces_the_close_gets_one_request_per_connection(harness: GatewayHarness) -> None:
    replica = (await harness.add_replica()).run_script(close_after_response)
    client = await harness.client()
    for _ in range(20):
        client.send(post())
        assert (await client.read_message()).status == 200
    assert len(replica.connections) == 20


async def test_replica_that_closes_unannounced_gets_one_request_per_connection(harness: GatewayHarness) -> None:
    async def close_unannounced(connection: Connection) -> None:
        await connection.read_message()
        connection.send(ok())
        connection.close()

    replica = (await harness.add_replica()).run_script(close_unannounced)
    client = await harness.client()
    for _ in range(20):
        client.send(post())
        assert (await client.read_message()).status == 200
    assert len(replica.connections) == 20


async def test_replica_connection_with_data_after_the_response_is_closed(harness: GatewayHarness) -> None:
    replica = await harness.add_replica()
    client = await harness.client()
    for extra_data in (b"HTTP/1.1 200 OK\r\nX-Smuggled: ", ok(b"second"), b"garbage", b"0"):
        client.send(post())
        connection = await replica.accept()
        await connection.read_message()
        connection.send(ok(b"first") + extra_data)
        response = await client.read_message()
        assert response.body == b"first"
        assert "x-smuggled" not in response
        await connection.wait_closed()


async def test_data_after_a_chunked_response_is_not_forwarded_as_trailers(harness: GatewayHarness) -> None:
    replica = await harness.add_replica()
    client, connection = await harness.start_request(replica)
    connection.send(ok_chunked(b"first") + ok(b"second", "X-Smuggled: 1"))
    response = await client.read_message()
    assert (response.body, response.trailers) == (b"first", ())


async def test_unsolicited_response_closes_the_replica_connection(harness: GatewayHarness) -> None:
    replica = await harness.add_replica()
    client, connection = await harness.start_request(replica)
    connection.send(ok())
    await client.read_message()
    connection.send(ok(b"unsolicited"))
    await connection.wait_closed()
    client.send(post())
    new_connection = await replica.accept()
    await new_connection.read_message()
    new_connection.send(ok(b"response"))
    assert (await client.read_message()).body == b"response"


@pytest.mark.gateway(replica_idle_connection_seconds=0.0)
async def test_idle_replica_connections_are_closed(harness: GatewayHarness) -> None:
    replica = await harness.add_replica()
    client, connection = await harness.start_request(replica)
    connection.send(ok())
    await client.read_message()
    harness.gateway._check_pools()
    await connection.wait_closed()


@pytest.mark.gateway(replica_idle_connection_seconds=0.0)
async def test_idle_connections_of_a_republished_replica_are_closed(harness: GatewayHarness) -> None:
    replica = await harness.add_replica()
    harness.publish_replicas(("iris", "default"))
    client, connection = await harness.start_request(replica)
    connection.send(ok())
    await client.read_message()
    harness.gateway._check_pools()
    await connection.wait_closed()


async def test_idle_connections_of_a_removed_replica_are_closed(harness: GatewayHarness) -> None:
    replica = await harness.add_replica()
    await harness.add_replica()
    first, connection = await harness.start_request(replica)
    connection.send(ok())
    await first.read_message()
    harness.remove_replica(replica)
    await connection.wait_closed()


async def test_request_in_flight_continues_when_its_replica_is_removed(harness: GatewayHarness) -> None:
    replica = await harness.add_replica()
    client, connection = await harness.start_request(replica)
    harness.remove_replica(replica)
    connection.send(ok(b"late"))
    assert (await client.read_message()).body == b"late"
    await connection.wait_closed()


async def test_changed_port_of_a_replica_is_used_and_its_old_connections_are_not(harness: GatewayHarness) -> None:
    """As when the annotation with the port has changed: the pod is the same."""
    harness.set_service("iris", replica_max_concurrent_requests=2)
    replica = await harness.add_replica()
    first, idle = await harness.start_request(replica)
    second, busy = await harness.start_request(replica)
    idle.send(ok())
    await first.read_message()
    moved = (await harness.add_replica("resnet")).auto_respond(ok(b"moved"))
    replica.port = moved.port
    harness.publish_replicas(("iris", "default"))
    await idle.wait_closed()
    busy.send(ok(b"before"))
    assert (await second.read_message()).body == b"before"
    await busy.wait_closed()
    for client in (first, second, await harness.client()):
        client.send(post())
        assert (await client.read_message()).body == b"moved"
    assert len(moved.connections) == 1


# Stale connections and retries.


async def make_idle_connection(harness: GatewayHarness, replica: ScriptedReplica) -> tuple[Connection, Connection]:
    """Return a client, and an idle replica connection that has served one request."""
    client, connection = await harness.start_request(replica)
    connection.send(ok())
    await client.read_message()
    return client, connection


async def test_connection_closed_while_idle_is_not_reused(harness: GatewayHarness) -> None:
    replica = await harness.add_replica()
    client, connection = await make_idle_connection(harness, replica)
    connection.close()
    await run_loop()
    client.send(post())
    new_connection = await replica.accept()
    await new_connection.read_message()
    new_connection.send(ok())
    assert (await client.read_message()).status == 200
    assert not harness.route().counters.retry_causes


async def send_on_connection_that_closes(
    harness: GatewayHarness, replica: ScriptedReplica, close_method: str, body: bytes = b"[1]"
) -> Connection:
    """Send a request on an idle connection that the replica then closes without having read it."""
    client, connection = await make_idle_connection(harness, replica)
    connection.pause_reading()
    client.send(post(body))
    await harness.wait_until(lambda: harness.in_flight() == 1)
    getattr(connection, close_method)()  # with unread data, so both are resets
    return client


@pytest.mark.parametrize("close_method", ["close", "reset"])
async def test_request_on_a_connection_that_is_reset_is_not_retried(harness: GatewayHarness, close_method: str) -> None:
    """A reset does not prove that the request was not read: the replica may have run it."""
    replica = await harness.add_replica()
    client = await send_on_connection_that_closes(harness, replica, close_method)
    response = await client.read_message()
    assert (response.status, response.error_code) == (502, "replica-closed")
    assert len(replica.connections) == 1


@pytest.mark.parametrize("close_method", ["close", "reset"])
@pytest.mark.parametrize("body", [b"", b"[1]", b"x" * 50_000])
async def test_request_on_a_connection_that_is_reset_is_retried_if_the_version_allows_it(
    harness: GatewayHarness, close_method: str, body: bytes
) -> None:
    harness.set_service("iris", retry_on_reset=True)
    replica = await harness.add_replica()
    client = await send_on_connection_that_closes(harness, replica, close_method, body)
    new_connection = await replica.accept()
    assert (await new_connection.read_message()).body == body
    new_connection.send(ok(b"retried"))
    assert (await client.read_message()).body == b"retried"
    assert dict(harness.route().counters.retry_causes) == {"stale": 1}


async def test_request_that_was_read_before_a_reset_is_retried_only_if_the_version_allows_it(
    harness: GatewayHarness,
) -> None:
    for allowed, statuses in ((False, 502), (True, 200)):
        harness.set_service("iris", retry_on_reset=allowed)
        replica = await harness.add_replica()
        client, connection = await make_idle_connection(harness, replica)
        client.send(post())
        await connection.read_message()
        connection.reset()
        if allowed:
            new_connection = await replica.accept()
            await new_connection.read_message()
            new_connection.send(ok())
        assert (await client.read_message()).status == statuses
        harness.remove_replica(replica)


@pytest.mark.gateway(request_buffer_bytes=0)
@pytest.mark.parametrize("pieces", [[b"[1, ", b"2]"], [b"x" * 1000] * 20])
async def test_request_in_several_segments_is_retried_on_a_connection_closed_before(
    harness: GatewayHarness, pieces: list[bytes]
) -> None:
    """The body is kept until the response starts, for any number of segments."""
    body = b"".join(pieces)
    replica = await harness.add_replica()
    client, connection = await make_idle_connection(harness, replica)
    client.send(post(pieces[0], length=len(body)))
    connection.close_now()
    for piece in pieces[1:]:
        client.send(piece)
        await run_loop()
    new_connection = await replica.accept()
    assert (await new_connection.read_message()).body == body
    new_connection.send(ok(b"whole"))
    assert (await client.read_message()).body == b"whole"


@pytest.mark.parametrize("body", [b"", b"[1]", b"x" * 50_000])
async def test_request_is_retried_when_the_replica_has_closed_the_connection_before(
    harness: GatewayHarness, body: bytes
) -> None:
    """The gateway reads the request before it notices that the connection was closed."""
    replica = await harness.add_replica()
    client, connection = await make_idle_connection(harness, replica)
    client.send(post(body))
    connection.close_now()
    new_connection = await replica.accept()
    assert (await new_connection.read_message()).body == body
    new_connection.send(ok(b"retried"))
    assert (await client.read_message()).body == b"retried"
    assert dict(harness.route().counters.retry_causes) == {"stale": 1}


async def test_request_that_the_replica_has_read_is_not_retried(harness: GatewayHarness) -> None:
    replica = await harness.add_replica()
    client, connection = await make_idle_connection(harness, replica)
    client.send(post())
    await connection.read_message()
    connection.close()
    response = await client.read_message()
    assert (response.status, response.error_code) == (502, "replica-closed")
    assert len(replica.connections) == 1


async def test_request_on_a_new_connection_is_not_retried(harness: GatewayHarness) -> None:
    """A replica that accepts a connection and resets it has failed: the connection was not stale."""
    replica = await harness.add_replica()
    client = await harness.client()
    client.send(post())
    connection = await replica.accept()
    connection.pause_reading()
    connection.reset()
    assert (await client.read_message()).status == 502
    assert len(replica.connections) == 1


async def test_request_whose_response_has_started_is_not_retried(harness: GatewayHarness) -> None:
    replica = await harness.add_replica()
    client, connection = await make_idle_connection(harness, replica)
    connection.pause_reading()
    client.send(post())
    await harness.wait_until(lambda: harness.in_flight() == 1)
    connection.send(b"HTTP/1.1 ")
    await run_loop()
    connection.reset()
    assert (await client.read_message()).status == 502
    assert len(replica.connections) == 1


@pytest.mark.gateway(request_buffer_bytes=0)
async def test_request_with_an_incomplete_body_is_not_retried(harness: GatewayHarness) -> None:
    replica = await harness.add_replica()
    client, connection = await make_idle_connection(harness, replica)
    connection.pause_reading()
    client.send(post(b"abc", length=10))
    await harness.wait_until(lambda: harness.in_flight() == 1)
    connection.reset()
    response = await client.read_message()
    assert (response.status, response["connection"]) == (502, "close")
    assert len(replica.connections) == 1


async def test_request_is_retried_at_most_once(harness: GatewayHarness) -> None:
    harness.set_service("iris", retry_on_reset=True)
    replica = await harness.add_replica()
    client, connection = await make_idle_connection(harness, replica)
    connection.pause_reading()
    client.send(post())
    await harness.wait_until(lambda: harness.in_flight() == 1)
    connection.reset()
    second = await replica.accept()
    second.reset()
    assert (await client.read_message()).status == 502
    assert len(replica.connections) == 2


async def test_connections_of_a_replica_that_closes_them_unannounced_are_not_reused_at_once(
    harness: GatewayHarness,
) -> None:
    replica = await harness.add_replica()
    client, connection = await make_idle_connection(harness, replica)
    connection.close()
    await harness.wait_until(lambda: not harness.gateway.connections_idle)
    client.send(post())
    second = await replica.accept()
    await second.read_message()
    second.send(ok())
    await client.read_message()
    client.send(post())  # the second connection may not be reused yet
    third = await replica.accept()
    await third.read_message()
    third.send(ok())
    await client.read_message()
    await asyncio.sleep(1.2 * pool._SETTLING_SECONDS)
    client.send(post())
    await second.read_message()  # idle for long enough
    second.send(ok())
    await client.read_message()


async def test_connection_closed_after_an_idle_time_does_not_delay_the_reuse_of_others(
    harness: GatewayHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "_EARLY_CLOSE_SECONDS", 0.0)
    replica = await harness.add_replica()
    client, connection = await make_idle_connection(harness, replica)
    connection.close()
    await harness.wait_until(lambda: not harness.gateway.connections_idle)
    for _ in range(2):
        client.send(post())
        if len(replica.connections) == 1:
            second = await replica.accept()
        await second.read_message()
        second.send(ok())
        await client.read_message()
    assert len(replica.connections) == 2


# Refused connections.


async def test_request_goes_to_another_replica_when_the_connection_is_refused(harness: GatewayHarness) -> None:
    refusing = await harness.add_replica(listening=False)
    (await harness.add_replica()).auto_respond(ok(b"other replica"))
    for _ in range(8):
        assert (await harness.response_to(post(b"x" * 1000))).body == b"other replica"
    assert refusing.connections == []
    assert harness.route().counters.retry_causes["connect"] >= 1


@pytest.mark.gateway(request_buffer_bytes=0)
async def test_incomplete_request_goes_to_another_replica_when_the_connection_is_refused(
    harness: GatewayHarness,
) -> None:
    await harness.add_replica(listening=False)
    replica = await harness.add_replica()
    client = await harness.client()
    for _ in range(2):
        client.send(post(b"abc", length=6))
        connection = replica.connections[0] if replica.connections else await replica.accept()
        await connection.read_head()
        client.send(b"def")
        assert await connection.read_exactly(6) == b"abcdef"
        connection.send(ok())
        assert (await client.read_message()).status == 200


@pytest.mark.parametrize("limit", [0, 1, 3])
async def test_503_when_all_replicas_refuse_connections_for_too_long(harness: GatewayHarness, limit: int) -> None:
    harness.set_service("iris", max_request_wait_time=100, replica_max_concurrent_requests=limit)
    for _ in range(3):
        await harness.add_replica(listening=False)
    response = await harness.response_to(post())
    assert (response.status, response.error_code) == (503, "no-ready-replicas")


@pytest.mark.parametrize("limit", [0, 1, 40])
async def test_requests_wait_until_the_only_replica_accepts_connections(harness: GatewayHarness, limit: int) -> None:
    harness.set_service("iris", max_request_wait_time=5000, replica_max_concurrent_requests=limit)
    replica = await harness.add_replica(listening=False)
    clients = [await harness.client() for _ in range(40)]
    for client in clients:
        client.send(post(b"x" * 1000))
    await asyncio.sleep(0.3)
    assert harness.queued() == 40
    replica.auto_respond(ok(b"listening"))
    await replica.listen()
    for client in clients:
        assert (await client.read_message()).body == b"listening"
    assert not any(connection.received for connection in replica.connections)


@pytest.mark.gateway(connect_timeout_ms=30)
async def test_request_waits_until_the_only_replica_has_room_in_its_backlog(harness: GatewayHarness) -> None:
    harness.set_service("iris", max_request_wait_time=5000)
    replica = await harness.add_replica()
    replica.stop_accepting()
    client = await harness.client()
    client.send(post())
    await harness.wait_until(lambda: harness.queued() == 1)
    replica.auto_respond()
    replica.stop_listening()
    await replica.listen()
    assert (await client.read_message()).status == 200


async def test_replica_is_used_again_once_it_accepts_connections(harness: GatewayHarness) -> None:
    harness.set_service("iris", max_request_wait_time=20)
    replica = await harness.add_replica(listening=False)
    assert (await harness.response_to(post())).status == 503
    harness.set_service("iris", max_request_wait_time=5000)
    await replica.listen()
    replica.auto_respond(ok(b"listening again"))
    assert (await harness.response_to(post())).body == b"listening again"  # queued while the replica is suspended


async def test_request_refused_by_one_replica_waits_for_a_slot_of_another(harness: GatewayHarness) -> None:
    harness.set_service("iris", max_request_wait_time=5000)
    replica = await harness.add_replica()
    first, connection = await harness.start_request(replica)
    await harness.add_replica(listening=False)
    client = await harness.client()
    client.send(post(b"queued"))
    await harness.wait_until(lambda: harness.queued() == 1)
    connection.send(ok())
    assert (await first.read_message()).status == 200
    assert (await connection.read_message()).body == b"queued"
    connection.send(ok())
    assert (await client.read_message()).status == 200


@pytest.mark.gateway(connect_timeout_ms=50)
async def test_503_when_the_replica_does_not_accept_connections(harness: GatewayHarness) -> None:
    harness.set_service("iris", max_request_wait_time=60)
    (await harness.add_replica()).stop_accepting()
    response = await harness.response_to(post())
    assert (response.status, response.error_code) == (503, "no-ready-replicas")


async def test_simultaneous_refused_connections_count_as_one(harness: GatewayHarness) -> None:
    """Otherwise the number of refused requests would determine how long the replica is suspended."""
    harness.set_service("iris", replica_max_concurrent_requests=100, max_request_wait_time=1)
    replica = await harness.add_replica(listening=False)
    clients = [await harness.client() for _ in range(40)]
    for client in clients:
        client.send(post())
    statuses = {(await client.read_message()).status for client in clients}
    assert statuses == {503}
    assert harness.route().pool(replica.id).next_suspension() == 2 * pool.FIRST_SUSPENSION_SECONDS


async def test_retries_are_limited_by_a_budget(harness: GatewayHarness) -> None:
    """Retries must not double the load when all connections fail."""
    harness.set_service("iris", replica_max_concurrent_requests=100, retry_on_reset=True)
    replica = await harness.add_replica()
    count = RETRY_FLOOR * 4
    clients = [await harness.client() for _ in range(count)]
    connections = []
    for client in clients:
        client.send(post())
        connection = await replica.accept()
        await connection.read_message()
        connections.append(connection)
    for client, connection in zip(clients, connections, strict=True):
        connection.send(ok())
        await client.read_message()
        connection.pause_reading()
    for client in clients:
        client.send(post())
    await harness.wait_until(lambda: harness.in_flight() == count)
    replica.auto_respond()
    for connection in connections:
        connection.reset()
    statuses = [(await client.read_message()).status for client in clients]
    retried = statuses.count(200)
    assert RETRY_FLOOR <= retried <= RETRY_FLOOR + 0.2 * 2 * count
    assert statuses.count(502) == count - retried


# Draining.


async def test_drain_finishes_requests_and_closes_idle_connections(harness: GatewayHarness) -> None:
    replica = await harness.add_replica()
    idle = await harness.client()
    client, connection = await harness.start_request(replica)
    draining = asyncio.ensure_future(harness.gateway.drain(5.0, 0.02, accept_queued=True))
    assert await idle.read_to_end() == b""
    connection.send(ok())
    response = await client.read_message()
    assert (response.status, response["connection"]) == (200, "close")
    assert await draining is True


async def test_drain_aborts_requests_after_its_timeout(harness: GatewayHarness) -> None:
    replica = await harness.add_replica()
    client, connection = await harness.start_request(replica)
    assert await harness.gateway.drain(0.02, 0.02, accept_queued=True) is False
    await client.wait_closed()
    await connection.wait_closed()


async def test_connection_that_is_not_needed_any_more_is_closed(
    harness: GatewayHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A replica with one thread would wait for a request on it, and serve no other worker."""
    left = asyncio.Event()

    async def open_later(*arguments: Any) -> None:
        await left.wait()
        await open_replica_connection(*arguments)

    monkeypatch.setattr(pool, "open_replica_connection", open_later)
    replica = await harness.add_replica()
    client = await harness.client()
    client.send(post())
    await harness.wait_until(lambda: harness.in_flight() == 1, "slot")
    client.reset()
    await harness.wait_until(lambda: not harness.gateway.clients.count, "end of the client's connection")
    left.set()
    connection = await replica.accept()
    await connection.wait_closed()
    assert connection.received == b""
    connection.close()
