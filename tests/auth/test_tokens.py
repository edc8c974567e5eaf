"""Tokens: which are valid, denial reasons, and the cache."""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Mapping
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from router.auth import tokens
from router.auth.issuers import ALGORITHMS, Issuer
from router.auth.tokens import MAX_TOKEN_BYTES, TokenCache, TokenCheck, TokenVerifier, Verdict
from router.auth.trust import KeySet, PublicKey, Trust
from tests.auth.signing import ISS, NOW, SERVICE, base64url, claims, issuer, key_pair, public_jwk, sign, token, trust

KEY_KINDS = {"RS": "RSA", "PS": "RSA", "ES256": "P-256", "ES384": "P-384", "ES512": "P-521", "EdDSA": "Ed25519"}


def verify(
    text: bytes, *issuers: Issuer, keys: Mapping[str, PublicKey] | None = None, now: float = NOW, service: str = SERVICE
) -> Verdict:
    verifier = TokenVerifier()
    verifier.set_trust(trust(*issuers, keys=keys))
    return verifier.verify(text, service, now)


def denial(text: bytes, *issuers: Issuer, **options: Any) -> str:
    """Return the denial reason of a token, "" if it is valid."""
    return verify(text, *issuers, **options).denial_reason


def test_valid_token_is_valid_until_it_expires() -> None:
    assert verify(token()) == Verdict("", NOW + 600 + issuer().clock_skew_seconds)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_configurable_algorithm_verifies(algorithm: str) -> None:
    key = key_pair(f"for {algorithm}", KEY_KINDS.get(algorithm) or KEY_KINDS[algorithm[:2]])
    keys = {"one": public_jwk(key)}
    valid = token(key=key, algorithm=algorithm)
    assert denial(valid, issuer(algorithms=(algorithm,)), keys=keys) == ""
    other = token(
        key=key_pair(f"other {algorithm}", KEY_KINDS.get(algorithm) or KEY_KINDS[algorithm[:2]]), algorithm=algorithm
    )
    assert denial(other, issuer(algorithms=(algorithm,)), keys=keys) == tokens.WRONG_SIGNATURE
    if algorithm != "RS256":
        assert denial(valid, keys=keys) == tokens.WRONG_ALGORITHM


# Signatures.


def public_pem() -> bytes:
    pem: bytes = key_pair("one").public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return pem


def signed_by_hmac(secret: bytes, algorithm: str = "HS256") -> bytes:
    text = (
        base64url(json.dumps({"alg": algorithm, "kid": "one"}).encode())
        + b"."
        + base64url(json.dumps(claims()).encode())
    )
    import hashlib
    import hmac

    return text + b"." + base64url(hmac.digest(secret, text, hashlib.sha256))


def test_public_key_is_not_accepted_as_hmac_secret() -> None:
    """Algorithm confusion: an attacker could otherwise sign tokens with the published key."""
    modulus = public_jwk(key_pair("one"))["n"].encode()
    for secret in (public_pem(), public_pem().strip(), modulus, json.dumps(public_jwk(key_pair("one"))).encode(), b""):
        assert denial(signed_by_hmac(secret)) == tokens.WRONG_ALGORITHM
        assert denial(signed_by_hmac(secret), issuer(algorithms=ALGORITHMS)) == tokens.WRONG_ALGORITHM
        claimed_rsa = signed_by_hmac(secret, "RS256")
        assert denial(claimed_rsa) == tokens.WRONG_SIGNATURE


@pytest.mark.parametrize(
    "algorithm", ["none", "None", "NONE", "nOnE", "", "HS256", "HS512", "ES256K", "rs256", "RS256 "]
)
def test_algorithm_that_is_not_configured_is_denied(algorithm: str) -> None:
    for signature in (b"", b"AA", token().rpartition(b".")[2]):
        text = base64url(json.dumps({"alg": algorithm, "kid": "one"}).encode()) + b"." + token().split(b".")[1]
        reason = denial(text + b"." + signature, issuer(algorithms=ALGORITHMS))
        assert reason == (tokens.MALFORMED if signature == b"" else tokens.WRONG_ALGORITHM)


