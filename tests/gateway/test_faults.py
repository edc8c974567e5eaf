"""Each side failing at each stage: the documented answer, the slot free, nothing left behind."""

import asyncio
import gc
import random
import socket
import threading
import tracemalloc
from collections.abc import Callable

import pytest

from tests.gateway.wire import Line, get, ok, ok_chunked, post, post_chunked, turns
from tests.gateway.world import ScriptedReplica, World, more, open_descriptors, story

Leave = Callable[[Line], None]
LEAVES = pytest.mark.parametrize(
    "leave", [Line.close, Line.reset, Line.finish], ids=["closes", "resets", "half-closes"]
)
BREAKS = pytest.mark.parametrize("break_off", [Line.close, Line.reset], ids=["closes", "resets"])

# The client leaves


@LEAVES
@pytest.mark.parametrize("sent", [b"", b"P", post()[:60], post(b"abc", length=10), post_chunked(b"abc", end=False)])
@story()
async def test_client_leaves_before_its_request_is_whole(world: World, leave: Leave, sent: bytes) -> None:
    replica = await world.replica()
    client = await world.client()
    client.send(sent)
    await turns()
    leave(client)
    await world.until(lambda: not world.gateway._clients)
    await world.at_rest()
    for line in replica.lines:
        await line.end()


@LEAVES
@story()
async def test_client_leaves_while_the_replica_works(world: World, leave: Leave) -> None:
    replica = await world.replica()
    client, line = await world.in_flight(replica)
    leave(client)
    await line.end()
    await world.at_rest()
    counters = world.route().counters
    assert dict(counters.answers) == {(499, "client-closed"): 1}
    assert counters.client_aborts == 1


@LEAVES
@pytest.mark.parametrize("begun", [ok(b"abc", length=10), ok_chunked(b"abc", end=False), b"HTTP/1.1 200 OK\r\nX-"])
@story()
async def test_client_leaves_within_its_answer(world: World, leave: Leave, begun: bytes) -> None:
    replica = await world.replica()
    client, line = await world.in_flight(replica)
    line.send(begun)
    await turns()
    leave(client)
    await line.end()
    await world.at_rest()


@LEAVES
@story()
async def test_client_leaves_while_its_request_is_queued(world: World, leave: Leave) -> None:
    world.serve("iris", max_request_wait_time=60_000)
    replica = await world.replica()
    first, line = await world.in_flight(replica)
    client = await world.client()
    client.send(post())
    await world.until(lambda: world.queued() == 1)
    leave(client)
    await world.until(lambda: world.queued() == 0)
    line.send(ok())
    assert (await first.message()).status == 200
    await turns()
    assert not line.received


@LEAVES
@story(connect_timeout_ms=60)
async def test_client_leaves_while_its_request_is_connecting(world: World, leave: Leave) -> None:
    replica = await world.replica()
    replica.stop_accepting()
    client = await world.client()
    client.send(post())
    await world.until(lambda: world.busy() == 1)
    leave(client)
    await world.at_rest()


@LEAVES
@story()
async def test_client_leaves_with_requests_behind_the_one_under_way(world: World, leave: Leave) -> None:
    replica = await world.replica()
    client = await world.client()
    client.send(post(b"1") + post(b"2") + post(b"3"))
    line = await replica.accept()
    await line.message()
    leave(client)
    await line.end()
    await world.at_rest()
    assert not line.received
    assert len(replica.lines) == 1


@story()
async def test_client_leaves_while_it_does_not_read(world: World) -> None:
    replica = await world.replica()
    client = await world.client(receive_buffer=65_536)
    client.send(post())
    line = await replica.accept()
    await line.message()
    client.stop_reading()
    line.send(ok(b"x" * 30_000_000))
    (inside,) = world.gateway._clients
    await world.until(lambda: inside.stalled_since)
    client.reset()
    await line.end()
    await world.at_rest()


@story()
async def test_answer_to_a_client_that_left_a_moment_ago(world: World) -> None:
    """Its end and the answer arrive in the same turn of the event loop."""
    world.serve("iris", replica_max_concurrent_requests=100)
    replica = await world.replica()
    pairs = [await world.in_flight(replica) for _ in range(40)]
    for number, (client, line) in enumerate(pairs):
        if number % 4 < 2:
            line.send(ok())
        client.reset() if number % 2 else client.close()
        if number % 4 >= 2:
            line.send(ok())
    await world.at_rest()
    await world.until(lambda: not world.gateway._clients)


