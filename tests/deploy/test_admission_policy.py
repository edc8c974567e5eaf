"""The chart's admission policy allows what the router writes, and nothing else. cel-python evaluates its expressions.

End-to-end tests run routers under the policy, in an API server that enforces it.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

import pytest

from router.cluster.kubernetes.access import ACCESS_RULES, SELF_SCALING_ACCESS_RULES
from router.cluster.kubernetes.election import LeaseWrite, lease_body
from router.cluster.kubernetes.key_secrets import secret_body
from router.cluster.kubernetes.objects import DELETION_COST_ANNOTATION, NamespacedName
from router.cluster.kubernetes.pod_resources import CPU_LIMIT_ANNOTATION
from router.cluster.kubernetes.scale_writer import DRAINED_DELETION_COST
from tests.deploy.chart import manifests, smallest
from tests.kube_standin.api_server.admission_policies import Write, denials, message_of

OWN, MODELS = "azureml", "models"
ACCOUNT = f"system:serviceaccount:{OWN}:azureml-fe"
Object = dict[str, Any]


def policy_of(**values: Any) -> Any:
    """Return the policy of a release. Checks that its binding enforces it."""
    objects = {each["kind"]: each for each in manifests(smallest(**values)) if "Admission" in each["kind"]}
    binding = objects["ValidatingAdmissionPolicyBinding"]["spec"]
    policy = objects["ValidatingAdmissionPolicy"]
    assert binding == {"policyName": policy["metadata"]["name"], "validationActions": ["Deny"]}
    assert policy["spec"]["failurePolicy"] == "Fail"
    return policy


POLICY = policy_of()


def write(resource: str, operation: str, new: Object | None, old: Object | None = None, **more: str) -> Write:
    """Return a write of the router's account. `resource` is, for example, `apps/deployments/scale`."""
    group, _, rest = resource.partition("/") if resource.startswith(("apps", "coordination")) else ("", "", resource)
    plural, _, subresource = rest.partition("/")
    metadata = (new or old or {})["metadata"]
    attributes = {
        "user": ACCOUNT, "operation": operation, "group": group, "version": "v1", "resource": plural,
        "subresource": subresource, "namespace": metadata["namespace"], "name": metadata["name"],
    }  # fmt: skip
    return Write(**(attributes | more), new=new, old=old)


def denied(attempt: Write, policy: Any = POLICY) -> list[str]:
    """Return the messages of the validations that deny a write."""
    return [message_of(each) for each in denials(policy, attempt)]


def changed(obj: Mapping[str, Any], path: str, value: object) -> Object:
    """Return a copy with one other value; None removes it. Steps of the path are separated by `|`."""
    copied: Any = copy.deepcopy(dict(obj))
    *parents, last = path.split("|")
    part = copied
    for step in parents:
        part = part[int(step)] if isinstance(part, list) else part.setdefault(step, {})
    if value is None:
        del part[last]
    else:
        part[last] = value
    return copied  # type: ignore[no-any-return]


# What the router writes.

