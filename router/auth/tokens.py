"""Token authentication: whether an Authorization header carries a valid token for a service.

A token is a JWT signed by a trusted issuer. Its header and claims only select the issuer and the key for verification.
The accepted algorithms are a setting of the issuer, so neither `none` nor a signature by another kind of key is ever
accepted. PyJWT reads keys and verifies signatures. The format is checked here, as strictly as RFC 7515 requires and
three times as fast as in PyJWT. The claims are checked here as well, because time is an argument.

A valid token is cached by its hash until it expires. Only the first request with a token needs the verification of a
signature, which takes about as long as the rest of the request. Later requests need a lookup.

Contains: verification and the cache. Does not contain: the origin of keys (`jwks`), and I/O. This module loads PyJWT
and with it cryptography (9 MB): import it only when a service uses tokens.
"""

from __future__ import annotations

import json
import math
import re
import secrets
import warnings
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, NamedTuple

import jwt
from jwt.exceptions import PyJWTError
from jwt.warnings import InsecureKeyLengthWarning

from router.auth.issuers import Issuer
from router.auth.keys import MISSING, parse_bearer
from router.auth.trust import KeySet, PublicKey, Trust

MAX_TOKEN_BYTES = 16_384
"""Longer tokens are rejected as malformed. Entra ID limits a token to some 200 groups, which is far shorter."""

MAX_CACHED_TOKENS = 10_000
"""Maximum number of tokens that one worker caches, at about 200 bytes each. The oldest is dropped first."""

_COMPACT_FORM = re.compile(rb"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")

_TYPES = frozenset(("jwt", "at+jwt", "application/at+jwt"))
"""The accepted values of `typ`, if a token has it (RFC 9068, RFC 8725): issuers sign other kinds of JWTs with the same
keys."""

_MAX_TIME = 2.0**53  # seconds; above this a float cannot represent each second

MALFORMED = "malformed"
UNKNOWN_ISSUER = "unknown-issuer"
UNKNOWN_KEY = "unknown-key"
NO_KEYS = "no-keys"
WRONG_ALGORITHM = "wrong-algorithm"
WRONG_SIGNATURE = "wrong-signature"
WRONG_AUDIENCE = "wrong-audience"
EXPIRED = "expired"
NOT_YET_VALID = "not-yet-valid"
MISSING_CLAIM = "missing-claim"


class Verdict(NamedTuple):
    """The result of verifying a token.

    `denial_reason` is "" for a valid token, which is valid until `expires_at` (epoch seconds). `unknown_key_issuer`
    names the issuer whose keys must be fetched again before the token can be verified, "" if that would not help.
    """

    denial_reason: str
    expires_at: float = 0.0
    unknown_key_issuer: str = ""


class _MalformedError(ValueError):
    """The token is not well-formed. The error has no message, as the token is a secret."""


@dataclass(frozen=True, slots=True)
class _TrustedIssuer:
    """An issuer and its keys, ready for verification."""

    issuer: Issuer
    published: tuple[PublicKey, ...]
    keys: Mapping[tuple[str | None, str], jwt.PyJWK]  # the usable keys, by id and algorithm

    def key(self, kid: str | None, algorithm: str) -> jwt.PyJWK | None:
        """Return the key that a token names, or the only key of that algorithm if it names none."""
        if kid is not None:
            return self.keys.get((kid, algorithm))
        candidates = [key for (_, key_algorithm), key in self.keys.items() if key_algorithm == algorithm]
        return candidates[0] if len(candidates) == 1 else None


class TokenVerifier:
    """Verifies tokens with the keys of the trusted issuers. Reads no clock and caches nothing."""

    def __init__(self) -> None:
        self._by_iss: dict[str, list[_TrustedIssuer]] = {}

    def set_trust(self, trust: Trust) -> None:
        """Replace the trusted issuers and keys."""
        previous = {trusted.issuer: trusted for issuers in self._by_iss.values() for trusted in issuers}
        self._by_iss = {}
        for issuer in trust.issuers:
            published = trust.key_sets.get(issuer.name, KeySet()).keys
            trusted = previous.get(issuer)
            if trusted is None or trusted.published != published:  # most updates change no keys
                trusted = _TrustedIssuer(issuer, published, _load_usable_keys(published, issuer.algorithms))
            self._by_iss.setdefault(issuer.issuer, []).append(trusted)

    def verify(self, token: bytes, service: str, now: float) -> Verdict:
        """Verify a token for a service at `now` (seconds since the epoch)."""
        try:
            header, payload, signed = _parse_token(token)
            algorithm, kid = _parse_header(header)
            claims = _parse_claims(payload)
        except _MalformedError:
            return Verdict(MALFORMED)
        denial = Verdict(UNKNOWN_ISSUER)
        for trusted in self._by_iss.get(claims["iss"], ()):  # several issuers may share `iss` and differ otherwise
            if trusted.issuer.serves(service):
                verdict = _verify(trusted, service, now, algorithm, kid, claims, signed)
                if not verdict.denial_reason:
                    return verdict
                if not denial.unknown_key_issuer:
                    denial = verdict
        return denial


