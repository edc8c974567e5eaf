"""What flows while it is made: server-sent events, streamed answers, websockets."""

import asyncio

import pytest
import websockets

from tests.gateway.wire import KEY, Line, chunked, get, ok, turns
from tests.gateway.world import ScriptedReplica, World, story

UPGRADE = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: abc")
SWITCHED = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nX-Of: model\r\n\r\n"


@pytest.mark.parametrize("framing", ["chunked", "length", "until close"])
@story()
async def test_each_event_arrives_before_the_next_is_made(world: World, framing: str) -> None:
    replica = await world.replica()
    client, line = await world.in_flight(replica)
    events = [b"data: %d\n\n" % number for number in range(20)]
    headers = ["Content-Type: text/event-stream"]
    if framing == "chunked":
        headers.append("Transfer-Encoding: chunked")
    elif framing == "length":
        headers.append(f"Content-Length: {sum(map(len, events))}")
    line.send(ok(b"", *headers, length=None))
    head = await client.head()
    assert head["content-type"] == "text/event-stream"
    for event in events:
        assert world.busy() == 1
        line.send(chunked(event, end=False) if framing == "chunked" else event)
        if framing == "length":
            assert await client.take(len(event)) == event
        else:
            assert int(await client.take_line(), 16) == len(event)
            assert await client.take(len(event) + 2) == event + b"\r\n"
    if framing == "chunked":
        line.send(b"0\r\n\r\n")
    elif framing == "until close":
        line.close()
    if framing != "length":
        assert await client.take(5) == b"0\r\n\r\n"
    await world.at_rest()


@story()
async def test_head_of_an_answer_arrives_before_its_body(world: World) -> None:
    replica = await world.replica()
    client, line = await world.in_flight(replica)
    line.send(ok(b"", length=3))
    assert (await client.head()).status == 200
    line.send(b"abc")
    assert await client.take(3) == b"abc"


@story()
async def test_stream_goes_on_past_the_scoring_timeout_while_it_flows(world: World) -> None:
    world.serve("iris", scoring_timeout_ms=60)
    replica = await world.replica()
    client, line = await world.in_flight(replica)
    line.send(ok(b"", "Transfer-Encoding: chunked", length=None))
    for _ in range(8):
        await asyncio.sleep(0.02)
        line.send(chunked(b"x", end=False))
    line.send(b"0\r\n\r\n")
    assert (await client.message()).body == b"x" * 8


@story()
async def test_stream_that_falls_silent_is_cut_off(world: World) -> None:
    world.serve("iris", scoring_timeout_ms=30)
    replica = await world.replica()
    client, line = await world.in_flight(replica)
    line.send(ok(b"", "Transfer-Encoding: chunked", length=None) + chunked(b"x", end=False))
    rest = await client.rest()
    assert rest.endswith(b"1\r\nx\r\n")
    await line.end()


@story()
async def test_client_that_leaves_a_stream_stops_the_replica(world: World) -> None:
    replica = await world.replica()
    client, line = await world.in_flight(replica)
    line.send(ok(b"", "Transfer-Encoding: chunked", length=None) + chunked(b"x", end=False))
    await client.until(lambda: client.received.endswith(b"x\r\n"), "first event")
    client.close()
    await line.end()
    await world.at_rest()
    assert world.route().counters.client_aborts == 1


# Websockets


async def tunnel(world: World, replica: ScriptedReplica) -> tuple[Line, Line]:
    client = await world.client()
    client.send(get(*UPGRADE))
    line = await replica.accept()
    request = await line.message()
    assert (request["connection"], request["upgrade"]) == ("Upgrade", "websocket")
    assert request["sec-websocket-key"] == "abc"
    line.send(SWITCHED)
    answer = await client.message()
    assert (answer.status, answer["connection"], answer["upgrade"]) == (101, "Upgrade", "websocket")
    assert answer["x-of"] == "model"
    assert "content-length" not in answer
    return client, line


@story()
async def test_tunnel_carries_bytes_both_ways(world: World) -> None:
    replica = await world.replica()
    client, line = await tunnel(world, replica)
    for number in range(20):
        client.send(b"\x00ping%d" % number)
        assert await line.take(len(b"\x00ping%d" % number)) == b"\x00ping%d" % number
        line.send(b"HTTP/1.1 %d" % number)
        assert await client.take(len(b"HTTP/1.1 %d" % number)) == b"HTTP/1.1 %d" % number
    client.send(b"x" * 3_000_000)
    line.send(b"y" * 3_000_000)
    assert await line.take(3_000_000) == b"x" * 3_000_000
    assert await client.take(3_000_000) == b"y" * 3_000_000


@story()
async def test_tunnel_holds_its_slot(world: World) -> None:
    world.serve("iris", max_request_wait_time=20)
    replica = await world.replica()
    client, line = await tunnel(world, replica)
    assert world.busy() == 1
    assert (await world.ask(get())).status == 503
    client.close()
    await line.end()
    await world.at_rest()
    replica.answers()
    assert (await world.ask(get())).status == 200


