"""Local responses: status, error code, body and headers of each."""

import re
import uuid

import pytest

from router.gateway.admission import _MAX_NAME_IN_ERRORS
from router.gateway.client_connection import _MAX_DISCARDED_BYTES
from tests.gateway.harness import GatewayHarness
from tests.gateway.http_connection import Message, get, ok, post, post_chunked


def check_local_response(response: Message, status: int, error_code: str, body: bytes) -> None:
    """Check a local response, including the headers that all of them have."""
    assert (response.status, response.error_code) == (status, error_code)
    assert response.body == body
    assert response["content-type"] == "text/plain; charset=utf-8"
    assert response["content-length"] == str(len(body))
    assert re.fullmatch(r"\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT", response["date"])
    check_ids(response)


def check_ids(response: Message) -> None:
    assert response["x-ms-request-id"] == response["x-request-id"]
    assert str(uuid.UUID(response["x-request-id"])) == response["x-request-id"]
    assert uuid.UUID(response["x-request-id"]).version == 4


async def is_connection_kept(harness: GatewayHarness, request: bytes) -> bool:
    """Return whether the client connection is open after the response. The header `Connection` must agree."""
    client = await harness.client()
    client.send(request)
    response = await client.read_message()
    assert response.get("connection") in (None, "close")
    client.send(get(path="/"))
    if response.get("connection") == "close":
        assert await client.read_to_end() == b""
        return False
    assert (await client.read_message()).body == b"Healthy"
    return True


# 400


async def test_malformed_request_is_refused_and_its_connection_closed(harness: GatewayHarness) -> None:
    client = await harness.client()
    client.send(b"POST /api/v1/service/iris/score HTTP/1.1\r\nbroken\r\n\r\n")
    response = await client.read_message()
    check_local_response(response, 400, "bad-request", response.body)
    assert response.body.startswith(b"Bad request: ")
    assert response["connection"] == "close"
    assert await client.read_to_end() == b""
    assert harness.gateway.counters.parse_errors == 1


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
async def test_missing_or_wrong_key_is_refused(harness: GatewayHarness, headers: list[str], challenge: str) -> None:
    replica = await harness.add_replica()
    response = await harness.response_to(post(b"{}", *headers, key=None))
    check_local_response(response, 401, "unauthorized", b"Key or token missing or wrong.")
    assert response["www-authenticate"] == challenge
    assert replica.connections == []


async def test_primary_and_secondary_key_are_accepted(harness: GatewayHarness) -> None:
    harness.set_service("iris", primary_key="p" * 32, secondary_key="s" * 32)
    (await harness.add_replica()).auto_respond()
    for key, status in (("p" * 32, 200), ("s" * 32, 200), ("p" * 31, 401), ("ps" * 16, 401)):
        assert (await harness.response_to(post(key=key))).status == status


async def test_service_without_authentication_needs_no_key(harness: GatewayHarness) -> None:
    harness.set_service("iris", auth_enabled=False)
    (await harness.add_replica()).auto_respond()
    assert (await harness.response_to(post(key=None))).status == 200


async def test_wrong_key_is_refused_before_the_body_is_read(harness: GatewayHarness) -> None:
    harness.set_service("iris")
    client = await harness.client()
    client.send(post(b"", key="wrong", length=50_000_000))
    response = await client.read_message()
    assert (response.status, response["connection"]) == (401, "close")


async def test_connection_is_kept_after_a_refused_request_with_a_short_body(harness: GatewayHarness) -> None:
    harness.set_service("iris")
    assert await is_connection_kept(harness, post(b"x" * 1000, key="wrong"))


async def test_rest_of_a_refused_body_is_discarded(harness: GatewayHarness) -> None:
    (await harness.add_replica()).auto_respond()
    client = await harness.client()
    client.send(post(b"abc", key="wrong", length=60_000))
    assert (await client.read_message()).status == 401
    await client.send_in_pieces(b"x" * 30_000, b"x" * 29_997 + post())
    assert (await client.read_message()).status == 200


# 404


async def test_unknown_service_is_404(harness: GatewayHarness) -> None:
    harness.set_service("iris")
    response = await harness.response_to(post(path="/api/v1/service/resnet/score"))
    check_local_response(response, 404, "unknown-service", b"No service resnet.")


