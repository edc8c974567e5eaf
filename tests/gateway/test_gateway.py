"""What changes while requests flow: settings, services, replicas."""

from tests.gateway.wire import ok, post
from tests.gateway.world import World, story


@story()
async def test_changed_key_applies_to_the_next_request_of_an_open_connection(world: World) -> None:
    (await world.replica()).answers()
    client = await world.client()
    for key, status in (("a" * 32, 200), ("b" * 32, 401)):
        world.serve("iris", primary_key="a" * 32)
        client.send(post(key=key))
        assert (await client.message()).status == status
    world.serve("iris", primary_key="b" * 32)
    client.send(post(key="b" * 32))
    assert (await client.message()).status == 200


@story()
async def test_changed_scoring_timeout_applies_to_requests_from_now_on(world: World) -> None:
    world.serve("iris", replica_max_concurrent_requests=5, scoring_timeout_ms=60_000)
    replica = await world.replica()
    before, line = await world.in_flight(replica)
    world.serve("iris", replica_max_concurrent_requests=5, scoring_timeout_ms=20)
    after, hanging = await world.in_flight(replica)
    assert (await after.message()).status == 504
    await hanging.end()
    line.send(ok(b"in its own time"))
    assert (await before.message()).body == b"in its own time"


@story()
async def test_request_under_way_survives_the_withdrawal_of_its_service(world: World) -> None:
    world.serve("other")
    replica = await world.replica()
    client, line = await world.in_flight(replica)
    world.withdraw("iris")
    line.send(ok(b"late"))
    assert (await client.message()).body == b"late"
    await line.end()
    assert ("iris", "default") not in world.gateway.counters.versions


@story()
async def test_service_that_comes_back_begins_anew(world: World) -> None:
    replica = await world.replica()
    client, line = await world.in_flight(replica)
    world.withdraw("iris")
    world.serve("iris")
    again, fresh = await world.in_flight(replica)
    for one, its_line in ((client, line), (again, fresh)):
        its_line.send(ok())
        assert (await one.message()).status == 200


@story()
async def test_more_slots_serve_who_waits_already(world: World) -> None:
    world.serve("iris", max_request_wait_time=60_000)
    replica = await world.replica()
    first, line = await world.in_flight(replica)
    second = await world.client()
    second.send(post(b"second"))
    await world.until(lambda: world.queued() == 1)
    world.serve("iris", max_request_wait_time=60_000, replica_max_concurrent_requests=2)
    other = await replica.accept()
    assert (await other.message()).body == b"second"
    for client, its_line in ((first, line), (second, other)):
        its_line.send(ok())
        assert (await client.message()).status == 200


@story()
async def test_fewer_slots_hold_once_requests_have_ended(world: World) -> None:
    world.serve("iris", max_request_wait_time=60_000, replica_max_concurrent_requests=3)
    replica = await world.replica()
    under_way = [await world.in_flight(replica) for _ in range(3)]
    world.serve("iris", max_request_wait_time=60_000, replica_max_concurrent_requests=1)
    waiting = await world.client()
    waiting.send(post(b"waiting"))
    await world.until(lambda: world.queued() == 1)
    for client, line in under_way[:2]:
        line.send(ok())
        assert (await client.message()).status == 200
    assert (world.busy(), world.queued()) == (1, 1)
    client, line = under_way[2]
    line.send(ok())
    assert (await client.message()).status == 200
    await world.until(lambda: any(line.received for _, line in under_way))
    (freed,) = (line for _, line in under_way if line.received)
    assert (await freed.message()).body == b"waiting"
    freed.send(ok())
    assert (await waiting.message()).status == 200


@story()
async def test_new_replica_serves_who_waits_already(world: World) -> None:
    world.serve("iris", max_request_wait_time=60_000)
    replica = await world.replica()
    first, line = await world.in_flight(replica)
    second = await world.client()
    second.send(post())
    await world.until(lambda: world.queued() == 1)
    (await world.replica()).answers(ok(b"from the new one"))
    assert (await second.message()).body == b"from the new one"
    line.send(ok())
    assert (await first.message()).status == 200


@story()
async def test_services_do_not_share_a_queue(world: World) -> None:
    world.serve("slow", max_request_wait_time=60_000)
    world.serve("quick")
    replica = await world.replica("slow")
    (await world.replica("quick")).answers()
    path = "/api/v1/service/slow/score"
    clients = [await world.client() for _ in range(20)]
    for client in clients:
        client.send(post(path=path))
    await world.until(lambda: world.queued("slow") == 19)
    assert (await world.ask(post(path="/api/v1/service/quick/score"))).status == 200
    replica.lines[0].send(ok())
    for client in clients[1:]:
        client.reset()
    await world.until(lambda: world.queued("slow") == 0)
    assert (await clients[0].message()).status == 200
