"""What the kernel tells about a TCP connection (tcp(7), Linux 4.1 and later)."""

from __future__ import annotations

import asyncio
import fcntl
import socket
import struct
import sys
import termios
from typing import Final

ESTABLISHED: Final = 1  # <netinet/tcp.h>
CLOSE_WAIT: Final = 8
"""The peer has sent FIN."""
_BYTES_ACKED = struct.Struct("Q")
_BYTES_ACKED_OFFSET = 120  # of tcpi_bytes_acked in struct tcp_info, <linux/tcp.h>


def acknowledged_bytes(transport: asyncio.BaseTransport) -> int:
    """Return the number of bytes that the peer's system has acknowledged since the connection was opened; 0 if
    unknown."""
    sock = transport.get_extra_info("socket")
    if sock is None or sock.family == socket.AF_UNIX or sock.fileno() < 0:
        return 0
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_ACKED_OFFSET + _BYTES_ACKED.size)
    if len(info) < _BYTES_ACKED_OFFSET + _BYTES_ACKED.size:
        return 0
    acknowledged: int = _BYTES_ACKED.unpack_from(info, _BYTES_ACKED_OFFSET)[0]
    return acknowledged


def tcp_state(transport: asyncio.BaseTransport) -> int:
    """Return `ESTABLISHED`, `CLOSE_WAIT` or another state; `ESTABLISHED` for a Unix socket, where it is unknown."""
    sock = transport.get_extra_info("socket")
    if sock is None or sock.family == socket.AF_UNIX:
        return ESTABLISHED
    return int(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0])


def unread_bytes(transport: asyncio.BaseTransport) -> int:
    """Return the number of bytes that have arrived and were not read; 0 if unknown."""
    sock = transport.get_extra_info("socket")
    if sock is None or sock.fileno() < 0:
        return 0
    return int.from_bytes(fcntl.ioctl(sock.fileno(), termios.FIONREAD, bytes(4)), sys.byteorder)
