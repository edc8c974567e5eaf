"""`metadata.managedFields`: which manager (client) owns which fields of an object, for updates and patches. No I/O.

A manager owns the fields that it has set or changed. Changing a value takes the field from all other managers. Writing
the current value again does not. The format of an entry is `FieldsV1`: a tree of names such as `f:spec`, in which
`k:{"name":"model"}` is an item of a list of type map, `v:"x"` an item of a list of type set, and `.` the object or list
item itself: a manager can own an item without all of its fields.

https://kubernetes.io/docs/reference/using-api/server-side-apply/#field-management
"""

import json
from collections.abc import Iterator
from typing import Any

from tests.kube_standin.api_server.resources import Object

Path = tuple[str, ...]

# Lists of type map (`x-kubernetes-list-type: map`), with the fields that are the key of an item. Each item has its own
# owners. Other lists are atomic.
_LIST_MAP_KEYS = {
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
# Objects of type atomic (`x-kubernetes-map-type: atomic`): they have owners only as a whole.
_ATOMIC_MAPS = ("selector", "involvedObject", "regarding", "scaleTargetRef", "roleRef", "nodeSelector")
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


def managed_fields_after_update(
    entries: list[Object],
    old: Object,
    new: Object,
    *,
    manager: str,
    api_version: str,
    subresource: str,
    now: str,
) -> list[Object]:
    """Return the entries of `managedFields` after `manager` has replaced the object `old` with `new`."""
    before, after = dict(_owned_fields(old)), dict(_owned_fields(new))
    removed = before.keys() - after.keys()
    changed = {path for path, value in after.items() if path not in before or before[path] != value}
    if not removed and not changed:
        return entries
    own_identity = (manager, "Update", api_version, subresource)
    result: list[Object] = []
    has_own_entry = False
    for entry in entries:
        paths = set(_paths(entry["fieldsV1"]))
        identity = (entry["manager"], entry["operation"], entry["apiVersion"], entry.get("subresource", ""))
        if identity == own_identity:
            has_own_entry = True
            new_paths = (paths - removed) | changed
        else:
            new_paths = paths - removed - changed
        if new_paths:
            entry = entry if new_paths == paths else entry | {"fieldsV1": _tree(new_paths)}
            result.append(entry | {"time": now} if identity == own_identity and new_paths != paths else entry)
    if changed and not has_own_entry:
        fields = {"fieldsType": "FieldsV1", "fieldsV1": _tree(changed)}
        entry = {"manager": manager, "operation": "Update", "apiVersion": api_version, "time": now, **fields}
        result.append(entry | ({"subresource": subresource} if subresource else {}))
    return result


def _owned_fields(obj: Object) -> Iterator[tuple[Path, Any]]:
    """Yield path and value of each field that has owners. The value of a "." entry is True, or False if it is empty."""
    for path, value in _walk(obj, (), ""):
        if path[:2] not in _NOT_OWNED and path[:1] not in _NOT_OWNED:
            yield path, value


def _walk(value: Any, path: Path, name: str) -> Iterator[tuple[Path, Any]]:
    if isinstance(value, dict) and name not in _ATOMIC_MAPS:
        if len(path) > 1 or (path and not value):
            yield (*path, "."), bool(value)
        for key, inner in value.items():
            yield from _walk(inner, (*path, f"f:{key}"), key)
    elif isinstance(value, list) and name in _LIST_MAP_KEYS and value:
        yield (*path, "."), True
        for item in value:
            key = {part: item.get(part) for part in _LIST_MAP_KEYS[name]}
            yield from _walk(item, (*path, f"k:{json.dumps(key, separators=(',', ':'))}"), "")
    elif isinstance(value, list) and name == "finalizers":
        yield (*path, "."), True
        for item in value:
            yield (*path, f"v:{json.dumps(item)}"), True
    else:
        yield path, value


def _tree(paths: set[Path]) -> Object:
    """Return the `fieldsV1` tree with these paths. The reverse of `_paths`."""
    tree: Object = {}
    for path in sorted(paths):
        node = tree
        for part in path:
            node = node.setdefault(part, {})
    return tree


def _paths(tree: Object, path: Path = ()) -> Iterator[Path]:
    """Yield the path of each leaf of a `fieldsV1` tree."""
    for part, inner in tree.items():
        if inner:
            yield from _paths(inner, (*path, part))
        else:
            yield (*path, part)