async def test_removed_service_is_404(harness: GatewayHarness) -> None:
    (await harness.add_replica()).auto_respond()
    assert (await harness.response_to(post())).status == 200
    harness.remove_service("iris")
    assert (await harness.response_to(post())).status == 404


@pytest.mark.gateway(scoring_prefix="/api/v1/endpoint/")
async def test_scoring_prefix_can_be_changed(harness: GatewayHarness) -> None:
    harness.set_service("iris")
    replica = await harness.add_replica()
    client = await harness.client()
    client.send(post(path="/api/v1/endpoint/iris/score"))
    connection = await replica.accept()
    assert (await connection.read_message()).start_line == "POST /score HTTP/1.1"
    connection.send(ok())
    assert (await client.read_message()).status == 200
    response = await harness.response_to(post())
    check_local_response(response, 404, "unknown-service", b"No such path. Scoring: POST /api/v1/endpoint/<name>/score")


@pytest.mark.parametrize(
    "path",
    ["/score", "/api/v1/service/iris", "/api/v1/service//score", "/api/v1/service/", "/api/v2/service/iris/score"],
)
async def test_path_of_no_service_is_404(harness: GatewayHarness, path: str) -> None:
    harness.set_service("iris")
    response = await harness.response_to(post(path=path))
    check_local_response(response, 404, "unknown-service", b"No such path. Scoring: POST /api/v1/service/<name>/score")


async def test_long_service_name_is_truncated_in_the_response(harness: GatewayHarness) -> None:
    response = await harness.response_to(post(path=f"/api/v1/service/{'n' * 5000}/score"))
    check_local_response(response, 404, "unknown-service", b"No service " + b"n" * _MAX_NAME_IN_ERRORS + b".")


# 405


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
@pytest.mark.parametrize("path", ["/api/v1/service/iris/score", "/", "/elsewhere"])
async def test_other_methods_are_not_allowed(harness: GatewayHarness, method: str, path: str) -> None:
    replica = await harness.add_replica()
    response = await harness.response_to(post(method=method, path=path))
    check_local_response(response, 405, "method-not-allowed", b"Method not allowed. Allowed: GET, POST.")
    assert response["allow"] == "GET, POST"
    assert replica.connections == []


async def test_response_to_head_has_no_body(harness: GatewayHarness) -> None:
    harness.set_service("iris")
    client = await harness.client()
    client.send(post(b"", method="HEAD", length=None))
    response = await client.read_head()
    assert (response.status, response["allow"]) == (405, "GET, POST")
    client.send(get(path="/"))
    assert (await client.read_message()).body == b"Healthy"


# 413


@pytest.mark.gateway(max_payload_bytes=1000)
async def test_body_over_the_limit_is_413(harness: GatewayHarness) -> None:
    replica = await harness.add_replica()
    response = await harness.response_to(post(b"x" * 1001))
    check_local_response(response, 413, "payload-too-large", b"The request's body is over the limit of 1000 bytes.")
    assert replica.connections == []


# 431


@pytest.mark.gateway(max_head_bytes=2000, max_headers=10)
async def test_head_over_the_limit_is_431(harness: GatewayHarness) -> None:
    response = await harness.response_to(get(f"X-Long: {'x' * 2000}"))
    check_local_response(
        response, 431, "headers-too-large", b"The request's head is over the limit of 2000 bytes or 10 headers."
    )
    assert response["connection"] == "close"


# 500


async def test_exception_in_the_router_is_500(harness: GatewayHarness) -> None:
    harness.set_service("iris")
    harness.gateway.routes.services[b"iris"].check = 1  # type: ignore[assignment]
    response = await harness.response_to(post())
    check_local_response(response, 500, "router-error", b"The router failed to handle this request.")
    assert len(harness.unexpected_errors) <= 1
    harness.unexpected_errors.clear()


# 502


async def test_replica_that_closes_before_responding_is_502(harness: GatewayHarness) -> None:
    replica = await harness.add_replica()
    client, connection = await harness.start_request(replica)
    connection.close()
    response = await client.read_message()
    check_local_response(response, 502, "replica-closed", b"Replica closed connection before replying")
    assert response["azureml-model-deployment"] == "default"
    assert "connection" not in response


