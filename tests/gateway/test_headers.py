"""Headers that the replica and the client receive."""

import asyncio
import re
import time
import uuid
from email.utils import parsedate_to_datetime

import pytest

from tests.gateway.harness import GatewayHarness
from tests.gateway.http_connection import KEY, Connection, Message, get, ok, post


async def forwarded_request(harness: GatewayHarness, request: bytes) -> Message:
    """Return a request as the replica receives it."""
    replica = await harness.add_replica()
    client = await harness.client()
    client.send(request)
    connection = await replica.accept()
    forwarded = await connection.read_message()
    connection.send(ok())
    assert (await client.read_message()).status == 200
    return forwarded


async def forwarded_response(harness: GatewayHarness, response: bytes) -> Message:
    """Return the response of a replica as the client receives it."""
    (await harness.add_replica()).auto_respond(response)
    return await harness.response_to(post())


# Headers for the replica.


async def test_end_to_end_request_headers_keep_spelling_and_order(harness: GatewayHarness) -> None:
    headers = ("X-b: 1", "x-A: two words", "Accept: */*", "X-b: 2", "X-Empty: ", "Cookie: a=b; c=d", "User-Agent: me/1")
    request = await forwarded_request(harness, post(b"{}", *headers))
    forwarded = [f"{name}: {value}" for name, value in request.headers if f"{name}: {value}" in headers]
    assert tuple(forwarded) == headers


async def test_non_ascii_header_values_are_forwarded(harness: GatewayHarness) -> None:
    assert (await forwarded_request(harness, post(b"{}", "X-Name: Zo\xe9")))["x-name"] == "Zo\xe9"


@pytest.mark.parametrize(
    "header",
    [
        "Keep-Alive: timeout=5",
        "Proxy-Connection: keep-alive",
        "Proxy-Authorization: Basic abc",
        "Proxy-Authenticate: Basic",
        "TE: trailers",
        "Upgrade: h2c",
        "Expect: something",
        "Connection: keep-alive",
    ],
)
async def test_hop_by_hop_request_headers_are_not_forwarded(harness: GatewayHarness, header: str) -> None:
    assert header.partition(":")[0] not in await forwarded_request(harness, post(b"{}", header))


async def test_request_headers_named_by_connection_are_not_forwarded(harness: GatewayHarness) -> None:
    headers = ("X-Hop: 1", "Connection: x-hop, Keep-Alive,X-Two", "x-two: 2", "X-Three: 3")
    request = await forwarded_request(harness, post(b"{}", *headers))
    assert "x-hop" not in request
    assert "x-two" not in request
    assert "connection" not in request
    assert request["x-three"] == "3"


@pytest.mark.parametrize("name", ["X-Forwarded-For", "X-Forwarded-Host", "x-request-id", "Host", "Content-Length"])
async def test_connection_cannot_remove_headers_of_the_router(harness: GatewayHarness, name: str) -> None:
    request = await forwarded_request(harness, post(b"{}", f"Connection: {name}"))
    assert name in request
    assert request.body == b"{}"


async def test_headers_with_underscores_are_dropped(harness: GatewayHarness) -> None:
    request = await forwarded_request(
        harness, post(b"{}", "X_Auth: admin", "X-Auth: nobody", "_: x", "Content_Length: 5")
    )
    assert [name for name, _ in request.headers if "_" in name] == []
    assert request["x-auth"] == "nobody"


async def test_headers_with_underscores_are_forwarded_if_the_service_keeps_them(harness: GatewayHarness) -> None:
    harness.set_service("iris", keep_underscore_headers=True)
    request = await forwarded_request(harness, post(b"{}", "X_Auth: admin", "X_Auth: second", "X-Auth: nobody"))
    assert request.values("X_Auth") == ["admin", "second"]


@pytest.mark.parametrize(
    "name",
    ["Content_Length", "Transfer_Encoding", "X_Forwarded_For", "X_Request_Id", "X_MS_Client-Request_Id", "Keep_Alive"],
)
async def test_headers_with_underscores_cannot_imitate_those_of_the_router(harness: GatewayHarness, name: str) -> None:
    harness.set_service("iris", keep_underscore_headers=True)
    assert name not in await forwarded_request(harness, post(b"{}", f"{name}: 7"))


