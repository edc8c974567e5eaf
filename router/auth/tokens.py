"""Token authentication: is this Authorization header a valid token for a service?

A token is a JWT that one of the trusted issuers has signed. What it says of itself only chooses which issuer and which
key it is held against; which signatures an issuer may use is the issuer's setting, so neither `none` nor a signature
by some other kind of key is ever tried. PyJWT reads keys and verifies signatures. The form is checked here, as strictly
as RFC 7515 has it and three times as fast, and so are the claims, as time is an argument.

A token that was found valid is remembered by its hash until it expires, so that only the first request with it costs
a signature check (about as much as the rest of the request), every other one a look-up.

Lives here: verification and that memory. Must not live here: where keys come from (`jwks`), and I/O. This module loads
PyJWT and with it cryptography (9 MB), so only who has a service with tokens may import it.
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
from router.auth.keys import MISSING, bearer
from router.auth.trust import KeySet, PublicKey, Trust

MOST_TOKEN_BYTES = 16_384
"""Longer ones are not looked into. Entra ID bounds its own at some 200 groups, well below."""

MOST_REMEMBERED = 10_000
"""Tokens that one worker remembers, the oldest goes first; at about 200 bytes each."""

_FORM = re.compile(rb"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")

_TYPES = frozenset(("jwt", "at+jwt", "application/at+jwt"))
"""An access token's `typ` where it has one (RFC 9068, RFC 8725): other kinds are signed with the same keys."""

_LATEST = 2.0**53  # seconds; beyond it a float no longer tells one second from the next

MALFORMED = "malformed"
UNKNOWN_ISSUER = "unknown-issuer"
UNKNOWN_KEY = "unknown-key"
NO_KEYS = "no-keys"
ALGORITHM = "wrong-algorithm"
SIGNATURE = "wrong-signature"
AUDIENCE = "wrong-audience"
EXPIRED = "expired"
NOT_YET = "not-yet-valid"
CLAIM = "missing-claim"


class Verdict(NamedTuple):
    """What a token is worth. `refused` says why it is not valid, "" if it is, until `expires` (epoch seconds).

    `unknown_key_of` names the issuer whose keys, if they were fetched again, might make it valid.
    """

    refused: str
    expires: float = 0.0
    unknown_key_of: str = ""


class _Malformed(ValueError):
    """Text that no issuer would write. Tells nothing of it."""


@dataclass(frozen=True, slots=True)
class _Trusted:
    """One issuer with its keys."""

    issuer: Issuer
    published: tuple[PublicKey, ...]
    keys: Mapping[tuple[str | None, str], jwt.PyJWK]  # those that fit its algorithms, by id and algorithm

    def key(self, kid: str | None, algorithm: str) -> jwt.PyJWK | None:
        """The key that a token names; the only one of that algorithm where it names none."""
        if kid is not None:
            return self.keys.get((kid, algorithm))
        fitting = [key for (_, its), key in self.keys.items() if its == algorithm]
        return fitting[0] if len(fitting) == 1 else None


class TokenVerifier:
    """Holds tokens against the trusted issuers. Knows no time and remembers nothing."""

    def __init__(self) -> None:
        self._by_iss: dict[str, list[_Trusted]] = {}

    def set_trust(self, trust: Trust) -> None:
        """Go by these issuers and keys, and no others."""
        former = {trusted.issuer: trusted for several in self._by_iss.values() for trusted in several}
        self._by_iss = {}
        for issuer in trust.issuers:
            published = trust.keys.get(issuer.name, KeySet()).keys
            trusted = former.get(issuer)
            if trusted is None or trusted.published != published:  # most news is that nothing is new
                trusted = _Trusted(issuer, published, _fitting(published, issuer.algorithms))
            self._by_iss.setdefault(issuer.issuer, []).append(trusted)

    def verify(self, token: bytes, service: str, now: float) -> Verdict:
        """Whether a token gives access to a service at a time (seconds since the epoch)."""
        try:
            header, payload, signed = _take_apart(token)
            algorithm, kid = _algorithm_and_key(header)
            claims = _claims(payload)
        except _Malformed:
            return Verdict(MALFORMED)
        refusal = Verdict(UNKNOWN_ISSUER)
        for trusted in self._by_iss.get(claims["iss"], ()):  # more than one where they differ in what they ask for
            if trusted.issuer.serves(service):
                verdict = _verify(trusted, service, now, algorithm, kid, claims, signed)
                if not verdict.refused:
                    return verdict
                if not refusal.unknown_key_of:
                    refusal = verdict
        return refusal


