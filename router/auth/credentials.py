"""Where a request has its key or token: `Authorization`, other headers of the service, or a WebSocket's protocols.

No I/O. Does not contain: whether the credential is valid (`keys`, `tokens`).

Source of the form in `Sec-WebSocket-Protocol`: the API server of Kubernetes. Browsers can set no other header of a
WebSocket.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Mapping
from typing import Final

AUTHORIZATION: Final = b"authorization"
WEBSOCKET_PROTOCOL: Final = b"sec-websocket-protocol"
_BEARER_PROTOCOL: Final = b"base64url.bearer.authorization.k8s.io."
_BASE64URL: Final = re.compile(rb"[A-Za-z0-9_-]+")
_CREDENTIAL: Final = re.compile(rb"[\x21-\x7e]+")


class CredentialError(ValueError):
    """The request has several credentials, or one in a malformed protocol. The text completes "Bad request: "."""


def find_credential(captured: Mapping[bytes, bytes], key_headers: tuple[bytes, ...], websocket: bool) -> bytes | None:
    """Return the request's credential as a value of Authorization, None if it has none.

    `captured` has fields by lower-case name, repeated ones joined by ", ". Those in `key_headers` may have a
    credential. `websocket`: the protocols of the request may have one, too. Raises `CredentialError`.
    """
    found: list[bytes] = []
    for name in key_headers:
        if name in captured:
            value = captured[name]
            if name != AUTHORIZATION:
                if b", " in value:
                    raise CredentialError(f"more than one {name.decode()} header")
                value = b"Bearer " + value.strip()
            found.append(value)
    if websocket and WEBSOCKET_PROTOCOL in captured:
        token, _ = split_protocols(captured[WEBSOCKET_PROTOCOL])
        if token is not None:
            found.append(b"Bearer " + token)
    if len(found) > 1:
        raise CredentialError("more than one key or token")
    return found[0] if found else None


def split_protocols(value: bytes) -> tuple[bytes | None, bytes]:
    """Return the credential in a Sec-WebSocket-Protocol, if any, and the other protocols.

    A client must offer another protocol beside the credential, since the server has to select one of those it may see.
    Raises `CredentialError`.
    """
    if _BEARER_PROTOCOL not in value:
        return None, value
    protocols = [protocol.strip() for protocol in value.split(b",")]
    others = [protocol for protocol in protocols if not protocol.startswith(_BEARER_PROTOCOL)]
    tokens = [protocol[len(_BEARER_PROTOCOL) :] for protocol in protocols if protocol.startswith(_BEARER_PROTOCOL)]
    if not tokens:
        return None, value
    if len(tokens) > 1:
        raise CredentialError("more than one token in Sec-WebSocket-Protocol")
    if not any(others):
        raise CredentialError("no protocol beside the token in Sec-WebSocket-Protocol")
    return _decode(tokens[0]), b", ".join(filter(None, others))


def _decode(text: bytes) -> bytes:
    """Decode base64url without padding."""
    try:
        if _BASE64URL.fullmatch(text):
            decoded = binascii.a2b_base64(text.translate(_TO_BASE64) + b"=" * (-len(text) % 4))
            if _CREDENTIAL.fullmatch(decoded):
                return decoded
    except binascii.Error:
        pass
    raise CredentialError("the token in Sec-WebSocket-Protocol is not base64url of visible ASCII without padding")


_TO_BASE64: Final = bytes.maketrans(b"-_", b"+/")
