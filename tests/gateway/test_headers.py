"""Which headers reach whom."""

import re
import uuid

import pytest

from tests.gateway.wire import KEY, Message, get, ok, post
from tests.gateway.world import World, story


async def arrives(world: World, *request: bytes) -> Message:
    """What a replica receives of a request."""
    replica = await world.replica()
    client = await world.client()
    client.send(*request)
    line = await replica.accept()
    request_ = await line.message()
    line.send(ok())
    assert (await client.message()).status == 200
    return request_


async def comes_back(world: World, answer: bytes, *request: bytes) -> Message:
    """What a client receives of a replica's answer."""
    (await world.replica()).answers(answer)
    return await world.ask(*request or (post(),))


# To the replica


@story()
async def test_end_to_end_headers_pass_as_spelt_and_in_their_order(world: World) -> None:
    headers = ("X-b: 1", "x-A: two words", "Accept: */*", "X-b: 2", "X-Empty: ", "Cookie: a=b; c=d", "User-Agent: me/1")
    request = await arrives(world, post(b"{}", *headers))
    passed = [f"{name}: {value}" for name, value in request.headers if f"{name}: {value}" in headers]
    assert tuple(passed) == headers


@story()
async def test_bytes_above_ascii_pass(world: World) -> None:
    assert (await arrives(world, post(b"{}", "X-Name: Zo\xe9")))["x-name"] == "Zo\xe9"


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
@story()
async def test_hop_by_hop_headers_stop_here(world: World, header: str) -> None:
    assert header.partition(":")[0] not in await arrives(world, post(b"{}", header))


@story()
async def test_headers_that_connection_names_stop_here(world: World) -> None:
    headers = ("X-Hop: 1", "Connection: x-hop, Keep-Alive,X-Two", "x-two: 2", "X-Three: 3")
    request = await arrives(world, post(b"{}", *headers))
    assert "x-hop" not in request
    assert "x-two" not in request
    assert "connection" not in request
    assert request["x-three"] == "3"


@pytest.mark.parametrize("name", ["X-Forwarded-For", "X-Forwarded-Host", "x-request-id", "Host", "Content-Length"])
@story()
async def test_connection_cannot_take_away_what_the_router_says(world: World, name: str) -> None:
    request = await arrives(world, post(b"{}", f"Connection: {name}"))
    assert name in request
    assert request.body == b"{}"


@story()
async def test_names_with_an_underscore_are_dropped(world: World) -> None:
    request = await arrives(world, post(b"{}", "X_Auth: admin", "X-Auth: nobody", "_: x", "Content_Length: 5"))
    assert [name for name, _ in request.headers if "_" in name] == []
    assert request["x-auth"] == "nobody"


@story()
async def test_names_with_an_underscore_pass_where_the_service_keeps_them(world: World) -> None:
    world.serve("iris", keep_underscore_headers=True)
    request = await arrives(world, post(b"{}", "X_Auth: admin", "X_Auth: again", "X-Auth: nobody"))
    assert request.all("X_Auth") == ["admin", "again"]


@pytest.mark.parametrize(
    "name",
    ["Content_Length", "Transfer_Encoding", "X_Forwarded_For", "X_Request_Id", "X_MS_Client-Request_Id", "Keep_Alive"],
)
@story()
async def test_underscore_never_passes_for_a_header_of_the_routers(world: World, name: str) -> None:
    world.serve("iris", keep_underscore_headers=True)
    assert name not in await arrives(world, post(b"{}", f"{name}: 7"))


@story()
async def test_connection_may_name_an_underscore_header(world: World) -> None:
    world.serve("iris", keep_underscore_headers=True)
    assert "x_hop" not in await arrives(world, post(b"{}", "X_Hop: 7", "Connection: x_hop"))


@story()
async def test_key_never_reaches_the_replica(world: World) -> None:
    request = await arrives(world, post())
    assert "authorization" not in request
    assert KEY not in repr(request)


