"""Queued requests: their order, their limits, and which of them gets a free slot."""

import asyncio

import pytest

from router.gateway.pool import FIRST_SUSPENSION_SECONDS
from router.model.services import ReplicaState
from tests.gateway.harness import GatewayHarness
from tests.gateway.http_connection import Connection, ok, post, run_loop


async def queue_request(harness: GatewayHarness, body: bytes, *headers: str) -> Connection:
    """Send a request, wait until it is queued, and return its client."""
    before = harness.queued()
    client = await harness.client()
    client.send(post(body, *headers))
    await harness.wait_until(lambda: harness.queued() == before + 1)
    return client


async def test_first_come_first_served(harness: GatewayHarness) -> None:
    harness.set_service("iris", max_request_wait_time=5000)
    replica = await harness.add_replica()
    first, connection = await harness.start_request(replica)
    clients = [await queue_request(harness, b"%d" % number) for number in range(10)]
    connection.send(ok())
    for number, client in enumerate(clients):
        assert (await connection.read_message()).body == b"%d" % number
        assert harness.in_flight() == 1
        connection.send(ok())
        assert (await client.read_message()).status == 200
    assert (await first.read_message()).status == 200
    assert len(replica.connections) == 1


async def test_replica_never_has_more_requests_than_slots(harness: GatewayHarness) -> None:
    harness.set_service("iris", max_request_wait_time=5000, replica_max_concurrent_requests=2)
    in_flight = maximum = 0

    async def respond_slowly(connection: Connection) -> None:
        nonlocal in_flight, maximum
        while await connection.wait_for_data():
            await connection.read_message()
            in_flight += 1
            maximum = max(maximum, in_flight)
            await run_loop(10)
            in_flight -= 1
            connection.send(ok())

    (await harness.add_replica()).run_script(respond_slowly)
    clients = [await harness.client() for _ in range(30)]
    for client in clients:
        client.send(post() * 10)
    for client in clients:
        for _ in range(10):
            assert (await client.read_message()).status == 200
    assert maximum == 2


async def test_least_loaded_replica_gets_the_request(harness: GatewayHarness) -> None:
    harness.set_service("iris", replica_max_concurrent_requests=10)
    replicas = [await harness.add_replica() for _ in range(3)]
    clients = [await harness.client() for _ in range(12)]
    for client in clients:
        client.send(post())
    await harness.wait_until(lambda: sum(len(replica.connections) for replica in replicas) == 12)
    assert [len(replica.connections) for replica in replicas] == [4, 4, 4]
    for replica in replicas:
        for connection in replica.connections:
            connection.send(ok())
    for client in clients:
        assert (await client.read_message()).status == 200


async def test_freed_slot_goes_to_the_oldest_waiter(harness: GatewayHarness) -> None:
    harness.set_service("iris", max_request_wait_time=5000)
    replicas = [await harness.add_replica() for _ in range(2)]
    clients = [await harness.client() for _ in range(2)]
    for client in clients:
        client.send(post())
    connections = [await replica.accept() for replica in replicas]
    for connection in connections:
        await connection.read_message()
    oldest, newer = await queue_request(harness, b"oldest"), await queue_request(harness, b"newer")
    connections[1].send(ok())
    assert (await connections[1].read_message()).body == b"oldest"
    connections[0].send(ok())
    assert (await connections[0].read_message()).body == b"newer"
    for connection in connections:
        connection.send(ok())
    for client in (*clients, oldest, newer):
        assert (await client.read_message()).status == 200


async def test_request_is_refused_after_max_request_wait_time(harness: GatewayHarness) -> None:
    harness.set_service("iris", max_request_wait_time=50)
    replica = await harness.add_replica()
    first, connection = await harness.start_request(replica)
    clients = [await queue_request(harness, b"") for _ in range(5)]
    for client in clients:
        response = await client.read_message()
        assert (response.status, response.error_code) == (503, "overloaded")
        assert "connection" not in response
    connection.send(ok())
    assert (await first.read_message()).status == 200
    await run_loop()
    assert not connection.received  # none of them was sent to the replica


