"""Connections of strangers to the peer port are refused, counted and logged once. They do not affect links."""

import asyncio
import contextlib
import dataclasses
import logging
from collections.abc import AsyncIterator

import pytest

from router.peers import messages
from router.peers.dialer import PeerAddress
from router.peers.handshake import MAGIC, ProtocolVersions
from router.peers.listener import MAX_HANDSHAKES
from tests.peers.mesh_fixtures import (
    FAST_LIMITS,
    OTHER_SECRET,
    TIMEOUT_SECONDS,
    Router,
    eventually,
    relay_to,
    running_router,
)

MESSAGE = messages.OwnerSyncComplete("iris")
REFUSED = "connection on the peer port refused"


@contextlib.asynccontextmanager
async def two_linked_routers() -> AsyncIterator[tuple[Router, Router]]:
    """Run linked routers a and b; check at the end that their first link still works."""
    async with running_router("a") as a, running_router("b", expected={a.address: None}) as b:
        await b.wait_for_links("a")
        await a.wait_for_links("b")
        yield a, b
        b.mesh.send("a", MESSAGE)
        await a.observer.wait_until(lambda: ("b", MESSAGE) in a.observer.messages)
        assert a.observer.events == [("up", "b")]
        assert b.observer.events == [("up", "a")]


async def send_to(address: PeerAddress, data: bytes, *, read: bool = True) -> bytes:
    """Connect, send `data`, and return all bytes that the other side sends until it closes the connection."""
    reader, writer = await asyncio.open_connection(*address)
    try:
        async with asyncio.timeout(TIMEOUT_SECONDS):
            writer.write(data)
            return await reader.read() if read else b""
    except ConnectionResetError:
        return b""
    finally:
        writer.transport.abort()


def logged_fields(caplog: pytest.LogCaptureFixture, message: str) -> list[dict[str, object]]:
    return [vars(record)["fields"] for record in caplog.records if record.getMessage() == message]


async def test_strangers_are_refused_without_a_reason_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "router.peers")
    async with two_linked_routers() as (a, _):
        for data in (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"\0\0\0\4abcd", b"\xff\xff\xff\xff", b"\0\0\0\0"):
            reply = await send_to(a.address, data)
            assert reply == b"" or (reply[4:].startswith(MAGIC) and len(reply) == 4 + len(MAGIC) + 32)
        await eventually(lambda: a.mesh.refusals == {"oversized": 2, "secret": 2})
    assert logged_fields(caplog, REFUSED) == [{"source": "127.0.0.1", "reason": "oversized"}]


async def test_connection_closed_during_the_handshake_is_no_refusal() -> None:
    async with two_linked_routers() as (a, _):
        for _ in range(10):
            await send_to(a.address, b"\0\0", read=False)


async def test_router_with_another_secret_is_refused_and_logged_once_on_each_side(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "router.peers")
    async with (
        two_linked_routers() as (a, _),
        running_router("c", expected={a.address: "a"}, secret=OTHER_SECRET) as c,
    ):
        await eventually(lambda: a.mesh.refusals.get("secret", 0) >= 3)
        await eventually(lambda: c.mesh.refusals.get("refused", 0) >= 3)
        assert c.observer.events == [("down", "a", "unreachable")]
        assert set(c.mesh.unreachable()) == {"a"}
    assert logged_fields(caplog, REFUSED) == [{"source": "127.0.0.1", "reason": "secret"}]
    assert logged_fields(caplog, "cannot link with a dialed peer") == [{"source": "127.0.0.1", "reason": "refused"}]


async def test_releases_without_a_common_version_both_report_the_refusal() -> None:
    async with (
        running_router("a", versions=ProtocolVersions(2, 3)) as a,
        running_router("b", expected={a.address: None}, versions=ProtocolVersions(1, 1)) as b,
    ):
        await eventually(lambda: a.mesh.refusals.get("version") and b.mesh.refusals.get("version"))
        assert a.observer.events == []
        assert b.observer.events == [("down", "a", "unreachable")]


async def test_releases_with_a_common_version_are_linked() -> None:
    async with (
        running_router("a", versions=ProtocolVersions(2, 3)) as a,
        running_router("b", expected={a.address: None}, versions=ProtocolVersions(1, 2)) as b,
    ):
        await b.wait_for_links("a")
        await a.wait_for_links("b")


async def test_replayed_handshake_is_refused_by_either_side() -> None:
    async with (
        running_router("a") as a,
        relay_to(lambda: a.address) as relay,
        running_router("b", expected={relay.address: None}) as b,
    ):
        await b.wait_for_links("a")
        await a.wait_for_links("b")
        b.mesh.send("a", MESSAGE)
        await a.observer.wait_until(lambda: a.observer.messages == [("b", MESSAGE)])
        from_b = b"".join(data for data, to_target in relay.recorded if to_target)
        from_a = b"".join(data for data, to_target in relay.recorded if not to_target)

        await send_to(a.address, from_b)
        assert a.mesh.refusals == {"secret": 1}
        assert a.observer.messages == [("b", MESSAGE)]

        async with replaying_server(from_a) as address, running_router("c", expected={address: None}) as c:
            await eventually(lambda: c.mesh.refusals.get("secret"))
            assert c.observer.events == []

        assert a.observer.events == [("up", "b")]
        assert b.observer.events == [("up", "a")]


@contextlib.asynccontextmanager
async def replaying_server(data: bytes) -> AsyncIterator[PeerAddress]:
    """Run a server that sends `data` on each connection."""
    writers: list[asyncio.StreamWriter] = []

    async def replay(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        writer.write(data)

    server = await asyncio.start_server(replay, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()
    finally:
        server.close()
        for writer in writers:
            writer.transport.abort()


async def test_message_altered_in_transit_ends_the_link() -> None:
    async with (
        running_router("a") as a,
        relay_to(lambda: a.address) as relay,
        running_router("b", expected={relay.address: None}) as b,
    ):
        await b.wait_for_links("a")
        await a.wait_for_links("b")
        relay.alter = lambda data, to_target: data[:-1] + bytes([data[-1] ^ 4]) if to_target else data
        b.mesh.send("a", MESSAGE)
        await a.observer.wait_until(lambda: ("down", "b", "unreachable") in a.observer.events)
        assert a.mesh.refusals.get("forged")
        relay.alter = lambda data, to_target: data
        await b.observer.wait_until(lambda: b.observer.events[-1] == ("up", "a") and len(b.observer.events) > 1)
        await a.wait_for_links("b")
        assert a.observer.messages == []


async def test_silent_strangers_do_not_keep_peers_from_connecting() -> None:
    slow = dataclasses.replace(FAST_LIMITS, handshake_seconds=0.4)
    async with running_router("a", limits=slow) as a:
        strangers = [await asyncio.open_connection(*a.address) for _ in range(MAX_HANDSHAKES + 10)]
        try:
            await eventually(lambda: a.mesh.refusals.get("crowded") == 10)
            async with running_router("b", expected={a.address: None}) as b:
                await b.wait_for_links("a")
                await a.wait_for_links("b")
                for reader, _ in strangers:
                    with contextlib.suppress(ConnectionResetError):
                        await reader.read()  # until closed
                assert a.observer.events == [("up", "b")]
            refused = a.mesh.refusals
            assert refused["timeout"] + refused["crowded"] in (len(strangers), len(strangers) + 1)
        finally:
            for _, writer in strangers:
                writer.transport.abort()
