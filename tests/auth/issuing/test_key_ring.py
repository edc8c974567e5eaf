"""The router as an issuer: rotation of its keys, its tokens, and its stores."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.auth.issuers import ROUTER_ISSUER, ROUTER_ISSUER_NAME
from router.auth.issuing.key_ring import _LEAD_SECONDS, MAX_LIFETIME_SECONDS, KeyRing, parse_lifetime
from router.auth.issuing.ring_store import StoredRing
from router.auth.issuing.token_issuer import issue_token, load_current_ring
from router.auth.tokens import TokenVerifier
from router.auth.trust import KeySet, PublicKey, Trust
from router.cluster.local.token_key_file import TokenKeyFile
from router.config.schema import SettingsError

NOW = 1_800_000_000.0
DAY = 86_400.0
MONTH = 30 * DAY


def denial(token: str, keys: tuple[PublicKey, ...], now: float, service: str = "iris") -> str:
    verifier = TokenVerifier()
    verifier.set_trust(Trust((ROUTER_ISSUER,), {ROUTER_ISSUER_NAME: KeySet(keys)}))
    return verifier.verify(token.encode(), service, now).denial_reason


def test_token_is_valid_for_its_service_and_lifetime() -> None:
    ring = KeyRing().renew(NOW, MONTH)
    issued = ring.issue("iris", 3600, NOW + 0.7)
    assert (issued.refresh_after, issued.expiry_on) == (int(NOW) + 2700, int(NOW) + 3600)
    keys = ring.public_keys()
    assert denial(issued.access_token, keys, NOW) == ""
    assert denial(issued.access_token, keys, NOW + 3659) == ""
    assert denial(issued.access_token, keys, NOW + 3660) == "expired"
    assert denial(issued.access_token, keys, NOW, "resnet") == "wrong-audience"
    assert denial(issued.access_token, KeyRing().renew(NOW, MONTH).public_keys(), NOW) == "unknown-key"


def test_document_has_the_names_of_both_sdks() -> None:
    document = KeyRing().renew(NOW, MONTH).issue("iris", 60, NOW).document()
    first = {"accessToken", "tokenType", "refreshAfter", "expiryOn"}
    assert document.keys() == first | {"refreshAfterTimeUtc", "expiryTimeUtc"}
    assert document["refreshAfterTimeUtc"] == document["refreshAfter"]
    assert document["expiryTimeUtc"] == document["expiryOn"]
    assert document["tokenType"] == "Bearer"
    assert jwt.get_unverified_header(str(document["accessToken"]))["alg"] == "ES256"


def test_every_token_is_different() -> None:
    ring = KeyRing().renew(NOW, MONTH)
    assert len({ring.issue("iris", 60, NOW).access_token for _ in range(5)}) == 5


def test_rotated_key_is_published_before_it_signs_and_after_the_next_one_does() -> None:
    ring = KeyRing().renew(NOW, MONTH)
    assert ring.renew(NOW + MONTH - 1, MONTH) is ring
    rotated = ring.renew(NOW + MONTH, MONTH)
    assert rotated.keys[0] == ring.keys[0]
    assert len(rotated.keys) == 2

    def signer(at: float) -> str:
        return str(jwt.get_unverified_header(rotated.issue("iris", 60, at).access_token)["kid"])

    assert signer(NOW + MONTH) == signer(NOW + MONTH + _LEAD_SECONDS - 1) == ring.keys[0].kid
    assert signer(NOW + MONTH + _LEAD_SECONDS) == rotated.keys[1].kid
    expired = NOW + MONTH + _LEAD_SECONDS + MAX_LIFETIME_SECONDS + 60
    assert rotated.renew(expired - 1, MONTH) is rotated
    assert rotated.renew(expired, MONTH).keys == rotated.keys[1:]


@given(st.lists(st.floats(0, 2 * DAY), min_size=1, max_size=30), st.sampled_from([DAY, 2 * DAY, 10 * DAY]))
def test_key_of_every_valid_token_is_published_during_rotation(steps: list[float], rotation: float) -> None:
    """This also holds for a router that read the ring up to a minute ago."""
    now, ring = NOW, KeyRing().renew(NOW, rotation)
    valid: list[tuple[str, float]] = []
    for step in steps:
        stale, read_at = ring, now
        now += step
        ring = ring.renew(now, rotation)
        issued = ring.issue("iris", MAX_LIFETIME_SECONDS, now)
        valid = [(token, expiry) for token, expiry in valid if now < expiry] + [(issued.access_token, issued.expiry_on)]
        kids = {key.kid for key in ring.keys}
        assert all(jwt.get_unverified_header(token)["kid"] in kids for token, _ in valid)
        if now - read_at <= 60.0:
            assert jwt.get_unverified_header(issued.access_token)["kid"] in {key.kid for key in stale.keys}
        assert len(ring.keys) <= 3


def test_ring_is_restored_from_its_text_form() -> None:
    ring = KeyRing().renew(NOW, MONTH).renew(NOW + MONTH, MONTH)
    assert KeyRing.parse(ring.text()) == ring
    assert KeyRing.parse(json.dumps({"keys": json.loads(ring.text())["keys"][::-1]})) == ring


def test_invalid_text_is_rejected_and_not_in_the_error() -> None:
    valid = json.loads(KeyRing().renew(NOW, MONTH).text())
    key = valid["keys"][0]
    for text in (
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
            KeyRing.parse(text)
        assert "token signing keys" in str(caught.value)
        assert "s3cret" not in str(caught.value)


def test_repr_contains_no_secret() -> None:
    ring = KeyRing().renew(NOW, MONTH)
    issued = ring.issue("iris", 60, NOW)
    assert "PRIVATE" not in repr(ring)
    assert issued.access_token not in repr(issued)
    assert all("d" not in key for key in ring.public_keys())


@pytest.mark.parametrize("ttl", ["59", "86401", "", "-60", "+60", "6_0", "60.0", "x", "٦٠", "9" * 30])
def test_invalid_lifetime_is_rejected(ttl: str) -> None:
    with pytest.raises(SettingsError, match="must be a whole number from 60 to 86400"):
        parse_lifetime(ttl, 3600, "flag --ttl")


def test_lifetime_is_parsed_or_the_default() -> None:
    assert parse_lifetime(None, 3600, "") == 3600
    assert [parse_lifetime(text, 1, "") for text in ("60", "86400")] == [60, 86400]


# Stores.


class ContestedStore:
    """A store whose text is always replaced between reading and writing."""

    async def read(self) -> StoredRing | None:
        return None

    async def write(self, text: str, previous: StoredRing | None) -> bool:
        return False


async def test_concurrent_processes_generate_the_same_keys(tmp_path: Path) -> None:
    first, second = TokenKeyFile(tmp_path), TokenKeyFile(tmp_path)
    one, other = await asyncio.gather(load_current_ring(first, NOW, MONTH), load_current_ring(second, NOW, MONTH))
    assert one == other


async def test_store_that_always_changes_is_an_error() -> None:
    with pytest.raises(OSError, match="token keys: other processes replace them at the same time"):
        await load_current_ring(ContestedStore(), NOW, MONTH)


async def test_key_file_is_private_and_is_replaced_only_if_unchanged_since_it_was_read(tmp_path: Path) -> None:
    store = TokenKeyFile(tmp_path / "state")
    assert await store.read() is None
    assert await store.write("one", None)
    first = await store.read()
    assert first is not None
    assert first.text == "one"
    assert not await store.write("two", None)
    assert await store.write("two", first)
    assert not await store.write("three", first)
    file = tmp_path / "state" / "token-keys.json"
    assert file.read_text() == "two"
    assert file.stat().st_mode & 0o777 == 0o600


async def test_command_generates_keys_only_once(tmp_path: Path) -> None:
    store = TokenKeyFile(tmp_path)
    issued = [await issue_token(store, "iris", "60", default_lifetime_seconds=3600) for _ in range(2)]
    assert len({jwt.get_unverified_header(str(each["accessToken"]))["kid"] for each in issued}) == 1
    with pytest.raises(SettingsError, match="SERVICE = 'Iris': must be the name of a service"):
        await issue_token(store, "Iris", None, default_lifetime_seconds=3600)
