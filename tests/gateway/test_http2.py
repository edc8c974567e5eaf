"""HTTP/2 clients: each stream is an exchange like a request of HTTP/1.1."""

import asyncio
import time

import pytest

from router.gateway.http2_connection import OPEN, Http2Connection
from router.http.http2.codec import STREAM_WINDOW_BYTES
from router.net.tcp import CLOSE_WAIT, tcp_state
from tests.gateway.harness import GatewayHarness
from tests.gateway.http2_client import (
    ACK,
    CANCEL,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    INITIAL_WINDOW_SIZE,
    INTERNAL_ERROR,
    NO_ERROR,
    PING,
    PREFACE,
    PROTOCOL_ERROR,
    REFUSED_STREAM,
    SETTINGS,
    Http2Client,
    frame,
    request_fields,
    reset,
    settings,
    window_update,
)
from tests.gateway.http_connection import chunked, get, ok, ok_chunked, post, run_loop
from tests.gateway.test_tls import TlsPort, client_context

pytestmark = pytest.mark.gateway(http2="on")


async def http2_client(harness: GatewayHarness, *values: tuple[int, int]) -> Http2Client:
    """Connect a client by prior knowledge."""
    client = Http2Client(await harness.client()).start(*values)
    await client.wait_until(lambda: client.settings is not None, "settings")
    client.send(frame(SETTINGS, ACK))
    return client


def connection_of(harness: GatewayHarness) -> Http2Connection:
    """Return the gateway's side of the only client connection."""
    (connection,) = harness.gateway.clients
    assert isinstance(connection, Http2Connection)
    return connection


# The choice of the protocol.


async def test_prior_knowledge(harness: GatewayHarness) -> None:
    replica = await harness.add_replica()
    client = await http2_client(harness)
    stream = client.request(b"[1, 2]", ("content-type", "application/json"))
    connection = await replica.accept()
    request = await connection.read_message()
    assert request.start_line == "POST /score HTTP/1.1"
    assert (request["host"], request["content-length"], request["content-type"]) == ("fe", "6", "application/json")
    assert (request["x-forwarded-for"], request["x-forwarded-proto"]) == ("127.0.0.1", "http")
    assert "authorization" not in request
    assert request.body == b"[1, 2]"
    connection.send(ok(b"[3]", "Content-Type: application/json", "Connection: keep-alive", "Keep-Alive: timeout=5"))
    response = await client.response(stream)
    assert (response.status, response.data, response.ended) == (200, b"[3]", True)
    assert response.response["content-length"] == "3"
    assert response.response["content-type"] == "application/json"
    assert response.response["azureml-model-deployment"] == "default"
    assert response.response["x-request-id"] == request["x-request-id"]
    assert "server-timing" in response.response
    assert not {"connection", "keep-alive", "transfer-encoding"} & set(response.response)
    assert client.settings is not None
    assert client.settings_acknowledged == 1
    assert harness.gateway.counters.http2_connections == harness.gateway.counters.connections_accepted == 1


async def test_preface_in_pieces(harness: GatewayHarness) -> None:
    replica = (await harness.add_replica()).auto_respond(ok(b"[3]"))
    client = Http2Client(await harness.client())
    sent = PREFACE + settings() + client.head(request_fields(method="GET"), end=True)
    await client.connection.send_in_pieces(*(sent[i : i + 1] for i in range(len(sent))))
    assert (await client.response(1)).data == b"[3]"
    assert len(replica.connections) == 1


async def test_http1_on_the_same_port(harness: GatewayHarness) -> None:
    (await harness.add_replica()).auto_respond(ok(b"[3]"))
    assert (await harness.response_to(post())).status == 200
    upgrade = await harness.client()
    upgrade.send(get("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__"))
    response = await upgrade.read_message()
    assert response.start_line == "HTTP/1.1 200 OK"  # the offer is ignored


@pytest.mark.gateway
async def test_off_is_the_default(harness: GatewayHarness) -> None:
    await harness.add_replica()
    client = Http2Client(await harness.client()).start()
    response = await client.connection.read_message()
    assert (response.status, response.body) == (400, b"Bad request: HTTP/2 is not enabled on this port.")
    await client.connection.wait_closed()


async def test_preface_after_a_request_is_malformed(harness: GatewayHarness) -> None:
    (await harness.add_replica()).auto_respond()
    client = await harness.client()
    client.send(post())
    assert (await client.read_message()).status == 200
    client.send(PREFACE)
    assert (await client.read_message()).status == 400


