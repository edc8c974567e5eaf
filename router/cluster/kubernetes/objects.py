"""The fields of Kubernetes objects that the router uses, and nothing else of them. No I/O.

An object of the API server takes tens of kilobytes once parsed; ten thousand pods must not. So each is reduced at once,
and texts that many pods share (labels, names of owners) are kept once. Readers take what is missing or of another type
for absent: what stands in a cluster was written by others.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

ANNOTATION_PREFIX = "azureml-fe/"
DELETION_COST = "controller.kubernetes.io/pod-deletion-cost"
MODEL_SELECTOR = "isazuremlapp=true"
SERVICE_LABEL = "azuremlappname"
ROUTER_NAME = "azureml-fe"
_HASH_LABEL = "pod-template-hash"
_KEY = re.compile(r"[\x21-\x7e]{1,256}", re.ASCII)

Labels = tuple[tuple[str, str], ...]
Name = tuple[str, str]
"""Namespace and name."""


class Thing(Protocol):
    """What all of them have."""

    @property
    def namespace(self) -> str:
        """Where it is."""

    @property
    def name(self) -> str:
        """Unique in its namespace, among its kind."""


@dataclass(frozen=True, slots=True)
class Requirement:
    """One of the `matchExpressions` of a selector."""

    label: str
    operator: str
    values: tuple[str, ...]

    def accepts(self, labels: Mapping[str, str]) -> bool:
        """Whether labels are as required."""
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
    """A version of a model. `replicas_by` is the field manager that has written `replicas` last, as far as is told."""

    namespace: str
    name: str
    uid: str
    resource_version: str
    created: str
    deleting: bool
    service: str
    annotations: Labels
    """The router's own, without their prefix."""
    replicas: int
    replicas_by: str
    labels: Labels
    """Which its pods must have."""
    requirements: tuple[Requirement, ...]
    failure: str = ""
    """Why Kubernetes cannot make the pods that there should be, such as a quota that is used up."""

    def selects(self, labels: Labels) -> bool:
        """Whether a pod of these labels is its own."""
        if not self.labels and not self.requirements:
            return False
        has = dict(labels)
        return all(has.get(label) == value for label, value in self.labels) and all(
            requirement.accepts(has) for requirement in self.requirements
        )


@dataclass(frozen=True, slots=True)
class Pod:
    """A replica, or a router. `owner` is the name of the controller that has made it, `ip` "" while it has none."""

    namespace: str
    name: str
    uid: str
    service: str
    labels: Labels
    owner: str
    ip: str
    ready: bool
    ended: bool
    deleting: bool
    deletion_cost: str | None

    @property
    def deployment(self) -> str:
        """The Deployment whose ReplicaSet made it; "" if that cannot be told."""
        suffix = "-" + dict(self.labels).get(_HASH_LABEL, "")
        return self.owner.removesuffix(suffix) if len(suffix) > 1 and self.owner.endswith(suffix) else ""


@dataclass(frozen=True, slots=True)
class Secret:
    """The keys of a service; None where there is none, or one that no client could send."""

    namespace: str
    name: str
    primary_key: str | None = field(repr=False)
    secondary_key: str | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class Hpa:
    """A HorizontalPodAutoscaler. `deployment` is what it scales, "" if that is no Deployment."""

    namespace: str
    name: str
    deployment: str
    managed_by: str
    """What has made it: `ScaledObject iris` of KEDA, or ""."""


@dataclass(frozen=True, slots=True)
class Lease:
    """Who leads. Times that it tells are those of other clocks and not kept."""

    namespace: str
    name: str
    resource_version: str
    holder: str
    duration_seconds: int
    transitions: int
    renewed: str
    """Another text after each renewal."""


T = TypeVar("T", bound=Thing)


@dataclass(frozen=True, slots=True)
class Resource(Generic[T]):
    """What a reflector follows. `group` is its path without the namespace, such as `/apis/apps/v1`."""

    group: str
    plural: str
    read: Callable[[Mapping[str, Any]], T]
    label_selector: str = ""
    field_selector: str = ""

    def path(self, namespace: str) -> str:
        """In one namespace, or in all of them where `namespace` is empty."""
        return f"{self.group}/namespaces/{namespace}/{self.plural}" if namespace else f"{self.group}/{self.plural}"


def deployment(raw: Mapping[str, Any]) -> Deployment:
    """From what the server sends."""
    metadata, spec = _mapping(raw, "metadata"), _mapping(raw, "spec")
    selector = _mapping(spec, "selector")
    replicas = spec.get("replicas", 1)
    annotations = _mapping(metadata, "annotations")
    return Deployment(
        namespace=_text(metadata, "namespace"),
        name=_text(metadata, "name"),
        uid=_text(metadata, "uid"),
        resource_version=_text(metadata, "resourceVersion"),
        created=_text(metadata, "creationTimestamp"),
        deleting="deletionTimestamp" in metadata,
        service=_text(_mapping(metadata, "labels"), SERVICE_LABEL),
        annotations=tuple(
            sorted(
                (name.removeprefix(ANNOTATION_PREFIX), str(value))
                for name, value in annotations.items()
                if name.startswith(ANNOTATION_PREFIX)
            )
        ),
        replicas=replicas if isinstance(replicas, int) else 1,
        replicas_by=_writer_of_replicas(metadata),
        labels=_labels(_mapping(selector, "matchLabels")),
        requirements=tuple(
            Requirement(_text(each, "key"), _text(each, "operator"), tuple(map(str, each.get("values") or ())))
            for each in selector.get("matchExpressions") or ()
        ),
        failure=next(
            (
                _text(each, "message")
                for each in _mapping(raw, "status").get("conditions") or ()
                if each.get("type") == "ReplicaFailure" and each.get("status") == "True"
            ),
            "",
        ),
    )


