"""Floods of HTTP/2: each is bounded in work, memory and connections of replicas, and clients beside it are served."""

import pytest

from router.gateway.http2_connection import MAX_RESETS, Http2Connection
from router.http.http2.frames import MAX_CREDIT
from tests.gateway.harness import GatewayHarness
from tests.gateway.http2_client import (
    ACK,
    COMPRESSION_ERROR,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    ENHANCE_YOUR_CALM,
    FLOW_CONTROL_ERROR,
    FRAME_SIZE_ERROR,
    GOAWAY,
    HEADERS,
    INITIAL_WINDOW_SIZE,
    PADDED,
    PING,
    PRIORITY,
    PROTOCOL_ERROR,
    Http2Client,
    frame,
    request_fields,
    reset,
    settings,
    window_update,
)
from tests.gateway.http_connection import KEY, ok, post, run_loop

pytestmark = pytest.mark.gateway(http2="on")


async def _client(harness: GatewayHarness, *values: tuple[int, int]) -> Http2Client:
    return Http2Client(await harness.client()).start(*values)


async def _assert_disconnected(harness: GatewayHarness, client: Http2Client, code: int = ENHANCE_YOUR_CALM) -> None:
    """The client gets a GOAWAY, nothing remains of its requests, and others are served."""
    assert (await client.goaway())[1] == code
    await harness.wait_idle()
    if code == ENHANCE_YOUR_CALM:
        assert harness.gateway.counters.http2_floods == 1
    assert (await harness.response_to(post())).status == 200


@pytest.mark.parametrize("when", ["at once", "while it is served"])
async def test_rapid_reset(harness: GatewayHarness, when: str) -> None:
    """CVE-2023-44487: requests that are reset at once are not begun; the client is disconnected in both cases."""
    harness.set_service(replica_max_concurrent_requests=0, cancellation="on_close")
    replica = (await harness.add_replica()).auto_respond()
    client = await _client(harness)
    for number in range(MAX_RESETS + 1):
        stream = client.next_stream()
        client.send(client.head(request_fields(method="GET"), end=True, stream=stream))
        if when != "at once":
            replica.run_script(lambda connection: connection.wait_closed())
            await harness.wait_until(lambda count=number + 1: sum(harness.route().counters.route_time.counts) >= count)  # type: ignore[misc]
        client.send(reset(stream))
    replica.auto_respond()
    await _assert_disconnected(harness, client)


async def test_rapid_reset_in_one_write(harness: GatewayHarness) -> None:
    replica = (await harness.add_replica()).auto_respond()
    client = await _client(harness)
    sent = []
    for _ in range(1000):
        stream = client.next_stream()
        sent += [client.head(request_fields(method="GET"), end=True, stream=stream), reset(stream)]
    client.send(*sent)
    await _assert_disconnected(harness, client)
    assert len(replica.connections) < 20  # of a request and its reset in one slice no replica hears


async def test_resets_after_responses_are_no_flood(harness: GatewayHarness) -> None:
    """A client that has let many streams end may cancel many."""
    harness.set_service(replica_max_concurrent_requests=0)
    (await harness.add_replica()).auto_respond()
    client = await _client(harness)
    for _ in range(2 * MAX_RESETS):
        assert (await client.response(client.get())).status == 200
        stream = client.next_stream()
        if _ % 2:
            client.send(client.head(request_fields(method="GET"), end=True, stream=stream), reset(stream))
    await client.ping()
    assert not client.goaways


@pytest.mark.parametrize("by", ["malformed head", "wrong length"])
async def test_made_you_reset(harness: GatewayHarness, by: str) -> None:
    """CVE-2025-8671: the router must not be made to reset its own streams without end."""
    harness.set_service(replica_max_concurrent_requests=0, cancellation="on_close")
    (await harness.add_replica()).auto_respond()
    client = await _client(harness)
    for _ in range(MAX_RESETS + 1):
        stream = client.next_stream()
        if by == "malformed head":
            client.send(client.head(request_fields(("connection", "close")), end=True, stream=stream))
        else:
            client.send(client.head(request_fields(("content-length", "2")), end=False, stream=stream))
            client.send(frame(DATA, 0, stream, b"abc"))
    await _assert_disconnected(harness, client)