# The replica fails


@BREAKS
@pytest.mark.parametrize("begun", [b"", b"HTTP/1.1", b"HTTP/1.1 200 OK\r\nContent-Le", b"HTTP/1.1 103 Hints\r\n\r\n"])
@story()
async def test_replica_breaks_off_before_its_answers_head_is_whole(
    world: World, break_off: Leave, begun: bytes
) -> None:
    replica = await world.replica()
    client, line = await world.in_flight(replica)
    line.send(begun)
    await turns()
    break_off(line)
    answer = await client.message()
    if answer.status == 103:
        answer = await client.message()
    assert (answer.status, answer.error) == (502, "replica-closed")
    assert answer.body == b"Replica closed connection before replying"
    client.send(get(path="/"))
    assert (await client.message()).body == b"Healthy"


@BREAKS
@story()
async def test_replica_breaks_off_within_a_body_with_a_length(world: World, break_off: Leave) -> None:
    replica = await world.replica()
    client, line = await world.in_flight(replica)
    line.send(ok(b"abc", length=10))
    await turns()
    break_off(line)
    assert (await client.rest()).endswith(b"\r\n\r\nabc")
    await world.at_rest()
    assert dict(world.route().counters.answers) == {(200, "replica-closed"): 1}


@BREAKS
@story()
async def test_replica_breaks_off_within_a_large_body(world: World, break_off: Leave) -> None:
    replica = await world.replica()
    client, line = await world.in_flight(replica)
    line.send(ok(b"x" * 300_000, length=1_000_000))
    await client.until(lambda: client.total > 300_000, "what was sent")
    break_off(line)
    await client.end()
    assert client.received.endswith(b"x" * 300_000)


@BREAKS
@story()
async def test_replica_breaks_off_within_chunks(world: World, break_off: Leave) -> None:
    replica = await world.replica()
    client, line = await world.in_flight(replica)
    line.send(ok_chunked(b"abc", end=False))
    await turns()
    break_off(line)
    assert (await client.rest()).endswith(b"\r\n\r\n3\r\nabc\r\n")


@BREAKS
@story()
async def test_client_that_cannot_tell_the_end_from_a_break_sees_a_reset(world: World, break_off: Leave) -> None:
    """To a client of HTTP/1.0 a chunked answer ends with the connection, so that only a reset tells it is not whole."""
    replica = await world.replica()
    client, line = await world.in_flight(replica, post(version="1.0"))
    line.send(ok_chunked(b"abc", end=False))
    await client.until(lambda: client.received.endswith(b"abc"), "first chunk")
    break_off(line)
    await client.end()
    assert client.was_reset


@story()
async def test_answer_without_a_length_that_is_reset_is_not_whole(world: World) -> None:
    replica = await world.replica()
    client, line = await world.in_flight(replica)
    line.send(ok(b"abc", length=None))
    await client.until(lambda: client.received.endswith(b"abc\r\n"), "what was sent")
    line.reset()
    assert (await client.rest()).endswith(b"\r\n\r\n3\r\nabc\r\n")


@BREAKS
@story()
async def test_replica_breaks_off_while_the_body_is_coming(world: World, break_off: Leave) -> None:
    replica = await world.replica()
    client = await world.client()
    client.send(post(b"x" * 1000, length=1_000_000))
    line = await replica.accept()
    await line.head()
    await line.take(1000)
    break_off(line)
    answer = await client.message()
    assert (answer.status, answer["connection"]) == (502, "close")
    client.send(b"x" * 100_000)
    client.finish()
    assert await client.rest() == b""


def refuse_uploads(listener: socket.socket, rng: random.Random) -> None:
    """A replica with a mind of its own: reads some of the body, answers, closes."""
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        enough = rng.randrange(1000, 900_000)
        with connection:
            while enough > 0:
                enough -= len(connection.recv(65_536)) or enough
            connection.sendall(ok(b"no", "Connection: close", status="403 Forbidden"))


