"""What a client may take its time, its size and its number for."""

import asyncio
import time

import pytest

from tests.gateway.wire import Line, chunked, get, ok, ok_chunked, post, post_chunked, turns
from tests.gateway.world import World, story

# Size of the head


@pytest.mark.parametrize(
    "request_",
    [
        get("X-Long: " + "x" * 3000),
        get(*(f"X-{number}: {'x' * 100}" for number in range(30))),
        get(path="/" + "p" * 3000),
        post(key="x" * 3000),
        get("Connection: " + "x" * 3000),
        get("X_Under: " + "x" * 3000),
    ],
)
@pytest.mark.parametrize("whole", [True, False])
@story(max_head_bytes=2000)
async def test_head_of_too_many_bytes(world: World, request_: bytes, whole: bool) -> None:
    client = await world.client()
    if whole:
        client.send(request_)
    else:
        await client.dribble(*(request_[start : start + 400] for start in range(0, 2800, 400)))
    answer = await client.message()
    assert (answer.status, answer.error, answer["connection"]) == (431, "headers-too-large", "close")
    client.finish()
    assert await client.rest() == b""


@story(max_head_bytes=2000)
async def test_head_that_is_dropped_on_the_way_is_limited_as_well(world: World) -> None:
    client = await world.client()
    client.send(get(*("Keep-Alive: " + "x" * 1000 for _ in range(40))))
    assert (await client.message()).status == 431


@pytest.mark.parametrize("name", ["X-Many", "X_Many", "Forwarded"])
@story(max_headers=10)
async def test_head_of_too_many_headers(world: World, name: str) -> None:
    (await world.replica()).answers()
    few = get(*(f"{name}: 1" for _ in range(8)))  # and Host and Authorization
    many = get(*(f"{name}: 1" for _ in range(11)))
    assert (await world.ask(few)).status == 200
    answer = await world.ask(many)
    assert (answer.status, answer.error) == (431, "headers-too-large")


@story(max_head_bytes=2000)
async def test_size_is_counted_for_each_head(world: World) -> None:
    (await world.replica()).answers()
    client = await world.client()
    request = post(b"x" * 3000, "X-Long: " + "x" * 1500)
    client.send(request * 10)
    for _ in range(10):
        assert (await client.message()).status == 200
    for start in range(0, len(request), 500):
        await client.dribble(request[start : start + 500])
    assert (await client.message()).status == 200


@story(max_head_bytes=2000)
async def test_endless_head_behind_a_request_under_way(world: World) -> None:
    replica = await world.replica()
    client, line = await world.in_flight(replica)
    client.send(b"GET / HTTP/1.1\r\nX-Long: ")
    for _ in range(100):
        await client.dribble(b"x" * 1000)
    (inside,) = world.gateway._clients
    assert inside._broken  # nothing of it is taken in any more
    line.send(ok())
    assert (await client.message()).status == 200
    assert (await client.message()).status == 431


@pytest.mark.parametrize("end", ["X-Long: ", "5;extension="])
@story(max_head_bytes=2000)
async def test_endless_trailer_or_extension(world: World, end: str) -> None:
    replica = await world.replica()
    client = await world.client()
    client.send(post_chunked(b"abc", end=False) + (b"0\r\n" if end[0] == "X" else b"") + end.encode())
    line = await replica.accept()
    for _ in range(10):
        await client.dribble(b"x" * 1000)
    answer = await client.message()
    assert (answer.status, answer.error) == (431, "headers-too-large")
    await line.end()


@story(max_headers=10)
async def test_too_many_trailers(world: World) -> None:
    (await world.replica()).answers()
    client = await world.client()
    client.send(post_chunked(b"abc", trailers="".join(f"X-{number}: 1\r\n" for number in range(11))))
    assert (await client.message()).status == 431


