"""Decides whether a request may be sent again after its connection was closed: only with proof that it was not read.

A replica may close a pooled connection at the moment when a request is written to it. The TCP acknowledgements show
whether the replica's program can have read the request: its kernel acknowledges all bytes that arrive while the
connection is open, and no bytes that arrive after the program has closed it.

- Proof: the connection was closed with FIN (end of stream, or EPIPE on a later write), and no byte of the request was
  acknowledged. A program that reads the request and then exits sends its FIN after the acknowledgement.
- No proof: a reset without FIN. A socket that is closed with unread data sends one (RFC 1122 section 4.2.2.13), but so
  does a program that has read everything and then aborts the connection, and the acknowledgement of what it has read
  may be delayed by 40 ms.
"""

from __future__ import annotations

import array
import asyncio
import fcntl
import termios


def unacknowledged_bytes(transport: asyncio.WriteTransport) -> int:
    """Return the number of written bytes that the peer's kernel has not acknowledged; 0 if unknown."""
    buffered = transport.get_write_buffer_size()
    sock = transport.get_extra_info("socket")
    if sock is None or sock.fileno() < 0:
        return buffered
    count = array.array("i", [0])
    try:
        fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, count)
    except OSError:
        return buffered
    return buffered + count[0]


def is_unread(error: BaseException | None, unacknowledged: int, request_bytes: int) -> bool:
    """Return True if it is proven that the replica's program has read no byte of a request.

    `error` is the transport's, None for an orderly close. `unacknowledged` and `request_bytes` are the numbers of
    unacknowledged bytes when the connection was closed, and of bytes that were written for the request.
    """
    return (error is None or isinstance(error, BrokenPipeError)) and unacknowledged >= request_bytes > 0
