"""The parts of the chart's values.schema.json that say what `router` and `tokenIssuers` may hold:
`python -m deploy.values_schema` writes them.

Lives here: how a row of the router's tables of settings reads as JSON schema, and which rows the chart fills itself.
Must not live here: a fact about a setting, which those tables have.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from router.auth.issuers import ISSUER_SETTINGS
from router.settings import ROUTER_SETTINGS
from router.values import LARGEST_NUMBER, Kind, Setting

SCHEMA = Path(__file__).parent / "helm" / "azureml-fe" / "values.schema.json"

MANAGED = frozenset(
    {
        "host", "port", "https_port", "admin_host", "admin_port", "peer_host", "peer_port", "state_dir",
        "namespaces", "pod_name", "pod_namespace", "pod_ip", "peer_secret_file", "kubeconfig",
        "generate_keys", "cluster_purpose", "shutdown_delay_seconds", "drain_seconds",
        "tls_cert_file", "tls_key_file", "tls_client_ca_file", "allow_insecure_connections",
        "peer_tls_cert_file", "peer_tls_key_file", "peer_tls_ca_file",
    }
)  # fmt: skip
"""Settings that are fixed by manifests, or are values of the chart by another name: not allowed in `router`."""


def router_schema() -> dict[str, Any]:
    """What the value `router` may be."""
    return _settings(setting for setting in ROUTER_SETTINGS if setting.name not in MANAGED)


def issuers_schema() -> dict[str, Any]:
    """What the value `tokenIssuers` may be."""
    return {"type": "object", "additionalProperties": {**_settings(ISSUER_SETTINGS), "required": ["audience"]}}


def _settings(settings: Iterable[Setting]) -> dict[str, Any]:
    properties = {setting.name: _property(setting) for setting in settings}
    return {"type": "object", "additionalProperties": False, "properties": properties}


def _property(setting: Setting) -> dict[str, Any]:
    match setting.kind:
        case Kind.BOOL:
            return {"type": "boolean"}
        case Kind.INT | Kind.FLOAT:
            least = {"minimum": setting.minimum} if setting.above is None else {"exclusiveMinimum": setting.above}
            number = {"type": "integer" if setting.kind is Kind.INT else "number", **least}
            return number if setting.maximum == LARGEST_NUMBER else {**number, "maximum": setting.maximum}
        case Kind.RATE:
            return {
                "anyOf": [{"enum": ["on", "off"]}, {"type": "boolean"}, {"type": "number", "minimum": 0, "maximum": 1}]
            }
        case Kind.LIST:
            return {"anyOf": [{"type": "array", "items": {"type": "string"}}, {"type": "string"}]}
        case Kind.MAPPING:
            return {"type": "object", "additionalProperties": {"type": "string"}}
    if "off" in setting.choices:
        return {"enum": [*setting.choices, False]}  # as which Helm reads the word; its template writes the word again
    return {"enum": list(setting.choices)} if setting.choices else {"type": "string"}


def render(text: str) -> str:
    """The whole schema with these parts made anew."""
    schema = json.loads(text)
    schema["$defs"] |= {"router": router_schema(), "tokenIssuers": issuers_schema()}
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    SCHEMA.write_text(render(SCHEMA.read_text()))
