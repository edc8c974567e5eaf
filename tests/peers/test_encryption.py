"""Links that are encrypted with certificates that routers make themselves."""

import asyncio
import contextlib
import ssl
import struct
from collections.abc import AsyncIterator, Iterator
from hashlib import sha256

from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from router.peer_tls import own_encryption
from router.peers import messages
from router.peers.dialling import Address
from router.peers.encryption import Encryption, TlsStream
from router.peers.endings import Ending
from router.peers.frames import WireError
from router.peers.link import Link
from tests.peers.by_hand import STEADY, accepts, carry, dials
from tests.peers.world import Network, eventually, network_to, router, run, two_across_networks

WORD = messages.Told("a-word-that-is-not-to-be-read")


def own(*, required: bool = False) -> Encryption:
    return own_encryption(required=required)


def records(data: bytes) -> Iterator[int]:
    """The types of TLS records (RFC 8446, 5.1) that a stream is made of from its first byte to its last."""
    while data:
        kind, version, length = struct.unpack_from("!BHH", data)
        assert version in (0x0301, 0x0303), data[:20]
        assert kind in (20, 22, 23), data[:20]
        data = data[5 + length :]
        yield kind


def after_frames(data: bytes, number: int) -> bytes:
    """What follows the first frames of a hand-shake."""
    for _ in range(number):
        (length,) = struct.unpack_from("!I", data)
        data = data[4 + length :]
    return data


def seen(network: Network, *, towards: bool) -> bytes:
    return b"".join(data for data, way in network.recorded if way is towards)


# Between two that encrypt.


def test_all_that_follows_the_hand_shake_is_tls() -> None:
    async def story() -> None:
        async with (
            router("a", encryption=own()) as a,
            network_to(lambda: a.address) as network,
            router("b", expects={network.address: None}, encryption=own(required=True)) as b,
        ):
            await b.is_linked_with("a")
            await a.is_linked_with("b")
            large = messages.Told("x" * 1_000_000)
            b.mesh.send("a", WORD)
            b.mesh.send("a", large)
            a.mesh.send("b", WORD)
            await a.ears.until(lambda: a.ears.said == [("b", WORD), ("b", large)])
            await b.ears.until(lambda: b.ears.said == [("a", WORD)])
            assert a.mesh.unencrypted() == b.mesh.unencrypted() == frozenset()
            # The relay also carries a's own visits, of which each ends as a duplicate after the hand-shake.
            assert network.connections == 1
        there, back = (seen(network, towards=towards) for towards in (True, False))
        assert set(records(after_frames(there, 1))) == {22, 20, 23}
        assert set(records(after_frames(back, 2))) >= {22, 23}
        assert WORD.service.encode() not in there + back
        assert b.ears.events == [("up", "a")]
        await a.ears.hears(("up", "b"), ("down", "b", True))

    run(story())


def test_what_is_altered_within_tls_ends_the_link() -> None:
    async def story() -> None:
        async with two_across_networks(encryption=own()) as (a, b, to_a, to_b):
            for network in (to_a, to_b):
                network.alter = lambda data, towards: data[:-1] + bytes([data[-1] ^ 1])
            b.mesh.send("a", WORD)
            await eventually(lambda: a.mesh.refusals.get("tls") or b.mesh.refusals.get("tls"))
            assert a.ears.said == b.ears.said == []

    run(story())


def test_an_own_certificate_does_not_end_and_is_another_one_each_time() -> None:
    first, second = own(), own()
    assert first.certificate != second.certificate
    assert str(first.certificate) not in str(first.accepting)
    shown = x509.load_der_x509_certificate(shown_by(first))
    assert shown.not_valid_after_utc.year == 9999
    assert sha256(shown_by(first)).digest() == first.certificate


def shown_by(encryption: Encryption) -> bytes:
    """The certificate that the accepting side shows."""
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    dialling = encryption.dialling.wrap_bio(back, there)
    accepting = encryption.accepting.wrap_bio(there, back, server_side=True)
    for side in (dialling, accepting, dialling, accepting):
        with contextlib.suppress(ssl.SSLWantReadError):
            side.do_handshake()
    assert dialling.version() == "TLSv1.3"
    return dialling.getpeercert(binary_form=True) or b""


# With one that does not.


def test_a_router_without_encryption_is_linked_where_that_is_allowed() -> None:
    async def story() -> None:
        async with (
            router("a", encryption=own()) as a,
            router("old", expects={a.address: None}) as old,
            router("c", expects={old.address: None, a.address: None}, encryption=own()) as c,
        ):
            for one, *others in ((a, "old", "c"), (old, "a", "c"), (c, "a", "old")):
                await one.is_linked_with(*others)
            assert a.mesh.unencrypted() == c.mesh.unencrypted() == {"old"}
            assert old.mesh.unencrypted() == {"a", "c"}
            old.mesh.send("a", WORD)
            c.mesh.send("old", WORD)
            await a.ears.until(lambda: a.ears.said == [("old", WORD)])
            await old.ears.until(lambda: old.ears.said == [("c", WORD)])

    run(story())


