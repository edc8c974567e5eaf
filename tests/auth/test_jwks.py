"""An issuer's keys: parsing of responses, and when keys are fetched."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.auth.jwks import (
    FETCH_WINDOW_SECONDS,
    MAX_FETCHES_PER_WINDOW,
    MAX_KEYS,
    InvalidIssuerResponse,
    IssuerKeys,
    parse_jwks_uri,
    parse_key_set,
    parse_max_age,
)
from router.auth.trust import KeySet
from tests.auth.signing import ISS, issuer, key_pair, public_jwk

RSA = {**public_jwk(key_pair("one")), "kid": "one"}
EC = {**public_jwk(key_pair("one", "P-256")), "kid": "two", "alg": "ES256"}
KEYS = (RSA,)


def document(*keys: object) -> bytes:
    return json.dumps({"keys": keys}).encode()


def test_only_public_members_of_keys_are_kept() -> None:
    private = {**RSA, "use": "sig", "x5c": ["..."], "x5t": "abc", "d": "secret", "issuer": ISS, "key_ops": ["verify"]}
    assert parse_key_set(document(private, EC)) == (RSA, EC)


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
def test_entry_that_is_no_signature_key_is_skipped(other: object) -> None:
    assert parse_key_set(document(other, EC)) == (EC,)
    with pytest.raises(InvalidIssuerResponse, match="has no key for signatures"):
        parse_key_set(document(other))


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
def test_response_without_a_key_set_is_rejected(content: bytes) -> None:
    with pytest.raises(InvalidIssuerResponse) as caught:
        parse_key_set(content)
    assert "html" not in str(caught.value)


def test_number_of_keys_is_limited() -> None:
    assert len(parse_key_set(document(*[{**RSA, "kid": str(number)} for number in range(MAX_KEYS + 1)]))) == MAX_KEYS


def metadata(**changed: Any) -> bytes:
    return json.dumps({"issuer": ISS, "jwks_uri": f"{ISS}/keys", **changed}).encode()


def test_metadata_of_discovery_gives_the_url_of_keys() -> None:
    assert parse_jwks_uri(metadata(), ISS) == f"{ISS}/keys"
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
        with pytest.raises(InvalidIssuerResponse):
            parse_jwks_uri(bad, ISS)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("max-age=60", 60), ("public, max-age=86400, must-revalidate", 86400), ("Public,Max-Age=5", 5), ("", math.inf),
     ("no-store", math.inf), ("s-maxage=5", math.inf), ("max-age=x", math.inf), ("max-age=99999999999", math.inf)],
)  # fmt: skip
def test_max_age_of_a_response(header: str, seconds: float) -> None:
    assert parse_max_age(header) == seconds


# When keys are fetched.


def fetched_keys(now: float = 0.0, usable_seconds: float = math.inf) -> IssuerKeys:
    keys = IssuerKeys(issuer(keys_refresh_seconds=100, keys_max_age_seconds=1000))
    keys.on_fetch_started(now)
    assert keys.on_fetched(KEYS, now, usable_seconds)
    return keys


def test_keys_are_fetched_at_once_and_once_at_a_time() -> None:
    keys = IssuerKeys(issuer())
    assert keys.is_due(0.0)
    keys.on_fetch_started(0.0)
    assert not keys.is_due(1e9)
    assert keys.key_set(1e9) == KeySet()  # requests that wait for the fetch keep waiting
    assert keys.key_set(0.0).keys == ()


@pytest.mark.parametrize(("usable", "next_at"), [(math.inf, 100.0), (50.0, 50.0), (0.0, 10.0), (5000.0, 100.0)])
def test_keys_are_refreshed_before_they_expire(usable: float, next_at: float) -> None:
    keys = fetched_keys(usable_seconds=usable)
    assert not keys.is_due(next_at - 0.1)
    assert keys.is_due(next_at)
    assert keys.key_set(next_at) == KeySet(KEYS, 0.0)


def test_unknown_key_leads_to_a_fetch_but_not_often() -> None:
    keys = fetched_keys()
    assert not keys.is_due(1.0)
    for number in range(1, MAX_FETCHES_PER_WINDOW):
        keys.on_unknown_key(1.0)
        assert keys.is_due(1.0)
        keys.on_fetch_started(float(number))
        keys.on_fetched(KEYS, float(number))
    assert keys.key_set(3.0).refetch_allowed_at == FETCH_WINDOW_SECONDS
    keys.on_unknown_key(FETCH_WINDOW_SECONDS - 0.1)
    assert not keys.is_due(FETCH_WINDOW_SECONDS - 0.1)
    keys.on_unknown_key(FETCH_WINDOW_SECONDS)
    assert keys.is_due(FETCH_WINDOW_SECONDS)


def test_many_unknown_keys_do_not_lead_to_many_fetches() -> None:
    keys = fetched_keys()
    fetches = 0
    for step in range(100_000):  # one each millisecond
        now = step / 1000
        keys.on_unknown_key(now)
        if keys.is_due(now):
            fetches += 1
            keys.on_fetch_started(now)
            keys.on_fetched(KEYS, now)
    assert fetches == 4 * MAX_FETCHES_PER_WINDOW - 1  # without the fetch of the helper


def test_keys_are_used_until_their_maximum_age_while_fetches_fail() -> None:
    keys = fetched_keys()
    now = 100.0
    while now < 999.0:
        assert keys.is_due(now)
        keys.on_fetch_started(now)
        keys.on_fetch_failed(now)
        assert keys.key_set(now).keys == KEYS
        now += 60.0
    assert keys.key_set(999.9).keys == KEYS
    assert keys.key_set(1000.0).keys == ()
    keys.on_fetch_started(1001.0)
    keys.on_fetched(KEYS, 1001.0)
    assert keys.key_set(1001.0).keys == KEYS


def test_pause_after_failures_grows_up_to_a_maximum() -> None:
    keys = IssuerKeys(issuer())
    now, pauses = 0.0, []
    for _ in range(12):
        keys.on_fetch_started(now)
        keys.on_fetch_failed(now)
        pause = next(step for step in range(1, 100) if keys.is_due(now + step))
        assert not keys.is_due(now + pause - 0.01)
        pauses.append(pause)
        now += pause
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60, 60, 60, 60, 60]


def test_failure_and_recovery_are_reported_once() -> None:
    keys = fetched_keys()
    assert [keys.on_fetch_failed(1.0), keys.on_fetch_failed(2.0), keys.on_fetch_failed(3.0)] == [True, False, False]
    assert keys.on_fetched(KEYS, 4.0)
    assert not keys.on_fetched(KEYS, 5.0)
    assert keys.on_fetched((RSA, EC), 6.0)
    assert (keys.failures, keys.successes) == (3, 4)


def test_age_is_the_time_since_the_last_success() -> None:
    assert IssuerKeys(issuer()).age(5.0) == math.inf
    assert fetched_keys(now=3.0).age(5.0) == 2.0


@given(st.lists(st.tuples(st.sampled_from(["unknown", "ok", "fail", "nothing"]), st.floats(0, 50)), max_size=60))
def test_successful_fetches_are_limited_under_any_events(events: list[tuple[str, float]]) -> None:
    """Fetches after a failure are not counted: the backoff limits them."""
    keys = fetched_keys()
    now, succeeded_at = 0.0, [0.0]
    for event, pause in events:
        now += pause
        if event == "unknown":
            keys.on_unknown_key(now)
        if keys.is_due(now):
            keys.on_fetch_started(now)
            if event == "fail":
                keys.on_fetch_failed(now)
            else:
                keys.on_fetched(KEYS, now)
                succeeded_at.append(now)
    windows = zip(succeeded_at, succeeded_at[MAX_FETCHES_PER_WINDOW:], strict=False)
    assert all(last - first >= FETCH_WINDOW_SECONDS for first, last in windows)
