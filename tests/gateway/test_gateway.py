"""Changes of settings, services and replicas while requests are in progress."""

from tests.gateway.harness import GatewayHarness
from tests.gateway.http_connection import ok, post


async def test_changed_key_applies_to_the_next_request_of_an_open_connection(harness: GatewayHarness) -> None:
    (await harness.add_replica()).auto_respond()
    client = await harness.client()
    for key, status in (("a" * 32, 200), ("b" * 32, 401)):
        harness.set_service("iris", primary_key="a" * 32)
        client.send(post(key=key))
        assert (await client.read_message()).status == status
    harness.set_service("iris", primary_key="b" * 32)
    client.send(post(key="b" * 32))
    assert (await client.read_message()).status == 200


async def test_changed_scoring_timeout_applies_to_new_requests(harness: GatewayHarness) -> None:
    harness.set_service("iris", replica_max_concurrent_requests=5, scoring_timeout_ms=60_000)
    replica = await harness.add_replica()
    before, connection = await harness.start_request(replica)
    harness.set_service("iris", replica_max_concurrent_requests=5, scoring_timeout_ms=20)
    after, hanging = await harness.start_request(replica)
    assert (await after.read_message()).status == 504
    await hanging.wait_closed()
    connection.send(ok(b"late"))
    assert (await before.read_message()).body == b"late"


async def test_request_in_flight_continues_when_its_service_is_removed(harness: GatewayHarness) -> None:
    harness.set_service("other")
    replica = await harness.add_replica()
    client, connection = await harness.start_request(replica)
    harness.remove_service("iris")
    connection.send(ok(b"late"))
    assert (await client.read_message()).body == b"late"
    await connection.wait_closed()
    assert ("iris", "default") not in harness.gateway.counters.versions


async def test_service_can_be_removed_and_added_again(harness: GatewayHarness) -> None:
    replica = await harness.add_replica()
    client, connection = await harness.start_request(replica)
    harness.remove_service("iris")
    harness.set_service("iris")
    second, second_connection = await harness.start_request(replica)
    for requester, its_connection in ((client, connection), (second, second_connection)):
        its_connection.send(ok())
        assert (await requester.read_message()).status == 200


async def test_additional_slots_serve_queued_requests(harness: GatewayHarness) -> None:
    harness.set_service("iris", max_request_wait_time=60_000)
    replica = await harness.add_replica()
    first, connection = await harness.start_request(replica)
    second = await harness.client()
    second.send(post(b"second"))
    await harness.wait_until(lambda: harness.queued() == 1)
    harness.set_service("iris", max_request_wait_time=60_000, replica_max_concurrent_requests=2)
    other = await replica.accept()
    assert (await other.read_message()).body == b"second"
    for client, its_connection in ((first, connection), (second, other)):
        its_connection.send(ok())
        assert (await client.read_message()).status == 200


async def test_reduced_slots_apply_once_requests_have_ended(harness: GatewayHarness) -> None:
    harness.set_service("iris", max_request_wait_time=60_000, replica_max_concurrent_requests=3)
    replica = await harness.add_replica()
    in_flight = [await harness.start_request(replica) for _ in range(3)]
    harness.set_service("iris", max_request_wait_time=60_000, replica_max_concurrent_requests=1)
    queued = await harness.client()
    queued.send(post(b"queued"))
    await harness.wait_until(lambda: harness.queued() == 1)
    for client, connection in in_flight[:2]:
        connection.send(ok())
        assert (await client.read_message()).status == 200
    assert (harness.in_flight(), harness.queued()) == (1, 1)
    client, connection = in_flight[2]
    connection.send(ok())
    assert (await client.read_message()).status == 200
    await harness.wait_until(lambda: any(connection.received for _, connection in in_flight))
    (freed,) = (connection for _, connection in in_flight if connection.received)
    assert (await freed.read_message()).body == b"queued"
    freed.send(ok())
    assert (await queued.read_message()).status == 200


async def test_new_replica_serves_queued_requests(harness: GatewayHarness) -> None:
    harness.set_service("iris", max_request_wait_time=60_000)
    replica = await harness.add_replica()
    first, connection = await harness.start_request(replica)
    second = await harness.client()
    second.send(post())
    await harness.wait_until(lambda: harness.queued() == 1)
    (await harness.add_replica()).auto_respond(ok(b"new replica"))
    assert (await second.read_message()).body == b"new replica"
    connection.send(ok())
    assert (await first.read_message()).status == 200


async def test_services_have_separate_queues(harness: GatewayHarness) -> None:
    harness.set_service("busy", max_request_wait_time=60_000)
    harness.set_service("idle")
    replica = await harness.add_replica("busy")
    (await harness.add_replica("idle")).auto_respond()
    path = "/api/v1/service/busy/score"
    clients = [await harness.client() for _ in range(20)]
    for client in clients:
        client.send(post(path=path))
    await harness.wait_until(lambda: harness.queued("busy") == 19)
    assert (await harness.response_to(post(path="/api/v1/service/idle/score"))).status == 200
    replica.connections[0].send(ok())
    for client in clients[1:]:
        client.reset()
    await harness.wait_until(lambda: harness.queued("busy") == 0)
    assert (await clients[0].read_message()).status == 200


async def test_unchanged_services_keep_their_routes(harness: GatewayHarness) -> None:
    """A change of one service must not stop a worker that has thousands of them."""
    for name in ("iris", "other"):
        harness.set_service(name)
    routes = dict(harness.gateway.routes.services)
    harness.set_service("iris", max_queue_length=3)
    assert harness.gateway.routes.services[b"other"] is routes[b"other"]
    assert harness.gateway.routes.services[b"iris"] is not routes[b"iris"]
    harness.remove_service("iris")
    assert harness.gateway.routes.services == {b"other": routes[b"other"]}
    harness.set_service("iris")
    assert harness.gateway.routes.services[b"iris"] is not routes[b"iris"]
