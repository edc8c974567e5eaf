"""Issuers of the tests: key pairs, what they publish, and tokens good and bad, down to the last byte."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from functools import cache
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from router.auth.issuers import Issuer
from router.auth.trust import KeySet, PublicKey, Trust

NOW = 1_800_000_000.0
ISS = "https://idp.example.com"
SERVICE = "iris"


@cache
def pair(name: str, kind: str = "RSA") -> Any:
    """A key pair by a name; the same one for the same name."""
    match kind:
        case "RSA":
            return rsa.generate_private_key(65537, 2048)
        case "P-384":
            return ec.generate_private_key(ec.SECP384R1())
        case "P-521":
            return ec.generate_private_key(ec.SECP521R1())
        case "Ed25519":
            return ed25519.Ed25519PrivateKey.generate()
    return ec.generate_private_key(ec.SECP256R1())


def published(key: Any, **members: str) -> PublicKey:
    """What an issuer publishes of a key pair."""
    public = key.public_key()
    kind: Any = ECAlgorithm
    if isinstance(key, rsa.RSAPrivateKey):
        kind = RSAAlgorithm
    elif isinstance(key, ed25519.Ed25519PrivateKey):
        kind = OKPAlgorithm
    made = kind.to_jwk(public, as_dict=True)
    return {name: made[name] for name in ("kty", "n", "e", "crv", "x", "y") if name in made} | members


def issuer(**settings: Any) -> Issuer:
    """One that accepts RS256 for the audience `api://SERVICE`."""
    facts: dict[str, Any] = {
        "name": "corp",
        "issuer": ISS,
        "audience": ("api://{service}",),
        "jwks_url": f"{ISS}/keys",
        "algorithms": ("RS256",),
    }
    return Issuer(**facts | settings)


def trust(*issuers: Issuer, keys: Mapping[str, PublicKey] | None = None, answered_at: float = 0.0) -> Trust:
    """These issuers, each with these keys by id."""
    known = keys if keys is not None else {"one": published(pair("one"))}
    listed = tuple({**key, "kid": kid} for kid, key in known.items())
    issuers = issuers or (issuer(),)
    return Trust(issuers, {each.name: KeySet(listed, answered_at) for each in issuers})


def claims(**changed: Any) -> dict[str, Any]:
    """Those of a good token; a claim that is None is left out."""
    good: dict[str, Any] = {"iss": ISS, "aud": f"api://{SERVICE}", "exp": NOW + 600, "iat": NOW - 60, "sub": "client"}
    return {name: value for name, value in (good | changed).items() if value is not None}


def token(
    content: Mapping[str, Any] | None = None, *, key: Any = None, algorithm: str = "RS256", **header: Any
) -> bytes:
    """A token; a header that is None is left out."""
    fields = {"kid": "one", **header}
    return raw(
        {"alg": algorithm, "typ": "JWT", **fields},
        json.dumps(claims() if content is None else dict(content)).encode(),
        pair("one") if key is None else key,
        algorithm,
    )


def raw(header: Mapping[str, Any] | bytes, payload: bytes, key: Any, algorithm: str) -> bytes:
    """A token of exactly this header and payload, with a valid signature."""
    if not isinstance(header, bytes):
        header = json.dumps({name: value for name, value in header.items() if value is not None}).encode()
    text = encoded(header) + b"." + encoded(payload)
    signer = jwt.get_algorithm_by_name(algorithm)
    return text + b"." + encoded(signer.sign(text, key))


def encoded(content: bytes) -> bytes:
    """In base64url, without padding."""
    return base64.urlsafe_b64encode(content).rstrip(b"=")
