"""Connections: kept, pipelined, pooled, stale, refused."""

import asyncio

import pytest

from router.gateway.table import RETRY_FLOOR
from tests.gateway.wire import Line, get, ok, ok_chunked, post, post_chunked, turns
from tests.gateway.world import ScriptedReplica, World, more, story

# Clients


@story()
async def test_connection_serves_one_request_after_another(world: World) -> None:
    replica = (await world.replica()).answers()
    client = await world.client()
    for request in (post(), get(), post_chunked(b"abc"), post(b"x" * 100_000), post(b"")):
        client.send(request)
        answer = await client.message()
        assert answer.status == 200
        assert "connection" not in answer
    assert len(replica.lines) == 1


@story()
async def test_client_that_closes_after_its_answer(world: World) -> None:
    (await world.replica()).answers()
    client = await world.client()
    client.send(post(b"", "Connection: close"))
    answer = await client.message()
    assert (answer.status, answer["connection"]) == (200, "close")
    assert await client.rest() == b""
    assert not client.was_reset


@story()
async def test_data_after_the_last_request_is_ignored(world: World) -> None:
    (await world.replica()).answers()
    client = await world.client()
    client.send(post(b"", "Connection: close") + post() + b"garbage")
    assert (await client.message())["connection"] == "close"
    client.finish()
    assert await client.rest() == b""


@story()
async def test_empty_lines_between_requests_are_passed_over(world: World) -> None:
    (await world.replica()).answers()
    client = await world.client()
    for _ in range(2):
        client.send(b"\r\n\r\n" + post())
        assert (await client.message()).status == 200
    await client.dribble(b"\r\n", post())
    assert (await client.message()).status == 200


@pytest.mark.parametrize("at_once", [1, 100])
@story()
async def test_hundreds_of_pipelined_requests_are_answered_in_order(world: World, at_once: int) -> None:
    world.serve("iris", replica_max_concurrent_requests=10)

    async def echo(line: Line) -> None:
        while await more(line):
            request = await line.message()
            line.send(ok(request.body))

    for _ in range(2):
        (await world.replica()).plays(echo)
    client = await world.client()
    for start in range(0, 400, at_once):
        client.send(b"".join(post(b"%d" % number) for number in range(start, start + at_once)))
    for number in range(400):
        assert (await client.message()).body == b"%d" % number


@story()
async def test_pipelined_requests_of_all_kinds(world: World) -> None:
    (await world.replica()).answers(ok_chunked(b"abc"))
    client = await world.client()
    client.send(
        get(path="/")
        + post_chunked(b"abc", trailers="X: y\r\n")
        + post(key="wrong")
        + post(b"x" * 3000)
        + get(path="/nowhere")
        + get()
    )
    assert [(await client.message()).status for _ in range(6)] == [200, 200, 401, 200, 404, 200]


@story()
async def test_malformed_request_among_pipelined_ones(world: World) -> None:
    replica = await world.replica()
    client = await world.client()
    client.send(post(b"1") + post(b"2") + b"POST / HTTP/1.1\r\nbroken\r\n\r\n" + post(b"3"))
    line = await replica.accept()
    for body in (b"1", b"2"):
        assert (await line.message()).body == body
        line.send(ok(body))
        assert (await client.message()).body == body
    answer = await client.message()
    assert (answer.status, answer["connection"]) == (400, "close")
    client.finish()
    assert await client.rest() == b""
    assert not line.received


@story()
async def test_refused_request_among_pipelined_ones_does_not_end_them(world: World) -> None:
    (await world.replica()).answers()
    client = await world.client()
    client.send((post() + post(key="wrong")) * 50)
    assert [(await client.message()).status for _ in range(100)] == [200, 401] * 50


@pytest.mark.parametrize("size", [20_000, 100_000, 1_000_000])
@pytest.mark.parametrize("in_chunks", [True, False])
@story()
async def test_large_body_behind_a_request_that_is_not_answered_yet(world: World, size: int, in_chunks: bool) -> None:
    replica = await world.replica()
    client = await world.client()
    body = b"x" * size
    client.send(post(b"1") + (post_chunked(body[:5000], body[5000:]) if in_chunks else post(body)) + post(b"3"))
    line = await replica.accept()
    for expected in (b"1", body, b"3"):
        assert (await line.message()).body == expected
        line.send(ok())
        assert (await client.message()).status == 200


