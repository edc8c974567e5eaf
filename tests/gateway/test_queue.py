"""Waiting for a slot: order, limits, and who is served when one becomes free."""

import pytest

from tests.gateway.wire import Line, ok, post, turns
from tests.gateway.world import World, more, story


async def waiting(world: World, body: bytes, *headers: str) -> Line:
    """A client whose request has joined the queue."""
    before = world.queued()
    client = await world.client()
    client.send(post(body, *headers))
    await world.until(lambda: world.queued() == before + 1)
    return client


@story()
async def test_first_come_first_served(world: World) -> None:
    world.serve("iris", max_request_wait_time=5000)
    replica = await world.replica()
    first, line = await world.in_flight(replica)
    clients = [await waiting(world, b"%d" % number) for number in range(10)]
    line.send(ok())
    for number, client in enumerate(clients):
        assert (await line.message()).body == b"%d" % number
        assert world.busy() == 1
        line.send(ok())
        assert (await client.message()).status == 200
    assert (await first.message()).status == 200
    assert len(replica.lines) == 1


@story()
async def test_replica_never_has_more_requests_than_slots(world: World) -> None:
    world.serve("iris", max_request_wait_time=5000, replica_max_concurrent_requests=2)
    now = most = 0

    async def slow(line: Line) -> None:
        nonlocal now, most
        while await more(line):
            await line.message()
            now += 1
            most = max(most, now)
            await turns(10)
            now -= 1
            line.send(ok())

    (await world.replica()).plays(slow)
    clients = [await world.client() for _ in range(30)]
    for client in clients:
        client.send(post() * 10)
    for client in clients:
        for _ in range(10):
            assert (await client.message()).status == 200
    assert most == 2


@story()
async def test_least_loaded_replica_first(world: World) -> None:
    world.serve("iris", replica_max_concurrent_requests=10)
    replicas = [await world.replica() for _ in range(3)]
    clients = [await world.client() for _ in range(12)]
    for client in clients:
        client.send(post())
    await world.until(lambda: sum(len(replica.lines) for replica in replicas) == 12)
    assert [len(replica.lines) for replica in replicas] == [4, 4, 4]
    for replica in replicas:
        for line in replica.lines:
            line.send(ok())
    for client in clients:
        assert (await client.message()).status == 200


@story()
async def test_freed_replica_serves_the_oldest_waiter(world: World) -> None:
    world.serve("iris", max_request_wait_time=5000)
    replicas = [await world.replica() for _ in range(2)]
    clients = [await world.client() for _ in range(2)]
    for client in clients:
        client.send(post())
    lines = [await replica.accept() for replica in replicas]
    for line in lines:
        await line.message()
    oldest, next_ = await waiting(world, b"oldest"), await waiting(world, b"next")
    lines[1].send(ok())
    assert (await lines[1].message()).body == b"oldest"
    lines[0].send(ok())
    assert (await lines[0].message()).body == b"next"
    for line in lines:
        line.send(ok())
    for client in (*clients, oldest, next_):
        assert (await client.message()).status == 200


@story()
async def test_who_waits_too_long_is_turned_away(world: World) -> None:
    world.serve("iris", max_request_wait_time=50)
    replica = await world.replica()
    first, line = await world.in_flight(replica)
    clients = [await waiting(world, b"") for _ in range(5)]
    for client in clients:
        answer = await client.message()
        assert (answer.status, answer.error) == (503, "overloaded")
        assert "connection" not in answer
    line.send(ok())
    assert (await first.message()).status == 200
    await turns()
    assert not line.received  # none of them was sent after all


@story()
async def test_wait_applies_with_more_than_one_concurrent_request(world: World) -> None:
    world.serve("iris", max_request_wait_time=50, replica_max_concurrent_requests=3)
    replica = await world.replica()
    busy = [await world.in_flight(replica) for _ in range(3)]
    late = await waiting(world, b"")
    assert (await late.message()).status == 503
    in_time = await waiting(world, b"in time")
    busy[1][1].send(ok())
    assert (await busy[1][1].message()).body == b"in time"
    for _, line in busy:
        line.send(ok())
    for client in (*(client for client, _ in busy), in_time):
        assert (await client.message()).status == 200


@story()
async def test_changed_wait_applies_to_who_waits_already(world: World) -> None:
    world.serve("iris", max_request_wait_time=60_000)
    replica = await world.replica()
    first, line = await world.in_flight(replica)
    client = await waiting(world, b"")
    world.serve("iris", max_request_wait_time=1)
    assert (await client.message()).status == 503
    line.send(ok())
    assert (await first.message()).status == 200


