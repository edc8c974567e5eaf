"""Meshes over real sockets: who is linked, who is live, gone or unreachable."""

import asyncio
import contextlib

import pytest

from router.peers import messages
from router.peers.dialling import Address
from router.peers.frames import WireError
from router.peers.roster import Standing
from tests.peers.world import (
    QUICK,
    Router,
    eventually,
    free_address,
    has_found,
    network_to,
    router,
    run,
    two_across_networks,
)

HELLO = messages.Told("iris")


def test_three_routers_find_one_another_and_themselves() -> None:
    async def story() -> None:
        addresses: dict[Address, str | None] = {free_address(f"127.0.0.{n}"): None for n in (1, 2, 3)}
        async with contextlib.AsyncExitStack() as stack:
            routers = [
                await stack.enter_async_context(router(name, address, expects=addresses))
                for name, address in zip("abc", addresses, strict=True)
            ]
            for each in routers:
                await each.is_linked_with(*{"a", "b", "c"} - {each.mesh.own.id})
                await sees_two_live_peers(each)
                each.mesh.broadcast(HELLO)
            for each in routers:
                await hears_two(each)
                assert {peer for peer, _ in each.ears.said} == {"a", "b", "c"} - {each.mesh.own.id}
                assert not any(event[0] == "down" for event in each.ears.events)
                assert each.mesh.refusals == {}

    async def sees_two_live_peers(one: Router) -> None:  # of three addresses: its own is none of a peer
        await eventually(lambda: list(one.mesh.standings().values()) == [Standing.LIVE] * 2)
        assert one.mesh.unreachable() == {}

    async def hears_two(one: Router) -> None:
        await one.ears.until(lambda: len(one.ears.said) == 2)

    run(story())


def test_routers_that_dial_at_the_same_time_have_one_link_and_keep_it() -> None:
    async def story() -> None:
        for _ in range(15):
            addresses: dict[Address, str | None] = {free_address(): None, free_address(): None}
            first, second = addresses
            async with router("a", first, expects=addresses) as a, router("b", second, expects=addresses) as b:
                await a.is_linked_with("b")
                await b.is_linked_with("a")
                for number in range(20):
                    a.mesh.send("b", messages.Told(f"a{number}"))
                    b.mesh.send("a", messages.Told(f"b{number}"))
                    await a.ears.until(lambda: a.ears.said[-1:] == [("b", messages.Told(f"b{number}"))])  # noqa: B023
                    await b.ears.until(lambda: b.ears.said[-1:] == [("a", messages.Told(f"a{number}"))])  # noqa: B023
                assert a.ears.events == [("up", "b")]
                assert b.ears.events == [("up", "a")]

    run(story())


def test_messages_come_in_order_and_nothing_is_heard_of_those_to_nobody() -> None:
    async def story() -> None:
        async with router("a") as a, router("b", expects={a.address: None}) as b:
            await b.is_linked_with("a")
            b.mesh.send("nobody", HELLO)
            for number in range(500):
                b.mesh.send("a", messages.Told(str(number)))
            await a.ears.until(lambda: len(a.ears.said) == 500)
            assert a.ears.said == [("b", messages.Told(str(number))) for number in range(500)]

    run(story())


def test_a_message_that_is_too_large_is_the_senders_error_and_the_link_stays() -> None:
    async def story() -> None:
        async with router("a") as a, router("b", expects={a.address: None}) as b:
            await b.is_linked_with("a")
            too_large = messages.Told("x" * QUICK.frame_limit_bytes)
            with pytest.raises(WireError):
                b.mesh.send("a", too_large)
            with pytest.raises(WireError):
                b.mesh.broadcast(too_large)
            b.mesh.send("a", HELLO)
            await a.ears.until(lambda: a.ears.said == [("b", HELLO)])
            assert b.ears.events == [("up", "a")]

    run(story())


def test_who_stops_is_certainly_gone_at_once() -> None:
    async def story() -> None:
        async with router("a") as a:
            async with router("b", expects={a.address: "a"}) as b:
                await b.is_linked_with("a")
                await a.is_linked_with("b")
            await a.ears.hears(("up", "b"), ("down", "b", True))
            assert a.mesh.live() == set()
            assert a.mesh.unreachable() == {}
            assert b.ears.events == [("up", "a")], "one that stops hears nothing of what follows"

    run(story())


def test_nobody_at_an_expected_address_is_gone_and_a_router_that_begins_there_is_found() -> None:
    async def story() -> None:
        address = free_address()
        async with router("a", expects={address: "b"}) as a:
            assert a.mesh.standings() == {address: None}
            await a.ears.hears(("gone", "b"))
            assert a.mesh.standings() == {address: Standing.GONE}
            async with router("b", address):
                await a.is_linked_with("b")
                assert a.mesh.standings() == {address: Standing.LIVE}

    run(story())