@pytest.mark.parametrize(
    "provocation",
    [
        pytest.param(lambda stream: window_update(stream, 0), id="zero window update"),
        pytest.param(lambda stream: window_update(stream, 2**31 - 1), id="window overflow"),
        pytest.param(lambda stream: frame(DATA, END_STREAM, stream, b"x"), id="data after the end"),
        pytest.param(lambda stream: frame(PRIORITY, 0, stream, b"x"), id="priority of a wrong length"),
    ],
)
async def test_provoked_reset_ends_the_connection(harness: GatewayHarness, provocation: object) -> None:
    """The codec resets no stream for these, but closes the connection."""
    harness.set_service(cancellation="on_close")
    replica = await harness.add_replica()
    client = await _client(harness)
    stream = client.get()
    connection = await replica.accept()
    client.send(provocation(stream))  # type: ignore[operator]
    _, code, _ = await client.goaway()
    assert code != 0
    await connection.wait_closed()
    await harness.wait_idle()


@pytest.mark.parametrize(
    ("violation", "code"),
    [
        pytest.param(window_update(0, 0), PROTOCOL_ERROR, id="zero window update"),
        pytest.param(frame(DATA, 0, 1, b"x" * 16384) * 5, FLOW_CONTROL_ERROR, id="more than the window"),
        pytest.param(window_update(1, 2**31 - 1), FLOW_CONTROL_ERROR, id="window overflow"),
        pytest.param(settings((INITIAL_WINDOW_SIZE, 2**31)), FLOW_CONTROL_ERROR, id="window in the settings"),
        pytest.param(frame(GOAWAY, payload=b"x"), FRAME_SIZE_ERROR, id="length of a frame"),
        pytest.param(frame(HEADERS, END_HEADERS, 5, b"\xff"), COMPRESSION_ERROR, id="compression"),
        pytest.param(frame(DATA, 0, 7, b"x"), PROTOCOL_ERROR, id="idle stream"),
    ],
)
async def test_violation_beside_requests_is_no_fault(
    harness: GatewayHarness, caplog: pytest.LogCaptureFixture, violation: bytes, code: int
) -> None:
    """The connection ends, and takes no responses to the requests of the same slice."""
    (await harness.add_replica()).auto_respond()
    client = await _client(harness)
    sent = [client.head(request_fields(key=key), end=False) for key in (KEY, "wrong")]
    client.send(*sent, frame(DATA, 0, 1, b"x" * 5000), frame(DATA, 0, 3, b"x" * 5000), violation)
    await _assert_disconnected(harness, client, code)
    assert not caplog.records


@pytest.mark.parametrize(
    "unit",
    [
        pytest.param(frame(PING, payload=bytes(8)), id="ping"),
        pytest.param(frame(PING, ACK, payload=bytes(8)), id="acknowledged ping"),
        pytest.param(settings(), id="empty settings"),
        pytest.param(settings(*[(INITIAL_WINDOW_SIZE, 1000)] * 30), id="settings"),
        pytest.param(window_update(0, 1), id="window update"),
        pytest.param(frame(PRIORITY, 0, 1, bytes((0, 0, 0, 3, 16))), id="priority"),
        pytest.param(frame(PRIORITY, 0, 1001, bytes((0, 0, 0, 3, 16))), id="priority of an idle stream"),
        pytest.param(frame(99, 0, 0, b"x"), id="unknown frame"),
        pytest.param(frame(16, 0, 0, b"\0\0\0\x01u=1"), id="priority update"),
        pytest.param(frame(DATA, 0, 1, b""), id="empty data"),
        pytest.param(frame(DATA, 0, 1, b"x"), id="data of one byte"),
        pytest.param(reset(1), id="reset of an open stream and after"),
    ],
)
async def test_flood_of_frames(harness: GatewayHarness, unit: bytes) -> None:
    """CVE-2019-9511 to 9518."""
    (await harness.add_replica()).auto_respond()
    client = await _client(harness)
    stream = client.next_stream()
    client.send(client.head(request_fields(), end=False, stream=stream))
    client.send(*[unit] * (2 * MAX_CREDIT))
    assert (await client.goaway())[1] in (ENHANCE_YOUR_CALM, PROTOCOL_ERROR)
    await harness.wait_idle()
    assert (await harness.response_to(post())).status == 200


