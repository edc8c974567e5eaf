"""Requests through other proxies: what those report is kept from trusted ones, and dropped from all others."""

from __future__ import annotations

import socket

import pytest

from tests.gateway.harness import GatewayHarness
from tests.gateway.http_connection import Connection, Message, get, ok, post
from tests.processes import needs_ipv6

PROXY, STRANGER = "127.0.0.2", "127.0.0.9"
behind_proxies = pytest.mark.gateway(trusted_proxies=("127.0.0.2", "127.1.0.0/16", "10.0.0.0/8"))


async def request_from(harness: GatewayHarness, address: str, *headers: str) -> Message:
    """Return what the replica gets when a peer of this address sends a request."""
    replica = await harness.add_replica()
    client = await harness.client(address=address)
    client.send(post(b"{}", *headers))
    connection = await replica.accept()
    request = await connection.read_message()
    connection.send(ok())
    await client.read_message()
    return request


@behind_proxies
@pytest.mark.parametrize("proxy", [PROXY, "127.1.2.3"])
async def test_fields_of_a_trusted_proxy_are_forwarded(harness: GatewayHarness, proxy: str) -> None:
    request = await request_from(
        harness,
        proxy,
        "X-Forwarded-For: 203.0.113.9",
        "x-forwarded-for: 10.2.2.2",
        "X-Forwarded-Proto: https",
        "X-Forwarded-Host: models.example.com",
        "X-Forwarded-Port: 443",
        "X-Real-IP: 203.0.113.9",
        "X-Forwarded-Client-Cert: Hash=abc",
        "Forwarded: for=203.0.113.9",
    )
    assert request["x-forwarded-for"] == f"203.0.113.9, 10.2.2.2, {proxy}"
    assert request["x-forwarded-proto"] == "https"
    assert request["x-forwarded-host"] == "models.example.com"
    assert request["x-forwarded-port"] == "443"
    assert request["x-real-ip"] == "203.0.113.9"
    assert request["x-forwarded-client-cert"] == "Hash=abc"
    assert request["forwarded"] == f'for=203.0.113.9, for={proxy};host="fe";proto=http'


@behind_proxies
@pytest.mark.parametrize("peer", [STRANGER, "127.2.0.1", "127.0.0.1"])
async def test_fields_of_others_are_replaced_or_dropped(harness: GatewayHarness, peer: str) -> None:
    spoofed = ("For: 10.0.0.1", "Proto: https", "Host: evil.example.com", "Port: 443", "Prefix: /evil", "User: admin")
    headers = [f"X-Forwarded-{field}" for field in spoofed]
    request = await request_from(harness, peer, *headers, "X-Real-IP: 10.0.0.1", "Forwarded: for=10.0.0.1")
    reported = {name.lower(): value for name, value in request.headers if "forwarded" in name.lower()}
    assert reported.pop("x-forwarded-for") == peer
    assert reported.pop("x-forwarded-proto") == "http"
    assert reported.pop("x-forwarded-host") == "fe"
    assert not any("evil" in value or "443" in value or "10." in value for value in reported.values())
    assert "x-forwarded-user" not in request
    assert "x-real-ip" not in request


@behind_proxies
async def test_trust_is_decided_for_each_connection(harness: GatewayHarness) -> None:
    (await harness.add_replica()).auto_respond()
    for address in (PROXY, STRANGER):
        await harness.client(address=address)
    await harness.wait_until(lambda: len(harness.gateway.clients) == 2)
    assert {client.address: client.is_trusted_proxy for client in harness.gateway.clients} == {
        PROXY.encode(): True,
        STRANGER.encode(): False,
    }


