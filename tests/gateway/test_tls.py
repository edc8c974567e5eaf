"""Clients over TLS, and hand-shakes: what is told to replicas, how connections end, what a limit counts."""

import asyncio
import socket
import ssl
from dataclasses import replace

import pytest
import trustme

from router.tls import Material, server_context
from tests.certificates import issue
from tests.gateway.wire import Line, get, ok, ok_chunked, post, turns
from tests.gateway.world import World, story

ROOT = trustme.CA(key_type=trustme.KeyType.ECDSA)
ONE = issue(ROOT, "127.0.0.1")
OTHER = issue(ROOT, "127.0.0.1")


def trusting(*, shown: Material | None = None) -> ssl.SSLContext:
    """A client's context, and maybe its certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    ROOT.configure_trust(context)
    if shown is not None:
        certificate = ROOT.issue_cert("client")
        certificate.configure_cert(context)
    return context


class Tls:
    """The same gateway's port with TLS."""

    def __init__(self, world: World, port: int) -> None:
        self.world = world
        self.port = port

    @classmethod
    async def open(cls, world: World, material: Material = ONE) -> "Tls":
        sock = socket.create_server(("127.0.0.1", 0), backlog=4096)
        port = sock.getsockname()[1]
        world.gateway.doors.renew_certificate(material)
        await world.gateway.doors.open(sock, tls=True)
        return cls(world, port)

    async def client(self, context: ssl.SSLContext | None = None) -> Line:
        _, line = await self.world.loop.create_connection(
            Line, "127.0.0.1", self.port, ssl=context or trusting(), ssl_shutdown_timeout=1
        )
        self.world.clients.append(line)
        return line

    async def stranger(self) -> Line:
        """A connection whose client does not begin a hand-shake."""
        _, line = await self.world.loop.create_connection(Line, "127.0.0.1", self.port)
        self.world.clients.append(line)
        return line


def serial(line: Line) -> str:
    return str(line.transport.get_extra_info("peercert")["serialNumber"])


@story()
async def test_the_replica_is_told_that_it_was_https(world: World) -> None:
    replica = await world.replica()
    tls = await Tls.open(world)
    client = await tls.client()
    for body in (b"[1]", b"x" * 300_000):
        client.send(post(body))
        line = replica.lines[0] if replica.lines else await replica.accept()
        request = await line.message()
        assert request.body == body
        assert request["x-forwarded-proto"] == "https"
        assert request["x-forwarded-for"] == "127.0.0.1"
        line.send(ok(body))
        assert (await client.message()).body == body
    world.gateway.counters.snapshot()
    assert world.gateway.counters.tls_handshakes == 1


@story()
async def test_absolute_form_of_https(world: World) -> None:
    replica = await world.replica()
    tls = await Tls.open(world)
    client = await tls.client()
    client.send(post(path="https://fe/api/v1/service/iris/score"))
    line = await replica.accept()
    assert (await line.message()).start == "POST /score HTTP/1.1"
    line.send(ok())
    assert (await client.message()).status == 200


@story()
async def test_a_refused_upload_is_answered_and_the_connection_ends(world: World) -> None:
    """Where plain TCP shuts down one direction, TLS says farewell: the answer arrives whole all the same."""
    await world.replica()
    tls = await Tls.open(world)
    client = await tls.client()
    client.send(post(b"x" * 200_000, key="wrong", length=50_000_000))
    assert (await client.message()).status == 401
    await client.end()
    await world.until(lambda: not world.gateway.connections, "end of the connection")


@story()
async def test_malformed_request_ends_with_its_answer(world: World) -> None:
    tls = await Tls.open(world)
    client = await tls.client()
    client.send(b"GET / HTTP/1.1\r\nHost : fe\r\n\r\n" + get())
    assert (await client.message()).status == 400
    await client.end()


@story()
async def test_a_client_that_leaves_ends_the_work_of_the_replica(world: World) -> None:
    replica = await world.replica()
    tls = await Tls.open(world)
    client = await tls.client()
    client.send(post())
    line = await replica.accept()
    await line.message()
    client.transport.abort()
    await line.end()
    await world.at_rest()


@story()
async def test_pieces_pass_as_they_come(world: World) -> None:
    replica = await world.replica()
    tls = await Tls.open(world)
    client = await tls.client()
    client.send(post())
    line = await replica.accept()
    await line.message()
    line.send(ok_chunked(b"one", end=False))
    await client.until(lambda: client.received.endswith(b"3\r\none\r\n"), "first piece")
    line.send(b"3\r\ntwo\r\n0\r\n\r\n")
    assert (await client.message()).chunks == (b"one", b"two")