@pytest.mark.parametrize("payload", [b"\x01\0", b"\x01x\0", b"\x40" + bytes(64)])
async def test_padded_data(harness: GatewayHarness, payload: bytes) -> None:
    """Data frames that are all padding, or nearly, are no progress."""
    (await harness.add_replica()).auto_respond()
    client = await _client(harness)
    stream = client.next_stream()
    client.send(client.head(request_fields(), end=False, stream=stream))
    client.send(*[frame(DATA, PADDED, stream, payload)] * (2 * MAX_CREDIT))
    await _assert_disconnected(harness, client)


@pytest.mark.parametrize("unit", [frame(PING, payload=bytes(8)), window_update(1, 1)], ids=["ping", "window of a byte"])
async def test_flood_one_by_one(harness: GatewayHarness, unit: bytes) -> None:
    """CVE-2019-9511: what the client provokes earns no credit, also if it waits for each acknowledgement or byte."""
    (await harness.add_replica()).auto_respond(ok(b"x" * 4 * MAX_CREDIT))
    client = await _client(harness, (INITIAL_WINDOW_SIZE, 0))
    stream = client.get()
    await client.head_of(stream)
    received = client.streams[stream]
    for number in range(3 * MAX_CREDIT):
        client.send(unit)
        await client.wait_until(
            lambda count=number: len(client.pings) + len(received.data) > count or client.goaways,  # type: ignore[misc]
            "an effect",
        )
        if client.goaways:
            break
    await _assert_disconnected(harness, client)


async def test_usual_control_frames_are_no_flood(harness: GatewayHarness) -> None:
    """A client that opens windows by a few bytes, and measures the time of each response."""
    (await harness.add_replica()).auto_respond(ok(b"x" * 2000))
    client = await _client(harness)
    for number in range(MAX_CREDIT):
        stream = client.get()
        client.send(window_update(0, 1000), window_update(0, 1000), frame(PING, payload=number.to_bytes(8, "big")))
        assert (await client.response(stream)).status == 200
    assert not client.goaways