@pytest.mark.parametrize("begin", [b"", ok_chunked(b"abc", end=False) + b"0\r\n"])
@story()
async def test_endless_head_or_trailer_of_a_replica(world: World, begin: bytes) -> None:
    replica = await world.replica()
    client, line = await world.in_flight(replica)
    line.send(begin or b"HTTP/1.1 200 OK\r\n")
    sent = 0
    while not line.ended and sent < 3_000_000:
        line.send(b"X-Long: " + b"x" * 10_000 + b"\r\n")
        sent += 10_000
        await turns(2)
    await line.end()
    assert sent < 1_000_000
    if not begin:
        assert (await client.message()).status == 502
    await client.end() if begin else None


@story()
async def test_endless_interim_answers_of_a_replica(world: World) -> None:
    replica = await world.replica()
    client, line = await world.in_flight(replica)
    for _ in range(100):
        if not line.ended:
            line.send(b"HTTP/1.1 102 Processing\r\n\r\n" * 1000)
            await turns(3)
    await line.end()
    while (answer := await client.message()).status == 102:
        pass
    assert answer.status == 502


# Time of the client


@pytest.mark.parametrize("begin", [b"G", b"GET / HTTP/1.1\r\nHost: fe\r\nX-A", get()[:-2]])
@story(client_head_timeout_seconds=0.05)
async def test_slow_head(world: World, begin: bytes) -> None:
    client = await world.client()
    client.send(begin)
    answer = await client.message()
    assert (answer.status, answer.error, answer["connection"]) == (408, "request-timeout", "close")
    assert answer.body == b"The request's head did not arrive in time."
    client.finish()
    assert await client.rest() == b""


@story(client_head_timeout_seconds=0.1)
async def test_head_that_comes_byte_by_byte_is_slow_on_the_whole(world: World) -> None:
    client = await world.client()
    client.send(b"GET /")
    while not client.received:
        client.send(b"x")
        await asyncio.sleep(0.01)
    assert (await client.message()).status == 408


@story(client_head_timeout_seconds=0.05)
async def test_slow_head_behind_a_request_under_way(world: World) -> None:
    replica = await world.replica()
    client, line = await world.in_flight(replica)
    client.send(b"GET / HTTP/1.1\r\n")
    (inside,) = world.gateway._clients
    await world.until(lambda: inside._broken)
    line.send(ok())
    assert (await client.message()).status == 200
    assert (await client.message()).status == 408


@story(client_head_timeout_seconds=0.05)
async def test_head_that_the_router_itself_holds_up_is_not_slow(world: World) -> None:
    world.serve("iris", max_request_wait_time=5000)
    replica = await world.replica()
    client = await world.client()
    client.send(post(b"1") + post(b"2") + get(path="/")[:20])  # the third is not read on until the first is answered
    line = await replica.accept()
    await line.message()
    await asyncio.sleep(0.1)
    line.send(ok())
    await line.message()
    client.send(get(path="/")[20:])
    line.send(ok())
    for body in (b"[1]", b"[1]", b"Healthy"):
        assert (await client.message()).body == body


@story(client_head_timeout_seconds=0.03)
async def test_client_that_says_nothing_is_sent_away(world: World) -> None:
    client = await world.client()
    assert await client.rest() == b""


@story(client_head_timeout_seconds=0.03)
async def test_client_that_sends_empty_lines_only_is_sent_away(world: World) -> None:
    client = await world.client()
    client.send(b"\r\n")
    assert await client.rest() == b""


@story(client_idle_timeout_seconds=0.05, client_head_timeout_seconds=60.0)
async def test_idle_connection_is_closed(world: World) -> None:
    client = await world.client()
    client.send(get(path="/"))
    assert (await client.message()).status == 200
    assert await client.rest() == b""
    assert not client.was_reset


@story(client_idle_timeout_seconds=60.0, client_head_timeout_seconds=0.03)
async def test_idle_connection_is_not_a_slow_head(world: World) -> None:
    client = await world.client()
    for end in (b"", b"\r\n"):  # as some old clients send after a body
        client.send(get(path="/") + end)
        assert (await client.message()).status == 200
        await client.dribble(end or b"\r\n")
        await asyncio.sleep(0.08)
    assert not client.ended


