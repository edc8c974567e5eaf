"""Credentials in other places than Authorization: key headers, and the protocols of a browser's WebSocket."""

from __future__ import annotations

import base64

import pytest

from tests.gateway.harness import GatewayHarness
from tests.gateway.http_connection import KEY, Message, get, ok, post
from tests.gateway.test_tokens import add_token_service, token

UPGRADE = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: abc")
SWITCHING = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
BEARER = "base64url.bearer.authorization.k8s.io."


def bearer_protocol(credential: str) -> str:
    return BEARER + base64.urlsafe_b64encode(credential.encode()).decode().rstrip("=")


async def at_replica(harness: GatewayHarness, request: bytes) -> Message:
    """Return what the replica gets; the client gets its 200."""
    replica = await harness.add_replica()
    client = await harness.client()
    client.send(request)
    connection = await replica.accept()
    received = await connection.read_message()
    connection.send(ok())
    assert (await client.read_message()).status == 200
    return received


# Key headers.


@pytest.mark.parametrize("header", ["api-key", "x-api-key", "Api-Key", "X-API-KEY"])
async def test_key_in_a_key_header_is_accepted_and_not_forwarded(harness: GatewayHarness, header: str) -> None:
    harness.set_service("iris", key_headers=["authorization", "api-key", "x-api-key"])
    request = await at_replica(harness, post(b"{}", f"{header}: {KEY}", "X-Kept: 1", key=None))
    assert KEY not in repr(request)
    assert header not in request
    assert request["x-kept"] == "1"


async def test_authorization_is_accepted_beside_key_headers(harness: GatewayHarness) -> None:
    harness.set_service("iris", key_headers=["api-key", "authorization"])
    assert KEY not in repr(await at_replica(harness, post()))


@pytest.mark.parametrize(
    ("key_headers", "headers", "status"),
    [
        (["authorization", "api-key"], ("api-key: wrong",), 401),
        (["authorization", "api-key"], (f"api-key: Bearer {KEY}",), 401),
        (["authorization", "api-key"], ("api-key:",), 401),
        (["authorization", "api-key"], (f"x-api-key: {KEY}",), 401),  # not one of this service
        (["api-key"], (f"Authorization: Bearer {KEY}",), 401),
        (["authorization"], (f"api-key: {KEY}",), 401),
        (["authorization", "api-key"], (f"api_key: {KEY}",), 401),
        (["api-key"], (), 401),
    ],
)
async def test_other_credentials_are_refused(
    harness: GatewayHarness, key_headers: list[str], headers: tuple[str, ...], status: int
) -> None:
    harness.set_service("iris", key_headers=key_headers)
    replica = await harness.add_replica()
    assert (await harness.response_to(post(b"{}", *headers, key=None))).status == status
    assert replica.connections == []


@pytest.mark.parametrize(
    "headers",
    [
        (f"Authorization: Bearer {KEY}", f"api-key: {KEY}"),
        (f"api-key: {KEY}", f"x-api-key: {KEY}"),
        (f"api-key: {KEY}", f"api-key: {KEY}"),
        (f"api-key: {KEY}", "Api-Key: other"),
        ("Authorization: Basic x", f"x-api-key: {KEY}"),
        (f"x-api-key: {KEY}, {KEY}",),
    ],
)
async def test_two_credentials_are_400(harness: GatewayHarness, headers: tuple[str, ...]) -> None:
    harness.set_service("iris", key_headers=["authorization", "api-key", "x-api-key"])
    replica = await harness.add_replica()
    response = await harness.response_to(post(b"{}", *headers, key=None))
    assert (response.status, response.error_code) == (400, "bad-request")
    assert KEY.encode() not in response.body
    assert replica.connections == []


async def test_key_headers_of_other_services_are_ordinary_headers(harness: GatewayHarness) -> None:
    request = await at_replica(harness, post(b"{}", "api-key: for-the-model", "x-api-key: a", "x-api-key: b"))
    assert request["api-key"] == "for-the-model"
    assert request.values("x-api-key") == ["a", "b"]


@pytest.mark.parametrize("name", ["api_key", "X_Api_Key", "Api-Key"])
async def test_spellings_of_key_headers_are_not_forwarded(harness: GatewayHarness, name: str) -> None:
    harness.set_service("iris", key_headers=["authorization", "api-key", "x-api-key"], auth_enabled=False)
    harness.set_service(
        "iris", key_headers=["authorization", "api-key", "x-api-key"], keep_underscore_headers=True, auth_enabled=False
    )
    assert name not in await at_replica(harness, post(b"{}", f"{name}: {KEY}", key=None))


async def test_forwarded_authorization_is_only_that_of_the_client(harness: GatewayHarness) -> None:
    harness.set_service("iris", key_headers=["api-key"], forward_authorization=True)
    request = await at_replica(harness, post(b"{}", "Authorization: Basic for-the-model", f"api-key: {KEY}", key=None))
    assert request["authorization"] == "Basic for-the-model"
    assert KEY not in repr(request)


async def test_key_header_may_have_a_token(harness: GatewayHarness) -> None:
    add_token_service(harness)
    harness.set_service(token_auth_enabled=True, key_headers=["authorization", "x-api-key"])
    await at_replica(harness, post(b"{}", f"x-api-key: {token()}", key=None))
    assert (await harness.response_to(post(b"{}", "x-api-key: a.b.c", key=None))).status == 401


