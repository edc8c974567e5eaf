"""Tokens: what is accepted, what is refused and why, and what is remembered."""

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
from router.auth.tokens import MOST_TOKEN_BYTES, TokenCheck, TokenMemory, TokenVerifier, Verdict
from router.auth.trust import KeySet, PublicKey, Trust
from tests.auth.signing import ISS, NOW, SERVICE, claims, encoded, issuer, pair, published, raw, token, trust

KINDS = {"RS": "RSA", "PS": "RSA", "ES256": "P-256", "ES384": "P-384", "ES512": "P-521", "EdDSA": "Ed25519"}


def judge(
    text: bytes, *issuers: Issuer, keys: Mapping[str, PublicKey] | None = None, now: float = NOW, service: str = SERVICE
) -> Verdict:
    verifier = TokenVerifier()
    verifier.set_trust(trust(*issuers, keys=keys))
    return verifier.verify(text, service, now)


def refused(text: bytes, *issuers: Issuer, **facts: Any) -> str:
    return judge(text, *issuers, **facts).refused


def test_a_good_token_is_valid_until_it_expires() -> None:
    assert judge(token()) == Verdict("", NOW + 600 + issuer().clock_skew_seconds)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm_that_can_be_configured_verifies(algorithm: str) -> None:
    key = pair(f"for {algorithm}", KINDS.get(algorithm) or KINDS[algorithm[:2]])
    keys = {"one": published(key)}
    good = token(key=key, algorithm=algorithm)
    assert refused(good, issuer(algorithms=(algorithm,)), keys=keys) == ""
    other = token(key=pair(f"other {algorithm}", KINDS.get(algorithm) or KINDS[algorithm[:2]]), algorithm=algorithm)
    assert refused(other, issuer(algorithms=(algorithm,)), keys=keys) == tokens.SIGNATURE
    if algorithm != "RS256":
        assert refused(good, keys=keys) == tokens.ALGORITHM


# Signatures.


def public_pem() -> bytes:
    pem: bytes = pair("one").public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return pem


def by_hmac(secret: bytes, algorithm: str = "HS256") -> bytes:
    text = (
        encoded(json.dumps({"alg": algorithm, "kid": "one"}).encode()) + b"." + encoded(json.dumps(claims()).encode())
    )
    import hashlib
    import hmac

    return text + b"." + encoded(hmac.digest(secret, text, hashlib.sha256))


def test_public_key_is_no_secret_of_an_hmac() -> None:
    """Algorithm confusion: what is published would be enough to sign with."""
    modulus = published(pair("one"))["n"].encode()
    for secret in (public_pem(), public_pem().strip(), modulus, json.dumps(published(pair("one"))).encode(), b""):
        assert refused(by_hmac(secret)) == tokens.ALGORITHM
        assert refused(by_hmac(secret), issuer(algorithms=ALGORITHMS)) == tokens.ALGORITHM
        wrong_name = by_hmac(secret, "RS256")
        assert refused(wrong_name) == tokens.SIGNATURE


@pytest.mark.parametrize(
    "algorithm", ["none", "None", "NONE", "nOnE", "", "HS256", "HS512", "ES256K", "rs256", "RS256 "]
)
def test_algorithm_that_is_not_pinned_is_refused(algorithm: str) -> None:
    for signature in (b"", b"AA", token().rpartition(b".")[2]):
        text = encoded(json.dumps({"alg": algorithm, "kid": "one"}).encode()) + b"." + token().split(b".")[1]
        said = refused(text + b"." + signature, issuer(algorithms=ALGORITHMS))
        assert said == (tokens.MALFORMED if signature == b"" else tokens.ALGORITHM)


def test_key_of_another_issuer_signs_nothing_here() -> None:
    """Both are trusted, each with its own keys under the same id."""
    other = issuer(name="other", issuer="https://other.example.com")
    known = Trust(
        (issuer(), other),
        {
            "corp": KeySet(({**published(pair("one")), "kid": "one"},)),
            "other": KeySet(({**published(pair("two")), "kid": "one"},)),
        },
    )
    verifier = TokenVerifier()
    verifier.set_trust(known)
    assert verifier.verify(token(), SERVICE, NOW).refused == ""
    assert verifier.verify(token(key=pair("two")), SERVICE, NOW).refused == tokens.SIGNATURE
    theirs = claims(iss="https://other.example.com")
    assert verifier.verify(token(theirs), SERVICE, NOW).refused == tokens.SIGNATURE
    assert verifier.verify(token(theirs, key=pair("two")), SERVICE, NOW).refused == ""


