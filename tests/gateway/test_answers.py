"""The router's own answers: status, body, slug and headers of each row of the contract's table."""

import re
import uuid

import pytest

from tests.gateway.wire import Message, get, ok, post, post_chunked
from tests.gateway.world import World, story


def check_own(answer: Message, status: int, slug: str, body: bytes) -> None:
    """What every answer of the router's own has in common."""
    assert (answer.status, answer.error) == (status, slug)
    assert answer.body == body
    assert answer["content-type"] == "text/plain; charset=utf-8"
    assert answer["content-length"] == str(len(body))
    assert re.fullmatch(r"\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT", answer["date"])
    check_ids(answer)


def check_ids(answer: Message) -> None:
    assert answer["x-ms-request-id"] == answer["x-request-id"]
    assert str(uuid.UUID(answer["x-request-id"])) == answer["x-request-id"]
    assert uuid.UUID(answer["x-request-id"]).version == 4


async def is_kept(world: World, *request: bytes) -> bool:
    """Whether the connection goes on after the answer to a request; fails if the answer says otherwise."""
    client = await world.client()
    client.send(*request)
    answer = await client.message()
    assert answer.get("connection") in (None, "close")
    client.send(get(path="/"))
    if answer.get("connection") == "close":
        assert await client.rest() == b""
        return False
    assert (await client.message()).body == b"Healthy"
    return True


# 400


@story()
async def test_malformed_request(world: World) -> None:
    client = await world.client()
    client.send(b"POST /api/v1/service/iris/score HTTP/1.1\r\nbroken\r\n\r\n")
    answer = await client.message()
    check_own(answer, 400, "bad-request", answer.body)
    assert answer.body.startswith(b"Bad request: ")
    assert answer["connection"] == "close"
    assert await client.rest() == b""
    assert world.gateway.counters.parse_errors == 1


# 401


@pytest.mark.parametrize(
    ("headers", "challenge"),
    [
        ([], 'Bearer realm="azureml-fe"'),
        (["Authorization: Bearer wrong"], 'Bearer realm="azureml-fe", error="invalid_token"'),
        (["Authorization: Basic " + "k" * 32], 'Bearer realm="azureml-fe", error="invalid_token"'),
        (["Authorization:"], 'Bearer realm="azureml-fe", error="invalid_token"'),
    ],
)
@story()
async def test_key_missing_or_wrong(world: World, headers: list[str], challenge: str) -> None:
    replica = await world.replica()
    answer = await world.ask(post(b"{}", *headers, key=None))
    check_own(answer, 401, "unauthorized", b"Key or token missing or wrong.")
    assert answer["www-authenticate"] == challenge
    assert replica.lines == []


@story()
async def test_either_key_opens(world: World) -> None:
    world.serve("iris", primary_key="p" * 32, secondary_key="s" * 32)
    (await world.replica()).answers()
    for key, status in (("p" * 32, 200), ("s" * 32, 200), ("p" * 31, 401), ("ps" * 16, 401)):
        assert (await world.ask(post(key=key))).status == status


@story()
async def test_service_without_keys_asks_for_none(world: World) -> None:
    world.serve("iris", auth_enabled=False)
    (await world.replica()).answers()
    assert (await world.ask(post(key=None))).status == 200


@story()
async def test_unauthorized_before_the_body_is_read(world: World) -> None:
    world.serve("iris")
    client = await world.client()
    client.send(post(b"", key="wrong", length=50_000_000))
    answer = await client.message()
    assert (answer.status, answer["connection"]) == (401, "close")


@story()
async def test_unauthorized_keeps_the_connection_when_the_body_is_short(world: World) -> None:
    world.serve("iris")
    assert await is_kept(world, post(b"x" * 1000, key="wrong"))


@story()
async def test_rest_of_a_refused_body_is_dropped(world: World) -> None:
    (await world.replica()).answers()
    client = await world.client()
    client.send(post(b"abc", key="wrong", length=60_000))
    assert (await client.message()).status == 401
    await client.dribble(b"x" * 30_000, b"x" * 29_997 + post())
    assert (await client.message()).status == 200


# 404


@story()
async def test_no_such_service(world: World) -> None:
    world.serve("iris")
    answer = await world.ask(post(path="/api/v1/service/resnet/score"))
    check_own(answer, 404, "unknown-service", b"No service resnet.")


@story()
async def test_withdrawn_service(world: World) -> None:
    (await world.replica()).answers()
    assert (await world.ask(post())).status == 200
    world.withdraw("iris")
    assert (await world.ask(post())).status == 404


@story(scoring_prefix="/api/v1/endpoint/")
async def test_another_prefix(world: World) -> None:
    world.serve("iris")
    replica = await world.replica()
    client = await world.client()
    client.send(post(path="/api/v1/endpoint/iris/score"))
    line = await replica.accept()
    assert (await line.message()).start == "POST /score HTTP/1.1"
    line.send(ok())
    assert (await client.message()).status == 200
    answer = await world.ask(post())
    check_own(answer, 404, "unknown-service", b"No such path. Scoring: POST /api/v1/endpoint/<name>/score")