async def test_max_request_wait_time_applies_with_several_slots(harness: GatewayHarness) -> None:
    harness.set_service("iris", max_request_wait_time=50, replica_max_concurrent_requests=3)
    replica = await harness.add_replica()
    in_flight = [await harness.start_request(replica) for _ in range(3)]
    refused = await queue_request(harness, b"")
    assert (await refused.read_message()).status == 503
    in_time = await queue_request(harness, b"in time")
    in_flight[1][1].send(ok())
    assert (await in_flight[1][1].read_message()).body == b"in time"
    for _, connection in in_flight:
        connection.send(ok())
    for client in (*(client for client, _ in in_flight), in_time):
        assert (await client.read_message()).status == 200


async def test_changed_max_request_wait_time_applies_to_queued_requests(harness: GatewayHarness) -> None:
    harness.set_service("iris", max_request_wait_time=60_000)
    replica = await harness.add_replica()
    first, connection = await harness.start_request(replica)
    client = await queue_request(harness, b"")
    harness.set_service("iris", max_request_wait_time=1)
    assert (await client.read_message()).status == 503
    connection.send(ok())
    assert (await first.read_message()).status == 200


async def test_full_queue_refuses_immediately(harness: GatewayHarness) -> None:
    harness.set_service("iris", max_request_wait_time=60_000, max_queue_length=2)
    replica = await harness.add_replica()
    first, connection = await harness.start_request(replica)
    clients = [await queue_request(harness, b"") for _ in range(2)]
    response = await harness.response_to(post())
    assert (response.status, response.error_code) == (503, "overloaded")
    for client in (first, *clients):
        connection.send(ok())
        assert (await client.read_message()).status == 200
        if client is not clients[-1]:
            await connection.read_message()


async def test_closed_client_is_removed_from_the_queue(harness: GatewayHarness) -> None:
    harness.set_service("iris", max_request_wait_time=5000)
    replica = await harness.add_replica()
    first, connection = await harness.start_request(replica)
    closing, other = await queue_request(harness, b"closing"), await queue_request(harness, b"other")
    closing.close()
    await harness.wait_until(lambda: harness.queued() == 1)
    connection.send(ok())
    assert (await connection.read_message()).body == b"other"
    connection.send(ok())
    for client in (first, other):
        assert (await client.read_message()).status == 200


@pytest.mark.gateway(request_buffer_bytes=0)
@pytest.mark.parametrize("close_method", ["close", "reset"])
async def test_closed_client_with_a_large_body_is_removed_from_the_queue(
    harness: GatewayHarness, close_method: str
) -> None:
    """The router does not read the rest of the body while the request is queued, but detects the close."""
    harness.set_service("iris", max_request_wait_time=60_000)
    replica = await harness.add_replica()
    first, connection = await harness.start_request(replica)
    client = await harness.client()
    client.send(post(b"x" * 100_000, length=3_000_000))
    await harness.wait_until(lambda: harness.queued() == 1)
    await run_loop()
    getattr(client, close_method)()
    await harness.wait_until(lambda: harness.queued() == 0)
    connection.send(ok())
    assert (await first.read_message()).status == 200


async def test_closed_client_with_pipelined_requests_is_removed_from_the_queue(harness: GatewayHarness) -> None:
    harness.set_service("iris", max_request_wait_time=60_000)
    replica = await harness.add_replica()
    first, connection = await harness.start_request(replica)
    client = await harness.client()
    client.send(post() * 5)
    await harness.wait_until(lambda: harness.queued() == 1)
    await run_loop()
    client.close()
    await harness.wait_until(lambda: harness.queued() == 0)
    connection.send(ok())
    assert (await first.read_message()).status == 200
    await run_loop()
    assert not connection.received