@story()
async def test_full_queue_refuses_at_once(world: World) -> None:
    world.serve("iris", max_request_wait_time=60_000, max_queue_length=2)
    replica = await world.replica()
    first, line = await world.in_flight(replica)
    clients = [await waiting(world, b"") for _ in range(2)]
    answer = await world.ask(post())
    assert (answer.status, answer.error) == (503, "overloaded")
    for client in (first, *clients):
        line.send(ok())
        assert (await client.message()).status == 200
        if client is not clients[-1]:
            await line.message()


@story()
async def test_client_that_leaves_is_dropped_from_the_queue(world: World) -> None:
    world.serve("iris", max_request_wait_time=5000)
    replica = await world.replica()
    first, line = await world.in_flight(replica)
    leaves, stays = await waiting(world, b"leaves"), await waiting(world, b"stays")
    leaves.close()
    await world.until(lambda: world.queued() == 1)
    line.send(ok())
    assert (await line.message()).body == b"stays"
    line.send(ok())
    for client in (first, stays):
        assert (await client.message()).status == 200


@pytest.mark.parametrize("goes", ["close", "reset"])
@story()
async def test_client_that_leaves_with_much_of_its_body_sent_is_dropped(world: World, goes: str) -> None:
    """The router does not read on while it waits, and notices all the same."""
    world.serve("iris", max_request_wait_time=60_000)
    replica = await world.replica()
    first, line = await world.in_flight(replica)
    client = await world.client()
    client.send(post(b"x" * 100_000, length=3_000_000))
    await world.until(lambda: world.queued() == 1)
    await turns()
    getattr(client, goes)()
    await world.until(lambda: world.queued() == 0)
    line.send(ok())
    assert (await first.message()).status == 200


@story()
async def test_client_that_leaves_with_pipelined_requests_is_dropped(world: World) -> None:
    world.serve("iris", max_request_wait_time=60_000)
    replica = await world.replica()
    first, line = await world.in_flight(replica)
    client = await world.client()
    client.send(post() * 5)
    await world.until(lambda: world.queued() == 1)
    await turns()
    client.close()
    await world.until(lambda: world.queued() == 0)
    line.send(ok())
    assert (await first.message()).status == 200
    await turns()
    assert not line.received


@story()
async def test_no_replica_is_not_waited_for(world: World) -> None:
    world.serve("iris", max_request_wait_time=60_000)
    answer = await world.ask(post())
    assert (answer.status, answer.error) == (503, "no-ready-replicas")


@story()
async def test_first_replica_is_waited_for_where_the_service_rests_at_zero(world: World) -> None:
    world.serve("iris", autoscale_min_replicas=0, max_request_wait_time=20, scoring_timeout_ms=60_000)
    clients = [await waiting(world, b"%d" % number) for number in range(3)]
    (await world.replica()).answers()
    for client in clients:
        assert (await client.message()).status == 200


@story()
async def test_first_replica_that_does_not_come(world: World) -> None:
    world.serve("iris", autoscale_min_replicas=0, max_request_wait_time=20, scoring_timeout_ms=50)
    answer = await world.ask(post())
    assert (answer.status, answer.error) == (503, "no-ready-replicas")


@story()
async def test_usual_wait_begins_when_the_first_replica_is_there(world: World) -> None:
    world.serve("iris", autoscale_min_replicas=0, max_request_wait_time=30, scoring_timeout_ms=60_000)
    clients = [await waiting(world, b"%d" % number) for number in range(2)]
    replica = await world.replica()
    line = await replica.accept()
    assert (await line.message()).body == b"0"
    assert (await clients[1].message()).error == "overloaded"
    line.send(ok())
    assert (await clients[0].message()).status == 200


@story()
async def test_without_a_limit_nobody_waits(world: World) -> None:
    world.serve("iris", replica_max_concurrent_requests=0)
    replicas = [await world.replica() for _ in range(2)]
    clients = [await world.client() for _ in range(200)]
    for client in clients:
        client.send(post())
    await world.until(lambda: sum(len(replica.lines) for replica in replicas) == 200)
    assert world.queued() == 0
    assert min(len(replica.lines) for replica in replicas) >= 60  # two random choices keep them close
    for replica in replicas:
        for line in replica.lines:
            line.send(ok())
    for client in clients:
        assert (await client.message()).status == 200


@story()
async def test_limit_that_comes_and_goes_while_requests_are_under_way(world: World) -> None:
    replica = await world.replica()
    under_way = []
    for limit in (0, 2, 0, 5):
        world.serve("iris", replica_max_concurrent_requests=limit)
        under_way.append(await world.in_flight(replica))
    for client, line in under_way:
        line.send(ok())
        assert (await client.message()).status == 200


