"""What the router asks of the API server: each resource with the verbs it uses, and for what.

The one list of it. The chart's role grants exactly this (a test compares them), `azureml-fe check --cluster` asks
whether it is granted, and nothing else in this package may send a request that is not covered here.

| scope | resource | verbs | for |
|---|---|---|---|
| models | apps/deployments | list, watch | the models and their settings |
| models | apps/deployments/scale | get, patch | the number of replicas; get after a conflict |
| models | pods | list, watch, patch | replicas; patch marks which one goes (`pod-deletion-cost`) |
| models | secrets | list, watch, create | keys; create only where `generate_keys` |
| models | autoscaling/horizontalpodautoscalers | list, watch | Deployments that must be left alone |
| models | events | create, patch | what operators should read |
| own | pods | list, watch | the other routers |
| own | coordination.k8s.io/leases | list, watch, create, update | who scales |
| own | secrets | get, create, update | the keys that sign tokens |

And where the router sizes itself (`SIZING_ACCESS`):

| scope | resource | verbs | for |
|---|---|---|---|
| own | pods/resize | patch | CPU of the router's pods |
| own | apps/deployments | get, patch | its own Deployment; patch where `pods/resize` is not offered |
| own | apps/deployments/scale | patch | the number of its pods |
| own | events | create, patch | what it did to its size, and why |
| cluster | nodes, pods | list | whether a node has room for one more pod |

`models` are the namespaces that are served, all of them where `namespaces` is empty; `own` is the router's namespace.
"""

from dataclasses import dataclass
from typing import Literal

from router.cluster.kubernetes.objects import ROUTER_NAME


@dataclass(frozen=True, slots=True)
class Access:
    """Verbs on one resource. `scope` is where: the namespaces of models, the router's own, or all of the cluster.
    `needs_keys`: only where missing keys are generated. `name`: only the object of this name, where the verb is not
    create, which has no name that could be granted. `lack`: what follows where it is not granted."""

    scope: Literal["models", "own", "cluster"]
    group: str
    resource: str
    verbs: tuple[str, ...]
    needs_keys: bool = False
    name: str = ""
    lack: str = ""


LEASE_NAME = "azureml-fe"
TOKEN_KEYS_NAME = "azureml-fe-token-keys"  # noqa: S105  (the name of a Secret)

ACCESS: tuple[Access, ...] = (
    Access("models", "apps", "deployments", ("list", "watch")),
    Access("models", "apps", "deployments/scale", ("get", "patch")),
    Access("models", "", "pods", ("list", "watch", "patch")),
    Access("models", "", "secrets", ("list", "watch")),
    Access("models", "", "secrets", ("create",), needs_keys=True),
    Access("models", "autoscaling", "horizontalpodautoscalers", ("list", "watch")),
    Access("models", "", "events", ("create", "patch")),
    Access("own", "", "pods", ("list", "watch")),
    Access("own", "coordination.k8s.io", "leases", ("list", "watch", "update"), name=LEASE_NAME),
    Access("own", "coordination.k8s.io", "leases", ("create",)),
    Access("own", "", "secrets", ("get", "update"), name=TOKEN_KEYS_NAME),
    Access("own", "", "secrets", ("create",)),
)

_UNSIZED = "the router cannot size itself"
_UNKNOWN_ROOM = "the router finds no room for more pods of its own"

SIZING_ACCESS: tuple[Access, ...] = (
    Access("own", "", "pods/resize", ("patch",), lack="the router's pods roll when their CPU changes"),
    Access("own", "apps", "deployments", ("get", "patch"), name=ROUTER_NAME, lack=_UNSIZED),
    Access("own", "apps", "deployments/scale", ("patch",), name=ROUTER_NAME, lack=_UNSIZED),
    Access("own", "", "events", ("create", "patch"), lack="the router's Deployment has no Events about its size"),
    Access("cluster", "", "nodes", ("list",), lack=_UNKNOWN_ROOM),
    Access("cluster", "", "pods", ("list",), lack=_UNKNOWN_ROOM),
)
"""What else it uses where it sizes itself."""