def test_key_of_another_issuer_is_not_accepted() -> None:
    """Both issuers are trusted, each with its own key under the same id."""
    other = issuer(name="other", issuer="https://other.example.com")
    known = Trust(
        (issuer(), other),
        {
            "corp": KeySet(({**public_jwk(key_pair("one")), "kid": "one"},)),
            "other": KeySet(({**public_jwk(key_pair("two")), "kid": "one"},)),
        },
    )
    verifier = TokenVerifier()
    verifier.set_trust(known)
    assert verifier.verify(token(), SERVICE, NOW).denial_reason == ""
    assert verifier.verify(token(key=key_pair("two")), SERVICE, NOW).denial_reason == tokens.WRONG_SIGNATURE
    theirs = claims(iss="https://other.example.com")
    assert verifier.verify(token(theirs), SERVICE, NOW).denial_reason == tokens.WRONG_SIGNATURE
    assert verifier.verify(token(theirs, key=key_pair("two")), SERVICE, NOW).denial_reason == ""


def test_keys_and_urls_in_a_token_are_ignored() -> None:
    attacker = key_pair("attacker")
    own = {**public_jwk(attacker), "kid": "one"}
    for header in (
        {"jwk": own},
        {"jku": "http://127.0.0.1:1/keys"},
        {"x5u": "http://127.0.0.1:1/cert"},
        {"x5c": ["MIIB"]},
        {"x5t": "abc", "x5t#S256": "abc"},
    ):
        assert denial(token(key=attacker, **header)) == tokens.WRONG_SIGNATURE
        assert denial(token(**header)) == ""


@given(st.data())
def test_token_with_any_changed_byte_is_denied(data: st.DataObject) -> None:
    valid = token(key=key_pair("one", "P-256"), algorithm="ES256")
    keys = {"one": public_jwk(key_pair("one", "P-256"))}
    assert denial(valid, issuer(algorithms=("ES256",)), keys=keys) == ""
    position = data.draw(st.integers(0, len(valid) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda byte: byte != valid[position]))
    changed = valid[:position] + bytes([byte]) + valid[position + 1 :]
    assert denial(changed, issuer(algorithms=("ES256",)), keys=keys) != ""


@given(st.data())
def test_truncated_or_extended_token_is_denied(data: st.DataObject) -> None:
    valid = token()
    length = data.draw(st.integers(0, len(valid) - 1))
    assert denial(valid[:length]) != ""
    extra = data.draw(st.binary(min_size=1, max_size=8))
    assert denial(valid + extra) != ""
    assert denial(extra + valid) != ""


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_malformed(text: bytes) -> None:
    assert denial(text) == tokens.MALFORMED


def test_signature_in_another_encoding_is_denied() -> None:
    head, _, signature = token().rpartition(b".")
    raw_signature = base64.urlsafe_b64decode(signature + b"==")
    for changed in (
        base64.b64encode(raw_signature).rstrip(b"=") + b"+/",
        signature + b"=",
        signature[:-1] + b"!",
        b" " + signature,
    ):
        assert denial(head + b"." + changed) in (tokens.MALFORMED, tokens.WRONG_SIGNATURE)


def test_signature_of_zeros_is_denied() -> None:
    """ECDSA with r = s = 0 was accepted by other libraries (CVE-2022-21449)."""
    keys = {"one": public_jwk(key_pair("one", "P-256"))}
    head, _, _ = token(key=key_pair("one", "P-256"), algorithm="ES256").rpartition(b".")
    for length in (64, 63, 65, 0, 1):
        assert denial(head + b"." + base64url(bytes(length)), issuer(algorithms=("ES256",)), keys=keys) != ""


# Keys.


def test_token_is_verified_with_the_key_that_it_names() -> None:
    keys = {"one": public_jwk(key_pair("one")), "two": public_jwk(key_pair("two"))}
    assert denial(token(kid="two", key=key_pair("two")), keys=keys) == ""
    assert denial(token(kid="two"), keys=keys) == tokens.WRONG_SIGNATURE
    assert verify(token(kid="three"), keys=keys) == Verdict(tokens.UNKNOWN_KEY, unknown_key_issuer="corp")
    assert verify(token(), keys={}) == Verdict(tokens.NO_KEYS, unknown_key_issuer="corp")


