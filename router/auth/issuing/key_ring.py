"""The router as an issuer: its signing keys, their rotation, and the tokens that it issues.

    made ── _LEAD_SECONDS: published, not used yet ──> signs ── until the next key signs ──> verifies only ── until the
    last token that it signed has expired ──> removed

All of this is derived from the times at which the keys were made, so routers that read the same ring agree without
communication.

Contains: `KeyRing`, an immutable value with a text form. Time (epoch seconds) is an argument. The only I/O is the
generation of random keys. Does not contain: storage of the text (`ring_store`). This module loads PyJWT and
cryptography.
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

from router.auth.issuers import ROUTER_ISS, ROUTER_ISSUER, router_audience
from router.auth.trust import PublicKey
from router.config.schema import SettingsError

MIN_LIFETIME_SECONDS = 60
MAX_LIFETIME_SECONDS = 86_400

_ALGORITHM = "ES256"
_LEAD_SECONDS = 300.0  # time between publication of a key and its first signature, so that all workers have the key
_REFRESH_SHARE = 0.75  # share of a token's lifetime after which a client should fetch the next token
_MAX_KEYS = 20


def _invalid(requirement: str) -> SettingsError:
    return SettingsError("token signing keys", None, f"{requirement}; remove them to have new ones generated")


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A key pair. `made_at` is in seconds since the epoch."""

    kid: str
    made_at: float
    pem: str = field(repr=False)

    def private_key(self) -> EllipticCurvePrivateKey:
        """Return the private key. Raises `SettingsError`."""
        try:
            key = load_pem_private_key(self.pem.encode(), None)
        except (ValueError, TypeError):
            raise _invalid("must be private keys") from None
        if not isinstance(key, EllipticCurvePrivateKey) or not isinstance(key.curve, SECP256R1):
            raise _invalid("must be keys for ES256")
        return key

    def public_key(self) -> PublicKey:
        """Return the public key in the form in which it is published."""
        members = ECAlgorithm.to_jwk(self.private_key().public_key(), as_dict=True)
        return {"kty": "EC", "kid": self.kid, "alg": _ALGORITHM, "crv": members["crv"]} | {
            name: str(members[name]) for name in ("x", "y")
        }


@dataclass(frozen=True, slots=True)
class IssuedToken:
    """A token with the times that Azure ML's SDKs expect, in epoch seconds."""

    access_token: str = field(repr=False)
    refresh_after: int
    expiry_on: int

    def document(self) -> dict[str, object]:
        """Return the token as a document that both SDKs read: each has its own names of the times."""
        return {
            "accessToken": self.access_token,
            "tokenType": "Bearer",
            "refreshAfter": self.refresh_after,
            "expiryOn": self.expiry_on,
            "refreshAfterTimeUtc": self.refresh_after,
            "expiryTimeUtc": self.expiry_on,
        }


@dataclass(frozen=True, slots=True)
class KeyRing:
    """Signing keys, oldest first."""

    keys: tuple[SigningKey, ...] = ()

    @classmethod
    def parse(cls, text: str) -> KeyRing:
        """Parse the text form. Raises `SettingsError`."""
        try:
            listed = json.loads(text)["keys"]
            keys = [SigningKey(str(each["kid"]), float(each["made_at"]), str(each["private"])) for each in listed]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise _invalid("must be a key ring") from None
        if len(keys) > _MAX_KEYS or len({key.kid for key in keys}) < len(keys):
            raise _invalid(f"must be at most {_MAX_KEYS}, each with a different id")
        for key in keys:
            key.private_key()
        return cls(tuple(sorted(keys, key=lambda key: key.made_at)))

    def text(self) -> str:
        """Return the text form, which contains secrets."""
        keys = [{"kid": key.kid, "made_at": key.made_at, "private": key.pem} for key in self.keys]
        return json.dumps({"keys": keys}, indent=1) + "\n"

    def renew(self, now: float, rotation_seconds: float) -> KeyRing:
        """Return the ring with a new key if one is due, and without keys whose tokens have all expired.

        Return this object itself if nothing changes.
        """
        keys = list(self.keys)
        if not keys or now >= keys[-1].made_at + rotation_seconds:
            keys.append(_new_key(now))
        last_token_seconds = MAX_LIFETIME_SECONDS + ROUTER_ISSUER.clock_skew_seconds
        while len(keys) > 1 and now >= keys[1].made_at + _LEAD_SECONDS + last_token_seconds:
            del keys[0]
        return self if len(keys) == len(self.keys) and keys[-1] == self.keys[-1] else KeyRing(tuple(keys))

    def public_keys(self) -> tuple[PublicKey, ...]:
        """Return the public keys of all signing keys."""
        return tuple(key.public_key() for key in self.keys)

    def issue(self, service: str, lifetime_seconds: int, now: float) -> IssuedToken:
        """Return a token for a service. Raises `ValueError` when there is no key."""
        if not self.keys:
            raise ValueError("the ring has no key")
        ready = [key for key in self.keys if now >= key.made_at + _LEAD_SECONDS]
        key = ready[-1] if ready else self.keys[0]
        issued_at = int(now)
        claims: Mapping[str, Any] = {
            "iss": ROUTER_ISS,
            "aud": router_audience(service),
            "sub": service,
            "iat": issued_at,
            "nbf": issued_at,
            "exp": issued_at + lifetime_seconds,
            "jti": secrets.token_urlsafe(12),
        }
        token = jwt.encode(dict(claims), key.private_key(), _ALGORITHM, headers={"kid": key.kid})
        return IssuedToken(token, issued_at + int(lifetime_seconds * _REFRESH_SHARE), issued_at + lifetime_seconds)


def parse_lifetime(raw: str | None, default: int, where: str) -> int:
    """Return the lifetime of a token in seconds, `default` if none is requested. Raises `SettingsError`."""
    if raw is None:
        return default
    value = int(raw) if raw.isascii() and raw.isdigit() and len(raw) < 10 else -1
    if not MIN_LIFETIME_SECONDS <= value <= MAX_LIFETIME_SECONDS:
        problem = f"must be a whole number from {MIN_LIFETIME_SECONDS} to {MAX_LIFETIME_SECONDS} (s)"
        raise SettingsError("ttl", raw, problem, where)
    return value


def _new_key(now: float) -> SigningKey:
    key = generate_private_key(SECP256R1())
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    members = ECAlgorithm.to_jwk(key.public_key(), as_dict=True)
    # The thumbprint (RFC 7638): members in this order, without white space.
    canonical = json.dumps({name: members[name] for name in ("crv", "kty", "x", "y")}, separators=(",", ":"))
    kid = urlsafe_b64encode(sha256(canonical.encode()).digest()).rstrip(b"=").decode()
    return SigningKey(kid, now, pem)
