"""Key authentication: which Authorization headers are allowed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.auth import keys
from router.auth.keys import CHALLENGE, INVALID_CHALLENGE, KeyCheck

KEYS = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=40)


@given(KEYS, KEYS)
def test_either_key_is_allowed(primary: str, secondary: str) -> None:
    check = KeyCheck((primary, secondary))
    for key in (primary, secondary):
        assert check.allows(b"Bearer " + key.encode())


@given(KEYS, st.binary(max_size=60))
def test_no_other_credential_is_allowed(key: str, credential: bytes) -> None:
    check = KeyCheck((key, None))
    assert check.allows(b"Bearer " + credential) == (credential.strip() == key.encode())
    assert not check.allows(credential) or credential[:7].lower() == b"bearer "


@given(KEYS)
def test_similar_key_is_not_allowed(key: str) -> None:
    check = KeyCheck((key, key))
    for wrong in (key[:-1], key[1:], key + "x", key + key, key.swapcase()):
        assert check.allows(b"Bearer " + wrong.encode()) == (wrong == key)


@pytest.mark.parametrize("scheme", [b"Bearer ", b"bearer ", b"BEARER ", b"bEaReR ", b"Bearer   ", b"Bearer \t"])
def test_scheme_is_case_insensitive(scheme: bytes) -> None:
    assert KeyCheck(("abc",)).allows(scheme + b"abc")
    assert KeyCheck(("abc",)).allows(scheme + b"abc ")


@pytest.mark.parametrize("value", [None, b"", b"abc", b"Bearer", b"Bearer ", b"Bearerabc", b"Basic abc", b"Bearer  "])
def test_other_schemes_and_empty_values_are_not_allowed(value: bytes | None) -> None:
    assert not KeyCheck(("abc",)).allows(value)


@pytest.mark.parametrize("no_keys", [(), (None,), (None, None), ("", None)])
def test_service_without_keys_allows_no_request(no_keys: tuple[str | None, ...]) -> None:
    check = KeyCheck(no_keys)
    for value in (None, b"", b"Bearer ", b"Bearer None"):
        assert not check.allows(value)


def test_each_key_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time of the check must not reveal which key matches."""
    compared: list[bytes] = []

    def compare(credential: bytes, key: bytes) -> bool:
        compared.append(key)
        return credential == key

    monkeypatch.setattr(keys, "compare_digest", compare)
    check = KeyCheck(("first", "second"))
    usual, other = [b"Bearer first", b"Bearer second"], [b"first", b"second"]
    for value, expected in ((b"Bearer first", usual), (b"Bearer second", usual), (b"bearer second", usual + other)):
        compared.clear()
        assert check.allows(value)
        assert compared == expected
    compared.clear()
    assert not check.allows(b"Bearer third")
    assert compared == usual + other


def test_repr_contains_no_key() -> None:
    assert repr(KeyCheck(("secret-one", "secret-two"))) == "KeyCheck(2 keys)"


def test_challenges_follow_rfc_6750() -> None:
    assert CHALLENGE == 'Bearer realm="azureml-fe"'
    assert INVALID_CHALLENGE == 'Bearer realm="azureml-fe", error="invalid_token"'
