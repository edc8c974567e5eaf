"""Which process of a name is a router's peer, and how it is known that one has ended."""

import dataclasses

from router.peers import messages
from router.peers.handshake import Party
from tests.peers.world import (
    QUICK,
    Network,
    Router,
    eventually,
    has_found,
    network_to,
    router,
    run,
    two_across_networks,
)

HELLO = messages.Told("iris")


def later(incarnation: str) -> str:
    return f"{int(incarnation, 16) + 1:016x}"


def test_a_later_process_takes_the_place_of_one_that_is_still_linked() -> None:
    async def story() -> None:
        incarnation = Party.new_incarnation()
        lasting = dataclasses.replace(QUICK, dead_after_seconds=60.0)
        async with (
            router("b", limits=lasting) as b,
            network_to(lambda: b.address) as to_b,
            router("a", expects={to_b.address: None}, incarnation=incarnation, limits=lasting),
        ):
            await b.is_linked_with("a")
            to_b.freeze()  # the first one has lost its network and does not know
            async with router("a", expects={b.address: None}, incarnation=later(incarnation), limits=lasting) as new:
                await new.is_linked_with("b")
                await b.ears.hears(("up", "a"), ("down", "a", True), ("up", "a"))
                new.mesh.send("b", HELLO)
                await b.ears.until(lambda: b.ears.said == [("a", HELLO)])

    run(story())


def test_an_earlier_process_of_the_same_id_is_turned_away() -> None:
    async def story() -> None:
        incarnation = Party.new_incarnation()
        async with (
            router("b") as b,
            router("a", expects={b.address: None}, incarnation=later(incarnation)) as new,
            router("a", incarnation=incarnation) as old,
        ):
            await b.is_linked_with("a")
            old.mesh.set_expected({b.address: None})
            await eventually(lambda: b.mesh.refusals.get("stale") and old.mesh.refusals.get("stale"))
            assert b.ears.events == [("up", "a")]
            assert new.ears.events == [("up", "b")]

    run(story())


def test_another_router_of_ones_own_id_is_turned_away_and_is_no_peer() -> None:
    async def story() -> None:
        async with router("a") as first, router("a", expects={first.address: None}) as second:
            await eventually(lambda: first.mesh.refusals.get("same-id") and second.mesh.refusals.get("same-id"))
            for each in (first, second):
                assert each.ears.events == []
                assert each.mesh.unreachable() == {}

    run(story())


def test_a_later_process_proves_that_the_unreachable_one_is_gone() -> None:
    async def story() -> None:
        incarnation = Party.new_incarnation()
        async with (
            router("a") as a,
            network_to(lambda: a.address) as to_a,
            router("b", expects={to_a.address: None}, incarnation=incarnation) as b,
        ):
            await a.is_linked_with("b")
            await has_found(a, "b")
            freeze_both(b, to_a)
            await a.ears.hears(("up", "b"), ("down", "b", False))
            async with router("b", expects={a.address: None}, incarnation=later(incarnation)):
                await a.ears.hears(("up", "b"), ("down", "b", False), ("gone", "b"), ("up", "b"))

    run(story())


def freeze_both(one: Router, network: Network) -> None:
    """Neither way leads to this router any more, and it does not say so."""
    assert one.mesh._acceptor is not None
    one.mesh._acceptor._pause()  # the kernel goes on to accept, the router does not
    network.freeze()


def test_a_peer_that_is_no_longer_expected_stays_linked_and_one_that_is_lost_counts_as_gone() -> None:
    async def story() -> None:
        async with two_across_networks() as (a, b, to_a, to_b):
            a.mesh.set_expected({})
            a.mesh.send("b", HELLO)
            await b.ears.until(lambda: b.ears.said == [("a", HELLO)])
            assert a.mesh.standings() == {}
            a.mesh.set_expected({to_b.address: "b"})
            to_a.freeze()
            to_b.freeze()
            await a.ears.hears(("up", "b"), ("down", "b", False))
            a.mesh.set_expected({})
            assert a.ears.events[2:] == [("gone", "b")]
            assert a.mesh.unreachable() == {}

    run(story())


def test_a_peer_is_given_up_only_when_its_link_is_down() -> None:
    async def story() -> None:
        async with (
            router("a") as a,
            network_to(lambda: a.address) as to_a,
            router("b", expects={to_a.address: None}) as b,
        ):
            await a.is_linked_with("b")
            a.mesh.give_up("b")
            assert a.mesh.live() == {"b"}
            await has_found(a, "b")
            freeze_both(b, to_a)
            await a.ears.hears(("up", "b"), ("down", "b", False))
            a.mesh.give_up("b")
            assert a.ears.events[2:] == [("gone", "b")]
            assert a.mesh.unreachable() == {}
            assert a.mesh._pursuits == {}

    run(story())


def test_an_unreachable_peer_is_gone_when_another_router_answers_at_its_address() -> None:
    async def story() -> None:
        async with two_across_networks() as (a, _, to_a, to_b), router("c") as c:
            to_a.freeze()
            to_b.target = lambda: c.address
            to_b.break_all()
            await a.ears.hears(("up", "b"), ("down", "b", False), ("up", "c"), ("gone", "b"))
            assert a.mesh.unreachable() == {}

    run(story())


def test_a_peer_is_gone_when_the_caller_names_another_one_at_its_address() -> None:
    async def story() -> None:
        async with two_across_networks() as (a, _, to_a, to_b):
            to_a.freeze()
            to_b.freeze()
            await a.ears.hears(("up", "b"), ("down", "b", False))
            a.mesh.set_expected({to_b.address: "c"})
            assert a.ears.events[2:] == [("gone", "b")]

    run(story())
