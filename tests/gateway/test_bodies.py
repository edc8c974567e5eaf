"""Bodies: framing both ways, trailers, the size limit, Expect, HTTP/1.0, backpressure."""

import pytest

from tests.gateway.wire import Line, chunked, get, ok, ok_chunked, post, post_chunked, turns
from tests.gateway.world import World, story

MB = 1024 * 1024

# Requests


@pytest.mark.parametrize("size", [0, 1, 1000, 65_535, 65_536, 70_000, 300_000])
@pytest.mark.parametrize("whole", [True, False])
@story()
async def test_body_with_a_length(world: World, size: int, whole: bool) -> None:
    replica = await world.replica()
    client = await world.client()
    body = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    if whole or size < 1000:
        client.send(post(body))
    else:
        world.do(client.dribble(post(body[:10], length=size), body[10 : size // 2], body[max(10, size // 2) :]))
    line = await replica.accept()
    request = await line.message()
    assert request.body == body
    assert "transfer-encoding" not in request
    line.send(ok())
    assert (await client.message()).status == 200


@story()
async def test_body_in_chunks(world: World) -> None:
    replica = await world.replica()
    client = await world.client()
    client.send(post_chunked(b"abc", b"d" * 5000))
    line = await replica.accept()
    request = await line.message()
    assert request.body == b"abc" + b"d" * 5000
    assert "content-length" not in request
    line.send(ok())
    assert (await client.message()).status == 200


@story()
async def test_chunks_pass_as_they_come(world: World) -> None:
    replica = await world.replica()
    client = await world.client()
    client.send(post_chunked(end=False))
    line = await replica.accept()
    await line.head()
    for piece in (b"one", b"two", b"three"):
        client.send(chunked(piece, end=False))
        assert int(await line.take_line(), 16) == len(piece)
        assert await line.take(len(piece) + 2) == piece + b"\r\n"
    client.send(b"0\r\n\r\n")
    assert await line.take(5) == b"0\r\n\r\n"
    line.send(ok())
    assert (await client.message()).status == 200


@story()
async def test_body_in_chunks_byte_by_byte(world: World) -> None:
    replica = await world.replica()
    client = await world.client()
    request = post_chunked(b"abc", b"defgh", trailers="X-Sum: 12\r\n")
    world.do(client.dribble(*(request[i : i + 1] for i in range(len(request)))))
    line = await replica.accept()
    arrived = await line.message()
    assert arrived.body == b"abcdefgh"
    assert arrived.trailers == (("X-Sum", "12"),)
    line.send(ok())
    assert (await client.message()).status == 200


@story()
async def test_chunk_extensions_stop_here(world: World) -> None:
    replica = await world.replica()
    client = await world.client()
    client.send(post_chunked(end=False) + b"3;a=b\r\nabc\r\n0;last\r\n\r\n")
    line = await replica.accept()
    assert (await line.message()).body == b"abc"
    assert b"a=b" not in line.received
    line.send(ok())
    assert (await client.message()).status == 200


@story()
async def test_trailers_pass_except_those_that_must_not(world: World) -> None:
    replica = await world.replica()
    client = await world.client()
    trailers = "X-Checksum: abc\r\nAuthorization: Bearer x\r\nX-Request-Id: mine\r\nX_U: 1\r\nHost: b\r\nTE: x\r\n"
    client.send(post_chunked(b"abc", trailers=trailers))
    line = await replica.accept()
    assert (await line.message()).trailers == (("X-Checksum", "abc"),)
    line.send(ok())
    assert (await client.message()).status == 200


# The limit


@pytest.mark.parametrize("size", [999, 1000])
@pytest.mark.parametrize("in_chunks", [True, False])
@story(max_payload_bytes=1000)
async def test_body_at_the_limit_passes(world: World, size: int, in_chunks: bool) -> None:
    (await world.replica()).answers()
    body = b"x" * size
    assert (await world.ask(post_chunked(body[:600], body[600:]) if in_chunks else post(body))).status == 200


@story(max_payload_bytes=1000)
async def test_length_over_the_limit_is_refused_before_the_body_comes(world: World) -> None:
    replica = await world.replica()
    client = await world.client()
    client.send(post(b"", length=70_000))
    answer = await client.message()
    assert (answer.status, answer.error, answer["connection"]) == (413, "payload-too-large", "close")
    assert replica.lines == []


@story(max_payload_bytes=1000)
async def test_chunks_over_the_limit_are_cut_off(world: World) -> None:
    replica = await world.replica()
    client = await world.client()
    client.send(post_chunked(b"x" * 600, end=False))
    line = await replica.accept()
    await line.until(lambda: line.received.endswith(b"x" * 600 + b"\r\n"), "first chunk")
    client.send(chunked(b"x" * 401, end=False))
    answer = await client.message()
    assert (answer.status, answer.error, answer["connection"]) == (413, "payload-too-large", "close")
    await line.end()
    body = line.received.partition(b"\r\n\r\n")[2]
    assert b"0\r\n\r\n" not in body  # it must not take this for a whole request


@story(max_payload_bytes=1000)
async def test_chunks_over_the_limit_in_one_go(world: World) -> None:
    (await world.replica()).answers()
    answer = await world.ask(post_chunked(b"x" * 1001))
    assert (answer.status, answer.error) == (413, "payload-too-large")


@story(max_payload_bytes=1000)
async def test_chunks_over_the_limit_while_queued(world: World) -> None:
    replica = await world.replica()
    first, line = await world.in_flight(replica)
    client = await world.client()
    client.send(post_chunked(b"x" * 600, end=False))
    await world.until(lambda: world.queued() == 1)
    client.send(chunked(b"x" * 401, end=False))
    assert (await client.message()).status == 413
    assert world.queued() == 0
    line.send(ok())
    assert (await first.message()).status == 200


# Expect: 100-continue


@story()
async def test_client_is_told_to_continue_once_a_slot_is_held(world: World) -> None:
    replica = await world.replica()
    first, line = await world.in_flight(replica)
    client = await world.client()
    client.send(post(b"", "Expect: 100-continue", length=3))
    await world.until(lambda: world.queued() == 1)
    await turns(20)
    assert client.total == 0
    line.send(ok())
    assert (await first.message()).status == 200
    assert (await client.head()).start == "HTTP/1.1 100 Continue"
    client.send(b"abc")
    request = await line.message()
    assert request.body == b"abc"
    assert "expect" not in request
    line.send(ok())
    assert (await client.message()).status == 200


@story()
async def test_refused_client_is_not_told_to_continue(world: World) -> None:
    world.serve("iris", max_request_wait_time=20)
    replica = await world.replica()
    first, line = await world.in_flight(replica)
    client = await world.client()
    client.send(post(b"", "Expect: 100-continue", length=3))
    answer = await client.message()
    assert (answer.status, answer["connection"]) == (503, "close")
    line.send(ok())
    assert (await first.message()).status == 200


@story()
async def test_client_that_does_not_wait_to_be_told(world: World) -> None:
    (await world.replica()).answers()
    client = await world.client()
    client.send(post(b"abc", "Expect: 100-continue"))
    assert (await client.message()).status == 200


@story()
async def test_client_of_http_1_0_is_not_told_to_continue(world: World) -> None:
    replica = await world.replica()
    client = await world.client()
    client.send(post(b"", "Expect: 100-continue", length=3, version="1.0"))
    line = await replica.accept()
    await line.head()
    assert client.total == 0
    client.send(b"abc")
    await line.take(3)
    line.send(ok())
    assert (await client.message()).status == 200


@story()
async def test_replicas_own_continue_stops_here(world: World) -> None:
    replica = await world.replica()
    client, line = await world.in_flight(replica)
    line.send(b"HTTP/1.1 100 Continue\r\n\r\n" + ok(b"abc"))
    assert (await client.message()).body == b"abc"


@story()
async def test_early_hints_pass(world: World) -> None:
    replica = await world.replica()
    client, line = await world.in_flight(replica)
    line.send(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n")
    hints = await client.head()
    assert (hints.status, hints["link"]) == (103, "</a>")
    line.send(ok(b"abc"))
    answer = await client.message()
    assert answer.body == b"abc"
    assert "link" not in answer


@story()
async def test_early_hints_do_not_reach_a_client_of_http_1_0(world: World) -> None:
    replica = await world.replica()
    client, line = await world.in_flight(replica, post(version="1.0"))
    line.send(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + ok(b"abc"))
    assert (await client.message()).body == b"abc"


# Answers


@pytest.mark.parametrize("size", [0, 1, 65_535, 65_536, 300_000])
@story()
async def test_answer_with_a_length(world: World, size: int) -> None:
    replica = await world.replica()
    client, line = await world.in_flight(replica)
    body = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    head_and_some = ok(body[:10], length=size)
    world.do(line.dribble(head_and_some, body[10 : size // 2], body[max(10, size // 2) :]))
    answer = await client.message()
    assert answer.body == body
    assert "transfer-encoding" not in answer
    line.send()
    client.send(post())
    await line.message()  # over the same connection
    line.send(ok())
    assert (await client.message()).status == 200


@story()
async def test_answer_in_chunks_with_trailers(world: World) -> None:
    replica = await world.replica()
    client, line = await world.in_flight(replica)
    trailers = "X-Sum: abc\r\nSet-Cookie: a=b\r\nazureml-fe-error: x\r\n"
    line.send(ok_chunked(b"abc", b"de", trailers=trailers, headers=("Trailer: X-Sum",)))
    answer = await client.message()
    assert answer.body == b"abcde"
    assert "content-length" not in answer
    assert answer.trailers == (("X-Sum", "abc"),)
    assert answer["trailer"] == "X-Sum"


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
@pytest.mark.parametrize("headers", [(), ("Content-Length: 10",), ("Transfer-Encoding: chunked",)])
@story()
async def test_answer_that_has_no_body(world: World, status: str, headers: tuple[str, ...]) -> None:
    replica = await world.replica()
    client, line = await world.in_flight(replica)
    line.send(ok(b"", *headers, status=status, length=None))
    answer = await client.message()
    assert answer.status == int(status[:3])
    assert "transfer-encoding" not in answer
    assert answer.get("content-length") == ("10" if status[0] == "3" and "Content-Length: 10" in headers else None)
    client.send(post())
    await line.message()
    line.send(ok(b"next"))
    assert (await client.message()).body == b"next"


@story()
async def test_answer_that_ends_with_the_connection(world: World) -> None:
    replica = await world.replica()
    client, line = await world.in_flight(replica)
    line.send(ok(b"abc", length=None))
    await turns()
    line.send(b"def")
    line.close()
    answer = await client.message()
    assert answer.body == b"abcdef"
    assert answer["transfer-encoding"] == "chunked"
    assert "connection" not in answer
    client.send(get(path="/"))
    assert (await client.message()).body == b"Healthy"


# HTTP/1.0


@story()
async def test_client_of_http_1_0(world: World) -> None:
    (await world.replica()).answers(ok(b"abc"))
    client = await world.client()
    client.send(post(version="1.0"))
    answer = await client.message()
    assert (answer.start, answer["connection"], answer.body) == ("HTTP/1.1 200 OK", "close", b"abc")
    assert await client.rest() == b""


@story()
async def test_client_of_http_1_0_without_a_host(world: World) -> None:
    replica = await world.replica()
    client = await world.client()
    client.send(post(version="1.0", host=None))
    line = await replica.accept()
    assert (await line.message())["host"] == ""
    line.send(ok())
    assert (await client.message()).status == 200


@story()
async def test_client_of_http_1_0_that_keeps_its_connection(world: World) -> None:
    (await world.replica()).answers(ok(b"abc"))
    client = await world.client()
    for path in ("/api/v1/service/iris/score", "/", "/api/v1/service/iris/score"):
        client.send(post(b"", "Connection: keep-alive", version="1.0", path=path, method="GET"))
        answer = await client.message()
        assert (answer.status, answer["connection"]) == (200, "keep-alive")


@pytest.mark.parametrize("length", [None, -1])
@story()
async def test_client_of_http_1_0_gets_no_chunks(world: World, length: int | None) -> None:
    (await world.replica()).answers(ok_chunked(b"abc", b"def", trailers="X-Sum: 1\r\n"))
    client = await world.client()
    client.send(post(b"", "Connection: keep-alive", version="1.0", length=length))
    answer = await client.message(until_close=True)
    assert answer.body == b"abcdef"
    assert answer["connection"] == "close"
    assert "transfer-encoding" not in answer


@story()
async def test_replica_of_http_1_0(world: World) -> None:
    replica = await world.replica()
    client = await world.client()
    for length in (-1, None):
        client.send(post())
        line = await replica.accept()
        await line.message()
        line.send(ok(b"abc", length=length).replace(b"HTTP/1.1", b"HTTP/1.0"))
        line.close()
        answer = await client.message()
        assert (answer.start, answer.body) == ("HTTP/1.1 200 OK", b"abc")


# Backpressure


def buffered(line: Line) -> int:
    """Bytes that an end of the gateway's holds for the other side to take."""
    return line.transport.get_write_buffer_size()


@story()
async def test_slow_reader_slows_the_replica(world: World) -> None:
    replica = await world.replica()
    client = await world.client(receive_buffer=65_536)
    client.send(post())
    line = await replica.accept()
    await line.message()
    client.stop_reading()
    size = 32 * MB
    line.send(ok(b"", length=size))
    line.transport.set_write_buffer_limits(high=65_536)
    sent = 0
    while sent < size and buffered(line) < MB:  # until the gateway takes no more
        line.send(b"x" * 65_536)
        sent += 65_536
        await turns(3)
    assert sent < size
    (inside,) = world.gateway._clients
    assert inside.transport.get_write_buffer_size() <= MB
    client.keeps = False
    client.read_on()
    line.send(b"x" * (size - sent))
    await client.until(lambda: client.total >= size, "whole body")
    client.received.clear()
    client.keeps = True
    client.send(get(path="/"))
    assert (await client.message()).body == b"Healthy"


@pytest.mark.parametrize("in_chunks", [True, False])
@story()
async def test_slow_replica_slows_the_client(world: World, in_chunks: bool) -> None:
    world.serve("iris")
    replica = await world.replica()
    replica.refuse()
    await replica.listen(receive_buffer=65_536)
    client = await world.client()
    size = 32 * MB
    client.send(post_chunked(end=False) if in_chunks else post(b"", length=size))
    line = await replica.accept()
    await line.head()
    line.stop_reading()
    piece = b"10000\r\n%b\r\n" % (b"x" * 65_536) if in_chunks else b"x" * 65_536
    sent = 0
    while sent < size and buffered(client) < MB:
        client.send(piece)
        sent += 65_536
        await turns(3)
    assert sent < size
    (inside,) = world.gateway._clients
    assert inside._current is not None
    assert inside._current.upstream is not None
    assert inside._current.upstream.transport.get_write_buffer_size() <= MB
    line.keeps = False
    line.read_on()
    while sent < size:
        client.send(piece)
        sent += 65_536
    if in_chunks:
        client.send(b"0\r\n\r\n")
    before = line.total
    await line.until(lambda: line.total >= size, "whole body")
    assert before < size
    line.send(ok())
    assert (await client.message()).status == 200


@story()
async def test_large_first_piece_does_not_escape_backpressure(world: World) -> None:
    """A body that is at hand when the slot comes is more than the replica's connection takes at once."""
    replica = await world.replica()
    replica.refuse()
    await replica.listen(receive_buffer=65_536)
    client = await world.client()
    size = 32 * MB
    client.send(post(b"x" * MB, length=size))
    line = await replica.accept()
    line.stop_reading()
    sent = MB
    while sent < size and buffered(client) < MB:
        client.send(b"x" * 65_536)
        sent += 65_536
        await turns(3)
    assert sent < size
    (inside,) = world.gateway._clients
    assert inside._current is not None
    assert inside._current.upstream is not None
    assert inside._current.upstream.transport.get_write_buffer_size() <= MB
    client.reset()
    await world.at_rest()


@story()
async def test_queued_upload_is_not_read_into_memory(world: World) -> None:
    world.serve("iris", max_request_wait_time=5000)
    replica = await world.replica()
    first, line = await world.in_flight(replica)
    client = await world.client()
    size = 32 * MB
    client.send(post(b"", length=size))
    sent = 0
    while sent < size and buffered(client) < MB:
        client.send(b"x" * 65_536)
        sent += 65_536
        await turns(3)
    assert sent < size
    (waiter,) = world.route().holder.waiters.values()
    assert waiter.body_bytes <= MB
    line.send(ok())
    assert (await first.message()).status == 200
    await line.head()
    line.keeps = False
    line.total = 0
    line.received.clear()
    client.send(b"x" * (size - sent))
    await line.until(lambda: line.total >= size - MB, "most of the body")
    client.reset()
    await world.at_rest()


# Early answers


@story()
async def test_answer_before_the_body_has_ended(world: World) -> None:
    replica = await world.replica()
    client = await world.client()
    client.send(post(b"x" * 1000, length=10 * MB))
    line = await replica.accept()
    await line.head()
    line.send(ok(b"too big for me", status="413 Payload Too Large"))
    answer = await client.message()
    assert (answer.status, answer.body, answer["connection"]) == (413, b"too big for me", "close")
    assert answer.error is None
    client.send(b"x" * MB)  # it has not seen the answer yet; that must not destroy it
    client.finish()
    assert await client.rest() == b""
    assert not client.was_reset


@story()
async def test_answer_before_the_body_by_a_replica_that_closes(world: World) -> None:
    replica = await world.replica()
    client = await world.client()
    client.keeps = True
    client.send(post(b"x" * MB, length=50 * MB))
    line = await replica.accept()
    await line.head()
    line.stop_reading()
    line.send(ok(b"no", "Connection: close", status="403 Forbidden"))
    line.close()  # with unread data: a reset follows the answer
    client.send(b"x" * 4 * MB)
    answer = await client.message()
    assert (answer.status, answer.body) == (403, b"no")


@story()
async def test_body_goes_on_while_the_answer_has_begun(world: World) -> None:
    replica = await world.replica()
    client = await world.client()
    client.send(post_chunked(b"one", end=False))
    line = await replica.accept()
    await line.until(lambda: b"one" in line.received, "first chunk")
    line.send(ok_chunked(b"1", end=False))
    await client.until(lambda: b"1\r\n1\r\n" in client.received, "first answer")
    client.send(chunked(b"two"))
    await line.until(lambda: line.received.endswith(b"3\r\ntwo\r\n0\r\n\r\n"), "second chunk")
    line.send(chunked(b"2"))
    assert (await client.message()).body == b"12"