async def test_request_is_not_queued_without_replicas(harness: GatewayHarness) -> None:
    harness.set_service("iris", max_request_wait_time=60_000)
    response = await harness.response_to(post())
    assert (response.status, response.error_code) == (503, "no-ready-replicas")


async def test_requests_wait_for_the_first_replica_of_a_service_scaled_to_zero(harness: GatewayHarness) -> None:
    harness.set_service("iris", autoscale_min_replicas=0, max_request_wait_time=20, scoring_timeout_ms=60_000)
    clients = [await queue_request(harness, b"%d" % number) for number in range(3)]
    (await harness.add_replica()).auto_respond()
    for client in clients:
        assert (await client.read_message()).status == 200


async def test_wait_for_the_first_replica_is_limited(harness: GatewayHarness) -> None:
    harness.set_service("iris", autoscale_min_replicas=0, max_request_wait_time=20, scoring_timeout_ms=50)
    response = await harness.response_to(post())
    assert (response.status, response.error_code) == (503, "no-ready-replicas")


async def test_max_request_wait_time_starts_when_the_first_replica_is_ready(harness: GatewayHarness) -> None:
    harness.set_service("iris", autoscale_min_replicas=0, max_request_wait_time=30, scoring_timeout_ms=60_000)
    clients = [await queue_request(harness, b"%d" % number) for number in range(2)]
    replica = await harness.add_replica()
    connection = await replica.accept()
    assert (await connection.read_message()).body == b"0"
    assert (await clients[1].read_message()).error_code == "overloaded"
    connection.send(ok())
    assert (await clients[0].read_message()).status == 200


async def test_requests_are_not_queued_without_a_concurrency_limit(harness: GatewayHarness) -> None:
    harness.set_service("iris", replica_max_concurrent_requests=0)
    replicas = [await harness.add_replica() for _ in range(2)]
    clients = [await harness.client() for _ in range(200)]
    for client in clients:
        client.send(post())
    await harness.wait_until(lambda: sum(len(replica.connections) for replica in replicas) == 200)
    assert harness.queued() == 0
    assert (
        min(len(replica.connections) for replica in replicas) >= 60
    )  # the less loaded of two random replicas is chosen
    for replica in replicas:
        for connection in replica.connections:
            connection.send(ok())
    for client in clients:
        assert (await client.read_message()).status == 200


async def test_concurrency_limit_can_change_while_requests_are_in_flight(harness: GatewayHarness) -> None:
    replica = await harness.add_replica()
    in_flight = []
    for limit in (0, 2, 0, 5):
        harness.set_service("iris", replica_max_concurrent_requests=limit)
        in_flight.append(await harness.start_request(replica))
    for client, connection in in_flight:
        connection.send(ok())
        assert (await client.read_message()).status == 200


async def test_queued_requests_of_a_removed_service_are_refused(harness: GatewayHarness) -> None:
    harness.set_service("iris", max_request_wait_time=60_000)
    replica = await harness.add_replica()
    first, connection = await harness.start_request(replica)
    client = await queue_request(harness, b"")
    harness.remove_service("iris")
    response = await client.read_message()
    assert (response.status, response.error_code) == (503, "no-ready-replicas")
    connection.send(ok(b"late"))
    assert (await first.read_message()).body == b"late"
    client.send(post())
    assert (await client.read_message()).status == 404


async def test_cordoned_replica_gets_no_new_requests(harness: GatewayHarness) -> None:
    replicas = [await harness.add_replica() for _ in range(2)]
    replicas[1].auto_respond(ok(b"open"))
    client, connection = await harness.start_request(replicas[0])
    harness.publish_replicas(("iris", "default"), cordoned=[replicas[0].id])
    connection.send(ok())
    assert (await client.read_message()).status == 200
    for _ in range(5):
        assert (await harness.response_to(post())).body == b"open"
    assert len(replicas[0].connections) == 1


