"""Pauses between attempts, and what a failure to connect proves."""

import random
import socket
from typing import Any

import pytest
import uvloop

from router.peers.dialling import Backoff, DialPace, connect
from router.peers.endings import Ending
from router.peers.handshake import ClientHandshake, Party
from router.peers.link import Link, LinkLimits
from router.peers.wire import MessageReader
from tests.peers.by_hand import Owner
from tests.peers.world import SECRET, free_address, run

PACE = DialPace(connect_seconds=5.0, first_pause_seconds=0.05, longest_pause_seconds=1.0)


def a_link() -> Link:
    handshake = ClientHandshake(Party("a", Party.new_incarnation(), "", 0), SECRET)
    return Link(Owner(), handshake, "127.0.0.1", LinkLimits(), MessageReader())


def test_the_first_attempt_comes_at_once_and_later_ones_pause_up_to_the_longest() -> None:
    backoff = Backoff(PACE, random.Random(1))
    assert backoff.pause() == 0
    for whole in (0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0):
        assert whole / 2 <= backoff.pause() <= whole
    backoff.reset()
    assert backoff.pause() == 0
    assert backoff.pause() <= 0.05


def test_two_routers_do_not_dial_in_step() -> None:
    first, second = (Backoff(PACE, random.Random(seed)) for seed in (1, 2))
    assert [first.pause() for _ in range(5)][1:] != [second.pause() for _ in range(5)][1:]


def test_nobody_at_any_address_of_a_name_is_a_refusal() -> None:
    async def story() -> None:
        _, port = free_address()
        with pytest.raises(ConnectionRefusedError):
            await connect(("localhost", port), a_link, None, PACE)

    run(story())


def test_an_address_that_answers_with_an_error_other_than_a_refusal_proves_nothing() -> None:
    async def story() -> None:
        with pytest.raises(OSError, match=r"unreachable|denied") as caught:
            await connect(("255.255.255.255", 9091), a_link, None, PACE)
        assert not isinstance(caught.value, ConnectionRefusedError)

    run(story())


def test_a_connection_to_itself_is_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    """On its own host, the kernel may dial a free port from that very port, and TCP makes a connection of it."""
    address = free_address()
    links: list[Link] = []
    original = uvloop.Loop.create_connection

    async def from_the_dialled_port(loop: Any, make: Any, *_: object, **__: object) -> object:
        sock = socket.socket()
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        await loop.sock_connect(sock, address)
        return await original(loop, make, sock=sock)

    def make() -> Link:
        links.append(a_link())
        return links[-1]

    async def story() -> None:
        monkeypatch.setattr(uvloop.Loop, "create_connection", from_the_dialled_port)
        with pytest.raises(ConnectionRefusedError):
            await connect(address, make, None, PACE)
        assert [link.ending for link in links] == [Ending.STOPPED]

    run(story())