def _verify(
    trusted: _Trusted,
    service: str,
    now: float,
    algorithm: str,
    kid: str | None,
    claims: dict[str, Any],
    signed: _Signed,
) -> Verdict:
    issuer = trusted.issuer
    if algorithm not in issuer.algorithms:
        return Verdict(ALGORITHM)
    key = trusted.key(kid, algorithm)
    if key is None:
        return Verdict(UNKNOWN_KEY if trusted.published else NO_KEYS, unknown_key_of=issuer.name)
    # The key is bound to this algorithm, and was found fit for it (`usable_key`).
    if not key.Algorithm.verify(signed.text, key.key, signed.signature):
        return Verdict(SIGNATURE)
    return _judge(claims, issuer, service, now)


def _judge(claims: dict[str, Any], issuer: Issuer, service: str, now: float) -> Verdict:
    """What the claims of a token with a valid signature are worth."""
    if not issuer.audiences_of(service).intersection(claims["aud"]):
        return Verdict(AUDIENCE)
    skew = issuer.clock_skew_seconds
    expires = claims["exp"] + skew
    if now >= expires:
        return Verdict(EXPIRED)
    if now < claims["nbf"] - skew or now < claims["iat"] - skew:
        return Verdict(NOT_YET)
    for name, wanted in issuer.required_claims:
        if not _has(claims.get(name), wanted, words=name in ("scp", "scope")):
            return Verdict(CLAIM)
    roles = claims.get("roles")
    if issuer.required_roles and not all(_has(roles, role, words=False) for role in issuer.required_roles):
        return Verdict(CLAIM)
    return Verdict("", expires)


def _has(claim: object, wanted: str, *, words: bool) -> bool:
    """Whether a claim is the wanted text or contains it, as a list of texts or a text of words does."""
    if isinstance(claim, list):
        return wanted in [item for item in claim if isinstance(item, str)]
    if isinstance(claim, bool):
        return wanted == ("true" if claim else "false")
    if isinstance(claim, int):
        return wanted == str(claim)
    if not isinstance(claim, str):
        return False
    return wanted == claim or (words and wanted in claim.split(" "))


# A token's text.


class _Signed(NamedTuple):
    text: bytes
    signature: bytes


def _take_apart(token: bytes) -> tuple[dict[str, Any], dict[str, Any], _Signed]:
    """Header and payload, both unverified, and what was signed (RFC 7515, compact form). Raises `_Malformed`."""
    if len(token) > MOST_TOKEN_BYTES or not _FORM.fullmatch(token):
        raise _Malformed
    header, payload, signature = token.split(b".")
    text = token[: len(header) + 1 + len(payload)]
    return _object(_decoded(header)), _object(_decoded(payload)), _Signed(text, _decoded(signature))


def _decoded(text: bytes) -> bytes:
    """From base64url without padding; of several texts that mean the same bytes only the one that is made of them."""
    try:
        content = urlsafe_b64decode(text + b"=" * (-len(text) % 4))
    except ValueError:
        raise _Malformed from None
    if urlsafe_b64encode(content).rstrip(b"=") != text:
        raise _Malformed
    return content


