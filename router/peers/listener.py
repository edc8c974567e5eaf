"""The listening socket for peers: accepts connections, and limits the number of handshakes in progress.

Attackers may open any number of connections and send nothing. If there are too many handshakes in progress, the oldest
connection is closed. A peer needs a few milliseconds for its handshake, so an attacker would have to open
`MAX_HANDSHAKES` connections within this time to displace it. If new connections were refused instead, an attacker could
lock peers out permanently.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable

from router.net.address import unmapped
from router.peers.close_reason import CloseReason
from router.peers.link import Link
from router.telemetry.log import event

_log = logging.getLogger("router.peers")

MAX_HANDSHAKES = 64
"""Maximum number of handshakes in progress, including TLS handshakes."""

_BACKLOG = 128
_ACCEPTS_PER_TURN = 16  # of the event loop, so that other callbacks are not delayed
_ACCEPT_RETRY_SECONDS = 1.0  # after accept() failed, for example because file descriptors ran out


class PeerListener:
    """Accepts connections from a listening socket, and closes the socket at the end.

    `make_link(source)` makes the link of a connection. With `context`, connections use TLS from their first byte, and
    their TLS handshake may take `tls_handshake_seconds`.
    """

    def __init__(
        self,
        sock: socket.socket,
        make_link: Callable[[str], Link],
        context: ssl.SSLContext | None,
        tls_handshake_seconds: float,
    ) -> None:
        self._sock = sock
        self._make_link = make_link
        self._context = context
        self._tls_handshake_seconds = tls_handshake_seconds
        self._retry_timer: asyncio.TimerHandle | None = None
        self._handshakes: dict[asyncio.Task[None], Link] = {}  # oldest first

    def start(self) -> None:
        """Start to accept connections."""
        self._sock.setblocking(False)
        self._sock.listen(_BACKLOG)
        self._resume()

    async def stop(self) -> None:
        """Close the socket and the connections in the handshake."""
        self._pause()
        self._sock.close()
        tasks = [*self._handshakes]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _resume(self) -> None:
        # Not loop.sock_accept: cancelling it leaks a connection that arrives at that moment.
        asyncio.get_running_loop().add_reader(self._sock, self._accept)

    def _pause(self) -> None:
        asyncio.get_running_loop().remove_reader(self._sock)
        if self._retry_timer is not None:
            self._retry_timer.cancel()
            self._retry_timer = None

    def _accept(self) -> None:
        for _ in range(_ACCEPTS_PER_TURN):
            try:
                sock, address = self._sock.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:
                event(_log, logging.ERROR, "cannot accept connections of peers", exception=None, error=error)
                self._pause()
                self._retry_timer = asyncio.get_running_loop().call_later(_ACCEPT_RETRY_SECONDS, self._resume)
                return
            sock.setblocking(False)
            self._start_handshake(sock, unmapped(str(address[0])))
            if len(self._handshakes) > MAX_HANDSHAKES:
                self._drop_oldest_handshake()

    def _start_handshake(self, sock: socket.socket, source: str) -> None:
        link = self._make_link(source)
        task = asyncio.ensure_future(self._run_handshake(sock, link))
        self._handshakes[task] = link
        task.add_done_callback(lambda task: self._on_handshake_done(task, sock, link))

    def _drop_oldest_handshake(self) -> None:
        task = next(iter(self._handshakes))
        self._handshakes.pop(task).end(CloseReason.CROWDED)
        task.cancel()

    def _on_handshake_done(self, task: asyncio.Task[None], sock: socket.socket, link: Link) -> None:
        self._handshakes.pop(task, None)
        if not link.settled.is_set():
            link.end(CloseReason.STOPPED)
        if not link.was_connected:
            sock.close()  # no transport closes it

    async def _run_handshake(self, sock: socket.socket, link: Link) -> None:
        loop = asyncio.get_running_loop()
        try:
            if self._context is None:
                # Shielded: if it is cancelled, uvloop does not call `connection_lost`. It takes one turn of the loop.
                await asyncio.shield(loop.connect_accepted_socket(lambda: link, sock))
            else:
                await loop.connect_accepted_socket(
                    lambda: link, sock, ssl=self._context, ssl_handshake_timeout=self._tls_handshake_seconds
                )
        except OSError:
            link.end(CloseReason.TLS)
        else:
            await link.settled.wait()
