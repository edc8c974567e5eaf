"""Key authentication: whether an Authorization header carries one of a service's two keys."""

from __future__ import annotations

from collections.abc import Iterable
from hmac import compare_digest

_SCHEME = b"bearer "
CHALLENGE = 'Bearer realm="azureml-fe"'
INVALID_CHALLENGE = 'Bearer realm="azureml-fe", error="invalid_token"'  # RFC 6750 section 3.1
INSUFFICIENT_CHALLENGE = 'Bearer realm="azureml-fe", error="insufficient_scope"'

MISSING = "missing"
"""Denial reason: the request has neither key nor token."""
INVALID = "invalid"
"""Denial reason: the credential is none of the keys."""


def parse_bearer(authorization: bytes | None) -> bytes | None:
    """Return the credential of an Authorization header of scheme Bearer (RFC 6750), None for any other header."""
    if authorization is None or (authorization[:7] != b"Bearer " and authorization[:7].lower() != _SCHEME):
        return None
    return authorization[7:].strip()


class KeyCheck:
    """Checks keys in constant time: it compares every key of the service, even after a match."""

    __slots__ = ("_headers", "_keys")

    unknown_key_issuer = ""
    """As in `TokenCheck`; always empty, as no fetch makes a key valid."""

    def __init__(self, keys: Iterable[str | None]) -> None:
        self._keys = tuple(key.encode() for key in keys if key)
        self._headers = tuple(b"Bearer " + key for key in self._keys)  # the spelling of nearly all clients

    def __repr__(self) -> str:
        return f"KeyCheck({len(self._keys)} keys)"

    def allows(self, authorization: bytes | None) -> bool:
        """Return True if the value of an Authorization header carries one of the keys."""
        if authorization is None:
            return False
        found = False
        for header in self._headers:
            if compare_digest(authorization, header):
                found = True
        return found or self._allows_other_spelling(authorization)

    def _allows_other_spelling(self, authorization: bytes) -> bool:
        """Check a header whose scheme has other letter case, or with white space around the key."""
        credential = parse_bearer(authorization)
        if credential is None:
            return False
        found = False
        for key in self._keys:
            if compare_digest(credential, key):
                found = True
        return found

    def denial_reason(self, authorization: bytes | None) -> str:
        """Return the reason why `allows` returns False for this header: `MISSING` or `INVALID`."""
        return MISSING if authorization is None else INVALID
