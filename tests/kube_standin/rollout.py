"""The decisions of the Deployment and ReplicaSet controllers: pods per ReplicaSet, pods to delete, statuses. No I/O.

Follows Kubernetes except for what no test needs: pausing, rollback, progress deadline. Objects have the API server's
form. The *current* ReplicaSet has the Deployment's current template, the others are *old*.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from tests.kube_standin.api_server.resources import Object

HASH_LABEL = "pod-template-hash"
DELETION_COST = "controller.kubernetes.io/pod-deletion-cost"
_SAFE_CHARACTERS = "bcdfghjklmnpqrstvwxz2456789"


def template_hash(template: Object) -> str:
    """Return the hash of a pod template."""
    digest = hashlib.sha256(json.dumps(template, sort_keys=True).encode()).digest()
    return "".join(_SAFE_CHARACTERS[byte % len(_SAFE_CHARACTERS)] for byte in digest[:9])


def is_active(pod: Object) -> bool:
    """True if a pod counts towards its owner's replicas."""
    return pod["status"].get("phase") not in ("Succeeded", "Failed") and "deletionTimestamp" not in pod["metadata"]


def is_ready(pod: Object) -> bool:
    """True if a pod has the condition Ready."""
    conditions = pod["status"].get("conditions") or []
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


def owned_by(owner: Object, objects: Iterable[Object]) -> list[Object]:
    """Return the objects that `owner` controls."""
    uid = owner["metadata"]["uid"]
    return [
        obj
        for obj in objects
        if any(each["uid"] == uid and each.get("controller") for each in obj["metadata"].get("ownerReferences") or [])
    ]


class Step(NamedTuple):
    """The replicas that each ReplicaSet of a Deployment should have next."""

    current: int
    old: Mapping[str, int]  # by name


def next_step(deployment: Object, current: Object | None, old: list[Object], pods: Mapping[str, list[Object]]) -> Step:
    """Return the next step of a rollout. `pods` has the pods of each ReplicaSet, by its name."""
    replicas: int = deployment["spec"]["replicas"]
    current_count = current["spec"]["replicas"] if current else 0
    old_counts = {each["metadata"]["name"]: each["spec"]["replicas"] for each in old}
    if not any(old_counts.values()):
        return Step(replicas, old_counts)
    if deployment["spec"]["strategy"]["type"] == "Recreate":
        has_old_pods = any(pods.get(name) for name in old_counts)
        return Step(0 if has_old_pods else replicas, dict.fromkeys(old_counts, 0))
    max_surge, max_unavailable = surge_and_unavailable(deployment)
    if current_count > replicas:
        return Step(replicas, old_counts)
    room = replicas + max_surge - current_count - sum(old_counts.values())
    if current_count < replicas and room > 0:
        return Step(min(replicas, current_count + room), old_counts)
    minimum_ready = replicas - max_unavailable
    return Step(current_count, _reduce_old_counts(old_counts, pods, current_count, current, minimum_ready))


def _reduce_old_counts(
    old_counts: dict[str, int],
    pods: Mapping[str, list[Object]],
    current_count: int,
    current: Object | None,
    minimum_ready: int,
) -> dict[str, int]:
    """Return smaller old counts: unready pods go first, ready ones only while `minimum_ready` remain."""
    ready = {name: sum(map(is_ready, each)) for name, each in pods.items()}
    current_ready = min(ready.get(current["metadata"]["name"], 0), current_count) if current else 0
    removable = current_count + sum(old_counts.values()) - minimum_ready - (current_count - current_ready)
    counts = dict(old_counts)
    for name in counts:
        unready = max(counts[name] - ready.get(name, 0), 0)
        removed = min(unready, max(removable, 0))
        counts[name] -= removed
        removable -= removed
    old_ready = sum(min(ready.get(name, 0), count) for name, count in counts.items())
    surplus = current_ready + old_ready - minimum_ready
    for name in counts:
        removed = min(counts[name], max(surplus, 0), max(removable, 0))
        counts[name] -= removed
        surplus -= removed
        removable -= removed
    return counts


def surge_and_unavailable(deployment: Object) -> tuple[int, int]:
    """Return maxSurge and maxUnavailable as numbers of pods."""
    rolling, replicas = deployment["spec"]["strategy"]["rollingUpdate"], deployment["spec"]["replicas"]
    surge = _pod_count(rolling["maxSurge"], replicas, math.ceil)
    unavailable = _pod_count(rolling["maxUnavailable"], replicas, math.floor)
    return (surge, unavailable) if surge or unavailable else (0, 1)


def _pod_count(amount: int | str, replicas: int, round_count: Callable[[float], int]) -> int:
    if isinstance(amount, str):
        return round_count(int(amount.rstrip("%")) * replicas / 100)
    return amount


def pods_to_delete(pods: list[Object], count: int) -> list[Object]:
    """Return the pods to delete: unscheduled, pending, unready, with the lowest deletion cost and youngest first."""

    def rank(pod: Object) -> tuple[Any, ...]:
        cost = int((pod["metadata"].get("annotations") or {}).get(DELETION_COST, "0"))
        created = pod["metadata"]["creationTimestamp"], int(pod["metadata"]["resourceVersion"])
        is_scheduled = bool(pod["spec"].get("nodeName"))
        return is_scheduled, pod["status"].get("phase") == "Running", is_ready(pod), cost, _descending(created)

    return sorted(pods, key=rank)[:count]


def _descending(created: tuple[str, int]) -> tuple[tuple[int, ...], int]:
    return tuple(-ord(letter) for letter in created[0]), -created[1]


def replica_set_status(replica_set: Object, pods: list[Object]) -> Object:
    """Return the status of a ReplicaSet."""
    active = [pod for pod in pods if is_active(pod)]
    ready = sum(map(is_ready, active))
    return {
        "replicas": len(active),
        "fullyLabeledReplicas": len(active),
        "readyReplicas": ready,
        "availableReplicas": ready,
        "observedGeneration": replica_set["metadata"]["generation"],
    }


def deployment_status(deployment: Object, current: list[Object], old: list[Object], now: str) -> Object:
    """Return the status of a Deployment with these pods of its current and old templates."""
    active = [pod for pod in [*current, *old] if is_active(pod)]
    ready = sum(map(is_ready, active))
    replicas = deployment["spec"]["replicas"]
    is_available = (
        ready >= replicas - surge_and_unavailable(deployment)[1]
        if "rollingUpdate" in deployment["spec"]["strategy"]
        else bool(ready)
    )
    available = {"type": "Available", "status": "True" if is_available else "False", "reason": "MinimumReplicas"}
    times = {"lastTransitionTime": now, "lastUpdateTime": now}
    conditions = deployment["status"].get("conditions") or []
    previous = next((each for each in conditions if each["type"] == "Available"), None)
    if previous and previous["status"] == available["status"]:
        times = {name: previous[name] for name in times}
    return {
        "observedGeneration": deployment["metadata"]["generation"],
        "replicas": len(active),
        "updatedReplicas": sum(map(is_active, current)),
        "readyReplicas": ready,
        "availableReplicas": ready,
        "unavailableReplicas": max(replicas - ready, 0),
        "conditions": [available | times],
    }
