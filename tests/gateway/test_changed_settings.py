"""Settings of the router that change while connections are open."""

from dataclasses import replace
from typing import Any

import pytest

from tests.gateway.harness import GatewayHarness
from tests.gateway.http_connection import Connection, Message, get, ok, post


def change(harness: GatewayHarness, **settings: Any) -> None:
    harness.gateway.change_settings(replace(harness.gateway.settings, **settings))


async def exchange(client: Connection, connection: Connection, request: bytes) -> Message:
    """Send another request over the connections, and return the response."""
    client.send(request)
    await connection.read_message()
    connection.send(ok())
    return await client.read_message()


@pytest.mark.parametrize(
    ("settings", "request_bytes", "status"),
    [
        ({"max_payload_bytes": 10}, post(b"x" * 11), 413),
        ({"max_head_bytes": 1024}, post(b"", "X-Long: " + "x" * 1024), 431),
        ({"max_headers": 5}, post(b"", *(f"X-{number}: x" for number in range(6))), 431),
    ],
)
async def test_smaller_limit_holds_for_the_next_request_of_an_open_connection(
    harness: GatewayHarness, settings: dict[str, Any], request_bytes: bytes, status: int
) -> None:
    replica = await harness.add_replica()
    client, connection = await harness.start_request(replica)
    connection.send(ok())
    assert (await client.read_message()).status == 200
    assert (await exchange(client, connection, request_bytes)).status == 200
    change(harness, **settings)
    client.send(request_bytes)
    assert (await client.read_message()).status == status


async def test_larger_limits_hold_for_the_next_request_of_an_open_connection(harness: GatewayHarness) -> None:
    change(harness, max_payload_bytes=10, max_headers=8, max_head_bytes=2048)
    replica = await harness.add_replica()
    client, connection = await harness.start_request(replica)
    connection.send(ok())
    await client.read_message()
    change(harness, max_payload_bytes=100, max_headers=100, max_head_bytes=65536)
    request = post(b"x" * 100, *(f"X-{number}: {'x' * 100}" for number in range(50)))
    assert (await exchange(client, connection, request)).status == 200


async def test_shorter_timeout_holds_for_open_connections(harness: GatewayHarness) -> None:
    client = await harness.client()
    change(harness, client_head_timeout_seconds=0.05, client_idle_timeout_seconds=0.05)
    assert await client.read_to_end() == b""


async def test_server_timing_and_buffers_change(harness: GatewayHarness) -> None:
    replica = await harness.add_replica()
    client, connection = await harness.start_request(replica)
    connection.send(ok())
    assert "server-timing" in await client.read_message()
    change(harness, server_timing=False, request_buffer_bytes=0, buffer_budget_bytes=0)
    response = await exchange(client, connection, post())
    assert "server-timing" not in response
    assert not harness.gateway.context.buffers.reserve(1)


async def test_limit_of_connections_per_address_counts_those_that_are_open(harness: GatewayHarness) -> None:
    first, second = await harness.client(), await harness.client()
    await harness.wait_until(lambda: len(harness.gateway.clients) == 2)
    change(harness, max_connections_per_client_address=2)
    refused = await harness.client()
    assert await refused.read_to_end() == b""
    first.close()
    await harness.wait_until(lambda: len(harness.gateway.clients) == 1)
    third = await harness.client()
    await harness.wait_until(lambda: len(harness.gateway.clients) == 2)
    change(harness, max_connections_per_client_address=0)
    for client in (second, third):
        client.close()
    await harness.wait_until(lambda: len(harness.gateway.clients) == 0)


async def test_connections_to_replicas_use_the_changed_timeouts(harness: GatewayHarness) -> None:
    replica = await harness.add_replica()
    client, connection = await harness.start_request(replica, get())
    connection.send(ok())
    await client.read_message()
    change(harness, connect_timeout_ms=7)
    (pool,) = harness.route().pools()
    assert pool.settings.connect_timeout_ms == 7
    added = await harness.add_replica()
    assert harness.route().pool(added.id).settings is pool.settings
