"""The ports that clients connect to: which ones there are by the settings, and their listening sockets.

The supervisor opens them and keeps them open, so that what waits in their queues outlives any worker. Each port has a
row of sockets (SO_REUSEPORT), over which the kernel spreads connections evenly; from one socket for all, a few workers
would get nearly all connections. Which worker accepts from which of them is settled by `workers`.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass

from router.gateway.doors import BACKLOG
from router.listening import cannot_listen
from router.settings import RouterSettings
from router.values import SettingsError

_LEAST_SOCKETS = 16
"""Of each port: several for each worker, as a number of workers that does not divide it should have about equal shares,
and the number of workers may change."""


@dataclass(slots=True)
class Ports:
    """Listening sockets: without TLS, and with."""

    plain: Sequence[socket.socket] = ()
    tls: Sequence[socket.socket] = ()

    @property
    def port(self) -> int:
        """Where HTTP is spoken; 0 where it is not."""
        return _port(self.plain)

    @property
    def https_port(self) -> int:
        """Where HTTPS is spoken; 0 where it is not."""
        return _port(self.tls)

    def close(self) -> None:
        """Take no more connections, once the workers have closed their ends of these sockets."""
        for sock in (*self.plain, *self.tls):
            sock.close()


def _port(sockets: Sequence[socket.socket]) -> int:
    return int(sockets[0].getsockname()[1]) if sockets and sockets[0].fileno() >= 0 else 0


def check_ports(settings: RouterSettings) -> None:
    """Raises `SettingsError` where clients could connect in no way."""
    if settings.tls_cert_file is None and not settings.plain_http:
        raise SettingsError(
            "allow_insecure_connections",
            settings.allow_insecure_connections,
            "must be true, or tls_cert_file and tls_key_file must be given: clients could connect neither with TLS, "
            f"for which there is no certificate, nor without at {settings.host}",
        )


def open_ports(settings: RouterSettings) -> Ports:
    """Listen. Raises `SettingsError` where clients could connect in no way, OSError that names the setting of a port
    that cannot be listened on."""
    check_ports(settings)
    ports = Ports()
    try:
        if settings.plain_http:
            ports.plain = _listen("port", settings.host, settings.port)
        if settings.tls_cert_file is not None:
            ports.tls = _listen("https_port", settings.host, settings.https_port)
    except OSError:
        ports.close()
        raise
    return ports


def _listen(setting: str, host: str, port: int) -> list[socket.socket]:
    sockets: list[socket.socket] = []
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        for _ in range(max(_LEAST_SOCKETS, os.cpu_count() or 1)):
            sock = socket.socket(family, socket.SOCK_STREAM)
            sockets.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if sock is not sockets[0]:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            sock.bind(address)
            if sock is sockets[0]:  # only now: the port must be nobody else's, not even another router's
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                address = sock.getsockname()
    except OSError as error:
        for sock in sockets:
            sock.close()
        raise cannot_listen(setting, port, host, error) from error
    for sock in sockets:
        sock.listen(BACKLOG)
        sock.setblocking(False)
    return sockets