@pytest.mark.parametrize(("offered", "chosen"), [(["h2", "http/1.1"], "h2"), (["http/1.1"], "http/1.1"), ([], None)])
async def test_alpn(harness: GatewayHarness, offered: list[str], chosen: str | None) -> None:
    (await harness.add_replica()).auto_respond(ok(b"[3]"))
    port = await TlsPort.open(harness)
    context = client_context()
    if offered:
        context.set_alpn_protocols(offered)
    connection = await port.client(context)
    assert connection.transport.get_extra_info("ssl_object").selected_alpn_protocol() == chosen
    if chosen == "h2":
        client = Http2Client(connection).start()
        assert (await client.response(client.request())).data == b"[3]"
    else:
        connection.send(post())
        assert (await connection.read_message()).body == b"[3]"


async def test_tls_needs_alpn(harness: GatewayHarness) -> None:
    port = await TlsPort.open(harness)
    client = Http2Client(await port.client()).start()
    assert (await client.connection.read_message()).status == 400


@pytest.mark.gateway
async def test_alpn_while_off(harness: GatewayHarness) -> None:
    port = await TlsPort.open(harness)
    context = client_context()
    context.set_alpn_protocols(["h2", "http/1.1"])
    connection = await port.client(context)
    assert connection.transport.get_extra_info("ssl_object").selected_alpn_protocol() == "http/1.1"


# Requests and responses.


async def test_streams_are_independent(harness: GatewayHarness) -> None:
    harness.set_service(replica_max_concurrent_requests=2)
    replica = await harness.add_replica()
    client = await http2_client(harness)
    slow, fast = client.request(b"slow"), client.request(b"fast")
    connections = {}
    for _ in range(2):
        connection = await replica.accept()
        connections[(await connection.read_message()).body] = connection
    connections[b"fast"].send(ok(b"2"))
    assert (await client.response(fast)).data == b"2"
    assert slow not in client.streams
    connections[b"slow"].send(ok(b"1"))
    assert (await client.response(slow)).data == b"1"


async def test_streams_share_slots_and_queue(harness: GatewayHarness) -> None:
    harness.set_service(max_request_wait_time=60_000)
    replica = await harness.add_replica()
    client = await http2_client(harness)
    streams = [client.request(b"%d" % number) for number in range(3)]
    connection = await replica.accept()
    for number, stream in enumerate(streams):  # one slot, in the order of arrival
        assert (await connection.read_message()).body == b"%d" % number
        assert harness.in_flight() == 1
        assert harness.queued() == 2 - number
        connection.send(ok(b"%d" % number))
        response = await client.response(stream)
        assert response.data == b"%d" % number
        assert "queue;dur=" in response.response["server-timing"]


async def test_refused_requests(harness: GatewayHarness) -> None:
    await harness.add_replica()
    client = await http2_client(harness)
    expected = {
        client.request(key="wrong"): (401, "unauthorized"),
        client.request(path="/api/v1/service/other/score"): (404, "unknown-service"),
        client.request(method="PUT"): (405, "method-not-allowed"),
        client.get(("x", "y" * 40_000), ("z", "y" * 40_000)): (431, "headers-too-large"),
        client.get(*((f"x-{i}", "y") for i in range(120))): (431, "headers-too-large"),
    }
    for stream, (status, code) in expected.items():
        response = await client.response(stream)
        assert (response.status, response.response["azureml-fe-error"], response.ended) == (status, code, True)
        assert response.data
    healthy = await client.response(client.get(path="/", key=None))
    assert (healthy.status, healthy.data) == (200, b"Healthy")
    head = await client.response(client.get(path="/", key=None, method="HEAD"))
    assert (head.status, head.response["content-length"], head.data) == (200, "7", b"")


async def test_head_and_responses_without_a_body(harness: GatewayHarness) -> None:
    harness.set_service(allowed_methods=["GET", "POST", "HEAD"])
    replica = await harness.add_replica()
    client = await http2_client(harness)
    for sent, status, length in (
        (b"HTTP/1.1 204 No Content\r\n\r\n", 204, None),
        (b'HTTP/1.1 304 Not Modified\r\nETag: "1"\r\n\r\n', 304, None),
        (ok(b""), 200, "0"),
    ):
        stream = client.get()
        if not replica.connections:
            connection = await replica.accept()
        await connection.read_message()
        connection.send(sent)
        response = await client.response(stream)
        assert (response.status, response.response.get("content-length"), response.data) == (status, length, b"")


async def test_cookies_are_joined(harness: GatewayHarness) -> None:
    replica = await harness.add_replica()
    client = await http2_client(harness)
    stream = client.get(("cookie", "a=1"), ("cookie", "b=2"), ("te", "trailers"))
    connection = await replica.accept()
    request = await connection.read_message()
    assert request["cookie"] == "a=1; b=2"
    assert "te" not in request
    connection.send(ok())
    await client.response(stream)


