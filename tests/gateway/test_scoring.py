"""A request's way to a replica and back, when nothing goes wrong: addresses, methods, versions."""

import pytest

from tests.gateway.wire import get, ok, post
from tests.gateway.world import World, story


@story()
async def test_request_and_answer_pass(world: World) -> None:
    replica = await world.replica()
    client = await world.client()
    client.send(post(b"[1, 2]", "Content-Type: application/json"))
    line = await replica.accept()
    request = await line.message()
    assert request.start == "POST /score HTTP/1.1"
    assert request.body == b"[1, 2]"
    assert request["content-type"] == "application/json"
    line.send(ok(b"[3]", "Content-Type: application/json"))
    answer = await client.message()
    assert answer.start == "HTTP/1.1 200 OK"
    assert answer.body == b"[3]"
    assert answer["content-type"] == "application/json"
    assert answer.error is None


@pytest.mark.parametrize(
    ("path", "arrives"),
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
@story()
async def test_rest_of_the_path_goes_to_the_replica(world: World, path: str, arrives: str) -> None:
    replica = await world.replica()
    client = await world.client()
    client.send(post(path=path))
    line = await replica.accept()
    assert (await line.message()).start == f"POST {arrives} HTTP/1.1"
    line.send(ok())
    assert (await client.message()).status == 200


@story()
async def test_get_goes_without_a_body_and_without_a_length(world: World) -> None:
    replica = await world.replica()
    client = await world.client()
    client.send(get(path="/api/v1/service/iris/swagger.json"))
    line = await replica.accept()
    request = await line.message()
    assert request.start == "GET /swagger.json HTTP/1.1"
    assert "content-length" not in request
    line.send(ok(b"{}"))
    assert (await client.message()).body == b"{}"


@story()
async def test_get_with_a_body_passes(world: World) -> None:
    replica = await world.replica()
    client = await world.client()
    client.send(post(b"abc", method="GET"))
    line = await replica.accept()
    assert (await line.message()).body == b"abc"
    line.send(ok())
    assert (await client.message()).status == 200


@story()
async def test_post_without_a_body_says_so(world: World) -> None:
    replica = await world.replica()
    client = await world.client()
    client.send(post(b"", length=None))
    line = await replica.accept()
    assert (await line.message())["content-length"] == "0"
    line.send(ok())
    assert (await client.message()).status == 200


@story()
async def test_any_host_is_served_and_told_to_the_replica(world: World) -> None:
    replica = await world.replica()
    client = await world.client()
    client.send(post(host="models.example.com:8080"))
    line = await replica.accept()
    assert (await line.message())["host"] == "models.example.com:8080"
    line.send(ok())
    assert (await client.message()).status == 200


@pytest.mark.parametrize("status", ["201 Created", "400 Bad Request", "418 ", "503 Slow Down", "504 X", "599 Strange"])
@story()
async def test_status_and_reason_of_the_replica_pass(world: World, status: str) -> None:
    (await world.replica()).answers(ok(b"model's own", "Retry-After: 7", status=status))
    answer = await world.ask(post())
    assert answer.start == f"HTTP/1.1 {status}"
    assert answer.body == b"model's own"
    assert answer["retry-after"] == "7"
    assert answer.error is None


@story()
async def test_each_service_has_its_replicas(world: World) -> None:
    for name in ("iris", "resnet"):
        (await world.replica(name)).answers(ok(name.encode()))
    for name in ("resnet", "iris", "resnet"):
        answer = await world.ask(post(path=f"/api/v1/service/{name}/score"))
        assert answer.body == name.encode()


async def blue_and_green(world: World, **settings: object) -> None:
    world.serve(
        "ab",
        replica_max_concurrent_requests=100,
        versions={"blue": {"is_default": True}, "green": {"traffic_percentile": 25}},
        **settings,
    )
    for name in ("blue", "green"):
        (await world.replica("ab", name)).answers(ok(name.encode()))


@story()
async def test_traffic_is_split_by_percentile(world: World) -> None:
    await blue_and_green(world)
    client = await world.client()
    client.send(post(path="/api/v1/service/ab/score") * 400)
    green = 0
    for _ in range(400):
        answer = await client.message()
        assert answer.body.decode() == answer["azureml-model-deployment"]
        green += answer.body == b"green"
    assert 50 <= green <= 150  # 100 expected, standard deviation 8.7


@pytest.mark.parametrize("version", ["blue", "green"])
@story()
async def test_header_forces_a_version(world: World, version: str) -> None:
    await blue_and_green(world)
    for _ in range(8):
        answer = await world.ask(post(b"", f"azureml-model-deployment: {version}", path="/api/v1/service/ab/score"))
        assert answer.body.decode() == version


@story()
async def test_forced_version_that_is_not_there(world: World) -> None:
    await blue_and_green(world)
    answer = await world.ask(post(b"", "azureml-model-deployment: red", path="/api/v1/service/ab/score"))
    assert (answer.status, answer.error) == (404, "unknown-service")
    assert answer.body == b"No version red of service ab."


@story()
async def test_version_without_traffic_is_reached_by_name_only(world: World) -> None:
    world.serve("ab", versions={"blue": {}, "green": {"traffic_percentile": 0}})
    for name in ("blue", "green"):
        (await world.replica("ab", name)).answers(ok(name.encode()))
    path = "/api/v1/service/ab/score"
    assert {(await world.ask(post(path=path))).body for _ in range(16)} == {b"blue"}
    assert (await world.ask(post(b"", "azureml-model-deployment: green", path=path))).body == b"green"


@story()
async def test_health_of_the_router_for_load_balancers(world: World) -> None:
    client = await world.client()
    client.send(get(path="/"))
    answer = await client.message()
    assert (answer.status, answer.body, answer.error) == (200, b"Healthy", None)
    client.send(post(b"", method="HEAD", path="/", length=None, key=None))
    head = await client.head()
    assert (head.status, head["content-length"]) == (200, "7")
    client.send(get(path="/"))
    assert (await client.message()).body == b"Healthy"