@pytest.mark.parametrize("in_chunks", [True, False])
@story(client_body_timeout_seconds=0.05)
async def test_body_that_falls_silent(world: World, in_chunks: bool) -> None:
    replica = await world.replica()
    client = await world.client()
    client.send(post_chunked(b"abc", end=False) if in_chunks else post(b"abc", length=10))
    line = await replica.accept()
    answer = await client.message()
    assert (answer.status, answer.error, answer["connection"]) == (408, "request-timeout", "close")
    assert answer.body == b"The request's body did not arrive in time."
    await line.end()


@story(client_body_timeout_seconds=0.05)
async def test_body_that_falls_silent_while_it_waits_for_a_slot(world: World) -> None:
    world.serve("iris", max_request_wait_time=60_000)
    replica = await world.replica()
    first, line = await world.in_flight(replica)
    client = await world.client()
    client.send(post(b"abc", length=10))
    await world.until(lambda: world.queued() == 1)
    assert (await client.message()).status == 408
    assert world.queued() == 0
    line.send(ok())
    assert (await first.message()).status == 200


@story(client_body_timeout_seconds=0.1, body_min_rate_bytes=1000)
async def test_body_that_comes_too_slowly_on_the_whole(world: World) -> None:
    replica = await world.replica()
    client = await world.client()
    client.send(post(b"", length=1_000_000))
    await replica.accept()
    while not client.received and not client.ended:
        client.send(b"x")
        await asyncio.sleep(0.01)
    assert (await client.message()).status == 408


@story(client_body_timeout_seconds=0.05)
async def test_body_that_the_replica_holds_up_is_not_slow(world: World) -> None:
    replica = await world.replica()
    replica.refuse()
    await replica.listen(receive_buffer=65_536)
    client = await world.client()
    size = 32_000_000
    client.send(post(b"", length=size))
    line = await replica.accept()
    await line.head()
    line.stop_reading()
    client.send(b"x" * size)
    (inside,) = world.gateway._clients
    await world.until(lambda: not inside._reading)
    await asyncio.sleep(0.15)
    line.keeps = False
    before = line.total
    line.read_on()
    await line.until(lambda: line.total - before + 1_000_000 >= size, "most of the body")
    await line.until(lambda: line.total > size, "the body")
    line.send(ok())
    assert (await client.message()).status == 200


@story(client_body_timeout_seconds=0.1)
async def test_client_that_never_reads_its_answer(world: World) -> None:
    replica = await world.replica()
    client = await world.client(receive_buffer=65_536)
    client.send(post())
    line = await replica.accept()
    await line.message()
    client.stop_reading()
    line.send(ok(b"x" * 30_000_000))
    await line.end()
    await world.at_rest()
    await world.until(lambda: not world.gateway._clients)


@story()
async def test_client_that_never_reads_its_last_answer(world: World) -> None:
    """The answer is small enough to lie in buffers; the connection must not lie there for ever."""
    replica = await world.replica()
    client = await world.client(receive_buffer=4096)
    client.stop_reading()
    client.send(post(b"", "Connection: close"))
    line = await replica.accept()
    await line.message()
    (inside,) = world.gateway._clients
    size = 1_000_000
    while True:  # until the kernel takes no more of it
        line.send(ok(b"", length=100_000_000) if size == 1_000_000 else b"", b"x" * 65_536)
        await turns(3)
        size += 65_536
        if inside.transport.get_write_buffer_size():
            break
    line.close()
    await world.at_rest()
    inside.check(time.monotonic())
    assert inside in world.gateway._clients
    inside.check(time.monotonic() + 31)
    await world.until(lambda: not world.gateway._clients)


@story()
async def test_client_that_goes_on_sending_is_listened_to_for_a_while_only(world: World) -> None:
    world.serve("iris")
    client = await world.client()
    client.send(post(b"x" * 1000, key="wrong", length=1_000_000))
    assert (await client.message()).status == 401
    (inside,) = world.gateway._clients
    client.send(b"x" * 1000)
    await turns()
    inside.check(time.monotonic() + 4)
    assert not client.was_reset
    inside.check(time.monotonic() + 6)
    await world.until(lambda: not world.gateway._clients)