async def test_totals_for_the_autoscaler_count_all_requests(harness: GatewayHarness) -> None:
    harness.set_service("iris", max_request_wait_time=20)
    replica = await harness.add_replica()
    client, connection = await harness.start_request(replica)
    await harness.response_to(post())
    connection.send(ok())
    await client.read_message()
    await harness.wait_idle()
    totals = harness.route().lease_cache.totals(harness.loop.time())
    assert (totals.arrivals, totals.refused, totals.completed) == (2, 1, 1)
    assert totals.busy_seconds >= totals.queued_seconds > 0
    assert totals.service_seconds > 0


@pytest.mark.parametrize(
    ("ids", "refused"),
    [
        (["one", "one", "one"], 1),
        (["one", "two", "one"], 2),
        (["", "", ""], 3),  # an empty id identifies no request
        (["***", "***"], 2),  # nor does an invalid one
    ],
)
@pytest.mark.parametrize("max_queue_length", [0, 10])
async def test_repeats_of_a_refused_request_count_once_for_the_autoscaler(
    harness: GatewayHarness, ids: list[str], refused: int, max_queue_length: int
) -> None:
    harness.set_service("iris", max_request_wait_time=20, max_queue_length=max_queue_length)
    replica = await harness.add_replica()
    await harness.start_request(replica)
    for each in ids:
        assert (await harness.response_to(post(b"", f"x-ms-client-request-id: {each}"))).status == 503
    totals = harness.route().lease_cache.totals(harness.loop.time())
    assert (totals.arrivals, totals.refused) == (1 + len(ids), refused)


async def test_without_a_queue_only_requests_without_a_free_slot_are_refused(harness: GatewayHarness) -> None:
    """A worker without a lease requests one from the ledger. Meanwhile the request does not count as queued."""
    harness.set_service("iris", max_request_wait_time=60_000, max_queue_length=0)
    replica = await harness.add_replica()
    client, connection = await harness.start_request(replica)
    response = await harness.response_to(post())
    assert (response.status, response.error_code) == (503, "overloaded")
    connection.send(ok())
    assert (await client.read_message()).status == 200


async def test_queue_limit_does_not_apply_to_requests_with_free_slots(harness: GatewayHarness) -> None:
    harness.set_service("iris", max_request_wait_time=60_000, max_queue_length=1, replica_max_concurrent_requests=4)
    replica = await harness.add_replica()
    clients = [await harness.client() for _ in range(4)]
    for client in clients:
        client.send(post())
    connections = [await replica.accept() for _ in range(4)]
    for connection in connections:
        await connection.read_message()
        connection.send(ok())
    for client in clients:
        assert (await client.read_message()).status == 200


@pytest.mark.parametrize("slots", [1, 4])
async def test_full_queue_refuses_while_replicas_are_suspended(harness: GatewayHarness, slots: int) -> None:
    """Their slots cannot become free."""
    settings = {"max_request_wait_time": 60_000, "max_queue_length": 1, "replica_max_concurrent_requests": slots}
    harness.set_service("iris", **settings)
    replica = await harness.add_replica(listening=False)
    client = await queue_request(harness, b"")
    response = await harness.response_to(post())
    assert (response.status, response.error_code) == (503, "no-ready-replicas")
    replica.auto_respond()
    await replica.listen()
    assert (await client.read_message()).status == 200


async def test_requests_at_draining_replicas_do_not_take_room_in_the_queue(harness: GatewayHarness) -> None:
    settings = {"max_request_wait_time": 60_000, "max_queue_length": 0, "replica_max_concurrent_requests": 2}
    harness.set_service("iris", **settings)
    draining = await harness.add_replica()
    slow = [await harness.start_request(draining) for _ in range(2)]
    harness.set_state(draining, ReplicaState.DRAINING)
    (await harness.add_replica()).auto_respond()
    assert (await harness.response_to(post())).status == 200
    for client, connection in slow:
        connection.send(ok())
        assert (await client.read_message()).status == 200


