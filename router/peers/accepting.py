"""The listening socket of a router: takes connections in until each has become a link, and bounds how many have not.

Strangers may come in any number and say nothing. Of the connections whose hand-shake is under way only the last ones
are kept: a peer needs a few milliseconds for its own, so that a crowd would have to come within these to push it out,
whereas it could lock peers out for good if newcomers were turned away.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable

from router.peers.endings import Ending
from router.peers.link import Link
from router.telemetry.log import event

_log = logging.getLogger("router.peers")

HANDSHAKES = 64
"""Connections that may be in their hand-shake, TLS included, at the same time."""

_BACKLOG = 128
_AT_ONCE = 16
_PAUSE_SECONDS = 1.0  # when the kernel gives no connection out, such as for want of file descriptors


def listening_socket(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises `OSError`."""
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind(address)
        sock.listen(_BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock


class Acceptor:
    """Accepts from a listening socket, which is its own from now on. `make(source)` makes the link of a connection."""

    def __init__(
        self, sock: socket.socket, make: Callable[[str], Link], context: ssl.SSLContext | None, tls_seconds: float
    ) -> None:
        self._sock = sock
        self._make = make
        self._context = context
        self._tls_seconds = tls_seconds
        self._pausing: asyncio.TimerHandle | None = None
        self._admissions: dict[asyncio.Task[None], Link] = {}  # oldest first

    def start(self) -> None:
        """Begin to accept."""
        self._sock.setblocking(False)
        self._sock.listen(_BACKLOG)
        self._resume()

    async def stop(self) -> None:
        """Stop to listen, and end what has not become a link."""
        self._pause()
        self._sock.close()
        tasks = [*self._admissions]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _resume(self) -> None:
        # Not the loop's sock_accept: when that is cancelled, a connection that came at this moment is lost and stays
        # open.
        asyncio.get_running_loop().add_reader(self._sock, self._accept)

    def _pause(self) -> None:
        asyncio.get_running_loop().remove_reader(self._sock)
        if self._pausing is not None:
            self._pausing.cancel()
            self._pausing = None

    def _accept(self) -> None:
        """Take in those who wait, but not all at once, as others want their turn of the loop, too."""
        for _ in range(_AT_ONCE):
            try:
                sock, address = self._sock.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:
                event(_log, logging.ERROR, "cannot accept peers", exception=None, error=error)
                self._pause()
                self._pausing = asyncio.get_running_loop().call_later(_PAUSE_SECONDS, self._resume)
                return
            sock.setblocking(False)
            self._admit(sock, str(address[0]))
            if len(self._admissions) > HANDSHAKES:
                self._turn_out_oldest()

    def _admit(self, sock: socket.socket, source: str) -> None:
        link = self._make(source)
        task = asyncio.ensure_future(self._lead_in(sock, link))
        self._admissions[task] = link
        task.add_done_callback(lambda task: self._admitted(task, sock, link))

    def _turn_out_oldest(self) -> None:
        task = next(iter(self._admissions))
        self._admissions.pop(task).end(Ending.CROWDED)
        task.cancel()

    def _admitted(self, task: asyncio.Task[None], sock: socket.socket, link: Link) -> None:
        self._admissions.pop(task, None)
        if not link.settled.is_set():
            link.end(Ending.STOPPED)
        if not link.was_connected:
            sock.close()  # no transport has taken it over

    async def _lead_in(self, sock: socket.socket, link: Link) -> None:
        loop = asyncio.get_running_loop()
        try:
            if self._context is None:
                # Takes one turn of the loop; to cancel it within that one makes uvloop lose the connection's end.
                await asyncio.shield(loop.connect_accepted_socket(lambda: link, sock))
            else:
                await loop.connect_accepted_socket(
                    lambda: link, sock, ssl=self._context, ssl_handshake_timeout=self._tls_seconds
                )
        except OSError:
            link.end(Ending.TLS)
        else:
            await link.settled.wait()
