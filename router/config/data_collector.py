"""The parser of the setting `data_collector`, whose names are those of the deployment files of Azure ML's CLI (v2).

Contains: the declarations of the nested settings, and the rules between them. Does not contain: what is collected
(`collection`).
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from router.config.schema import ErrorCollector, Setting, SettingKind, SettingsError, parse_value
from router.model.data_collection import ROLLING_RATES, Collection, DataCollector

_NAME = "data_collector"
_TOP = ("collections", "sampling_rate", "rolling_rate", "request_logging")
_MAX_COLLECTIONS = 32
_COLLECTION_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9])?", re.ASCII)
_DATASTORE = re.compile(r"azureml://(?:[^/]+/)*?datastores/[^/]+/paths/(?P<path>.+)")
_FOLDER = re.compile(r"[A-Za-z0-9._=-]+(?:/[A-Za-z0-9._=-]+)*", re.ASCII)

_SAMPLING_RATE = Setting("sampling_rate", SettingKind.FLOAT, "", default=1.0, maximum=1)
_ENABLED = Setting("enabled", SettingKind.BOOL, "", default=True)
_HEADERS = Setting(
    "request_logging.capture_headers",
    SettingKind.LIST,
    "",
    pattern=r"[A-Za-z0-9-]{1,64}",
    pattern_text="names of request headers of letters, digits and '-'",
)

_CREDENTIALS = re.compile(
    r"(?:.*-)?(?:authorization|authorization-auxiliary|cookie|token|secret|password|credential"
    r"|(?:access|api|auth|functions|subscription)-?key)"
)
"""Names of headers that have keys or tokens, and are never stored: `x-ms-token-aad-access-token`,
`ocp-apim-subscription-key`, `x-functions-key`."""

_RESERVED = frozenset(
    (
        "specversion", "id", "source", "type", "subject", "dataschema", "datacontenttype", "time", "data", "database64",
        "path", "method", "contentrange", "correlationid", "xrequestid", "datainblob", "truncated", "statuscode",
        "modelversion", "collectdatatype", "agent",
    )
)  # fmt: skip
"""Attributes of events, which a captured header must not replace."""


def attribute_name(header: str) -> str:
    """Return the name of the attribute for a captured header. CloudEvents 1.0 allows only a-z and 0-9."""
    return header.replace("-", "").lower()


def parse_data_collector(raw: object, where: str = "") -> DataCollector:
    """Return the value of a mapping, or of its JSON text. Raises `SettingsError` for all errors."""
    mapping = _mapping(raw, where)
    errors = ErrorCollector()
    for name in mapping:
        if name not in _TOP:
            errors.add(_error(None, f"has no {_quoted(name)}; allowed: {', '.join(_TOP)}", where))
    collections = tuple(_collections(mapping.get("collections"), errors, where))
    sampling_rate, rolling_rate = 1.0, "hour"
    headers: tuple[str, ...] = ()
    with errors.collect():
        if mapping.get("sampling_rate") is not None:
            sampling_rate = _nested(_SAMPLING_RATE, mapping["sampling_rate"], where)
    with errors.collect():
        if mapping.get("rolling_rate") is not None:
            rolling_rate = _rolling_rate(mapping["rolling_rate"], where)
    with errors.collect():
        headers = _headers(mapping.get("request_logging"), where)
    errors.raise_errors()
    return DataCollector(collections, sampling_rate, rolling_rate, headers)


def _mapping(raw: object, where: str) -> Mapping[str, Any]:
    value = raw
    if isinstance(raw, str):
        try:
            value = json.loads(raw)
        except ValueError:
            value = None
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise _error(None, "must be a mapping, or its JSON text", where)
    return value


def _collections(raw: object, errors: ErrorCollector, where: str) -> Iterator[Collection]:
    """Yield the valid collections."""
    if not isinstance(raw, Mapping) or not 0 < len(raw) <= _MAX_COLLECTIONS:
        errors.add(_error(None, f"collections must be a mapping of 1 to {_MAX_COLLECTIONS} names to mappings", where))
        return
    for name, value in raw.items():
        with errors.collect():
            yield _collection(name, value, where)
    lower = [str(name).lower() for name in raw]
    if len(set(lower)) < len(lower):
        errors.add(_error(None, "collections must differ by more than upper and lower case", where))


def _collection(name: object, value: object, where: str) -> Collection:
    place = f"collections.{_quoted(name)}"
    if not isinstance(name, str) or not _COLLECTION_NAME.fullmatch(name):
        rule = "must be named with 1 to 63 of letters, digits, '-' and '_', beginning and ending with neither"
        raise _error(None, f"{place} {rule}", where)
    if not isinstance(value, Mapping):
        raise _error(None, f"{place} must be a mapping", where)
    errors = ErrorCollector()
    for key in value:
        if key not in ("enabled", "data"):
            errors.add(_error(None, f"{place} has no {_quoted(key)}; allowed: enabled, data", where))
    enabled, path = True, ""
    with errors.collect():
        if "enabled" in value:
            enabled = _nested(_ENABLED, value["enabled"], where, place + ".")
    with errors.collect():
        path = _path(value.get("data"), place, where)
    errors.raise_errors()
    return Collection(name.lower(), enabled, path)


def _path(data: object, place: str, where: str) -> str:
    """Return the folder that `data` names. Its name and version are those of the data asset in Azure ML, which only
    Azure ML registers."""
    if data is None:
        return ""
    if not isinstance(data, Mapping) or not data.keys() <= {"path", "name", "version"}:
        raise _error(None, f"{place}.data must be a mapping with path, name and version", where)
    raw = data.get("path")
    if raw is None:
        return ""
    match = _DATASTORE.fullmatch(raw) if isinstance(raw, str) else None
    folder = match["path"].strip("/") if match else raw
    is_folder = isinstance(folder, str) and _FOLDER.fullmatch(folder) and len(folder) <= 512
    if not is_folder or any(part in (".", "..") for part in str(folder).split("/")):
        rule = "must be azureml://datastores/NAME/paths/FOLDER, or FOLDER: names of letters, digits, '.', '_', '-', '='"
        raise _error(raw, f"{place}.data.path {rule}, separated by '/'", where)
    return str(folder)


def _rolling_rate(raw: object, where: str) -> str:
    rate = raw.lower() if isinstance(raw, str) else ""
    if rate not in ROLLING_RATES:
        raise _error(raw, f"rolling_rate must be one of {', '.join(ROLLING_RATES)}", where)
    return rate


def _headers(raw: object, where: str) -> tuple[str, ...]:
    if raw is None:
        return ()
    if not isinstance(raw, Mapping) or not raw.keys() <= {"capture_headers"}:
        raise _error(None, "request_logging must be a mapping with capture_headers", where)
    headers = tuple(name.lower() for name in _nested(_HEADERS, raw.get("capture_headers", ()), where))
    credentials = sorted(filter(_CREDENTIALS.fullmatch, headers))
    if credentials:
        raise _error(", ".join(credentials), "request_logging.capture_headers must not have credentials", where)
    attributes = [attribute_name(name) for name in headers]
    taken = [name for name in headers if attribute_name(name) in _RESERVED or not attribute_name(name)]
    if taken or len(set(attributes)) < len(attributes):
        shown = ", ".join(taken or headers)
        raise _error(shown, "request_logging.capture_headers must differ from each other and from attributes", where)
    return headers


def _nested(setting: Setting, raw: object, where: str, prefix: str = "") -> Any:
    try:
        return parse_value(setting, raw, where)
    except SettingsError as error:
        raise _error(raw, f"{prefix}{setting.name} {error.problem}", where) from None


def _quoted(name: object) -> str:
    text = str(name)
    return text if len(text) <= 64 else text[:64] + "..."


def _error(value: object, problem: str, where: str) -> SettingsError:
    """Return an error of the whole setting: it is one annotation, which is rejected as a whole."""
    return SettingsError(_NAME, value, problem, where)