@story()
async def test_body_that_goes_on_behind_a_request_that_is_not_answered_yet(world: World) -> None:
    replica = await world.replica()
    client = await world.client()
    client.send(post(b"1") + post(b"x" * 1000, length=200_000))
    line = await replica.accept()
    await line.message()
    client.send(b"x" * 199_000 + post(b"3"))
    await turns(20)
    line.send(ok())
    for size in (200_000, 1):
        assert len((await line.message()).body) == size
        line.send(ok())
    for _ in range(3):
        assert (await client.message()).status == 200


@story()
async def test_answers_wait_for_a_client_that_does_not_read(world: World) -> None:
    """Pipelined requests must not heap up answers in memory."""
    served = 0

    async def large(line: Line) -> None:
        nonlocal served
        while await more(line):
            await line.message()
            served += 1
            line.send(ok(b"x" * 1_000_000))

    (await world.replica()).plays(large)
    client = await world.client(receive_buffer=65_536)
    client.stop_reading()
    client.send(post() * 60)
    (inside,) = world.gateway._clients
    await world.until(lambda: inside.stalled_since)
    await turns(200)
    assert inside.transport.get_write_buffer_size() < 2_500_000
    client.read_on()
    for _ in range(60):
        assert (await client.message()).status == 200
    assert served == 60


# Replicas


async def closing(line: Line) -> None:
    """A server that takes a new connection for each request, as gunicorn's sync worker does."""
    await line.message()
    line.send(ok(b"[1]", "Connection: close"))
    line.close()


@story()
async def test_replica_that_closes_after_each_answer(world: World) -> None:
    replica = (await world.replica()).plays(closing)
    client = await world.client()
    for _ in range(20):
        client.send(post())
        assert (await client.message()).status == 200
    assert len(replica.lines) == 20


@story()
async def test_replica_that_closes_without_saying_so(world: World) -> None:
    async def silently(line: Line) -> None:
        await line.message()
        line.send(ok())
        line.close()

    replica = (await world.replica()).plays(silently)
    client = await world.client()
    for _ in range(20):
        client.send(post())
        assert (await client.message()).status == 200
    assert len(replica.lines) == 20


@story()
async def test_connection_with_more_than_an_answer_is_not_used_again(world: World) -> None:
    replica = await world.replica()
    client = await world.client()
    for extra in (b"HTTP/1.1 200 OK\r\nX-Smuggled: ", ok(b"second"), b"garbage", b"0"):
        client.send(post())
        line = await replica.accept()
        await line.message()
        line.send(ok(b"first") + extra)
        answer = await client.message()
        assert answer.body == b"first"
        assert "x-smuggled" not in answer
        await line.end()


@story()
async def test_second_answer_does_not_reach_the_client_as_trailers(world: World) -> None:
    replica = await world.replica()
    client, line = await world.in_flight(replica)
    line.send(ok_chunked(b"first") + ok(b"second", "X-Smuggled: 1"))
    answer = await client.message()
    assert (answer.body, answer.trailers) == (b"first", ())


@story()
async def test_replica_that_speaks_unasked(world: World) -> None:
    replica = await world.replica()
    client, line = await world.in_flight(replica)
    line.send(ok())
    await client.message()
    line.send(ok(b"unasked"))
    await line.end()
    client.send(post())
    fresh = await replica.accept()
    await fresh.message()
    fresh.send(ok(b"asked"))
    assert (await client.message()).body == b"asked"


@story(replica_idle_connection_seconds=0.0)
async def test_idle_connections_are_closed(world: World) -> None:
    replica = await world.replica()
    client, line = await world.in_flight(replica)
    line.send(ok())
    await client.message()
    world.gateway._tick()
    await line.end()


@story(replica_idle_connection_seconds=0.0)
async def test_idle_connections_of_a_replica_that_was_announced_again_are_closed(world: World) -> None:
    replica = await world.replica()
    world.announce(("iris", "default"))
    client, line = await world.in_flight(replica)
    line.send(ok())
    await client.message()
    world.gateway._tick()
    await line.end()


