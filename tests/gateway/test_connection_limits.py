"""Client connections are retired by age, number of requests and load, and no request is lost by that."""

import math
import random
import time

import pytest

from router.gateway.connection_limits import ConnectionLimits, RepeatedSample
from tests.gateway.harness import GatewayHarness
from tests.gateway.http_connection import get, ok, post
from tests.gateway.test_tls import TlsPort


def test_limits_differ_by_up_to_ten_percent() -> None:
    for uniform, factor in ((min, 0.9), (max, 1.1)):
        limits = ConnectionLimits(100.0, 1000, uniform)
        assert limits.draw_expiry(50.0) == pytest.approx(50 + 100 * factor)
        assert limits.draw_requests() == round(1000 * factor)
    limits = ConnectionLimits(100.0, 1000, random.Random(1).uniform)
    assert len({limits.draw_requests() for _ in range(100)}) > 50


def test_zero_is_no_limit_and_the_smallest_limit_is_one_request() -> None:
    unlimited = ConnectionLimits(0.0, 0)
    assert unlimited.draw_expiry(1.0) == math.inf
    assert unlimited.draw_requests() > 10**15
    assert ConnectionLimits(0.0, 1).draw_requests() == 1


def test_shares_below_one_item_add_up() -> None:
    sample = RepeatedSample()
    assert [len(sample.select("abcd", 0.125)) for _ in range(6)] == [0, 1, 0, 1, 0, 1]
    assert sorted(sample.select("abcd", 1.0)) == ["a", "b", "c", "d"]
    assert sample.select("", 1.0) == []


@pytest.mark.gateway(max_connection_requests=1)
async def test_connection_closes_with_the_response_to_its_last_request(harness: GatewayHarness) -> None:
    (await harness.add_replica()).auto_respond()
    for request in (post(), get(path="/")):  # a response of a replica, and one of the router
        client = await harness.client()
        client.send(request)
        response = await client.read_message()
        assert (response.status, response["connection"]) == (200, "close")
        assert await client.read_to_end() == b""
    assert harness.gateway.counters.connections_retired == 2


@pytest.mark.gateway(max_connection_requests=1)
async def test_requests_that_were_sent_already_are_answered_before_the_connection_closes(
    harness: GatewayHarness,
) -> None:
    (await harness.add_replica()).auto_respond()
    client = await harness.client()
    client.send(post(b"1") + post(b"2") + post(b"3"))
    responses = [await client.read_message() for _ in range(3)]
    assert [response.status for response in responses] == [200] * 3
    assert [response.get("connection") for response in responses] == [None, None, "close"]
    assert await client.read_to_end() == b""
    assert harness.gateway.counters.connections_retired == 1


@pytest.mark.gateway(max_connection_requests=1)
async def test_connection_is_kept_while_the_head_of_the_next_request_arrives(harness: GatewayHarness) -> None:
    replica = await harness.add_replica()
    client = await harness.client()
    request = post(b"2")
    client.send(post(b"1") + request[:20])
    at_replica = await replica.accept()
    await at_replica.read_message()
    at_replica.send(ok())
    assert "connection" not in await client.read_message()
    client.send(request[20:])
    await at_replica.read_message()
    at_replica.send(ok())
    assert (await client.read_message())["connection"] == "close"


@pytest.mark.gateway(max_connection_requests=1)
async def test_request_that_has_arrived_and_was_not_read_yet_is_answered(harness: GatewayHarness) -> None:
    replica = await harness.add_replica()
    client = await harness.client()
    client.send(post(b"1"))
    at_replica = await replica.accept()
    await at_replica.read_message()
    at_replica.send(ok())
    client.send(post(b"2"))  # both are in sockets of the router now
    assert "connection" not in await client.read_message()
    await at_replica.read_message()
    at_replica.send(ok())
    assert (await client.read_message())["connection"] == "close"


@pytest.mark.gateway(max_connection_requests=1)
async def test_request_that_is_not_decrypted_yet_is_answered(harness: GatewayHarness) -> None:
    """The records of the first request fill one turn of the event loop. The second one has to wait."""
    client = await (await TlsPort.open(harness)).client()
    request = get(path="/")
    client.send(*(request[at : at + 1] for at in range(63)), request[63:], request)
    assert "connection" not in await client.read_message()
    assert (await client.read_message())["connection"] == "close"


async def test_old_connection_closes_with_its_next_response(harness: GatewayHarness) -> None:
    replica = await harness.add_replica()
    client = await harness.client()
    client.send(post())
    at_replica = await replica.accept()
    await at_replica.read_message()
    (connection,) = harness.gateway.clients
    connection.enforce_timeouts(time.monotonic() + 0.89 * 3600)
    at_replica.send(ok())
    assert "connection" not in await client.read_message()
    client.send(post())
    await at_replica.read_message()
    connection.enforce_timeouts(time.monotonic() + 1.11 * 3600)
    assert not client.remote_closed
    at_replica.send(ok())
    assert (await client.read_message())["connection"] == "close"
    assert await client.read_to_end() == b""


async def test_share_of_the_busy_connections_is_retired(harness: GatewayHarness) -> None:
    (await harness.add_replica()).auto_respond()
    clients = [await harness.client() for _ in range(8)]
    for client in clients:
        client.send(post())
        assert "connection" not in await client.read_message()
    harness.gateway.retire_clients(1.0, time.monotonic() + 2.0)  # all of them are idle then
    harness.gateway.retire_clients(0.5, time.monotonic())
    closed = 0
    for client in clients:
        client.send(post())
        response = await client.read_message()
        assert response.status == 200
        closed += response.get("connection") == "close"
    assert closed == harness.gateway.counters.connections_retired == 4