def test_token_without_key_id_is_accepted_if_there_is_only_one_key() -> None:
    two = {"one": public_jwk(key_pair("one")), "two": public_jwk(key_pair("two"))}
    assert denial(token(kid=None)) == ""
    assert denial(token(kid=None), keys=two) == tokens.UNKNOWN_KEY


@pytest.mark.parametrize("kid", [1, True, ["one"], {"kid": "one"}, 1.5])
def test_key_id_that_is_not_text_is_malformed(kid: object) -> None:
    assert denial(token(kid=kid)) == tokens.MALFORMED


@pytest.mark.parametrize(
    "key",
    [
        {"kty": "oct", "k": "c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0"},
        {**public_jwk(key_pair("one")), "alg": "RS512"},
        {**public_jwk(key_pair("one")), "alg": "RSA-OAEP"},
        {**public_jwk(key_pair("one")), "n": "AQAB"},
        {**public_jwk(key_pair("one")), "n": "!!!"},
        {"kty": "RSA", "e": "AQAB"},
        {**public_jwk(key_pair("one", "P-256")), "x": "AAAA"},
        {"kty": "nothing"},
        {},
    ],
)
def test_key_of_another_type_or_use_is_not_used(key: PublicKey) -> None:
    assert denial(token(), keys={"one": key}) in (tokens.UNKNOWN_KEY, tokens.NO_KEYS)


def test_small_rsa_key_is_not_used() -> None:
    from cryptography.hazmat.primitives.asymmetric import rsa

    small = rsa.generate_private_key(65537, 1024)
    assert denial(token(key=small), keys={"one": public_jwk(small)}) == tokens.UNKNOWN_KEY


def test_key_on_another_curve_is_not_used() -> None:
    key = key_pair("one", "P-384")
    assert (
        denial(token(key=key, algorithm="ES256"), issuer(algorithms=("ES256",)), keys={"one": public_jwk(key)})
        == tokens.UNKNOWN_KEY
    )


def test_different_keys_with_the_same_id_are_not_used() -> None:
    keys = ({**public_jwk(key_pair("one")), "kid": "one"}, {**public_jwk(key_pair("two")), "kid": "one"})
    verifier = TokenVerifier()
    verifier.set_trust(Trust((issuer(),), {"corp": KeySet(keys)}))
    assert verifier.verify(token(), SERVICE, NOW).denial_reason == tokens.UNKNOWN_KEY
    verifier.set_trust(Trust((issuer(),), {"corp": KeySet((keys[0], dict(keys[0])))}))
    assert verifier.verify(token(), SERVICE, NOW).denial_reason == ""


# Claims.


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"exp": NOW - 61}, tokens.EXPIRED),
        ({"exp": NOW - 60}, tokens.EXPIRED),
        ({"exp": 0}, tokens.EXPIRED),
        ({"exp": -1}, tokens.EXPIRED),
        ({"nbf": NOW + 61}, tokens.NOT_YET_VALID),
        ({"iat": NOW + 61}, tokens.NOT_YET_VALID),
        ({"aud": "api://resnet"}, tokens.WRONG_AUDIENCE),
        ({"aud": "api://irisx"}, tokens.WRONG_AUDIENCE),
        ({"aud": "API://iris"}, tokens.WRONG_AUDIENCE),
        ({"aud": "api://{service}"}, tokens.WRONG_AUDIENCE),
        ({"aud": []}, tokens.WRONG_AUDIENCE),
        ({"aud": ["a", "b"]}, tokens.WRONG_AUDIENCE),
        ({"iss": ISS + "/"}, tokens.UNKNOWN_ISSUER),
        ({"iss": ISS.upper()}, tokens.UNKNOWN_ISSUER),
        ({"iss": "azureml-fe"}, tokens.UNKNOWN_ISSUER),
        ({"iss": None}, tokens.MALFORMED),
        ({"aud": None}, tokens.MALFORMED),
        ({"exp": None}, tokens.MALFORMED),
        ({"exp": str(NOW + 600)}, tokens.MALFORMED),
        ({"exp": True}, tokens.MALFORMED),
        ({"exp": [NOW + 600]}, tokens.MALFORMED),
        ({"exp": 10**30}, tokens.MALFORMED),
        ({"nbf": "0"}, tokens.MALFORMED),
        ({"iat": {}}, tokens.MALFORMED),
        ({"iss": [ISS]}, tokens.MALFORMED),
        ({"aud": {"api://iris": 1}}, tokens.MALFORMED),
        ({"aud": ["api://iris", 1]}, tokens.MALFORMED),
        ({"aud": 1}, tokens.MALFORMED),
    ],
)
def test_wrong_claim_is_denied(changed: dict[str, Any], reason: str) -> None:
    assert denial(token(claims(**changed))) == reason


