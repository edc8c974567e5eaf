"""Accepting clients: listening sockets, TLS handshakes, and the limits of both.

Contains: accepting, the certificate for new connections, and the pause of accepting when file descriptors run short.
Does not contain: parsing of what clients send (`client_connection`).

A connection whose TLS handshake is in progress is a `PendingHandshake`. It costs little, and counts against the limit
of connections. A `ClientConnection` replaces it when the handshake is done.

Each client connection may need a second descriptor, for its connection to a replica. While too few descriptors are
free, this process stops accepting: connections wait in the queues of the sockets, and no request in progress fails for
lack of a descriptor. The sockets stay open, so no waiting connection is lost.

Each worker accepts from its share of the sockets of a port; the supervisor assigns the shares (`accept_from`).
"""

from __future__ import annotations

import asyncio
import logging
import resource
import socket
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from time import monotonic
from typing import cast

from router.gateway.client_connection import ClientConnection
from router.gateway.client_registry import ClientRegistry
from router.gateway.context import GatewayContext, Http2Client
from router.http import http1, responses
from router.net.tls import CertificatePair, ReloadableContext, server_context
from router.telemetry.log import event

_log = logging.getLogger("router.gateway")

BACKLOG = 4096
# Timeout of closing a TLS connection, in which both sides send a closing alert.
_TLS_SHUTDOWN_SECONDS = 5.0
_RESERVED_DESCRIPTORS = 64  # channel, listening sockets, event loop, log, and short-lived descriptors
_WARNING_INTERVAL_SECONDS = 10.0  # between two log lines about a pause
_RESUME_MARGIN = 16  # accepting resumes once 1/16 of the limit is free