def _object(content: bytes) -> dict[str, Any]:
    try:
        value = _JSON.decode(content.decode())
    except (ValueError, RecursionError):
        raise _Malformed from None
    if not isinstance(value, dict):
        raise _Malformed
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Of two members of one name, readers differ in which they see (RFC 7519 section 4)."""
    values = dict(pairs)
    if len(values) < len(pairs):
        raise _Malformed
    return values


def _refused(_: str) -> Any:
    raise _Malformed  # NaN and Infinity are no JSON


_JSON = json.JSONDecoder(object_pairs_hook=_once, parse_constant=_refused)


def _algorithm_and_key(header: dict[str, Any]) -> tuple[str, str | None]:
    """What a header says of its signature. Addresses and keys in it (jku, x5u, jwk, x5c) mean nothing here."""
    algorithm, kid, kind = header.get("alg"), header.get("kid"), header.get("typ", "JWT")
    if not isinstance(algorithm, str) or not isinstance(kid, str | None) or not isinstance(kind, str):
        raise _Malformed
    # What must be understood (RFC 7515 section 4.1.11) and is not.
    if "crit" in header or "b64" in header or kind.lower() not in _TYPES:
        raise _Malformed
    return algorithm, kid


def _claims(payload: dict[str, Any]) -> dict[str, Any]:
    """The registered claims of the right types, `aud` as a list, times as finite numbers; the others as they are."""
    audience = payload.get("aud")
    audiences = [audience] if isinstance(audience, str) else audience
    if not isinstance(payload.get("iss"), str) or not isinstance(audiences, list):
        raise _Malformed
    if not all(isinstance(each, str) for each in audiences) or "exp" not in payload:
        raise _Malformed
    times = {name: payload.get(name, 0) for name in ("exp", "nbf", "iat")}
    if not all(_is_time(value) for value in times.values()):
        raise _Malformed
    return payload | times | {"aud": audiences}


def _is_time(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < _LATEST and math.isfinite(value)


# Keys.


def _fitting(keys: tuple[PublicKey, ...], algorithms: tuple[str, ...]) -> dict[tuple[str | None, str], jwt.PyJWK]:
    """The keys that can verify signatures of these algorithms, by id. Of two different ones with one id neither: which
    one a token means it does not say."""
    found: dict[tuple[str | None, str], jwt.PyJWK] = {}
    twice = set()
    for key in keys:
        for algorithm in algorithms:
            made = usable_key(key, algorithm)
            if made is not None:
                identity = key.get("kid"), algorithm
                if identity in found and made.key != found[identity].key:
                    twice.add(identity)
                found[identity] = made
    return {identity: key for identity, key in found.items() if identity not in twice}


_KIND = {"RS": "RSA", "PS": "RSA", "ES": "EC", "Ed": "OKP"}
_CURVE = {"ES256": "P-256", "ES384": "P-384", "ES512": "P-521", "EdDSA": "Ed25519"}


def usable_key(key: PublicKey, algorithm: str) -> jwt.PyJWK | None:
    """A published key, ready to verify signatures of an algorithm; None if it is not meant or not fit for that."""
    if key.get("kty") != _KIND[algorithm[:2]] or key.get("alg", algorithm) != algorithm:
        return None
    if key.get("crv") != _CURVE.get(algorithm):
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", InsecureKeyLengthWarning)
            made = jwt.PyJWK(dict(key), algorithm)
            if made.Algorithm.check_key_length(made.key):
                return None
    except (PyJWTError, InsecureKeyLengthWarning, ValueError, TypeError):
        return None
    return made


# What the data plane asks.


class TokenMemory:
    """Valid tokens by their hash, and until when they are; bounded. One for all services of a worker."""

    __slots__ = ("_limit", "_until", "hits", "misses")

    def __init__(self, limit: int = MOST_REMEMBERED) -> None:
        self._limit = limit
        self._until: OrderedDict[bytes, float] = OrderedDict()
        self.hits = 0
        self.misses = 0

    def __len__(self) -> int:
        return len(self._until)

    def until(self, digest: bytes) -> float:
        """Until when a token is valid (epoch seconds); 0 for one that is not remembered."""
        return self._until.get(digest, 0.0)

    def remember(self, digest: bytes, until: float) -> None:
        self._until[digest] = until
        if len(self._until) > self._limit:
            self._until.popitem(last=False)

    def forget(self, digest: bytes) -> None:
        self._until.pop(digest, None)

    def clear(self) -> None:
        self._until.clear()


class TokenCheck:
    """Checks the tokens of one service. `allows` is what each request costs: a hash and a look-up."""

    __slots__ = ("_clock", "_memory", "_refused", "_salt", "_service", "_verifier", "unknown_key_of")

    def __init__(self, service: str, verifier: TokenVerifier, memory: TokenMemory, clock: Callable[[], float]) -> None:
        self._service = service
        self._verifier = verifier
        self._memory = memory
        self._clock = clock
        # A token is remembered for this service and for as long as this check exists, for no other one.
        self._salt = secrets.token_bytes(16)
        self._refused = ""
        self.unknown_key_of = ""
        """Whose keys, if they were fetched again, might make `allows` say yes, where it has just said no."""

    def __repr__(self) -> str:
        return f"TokenCheck({self._service})"

    def allows(self, authorization: bytes | None) -> bool:
        """Whether the value of an Authorization header carries a valid token."""
        token = bearer(authorization)
        if token is None:
            self._refused, self.unknown_key_of = MISSING, ""
            return False
        memory, now = self._memory, self._clock()
        digest = sha256(self._salt + token).digest()
        if now < memory.until(digest):
            memory.hits += 1
            return True
        memory.misses += 1
        verdict = self._verifier.verify(token, self._service, now)
        self._refused, self.unknown_key_of = verdict.refused, verdict.unknown_key_of
        if verdict.refused:
            memory.forget(digest)
            return False
        memory.remember(digest, verdict.expires)
        return True

    def why_not(self, _: bytes | None) -> str:
        """Why `allows` has just said no."""
        return self._refused