@story()
async def test_early_answer_of_a_replica_that_closes_is_never_lost(world: World) -> None:
    """It answers and closes while the body streams: writing to it fails before its answer was read."""
    replica = await world.replica()
    replica.refuse()
    listener = socket.create_server(("127.0.0.1", replica.port))
    thread = threading.Thread(target=refuse_uploads, args=(listener, random.Random(7)), daemon=True)
    thread.start()
    for _ in range(50):
        client = await world.client()
        client.send(post(b"x" * 3_000_000, length=6_000_000))
        answer = await client.message()
        assert (answer.status, answer.body) == (403, b"no")
        client.close()
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    await asyncio.to_thread(thread.join)


@story()
async def test_replica_hangs(world: World) -> None:
    world.serve("iris", scoring_timeout_ms=40)
    replica = await world.replica()
    for begun, expected in ((b"", 504), (b"HTTP/1.1 200 OK\r\nX-", 504), (ok(b"abc", length=10), 200)):
        client, line = await world.in_flight(replica)
        line.send(begun)
        assert (await client.head()).status == expected
        if expected == 200:
            assert await client.rest() == b"abc"
        await line.end()


@story()
async def test_replica_goes_while_requests_wait_for_it(world: World) -> None:
    world.serve("iris", max_request_wait_time=40)
    replica = await world.replica()
    first, line = await world.in_flight(replica)
    client = await world.client()
    client.send(post())
    await world.until(lambda: world.queued() == 1)
    world.remove(replica)
    answer = await client.message()
    assert (answer.status, answer.error) == (503, "no-ready-replicas")
    line.send(ok())
    assert (await first.message()).status == 200


@story()
async def test_fault_within_an_answer(world: World) -> None:
    replica = await world.replica()
    client, line = await world.in_flight(replica)
    world.route().counters.first_byte.counts.clear()
    line.send(ok())
    answer = await client.message()
    assert (answer.status, answer.error) == (500, "router-error")
    await line.end()


@story()
async def test_fault_while_a_request_is_sent(world: World) -> None:
    await world.replica()
    world.route().counters.route_time.counts.clear()
    client = await world.client()
    for _ in range(2):
        client.send(post())
        answer = await client.message()
        assert (answer.status, answer.error) == (500, "router-error")


@story()
async def test_fault_that_each_waiter_in_a_long_queue_has(world: World) -> None:
    """None of them is within another one's: no slot is lost for want of stack."""
    many = 300
    world.serve("iris", replica_max_concurrent_requests=many, max_request_wait_time=60_000)
    replica = await world.replica()
    clients = [await world.client() for _ in range(many)]
    for client in clients:
        client.send(post())
    lines = [await replica.accept() for _ in clients]
    for line in lines:
        await line.message()
        line.send(ok())
    for client in clients:
        assert (await client.message()).status == 200
    world.serve("iris", replica_max_concurrent_requests=1, max_request_wait_time=60_000)
    await world.until(lambda: not world.route().holder.idle, "one slot")
    for client in clients:
        client.send(post())
    await world.until(lambda: (world.busy(), world.queued()) == (1, many - 1), "a queue")
    world.route().counters.route_time.counts.clear()
    await world.until(lambda: any(line.received for line in lines), "the first one at the replica")
    next(line for line in lines if line.received).send(ok())
    statuses = [(await client.message()).status for client in clients]
    assert statuses == [200] + [500] * (many - 1)


# Ten thousand of them

FAULTY_REQUESTS = (
    post(),
    post(b"x" * 2000),
    post_chunked(b"abc", b"defg"),
    get(),
    post() + post() + get(path="/"),
    post(key="wrong"),
    post(path="/api/v1/service/none/score"),
    post(method="PUT"),
    post(b"abc", length=100),
    post_chunked(b"abc", end=False),
    post_chunked(b"abc", end=False) + b"zz\r\n",
    post(b"x" * 20_000),
    post(b"", length=20_000),
    post_chunked(b"x" * 9000, b"y" * 9000),
    post(b"", "Expect: 100-continue", length=5),
    post(version="1.0"),
    get("Connection: upgrade", "Upgrade: websocket") + b"early",
    post(b"", "X-Long: " + "x" * 3000),
    b"garbage\r\n\r\n",
    b"POST / HT",
    b"",
    post(b"", "azureml-model-deployment: none"),
)

