"""The permissions that the router needs at the API server: the verbs of each resource, and their purpose.

This is the only list of permissions. The chart's roles grant exactly these (a test compares them), and
`azureml-fe check --cluster` queries whether they are granted. The requests of this package need no others.

| scope | resource | verbs | purpose |
|---|---|---|---|
| models | apps/deployments | list, watch | the models and their settings |
| models | apps/deployments/scale | get, patch | the number of replicas; get after a conflict |
| models | pods | list, watch, patch | replicas; patch sets the `pod-deletion-cost` of drained ones |
| models | secrets | list, watch, create | keys; create only with `generate_keys` |
| models | autoscaling/horizontalpodautoscalers | list, watch | Deployments that the router must not scale |
| models | events | create, patch | Events for operators |
| models | coordination.k8s.io/leases | list, watch, create, patch | which release serves the models of a namespace |
| own | pods | list, watch | the other routers |
| own | coordination.k8s.io/leases | list, watch, create, update | leader election |
| own | secrets | get, create, update | the keys that sign tokens |
| own | configmaps | list, watch, create, patch | the claims on names, the last valid settings of models |

Self-scaling needs these as well (`SELF_SCALING_ACCESS_RULES`):

| scope | resource | verbs | purpose |
|---|---|---|---|
| own | pods/resize | patch | CPU of the router's pods |
| own | apps/deployments | get, patch | the router's Deployment; patch where `pods/resize` is not available |
| own | apps/deployments/scale | patch | the number of the router's pods |
| own | events | create, patch | Events about changes of the router's size |
| cluster | nodes, pods | list | whether a node has room for one more pod |

The user of `azureml-fe adopt` needs these (`ADOPTION_ACCESS_RULES`); the router does not:

| scope | resource | verbs | purpose |
|---|---|---|---|
| models | apps/deployments | list, patch | the services of Azure ML, and their annotations |
| models | apps/deployments/scale | patch | `--undo` restores the number of replicas |
| models | secrets | list, get, create, delete | the clients' keys; `--undo` deletes only what an adoption has created |
| models | autoscaling/horizontalpodautoscalers | list | Deployments that another autoscaler scales |
| models | coordination.k8s.io/leases | list | which release serves the models of a namespace |
| own | configmaps | list | the claims on names; without it, names of other namespaces are not known |
| cluster | pods | list | Azure ML's router; without it, only in namespaces whose pods may be listed |

The scope `models` is the setting `namespaces`, which is all namespaces if it is empty. `own` is the router's namespace.
`cluster` is the whole cluster.
"""

from dataclasses import dataclass
from typing import Literal

from router.cluster.kubernetes.objects import named_after
from router.config.kubernetes_settings import RELEASE_CLAIM_NAME, ROUTER_NAME


@dataclass(frozen=True, slots=True)
class AccessRule:
    """Verbs on one resource in one scope."""

    scope: Literal["models", "own", "cluster"]
    group: str
    resource: str
    verbs: tuple[str, ...]
    for_key_generation: bool = False
    """True if the rule is needed only with the setting `generate_keys`."""
    name: str = ""
    """The name of the only object that the rule covers, for a router with the default name; "" for all. RBAC cannot
    restrict the verb create by name."""
    consequence: str = ""
    """What does not work without this permission."""

    def name_of(self, router: str) -> str:
        """Return the name of the only object that the rule covers for a router (`router_name`); "" for all."""
        return named_after(router, self.name) if self.name and self.scope == "own" else self.name


LEASE_NAME = ROUTER_NAME
TOKEN_KEY_SECRET_NAME = f"{ROUTER_NAME}-token-keys"
"""The Secret with the token signing keys. This name and the two below are those of a router with the default name, see
`named_after`."""
SETTINGS_CONFIG_MAP = f"{ROUTER_NAME}-settings"
"""The ConfigMap with the last valid settings of Deployments whose annotations are invalid."""
NAMES_CONFIG_MAP = f"{ROUTER_NAME}-names"
"""The ConfigMap with the claims on names of services."""

ACCESS_RULES: tuple[AccessRule, ...] = (
    AccessRule("models", "apps", "deployments", ("list", "watch")),
    AccessRule("models", "apps", "deployments/scale", ("get", "patch")),
    AccessRule("models", "", "pods", ("list", "watch", "patch")),
    AccessRule("models", "", "secrets", ("list", "watch")),
    AccessRule("models", "", "secrets", ("create",), for_key_generation=True),
    AccessRule("models", "autoscaling", "horizontalpodautoscalers", ("list", "watch")),
    AccessRule("models", "", "events", ("create", "patch")),
    AccessRule("models", "coordination.k8s.io", "leases", ("list", "watch", "patch"), name=RELEASE_CLAIM_NAME),
    AccessRule("models", "coordination.k8s.io", "leases", ("create",)),
    AccessRule("own", "", "pods", ("list", "watch")),
    AccessRule("own", "coordination.k8s.io", "leases", ("list", "watch", "update"), name=LEASE_NAME),
    AccessRule("own", "coordination.k8s.io", "leases", ("create",)),
    AccessRule("own", "", "secrets", ("get", "update"), name=TOKEN_KEY_SECRET_NAME),
    AccessRule("own", "", "secrets", ("create",)),
    AccessRule("own", "", "configmaps", ("list", "watch", "patch"), name=SETTINGS_CONFIG_MAP),
    AccessRule("own", "", "configmaps", ("list", "watch", "patch"), name=NAMES_CONFIG_MAP),
    AccessRule("own", "", "configmaps", ("create",)),
)

_CANNOT_SCALE_ITSELF = "the router cannot change its own size"
_CANNOT_FIND_ROOM = "the router cannot add pods, as it cannot check whether a node has room"

SELF_SCALING_ACCESS_RULES: tuple[AccessRule, ...] = (
    AccessRule("own", "", "pods/resize", ("patch",), consequence="the router's pods roll when their CPU changes"),
    AccessRule("own", "apps", "deployments", ("get", "patch"), name=ROUTER_NAME, consequence=_CANNOT_SCALE_ITSELF),
    AccessRule("own", "apps", "deployments/scale", ("patch",), name=ROUTER_NAME, consequence=_CANNOT_SCALE_ITSELF),
    AccessRule(
        "own", "", "events", ("create", "patch"),
        consequence="the router's Deployment has no Events about its size",
    ),
    AccessRule("cluster", "", "nodes", ("list",), consequence=_CANNOT_FIND_ROOM),
    AccessRule("cluster", "", "pods", ("list",), consequence=_CANNOT_FIND_ROOM),
)  # fmt: skip

ADOPTION_ACCESS_RULES: tuple[AccessRule, ...] = (
    AccessRule("models", "apps", "deployments", ("list", "patch")),
    AccessRule("models", "apps", "deployments/scale", ("patch",)),
    AccessRule("models", "", "secrets", ("list", "get", "create", "delete")),
    AccessRule("models", "autoscaling", "horizontalpodautoscalers", ("list",)),
    AccessRule("models", "coordination.k8s.io", "leases", ("list",), name=RELEASE_CLAIM_NAME),
    AccessRule("own", "", "configmaps", ("list",), name=NAMES_CONFIG_MAP),
    AccessRule("cluster", "", "pods", ("list",)),
)
"""Permissions of a user who adopts services. The chart grants them to nobody."""
