"""All bytes of HTTP/1.1 that the router writes: heads, chunks, and its own responses. No I/O, no state.

Every head is composed from parsed fields, so that no byte of one side's framing reaches the other side. In lists of
header lines the first element is reserved for the start line (see `streams`); the functions here fill it in.

Of the headers of a response, this module only makes those of framing and connection, and in `local_response` those of
the router's own responses. `Exchange.on_response_head` adds the router's headers to a replica's response,
`Exchange.respond` those of its own responses. `header_rules` decides which headers of the other side are forwarded.
"""

from __future__ import annotations

from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from typing import Final

from router.http.responses import LocalResponse
from router.http.streams import UNKNOWN_LENGTH

CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
WEBSOCKET: Final = b"websocket"

# How the receiver of a response detects the end of its body (RFC 9112 section 6.3).
NO_BODY: Final = 0
CONTENT_LENGTH: Final = 1
CHUNKED: Final = 2
UNTIL_CLOSE: Final = 3

_WITH_BODY: Final = frozenset((b"POST", b"PUT", b"PATCH"))  # methods whose requests usually have a body
_END: Final = b"\r\n\r\n"
_STATUS_OK: Final = b"HTTP/1.1 200 OK"
_UPGRADE: Final = b"\r\nConnection: Upgrade\r\nUpgrade: " + WEBSOCKET
_CLOSE: Final = b"\r\nConnection: close"
_KEEP_ALIVE: Final = b"\r\nConnection: keep-alive"
_CHUNKED_CODING: Final = b"\r\nTransfer-Encoding: chunked"
# The last header line and the empty line of a message with a short body, by the length of the body. Formatting the
# number each time takes five times as long.
_SHORT_LENGTHS: Final = tuple(b"\r\nContent-Length: %d\r\n\r\n" % length for length in range(1024))


def request_head(method: bytes, target: bytes, host: bytes, lines: list[bytes], length: int, upgrade: bool) -> bytes:
    """Return the head of a request to a replica.

    A POST, PUT or PATCH without a body has `Content-Length: 0` (RFC 9110 section 8.6).
    """
    lines[0] = method + b" " + target + b" HTTP/1.1\r\nHost: " + host
    if upgrade:
        return b"\r\n".join(lines) + _UPGRADE + (_SHORT_LENGTHS[0] if method in _WITH_BODY else _END)
    if 0 < length < 1024 or (length == 0 and method in _WITH_BODY):
        return b"\r\n".join(lines) + _SHORT_LENGTHS[length]
    if length > 0:
        return b"\r\n".join(lines) + b"\r\nContent-Length: %d\r\n\r\n" % length
    if length == UNKNOWN_LENGTH:
        return b"\r\n".join(lines) + _CHUNKED_CODING + _END
    return b"\r\n".join(lines) + _END


def response_framing(method: bytes, status: int, length: int, http11: bool) -> int:
    """Return `NO_BODY`, `CONTENT_LENGTH`, `CHUNKED` or `UNTIL_CLOSE`: how a client detects the end of a response.

    `method` is that of the request.
    """
    if status in (101, 204, 304) or method == b"HEAD":
        return NO_BODY
    if length != UNKNOWN_LENGTH:
        return CONTENT_LENGTH
    return CHUNKED if http11 else UNTIL_CLOSE


def response_head(
    status: int, reason: bytes, lines: list[bytes], length: int, framing: int, keep_alive: bool, http11: bool
) -> bytes:
    """Return the head of a response to a client. `UNTIL_CLOSE` needs `keep_alive` to be False."""
    lines[0] = _STATUS_OK if status == 200 and reason == b"OK" else b"HTTP/1.1 %d %b" % (status, reason)
    if framing == CONTENT_LENGTH and length < 1024 and keep_alive and http11:  # nearly all responses
        return b"\r\n".join(lines) + _SHORT_LENGTHS[length]
    if status == 101:
        return b"\r\n".join(lines) + _UPGRADE + _END
    head = b"\r\n".join(lines)
    if length != UNKNOWN_LENGTH:
        head += b"\r\nContent-Length: %d" % length
    elif framing == CHUNKED:
        head += _CHUNKED_CODING
    return head + _connection(keep_alive, http11) + _END


def interim_response(status: int, reason: bytes, lines: list[bytes]) -> bytes:
    """Return a 1xx response."""
    lines[0] = b"HTTP/1.1 %d %b" % (status, reason)
    return b"\r\n".join(lines) + _END


def local_response(
    response: LocalResponse,
    extra_lines: list[bytes],
    *,
    date: float,
    keep_alive: bool,
    http11: bool,
    bodiless: bool,
) -> bytes:
    """Return a whole response of the router itself, with `extra_lines` among its headers.

    No element of `extra_lines` is reserved. `date` is in seconds since the epoch. `bodiless` omits the body but not its
    length, as for HEAD.
    """
    body = response.text.encode()
    head = [
        b"HTTP/1.1 %d %b" % (response.status, _reason_phrase(response.status)),
        date_line(date),
    ]
    if response.status != 204:
        head += [b"Content-Type: text/plain; charset=utf-8", b"Content-Length: %d" % len(body)]
    if response.error_code:
        head.append(b"azureml-fe-error: " + response.error_code.encode())
    head += [f"{name}: {value}".encode() for name, value in response.headers]
    head += extra_lines
    data = b"\r\n".join(head) + _connection(keep_alive, http11) + _END
    return data if bodiless or response.status == 204 else data + body


def date_line(date: float) -> bytes:
    """Return the header line `Date`, which is formatted once a second. `date` is in seconds since the epoch."""
    return _date_line(int(date))


@lru_cache(maxsize=4)
def _date_line(seconds: int) -> bytes:
    return b"Date: " + formatdate(seconds, usegmt=True).encode()


def chunk(pieces: list[bytes]) -> list[bytes]:
    """Return the pieces of a body as one chunk: a list of bytes to be joined. Without a piece there is no chunk."""
    return [b"%x\r\n" % sum(map(len, pieces)), *pieces, b"\r\n"] if pieces else []


def last_chunk(trailers: tuple[bytes, ...]) -> bytes:
    """Return the last chunk and the trailer section of a chunked body. `trailers` are header lines."""
    return b"\r\n".join((b"0", *trailers, b"\r\n"))


def dummy_head(length: int) -> bytes:
    """Return a head that makes a new parser expect a body of this length. It is never sent.

    For a parser that continues in the middle of a request, after another parser has read the head.
    """
    framing = b"Transfer-Encoding: chunked" if length == UNKNOWN_LENGTH else b"Content-Length: %d" % length
    return b"POST / HTTP/1.1\r\n%b\r\n\r\n" % framing


def _connection(keep_alive: bool, http11: bool) -> bytes:
    if not keep_alive:
        return _CLOSE
    return b"" if http11 else _KEEP_ALIVE


@lru_cache(maxsize=64)
def _reason_phrase(status: int) -> bytes:
    try:
        return HTTPStatus(status).phrase.encode()
    except ValueError:
        return b""
