"""What Kubernetes tells of the router's own size, and whether nodes have room for more. No I/O.

Quantities become numbers: CPUs, bytes. Of the scheduler's rules those are looked at that decide in practice: what is
allocatable less what is requested, taints, node selectors, the number of pods. Affinities are not.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Raw = Mapping[str, Any]

CONTAINER = "azureml-fe"

_QUANTITY = re.compile(r"([0-9]+(?:\.[0-9]*)?)(?:e([0-9]+)|(n|u|m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi))?")
_UNITS = {
    "n": 1e-9, "u": 1e-6, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15,
    "Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40, "Pi": 2.0**50,
}  # fmt: skip
_HAIR = 1e-6


def quantity(text: object) -> float | None:
    """A number with a unit, as the API server writes it; None for anything else."""
    found = _QUANTITY.fullmatch(str(text))
    if found is None:
        return None
    number, exponent, unit = found.groups()
    return float(number) * (10.0 ** int(exponent) if exponent else _UNITS.get(unit or "", 1.0))


def as_quantity(cpus: float) -> str:
    """CPUs as the API server writes them, so that a template which gets its former size back is the former one."""
    thousandths = round(cpus * 1000)
    return f"{thousandths}m" if thousandths % 1000 else str(thousandths // 1000)


def same(one: float | None, other: float | None) -> bool:
    """Whether two numbers of CPUs are the same."""
    return one is not None and other is not None and abs(one - other) < _HAIR


@dataclass(frozen=True, slots=True)
class RouterPod:
    """One pod of the router. `limit` and `request` are what its container is to have, `given` what its node has given
    it; None where that is not told. `refusal` is `Deferred`, `Infeasible`, `Error` or ""."""

    name: str
    uid: str
    container: str
    limit: float | None
    request: float | None
    given: float | None
    refusal: str
    why: str
    unschedulable: str

    @property
    def has_its_cpu(self) -> bool:
        """Whether the node has given what the container is to have."""
        return same(self.limit, self.given) and not self.refusal


def router_pods(listed: Raw) -> list[RouterPod]:
    """The pods of a list that neither have ended nor are about to."""
    return [
        _router_pod(raw)
        for raw in listed.get("items") or ()
        if "deletionTimestamp" not in raw["metadata"]
        and _mapping(raw, "status").get("phase") not in ("Succeeded", "Failed")
    ]


def _router_pod(raw: Raw) -> RouterPod:
    container = router_container(_mapping(raw, "spec"))
    status = _mapping(raw, "status")
    conditions = {each.get("type"): each for each in status.get("conditions") or () if each.get("status") == "True"}
    pending, working = conditions.get("PodResizePending"), conditions.get("PodResizeInProgress")
    refused = pending or (working if working is not None and working.get("reason") == "Error" else None) or {}
    nothing: Raw = {}
    scheduled = next((c for c in status.get("conditions") or () if c.get("type") == "PodScheduled"), nothing)
    own = next((s for s in status.get("containerStatuses") or () if s.get("name") == container.get("name")), nothing)
    return RouterPod(
        name=str(raw["metadata"]["name"]),
        uid=str(raw["metadata"].get("uid", "")),
        container=str(container.get("name", "")),
        limit=_cpu(container, "limits"),
        request=_cpu(container, "requests"),
        given=_cpu(own, "limits"),
        refusal=str(refused.get("reason", "")),
        why=str(refused.get("message", "")),
        unschedulable=str(scheduled.get("message", "")) if scheduled.get("reason") == "Unschedulable" else "",
    )


def router_container(spec: Raw) -> Raw:
    """The router's own of a pod's containers."""
    containers: Sequence[Raw] = spec.get("containers") or ({},)
    return next((each for each in containers if each.get("name") == CONTAINER), containers[0])


def _cpu(container: Raw, kind: str) -> float | None:
    return quantity(_mapping(_mapping(container, "resources"), kind).get("cpu"))


def resources_for(cpus: float, limit: float | None, request: float | None) -> dict[str, dict[str, str]]:
    """Resources of a container that is to have so many CPUs: the request keeps its share of the limit, as the class of
    service of a pod cannot change."""
    share = 1.0 if limit is None or request is None or limit <= 0 else min(request / limit, 1.0)
    return {"requests": {"cpu": as_quantity(cpus * share)}, "limits": {"cpu": as_quantity(cpus)}}


@dataclass(frozen=True, slots=True)
class RouterDeployment:
    """The router's own Deployment. `settled`: no rollout is under way."""

    uid: str
    replicas: int
    available: int
    present: int
    settled: bool
    pod_spec: Raw
    limit: float | None
    request: float | None


def router_deployment(raw: Raw) -> RouterDeployment:
    """From what the server sends."""
    spec, status = _mapping(raw, "spec"), _mapping(raw, "status")
    pod_spec = _mapping(_mapping(spec, "template"), "spec")
    container = router_container(pod_spec)
    replicas = int(spec.get("replicas", 1))
    present, updated = int(status.get("replicas") or 0), int(status.get("updatedReplicas") or 0)
    return RouterDeployment(
        uid=str(raw["metadata"].get("uid", "")),
        replicas=replicas,
        available=int(status.get("availableReplicas") or 0),
        present=present,
        settled=int(status.get("observedGeneration") or 0) >= int(raw["metadata"].get("generation") or 0)
        and updated == present == replicas,
        pod_spec=pod_spec,
        limit=_cpu(container, "limits"),
        request=_cpu(container, "requests"),
    )


