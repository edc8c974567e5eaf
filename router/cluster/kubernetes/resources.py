"""The resources that the router lists and watches, each with its path, selector and parser."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from router.cluster.kubernetes.objects import MODEL_LABEL, SERVICE_LABEL, ApiObject, ConfigMap, Lease, Pod
from router.cluster.kubernetes.parsing import (
    PodParser,
    RawObject,
    parse_config_map,
    parse_deployment,
    parse_hpa,
    parse_lease,
    parse_release_claim,
    parse_secret,
)
from router.config.kubernetes_settings import RELEASE_CLAIM_NAME

_MODEL_SELECTOR = f"{MODEL_LABEL}=true"

T = TypeVar("T", bound=ApiObject)


@dataclass(frozen=True, slots=True)
class Resource(Generic[T]):
    """A resource of the API server. `group` is its path without the namespace, for example `/apis/apps/v1`."""

    group: str
    plural: str
    parse: Callable[[RawObject], T]
    label_selector: str = ""
    field_selector: str = ""

    def path(self, namespace: str) -> str:
        """Return the path in one namespace, or in all namespaces if `namespace` is empty."""
        return f"{self.group}/namespaces/{namespace}/{self.plural}" if namespace else f"{self.group}/{self.plural}"


DEPLOYMENTS = Resource("/apis/apps/v1", "deployments", parse_deployment, _MODEL_SELECTOR)
SECRETS = Resource("/api/v1", "secrets", parse_secret, _MODEL_SELECTOR)
HPAS = Resource("/apis/autoscaling/v2", "horizontalpodautoscalers", parse_hpa)


def model_pods() -> Resource[Pod]:
    """Return the resource of the models' pods."""
    return Resource("/api/v1", "pods", PodParser(), _MODEL_SELECTOR)


def router_pods(router: str) -> Resource[Pod]:
    """Return the resource of the pods of a router (`router_name`)."""
    return Resource("/api/v1", "pods", PodParser(), f"{SERVICE_LABEL}={router}")


RELEASE_CLAIMS = Resource(
    "/apis/coordination.k8s.io/v1", "leases", parse_release_claim, field_selector=f"metadata.name={RELEASE_CLAIM_NAME}"
)


def lease_named(name: str) -> Resource[Lease]:
    """Return the resource of the one Lease with this name."""
    return Resource("/apis/coordination.k8s.io/v1", "leases", parse_lease, field_selector=f"metadata.name={name}")


def config_map_named(name: str) -> Resource[ConfigMap]:
    """Return the resource of the one ConfigMap with this name."""
    return Resource("/api/v1", "configmaps", parse_config_map, field_selector=f"metadata.name={name}")
