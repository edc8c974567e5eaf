"""Links over TLS, with certificates of a common authority."""

import asyncio
import ssl

import pytest
import trustme

from router.peers import messages
from tests.peers.mesh_fixtures import OTHER_SECRET, eventually, running_router

MESSAGE = messages.OwnerSyncComplete("iris")


class Authority:
    """Issues certificates for 127.0.0.1."""

    def __init__(self) -> None:
        self._authority = trustme.CA()
        self._certificate = self._authority.issue_cert("127.0.0.1")

    def server_context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.verify_mode = ssl.CERT_REQUIRED
        return self._configured(context)

    def client_context(self) -> ssl.SSLContext:
        return self._configured(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))

    def client_context_without_certificate(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._authority.configure_trust(context)
        return context

    def _configured(self, context: ssl.SSLContext) -> ssl.SSLContext:
        self._certificate.configure_cert(context)
        self._authority.configure_trust(context)
        return context


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


async def test_routers_exchange_messages_and_goodbye_over_tls(authority: Authority) -> None:
    async with running_router(
        "a", server_context=authority.server_context(), client_context=authority.client_context()
    ) as a:
        async with running_router(
            "b",
            expected={a.address: None},
            server_context=authority.server_context(),
            client_context=authority.client_context(),
        ) as b:
            await b.wait_for_links("a")
            await a.wait_for_links("b")
            large = messages.OwnerSyncComplete("x" * 1_000_000)
            for number in range(20):
                b.mesh.send("a", messages.OwnerSyncComplete(str(number)))
            b.mesh.send("a", large)
            await a.observer.wait_until(lambda: len(a.observer.messages) == 21)
            assert a.observer.messages[-1] == ("b", large)
            a.mesh.send("b", MESSAGE)
            await b.observer.wait_until(lambda: b.observer.messages == [("a", MESSAGE)])
        await a.observer.wait_for_events(("up", "b"), ("down", "b", "ended"))


async def test_peer_without_a_certificate_or_without_tls_is_refused(authority: Authority) -> None:
    async with (
        running_router("a", server_context=authority.server_context(), client_context=authority.client_context()) as a,
        running_router("b", expected={a.address: None}, client_context=authority.client_context_without_certificate()),
        running_router("c", expected={a.address: None}),
    ):
        await eventually(lambda: a.mesh.refusals.get("tls", 0) >= 4)
        assert a.observer.events == []


async def test_certificate_of_another_authority_is_refused(authority: Authority) -> None:
    other = Authority()
    async with (
        running_router("a", server_context=other.server_context(), client_context=other.client_context()) as a,
        running_router("b", expected={a.address: "a"}, client_context=authority.client_context()) as b,
    ):
        await eventually(lambda: b.mesh.refusals.get("tls", 0) >= 2)
        assert a.observer.events == []
        assert b.observer.events == [("down", "a", "unreachable")]


async def test_peer_with_a_certificate_but_another_secret_is_refused(authority: Authority) -> None:
    async with (
        running_router("a", server_context=authority.server_context(), client_context=authority.client_context()) as a,
        running_router("b", expected={a.address: None}, client_context=authority.client_context(), secret=OTHER_SECRET),
    ):
        await eventually(lambda: a.mesh.refusals.get("secret"))
        assert a.observer.events == []


async def test_silent_connection_times_out_in_the_tls_handshake(authority: Authority) -> None:
    async with running_router(
        "a", server_context=authority.server_context(), client_context=authority.client_context()
    ) as a:
        reader, writer = await asyncio.open_connection(*a.address)
        assert await reader.read() == b""
        writer.transport.abort()
        await eventually(lambda: a.mesh.refusals == {"tls": 1})
