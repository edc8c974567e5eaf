"""Clients that send FIN after complete requests: `half_close`, and its default by `cancellation`."""

import time

import pytest

from router.gateway.client_connection import WORK_PER_TURN
from router.gateway.turns import Backlog
from tests.gateway.harness import GatewayHarness
from tests.gateway.http_connection import KEY, chunked, ok, post, run_loop

DELIVERS = [("none", None), ("unknown", None), ("on_close", "deliver"), ("unknown", "deliver")]
CANCELS = [("on_close", None), ("none", "cancel"), ("unknown", "cancel")]
HTTP10 = (
    f"POST /api/v1/service/iris/score HTTP/1.0\r\nAuthorization: Bearer {KEY}\r\nContent-Length: 2\r\n\r\n[]".encode()
)


@pytest.mark.parametrize(("cancellation", "half_close"), DELIVERS)
@pytest.mark.parametrize(
    "request_bytes", [post(b"[]"), post(b"x" * 100_000), HTTP10], ids=["short", "long", "HTTP/1.0"]
)
async def test_response_is_delivered_to_a_half_closed_client(
    harness: GatewayHarness, cancellation: str, half_close: str | None, request_bytes: bytes
) -> None:
    harness.set_service(cancellation=cancellation, half_close=half_close)
    replica = await harness.add_replica()
    client = await harness.client()
    client.send(request_bytes)
    client.half_close()
    connection = await replica.accept()
    await connection.read_message()
    connection.send(ok(b"[1]"))
    response = await client.read_message()
    assert (response.status, response.body, response["connection"]) == (200, b"[1]", "close")
    await client.wait_closed()


@pytest.mark.parametrize(("cancellation", "half_close"), CANCELS)
async def test_fin_cancels_the_request(harness: GatewayHarness, cancellation: str, half_close: str | None) -> None:
    harness.set_service(cancellation=cancellation, half_close=half_close)
    client, connection = await harness.start_request(await harness.add_replica())
    client.half_close()
    assert await client.read_to_end() == b""
    if cancellation == "none":
        connection.send(ok())  # the slot is in use until then
    else:
        await connection.wait_closed()
    await harness.wait_idle()
    assert harness.route().counters.client_aborts == 1


@pytest.mark.parametrize(("cancellation", "half_close"), DELIVERS)
async def test_queued_request_of_a_half_closed_client_keeps_its_place(
    harness: GatewayHarness, cancellation: str, half_close: str | None
) -> None:
    harness.set_service(cancellation=cancellation, half_close=half_close, max_request_wait_time=60_000)
    first, connection = await harness.start_request(await harness.add_replica())
    queued = []
    for number in range(3):
        queued.append(await harness.client())
        queued[-1].send(post(b"%d" % number))
        await harness.wait_until(lambda: harness.queued() == len(queued))
    queued[1].half_close()
    connection.send(ok(b"first"))
    assert (await first.read_message()).body == b"first"
    for number, client in enumerate(queued):
        assert (await connection.read_message()).body == b"%d" % number
        connection.send(ok(b"%d" % number))
        assert (await client.read_message()).body == b"%d" % number


@pytest.mark.parametrize(("cancellation", "half_close"), CANCELS)
async def test_fin_removes_a_queued_request(harness: GatewayHarness, cancellation: str, half_close: str | None) -> None:
    harness.set_service(cancellation=cancellation, half_close=half_close, max_request_wait_time=60_000)
    first, connection = await harness.start_request(await harness.add_replica())
    client = await harness.client()
    client.send(post())
    await harness.wait_until(lambda: harness.queued() == 1)
    client.half_close()
    await harness.wait_until(lambda: harness.queued() == 0)
    connection.send(ok())
    assert (await first.read_message()).status == 200