async def test_cookies_are_joined_after_http1_has_sent_one(harness: GatewayHarness) -> None:
    """Both protocols remember the actions for names of fields in one place."""
    replica = await harness.add_replica()
    (await harness.client()).send(get("cookie: a=1"))
    connection = await replica.accept()
    await connection.read_message()
    connection.send(ok())
    await harness.wait_idle()
    client = await http2_client(harness)
    stream = client.get(("cookie", "a=1"), ("cookie", "b=2"))
    assert (await connection.read_message()).values("cookie") == ["a=1; b=2"]
    connection.send(ok())
    await client.response(stream)


async def test_body_without_length(harness: GatewayHarness) -> None:
    """A body that arrives with its head has a length at the replica; a longer one is chunked, with trailers."""
    replica = await harness.add_replica()
    client = await http2_client(harness)
    stream = client.next_stream()
    client.send(client.head(request_fields(), end=False, stream=stream), frame(DATA, END_STREAM, stream, b"[1]"))
    connection = await replica.accept()
    request = await connection.read_message()
    assert (request["content-length"], request.body) == ("3", b"[1]")
    connection.send(ok())
    await client.response(stream)
    stream = client.next_stream()
    client.send(client.head(request_fields(), end=False, stream=stream), frame(DATA, 0, stream, b"[1"))
    await client.ping()
    client.send(frame(DATA, 0, stream, b", 2]"))
    trailers = client.encoder.encode([("x-checksum", "1"), ("authorization", "x")])
    client.send(frame(HEADERS, END_HEADERS | END_STREAM, stream, trailers))
    request = await connection.read_message()
    assert (request["transfer-encoding"], request.body) == ("chunked", b"[1, 2]")
    assert request.trailers == (("x-checksum", "1"),)
    connection.send(ok())
    await client.response(stream)


@pytest.mark.gateway(http2="on", max_headers=10, max_head_bytes=8192)
@pytest.mark.parametrize("trailers", [[("x", "y")] * 11, [("x", "y" * 8192)]], ids=["number", "size"])
@pytest.mark.parametrize("begun", [True, False])
async def test_trailers_over_a_limit(harness: GatewayHarness, trailers: list[tuple[str, str]], begun: bool) -> None:
    harness.set_service(request_buffering=False)
    replica = await harness.add_replica()
    client = await http2_client(harness)
    stream = client.next_stream()
    head = client.head(request_fields(), end=False, stream=stream) + frame(DATA, 0, stream, b"x")
    end = frame(HEADERS, END_HEADERS | END_STREAM, stream, client.encoder.encode(trailers))
    if begun:
        client.send(head)
        await replica.accept()
        client.send(end)
    else:
        client.send(head, end)
    response = await client.response(stream)
    assert (response.status, response.response["azureml-fe-error"]) == (431, "headers-too-large")
    await harness.wait_idle()
    assert len(replica.connections) == begun


async def test_response_trailers_and_chunks(harness: GatewayHarness) -> None:
    replica = await harness.add_replica()
    client = await http2_client(harness)
    stream = client.get()
    connection = await replica.accept()
    await connection.read_message()
    connection.send(ok_chunked(b"one", end=False))
    await client.head_of(stream)
    await client.wait_until(lambda: client.streams[stream].data == b"one", "first piece")  # streamed
    connection.send(chunked(b"two", trailers="X-Sum: 2\r\n"))
    response = await client.response(stream)
    assert response.data == b"onetwo"
    assert response.headers[1:] == [{"x-sum": "2"}]
    assert "content-length" not in response.response


async def test_expect_continue(harness: GatewayHarness) -> None:
    replica = await harness.add_replica()
    client = await http2_client(harness)
    stream = client.next_stream()
    fields = request_fields(("content-length", "3"), ("expect", "100-continue"))
    client.send(client.head(fields, end=False, stream=stream))
    await client.wait_until(lambda: stream in client.streams, "100")
    assert client.streams[stream].headers == [{":status": "100"}]
    client.send(frame(DATA, END_STREAM, stream, b"[1]"))
    connection = await replica.accept()
    assert (await connection.read_message()).body == b"[1]"
    connection.send(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + ok())
    response = await client.response(stream)
    assert [h[":status"] for h in response.headers] == ["100", "103", "200"]


