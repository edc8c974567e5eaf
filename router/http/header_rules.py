"""Rules for header fields of requests and responses: which are forwarded, dropped or captured. No parsing, no I/O.

A field is captured if the router itself interprets or rewrites it. The action for a name is remembered by the spelling
of the name, so that it usually costs one dictionary lookup.

The router's own headers are not made here. Forwarded requests and responses get them in `gateway.own_headers`.
Responses of the router get them in `Exchange.respond` and `http1.local_response`. Framing and connection headers are
made in `http1`. docs/clients.md lists all of them.

Sources: RFC 9110 section 7.6.1 (hop-by-hop fields), RFC 9112 sections 6 and 7 (message framing).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

# Actions. The action of a captured field is its lower-case name. So any action >= FIRST_NAME means "capture".
FORWARD: Final = b""
DROP: Final = b"-"
UNDERSCORE: Final = b"_"  # the name has an underscore; see `HeaderRules.classify`
FORWARD_AND_CAPTURE: Final = b"+"  # a prefix of the lower-case name
FIRST_NAME: Final = b"a"  # captured names are not less than this, all other actions are less

# Hop-by-hop by definition, whether or not Connection names them.
_HOP_BY_HOP: Final = frozenset(
    (b"keep-alive", b"proxy-connection", b"proxy-authenticate", b"proxy-authorization", b"te")
)
_FRAMING: Final = frozenset((b"connection", b"content-length", b"transfer-encoding", b"upgrade"))

# The router makes these fields itself, or only the router interprets them. From a client or a replica they would be
# mistaken for the router's own.
_REQUEST_CAPTURED: Final = _FRAMING | {
    b"authorization",
    b"azureml-fe-test",
    b"expect",
    b"host",
    b"x-ms-client-request-id",
}
_REQUEST_FORWARDED_AND_CAPTURED: Final = frozenset(
    (
        b"access-control-request-headers",
        b"access-control-request-method",
        b"api-key",
        b"azureml-model-deployment",
        b"origin",
        b"sec-websocket-protocol",
        b"traceparent",
        b"x-api-key",
    )
)
_REQUEST_DROPPED: Final = _HOP_BY_HOP | {b"x-ms-request-id", b"x-request-id"}
# What proxies report about the client. From anybody but a trusted proxy it may be forged.
_FORWARDED: Final = frozenset(
    (
        b"forwarded",
        b"x-forwarded-for",
        b"x-forwarded-host",
        b"x-forwarded-port",
        b"x-forwarded-prefix",
        b"x-forwarded-proto",
        b"x-real-ip",
    )
)
_FORWARDED_PREFIX: Final = b"x-forwarded-"
_RESPONSE_CAPTURED: Final = _FRAMING | {b"date", b"location"}
_RESPONSE_DROPPED: Final = _HOP_BY_HOP | {
    b"azureml-fe-error",
    b"azureml-model-deployment",
    b"x-ms-client-request-id",
    b"x-ms-request-id",
    b"x-request-id",
}

# Fields that are not allowed as trailers (RFC 9110 section 6.5.1): framing, routing, authentication, and those that the
# router makes itself.
_NOT_IN_TRAILERS: Final = (
    _FRAMING
    | _REQUEST_CAPTURED
    | _REQUEST_DROPPED
    | _RESPONSE_DROPPED
    | _FORWARDED
    | {
        b"api-key",
        b"content-encoding",
        b"content-range",
        b"content-type",
        b"cache-control",
        b"set-cookie",
        b"location",
        b"trailer",
        b"www-authenticate",
        b"x-api-key",
    }
)

# Trailers that llhttp applies to the connection, as if they were headers.
CONNECTION_TRAILERS: Final = frozenset((b"connection", b"proxy-connection", b"transfer-encoding"))

_MAX_REMEMBERED_NAMES: Final = 4096  # bounds the memory that clients with random header names can use
_MAX_REMEMBERED_LENGTH: Final = 64


class HeaderRules:
    """The action for each header field.

    An action is `FORWARD`, `DROP`, `UNDERSCORE`, or the lower-case name of a captured field. The name has the prefix
    `FORWARD_AND_CAPTURE` if the field is forwarded as well.
    """

    __slots__ = ("_captured", "_dropped", "_dropped_prefix", "_forwarded_and_captured", "actions")

    def __init__(
        self,
        captured: Iterable[bytes],
        dropped: Iterable[bytes],
        forwarded_and_captured: Iterable[bytes] = (),
        dropped_prefix: bytes | None = None,
    ) -> None:
        """All names are in lower case. `dropped_prefix` is the start of names that are dropped, unless they are among
        the others."""
        self._captured = frozenset(captured)
        self._dropped = frozenset(dropped)
        self._dropped_prefix = dropped_prefix
        self._forwarded_and_captured = frozenset(forwarded_and_captured)
        self.actions: dict[bytes, bytes] = {}
        """Remembered actions, by the name as it was spelled."""

    def classify(self, name: bytes) -> bytes:
        """Return, and remember, the action for a name that is not in `actions`."""
        lower = name.lower()
        if lower in self._captured:
            action = lower
        elif self._is_dropped(lower):
            action = DROP
        elif lower in self._forwarded_and_captured:
            action = FORWARD_AND_CAPTURE + lower
        elif b"_" in name:
            # WSGI and ASGI servers do not distinguish this name from the name with hyphens, which may be a header that
            # the router makes itself.
            hyphenated = lower.replace(b"_", b"-")
            action = DROP if hyphenated in self._captured or self._is_dropped(hyphenated) else UNDERSCORE
        else:
            action = FORWARD
        if len(self.actions) < _MAX_REMEMBERED_NAMES and len(name) <= _MAX_REMEMBERED_LENGTH:
            self.actions[name] = action
        return action

    def _is_dropped(self, lower: bytes) -> bool:
        prefix = self._dropped_prefix
        return lower in self._dropped or (prefix is not None and lower.startswith(prefix))


def request_rules(*, trusted_proxy: bool = False) -> HeaderRules:
    """Return the rules for requests. Each worker has one object for clients, and one for trusted proxies."""
    if trusted_proxy:
        return HeaderRules(_REQUEST_CAPTURED | _FORWARDED, _REQUEST_DROPPED, _REQUEST_FORWARDED_AND_CAPTURED)
    dropped = _REQUEST_DROPPED | _FORWARDED
    return HeaderRules(_REQUEST_CAPTURED, dropped, _REQUEST_FORWARDED_AND_CAPTURED, _FORWARDED_PREFIX)


def response_rules() -> HeaderRules:
    """Return the rules for responses. Each worker has one object."""
    return HeaderRules(_RESPONSE_CAPTURED, _RESPONSE_DROPPED)


_CONTROLS: Final = bytes((*range(9), *range(10, 32), 127))


def is_reason(text: bytes) -> bool:
    """Return True if this is a valid reason phrase (RFC 9112 section 4). The parser only excludes line ends."""
    return text.translate(None, _CONTROLS) == text


def may_be_trailer(name: bytes) -> bool:
    """Return True if a field of this name is allowed as a trailer."""
    lower = name.lower()
    return lower not in _NOT_IN_TRAILERS and b"_" not in name and not lower.startswith(_FORWARDED_PREFIX)


def connection_options(value: bytes) -> frozenset[bytes]:
    """Return the options of a Connection header in lower case."""
    return frozenset(option for part in value.split(b",") if (option := part.strip().lower()))


_FIELD_LIST: Final = re.compile(rb"[\w!#$%&'*+.^`|~-]+(?:[ \t]*,[ \t]*[\w!#$%&'*+.^`|~-]+)*")


def is_field_list(value: bytes) -> bool:
    """Return True for a list of at least one field name (RFC 9110 sections 5.1 and 5.6.2), separated by commas."""
    return _FIELD_LIST.fullmatch(value) is not None


_NAMES_NO_FIELD: Final = frozenset((b"keep-alive", b"close", b"Keep-Alive", b"Close", b"upgrade", b"Upgrade"))


def fields_named_by(connection: bytes) -> frozenset[bytes]:
    """Return the names of the fields that a Connection header declares hop-by-hop, in lower case."""
    if connection in _NAMES_NO_FIELD:
        return frozenset()
    return connection_options(connection) - {b"close", b"keep-alive", b"upgrade"}


def without_fields(lines: list[bytes], names: frozenset[bytes]) -> list[bytes]:
    """Return a list of header lines without the fields of these lower-case names."""
    return [line for line in lines if line.partition(b":")[0].lower() not in names]


def is_chunked(value: bytes) -> bool:
    """Return True if a Transfer-Encoding is `chunked`, the only coding that the router supports."""
    return value.strip().lower() == b"chunked"