@story()
async def test_tunnel_outlives_the_scoring_timeout(world: World) -> None:
    world.serve("iris", scoring_timeout_ms=20)
    replica = await world.replica()
    client, line = await tunnel(world, replica)
    await asyncio.sleep(0.06)
    client.send(b"still there")
    assert await line.take(11) == b"still there"


@story()
async def test_early_bytes_of_both_sides_pass(world: World) -> None:
    replica = await world.replica()
    client = await world.client()
    client.send(get(*UPGRADE) + b"early")
    line = await replica.accept()
    await line.head()
    assert not line.received
    line.send(SWITCHED + b"welcome")
    assert await line.take(5) == b"early"
    assert (await client.head()).status == 101
    assert await client.take(7) == b"welcome"


@pytest.mark.parametrize("size", [10, 1_000_000])
@story()
async def test_last_words_of_a_client_pass(world: World, size: int) -> None:
    replica = await world.replica()
    client, line = await tunnel(world, replica)
    client.send(b"x" * size)
    client.close()
    assert len(await line.rest()) == size


@pytest.mark.parametrize("size", [10, 1_000_000])
@story()
async def test_last_words_of_a_replica_pass(world: World, size: int) -> None:
    replica = await world.replica()
    client, line = await tunnel(world, replica)
    line.send(b"x" * size)
    line.close()
    assert len(await client.rest()) == size


@pytest.mark.parametrize("side", ["client", "replica"])
@story()
async def test_reset_of_one_side_ends_the_other(world: World, side: str) -> None:
    replica = await world.replica()
    client, line = await tunnel(world, replica)
    one, other = (client, line) if side == "client" else (line, client)
    one.reset()
    await other.end()
    await world.at_rest()


@pytest.mark.parametrize("side", ["client", "replica"])
@story()
async def test_slow_side_of_a_tunnel_slows_the_other(world: World, side: str) -> None:
    replica = await world.replica()
    replica.refuse()
    await replica.listen(receive_buffer=65_536)
    client, line = await tunnel(world, replica)
    slow, fast = (client, line) if side == "client" else (line, client)
    slow.stop_reading()
    sent = 0
    while sent < 64_000_000 and fast.transport.get_write_buffer_size() < 1_000_000:
        fast.send(b"x" * 65_536)
        sent += 65_536
        await turns(3)
    assert sent < 64_000_000
    slow.keeps = False
    slow.total = 0
    slow.read_on()
    await slow.until(lambda: slow.total == sent, "all of it")
    fast.send(b"!")
    await slow.until(lambda: slow.total == sent + 1, "the last byte")


@story()
async def test_upgrade_that_the_replica_declines(world: World) -> None:
    replica = await world.replica()
    client = await world.client()
    client.send(get(*UPGRADE) + get())
    line = await replica.accept()
    await line.head()
    line.send(ok(b"no", status="426 Upgrade Required"))
    assert (await client.message()).status == 426
    assert "upgrade" not in await line.message()
    line.send(ok(b"yes"))
    assert (await client.message()).body == b"yes"


@pytest.mark.parametrize(
    "answer",
    [
        SWITCHED,
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
    ],
)
@story()
async def test_switch_that_nobody_asked_for(world: World, answer: bytes) -> None:
    replica = await world.replica()
    client, line = await world.in_flight(replica)
    line.send(answer)
    answer_ = await client.message()
    assert (answer_.status, answer_.error) == (502, "replica-closed")
    await line.end()


@pytest.mark.parametrize(
    "answer", [SWITCHED.replace(b"Upgrade: websocket\r\n", b""), SWITCHED.replace(b"websocket", b"h2c")]
)
@story()
async def test_switch_to_something_else_than_was_asked_for(world: World, answer: bytes) -> None:
    replica = await world.replica()
    client = await world.client()
    client.send(get(*UPGRADE))
    line = await replica.accept()
    await line.head()
    line.send(answer)
    assert (await client.message()).status == 502
    await line.end()


@story()
async def test_real_websocket(world: World) -> None:
    """Both ends played by the websockets package: handshake, messages, close handshake."""

    async def echo(connection: websockets.ServerConnection) -> None:
        async for message in connection:
            await connection.send(message)

    world.serve("iris")
    async with websockets.serve(echo, "127.0.0.1", 0) as server:
        replica = await world.replica()
        replica.refuse()
        replica.id, replica.port = "websocket", server.sockets[0].getsockname()[1]
        world.announce(("iris", "default"))
        address = f"ws://127.0.0.1:{world.port}/api/v1/service/iris/stream"
        async with websockets.connect(address, additional_headers={"Authorization": f"Bearer {KEY}"}) as socket:
            for message in ("hello", b"\x00\xff", "x" * 200_000):
                await socket.send(message)
                assert await socket.recv() == message
            assert world.busy() == 1
        await world.at_rest()
    assert socket.close_code == 1000
