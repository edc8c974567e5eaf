"""`metadata.managedFields`: who wrote which field last, kept by the server as it keeps it for updates and patches.

A manager owns what it has set or changed. Whoever changes a value takes it from all others; whoever writes the value
that is there already takes nothing. No I/O.
"""

import json
from collections.abc import Iterator
from typing import Any

from tests.kubernetes.double.resources import Object

Path = tuple[str, ...]

# Lists whose items are told apart by these fields; other lists belong to one manager as a whole.
_KEYS = {
    "containers": ("name",),
    "initContainers": ("name",),
    "env": ("name",),
    "volumes": ("name",),
    "volumeMounts": ("mountPath",),
    "imagePullSecrets": ("name",),
    "ownerReferences": ("uid",),
    "conditions": ("type",),
    "podIPs": ("ip",),
    "hostIPs": ("ip",),
}
_ATOMIC = ("selector", "involvedObject", "regarding", "scaleTargetRef", "roleRef", "nodeSelector")
_NOT_OWNED = {
    ("f:apiVersion",),
    ("f:kind",),
    *(
        ("f:metadata", f"f:{name}")
        for name in (
            "name",
            "namespace",
            "uid",
            "creationTimestamp",
            "resourceVersion",
            "generation",
            "managedFields",
            "deletionTimestamp",
            "deletionGracePeriodSeconds",
        )
    ),
}


def written(
    entries: list[Object],
    old: Object,
    new: Object,
    *,
    manager: str,
    api_version: str,
    subresource: str,
    now: str,
) -> list[Object]:
    """The entries after `manager` has made `new` of `old`."""
    before, after = dict(_leaves(old)), dict(_leaves(new))
    gone = before.keys() - after.keys()
    changed = {path for path, value in after.items() if path not in before or before[path] != value}
    if not gone and not changed:
        return entries
    mine = (manager, "Update", api_version, subresource)
    kept: list[Object] = []
    found = False
    for entry in entries:
        paths = set(_paths(entry["fieldsV1"]))
        its = (entry["manager"], entry["operation"], entry["apiVersion"], entry.get("subresource", ""))
        if its == mine:
            found = True
            fresh = (paths - gone) | changed
        else:
            fresh = paths - gone - changed
        if fresh:
            entry = entry if fresh == paths else entry | {"fieldsV1": _nested(fresh)}
            kept.append(entry | {"time": now} if its == mine and fresh != paths else entry)
    if changed and not found:
        fields = {"fieldsType": "FieldsV1", "fieldsV1": _nested(changed)}
        entry = {"manager": manager, "operation": "Update", "apiVersion": api_version, "time": now, **fields}
        kept.append(entry | ({"subresource": subresource} if subresource else {}))
    return kept


def _leaves(thing: Object) -> Iterator[tuple[Path, Any]]:
    for path, value in _walk(thing, (), ""):
        if path[:2] not in _NOT_OWNED and path[:1] not in _NOT_OWNED:
            yield path, value


def _walk(value: Any, path: Path, name: str) -> Iterator[tuple[Path, Any]]:
    if isinstance(value, dict) and name not in _ATOMIC:
        if len(path) > 1 or (path and not value):
            yield (*path, "."), bool(value)
        for key, inner in value.items():
            yield from _walk(inner, (*path, f"f:{key}"), key)
    elif isinstance(value, list) and name in _KEYS and value:
        yield (*path, "."), True
        for item in value:
            key = {part: item.get(part) for part in _KEYS[name]}
            yield from _walk(item, (*path, f"k:{json.dumps(key, separators=(',', ':'))}"), "")
    elif isinstance(value, list) and name == "finalizers":
        yield (*path, "."), True
        for item in value:
            yield (*path, f"v:{json.dumps(item)}"), True
    else:
        yield path, value


def _nested(paths: set[Path]) -> Object:
    tree: Object = {}
    for path in sorted(paths):
        at = tree
        for part in path:
            at = at.setdefault(part, {})
    return tree


def _paths(tree: Object, path: Path = ()) -> Iterator[Path]:
    for part, inner in tree.items():
        if inner:
            yield from _paths(inner, (*path, part))
        else:
            yield (*path, part)
