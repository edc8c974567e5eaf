"""Which files are those of Azure ML, and of which kind."""

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path

from router.config.dialects import SETTING_NAMES
from router.config.schema import SettingsError
from router.config.yaml_document import YamlDocument, read_json, read_yaml


class FileKind(StrEnum):
    """The kinds of files that can be converted."""

    DEPLOYMENT_CONFIG = "deployment configuration of an AKS web service (v1)"
    INFERENCE_CONFIG = "inference configuration (v1)"
    ENDPOINT = "online endpoint (v2)"
    DEPLOYMENT = "online deployment (v2)"


_OWN_SECTIONS = frozenset(("services", "router", "token_issuers"))
_V1_KEYS = (
    frozenset(path[0] for row in SETTING_NAMES for path in row.v1)
    - {path[0] for row in SETTING_NAMES for path in row.v2}
    - {"entryScript", "environment"}
)
_DEPLOYMENT_KEYS = frozenset(
    ("endpoint_name", "code_configuration", "instance_count", "instance_type", "request_settings", "scale_settings")
)
_SCHEMAS = {
    "OnlineEndpoint.schema.json": FileKind.ENDPOINT,
    "OnlineDeployment.schema.json": FileKind.DEPLOYMENT,
}


def read_file(path: Path) -> YamlDocument:
    """Return the document in a YAML or JSON file. Raises `SettingsError` if it cannot be read."""
    return read_json(path) if path.suffix.lower() == ".json" else read_yaml(path)


def kind_of(document: YamlDocument) -> FileKind | None:
    """Return the kind of a file of Azure ML; None for another one."""
    keys = document.values
    if not isinstance(keys, Mapping) or _OWN_SECTIONS & keys.keys():
        return None
    schema = str(keys.get("$schema") or "")
    for name, kind in _SCHEMAS.items():
        if schema.endswith(name):
            return kind
    if _DEPLOYMENT_KEYS & keys.keys():
        return FileKind.DEPLOYMENT
    if "auth_mode" in keys or "traffic" in keys:
        return FileKind.ENDPOINT
    if "entryScript" in keys:
        return FileKind.INFERENCE_CONFIG
    if "computeType" in keys or _V1_KEYS & keys.keys():
        return FileKind.DEPLOYMENT_CONFIG
    return None


def require_kind(document: YamlDocument) -> FileKind:
    """Return the kind of a file of Azure ML. Raises `SettingsError` for another file."""
    kind = kind_of(document)
    if kind is None:
        problem = f"must be a file of Azure ML: {', '.join(FileKind)}"
        raise SettingsError("file", None, problem, document.file)
    return kind
