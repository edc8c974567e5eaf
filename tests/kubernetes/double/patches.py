"""The three kinds of patches that the server takes. No I/O; what is given is never changed."""

import copy
from typing import Any

from tests.kubernetes.double.errors import ApiError, bad_request
from tests.kubernetes.double.resources import Object

JSON = "application/json-patch+json"
MERGE = "application/merge-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"
SUPPORTED = (JSON, MERGE, STRATEGIC)

# By which field items of a list belong together, in the kinds that the double has; other lists are replaced.
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


def apply(kind: str, thing: Object, patch: Any) -> Object:
    """The object as the patch makes it."""
    if kind == JSON:
        return _json(thing, patch)
    if not isinstance(patch, dict):
        raise bad_request(
            "error decoding patch: json: cannot unmarshal array into Go value of type map[string]interface {}"
        )
    merged: Object = merge(thing, patch) if kind == MERGE else strategic(thing, patch)
    return merged


def merge(old: Any, patch: Any) -> Any:
    """RFC 7386."""
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    merged = dict(old) if isinstance(old, dict) else {}
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = merge(merged.get(name), value)
    return merged


def strategic(old: Any, patch: Object) -> Any:
    """A merge that knows which lists are sets, with the directives `$patch` and `$retainKeys`."""
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
            of = name.partition("/")[2]
            merged[of] = [item for item in merged.get(of, []) if item not in value]
        if name.startswith("$"):
            continue
        if value is None:
            merged.pop(name, None)
        elif isinstance(value, dict):
            fresh = strategic(merged.get(name), value)
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
            fresh.append(strategic({}, item))
        else:
            merged[at] = strategic(merged[at], item)
    return merged + fresh


def _json(thing: Object, operations: Any) -> Object:
    """RFC 6902."""
    if not isinstance(operations, list):
        raise bad_request("error decoding patch: json: cannot unmarshal object into Go value of type jsonpatch.Patch")
    whole: Any = copy.deepcopy(thing)
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
