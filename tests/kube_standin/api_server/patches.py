"""The three patch types of the server. No I/O. Arguments are never modified."""

import copy
from typing import Any

from tests.kube_standin.api_server.errors import ApiError, bad_request
from tests.kube_standin.api_server.resources import Object

JSON = "application/json-patch+json"
MERGE = "application/merge-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"
SUPPORTED = (JSON, MERGE, STRATEGIC)

# The merge keys of lists, for the kinds that the stand-in has. Other lists are replaced.
_MERGE_KEYS = {
    "containers": "name",
    "initContainers": "name",
    "ephemeralContainers": "name",
    "env": "name",
    "volumes": "name",
    "volumeMounts": "mountPath",
    "imagePullSecrets": "name",
    "secrets": "name",
    "ownerReferences": "uid",
    "conditions": "type",
    "podIPs": "ip",
    "hostIPs": "ip",
    "hostAliases": "ip",
    "topologySpreadConstraints": "topologyKey",
    "addresses": "type",
    "taints": "key",
}
_MERGED_VALUES = ("finalizers",)


def apply(kind: str, obj: Object, patch: Any) -> Object:
    """Return the patched object. Raises `ApiError`."""
    if kind == JSON:
        return _json(obj, patch)
    if not isinstance(patch, dict):
        raise bad_request(
            "error decoding patch: json: cannot unmarshal array into Go value of type map[string]interface {}"
        )
    merged: Object = merge(obj, patch) if kind == MERGE else strategic_merge(obj, patch)
    return merged


def merge(old: Any, patch: Any) -> Any:
    """Return the result of a JSON merge patch (RFC 7386)."""
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    merged = dict(old) if isinstance(old, dict) else {}
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = merge(merged.get(name), value)
    return merged


def strategic_merge(old: Any, patch: Object) -> Any:
    """Return the result of a strategic merge patch, with its directives `$patch` and `$retainKeys`."""
    directive = patch.get("$patch")
    if directive == "replace":
        return {name: copy.deepcopy(value) for name, value in patch.items() if not name.startswith("$")}
    if directive == "delete":
        return None
    merged = dict(old) if isinstance(old, dict) else {}
    if "$retainKeys" in patch:
        merged = {name: value for name, value in merged.items() if name in patch["$retainKeys"]}
    for name, value in patch.items():
        if name.startswith("$deleteFromPrimitiveList/"):
            list_name = name.partition("/")[2]
            merged[list_name] = [item for item in merged.get(list_name, []) if item not in value]
        if name.startswith("$"):
            continue
        if value is None:
            merged.pop(name, None)
        elif isinstance(value, dict):
            fresh = strategic_merge(merged.get(name), value)
            if fresh is None:
                merged.pop(name, None)
            else:
                merged[name] = fresh
        elif isinstance(value, list):
            merged[name] = _strategic_list(name, merged.get(name) or [], value)
        else:
            merged[name] = value
    return merged


def _merge_key(name: str, items: list[Any]) -> str | None:
    if name == "ports":
        return "port" if any(isinstance(item, dict) and "port" in item for item in items) else "containerPort"
    return _MERGE_KEYS.get(name)


def _strategic_list(name: str, old: list[Any], patch: list[Any]) -> list[Any]:
    if name in _MERGED_VALUES:
        return old + [item for item in patch if item not in old]
    key = _merge_key(name, patch + old)
    if key is None:
        return copy.deepcopy(patch)
    if any(item.get("$patch") == "replace" for item in patch):
        return [copy.deepcopy(item) for item in patch if "$patch" not in item]
    merged = list(old)
    fresh = []
    for item in patch:
        if key not in item:
            raise bad_request(f"map: {item} does not contain declared merge key: {key}")
        at = next((index for index, known in enumerate(merged) if known.get(key) == item[key]), None)
        if item.get("$patch") == "delete":
            if at is not None:
                del merged[at]
        elif at is None:
            fresh.append(strategic_merge({}, item))
        else:
            merged[at] = strategic_merge(merged[at], item)
    return merged + fresh


def _json(obj: Object, operations: Any) -> Object:
    """Return the result of a JSON patch (RFC 6902)."""
    if not isinstance(operations, list):
        raise bad_request("error decoding patch: json: cannot unmarshal object into Go value of type jsonpatch.Patch")
    whole: Any = copy.deepcopy(obj)
    for operation in operations:
        try:
            _operate(whole, operation)
        except (KeyError, IndexError, ValueError, TypeError) as error:
            raise ApiError(
                422,
                "Invalid",
                "the server rejected our request due to an error in our request",
                {"causes": [{"message": f"{operation}: {error}"}]},
            ) from error
    patched: Object = whole
    return patched


def _operate(whole: Any, operation: Object) -> None:
    op = operation["op"]
    if op in ("move", "copy"):
        value = copy.deepcopy(_at(whole, _pointer(operation["from"])))
        if op == "move":
            _operate(whole, {"op": "remove", "path": operation["from"]})
        _operate(whole, {"op": "add", "path": operation["path"], "value": value})
        return
    path = _pointer(operation["path"])
    if op == "test":
        if _at(whole, path) != operation.get("value"):
            raise ValueError("test failed")
        return
    parent, last = _at(whole, path[:-1]), path[-1]
    if isinstance(parent, list):
        index = len(parent) if last == "-" and op == "add" else int(last)
        if index > len(parent) - (op != "add"):
            raise IndexError(index)
        if op == "add":
            parent.insert(index, operation["value"])
        elif op == "replace":
            parent[index] = operation["value"]
        else:
            del parent[index]
    elif op == "remove":
        del parent[last]
    else:
        if op == "replace" and last not in parent:
            raise KeyError(last)
        parent[last] = operation["value"]


def _pointer(text: str) -> list[str]:
    return [part.replace("~1", "/").replace("~0", "~") for part in text.split("/")[1:]]


def _at(whole: Any, path: list[str]) -> Any:
    for part in path:
        whole = whole[int(part)] if isinstance(whole, list) else whole[part]
    return whole