async def test_replica_response_500_becomes_502(harness: GatewayHarness) -> None:
    replica = await harness.add_replica()
    client, connection = await harness.start_request(replica)
    connection.send(ok(b"Traceback ...", "X-Of: model", status="500 Internal Server Error"))
    response = await client.read_message()
    assert response.start_line == "HTTP/1.1 502 Bad Gateway"
    assert response.error_code == "replica-error"
    assert (response.body, response["x-of"]) == (b"Traceback ...", "model")
    check_ids(response)


async def test_response_in_another_protocol_is_502(harness: GatewayHarness) -> None:
    replica = await harness.add_replica()
    client, connection = await harness.start_request(replica)
    connection.send(b"220 mail.example.com ESMTP\r\n")
    check_local_response(
        await client.read_message(), 502, "replica-closed", b"Replica closed connection before replying"
    )
    await connection.wait_closed()


# 503


async def test_request_without_a_slot_in_time_is_503(harness: GatewayHarness) -> None:
    harness.set_service("iris", max_request_wait_time=20)
    replica = await harness.add_replica()
    client, connection = await harness.start_request(replica)
    response = await harness.response_to(post())
    check_local_response(response, 503, "overloaded", b"Too many requests for service iris (overloaded)")
    assert int(response["retry-after"]) >= 1
    connection.send(ok())
    assert (await client.read_message()).status == 200


async def test_service_without_ready_replicas_is_503(harness: GatewayHarness) -> None:
    harness.set_service("iris")
    response = await harness.response_to(post())
    check_local_response(response, 503, "no-ready-replicas", b"No ready replicas for service iris.")
    assert int(response["retry-after"]) >= 1


# 504


async def test_scoring_timeout_is_504(harness: GatewayHarness) -> None:
    harness.set_service("iris", scoring_timeout_ms=30)
    replica = await harness.add_replica()
    client, connection = await harness.start_request(replica)
    response = await client.read_message()
    check_local_response(response, 504, "scoring-timeout", b"The replica did not answer within 30 ms.")
    assert response["azureml-model-deployment"] == "default"
    await connection.wait_closed()  # the request is aborted at the replica


# Request ids.


async def test_each_response_has_its_own_request_id(harness: GatewayHarness) -> None:
    (await harness.add_replica()).auto_respond()
    responses = [
        await harness.response_to(post()),
        await harness.response_to(post()),
        await harness.response_to(post(key=None)),
    ]
    for response in responses:
        check_ids(response)
    assert len({response["x-request-id"] for response in responses}) == 3


@pytest.mark.parametrize(
    ("client_id", "echoed"),
    [
        ("abc-DEF_123", "abc-DEF_123"),
        ("a b;c<d>/e.f", "abcdef"),
        ("x" * 41, "x" * 40),
        ("é!" * 3 + "y" * 50, "y" * 40),
        ("!!!", None),
    ],
)
async def test_local_responses_echo_the_client_request_id(
    harness: GatewayHarness, client_id: str, echoed: str | None
) -> None:
    response = await harness.response_to(post(b"{}", f"x-ms-client-request-id: {client_id}", key=None))
    assert response.get("x-ms-client-request-id") == echoed


# Standby


async def test_requests_for_a_service_on_standby_are_refused_whatever_they_send(harness: GatewayHarness) -> None:
    replica = await harness.add_replica()
    harness.set_standby("iris", standby=True)
    text = b"This router does not serve iris: it only observes, or another release of the router serves it."
    for request in (post(b"{}"), post(b"{}", key=None), get()):
        response = await harness.response_to(request)
        check_local_response(response, 503, "standby", text)
        assert response["retry-after"] == "10"
    assert not replica.connections
    harness.set_standby("iris", standby=False)
    replica.auto_respond(ok(b"[1]"))
    assert (await harness.response_to(post(b"{}"))).body == b"[1]"


