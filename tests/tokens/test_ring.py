"""The router as an issuer: its keys over the years, and the tokens it makes."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.auth.issuers import OWN, OWN_AS_ISSUER
from router.auth.tokens import TokenVerifier
from router.auth.trust import KeySet, PublicKey, Trust
from router.cluster.local.token_keys import TokenKeyFile
from router.tokens.issuing import current_ring, issue_token
from router.tokens.ring import LONGEST_TOKEN_SECONDS, KeyRing, lifetime_seconds
from router.tokens.store import Stored
from router.values import SettingsError

NOW = 1_800_000_000.0
DAY = 86_400.0
MONTH = 30 * DAY


def refused(token: str, keys: tuple[PublicKey, ...], now: float, service: str = "iris") -> str:
    verifier = TokenVerifier()
    verifier.set_trust(Trust((OWN_AS_ISSUER,), {OWN: KeySet(keys)}))
    return verifier.verify(token.encode(), service, now).refused


def test_a_token_is_good_for_its_service_for_its_time() -> None:
    ring = KeyRing().renewed(NOW, MONTH)
    issued = ring.issue("iris", 3600, NOW + 0.7)
    assert (issued.refresh_after, issued.expiry_on) == (int(NOW) + 2700, int(NOW) + 3600)
    keys = ring.public_keys()
    assert refused(issued.access_token, keys, NOW) == ""
    assert refused(issued.access_token, keys, NOW + 3659) == ""
    assert refused(issued.access_token, keys, NOW + 3660) == "expired"
    assert refused(issued.access_token, keys, NOW, "resnet") == "wrong-audience"
    assert refused(issued.access_token, KeyRing().renewed(NOW, MONTH).public_keys(), NOW) == "unknown-key"


def test_document_has_the_names_of_the_sdk() -> None:
    document = KeyRing().renewed(NOW, MONTH).issue("iris", 60, NOW).document()
    assert list(document) == ["accessToken", "refreshAfter", "expiryOn", "tokenType"]
    assert document["tokenType"] == "Bearer"
    assert jwt.get_unverified_header(str(document["accessToken"]))["alg"] == "ES256"


def test_no_two_tokens_are_alike() -> None:
    ring = KeyRing().renewed(NOW, MONTH)
    assert len({ring.issue("iris", 60, NOW).access_token for _ in range(5)}) == 5


def test_new_key_is_published_before_it_signs_and_the_old_one_after_it_did() -> None:
    ring = KeyRing().renewed(NOW, MONTH)
    assert ring.renewed(NOW + MONTH - 1, MONTH) is ring
    rotated = ring.renewed(NOW + MONTH, MONTH)
    assert rotated.keys[0] == ring.keys[0]
    assert len(rotated.keys) == 2

    def signer(at: float) -> str:
        return str(jwt.get_unverified_header(rotated.issue("iris", 60, at).access_token)["kid"])

    assert signer(NOW + MONTH) == signer(NOW + MONTH + 299) == ring.keys[0].kid
    assert signer(NOW + MONTH + 300) == rotated.keys[1].kid
    spent = NOW + MONTH + 300 + LONGEST_TOKEN_SECONDS + 60
    assert rotated.renewed(spent - 1, MONTH) is rotated
    assert rotated.renewed(spent, MONTH).keys == rotated.keys[1:]


@given(st.lists(st.floats(0, 2 * DAY), min_size=1, max_size=30), st.sampled_from([DAY, 2 * DAY, 10 * DAY]))
def test_every_token_is_good_for_its_whole_life_whenever_keys_rotate(steps: list[float], rotation: float) -> None:
    """Also as a router sees it that read the ring up to a minute ago."""
    now, ring = NOW, KeyRing().renewed(NOW, rotation)
    living: list[tuple[str, float]] = []
    for step in steps:
        stale, looked = ring, now
        now += step
        ring = ring.renewed(now, rotation)
        issued = ring.issue("iris", LONGEST_TOKEN_SECONDS, now)
        living = [(token, until) for token, until in living if now < until] + [(issued.access_token, issued.expiry_on)]
        kids = {key.kid for key in ring.keys}
        assert all(jwt.get_unverified_header(token)["kid"] in kids for token, _ in living)
        if now - looked <= 60.0:
            assert jwt.get_unverified_header(issued.access_token)["kid"] in {key.kid for key in stale.keys}
        assert len(ring.keys) <= 3


def test_text_form() -> None:
    ring = KeyRing().renewed(NOW, MONTH).renewed(NOW + MONTH, MONTH)
    assert KeyRing.read(ring.text()) == ring
    assert KeyRing.read(json.dumps({"keys": json.loads(ring.text())["keys"][::-1]})) == ring


def test_text_that_is_no_ring_is_refused_and_not_repeated() -> None:
    good = json.loads(KeyRing().renewed(NOW, MONTH).text())
    key = good["keys"][0]
    for bad in (
        "",
        "[]",
        "{}",
        "[" * 100_000,
        json.dumps({"keys": [{**key, "private": "s3cret"}]}),
        json.dumps({"keys": [{**key, "made_at": "s3cret"}]}),
        json.dumps({"keys": [{"private": "s3cret"}]}),
        json.dumps({"keys": [key, key]}),
    ):
        with pytest.raises(SettingsError) as caught:
            KeyRing.read(bad)
        assert "token signing keys" in str(caught.value)
        assert "s3cret" not in str(caught.value)


def test_nothing_secret_in_a_repr() -> None:
    ring = KeyRing().renewed(NOW, MONTH)
    issued = ring.issue("iris", 60, NOW)
    assert "PRIVATE" not in repr(ring)
    assert issued.access_token not in repr(issued)
    assert all("d" not in key for key in ring.public_keys())


@pytest.mark.parametrize("bad", ["59", "86401", "", "-60", "+60", "6_0", "60.0", "x", "٦٠", "9" * 30])
def test_lifetime_that_is_not_allowed(bad: str) -> None:
    with pytest.raises(SettingsError, match="must be a whole number from 60 to 86400"):
        lifetime_seconds(bad, 3600, "flag --ttl")


def test_lifetime() -> None:
    assert lifetime_seconds(None, 3600, "") == 3600
    assert [lifetime_seconds(text, 1, "") for text in ("60", "86400")] == [60, 86400]


# In a store.


def test_of_two_who_make_keys_at_once_both_use_those_that_are_kept(tmp_path: Path) -> None:
    async def both() -> tuple[KeyRing, KeyRing]:
        first, second = TokenKeyFile(tmp_path), TokenKeyFile(tmp_path)
        one, other = await asyncio.gather(current_ring(first, NOW, MONTH), current_ring(second, NOW, MONTH))
        return one, other

    one, other = asyncio.run(both())
    assert one == other


def test_a_store_that_always_changes_is_given_up() -> None:
    class Contested:
        async def read(self) -> Stored | None:
            return None

        async def write(self, text: str, former: Stored | None) -> bool:
            return False

    with pytest.raises(OSError, match="token keys: others replace them all the time"):
        asyncio.run(current_ring(Contested(), NOW, MONTH))


def test_file_of_keys_is_private_and_changes_only_when_it_was_read(tmp_path: Path) -> None:
    store = TokenKeyFile(tmp_path / "state")

    async def story() -> None:
        assert await store.read() is None
        assert await store.write("one", None)
        first = await store.read()
        assert first is not None
        assert first.text == "one"
        assert not await store.write("two", None)
        assert await store.write("two", first)
        assert not await store.write("three", first)

    asyncio.run(story())
    file = tmp_path / "state" / "token-keys.json"
    assert file.read_text() == "two"
    assert file.stat().st_mode & 0o777 == 0o600


def test_command_makes_keys_once_and_never_rotates_them(tmp_path: Path) -> None:
    store = TokenKeyFile(tmp_path)
    first, second = (asyncio.run(issue_token(store, "iris", "60", default_lifetime_seconds=3600)) for _ in range(2))
    ids = {jwt.get_unverified_header(str(each["accessToken"]))["kid"] for each in (first, second)}
    assert len(ids) == 1
    with pytest.raises(SettingsError, match="SERVICE = 'Iris': must be the name of a service"):
        asyncio.run(issue_token(store, "Iris", None, default_lifetime_seconds=3600))
