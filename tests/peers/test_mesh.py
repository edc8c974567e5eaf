"""Meshes on real sockets: which peers are linked, and their status: live, gone, unreachable."""

import asyncio
import contextlib

import pytest

from router.peers import messages
from router.peers.dialer import PeerAddress
from router.peers.frames import WireError
from router.peers.peer_table import PeerStatus
from tests.peers.mesh_fixtures import (
    FAST_LIMITS,
    Router,
    eventually,
    relay_to,
    running_router,
    two_routers_with_relays,
    unused_address,
)
from tests.processes import needs_ipv6

MESSAGE = messages.OwnerSyncComplete("iris")


async def test_three_routers_link_with_each_other_but_not_with_themselves() -> None:
    async def wait_for_two_live_peers(one: Router) -> None:  # one of the three addresses is its own
        await eventually(lambda: list(one.mesh.expected_statuses().values()) == [PeerStatus.LIVE] * 2)
        assert one.mesh.unreachable() == {}

    async def wait_for_two_messages(one: Router) -> None:
        await one.observer.wait_until(lambda: len(one.observer.messages) == 2)

    addresses: dict[PeerAddress, str | None] = {unused_address(f"127.0.0.{n}"): None for n in (1, 2, 3)}
    async with contextlib.AsyncExitStack() as stack:
        routers = [
            await stack.enter_async_context(running_router(name, address, expected=addresses))
            for name, address in zip("abc", addresses, strict=True)
        ]
        for each in routers:
            await each.wait_for_links(*{"a", "b", "c"} - {each.mesh.own.id})
            await wait_for_two_live_peers(each)
            each.mesh.broadcast(MESSAGE)
        for each in routers:
            await wait_for_two_messages(each)
            assert {peer for peer, _ in each.observer.messages} == {"a", "b", "c"} - {each.mesh.own.id}
            assert not any(event[0] == "down" for event in each.observer.events)
            assert each.mesh.refusals == {}


async def test_routers_that_dial_at_the_same_time_keep_one_link() -> None:
    for _ in range(15):
        addresses: dict[PeerAddress, str | None] = {unused_address(): None, unused_address(): None}
        first, second = addresses
        async with (
            running_router("a", first, expected=addresses) as a,
            running_router("b", second, expected=addresses) as b,
        ):
            await a.wait_for_links("b")
            await b.wait_for_links("a")
            for number in range(20):
                from_a, from_b = messages.OwnerSyncComplete(f"a{number}"), messages.OwnerSyncComplete(f"b{number}")
                a.mesh.send("b", from_a)
                b.mesh.send("a", from_b)
                await a.observer.wait_until(lambda m=from_b: a.observer.messages[-1:] == [("b", m)])  # type: ignore[misc]
                await b.observer.wait_until(lambda m=from_a: b.observer.messages[-1:] == [("a", m)])  # type: ignore[misc]
            assert a.observer.events == [("up", "b")]
            assert b.observer.events == [("up", "a")]


async def test_messages_to_a_peer_arrive_in_order() -> None:
    async with running_router("a") as a, running_router("b", expected={a.address: None}) as b:
        await b.wait_for_links("a")
        b.mesh.send("unknown", MESSAGE)
        for number in range(500):
            b.mesh.send("a", messages.OwnerSyncComplete(str(number)))
        await a.observer.wait_until(lambda: len(a.observer.messages) == 500)
        assert a.observer.messages == [("b", messages.OwnerSyncComplete(str(number))) for number in range(500)]


async def test_sending_a_message_that_is_too_large_raises_but_keeps_the_link() -> None:
    async with running_router("a") as a, running_router("b", expected={a.address: None}) as b:
        await b.wait_for_links("a")
        too_large = messages.OwnerSyncComplete("x" * FAST_LIMITS.frame_limit_bytes)
        with pytest.raises(WireError):
            b.mesh.send("a", too_large)
        with pytest.raises(WireError):
            b.mesh.broadcast(too_large)
        b.mesh.send("a", MESSAGE)
        await a.observer.wait_until(lambda: a.observer.messages == [("b", MESSAGE)])
        assert b.observer.events == [("up", "a")]


async def test_router_that_stops_is_reported_as_ended() -> None:
    async with running_router("a") as a:
        async with running_router("b", expected={a.address: "a"}) as b:
            await b.wait_for_links("a")
            await a.wait_for_links("b")
        await a.observer.wait_for_events(("up", "b"), ("down", "b", "ended"))
        assert a.mesh.live() == set()
        assert a.mesh.unreachable() == {}
        assert b.observer.events == [("up", "a")], "no events are reported after stop"


async def test_expected_peer_is_gone_until_it_starts() -> None:
    address = unused_address()
    async with running_router("a", expected={address: "b"}) as a:
        assert a.mesh.expected_statuses() == {address: None}
        await a.observer.wait_for_events(("gone", "b"))
        assert a.mesh.expected_statuses() == {address: PeerStatus.GONE}
        async with running_router("b", address):
            await a.wait_for_links("b")
            assert a.mesh.expected_statuses() == {address: PeerStatus.LIVE}


async def test_address_without_a_known_peer_is_gone_without_events_if_nothing_listens() -> None:
    address = unused_address()
    async with running_router("a", expected={address: None}) as a:
        await eventually(lambda: a.mesh.expected_statuses() == {address: PeerStatus.GONE})
        assert not a.mesh.unidentified()
        assert a.observer.events == []