@pytest.mark.parametrize(
    "path",
    ["/score", "/api/v1/service/iris", "/api/v1/service//score", "/api/v1/service/", "/api/v2/service/iris/score"],
)
@story()
async def test_no_such_path(world: World, path: str) -> None:
    world.serve("iris")
    answer = await world.ask(post(path=path))
    check_own(answer, 404, "unknown-service", b"No such path. Scoring: POST /api/v1/service/<name>/score")


@story()
async def test_long_name_is_not_told_in_full(world: World) -> None:
    answer = await world.ask(post(path=f"/api/v1/service/{'n' * 5000}/score"))
    check_own(answer, 404, "unknown-service", b"No service " + b"n" * 64 + b".")


# 405


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
@pytest.mark.parametrize("path", ["/api/v1/service/iris/score", "/", "/elsewhere"])
@story()
async def test_other_methods(world: World, method: str, path: str) -> None:
    replica = await world.replica()
    answer = await world.ask(post(method=method, path=path))
    check_own(answer, 405, "method-not-allowed", b"Method not allowed. Allowed: GET, POST.")
    assert answer["allow"] == "GET, POST"
    assert replica.lines == []


@story()
async def test_head_is_answered_without_a_body(world: World) -> None:
    world.serve("iris")
    client = await world.client()
    client.send(post(b"", method="HEAD", length=None))
    answer = await client.head()
    assert (answer.status, answer["allow"]) == (405, "GET, POST")
    client.send(get(path="/"))
    assert (await client.message()).body == b"Healthy"


# 413


@story(max_payload_bytes=1000)
async def test_body_over_the_limit(world: World) -> None:
    replica = await world.replica()
    answer = await world.ask(post(b"x" * 1001))
    check_own(answer, 413, "payload-too-large", b"The request's body is over the limit of 1000 bytes.")
    assert replica.lines == []


# 431


@story(max_head_bytes=2000, max_headers=10)
async def test_head_over_the_limit(world: World) -> None:
    answer = await world.ask(get(f"X-Long: {'x' * 2000}"))
    check_own(answer, 431, "headers-too-large", b"The request's head is over the limit of 2000 bytes or 10 headers.")
    assert answer["connection"] == "close"


# 500


@story()
async def test_fault_of_the_router_itself(world: World) -> None:
    world.serve("iris")
    world.gateway.services[b"iris"].check = 1  # type: ignore[assignment]
    answer = await world.ask(post())
    check_own(answer, 500, "router-error", b"The router failed to handle this request.")
    assert len(world.failures) <= 1
    world.failures.clear()


# 502


@story()
async def test_replica_closes_before_replying(world: World) -> None:
    replica = await world.replica()
    client, line = await world.in_flight(replica)
    line.close()
    answer = await client.message()
    check_own(answer, 502, "replica-closed", b"Replica closed connection before replying")
    assert answer["azureml-model-deployment"] == "default"
    assert "connection" not in answer


@story()
async def test_answer_500_of_the_replica_becomes_502(world: World) -> None:
    replica = await world.replica()
    client, line = await world.in_flight(replica)
    line.send(ok(b"Traceback ...", "X-Of: model", status="500 Internal Server Error"))
    answer = await client.message()
    assert answer.start == "HTTP/1.1 502 Bad Gateway"
    assert answer.error == "replica-error"
    assert (answer.body, answer["x-of"]) == (b"Traceback ...", "model")
    check_ids(answer)


@story()
async def test_replica_says_something_else_than_http(world: World) -> None:
    replica = await world.replica()
    client, line = await world.in_flight(replica)
    line.send(b"220 mail.example.com ESMTP\r\n")
    check_own(await client.message(), 502, "replica-closed", b"Replica closed connection before replying")
    await line.end()


# 503


@story()
async def test_overloaded(world: World) -> None:
    world.serve("iris", max_request_wait_time=20)
    replica = await world.replica()
    client, line = await world.in_flight(replica)
    answer = await world.ask(post())
    check_own(answer, 503, "overloaded", b"Too many requests for service iris (overloaded)")
    assert int(answer["retry-after"]) >= 1
    line.send(ok())
    assert (await client.message()).status == 200


@story()
async def test_no_replica_is_ready(world: World) -> None:
    world.serve("iris")
    answer = await world.ask(post())
    check_own(answer, 503, "no-ready-replicas", b"No ready replicas for service iris.")
    assert int(answer["retry-after"]) >= 1


# 504


@story()
async def test_replica_is_too_slow(world: World) -> None:
    world.serve("iris", scoring_timeout_ms=30)
    replica = await world.replica()
    client, line = await world.in_flight(replica)
    answer = await client.message()
    check_own(answer, 504, "scoring-timeout", b"The replica did not answer within 30 ms.")
    assert answer["azureml-model-deployment"] == "default"
    await line.end()  # it is told that nobody waits any more


# Ids


