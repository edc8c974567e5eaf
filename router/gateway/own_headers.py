"""The headers that the router adds to requests and responses that it forwards, and those that it replaces.

Which headers of the other side are forwarded at all is decided by `http.header_rules`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from router.gateway.pool import ReplicaPool
from router.gateway.request import Request
from router.gateway.routes import VersionRoute
from router.http.forwarding import forwarded_lines, outer_prefix
from router.http.header_rules import fields_named_by, without_fields
from router.http.http1 import date_line
from router.http.location import PublicPath
from router.http.streams import ClientStream
from router.telemetry.tracing import TRACE_FIELDS, TRACEPARENT, Tracer

_TIMING: Final = b"Server-Timing: auth;dur=%.2f, queue;dur=%.2f, connect;dur=%.2f, replica;dur=%.2f, router;dur=%.2f"
_BODY_TIMING: Final = b", body;dur=%.2f"
# For a request that neither waited nor needed a new connection, as nearly all.
_USUAL_TIMING: Final = _TIMING.replace(b"queue;dur=%.2f, connect;dur=%.2f", b"queue;dur=0.00, connect;dur=0.00")
_CORS_RESPONSE_FIELDS: Final = frozenset((b"access-control-allow-origin", b"access-control-expose-headers"))


def add_request_lines(request: Request, client: ClientStream, tracer: Tracer | None, host: bytes) -> None:
    """Add the router's headers to the request, and remove those that must not be forwarded."""
    service = request.service
    captured, lines = request.captured, request.header_lines
    assert service is not None
    if request.underscore_lines and service.keep_underscore_headers:
        lines += request.underscore_lines
    if b"connection" in captured and (named := fields_named_by(captured[b"connection"])):
        lines = without_fields(lines, named)
    if tracer is not None:
        version = request.version
        assert version is not None
        context = tracer.context_for(captured.get(b"traceparent"), app_insights=version.settings.enable_app_insights)
        if context is not None:
            request.trace = context
            # `tracestate` belongs to the client's trace, not to a trace that starts here.
            lines = without_fields(lines, TRACEPARENT if context.parent else TRACE_FIELDS)
            lines.append(b"traceparent: " + context.traceparent())
    if service.forward_authorization and b"authorization" in captured:
        lines.append(b"Authorization: " + captured[b"authorization"])
    if client.is_trusted_proxy:
        lines += forwarded_lines(captured, client.address, client.secure, host)
        lines.append(b"X-Forwarded-Prefix: " + outer_prefix(captured) + service.path.service)
    else:
        if host != client.forwarded_host or service.path is not client.forwarded_path:
            _set_forwarded_lines(client, host, service.path)
        lines += client.forwarded_lines
    lines += request.id_lines
    request.header_lines = lines


def _set_forwarded_lines(client: ClientStream, host: bytes, path: PublicPath) -> None:
    """Make the lines `X-Forwarded-*` for requests of a client that is no trusted proxy."""
    client.forwarded_host = host
    client.forwarded_path = path
    client.forwarded_lines = (
        b"X-Forwarded-For: " + client.address,
        b"X-Forwarded-Proto: https" if client.secure else b"X-Forwarded-Proto: http",
        b"X-Forwarded-Host: " + host,
        b"X-Forwarded-Prefix: " + path.service,
    )


def response_lines(
    request: Request,
    version: VersionRoute,
    pool: ReplicaPool,
    lines: list[bytes],
    captured: dict[bytes, bytes],
    now: float,
    wall_clock: Callable[[], float],
    server_timing: bool,
) -> list[bytes]:
    """Return the header lines of a replica's response for the client.

    `pool` is that of the replica. `Date` is added if the replica sent none (RFC 9110 section 6.6.1). `now` is the time
    at which the head of the response arrived. `wall_clock` returns seconds since the epoch.
    """
    if b"connection" in captured and (named := fields_named_by(captured[b"connection"])):
        lines = without_fields(lines, named)
    if request.cors_lines:
        lines = without_fields(lines, _CORS_RESPONSE_FIELDS)
        lines += request.cors_lines
    if b"location" in captured:
        location = captured[b"location"]
        if version.settings.rewrite_location:
            location = _public_location(request, pool, location)
        lines.append(b"Location: " + location)
    lines += request.id_lines
    lines.append(version.response_line)
    date = captured.get(b"date")
    lines.append(date_line(wall_clock()) if date is None else b"Date: " + date)
    if not server_timing:
        return lines
    started, sent = request.started_at, request.sent_at
    if request.queued_seconds or request.body_seconds or request.connected_at != request.slot_acquired_at:
        lines.append(timing_line(request, now))
    else:
        times = ((request.authenticated_at - started) * 1e3, (now - sent) * 1e3, (sent - started) * 1e3)
        lines.append(_USUAL_TIMING % times)
    return lines


def _public_location(request: Request, pool: ReplicaPool, location: bytes) -> bytes:
    """Return the Location of a replica's response as the client can reach it."""
    service, captured = request.service, request.captured
    assert service is not None
    replica_host = f"[{pool.host}]" if ":" in pool.host else pool.host
    # Proxies in front of the router may have changed Host. Their fields were captured only if they are trusted.
    own_authorities = (
        f"{replica_host}:{pool.port}".encode(),
        captured.get(b"host", b"").lower(),
        captured.get(b"x-forwarded-host", b"").lower(),
    )
    return service.path.rewrite(location, own_authorities, outer_prefix(captured))


def timing_line(request: Request, now: float) -> bytes:
    """Return the line `Server-Timing`: milliseconds until `now` in each phase that the request has reached."""
    started, sent, queued, received = request.started_at, request.sent_at, request.queued_seconds, request.body_seconds
    authenticated = now if request.version is None else request.authenticated_at
    connect = request.connected_at - request.slot_acquired_at if sent else 0.0
    replica = now - sent if sent else 0.0
    router = (sent or now) - started - queued - received
    line = _TIMING % ((authenticated - started) * 1e3, queued * 1e3, connect * 1e3, replica * 1e3, router * 1e3)
    return line + _BODY_TIMING % (received * 1e3) if received else line
