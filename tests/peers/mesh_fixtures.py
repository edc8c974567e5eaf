"""The meshes of routers on real sockets, with recorded events, and TCP relays between them.

A relay can freeze, reset, record and alter connections."""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from typing import Any

from router.peers.dialer import DialPolicy, PeerAddress
from router.peers.handshake import SUPPORTED_VERSIONS, ProtocolVersions
from router.peers.link import LinkLimits
from router.peers.mesh import Mesh
from router.peers.messages import Message
from router.peers.tls_stream import LinkTls, PinnedTls

SECRET = b"correct horse battery"
OTHER_SECRET = b"another secret, as long"
TIMEOUT_SECONDS = 30.0
FAST_LIMITS = LinkLimits(handshake_seconds=1.0, heartbeat_seconds=0.02, dead_after_seconds=0.2)
FAST_DIALING = DialPolicy(connect_timeout_seconds=1.0, first_retry_seconds=0.01, max_retry_seconds=0.05)


async def eventually(condition: Callable[[], object]) -> None:
    """Poll until `condition` is true."""
    async with asyncio.timeout(TIMEOUT_SECONDS):
        while not condition():
            await asyncio.sleep(0.005)


class RecordingObserver:
    """Records the calls of a mesh. A test can wait for them."""

    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []
        """In order: ("up", peer), ("down", peer, "ended" or "unreachable"), ("gone", peer)."""
        self.messages: list[tuple[str, Message]] = []
        self._changed = asyncio.Event()

    def on_peer_up(self, peer: str, incarnation: str) -> None:
        self._record(("up", peer))

    def on_peer_down(self, peer: str, process_ended: bool) -> None:
        self._record(("down", peer, "ended" if process_ended else "unreachable"))

    def on_peer_gone(self, peer: str) -> None:
        self._record(("gone", peer))

    def on_peer_message(self, peer: str, message: Message) -> None:
        self.messages.append((peer, message))
        self._changed.set()

    def _record(self, event: tuple[Any, ...]) -> None:
        self.events.append(event)
        self._changed.set()

    async def wait_until(self, condition: Callable[[], object]) -> None:
        """Wait until `condition` is true. It is checked after each event and message."""
        async with asyncio.timeout(TIMEOUT_SECONDS):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    async def wait_for_events(self, *events: tuple[Any, ...]) -> None:
        """Wait until `len(events)` events are recorded, and check that they are equal to `events`."""
        await self.wait_until(lambda: len(self.events) >= len(events))
        assert self.events == [*events], self.events


class Router:
    """A running mesh and its observer."""

    def __init__(self, mesh: Mesh, observer: RecordingObserver) -> None:
        self.mesh = mesh
        self.observer = observer

    @property
    def address(self) -> PeerAddress:
        return (self.mesh.own.host, self.mesh.own.port)

    async def wait_for_links(self, *peers: str) -> None:
        await self.observer.wait_until(lambda: self.mesh.live() >= set(peers))

    async def wait_until_dialing(self, peer: str) -> None:
        """Wait until this router has verified that `peer` listens at the address that it gave in the handshake."""
        await eventually(lambda: [dialer.peer for dialer in self.mesh._dialers] == [peer])


@contextlib.asynccontextmanager
async def running_router(
    name: str,
    listen: PeerAddress | socket.socket = ("127.0.0.1", 0),
    *,
    expected: dict[PeerAddress, str | None] | None = None,
    secret: bytes = SECRET,
    limits: LinkLimits = FAST_LIMITS,
    versions: ProtocolVersions = SUPPORTED_VERSIONS,
    incarnation: str | None = None,
    server_context: ssl.SSLContext | None = None,
    client_context: ssl.SSLContext | None = None,
    pinned_tls: PinnedTls | None = None,
) -> AsyncIterator[Router]:
    """Run a router's mesh."""
    observer = RecordingObserver()
    mesh = Mesh(
        name,
        listen,
        secret,
        observer,
        limits=limits,
        dial_policy=FAST_DIALING,
        versions=versions,
        incarnation=incarnation,
        tls=LinkTls(pinned_tls, server_context, client_context),
    )
    mesh.set_expected_peers(expected or {})
    await mesh.start()
    try:
        yield Router(mesh, observer)
    finally:
        await mesh.stop()


def unused_address(host: str = "127.0.0.1") -> PeerAddress:
    """Return the address of a port on which no process listens."""
    with socket.socket() as sock:
        sock.bind((host, 0))
        return (host, sock.getsockname()[1])


class Relay:
    """A TCP relay in front of a router. `to_target` is True for data sent to that router."""

    def __init__(self, target: Callable[[], PeerAddress]) -> None:
        self.target = target
        self.recorded: list[tuple[bytes, bool]] = []  # data, to_target
        self.alter: Callable[[bytes, bool], bytes] = lambda data, to_target: data
        self.connections = 0
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._thawed = asyncio.Event()
        self._thawed.set()
        self._stopped = False

    @property
    def address(self) -> PeerAddress:
        assert self._server is not None
        host, port = self._server.sockets[0].getsockname()
        return (host, port)

    def freeze(self) -> None:
        """Hold back all data and keep the connections open, like an unplugged cable or a stopped process."""
        self._thawed.clear()

    def thaw(self) -> None:
        self._thawed.set()

    def reset_connections(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._relay, "127.0.0.1", 0)

    async def stop(self) -> None:
        assert self._server is not None
        self._stopped = True
        self._server.close()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._stopped:  # the connection was accepted just before `stop`
            writer.transport.abort()
            return
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        self.connections += 1
        try:
            await self._thawed.wait()
            target_reader, target_writer = await asyncio.open_connection(*self.target())
            self._writers.add(target_writer)
            try:
                directions = (self._pump(reader, target_writer, True), self._pump(target_reader, writer, False))
                tasks = [asyncio.ensure_future(direction) for direction in directions]
                try:
                    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for each in tasks:
                        each.cancel()
                    await asyncio.wait(tasks)
            finally:
                self._writers.discard(target_writer)
                target_writer.transport.abort()
        except (OSError, asyncio.CancelledError):
            pass  # the finally clauses close both sides
        finally:
            self._tasks.discard(task)
            self._writers.discard(writer)
            writer.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, to_target: bool) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                await self._thawed.wait()
                self.recorded.append((data, to_target))
                writer.write(self.alter(data, to_target))
                await writer.drain()


@contextlib.asynccontextmanager
async def relay_to(target: Callable[[], PeerAddress]) -> AsyncIterator[Relay]:
    """Run a relay."""
    relay = Relay(target)
    await relay.start()
    try:
        yield relay
    finally:
        await relay.stop()


@contextlib.asynccontextmanager
async def two_routers_with_relays(**settings: Any) -> AsyncIterator[tuple[Router, Router, Relay, Relay]]:
    """Run routers a and b that reach each other only through relays; yield a, b, the relay to a, the relay to b."""
    async with (
        running_router("a", **settings) as a,
        running_router("b", **settings) as b,
        relay_to(lambda: a.address) as to_a,
        relay_to(lambda: b.address) as to_b,
    ):
        a.mesh.set_expected_peers({to_b.address: "b"})
        b.mesh.set_expected_peers({to_a.address: "a"})
        await a.wait_for_links("b")
        await b.wait_for_links("a")
        yield a, b, to_a, to_b