async def test_early_response(harness: GatewayHarness) -> None:
    """The response to a refused request is complete; then the client is asked to send no more of the body."""
    await harness.add_replica()
    client = await http2_client(harness)
    stream = client.next_stream()
    fields = request_fields(("content-length", "1000000"), key="wrong")
    client.send(client.head(fields, end=False, stream=stream), frame(DATA, 0, stream, b"x" * 16384))
    await client.wait_until(lambda: stream in client.streams and client.streams[stream].reset is not None, "reset")
    response = client.streams[stream]
    assert (response.status, response.ended, response.reset) == (401, True, NO_ERROR)
    client.send(frame(DATA, END_STREAM, stream, b"x" * 16384))  # was on its way
    assert (await client.response(client.get(path="/", key=None))).status == 200


async def test_rest_of_a_short_body_is_discarded(harness: GatewayHarness) -> None:
    await harness.add_replica()
    client = await http2_client(harness)
    stream = client.next_stream()
    client.send(client.head(request_fields(("content-length", "10"), key="wrong"), end=False, stream=stream))
    assert (await client.response(stream)).status == 401
    client.send(frame(DATA, END_STREAM, stream, b"x" * 10))
    await client.ping()
    assert client.streams[stream].reset is None
    assert connection_of(harness).idle


@pytest.mark.gateway(http2="on", max_payload_bytes=1000)
@pytest.mark.parametrize("length", [True, False])
async def test_payload_too_large(harness: GatewayHarness, length: bool) -> None:
    await harness.add_replica()
    client = await http2_client(harness)
    stream = client.next_stream()
    fields = request_fields(("content-length", "2000")) if length else request_fields()
    client.send(client.head(fields, end=False, stream=stream), frame(DATA, 0, stream, b"x" * 600))
    await client.ping()
    client.send(frame(DATA, 0, stream, b"x" * 600))
    response = await client.response(stream)
    assert (response.status, response.response["azureml-fe-error"]) == (413, "payload-too-large")


# The end of a stream.


@pytest.mark.parametrize("when", ["queued", "sent", "responding"])
async def test_reset_is_a_closed_connection(harness: GatewayHarness, when: str) -> None:
    harness.set_service(max_request_wait_time=60_000, cancellation="on_close")
    replica = await harness.add_replica()
    other, first = await harness.start_request(replica) if when == "queued" else (None, None)
    client = await http2_client(harness)
    stream = client.request()
    if when == "queued":
        await harness.wait_until(lambda: harness.queued() == 1)
    else:
        connection = await replica.accept()
        await connection.read_message()
    if when == "responding":
        connection.send(ok_chunked(b"one", end=False))
        await client.head_of(stream)
    client.send(reset(stream))
    if when == "queued":
        await harness.wait_until(lambda: harness.queued() == 0)
        assert other is not None
        assert first is not None
        first.send(ok())
        assert (await other.read_message()).status == 200
    else:
        await connection.wait_closed()  # the replica is notified
    await harness.wait_idle()
    counters = harness.route().counters
    assert counters.client_aborts == 1
    assert counters.responses[499, "client-closed"] == 1
    assert (await client.response(client.get(path="/", key=None))).status == 200


async def test_closed_connection_cancels_all_streams(harness: GatewayHarness) -> None:
    harness.set_service(replica_max_concurrent_requests=3, cancellation="on_close")
    replica = await harness.add_replica()
    client = await http2_client(harness)
    for _ in range(3):
        client.request()
    connections = [await replica.accept() for _ in range(3)]
    client.connection.close()
    for connection in connections:
        await connection.wait_closed()
    await harness.wait_until(lambda: harness.route().counters.client_aborts == 3)
    assert harness.route().counters.http2_requests == 3


@pytest.mark.gateway(http2="on")
async def test_half_closed_client_gets_its_responses(harness: GatewayHarness) -> None:
    harness.set_service(half_close=None, replica_max_concurrent_requests=2)
    replica = await harness.add_replica()
    client = await http2_client(harness)
    streams = [client.request(), client.request()]
    connections = [await replica.accept(), await replica.accept()]
    client.connection.half_close()
    await run_loop()
    for connection in connections:
        await connection.read_message()
        connection.send(ok(b"[3]"))
    for stream in streams:
        assert (await client.response(stream)).data == b"[3]"
    await client.connection.wait_closed()


