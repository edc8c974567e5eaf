"""What is said of a port that cannot be listened on: which setting is to blame, and what it may be."""

from __future__ import annotations

import errno
import socket


def cannot_listen(setting: str, port: int, host: str, error: OSError, *, host_setting: str = "host") -> OSError:
    """The error for whoever set `setting` to `port` and `host_setting` to `host`, of which one is wrong."""
    reason = error.strerror or str(error)
    if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
        return OSError(f"{host_setting}: {host} cannot be listened on: {reason}; allowed: an address of this machine")
    return OSError(f"{setting}: {port} cannot be listened on at {host}: {reason}; allowed: a free port")
