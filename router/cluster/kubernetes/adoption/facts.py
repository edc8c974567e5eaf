"""What a cluster has that concerns adoption: the services of Azure ML, and routers that are not releases of this one.

Azure ML labels the Deployments and pods of its models `isazuremlapp=true` and `azuremlappname`. For web services of
its first SDK (v1), the latter is the name of the service, and the namespace is `azureml-` and the name of the
workspace. For online endpoints of its second SDK (v2), each Deployment has another one, and the labels
`ml.azure.com/endpoint-name` and `ml.azure.com/deployment-name` name endpoint and deployment. The pods of its router
are labelled `azuremlappname=azureml-fe`. docs/migrate.md says which of this is documented. No I/O.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from router.cluster.kubernetes.adoption.record import RECORD_ANNOTATION
from router.cluster.kubernetes.name_claims import Claim
from router.cluster.kubernetes.objects import (
    ANNOTATION_PREFIX,
    MODEL_LABEL,
    SERVICE_LABEL,
    Deployment,
    Hpa,
    NamespacedName,
    Pod,
    Secret,
    name_of,
)
from router.cluster.kubernetes.parsing import PodParser, RawObject, mapping_in, parse_deployment, text_in
from router.cluster.kubernetes.resources import Resource
from router.config.kubernetes_settings import ROUTER_NAME
from router.model.services import DEFAULT_VERSION_NAME

ENDPOINT_LABEL = "ml.azure.com/endpoint-name"
DEPLOYMENT_LABEL = "ml.azure.com/deployment-name"
_AZURE_PREFIXES = ("ml.azure.com/", "azuremlappversion")
_CHART_LABEL = "helm.sh/chart"
_CHART_PREFIX = "azureml-fe-"


class Stage(StrEnum):
    """How far the adoption of a service is."""

    NOT_ADOPTED = "not adopted"
    """It is only listed."""
    ANNOTATED = "annotated"
    """It is not adopted, but has annotations of this router: somebody has deployed it for this router."""
    OBSERVED = "observed"
    IN_CHARGE = "in charge"


@dataclass(frozen=True, slots=True)
class ModelDeployment:
    """A Deployment of a model, with the facts that only adoption uses."""

    deployment: Deployment
    endpoint: str = ""
    """The endpoint of Azure ML's second SDK; "" for a web service of the first one."""
    endpoint_version: str = ""
    ports: tuple[int, ...] = ()
    """The ports that its containers declare."""
    record: str = ""
    """The record of its adoption; "" if it is not adopted."""

    @property
    def namespace(self) -> str:
        return self.deployment.namespace

    @property
    def name(self) -> str:
        return self.deployment.name

    @property
    def service(self) -> str:
        """The service that it belongs to, or will belong to."""
        is_annotated = self.deployment.service != self.deployment.app
        return self.deployment.service if is_annotated or not self.endpoint else self.endpoint

    @property
    def annotations(self) -> dict[str, str]:
        """The annotations of this router, by their complete names."""
        return {ANNOTATION_PREFIX + name: value for name, value in self.deployment.annotations}


def parse_model_deployment(raw: RawObject) -> ModelDeployment:
    """Parse a Deployment."""
    metadata = mapping_in(raw, "metadata")
    labels = mapping_in(metadata, "labels")
    pod = mapping_in(mapping_in(mapping_in(raw, "spec"), "template"), "spec")
    ports = (port.get("containerPort") for each in pod.get("containers") or () for port in each.get("ports") or ())
    return ModelDeployment(
        deployment=parse_deployment(raw),
        endpoint=text_in(labels, ENDPOINT_LABEL),
        endpoint_version=text_in(labels, DEPLOYMENT_LABEL),
        ports=tuple(sorted({port for port in ports if isinstance(port, int)})),
        record=text_in(mapping_in(metadata, "annotations"), RECORD_ANNOTATION),
    )


MODEL_DEPLOYMENTS = Resource("/apis/apps/v1", "deployments", parse_model_deployment, f"{MODEL_LABEL}=true")


