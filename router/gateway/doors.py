"""Where clients come in: listening sockets, TLS hand-shakes, and what may not run out through them.

Lives here: accepting, the certificate shown to new connections, and the pause of accepting when file descriptors run
short. Must not live here: what clients say (`downstream`).

A connection whose hand-shake is under way is a `Newcomer`, which costs little and counts against the limit of
connections like any other. A client's connection is made of it when the hand-shake is done.

Each client in service may need a second descriptor, for its replica. While there are too few, this process stops to
listen: connections wait in the queues of its sockets, and no request in service fails for want of one. The sockets
stay open, so nothing that waits is lost.

Of the sockets of a port each worker accepts from its share; who has which is told by the supervisor (`accept_from`).
"""

from __future__ import annotations

import asyncio
import logging
import resource
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from router.gateway.downstream import ClientConnection
from router.telemetry.log import event
from router.tls import Material, RenewableContext, server_context

if TYPE_CHECKING:
    from router.gateway.gateway import Gateway

_log = logging.getLogger("router.gateway")

BACKLOG = 4096
# After `close` on a TLS connection both sides say so; who says nothing is given this long.
_FAREWELL_SECONDS = 5.0
_OWN_DESCRIPTORS = 64  # channel, listening sockets, event loop, log; and those of a moment
_COMPLAINT_SECONDS = 10.0