def test_keys_and_addresses_in_a_token_mean_nothing() -> None:
    attacker = pair("attacker")
    own = {**published(attacker), "kid": "one"}
    for header in (
        {"jwk": own},
        {"jku": "http://127.0.0.1:1/keys"},
        {"x5u": "http://127.0.0.1:1/cert"},
        {"x5c": ["MIIB"]},
        {"x5t": "abc", "x5t#S256": "abc"},
    ):
        assert refused(token(key=attacker, **header)) == tokens.SIGNATURE
        assert refused(token(**header)) == ""


@given(st.data())
def test_no_changed_byte_is_accepted(data: st.DataObject) -> None:
    good = token(key=pair("one", "P-256"), algorithm="ES256")
    keys = {"one": published(pair("one", "P-256"))}
    assert refused(good, issuer(algorithms=("ES256",)), keys=keys) == ""
    place = data.draw(st.integers(0, len(good) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda byte: byte != good[place]))
    bad = good[:place] + bytes([byte]) + good[place + 1 :]
    assert refused(bad, issuer(algorithms=("ES256",)), keys=keys) != ""


@given(st.data())
def test_no_part_of_a_token_and_nothing_beside_it_is_accepted(data: st.DataObject) -> None:
    good = token()
    cut = data.draw(st.integers(0, len(good) - 1))
    assert refused(good[:cut]) != ""
    more = data.draw(st.binary(min_size=1, max_size=8))
    assert refused(good + more) != ""
    assert refused(more + good) != ""


@given(st.binary(max_size=200))
def test_bytes_of_any_kind_are_refused_without_a_fault(text: bytes) -> None:
    assert refused(text) == tokens.MALFORMED


def test_signature_with_padding_or_other_alphabet_is_not_the_same_token() -> None:
    head, _, signature = token().rpartition(b".")
    raw_signature = base64.urlsafe_b64decode(signature + b"==")
    for changed in (
        base64.b64encode(raw_signature).rstrip(b"=") + b"+/",
        signature + b"=",
        signature[:-1] + b"!",
        b" " + signature,
    ):
        assert refused(head + b"." + changed) in (tokens.MALFORMED, tokens.SIGNATURE)


def test_signature_of_zeros_is_no_signature() -> None:
    """ECDSA with r = s = 0 was accepted by other libraries (CVE-2022-21449)."""
    keys = {"one": published(pair("one", "P-256"))}
    head, _, _ = token(key=pair("one", "P-256"), algorithm="ES256").rpartition(b".")
    for length in (64, 63, 65, 0, 1):
        assert refused(head + b"." + encoded(bytes(length)), issuer(algorithms=("ES256",)), keys=keys) != ""


# Keys.


def test_key_is_the_one_that_the_token_names() -> None:
    keys = {"one": published(pair("one")), "two": published(pair("two"))}
    assert refused(token(kid="two", key=pair("two")), keys=keys) == ""
    assert refused(token(kid="two"), keys=keys) == tokens.SIGNATURE
    assert judge(token(kid="three"), keys=keys) == Verdict(tokens.UNKNOWN_KEY, unknown_key_of="corp")
    assert judge(token(), keys={}) == Verdict(tokens.NO_KEYS, unknown_key_of="corp")


def test_token_that_names_no_key_is_accepted_if_there_is_no_choice() -> None:
    two = {"one": published(pair("one")), "two": published(pair("two"))}
    assert refused(token(kid=None)) == ""
    assert refused(token(kid=None), keys=two) == tokens.UNKNOWN_KEY


@pytest.mark.parametrize("kid", [1, True, ["one"], {"kid": "one"}, 1.5])
def test_key_id_that_is_no_text_is_refused(kid: object) -> None:
    assert refused(token(kid=kid)) == tokens.MALFORMED


