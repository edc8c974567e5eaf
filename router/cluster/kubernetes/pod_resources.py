"""Parses the CPU limits and requests of the router's own Deployment and pods. No I/O.

Kubernetes' quantities become numbers: CPUs and bytes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from router.cluster.kubernetes.parsing import RawObject, mapping_in

CONTAINER = "azureml-fe"

CPU_LIMIT_ANNOTATION = "azureml-fe/cpu-limit"
"""Annotation of the pod template with the CPU limit of its container. A pod that is resized in place keeps it, so it
shows the CPUs with which the pod was created."""

_QUANTITY = re.compile(r"([0-9]+(?:\.[0-9]*)?)(?:e([0-9]+)|(n|u|m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi))?")
_UNITS = {
    "n": 1e-9, "u": 1e-6, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15,
    "Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40, "Pi": 2.0**50,
}  # fmt: skip
CPU_TOLERANCE = 1e-6
"""Numbers of CPUs that differ by less are equal."""


def parse_quantity(text: object) -> float | None:
    """Return the number that a Kubernetes quantity represents; None if `text` is no quantity."""
    match = _QUANTITY.fullmatch(str(text))
    if match is None:
        return None
    number, exponent, unit = match.groups()
    return float(number) * (10.0 ** int(exponent) if exponent else _UNITS.get(unit or "", 1.0))


def format_cpus(cpus: float) -> str:
    """Return CPUs in the API server's canonical notation. With another notation, restoring the previous size of a
    template would count as a change and start a rollout."""
    millicpus = round(cpus * 1000)
    return f"{millicpus}m" if millicpus % 1000 else str(millicpus // 1000)


def same_cpus(one: float | None, other: float | None) -> bool:
    """True if two numbers of CPUs are equal. None is not equal to any number or to None."""
    return one is not None and other is not None and abs(one - other) < CPU_TOLERANCE


@dataclass(frozen=True, slots=True)
class RouterPod:
    """One pod of the router. CPUs are None if the pod does not report them."""

    name: str
    uid: str
    container: str
    limit: float | None
    request: float | None
    allocated: float | None
    """The CPU limit that the node has applied."""
    created_limit: float | None
    """The CPU limit with which the pod was created; None if unknown."""
    resize_refusal: str
    """Why a resize is not carried out: `Deferred`, `Infeasible`, `Error`; or ""."""
    refusal_message: str
    unschedulable: str
    """Why no node has room for the pod; "" if it is scheduled."""

    @property
    def is_resized(self) -> bool:
        """True if the node has applied the pod's CPU limit."""
        return same_cpus(self.limit, self.allocated) and not self.resize_refusal


def parse_router_pods(pod_list: RawObject) -> list[RouterPod]:
    """Parse the pods of a list, without those that have terminated or are being deleted."""
    return [
        _parse_router_pod(raw)
        for raw in pod_list.get("items") or ()
        if "deletionTimestamp" not in raw["metadata"]
        and mapping_in(raw, "status").get("phase") not in ("Succeeded", "Failed")
    ]


def _parse_router_pod(raw: RawObject) -> RouterPod:
    container = router_container(mapping_in(raw, "spec"))
    status = mapping_in(raw, "status")
    conditions: dict[str, RawObject] = {str(each.get("type")): each for each in status.get("conditions") or ()}
    refusal = _resize_refusal(conditions)
    scheduled = conditions.get("PodScheduled", {})
    statuses = status.get("containerStatuses") or ()
    nothing: RawObject = {}
    own = next((each for each in statuses if each.get("name") == container.get("name")), nothing)
    return RouterPod(
        name=str(raw["metadata"]["name"]),
        uid=str(raw["metadata"].get("uid", "")),
        container=str(container.get("name", "")),
        limit=container_cpus(container, "limits"),
        request=container_cpus(container, "requests"),
        allocated=container_cpus(own, "limits"),
        created_limit=parse_quantity(_cpu_limit_annotation(raw)),
        resize_refusal=str(refusal.get("reason", "")),
        refusal_message=str(refusal.get("message", "")),
        unschedulable=str(scheduled.get("message", "")) if scheduled.get("reason") == "Unschedulable" else "",
    )


