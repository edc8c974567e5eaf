"""Links over TLS with self-signed certificates, negotiated by the handshake."""

import asyncio
import contextlib
import ssl
import struct
from collections.abc import AsyncIterator, Iterator
from hashlib import sha256

from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from router.peers import messages
from router.peers.close_reason import CloseReason
from router.peers.dialer import PeerAddress
from router.peers.frames import WireError
from router.peers.link import Link
from router.peers.tls import self_signed_tls
from router.peers.tls_stream import PinnedTls, TlsStream
from tests.peers.link_sides import accepting_side, dialing_side, end_both_sides, exchange_bytes
from tests.peers.mesh_fixtures import Relay, eventually, relay_to, running_router, two_routers_with_relays

SECRET_MESSAGE = messages.OwnerSyncComplete("readable-only-without-tls")


def new_tls(*, required: bool = False) -> PinnedTls:
    return self_signed_tls(required=required)


def record_types(data: bytes) -> Iterator[int]:
    """Yield the types of the TLS records (RFC 8446, section 5.1) of a stream that contains nothing else."""
    while data:
        kind, version, length = struct.unpack_from("!BHH", data)
        assert version in (0x0301, 0x0303), data[:20]
        assert kind in (20, 22, 23), data[:20]
        data = data[5 + length :]
        yield kind


def after_frames(data: bytes, number: int) -> bytes:
    """Return what follows the first frames of a stream."""
    for _ in range(number):
        (length,) = struct.unpack_from("!I", data)
        data = data[4 + length :]
    return data


def relayed_data(relay: Relay, *, to_target: bool) -> bytes:
    return b"".join(data for data, direction in relay.recorded if direction is to_target)


# Between two routers with TLS.


async def test_all_data_after_the_handshake_is_tls() -> None:
    async with (
        running_router("a", pinned_tls=new_tls()) as a,
        relay_to(lambda: a.address) as relay,
        running_router("b", expected={relay.address: None}, pinned_tls=new_tls(required=True)) as b,
    ):
        await b.wait_for_links("a")
        await a.wait_for_links("b")
        large = messages.OwnerSyncComplete("x" * 1_000_000)
        b.mesh.send("a", SECRET_MESSAGE)
        b.mesh.send("a", large)
        a.mesh.send("b", SECRET_MESSAGE)
        await a.observer.wait_until(lambda: a.observer.messages == [("b", SECRET_MESSAGE), ("b", large)])
        await b.observer.wait_until(lambda: b.observer.messages == [("a", SECRET_MESSAGE)])
        assert a.mesh.unencrypted() == b.mesh.unencrypted() == frozenset()
        # b dials once; a does not use the relay.
        assert relay.connections == 1
    to_a, to_b = (relayed_data(relay, to_target=to_target) for to_target in (True, False))
    assert set(record_types(after_frames(to_a, 1))) == {22, 20, 23}
    assert set(record_types(after_frames(to_b, 2))) >= {22, 23}
    assert SECRET_MESSAGE.service.encode() not in to_a + to_b
    assert b.observer.events == [("up", "a")]
    await a.observer.wait_for_events(("up", "b"), ("down", "b", "ended"))


async def test_altered_tls_record_ends_the_link() -> None:
    async with two_routers_with_relays(pinned_tls=new_tls()) as (a, b, to_a, to_b):
        for relay in (to_a, to_b):
            relay.alter = lambda data, to_target: data[:-1] + bytes([data[-1] ^ 1])
        b.mesh.send("a", SECRET_MESSAGE)
        await eventually(lambda: a.mesh.refusals.get("tls") or b.mesh.refusals.get("tls"))
        assert a.observer.messages == b.observer.messages == []


def test_self_signed_certificates_do_not_expire_and_differ() -> None:
    first, second = new_tls(), new_tls()
    assert first.certificate_digest != second.certificate_digest
    assert str(first.certificate_digest) not in str(first.server_context)
    certificate = x509.load_der_x509_certificate(certificate_presented_by(first))
    assert certificate.not_valid_after_utc.year == 9999
    assert sha256(certificate_presented_by(first)).digest() == first.certificate_digest


