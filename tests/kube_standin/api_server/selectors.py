"""Label and field selectors. No I/O."""

import re
from collections.abc import Callable
from typing import Any

from tests.kube_standin.api_server.errors import ApiError, bad_request
from tests.kube_standin.api_server.resources import Object, Resource

Matches = Callable[[Object], bool]

_REQUIREMENT = re.compile(
    r"""\s*(?:
        !\s*(?P<absent>[\w./-]+)
      | (?P<key>[\w./-]+)\s*(?:
            (?P<op>==|=|!=)\s*(?P<value>[\w.-]*)
          | \s(?P<set>in|notin)\s*\((?P<values>[^)]*)\)
        )?
    )\s*(?:,|$)""",
    re.VERBOSE,
)


def label_selector(text: str) -> Matches:
    """Parse a `labelSelector`. Raises `ApiError`."""
    tests: list[Callable[[dict[str, str]], bool]] = []
    position = 0
    while position < len(text):
        found = _REQUIREMENT.match(text, position)
        if found is None or found.end() == position:
            raise bad_request(f'unable to parse requirement: found "{text[position:]}" in label selector "{text}"')
        tests.append(_requirement(found))
        position = found.end()
    return lambda obj: all(test(obj["metadata"].get("labels") or {}) for test in tests)


def _requirement(found: re.Match[str]) -> Callable[[dict[str, str]], bool]:
    key, value = found["key"], found["value"]
    if found["absent"]:
        absent = found["absent"]
        return lambda labels: absent not in labels
    if found["op"] in ("=", "=="):
        return lambda labels: labels.get(key) == value
    if found["op"] == "!=":
        return lambda labels: labels.get(key) != value
    if found["set"]:
        values = {part.strip() for part in found["values"].split(",")}
        among = found["set"] == "in"
        return lambda labels: (labels.get(key) in values) == among
    return lambda labels: key in labels


def field_requirements(text: str) -> list[tuple[str, bool, str]]:
    """Parse a `fieldSelector` into path, True for equality, and value. Raises `ApiError`."""
    found = []
    for part in filter(None, text.split(",")):
        parts = re.fullmatch(r"\s*([\w./-]+)\s*(==|=|!=)\s*(.*?)\s*", part)
        if parts is None:
            raise bad_request(f"invalid selector: '{part}'; can't understand '{part}'")
        found.append((parts[1], parts[2] != "!=", parts[3]))
    return found


def field_selector(resource: Resource, text: str) -> Matches:
    """Parse a `fieldSelector`. Raises `ApiError` for fields that the resource does not support."""
    requirements = field_requirements(text)
    known = {"metadata.name", *resource.fields} | ({"metadata.namespace"} if resource.namespaced else set())
    for path, _, _ in requirements:
        if path not in known:
            where = f"{resource.api_version}, Resource={resource.plural}"
            raise ApiError(
                400,
                "BadRequest",
                f'Unable to find "{where}" that match label selector "", field selector "{text}": '
                f"field label not supported: {path}",
            )
    return lambda obj: all((_field(obj, path) == value) is equal for path, equal, value in requirements)


def _field(obj: Object, path: str) -> str:
    if path == "source" and "source" in obj:
        path = "source.component"
    value: Any = obj
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    if isinstance(value, bool):
        return str(value).lower()
    if path == "spec.unschedulable" and value is None:
        return "false"
    return "" if value is None else str(value)