@pytest.mark.parametrize(
    "changed",
    [
        {"exp": NOW - 59},
        {"nbf": NOW + 59},
        {"iat": NOW + 59},
        {"aud": ["x", "api://iris"]},
        {"iat": None},
        {"exp": NOW + 0.5},
    ],
)
def test_clock_skew_is_tolerated_and_one_audience_of_several_suffices(changed: dict[str, Any]) -> None:
    assert denial(token(claims(**changed))) == ""


def test_clock_skew_is_a_setting_of_the_issuer() -> None:
    assert denial(token(claims(exp=NOW - 1)), issuer(clock_skew_seconds=0)) == tokens.EXPIRED
    assert denial(token(claims(exp=NOW - 500)), issuer(clock_skew_seconds=600)) == ""


def test_token_for_one_service_is_denied_for_another() -> None:
    assert denial(token(), service="resnet") == tokens.WRONG_AUDIENCE
    shared = issuer(audience=("api://all",))
    assert denial(token(claims(aud="api://all")), shared, service="resnet") == ""
    assert denial(
        token(claims(aud="api://all")), issuer(audience=("api://all",), services=("iris",)), service="resnet"
    ) == (tokens.UNKNOWN_ISSUER)


def test_issuers_with_the_same_iss_may_have_different_requirements() -> None:
    strict = issuer(name="strict", required_roles=("Admin",), audience=("api://all",))
    assert denial(token(), strict, issuer()) == ""
    assert denial(token(claims(aud="api://all", roles=["Admin"])), issuer(), strict) == ""
    assert denial(token(claims(aud="api://all")), issuer(), strict) == tokens.MISSING_CLAIM


@pytest.mark.parametrize(
    ("required", "present", "allowed"),
    [
        ({"tid": "t1"}, {"tid": "t1"}, True),
        ({"tid": "t1"}, {"tid": "t2"}, False),
        ({"tid": "t1"}, {}, False),
        ({"tid": "t1"}, {"tid": None}, False),
        ({"tid": "t1"}, {"tid": {"t1": 1}}, False),
        ({"tid": "t1"}, {"tid": ["t0", "t1"]}, True),
        ({"tid": "t1"}, {"tid": ["t0", ["t1"], 1]}, False),
        ({"scp": "Score"}, {"scp": "Read Score"}, True),
        ({"scp": "Score"}, {"scp": "Read Scores"}, False),
        ({"scope": "score"}, {"scope": "score"}, True),
        ({"name": "a"}, {"name": "a b"}, False),
        ({"ver": "2"}, {"ver": 2}, True),
        ({"ver": "1"}, {"ver": True}, False),
        ({"email_verified": "true"}, {"email_verified": True}, True),
        ({"a": "1", "b": "2"}, {"a": "1", "b": "2"}, True),
        ({"a": "1", "b": "2"}, {"a": "1"}, False),
    ],
)
def test_required_claims_must_match(required: dict[str, str], present: dict[str, Any], allowed: bool) -> None:
    text = token({**claims(), **present})
    assert denial(text, issuer(required_claims=tuple(required.items()))) == ("" if allowed else tokens.MISSING_CLAIM)


@pytest.mark.parametrize(
    ("roles", "allowed"),
    [
        (["Score", "Read"], True),
        (["Read", "x", "Score"], True),
        (["Score"], False),
        ("Score Read", False),
        ("Score", False),
        ([["Score", "Read"]], False),
        (None, False),
    ],
)
def test_all_required_roles_must_be_present(roles: object, allowed: bool) -> None:
    reason = denial(token(claims(roles=roles)), issuer(required_roles=("Score", "Read")))
    assert reason == ("" if allowed else tokens.MISSING_CLAIM)


# Format.