async def test_connection_may_name_a_header_with_underscores(harness: GatewayHarness) -> None:
    harness.set_service("iris", keep_underscore_headers=True)
    assert "x_hop" not in await forwarded_request(harness, post(b"{}", "X_Hop: 7", "Connection: x_hop"))


async def test_key_is_not_forwarded_to_the_replica(harness: GatewayHarness) -> None:
    request = await forwarded_request(harness, post())
    assert "authorization" not in request
    assert KEY not in repr(request)


async def test_forward_authorization_forwards_the_header(harness: GatewayHarness) -> None:
    harness.set_service("iris", auth_enabled=False, forward_authorization=True)
    request = await forwarded_request(harness, post(b"{}", "Authorization: Negotiate abc", key=None))
    assert request["authorization"] == "Negotiate abc"


async def test_x_forwarded_headers_describe_the_client(harness: GatewayHarness) -> None:
    request = await forwarded_request(harness, post(host="models.example.com"))
    assert request["x-forwarded-for"] == "127.0.0.1"
    assert request["x-forwarded-proto"] == "http"
    assert request["x-forwarded-host"] == "models.example.com"


async def test_spoofed_x_forwarded_headers_are_replaced(harness: GatewayHarness) -> None:
    headers = ("X-Forwarded-Proto: https", "X-Forwarded-Host: evil.example.com", "X-Forwarded-For: 10.1.1.1, 10.2.2.2")
    request = await forwarded_request(harness, post(b"{}", *headers, host="fe"))
    assert request["x-forwarded-proto"] == "http"
    assert request["x-forwarded-host"] == "fe"
    assert request["x-forwarded-for"] == "127.0.0.1"


@pytest.mark.parametrize(
    "name",
    [
        "Forwarded", "X-Real-IP", "X-Forwarded-Port", "x-forwarded-SSL", "X-Forwarded-Client-Cert", "X_Forwarded_Ssl",
        "X_Real_IP",
    ],
)  # fmt: skip
async def test_fields_of_proxies_are_dropped_from_others(harness: GatewayHarness, name: str) -> None:
    harness.set_service("iris", keep_underscore_headers=True)
    request = await forwarded_request(harness, post(b"{}", f"{name}: 443"))
    assert name not in request


async def test_each_request_of_a_connection_has_its_own_host_and_service(harness: GatewayHarness) -> None:
    requests: list[Message] = []

    async def record(connection: Connection) -> None:
        while await connection.wait_for_data():
            requests.append(await connection.read_message())
            connection.send(ok())
        connection.close()

    for name in ("iris", "wine"):
        (await harness.add_replica(name)).run_script(record)
    client = await harness.client()
    for name, host in (("iris", "a"), ("iris", "b"), ("wine", "b"), ("wine", "b"), ("iris", "b"), ("iris", "a")):
        client.send(post(path=f"/api/v1/service/{name}/score", host=host))
        assert (await client.read_message()).status == 200
        assert requests[-1]["x-forwarded-host"] == host
        assert requests[-1]["x-forwarded-prefix"] == f"/api/v1/service/{name}"


async def test_request_id_of_the_client_is_replaced(harness: GatewayHarness) -> None:
    replica = await harness.add_replica()
    client = await harness.client()
    client.send(post(b"{}", "x-request-id: first", "X-MS-Request-Id: second", "x-request-id: third"))
    connection = await replica.accept()
    request = await connection.read_message()
    connection.send(ok())
    response = await client.read_message()
    assert uuid.UUID(request["x-request-id"])
    assert request["x-request-id"] == request["x-ms-request-id"]
    assert response["x-request-id"] == response["x-ms-request-id"] == request["x-request-id"]


