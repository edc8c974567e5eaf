"""Whether a node has room for one more router pod. No I/O.

Checks the rules of the scheduler that matter most in practice: allocatable minus requested resources, taints, node
selectors and the number of pods. It ignores affinities.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from router.cluster.kubernetes.parsing import RawObject, mapping_in
from router.cluster.kubernetes.pod_resources import (
    CPU_TOLERANCE,
    container_cpus,
    parse_quantity,
    resources_for,
    router_container,
)

_MAX_NODES_SHOWN = 5
_DEFAULT_MAX_PODS = "110"  # the kubelet's default


class _Usage(NamedTuple):
    """The resources that the pods of a node request."""

    cpus: float = 0.0
    memory_bytes: float = 0.0
    pods: int = 0


def no_room_reason(
    nodes: Iterable[RawObject], pods: Iterable[RawObject], pod_spec: RawObject, cpus: float
) -> str | None:
    """Return why no node has room for one more router pod whose container has `cpus` CPUs; None if a node has room."""
    container = router_container(pod_spec)
    limit, request = container_cpus(container, "limits"), container_cpus(container, "requests")
    own_before = request if request is not None else limit or 0.0
    own_after = parse_quantity(resources_for(cpus, limit, request)["requests"]["cpu"]) or 0.0
    needs_cpus = _requested(pod_spec, "cpu") - own_before + own_after
    needs_memory = _requested(pod_spec, "memory")
    usage = _usage_of_nodes(pods)
    reasons: list[str] = []
    for node in nodes:
        name = str(node["metadata"]["name"])
        reason = _unfit_reason(node, pod_spec) or _full_reason(
            node, usage.get(name, _Usage()), needs_cpus=needs_cpus, needs_memory=needs_memory
        )
        if reason is None:
            return None
        reasons.append(f"{name}: {reason}")
    hidden = len(reasons) - _MAX_NODES_SHOWN
    shown = ", ".join(reasons[:_MAX_NODES_SHOWN]) + (f" and {hidden} more" if hidden > 0 else "")
    needs = f"{needs_cpus:.3g} CPUs and {needs_memory / 2**20:.0f} MiB are needed on one node"
    return f"{needs} ({shown or 'there are no nodes'})"


def _full_reason(node: RawObject, usage: _Usage, *, needs_cpus: float, needs_memory: float) -> str | None:
    allocatable = mapping_in(mapping_in(node, "status"), "allocatable")
    free_cpus = (parse_quantity(allocatable.get("cpu")) or 0.0) - usage.cpus
    free_memory = (parse_quantity(allocatable.get("memory")) or 0.0) - usage.memory_bytes
    if free_cpus + CPU_TOLERANCE < needs_cpus:
        return f"{max(free_cpus, 0):.3g} CPUs free"
    if free_memory < needs_memory:
        return f"{max(free_memory, 0) / 2**20:.0f} MiB of memory free"
    if usage.pods >= (parse_quantity(allocatable.get("pods", _DEFAULT_MAX_PODS)) or 0.0):
        return "no more pods allowed"
    return None


def trim_node(node: RawObject) -> RawObject:
    """Return only the fields of a node that `no_room_reason` needs."""
    metadata, status = mapping_in(node, "metadata"), mapping_in(node, "status")
    return {
        "metadata": {"name": metadata.get("name"), "labels": metadata.get("labels")},
        "spec": mapping_in(node, "spec"),
        "status": {"allocatable": status.get("allocatable"), "conditions": status.get("conditions")},
    }


def trim_pod(pod: RawObject) -> RawObject:
    """Return only the fields of a pod that `no_room_reason` needs."""
    spec = mapping_in(pod, "spec")
    return {
        "spec": {
            "nodeName": spec.get("nodeName"),
            "overhead": spec.get("overhead"),
            "resources": spec.get("resources"),
            "containers": [{"resources": each.get("resources")} for each in spec.get("containers") or ()],
            "initContainers": [
                {"resources": each.get("resources"), "restartPolicy": each.get("restartPolicy")}
                for each in spec.get("initContainers") or ()
            ],
        },
        "status": {"phase": mapping_in(pod, "status").get("phase")},
    }


def _unfit_reason(node: RawObject, pod_spec: RawObject) -> str | None:
    spec = mapping_in(node, "spec")
    if spec.get("unschedulable"):
        return "cordoned"
    conditions = mapping_in(node, "status").get("conditions") or ()
    if any(each.get("type") == "Ready" and each.get("status") != "True" for each in conditions):
        return "not ready"
    labels = mapping_in(mapping_in(node, "metadata"), "labels")
    if any(labels.get(name) != value for name, value in mapping_in(pod_spec, "nodeSelector").items()):
        return "not selected"
    tolerations = pod_spec.get("tolerations") or ()
    for taint in spec.get("taints") or ():
        if taint.get("effect") != "PreferNoSchedule" and not any(_tolerates(each, taint) for each in tolerations):
            return f"taint {taint.get('key')}"
    return None


def _tolerates(toleration: RawObject, taint: RawObject) -> bool:
    if toleration.get("effect") not in (None, "", taint.get("effect")):
        return False
    if toleration.get("key") not in (None, "", taint.get("key")):
        return False
    if toleration.get("operator") == "Exists":
        return True
    return bool(toleration.get("key")) and toleration.get("value", "") == taint.get("value", "")


def _usage_of_nodes(pods: Iterable[RawObject]) -> dict[str, _Usage]:
    usage: dict[str, _Usage] = {}
    for pod in pods:
        spec = mapping_in(pod, "spec")
        node = str(spec.get("nodeName") or "")
        if node and mapping_in(pod, "status").get("phase") not in ("Succeeded", "Failed"):
            cpus, memory, count = usage.get(node, _Usage())
            usage[node] = _Usage(cpus + _requested(spec, "cpu"), memory + _requested(spec, "memory"), count + 1)
    return usage


def _requested(pod_spec: RawObject, resource: str) -> float:
    """Return how much of a resource a pod requests, as the scheduler calculates it. That is the pod-level request if
    there is one. Otherwise it is the sum of the containers and sidecars, or the largest init container if that is more.
    The overhead of the pod is added."""

    def request_of(container: RawObject) -> float:
        return parse_quantity(mapping_in(mapping_in(container, "resources"), "requests").get(resource)) or 0.0

    running = sum(request_of(each) for each in pod_spec.get("containers") or ())
    largest_init = 0.0
    for each in pod_spec.get("initContainers") or ():
        if each.get("restartPolicy") == "Always":  # a sidecar, which runs next to the containers
            running += request_of(each)
        else:
            largest_init = max(largest_init, request_of(each))
    total = request_of(pod_spec) or max(running, largest_init)
    return total + (parse_quantity(mapping_in(pod_spec, "overhead").get(resource)) or 0.0)
