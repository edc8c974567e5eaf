"""An issuer's keys: what of an answer is taken, and when it is asked."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.auth.jwks import MOST_QUESTIONS, QUESTIONS_SECONDS, BadAnswer, IssuerKeys, max_age, read_keys, read_keys_url
from router.auth.trust import KeySet
from tests.auth.signing import ISS, issuer, pair, published

RSA = {**published(pair("one")), "kid": "one"}
EC = {**published(pair("one", "P-256")), "kid": "two", "alg": "ES256"}
KEYS = (RSA,)


def document(*keys: object) -> bytes:
    return json.dumps({"keys": keys}).encode()


def test_keys_are_taken_with_their_public_members_only() -> None:
    private = {**RSA, "use": "sig", "x5c": ["..."], "x5t": "abc", "d": "secret", "issuer": ISS, "key_ops": ["verify"]}
    assert read_keys(document(private, EC)) == (RSA, EC)


@pytest.mark.parametrize(
    "other",
    [
        {**RSA, "use": "enc"},
        {**RSA, "use": None},
        {**RSA, "key_ops": ["encrypt"]},
        {**RSA, "key_ops": "verify"},
        {**RSA, "n": 5},
        {**RSA, "n": "A" * 5000},
        {**RSA, "kid": 1},
        {**RSA, "alg": ["RS256"]},
        {"kty": "RSA", "kid": "x"},
        {"kty": "oct", "k": "c2VjcmV0", "kid": "one"},
        {"kty": ["RSA"]},
        {},
        None,
        "text",
        [],
    ],
)
def test_what_is_no_key_for_signatures_is_passed_over(other: object) -> None:
    assert read_keys(document(other, EC)) == (EC,)
    with pytest.raises(BadAnswer, match="has no key for signatures"):
        read_keys(document(other))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b'{"keys": {}}',
        b'{"keys": null}',
        b"<html>",
        b"\xff",
        b"[" * 100_000,
        b'{"keys": []}',
    ],
)
def test_answer_that_is_no_key_set(content: bytes) -> None:
    with pytest.raises(BadAnswer) as caught:
        read_keys(content)
    assert "html" not in str(caught.value)


def test_number_of_keys_is_bounded() -> None:
    assert len(read_keys(document(*[{**RSA, "kid": str(number)} for number in range(1000)]))) == 100


def metadata(**changed: Any) -> bytes:
    return json.dumps({"issuer": ISS, "jwks_uri": f"{ISS}/keys", **changed}).encode()


def test_discovery() -> None:
    assert read_keys_url(metadata(), ISS) == f"{ISS}/keys"
    for bad in (
        metadata(issuer="https://other.example.com"),
        metadata(issuer=None),
        metadata(issuer=ISS + "/"),
        metadata(jwks_uri="http://idp.example.com/keys"),
        metadata(jwks_uri="file:///etc/passwd"),
        metadata(jwks_uri=None),
        metadata(jwks_uri=["https://x"]),
        b"[]",
        b"{",
    ):
        with pytest.raises(BadAnswer):
            read_keys_url(bad, ISS)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("max-age=60", 60), ("public, max-age=86400, must-revalidate", 86400), ("Public,Max-Age=5", 5), ("", math.inf),
     ("no-store", math.inf), ("s-maxage=5", math.inf), ("max-age=x", math.inf), ("max-age=99999999999", math.inf)],
)  # fmt: skip
def test_age_that_an_answer_says(header: str, seconds: float) -> None:
    assert max_age(header) == seconds


# When.


def known(now: float = 0.0, usable_seconds: float = math.inf) -> IssuerKeys:
    keys = IssuerKeys(issuer(keys_refresh_seconds=100, keys_max_age_seconds=1000))
    keys.began(now)
    assert keys.succeeded(KEYS, now, usable_seconds)
    return keys


def test_issuer_is_asked_at_once_and_once_at_a_time() -> None:
    keys = IssuerKeys(issuer())
    assert keys.is_due(0.0)
    keys.began(0.0)
    assert not keys.is_due(1e9)
    assert keys.key_set(1e9) == KeySet()  # who waits for an answer goes on waiting
    assert keys.key_set(0.0).keys == ()


@pytest.mark.parametrize(("usable", "next_at"), [(math.inf, 100.0), (50.0, 50.0), (0.0, 10.0), (5000.0, 100.0)])
def test_keys_are_refreshed_before_they_expire(usable: float, next_at: float) -> None:
    keys = known(usable_seconds=usable)
    assert not keys.is_due(next_at - 0.1)
    assert keys.is_due(next_at)
    assert keys.key_set(next_at) == KeySet(KEYS, 0.0)


def test_unknown_key_has_the_issuer_asked_but_not_often() -> None:
    keys = known()
    assert not keys.is_due(1.0)
    for number in range(1, MOST_QUESTIONS):
        keys.unknown_key(1.0)
        assert keys.is_due(1.0)
        keys.began(float(number))
        keys.succeeded(KEYS, float(number))
    assert keys.key_set(3.0).may_be_asked_at == QUESTIONS_SECONDS
    keys.unknown_key(QUESTIONS_SECONDS - 0.1)
    assert not keys.is_due(QUESTIONS_SECONDS - 0.1)
    keys.unknown_key(QUESTIONS_SECONDS)
    assert keys.is_due(QUESTIONS_SECONDS)


def test_flood_of_unknown_keys_is_no_flood_of_questions() -> None:
    keys = known()
    asked = 0
    for step in range(100_000):  # one each millisecond
        now = step / 1000
        keys.unknown_key(now)
        if keys.is_due(now):
            asked += 1
            keys.began(now)
            keys.succeeded(KEYS, now)
    assert asked == 4 * MOST_QUESTIONS - 1  # and the one before


def test_known_keys_stay_in_use_for_a_time_while_the_issuer_is_down() -> None:
    keys = known()
    now = 100.0
    while now < 999.0:
        assert keys.is_due(now)
        keys.began(now)
        keys.failed(now)
        assert keys.key_set(now).keys == KEYS
        now += 60.0
    assert keys.key_set(999.9).keys == KEYS
    assert keys.key_set(1000.0).keys == ()
    keys.began(1001.0)
    keys.succeeded(KEYS, 1001.0)
    assert keys.key_set(1001.0).keys == KEYS


def test_pause_after_failures_grows_up_to_a_limit() -> None:
    keys = IssuerKeys(issuer())
    now, pauses = 0.0, []
    for _ in range(12):
        keys.began(now)
        keys.failed(now)
        pause = next(step for step in range(1, 100) if keys.is_due(now + step))
        assert not keys.is_due(now + pause - 0.01)
        pauses.append(pause)
        now += pause
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60, 60, 60, 60, 60]


def test_failure_and_recovery_are_news_once() -> None:
    keys = known()
    assert [keys.failed(1.0), keys.failed(2.0), keys.failed(3.0)] == [True, False, False]
    assert keys.succeeded(KEYS, 4.0)
    assert not keys.succeeded(KEYS, 5.0)
    assert keys.succeeded((RSA, EC), 6.0)
    assert (keys.failures, keys.successes) == (3, 4)


def test_age() -> None:
    assert IssuerKeys(issuer()).age(5.0) == math.inf
    assert known(now=3.0).age(5.0) == 2.0


@given(st.lists(st.tuples(st.sampled_from(["unknown", "ok", "fail", "look"]), st.floats(0, 50)), max_size=60))
def test_whatever_happens_questions_keep_their_distance(events: list[tuple[str, float]]) -> None:
    """But for those after a failure, which have pauses of their own."""
    keys = known()
    now, answered = 0.0, [0.0]
    for event, pause in events:
        now += pause
        if event == "unknown":
            keys.unknown_key(now)
        if keys.is_due(now):
            keys.began(now)
            if event == "fail":
                keys.failed(now)
            else:
                keys.succeeded(KEYS, now)
                answered.append(now)
    rows = zip(answered, answered[MOST_QUESTIONS:], strict=False)
    assert all(later - earlier >= QUESTIONS_SECONDS for earlier, later in rows)