@story()
async def test_authorization_passes_where_the_service_wants_it(world: World) -> None:
    world.serve("iris", auth_enabled=False, forward_authorization=True)
    request = await arrives(world, post(b"{}", "Authorization: Negotiate abc", key=None))
    assert request["authorization"] == "Negotiate abc"


@story()
async def test_forwarding_headers(world: World) -> None:
    request = await arrives(world, post(host="models.example.com"))
    assert request["x-forwarded-for"] == "127.0.0.1"
    assert request["x-forwarded-proto"] == "http"
    assert request["x-forwarded-host"] == "models.example.com"


@story()
async def test_addresses_of_earlier_proxies_are_kept(world: World) -> None:
    headers = ("X-Forwarded-For: 10.1.1.1", "x-forwarded-for: 10.2.2.2, 10.3.3.3")
    request = await arrives(world, post(b"{}", *headers))
    assert request["x-forwarded-for"] == "10.1.1.1, 10.2.2.2, 10.3.3.3, 127.0.0.1"


@story()
async def test_spoofed_forwarding_headers_are_replaced(world: World) -> None:
    headers = ("X-Forwarded-Proto: https", "X-Forwarded-Host: evil.example.com")
    request = await arrives(world, post(b"{}", *headers, host="fe"))
    assert request["x-forwarded-proto"] == "http"
    assert request["x-forwarded-host"] == "fe"


@story()
async def test_request_id_is_the_routers(world: World) -> None:
    replica = await world.replica()
    client = await world.client()
    client.send(post(b"{}", "x-request-id: mine", "X-MS-Request-Id: mine too", "x-request-id: mine again"))
    line = await replica.accept()
    request = await line.message()
    line.send(ok())
    answer = await client.message()
    assert uuid.UUID(request["x-request-id"])
    assert request["x-request-id"] == request["x-ms-request-id"]
    assert answer["x-request-id"] == answer["x-ms-request-id"] == request["x-request-id"]


@pytest.mark.parametrize(
    ("given", "passed"), [("abc_1-2", "abc_1-2"), ("x" * 60, "x" * 40), ('a"b\\c:d', "abcd"), ("%%", None), ("", None)]
)
@story()
async def test_clients_own_id_is_made_safe(world: World, given: str, passed: str | None) -> None:
    replica = await world.replica()
    client = await world.client()
    client.send(post(b"{}", f"X-MS-Client-Request-Id: {given}"))
    line = await replica.accept()
    assert (await line.message()).get("x-ms-client-request-id") == passed
    line.send(ok())
    assert (await client.message()).get("x-ms-client-request-id") == passed


@pytest.mark.parametrize(
    "header",
    [
        "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "tracestate: a=b",
        "Origin: https://app.example.com",
        "azureml-model-deployment: default",
    ],
)
@story()
async def test_headers_that_the_router_reads_as_well_pass(world: World, header: str) -> None:
    name, value = header.split(": ")
    assert (await arrives(world, post(b"{}", header)))[name] == value


# To the client


@story()
async def test_answer_headers_pass_as_spelt_and_in_their_order(world: World) -> None:
    headers = ("Set-Cookie: a=1", "X-b: 1", "set-cookie: b=2", 'ETag: "x"', "Server: model/1", "X_Under: score")
    answer = await comes_back(world, ok(b"[1]", *headers))
    assert tuple(f"{n}: {v}" for n, v in answer.headers if f"{n}: {v}" in headers) == headers


@pytest.mark.parametrize("header", ["Keep-Alive: timeout=5", "Proxy-Authenticate: Basic", "Upgrade: h2c", "TE: x"])
@story()
async def test_hop_by_hop_headers_of_an_answer_stop_here(world: World, header: str) -> None:
    assert header.partition(":")[0] not in await comes_back(world, ok(b"[1]", header))


@story()
async def test_answer_headers_that_connection_names_stop_here(world: World) -> None:
    answer = await comes_back(world, ok(b"[1]", "X-Hop: 1", "Connection: x-hop, keep-alive", "X-End: 2"))
    assert "x-hop" not in answer
    assert "connection" not in answer
    assert answer["x-end"] == "2"


