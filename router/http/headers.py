"""Which header goes where. Lives here: the rules for each name. Not here: parsing (llhttp) and connections.

A header is one of three things: passed on as it is, dropped, or kept aside because the router itself reads or rewrites
it. The answer for a name as it was spelt is remembered, so that the common case costs one dictionary look-up.

Sources: RFC 9110 section 7.6.1 (hop-by-hop fields), RFC 9112 sections 6 and 7 (message framing), the contract.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

PASS: Final = b""
DROP: Final = b"-"
UNDERSCORE: Final = b"_"  # less than any letter
READ: Final = b"+"  # stands before the name: passed on, and read by the router as well
FIRST_NAME: Final = b"a"  # a kind from here on is a name, all others are less

# Hop-by-hop by definition, whether or not Connection names them.
_HOP_BY_HOP: Final = frozenset(
    (b"keep-alive", b"proxy-connection", b"proxy-authenticate", b"proxy-authorization", b"te")
)
_FRAMING: Final = frozenset((b"connection", b"content-length", b"transfer-encoding", b"upgrade"))

# The router makes these itself; what a client or a replica says in them would be taken for the router's word.
_REQUEST_KEPT: Final = _FRAMING | {b"authorization", b"expect", b"host", b"x-forwarded-for", b"x-ms-client-request-id"}
_REQUEST_READ: Final = frozenset(
    (b"access-control-request-method", b"azureml-model-deployment", b"origin", b"traceparent")
)
_REQUEST_DROPPED: Final = _HOP_BY_HOP | {b"x-forwarded-host", b"x-forwarded-proto", b"x-ms-request-id", b"x-request-id"}
_ANSWER_KEPT: Final = _FRAMING
_ANSWER_DROPPED: Final = _HOP_BY_HOP | {
    b"azureml-fe-error",
    b"azureml-model-deployment",
    b"x-ms-client-request-id",
    b"x-ms-request-id",
    b"x-request-id",
}

# Fields that must never arrive after the body (RFC 9110 section 6.5.1): framing, routing, authentication, and ours.
_NOT_IN_TRAILERS: Final = (
    _FRAMING
    | _REQUEST_KEPT
    | _REQUEST_DROPPED
    | _ANSWER_DROPPED
    | {
        b"content-encoding",
        b"content-range",
        b"content-type",
        b"cache-control",
        b"set-cookie",
        b"trailer",
        b"www-authenticate",
    }
)

_REMEMBERED_NAMES: Final = 4096  # bounds the memory that clients with ever new header names could claim


class HeaderKinds:
    """What to do with a header, by its name as spelt: `PASS`, `DROP`, `UNDERSCORE`, or its lower-case name if kept.

    A kept name has `READ` before it where the header is passed on all the same.
    """

    __slots__ = ("_dropped", "_kept", "_read", "known")

    def __init__(self, kept: Iterable[bytes], dropped: Iterable[bytes], read: Iterable[bytes] = ()) -> None:
        self._kept = frozenset(kept)
        self._dropped = frozenset(dropped)
        self._read = frozenset(read)
        self.known: dict[bytes, bytes] = {}

    def classify(self, name: bytes) -> bytes:
        """Work out, and remember, the kind of a name that is not in `known`."""
        lower = name.lower()
        if lower in self._kept:
            kind = lower
        elif lower in self._dropped:
            kind = DROP
        elif lower in self._read:
            kind = READ + lower
        elif b"_" in name:
            # Behind WSGI and ASGI servers this is the same as the name with a hyphen, which may be the router's own.
            plain = lower.replace(b"_", b"-")
            kind = DROP if plain in self._kept or plain in self._dropped else UNDERSCORE
        else:
            kind = PASS
        if len(self.known) < _REMEMBERED_NAMES and len(name) <= 64:
            self.known[name] = kind
        return kind


def request_kinds() -> HeaderKinds:
    """The rules for what a client sends. One object per worker."""
    return HeaderKinds(_REQUEST_KEPT, _REQUEST_DROPPED, _REQUEST_READ)


def answer_kinds() -> HeaderKinds:
    """The rules for what a replica sends. One object per worker."""
    return HeaderKinds(_ANSWER_KEPT, _ANSWER_DROPPED)


_CONTROLS: Final = bytes((*range(9), *range(10, 32), 127))


def is_reason(text: bytes) -> bool:
    """Whether a status may be followed by this (RFC 9112 section 4): the parser takes any byte but line ends."""
    return text.translate(None, _CONTROLS) == text


def may_be_trailer(name: bytes) -> bool:
    """Whether a field may follow the body."""
    return name.lower() not in _NOT_IN_TRAILERS and b"_" not in name


def connection_options(value: bytes) -> frozenset[bytes]:
    """The options of a Connection header, lower-case."""
    return frozenset(option for part in value.split(b",") if (option := part.strip().lower()))


_NAMES_NO_FIELD: Final = frozenset((b"keep-alive", b"close", b"Keep-Alive", b"Close", b"upgrade", b"Upgrade"))


def fields_named_by(connection: bytes) -> frozenset[bytes]:
    """The fields that a Connection header declares hop-by-hop, lower-case."""
    if connection in _NAMES_NO_FIELD:
        return frozenset()
    return connection_options(connection) - {b"close", b"keep-alive", b"upgrade"}


def without_fields(lines: list[bytes], names: frozenset[bytes]) -> list[bytes]:
    """Leave out the fields of these (lower-case) names from a list of `name: value` lines."""
    return [line for line in lines if line.partition(b":")[0].lower() not in names]


def is_chunked(value: bytes) -> bool:
    """Whether a Transfer-Encoding is the one coding that this router speaks."""
    return value.strip().lower() == b"chunked"
