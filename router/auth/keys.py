"""Key authentication: is this Authorization header one of a service's two keys?"""

from __future__ import annotations

from collections.abc import Iterable
from hmac import compare_digest

_SCHEME = b"bearer "
CHALLENGE = 'Bearer realm="azureml-fe"'
INVALID_CHALLENGE = 'Bearer realm="azureml-fe", error="invalid_token"'  # RFC 6750 section 3.1
INSUFFICIENT_CHALLENGE = 'Bearer realm="azureml-fe", error="insufficient_scope"'

MISSING = "missing"
"""Why a request is refused: it carries neither key nor token."""
INVALID = "invalid"
"""Why a request is refused: what it carries is none of the keys."""


def bearer(authorization: bytes | None) -> bytes | None:
    """What an Authorization header carries by the scheme of RFC 6750; None without it."""
    if authorization is None or (authorization[:7] != b"Bearer " and authorization[:7].lower() != _SCHEME):
        return None
    return authorization[7:].strip()


class KeyCheck:
    """Checks keys in constant time: every key of the service is compared, whichever matches and however early."""

    __slots__ = ("_headers", "_keys")

    unknown_key_of = ""
    """See `TokenCheck`: no key becomes valid by asking somebody."""

    def __init__(self, keys: Iterable[str | None]) -> None:
        self._keys = tuple(key.encode() for key in keys if key)
        self._headers = tuple(b"Bearer " + key for key in self._keys)  # as nearly all clients write it

    def __repr__(self) -> str:
        return f"KeyCheck({len(self._keys)} keys)"

    def allows(self, authorization: bytes | None) -> bool:
        """Whether the value of an Authorization header carries one of the keys."""
        if authorization is None:
            return False
        found = False
        for header in self._headers:
            if compare_digest(authorization, header):
                found = True
        return found or self._allows_as_spelt(authorization)

    def _allows_as_spelt(self, authorization: bytes) -> bool:
        """The same for other spellings of the scheme, and white space around the key."""
        given = bearer(authorization)
        if given is None:
            return False
        found = False
        for key in self._keys:
            if compare_digest(given, key):
                found = True
        return found

    def why_not(self, authorization: bytes | None) -> str:
        """Why `allows` has just said no."""
        return MISSING if authorization is None else INVALID
