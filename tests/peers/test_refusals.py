"""The peer port among strangers: they are refused, counted, logged once, and disturb nobody."""

import asyncio
import contextlib
import dataclasses
import logging
from collections.abc import AsyncIterator

import pytest

from router.peers import messages
from router.peers.accepting import HANDSHAKES
from router.peers.dialling import Address
from router.peers.handshake import MAGIC, Versions
from tests.peers.world import PATIENCE_SECONDS, QUICK, Router, eventually, network_to, router, run

HELLO = messages.Told("iris")
REFUSED = "connection on the peer port refused"


@contextlib.asynccontextmanager
async def two_linked() -> AsyncIterator[tuple[Router, Router]]:
    """Routers a and b; at the end their link is still the first one, and works."""
    async with router("a") as a, router("b", expects={a.address: None}) as b:
        await b.is_linked_with("a")
        await a.is_linked_with("b")
        yield a, b
        b.mesh.send("a", HELLO)
        await a.ears.until(lambda: ("b", HELLO) in a.ears.said)
        assert a.ears.events == [("up", "b")]
        assert b.ears.events == [("up", "a")]


async def says(address: Address, data: bytes, *, then_waits: bool = True) -> bytes:
    """Connect, say something, and return all that comes until the other side closes."""
    reader, writer = await asyncio.open_connection(*address)
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            writer.write(data)
            return await reader.read() if then_waits else b""
    except ConnectionResetError:
        return b""
    finally:
        writer.transport.abort()


def lines(caplog: pytest.LogCaptureFixture, message: str) -> list[dict[str, object]]:
    return [vars(record)["fields"] for record in caplog.records if record.getMessage() == message]


def test_strangers_are_refused_told_nothing_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    async def story() -> None:
        async with two_linked() as (a, _):
            for data in (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"\0\0\0\4abcd", b"\xff\xff\xff\xff", b"\0\0\0\0"):
                answer = await says(a.address, data)
                assert answer == b"" or (answer[4:].startswith(MAGIC) and len(answer) == 4 + len(MAGIC) + 32)
            await eventually(lambda: a.mesh.refusals == {"oversized": 2, "secret": 2})

    with caplog.at_level(logging.INFO, "router.peers"):
        run(story())
    assert lines(caplog, REFUSED) == [{"source": "127.0.0.1", "reason": "oversized"}]


def test_whoever_connects_and_goes_is_no_refusal() -> None:
    async def story() -> None:
        async with two_linked() as (a, _):
            for _ in range(10):
                await says(a.address, b"\0\0", then_waits=False)

    run(story())


def test_another_secret_is_refused_and_logged_once_on_each_side(caplog: pytest.LogCaptureFixture) -> None:
    async def story() -> None:
        async with (
            two_linked() as (a, _),
            router("c", expects={a.address: "a"}, secret=b"another secret, as long") as c,
        ):
            await eventually(lambda: a.mesh.refusals.get("secret", 0) >= 3)
            await eventually(lambda: c.mesh.refusals.get("refused", 0) >= 3)
            assert c.ears.events == [("down", "a", False)]
            assert set(c.mesh.unreachable()) == {"a"}

    with caplog.at_level(logging.INFO, "router.peers"):
        run(story())
    assert lines(caplog, REFUSED) == [{"source": "127.0.0.1", "reason": "secret"}]
    assert lines(caplog, "no link with a peer that was dialled") == [{"source": "127.0.0.1", "reason": "refused"}]


def test_releases_without_a_common_version_are_not_linked_and_both_say_why() -> None:
    async def story() -> None:
        async with (
            router("a", versions=Versions(2, 3)) as a,
            router("b", expects={a.address: None}, versions=Versions(1, 1)) as b,
        ):
            await eventually(lambda: a.mesh.refusals.get("version") and b.mesh.refusals.get("version"))
            assert a.ears.events == []
            assert b.ears.events == [("down", "a", False)]

    run(story())


def test_releases_with_a_common_version_are_linked() -> None:
    async def story() -> None:
        async with (
            router("a", versions=Versions(2, 3)) as a,
            router("b", expects={a.address: None}, versions=Versions(1, 2)) as b,
        ):
            await b.is_linked_with("a")
            await a.is_linked_with("b")

    run(story())


def test_a_recorded_hand_shake_is_worth_nothing_to_either_side() -> None:
    async def story() -> None:
        async with (
            router("a") as a,
            network_to(lambda: a.address) as between,
            router("b", expects={between.address: None}) as b,
        ):
            await b.is_linked_with("a")
            await a.is_linked_with("b")
            b.mesh.send("a", HELLO)
            await a.ears.until(lambda: a.ears.said == [("b", HELLO)])
            from_b = b"".join(data for data, towards in between.recorded if towards)
            from_a = b"".join(data for data, towards in between.recorded if not towards)

            await says(a.address, from_b)
            assert a.mesh.refusals == {"secret": 1}
            assert a.ears.said == [("b", HELLO)]

            async with plays(from_a) as address, router("c", expects={address: None}) as c:
                await eventually(lambda: c.mesh.refusals.get("secret"))
                assert c.ears.events == []

            assert a.ears.events == [("up", "b")]
            assert b.ears.events == [("up", "a")]

    run(story())


@contextlib.asynccontextmanager
async def plays(data: bytes) -> AsyncIterator[Address]:
    """An impostor that sends whoever connects the same bytes."""
    writers: list[asyncio.StreamWriter] = []

    async def play(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        writer.write(data)

    server = await asyncio.start_server(play, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()
    finally:
        server.close()
        for writer in writers:
            writer.transport.abort()


def test_what_is_altered_on_the_way_ends_the_link_and_is_not_heard() -> None:
    async def story() -> None:
        async with (
            router("a") as a,
            network_to(lambda: a.address) as between,
            router("b", expects={between.address: None}) as b,
        ):
            await b.is_linked_with("a")
            await a.is_linked_with("b")
            between.alter = lambda data, towards: data[:-1] + bytes([data[-1] ^ 4]) if towards else data
            b.mesh.send("a", HELLO)
            await a.ears.until(lambda: ("down", "b", False) in a.ears.events)
            assert a.mesh.refusals.get("forged")
            between.alter = lambda data, towards: data
            await b.ears.until(lambda: b.ears.events[-1] == ("up", "a") and len(b.ears.events) > 1)
            await a.is_linked_with("b")
            assert a.ears.said == []

    run(story())


def test_a_crowd_of_silent_strangers_keeps_no_peer_out_and_does_not_stay() -> None:
    async def story() -> None:
        slow = dataclasses.replace(QUICK, handshake_seconds=0.4)
        async with router("a", limits=slow) as a:
            strangers = [await asyncio.open_connection(*a.address) for _ in range(HANDSHAKES + 10)]
            try:
                await eventually(lambda: a.mesh.refusals.get("crowded") == 10)
                async with router("b", expects={a.address: None}) as b:
                    await b.is_linked_with("a")
                    await a.is_linked_with("b")
                    for reader, _ in strangers:
                        with contextlib.suppress(ConnectionResetError):
                            await reader.read()  # until it is closed
                    assert a.ears.events == [("up", "b")]
                refused = a.mesh.refusals
                assert refused["timeout"] + refused["crowded"] in (len(strangers), len(strangers) + 1)
            finally:
                for _, writer in strangers:
                    writer.transport.abort()

    run(story())