@story()
async def test_connections_of_a_replica_that_is_gone_are_closed(world: World) -> None:
    replica = await world.replica()
    await world.replica()
    first, line = await world.in_flight(replica)
    line.send(ok())
    await first.message()
    world.remove(replica)
    await line.end()


@story()
async def test_request_under_way_survives_the_removal_of_its_replica(world: World) -> None:
    replica = await world.replica()
    client, line = await world.in_flight(replica)
    world.remove(replica)
    line.send(ok(b"late"))
    assert (await client.message()).body == b"late"
    await line.end()


# Stale connections


async def pooled(world: World, replica: ScriptedReplica) -> tuple[Line, Line]:
    """A client, and a connection to the replica that has served a request and rests."""
    client, line = await world.in_flight(replica)
    line.send(ok())
    await client.message()
    return client, line


@story()
async def test_connection_that_closed_while_idle_is_not_used(world: World) -> None:
    replica = await world.replica()
    client, line = await pooled(world, replica)
    line.close()
    await turns()
    client.send(post())
    fresh = await replica.accept()
    await fresh.message()
    fresh.send(ok())
    assert (await client.message()).status == 200
    assert world.route().counters.retries == 0


@pytest.mark.parametrize("break_off", ["close", "reset"])
@pytest.mark.parametrize("body", [b"", b"[1]", b"x" * 50_000])
@story()
async def test_request_that_met_a_closing_connection_is_sent_once_more(
    world: World, break_off: str, body: bytes
) -> None:
    """The replica closes at the very moment the request comes: it cannot have run."""
    replica = await world.replica()
    client, line = await pooled(world, replica)
    line.stop_reading()
    client.send(post(body))
    await world.until(lambda: world.busy() == 1)
    getattr(line, break_off)()  # the request lies unread in its socket
    fresh = await replica.accept()
    assert (await fresh.message()).body == body
    fresh.send(ok(b"second try"))
    assert (await client.message()).body == b"second try"
    assert dict(world.route().counters.retry_causes) == {"stale": 1}


@story()
async def test_request_and_end_of_connection_in_the_same_moment(world: World) -> None:
    replica = await world.replica()
    client, line = await pooled(world, replica)
    client.send(post())
    line.close()
    while not client.received:
        if not replica._fresh.empty():
            fresh = await replica.accept()
            await fresh.message()
            fresh.send(ok())
        await asyncio.sleep(0)
    assert (await client.message()).status == 200


@story()
async def test_request_that_the_replica_read_is_not_sent_again(world: World) -> None:
    replica = await world.replica()
    client, line = await pooled(world, replica)
    client.send(post())
    await line.message()
    line.close()
    answer = await client.message()
    assert (answer.status, answer.error) == (502, "replica-closed")
    assert len(replica.lines) == 1


@story()
async def test_request_over_a_fresh_connection_is_not_sent_again(world: World) -> None:
    """A replica that accepts and breaks off is ill, not idle."""
    replica = await world.replica()
    client = await world.client()
    client.send(post())
    line = await replica.accept()
    line.stop_reading()
    line.reset()
    assert (await client.message()).status == 502
    assert len(replica.lines) == 1


@story()
async def test_request_of_which_an_answer_has_begun_is_not_sent_again(world: World) -> None:
    replica = await world.replica()
    client, line = await pooled(world, replica)
    line.stop_reading()
    client.send(post())
    await world.until(lambda: world.busy() == 1)
    line.send(b"HTTP/1.1 ")
    await turns()
    line.reset()
    assert (await client.message()).status == 502
    assert len(replica.lines) == 1


@story()
async def test_request_whose_body_is_still_coming_is_not_sent_again(world: World) -> None:
    replica = await world.replica()
    client, line = await pooled(world, replica)
    line.stop_reading()
    client.send(post(b"abc", length=10))
    await world.until(lambda: world.busy() == 1)
    line.reset()
    answer = await client.message()
    assert (answer.status, answer["connection"]) == (502, "close")
    assert len(replica.lines) == 1


@story()
async def test_request_is_sent_once_more_at_most(world: World) -> None:
    replica = await world.replica()
    client, line = await pooled(world, replica)
    line.stop_reading()
    client.send(post())
    await world.until(lambda: world.busy() == 1)
    line.reset()
    second = await replica.accept()
    second.reset()
    assert (await client.message()).status == 502
    assert len(replica.lines) == 2


# Refused connections


