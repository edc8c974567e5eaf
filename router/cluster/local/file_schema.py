"""The JSON schema of a local file, for editors that complete and check YAML. It is made from the declared settings.

Editors read plain YAML scalars as numbers and bools, so the schema has these types. Does not contain: rules between
settings, which only `azureml-fe check` knows.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from router.auth.issuers import ISSUER_SETTINGS
from router.cluster.local.launch import LAUNCH_SETTINGS
from router.config.router import ROUTER_SETTINGS
from router.config.schema import Setting, SettingKind
from router.config.service_settings import SERVICE_SETTINGS, VERSION_SETTINGS

_NAME = "^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"


def local_file_schema() -> dict[str, Any]:
    """Return the schema (JSON Schema 2020-12)."""
    version_settings = (*VERSION_SETTINGS, *LAUNCH_SETTINGS)
    version = _object(_properties(version_settings))
    service = _object(_properties((*SERVICE_SETTINGS, *version_settings)) | {"versions": _named(version)})
    sections = {
        "services": _named(service) | {"minProperties": 1},
        "router": _object(_properties(ROUTER_SETTINGS)),
        "token_issuers": _named(_object(_properties(ISSUER_SETTINGS)) | {"required": ["audience"]}),
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Services of azureml-fe local",
        **_object(sections),
        "required": ["services"],
    }


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": False, "properties": properties}


def _named(item: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "propertyNames": {"pattern": _NAME}, "additionalProperties": item}


def _properties(settings: Iterable[Setting]) -> dict[str, Any]:
    return {setting.name: {"description": _description(setting), **_type(setting)} for setting in settings}


def _description(setting: Setting) -> str:
    unit = f" Unit: {setting.unit}." if setting.unit else ""
    default = setting.default_text or setting.default
    return f"{setting.description}{unit} Default: {'none' if default in (None, ()) else default}."


def _type(setting: Setting) -> dict[str, Any]:
    match setting.kind:
        case SettingKind.BOOL:
            return {"type": "boolean"}
        case SettingKind.INT | SettingKind.FLOAT:
            lower = {"minimum": setting.minimum} if setting.above is None else {"exclusiveMinimum": setting.above}
            number = "integer" if setting.kind is SettingKind.INT else "number"
            return {"type": number, **lower, "maximum": setting.maximum}
        case SettingKind.FRACTION:
            # YAML 1.1 reads `on` and `off` as bools, YAML 1.2 as text.
            return {"anyOf": [{"enum": ["on", "off", True, False]}, {"type": "number", "minimum": 0, "maximum": 1}]}
        case SettingKind.LIST:
            return {"anyOf": [{"type": "array", "items": _text(setting)}, {"type": "string"}]}
        case SettingKind.NUMBERS:
            return {"anyOf": [{"type": "array", "items": {"type": "number"}}, {"type": ["number", "string"]}]}
        case SettingKind.MAPPING:
            return {"type": "object", "additionalProperties": {"type": ["string", "number", "boolean"]}}
        case SettingKind.OBJECT:
            return {"type": ["object", "string"]}
    return _text(setting)


def _text(setting: Setting) -> dict[str, Any]:
    if setting.choices:
        return {"enum": [*setting.choices, *([False] if "off" in setting.choices else [])]}
    return {"type": "string", "pattern": f"^(?:{setting.pattern})$"}