async def test_host_name_that_does_not_resolve_is_unreachable() -> None:
    addresses: dict[PeerAddress, str | None] = {("no-such-host.invalid", 9091): None, ("x" * 70, 9091): "b"}
    async with running_router("a", expected=addresses) as a:
        await eventually(lambda: set(a.mesh.expected_statuses().values()) == {PeerStatus.UNREACHABLE})
        assert a.mesh.unidentified() == {("no-such-host.invalid", 9091)}, "the id at the other address is configured"
        assert a.observer.events == [("down", "b", "unreachable")]


async def test_silent_peer_is_unreachable_until_it_responds_again() -> None:
    async with two_routers_with_relays() as (a, b, to_a, to_b):
        to_a.freeze()
        to_b.freeze()
        await a.observer.wait_for_events(("up", "b"), ("down", "b", "unreachable"))
        await b.observer.wait_for_events(("up", "a"), ("down", "a", "unreachable"))
        assert set(a.mesh.unreachable()) == {"b"}
        assert a.mesh.expected_statuses() == {to_b.address: PeerStatus.UNREACHABLE}
        to_a.thaw()
        to_b.thaw()
        await a.observer.wait_for_events(("up", "b"), ("down", "b", "unreachable"), ("up", "b"))
        await b.observer.wait_for_events(("up", "a"), ("down", "a", "unreachable"), ("up", "a"))
        assert a.mesh.unreachable() == {}


async def test_peers_are_linked_if_only_one_of_them_can_dial() -> None:
    async with two_routers_with_relays() as (a, b, to_a, to_b):
        for broken, working in ((to_a, to_b), (to_b, to_a)):
            broken.freeze()
            working.reset_connections()
            await a.observer.wait_until(lambda: a.observer.events[-2:] == [("down", "b", "unreachable"), ("up", "b")])
            await b.observer.wait_until(lambda: b.observer.events[-2:] == [("down", "a", "unreachable"), ("up", "a")])
            broken.thaw()
            a.observer.events.append(("next",))
            b.observer.events.append(("next",))


async def test_reset_connection_is_dialed_again() -> None:
    async with two_routers_with_relays() as (a, b, to_a, to_b):
        for _ in range(3):
            before = len(a.observer.events)
            to_a.reset_connections()
            to_b.reset_connections()
            events = [("down", "b", "unreachable"), ("up", "b")]
            await a.observer.wait_until(lambda: a.observer.events[before:] == events)  # noqa: B023
            await b.wait_for_links("a")
            a.mesh.send("b", MESSAGE)
            await b.observer.wait_until(lambda: ("a", MESSAGE) in b.observer.messages)
            b.observer.messages.clear()


async def test_unexpected_router_with_the_secret_is_linked_and_dialed_after_the_link_is_lost() -> None:
    async with running_router("a") as a:
        async with relay_to(lambda: a.address) as to_a, running_router("b", expected={to_a.address: None}) as b:
            await a.wait_for_links("b")
            assert a.mesh.expected_statuses() == {}
            await a.wait_until_dialing("b")
            to_a.freeze()
            to_a.reset_connections()  # b cannot dial any longer
            await a.observer.wait_for_events(("up", "b"), ("down", "b", "unreachable"), ("up", "b"))
            await b.observer.wait_for_events(("up", "a"), ("down", "a", "unreachable"), ("up", "a"))
        await a.observer.wait_for_events(("up", "b"), ("down", "b", "unreachable"), ("up", "b"), ("down", "b", "ended"))
        assert list(a.mesh._dialers) == []


@needs_ipv6
async def test_routers_are_linked_over_ipv6() -> None:
    async with (
        running_router("a", ("::1", 0)) as a,
        running_router("b", ("::1", 0), expected={a.address: None}) as b,
    ):
        await a.wait_for_links("b")
        await a.wait_until_dialing("b")
        assert b.mesh.expected_statuses() == {("::1", a.address[1]): PeerStatus.LIVE}


@needs_ipv6
@pytest.mark.parametrize("host", ["::1", "127.0.0.1"])
async def test_address_of_a_peer_that_listens_on_all_addresses_is_that_of_its_connection(host: str) -> None:
    """The address of an IPv4 peer is IPv4-mapped at a socket for both versions of IP."""
    async with running_router("a", ("::", 0)) as a:
        expected: dict[PeerAddress, str | None] = {(host, a.address[1]): None}
        async with running_router("b", ("::", 0), expected=expected) as b:
            await a.wait_until_dialing("b")
            assert [dialer.address for dialer in a.mesh._dialers] == [(host, b.address[1])]


async def test_expected_addresses_can_change_while_they_are_dialed() -> None:
    async with running_router("b") as b, relay_to(lambda: b.address) as frozen, running_router("a") as a:
        frozen.freeze()
        for _ in range(20):
            a.mesh.set_expected_peers({frozen.address: None, unused_address(): None})
            await asyncio.sleep(0)
            a.mesh.set_expected_peers({})
            await asyncio.sleep(0)
        a.mesh.set_expected_peers({b.address: None})
        await a.wait_for_links("b")
        assert a.observer.events == [("up", "b")]


async def test_start_raises_if_the_port_is_in_use() -> None:
    async with running_router("a") as a:
        with pytest.raises(OSError, match="in use"):
            async with running_router("b", a.address):
                pass
