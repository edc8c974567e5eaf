"""Processes with the same router id: which of them is the peer of a router, and what proves that one of them has ended.

A restarted router keeps its id and gets a later incarnation. A later incarnation replaces an earlier one. In
`expected`, None instead of a peer's id means that only its address is known.
"""

import dataclasses

from router.peers import messages
from router.peers.handshake import PeerIdentity
from tests.peers.mesh_fixtures import (
    FAST_LIMITS,
    Relay,
    Router,
    eventually,
    relay_to,
    running_router,
    two_routers_with_relays,
)

MESSAGE = messages.OwnerSyncComplete("iris")


def incarnation_after(incarnation: str) -> str:
    return f"{int(incarnation, 16) + 1:016x}"


async def test_later_process_replaces_a_process_that_is_still_linked() -> None:
    incarnation = PeerIdentity.new_incarnation()
    patient = dataclasses.replace(FAST_LIMITS, dead_after_seconds=60.0)
    async with (
        running_router("b", limits=patient) as b,
        relay_to(lambda: b.address) as to_b,
        running_router("a", expected={to_b.address: None}, incarnation=incarnation, limits=patient),
    ):
        await b.wait_for_links("a")
        to_b.freeze()  # the link of the first process is broken, and no router has detected it
        async with running_router(
            "a", expected={b.address: None}, incarnation=incarnation_after(incarnation), limits=patient
        ) as later:
            await later.wait_for_links("b")
            await b.observer.wait_for_events(("up", "a"), ("down", "a", "ended"), ("up", "a"))
            later.mesh.send("b", MESSAGE)
            await b.observer.wait_until(lambda: b.observer.messages == [("a", MESSAGE)])


async def test_earlier_process_with_the_same_id_is_refused() -> None:
    incarnation = PeerIdentity.new_incarnation()
    async with (
        running_router("b") as b,
        running_router("a", expected={b.address: None}, incarnation=incarnation_after(incarnation)) as later,
        running_router("a", incarnation=incarnation) as earlier,
    ):
        await b.wait_for_links("a")
        earlier.mesh.set_expected_peers({b.address: None})
        await eventually(lambda: b.mesh.refusals.get("stale") and earlier.mesh.refusals.get("stale"))
        assert b.observer.events == [("up", "a")]
        assert later.observer.events == [("up", "b")]


async def test_router_with_the_same_id_is_refused() -> None:
    async with running_router("a") as first, running_router("a", expected={first.address: None}) as second:
        await eventually(lambda: first.mesh.refusals.get("same-id") and second.mesh.refusals.get("same-id"))
        for router in (first, second):
            assert router.observer.events == []
            assert router.mesh.unreachable() == {}


async def test_unreachable_process_is_gone_once_a_later_process_connects() -> None:
    incarnation = PeerIdentity.new_incarnation()
    async with (
        running_router("a") as a,
        relay_to(lambda: a.address) as to_a,
        running_router("b", expected={to_a.address: None}, incarnation=incarnation) as b,
    ):
        await a.wait_for_links("b")
        await a.wait_until_dialing("b")
        isolate(b, to_a)
        await a.observer.wait_for_events(("up", "b"), ("down", "b", "unreachable"))
        async with running_router("b", expected={a.address: None}, incarnation=incarnation_after(incarnation)):
            await a.observer.wait_for_events(("up", "b"), ("down", "b", "unreachable"), ("gone", "b"), ("up", "b"))


def isolate(router: Router, outbound: Relay) -> None:
    """Make a router unreachable in both directions, without closing connections."""
    assert router.mesh._listener is not None
    router.mesh._listener._pause()  # the kernel still accepts connections, the router does not
    outbound.freeze()


async def test_linked_peer_that_is_no_longer_expected_is_gone_only_once_unreachable() -> None:
    async with two_routers_with_relays() as (a, b, to_a, to_b):
        a.mesh.set_expected_peers({})
        a.mesh.send("b", MESSAGE)
        await b.observer.wait_until(lambda: b.observer.messages == [("a", MESSAGE)])
        assert a.mesh.expected_statuses() == {}
        a.mesh.set_expected_peers({to_b.address: "b"})
        to_a.freeze()
        to_b.freeze()
        await a.observer.wait_for_events(("up", "b"), ("down", "b", "unreachable"))
        a.mesh.set_expected_peers({})
        assert a.observer.events[2:] == [("gone", "b")]
        assert a.mesh.unreachable() == {}


async def test_unreachable_peer_is_gone_once_another_router_uses_its_address() -> None:
    async with two_routers_with_relays() as (a, _, to_a, to_b), running_router("c") as c:
        to_a.freeze()
        to_b.target = lambda: c.address
        to_b.reset_connections()
        await a.observer.wait_for_events(("up", "b"), ("down", "b", "unreachable"), ("up", "c"), ("gone", "b"))
        assert a.mesh.unreachable() == {}


async def test_unreachable_peer_is_gone_once_another_peer_is_expected_at_its_address() -> None:
    async with two_routers_with_relays() as (a, _, to_a, to_b):
        to_a.freeze()
        to_b.freeze()
        await a.observer.wait_for_events(("up", "b"), ("down", "b", "unreachable"))
        a.mesh.set_expected_peers({to_b.address: "c"})
        assert a.observer.events[2:] == [("gone", "b")]