@pytest.mark.parametrize(
    ("client_id", "forwarded_id"),
    [("abc_1-2", "abc_1-2"), ("x" * 60, "x" * 40), ('a"b\\c:d', "abcd"), ("%%", None), ("", None)],
)
async def test_client_request_id_is_sanitized(
    harness: GatewayHarness, client_id: str, forwarded_id: str | None
) -> None:
    replica = await harness.add_replica()
    client = await harness.client()
    client.send(post(b"{}", f"X-MS-Client-Request-Id: {client_id}"))
    connection = await replica.accept()
    assert (await connection.read_message()).get("x-ms-client-request-id") == forwarded_id
    connection.send(ok())
    assert (await client.read_message()).get("x-ms-client-request-id") == forwarded_id


@pytest.mark.parametrize(
    "header",
    [
        "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "tracestate: a=b",
        "Origin: https://app.example.com",
        "azureml-model-deployment: default",
    ],
)
async def test_headers_that_the_router_interprets_are_forwarded(harness: GatewayHarness, header: str) -> None:
    name, value = header.split(": ")
    assert (await forwarded_request(harness, post(b"{}", header)))[name] == value


_TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.mark.parametrize(
    "headers",
    [
        (f"traceparent: {_TRACEPARENT}", f"traceparent: {_TRACEPARENT}"),
        (f"traceparent: {_TRACEPARENT}", f"Traceparent: {_TRACEPARENT[:-1]}0"),
        (f"traceparent: {_TRACEPARENT}, {_TRACEPARENT}",),
        (f"traceparent: {_TRACEPARENT.upper()}",),
        (f"traceparent: {_TRACEPARENT}-more",),
        (f"traceparent: {_TRACEPARENT[:-1]}",),
        (f"traceparent: ff{_TRACEPARENT[2:]}",),
        (f"traceparent: 00-{'0' * 32}-b7ad6b7169203331-01",),
        (f"traceparent: 00-0af7651916cd43dd8448eb211c80319c-{'0' * 16}-01",),
        ("traceparent: <script>",),
        ("traceparent:",),
    ],
)
async def test_malformed_or_repeated_traceparent_is_dropped(harness: GatewayHarness, headers: tuple[str, ...]) -> None:
    request = await forwarded_request(harness, post(b"{}", *headers, "tracestate: a=b", "X-After: 1"))
    assert "traceparent" not in request
    assert "tracestate" not in request
    assert request["x-after"] == "1"


# Headers for the client.


@pytest.mark.parametrize("status", [200, 204, 404, 500])
async def test_missing_date_is_added(harness: GatewayHarness, status: int) -> None:
    response = await forwarded_response(harness, b"HTTP/1.1 %d X\r\nContent-Length: 0\r\n\r\n" % status)
    assert abs(parsedate_to_datetime(response["date"]).timestamp() - time.time()) < 60


@pytest.mark.parametrize("name", ["Date", "date", "DATE"])
async def test_date_of_the_replica_is_kept(harness: GatewayHarness, name: str) -> None:
    response = await forwarded_response(harness, ok(b"[1]", f"{name}: Thu, 01 Jan 1970 00:00:00 GMT"))
    assert [v for n, v in response.headers if n.lower() == "date"] == ["Thu, 01 Jan 1970 00:00:00 GMT"]


async def test_response_headers_keep_spelling_and_order(harness: GatewayHarness) -> None:
    headers = ("Set-Cookie: a=1", "X-b: 1", "set-cookie: b=2", 'ETag: "x"', "Server: model/1", "X_Under: score")
    response = await forwarded_response(harness, ok(b"[1]", *headers))
    assert tuple(f"{n}: {v}" for n, v in response.headers if f"{n}: {v}" in headers) == headers


@pytest.mark.parametrize("header", ["Keep-Alive: timeout=5", "Proxy-Authenticate: Basic", "Upgrade: h2c", "TE: x"])
async def test_hop_by_hop_response_headers_are_not_forwarded(harness: GatewayHarness, header: str) -> None:
    assert header.partition(":")[0] not in await forwarded_response(harness, ok(b"[1]", header))


async def test_response_headers_named_by_connection_are_not_forwarded(harness: GatewayHarness) -> None:
    response = await forwarded_response(harness, ok(b"[1]", "X-Hop: 1", "Connection: x-hop, keep-alive", "X-End: 2"))
    assert "x-hop" not in response
    assert "connection" not in response
    assert response["x-end"] == "2"