@story()
async def test_every_answer_has_an_id_of_its_own(world: World) -> None:
    (await world.replica()).answers()
    answers = [await world.ask(post()), await world.ask(post()), await world.ask(post(key=None))]
    for answer in answers:
        check_ids(answer)
    assert len({answer["x-request-id"] for answer in answers}) == 3


@pytest.mark.parametrize(
    ("given", "echoed"),
    [
        ("abc-DEF_123", "abc-DEF_123"),
        ("a b;c<d>/e.f", "abcdef"),
        ("x" * 41, "x" * 40),
        ("é!" * 3 + "y" * 50, "y" * 40),
        ("!!!", None),
    ],
)
@story()
async def test_own_answers_echo_the_clients_id(world: World, given: str, echoed: str | None) -> None:
    answer = await world.ask(post(b"{}", f"x-ms-client-request-id: {given}", key=None))
    assert answer.get("x-ms-client-request-id") == echoed


# Browsers


ORIGIN = "https://app.example.com"
PREFLIGHT = ("Access-Control-Request-Method: POST", "Access-Control-Request-Headers: authorization")


@story()
async def test_preflight_of_an_allowed_origin(world: World) -> None:
    world.serve("iris", cors_allowed_origins=[ORIGIN, "https://other.example.com"])
    client = await world.client()
    client.send(post(b"", f"Origin: {ORIGIN}", *PREFLIGHT, method="OPTIONS", key=None, length=None))
    answer = await client.message()
    assert answer.status == 204
    assert "content-length" not in answer
    assert answer["access-control-allow-origin"] == ORIGIN
    assert answer["vary"] == "Origin"
    assert answer["access-control-allow-methods"] == "GET, POST"
    assert "authorization" in answer["access-control-allow-headers"].lower()
    assert int(answer["access-control-max-age"]) > 0
    check_ids(answer)
    client.send(get(path="/"))
    assert (await client.message()).body == b"Healthy"


@pytest.mark.parametrize(
    ("allowed", "origin"), [([ORIGIN], "https://evil.example.com"), ([], ORIGIN), ([ORIGIN], f"{ORIGIN}.evil.com")]
)
@story()
async def test_preflight_of_another_origin(world: World, allowed: list[str], origin: str) -> None:
    world.serve("iris", cors_allowed_origins=allowed)
    answer = await world.ask(post(b"", f"Origin: {origin}", *PREFLIGHT, method="OPTIONS", key=None))
    assert answer.status == 405
    assert answer["allow"] == ("GET, POST, OPTIONS" if allowed else "GET, POST")
    assert "access-control-allow-origin" not in answer


@story()
async def test_answers_to_a_browser_may_be_read_by_it(world: World) -> None:
    world.serve("iris", cors_allowed_origins=["*"])
    (await world.replica()).answers(ok(b"[1]", "Access-Control-Allow-Origin: https://model.example.com"))
    for key in ("k" * 32, None):
        answer = await world.ask(post(b"{}", f"Origin: {ORIGIN}", key=key))
        assert answer.status == (200 if key else 401)
        assert answer["access-control-allow-origin"] == ORIGIN
        assert answer["access-control-expose-headers"] == "*"
    assert "access-control-allow-origin" not in await world.ask(post(key=None))


@story()
async def test_cors_headers_of_a_model_pass_where_the_router_has_none(world: World) -> None:
    (await world.replica()).answers(ok(b"[1]", "Access-Control-Allow-Origin: https://model.example.com"))
    answer = await world.ask(post(b"{}", f"Origin: {ORIGIN}"))
    assert answer["access-control-allow-origin"] == "https://model.example.com"


# Whether the connection goes on


@pytest.mark.parametrize(
    ("request_", "kept"),
    [
        (post(path="/nowhere"), True),
        (post(method="PUT"), True),
        (post_chunked(b"abc", headers=("X: y",)).replace(b"k" * 32, b"wrong"), True),
        (post(b"x" * 70_000, key="wrong"), True),
        (post(b"", key="wrong", length=70_000), False),
        (post(b"", "Expect: 100-continue", key="wrong", length=5), False),
        (post(b"", "Connection: close", key="wrong"), False),
        (post_chunked(b"abc", end=False).replace(b"k" * 32, b"wrong"), False),
    ],
)
@story()
async def test_connection_goes_on_where_it_can(world: World, request_: bytes, kept: bool) -> None:
    world.serve("iris")
    assert await is_kept(world, request_) is kept


@story()
async def test_forwarded_answers_are_counted_by_status_and_slug(world: World) -> None:
    (await world.replica()).answers(ok(status="500 X"))
    await world.ask(post())
    await world.ask(post(key=None))
    await world.ask(post(path="/nowhere"))
    await world.at_rest()
    counters = world.gateway.counters
    assert dict(counters.version(("iris", "default")).answers) == {(502, "replica-error"): 1}
    assert dict(counters.version(("iris", "")).answers) == {(401, "unauthorized"): 1}
    assert dict(counters.answers) == {(404, "unknown-service"): 1}
    assert dict(counters.auth_failures) == {("iris", "missing"): 1}
