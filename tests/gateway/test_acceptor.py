"""Accepting clients: the pause while file descriptors run short, and requests without a free descriptor."""

import resource
from unittest import mock

import pytest

from router.gateway.acceptor import max_clients
from tests.gateway.harness import GatewayHarness
from tests.gateway.http_connection import Connection, get, ok, post

DESCRIPTORS = 80  # enough for six clients


def test_max_clients_reserves_descriptors() -> None:
    assert max_clients(DESCRIPTORS, 0) == 6
    assert max_clients(1024, 0) == 832
    assert max_clients(1024, 100) == 732
    assert max_clients(20, 0) == 1  # the minimum


async def busy_clients(harness: GatewayHarness) -> list[Connection]:
    """Connect clients that are not idle, as they send bodies, until accepting is paused and some are waiting."""
    clients: list[Connection] = []
    counters = harness.gateway.counters

    def are_busy() -> bool:
        busy = sum(not client.idle for client in harness.gateway.clients)
        return bool(counters.accept_pauses) or busy >= len(clients)

    while len(clients) < 12:
        clients.append(await harness.client())
        clients[-1].send(post(b"[1", length=3))
        await harness.wait_until(are_busy)
    assert counters.accept_pauses
    return clients


@pytest.mark.gateway(descriptors=DESCRIPTORS)
async def test_clients_beyond_the_descriptor_limit_wait_to_be_accepted(harness: GatewayHarness) -> None:
    (await harness.add_replica()).auto_respond()
    clients = await busy_clients(harness)
    assert 6 <= len(harness.gateway.clients) < 12
    assert not [client for client in clients if client.remote_closed], "clients were disconnected"
    for client in clients:
        client.send(b"]")
    await harness.wait_until(lambda: sum(bool(client.received) for client in clients) >= 6, "responses")
    for client in [client for client in clients if client.received]:
        client.transport.abort()
        clients.remove(client)
    for client in clients:
        assert (await client.read_message()).status == 200


@pytest.mark.gateway(descriptors=DESCRIPTORS)
async def test_accepted_clients_are_served_while_accepting_is_paused(harness: GatewayHarness) -> None:
    replica = await harness.add_replica()
    client, connection = await harness.start_request(replica)
    await busy_clients(harness)
    connection.send(ok(b"first"))
    assert (await client.read_message()).body == b"first"
    client.send(post())
    await connection.read_message()
    connection.send(ok(b"second"))
    assert (await client.read_message()).body == b"second"


@pytest.mark.gateway(descriptors=DESCRIPTORS)
async def test_idle_clients_make_room_for_others_before_descriptors_run_out(harness: GatewayHarness) -> None:
    (await harness.add_replica()).auto_respond()
    with mock.patch("router.gateway.client_registry.MIN_IDLE_SECONDS", 0.0):
        silent = [await harness.client() for _ in range(30)]
        await harness.wait_until(lambda: harness.gateway.counters.connections_accepted == 30, "clients")
        assert (await harness.response_to(post())).status == 200
    assert harness.gateway.counters.connections_evicted >= 24
    assert not harness.gateway.counters.accept_pauses
    await silent[0].wait_closed()


async def test_lack_of_descriptors_does_not_suspend_the_replica(harness: GatewayHarness) -> None:
    replica = await harness.add_replica()
    client = await harness.client()
    client.send(get(path="/"))
    await client.read_message()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))  # no descriptor for a new connection
    try:
        client.send(post())
        response = await client.read_message()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert (response.status, response.error_code) == (503, "overloaded")
    assert "retry-after" in response
    client.send(post())
    connection = await replica.accept()
    await connection.read_message()
    connection.send(ok())
    assert (await client.read_message()).status == 200