FAULTY_ANSWERS = (
    ok(),
    ok(),
    ok(b"x" * 20_000),
    ok_chunked(b"abc", b"de"),
    ok(b"", status="204 No Content", length=None),
    ok(b"bad", status="500 Internal Server Error"),
    ok(b"abc", length=10),
    ok_chunked(b"abc", end=False),
    ok(b"abc", "Connection: close"),
    ok(b"abc", length=None),
    b"HTTP/1.1 200 OK\r\nContent-",
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\nhello",
    b"garbage\r\n\r\n",
    ok() + ok(),
    b"",
)


async def play_client(world: World, rng: random.Random) -> None:
    """Send something, perhaps wait for something, leave somehow."""
    client = await world.client()
    request = rng.choice(FAULTY_REQUESTS)
    cut = rng.randrange(len(request) + 1)
    client.send(request[:cut])
    if rng.random() < 0.5:
        await turns(rng.randrange(6))
    if not client.ended:
        client.send(request[cut:])
    if rng.random() < 0.8:
        try:
            async with asyncio.timeout(rng.choice((0.001, 0.01, 0.4))):
                await client.head()
        except (TimeoutError, AssertionError):
            pass
    if rng.random() < 0.4 or client.transport.is_closing():
        client.reset() if not client.transport.is_closing() else None
    elif rng.random() < 0.1:
        client.finish()
        await turns()
        client.transport.abort()
    else:
        client.close()
    world.clients.remove(client)


async def play_replica(line: Line, rng: random.Random) -> None:
    """Read something, say something, leave somehow."""
    while await more(line):
        if rng.random() < 0.9:
            try:
                async with asyncio.timeout(0.05):
                    await line.message()
            except (TimeoutError, AssertionError):
                pass
        if line.transport.is_closing():
            return
        if rng.random() < 0.05:
            line.stop_reading()
            await asyncio.sleep(0.05)
            line.reset()
            return
        line.send(rng.choice(FAULTY_ANSWERS))
        if rng.random() < 0.3:
            line.reset() if rng.random() < 0.5 else line.close()
            return
    line.close()


async def play_all(world: World, replicas: list[ScriptedReplica], count: int, rng: random.Random) -> None:
    """So many faulty exchanges, many of them at once, while replicas refuse and come back."""
    left = count

    async def one_after_another() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            await play_client(world, rng)

    async def come_and_go() -> None:
        while left > 0:
            await asyncio.sleep(0.02)
            replica = rng.choice(replicas)
            replica.refuse()
            await asyncio.sleep(0.01)
            await replica.listen()

    async with asyncio.TaskGroup() as group:
        group.create_task(come_and_go())
        for _ in range(64):
            group.create_task(one_after_another())


@pytest.mark.parametrize("limit", [2, 0])
@story(
    client_head_timeout_seconds=0.1,
    client_body_timeout_seconds=0.1,
    max_payload_bytes=15_000,
    max_head_bytes=2500,
)
async def test_nothing_is_left_of_ten_thousand_faults(world: World, limit: int) -> None:
    count = 5000
    world.serve(
        "iris",
        scoring_timeout_ms=50,
        max_request_wait_time=5,
        max_queue_length=4,
        replica_max_concurrent_requests=limit,
    )
    rng = random.Random(limit)
    replicas = [await world.replica() for _ in range(4)]
    for replica in replicas:
        replica.plays(lambda line: play_replica(line, rng))

    async def settle() -> int:
        """Wait until all is over; the descriptors that then are open."""
        await world.until(lambda: not world.gateway._clients)
        await world.at_rest()
        for route in world.gateway.versions.values():
            for pool in route.pools():
                pool.close_idle(float("inf"))
        await world.until(lambda: not world._tasks)
        for replica in replicas:
            replica.lines.clear()
        for entries in (world.gateway.journal.notable, world.gateway.journal.plain, world.gateway.journal.refused):
            entries.clear()  # they are bounded, and not full yet
        gc.collect()
        return open_descriptors()

    await play_all(world, replicas, 1000, rng)
    descriptors = await settle()
    tasks = len(asyncio.all_tasks())
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    await play_all(world, replicas, count - 1000, rng)
    assert await settle() == descriptors
    assert len(asyncio.all_tasks()) == tasks
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown < 1_000_000
    counters = world.gateway.counters
    seen = {status for status, _ in counters.answers}
    seen |= {status for version in counters.versions.values() for status, _ in version.answers}
    expected = {101, 200, 204, 400, 401, 404, 405, 408, 413, 431, 499, 502, 504}
    assert seen >= (expected | {503} if limit else expected)
