"""The heads that the router writes: of requests to replicas, and of replicas' answers to clients.

Lives here: which lines, in which order, and nothing that decides. Every head is composed anew from what was parsed, so
that no byte of one side's framing ever reaches the other. The router's own answers are `router.http.answers`'.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from router.gateway.request import CHUNKED_BODY
from router.http.headers import fields_named_by, without_fields

if TYPE_CHECKING:
    from router.gateway.request import Request

# How the end of a replica's answer is told.
NO_BODY: Final = 0
LENGTH: Final = 1
CHUNKED: Final = 2
UNTIL_CLOSE: Final = 3

_STATUS_OK: Final = b"HTTP/1.1 200 OK"
_TIMING: Final = b"Server-Timing: auth;dur=%.2f, queue;dur=%.2f, connect;dur=%.2f, replica;dur=%.2f, router;dur=%.2f"
_SERVER_TIMING: Final = b"\r\n" + _TIMING + b"\r\n\r\n"
# Of a request that neither waited nor needed a new connection, and whose answer has a length: as nearly all are.
_USUAL_TAIL: Final = b"\r\nContent-Length: %d" + _SERVER_TIMING.replace(
    b"queue;dur=%.2f, connect;dur=%.2f", b"queue;dur=0.00, connect;dur=0.00"
)
_TRACEPARENT: Final = frozenset((b"traceparent",))
_TRACE_FIELDS: Final = _TRACEPARENT | {b"tracestate"}
_CORS_ANSWER_HEADERS: Final = frozenset((b"access-control-allow-origin", b"access-control-expose-headers"))


def request_head(request: Request) -> bytes:
    """What the replica receives before the body."""
    kept = request.kept
    parts = request.parts
    host = kept.get(b"host", b"")
    parts[0] = request.method + b" " + request.target + b" HTTP/1.1\r\nHost: " + host
    service = request.service
    assert service is not None
    if request.underscored and service.keep_underscore_headers:
        parts += request.underscored
    if b"connection" in kept and (named := fields_named_by(kept[b"connection"])):
        request.parts = parts = without_fields(parts, named)
    if (tracer := request.gateway.tracer) is not None:
        request.trace = context = tracer.context(kept.get(b"traceparent"))
        # A trace that begins here has nothing to do with what the client may have said of its own.
        request.parts = parts = without_fields(parts, _TRACEPARENT if context.parent else _TRACE_FIELDS)
        parts.append(b"traceparent: " + context.traceparent())
    if service.forward_authorization and b"authorization" in kept:
        parts.append(b"Authorization: " + kept[b"authorization"])
    length = request.length
    if length > 0 or (length == 0 and request.method == b"POST"):
        parts.append(b"Content-Length: %d" % length)
    elif length == CHUNKED_BODY:
        parts.append(b"Transfer-Encoding: chunked")
    if request.upgrade:
        parts.append(b"Connection: Upgrade\r\nUpgrade: websocket")
    if b"x-forwarded-for" in kept:
        parts.append(b"X-Forwarded-For: " + kept[b"x-forwarded-for"] + b", " + request.client.forwarded + host)
    else:
        parts.append(b"X-Forwarded-For: " + request.client.forwarded + host)
    return b"\r\n".join(parts) + request.id_lines + b"\r\n\r\n"


def framed(request: Request, pieces: list[bytes]) -> list[bytes]:
    """Pieces of a request's body as they go to the replica."""
    if request.length != CHUNKED_BODY:
        return pieces
    chunks: list[bytes] = []
    for piece in pieces:
        chunks += (b"%x\r\n" % len(piece), piece, b"\r\n")
    return chunks


def body_end(request: Request) -> bytes:
    """What follows the last piece of a request's body."""
    return b"0\r\n%b\r\n" % b"".join(request.trailers) if request.length == CHUNKED_BODY else b""


def answer_head(
    request: Request,
    status: int,
    reason: bytes,
    parts: list[bytes],
    kept: dict[bytes, bytes],
    framing: int,
    length: int,
) -> bytes:
    """What the client receives before the body of a replica's answer."""
    if b"connection" in kept and (named := fields_named_by(kept[b"connection"])):
        parts = without_fields(parts, named)
    if request.is_cross_origin:
        parts = without_fields(parts, _CORS_ANSWER_HEADERS)
    timed = request.gateway.settings.server_timing
    began, sent, queued = request.began, request.sent, request.queued_seconds
    usual = framing == LENGTH and request.keep_alive and request.http11
    if usual and timed and not queued and request.connected_at == request.granted:
        tail = _USUAL_TAIL % (
            length,
            (request.checked - began) * 1e3,
            (request.answered - sent) * 1e3,
            (sent - began) * 1e3,
        )
    else:
        tail = b"\r\nContent-Length: %d" % length if usual else _frame(request, status, framing, length)
        if timed:
            tail += _SERVER_TIMING % (
                (request.checked - began) * 1e3,
                queued * 1e3,
                (request.connected_at - request.granted) * 1e3,
                (request.answered - sent) * 1e3,
                (sent - began - queued) * 1e3,
            )
        else:
            tail += b"\r\n\r\n"
    line = _STATUS_OK if status == 200 and reason == b"OK" else b"HTTP/1.1 %d %b" % (status, reason)
    return b"\r\n".join((line, *parts)) + request.answer_lines + tail


def timing_of_own_answer(request: Request, now: float) -> bytes:
    """The line that says where the time went until the router answered by itself: where the request had come to."""
    began, queued, sent = request.began, request.queued_seconds, request.sent
    checked = now if request.version is None else request.checked
    connect = request.connected_at - request.granted if sent else 0.0
    replica = now - sent if sent else 0.0
    seconds = (checked - began, queued, connect, replica, (sent or now) - began - queued)
    return _TIMING % tuple(each * 1e3 for each in seconds)


def _frame(request: Request, status: int, framing: int, length: int) -> bytes:
    """How the client can tell where the answer ends."""
    if status == 101:
        return b"\r\nConnection: Upgrade\r\nUpgrade: websocket"
    if framing == LENGTH or (framing == NO_BODY and length >= 0):
        tail = b"\r\nContent-Length: %d" % length
    elif framing == NO_BODY:
        tail = b""
    elif request.http11:
        request.answer_chunked = True
        tail = b"\r\nTransfer-Encoding: chunked"
    else:
        request.until_close = True
        request.keep_alive = False
        tail = b""
    if not request.keep_alive:
        return tail + b"\r\nConnection: close"
    return tail if request.http11 else tail + b"\r\nConnection: keep-alive"