async def test_tests_are_served_for_a_service_on_standby_if_their_key_is_valid(harness: GatewayHarness) -> None:
    replica = await harness.add_replica()
    harness.set_standby("iris", standby=True)
    replica.auto_respond(ok(b"[1]"))
    for header in ("azureml-fe-test: true", "Azureml-Fe-Test:  true "):
        assert (await harness.response_to(post(b"{}", header))).body == b"[1]"
    response = await harness.response_to(post(b"{}", "azureml-fe-test: true", key=None))
    assert (response.status, response["azureml-fe-error"]) == (401, "unauthorized")
    for value in ("false", "1", ""):
        response = await harness.response_to(post(b"{}", f"azureml-fe-test: {value}"))
        assert (response.status, response["azureml-fe-error"]) == (503, "standby")


async def test_header_of_tests_is_not_forwarded_and_has_no_effect_otherwise(harness: GatewayHarness) -> None:
    replica = await harness.add_replica()
    client = await harness.client()
    client.send(post(b"{}", "azureml-fe-test: true"))
    connection = await replica.accept()
    message = await connection.read_message()
    assert "azureml-fe-test" not in message
    connection.send(ok(b"[1]"))
    assert (await client.read_message()).body == b"[1]"


async def test_request_in_flight_continues_when_its_service_is_on_standby(harness: GatewayHarness) -> None:
    replica = await harness.add_replica()
    client = await harness.client()
    client.send(post(b"{}"))
    connection = await replica.accept()
    await connection.read_message()
    harness.set_standby("iris", standby=True)
    connection.send(ok(b"[1]"))
    assert (await client.read_message()).body == b"[1]"


# CORS.


ORIGIN = "https://app.example.com"
PREFLIGHT = ("Access-Control-Request-Method: POST", "Access-Control-Request-Headers: authorization")


async def test_preflight_from_an_allowed_origin_is_accepted(harness: GatewayHarness) -> None:
    harness.set_service("iris", cors_allowed_origins=[ORIGIN, "https://other.example.com"])
    client = await harness.client()
    client.send(post(b"", f"Origin: {ORIGIN}", *PREFLIGHT, method="OPTIONS", key=None, length=None))
    response = await client.read_message()
    assert response.status == 204
    assert "content-length" not in response
    assert response["access-control-allow-origin"] == ORIGIN
    assert response["vary"] == "Origin, Access-Control-Request-Method, Access-Control-Request-Headers"
    assert response["access-control-allow-methods"] == "GET, POST, OPTIONS"
    assert response["access-control-allow-headers"] == "authorization"
    assert int(response["access-control-max-age"]) > 0
    check_ids(response)
    client.send(get(path="/"))
    assert (await client.read_message()).body == b"Healthy"


@pytest.mark.parametrize(
    "requested",
    [
        "authorization,content-type,x-stainless-os,x-stainless-arch",  # the OpenAI SDK
        "x-ms-client-request-id , X-Custom\t,a",
        "api-key",
        ",".join(f"x-header-{number}" for number in range(300)),
    ],
)
async def test_preflight_may_ask_for_any_headers(harness: GatewayHarness, requested: str) -> None:
    harness.set_service("iris", cors_allowed_origins=[ORIGIN])
    asked = (PREFLIGHT[0], f"Access-Control-Request-Headers: {requested}")
    response = await harness.response_to(post(b"", f"Origin: {ORIGIN}", *asked, method="OPTIONS", key=None))
    assert (response.status, response["access-control-allow-headers"]) == (204, requested)


@pytest.mark.parametrize("requested", ["*, x;y", "a b", "x-header, ", ",", "", "x:y", '"quoted"', "x-\xe9"])
async def test_malformed_list_of_headers_is_not_returned(harness: GatewayHarness, requested: str) -> None:
    harness.set_service("iris", cors_allowed_origins=["*"])
    asked = (PREFLIGHT[0], f"Access-Control-Request-Headers: {requested}")
    response = await harness.response_to(post(b"", f"Origin: {ORIGIN}", *asked, method="OPTIONS", key=None))
    assert response.status == 204
    assert "access-control-allow-headers" not in response


