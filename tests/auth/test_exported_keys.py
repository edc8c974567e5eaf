"""Keys are read in each form in which Azure ML's tools print them, and errors never have any part of them."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.auth.exported_keys import MAX_BYTES, ExportedKeys, parse_exported_keys
from router.config.schema import SettingsError

PRIMARY, SECONDARY = "fL2xkd93JqvN7bTz0WmYcR5uHs8EaGpK", "Qw4r/6Ty+8Ui0Op1As2Df3Gh4Jk5Lz7X=="
KEYS = ExportedKeys(PRIMARY, SECONDARY)


def parse(text: str) -> ExportedKeys:
    return parse_exported_keys(text.encode(), "iris", "keys.json")


def errors_of(text: str) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        parse(text)
    return str(caught.value).splitlines()


@pytest.mark.parametrize(
    "text",
    [
        f"{(PRIMARY, SECONDARY)}\n",
        json.dumps((PRIMARY, SECONDARY)),
        json.dumps({"primaryKey": PRIMARY, "secondaryKey": SECONDARY}, indent=2),
        str({"primary_key": PRIMARY, "secondary_key": SECONDARY}),
        json.dumps({"secondaryKey": SECONDARY, "primaryKey": PRIMARY, "keyType": None}),
        json.dumps({"service": "iris", "primary": PRIMARY, "secondary": SECONDARY}),
        f"{PRIMARY}\t{SECONDARY}\n",
        f"{PRIMARY}\n{SECONDARY}\n",
        f"primaryKey: {PRIMARY}\nsecondaryKey: '{SECONDARY}'\n",
        f"primary: {PRIMARY}\r\nsecondary: {SECONDARY}\r\n",
        f"PrimaryKey    SecondaryKey\n{'-' * 32}  {'-' * 34}\n{PRIMARY}  {SECONDARY}\n",
    ],
    ids=[
        "tuple", "list", "az", "sdk-v2", "other-fields", "keys-show-json", "tsv", "lines", "yaml", "keys-show", "table",
    ],
)  # fmt: skip
def test_forms(text: str) -> None:
    assert parse(text) == KEYS


def test_encodings_of_windows() -> None:
    text = json.dumps(KEYS)
    for encoding in ("utf-8-sig", "utf-16"):
        assert parse_exported_keys(text.encode(encoding), "iris", "keys.json") == KEYS


FORMS = (
    "keys.json: keys: must have two keys, as printed by service.get_keys() of the first SDK, az ml online-endpoint "
    "get-credentials, or azureml-fe keys show"
)

TOKEN = (
    "keys.json: accessToken: is a token, which expires; clients of this service have no keys (see azureml-fe token "
    "--help)"
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ["keys.json: keys: is empty"]),
        ("Service unavailable", [FORMS]),
        ("ERROR: (UserError) Endpoint iris does not exist", [FORMS]),
        ('{"error": {"code": "UserError"}}', [FORMS]),
        (PRIMARY, [FORMS]),
        (json.dumps([PRIMARY, SECONDARY, PRIMARY]), [FORMS]),
        ("[" * 30_000, [FORMS]),
        ("x" * (MAX_BYTES + 1), [f"keys.json: keys: must have at most {MAX_BYTES} bytes"]),
        (json.dumps({"primaryKey": PRIMARY}), ["keys.json: secondaryKey: is missing"]),
        (json.dumps({"primaryKey": PRIMARY, "secondaryKey": None}), ["keys.json: secondaryKey: is missing"]),
        (
            json.dumps({"accessToken": "secret", "expiryTimeUtc": 1, "refreshAfterTimeUtc": 1, "tokenType": "Bearer"}),
            [TOKEN],
        ),
        (
            json.dumps({"service": "resnet", "primary": "two words", "secondary": 7}),
            [
                "keys.json: service: must be iris; these are the keys of another service",
                "keys.json: primaryKey: must be 1 to 256 visible ASCII characters without spaces",
                "keys.json: secondaryKey: must be 1 to 256 visible ASCII characters without spaces",
            ],
        ),
    ],
)  # fmt: skip
def test_all_faults_at_once(text: str, expected: list[str]) -> None:
    assert errors_of(text) == expected


def test_not_text() -> None:
    for content in (b"\xff\xfe\x00", b"\x80abc"):
        with pytest.raises(SettingsError, match="must be text in UTF-8"):
            parse_exported_keys(content, "iris", "keys.json")


def test_keys_are_not_shown() -> None:
    assert PRIMARY not in repr(KEYS)
    assert PRIMARY not in str(KEYS)


@given(st.one_of(st.text(), st.from_regex(r"[\x20-\x7e\n\t]*secret[\x20-\x7e\n\t]*", fullmatch=True)))
def test_any_text_gives_keys_or_an_error_without_its_content(text: str) -> None:
    try:
        parse(text)
    except SettingsError as error:
        shown, cause = str(error), error.__cause__
    else:
        return
    assert "secret" not in shown
    assert cause is None