def _cpu_limit_annotation(raw: RawObject) -> str:
    """Return the annotation of a pod or a pod template; "" if it has none."""
    return str(mapping_in(mapping_in(raw, "metadata"), "annotations").get(CPU_LIMIT_ANNOTATION, ""))


def _resize_refusal(conditions: dict[str, RawObject]) -> RawObject:
    """Return the condition that reports why a resize is not carried out; an empty one if there is none."""
    pending, in_progress = conditions.get("PodResizePending"), conditions.get("PodResizeInProgress")
    if pending is not None and pending.get("status") == "True":
        return pending
    if in_progress is not None and in_progress.get("status") == "True" and in_progress.get("reason") == "Error":
        return in_progress
    return {}


def router_container(pod_spec: RawObject) -> RawObject:
    """Return the router's container of a pod. The pod may have others, for example of a service mesh."""
    containers: Sequence[RawObject] = pod_spec.get("containers") or ({},)
    return next((each for each in containers if each.get("name") == CONTAINER), containers[0])


def container_cpus(container: RawObject, field: str) -> float | None:
    """Return the CPUs in `limits` or `requests` of a container."""
    return parse_quantity(mapping_in(mapping_in(container, "resources"), field).get("cpu"))


def resources_for(cpus: float, limit: float | None, request: float | None) -> dict[str, dict[str, str]]:
    """Return the `resources` of a container with the CPU limit `cpus`. The ratio of the request to the limit stays,
    because the QoS class of a pod cannot change. `limit` and `request` are the current values."""
    share = 1.0 if limit is None or request is None or limit <= 0 else min(request / limit, 1.0)
    return {"requests": {"cpu": format_cpus(cpus * share)}, "limits": {"cpu": format_cpus(cpus)}}


@dataclass(frozen=True, slots=True)
class RouterDeployment:
    """The router's own Deployment."""

    uid: str
    replicas: int
    """`spec.replicas`"""
    available: int
    existing: int
    """`status.replicas`"""
    is_rolled_out: bool
    """True if no rollout is in progress."""
    pod_spec: RawObject
    limit: float | None
    request: float | None
    limit_annotation: str
    """The template's `CPU_LIMIT_ANNOTATION`; "" if it has none."""

    def replaces(self, pod: RouterPod) -> bool:
        """True if a rollout replaces this pod, because the template has another CPU limit now.

        False if this is unknown: the pod or the template has no annotation, or the template's is out of date, as after
        `kubectl set resources`.
        """
        is_annotated = same_cpus(parse_quantity(self.limit_annotation), self.limit) and pod.created_limit is not None
        return is_annotated and not same_cpus(pod.created_limit, self.limit)


def common_cpus(deployment: RouterDeployment, pods: Sequence[RouterPod]) -> float | None:
    """Return the CPU limit that all pods should have if they are resized in place; None if no pod has a limit.

    It is the largest limit of the pods, so new pods get the size of the others. A pod that is replaced because the
    template has another CPU limit now does not count, unless it was grown: then the load needs its size.
    """
    limits = [
        pod.limit
        for pod in pods
        if pod.limit is not None and (not deployment.replaces(pod) or pod.limit > (pod.created_limit or 0.0))
    ]
    if limits:
        return max(limits)
    return deployment.limit if any(pod.limit is not None for pod in pods) else None


def parse_router_deployment(raw: RawObject) -> RouterDeployment:
    """Parse the router's Deployment."""
    spec, status = mapping_in(raw, "spec"), mapping_in(raw, "status")
    pod_spec = mapping_in(mapping_in(spec, "template"), "spec")
    container = router_container(pod_spec)
    replicas = int(spec.get("replicas", 1))
    existing, updated = int(status.get("replicas") or 0), int(status.get("updatedReplicas") or 0)
    return RouterDeployment(
        uid=str(raw["metadata"].get("uid", "")),
        replicas=replicas,
        available=int(status.get("availableReplicas") or 0),
        existing=existing,
        is_rolled_out=int(status.get("observedGeneration") or 0) >= int(raw["metadata"].get("generation") or 0)
        and updated == existing == replicas,
        pod_spec=pod_spec,
        limit=container_cpus(container, "limits"),
        request=container_cpus(container, "requests"),
        limit_annotation=_cpu_limit_annotation(mapping_in(spec, "template")),
    )