def raise_descriptor_limit() -> int:
    """Raise the soft limit of file descriptors to the hard limit, and return it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard if hard != resource.RLIM_INFINITY else 2**31


def max_clients(descriptors: int, to_replicas: int) -> int:
    """Return the maximum number of clients for a limit of descriptors, of which `to_replicas` are in use by replicas.

    An eighth of the descriptors is kept free, as a client that starts a request may need another one for a replica.
    """
    return max(descriptors - descriptors // 8 - _RESERVED_DESCRIPTORS - to_replicas, 1)


@dataclass(slots=True)
class _Listener:
    """A listening socket, and the server that accepts from it. `number` is its index among the sockets of its port."""

    sock: socket.socket
    number: int
    tls: bool
    server: asyncio.Server | None = None

    def stop(self) -> None:
        """Stop accepting."""
        if self.server is not None:
            self.server.close()
            self.server = None


class Acceptor:
    """The listening sockets of one gateway. Every method must be called in its event loop."""

    def __init__(self, context: GatewayContext, clients: ClientRegistry, descriptors: int) -> None:
        """`descriptors` is the limit of file descriptors of this process."""
        self.handshakes = 0  # in progress
        self._context = context
        self._clients = clients
        self._loop = asyncio.get_running_loop()
        self._descriptors = descriptors
        self._max_clients = max_clients(descriptors, 0)
        self._listeners: list[_Listener] = []
        self._numbers: frozenset[int] | None = None  # of the listeners to accept from; None: all
        # Without a certificate, which the router may lack at its start, all handshakes fail.
        self._tls_context = ReloadableContext(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
        self._tls_context.handshake_allowed = self._may_handshake
        self._resuming: asyncio.Task[None] | None = None
        self._paused = self._closed = False
        self._warned_at = -_WARNING_INTERVAL_SECONDS

    def set_certificate(self, pair: CertificatePair) -> None:
        """Use this certificate for new connections. Raises `ssl.SSLError`."""
        self._tls_context.current = server_context(pair, http2=self._context.http2_client is not None)

    async def open(self, sock: socket.socket, number: int = 0, *, tls: bool = False) -> None:
        """Accept clients from a bound socket if its number is in this worker's share. Takes over the socket."""
        listener = _Listener(sock, number, tls)
        self._listeners.append(listener)
        if self._is_ours(listener):
            await self._listen(listener)

    def accept_from(self, numbers: frozenset[int]) -> None:
        """Accept from the listeners of these numbers only."""
        self._numbers = numbers
        for listener in self._listeners:
            if not self._is_ours(listener):
                listener.stop()
        if self._listeners and not self._paused and not self._closed:
            self._resume()

    def _is_ours(self, listener: _Listener) -> bool:
        return self._numbers is None or listener.number in self._numbers

    async def _listen(self, listener: _Listener) -> None:
        sock = listener.sock.dup()
        try:
            if listener.tls:
                listener.server = await self._loop.create_server(
                    self._new_handshake,
                    sock=sock,
                    backlog=BACKLOG,
                    ssl=self._tls_context,
                    ssl_handshake_timeout=self._context.settings.client_head_timeout_seconds,
                    ssl_shutdown_timeout=_TLS_SHUTDOWN_SECONDS,
                )
            else:
                listener.server = await self._loop.create_server(self._new_client, sock=sock, backlog=BACKLOG)
        except BaseException:
            sock.close()
            raise

    async def drain_accept_queue(self) -> None:
        """Accept all connections in the queues of the sockets: closing the last descriptor of a socket resets them."""
        accepting = []
        for listener in self._listeners:
            if listener.server is not None:
                accepting += [self._take_over(listener, sock) for sock in _queued_connections(listener.sock)]
        for failure in await asyncio.gather(*accepting, return_exceptions=True):
            if isinstance(failure, Exception) and not isinstance(failure, OSError):  # OSError: the client has left
                event(_log, logging.ERROR, "queued connection could not be accepted", exception=failure)

    async def _take_over(self, listener: _Listener, sock: socket.socket) -> None:
        if listener.tls:
            await self._loop.connect_accepted_socket(
                self._new_handshake,
                sock,
                ssl=self._tls_context,
                ssl_handshake_timeout=self._context.settings.client_head_timeout_seconds,
                ssl_shutdown_timeout=_TLS_SHUTDOWN_SECONDS,
            )
        else:
            await self._loop.connect_accepted_socket(self._new_client, sock)

    def close(self) -> None:
        """Stop accepting. Queued connections stay in the queues, for other processes that have these sockets."""
        self._closed = True
        if self._resuming is not None:
            self._resuming.cancel()
        self._stop_listening()
        for listener in self._listeners:
            listener.sock.close()
        self._listeners.clear()

    # New connections.

    def _new_client(self) -> asyncio.Protocol:
        self._check_limit()
        return cast(asyncio.Protocol, ClientConnection(self._context, self._clients))

    def _new_handshake(self) -> PendingHandshake:
        self._check_limit()
        return PendingHandshake(self)

    def _check_limit(self) -> None:
        if self._clients.count + self.handshakes < self._max_clients or self._paused:
            return
        if not self._clients.evict_idle(monotonic()):
            self._loop.call_soon(self._pause)  # not at once: a connection is being accepted

    def _may_handshake(self) -> bool:
        """Return True if the number of connections, including the new one, is within the limit."""
        if self._clients.count + self.handshakes <= self._context.settings.max_client_connections:
            return True
        if self._clients.evict_idle(monotonic()):
            return True
        self._context.counters.connections_refused += 1
        return False

    def on_handshake_done(self, transport: asyncio.BaseTransport) -> None:
        """Replace a `PendingHandshake` with a client connection."""
        counters = self._context.counters
        counters.tls_handshakes += 1
        if transport.get_extra_info("ssl_object").session_reused:
            counters.tls_sessions_resumed += 1
        client: ClientConnection | Http2Client
        http2_client = self._context.http2_client
        if http2_client is not None and transport.get_extra_info("ssl_object").selected_alpn_protocol() == "h2":
            client = http2_client(self._context, self._clients, True)
        else:
            client = ClientConnection(self._context, self._clients, secure=True)
        cast(asyncio.Transport, transport).set_protocol(cast(asyncio.Protocol, client))
        client.connection_made(transport)

    def on_plain_http(self, transport: asyncio.Transport) -> None:
        """Respond to a client that sent plain HTTP."""
        self.on_handshake_failed()
        date = self._context.wall_clock()
        transport.write(
            http1.local_response(
                responses.HTTP_ON_TLS_PORT, [], date=date, keep_alive=False, http11=True, bodiless=False
            )
        )
        transport.close()

    def on_handshake_failed(self) -> None:
        """Count a handshake that was not completed."""
        self.handshakes -= 1
        self._context.counters.tls_handshake_failures += 1

    # File descriptors.

    def check_descriptors(self, connections_to_replicas: Callable[[], int]) -> None:
        """Pause or resume accepting. Must be called several times a second.

        `connections_to_replicas` is only called if many descriptors are in use, as it is slow.
        """
        connections = self._clients.count + self.handshakes
        if connections * 4 < self._descriptors and not self._paused:
            return
        self._max_clients = max_clients(self._descriptors, connections_to_replicas())
        resume_below = self._max_clients - self._max_clients // _RESUME_MARGIN
        now = monotonic()
        while connections >= (resume_below if self._paused else self._max_clients) and self._clients.evict_idle(now):
            connections -= 1
        if connections >= self._max_clients:
            self._pause()
        elif self._paused and connections < resume_below:
            self._resume()

    def _pause(self) -> None:
        if self._paused or self._closed:
            return
        self._paused = True
        self._stop_listening()
        self._context.counters.accept_pauses += 1
        now = self._loop.time()
        if now - self._warned_at >= _WARNING_INTERVAL_SECONDS:
            self._warned_at = now
            event(
                _log, logging.WARNING, "accepting clients is paused, file descriptors run short",
                limit=self._descriptors, connections=len(self._clients),
            )  # fmt: skip

    def _stop_listening(self) -> None:
        for listener in self._listeners:
            listener.stop()

    def _resume(self) -> None:
        if self._resuming is None or self._resuming.done():
            self._resuming = asyncio.ensure_future(self._listen_again())

    async def _listen_again(self) -> None:
        try:
            while (
                stopped := next((x for x in self._listeners if x.server is None and self._is_ours(x)), None)
            ) is not None:
                await self._listen(stopped)
                if not self._is_ours(stopped):
                    stopped.stop()
        except OSError as error:  # still no descriptor; the next check tries again
            event(_log, logging.WARNING, "accepting clients cannot resume yet", error=str(error))
        else:
            self._paused = False


def _queued_connections(sock: socket.socket) -> Iterator[socket.socket]:
    """Accept the connections in the queue of a listening socket."""
    while True:
        try:
            accepted, _ = sock.accept()
        except OSError:  # BlockingIOError: the queue is empty; another error would occur again
            return
        accepted.setblocking(False)
        yield accepted


class PendingHandshake(asyncio.Protocol):
    """A connection whose TLS handshake is in progress.

    The event loop does not report a failed handshake, it only drops this object, which is detected in `__del__`. So
    this object must not be part of a reference cycle.
    """

    __slots__ = ("_acceptor", "_done")

    def __init__(self, acceptor: Acceptor) -> None:
        self._acceptor = acceptor
        self._done = False
        acceptor.handshakes += 1

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._done = True
        if transport.get_extra_info("ssl_object").plain:
            self._acceptor.on_plain_http(cast(asyncio.Transport, transport))
            return
        self._acceptor.handshakes -= 1
        self._acceptor.on_handshake_done(transport)

    def __del__(self) -> None:
        if not self._done:
            self._acceptor.on_handshake_failed()