async def test_half_closed_client_that_does_not_read_gets_its_responses(harness: GatewayHarness) -> None:
    """Its FIN is not read while it does not read either, but the socket shows it."""
    harness.set_service(half_close=None, replica_max_concurrent_requests=0)
    (await harness.add_replica()).auto_respond(ok(b"x" * 10_000))
    client = Http2Client(await harness.client(receive_buffer=4096)).start((INITIAL_WINDOW_SIZE, 2**31 - 1))
    client.send(window_update(0, 2**31 - 1 - 65535))
    client.connection.pause_reading()
    await harness.wait_until(lambda: any(isinstance(c, Http2Connection) for c in harness.gateway.clients))
    connection = connection_of(harness)
    streams = []
    while connection._reading:
        streams.append(client.get())
        await run_loop()
        assert len(streams) < 10_000
    client.connection.half_close()
    await harness.wait_until(lambda: tcp_state(connection.transport) == CLOSE_WAIT)
    connection.enforce_timeouts(time.monotonic())
    client.connection.resume_reading()
    for stream in streams:
        assert len((await client.response(stream)).data) == 10_000
    await client.connection.wait_closed()


async def test_replica_that_closes_within_a_response(harness: GatewayHarness) -> None:
    replica = await harness.add_replica()
    client = await http2_client(harness)
    stream = client.get()
    connection = await replica.accept()
    await connection.read_message()
    connection.send(ok(b"123", length=10))
    await client.head_of(stream)
    connection.close()
    response = await client.response(stream)
    assert (response.reset, response.ended) == (INTERNAL_ERROR, False)
    assert (await client.response(client.get(path="/", key=None))).status == 200


async def test_scoring_timeout(harness: GatewayHarness) -> None:
    harness.set_service(scoring_timeout_ms=50, cancellation="on_close")
    replica = await harness.add_replica()
    client = await http2_client(harness)
    stream = client.request()
    await replica.accept()
    response = await client.response(stream)
    assert (response.status, response.response["azureml-fe-error"]) == (504, "scoring-timeout")


async def test_removed_replica(harness: GatewayHarness) -> None:
    harness.set_service(replica_max_concurrent_requests=2)
    replica = await harness.add_replica()
    client = await http2_client(harness)
    streams = [client.request(), client.request()]
    connections = [await replica.accept(), await replica.accept()]
    for connection in connections:
        await connection.read_message()
    connections[0].send(ok_chunked(b"one", end=False))
    await client.wait_until(lambda: any(s.headers for s in client.streams.values()), "head")
    assert harness.gateway.streaming() == {replica.id: 1}
    harness.abort_requests_at(replica.id)
    ends = [await client.response(stream) for stream in streams]
    assert sorted(end.reset or 0 for end in ends) == [0, INTERNAL_ERROR]
    assert sorted(end.status for end in ends) == [200, 502]


# What is counted and logged.


async def test_counters_and_logs(harness: GatewayHarness) -> None:
    (await harness.add_replica()).auto_respond(ok(b"[3]"))
    client = await http2_client(harness)
    await client.response(client.request(b"12345"))
    assert (await harness.response_to(post(b"12"))).status == 200
    counters = harness.route().counters
    assert counters.responses[200, ""] == 2
    await harness.wait_until(lambda: counters.http2_requests == 1)
    assert counters.request_bytes == 7
    journal = harness.gateway.journal
    assert [entry.protocol for entry in (*journal.notable, *journal.routine)] == ["h2", "http/1.1"]
    assert harness.gateway.counters.http2_connections_open == 1
    client.connection.close()
    await harness.wait_until(lambda: harness.gateway.counters.http2_connections_open == 0)


# Flow control.


async def test_window_of_the_client(harness: GatewayHarness) -> None:
    (await harness.add_replica()).auto_respond(ok(b"x" * 100_000))
    client = await http2_client(harness, (INITIAL_WINDOW_SIZE, 1000))
    stream = client.get()
    await client.wait_until(lambda: stream in client.streams and len(client.streams[stream].data) == 1000, "window")
    await harness.wait_until(lambda: not harness.leftovers() or harness.in_flight() == 0)  # the slot is free
    await client.ping()
    assert len(client.streams[stream].data) == 1000
    client.send(window_update(stream, 60_000))
    await client.wait_until(lambda: len(client.streams[stream].data) == 61_000, "stream window")
    client.send(window_update(stream, 100_000))
    await client.wait_until(lambda: len(client.streams[stream].data) == 65_535, "connection window")
    client.send(window_update(0, 100_000))
    assert (await client.response(stream)).data == b"x" * 100_000


async def test_settings_change_the_windows_of_open_streams(harness: GatewayHarness) -> None:
    (await harness.add_replica()).auto_respond(ok(b"x" * 5000))
    client = await http2_client(harness, (INITIAL_WINDOW_SIZE, 0))
    stream = client.get()
    await client.head_of(stream)
    await client.ping()
    assert client.streams[stream].data == b""
    client.send(settings((INITIAL_WINDOW_SIZE, 5000)))
    assert (await client.response(stream)).data == b"x" * 5000


