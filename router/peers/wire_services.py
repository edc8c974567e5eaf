"""The encoding of services, token issuers and replicas.

Services, versions and issuers are JSON objects, because their fields change from release to release. The names of the
JSON fields are those of the dataclasses' fields, most of which are settings. A renamed field would be lost between pods
of different releases.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from typing import Any, NamedTuple, TypeVar, get_type_hints

from router.auth.issuers import ISSUER_SETTINGS, Issuer
from router.config.schema import Setting
from router.config.service_settings import SERVICE_SETTINGS, VERSION_SETTINGS
from router.model.data_collection import Collection, DataCollector
from router.model.services import Replica, ReplicaState, Service, Version
from router.peers.frames import WireError
from router.peers.wire_values import (
    as_array,
    as_count,
    as_flag,
    as_number,
    as_rows,
    as_text,
    as_texts,
    as_texts_by_name,
    malformed,
    optional,
)

T = TypeVar("T")


def decode_service(value: object) -> Service:
    """Return a service from an object. Raises `WireError`."""
    return _record(Service, value, _SERVICE)


def decode_issuer(value: object) -> Issuer:
    """Return a token issuer from an object. Raises `WireError`."""
    return _record(Issuer, value, _ISSUER)


def encode_replica(replica: Replica) -> list[object]:
    """Return the array of a replica."""
    return [replica.id, replica.host, replica.port, replica.state.value]


def decode_replica(fields: list[Any]) -> Replica:
    """Return a replica from its array. Raises `WireError`, and `IndexError` if fields are missing."""
    try:
        state = ReplicaState(as_text(fields[3]))
    except ValueError:  # also a `WireError`; the text of another `ValueError` would contain received data
        raise malformed("replica of unknown state") from None
    return Replica(as_text(fields[0]), as_text(fields[1]), as_count(fields[2]), state)


class _Field(NamedTuple):
    check: Callable[[object], object]
    default: object  # None if the field is required


def _record(record_type: type[T], value: object, fields: Mapping[str, _Field]) -> T:
    """Return a dataclass from an object.

    Unknown names are ignored. A missing field gets the default of its setting. Raises `WireError`.
    """
    if type(value) is not dict:
        raise malformed(f"{record_type.__name__} is not an object")
    checked: dict[str, object] = {}
    for name, (check, default) in fields.items():
        if name not in value and default is not None:
            checked[name] = default
            continue
        try:
            checked[name] = check(value.get(name))
        except WireError as error:
            raise malformed(f"{record_type.__name__}.{name}: {error}") from None
    return record_type(**checked)


def _fields(record_type: type, settings: tuple[Setting, ...]) -> dict[str, _Field]:
    """Return the fields of a dataclass by name. Raises `KeyError` for a type without a check."""
    defaults = {each.name: each.default for each in fields(record_type) if each.default is not MISSING}
    defaults |= {setting.name: setting.default for setting in settings}
    return {name: _Field(_CHECKS[hint], defaults.get(name)) for name, hint in get_type_hints(record_type).items()}


def _versions(value: object) -> tuple[Version, ...]:
    versions = tuple([_record(Version, each, _VERSION) for each in as_array(value)])
    if not versions:
        raise malformed("is empty")
    return versions


def _pairs(value: object) -> tuple[tuple[str, str], ...]:
    return tuple([(as_text(each[0]), as_text(each[1])) for each in as_rows(value)])


def _collections(value: object) -> tuple[Collection, ...]:
    return tuple([_record(Collection, each, _COLLECTION) for each in as_array(value)])


def _data_collector(value: object) -> DataCollector:
    return _record(DataCollector, value, _DATA_COLLECTOR)


_CHECKS: dict[object, Callable[[object], object]] = {
    bool: as_flag,
    int: as_count,
    float: as_number,
    str: as_text,
    int | None: optional(as_count),
    float | None: optional(as_number),
    str | None: optional(as_text),
    tuple[str, ...]: as_texts,
    Mapping[str, str]: as_texts_by_name,
    tuple[Version, ...]: _versions,
    tuple[tuple[str, str], ...]: _pairs,
    tuple[Collection, ...]: _collections,
    DataCollector | None: optional(_data_collector),
}
_COLLECTION = _fields(Collection, ())
_DATA_COLLECTOR = _fields(DataCollector, ())
_VERSION = _fields(Version, VERSION_SETTINGS)
_SERVICE = _fields(Service, SERVICE_SETTINGS)
_ISSUER = _fields(Issuer, tuple(setting for setting in ISSUER_SETTINGS if setting.name != "required_claims"))
