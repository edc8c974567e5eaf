"""The chart grants exactly the permissions that the router uses, for each kind of installation.

`router/cluster/kubernetes/access.py` lists them. The end-to-end tests show that a running router uses each of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pytest

from router.cluster.kubernetes.access import ACCESS_RULES, SELF_SCALING_ACCESS_RULES, AccessRule
from tests.deploy.chart import NAMESPACE, render, smallest, values_file

Permission = tuple[str, str, str, str]
"""API group, resource, verb, and name or ""."""


def granted(rules: Iterable[Mapping[str, Any]]) -> set[Permission]:
    """Return the permissions of RBAC rules."""
    return {
        (group, resource, verb, name)
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
        for name in rule.get("resourceNames", [""])
    }


def used(scope: str, *, keys: bool = True) -> set[Permission]:
    """Return the permissions that the router uses in a scope."""
    return _permissions(
        entry for entry in ACCESS_RULES if entry.scope == scope and (keys or not entry.for_key_generation)
    )


def self_scaling(scope: str) -> set[Permission]:
    """Return the permissions that self-scaling uses in addition."""
    return _permissions(entry for entry in SELF_SCALING_ACCESS_RULES if entry.scope == scope)


def _permissions(entries: Iterable[AccessRule]) -> set[Permission]:
    return {(entry.group, entry.resource, verb, entry.name) for entry in entries for verb in entry.verbs}


def test_permissions_for_models_in_all_namespaces() -> None:
    objects = render(smallest(namespaces=[], allNamespaces=True))
    assert granted(objects["ClusterRole", "azureml-fe-role.azureml"]["rules"]) == used("models")
    assert not [name for kind, name in objects if kind == "Role" and name != "azureml-fe"]


@pytest.mark.parametrize("namespace", ["models", "more-models"])
def test_permissions_for_models_in_named_namespaces(namespace: str) -> None:
    objects = render(values_file("production"))
    assert granted(objects["Role", f"{namespace}/azureml-fe-role.azureml"]["rules"]) == used("models")
    binding = objects["RoleBinding", f"{namespace}/azureml-fe-role.azureml"]
    assert binding["roleRef"]["kind"] == "Role"
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": "azureml-fe", "namespace": NAMESPACE}]
    assert [name for kind, name in objects if kind == "ClusterRole"] == ["azureml-fe-room.azureml"]


def test_router_without_key_generation_cannot_write_secrets() -> None:
    objects = render(smallest(generateKeys=False))
    rules = granted(objects["Role", "models/azureml-fe-role.azureml"]["rules"])
    assert rules == used("models", keys=False)
    assert {verb for _, resource, verb, _ in rules if resource == "secrets"} == {"list", "watch"}


def test_permissions_in_the_routers_own_namespace() -> None:
    own = used("own")
    assert granted(render(smallest())["Role", "azureml-fe"]["rules"]) == own | self_scaling("own")


@pytest.mark.parametrize("values", ["devtest", "original"])
def test_router_without_self_scaling_cannot_change_its_size(values: str) -> None:
    objects = render(values_file(values))
    own = granted(objects["Role", "azureml-fe"]["rules"])
    assert not {
        permission for permission in own if permission[1] in ("pods/resize", "deployments", "deployments/scale")
    }
    assert not [name for _, name in objects if "room" in name]


def test_node_permissions_are_read_only() -> None:
    objects = render(values_file("production"))
    assert granted(objects["ClusterRole", "azureml-fe-room.azureml"]["rules"]) == self_scaling("cluster")


def test_nothing_is_granted_by_wildcard() -> None:
    for (kind, _), each in render(values_file("original")).items():
        if kind in ("Role", "ClusterRole"):
            assert not {part for permission in granted(each["rules"]) for part in permission} & {"*"}


def test_all_roles_are_bound_to_the_pods_service_account() -> None:
    objects = render(values_file("production"))
    assert objects["Deployment", "azureml-fe"]["spec"]["template"]["spec"]["serviceAccountName"] == "azureml-fe"
    bound = {
        (each["roleRef"]["kind"], each["metadata"].get("namespace"), each["roleRef"]["name"])
        for (kind, _), each in objects.items()
        if kind in ("RoleBinding", "ClusterRoleBinding")
    }
    assert bound == {
        (kind, each["metadata"].get("namespace"), each["metadata"]["name"])
        for (kind, _), each in objects.items()
        if kind in ("Role", "ClusterRole")
    }


def test_router_may_only_get_the_config_map_with_the_dynamic_configuration() -> None:
    own = used("own") | self_scaling("own")
    objects = render(smallest(dynamicConfig={"configMap": "my-settings"}))
    assert granted(objects["Role", "azureml-fe"]["rules"]) == own | {("", "configmaps", "get", "my-settings")}
    assert "dynamic_config_map: my-settings" in objects["ConfigMap", "azuremlfeconfig"]["data"]["router.yaml"]
