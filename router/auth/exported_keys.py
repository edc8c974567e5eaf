"""The keys of a service as Azure ML's tools print them.

    ("KEY", "KEY")                                     print(service.get_keys()), the first SDK
    ["KEY", "KEY"]                                     json.dumps(service.get_keys())
    {"primaryKey": "KEY", "secondaryKey": "KEY"}       az ml online-endpoint get-credentials, and the REST API
    {'primary_key': 'KEY', 'secondary_key': 'KEY'}     vars(ml_client.online_endpoints.get_keys(NAME)), the second SDK
    KEY<tab>KEY, a table, primaryKey: KEY on a line    the same with --output tsv, table or yaml
    primary: KEY on a line                             azureml-fe keys show

Two bare words are accepted only if they are long enough for keys, so that no error message is taken for two keys. No
error has any part of the text. Contains no I/O.
"""

from __future__ import annotations

import ast
import codecs
import json
import re
from collections.abc import Mapping
from typing import NamedTuple

from router.config.schema import ArgumentError, ErrorCollector, SettingsError, parse_value
from router.config.service_settings import SERVICE_SETTINGS

MAX_BYTES = 65_536
"""A longer text has no keys."""
MIN_BARE_LENGTH = 16
"""Characters of the shortest key that is accepted without a name, quotes or brackets."""

KEY_FIELDS = {"primary": "primaryKey", "secondary": "secondaryKey"}
"""The names of the keys in the documents of Azure ML, and in Secrets."""

_SETTINGS = {setting.name: setting for setting in SERVICE_SETTINGS}
_LINE = re.compile(r"\s*([A-Za-z_]+): +(\S+)\s*", re.ASCII)
_UTF16_BOMS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)  # PowerShell writes UTF-16 with `>`
_FORMS = (
    "must have two keys, as printed by service.get_keys() of the first SDK, az ml online-endpoint get-credentials, or "
    "azureml-fe keys show"
)


class ExportedKeys(NamedTuple):
    """The two keys of a service. `repr()` does not show them."""

    primary: str
    secondary: str

    def __repr__(self) -> str:
        return "ExportedKeys()"


class HasOtherKeysError(ArgumentError):
    """A service has other keys than those to import."""

    def __init__(self, service: str, where: str) -> None:
        problem = "has other keys, which its clients may use; --replace replaces both of them"
        super().__init__("SERVICE", service, problem, where)


def parse_exported_keys(content: bytes, service: str, where: str) -> ExportedKeys:
    """Return the keys in a text. `where` is its source in errors, such as the path of the file.

    Raises `SettingsError` for all faults: a text in no known form, a token instead of keys, keys of another service,
    missing keys, and keys that no client can send.
    """
    named = _read(content, where)
    if "accesstoken" in named:
        problem = "is a token, which expires; clients of this service have no keys (see azureml-fe token --help)"
        raise SettingsError("accessToken", None, problem, where)
    given = {which: named.get(which, named.get(f"{which}key")) for which in KEY_FIELDS}
    if not any(given.values()):
        raise SettingsError("keys", None, _FORMS, where)
    errors = ErrorCollector()
    if named.get("service", service) != service:
        errors.add(SettingsError("service", None, f"must be {service}; these are the keys of another service", where))
    keys: dict[str, str] = {}
    for which, field in KEY_FIELDS.items():
        with errors.collect():
            keys[which] = _key(given[which], which, field, where)
    errors.raise_errors()
    return ExportedKeys(**keys)


def _key(value: object, which: str, field: str, where: str) -> str:
    if value is None:
        raise SettingsError(field, None, "is missing", where)
    try:
        return str(parse_value(_SETTINGS[f"{which}_key"], value, where))
    except SettingsError as error:
        raise SettingsError(field, None, error.problem, where) from None


def _read(content: bytes, where: str) -> Mapping[str, object]:
    """Return the values by their names in lower case, without underscores. Two values without names are the keys."""
    if len(content) > MAX_BYTES:
        raise SettingsError("keys", None, f"must have at most {MAX_BYTES} bytes", where)
    try:
        text = content.decode("utf-16" if content.startswith(_UTF16_BOMS) else "utf-8-sig").strip()
    except UnicodeDecodeError:
        raise SettingsError("keys", None, "must be text in UTF-8", where) from None
    value = _literal(text)
    if isinstance(value, dict):
        return {str(name).replace("_", "").lower(): each for name, each in value.items()}
    lines = [_LINE.fullmatch(line) for line in text.splitlines() if line.strip()]
    if lines and all(lines):
        return {match[1].replace("_", "").lower(): match[2].strip("'\"") for match in lines if match is not None}
    words = value if isinstance(value, list | tuple) else _bare_words(text)
    if len(words) != len(KEY_FIELDS):
        raise SettingsError("keys", None, "is empty" if not text else _FORMS, where)
    return dict(zip(KEY_FIELDS, words, strict=True))


def _literal(text: str) -> object:
    """Return the JSON document or Python value; None if the text is neither."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None


def _bare_words(text: str) -> list[str]:
    words = text.split()
    if [word.lower() for word in words[:2]] == [field.lower() for field in KEY_FIELDS.values()]:
        words = [word for word in words[2:] if word.strip("-")]  # a table
    return words if all(len(word) >= MIN_BARE_LENGTH for word in words) else []
