"""What tests of links and meshes share: a loop that ends with nothing left open, meshes that are listened to, and a
network between them that can be frozen, cut, recorded and tampered with."""

import asyncio
import contextlib
import os
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import uvloop

from router.peers.dialling import Address, DialPace
from router.peers.encryption import Encryption, LinkTls
from router.peers.handshake import SUPPORTED, Versions
from router.peers.link import LinkLimits
from router.peers.mesh import Mesh
from router.peers.messages import Message

SECRET = b"correct horse battery"
PATIENCE_SECONDS = 10.0
QUICK = LinkLimits(handshake_seconds=1.0, heartbeat_seconds=0.02, dead_after_seconds=0.2)
QUICK_PACE = DialPace(connect_seconds=1.0, first_pause_seconds=0.01, longest_pause_seconds=0.05)


def run(work: Coroutine[Any, Any, None]) -> None:
    """Run a test's coroutine as the router would, on uvloop; no task and no socket outlives it."""

    async def watched() -> None:
        before = open_sockets()
        async with asyncio.timeout(PATIENCE_SECONDS * 2):
            await work
        await eventually(lambda: asyncio.all_tasks() == {asyncio.current_task()} and open_sockets() <= before)

    uvloop.run(watched())


def open_sockets() -> set[str]:
    """The sockets that this process has, by their inodes."""
    found = set()
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the one that lists them
            found.add(os.readlink(f"/proc/self/fd/{number}"))
    return {name for name in found if name.startswith("socket:")}


async def eventually(holds: Callable[[], object]) -> None:
    """Wait for what no callback tells."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not holds():
            await asyncio.sleep(0.005)


class Ears:
    """Listens to a mesh: remembers what it is told, and lets a test wait for it."""

    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []
        self.said: list[tuple[str, Message]] = []
        self._told = asyncio.Event()

    def peer_up(self, peer: str, incarnation: str) -> None:
        self._note(("up", peer))

    def peer_down(self, peer: str, certain: bool) -> None:
        self._note(("down", peer, certain))

    def peer_certainly_gone(self, peer: str) -> None:
        self._note(("gone", peer))

    def peer_said(self, peer: str, message: Message) -> None:
        self.said.append((peer, message))
        self._told.set()

    def _note(self, event: tuple[Any, ...]) -> None:
        self.events.append(event)
        self._told.set()

    async def until(self, holds: Callable[[], object]) -> None:
        """Wait until something holds that follows from what is told."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not holds():
                self._told.clear()
                await self._told.wait()

    async def hears(self, *events: tuple[Any, ...]) -> None:
        """Wait until these are all the events there were."""
        await self.until(lambda: len(self.events) >= len(events))
        assert self.events == [*events], self.events


class Router:
    """A mesh and who listens to it."""

    def __init__(self, mesh: Mesh, ears: Ears) -> None:
        self.mesh = mesh
        self.ears = ears

    @property
    def address(self) -> Address:
        return (self.mesh.own.host, self.mesh.own.port)

    async def is_linked_with(self, *peers: str) -> None:
        await self.ears.until(lambda: self.mesh.live() >= set(peers))


@contextlib.asynccontextmanager
async def router(
    name: str,
    listen: Address | socket.socket = ("127.0.0.1", 0),
    *,
    expects: dict[Address, str | None] | None = None,
    secret: bytes = SECRET,
    limits: LinkLimits = QUICK,
    pace: DialPace = QUICK_PACE,
    versions: Versions = SUPPORTED,
    incarnation: str | None = None,
    ssl_server: ssl.SSLContext | None = None,
    ssl_client: ssl.SSLContext | None = None,
    encryption: Encryption | None = None,
) -> AsyncIterator[Router]:
    """A router's mesh that runs; stopped at the end."""
    ears = Ears()
    mesh = Mesh(
        name,
        listen,
        secret,
        ears,
        limits=limits,
        pace=pace,
        versions=versions,
        incarnation=incarnation,
        tls=LinkTls(encryption, ssl_server, ssl_client),
    )
    mesh.set_expected(expects or {})
    await mesh.start()
    try:
        yield Router(mesh, ears)
    finally:
        await mesh.stop()


def free_address(host: str = "127.0.0.1") -> Address:
    """Where nobody listens at present."""
    with socket.socket() as sock:
        sock.bind((host, 0))
        return (host, sock.getsockname()[1])


Alter = Callable[[bytes, bool], bytes]


class Network:
    """A relay in front of a router. `towards` in what is recorded and altered: to that router, else from it."""

    def __init__(self, target: Callable[[], Address]) -> None:
        self.target = target
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._flows = asyncio.Event()
        self._flows.set()
        self._stopped = False
        self.recorded: list[tuple[bytes, bool]] = []
        self.alter: Alter = lambda data, towards: data
        self.connections = 0

    @property
    def address(self) -> Address:
        assert self._server is not None
        host, port = self._server.sockets[0].getsockname()
        return (host, port)

    def freeze(self) -> None:
        """Let nothing through, and keep all connections: as a cut cable does, or a process that is stopped."""
        self._flows.clear()

    def thaw(self) -> None:
        self._flows.set()

    def break_all(self) -> None:
        """Reset all connections."""
        for writer in self._writers:
            writer.transport.abort()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._carry, "127.0.0.1", 0)

    async def stop(self) -> None:
        assert self._server is not None
        self._stopped = True
        self._server.close()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._stopped:  # accepted just before
            writer.transport.abort()
            return
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        self.connections += 1
        try:
            await self._flows.wait()
            far_reader, far_writer = await asyncio.open_connection(*self.target())
            self._writers.add(far_writer)
            try:
                ways = (self._pump(reader, far_writer, True), self._pump(far_reader, writer, False))
                tasks = [asyncio.ensure_future(way) for way in ways]
                try:
                    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for each in tasks:
                        each.cancel()
                    await asyncio.wait(tasks)
            finally:
                self._writers.discard(far_writer)
                far_writer.transport.abort()
        except (OSError, asyncio.CancelledError):
            pass  # the connection ends with its other half
        finally:
            self._tasks.discard(task)
            self._writers.discard(writer)
            writer.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, towards: bool) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                await self._flows.wait()
                self.recorded.append((data, towards))
                writer.write(self.alter(data, towards))
                await writer.drain()


@contextlib.asynccontextmanager
async def network_to(target: Callable[[], Address]) -> AsyncIterator[Network]:
    """A relay that runs."""
    network = Network(target)
    await network.start()
    try:
        yield network
    finally:
        await network.stop()


@contextlib.asynccontextmanager
async def two_across_networks(**settings: Any) -> AsyncIterator[tuple[Router, Router, Network, Network]]:
    """Routers a and b that reach one another only through a network each: (a, b, network to a, network to b)."""
    async with (
        router("a", **settings) as a,
        router("b", **settings) as b,
        network_to(lambda: a.address) as to_a,
        network_to(lambda: b.address) as to_b,
    ):
        a.mesh.set_expected({to_b.address: "b"})
        b.mesh.set_expected({to_a.address: "a"})
        await a.is_linked_with("b")
        await b.is_linked_with("a")
        yield a, b, to_a, to_b


async def has_found(one: Router, peer: str) -> None:
    """The address that an unexpected peer has given is known to be its own."""
    await eventually(lambda: [pursuit.peer for pursuit in one.mesh._pursuits.values()] == [peer])
