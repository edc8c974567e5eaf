"""What controllers of Kubernetes decide: which ReplicaSet gets how many pods, which pods go, what their status says.

As the Deployment and ReplicaSet controllers do it, less what no test here needs (pausing, rollback, progress deadline).
No I/O; objects are as the API server has them.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from tests.kubernetes.double.resources import Object

HASH_LABEL = "pod-template-hash"
DELETION_COST = "controller.kubernetes.io/pod-deletion-cost"
_SAFE = "bcdfghjklmnpqrstvwxz2456789"


def template_hash(template: Object) -> str:
    """Tells one pod template from another."""
    digest = hashlib.sha256(json.dumps(template, sort_keys=True).encode()).digest()
    return "".join(_SAFE[byte % len(_SAFE)] for byte in digest[:9])


def is_active(pod: Object) -> bool:
    """Whether a pod counts as one that its owner has."""
    return pod["status"].get("phase") not in ("Succeeded", "Failed") and "deletionTimestamp" not in pod["metadata"]


def is_ready(pod: Object) -> bool:
    """Whether a pod says that it is ready."""
    conditions = pod["status"].get("conditions") or []
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


def owned(things: Iterable[Object], owner: Object) -> list[Object]:
    """Those whose controller an object is."""
    uid = owner["metadata"]["uid"]
    return [
        thing
        for thing in things
        if any(each["uid"] == uid and each.get("controller") for each in thing["metadata"].get("ownerReferences") or [])
    ]


class Wanted(NamedTuple):
    """How many pods each ReplicaSet of a Deployment is to have, by name."""

    fresh: int
    old: Mapping[str, int]


def wanted(deployment: Object, fresh: Object | None, old: list[Object], pods: Mapping[str, list[Object]]) -> Wanted:
    """The next step of a rollout; `pods` are those of each ReplicaSet, by its name."""
    replicas: int = deployment["spec"]["replicas"]
    has = fresh["spec"]["replicas"] if fresh else 0
    counts = {each["metadata"]["name"]: each["spec"]["replicas"] for each in old}
    if not any(counts.values()):
        return Wanted(replicas, counts)
    if deployment["spec"]["strategy"]["type"] == "Recreate":
        left = any(pods.get(name) for name in counts)
        return Wanted(0 if left else replicas, dict.fromkeys(counts, 0))
    surge, unavailable = bounds(deployment)
    if has > replicas:
        return Wanted(replicas, counts)
    room = replicas + surge - has - sum(counts.values())
    if has < replicas and room > 0:
        return Wanted(min(replicas, has + room), counts)
    return Wanted(has, _fewer(counts, pods, has, fresh, replicas - unavailable))


def _fewer(
    counts: dict[str, int], pods: Mapping[str, list[Object]], has: int, fresh: Object | None, least: int
) -> dict[str, int]:
    """Fewer old pods: those that are not ready first, the others only as far as enough are ready."""
    ready = {name: sum(map(is_ready, its)) for name, its in pods.items()}
    fresh_ready = min(ready.get(fresh["metadata"]["name"], 0), has) if fresh else 0
    may_go = has + sum(counts.values()) - least - (has - fresh_ready)
    counts = dict(counts)
    for name in counts:
        broken = max(counts[name] - ready.get(name, 0), 0)
        go = min(broken, max(may_go, 0))
        counts[name] -= go
        may_go -= go
    surplus = fresh_ready + sum(min(ready.get(name, 0), count) for name, count in counts.items()) - least
    for name in counts:
        go = min(counts[name], max(surplus, 0), max(may_go, 0))
        counts[name] -= go
        surplus -= go
        may_go -= go
    return counts


def bounds(deployment: Object) -> tuple[int, int]:
    """How many pods more, and how many fewer, than wanted there may be during a rollout."""
    rolling, replicas = deployment["spec"]["strategy"]["rollingUpdate"], deployment["spec"]["replicas"]
    surge = _part(rolling["maxSurge"], replicas, math.ceil)
    unavailable = _part(rolling["maxUnavailable"], replicas, math.floor)
    return (surge, unavailable) if surge or unavailable else (0, 1)


def _part(amount: Any, of: int, rounded: Any) -> int:
    if isinstance(amount, str):
        return int(rounded(int(amount.rstrip("%")) * of / 100))
    return int(amount)


def victims(pods: list[Object], count: int) -> list[Object]:
    """Those that go first: not on a node, pending, not ready, cheap to delete, young."""

    def rank(pod: Object) -> tuple[Any, ...]:
        cost = int((pod["metadata"].get("annotations") or {}).get(DELETION_COST, "0"))
        born = pod["metadata"]["creationTimestamp"], int(pod["metadata"]["resourceVersion"])
        placed = bool(pod["spec"].get("nodeName"))
        return placed, pod["status"].get("phase") == "Running", is_ready(pod), cost, _reversed(born)

    return sorted(pods, key=rank)[:count]


def _reversed(born: tuple[str, int]) -> tuple[tuple[int, ...], int]:
    return tuple(-ord(letter) for letter in born[0]), -born[1]


def replica_set_status(replica_set: Object, pods: list[Object]) -> Object:
    """What is said of a ReplicaSet."""
    active = [pod for pod in pods if is_active(pod)]
    ready = sum(map(is_ready, active))
    return {
        "replicas": len(active),
        "fullyLabeledReplicas": len(active),
        "readyReplicas": ready,
        "availableReplicas": ready,
        "observedGeneration": replica_set["metadata"]["generation"],
    }


def deployment_status(deployment: Object, fresh: list[Object], others: list[Object], now: str) -> Object:
    """What is said of a Deployment; `fresh` are the pods of its present template, `others` older ones."""
    active = [pod for pod in [*fresh, *others] if is_active(pod)]
    ready = sum(map(is_ready, active))
    replicas = deployment["spec"]["replicas"]
    enough = ready >= replicas - bounds(deployment)[1] if "rollingUpdate" in deployment["spec"]["strategy"] else ready
    available = {"type": "Available", "status": "True" if enough else "False", "reason": "MinimumReplicas"}
    moment = {"lastTransitionTime": now, "lastUpdateTime": now}
    known = [each for each in deployment["status"].get("conditions") or [] if each["type"] == "Available"]
    if known and known[0]["status"] == available["status"]:
        moment = {name: known[0][name] for name in moment}
    return {
        "observedGeneration": deployment["metadata"]["generation"],
        "replicas": len(active),
        "updatedReplicas": sum(map(is_active, fresh)),
        "readyReplicas": ready,
        "availableReplicas": ready,
        "unavailableReplicas": max(replicas - ready, 0),
        "conditions": [available | moment],
    }