@pytest.mark.parametrize("end", [b"", b"POST /api/v1/service/iris/sc", b"\r\n", b"G"])
@pytest.mark.parametrize("count", [1, 2, 5])
async def test_all_pipelined_requests_before_the_fin_are_answered(
    harness: GatewayHarness, count: int, end: bytes
) -> None:
    """An incomplete request after them is ignored."""
    harness.set_service(half_close=None)
    replica = await harness.add_replica()
    client = await harness.client()
    client.send(b"".join(post(b"%d" % number) for number in range(count)) + end)
    client.half_close()
    connection = await replica.accept()
    for number in range(count):
        assert (await connection.read_message()).body == b"%d" % number
        connection.send(ok(b"%d" % number))
        assert (await client.read_message()).body == b"%d" % number
    await client.wait_closed()
    assert not client.received


async def test_body_that_waits_for_a_turn_is_complete(harness: GatewayHarness) -> None:
    """It is neither parsed nor in the socket when the router checks whether the client has left."""
    harness.set_service(half_close=None)
    replica = await harness.add_replica()
    client = await harness.client()
    await harness.wait_until(lambda: harness.gateway.clients.count, "connection")
    checking = Backlog(harness.gateway.context.turns)
    has_checked = False

    def check() -> None:
        nonlocal has_checked
        connection = harness.client_connection()
        if len(connection._backlog) == 1000:
            connection.enforce_timeouts(time.monotonic())
            has_checked = True
        else:
            checking.wait_for_turn(check)

    check()
    body = b"x" * 1000
    padding = WORK_PER_TURN - len(post(b"", "X-Padding: ", length=1000))
    client.send(post(body, "X-Padding: " + "x" * padding))
    client.half_close()
    connection = await replica.accept()
    assert (await connection.read_message()).body == body
    assert has_checked
    connection.send(ok())
    assert (await client.read_message()).status == 200


async def test_stream_continues_after_the_fin(harness: GatewayHarness) -> None:
    harness.set_service(half_close=None)
    client, connection = await harness.start_request(await harness.add_replica())
    connection.send(ok(b"", "Transfer-Encoding: chunked", length=None) + chunked(b"abc", end=False))
    await harness.wait_until(lambda: b"abc" in client.received)
    client.half_close()
    await harness.wait_until(lambda: harness.client_connection()._half_closed)
    connection.send(chunked(b"def"))
    assert (await client.read_message()).body == b"abcdef"
    await client.wait_closed()


async def test_write_detects_that_the_client_has_left(harness: GatewayHarness) -> None:
    harness.set_service(half_close=None)
    client, connection = await harness.start_request(await harness.add_replica())
    client.close()
    await harness.wait_until(lambda: harness.client_connection()._half_closed)
    connection.send(ok(b"", "Transfer-Encoding: chunked", length=None) + chunked(b"abc", end=False))
    while not connection.remote_closed:
        connection.send(chunked(b"abc", end=False))
        await run_loop(3)
    await harness.wait_idle()
    assert harness.route().counters.client_aborts == 1


@pytest.mark.parametrize(
    "request_bytes", [post(b"abc", length=5), post(b"")[:-2] + b"X: y", post(b"x" * 70_000, length=70_001)]
)
async def test_incomplete_request_ends_with_the_fin(harness: GatewayHarness, request_bytes: bytes) -> None:
    harness.set_service(half_close=None)
    await harness.add_replica()
    client = await harness.client()
    client.send(request_bytes)
    client.half_close()
    assert await client.read_to_end() == b""
    await harness.wait_idle()


@pytest.mark.parametrize("missing", [0, 1])
@pytest.mark.gateway(request_buffer_bytes=0)
async def test_fin_after_a_body_that_waits_in_the_socket(harness: GatewayHarness, missing: int) -> None:
    """Of a queued request only so much is read; its place is kept if the rest is there."""
    harness.set_service(half_close=None, max_request_wait_time=60_000)
    first, connection = await harness.start_request(await harness.add_replica())
    client = await harness.client()
    client.send(post(b"x" * 300_000, length=300_000 + missing))
    client.half_close()
    await harness.wait_until(lambda: harness.queued() == 1)
    if missing:
        await client.wait_closed()
        assert harness.queued() == 0
    connection.send(ok())
    assert (await first.read_message()).status == 200
    if not missing:
        assert len((await connection.read_message()).body) == 300_000
        connection.send(ok(b"long"))
        assert (await client.read_message()).body == b"long"