def test_nobody_at_an_address_whose_router_is_not_known_is_told_by_its_standing_only() -> None:
    async def story() -> None:
        address = free_address()
        async with router("a", expects={address: None}) as a:
            await eventually(lambda: a.mesh.standings() == {address: Standing.GONE})
            assert not a.mesh.unmet()
            assert a.ears.events == []

    run(story())


def test_a_host_name_without_an_address_is_unreachable() -> None:
    async def story() -> None:
        addresses: dict[Address, str | None] = {("no-such-host.invalid", 9091): None, ("x" * 70, 9091): "b"}
        async with router("a", expects=addresses) as a:
            await eventually(lambda: set(a.mesh.standings().values()) == {Standing.UNREACHABLE})
            assert a.mesh.unmet() == {("no-such-host.invalid", 9091)}, (
                "of the other one it is known who should be there"
            )
            assert a.ears.events == [("down", "b", False)]

    run(story())


def test_a_silent_peer_is_unreachable_until_it_is_heard_again() -> None:
    async def story() -> None:
        async with two_across_networks() as (a, b, to_a, to_b):
            to_a.freeze()
            to_b.freeze()
            await a.ears.hears(("up", "b"), ("down", "b", False))
            await b.ears.hears(("up", "a"), ("down", "a", False))
            assert set(a.mesh.unreachable()) == {"b"}
            assert a.mesh.standings() == {to_b.address: Standing.UNREACHABLE}
            to_a.thaw()
            to_b.thaw()
            await a.ears.hears(("up", "b"), ("down", "b", False), ("up", "b"))
            await b.ears.hears(("up", "a"), ("down", "a", False), ("up", "a"))
            assert a.mesh.unreachable() == {}

    run(story())


def test_a_peer_that_can_be_dialled_from_one_side_only_is_linked() -> None:
    async def story() -> None:
        async with two_across_networks() as (a, b, to_a, to_b):
            for broken, whole in ((to_a, to_b), (to_b, to_a)):
                broken.freeze()
                whole.break_all()
                await a.ears.until(lambda: a.ears.events[-2:] == [("down", "b", False), ("up", "b")])
                await b.ears.until(lambda: b.ears.events[-2:] == [("down", "a", False), ("up", "a")])
                broken.thaw()
                a.ears.events.append(("next",))
                b.ears.events.append(("next",))

    run(story())


def test_a_broken_connection_is_made_anew() -> None:
    async def story() -> None:
        async with two_across_networks() as (a, b, to_a, to_b):
            for _ in range(3):
                before = len(a.ears.events)
                to_a.break_all()
                to_b.break_all()
                await a.ears.until(lambda: a.ears.events[before:] == [("down", "b", False), ("up", "b")])  # noqa: B023
                await b.is_linked_with("a")
                a.mesh.send("b", HELLO)
                await b.ears.until(lambda: ("a", HELLO) in b.ears.said)
                b.ears.said.clear()

    run(story())


def test_an_unexpected_router_that_knows_the_secret_is_linked_and_dialled_when_it_is_lost() -> None:
    async def story() -> None:
        async with router("a") as a:
            async with network_to(lambda: a.address) as to_a, router("b", expects={to_a.address: None}) as b:
                await a.is_linked_with("b")
                assert a.mesh.standings() == {}
                await has_found(a, "b")
                to_a.freeze()
                to_a.break_all()  # b cannot dial any more
                await a.ears.hears(("up", "b"), ("down", "b", False), ("up", "b"))
                await b.ears.hears(("up", "a"), ("down", "a", False), ("up", "a"))
            await a.ears.hears(("up", "b"), ("down", "b", False), ("up", "b"), ("down", "b", True))
            assert a.mesh._pursuits == {}

    run(story())


def test_expected_addresses_may_change_while_they_are_dialled() -> None:
    async def story() -> None:
        async with router("b") as b, network_to(lambda: b.address) as silent, router("a") as a:
            silent.freeze()
            for _ in range(20):
                a.mesh.set_expected({silent.address: None, free_address(): None})
                await asyncio.sleep(0)
                a.mesh.set_expected({})
                await asyncio.sleep(0)
            a.mesh.set_expected({b.address: None})
            await a.is_linked_with("b")
            assert a.ears.events == [("up", "b")]

    run(story())


def test_a_port_that_is_taken_is_an_error_at_start() -> None:
    async def story() -> None:
        async with router("a") as a:
            with pytest.raises(OSError, match="in use"):
                async with router("b", a.address):
                    pass

    run(story())