@story()
async def test_withdrawn_service_turns_its_queue_away(world: World) -> None:
    world.serve("iris", max_request_wait_time=60_000)
    replica = await world.replica()
    first, line = await world.in_flight(replica)
    client = await waiting(world, b"")
    world.withdraw("iris")
    answer = await client.message()
    assert (answer.status, answer.error) == (503, "no-ready-replicas")
    line.send(ok(b"late"))
    assert (await first.message()).body == b"late"
    client.send(post())
    assert (await client.message()).status == 404


@story()
async def test_cordoned_replica_gets_nothing_new(world: World) -> None:
    replicas = [await world.replica() for _ in range(2)]
    replicas[1].answers(ok(b"open"))
    client, line = await world.in_flight(replicas[0])
    world.announce(("iris", "default"), cordoned=[replicas[0].id])
    line.send(ok())
    assert (await client.message()).status == 200
    for _ in range(5):
        assert (await world.ask(post())).body == b"open"
    assert len(replicas[0].lines) == 1


@story()
async def test_what_the_autoscaler_hears(world: World) -> None:
    world.serve("iris", max_request_wait_time=20)
    replica = await world.replica()
    client, line = await world.in_flight(replica)
    await world.ask(post())
    line.send(ok())
    await client.message()
    await world.at_rest()
    totals = world.route().holder.totals(world.loop.time())
    assert (totals.arrivals, totals.refused, totals.completed) == (2, 1, 1)
    assert totals.busy_seconds >= totals.queued_seconds > 0
    assert totals.service_seconds > 0


@story()
async def test_without_a_queue_a_free_slot_serves_and_only_a_busy_one_refuses(world: World) -> None:
    """A worker that holds no lease yet asks the ledger for one, which is no waiting for a replica."""
    world.serve("iris", max_request_wait_time=60_000, max_queue_length=0)
    replica = await world.replica()
    client, line = await world.in_flight(replica)
    answer = await world.ask(post())
    assert (answer.status, answer.error) == (503, "overloaded")
    line.send(ok())
    assert (await client.message()).status == 200


@story()
async def test_a_short_queue_is_no_limit_to_what_free_slots_take_at_once(world: World) -> None:
    world.serve("iris", max_request_wait_time=60_000, max_queue_length=1, replica_max_concurrent_requests=4)
    replica = await world.replica()
    clients = [await world.client() for _ in range(4)]
    for client in clients:
        client.send(post())
    lines = [await replica.accept() for _ in range(4)]
    for line in lines:
        await line.message()
        line.send(ok())
    for client in clients:
        assert (await client.message()).status == 200


@story()
async def test_who_waits_goes_on_to_wait_when_the_limit_goes(world: World) -> None:
    world.serve("iris", max_request_wait_time=60_000)
    replica = await world.replica()
    first, line = await world.in_flight(replica)
    client = await waiting(world, b"waits")
    world.serve("iris", max_request_wait_time=60_000, replica_max_concurrent_requests=0)
    other = await replica.accept()
    assert (await other.message()).body == b"waits"
    other.send(ok())
    assert (await client.message()).status == 200
    line.send(ok())
    assert (await first.message()).status == 200


@story()
async def test_a_version_that_was_just_added_gets_no_request_before_it_can_answer(world: World) -> None:
    world.serve("iris", versions={"a": {"is_default": True}}, max_request_wait_time=60_000)
    replica = await world.replica(version="a")
    world.serve("iris", versions={"a": {"is_default": True}, "b": {"traffic_percentile": 99}})
    client, line = await world.in_flight(replica)
    line.send(ok())
    answer = await client.message()
    assert (answer.status, answer["azureml-model-deployment"]) == (200, "a")


@story()
async def test_who_waits_for_a_version_that_goes_waits_for_another_unless_it_was_named(world: World) -> None:
    both = {"a": {}, "default": {"is_default": True}}
    world.serve("iris", versions=both, max_request_wait_time=60_000)
    stays, goes = await world.replica(version="a"), await world.replica(version="default")
    first, line = await world.in_flight(goes)
    client = await waiting(world, b"any")
    named = await waiting(world, b"named", "azureml-model-deployment: default")
    world.serve("iris", versions={"a": {}}, max_request_wait_time=60_000)
    other = await stays.accept()
    assert (await other.message()).body == b"any"
    other.send(ok())
    answer = await client.message()
    assert (answer.status, answer["azureml-model-deployment"]) == (200, "a")
    assert (await named.message()).error == "no-ready-replicas"
    line.send(ok())
    assert (await first.message()).status == 200