def certificate_presented_by(tls: PinnedTls) -> bytes:
    """Return the certificate that the accepting side presents."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = tls.client_context.wrap_bio(to_client, to_server)
    server = tls.server_context.wrap_bio(to_server, to_client, server_side=True)
    for side in (client, server, client, server):
        with contextlib.suppress(ssl.SSLWantReadError):
            side.do_handshake()
    assert client.version() == "TLSv1.3"
    return client.getpeercert(binary_form=True) or b""


# With a router that does not support TLS.


async def test_router_without_tls_is_linked_if_tls_is_not_required() -> None:
    async with (
        running_router("a", pinned_tls=new_tls()) as a,
        running_router("old", expected={a.address: None}) as old,
        running_router("c", expected={old.address: None, a.address: None}, pinned_tls=new_tls()) as c,
    ):
        for one, *others in ((a, "old", "c"), (old, "a", "c"), (c, "a", "old")):
            await one.wait_for_links(*others)
        assert a.mesh.unencrypted() == c.mesh.unencrypted() == {"old"}
        assert old.mesh.unencrypted() == {"a", "c"}
        old.mesh.send("a", SECRET_MESSAGE)
        c.mesh.send("old", SECRET_MESSAGE)
        await a.observer.wait_until(lambda: a.observer.messages == [("old", SECRET_MESSAGE)])
        await old.observer.wait_until(lambda: old.observer.messages == [("c", SECRET_MESSAGE)])


async def test_router_without_tls_is_refused_by_either_side_if_tls_is_required() -> None:
    async with (
        running_router("a", pinned_tls=new_tls(required=True)) as a,
        running_router("old", expected={a.address: None}) as old,
        running_router("c", expected={old.address: None}, pinned_tls=new_tls(required=True)) as c,
    ):
        await eventually(
            lambda: all(
                each.mesh.refusals.get("unencrypted", 0) >= 2 for each in (a, old, c)
            )  # detected by this side, or received from the other side
        )
        for each in (a, old, c):
            assert "up" not in [what for what, *_ in each.observer.events]


# A man in the middle.


class TlsInterceptor:
    """Relays the handshake unaltered, then terminates TLS on both sides with its own certificate."""

    def __init__(self, target: PeerAddress, tls: PinnedTls) -> None:
        self._target = target
        self._tls = tls
        self.intercepted: list[bytes] = []
        self.accepted = 0

    async def relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        target_reader, target_writer = await asyncio.open_connection(*self._target)
        try:
            writer.write(await read_frame(target_reader))
            target_writer.write(await read_frame(reader))
            verdict = await read_frame(target_reader)
            await target_writer.start_tls(self._tls.client_context)  # the accepting side requests no certificate
            self.accepted += 1
            writer.write(verdict)
            await writer.start_tls(self._tls.server_context)
            self.intercepted.append(await reader.read(65536))
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            for each in (target_writer, writer):
                each.transport.abort()


async def read_frame(reader: asyncio.StreamReader) -> bytes:
    length = await reader.readexactly(4)
    return length + await reader.readexactly(struct.unpack("!I", length)[0])


@contextlib.asynccontextmanager
async def running_interceptor(target: PeerAddress) -> AsyncIterator[tuple[TlsInterceptor, PeerAddress]]:
    interceptor = TlsInterceptor(target, new_tls())
    server = await asyncio.start_server(interceptor.relay, "127.0.0.1", 0)
    try:
        yield interceptor, server.sockets[0].getsockname()
    finally:
        server.close()


async def test_tls_interceptor_is_detected_before_any_message_is_sent() -> None:
    async with (
        running_router("a", pinned_tls=new_tls()) as a,
        running_interceptor(a.address) as (interceptor, address),
        running_router("b", expected={address: None}, pinned_tls=new_tls()) as b,
    ):
        await eventually(lambda: b.mesh.refusals.get("forged", 0) >= 2)
        assert interceptor.accepted >= 2
        assert interceptor.intercepted == []
        assert a.mesh.live() == b.mesh.live() == frozenset()
        assert a.observer.messages == b.observer.messages == []


@given(st.integers(0, 3), st.floats(0, 1), st.floats(0, 1), st.binary(max_size=40))
def test_altered_tls_data_raises_nothing_but_wire_error(
    flight: int, cut_from: float, cut_to: float, inserted: bytes
) -> None:
    """Part of one flight of the TLS handshake, or of the data after it, is replaced."""
    server, client = TlsStream(SERVER_TLS, None), TlsStream(CLIENT_TLS, SERVER_TLS.certificate_digest)
    client.receive()
    received = []
    reason = None
    try:
        for number in range(4):
            sender, receiver = (client, server) if number % 2 == 0 else (server, client)
            if sender.is_established:
                sender.encrypt(b"word")
            sent = sender.take_outgoing()
            if number == flight:
                sent = sent[: round(cut_from * len(sent))] + inserted + sent[round(cut_to * len(sent)) :]
            received.append(receiver.receive(sent))
    except WireError as error:
        reason = error.close_reason
    assert reason in (None, CloseReason.TLS, CloseReason.FORGED)
    assert set(received) <= {b"", b"word"}


SERVER_TLS, CLIENT_TLS = new_tls(), new_tls()


async def test_plaintext_injected_before_tls_ends_the_link() -> None:
    for to_accepting in (True, False):
        dialing, accepting = dialing_side(tls=new_tls()), accepting_side(tls=new_tls())
        dialing.link.data_received(accepting.take_written())
        response = dialing.take_written()
        injected = struct.pack("!I", 20) + bytes(20)
        accepting.link.data_received(response + (injected[:7] if to_accepting else b""))
        if to_accepting:
            assert accepting.link.close_reason is CloseReason.GARBAGE
        else:
            dialing.link.data_received(accepting.take_written() + injected)
            assert dialing.link.close_reason is CloseReason.GARBAGE
        end_both_sides(dialing, accepting)
        await asyncio.sleep(0)


async def test_link_is_up_once_tls_is_established() -> None:
    dialing, accepting = dialing_side(tls=new_tls()), accepting_side(tls=new_tls())
    dialing.link.data_received(accepting.take_written())
    accepting.link.data_received(dialing.take_written())
    dialing.link.data_received(accepting.take_written())  # that the handshake succeeded
    assert not dialing.link.is_up
    accepting.link.data_received(dialing.take_written())
    assert not accepting.link.is_up
    await exchange_bytes(dialing, accepting)
    assert dialing.observer.events == accepting.observer.events == ["authenticated", "up"]
    assert tls_versions(dialing.link, accepting.link) == {"TLSv1.3"}
    dialing.link.close_gracefully()
    await exchange_bytes(dialing, accepting)
    assert accepting.link.close_reason is CloseReason.GOODBYE


def tls_versions(*links: Link) -> set[str | None]:
    return {link.tls_version for link in links}