POD: Object = {
    "metadata": {
        "name": "iris-1", "namespace": MODELS, "uid": "1", "labels": {"isazuremlapp": "true", "azuremlappname": "iris"},
        "annotations": {"team": "a"}, "ownerReferences": [{"kind": "ReplicaSet", "name": "iris", "uid": "2"}],
    },
    "spec": {"containers": [{"name": "model", "image": "model:1", "resources": {}}], "nodeName": "node-1"},
}  # fmt: skip
COST = f"metadata|annotations|{DELETION_COST_ANNOTATION}"
DRAINED_POD = changed(POD, COST, DRAINED_DELETION_COST)
ROUTER_POD: Object = {
    "metadata": {"name": "azureml-fe-1", "namespace": OWN, "labels": {"azuremlappname": "azureml-fe"}},
    "spec": {"containers": [{"name": "azureml-fe", "image": "router:1", "resources": {"limits": {"cpu": "2"}}}]},
}
RESIZED_POD = changed(ROUTER_POD, "spec|containers|0|resources|limits|cpu", "4")
DEPLOYMENT: Object = {
    "metadata": {"name": "azureml-fe", "namespace": OWN, "labels": {"azuremlappname": "azureml-fe"}},
    "spec": {
        "replicas": 3,
        "selector": {"matchLabels": {"azuremlappname": "azureml-fe"}},
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "25%", "maxSurge": "25%"}},
        "template": {
            "metadata": {
                "labels": {"azuremlappname": "azureml-fe"},
                "annotations": {CPU_LIMIT_ANNOTATION: "2", "checksum/config": "1"},
            },
            "spec": {**ROUTER_POD["spec"], "serviceAccountName": "azureml-fe", "volumes": [{"name": "config"}]},
        },
    },
}
TEMPLATE_ANNOTATIONS = "spec|template|metadata|annotations"
TEMPLATE_CONTAINERS = "spec|template|spec|containers"
CONTAINER = f"{TEMPLATE_CONTAINERS}|0"
RESIZED_DEPLOYMENT = changed(
    changed(DEPLOYMENT, f"{CONTAINER}|resources|limits|cpu", "4"),
    "spec|strategy|rollingUpdate",
    {"maxUnavailable": 0, "maxSurge": 1},
)
RESIZED_DEPLOYMENT = changed(RESIZED_DEPLOYMENT, f"{TEMPLATE_ANNOTATIONS}|{CPU_LIMIT_ANNOTATION}", "4")  # fmt: skip
KEYS: Any = secret_body(NamespacedName(MODELS, "azureml-fe-keys-iris"), "iris")
TOKEN_KEYS: Object = {
    "metadata": {"name": "azureml-fe-token-keys", "namespace": OWN}, "type": "Opaque", "data": {"keys": "a2V5cw=="},
}  # fmt: skip
CONFIG_MAP: Object = {"metadata": {"name": "azureml-fe-names", "namespace": OWN}, "data": {"iris": "models"}}
LEASE = lease_body(LeaseWrite("azureml-fe-1_a", 0, ""), OWN, "azureml-fe", None, "2026-01-01T00:00:00.000000Z")
EVENT: Object = {
    "metadata": {"name": "iris.1", "namespace": MODELS}, "reason": "KeysMissing", "reportingComponent": "azureml-fe",
    "lastTimestamp": "2026-01-01T00:00:00Z",
}  # fmt: skip

ALLOWED = {
    "mark a drained pod": write("pods", "UPDATE", DRAINED_POD, POD),
    "mark a pod without annotations": write(
        "pods", "UPDATE", changed(changed(POD, "metadata|annotations", {}), COST, "1"),
        changed(POD, "metadata|annotations", None),
    ),
    "restore the cost": write("pods", "UPDATE", changed(DRAINED_POD, COST, "5"), DRAINED_POD),
    "remove the cost": write("pods", "UPDATE", POD, DRAINED_POD),
    "resize an own pod": write("pods/resize", "UPDATE", RESIZED_POD, ROUTER_POD),
    "create keys": write("secrets", "CREATE", KEYS),
    "create token keys": write("secrets", "CREATE", TOKEN_KEYS),
    "replace token keys": write("secrets", "UPDATE", changed(TOKEN_KEYS, "data|keys", "bmV3"), TOKEN_KEYS),
    "create the Lease": write("coordination.k8s.io/leases", "CREATE", LEASE),
    "claim a namespace": write(
        "coordination.k8s.io/leases", "CREATE", changed(LEASE, "metadata|name", "azureml-fe-release"), namespace=MODELS
    ),
    "create a ConfigMap": write("configmaps", "CREATE", CONFIG_MAP),
    "change a ConfigMap": write("configmaps", "UPDATE", changed(CONFIG_MAP, "data|iris", None), CONFIG_MAP),
    "renew the Lease": write("coordination.k8s.io/leases", "UPDATE", LEASE, LEASE),
    "post an Event": write("events", "CREATE", EVENT),
    "repeat an Event": write("events", "UPDATE", changed(EVENT, "lastTimestamp", "2026-01-01T00:05:00Z"), EVENT),
    "roll the own Deployment": write("apps/deployments", "UPDATE", RESIZED_DEPLOYMENT, DEPLOYMENT),
}  # fmt: skip

# What it does not write.


def _each(resource: str, before: Object, now: Object, changes: Mapping[str, object]) -> dict[str, Write]:
    """Return an update for each change, in addition to the changes that are allowed."""
    return {
        f"{path} to {value}": write(resource, "UPDATE", changed(now, path, value), before)
        for path, value in changes.items()
    }


_SECRETS, _LEASES, _DEPLOYMENTS = "secrets", "coordination.k8s.io/leases", "apps/deployments"
_ACCOUNT_TOKEN = "kubernetes.io/service-account-token"
_MARKED = {DELETION_COST_ANNOTATION: "1"}
_CONTAINERS = ROUTER_POD["spec"]["containers"]