@story()
async def test_client_that_goes_on_sending_for_ever(world: World) -> None:
    world.serve("iris")
    client = await world.client()
    client.send(post(b"", key="wrong", length=1_000_000))
    await client.message()
    (inside,) = world.gateway._clients
    inside._last_body = time.monotonic() + 31
    inside.check(time.monotonic() + 31)
    await world.until(lambda: not world.gateway._clients)


@story()
async def test_client_that_leaves_a_tunnel_whose_replica_does_not_read(world: World) -> None:
    replica = await world.replica()
    replica.refuse()
    await replica.listen(receive_buffer=65_536)
    client = await world.client()
    client.send(get("Connection: upgrade", "Upgrade: websocket"))
    line = await replica.accept()
    await line.head()
    line.send(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n")
    await client.head()
    line.stop_reading()
    (inside,) = world.gateway._clients
    while inside._reading:
        client.send(b"x" * 65_536)
        await turns(3)
    client.reset()
    inside.check(time.monotonic() + 1)
    await turns()
    assert world.busy() == 1
    inside.check(time.monotonic() + 31)
    await world.at_rest()


# Number of connections


@story(max_client_connections=3)
async def test_connection_too_many(world: World) -> None:
    clients = [await world.client() for _ in range(3)]
    await world.until(lambda: world.gateway.counters.connections_open == 3)
    refused: Line = await world.client()
    await refused.end()
    assert refused.total == 0
    assert world.gateway.counters.connections_refused == 1
    clients[0].close()
    await world.until(lambda: world.gateway.counters.connections_open == 2)
    assert (await world.ask(get(path="/"))).status == 200


# Time of the replica


@story()
async def test_scoring_timeout_begins_when_the_body_has_been_sent(world: World) -> None:
    world.serve("iris", scoring_timeout_ms=50)
    replica = await world.replica()
    client = await world.client()
    client.send(post_chunked(b"abc", end=False))
    line = await replica.accept()
    await asyncio.sleep(0.1)
    assert not client.received
    client.send(chunked())
    assert (await client.message()).status == 504
    await line.end()


@story()
async def test_replica_that_does_not_read_the_body_is_too_slow(world: World) -> None:
    world.serve("iris", scoring_timeout_ms=50)
    replica = await world.replica()
    replica.refuse()
    await replica.listen(receive_buffer=65_536)
    client = await world.client()
    client.send(post(b"", length=64_000_000))
    line = await replica.accept()
    line.stop_reading()
    client.send(b"x" * 32_000_000)
    answer = await client.message()
    assert (answer.status, answer.error) == (504, "scoring-timeout")


@story()
async def test_replica_that_hangs_after_an_early_answer_began(world: World) -> None:
    world.serve("iris", scoring_timeout_ms=50)
    replica = await world.replica()
    client = await world.client()
    client.send(post_chunked(b"abc", end=False))
    line = await replica.accept()
    await line.head()
    line.send(ok_chunked(b"1", end=False))
    await client.head()
    client.send(chunked())
    await line.until(lambda: line.received.endswith(b"0\r\n\r\n"), "end of the body")
    await client.end()
    await line.end()


@story()
async def test_slow_reader_is_not_the_replicas_fault(world: World) -> None:
    world.serve("iris", scoring_timeout_ms=50)
    replica = await world.replica()
    client = await world.client(receive_buffer=65_536)
    client.send(post())
    line = await replica.accept()
    await line.message()
    client.stop_reading()
    size = 30_000_000
    line.send(ok(b"x" * size))
    (inside,) = world.gateway._clients
    await world.until(lambda: inside.stalled_since)
    await asyncio.sleep(0.12)
    client.read_on()
    assert len((await client.message()).body) == size


@story()
async def test_timeouts_of_many_requests_expire_together_and_each_once(world: World) -> None:
    world.serve("iris", scoring_timeout_ms=40, replica_max_concurrent_requests=100)
    await world.replica()
    clients = [await world.client() for _ in range(50)]
    for client in clients:
        client.send(post() * 2)
    for client in clients:
        for _ in range(2):
            assert (await client.message()).status == 504