def test_where_encryption_is_required_a_router_without_is_refused_by_either_side() -> None:
    async def story() -> None:
        async with (
            router("a", encryption=own(required=True)) as a,
            router("old", expects={a.address: None}) as old,
            router("c", expects={old.address: None}, encryption=own(required=True)) as c,
        ):
            await eventually(
                lambda: all(
                    each.mesh.refusals.get("unencrypted", 0) >= 2 for each in (a, old, c)
                )  # as each sees it, or is told
            )
            for each in (a, old, c):
                assert "up" not in [what for what, *_ in each.ears.events]

    run(story())


# Somebody in between.


class Terminating:
    """Carries the hand-shake as it is, and then is one end of TLS to each side, with a certificate of its own."""

    def __init__(self, target: Address, encryption: Encryption) -> None:
        self._target = target
        self._encryption = encryption
        self.read: list[bytes] = []
        self.let_in = 0

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(*self._target)
        try:
            writer.write(await one_frame(far_reader))
            far_writer.write(await one_frame(reader))
            verdict = await one_frame(far_reader)
            await far_writer.start_tls(self._encryption.dialling)  # nobody asks who dials
            self.let_in += 1
            writer.write(verdict)
            await writer.start_tls(self._encryption.accepting)
            self.read.append(await reader.read(65536))
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            for each in (far_writer, writer):
                each.transport.abort()


async def one_frame(reader: asyncio.StreamReader) -> bytes:
    length = await reader.readexactly(4)
    return length + await reader.readexactly(struct.unpack("!I", length)[0])


@contextlib.asynccontextmanager
async def in_between(target: Address) -> AsyncIterator[tuple[Terminating, Address]]:
    relay = Terminating(target, own())
    server = await asyncio.start_server(relay.carry, "127.0.0.1", 0)
    try:
        yield relay, server.sockets[0].getsockname()
    finally:
        server.close()


def test_who_terminates_tls_in_between_is_found_out_before_anything_is_said() -> None:
    async def story() -> None:
        async with (
            router("a", encryption=own()) as a,
            in_between(a.address) as (relay, address),
            router("b", expects={address: None}, encryption=own()) as b,
        ):
            await eventually(lambda: b.mesh.refusals.get("forged", 0) >= 2)
            assert relay.let_in >= 2
            assert relay.read == []
            assert a.mesh.live() == b.mesh.live() == frozenset()
            assert a.ears.said == b.ears.said == []

    run(story())


@given(st.integers(0, 3), st.floats(0, 1), st.floats(0, 1), st.binary(max_size=40))
def test_whatever_comes_instead_of_tls_leads_to_a_reason_and_no_fault(
    flight: int, until: float, again: float, between: bytes
) -> None:
    """One flight of the hand-shake, or what follows it, is altered, cut or replaced."""
    sides = TlsStream(ONE, None), TlsStream(OTHER, ONE.certificate)
    sides[1].receive()
    heard = []
    reason = None
    try:
        for number in range(4):
            teller, hearer = (sides[1], sides[0]) if number % 2 == 0 else sides
            if teller.is_open:
                teller.say(b"word")
            sent = teller.to_send()
            if number == flight:
                sent = sent[: round(until * len(sent))] + between + sent[round(again * len(sent)) :]
            heard.append(hearer.receive(sent))
    except WireError as error:
        reason = error.ending
    assert reason in (None, Ending.TLS, Ending.FORGED)
    assert set(heard) <= {b"", b"word"}


ONE, OTHER = own(), own()


def test_bytes_pushed_in_ahead_of_tls_end_the_link() -> None:
    async def story() -> None:
        for into_accepting in (True, False):
            dialling, accepting = dials(encryption=own()), accepts(encryption=own())
            dialling.link.data_received(accepting.takes())
            answer = dialling.takes()
            pushed = struct.pack("!I", 20) + bytes(20)
            accepting.link.data_received(answer + (pushed[:7] if into_accepting else b""))
            if into_accepting:
                assert accepting.link.ending is Ending.GARBAGE
            else:
                dialling.link.data_received(accepting.takes() + pushed)
                assert dialling.link.ending is Ending.GARBAGE
            dialling.link.end(Ending.STOPPED)
            accepting.link.end(Ending.STOPPED)
            await asyncio.sleep(0)

    run(story())


def test_a_link_is_up_only_when_tls_is() -> None:
    async def story() -> None:
        dialling, accepting = dials(STEADY, encryption=own()), accepts(STEADY, encryption=own())
        dialling.link.data_received(accepting.takes())
        accepting.link.data_received(dialling.takes())
        dialling.link.data_received(accepting.takes())  # the verdict
        assert not dialling.link.is_up
        accepting.link.data_received(dialling.takes())
        assert not accepting.link.is_up
        await carry(dialling, accepting)
        assert dialling.owner.told == accepting.owner.told == ["agreed", "up"]
        assert link_versions(dialling.link, accepting.link) == {"TLSv1.3"}
        dialling.link.leave()
        await carry(dialling, accepting)
        assert accepting.link.ending is Ending.GOODBYE

    run(story())


def link_versions(*links: Link) -> set[str | None]:
    return {link.tls_version for link in links}
