"""Forwarding of requests and responses without faults: targets, methods, versions."""

import pytest

from tests.gateway.harness import GatewayHarness
from tests.gateway.http_connection import get, ok, post


async def test_request_and_response_are_forwarded(harness: GatewayHarness) -> None:
    replica = await harness.add_replica()
    client = await harness.client()
    client.send(post(b"[1, 2]", "Content-Type: application/json"))
    connection = await replica.accept()
    request = await connection.read_message()
    assert request.start_line == "POST /score HTTP/1.1"
    assert request.body == b"[1, 2]"
    assert request["content-type"] == "application/json"
    connection.send(ok(b"[3]", "Content-Type: application/json"))
    response = await client.read_message()
    assert response.start_line == "HTTP/1.1 200 OK"
    assert response.body == b"[3]"
    assert response["content-type"] == "application/json"
    assert response.error_code is None


@pytest.mark.parametrize(
    ("path", "replica_path"),
    [
        ("/api/v1/service/iris/score", "/score"),
        ("/api/v1/service/iris/swagger.json", "/swagger.json"),
        ("/api/v1/service/iris/score?verbose=true&x=%20", "/score?verbose=true&x=%20"),
        ("/api/v1/service/iris/", "/"),
        ("/api/v1/service/iris/a/b//c", "/a/b//c"),
        ("/api/v1/service/iris/../other/score", "/../other/score"),
        ("http://fe/api/v1/service/iris/score", "/score"),
        ("HTTP://FE/api/v1/service/iris/score?a=b", "/score?a=b"),
    ],
)
async def test_path_after_the_service_name_is_forwarded(harness: GatewayHarness, path: str, replica_path: str) -> None:
    replica = await harness.add_replica()
    client = await harness.client()
    client.send(post(path=path))
    connection = await replica.accept()
    assert (await connection.read_message()).start_line == f"POST {replica_path} HTTP/1.1"
    connection.send(ok())
    assert (await client.read_message()).status == 200


async def test_get_is_forwarded_without_content_length(harness: GatewayHarness) -> None:
    replica = await harness.add_replica()
    client = await harness.client()
    client.send(get(path="/api/v1/service/iris/swagger.json"))
    connection = await replica.accept()
    request = await connection.read_message()
    assert request.start_line == "GET /swagger.json HTTP/1.1"
    assert "content-length" not in request
    connection.send(ok(b"{}"))
    assert (await client.read_message()).body == b"{}"


async def test_get_with_a_body_is_forwarded(harness: GatewayHarness) -> None:
    replica = await harness.add_replica()
    client = await harness.client()
    client.send(post(b"abc", method="GET"))
    connection = await replica.accept()
    assert (await connection.read_message()).body == b"abc"
    connection.send(ok())
    assert (await client.read_message()).status == 200


async def test_post_without_a_body_is_forwarded_with_content_length_zero(harness: GatewayHarness) -> None:
    replica = await harness.add_replica()
    client = await harness.client()
    client.send(post(b"", length=None))
    connection = await replica.accept()
    assert (await connection.read_message())["content-length"] == "0"
    connection.send(ok())
    assert (await client.read_message()).status == 200


async def test_any_host_is_accepted_and_forwarded(harness: GatewayHarness) -> None:
    replica = await harness.add_replica()
    client = await harness.client()
    client.send(post(host="models.example.com:8080"))
    connection = await replica.accept()
    assert (await connection.read_message())["host"] == "models.example.com:8080"
    connection.send(ok())
    assert (await client.read_message()).status == 200


@pytest.mark.parametrize("status", ["201 Created", "400 Bad Request", "418 ", "503 Slow Down", "504 X", "599 Strange"])
async def test_status_and_reason_of_the_replica_are_forwarded(harness: GatewayHarness, status: str) -> None:
    (await harness.add_replica()).auto_respond(ok(b"model's own", "Retry-After: 7", status=status))
    response = await harness.response_to(post())
    assert response.start_line == f"HTTP/1.1 {status}"
    assert response.body == b"model's own"
    assert response["retry-after"] == "7"
    assert response.error_code is None


async def test_requests_go_to_the_replicas_of_their_service(harness: GatewayHarness) -> None:
    for name in ("iris", "resnet"):
        (await harness.add_replica(name)).auto_respond(ok(name.encode()))
    for name in ("resnet", "iris", "resnet"):
        response = await harness.response_to(post(path=f"/api/v1/service/{name}/score"))
        assert response.body == name.encode()


async def add_blue_and_green(harness: GatewayHarness, **settings: object) -> None:
    harness.set_service(
        "ab",
        replica_max_concurrent_requests=100,
        versions={"blue": {"is_default": True}, "green": {"traffic_percentile": 25}},
        **settings,
    )
    for name in ("blue", "green"):
        (await harness.add_replica("ab", name)).auto_respond(ok(name.encode()))


async def test_traffic_is_split_by_percentile(harness: GatewayHarness) -> None:
    await add_blue_and_green(harness)
    client = await harness.client()
    client.send(post(path="/api/v1/service/ab/score") * 400)
    green = 0
    for _ in range(400):
        response = await client.read_message()
        assert response.body.decode() == response["azureml-model-deployment"]
        green += response.body == b"green"
    assert 50 <= green <= 150  # expected: 100, standard deviation: 8.7


@pytest.mark.parametrize("version", ["blue", "green"])
async def test_header_forces_a_version(harness: GatewayHarness, version: str) -> None:
    await add_blue_and_green(harness)
    for _ in range(8):
        response = await harness.response_to(
            post(b"", f"azureml-model-deployment: {version}", path="/api/v1/service/ab/score")
        )
        assert response.body.decode() == version


async def test_forced_version_that_does_not_exist_is_404(harness: GatewayHarness) -> None:
    await add_blue_and_green(harness)
    response = await harness.response_to(post(b"", "azureml-model-deployment: red", path="/api/v1/service/ab/score"))
    assert (response.status, response.error_code) == (404, "unknown-service")
    assert response.body == b"No version red of service ab."


async def test_version_without_traffic_is_reached_only_by_name(harness: GatewayHarness) -> None:
    harness.set_service("ab", versions={"blue": {}, "green": {"traffic_percentile": 0}})
    for name in ("blue", "green"):
        (await harness.add_replica("ab", name)).auto_respond(ok(name.encode()))
    path = "/api/v1/service/ab/score"
    assert {(await harness.response_to(post(path=path))).body for _ in range(16)} == {b"blue"}
    assert (await harness.response_to(post(b"", "azureml-model-deployment: green", path=path))).body == b"green"


async def test_health_path_for_load_balancers(harness: GatewayHarness) -> None:
    client = await harness.client()
    client.send(get(path="/"))
    response = await client.read_message()
    assert (response.status, response.body, response.error_code) == (200, b"Healthy", None)
    client.send(post(b"", method="HEAD", path="/", length=None, key=None))
    head = await client.read_head()
    assert (head.status, head["content-length"]) == (200, "7")
    client.send(get(path="/"))
    assert (await client.read_message()).body == b"Healthy"
