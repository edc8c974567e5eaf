"""Renders the chart with Helm's own code.

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
    """Return the values of a file in `tests/deploy/values/`."""
    (path,) = [path for path in VALUE_FILES if path.stem == name]
    values: Values = yaml.safe_load(path.read_text())
    return values


def smallest(**more: Any) -> Values:
    """Return the required values, with additional or other ones."""
    return {**copy.deepcopy(values_file("smallest")), **more}


def texts(
    values: Values, *, upgrade: bool = False, release: str = "azureml-fe", namespace: str = NAMESPACE
) -> dict[str, str]:
    """Return the rendered text of each template. Raises `HelmError` for rejected values."""
    rendered = _chart.render(values, name=release, namespace=namespace, is_install=not upgrade, is_upgrade=upgrade)
    return {name.removeprefix("azureml-fe/templates/"): text for name, text in rendered.items()}


def manifests(values: Values, *, release: str = "azureml-fe", namespace: str = NAMESPACE) -> list[Object]:
    """Return all objects of a release."""
    rendered = texts(values, release=release, namespace=namespace)
    documents = (yaml.safe_load_all(text) for name, text in rendered.items() if name != "NOTES.txt")
    return [document for file in documents for document in file if document]


def render(values: Values) -> dict[tuple[str, str], Object]:
    """Return the objects by kind and name, or `namespace/name` outside the release's namespace."""
    objects: dict[tuple[str, str], Object] = {}
    for each in manifests(values):
        metadata = each["metadata"]
        namespace = metadata.get("namespace", NAMESPACE)
        name = metadata["name"] if namespace == NAMESPACE else f"{namespace}/{metadata['name']}"
        assert (each["kind"], name) not in objects
        objects[each["kind"], name] = each
    return objects


def pod_of(objects: Mapping[tuple[str, str], Object]) -> Any:
    """Return the pod spec of the router."""
    return objects["Deployment", "azureml-fe"]["spec"]["template"]["spec"]


def container_of(objects: Mapping[tuple[str, str], Object]) -> Any:
    """Return the router's container."""
    (container,) = pod_of(objects)["containers"]
    return container


def router_yaml(objects: Mapping[tuple[str, str], Object]) -> Any:
    """Return the router's settings file."""
    return yaml.safe_load(objects["ConfigMap", "azuremlfeconfig"]["data"]["router.yaml"])