def test_duplicate_claims_are_malformed() -> None:
    valid = json.dumps(claims())
    for payload in (
        valid[:-1] + ', "sub": "other"}',
        '{"exp": 1, ' + valid[1:],
        valid[:-1] + ', "x": {"a": 1, "a": 2}}',
        valid[:-1] + ', "\\u0065xp": 9999999999}',  # the same name after unescaping
    ):
        text = sign({"alg": "RS256", "kid": "one"}, payload.encode(), key_pair("one"), "RS256")
        assert denial(text) == tokens.MALFORMED
    text = sign(b'{"alg": "none", "alg": "RS256", "kid": "one"}', valid.encode(), key_pair("one"), "RS256")
    assert denial(text) == tokens.MALFORMED


@pytest.mark.parametrize(
    "extension", [{"crit": ["exp"], "exp": 1}, {"crit": ["b64"], "b64": False}, {"b64": True}, {"crit": []}]
)
def test_unsupported_critical_extension_is_malformed(extension: dict[str, Any]) -> None:
    assert denial(token(**extension)) == tokens.MALFORMED


@pytest.mark.parametrize(
    ("typ", "allowed"),
    [
        ("JWT", True), ("jwt", True), ("at+jwt", True), ("application/at+jwt", True), (None, True),
        ("logout+jwt", False), ("dpop+jwt", False), ("JOSE", False), ("", False), (1, False),
    ],
)  # fmt: skip
def test_typ_must_be_an_access_token(typ: object, allowed: bool) -> None:
    assert denial(token(typ=typ)) == ("" if allowed else tokens.MALFORMED)


def nested_payload(levels: int) -> bytes:
    return json.dumps(claims())[:-1].encode() + b', "x": ' + b"[" * levels + b"]" * levels + b"}"


def test_huge_and_deeply_nested_tokens_are_denied() -> None:
    assert denial(token(claims(x="a" * MAX_TOKEN_BYTES))) == tokens.MALFORMED
    reason = denial(sign({"alg": "RS256", "kid": "one"}, nested_payload(5000), key_pair("one"), "RS256"))
    assert reason in (tokens.MALFORMED, "")  # the limit of nesting differs between versions of Python
    assert denial(b"." * 10_000_000) == tokens.MALFORMED
    for payload in (b"[" * 6000, b'{"a":' * 1500, b'{"exp": ' + b"9" * 6000 + b"}", b'{"exp": 1e999}', b'{"exp": NaN}'):
        text = sign({"alg": "RS256", "kid": "one"}, payload, key_pair("one"), "RS256")
        assert denial(text) == tokens.MALFORMED


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"null",
        b"[]",
        b'"text"',
        b"1",
        b"{",
        b"{}",
        b"\xff\xfe",
        b'\xef\xbb\xbf{"iss": "x"}',
        b'{"iss": "\xff"}',
        b"{}x",
    ],
)
def test_payload_that_is_not_an_object_is_malformed(payload: bytes) -> None:
    assert denial(sign({"alg": "RS256", "kid": "one"}, payload, key_pair("one"), "RS256")) == tokens.MALFORMED


@pytest.mark.parametrize(
    "header", [b"null", b"[]", b"{}", b'{"alg": 1}', b'{"alg": ["RS256"]}', b'{"alg": null}', b"\xff"]
)
def test_invalid_header_is_malformed(header: bytes) -> None:
    assert denial(sign(header, json.dumps(claims()).encode(), key_pair("one"), "RS256")) == tokens.MALFORMED


def test_non_ascii_text_is_compared_exactly() -> None:
    assert denial(token(claims(sub="größe ☃ \U0001f600"))) == ""
    assert denial(token(claims(aud="api://ir\u0131s"))) == tokens.WRONG_AUDIENCE  # a dotless i
    assert denial(token() + "é".encode()) == tokens.MALFORMED


def test_encrypted_token_is_malformed() -> None:
    assert denial(b"a.b.c.d.e") == tokens.MALFORMED


# The cache.


class Clock:
    now = NOW

    def __call__(self) -> float:
        return self.now


def new_check(limit: int = 100, service: str = SERVICE) -> tuple[TokenCheck, TokenCache, Clock]:
    verifier, cache, clock = TokenVerifier(), TokenCache(limit), Clock()
    verifier.set_trust(trust())
    return TokenCheck(service, verifier, cache, clock), cache, clock


