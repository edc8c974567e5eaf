"""TLS clients: forwarded requests, ends of connections, certificates, handshakes."""

import asyncio
import socket
import ssl
from dataclasses import replace

import pytest
import trustme

from router.net.tls import CertificatePair, server_context
from tests.certificates import issue
from tests.gateway.harness import GatewayHarness
from tests.gateway.http_connection import Connection, get, ok, ok_chunked, post, run_loop

AUTHORITY = trustme.CA(key_type=trustme.KeyType.ECDSA)
CERTIFICATE = issue(AUTHORITY, "127.0.0.1")
OTHER_CERTIFICATE = issue(AUTHORITY, "127.0.0.1")


def client_context(*, with_certificate: bool = False) -> ssl.SSLContext:
    """Return the TLS context of a client that trusts the gateway."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    AUTHORITY.configure_trust(context)
    if with_certificate:
        AUTHORITY.issue_cert("client").configure_cert(context)
    return context


class TlsPort:
    """A port of the gateway with TLS."""

    def __init__(self, harness: GatewayHarness, port: int) -> None:
        self.harness = harness
        self.port = port

    @classmethod
    async def open(cls, harness: GatewayHarness, pair: CertificatePair = CERTIFICATE) -> "TlsPort":
        sock = socket.create_server(("127.0.0.1", 0), backlog=4096)
        port = sock.getsockname()[1]
        harness.gateway.acceptor.set_certificate(pair)
        await harness.gateway.acceptor.open(sock, tls=True)
        return cls(harness, port)

    async def client(self, context: ssl.SSLContext | None = None) -> Connection:
        _, connection = await self.harness.loop.create_connection(
            Connection, "127.0.0.1", self.port, ssl=context or client_context(), ssl_shutdown_timeout=1
        )
        self.harness.clients.append(connection)
        return connection

    async def client_without_handshake(self) -> Connection:
        """Connect a client that does not start a TLS handshake."""
        _, connection = await self.harness.loop.create_connection(Connection, "127.0.0.1", self.port)
        self.harness.clients.append(connection)
        return connection


def peer_serial_number(connection: Connection) -> str:
    return str(connection.transport.get_extra_info("peercert")["serialNumber"])


async def test_https_is_forwarded_as_x_forwarded_proto(harness: GatewayHarness) -> None:
    replica = await harness.add_replica()
    tls = await TlsPort.open(harness)
    client = await tls.client()
    for body in (b"[1]", b"x" * 300_000):
        client.send(post(body))
        connection = replica.connections[0] if replica.connections else await replica.accept()
        request = await connection.read_message()
        assert request.body == body
        assert request["x-forwarded-proto"] == "https"
        assert request["x-forwarded-for"] == "127.0.0.1"
        connection.send(ok(body))
        assert (await client.read_message()).body == body
    harness.gateway.counters.process_snapshot()
    assert harness.gateway.counters.tls_handshakes == 1


@pytest.mark.gateway(trusted_proxies=("127.0.0.0/8",))
@pytest.mark.parametrize(("reported", "forwarded"), [((), "https"), (("X-Forwarded-Proto: http",), "http")])
async def test_trusted_proxy_may_use_tls(harness: GatewayHarness, reported: tuple[str, ...], forwarded: str) -> None:
    replica = await harness.add_replica()
    client = await (await TlsPort.open(harness)).client()
    client.send(post(b"{}", "X-Forwarded-For: 203.0.113.9", "Forwarded: for=203.0.113.9", *reported))
    connection = await replica.accept()
    request = await connection.read_message()
    assert request["x-forwarded-proto"] == forwarded
    assert request["x-forwarded-for"] == "203.0.113.9, 127.0.0.1"
    assert request["forwarded"].endswith("proto=https")  # of the proxy's own request
    connection.send(ok())
    await client.read_message()


async def test_absolute_form_with_https_is_accepted(harness: GatewayHarness) -> None:
    replica = await harness.add_replica()
    tls = await TlsPort.open(harness)
    client = await tls.client()
    client.send(post(path="https://fe/api/v1/service/iris/score"))
    connection = await replica.accept()
    assert (await connection.read_message()).start_line == "POST /score HTTP/1.1"
    connection.send(ok())
    assert (await client.read_message()).status == 200


async def test_refused_upload_gets_its_response_before_the_connection_closes(harness: GatewayHarness) -> None:
    """TLS has a closing alert instead of a half-close. The response must still arrive completely."""
    await harness.add_replica()
    tls = await TlsPort.open(harness)
    client = await tls.client()
    client.send(post(b"x" * 200_000, key="wrong", length=50_000_000))
    assert (await client.read_message()).status == 401
    await client.wait_closed()
    await harness.wait_until(lambda: not harness.gateway.clients, "end of the connection")


async def test_tls_connection_is_closed_after_a_malformed_request(harness: GatewayHarness) -> None:
    tls = await TlsPort.open(harness)
    client = await tls.client()
    client.send(b"GET / HTTP/1.1\r\nHost : fe\r\n\r\n" + get())
    assert (await client.read_message()).status == 400
    await client.wait_closed()


async def test_closed_tls_client_aborts_its_request_at_the_replica(harness: GatewayHarness) -> None:
    replica = await harness.add_replica()
    tls = await TlsPort.open(harness)
    client = await tls.client()
    client.send(post())
    connection = await replica.accept()
    await connection.read_message()
    client.transport.abort()
    await connection.wait_closed()
    await harness.wait_idle()


async def test_response_chunks_are_forwarded_as_they_arrive(harness: GatewayHarness) -> None:
    replica = await harness.add_replica()
    tls = await TlsPort.open(harness)
    client = await tls.client()
    client.send(post())
    connection = await replica.accept()
    await connection.read_message()
    connection.send(ok_chunked(b"one", end=False))
    await client.wait_until(lambda: client.received.endswith(b"3\r\none\r\n"), "first chunk")
    connection.send(b"3\r\ntwo\r\n0\r\n\r\n")
    assert (await client.read_message()).chunks == (b"one", b"two")


async def test_tls_client_that_does_not_read_pauses_reading_from_the_replica(harness: GatewayHarness) -> None:
    replica = await harness.add_replica()
    tls = await TlsPort.open(harness)
    client = await tls.client()
    client.transport.pause_reading()
    client.send(post())
    connection = await replica.accept()
    await connection.read_message()
    size = 64_000_000
    connection.transport.write(ok(b"", length=size))
    sent = 0
    for _ in range(size // 1_000_000):
        if connection.transport.get_write_buffer_size() > 2_000_000:
            break
        connection.transport.write(b"x" * 1_000_000)
        sent += 1_000_000
        await asyncio.sleep(0.01)
    assert sent < size
    client.transport.resume_reading()
    connection.transport.write(b"x" * (size - sent))
    await client.wait_until(lambda: len(client.received) > size, "complete response")
    client.transport.abort()


# Certificates.


async def test_new_certificate_applies_to_new_connections(harness: GatewayHarness) -> None:
    replica = (await harness.add_replica()).auto_respond()
    tls = await TlsPort.open(harness, CERTIFICATE)
    before = await tls.client()
    harness.gateway.acceptor.set_certificate(OTHER_CERTIFICATE)
    after = await tls.client()
    assert peer_serial_number(before) != peer_serial_number(after)
    for client in (before, after):
        client.send(post())
        assert (await client.read_message()).status == 200
    assert replica.connections


async def test_invalid_certificate_does_not_replace_the_current_one(harness: GatewayHarness) -> None:
    tls = await TlsPort.open(harness, CERTIFICATE)
    with pytest.raises(ssl.SSLError):
        harness.gateway.acceptor.set_certificate(replace(CERTIFICATE, key=OTHER_CERTIFICATE.key))
    await tls.client()


async def test_session_is_resumed_until_the_certificate_changes(harness: GatewayHarness) -> None:
    (await harness.add_replica()).auto_respond()
    tls = await TlsPort.open(harness, CERTIFICATE)
    context = client_context()
    context.maximum_version = ssl.TLSVersion.TLSv1_2

    def connect(session: ssl.SSLSession | None) -> tuple[bool, ssl.SSLSession]:
        plain = socket.create_connection(("127.0.0.1", tls.port), timeout=5)
        with context.wrap_socket(plain, server_hostname="127.0.0.1", session=session) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: fe\r\n\r\n")
            assert connection.recv(1000).startswith(b"HTTP/1.1 200")
            assert connection.session is not None
            return bool(connection.session_reused), connection.session

    reused, session = await asyncio.to_thread(connect, None)
    assert not reused
    assert (await asyncio.to_thread(connect, session))[0]
    harness.gateway.acceptor.set_certificate(OTHER_CERTIFICATE)
    assert not (await asyncio.to_thread(connect, session))[0]
    assert harness.gateway.counters.tls_sessions_resumed == 1


async def test_client_certificate_is_required_if_authorities_are_configured(harness: GatewayHarness) -> None:
    (await harness.add_replica()).auto_respond()
    tls = await TlsPort.open(harness, replace(CERTIFICATE, authorities=AUTHORITY.cert_pem.bytes()))
    client = await tls.client(client_context(with_certificate=True))
    client.send(post())
    assert (await client.read_message()).status == 200
    without_certificate = await tls.client()  # in TLS 1.3 the client sees the failure after its own handshake
    await without_certificate.wait_closed()
    untrusted_context = client_context()
    trustme.CA().issue_cert("client").configure_cert(untrusted_context)
    untrusted = await tls.client(untrusted_context)
    await untrusted.wait_closed()
    await harness.wait_until(lambda: harness.gateway.counters.tls_handshake_failures == 2, "failures")
    assert not without_certificate.received + untrusted.received


# Handshakes.


async def test_invalid_handshakes_fail_and_are_counted(harness: GatewayHarness) -> None:
    tls = await TlsPort.open(harness)
    counters = harness.gateway.counters
    for raw in (
        b"get / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x00\x05hello",
        b"\0" * 1000,
        b"\x16\x03\x01\xff\xff" + b"x" * 70_000,
    ):
        connection = await tls.client_without_handshake()
        connection.send(raw)
        await connection.wait_closed()
        assert b"HTTP/1.1" not in connection.received
    aborted = await tls.client_without_handshake()
    await harness.wait_until(lambda: harness.gateway.acceptor.handshakes == 1, "handshake")
    aborted.transport.abort()
    await harness.wait_until(lambda: counters.tls_handshake_failures == 5, "failures")
    assert harness.gateway.acceptor.handshakes == 0
    assert counters.connections_accepted == 0


@pytest.mark.gateway(client_head_timeout_seconds=0.1)
async def test_slow_handshake_is_aborted(harness: GatewayHarness) -> None:
    tls = await TlsPort.open(harness)
    silent = await tls.client_without_handshake()
    slow = await tls.client_without_handshake()
    slow.send(b"\x16\x03\x01\x02\x00\x01")
    await silent.wait_closed()
    await slow.wait_closed()
    await harness.wait_until(lambda: not harness.gateway.acceptor.handshakes, "end of the handshakes")


@pytest.mark.gateway(max_client_connections=3)
async def test_pending_handshakes_count_against_the_connection_limit(harness: GatewayHarness) -> None:
    (await harness.add_replica()).auto_respond()
    tls = await TlsPort.open(harness)
    clients = [await tls.client()]
    clients[0].send(post(b"[1", length=3))  # not idle
    await harness.wait_until(lambda: any(not client.idle for client in harness.gateway.clients), "request")
    pending = [await tls.client_without_handshake() for _ in range(2)]
    await harness.wait_until(lambda: harness.gateway.acceptor.handshakes == 2, "handshakes")
    refused = await tls.client_without_handshake()
    await refused.wait_closed()
    assert harness.gateway.counters.connections_refused == 1
    assert harness.gateway.acceptor.handshakes == 2
    pending[0].transport.abort()
    await harness.wait_until(lambda: harness.gateway.acceptor.handshakes == 1, "end of a handshake")
    clients[0].send(b"]")
    assert (await clients[0].read_message()).status == 200
    clients.append(await tls.client())
    for client in clients:
        client.send(get(path="/"))
        assert (await client.read_message()).body == b"Healthy"


async def test_drain_closes_idle_connections_and_handshakes(harness: GatewayHarness) -> None:
    replica = await harness.add_replica()
    tls = await TlsPort.open(harness)
    idle, busy, pending = await tls.client(), await tls.client(), await tls.client_without_handshake()
    busy.send(post())
    connection = await replica.accept()
    await connection.read_message()
    draining = asyncio.ensure_future(harness.gateway.drain(5, 0.02, accept_queued=True))
    await idle.wait_closed()
    connection.send(ok())
    response = await busy.read_message()
    assert response["connection"] == "close"
    await busy.wait_closed()
    assert await draining
    pending.transport.abort()
    await run_loop(5)


def test_server_context_allows_only_secure_versions_and_ciphers() -> None:
    context = server_context(CERTIFICATE)
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert context.options & ssl.OP_NO_RENEGOTIATION
    for cipher in context.get_ciphers():
        assert cipher["aead"], cipher["name"]
        assert "ECDHE" in cipher["name"] or cipher["protocol"] == "TLSv1.3", cipher["name"]


@pytest.mark.parametrize("piece", [1_000_000, 1])
@pytest.mark.parametrize(
    "request_bytes",
    [get(path="/"), post(b"[1]"), b"OPTIONS * HTTP/1.1\r\nHost: fe\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"],
)
async def test_plain_http_on_the_tls_port_gets_a_readable_400(
    harness: GatewayHarness, request_bytes: bytes, piece: int
) -> None:
    tls = await TlsPort.open(harness)
    client = await tls.client_without_handshake()
    client.send(request_bytes[:piece])
    response = await client.read_message()
    assert (response.status, response.error_code, response["connection"]) == (400, "bad-request", "close")
    assert response.body == b"Bad request: plain HTTP was sent to a port for HTTPS."
    assert "date" in response
    await client.wait_closed()
    assert harness.gateway.acceptor.handshakes == 0
    assert harness.gateway.counters.tls_handshake_failures == 1
    await tls.client()


@pytest.mark.parametrize("data", [b"hello\r\n", b"\x80\x2e\x01", b"\0" * 64, b" GET / HTTP/1.1\r\n\r\n"])
async def test_other_data_on_the_tls_port_gets_no_http(harness: GatewayHarness, data: bytes) -> None:
    tls = await TlsPort.open(harness)
    client = await tls.client_without_handshake()
    client.send(data)
    client.half_close()
    assert b"HTTP" not in await client.read_to_end()


async def test_tls_on_the_plain_port_is_logged_once_a_minute(
    harness: GatewayHarness, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        client = await harness.client()
        client.send(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x55" * 500)
        response = await client.read_message()
        assert response.body == b"Bad request: TLS was sent to a port for plain HTTP."
        client.half_close()
        await client.wait_closed()
    assert [r.message for r in caplog.records if "TLS was sent" in r.message] == [
        "TLS was sent to a port for plain HTTP"
    ]
