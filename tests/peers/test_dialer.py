"""What a failure to connect to a peer proves."""

import socket
from typing import Any

import pytest
import uvloop

from router.peers.close_reason import CloseReason
from router.peers.dialer import DialPolicy, connect
from router.peers.handshake import ClientHandshake, PeerIdentity
from router.peers.link import Link, LinkLimits
from tests.peers.link_sides import RecordingLinkObserver
from tests.peers.mesh_fixtures import SECRET, unused_address

POLICY = DialPolicy(connect_timeout_seconds=5.0, first_retry_seconds=0.05, max_retry_seconds=1.0)


def new_link() -> Link:
    handshake = ClientHandshake(PeerIdentity("a", PeerIdentity.new_incarnation(), "", 0), SECRET)
    return Link(RecordingLinkObserver(), handshake, source="127.0.0.1", limits=LinkLimits())


async def test_connect_is_refused_if_nothing_listens_at_any_address_of_a_name() -> None:
    _, port = unused_address()
    with pytest.raises(ConnectionRefusedError):
        await connect(("localhost", port), new_link, None, POLICY)


async def test_other_connect_errors_are_not_reported_as_refused() -> None:
    with pytest.raises(OSError, match=r"unreachable|denied") as caught:
        await connect(("255.255.255.255", 9091), new_link, None, POLICY)
    assert not isinstance(caught.value, ConnectionRefusedError)


async def test_tcp_self_connection_is_reported_as_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the kernel picks the dialed port as the ephemeral port, TCP connects the socket to itself."""
    address = unused_address()
    links: list[Link] = []
    create_connection = uvloop.Loop.create_connection

    async def create_connection_from_dialed_port(loop: Any, make_link: Any, *_: object, **__: object) -> object:
        sock = socket.socket()
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        await loop.sock_connect(sock, address)
        return await create_connection(loop, make_link, sock=sock)

    def make_link() -> Link:
        links.append(new_link())
        return links[-1]

    monkeypatch.setattr(uvloop.Loop, "create_connection", create_connection_from_dialed_port)
    with pytest.raises(ConnectionRefusedError):
        await connect(address, make_link, None, POLICY)
    assert [link.close_reason for link in links] == [CloseReason.STOPPED]
