"""The fields of Kubernetes objects that the router uses, as small immutable records. No I/O.

A complete object takes tens of kilobytes of memory, too much for ten thousand pods. So `parsing` reduces each object to
one of these records as soon as it arrives.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from router.config.kubernetes_settings import ROUTER_NAME

ANNOTATION_PREFIX = "azureml-fe/"
WAITING_RELEASES_ANNOTATION = "azureml-fe/waiting-releases"
DELETION_COST_ANNOTATION = "controller.kubernetes.io/pod-deletion-cost"
MODEL_LABEL = "isazuremlapp"
"""The router considers only objects with this label and the value `true`."""
SERVICE_LABEL = "azuremlappname"
SERVICE_ANNOTATION = f"{ANNOTATION_PREFIX}service"
"""The name of a Deployment's service, if the label has another one."""
_TEMPLATE_HASH_LABEL = "pod-template-hash"

Labels = tuple[tuple[str, str], ...]


class NamespacedName(NamedTuple):
    """Identifies an object among those of its kind."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


def named_after(router: str, name: str) -> str:
    """Return the name of an object of the router `router` (`router_name`). `name` is that of the default router."""
    return router + name.removeprefix(ROUTER_NAME)


class ApiObject(Protocol):
    """The fields that all records have."""

    @property
    def namespace(self) -> str:
        """The namespace of the object."""

    @property
    def name(self) -> str:
        """The name of the object, unique in its namespace among objects of its kind."""


def name_of(api_object: ApiObject) -> NamespacedName:
    """Return namespace and name of an object."""
    return NamespacedName(api_object.namespace, api_object.name)


@dataclass(frozen=True, slots=True)
class LabelRequirement:
    """One of the `matchExpressions` of a label selector."""

    label: str
    operator: str
    values: tuple[str, ...]

    def matches(self, labels: Mapping[str, str]) -> bool:
        """True if `labels` meet the requirement. An unknown operator matches nothing."""
        match self.operator:
            case "In":
                return labels.get(self.label) in self.values
            case "NotIn":
                return labels.get(self.label) not in self.values
            case "Exists":
                return self.label in labels
            case "DoesNotExist":
                return self.label not in labels
        return False


@dataclass(frozen=True, slots=True)
class Deployment:
    """A Deployment of a model: one version of a service."""

    namespace: str
    name: str
    uid: str
    resource_version: str
    created_at: str
    deleting: bool
    service: str
    app: str
    """The label `azuremlappname`, which its pods have, too. It is the name of the service unless an annotation has
    another one."""
    annotations: Labels
    """The annotations with `ANNOTATION_PREFIX`, without the prefix."""
    replicas: int
    replicas_manager: str
    """The field manager that wrote `replicas` last; "" if the API server does not report it."""
    match_labels: Labels
    match_expressions: tuple[LabelRequirement, ...]
    replica_failure: str = ""
    """Why Kubernetes cannot create pods, for example an exhausted quota."""
    grace_seconds: int = 30
    """`terminationGracePeriodSeconds` of the pod template."""

    def selects(self, labels: Labels) -> bool:
        """True if the selector matches a pod with these labels."""
        if not self.match_labels and not self.match_expressions:
            return False
        by_name = dict(labels)
        return all(by_name.get(label) == value for label, value in self.match_labels) and all(
            requirement.matches(by_name) for requirement in self.match_expressions
        )


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod of a model or of the router."""

    namespace: str
    name: str
    uid: str
    app: str
    """The label `azuremlappname`."""
    labels: Labels
    controller: str
    """The name of the object that created the pod, usually a ReplicaSet."""
    ip: str
    """"" until one is assigned."""
    ready: bool
    terminated: bool
    deleting: bool
    deletion_cost: str | None
    start_failure: str = ""
    """Why a container cannot start, for example "CrashLoopBackOff (exit code 1)"; "" if all can."""

    @property
    def deployment(self) -> str:
        """The Deployment whose ReplicaSet created the pod; "" if the names do not show it."""
        suffix = "-" + dict(self.labels).get(_TEMPLATE_HASH_LABEL, "")
        if len(suffix) > 1 and self.controller.endswith(suffix):
            return self.controller.removesuffix(suffix)
        return ""


@dataclass(frozen=True, slots=True)
class Secret:
    """The keys of a service. A key is None if it is missing, or if no client could send it in a header."""

    namespace: str
    name: str
    primary_key: str | None = field(repr=False)
    secondary_key: str | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class ConfigMap:
    """A ConfigMap of the router."""

    namespace: str
    name: str
    resource_version: str
    data: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Hpa:
    """A HorizontalPodAutoscaler."""

    namespace: str
    name: str
    target_deployment: str
    """The Deployment that the autoscaler scales; "" if it scales another kind of object."""
    owner: str
    """Kind and name of the object that created the autoscaler, for example KEDA's `ScaledObject iris`; or ""."""

    def __str__(self) -> str:
        return f"HorizontalPodAutoscaler {self.name}" + (f" (of {self.owner})" if self.owner else "")


@dataclass(frozen=True, slots=True)
class Lease:
    """The Lease of the leader. Its times come from the clocks of other routers, so they are not compared with times of
    this one."""

    namespace: str
    name: str
    resource_version: str
    holder: str
    duration_seconds: int
    transitions: int
    renew_time: str
    """Compared for equality only: each renewal changes it."""


@dataclass(frozen=True, slots=True)
class ReleaseClaim:
    """The Lease by which a release of the router claims the models of a namespace, see `release_claims`."""

    namespace: str
    name: str
    resource_version: str
    holder: str
    """The release; "" if it was released."""
    waiting: tuple[tuple[str, str], ...]
    """The other releases that are configured for the models, each with the time of its last renewal."""
