"""Accepting clients: the pause when file descriptors run short, and what happens when there are none."""

import resource

from router.gateway.doors import connections_for
from tests.gateway.wire import Line, get, ok, post
from tests.gateway.world import World, story

FEW = 80  # of which six are left for clients


def test_room_for_clients() -> None:
    assert connections_for(FEW, 0) == 6
    assert connections_for(1024, 0) == 832
    assert connections_for(1024, 100) == 732
    assert connections_for(20, 0) == 1  # never none, however few there are


async def served(world: World, clients: list[Line]) -> list[Line]:
    """Those who get an answer, once nobody gets one any more."""
    for client in clients:
        client.send(get(path="/"))
    await world.until(lambda: world.gateway.counters.accept_pauses, "pause")
    await world.until(lambda: sum(bool(client.received) for client in clients) >= 6, "answers")
    return [client for client in clients if client.received]


@story(descriptors=FEW)
async def test_who_comes_while_descriptors_are_short_waits(world: World) -> None:
    clients = [await world.client() for _ in range(12)]
    first = await served(world, clients)
    assert 6 <= len(first) < 12
    assert not [client for client in clients if client.ended], "nobody is sent away"
    for client in first:
        client.transport.abort()
    waiting = [client for client in clients if client not in first]
    for client in waiting:
        assert (await client.message()).body == b"Healthy"
    fresh = await world.client()
    for client in waiting:
        client.transport.abort()
    fresh.send(get(path="/"))
    assert (await fresh.message()).body == b"Healthy"


@story(descriptors=FEW)
async def test_requests_in_service_go_on_during_the_pause(world: World) -> None:
    replica = await world.replica()
    client, line = await world.in_flight(replica)
    others = [await world.client() for _ in range(12)]
    await served(world, others[:8])
    line.send(ok(b"done"))
    assert (await client.message()).body == b"done"
    client.send(post())
    await line.message()
    line.send(ok(b"and again"))
    assert (await client.message()).body == b"and again"


@story()
async def test_a_replica_is_not_blamed_for_want_of_descriptors(world: World) -> None:
    replica = await world.replica()
    client = await world.client()
    client.send(get(path="/"))
    await client.message()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))  # no new one
    try:
        client.send(post())
        answer = await client.message()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert (answer.status, answer.error) == (503, "overloaded")
    assert "retry-after" in answer
    client.send(post())
    line = await replica.accept()
    await line.message()
    line.send(ok())
    assert (await client.message()).status == 200
