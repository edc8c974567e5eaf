"""Detection of peers that have vanished without closing their connections: TCP keep-alive and the TCP user timeout."""

from __future__ import annotations

import socket
from typing import Protocol

_PROBE_INTERVAL_SECONDS = 15
_PROBES = 4


class SocketOptions(Protocol):
    """A socket, or the object that an event loop provides in place of it."""

    def setsockopt(self, level: int, option: int, value: int, /) -> None:
        """Set an option."""


def set_keepalive(sock: SocketOptions, idle_seconds: float, user_timeout_seconds: float) -> None:
    """Let the kernel close the connection if its peer has vanished.

    The kernel probes a connection that was idle for `idle_seconds`. It closes a connection if sent data or a probe was
    not acknowledged for `user_timeout_seconds`, or if the peer did not read for that long (tcp(7)). 0 turns off the
    probes or the timeout; without the timeout, four lost probes close the connection. Set on a listening socket, the
    options apply to the connections that are accepted from it.
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, int(idle_seconds > 0))
    if idle_seconds:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, max(round(idle_seconds), 1))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _PROBE_INTERVAL_SECONDS)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _PROBES)
    milliseconds = max(round(user_timeout_seconds * 1000), 1) if user_timeout_seconds else 0
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