def _writer_of_replicas(metadata: Mapping[str, Any]) -> str:
    """The manager whose managed fields hold `spec.replicas`; of several the one that wrote last."""
    entries = [
        (str(entry.get("time", "")), str(entry.get("manager", "")))
        for entry in metadata.get("managedFields") or ()
        if "f:replicas" in _mapping(_mapping(entry, "fieldsV1"), "f:spec")
    ]
    return max(entries)[1] if entries else ""


class PodReader:
    """Reads pods, and keeps once what many of them share."""

    def __init__(self) -> None:
        self._labels: dict[Labels, Labels] = {}
        self._texts: dict[str, str] = {}

    def __call__(self, raw: Mapping[str, Any]) -> Pod:
        """From what the server sends."""
        metadata, status = _mapping(raw, "metadata"), _mapping(raw, "status")
        labels = _mapping(metadata, "labels")
        owners = [each for each in metadata.get("ownerReferences") or () if each.get("controller")]
        cost = _mapping(metadata, "annotations").get(DELETION_COST)
        return Pod(
            namespace=self._shared(_text(metadata, "namespace")),
            name=_text(metadata, "name"),
            uid=_text(metadata, "uid"),
            service=self._shared(_text(labels, SERVICE_LABEL)),
            labels=self._shared_labels(_labels(labels)),
            owner=self._shared(_text(owners[0], "name")) if owners else "",
            ip=_text(status, "podIP"),
            ready=any(
                each.get("type") == "Ready" and each.get("status") == "True" for each in status.get("conditions") or ()
            ),
            ended=status.get("phase") in ("Succeeded", "Failed"),
            deleting="deletionTimestamp" in metadata,
            deletion_cost=None if cost is None else str(cost),
        )

    def _shared(self, text: str) -> str:
        return self._texts.setdefault(text, text)

    def _shared_labels(self, labels: Labels) -> Labels:
        if len(self._labels) > 100_000:  # pods with labels of their own each: then there is nothing to share
            self._labels.clear()
            self._texts.clear()
        return self._labels.setdefault(labels, labels)


def secret(raw: Mapping[str, Any]) -> Secret:
    """From what the server sends."""
    metadata, data = _mapping(raw, "metadata"), _mapping(raw, "data")
    return Secret(
        namespace=_text(metadata, "namespace"),
        name=_text(metadata, "name"),
        primary_key=_key(data.get("primaryKey")),
        secondary_key=_key(data.get("secondaryKey")),
    )


def _key(encoded: object) -> str | None:
    """A key as a client can send it. A line end at its end is what editors and `echo` put there."""
    if not isinstance(encoded, str):
        return None
    try:
        text = base64.b64decode(encoded, validate=True).decode().rstrip("\r\n")
    except (binascii.Error, UnicodeDecodeError):
        return None
    return text if _KEY.fullmatch(text) else None


def hpa(raw: Mapping[str, Any]) -> Hpa:
    """From what the server sends."""
    metadata = _mapping(raw, "metadata")
    target = _mapping(_mapping(raw, "spec"), "scaleTargetRef")
    owner: Mapping[str, Any] = next(iter(metadata.get("ownerReferences") or ()), {})
    return Hpa(
        namespace=_text(metadata, "namespace"),
        name=_text(metadata, "name"),
        deployment=_text(target, "name") if target.get("kind") == "Deployment" else "",
        managed_by=f"{_text(owner, 'kind')} {_text(owner, 'name')}" if owner else "",
    )


def lease(raw: Mapping[str, Any]) -> Lease:
    """From what the server sends."""
    metadata, spec = _mapping(raw, "metadata"), _mapping(raw, "spec")
    return Lease(
        namespace=_text(metadata, "namespace"),
        name=_text(metadata, "name"),
        resource_version=_text(metadata, "resourceVersion"),
        holder=_text(spec, "holderIdentity"),
        duration_seconds=int(spec.get("leaseDurationSeconds") or 0),
        transitions=int(spec.get("leaseTransitions") or 0),
        renewed=_text(spec, "renewTime"),
    )


DEPLOYMENTS = Resource("/apis/apps/v1", "deployments", deployment, MODEL_SELECTOR)
SECRETS = Resource("/api/v1", "secrets", secret, MODEL_SELECTOR)
HPAS = Resource("/apis/autoscaling/v2", "horizontalpodautoscalers", hpa)


def model_pods() -> Resource[Pod]:
    """Replicas."""
    return Resource("/api/v1", "pods", PodReader(), MODEL_SELECTOR)


def router_pods() -> Resource[Pod]:
    """Routers."""
    return Resource("/api/v1", "pods", PodReader(), f"{SERVICE_LABEL}={ROUTER_NAME}")


def leases(name: str) -> Resource[Lease]:
    """The one Lease of this name."""
    return Resource("/apis/coordination.k8s.io/v1", "leases", lease, field_selector=f"metadata.name={name}")


def _mapping(raw: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = raw.get(name)
    return value if isinstance(value, dict) else {}


def _text(raw: Mapping[str, Any], name: str) -> str:
    value = raw.get(name)
    return value if isinstance(value, str) else ""


def _labels(raw: Mapping[str, Any]) -> Labels:
    return tuple(sorted((name, str(value)) for name, value in raw.items()))