@pytest.mark.gateway(http2="on", response_buffer_bytes=10_000_000)
async def test_response_is_held_for_a_slow_client(harness: GatewayHarness) -> None:
    """A response of known length is read from the replica, and counts against the budget of buffered bytes."""
    replica = await harness.add_replica()
    client = await http2_client(harness)
    stream = client.get()
    connection = await replica.accept()
    await connection.read_message()
    connection.send(ok(b"x" * 3_000_000))
    await harness.wait_until(lambda: harness.in_flight() == 0)  # the replica is free
    assert harness.gateway.counters.buffered_bytes > 2_000_000
    while not client.streams[stream].done if stream in client.streams else True:
        client.send(window_update(0, 1_000_000), window_update(stream, 1_000_000))
        await client.ping()
    assert client.streams[stream].data == b"x" * 3_000_000
    await harness.wait_until(lambda: harness.gateway.counters.buffered_bytes == 0)


@pytest.mark.gateway(http2="on", response_buffer_bytes=0)
async def test_replica_is_paused_for_a_slow_client(harness: GatewayHarness) -> None:
    replica = await harness.add_replica()
    client = await http2_client(harness)
    stream = client.get()
    connection = await replica.accept()
    await connection.read_message()
    connection.transport.set_write_buffer_limits(high=0)
    connection.send(ok(b"x" * 20_000_000))
    await client.wait_until(lambda: stream in client.streams and len(client.streams[stream].data) == 65_535, "window")
    await client.ping()
    assert connection.transport.get_write_buffer_size() > 0
    assert connection_of(harness)._codec.waiting_bytes() < 1_000_000
    other = client.get(path="/", key=None)  # small responses need the connection's window, too
    client.send(window_update(0, 1_000_000))
    assert (await client.response(other)).data == b"Healthy"
    client.send(reset(stream))
    await connection.wait_closed()