def _verify(
    trusted: _TrustedIssuer,
    service: str,
    now: float,
    algorithm: str,
    kid: str | None,
    claims: dict[str, Any],
    signed: _Signed,
) -> Verdict:
    issuer = trusted.issuer
    if algorithm not in issuer.algorithms:
        return Verdict(WRONG_ALGORITHM)
    key = trusted.key(kid, algorithm)
    if key is None:
        return Verdict(UNKNOWN_KEY if trusted.published else NO_KEYS, unknown_key_issuer=issuer.name)
    # The key is bound to this algorithm and was checked for it (`_load_usable_key`).
    if not key.Algorithm.verify(signed.text, key.key, signed.signature):
        return Verdict(WRONG_SIGNATURE)
    return _verify_claims(claims, issuer, service, now)


def _verify_claims(claims: dict[str, Any], issuer: Issuer, service: str, now: float) -> Verdict:
    """Verify the claims of a token that has a valid signature."""
    if not issuer.audiences_of(service).intersection(claims["aud"]):
        return Verdict(WRONG_AUDIENCE)
    skew = issuer.clock_skew_seconds
    expires_at = claims["exp"] + skew
    if now >= expires_at:
        return Verdict(EXPIRED)
    if now < claims["nbf"] - skew or now < claims["iat"] - skew:
        return Verdict(NOT_YET_VALID)
    for name, required in issuer.required_claims:
        if not _matches(claims.get(name), required, words=name in ("scp", "scope")):
            return Verdict(MISSING_CLAIM)
    roles = claims.get("roles")
    if issuer.required_roles and not all(_matches(roles, role, words=False) for role in issuer.required_roles):
        return Verdict(MISSING_CLAIM)
    return Verdict("", expires_at)


def _matches(claim: object, required: str, *, words: bool) -> bool:
    """Return True if a claim equals the required text or is a list that contains it.

    With `words`, a claim that is a text of several words also matches if one of the words is the required text.
    """
    if isinstance(claim, list):
        return required in [item for item in claim if isinstance(item, str)]
    if isinstance(claim, bool):
        return required == ("true" if claim else "false")
    if isinstance(claim, int):
        return required == str(claim)
    if not isinstance(claim, str):
        return False
    return required == claim or (words and required in claim.split(" "))


# Parsing of tokens.


class _Signed(NamedTuple):
    text: bytes
    signature: bytes


def _parse_token(token: bytes) -> tuple[dict[str, Any], dict[str, Any], _Signed]:
    """Parse the compact form (RFC 7515) into unverified header, unverified payload, and signed text.

    Raises `_MalformedError`.
    """
    if len(token) > MAX_TOKEN_BYTES or not _COMPACT_FORM.fullmatch(token):
        raise _MalformedError
    header, payload, signature = token.split(b".")
    text = token[: len(header) + 1 + len(payload)]
    return _parse_object(_decode(header)), _parse_object(_decode(payload)), _Signed(text, _decode(signature))


def _decode(text: bytes) -> bytes:
    """Decode base64url without padding. Only the canonical form is accepted, the one that an encoder produces."""
    try:
        content = urlsafe_b64decode(text + b"=" * (-len(text) % 4))
    except ValueError:
        raise _MalformedError from None
    if urlsafe_b64encode(content).rstrip(b"=") != text:
        raise _MalformedError
    return content


def _parse_object(content: bytes) -> dict[str, Any]:
    try:
        value = _JSON.decode(content.decode())
    except (ValueError, RecursionError):
        raise _MalformedError from None
    if not isinstance(value, dict):
        raise _MalformedError
    return value