@story()
async def test_a_client_that_does_not_read_holds_no_more_than_the_buffers(world: World) -> None:
    replica = await world.replica()
    tls = await Tls.open(world)
    client = await tls.client()
    client.transport.pause_reading()
    client.send(post())
    line = await replica.accept()
    await line.message()
    size = 64_000_000
    line.transport.write(ok(b"", length=size))
    sent = 0
    for _ in range(size // 1_000_000):
        if line.transport.get_write_buffer_size() > 2_000_000:
            break
        line.transport.write(b"x" * 1_000_000)
        sent += 1_000_000
        await asyncio.sleep(0.01)
    assert sent < size
    client.transport.resume_reading()
    line.transport.write(b"x" * (size - sent))
    await client.until(lambda: len(client.received) > size, "the whole answer")
    client.transport.abort()


# Certificates.


@story()
async def test_a_new_certificate_is_shown_to_new_connections_only(world: World) -> None:
    replica = (await world.replica()).answers()
    tls = await Tls.open(world, ONE)
    before = await tls.client()
    world.gateway.doors.renew_certificate(OTHER)
    after = await tls.client()
    assert serial(before) != serial(after)
    for client in (before, after):
        client.send(post())
        assert (await client.message()).status == 200
    assert replica.lines


@story()
async def test_a_certificate_that_cannot_be_used_leaves_the_former_one(world: World) -> None:
    tls = await Tls.open(world, ONE)
    with pytest.raises(ssl.SSLError):
        world.gateway.doors.renew_certificate(replace(ONE, key=OTHER.key))
    await tls.client()


@story()
async def test_a_session_is_resumed_until_the_certificate_changes(world: World) -> None:
    (await world.replica()).answers()
    tls = await Tls.open(world, ONE)
    context = trusting()
    context.maximum_version = ssl.TLSVersion.TLSv1_2

    def connect(session: ssl.SSLSession | None) -> tuple[bool, ssl.SSLSession]:
        plain = socket.create_connection(("127.0.0.1", tls.port), timeout=5)
        with context.wrap_socket(plain, server_hostname="127.0.0.1", session=session) as line:
            line.sendall(b"GET / HTTP/1.1\r\nHost: fe\r\n\r\n")
            assert line.recv(1000).startswith(b"HTTP/1.1 200")
            assert line.session is not None
            return bool(line.session_reused), line.session

    reused, session = await asyncio.to_thread(connect, None)
    assert not reused
    assert (await asyncio.to_thread(connect, session))[0]
    world.gateway.doors.renew_certificate(OTHER)
    assert not (await asyncio.to_thread(connect, session))[0]
    assert world.gateway.counters.tls_sessions_resumed == 1


@story()
async def test_clients_must_show_a_certificate_where_authorities_are_given(world: World) -> None:
    (await world.replica()).answers()
    tls = await Tls.open(world, replace(ONE, authorities=ROOT.cert_pem.bytes()))
    client = await tls.client(trusting(shown=ONE))
    client.send(post())
    assert (await client.message()).status == 200
    bare = await tls.client()  # in TLS 1.3 a client hears of it after its own hand-shake
    await bare.end()
    other = trusting()
    trustme.CA().issue_cert("client").configure_cert(other)
    foreign = await tls.client(other)
    await foreign.end()
    await world.until(lambda: world.gateway.counters.tls_handshake_failures == 2, "failures")
    assert not bare.received + foreign.received


# Hand-shakes.


@story()
async def test_what_is_no_handshake_fails_and_is_counted(world: World) -> None:
    tls = await Tls.open(world)
    counters = world.gateway.counters
    for bytes_ in (get(), b"\x16\x03\x01\x00\x05hello", b"\0" * 1000, b"\x16\x03\x01\xff\xff" + b"x" * 70_000):
        line = await tls.stranger()
        line.send(bytes_)
        await line.end()
        assert b"HTTP/1.1" not in line.received
    gone = await tls.stranger()
    await world.until(lambda: world.gateway.doors.handshakes == 1, "hand-shake")
    gone.transport.abort()
    await world.until(lambda: counters.tls_handshake_failures == 5, "failures")
    assert world.gateway.doors.handshakes == 0
    assert counters.connections_accepted == 0


@story(client_head_timeout_seconds=0.1)
async def test_a_handshake_that_takes_too_long_ends(world: World) -> None:
    tls = await Tls.open(world)
    silent = await tls.stranger()
    slow = await tls.stranger()
    slow.send(b"\x16\x03\x01\x02\x00\x01")
    await silent.end()
    await slow.end()
    await world.until(lambda: not world.gateway.doors.handshakes, "end of the hand-shakes")


@story(max_client_connections=3)
async def test_handshakes_count_against_the_limit_of_connections(world: World) -> None:
    tls = await Tls.open(world)
    clients = [await tls.client()]
    waiting = [await tls.stranger() for _ in range(2)]
    await world.until(lambda: world.gateway.doors.handshakes == 2, "hand-shakes")
    refused = await tls.stranger()
    await refused.end()
    assert world.gateway.counters.connections_refused == 1
    assert world.gateway.doors.handshakes == 2
    waiting[0].transport.abort()
    await world.until(lambda: world.gateway.doors.handshakes == 1, "room")
    clients.append(await tls.client())
    for client in clients:
        client.send(get(path="/"))
        assert (await client.message()).body == b"Healthy"


@story()
async def test_draining_ends_idle_connections_and_handshakes(world: World) -> None:
    replica = await world.replica()
    tls = await Tls.open(world)
    idle, busy, beginning = await tls.client(), await tls.client(), await tls.stranger()
    busy.send(post())
    line = await replica.accept()
    await line.message()
    draining = asyncio.ensure_future(world.gateway.drain(5, 0.02, last=True))
    await idle.end()
    line.send(ok())
    answer = await busy.message()
    assert answer["connection"] == "close"
    await busy.end()
    assert await draining
    beginning.transport.abort()
    await turns(5)


def test_versions_and_ciphers() -> None:
    context = server_context(ONE)
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert context.options & ssl.OP_NO_RENEGOTIATION
    for cipher in context.get_ciphers():
        assert cipher["aead"], cipher["name"]
        assert "ECDHE" in cipher["name"] or cipher["protocol"] == "TLSv1.3", cipher["name"]
