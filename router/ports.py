"""The ports that clients connect to: which ones there are by the settings, and their listening sockets.

The supervisor opens them and keeps them open, so that what waits in their queues outlives any worker.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass

from router.gateway.doors import BACKLOG
from router.settings import RouterSettings
from router.values import SettingsError


@dataclass(slots=True)
class Ports:
    """Listening sockets: without TLS, and with."""

    plain: socket.socket | None
    tls: socket.socket | None

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
        for sock in (self.plain, self.tls):
            if sock is not None:
                sock.close()


def _port(sock: socket.socket | None) -> int:
    return int(sock.getsockname()[1]) if sock is not None and sock.fileno() >= 0 else 0


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
    ports = Ports(None, None)
    try:
        if settings.plain_http:
            ports.plain = _listen("port", settings.host, settings.port)
        if settings.tls_cert_file is not None:
            ports.tls = _listen("https_port", settings.host, settings.https_port)
    except OSError:
        ports.close()
        raise
    return ports


def _listen(setting: str, host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(address)
            sock.listen(BACKLOG)
        except OSError:
            sock.close()
            raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise OSError(f"{setting}: {port} cannot be listened on at {host}: {reason}; allowed: a free port") from error
    sock.setblocking(False)
    return sock
