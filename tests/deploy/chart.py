"""The chart as a release would render it, by Helm's own code.

objects = render(values_file("devtest"))
pod = objects["Deployment", "azureml-fe"]["spec"]["template"]
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from helm_python import Chart

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy" / "helm" / "azureml-fe"
VALUE_FILES = sorted((Path(__file__).parent / "values").glob("*.yaml"))
NAMESPACE = "azureml"

Object = Mapping[str, Any]
Values = dict[str, Any]

_chart = Chart.load(CHART)
DEFAULTS: Values = yaml.safe_load((CHART / "values.yaml").read_text())


def values_file(name: str) -> Values:
    """The values of one of the files beside this one."""
    (path,) = [path for path in VALUE_FILES if path.stem == name]
    values: Values = yaml.safe_load(path.read_text())
    return values


def smallest(**more: Any) -> Values:
    """The values that must be given, and some more or others."""
    return {**copy.deepcopy(values_file("smallest")), **more}


def texts(values: Values, *, upgrade: bool = False) -> dict[str, str]:
    """What each template makes of values. Raises `HelmError` for values that are refused."""
    rendered = _chart.render(values, name="azureml-fe", namespace=NAMESPACE, is_install=not upgrade, is_upgrade=upgrade)
    return {name.removeprefix("azureml-fe/templates/"): text for name, text in rendered.items()}


def manifests(values: Values) -> list[Object]:
    """All objects of a release."""
    documents = (yaml.safe_load_all(text) for name, text in texts(values).items() if name != "NOTES.txt")
    return [document for of_file in documents for document in of_file if document]


def render(values: Values) -> dict[tuple[str, str], Object]:
    """Objects by kind and name; those that several namespaces have by kind and `namespace/name`."""
    found: dict[tuple[str, str], Object] = {}
    for each in manifests(values):
        facts = each["metadata"]
        its_namespace = facts.get("namespace", NAMESPACE)
        name = facts["name"] if its_namespace == NAMESPACE else f"{its_namespace}/{facts['name']}"
        assert (each["kind"], name) not in found
        found[each["kind"], name] = each
    return found


def pod_of(objects: Mapping[tuple[str, str], Object]) -> Any:
    """The specification of router pods."""
    return objects["Deployment", "azureml-fe"]["spec"]["template"]["spec"]


def container_of(objects: Mapping[tuple[str, str], Object]) -> Any:
    """The router's container."""
    (container,) = pod_of(objects)["containers"]
    return container


def router_yaml(objects: Mapping[tuple[str, str], Object]) -> Any:
    """What the router reads."""
    return yaml.safe_load(objects["ConfigMap", "azuremlfeconfig"]["data"]["router.yaml"])
