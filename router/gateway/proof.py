"""Proof that a request did not run, the condition for sending it once more.

A pooled connection may be closed by the replica at the very moment a request is written to it. Whether the replica's
program has seen the request decides whether it may be sent again, and TCP tells:

- The replica's FIN came before it received the request: its acknowledgement does not cover our bytes, which then stand
  unacknowledged in this side's send queue (SIOCOUTQ, tcp(7)). A program that read the request and then died sends its
  FIN after the bytes were acknowledged: no proof.
- A reset without a FIN: a socket that is closed with unread data in it is reset (RFC 1122 section 4.2.2.13), so the
  program had not read the whole request; or the bytes met a socket that was closed before. A program that has read
  everything and dies sends FIN.
- A broken pipe: the bytes met this side's socket when it knew already that the other was closed.
"""

from __future__ import annotations

import array
import asyncio
import fcntl
import termios


def unacknowledged(transport: asyncio.WriteTransport) -> int:
    """Bytes written to a TCP transport that the other side's kernel has not acknowledged; 0 if unknown."""
    waiting = transport.get_write_buffer_size()
    if waiting:
        return waiting
    sock = transport.get_extra_info("socket")
    if sock is None or sock.fileno() < 0:
        return 0
    count = array.array("i", [0])
    try:
        fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, count)
    except OSError:
        return 0
    return count[0]


def never_ran(error: BaseException | None, unacknowledged_at_end: int) -> bool:
    """Whether a request on a connection that ended without one byte of an answer certainly did not run.

    `error` is what the transport reported (None: an orderly end), `unacknowledged_at_end` what stood in the send
    queue when the end was seen.
    """
    return unacknowledged_at_end > 0 or isinstance(error, ConnectionResetError | BrokenPipeError)