@behind_proxies
@pytest.mark.parametrize(
    ("peer", "forwarded_for", "client"),
    [
        (PROXY, "203.0.113.9", b"203.0.113.9"),
        (PROXY, "1.1.1.1, 203.0.113.9:5000, 10.9.9.9", b"203.0.113.9"),
        (PROXY, "unknown", PROXY.encode()),
        (STRANGER, "203.0.113.9", STRANGER.encode()),
    ],
)
async def test_address_of_the_client_behind_proxies(
    harness: GatewayHarness, peer: str, forwarded_for: str, client: bytes
) -> None:
    replica = await harness.add_replica()
    connection = await harness.client(address=peer)
    connection.send(post(b"{}", f"X-Forwarded-For: {forwarded_for}"))
    at_replica = await replica.accept()
    await at_replica.read_message()
    exchange = harness.client_connection()._current
    assert exchange is not None
    assert exchange.request.client_address == client
    at_replica.send(ok())
    await connection.read_message()
    journal = harness.gateway.journal
    (entry,) = (*journal.notable, *journal.routine)
    record = exchange.request.access_record(entry.ended_at, 0.0)
    assert (entry.client, record.client) == (client, client.decode())


@pytest.mark.parametrize(
    ("target", "path"),
    [("/api/v1/service/iris/score?key=hunter2", "/api/v1/service/iris/score"), ("/api/v1/service/hunter2/score", None)],
)
async def test_logs_have_method_and_path_of_a_known_service_without_query(
    harness: GatewayHarness, target: str, path: str | None
) -> None:
    replica = await harness.add_replica()
    connection = await harness.client()
    connection.send(get(path=target))
    if path is not None:
        at_replica = await replica.accept()
        assert "hunter2" in (await at_replica.read_message()).start_line
        at_replica.send(ok())
    await connection.read_message()
    journal = harness.gateway.journal
    (entry,) = (*journal.notable, *journal.routine, *journal.unrouted)
    assert (entry.method, entry.path.decode() or None) == (b"GET", path)


@needs_ipv6
@behind_proxies
@pytest.mark.parametrize(
    ("peer", "forwarded_for"), [(PROXY, f"203.0.113.9, {PROXY}"), (STRANGER, STRANGER), ("::1", "::1")]
)
async def test_peers_at_a_listener_for_both_versions_of_ip(
    harness: GatewayHarness, peer: str, forwarded_for: str
) -> None:
    """The address of an IPv4 client at such a listener is IPv4-mapped."""
    sock = socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    port = sock.getsockname()[1]
    await harness.gateway.acceptor.open(sock)
    replica = await harness.add_replica()
    target = "::1" if ":" in peer else "127.0.0.1"
    _, client = await harness.loop.create_connection(Connection, target, port, local_addr=(peer, 0))
    harness.clients.append(client)
    client.send(post(b"{}", "X-Forwarded-For: 203.0.113.9"))
    connection = await replica.accept()
    assert (await connection.read_message())["x-forwarded-for"] == forwarded_for
    connection.send(ok())
    await client.read_message()


@behind_proxies
async def test_each_request_of_a_proxy_has_its_own_client(harness: GatewayHarness) -> None:
    replica = await harness.add_replica()
    client = await harness.client(address=PROXY)
    client.send(post(b"{}", "X-Forwarded-For: 203.0.113.9", "X-Forwarded-Proto: https") + get())
    connection = await replica.accept()
    assert (await connection.read_message())["x-forwarded-for"] == f"203.0.113.9, {PROXY}"
    connection.send(ok())
    second = await connection.read_message()
    assert (second["x-forwarded-for"], second["x-forwarded-proto"]) == (PROXY, "http")
    connection.send(ok())


@behind_proxies
async def test_connection_of_a_proxy_cannot_remove_its_fields(harness: GatewayHarness) -> None:
    request = await request_from(
        harness, PROXY, "X-Forwarded-For: 203.0.113.9", "Connection: x-forwarded-for, forwarded", "Forwarded: for=x"
    )
    assert request["x-forwarded-for"] == f"203.0.113.9, {PROXY}"
    assert request["forwarded"].startswith("for=x, ")
