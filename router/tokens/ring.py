"""The router as an issuer: its signing keys, their rotation, and the tokens that it makes.

    made ── _LEAD_SECONDS: published, not yet used ──> signs ── until its successor does ──> verifies only ── until the
    last token that it signed has expired ──> removed

All of this follows from when each key was made, so routers that read one ring at one time do the same without a word.

Lives here: `KeyRing`, an immutable value with a text form. Time (epoch seconds) is an argument; no I/O but random
numbers. Must not live here: where the text is kept (`store`). This module loads PyJWT and cryptography.
"""

from __future__ import annotations

import json
import secrets
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey, generate_private_key
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from jwt.algorithms import ECAlgorithm

from router.auth.issuers import OWN_AS_ISSUER, OWN_ISSUER, own_audience
from router.auth.trust import PublicKey
from router.values import SettingsError

SHORTEST_TOKEN_SECONDS = 60
LONGEST_TOKEN_SECONDS = 86_400

_ALGORITHM = "ES256"
_LEAD_SECONDS = 300.0  # a new key is known to all workers of all routers before its first token is
_REFRESH_SHARE = 0.75  # of a token's life, after which a client should fetch the next: leaves time for failures
_MOST_KEYS = 20


def _bad(why: str) -> SettingsError:
    return SettingsError("token signing keys", None, f"{why}; remove them to have new ones made")


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A key pair; `made_at` in seconds since the epoch."""

    kid: str
    made_at: float
    pem: str = field(repr=False)

    def private_key(self) -> EllipticCurvePrivateKey:
        """Raises `SettingsError`."""
        try:
            key = load_pem_private_key(self.pem.encode(), None)
        except (ValueError, TypeError):
            raise _bad("must be private keys") from None
        if not isinstance(key, EllipticCurvePrivateKey) or not isinstance(key.curve, SECP256R1):
            raise _bad("must be keys for ES256")
        return key

    def public_key(self) -> PublicKey:
        """What is published of it."""
        members = ECAlgorithm.to_jwk(self.private_key().public_key(), as_dict=True)
        return {"kty": "EC", "kid": self.kid, "alg": _ALGORITHM, "crv": members["crv"]} | {
            name: str(members[name]) for name in ("x", "y")
        }


@dataclass(frozen=True, slots=True)
class Issued:
    """A token, as Azure ML's SDK knows it. Times are epoch seconds."""

    access_token: str = field(repr=False)
    refresh_after: int
    expiry_on: int

    def document(self) -> dict[str, object]:
        """With the names of the SDK."""
        return {
            "accessToken": self.access_token,
            "refreshAfter": self.refresh_after,
            "expiryOn": self.expiry_on,
            "tokenType": "Bearer",
        }


@dataclass(frozen=True, slots=True)
class KeyRing:
    """Signing keys, oldest first."""

    keys: tuple[SigningKey, ...] = ()

    @classmethod
    def read(cls, text: str) -> KeyRing:
        """From its text form. Raises `SettingsError`."""
        try:
            listed = json.loads(text)["keys"]
            keys = [SigningKey(str(each["kid"]), float(each["made_at"]), str(each["private"])) for each in listed]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise _bad("must be a key ring") from None
        if len(keys) > _MOST_KEYS or len({key.kid for key in keys}) < len(keys):
            raise _bad("must be few, each of an id of its own")
        for key in keys:
            key.private_key()
        return cls(tuple(sorted(keys, key=lambda key: key.made_at)))

    def text(self) -> str:
        """Its text form, which is secret."""
        keys = [{"kid": key.kid, "made_at": key.made_at, "private": key.pem} for key in self.keys]
        return json.dumps({"keys": keys}, indent=1) + "\n"

    def renewed(self, now: float, rotation_seconds: float) -> KeyRing:
        """With a new key if it is time for one, and without those whose tokens have all expired."""
        keys = list(self.keys)
        if not keys or now >= keys[-1].made_at + rotation_seconds:
            keys.append(_new_key(now))
        spent = LONGEST_TOKEN_SECONDS + OWN_AS_ISSUER.clock_skew_seconds
        while len(keys) > 1 and now >= keys[1].made_at + _LEAD_SECONDS + spent:
            del keys[0]
        return self if len(keys) == len(self.keys) and keys[-1] == self.keys[-1] else KeyRing(tuple(keys))

    def public_keys(self) -> tuple[PublicKey, ...]:
        """What workers and whoever else checks tokens go by."""
        return tuple(key.public_key() for key in self.keys)

    def issue(self, service: str, lifetime_seconds: int, now: float) -> Issued:
        """A token for a service. Raises `ValueError` when there is no key."""
        if not self.keys:
            raise ValueError("the ring has no key")
        ready = [key for key in self.keys if now >= key.made_at + _LEAD_SECONDS]
        key = ready[-1] if ready else self.keys[0]
        began = int(now)
        claims: Mapping[str, Any] = {
            "iss": OWN_ISSUER,
            "aud": own_audience(service),
            "sub": service,
            "iat": began,
            "nbf": began,
            "exp": began + lifetime_seconds,
            "jti": secrets.token_urlsafe(12),
        }
        token = jwt.encode(dict(claims), key.private_key(), _ALGORITHM, headers={"kid": key.kid})
        return Issued(token, began + int(lifetime_seconds * _REFRESH_SHARE), began + lifetime_seconds)


def lifetime_seconds(raw: str | None, default: int, where: str) -> int:
    """How long a token is to live, by what somebody wrote. Raises `SettingsError`."""
    if raw is None:
        return default
    value = int(raw) if raw.isascii() and raw.isdigit() and len(raw) < 10 else -1
    if not SHORTEST_TOKEN_SECONDS <= value <= LONGEST_TOKEN_SECONDS:
        allowed = f"must be a whole number from {SHORTEST_TOKEN_SECONDS} to {LONGEST_TOKEN_SECONDS} (s)"
        raise SettingsError("ttl", raw, allowed, where)
    return value


def _new_key(now: float) -> SigningKey:
    key = generate_private_key(SECP256R1())
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    members = ECAlgorithm.to_jwk(key.public_key(), as_dict=True)
    # Its thumbprint (RFC 7638): members in this order, nothing between them.
    named = json.dumps({name: members[name] for name in ("crv", "kty", "x", "y")}, separators=(",", ":"))
    kid = urlsafe_b64encode(sha256(named.encode()).digest()).rstrip(b"=").decode()
    return SigningKey(kid, now, pem)
