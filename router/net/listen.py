"""Creates listening sockets, and the error for an address that cannot be bound."""

from __future__ import annotations

import errno
import socket
from collections.abc import Sequence

from router.config.error_collector import Collector
from router.config.router import flag_name
from router.net.address import host_port

__all__ = [
    "ALL_ADDRESSES",
    "ListenErrors",
    "bind_listener",
    "bind_shared_listeners",
    "listen_error",
    "listen_error_collector",
]

ALL_ADDRESSES = "::"
"""Host of a listener on all addresses of IPv6 and IPv4."""

_ALL_IPV4_ADDRESSES = "0.0.0.0"
_BACKLOG = 128


def bind_listener(host: str, port: int, *, backlog: int = _BACKLOG) -> socket.socket:
    """Return a listening socket. Port 0 picks a free port. See `bind_shared_listeners` for `host` and errors."""
    return bind_shared_listeners(host, port, 1, backlog=backlog)[0]


def bind_shared_listeners(host: str, port: int, count: int, *, backlog: int = _BACKLOG) -> list[socket.socket]:
    """Return `count` non-blocking sockets that listen on one address. No other socket can share the address.

    The kernel spreads connections evenly over the sockets (SO_REUSEPORT). The host `::` is all addresses: those of IPv4
    too, and those of IPv4 only on a system without IPv6. Raises `OSError` if the address cannot be bound. That includes
    an address on which another socket listens, even one with SO_REUSEPORT.
    """
    try:
        return _bind(host, port, count, backlog)
    except OSError as error:
        if host != ALL_ADDRESSES or error.errno != errno.EAFNOSUPPORT:
            raise
        return _bind(_ALL_IPV4_ADDRESSES, port, count, backlog)


def _bind(host: str, port: int, count: int, backlog: int) -> list[socket.socket]:
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    sockets: list[socket.socket] = []
    try:
        for number in range(count):
            sock = socket.socket(family, socket.SOCK_STREAM)
            sockets.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            if number > 0:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            sock.bind(address)
            # Only after `bind`: with the option, `bind` would succeed if another router listens there.
            if number == 0 and count > 1:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                address = sock.getsockname()
        for sock in sockets:
            sock.listen(backlog)
            sock.setblocking(False)
    except OSError:
        for sock in sockets:
            sock.close()
        raise
    return sockets


def listen_error(setting: str, port: int, host: str, error: OSError, *, host_setting: str = "host") -> OSError:
    """Return the error to show when `host` and `port` cannot be bound. It names the setting that is wrong: `setting`
    for the port, `host_setting` for the host."""
    reason = f"cannot listen on {host_port(host, port)}: {error.strerror or error}"
    if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
        return OSError(f"{host_setting}: {reason}; allowed: an address of this machine")
    return OSError(f"{setting}: {reason}; choose another with {flag_name(setting)}")


class ListenErrors(OSError):
    """Several addresses that cannot be bound. `str()` has a line for each."""

    def __init__(self, errors: Sequence[OSError]) -> None:
        super().__init__("\n".join(map(str, errors)))
        self.errors = tuple(errors)


def listen_error_collector() -> Collector[OSError]:
    """Return a collector of the errors of independent addresses."""
    return Collector(OSError, ListenErrors)