@pytest.mark.parametrize(
    "key",
    [
        {"kty": "oct", "k": "c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0"},
        {**published(pair("one")), "alg": "RS512"},
        {**published(pair("one")), "alg": "RSA-OAEP"},
        {**published(pair("one")), "n": "AQAB"},
        {**published(pair("one")), "n": "!!!"},
        {"kty": "RSA", "e": "AQAB"},
        {**published(pair("one", "P-256")), "x": "AAAA"},
        {"kty": "nothing"},
        {},
    ],
)
def test_key_of_another_kind_or_use_is_not_used(key: PublicKey) -> None:
    assert refused(token(), keys={"one": key}) in (tokens.UNKNOWN_KEY, tokens.NO_KEYS)


def test_small_rsa_key_is_not_used() -> None:
    from cryptography.hazmat.primitives.asymmetric import rsa

    small = rsa.generate_private_key(65537, 1024)
    assert refused(token(key=small), keys={"one": published(small)}) == tokens.UNKNOWN_KEY


def test_curve_must_be_the_algorithms() -> None:
    key = pair("one", "P-384")
    assert (
        refused(token(key=key, algorithm="ES256"), issuer(algorithms=("ES256",)), keys={"one": published(key)})
        == tokens.UNKNOWN_KEY
    )


def test_of_two_keys_with_one_id_neither_is_used() -> None:
    keys = ({**published(pair("one")), "kid": "one"}, {**published(pair("two")), "kid": "one"})
    verifier = TokenVerifier()
    verifier.set_trust(Trust((issuer(),), {"corp": KeySet(keys)}))
    assert verifier.verify(token(), SERVICE, NOW).refused == tokens.UNKNOWN_KEY
    verifier.set_trust(Trust((issuer(),), {"corp": KeySet((keys[0], dict(keys[0])))}))
    assert verifier.verify(token(), SERVICE, NOW).refused == ""


# Claims.


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"exp": NOW - 61}, tokens.EXPIRED),
        ({"exp": NOW - 60}, tokens.EXPIRED),
        ({"exp": 0}, tokens.EXPIRED),
        ({"exp": -1}, tokens.EXPIRED),
        ({"nbf": NOW + 61}, tokens.NOT_YET),
        ({"iat": NOW + 61}, tokens.NOT_YET),
        ({"aud": "api://resnet"}, tokens.AUDIENCE),
        ({"aud": "api://irisx"}, tokens.AUDIENCE),
        ({"aud": "API://iris"}, tokens.AUDIENCE),
        ({"aud": "api://{service}"}, tokens.AUDIENCE),
        ({"aud": []}, tokens.AUDIENCE),
        ({"aud": ["a", "b"]}, tokens.AUDIENCE),
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
def test_claim_that_is_wrong(changed: dict[str, Any], reason: str) -> None:
    assert refused(token(claims(**changed))) == reason


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
def test_clocks_may_differ_and_an_audience_may_be_one_of_several(changed: dict[str, Any]) -> None:
    assert refused(token(claims(**changed))) == ""


def test_clock_skew_is_the_issuers_setting() -> None:
    assert refused(token(claims(exp=NOW - 1)), issuer(clock_skew_seconds=0)) == tokens.EXPIRED
    assert refused(token(claims(exp=NOW - 500)), issuer(clock_skew_seconds=600)) == ""


def test_token_of_one_service_is_none_for_another() -> None:
    assert refused(token(), service="resnet") == tokens.AUDIENCE
    shared = issuer(audience=("api://all",))
    assert refused(token(claims(aud="api://all")), shared, service="resnet") == ""
    assert refused(
        token(claims(aud="api://all")), issuer(audience=("api://all",), services=("iris",)), service="resnet"
    ) == (tokens.UNKNOWN_ISSUER)


def test_issuer_may_be_configured_twice_with_other_demands() -> None:
    strict = issuer(name="strict", required_roles=("Admin",), audience=("api://all",))
    assert refused(token(), strict, issuer()) == ""
    assert refused(token(claims(aud="api://all", roles=["Admin"])), issuer(), strict) == ""
    assert refused(token(claims(aud="api://all")), issuer(), strict) == tokens.CLAIM