def bearer(token_text: bytes) -> bytes:
    return b"Bearer " + token_text


def test_token_is_verified_once_and_then_cached() -> None:
    check, cache, _ = new_check()
    valid = bearer(token())
    assert [check.allows(valid) for _ in range(5)] == [True] * 5
    assert (cache.misses, cache.hits, len(cache)) == (1, 4, 1)


def test_cached_token_expires() -> None:
    check, cache, clock = new_check()
    valid = bearer(token(claims(exp=NOW + 10)))
    assert check.allows(valid)
    clock.now = NOW + 69.9
    assert check.allows(valid)
    clock.now = NOW + 70
    assert not check.allows(valid)
    assert check.denial_reason(valid) == tokens.EXPIRED
    assert len(cache) == 0


def test_denied_token_is_not_cached() -> None:
    check, cache, _ = new_check()
    for _ in range(3):
        assert not check.allows(bearer(token(key=key_pair("two"))))
    assert (cache.misses, len(cache)) == (3, 0)


def test_full_cache_drops_the_oldest_token() -> None:
    check, cache, _ = new_check(limit=3)
    several = [bearer(token(claims(jti=str(number)))) for number in range(5)]
    assert all(check.allows(each) for each in several)
    assert len(cache) == 3
    misses = cache.misses
    assert check.allows(several[-1])
    assert cache.misses == misses
    assert check.allows(several[0])
    assert cache.misses == misses + 1


def test_cache_contains_no_token() -> None:
    check, cache, _ = new_check()
    valid = token()
    assert check.allows(bearer(valid))
    assert valid not in cache._valid_until
    assert all(sys.getsizeof(digest) < 100 and digest not in valid for digest in cache._valid_until)


def test_token_cached_for_one_service_is_denied_for_another() -> None:
    verifier, cache, clock = TokenVerifier(), TokenCache(), Clock()
    verifier.set_trust(trust())
    mine = TokenCheck("iris", verifier, cache, clock)
    other = TokenCheck("resnet", verifier, cache, clock)
    valid = bearer(token())
    assert mine.allows(valid)
    assert not other.allows(valid)
    assert other.denial_reason(valid) == tokens.WRONG_AUDIENCE
    # Nor is it cached for the same service after it was removed and added again.
    misses = cache.misses
    assert TokenCheck("iris", verifier, cache, clock).allows(valid)
    assert cache.misses == misses + 1


@pytest.mark.parametrize("value", [None, b"", b"Basic abc", b"Bearerabc", token()])
def test_request_without_a_token_is_denied(value: bytes | None) -> None:
    check, cache, _ = new_check()
    assert not check.allows(value)
    assert check.denial_reason(value) == "missing"
    assert check.unknown_key_issuer == ""
    assert cache.misses == 0


def test_unknown_key_is_reported_for_the_last_request_only() -> None:
    check, _, _ = new_check()
    assert not check.allows(bearer(token(kid="new")))
    assert check.unknown_key_issuer == "corp"
    assert not check.allows(bearer(token(claims(exp=1))))
    assert check.unknown_key_issuer == ""


def test_repr_contains_no_secret() -> None:
    check, _, _ = new_check()
    assert repr(check) == "TokenCheck(iris)"


# Changes of trust.


def test_trust_is_revoked_when_a_key_is_removed_or_an_issuer_changes() -> None:
    one, two = public_jwk(key_pair("one")), public_jwk(key_pair("two"))
    first = trust(keys={"one": one})
    assert not trust(keys={"one": one, "two": two}, last_attempt_at=9.0).may_invalidate_tokens_of(first)
    assert trust(keys={"two": two}).may_invalidate_tokens_of(first)
    assert trust(keys={}).may_invalidate_tokens_of(first)
    assert trust(issuer(required_roles=("x",)), keys={"one": one}).may_invalidate_tokens_of(first)
    assert Trust().may_invalidate_tokens_of(first)
    assert not first.may_invalidate_tokens_of(first)


def test_token_made_by_pyjwt_is_valid() -> None:
    assert denial(jwt.encode(claims(exp=int(NOW + 9)), key_pair("one"), "RS256", headers={"kid": "one"}).encode()) == ""