async def test_request_that_returns_to_the_queue_has_the_rest_of_its_time(harness: GatewayHarness) -> None:
    harness.set_service("iris", max_request_wait_time=400)
    replica = await harness.add_replica(listening=False)
    first = await queue_request(harness, b"first")
    await asyncio.sleep(0.2)  # so that the second one expires so much later
    second = await queue_request(harness, b"second")
    route = harness.route()
    lease = route.lease_cache.leases_of(replica.id)
    assert lease is not None
    tries = route.counters.retry_causes["connect"]
    route.outliers.on_time_over(lease.target.health)  # as after a probe that the replica accepted by chance
    route.suspensions._resume(lease)
    await harness.wait_until(lambda: route.counters.retry_causes["connect"] > tries and harness.queued() == 2)
    assert [waiter.request.body for waiter in route.lease_cache.waiters.values()] == [[b"second"], [b"first"]]
    response = await first.read_message()
    assert (response.status, response.error_code) == (503, "no-ready-replicas")
    assert harness.queued() == 1
    assert (await second.read_message()).status == 503


async def test_requests_that_wait_for_the_only_replica_do_not_count_as_queued(harness: GatewayHarness) -> None:
    harness.set_service("iris", max_request_wait_time=5000)
    replica = (await harness.add_replica(listening=False)).auto_respond()
    clients = [await queue_request(harness, b"") for _ in range(5)]
    await replica.listen()
    for client in clients:
        assert (await client.read_message()).status == 200
    queued_seconds = harness.route().lease_cache.totals(harness.loop.time()).queued_seconds
    assert queued_seconds < FIRST_SUSPENSION_SECONDS  # each of them has waited for longer


async def test_queued_request_is_served_when_the_concurrency_limit_is_removed(harness: GatewayHarness) -> None:
    harness.set_service("iris", max_request_wait_time=60_000)
    replica = await harness.add_replica()
    first, connection = await harness.start_request(replica)
    client = await queue_request(harness, b"queued")
    harness.set_service("iris", max_request_wait_time=60_000, replica_max_concurrent_requests=0)
    other = await replica.accept()
    assert (await other.read_message()).body == b"queued"
    other.send(ok())
    assert (await client.read_message()).status == 200
    connection.send(ok())
    assert (await first.read_message()).status == 200


async def test_new_version_gets_no_requests_before_it_has_a_ready_replica(harness: GatewayHarness) -> None:
    harness.set_service("iris", versions={"a": {"is_default": True}}, max_request_wait_time=60_000)
    replica = await harness.add_replica(version="a")
    harness.set_service("iris", versions={"a": {"is_default": True}, "b": {"traffic_percentile": 99}})
    client, connection = await harness.start_request(replica)
    connection.send(ok())
    response = await client.read_message()
    assert (response.status, response["azureml-model-deployment"]) == (200, "a")


async def test_queued_request_of_a_removed_version_moves_to_another_unless_it_named_the_version(
    harness: GatewayHarness,
) -> None:
    both = {"a": {}, "default": {"is_default": True}}
    harness.set_service("iris", versions=both, max_request_wait_time=60_000)
    remaining, removed = await harness.add_replica(version="a"), await harness.add_replica(version="default")
    first, connection = await harness.start_request(removed)
    client = await queue_request(harness, b"any")
    named = await queue_request(harness, b"named", "azureml-model-deployment: default")
    harness.set_service("iris", versions={"a": {}}, max_request_wait_time=60_000)
    other = await remaining.accept()
    assert (await other.read_message()).body == b"any"
    other.send(ok())
    response = await client.read_message()
    assert (response.status, response["azureml-model-deployment"]) == (200, "a")
    assert (await named.read_message()).error_code == "no-ready-replicas"
    connection.send(ok())
    assert (await first.read_message()).status == 200
