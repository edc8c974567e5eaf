"""Bodies of requests and responses: framing, trailers, size limit, `Expect`, HTTP/1.0, backpressure."""

import pytest

from tests.gateway.harness import GatewayHarness
from tests.gateway.http_connection import Connection, chunked, get, ok, ok_chunked, post, post_chunked, run_loop

MB = 1024 * 1024

# Requests.


@pytest.mark.parametrize("size", [0, 1, 1000, 65_535, 65_536, 70_000, 300_000])
@pytest.mark.parametrize("in_pieces", [False, True])
async def test_request_body_with_content_length_is_forwarded(
    harness: GatewayHarness, size: int, in_pieces: bool
) -> None:
    replica = await harness.add_replica()
    client = await harness.client()
    body = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    if not in_pieces or size < 1000:
        client.send(post(body))
    else:
        harness.start_task(
            client.send_in_pieces(post(body[:10], length=size), body[10 : size // 2], body[max(10, size // 2) :])
        )
    connection = await replica.accept()
    request = await connection.read_message()
    assert request.body == body
    assert "transfer-encoding" not in request
    connection.send(ok())
    assert (await client.read_message()).status == 200


async def test_chunked_request_body_is_forwarded(harness: GatewayHarness) -> None:
    replica = await harness.add_replica()
    client = await harness.client()
    client.send(post_chunked(b"abc", b"d" * 5000))
    connection = await replica.accept()
    request = await connection.read_message()
    assert request.body == b"abc" + b"d" * 5000
    assert "content-length" not in request
    connection.send(ok())
    assert (await client.read_message()).status == 200


@pytest.mark.gateway(request_buffer_bytes=0)
async def test_request_chunks_are_forwarded_as_they_arrive(harness: GatewayHarness) -> None:
    replica = await harness.add_replica()
    client = await harness.client()
    client.send(post_chunked(end=False))
    connection = await replica.accept()
    await connection.read_head()
    for piece in (b"one", b"two", b"three"):
        client.send(chunked(piece, end=False))
        assert int(await connection.read_line(), 16) == len(piece)
        assert await connection.read_exactly(len(piece) + 2) == piece + b"\r\n"
    client.send(b"0\r\n\r\n")
    assert await connection.read_exactly(5) == b"0\r\n\r\n"
    connection.send(ok())
    assert (await client.read_message()).status == 200


async def test_chunked_request_received_byte_by_byte_is_forwarded(harness: GatewayHarness) -> None:
    replica = await harness.add_replica()
    client = await harness.client()
    request = post_chunked(b"abc", b"defgh", trailers="X-Sum: 12\r\n")
    harness.start_task(client.send_in_pieces(*(request[i : i + 1] for i in range(len(request)))))
    connection = await replica.accept()
    forwarded = await connection.read_message()
    assert forwarded.body == b"abcdefgh"
    assert forwarded.trailers == (("X-Sum", "12"),)
    connection.send(ok())
    assert (await client.read_message()).status == 200


async def test_chunk_extensions_are_not_forwarded(harness: GatewayHarness) -> None:
    replica = await harness.add_replica()
    client = await harness.client()
    client.send(post_chunked(end=False) + b"3;a=b\r\nabc\r\n0;last\r\n\r\n")
    connection = await replica.accept()
    assert (await connection.read_message()).body == b"abc"
    assert b"a=b" not in connection.received
    connection.send(ok())
    assert (await client.read_message()).status == 200


async def test_only_permitted_trailers_are_forwarded(harness: GatewayHarness) -> None:
    replica = await harness.add_replica()
    client = await harness.client()
    trailers = "X-Checksum: abc\r\nAuthorization: Bearer x\r\nX-Request-Id: mine\r\nX_U: 1\r\nHost: b\r\nTE: x\r\n"
    client.send(post_chunked(b"abc", trailers=trailers))
    connection = await replica.accept()
    assert (await connection.read_message()).trailers == (("X-Checksum", "abc"),)
    connection.send(ok())
    assert (await client.read_message()).status == 200


# Size limit.


@pytest.mark.parametrize("size", [999, 1000])
@pytest.mark.parametrize("is_chunked", [True, False])
@pytest.mark.gateway(max_payload_bytes=1000)
async def test_body_at_the_size_limit_is_forwarded(harness: GatewayHarness, size: int, is_chunked: bool) -> None:
    (await harness.add_replica()).auto_respond()
    body = b"x" * size
    assert (await harness.response_to(post_chunked(body[:600], body[600:]) if is_chunked else post(body))).status == 200


@pytest.mark.gateway(max_payload_bytes=1000)
async def test_content_length_over_the_limit_is_refused_before_the_body_arrives(harness: GatewayHarness) -> None:
    replica = await harness.add_replica()
    client = await harness.client()
    client.send(post(b"", length=70_000))
    response = await client.read_message()
    assert (response.status, response.error_code, response["connection"]) == (413, "payload-too-large", "close")
    assert replica.connections == []


@pytest.mark.gateway(request_buffer_bytes=0, max_payload_bytes=1000)
async def test_chunked_body_over_the_limit_is_refused_and_aborted_at_the_replica(harness: GatewayHarness) -> None:
    replica = await harness.add_replica()
    client = await harness.client()
    client.send(post_chunked(b"x" * 600, end=False))
    connection = await replica.accept()
    await connection.wait_until(lambda: connection.received.endswith(b"x" * 600 + b"\r\n"), "first chunk")
    client.send(chunked(b"x" * 401, end=False))
    response = await client.read_message()
    assert (response.status, response.error_code, response["connection"]) == (413, "payload-too-large", "close")
    await connection.wait_closed()
    body = connection.received.partition(b"\r\n\r\n")[2]
    assert b"0\r\n\r\n" not in body  # so that the replica does not take the body as complete


@pytest.mark.gateway(max_payload_bytes=1000)
async def test_chunked_body_over_the_limit_in_one_piece_is_refused(harness: GatewayHarness) -> None:
    (await harness.add_replica()).auto_respond()
    response = await harness.response_to(post_chunked(b"x" * 1001))
    assert (response.status, response.error_code) == (413, "payload-too-large")


@pytest.mark.gateway(request_buffer_bytes=0, max_payload_bytes=1000)
async def test_queued_request_is_refused_when_its_chunks_exceed_the_limit(harness: GatewayHarness) -> None:
    replica = await harness.add_replica()
    first, connection = await harness.start_request(replica)
    client = await harness.client()
    client.send(post_chunked(b"x" * 600, end=False))
    await harness.wait_until(lambda: harness.queued() == 1)
    client.send(chunked(b"x" * 401, end=False))
    assert (await client.read_message()).status == 413
    assert harness.queued() == 0
    connection.send(ok())
    assert (await first.read_message()).status == 200


# Expect: 100-continue.


@pytest.mark.gateway(request_buffer_bytes=0)
async def test_100_continue_is_sent_once_the_request_has_a_slot(harness: GatewayHarness) -> None:
    replica = await harness.add_replica()
    first, connection = await harness.start_request(replica)
    client = await harness.client()
    client.send(post(b"", "Expect: 100-continue", length=3))
    await harness.wait_until(lambda: harness.queued() == 1)
    await run_loop(20)
    assert client.total_received == 0
    connection.send(ok())
    assert (await first.read_message()).status == 200
    assert (await client.read_head()).start_line == "HTTP/1.1 100 Continue"
    client.send(b"abc")
    request = await connection.read_message()
    assert request.body == b"abc"
    assert "expect" not in request
    connection.send(ok())
    assert (await client.read_message()).status == 200


@pytest.mark.gateway(request_buffer_bytes=0)
async def test_100_continue_is_not_sent_for_a_refused_request(harness: GatewayHarness) -> None:
    harness.set_service("iris", max_request_wait_time=20)
    replica = await harness.add_replica()
    first, connection = await harness.start_request(replica)
    client = await harness.client()
    client.send(post(b"", "Expect: 100-continue", length=3))
    response = await client.read_message()
    assert (response.status, response["connection"]) == (503, "close")
    connection.send(ok())
    assert (await first.read_message()).status == 200


async def test_client_may_send_the_body_without_waiting_for_100_continue(harness: GatewayHarness) -> None:
    (await harness.add_replica()).auto_respond()
    client = await harness.client()
    client.send(post(b"abc", "Expect: 100-continue"))
    assert (await client.read_message()).status == 200


@pytest.mark.gateway(request_buffer_bytes=0)
async def test_100_continue_is_not_sent_to_http10_clients(harness: GatewayHarness) -> None:
    replica = await harness.add_replica()
    client = await harness.client()
    client.send(post(b"", "Expect: 100-continue", length=3, version="1.0"))
    connection = await replica.accept()
    await connection.read_head()
    assert client.total_received == 0
    client.send(b"abc")
    await connection.read_exactly(3)
    connection.send(ok())
    assert (await client.read_message()).status == 200


async def test_100_continue_of_the_replica_is_not_forwarded(harness: GatewayHarness) -> None:
    replica = await harness.add_replica()
    client, connection = await harness.start_request(replica)
    connection.send(b"HTTP/1.1 100 Continue\r\n\r\n" + ok(b"abc"))
    assert (await client.read_message()).body == b"abc"


async def test_early_hints_are_forwarded(harness: GatewayHarness) -> None:
    replica = await harness.add_replica()
    client, connection = await harness.start_request(replica)
    connection.send(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n")
    hints = await client.read_head()
    assert (hints.status, hints["link"]) == (103, "</a>")
    connection.send(ok(b"abc"))
    response = await client.read_message()
    assert response.body == b"abc"
    assert "link" not in response


async def test_early_hints_are_not_forwarded_to_http10_clients(harness: GatewayHarness) -> None:
    replica = await harness.add_replica()
    client, connection = await harness.start_request(replica, post(version="1.0"))
    connection.send(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + ok(b"abc"))
    assert (await client.read_message()).body == b"abc"


# Responses.


@pytest.mark.parametrize("size", [0, 1, 65_535, 65_536, 300_000])
async def test_response_body_with_content_length_is_forwarded(harness: GatewayHarness, size: int) -> None:
    replica = await harness.add_replica()
    client, connection = await harness.start_request(replica)
    body = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    start = ok(body[:10], length=size)
    harness.start_task(connection.send_in_pieces(start, body[10 : size // 2], body[max(10, size // 2) :]))
    response = await client.read_message()
    assert response.body == body
    assert "transfer-encoding" not in response
    client.send(post())
    await connection.read_message()  # on the same connection
    connection.send(ok())
    assert (await client.read_message()).status == 200


async def test_chunked_response_with_trailers_is_forwarded(harness: GatewayHarness) -> None:
    replica = await harness.add_replica()
    client, connection = await harness.start_request(replica)
    trailers = "X-Sum: abc\r\nSet-Cookie: a=b\r\nazureml-fe-error: x\r\n"
    connection.send(ok_chunked(b"abc", b"de", trailers=trailers, headers=("Trailer: X-Sum",)))
    response = await client.read_message()
    assert response.body == b"abcde"
    assert "content-length" not in response
    assert response.trailers == (("X-Sum", "abc"),)
    assert response["trailer"] == "X-Sum"


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
@pytest.mark.parametrize("headers", [(), ("Content-Length: 10",), ("Transfer-Encoding: chunked",)])
async def test_response_status_without_a_body_is_forwarded(
    harness: GatewayHarness, status: str, headers: tuple[str, ...]
) -> None:
    replica = await harness.add_replica()
    client, connection = await harness.start_request(replica)
    connection.send(ok(b"", *headers, status=status, length=None))
    response = await client.read_message()
    assert response.status == int(status[:3])
    assert "transfer-encoding" not in response
    assert response.get("content-length") == ("10" if status[0] == "3" and "Content-Length: 10" in headers else None)
    client.send(post())
    await connection.read_message()
    connection.send(ok(b"next"))
    assert (await client.read_message()).body == b"next"


async def test_response_that_ends_with_the_connection_is_sent_in_chunks(harness: GatewayHarness) -> None:
    replica = await harness.add_replica()
    client, connection = await harness.start_request(replica)
    connection.send(ok(b"abc", length=None))
    await run_loop()
    connection.send(b"def")
    connection.close()
    response = await client.read_message()
    assert response.body == b"abcdef"
    assert response["transfer-encoding"] == "chunked"
    assert "connection" not in response
    client.send(get(path="/"))
    assert (await client.read_message()).body == b"Healthy"


# HTTP/1.0.


async def test_connection_of_http10_client_is_closed_after_the_response(harness: GatewayHarness) -> None:
    (await harness.add_replica()).auto_respond(ok(b"abc"))
    client = await harness.client()
    client.send(post(version="1.0"))
    response = await client.read_message()
    assert (response.start_line, response["connection"], response.body) == ("HTTP/1.1 200 OK", "close", b"abc")
    assert await client.read_to_end() == b""


async def test_http10_request_without_host_is_forwarded(harness: GatewayHarness) -> None:
    replica = await harness.add_replica()
    client = await harness.client()
    client.send(post(version="1.0", host=None))
    connection = await replica.accept()
    assert (await connection.read_message())["host"] == ""
    connection.send(ok())
    assert (await client.read_message()).status == 200


async def test_http10_client_can_keep_its_connection(harness: GatewayHarness) -> None:
    (await harness.add_replica()).auto_respond(ok(b"abc"))
    client = await harness.client()
    for path in ("/api/v1/service/iris/score", "/", "/api/v1/service/iris/score"):
        client.send(post(b"", "Connection: keep-alive", version="1.0", path=path, method="GET"))
        response = await client.read_message()
        assert (response.status, response["connection"]) == (200, "keep-alive")


@pytest.mark.parametrize("length", [None, -1])
async def test_http10_client_gets_an_unchunked_response(harness: GatewayHarness, length: int | None) -> None:
    (await harness.add_replica()).auto_respond(ok_chunked(b"abc", b"def", trailers="X-Sum: 1\r\n"))
    client = await harness.client()
    client.send(post(b"", "Connection: keep-alive", version="1.0", length=length))
    response = await client.read_message(until_close=True)
    assert response.body == b"abcdef"
    assert response["connection"] == "close"
    assert "transfer-encoding" not in response


async def test_http10_response_of_a_replica_is_forwarded(harness: GatewayHarness) -> None:
    replica = await harness.add_replica()
    client = await harness.client()
    for length in (-1, None):
        client.send(post())
        connection = await replica.accept()
        await connection.read_message()
        connection.send(ok(b"abc", length=length).replace(b"HTTP/1.1", b"HTTP/1.0"))
        connection.close()
        response = await client.read_message()
        assert (response.start_line, response.body) == ("HTTP/1.1 200 OK", b"abc")


# Backpressure.


def unsent_bytes(connection: Connection) -> int:
    """Return the number of bytes that the test has written and the gateway has not read, apart from kernel buffers."""
    return connection.transport.get_write_buffer_size()


@pytest.mark.gateway(response_buffer_bytes=0)
async def test_slow_client_pauses_reading_from_the_replica(harness: GatewayHarness) -> None:
    replica = await harness.add_replica()
    client = await harness.client(receive_buffer=65_536)
    client.send(post())
    connection = await replica.accept()
    await connection.read_message()
    client.pause_reading()
    size = 32 * MB
    connection.send(ok(b"", length=size))
    connection.transport.set_write_buffer_limits(high=65_536)
    sent = 0
    while sent < size and unsent_bytes(connection) < MB:  # until the gateway stops reading
        connection.send(b"x" * 65_536)
        sent += 65_536
        await run_loop(3)
    assert sent < size
    assert harness.client_connection().transport.get_write_buffer_size() <= MB
    client.stores_data = False
    client.resume_reading()
    connection.send(b"x" * (size - sent))
    await client.wait_until(lambda: client.total_received >= size, "complete body")
    client.received.clear()
    client.stores_data = True
    client.send(get(path="/"))
    assert (await client.read_message()).body == b"Healthy"


@pytest.mark.gateway(request_buffer_bytes=0)
@pytest.mark.parametrize("is_chunked", [True, False])
async def test_slow_replica_pauses_reading_from_the_client(harness: GatewayHarness, is_chunked: bool) -> None:
    harness.set_service("iris")
    replica = await harness.add_replica()
    replica.stop_listening()
    await replica.listen(receive_buffer=65_536)
    client = await harness.client()
    size = 32 * MB
    client.send(post_chunked(end=False) if is_chunked else post(b"", length=size))
    connection = await replica.accept()
    await connection.read_head()
    connection.pause_reading()
    piece = b"10000\r\n%b\r\n" % (b"x" * 65_536) if is_chunked else b"x" * 65_536
    sent = 0
    while sent < size and unsent_bytes(client) < MB:
        client.send(piece)
        sent += 65_536
        await run_loop(3)
    assert sent < size
    assert harness.replica_connection().transport.get_write_buffer_size() <= MB
    connection.stores_data = False
    connection.resume_reading()
    while sent < size:
        client.send(piece)
        sent += 65_536
    if is_chunked:
        client.send(b"0\r\n\r\n")
    before = connection.total_received
    await connection.wait_until(lambda: connection.total_received >= size, "complete body")
    assert before < size
    connection.send(ok())
    assert (await client.read_message()).status == 200


@pytest.mark.gateway(request_buffer_bytes=0)
async def test_backpressure_applies_to_a_body_received_before_the_slot(harness: GatewayHarness) -> None:
    """When the request gets its slot, more of its body has arrived than the replica connection can buffer."""
    replica = await harness.add_replica()
    replica.stop_listening()
    await replica.listen(receive_buffer=65_536)
    client = await harness.client()
    size = 32 * MB
    client.send(post(b"x" * MB, length=size))
    connection = await replica.accept()
    connection.pause_reading()
    sent = MB
    while sent < size and unsent_bytes(client) < MB:
        client.send(b"x" * 65_536)
        sent += 65_536
        await run_loop(3)
    assert sent < size
    assert harness.replica_connection().transport.get_write_buffer_size() <= MB
    client.reset()
    await harness.wait_idle()


@pytest.mark.gateway(request_buffer_bytes=0)
async def test_body_of_a_queued_request_is_not_read_into_memory(harness: GatewayHarness) -> None:
    harness.set_service("iris", max_request_wait_time=5000)
    replica = await harness.add_replica()
    first, connection = await harness.start_request(replica)
    client = await harness.client()
    size = 32 * MB
    client.send(post(b"", length=size))
    sent = 0
    while sent < size and unsent_bytes(client) < MB:
        client.send(b"x" * 65_536)
        sent += 65_536
        await run_loop(3)
    assert sent < size
    (waiter,) = harness.route().lease_cache.waiters.values()
    assert waiter.request.body_bytes <= MB
    connection.send(ok())
    assert (await first.read_message()).status == 200
    await connection.read_head()
    connection.stores_data = False
    connection.total_received = 0
    connection.received.clear()
    client.send(b"x" * (size - sent))
    await connection.wait_until(lambda: connection.total_received >= size - MB, "most of the body")
    client.reset()
    await harness.wait_idle()


# Early responses.


@pytest.mark.gateway(request_buffer_bytes=0)
async def test_response_before_the_end_of_the_body_reaches_the_client(harness: GatewayHarness) -> None:
    replica = await harness.add_replica()
    client = await harness.client()
    client.send(post(b"x" * 1000, length=10 * MB))
    connection = await replica.accept()
    await connection.read_head()
    connection.send(ok(b"too large", status="413 Payload Too Large"))
    response = await client.read_message()
    assert (response.status, response.body, response["connection"]) == (413, b"too large", "close")
    assert response.error_code is None
    client.send(b"x" * MB)  # the client has not read the response yet, which a reset would destroy
    client.half_close()
    assert await client.read_to_end() == b""
    assert not client.was_reset


async def test_early_response_of_a_closing_replica_reaches_the_client(harness: GatewayHarness) -> None:
    replica = await harness.add_replica()
    client = await harness.client()
    client.send(post(b"x" * MB, length=50 * MB))
    connection = await replica.accept()
    await connection.read_head()
    connection.pause_reading()
    connection.send(ok(b"no", "Connection: close", status="403 Forbidden"))
    connection.close()  # with unread data, so the kernel sends RST after the response
    client.send(b"x" * 4 * MB)
    response = await client.read_message()
    assert (response.status, response.body) == (403, b"no")


@pytest.mark.gateway(request_buffer_bytes=0)
async def test_body_is_forwarded_after_the_response_has_started(harness: GatewayHarness) -> None:
    replica = await harness.add_replica()
    client = await harness.client()
    client.send(post_chunked(b"one", end=False))
    connection = await replica.accept()
    await connection.wait_until(lambda: b"one" in connection.received, "first chunk")
    connection.send(ok_chunked(b"1", end=False))
    await client.wait_until(lambda: b"1\r\n1\r\n" in client.received, "start of the response")
    client.send(chunked(b"two"))
    await connection.wait_until(lambda: connection.received.endswith(b"3\r\ntwo\r\n0\r\n\r\n"), "second chunk")
    connection.send(chunked(b"2"))
    assert (await client.read_message()).body == b"12"