@pytest.mark.parametrize(
    "origin", [(), ("Origin: https://evil.example.com",), (f"Origin: {ORIGIN}.",), ("Origin: null",)]
)
@pytest.mark.parametrize("key", ["k" * 32, None])
async def test_responses_to_other_origins_vary_with_the_origin(
    harness: GatewayHarness, origin: tuple[str, ...], key: str | None
) -> None:
    """Otherwise a cache could use them for an allowed origin."""
    harness.set_service("iris", cors_allowed_origins=[ORIGIN])
    (await harness.add_replica()).auto_respond(ok(b"[1]", "Access-Control-Allow-Origin: *", "Vary: Accept"))
    response = await harness.response_to(post(b"{}", *origin, key=key))
    assert "Origin" in response.values("vary")
    assert "access-control-allow-origin" not in response  # the settings decide, not the replica


@pytest.mark.parametrize(
    ("allowed", "origin"), [([ORIGIN], "https://evil.example.com"), ([], ORIGIN), ([ORIGIN], f"{ORIGIN}.evil.com")]
)
async def test_preflight_from_another_origin_is_405(harness: GatewayHarness, allowed: list[str], origin: str) -> None:
    harness.set_service("iris", cors_allowed_origins=allowed)
    response = await harness.response_to(post(b"", f"Origin: {origin}", *PREFLIGHT, method="OPTIONS", key=None))
    assert response.status == 405
    assert response["allow"] == ("GET, POST, OPTIONS" if allowed else "GET, POST")
    assert "access-control-allow-origin" not in response


async def test_responses_to_an_allowed_origin_have_cors_headers(harness: GatewayHarness) -> None:
    harness.set_service("iris", cors_allowed_origins=["*"])
    (await harness.add_replica()).auto_respond(ok(b"[1]", "Access-Control-Allow-Origin: https://model.example.com"))
    assert (await harness.response_to(post(b"{}", f"Origin: {ORIGIN}")))["vary"] == "Origin"
    for key in ("k" * 32, None):
        response = await harness.response_to(post(b"{}", f"Origin: {ORIGIN}", key=key))
        assert response.status == (200 if key else 401)
        assert response["access-control-allow-origin"] == ORIGIN
        assert response["access-control-expose-headers"] == "*"
    assert "access-control-allow-origin" not in await harness.response_to(post(key=None))


async def test_cors_headers_of_the_replica_are_forwarded_if_the_service_has_no_origins(harness: GatewayHarness) -> None:
    (await harness.add_replica()).auto_respond(ok(b"[1]", "Access-Control-Allow-Origin: https://model.example.com"))
    response = await harness.response_to(post(b"{}", f"Origin: {ORIGIN}"))
    assert response["access-control-allow-origin"] == "https://model.example.com"


# Client connections after refused requests.


@pytest.mark.parametrize(
    ("request_bytes", "kept"),
    [
        (post(path="/nowhere"), True),
        (post(method="PUT"), True),
        (post_chunked(b"abc", headers=("X: y",)).replace(b"k" * 32, b"wrong"), True),
        (post(b"x" * (_MAX_DISCARDED_BYTES + 5000), key="wrong"), True),  # a part arrives with the head
        (post(b"", key="wrong", length=_MAX_DISCARDED_BYTES + 1), False),
        (post(b"", "Expect: 100-continue", key="wrong", length=5), False),
        (post(b"", "Connection: close", key="wrong"), False),
        (post_chunked(b"abc", end=False).replace(b"k" * 32, b"wrong"), False),
    ],
)
async def test_connection_is_kept_if_the_refused_request_can_be_read_to_its_end(
    harness: GatewayHarness, request_bytes: bytes, kept: bool
) -> None:
    harness.set_service("iris")
    assert await is_connection_kept(harness, request_bytes) is kept


async def test_responses_are_counted_by_status_and_error_code(harness: GatewayHarness) -> None:
    (await harness.add_replica()).auto_respond(ok(status="500 X"))
    await harness.response_to(post())
    await harness.response_to(post(key=None))
    await harness.response_to(post(path="/nowhere"))
    await harness.wait_idle()
    counters = harness.gateway.counters
    assert dict(counters.version(("iris", "default")).responses) == {(502, "replica-error"): 1}
    assert dict(counters.version(("iris", "")).responses) == {(401, "unauthorized"): 1}
    assert dict(counters.responses) == {(404, "unknown-service"): 1}
    assert dict(counters.auth_failures) == {("iris", "missing"): 1}