def raise_descriptor_limit() -> int:
    """Allow this process as many file descriptors as it may have. The number."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard if hard != resource.RLIM_INFINITY else 2**31


def connections_for(descriptors: int, upstream: int) -> int:
    """Clients that may be in service with so many file descriptors, of which `upstream` are used towards replicas.

    An eighth is kept free: a client that begins a request may need one more.
    """
    return max(descriptors - descriptors // 8 - _OWN_DESCRIPTORS - upstream, 1)


@dataclass(slots=True)
class _Door:
    """One socket, and what accepts from it while it is open. `number`: its place among those of its port."""

    sock: socket.socket
    number: int
    tls: bool
    server: asyncio.Server | None = None

    def stop(self) -> None:
        """Accept no more."""
        if self.server is not None:
            self.server.close()
            self.server = None


class Doors:
    """The listening sockets of one gateway. Every method must be called in its event loop."""

    def __init__(self, gateway: Gateway, descriptors: int) -> None:
        self.handshakes = 0  # under way
        self._gateway = gateway
        self._loop = asyncio.get_running_loop()
        self._descriptors = descriptors
        self._room = connections_for(descriptors, 0)
        self._doors: list[_Door] = []
        self._numbers: frozenset[int] | None = None  # of the doors to accept at; None: all
        self._context: RenewableContext | None = None
        self._reopening: asyncio.Task[None] | None = None
        self._paused = self._closed = False
        self._complained_at = -_COMPLAINT_SECONDS

    def renew_certificate(self, material: Material) -> None:
        """Show this certificate to whoever connects from now on. Raises `ssl.SSLError`."""
        current = server_context(material)
        if self._context is None:
            self._context = RenewableContext(current)
            self._context.may_begin = self._may_shake_hands
        else:
            self._context.current = current

    async def open(self, sock: socket.socket, number: int = 0, *, tls: bool = False) -> None:
        """Accept clients from a bound socket, if its number is one to accept from. It belongs to this from now on."""
        door = _Door(sock, number, tls)
        self._doors.append(door)
        if self._is_ours(door):
            await self._listen(door)

    def accept_from(self, numbers: frozenset[int]) -> None:
        """Accept from the sockets of these numbers alone. What waits at others is somebody else's to accept."""
        self._numbers = numbers
        for door in self._doors:
            if not self._is_ours(door):
                door.stop()
        if self._doors and not self._paused and not self._closed and not self._is_reopening:
            self._reopening = asyncio.ensure_future(self._reopen())

    def _is_ours(self, door: _Door) -> bool:
        return self._numbers is None or door.number in self._numbers

    async def _listen(self, door: _Door) -> None:
        sock = door.sock.dup()
        try:
            if door.tls:
                assert self._context is not None, "a certificate must be there first"
                door.server = await self._loop.create_server(
                    self._newcomer,
                    sock=sock,
                    backlog=BACKLOG,
                    ssl=self._context,
                    ssl_handshake_timeout=self._gateway.settings.client_head_timeout_seconds,
                    ssl_shutdown_timeout=_FAREWELL_SECONDS,
                )
            else:
                door.server = await self._loop.create_server(self._client, sock=sock, backlog=BACKLOG)
        except BaseException:
            sock.close()
            raise

    async def take_in_who_waits(self) -> None:
        """Accept all that are in the sockets' queues: closing the last descriptor of one resets who waits there."""
        taken = []
        for door in self._doors:
            if door.server is not None:
                taken += [self._take_in(door, sock) for sock in _waiting(door.sock)]
        for failure in await asyncio.gather(*taken, return_exceptions=True):
            if isinstance(failure, Exception) and not isinstance(failure, OSError):  # as OSError, the client has left
                event(_log, logging.ERROR, "connection could not be taken in", exception=failure)

    async def _take_in(self, door: _Door, sock: socket.socket) -> None:
        if door.tls:
            await self._loop.connect_accepted_socket(
                self._newcomer,
                sock,
                ssl=self._context,
                ssl_handshake_timeout=self._gateway.settings.client_head_timeout_seconds,
                ssl_shutdown_timeout=_FAREWELL_SECONDS,
            )
        else:
            await self._loop.connect_accepted_socket(self._client, sock)

    def close(self) -> None:
        """Accept no more. Connections that wait stay in the sockets' queues, for whoever else has these sockets."""
        self._closed = True
        if self._reopening is not None:
            self._reopening.cancel()
        self._stop_accepting()
        for door in self._doors:
            door.sock.close()
        self._doors.clear()

    # Who comes in.

    def _client(self) -> asyncio.Protocol:
        self._count()
        return cast(asyncio.Protocol, ClientConnection(self._gateway))

    def _newcomer(self) -> Newcomer:
        self._count()
        return Newcomer(self)

    def _count(self) -> None:
        if self._gateway.connections + self.handshakes >= self._room and not self._paused:
            self._loop.call_soon(self._pause)  # the connection at hand is still being accepted

    def _may_shake_hands(self) -> bool:
        """Whether one more connection is within the limit; the one that is asked for is counted already."""
        if self._gateway.connections + self.handshakes <= self._gateway.settings.max_client_connections:
            return True
        self._gateway.counters.connections_refused += 1
        return False

    def welcome(self, transport: asyncio.BaseTransport) -> None:
        """A hand-shake is done: its connection begins."""
        counters = self._gateway.counters
        counters.tls_handshakes += 1
        if transport.get_extra_info("ssl_object").session_reused:
            counters.tls_sessions_resumed += 1
        client = ClientConnection(self._gateway, secure=True)
        cast(asyncio.Transport, transport).set_protocol(cast(asyncio.Protocol, client))
        client.connection_made(transport)

    def handshake_failed(self) -> None:
        """A newcomer is gone before it became a client."""
        self.handshakes -= 1
        self._gateway.counters.tls_handshake_failures += 1

    # File descriptors.

    def look(self, upstream: Callable[[], int]) -> None:
        """Begin or end the pause as there are descriptors; called a few times a second. `upstream` counts the
        connections to replicas, and is asked only where that may matter."""
        connections = self._gateway.connections + self.handshakes
        if connections * 4 < self._descriptors and not self._paused:
            return
        self._room = connections_for(self._descriptors, upstream())
        if connections >= self._room:
            self._pause()
        elif self._paused and connections < self._room - self._room // 16 and not self._is_reopening:
            self._reopening = asyncio.ensure_future(self._reopen())

    @property
    def _is_reopening(self) -> bool:
        return self._reopening is not None and not self._reopening.done()

    def _pause(self) -> None:
        if self._paused or self._closed:
            return
        self._paused = True
        self._stop_accepting()
        self._gateway.counters.accept_pauses += 1
        now = self._loop.time()
        if now - self._complained_at >= _COMPLAINT_SECONDS:
            self._complained_at = now
            event(
                _log, logging.WARNING, "accepting clients pauses, file descriptors run short",
                limit=self._descriptors, connections=self._gateway.connections,
            )  # fmt: skip

    def _stop_accepting(self) -> None:
        for door in self._doors:
            door.stop()

    async def _reopen(self) -> None:
        try:
            while (door := next((d for d in self._doors if d.server is None and self._is_ours(d)), None)) is not None:
                await self._listen(door)
                if not self._is_ours(door):
                    door.stop()
        except OSError as error:  # still none to be had; the next look tries again
            event(_log, logging.WARNING, "accepting clients cannot go on yet", error=str(error))
        else:
            self._paused = False


def _waiting(sock: socket.socket) -> Iterator[socket.socket]:
    """The connections in a listening socket's queue."""
    while True:
        try:
            accepted, _ = sock.accept()
        except OSError:  # BlockingIOError: there are no more; anything else: nor will there be
            return
        accepted.setblocking(False)
        yield accepted


class Newcomer(asyncio.Protocol):
    """A connection whose TLS hand-shake is under way.

    Nobody is told when that fails, only the object goes: so it must be in no cycle of references.
    """

    __slots__ = ("_arrived", "_doors")

    def __init__(self, doors: Doors) -> None:
        self._doors = doors
        self._arrived = False
        doors.handshakes += 1

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._arrived = True
        self._doors.handshakes -= 1
        self._doors.welcome(transport)

    def __del__(self) -> None:
        if not self._arrived:
            self._doors.handshake_failed()
