"""Decodes JSON objects by the schemas of Kubernetes 1.36. No I/O.

Unknown fields and nulls are dropped, values of a wrong type are refused, and quantities get their canonical form.
Arguments are never modified.
"""

import functools
import importlib.resources
import json
import re
from fractions import Fraction
from typing import Any

from tests.kube_standin.api_server.errors import bad_request
from tests.kube_standin.api_server.resources import Object, Resource

_FILE = "kubernetes-json-schema/v1.36.0-local-strict/_definitions.json"
_PREFIX = "#/$defs/"
_QUANTITY = "io.k8s.apimachinery.pkg.api.resource.Quantity"
_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
}


@functools.cache
def _definitions() -> Object:
    found: Object = json.loads(importlib.resources.files("kubernetes_validate").joinpath(_FILE).read_text())["$defs"]
    return found


def name_of(api_version: str, kind: str) -> str:
    """Return the schema's name, such as io.k8s.api.apps.v1.Deployment for apps/v1 and Deployment."""
    group, _, version = api_version.rpartition("/")
    return f"io.k8s.api.{group.partition('.')[0] or 'core'}.{version}.{kind}"


def decode_object(resource: Resource, obj: Any, unknown: list[str]) -> Any:
    """Return a decoded copy. Append the paths of unknown fields to `unknown`."""
    if not isinstance(obj, dict):
        return obj  # rejected later, with its own message
    return _Reader(resource.kind, resource.version, unknown).read({"$ref": _PREFIX + _named(resource)}, obj, "")


def _named(resource: Resource) -> str:
    return name_of(resource.api_version, resource.kind)


class _Reader:
    def __init__(self, kind: str, version: str, unknown: list[str]) -> None:
        self._kind = kind
        self._version = version
        self._unknown = unknown

    def read(self, schema: Object, value: Any, path: str) -> Any:
        """Return the value decoded by its schema."""
        reference = schema.get("$ref", "").removeprefix(_PREFIX)
        if reference == _QUANTITY:
            return self._quantity(value, path)
        if reference:
            schema = _definitions()[reference]
        if "oneOf" in schema:
            return self._one_of(schema["oneOf"], value, path)
        self._check(schema.get("type"), value, path)
        if isinstance(value, dict):
            return self._object(schema, value, path)
        if isinstance(value, list) and "items" in schema:
            return [self.read(schema["items"], item, f"{path}[{index}]") for index, item in enumerate(value)]
        return value

    def _object(self, schema: Object, value: Object, path: str) -> Object:
        properties, others = schema.get("properties"), schema.get("additionalProperties")
        if properties is None and not isinstance(others, dict):
            return dict(value)
        found = {}
        for name, inner in value.items():
            where = f"{path}.{name}" if path else name
            known = properties.get(name) if properties is not None else others
            if known is None:
                self._unknown.append(where)
            elif inner is not None:
                found[name] = self.read(known, inner, where)
        return found

    def _one_of(self, schemas: list[Object], value: Any, path: str) -> Any:
        wanted = [each.get("type") for each in schemas]
        if not any(_is(types, value) for types in wanted):
            raise self._cannot_be_handled(path, wanted)
        return value

    def _check(self, types: Any, value: Any, path: str) -> None:
        if types is not None and not _is(types, value):
            raise self._cannot_be_handled(path, types)

    def _quantity(self, value: Any, path: str) -> str:
        text = (
            canonical_quantity(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else None
        )
        if text is None:
            raise self._cannot_be_handled(path, "quantities must match the regular expression")
        return text

    def _cannot_be_handled(self, path: str, wanted: Any) -> Exception:
        return bad_request(
            f'{self._kind} in version "{self._version}" cannot be handled as a {self._kind}: json: cannot unmarshal '
            f"into Go struct field {self._kind}.{path} of type {wanted}"
        )


def _is(types: Any, value: Any) -> bool:
    names = [types] if isinstance(types, str) else types
    if isinstance(value, bool):
        return "boolean" in names
    return any(isinstance(value, _TYPES.get(name, ())) for name in names)


# Quantities.

_NUMBER = re.compile(r"([+-]?)([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:([eE][+-]?[0-9]+)|(n|u|m|k|M|G|T|P|E|[KMGTPE]i))?")
_DECIMAL = {"E": 18, "P": 15, "T": 12, "G": 9, "M": 6, "k": 3, "": 0, "m": -3, "u": -6, "n": -9}
_BINARY = {"Ei": 60, "Pi": 50, "Ti": 40, "Gi": 30, "Mi": 20, "Ki": 10, "": 0}


def canonical_quantity(value: str | int | float) -> str | None:
    """Return a quantity in canonical form (no fraction, the largest possible unit), or None if it is invalid."""
    found = _NUMBER.fullmatch(str(value))
    if found is None:
        return None
    sign, digits, exponent, unit = found.groups()
    unit = unit or ""
    number = Fraction(digits if not digits.endswith(".") else digits[:-1])
    if exponent:
        return f"{sign if sign == '-' else ''}{digits}{exponent.lower()}"
    if unit.endswith("i"):
        number *= 2 ** _BINARY[unit]
        units = {name: Fraction(2) ** power for name, power in _BINARY.items()}
    else:
        number *= Fraction(10) ** _DECIMAL[unit]
        units = {name: Fraction(10) ** power for name, power in _DECIMAL.items()}
    if not number:
        return "0"
    if unit.endswith("i") and number < 1024:
        units = {name: Fraction(10) ** power for name, power in _DECIMAL.items()}
    name, size = next((name, size) for name, size in units.items() if (number / size).denominator == 1)
    return f"{sign if sign == '-' else ''}{number / size}{name}"