async def test_second_request_of_a_connection_has_its_own_credential(harness: GatewayHarness) -> None:
    harness.set_service("iris", key_headers=["authorization", "api-key"])
    (await harness.add_replica()).auto_respond()
    client = await harness.client()
    for headers, key, status in (((f"api-key: {KEY}",), None, 200), ((), None, 401), ((), KEY, 200)):
        client.send(post(b"{}", *headers, key=key))
        assert (await client.read_message()).status == status


# Protocols of a WebSocket.


async def tunnel_request(harness: GatewayHarness, *headers: str, selected: str = "chat") -> Message:
    """Open a WebSocket without Authorization; return what the replica gets."""
    replica = await harness.add_replica()
    client = await harness.client()
    client.send(post(b"", *UPGRADE, *headers, method="GET", length=None, key=None))
    connection = await replica.accept()
    request = await connection.read_message()
    connection.send(SWITCHING + f"Sec-WebSocket-Protocol: {selected}\r\n\r\n".encode())
    response = await client.read_head()
    assert (response.status, response["sec-websocket-protocol"]) == (101, selected)
    client.send(b"frame")
    assert await connection.read_exactly(5) == b"frame"
    connection.close()
    client.close()
    return request


@pytest.mark.parametrize(
    ("protocols", "others"),
    [
        ((f"{bearer_protocol(KEY)}, chat",), "chat"),
        ((f"chat,{bearer_protocol(KEY)}",), "chat"),
        ((f"v2.chat , {bearer_protocol(KEY)}, chat",), "v2.chat, chat"),
        ((bearer_protocol(KEY), "chat"), "chat"),  # two headers
    ],
)
async def test_key_in_the_protocols_is_accepted_and_not_forwarded(
    harness: GatewayHarness, protocols: tuple[str, ...], others: str
) -> None:
    request = await tunnel_request(harness, *(f"Sec-WebSocket-Protocol: {value}" for value in protocols))
    assert request["sec-websocket-protocol"] == others
    assert request["sec-websocket-key"] == "abc"
    assert BEARER not in repr(request)
    assert "authorization" not in request


async def test_token_in_the_protocols_is_accepted(harness: GatewayHarness) -> None:
    add_token_service(harness)
    request = await tunnel_request(harness, f"Sec-WebSocket-Protocol: {bearer_protocol(token())}, chat")
    assert request["sec-websocket-protocol"] == "chat"


async def test_protocols_without_a_token_are_forwarded_unchanged(harness: GatewayHarness) -> None:
    replica = await harness.add_replica()
    client = await harness.client()
    client.send(get(*UPGRADE, "Sec-WebSocket-Protocol: chat,  v2", "Sec-WebSocket-Protocol: graphql-ws"))
    connection = await replica.accept()
    assert (await connection.read_message()).values("sec-websocket-protocol") == ["chat,  v2", "graphql-ws"]
    connection.send(ok())
    await client.read_message()


@pytest.mark.parametrize(
    ("protocols", "status"),
    [
        (bearer_protocol(KEY), 400),  # the replica could select no protocol that the client may see
        (f"{bearer_protocol(KEY)}, ", 400),
        (f"{bearer_protocol(KEY)}, {bearer_protocol(KEY)}, chat", 400),
        (f"{BEARER}, chat", 400),
        (f"{BEARER}a+b/, chat", 400),
        (f"{bearer_protocol('k' * 31)}=, chat", 400),  # padding
        (f"{BEARER}a, chat", 400),
        (f"{bearer_protocol('a key with spaces')}, chat", 400),
        (f"{bearer_protocol('k' * 31)}, chat", 401),
        (f"{bearer_protocol('Bearer ' + KEY)}, chat", 400),
        (f"x{bearer_protocol(KEY)}, chat", 401),  # another protocol
        (f"{bearer_protocol(KEY).upper()}, chat", 401),
        ("chat", 401),
    ],
)
async def test_invalid_tokens_in_the_protocols_are_refused(
    harness: GatewayHarness, protocols: str, status: int
) -> None:
    replica = await harness.add_replica()
    headers = (*UPGRADE, f"Sec-WebSocket-Protocol: {protocols}")
    response = await harness.response_to(post(b"", *headers, method="GET", length=None, key=None))
    assert response.status == status
    assert KEY.encode() not in response.body
    assert replica.connections == []


async def test_token_in_protocols_and_authorization_is_400(harness: GatewayHarness) -> None:
    replica = await harness.add_replica()
    response = await harness.response_to(get(*UPGRADE, f"Sec-WebSocket-Protocol: {bearer_protocol(KEY)}, chat"))
    assert response.status == 400
    assert replica.connections == []


async def test_token_in_the_protocols_of_another_request_is_refused(harness: GatewayHarness) -> None:
    """Only the handshake of a WebSocket may have it there."""
    replica = await harness.add_replica()
    header = f"Sec-WebSocket-Protocol: {bearer_protocol(KEY)}, chat"
    for request in (post(b"{}", header, key=None), post(b"", header, "Upgrade: websocket", key=None, length=None)):
        assert (await harness.response_to(request)).status == 401
    assert replica.connections == []
