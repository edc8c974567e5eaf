"""Links over TLS, both ends with certificates of one authority."""

import asyncio
import ssl

import pytest
import trustme

from router.peers import messages
from tests.peers.world import eventually, router, run

HELLO = messages.Told("iris")


class Authority:
    """Issues certificates for 127.0.0.1."""

    def __init__(self) -> None:
        self._authority = trustme.CA()
        self._certificate = self._authority.issue_cert("127.0.0.1")

    def server(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.verify_mode = ssl.CERT_REQUIRED
        return self._ready(context)

    def client(self) -> ssl.SSLContext:
        return self._ready(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))

    def client_without_certificate(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._authority.configure_trust(context)
        return context

    def _ready(self, context: ssl.SSLContext) -> ssl.SSLContext:
        self._certificate.configure_cert(context)
        self._authority.configure_trust(context)
        return context


@pytest.fixture(scope="module")
def ours() -> Authority:
    return Authority()


def test_routers_are_linked_over_tls_and_say_goodbye(ours: Authority) -> None:
    async def story() -> None:
        async with router("a", ssl_server=ours.server(), ssl_client=ours.client()) as a:
            async with router(
                "b", expects={a.address: None}, ssl_server=ours.server(), ssl_client=ours.client()
            ) as b:  # fmt: skip
                await b.is_linked_with("a")
                await a.is_linked_with("b")
                large = messages.Told("x" * 1_000_000)
                for number in range(20):
                    b.mesh.send("a", messages.Told(str(number)))
                b.mesh.send("a", large)
                await a.ears.until(lambda: len(a.ears.said) == 21)
                assert a.ears.said[-1] == ("b", large)
                a.mesh.send("b", HELLO)
                await b.ears.until(lambda: b.ears.said == [("a", HELLO)])
            await a.ears.hears(("up", "b"), ("down", "b", True))

    run(story())


def test_a_client_without_a_certificate_or_without_tls_is_refused(ours: Authority) -> None:
    async def story() -> None:
        async with (
            router("a", ssl_server=ours.server(), ssl_client=ours.client()) as a,
            router("b", expects={a.address: None}, ssl_client=ours.client_without_certificate()),
            router("c", expects={a.address: None}),
        ):
            await eventually(lambda: a.mesh.refusals.get("tls", 0) >= 4)
            assert a.ears.events == []

    run(story())


def test_a_server_of_another_authority_is_refused(ours: Authority) -> None:
    async def story() -> None:
        theirs = Authority()
        async with (
            router("a", ssl_server=theirs.server(), ssl_client=theirs.client()) as a,
            router("b", expects={a.address: "a"}, ssl_client=ours.client()) as b,
        ):
            await eventually(lambda: b.mesh.refusals.get("tls", 0) >= 2)
            assert a.ears.events == []
            assert b.ears.events == [("down", "a", False)]

    run(story())


def test_tls_does_not_take_the_place_of_the_secret(ours: Authority) -> None:
    async def story() -> None:
        async with (
            router("a", ssl_server=ours.server(), ssl_client=ours.client()) as a,
            router("b", expects={a.address: None}, ssl_client=ours.client(), secret=b"another secret, as long"),
        ):
            await eventually(lambda: a.mesh.refusals.get("secret"))
            assert a.ears.events == []

    run(story())


def test_who_says_nothing_instead_of_tls_does_not_stay(ours: Authority) -> None:
    async def story() -> None:

        async with router("a", ssl_server=ours.server(), ssl_client=ours.client()) as a:
            reader, writer = await asyncio.open_connection(*a.address)
            assert await reader.read() == b""
            writer.transport.abort()
            await eventually(lambda: a.mesh.refusals == {"tls": 1})

    run(story())