@story()
async def test_refused_request_goes_to_another_replica(world: World) -> None:
    dead = await world.replica(listening=False)
    (await world.replica()).answers(ok(b"alive"))
    for _ in range(8):
        assert (await world.ask(post(b"x" * 1000))).body == b"alive"
    assert dead.lines == []
    assert world.route().counters.retry_causes["connect"] >= 1


@story()
async def test_refused_request_with_a_body_still_coming_goes_to_another_replica(world: World) -> None:
    await world.replica(listening=False)
    replica = await world.replica()
    client = await world.client()
    for _ in range(2):
        client.send(post(b"abc", length=6))
        line = replica.lines[0] if replica.lines else await replica.accept()
        await line.head()
        client.send(b"def")
        assert await line.take(6) == b"abcdef"
        line.send(ok())
        assert (await client.message()).status == 200


@story()
async def test_every_replica_refuses(world: World) -> None:
    for _ in range(3):
        await world.replica(listening=False)
    answer = await world.ask(post())
    assert (answer.status, answer.error) == (502, "replica-closed")


@story()
async def test_replica_that_refused_comes_back(world: World) -> None:
    replica = await world.replica(listening=False)
    assert (await world.ask(post())).status == 502
    await replica.listen()
    replica.answers(ok(b"back"))
    assert (await world.ask(post())).body == b"back"  # waits in the queue until the replica is tried again


@story()
async def test_refused_request_waits_for_the_other_replica(world: World) -> None:
    world.serve("iris", max_request_wait_time=5000)
    replica = await world.replica()
    first, line = await world.in_flight(replica)
    await world.replica(listening=False)
    client = await world.client()
    client.send(post(b"waits"))
    await world.until(lambda: world.queued() == 1)
    line.send(ok())
    assert (await first.message()).status == 200
    assert (await line.message()).body == b"waits"
    line.send(ok())
    assert (await client.message()).status == 200


@story(connect_timeout_ms=50)
async def test_replica_that_does_not_accept(world: World) -> None:
    (await world.replica()).stop_accepting()
    answer = await world.ask(post())
    assert (answer.status, answer.error) == (502, "replica-closed")


@story()
async def test_many_refused_at_once_count_as_one(world: World) -> None:
    """The more requests met a closed door, the longer it must not stay shut."""
    world.serve("iris", replica_max_concurrent_requests=100)
    replica = await world.replica(listening=False)
    clients = [await world.client() for _ in range(40)]
    for client in clients:
        client.send(post())
    statuses = {(await client.message()).status for client in clients}
    assert statuses == {502}
    assert world.route().pool(replica.id).failures == 1


@story()
async def test_retries_are_bounded_by_a_budget(world: World) -> None:
    """When everything breaks, sending once more must not double the load."""
    world.serve("iris", replica_max_concurrent_requests=100)
    replica = await world.replica()
    count = RETRY_FLOOR * 4
    clients = [await world.client() for _ in range(count)]
    lines = []
    for client in clients:
        client.send(post())
        line = await replica.accept()
        await line.message()
        lines.append(line)
    for client, line in zip(clients, lines, strict=True):
        line.send(ok())
        await client.message()
        line.stop_reading()
    for client in clients:
        client.send(post())
    await world.until(lambda: world.busy() == count)
    replica.answers()
    for line in lines:
        line.reset()
    statuses = [(await client.message()).status for client in clients]
    again = statuses.count(200)
    assert RETRY_FLOOR <= again <= RETRY_FLOOR + 0.2 * 2 * count
    assert statuses.count(502) == count - again


# The router stops


@story()
async def test_draining_lets_requests_finish_and_closes_idle_connections(world: World) -> None:
    replica = await world.replica()
    idle = await world.client()
    client, line = await world.in_flight(replica)
    draining = asyncio.ensure_future(world.gateway.drain(5.0, 0.02, last=True))
    assert await idle.rest() == b""
    line.send(ok())
    answer = await client.message()
    assert (answer.status, answer["connection"]) == (200, "close")
    assert await draining is True


@story()
async def test_draining_ends_in_time(world: World) -> None:
    replica = await world.replica()
    client, line = await world.in_flight(replica)
    assert await world.gateway.drain(0.02, 0.02, last=True) is False
    await client.end()
    await line.end()
