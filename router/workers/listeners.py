"""The listeners for clients: without TLS, with TLS, or both, depending on the settings.

The supervisor opens the listeners and keeps them open, so that connections in their accept queues survive any worker.
Each port has several sockets (SO_REUSEPORT), over which the kernel spreads connections evenly. With one shared socket,
a few workers would accept nearly all connections. `pool` decides which worker accepts from which socket.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence

from router.config.router import RouterSettings
from router.config.schema import SettingsError
from router.gateway.acceptor import BACKLOG
from router.net.keepalive import set_keepalive
from router.net.listen import bind_shared_listeners, listen_error, listen_error_collector

_MIN_PER_PORT = 16
"""Minimum number of sockets of a port. Each worker accepts from several sockets, so that all workers get about equal
shares although their number changes."""


class ClientListeners:
    """The listeners of one router. `open` opens them."""

    def __init__(self, settings: RouterSettings) -> None:
        """Raises `SettingsError` if the settings leave clients no way to connect."""
        check_client_listeners(settings)
        self._settings = settings
        self.plain: Sequence[socket.socket] = ()
        self.tls: Sequence[socket.socket] = ()

    def open(self) -> None:
        """Listen. Raises OSError with the name of the setting if an address cannot be bound."""
        settings, errors = self._settings, listen_error_collector()
        if settings.allows_plain_http:
            with errors.collect():
                self.plain = _listen(settings, "port", settings.port)
        if settings.tls_cert_file is not None:
            with errors.collect():
                self.tls = _listen(settings, "https_port", settings.https_port)
        try:
            errors.raise_errors()
        except OSError:
            self.close()
            raise

    def change_settings(self, settings: RouterSettings) -> None:
        """Apply changed TCP timeouts to connections that are accepted from now on."""
        self._settings = settings
        for sock in (*self.plain, *self.tls):
            _set_keepalive(sock, settings)

    @property
    def count(self) -> int:
        """The number of listeners of each port."""
        return max(len(self.plain), len(self.tls))

    @property
    def port(self) -> int:
        """The port of the open listeners without TLS; 0 if there are none."""
        return _port(self.plain)

    @property
    def https_port(self) -> int:
        """The port of the open listeners with TLS; 0 if there are none."""
        return _port(self.tls)

    def close(self) -> None:
        """Close this process's descriptors. The kernel accepts connections until the workers have closed theirs."""
        for sock in (*self.plain, *self.tls):
            sock.close()


def check_client_listeners(settings: RouterSettings) -> None:
    """Raises `SettingsError` if the settings leave clients no way to connect."""
    if settings.tls_cert_file is None and not settings.allows_plain_http:
        if settings.allow_insecure_connections is None:
            problem = "is reachable from outside: set tls_cert_file and tls_key_file, or allow_insecure_connections"
            raise SettingsError("host", settings.host, problem)
        raise SettingsError("allow_insecure_connections", False, "must be true without tls_cert_file and tls_key_file")


def _port(sockets: Sequence[socket.socket]) -> int:
    return int(sockets[0].getsockname()[1]) if sockets and sockets[0].fileno() >= 0 else 0


def _listen(settings: RouterSettings, setting: str, port: int) -> list[socket.socket]:
    host = settings.host
    try:
        sockets = bind_shared_listeners(host, port, max(_MIN_PER_PORT, os.cpu_count() or 1), backlog=BACKLOG)
    except OSError as error:
        raise listen_error(setting, port, host, error) from error
    for sock in sockets:
        _set_keepalive(sock, settings)
    return sockets


def _set_keepalive(sock: socket.socket, settings: RouterSettings) -> None:
    set_keepalive(sock, settings.tcp_keepalive_seconds, settings.client_tcp_user_timeout_seconds)
