"""Issuers for tests: key pairs, published keys, and tokens, valid and invalid down to single bytes."""

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
def key_pair(name: str, kind: str = "RSA") -> Any:
    """Return a key pair, the same one for the same arguments."""
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


def public_jwk(key: Any, **members: str) -> PublicKey:
    """Return the JSON Web Key that an issuer publishes for a key pair."""
    algorithm: Any = ECAlgorithm
    if isinstance(key, rsa.RSAPrivateKey):
        algorithm = RSAAlgorithm
    elif isinstance(key, ed25519.Ed25519PrivateKey):
        algorithm = OKPAlgorithm
    jwk = algorithm.to_jwk(key.public_key(), as_dict=True)
    return {name: jwk[name] for name in ("kty", "n", "e", "crv", "x", "y") if name in jwk} | members


def issuer(**settings: Any) -> Issuer:
    """Return an issuer with RS256 and the audience `api://SERVICE`, and with these settings."""
    defaults: dict[str, Any] = {
        "name": "corp",
        "issuer": ISS,
        "audience": ("api://{service}",),
        "jwks_url": f"{ISS}/keys",
        "algorithms": ("RS256",),
    }
    return Issuer(**defaults | settings)


def trust(*issuers: Issuer, keys: Mapping[str, PublicKey] | None = None, last_attempt_at: float = 0.0) -> Trust:
    """Return trust in these issuers, each with these keys by id."""
    known = keys if keys is not None else {"one": public_jwk(key_pair("one"))}
    listed = tuple({**key, "kid": kid} for kid, key in known.items())
    issuers = issuers or (issuer(),)
    return Trust(issuers, {each.name: KeySet(listed, last_attempt_at) for each in issuers})


def claims(**overrides: Any) -> dict[str, Any]:
    """Return the claims of a valid token, with overrides; a claim that is None is left out."""
    valid: dict[str, Any] = {"iss": ISS, "aud": f"api://{SERVICE}", "exp": NOW + 600, "iat": NOW - 60, "sub": "client"}
    return {name: value for name, value in (valid | overrides).items() if value is not None}


def token(
    content: Mapping[str, Any] | None = None, *, key: Any = None, algorithm: str = "RS256", **header: Any
) -> bytes:
    """Return a signed token; a header field that is None is left out."""
    fields = {"kid": "one", **header}
    return sign(
        {"alg": algorithm, "typ": "JWT", **fields},
        json.dumps(claims() if content is None else dict(content)).encode(),
        key_pair("one") if key is None else key,
        algorithm,
    )


def sign(header: Mapping[str, Any] | bytes, payload: bytes, key: Any, algorithm: str) -> bytes:
    """Return a token of exactly this header and payload, with a valid signature."""
    if not isinstance(header, bytes):
        header = json.dumps({name: value for name, value in header.items() if value is not None}).encode()
    text = base64url(header) + b"." + base64url(payload)
    signer = jwt.get_algorithm_by_name(algorithm)
    return text + b"." + base64url(signer.sign(text, key))


def base64url(content: bytes) -> bytes:
    """Encode as base64url without padding."""
    return base64.urlsafe_b64encode(content).rstrip(b"=")
