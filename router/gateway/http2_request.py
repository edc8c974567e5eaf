"""From the fields of HTTP/2 to a request, and from header lines to the fields of a response. No I/O.

Contains: the rules that the codec does not enforce (`:authority` beside `host`, sizes of heads), and the same rules for
fields as `request_reader` has for HTTP/1.1. Does not contain: the further processing (`exchange`).

The replica gets the request as HTTP/1.1. So nothing that the client sends as a field may be framing there: the codec
refuses fields that are specific to a connection, line ends and a wrong length, and framing is made in `http1`.
"""

from __future__ import annotations

import re
from typing import Final

from router.config.router import RouterSettings
from router.gateway.request import Request
from router.http import responses
from router.http.header_rules import (
    DROP,
    FIRST_NAME,
    FORWARD,
    FORWARD_AND_CAPTURE,
    UNDERSCORE,
    HeaderRules,
    may_be_trailer,
    without_fields,
)
from router.http.responses import LocalResponse
from router.http.streams import UNKNOWN_LENGTH
from router.http.target import is_host
from router.telemetry.access_log import AccessRecord
from router.telemetry.journal import Entry
from router.telemetry.tracing import TRACE_FIELDS, is_traceparent

PROTOCOL: Final = "h2"

_PSEUDO: Final = 58  # ":"
_TARGET: Final = re.compile(rb"[!-~]*")  # the codec accepts bytes over 127; empty for CONNECT, see `admission`
_COOKIE: Final = b"cookie"
# Fields that must not be repeated: different parsers would use different ones.
_SINGLE: Final = frozenset((b"host", b"authorization", b"content-length"))


class Http2Request(Request):
    """A request of an HTTP/2 client."""

    __slots__ = ()

    def journal_entry(self, now: float) -> Entry:
        """Return the entry of the request in the journal."""
        return super().journal_entry(now)._replace(protocol=PROTOCOL)

    def access_record(self, now: float, wall_clock: float) -> AccessRecord:
        """Return the request's line in the access log. `wall_clock` is `now` in seconds since the epoch."""
        return super().access_record(now, wall_clock)._replace(protocol=PROTOCOL)


def read_request(
    fields: tuple[tuple[bytes, bytes], ...], complete: bool, rules: HeaderRules, settings: RouterSettings
) -> Http2Request:
    """Return the request with these fields. `Request.rejection` is set if it violates a rule.

    `complete` is True if the request has no body.
    """
    method = target = authority = b""
    lines: list[bytes] = [b""]
    captured: dict[bytes, bytes] = {}
    underscore_lines: list[bytes] = []
    cookies: list[bytes] = []
    rejection: LocalResponse | None = None
    actions = rules.actions
    size = 0
    for name, value in fields:
        size += len(name) + len(value)
        action = actions.get(name)
        if action is None:
            if name[0] == _PSEUDO:
                if name == b":path":
                    target = value
                elif name == b":method":
                    method = value
                elif name == b":authority":
                    authority = value
                continue
            action = rules.classify(name)
        if action == FORWARD:
            if name == _COOKIE:
                cookies.append(value)
            else:
                lines.append(name + b": " + value)
        elif action == UNDERSCORE:
            underscore_lines.append(name + b": " + value)
        elif action != DROP:
            if action < FIRST_NAME:
                lines.append(name + b": " + value)
                action = action[len(FORWARD_AND_CAPTURE) :]
            if action in captured:
                if action in _SINGLE:
                    rejection = responses.bad_request(f"more than one {action.decode()} header")
                value = captured[action] + b", " + value
            captured[action] = value
    if cookies:  # clients may split the field, and servers of HTTP/1.1 want one (RFC 9113 section 8.2.3)
        lines.append(b"cookie: " + b"; ".join(cookies))
    host = captured.get(b"host")
    if authority:
        if host is not None and host.lower() != authority.lower():
            rejection = responses.bad_request("the Host header differs from :authority")
        host = captured[b"host"] = authority
    if host is None or not is_host(host):
        rejection = responses.bad_request("an invalid host")
    if _TARGET.fullmatch(target) is None:
        rejection = responses.bad_request("an invalid :path")
    length = 0
    if b"content-length" in captured:
        length = int(captured[b"content-length"])
    elif not complete:
        length = UNKNOWN_LENGTH
    if size > settings.max_head_bytes or len(fields) > settings.max_headers:
        rejection = responses.head_too_large(settings.max_head_bytes, settings.max_headers)
    if b"traceparent" in captured and not is_traceparent(captured[b"traceparent"]):
        # Malformed or repeated: a new trace starts (W3C Trace Context, section 4.3).
        del captured[b"traceparent"]
        lines = without_fields(lines, TRACE_FIELDS)
    request = Http2Request(method, target, lines, captured, length)
    request.rejection = rejection
    request.body_complete = complete
    if underscore_lines:
        request.underscore_lines = underscore_lines
    if b"expect" in captured:
        request.expects_continue = not complete and captured[b"expect"].lower() == b"100-continue"
    return request


def are_trailers_too_large(fields: tuple[tuple[bytes, bytes], ...], settings: RouterSettings) -> bool:
    """Return True if trailers exceed a limit of heads. The codec's own limits are some times higher."""
    if len(fields) > settings.max_headers:
        return True
    return sum(len(name) + len(value) for name, value in fields) > settings.max_head_bytes


def read_trailers(fields: tuple[tuple[bytes, bytes], ...]) -> tuple[bytes, ...]:
    """Return the trailers that may be passed on, as header lines."""
    return tuple(name + b": " + value for name, value in fields if may_be_trailer(name))


def response_fields(status: int, lines: list[bytes], length: int) -> list[tuple[bytes, bytes]]:
    """Return the fields of the head of a response. The first element of `lines` is not used.

    `length` is that of the body; `UNKNOWN_LENGTH` adds no `content-length`.
    """
    fields = [(b":status", b"%d" % status)]
    for line in lines[1:]:
        name, _, value = line.partition(b":")
        fields.append((name.lower(), value.strip()))
    if length != UNKNOWN_LENGTH:
        fields.append((b"content-length", b"%d" % length))
    return fields


def trailer_fields(lines: tuple[bytes, ...]) -> list[tuple[bytes, bytes]]:
    """Return trailers, which are header lines, as fields."""
    return response_fields(0, [b"", *lines], UNKNOWN_LENGTH)[1:]
