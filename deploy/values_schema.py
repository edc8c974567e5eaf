"""Generates the definitions of `router` and `tokenIssuers` in the chart's values.schema.json.

Run it after a change of settings: `python -m deploy.values_schema`. Does not contain: the declarations of settings
(`router.config`, `router.auth.issuers`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from router.auth.issuers import ISSUER_SETTINGS
from router.config.router import ROUTER_SETTINGS
from router.config.schema import Setting, SettingKind

SCHEMA = Path(__file__).parent / "helm" / "azureml-fe" / "values.schema.json"

MANAGED = frozenset(
    {
        "host", "port", "https_port", "admin_host", "admin_port", "peer_host", "peer_port", "state_dir",
        "namespaces", "router_name", "pod_name", "pod_namespace", "pod_ip", "peer_secret_file", "kubeconfig",
        "generate_keys", "cluster_purpose", "shutdown_delay_seconds", "drain_seconds",
        "tls_cert_file", "tls_key_file", "tls_client_ca_file", "allow_insecure_connections",
        "app_insights_connection_string_file",
        "peer_tls_cert_file", "peer_tls_key_file", "peer_tls_ca_file", "dynamic_config_map",
    }
)  # fmt: skip
"""Settings that the value `router` must not contain: the manifests set them, or the chart has another value for
them."""


_BOOL_TEXTS = ("true", "false", "True", "False")

_DECIMAL = r"([1-9][0-9]{0,3}(\.[0-9]{1,3})?|0\.[0-9]{0,2}[1-9])"

# `helm --set router.access_log=0.01` sets a text.
_FRACTION = r"^(0(\.[0-9]{1,17})?|1(\.0{1,17})?|[1-9](\.[0-9]{1,17})?e-[0-9]{2})$"


def router_schema() -> dict[str, Any]:
    """Return the schema of the value `router`."""
    return _settings(setting for setting in ROUTER_SETTINGS if setting.name not in MANAGED)


def issuers_schema() -> dict[str, Any]:
    """Return the schema of the value `tokenIssuers`."""
    return {"type": "object", "additionalProperties": {**_settings(ISSUER_SETTINGS), "required": ["audience"]}}


def _settings(settings: Iterable[Setting]) -> dict[str, Any]:
    properties = {setting.name: _property(setting) for setting in settings}
    return {"type": "object", "additionalProperties": False, "properties": properties}


def _property(setting: Setting) -> dict[str, Any]:
    match setting.kind:
        case SettingKind.BOOL:
            return {"enum": [True, False, *_BOOL_TEXTS]}
        case SettingKind.INT | SettingKind.FLOAT:
            lower = {"minimum": setting.minimum} if setting.above is None else {"exclusiveMinimum": setting.above}
            number_type = "integer" if setting.kind is SettingKind.INT else "number"
            return {"type": number_type, **lower, "maximum": setting.maximum}
        case SettingKind.FRACTION:
            texts: dict[str, Any] = {"enum": ["on", "off", *_BOOL_TEXTS]}
            number = {"type": "number", "minimum": 0, "maximum": 1}
            return {"anyOf": [texts, {"type": "boolean"}, number, {"type": "string", "pattern": _FRACTION}]}
        case SettingKind.LIST:
            item = "|".join(setting.choices) or _pattern(setting)
            texts = {"type": "string", "pattern": rf"^\s*(({item})(\s*,\s*({item}))*)?\s*$"}
            return {"anyOf": [{"type": "array", "items": _text(setting)}, texts]}
        case SettingKind.NUMBERS:
            number = {"type": "number", "minimum": setting.minimum, "maximum": setting.maximum}
            texts = {"type": "string", "pattern": rf"^{_DECIMAL}( *, *{_DECIMAL})*$"}
            return {"anyOf": [{"type": "array", "minItems": 1, "items": {"anyOf": [number, texts]}}, number, texts]}
        case SettingKind.MAPPING:
            return {"type": "object", "additionalProperties": {"type": "string"}}
    if "off" in setting.choices:  # Helm reads `off` as false and `on` as true; the template writes the words again
        return {"enum": [*setting.choices, False, *([True] if "on" in setting.choices else [])]}
    return _text(setting)


def _text(setting: Setting) -> dict[str, Any]:
    if setting.choices:
        return {"enum": list(setting.choices)}
    return {"type": "string", "pattern": f"^({_pattern(setting)})$"}


def _pattern(setting: Setting) -> str:
    # Helm's regular expressions repeat at most 1000 times.
    return re.sub(r"[{]1,[0-9]{4,}[}]", "+", setting.pattern)


def render(text: str) -> str:
    """Return the text of values.schema.json with the two definitions replaced."""
    schema = json.loads(text)
    schema["$defs"] |= {"router": router_schema(), "tokenIssuers": issuers_schema()}
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    SCHEMA.write_text(render(SCHEMA.read_text()))