FORBIDDEN: dict[str, dict[str, Write]] = {
    "deletes nothing": {
        "a pod": write("pods", "DELETE", None, POD),
        "keys": write(_SECRETS, "DELETE", None, KEYS),
    },
    "nothing in pods but": {
        "creation": write("pods", "CREATE", POD),
        "a pod that is no model": write(
            "pods", "UPDATE", changed(ROUTER_POD, "metadata|annotations", _MARKED), ROUTER_POD
        ),
        "a pod with another value of the label": write(
            "pods", "UPDATE", *(changed(each, "metadata|labels|isazuremlapp", "no") for each in (DRAINED_POD, POD))
        ),
        "a pod that becomes a model": write("pods", "UPDATE", POD, changed(POD, "metadata|labels|isazuremlapp", "no")),
        **_each("pods", POD, DRAINED_POD, {
            "metadata|labels|azuremlappname": "other",
            "metadata|labels": None,
            "metadata|annotations|team": "b",
            "metadata|annotations|other": "1",
            "metadata|annotations": _MARKED,
            "metadata|ownerReferences": None,
            "metadata|finalizers": ["example.com/keep"],
            "spec|containers|0|image": "evil:1",
            "spec|activeDeadlineSeconds": 1,
        }),
    },
    "its own pods only": {
        "a model": write("pods/resize", "UPDATE", POD, POD),
        "another namespace": write("pods/resize", "UPDATE", RESIZED_POD, ROUTER_POD, namespace=MODELS),
        "a model in the own namespace": write("pods/resize", "UPDATE", POD, POD, namespace=OWN),
        "no labels": write("pods/resize", "UPDATE", ROUTER_POD, changed(ROUTER_POD, "metadata|labels", None)),
    },
    "Opaque Secrets only": {
        "a token of another account": write(_SECRETS, "CREATE", changed(KEYS, "type", _ACCOUNT_TOKEN)),
        "such a token as token keys": write(_SECRETS, "CREATE", changed(TOKEN_KEYS, "type", _ACCOUNT_TOKEN)),
        "no labels": write(_SECRETS, "CREATE", changed(KEYS, "metadata|labels", None)),
        "no service": write(_SECRETS, "CREATE", changed(KEYS, "metadata|labels|azuremlappname", None)),
        "another value of the label": write(_SECRETS, "CREATE", changed(KEYS, "metadata|labels|isazuremlapp", "false")),
        "other data": write(_SECRETS, "CREATE", changed(KEYS, "data|tls.key", "eA==")),
        "an update of keys": write(_SECRETS, "UPDATE", KEYS, KEYS),
        "token keys elsewhere": write(_SECRETS, "CREATE", TOKEN_KEYS, namespace=MODELS),
        "another Secret": write(_SECRETS, "UPDATE", *[changed(TOKEN_KEYS, "metadata|name", "azureml-fe-peers")] * 2),
    },
    "own Events only": {
        "a forged one": write("events", "CREATE", changed(EVENT, "reportingComponent", "kubelet")),
        "an anonymous one": write("events", "CREATE", changed(EVENT, "reportingComponent", None)),
        "one of others": write("events", "UPDATE", EVENT, changed(EVENT, "reportingComponent", "kubelet")),
    },
    "ConfigMaps of its own names": {
        "the settings": write("configmaps", "UPDATE", *[changed(CONFIG_MAP, "metadata|name", "azuremlfeconfig")] * 2),
        "another namespace": write("configmaps", "CREATE", CONFIG_MAP, namespace="kube-system"),
        "another release": write("configmaps", "CREATE", changed(CONFIG_MAP, "metadata|name", "azureml-fe-2-names")),
    },
    "own Lease and the claims": {
        "another name": write(_LEASES, "CREATE", changed(LEASE, "metadata|name", "scheduler")),
        "another namespace": write(_LEASES, "UPDATE", LEASE, LEASE, namespace="kube-system"),
    },
    "own Deployment but": {
        "creation": write(_DEPLOYMENTS, "CREATE", DEPLOYMENT),
        "a model": write(_DEPLOYMENTS, "UPDATE", *[changed(DEPLOYMENT, "metadata|name", "iris")] * 2),
        "another namespace": write(_DEPLOYMENTS, "UPDATE", RESIZED_DEPLOYMENT, DEPLOYMENT, namespace=MODELS),
        **_each(_DEPLOYMENTS, DEPLOYMENT, RESIZED_DEPLOYMENT, {
            "metadata|labels|azuremlappname": "other",
            "metadata|annotations": {"a": "b"},
            "metadata|finalizers": ["example.com/keep"],
            "spec|paused": True,
            "spec|replicas": 9,
            f"{TEMPLATE_ANNOTATIONS}|checksum/config": "2",
            f"{TEMPLATE_ANNOTATIONS}|kubectl.kubernetes.io/restartedAt": "2026-01-01T00:00:00Z",
            TEMPLATE_ANNOTATIONS: {CPU_LIMIT_ANNOTATION: "4"},
            "spec|template|metadata|labels|azuremlappname": "other",
            "spec|template|spec|hostNetwork": True,
            "spec|template|spec|serviceAccountName": "admin",
            "spec|template|spec|volumes": None,
            "spec|template|spec|initContainers": [{"name": "init", "image": "evil:1"}],
            f"{CONTAINER}|image": "evil:1",
            f"{CONTAINER}|name": "other",
            f"{CONTAINER}|securityContext": {"privileged": True},
        }),
        "no security context": write(
            _DEPLOYMENTS, "UPDATE", DEPLOYMENT,
            changed(DEPLOYMENT, f"{CONTAINER}|securityContext", {"runAsNonRoot": True}),
        ),
        "no container": write(_DEPLOYMENTS, "UPDATE", changed(DEPLOYMENT, TEMPLATE_CONTAINERS, []), DEPLOYMENT),
        "two": write(_DEPLOYMENTS, "UPDATE", changed(DEPLOYMENT, TEMPLATE_CONTAINERS, _CONTAINERS * 2), DEPLOYMENT),
    },
}  # fmt: skip
"""The writes that each validation denies, by a part of its message."""
_FORBIDDEN = [
    pytest.param(attempt, message, id=f"{message}: {name}")
    for message, attempts in FORBIDDEN.items()
    for name, attempt in attempts.items()
]