@dataclass(frozen=True, slots=True)
class AdoptableService:
    """A service, and its Deployments, the oldest first."""

    namespace: str
    name: str
    members: tuple[ModelDeployment, ...]

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"

    @property
    def sdk(self) -> str:
        """The SDK of Azure ML that has made it: v1 or v2."""
        return "v2" if any(member.endpoint for member in self.members) else "v1"

    @property
    def stage(self) -> Stage:
        """How far its adoption is. The oldest Deployment with a mode decides, as in `service_assembler`."""
        if not any(member.record for member in self.members):
            is_annotated = any(member.deployment.annotations for member in self.members)
            return Stage.ANNOTATED if is_annotated else Stage.NOT_ADOPTED
        modes = (dict(member.deployment.annotations).get("mode") for member in self.members)
        mode = next((mode for mode in modes if mode is not None), "observe")
        return Stage.IN_CHARGE if mode == "normal" else Stage.OBSERVED

    def versions(self) -> dict[NamespacedName, str]:
        """Return the name of the version of each Deployment.

        It is its annotation, or the name of its deployment in Azure ML, or the name of the Deployment if there are
        several.
        """
        fallback = len(self.members) > 1
        return {
            name_of(member): dict(member.deployment.annotations).get("version")
            or member.endpoint_version
            or (member.name if fallback else DEFAULT_VERSION_NAME)
            for member in self.members
        }


def group_services(found: Iterable[ModelDeployment]) -> tuple[AdoptableService, ...]:
    """Return the services of these Deployments, by namespace and name."""
    by_service: dict[tuple[str, str], list[ModelDeployment]] = {}
    for each in found:
        if not each.deployment.deleting:
            by_service.setdefault((each.namespace, each.service), []).append(each)
    return tuple(
        AdoptableService(namespace, name, tuple(sorted(members, key=_age)))
        for (namespace, name), members in sorted(by_service.items())
    )


def _age(member: ModelDeployment) -> tuple[str, str]:
    return member.deployment.created_at, member.name


class OtherRouter(NamedTuple):
    """A router that is not a release of this one, probably Azure ML's own. `name` is that of its Deployment."""

    namespace: str
    name: str
    pods: int
    labels: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        labels = ", ".join(f"{name}={value}" for name, value in self.labels)
        pods = "1 pod" if self.pods == 1 else f"{self.pods} pods"
        return f"Deployment {self.namespace}/{self.name} ({pods}, labels {labels})"


ROUTER_PODS = Resource("/api/v1", "pods", PodParser(), f"{SERVICE_LABEL}={ROUTER_NAME}")
"""The pods of Azure ML's router, and those of releases of this one with the default name."""
_SHOWN_LABELS = (SERVICE_LABEL, "azuremlappversion", "ml.azure.com/infra-app", "ml.azure.com/amlarc-system")


def other_routers(pods: Iterable[Pod], own: Iterable[NamespacedName]) -> tuple[OtherRouter, ...]:
    """Return the routers among these pods, without those of this router's chart and without the releases `own`."""
    own_namespaces = {release.namespace for release in own if release.name == ROUTER_NAME}
    found: dict[NamespacedName, list[Pod]] = {}
    for pod in pods:
        is_of_azure = any(name.startswith(_AZURE_PREFIXES) for name, _ in pod.labels)
        is_own = dict(pod.labels).get(_CHART_LABEL, "").startswith(_CHART_PREFIX) or (
            pod.namespace in own_namespaces and not is_of_azure
        )
        if not is_own and not pod.terminated and not pod.deleting:
            found.setdefault(NamespacedName(pod.namespace, pod.deployment or pod.controller or pod.name), []).append(
                pod
            )
    return tuple(
        OtherRouter(*name, len(those), tuple(each for each in those[0].labels if each[0] in _SHOWN_LABELS))
        for name, those in sorted(found.items())
    )


@dataclass(frozen=True, slots=True)
class ClusterFacts:
    """The facts about one cluster."""

    services: tuple[AdoptableService, ...]
    secrets: Mapping[NamespacedName, Secret] = field(default_factory=dict)
    hpas: Mapping[NamespacedName, Hpa] = field(default_factory=dict)
    """By the Deployment that they scale."""
    claims: Mapping[str, Claim] = field(default_factory=dict)
    """The claims on names of the router."""
    holders: Mapping[str, str] = field(default_factory=dict)
    """The release that serves a namespace, by namespace."""
    other_routers: tuple[OtherRouter, ...] = ()
