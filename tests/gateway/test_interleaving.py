"""Rare orders of events on a client connection: heads behind refused bodies, rejections inside of other failures,
clients that leave early."""

import asyncio
import time

import pytest

from router.gateway.client_connection import _LINGER_SILENCE_SECONDS
from router.gateway.request_reader import SMALL_READ_BYTES
from tests.gateway.harness import GatewayHarness
from tests.gateway.http_connection import chunked, get, ok, ok_chunked, post, run_loop

TWO_HOSTS = b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"
REFUSED = post(b"", key="wrong", length=4)  # refused before its body of four bytes, which is then discarded


# A head behind a discarded body.


@pytest.mark.gateway(client_head_timeout_seconds=0.05)
async def test_head_that_starts_behind_a_discarded_body_has_a_timeout(harness: GatewayHarness) -> None:
    harness.set_service("iris")
    client = await harness.client()
    client.send(REFUSED)
    assert (await client.read_message()).status == 401
    client.send(b"abcd" + get()[:30])
    await run_loop()
    assert not harness.client_connection().idle
    assert (await client.read_message()).status == 408


@pytest.mark.gateway(client_head_timeout_seconds=0.05)
async def test_discarded_body_alone_starts_no_head_timeout(harness: GatewayHarness) -> None:
    replica = await harness.add_replica()
    replica.auto_respond()
    client = await harness.client()
    client.send(REFUSED)
    assert (await client.read_message()).status == 401
    client.send(b"abcd")
    await asyncio.sleep(0.15)
    assert harness.client_connection().idle
    client.send(post())
    assert (await client.read_message()).status == 200


async def test_other_protocol_behind_a_discarded_body_is_rejected(harness: GatewayHarness) -> None:
    harness.set_service("iris")
    client = await harness.client()
    client.send(REFUSED)
    assert (await client.read_message()).status == 401
    client.send(b"abcdGET / RTS")
    await run_loop()
    client.send(b"P/1.0\r\nHost: fe\r\n\r\n")
    assert (await client.read_message()).status == 400


# Rejections.


async def test_request_rejected_while_a_failed_connect_is_handled_gets_its_response(harness: GatewayHarness) -> None:
    harness.set_service(max_request_wait_time=1)
    replica = await harness.add_replica(listening=False)
    client = await harness.client()
    client.send(post() + post(b"x" * 2 * SMALL_READ_BYTES) + TWO_HOSTS)  # the last one is buffered
    assert [(await client.read_message()).status for _ in range(3)] == [503, 503, 400]
    harness.remove_replica(replica)


async def test_request_rejected_while_an_invalid_response_is_handled_gets_its_response(harness: GatewayHarness) -> None:
    replica = await harness.add_replica()
    client = await harness.client()
    client.send(post() + post(b"x" * 2 * SMALL_READ_BYTES) + TWO_HOSTS)  # the last one is buffered
    connection = await replica.accept()
    await connection.read_message()
    invalid = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n"
    connection.send(invalid)
    connection = await replica.accept()
    await connection.read_message()
    connection.send(invalid)
    assert [(await client.read_message()).status for _ in range(3)] == [502, 502, 400]


@pytest.mark.parametrize("more", [b"x", TWO_HOSTS, post()])
async def test_bytes_after_the_last_request_do_not_disturb_its_response(harness: GatewayHarness, more: bytes) -> None:
    replica = await harness.add_replica()
    client = await harness.client()
    client.send(post(b"[1]", "Connection: close"))
    connection = await replica.accept()
    await connection.read_message()
    connection.send(ok(b"", "Transfer-Encoding: chunked", length=None) + chunked(b"first", end=False))
    await client.read_head()
    for piece in (TWO_HOSTS, more, more):
        client.send(piece)
        await run_loop()
    connection.send(chunked(b"second"))
    assert await client.read_exactly(len(chunked(b"first", b"second"))) == chunked(b"first", b"second")


async def test_lame_duck_ignores_a_malformed_request_behind_its_last_response(harness: GatewayHarness) -> None:
    replica = await harness.add_replica()
    client, connection = await harness.start_request(replica)
    harness.gateway.begin_lame_duck()
    connection.send(ok(b"", "Transfer-Encoding: chunked", length=None) + chunked(b"first", end=False))
    await client.read_head()
    for piece in (TWO_HOSTS, b"x"):
        client.send(piece)
        await run_loop()
    connection.send(chunked(b"second"))
    assert await client.read_exactly(len(chunked(b"first", b"second"))) == chunked(b"first", b"second")


# Ends.


async def test_client_that_leaves_before_its_parsed_request_begins_is_forgotten(harness: GatewayHarness) -> None:
    replica = await harness.add_replica()
    client = await harness.client()
    client_connection = harness.client_connection()
    client_connection.pause_writing()  # as if the client did not read an earlier response
    client.send(post())
    await harness.wait_until(lambda: client_connection._current is not None)
    client.reset()
    await harness.wait_until(lambda: not harness.gateway.clients)
    assert not replica.connections


async def test_closing_a_lingering_connection_keeps_its_limits(harness: GatewayHarness) -> None:
    """A drain closes idle connections several times a second."""
    harness.set_service("iris")
    client = await harness.client()
    client.send(b"GARBAGE\r\n\r\n")
    assert (await client.read_message()).status == 400
    client_connection = harness.client_connection()
    client.pause_reading()
    for _ in range(3):
        client_connection.close()
    client_connection.enforce_timeouts(time.monotonic() + _LINGER_SILENCE_SECONDS + 1)
    await harness.wait_until(lambda: not harness.gateway.clients)


# Costs.


async def test_many_trailers_are_forwarded_without_delay(harness: GatewayHarness) -> None:
    """Collecting them takes linear time: quadratic time would exceed the timeouts of the test."""
    replica = await harness.add_replica()
    client, connection = await harness.start_request(replica)
    count = 64_000
    connection.send(ok_chunked(b"x", trailers="a:\r\n" * count))
    response = await client.read_message()
    assert len(response.trailers) == count


async def test_idle_connection_keeps_no_bytes_of_earlier_requests(harness: GatewayHarness) -> None:
    (await harness.add_replica()).auto_respond()
    client = await harness.client()
    client.send(post(b"x" * 10_000))
    assert (await client.read_message()).status == 200
    assert harness.client_connection()._reader._text == b""