@pytest.mark.parametrize(
    "header",
    ["azureml-fe-error: overloaded", "AzureML-FE-Error: x", "x-ms-client-request-id: replica"],
)
async def test_replica_cannot_set_headers_of_the_router(harness: GatewayHarness, header: str) -> None:
    assert header.partition(":")[0] not in await forwarded_response(harness, ok(b"[1]", header))


@pytest.mark.parametrize(
    ("header", "value"),
    [("azureml-model-deployment", "default"), ("x-request-id", None), ("x-ms-request-id", None)],
)
async def test_router_headers_set_by_the_replica_are_replaced(
    harness: GatewayHarness, header: str, value: str | None
) -> None:
    response = await forwarded_response(harness, ok(b"[1]", f"{header}: replica"))
    assert response[header] != "replica"
    if value is not None:
        assert response[header] == value


async def test_error_code_of_a_replica_500_is_set_by_the_router(harness: GatewayHarness) -> None:
    response = await forwarded_response(harness, ok(b"", "azureml-fe-error: overloaded", status="500 X"))
    assert response["azureml-fe-error"] == "replica-error"


async def test_server_timing_has_the_phases_of_the_request(harness: GatewayHarness) -> None:
    response = await forwarded_response(harness, ok(b"[1]", 'Server-Timing: model;dur=5.1;desc="x"'))
    own = next(value for value in response.values("server-timing") if "router" in value)
    phases = dict(phase.split(";dur=") for phase in own.split(", "))
    assert list(phases) == ["auth", "queue", "connect", "replica", "router"]
    assert all(float(milliseconds) >= 0 for milliseconds in phases.values())
    assert 'model;dur=5.1;desc="x"' in response.values("server-timing")


async def test_local_responses_have_server_timing(harness: GatewayHarness) -> None:
    def phase_milliseconds(response: Message) -> dict[str, float]:
        phases = re.findall(r"(\w+);dur=([0-9.]+)", response["server-timing"])
        return {name: float(duration) for name, duration in phases}

    harness.set_service("iris", max_request_wait_time=30, scoring_timeout_ms=40)
    refused = phase_milliseconds(await harness.response_to(post(key="wrong")))
    assert list(refused) == ["auth", "queue", "connect", "replica", "router"]
    assert refused["queue"] == refused["replica"] == 0
    replica = await harness.add_replica()
    client, _ = await harness.start_request(replica)
    queued = phase_milliseconds(await harness.response_to(post()))
    assert queued["queue"] >= 29
    assert queued["replica"] == 0
    assert phase_milliseconds(await client.read_message())["replica"] >= 39


@pytest.mark.gateway(server_timing=False)
async def test_server_timing_can_be_disabled(harness: GatewayHarness) -> None:
    assert "server-timing" not in await forwarded_response(harness, ok())


async def test_server_timing_includes_time_in_the_queue(harness: GatewayHarness) -> None:
    replica = await harness.add_replica()
    _, connection = await harness.start_request(replica)
    second = await harness.client()
    second.send(post())
    await harness.wait_until(lambda: harness.queued() == 1)
    await asyncio.sleep(0.02)
    connection.send(ok())
    await connection.read_message()
    connection.send(ok())
    queued = re.search(r"queue;dur=([0-9.]+)", (await second.read_message())["server-timing"])
    assert queued
    assert float(queued[1]) >= 20


async def test_headers_do_not_leak_into_the_next_request(harness: GatewayHarness) -> None:
    replica = await harness.add_replica()
    client = await harness.client()
    client.send(post(b"{}", "X-First-Request: 1", "x-ms-client-request-id: one", "X-Forwarded-For: 10.0.0.1") + get())
    connection = await replica.accept()
    assert (await connection.read_message())["x-first-request"] == "1"
    connection.send(ok(b"", "X-First-Response: 1"))
    second = await connection.read_message()
    connection.send(ok())
    assert {"x-first-request", "x-ms-client-request-id"}.isdisjoint({name.lower() for name, _ in second.headers})
    assert second["x-forwarded-for"] == "127.0.0.1"
    assert (await client.read_message())["x-first-response"] == "1"
    assert "x-first-response" not in await client.read_message()