@pytest.mark.parametrize("name", ALLOWED)
def test_write_of_the_router_is_allowed(name: str) -> None:
    assert denied(ALLOWED[name]) == []


@pytest.mark.parametrize(("attempt", "message"), _FORBIDDEN)
def test_other_write_is_denied_with_the_reason(attempt: Write, message: str) -> None:
    assert any(message in each for each in denied(attempt))


@pytest.mark.parametrize(
    "user", ["admin", "system:serviceaccount:azureml:default", "system:serviceaccount:b:azureml-fe"]
)
def test_other_accounts_are_not_limited(user: str) -> None:
    for attempts in FORBIDDEN.values():
        for attempt in attempts.values():
            assert denied(dataclasses.replace(attempt, user=user)) == []


def test_each_validation_denies_some_write() -> None:
    attempts = [attempt for group in FORBIDDEN.values() for attempt in group.values()]
    validations = {message_of(each) for each in POLICY["spec"]["validations"]}
    assert {message for attempt in attempts for message in denied(attempt)} == validations
    assert len(attempts) > len(validations) + len(POLICY["spec"]["variables"])


def test_denied_writes_are_forbidden_not_invalid() -> None:
    """The router treats 422 as a changed object, and 403 as a missing permission."""
    assert {each["reason"] for each in POLICY["spec"]["validations"]} == {"Forbidden"}


_UNLIMITED = {("apps", "deployments/scale")}
"""The policy cannot recognize the Deployments of models: a Scale has no labels."""


def test_each_permission_to_write_is_limited_and_has_an_allowed_case() -> None:
    operations = {"create": "CREATE", "update": "UPDATE", "patch": "UPDATE", "delete": "DELETE"}
    permitted = {
        (rule.group, rule.resource, operations[verb])
        for rule in (*ACCESS_RULES, *SELF_SCALING_ACCESS_RULES)
        for verb in rule.verbs
        if verb in operations and (rule.group, rule.resource) not in _UNLIMITED
    }
    allowed = {
        (each.group, f"{each.resource}/{each.subresource}".rstrip("/"), each.operation) for each in ALLOWED.values()
    }
    assert permitted <= allowed
    limited = {
        (group, resource, operation)
        for rule in POLICY["spec"]["matchConstraints"]["resourceRules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for operation in rule["operations"]
    }
    assert permitted <= limited


def test_router_without_key_generation_creates_its_token_keys_only() -> None:
    policy = policy_of(generateKeys=False)
    assert denied(ALLOWED["create keys"], policy)
    assert denied(ALLOWED["create token keys"], policy) == []


def test_policy_of_another_release_has_its_names() -> None:
    policy = policy_of(fullnameOverride="scoring")
    own = f"system:serviceaccount:{OWN}:scoring"

    def renamed(name: str) -> Write:
        return write("secrets", "CREATE", changed(TOKEN_KEYS, "metadata|name", name), user=own)

    assert denied(renamed("scoring-token-keys"), policy) == []
    assert denied(renamed("azureml-fe-token-keys"), policy)
    assert denied(renamed("azureml-fe-token-keys")) == []  # the policy of the first release does not apply


def test_policy_can_be_omitted() -> None:
    values = smallest(admissionPolicy={"enabled": False})
    assert not [each for each in manifests(values) if "Admission" in each["kind"]]
