"""Permissions of the router: rules of RBAC roles, and the chart's admission policy. The router and the models share one
namespace in these tests."""

from collections.abc import Iterable
from typing import Any

from router.cluster.kubernetes.access import (
    ACCESS_RULES,
    ADOPTION_ACCESS_RULES,
    SELF_SCALING_ACCESS_RULES,
    AccessRule,
)
from router.config.kubernetes_settings import ROUTER_NAME
from tests.deploy.chart import Object, manifests, smallest

Rules = list[dict[str, Any]]


def serving_rules(router: str = ROUTER_NAME) -> Rules:
    """Rules of the namespace for a router of this name that does not scale itself."""
    return _as_rbac(ACCESS_RULES, router)


def self_scaling_rules(withheld: str = "") -> Rules:
    """Rules of the namespace for a router that scales itself, without the resource `withheld`."""
    return _as_rbac(
        rule
        for rule in (*ACCESS_RULES, *SELF_SCALING_ACCESS_RULES)
        if rule.scope != "cluster" and rule.resource != withheld
    )


def cluster_rules() -> Rules:
    """Cluster-wide rules for a router that scales itself."""
    return _as_rbac(rule for rule in SELF_SCALING_ACCESS_RULES if rule.scope == "cluster")


def adopter_rules(scope: str) -> Rules:
    """Rules of one scope for a user of `azureml-fe adopt`."""
    return _as_rbac(rule for rule in ADOPTION_ACCESS_RULES if rule.scope == scope)


def admission_policy(namespace: str) -> list[Object]:
    """Return the chart's admission policy and its binding."""
    return [each for each in manifests(smallest(), namespace=namespace) if "Admission" in each["kind"]]


def _as_rbac(rules: Iterable[AccessRule], router: str = ROUTER_NAME) -> Rules:
    return [
        {"apiGroups": [rule.group], "resources": [rule.resource], "verbs": list(rule.verbs)}
        | ({"resourceNames": [rule.name_of(router)]} if rule.name else {})
        for rule in rules
    ]