def _unique_members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the members as a dict. Duplicate members are rejected, as parsers use different ones (RFC 7519 section 4).

    Raises `_MalformedError`.
    """
    values = dict(pairs)
    if len(values) < len(pairs):
        raise _MalformedError
    return values


def _reject_constant(_: str) -> Any:
    raise _MalformedError  # NaN and Infinity are not JSON


_JSON = json.JSONDecoder(object_pairs_hook=_unique_members, parse_constant=_reject_constant)


def _parse_header(header: dict[str, Any]) -> tuple[str, str | None]:
    """Return `alg` and `kid` of a header. URLs and keys in it (jku, x5u, jwk, x5c) are ignored."""
    algorithm, kid, kind = header.get("alg"), header.get("kid"), header.get("typ", "JWT")
    if not isinstance(algorithm, str) or not isinstance(kid, str | None) or not isinstance(kind, str):
        raise _MalformedError
    # Extensions that must be understood (RFC 7515 section 4.1.11), and are not supported.
    if "crit" in header or "b64" in header or kind.lower() not in _TYPES:
        raise _MalformedError
    return algorithm, kid


def _parse_claims(payload: dict[str, Any]) -> dict[str, Any]:
    """Check the types of the registered claims; return them with `aud` as a list and defaults for missing times."""
    audience = payload.get("aud")
    audiences = [audience] if isinstance(audience, str) else audience
    if not isinstance(payload.get("iss"), str) or not isinstance(audiences, list):
        raise _MalformedError
    if not all(isinstance(each, str) for each in audiences) or "exp" not in payload:
        raise _MalformedError
    times = {name: payload.get(name, 0) for name in ("exp", "nbf", "iat")}
    if not all(_is_time(value) for value in times.values()):
        raise _MalformedError
    return payload | times | {"aud": audiences}


def _is_time(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < _MAX_TIME and math.isfinite(value)


# Keys.


def _load_usable_keys(
    keys: tuple[PublicKey, ...], algorithms: tuple[str, ...]
) -> dict[tuple[str | None, str], jwt.PyJWK]:
    """Return the keys that can verify signatures of these algorithms, by id and algorithm.

    Different keys with the same id and algorithm are omitted, as a token does not distinguish them.
    """
    usable: dict[tuple[str | None, str], jwt.PyJWK] = {}
    ambiguous = set()
    for key in keys:
        for algorithm in algorithms:
            loaded = _load_usable_key(key, algorithm)
            if loaded is not None:
                identity = key.get("kid"), algorithm
                if identity in usable and loaded.key != usable[identity].key:
                    ambiguous.add(identity)
                usable[identity] = loaded
    return {identity: key for identity, key in usable.items() if identity not in ambiguous}


_KEY_TYPES = {"RS": "RSA", "PS": "RSA", "ES": "EC", "Ed": "OKP"}
_CURVES = {"ES256": "P-256", "ES384": "P-384", "ES512": "P-521", "EdDSA": "Ed25519"}


def _load_usable_key(key: PublicKey, algorithm: str) -> jwt.PyJWK | None:
    """Load a published key for an algorithm. Return None if the key is for another algorithm or too weak."""
    if key.get("kty") != _KEY_TYPES[algorithm[:2]] or key.get("alg", algorithm) != algorithm:
        return None
    if key.get("crv") != _CURVES.get(algorithm):
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", InsecureKeyLengthWarning)
            loaded = jwt.PyJWK(dict(key), algorithm)
            if loaded.Algorithm.check_key_length(loaded.key):
                return None
    except (PyJWTError, InsecureKeyLengthWarning, ValueError, TypeError):
        return None
    return loaded


# Checks of requests.


class TokenCache:
    """The expiry times of valid tokens by hash, at most `limit`. One cache serves all services of a worker."""

    __slots__ = ("_limit", "_valid_until", "hits", "misses")

    def __init__(self, limit: int = MAX_CACHED_TOKENS) -> None:
        self._limit = limit
        self._valid_until: OrderedDict[bytes, float] = OrderedDict()
        self.hits = 0
        self.misses = 0

    def __len__(self) -> int:
        return len(self._valid_until)

    def valid_until(self, digest: bytes) -> float:
        """Return the time until which a token is valid (epoch seconds), or 0 for a token that is not cached."""
        return self._valid_until.get(digest, 0.0)

    def add(self, digest: bytes, valid_until: float) -> None:
        self._valid_until[digest] = valid_until
        if len(self._valid_until) > self._limit:
            self._valid_until.popitem(last=False)

    def discard(self, digest: bytes) -> None:
        self._valid_until.pop(digest, None)

    def clear(self) -> None:
        self._valid_until.clear()


class TokenCheck:
    """Checks the tokens of one service. A request with a cached token costs a hash and a lookup."""

    __slots__ = ("_cache", "_clock", "_denial_reason", "_salt", "_service", "_verifier", "unknown_key_issuer")

    def __init__(self, service: str, verifier: TokenVerifier, cache: TokenCache, clock: Callable[[], float]) -> None:
        self._service = service
        self._verifier = verifier
        self._cache = cache
        self._clock = clock
        # With the salt, the entries of this object in the shared cache match for no other service or object.
        self._salt = secrets.token_bytes(16)
        self._denial_reason = ""
        self.unknown_key_issuer = ""
        """After `allows` returned False: the issuer whose keys must be fetched again before the token can be verified,
        "" if that would not help."""

    def __repr__(self) -> str:
        return f"TokenCheck({self._service})"

    def allows(self, authorization: bytes | None) -> bool:
        """Return True if the value of an Authorization header carries a valid token."""
        token = parse_bearer(authorization)
        if token is None:
            self._denial_reason, self.unknown_key_issuer = MISSING, ""
            return False
        cache, now = self._cache, self._clock()
        digest = sha256(self._salt + token).digest()
        if now < cache.valid_until(digest):
            cache.hits += 1
            return True
        cache.misses += 1
        verdict = self._verifier.verify(token, self._service, now)
        self._denial_reason, self.unknown_key_issuer = verdict.denial_reason, verdict.unknown_key_issuer
        if verdict.denial_reason:
            cache.discard(digest)
            return False
        cache.add(digest, verdict.expires_at)
        return True

    def denial_reason(self, _: bytes | None) -> str:
        """Return why the last call of `allows` returned False."""
        return self._denial_reason