# Room.


def why_no_room(nodes: Raw, pods: Raw, pod_spec: Raw, cpus: float) -> str | None:
    """Why no node has room for one more pod whose router has so many CPUs; None where one has."""
    container = router_container(pod_spec)
    limit, request = _cpu(container, "limits"), _cpu(container, "requests")
    own_before = request if request is not None else limit or 0.0
    wanted_cpu = quantity(resources_for(cpus, limit, request)["requests"]["cpu"]) or 0.0
    needs_cpu = _requested(pod_spec, "cpu") - own_before + wanted_cpu
    needs_memory = _requested(pod_spec, "memory")
    used = _used(pods.get("items") or ())
    reasons: list[str] = []
    for node in nodes.get("items") or ():
        why = _unfit(node, pod_spec)
        if why is None:
            cpu, memory, count = used.get(str(node["metadata"]["name"]), (0.0, 0.0, 0))
            offers = _mapping(_mapping(node, "status"), "allocatable")
            free_cpu = (quantity(offers.get("cpu")) or 0.0) - cpu
            free_memory = (quantity(offers.get("memory")) or 0.0) - memory
            if free_cpu + _HAIR < needs_cpu:
                why = f"{max(free_cpu, 0):.3g} CPUs free"
            elif free_memory < needs_memory:
                why = f"{max(free_memory, 0) / 2**20:.0f} MiB of memory free"
            elif count >= (quantity(offers.get("pods", "110")) or 0.0):
                why = "no more pods allowed"
            else:
                return None
        reasons.append(f"{node['metadata']['name']}: {why}")
    shown = ", ".join(reasons[:5]) + (f" and {len(reasons) - 5} more" if len(reasons) > 5 else "")
    needs = f"{needs_cpu:.3g} CPUs and {needs_memory / 2**20:.0f} MiB are needed on one node"
    return f"{needs} ({shown or 'there are no nodes'})"


def room_of_node(node: Raw) -> Raw:
    """What `why_no_room` uses of a node."""
    metadata, status = _mapping(node, "metadata"), _mapping(node, "status")
    return {
        "metadata": {"name": metadata.get("name"), "labels": metadata.get("labels")},
        "spec": _mapping(node, "spec"),
        "status": {"allocatable": status.get("allocatable"), "conditions": status.get("conditions")},
    }


def room_of_pod(pod: Raw) -> Raw:
    """What `why_no_room` uses of a pod."""
    spec = _mapping(pod, "spec")
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
        "status": {"phase": _mapping(pod, "status").get("phase")},
    }


def _unfit(node: Raw, pod_spec: Raw) -> str | None:
    spec = _mapping(node, "spec")
    if spec.get("unschedulable"):
        return "cordoned"
    conditions = _mapping(node, "status").get("conditions") or ()
    if any(each.get("type") == "Ready" and each.get("status") != "True" for each in conditions):
        return "not ready"
    labels = _mapping(_mapping(node, "metadata"), "labels")
    if any(labels.get(name) != value for name, value in _mapping(pod_spec, "nodeSelector").items()):
        return "not selected"
    tolerations = pod_spec.get("tolerations") or ()
    for taint in spec.get("taints") or ():
        if taint.get("effect") != "PreferNoSchedule" and not any(_tolerates(each, taint) for each in tolerations):
            return f"taint {taint.get('key')}"
    return None


def _tolerates(toleration: Raw, taint: Raw) -> bool:
    if toleration.get("effect") not in (None, "", taint.get("effect")):
        return False
    if toleration.get("key") not in (None, "", taint.get("key")):
        return False
    if toleration.get("operator") == "Exists":
        return True
    return bool(toleration.get("key")) and toleration.get("value", "") == taint.get("value", "")


def _used(pods: Iterable[Raw]) -> dict[str, tuple[float, float, int]]:
    """CPUs, bytes and pods on each node."""
    used: dict[str, tuple[float, float, int]] = {}
    for pod in pods:
        spec = _mapping(pod, "spec")
        node = str(spec.get("nodeName") or "")
        if node and _mapping(pod, "status").get("phase") not in ("Succeeded", "Failed"):
            cpu, memory, count = used.get(node, (0.0, 0.0, 0))
            used[node] = cpu + _requested(spec, "cpu"), memory + _requested(spec, "memory"), count + 1
    return used


def _requested(spec: Raw, resource: str) -> float:
    """What a pod takes of a node: what it says itself, else its containers together, or the largest of those that run
    before them."""

    def of(container: Raw) -> float:
        return quantity(_mapping(_mapping(container, "resources"), "requests").get(resource)) or 0.0

    running = sum(of(each) for each in spec.get("containers") or ())
    before = 0.0
    for each in spec.get("initContainers") or ():
        if each.get("restartPolicy") == "Always":
            running += of(each)
        else:
            before = max(before, of(each))
    whole = of(spec) or max(running, before)
    return whole + (quantity(_mapping(spec, "overhead").get(resource)) or 0.0)


def _mapping(raw: Raw, name: str) -> Raw:
    value = raw.get(name)
    return value if isinstance(value, Mapping) else {}
