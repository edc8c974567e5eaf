"""Replicas behind the path of their service: the prefix they receive, and the Location of their redirects."""

from __future__ import annotations

import pytest

from tests.gateway.harness import GatewayHarness
from tests.gateway.http_connection import Message, get, ok, post


async def redirect(
    harness: GatewayHarness, location: str, *request_headers: str, status: str = "307 Temporary Redirect"
) -> Message:
    """Return the client's response to a redirect of the replica. `{replica}` in `location` is its address."""
    replica = await harness.add_replica()
    location = location.replace("{replica}", f"{replica.host}:{replica.port}")
    replica.auto_respond(ok(b"", f"Location: {location}", "X-After: 1", status=status))
    return await harness.response_to(post(b"{}", *request_headers, host="models.example.com"))


async def test_replica_receives_the_path_of_its_service(harness: GatewayHarness) -> None:
    replica = await harness.add_replica()
    client = await harness.client()
    client.send(post(b"{}", "X-Forwarded-Prefix: /evil") + get(path="/api/v1/service/iris/docs?x=1"))
    connection = await replica.accept()
    for _ in range(2):
        request = await connection.read_message()
        assert request["x-forwarded-prefix"] == "/api/v1/service/iris"
        connection.send(ok())
    assert request.start_line == "GET /docs?x=1 HTTP/1.1"


@pytest.mark.gateway(scoring_prefix="/")
async def test_prefix_of_the_root_has_no_double_slash(harness: GatewayHarness) -> None:
    replica = await harness.add_replica()
    client = await harness.client()
    client.send(post(path="/iris/score"))
    connection = await replica.accept()
    assert (await connection.read_message())["x-forwarded-prefix"] == "/iris"
    connection.send(ok(b"", "Location: /docs", status="302 Found"))
    assert (await client.read_message())["location"] == "/iris/docs"


@pytest.mark.gateway(trusted_proxies=("127.0.0.0/8",))
@pytest.mark.parametrize(("sent", "prefix"), [("/ml/", "/ml"), ("//evil.example.com", ""), ("/", ""), ("ml", "")])
async def test_prefix_of_a_trusted_proxy_comes_first(harness: GatewayHarness, sent: str, prefix: str) -> None:
    replica = await harness.add_replica()
    client = await harness.client()
    client.send(post(b"{}", f"X-Forwarded-Prefix: {sent}", "X-Forwarded-Host: public.example.com"))
    connection = await replica.accept()
    assert (await connection.read_message())["x-forwarded-prefix"] == f"{prefix}/api/v1/service/iris"
    connection.send(ok(b"", "Location: https://public.example.com/docs", status="302 Found"))
    assert (await client.read_message())["location"] == f"{prefix}/api/v1/service/iris/docs"


@pytest.mark.parametrize(
    ("location", "rewritten"),
    [
        ("/docs", "/api/v1/service/iris/docs"),
        ("http://models.example.com/docs/", "/api/v1/service/iris/docs/"),
        ("http://{replica}/docs/", "/api/v1/service/iris/docs/"),
        ("docs/", "docs/"),
        ("https://login.example.com/", "https://login.example.com/"),
        ("/api/v1/service/iris/docs", "/api/v1/service/iris/docs"),
    ],
)
@pytest.mark.parametrize("status", ["307 Temporary Redirect", "201 Created", "200 OK"])
async def test_location_is_rewritten(harness: GatewayHarness, location: str, rewritten: str, status: str) -> None:
    response = await redirect(harness, location, status=status)
    assert response["location"] == rewritten
    assert response["x-after"] == "1"


@pytest.mark.parametrize("location", ["/docs", "http://models.example.com/docs/"])
async def test_location_is_forwarded_unchanged_if_the_version_says_so(harness: GatewayHarness, location: str) -> None:
    harness.set_service("iris", rewrite_location=False)
    assert (await redirect(harness, location))["location"] == location


async def test_score_is_the_scoring_path_of_the_version(harness: GatewayHarness) -> None:
    harness.set_service("iris", scoring_path="/v1/models/iris:predict")
    replica = await harness.add_replica()
    client = await harness.client()
    client.send(post(b"{}", path="/api/v1/service/iris/score?v=1") + get(path="/api/v1/service/iris/docs"))
    connection = await replica.accept()
    targets = []
    for _ in range(2):
        targets.append((await connection.read_message()).start_line)
        connection.send(ok())
    assert targets == ["POST /v1/models/iris:predict?v=1 HTTP/1.1", "GET /docs HTTP/1.1"]
    harness.set_service("iris")
    client.send(post(b"{}"))
    assert (await connection.read_message()).start_line == "POST /score HTTP/1.1"
    connection.send(ok())


async def test_forged_forwarded_host_does_not_name_the_replica(harness: GatewayHarness) -> None:
    location = "https://evil.example.com/docs"
    assert (await redirect(harness, location, "X-Forwarded-Host: evil.example.com"))["location"] == location
