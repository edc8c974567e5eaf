"""The packets from workers to the collector: what passes through exchanges, as frames. No I/O.

    packet:  sender (process id), frame, frame, ...
    frame:   length of the payload, kind, number of the exchange, payload

All workers share one SOCK_SEQPACKET socket, which keeps the packets of each in order and whole. Both processes run the
same release. Does not contain: reading packets (`frame_reader`).

Compiled by mypyc.
"""

from __future__ import annotations

import struct
from typing import Final

BEGIN: Final = 1
"""The request is sent to a replica. Payload: `join_fields` of service, version, request id, time (seconds since the
epoch), `1` if the request is collected, method, path, Content-Type, then names and values of captured headers."""
REQUEST_DATA: Final = 2
"""A piece of the body of the request."""
RESTART: Final = 3
"""The request is sent to another replica: its body follows again."""
RESPONSE: Final = 4
"""The response begins. Payload: `join_fields` of service, version, time, status, Content-Type."""
RESPONSE_DATA: Final = 5
"""A piece of the body of the response."""
END: Final = 6
"""The exchange has ended. Payload: `end_payload`."""

REQUEST_COMPLETE: Final = 1
RESPONSE_COMPLETE: Final = 2
REQUEST_TRUNCATED: Final = 4
RESPONSE_TRUNCATED: Final = 8
"""Flags of END. Complete: the whole body has passed. Truncated: pieces were not sent, as the buffer was full."""

MAX_PACKET_BYTES: Final = 65_536
MAX_PIECE_BYTES: Final = 60_000
"""Of a body in one frame. A packet must fit into the socket's buffer, whose default size is 208 KiB."""

PACKET: Final = struct.Struct("!I")
FRAME: Final = struct.Struct("!IBQ")
END_LAYOUT: Final = struct.Struct("!BQQ")
SEPARATOR: Final = b"\0"  # occurs in no header, path or name


def packet_head(sender: int) -> bytes:
    """Return the beginning of each packet of a process."""
    return PACKET.pack(sender)


def frame(kind: int, number: int, payload: bytes) -> bytes:
    """Return a frame."""
    return FRAME.pack(len(payload), kind, number) + payload


def end_payload(flags: int, request_bytes: int, response_bytes: int) -> bytes:
    """Return the payload of END."""
    return END_LAYOUT.pack(flags, request_bytes, response_bytes)


def join_fields(fields: list[bytes]) -> bytes:
    """Return fields as a payload."""
    return SEPARATOR.join(fields)