@pytest.mark.parametrize(
    ("required", "has", "ok"),
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
def test_required_claims(required: dict[str, str], has: dict[str, Any], ok: bool) -> None:
    text = token({**claims(), **has})
    assert refused(text, issuer(required_claims=tuple(required.items()))) == ("" if ok else tokens.CLAIM)


@pytest.mark.parametrize(
    ("roles", "ok"),
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
def test_all_required_roles_must_be_there(roles: object, ok: bool) -> None:
    said = refused(token(claims(roles=roles)), issuer(required_roles=("Score", "Read")))
    assert said == ("" if ok else tokens.CLAIM)


# Form.


def test_two_claims_of_one_name_are_refused_wherever_they_stand() -> None:
    good = json.dumps(claims())
    for payload in (
        good[:-1] + ', "sub": "other"}',
        '{"exp": 1, ' + good[1:],
        good[:-1] + ', "x": {"a": 1, "a": 2}}',
        good[:-1] + ', "\\u0065xp": 9999999999}',  # the same name once it is read
    ):
        text = raw({"alg": "RS256", "kid": "one"}, payload.encode(), pair("one"), "RS256")
        assert refused(text) == tokens.MALFORMED
    text = raw(b'{"alg": "none", "alg": "RS256", "kid": "one"}', good.encode(), pair("one"), "RS256")
    assert refused(text) == tokens.MALFORMED


@pytest.mark.parametrize(
    "extension", [{"crit": ["exp"], "exp": 1}, {"crit": ["b64"], "b64": False}, {"b64": True}, {"crit": []}]
)
def test_extension_that_must_be_understood_is_refused(extension: dict[str, Any]) -> None:
    assert refused(token(**extension)) == tokens.MALFORMED


@pytest.mark.parametrize(
    ("kind", "ok"),
    [
        ("JWT", True), ("jwt", True), ("at+jwt", True), ("application/at+jwt", True), (None, True),
        ("logout+jwt", False), ("dpop+jwt", False), ("JOSE", False), ("", False), (1, False),
    ],
)  # fmt: skip
def test_kind_of_token(kind: object, ok: bool) -> None:
    assert refused(token(typ=kind)) == ("" if ok else tokens.MALFORMED)


def deep(levels: int) -> bytes:
    return json.dumps(claims())[:-1].encode() + b', "x": ' + b"[" * levels + b"]" * levels + b"}"


def test_huge_and_deep_tokens_are_refused_without_a_fault() -> None:
    assert refused(token(claims(x="a" * MOST_TOKEN_BYTES))) == tokens.MALFORMED
    deepest = refused(raw({"alg": "RS256", "kid": "one"}, deep(5000), pair("one"), "RS256"))
    assert deepest in (tokens.MALFORMED, "")  # how deep JSON may be differs between versions of Python
    assert refused(b"." * 10_000_000) == tokens.MALFORMED
    for payload in (b"[" * 6000, b'{"a":' * 1500, b'{"exp": ' + b"9" * 6000 + b"}", b'{"exp": 1e999}', b'{"exp": NaN}'):
        text = raw({"alg": "RS256", "kid": "one"}, payload, pair("one"), "RS256")
        assert refused(text) == tokens.MALFORMED


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
def test_payload_that_is_no_object_is_refused(payload: bytes) -> None:
    assert refused(raw({"alg": "RS256", "kid": "one"}, payload, pair("one"), "RS256")) == tokens.MALFORMED


@pytest.mark.parametrize(
    "header", [b"null", b"[]", b"{}", b'{"alg": 1}', b'{"alg": ["RS256"]}', b'{"alg": null}', b"\xff"]
)
def test_header_that_is_none_is_refused(header: bytes) -> None:
    assert refused(raw(header, json.dumps(claims()).encode(), pair("one"), "RS256")) == tokens.MALFORMED


def test_texts_beyond_ascii_are_compared_as_they_are() -> None:
    assert refused(token(claims(sub="größe ☃ \U0001f600"))) == ""
    assert refused(token(claims(aud="api://ir\u0131s"))) == tokens.AUDIENCE  # a dotless i
    assert refused(token() + "é".encode()) == tokens.MALFORMED


def test_encrypted_token_is_refused() -> None:
    assert refused(b"a.b.c.d.e") == tokens.MALFORMED


# What is remembered.


class Clock:
    now = NOW

    def __call__(self) -> float:
        return self.now


def check(limit: int = 100, service: str = SERVICE) -> tuple[TokenCheck, TokenMemory, Clock]:
    verifier, memory, clock = TokenVerifier(), TokenMemory(limit), Clock()
    verifier.set_trust(trust())
    return TokenCheck(service, verifier, memory, clock), memory, clock


def bearer(text: bytes) -> bytes:
    return b"Bearer " + text


def test_a_token_is_verified_once_and_then_remembered() -> None:
    its, memory, _ = check()
    good = bearer(token())
    assert [its.allows(good) for _ in range(5)] == [True] * 5
    assert (memory.misses, memory.hits, len(memory)) == (1, 4, 1)


def test_a_remembered_token_ends_when_it_expires() -> None:
    its, memory, clock = check()
    good = bearer(token(claims(exp=NOW + 10)))
    assert its.allows(good)
    clock.now = NOW + 69.9
    assert its.allows(good)
    clock.now = NOW + 70
    assert not its.allows(good)
    assert its.why_not(good) == tokens.EXPIRED
    assert len(memory) == 0


def test_what_was_refused_is_not_remembered() -> None:
    its, memory, _ = check()
    for _ in range(3):
        assert not its.allows(bearer(token(key=pair("two"))))
    assert (memory.misses, len(memory)) == (3, 0)


def test_memory_is_bounded_and_the_oldest_goes() -> None:
    its, memory, _ = check(limit=3)
    several = [bearer(token(claims(jti=str(number)))) for number in range(5)]
    assert all(its.allows(each) for each in several)
    assert len(memory) == 3
    misses = memory.misses
    assert its.allows(several[-1])
    assert memory.misses == misses
    assert its.allows(several[0])
    assert memory.misses == misses + 1


def test_memory_holds_no_token() -> None:
    its, memory, _ = check()
    good = token()
    assert its.allows(bearer(good))
    assert good not in memory._until
    assert all(sys.getsizeof(digest) < 100 and digest not in good for digest in memory._until)


def test_token_remembered_for_one_service_is_none_for_another_with_the_same_memory() -> None:
    verifier, memory, clock = TokenVerifier(), TokenMemory(), Clock()
    verifier.set_trust(trust())
    mine = TokenCheck("iris", verifier, memory, clock)
    other = TokenCheck("resnet", verifier, memory, clock)
    good = bearer(token())
    assert mine.allows(good)
    assert not other.allows(good)
    assert other.why_not(good) == tokens.AUDIENCE
    # Nor for the same service once it has been taken away and comes back.
    misses = memory.misses
    assert TokenCheck("iris", verifier, memory, clock).allows(good)
    assert memory.misses == misses + 1


@pytest.mark.parametrize("value", [None, b"", b"Basic abc", b"Bearerabc", token()])
def test_request_without_a_token(value: bytes | None) -> None:
    its, memory, _ = check()
    assert not its.allows(value)
    assert its.why_not(value) == "missing"
    assert its.unknown_key_of == ""
    assert memory.misses == 0


def test_unknown_key_is_told_for_this_request_only() -> None:
    its, _, _ = check()
    assert not its.allows(bearer(token(kid="new")))
    assert its.unknown_key_of == "corp"
    assert not its.allows(bearer(token(claims(exp=1))))
    assert its.unknown_key_of == ""


def test_repr_shows_nothing() -> None:
    its, _, _ = check()
    assert repr(its) == "TokenCheck(iris)"


# Trust that changes.


def test_trust_is_taken_back_when_a_key_or_an_issuers_terms_change() -> None:
    one, two = published(pair("one")), published(pair("two"))
    first = trust(keys={"one": one})
    assert not trust(keys={"one": one, "two": two}, answered_at=9.0).takes_back(first)
    assert trust(keys={"two": two}).takes_back(first)
    assert trust(keys={}).takes_back(first)
    assert trust(issuer(required_roles=("x",)), keys={"one": one}).takes_back(first)
    assert Trust().takes_back(first)
    assert not first.takes_back(first)


def test_pyjwt_itself_makes_the_tokens_that_are_accepted() -> None:
    assert refused(jwt.encode(claims(exp=int(NOW + 9)), pair("one"), "RS256", headers={"kid": "one"}).encode()) == ""
