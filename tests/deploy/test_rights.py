"""The rights that the chart grants are those that the router uses, no more and no fewer, for each kind of installation.

What is used is the list in `router/cluster/kubernetes/access.py`; that each entry of it is used in a running cluster is
shown against the double of the API server.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pytest

from router.cluster.kubernetes.access import ACCESS, SIZING_ACCESS, Access
from tests.deploy.chart import NAMESPACE, render, smallest, values_file

Right = tuple[str, str, str, str]
"""Group, resource, verb, name or ""."""


def granted(rules: Iterable[Mapping[str, Any]]) -> set[Right]:
    """What rules grant."""
    return {
        (group, resource, verb, name)
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
        for name in rule.get("resourceNames", [""])
    }


def used(scope: str, *, keys: bool = True) -> set[Right]:
    """What the router uses in a scope."""
    return _rights(entry for entry in ACCESS if entry.scope == scope and (keys or not entry.needs_keys))


def sizing(scope: str) -> set[Right]:
    """What a router that sizes itself uses besides."""
    return _rights(entry for entry in SIZING_ACCESS if entry.scope == scope)


def _rights(entries: Iterable[Access]) -> set[Right]:
    return {(entry.group, entry.resource, verb, entry.name) for entry in entries for verb in entry.verbs}


def test_models_in_all_namespaces() -> None:
    objects = render(smallest())
    assert granted(objects["ClusterRole", "azureml-fe-role"]["rules"]) == used("models")
    assert not [name for kind, name in objects if kind == "Role" and name != "azureml-fe"]


@pytest.mark.parametrize("namespace", ["models", "more-models"])
def test_models_in_some_namespaces(namespace: str) -> None:
    objects = render(values_file("production"))
    assert granted(objects["Role", f"{namespace}/azureml-fe-role"]["rules"]) == used("models")
    binding = objects["RoleBinding", f"{namespace}/azureml-fe-role"]
    assert binding["roleRef"]["kind"] == "Role"
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": "azureml-fe", "namespace": NAMESPACE}]
    assert ("ClusterRole", "azureml-fe-role") not in objects


def test_a_router_that_makes_no_keys_may_write_no_secret_of_models() -> None:
    objects = render(smallest(generateKeys=False))
    rules = granted(objects["ClusterRole", "azureml-fe-role"]["rules"])
    assert rules == used("models", keys=False)
    assert {verb for _, resource, verb, _ in rules if resource == "secrets"} == {"list", "watch"}


def test_the_routers_own_namespace() -> None:
    own = used("own")
    assert granted(render(smallest())["Role", "azureml-fe"]["rules"]) == own | sizing("own")


@pytest.mark.parametrize("values", ["devtest", "original"])
def test_a_router_that_keeps_its_size_may_not_change_it(values: str) -> None:
    objects = render(values_file(values))
    own = granted(objects["Role", "azureml-fe"]["rules"])
    assert not {right for right in own if right[1] in ("pods/resize", "deployments", "deployments/scale")}
    assert not [name for _, name in objects if "room" in name]


def test_room_on_nodes_is_read_only() -> None:
    objects = render(values_file("production"))
    assert granted(objects["ClusterRole", "azureml-fe-room-azureml"]["rules"]) == sizing("cluster")


def test_nothing_is_granted_by_wildcard() -> None:
    for (kind, _), each in render(smallest()).items():
        if kind in ("Role", "ClusterRole"):
            assert not {word for right in granted(each["rules"]) for word in right} & {"*"}


def test_roles_are_bound_to_the_account_of_the_pods() -> None:
    objects = render(values_file("production"))
    assert objects["Deployment", "azureml-fe"]["spec"]["template"]["spec"]["serviceAccountName"] == "azureml-fe"
    bound = {
        (each["roleRef"]["kind"], each["roleRef"]["name"])
        for (kind, _), each in objects.items()
        if kind in ("RoleBinding", "ClusterRoleBinding")
    }
    assert bound == {
        (kind, each["metadata"]["name"]) for (kind, _), each in objects.items() if kind in ("Role", "ClusterRole")
    }