async def test_download_by_small_reads_is_no_flood(harness: GatewayHarness) -> None:
    """A client that opens both windows after each 4 KiB, as Go's does for small reads."""
    size = 8_000_000
    (await harness.add_replica()).auto_respond(ok(b"x" * size))
    client = await _client(harness)
    stream = client.get()
    await client.head_of(stream)
    received, taken = client.streams[stream], 0
    while taken < size:
        await client.wait_until(lambda count=taken: len(received.data) > count or received.done, "more data")  # type: ignore[misc]
        assert not received.done or len(received.data) == size
        pieces = max((len(received.data) - taken) // 4096, 1)
        client.send(*[window_update(number, 4096) for number in (stream, 0)] * pieces)
        taken += pieces * 4096
    assert not client.goaways


@pytest.mark.parametrize("size", [0, 1, 16384])
async def test_continuation_flood(harness: GatewayHarness, size: int) -> None:
    """CVE-2024-27316: a header block without end."""
    (await harness.add_replica()).auto_respond()
    client = await _client(harness)
    client.send(frame(HEADERS, END_STREAM, 1, client.encoder.encode(request_fields())))
    client.send(*[frame(CONTINUATION, 0, 1, b"\0" * size)] * 200)
    await _assert_disconnected(harness, client)


@pytest.mark.gateway(http2="on", buffer_budget_bytes=100_000)
async def test_incomplete_header_blocks_share_the_budget(harness: GatewayHarness) -> None:
    """Each counts with its bytes, and the connection for which there is no room is closed."""
    (await harness.add_replica()).auto_respond()
    clients = [await _client(harness) for _ in range(4)]
    for client in clients:
        client.send(frame(HEADERS, END_STREAM, 1, b"\0" * 16000), frame(CONTINUATION, 0, 1, b"\0" * 16000))
    await harness.wait_until(lambda: harness.gateway.counters.http2_floods == 1)
    assert harness.gateway.counters.buffered_bytes <= 100_000
    for client in clients:
        client.connection.close()
    await harness.wait_idle()
    assert (await harness.response_to(post())).status == 200


@pytest.mark.parametrize("kind", ["table entry", "indexed field", "cookies"])
async def test_hpack_bomb(harness: GatewayHarness, kind: str) -> None:
    """CVE-2016-6581: few bytes that stand for many. The list is bounded before it is stored."""
    (await harness.add_replica()).auto_respond()
    client = await _client(harness)
    head = client.encoder.encode(request_fields())
    if kind == "table entry":  # an entry of 4000 bytes, repeated 16000 times: 64 MB
        bomb = b"\x40\x01x\x7f" + (4000 - 127).to_bytes(2, "little")[:0] + _integer(4000, 7)[1:] + b"y" * 4000
        bomb += b"\xbe" * 10_000
    elif kind == "indexed field":  # accept-encoding: gzip, deflate
        bomb = b"\x90" * 16_000
    else:
        bomb = b"\x40\x06cookie\x01y" + b"\xbe" * 16_000
    pieces = [(head + bomb)[i : i + 16384] for i in range(0, len(head + bomb), 16384)]
    client.send(frame(HEADERS, END_STREAM | (END_HEADERS if len(pieces) == 1 else 0), 1, pieces[0]))
    for piece in pieces[1:]:
        client.send(frame(CONTINUATION, END_HEADERS if piece is pieces[-1] else 0, 1, piece))
    await _assert_disconnected(harness, client)


def _integer(value: int, bits: int) -> bytes:
    """Return an integer of HPACK that exceeds its prefix."""
    value -= (1 << bits) - 1
    encoded = [(1 << bits) - 1]
    while value >= 128:
        encoded.append(value % 128 + 128)
        value //= 128
    return bytes((*encoded, value))


@pytest.mark.gateway(http2="on", buffer_budget_bytes=2_000_000, response_buffer_bytes=1_000_000)
async def test_windows_that_stay_closed(harness: GatewayHarness) -> None:
    """CVE-2019-9517: responses wait on all streams. They take no more than the budget, and hold no slot."""
    harness.set_service(replica_max_concurrent_requests=0)
    (await harness.add_replica()).auto_respond(ok(b"x" * 200_000))
    client = await _client(harness, (INITIAL_WINDOW_SIZE, 0))
    client.send(*[client.head(request_fields(method="GET"), end=True) for _ in range(90)])
    await harness.wait_until(lambda: harness.gateway.counters.buffer_budget_exceeded)
    assert harness.gateway.counters.buffered_bytes <= 2_000_000
    for connection in harness.gateway.clients:
        assert isinstance(connection, Http2Connection)
        assert connection._codec.waiting_bytes() < 90 * 250_000
    client.connection.close()
    await harness.wait_idle()
    assert (await harness.response_to(post())).status == 200


async def test_client_that_does_not_read(harness: GatewayHarness) -> None:
    """It is not read either, so that it cannot cause output without end: neither pings nor responses."""
    harness.set_service(replica_max_concurrent_requests=0)
    (await harness.add_replica()).auto_respond(ok(b"x" * 10_000))
    client = Http2Client(await harness.client(receive_buffer=4096)).start((INITIAL_WINDOW_SIZE, 2**31 - 1))
    client.send(window_update(0, 2**31 - 1 - 65535))
    client.connection.pause_reading()
    while not harness.gateway.clients:
        await run_loop()
    (connection,) = harness.gateway.clients
    while not isinstance(connection, Http2Connection):
        await run_loop()
        (connection,) = harness.gateway.clients
    sent = 0
    while connection._reading:
        client.send(client.head(request_fields(method="GET"), end=True))
        sent += 1
        await run_loop()
        assert sent < 10_000
    assert connection.transport.get_write_buffer_size() < 1_000_000
    client.connection.resume_reading()
    await client.wait_until(lambda: sum(s.ended for s in client.streams.values()) == sent, "responses")


async def test_bystander_beside_a_flood_of_requests(harness: GatewayHarness) -> None:
    """A connection with 100 streams takes a turn for a few of them, and other clients have theirs between."""
    harness.set_service(replica_max_concurrent_requests=0)
    (await harness.add_replica()).auto_respond()
    client = await _client(harness)
    bystander = await harness.client()
    client.send(*[client.head(request_fields(key="wrong", method="GET"), end=True) for _ in range(100)])
    bystander.send(post())
    assert (await bystander.read_message()).status == 200
    client.parse()
    assert sum(stream.ended for stream in client.streams.values()) < 100
    for stream in range(1, 41, 2):
        assert (await client.response(stream)).status == 401
    assert (await client.goaway())[1] == 0  # as 20 responses 4xx on a new connection of HTTP/1.1
