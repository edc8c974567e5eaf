"""The table of the resources that the stand-in serves, and their names."""

from dataclasses import dataclass
from typing import Any

Object = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Resource:
    """One resource of an API group and version."""

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool = True
    subresources: tuple[str, ...] = ()
    fields: tuple[str, ...] = ()  # for field selectors, in addition to metadata.name and metadata.namespace
    virtual: bool = False  # has no stored objects
    create_by_put: bool = False
    needs_version_to_update: bool = False
    counts_generations: bool = False
    returned_when_deleted: bool = False
    keeps_status_of_creation: bool = False

    @property
    def api_version(self) -> str:
        """The `apiVersion` of its objects."""
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def qualified(self) -> str:
        """The name in messages, such as deployments.apps."""
        return f"{self.plural}.{self.group}" if self.group else self.plural

    @property
    def qualified_kind(self) -> str:
        """The kind in validation messages, such as Deployment.apps."""
        return f"{self.kind}.{self.group}" if self.group else self.kind

    @property
    def storage(self) -> str:
        """The storage of its objects. Both groups of events share one."""
        return "events" if self.plural == "events" else self.qualified

    @property
    def has_status(self) -> bool:
        """True if `status` is written only through its subresource."""
        return "status" in self.subresources


_REFERENCE_FIELDS = ("kind", "namespace", "name", "uid", "apiVersion", "resourceVersion", "fieldPath")
_EVENT_FIELDS = ("reason", "type", "reportingComponent", "source", *(f"involvedObject.{x}" for x in _REFERENCE_FIELDS))
_EVENT_FIELDS_OF_GROUP = ("reason", "type", "reportingController", *(f"regarding.{x}" for x in _REFERENCE_FIELDS))
_POD_FIELDS = ("spec.nodeName", "spec.restartPolicy", "spec.schedulerName", "spec.serviceAccountName", "status.phase")
_RBAC = "rbac.authorization.k8s.io"

RESOURCES = (
    Resource(
        "",
        "v1",
        "namespaces",
        "Namespace",
        namespaced=False,
        subresources=("status", "finalize"),
        fields=("status.phase",),
        returned_when_deleted=True,
    ),
    Resource(
        "",
        "v1",
        "nodes",
        "Node",
        namespaced=False,
        subresources=("status",),
        fields=("spec.unschedulable",),
        keeps_status_of_creation=True,
    ),
    Resource(
        "",
        "v1",
        "pods",
        "Pod",
        subresources=("status", "resize"),
        fields=(*_POD_FIELDS, "status.podIP", "status.nominatedNodeName"),
        counts_generations=True,
        returned_when_deleted=True,
    ),
    Resource("", "v1", "secrets", "Secret", fields=("type",)),
    Resource("", "v1", "configmaps", "ConfigMap"),
    Resource("", "v1", "serviceaccounts", "ServiceAccount", subresources=("token",), returned_when_deleted=True),
    Resource("", "v1", "services", "Service", subresources=("status",), returned_when_deleted=True),
    Resource("", "v1", "events", "Event", fields=_EVENT_FIELDS, create_by_put=True),
    Resource("events.k8s.io", "v1", "events", "Event", fields=_EVENT_FIELDS_OF_GROUP, create_by_put=True),
    Resource("apps", "v1", "deployments", "Deployment", subresources=("status", "scale"), counts_generations=True),
    Resource("apps", "v1", "replicasets", "ReplicaSet", subresources=("status", "scale"), counts_generations=True),
    Resource("autoscaling", "v2", "horizontalpodautoscalers", "HorizontalPodAutoscaler", subresources=("status",)),
    Resource("coordination.k8s.io", "v1", "leases", "Lease", create_by_put=True, needs_version_to_update=True),
    Resource("policy", "v1", "poddisruptionbudgets", "PodDisruptionBudget", subresources=("status",)),
    Resource("networking.k8s.io", "v1", "networkpolicies", "NetworkPolicy"),
    Resource(_RBAC, "v1", "roles", "Role"),
    Resource(_RBAC, "v1", "rolebindings", "RoleBinding"),
    Resource(_RBAC, "v1", "clusterroles", "ClusterRole", namespaced=False),
    Resource(_RBAC, "v1", "clusterrolebindings", "ClusterRoleBinding", namespaced=False),
    *(
        Resource("admissionregistration.k8s.io", "v1", plural, kind, namespaced=False)
        for plural, kind in (
            ("validatingadmissionpolicies", "ValidatingAdmissionPolicy"),
            ("validatingadmissionpolicybindings", "ValidatingAdmissionPolicyBinding"),
        )
    ),
    *(
        Resource("authorization.k8s.io", "v1", f"{kind.lower()}s", kind, namespaced=False, virtual=True)
        for kind in ("SelfSubjectAccessReview", "SubjectAccessReview")
    ),
)

_BY_NAME = {(resource.group, resource.version, resource.plural): resource for resource in RESOURCES}
_BY_STORAGE = {resource.storage: resource for resource in reversed(RESOURCES)}


def find(group: str, version: str, plural: str) -> Resource | None:
    """Return the resource of a URL path, if it exists."""
    return _BY_NAME.get((group, version, plural))


def of_storage(storage: str) -> Resource:
    """Return the resource in whose form the objects of a storage are kept."""
    return _BY_STORAGE[storage]