async def test_upload_is_paused_until_there_is_a_replica(harness: GatewayHarness) -> None:
    """The client may send a window of a streamed body, which counts against the budget, and other streams go on."""
    harness.set_service(max_request_wait_time=60_000, request_buffering=False)
    replica = await harness.add_replica()
    first_client, first = await harness.start_request(replica)
    client = await http2_client(harness)
    stream = client.next_stream()
    size = 1_000_000
    client.send(client.head(request_fields(("content-length", str(size))), end=False, stream=stream))
    sent = 0
    while sent < STREAM_WINDOW_BYTES:
        client.send(frame(DATA, 0, stream, b"x" * 16384))
        sent += 16384
    await client.ping()
    assert stream not in client.window_updates or client.window_updates[stream] < STREAM_WINDOW_BYTES
    assert harness.gateway.counters.buffered_bytes > 100_000
    assert (await client.response(client.get(path="/", key=None))).status == 200
    first.send(ok())
    assert (await first_client.read_message()).status == 200
    await client.wait_until(lambda: client.window_updates.get(stream, 0) >= STREAM_WINDOW_BYTES // 2, "window")
    assert harness.gateway.counters.buffered_bytes == 0
    window = client.window_updates[stream]
    while sent < size:
        more = min(16384, size - sent)
        while STREAM_WINDOW_BYTES + client.window_updates[stream] - sent < 16384:
            await client.ping()
        client.send(frame(DATA, END_STREAM if sent + more == size else 0, stream, b"x" * more))
        sent += more
    assert len((await first.read_message()).body) == size
    assert client.window_updates[stream] > window
    first.send(ok())
    assert (await client.response(stream)).status == 200


@pytest.mark.gateway(http2="on", buffer_budget_bytes=100_000)
async def test_upload_beyond_the_budget_is_refused(harness: GatewayHarness) -> None:
    harness.set_service(max_request_wait_time=60_000, request_buffering=False)
    replica = await harness.add_replica()
    first_client, first = await harness.start_request(replica)
    client = await http2_client(harness)
    stream = client.next_stream()
    client.send(client.head(request_fields(("content-length", "1000000")), end=False, stream=stream))
    client.send(*[frame(DATA, 0, stream, b"x" * 16384)] * 14)
    response = await client.response(stream)
    assert (response.status, response.response["azureml-fe-error"]) == (503, "overloaded")
    first.send(ok())
    assert (await first_client.read_message()).status == 200


# Timeouts.


@pytest.mark.gateway(http2="on", client_body_timeout_seconds=0.1)
async def test_slow_body(harness: GatewayHarness) -> None:
    await harness.add_replica()
    client = await http2_client(harness)
    stream = client.next_stream()
    client.send(client.head(request_fields(("content-length", "100000")), end=False, stream=stream))
    response = await client.response(stream)
    assert (response.status, response.response["azureml-fe-error"]) == (408, "request-timeout")
    assert (await client.response(client.get(path="/", key=None))).status == 200


@pytest.mark.gateway(http2="on", client_body_timeout_seconds=0.2)
@pytest.mark.parametrize("size", [10, 1_000_000])
async def test_client_that_opens_no_window(harness: GatewayHarness, size: int) -> None:
    """What waits for a window is discarded in the end, also if the response is complete and short."""
    (await harness.add_replica()).auto_respond(ok(b"x" * size))
    client = await http2_client(harness, (INITIAL_WINDOW_SIZE, 0))
    stream = client.get()
    assert (await client.response(stream)).reset == CANCEL
    assert (await client.response(client.get(path="/", key=None, method="HEAD"))).status == 200


@pytest.mark.gateway(http2="on", client_head_timeout_seconds=0.1)
@pytest.mark.parametrize("sent", ["nothing", "part of a frame", "part of a header block"])
async def test_incomplete_head(harness: GatewayHarness, sent: str) -> None:
    client = await http2_client(harness)
    head = client.head(request_fields(), end=True)
    if sent == "part of a frame":
        client.send(head[:20])
    elif sent == "part of a header block":
        client.send(head[:4] + bytes((END_STREAM,)) + head[5:])
    _, code, _ = await client.goaway()
    assert code == (NO_ERROR if sent == "nothing" else 11)


async def test_each_frame_has_its_own_timeout(harness: GatewayHarness) -> None:
    """A client that sends much has always sent a part of the next frame."""
    (await harness.add_replica()).auto_respond()
    client = await http2_client(harness)
    connection = connection_of(harness)
    first, second = client.head(request_fields(method="GET"), end=True), client.head(request_fields(), end=True)
    client.send(first[:20])
    await harness.wait_until(lambda: connection._unfinished_since)
    since = connection._unfinished_since
    client.send(first[20:], second[:5])
    assert (await client.response(1)).status == 200
    after = connection._unfinished_since - since
    assert after > 0
    timeout = harness.gateway.context.settings.client_head_timeout_seconds
    connection.enforce_timeouts(since + timeout + after / 2)
    client.send(second[5:])
    assert (await client.response(3)).status == 200


async def test_idle_connection_with_parts_of_frames(harness: GatewayHarness) -> None:
    """A part of a frame delays the timeout of an idle connection, but not without end."""
    client = await http2_client(harness)
    connection = connection_of(harness)
    assert (await client.response(client.get(path="/", key=None))).status == 200
    client.send(frame(PING, payload=bytes(8))[:10])
    await harness.wait_until(lambda: connection._unfinished_since)
    settings_ = harness.gateway.context.settings
    connection._idle_since -= settings_.client_idle_timeout_seconds
    connection.enforce_timeouts(time.monotonic())
    assert connection._state == OPEN
    connection._idle_since -= settings_.client_head_timeout_seconds
    connection.enforce_timeouts(time.monotonic())
    last, code, _ = await client.goaway()
    assert (last, code) == (1, NO_ERROR)


@pytest.mark.gateway(http2="on", client_idle_timeout_seconds=0.1)
async def test_idle_connection(harness: GatewayHarness) -> None:
    client = await http2_client(harness)
    assert (await client.response(client.get(path="/", key=None))).status == 200
    last, code, _ = await client.goaway()
    assert (last, code) == (1, NO_ERROR)


@pytest.mark.gateway(http2="on", max_client_connections=2)
async def test_idle_connection_is_evicted(harness: GatewayHarness) -> None:
    replica = await harness.add_replica()
    busy = await http2_client(harness)
    stream = busy.request()
    connection = await replica.accept()
    idle = await http2_client(harness)
    assert (await idle.response(idle.get(path="/", key=None))).status == 200
    for client in harness.gateway.clients:
        client._idle_since -= 10  # type: ignore[attr-defined]
    other = await http2_client(harness)
    assert (await other.response(other.get(path="/", key=None))).status == 200
    await idle.connection.wait_closed()
    await connection.read_message()
    connection.send(ok())
    assert (await busy.response(stream)).status == 200
    assert harness.gateway.counters.connections_evicted == 1


# Shutdown.


async def test_goaway_in_two_steps(harness: GatewayHarness) -> None:
    """A stream that is on its way when the router begins to drain is served."""
    harness.set_service(replica_max_concurrent_requests=5)
    replica = await harness.add_replica()
    client = await http2_client(harness)
    before = client.request(b"1")
    connection = await replica.accept()
    await connection.read_message()
    drained = asyncio.ensure_future(harness.gateway.drain(20, 0.0, accept_queued=False))
    await client.wait_until(lambda: client.goaways and client.pings, "first GOAWAY")
    assert client.goaways == [(2**31 - 1, NO_ERROR, b"")]
    between = client.request(b"2")
    ((payload, _),) = client.pings
    client.send(frame(PING, ACK, payload=payload))
    await client.wait_until(lambda: len(client.goaways) == 2, "second GOAWAY")
    assert client.goaways[1] == (between, NO_ERROR, b"")
    after = client.request(b"3")
    other = await replica.accept()
    await other.read_message()
    connection.send(ok(b"1"))
    other.send(ok(b"2"))
    assert (await client.response(before)).data == b"1"
    assert (await client.response(between)).data == b"2"
    await client.connection.wait_closed()
    client.connection.close()
    assert after not in client.streams
    assert await drained is True


async def test_drain_of_an_idle_connection(harness: GatewayHarness) -> None:
    client = await http2_client(harness)
    assert (await client.response(client.get(path="/", key=None))).status == 200
    drained = asyncio.ensure_future(harness.gateway.drain(20, 0.5, accept_queued=False))
    await client.connection.wait_closed()  # without an acknowledgement of the PING, after a second
    client.parse()
    assert [code for _, code, _ in client.goaways] == [NO_ERROR, NO_ERROR]
    client.connection.close()
    assert await drained is True


@pytest.mark.gateway(http2="on", max_connection_requests=3)
async def test_connection_is_retired(harness: GatewayHarness) -> None:
    (await harness.add_replica()).auto_respond(ok(b"[3]"))
    client = await http2_client(harness)
    served = 0
    while not client.goaways:
        assert (await client.response(client.request())).status == 200
        served += 1
    assert served <= 4
    for payload, is_acknowledgement in client.pings:
        if not is_acknowledgement:
            client.send(frame(PING, ACK, payload=payload))
    await client.connection.wait_closed()
    assert harness.gateway.counters.connections_retired == 1


async def test_goaway_of_the_client(harness: GatewayHarness) -> None:
    replica = await harness.add_replica()
    client = await http2_client(harness)
    stream = client.request()
    connection = await replica.accept()
    client.send(frame(GOAWAY, payload=bytes(8)))
    await connection.read_message()
    connection.send(ok(b"[3]"))
    assert (await client.response(stream)).data == b"[3]"
    await client.connection.wait_closed()


async def test_goaway_of_an_idle_client(harness: GatewayHarness, caplog: pytest.LogCaptureFixture) -> None:
    client = await http2_client(harness)
    assert (await client.response(client.get(path="/", key=None))).status == 200
    client.send(frame(GOAWAY, payload=bytes(8)))
    await client.connection.wait_closed()
    assert not caplog.records


def test_settings_frame_is_known() -> None:
    assert settings((1, 2)) == b"\x00\x00\x06" + bytes((SETTINGS, 0)) + bytes(4) + b"\x00\x01\x00\x00\x00\x02"


async def test_many_streams_in_one_write(harness: GatewayHarness) -> None:
    """They take several turns of the event loop, and each is served."""
    harness.set_service(replica_max_concurrent_requests=0)
    (await harness.add_replica()).auto_respond(ok(b"[3]"))
    client = await http2_client(harness)
    heads = [client.head(request_fields(method="GET"), end=True) for _ in range(100)]
    client.send(*heads)
    for stream in range(1, 200, 2):
        assert (await client.response(stream)).status == 200


async def test_too_many_streams(harness: GatewayHarness) -> None:
    """A client that ignores the limit before it has heard of it is refused, later it is disconnected."""
    harness.set_service(max_request_wait_time=60_000, replica_max_concurrent_requests=0, cancellation="on_close")
    replica = await harness.add_replica()
    client = Http2Client(await harness.client()).start()
    client.send(*[client.head(request_fields(method="GET"), end=True) for _ in range(101)])
    assert (await client.response(201)).reset == REFUSED_STREAM
    connections = [await replica.accept() for _ in range(100)]
    await connections[0].read_message()
    connections[0].send(ok())
    await client.wait_until(lambda: any(stream.ended for stream in client.streams.values()), "response")
    client.send(frame(SETTINGS, ACK), *[client.head(request_fields(method="GET"), end=True) for _ in range(2)])
    assert (await client.goaway())[1] == PROTOCOL_ERROR
    for connection in connections[1:]:
        await connection.wait_closed()