@pytest.mark.parametrize(
    "header",
    ["azureml-fe-error: overloaded", "AzureML-FE-Error: x", "x-ms-client-request-id: theirs"],
)
@story()
async def test_replica_cannot_speak_in_the_routers_name(world: World, header: str) -> None:
    assert header.partition(":")[0] not in await comes_back(world, ok(b"[1]", header))


@pytest.mark.parametrize(
    ("header", "value"),
    [("azureml-model-deployment", "default"), ("x-request-id", None), ("x-ms-request-id", None)],
)
@story()
async def test_replicas_word_is_replaced_by_the_routers(world: World, header: str, value: str | None) -> None:
    answer = await comes_back(world, ok(b"[1]", f"{header}: theirs"))
    assert answer[header] != "theirs"
    if value is not None:
        assert answer[header] == value


@story()
async def test_slug_of_a_replicas_500_is_the_routers(world: World) -> None:
    answer = await comes_back(world, ok(b"", "azureml-fe-error: overloaded", status="500 X"))
    assert answer["azureml-fe-error"] == "replica-error"


@story()
async def test_server_timing_tells_where_the_time_went(world: World) -> None:
    answer = await comes_back(world, ok(b"[1]", 'Server-Timing: model;dur=5.1;desc="x"'))
    own = next(value for value in answer.all("server-timing") if "router" in value)
    parts = dict(part.split(";dur=") for part in own.split(", "))
    assert list(parts) == ["auth", "queue", "connect", "replica", "router"]
    assert all(float(milliseconds) >= 0 for milliseconds in parts.values())
    assert 'model;dur=5.1;desc="x"' in answer.all("server-timing")


@story()
async def test_own_answers_tell_where_the_time_went_too(world: World) -> None:
    def milliseconds(answer: Message) -> dict[str, float]:
        parts = re.findall(r"(\w+);dur=([0-9.]+)", answer["server-timing"])
        return {name: float(duration) for name, duration in parts}

    world.serve("iris", max_request_wait_time=30, scoring_timeout_ms=40)
    refused = milliseconds(await world.ask(post(key="wrong")))
    assert list(refused) == ["auth", "queue", "connect", "replica", "router"]
    assert refused["queue"] == refused["replica"] == 0
    replica = await world.replica()
    client, _ = await world.in_flight(replica)
    queued = milliseconds(await world.ask(post()))
    assert queued["queue"] >= 29
    assert queued["replica"] == 0
    assert milliseconds(await client.message())["replica"] >= 39


@story(server_timing=False)
async def test_server_timing_can_be_switched_off(world: World) -> None:
    assert "server-timing" not in await comes_back(world, ok())


@story()
async def test_time_in_the_queue_is_told(world: World) -> None:
    replica = await world.replica()
    first, line = await world.in_flight(replica)
    second = await world.client()
    second.send(post())
    await world.until(lambda: world.queued() == 1)
    line.send(ok())
    await line.message()
    line.send(ok())
    queued = [
        float(re.search(r"queue;dur=([0-9.]+)", (await client.message())["server-timing"])[1])  # type: ignore[index]
        for client in (first, second)
    ]
    assert queued[1] > queued[0]


@story()
async def test_headers_of_one_request_do_not_reach_the_next(world: World) -> None:
    replica = await world.replica()
    client = await world.client()
    client.send(post(b"{}", "X-Mine: 1", "x-ms-client-request-id: one", "X-Forwarded-For: 10.0.0.1") + get())
    line = await replica.accept()
    assert (await line.message())["x-mine"] == "1"
    line.send(ok(b"", "X-Theirs: 1"))
    second = await line.message()
    line.send(ok())
    assert {"x-mine", "x-ms-client-request-id"}.isdisjoint({name.lower() for name, _ in second.headers})
    assert second["x-forwarded-for"] == "127.0.0.1"
    assert (await client.message())["x-theirs"] == "1"
    assert "x-theirs" not in await client.message()
