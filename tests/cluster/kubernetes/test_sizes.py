"""What Kubernetes tells of the router's size, and whether nodes have room: from objects as the API server has them."""

from typing import Any

import pytest

from router.cluster.kubernetes.sizes import (
    quantity,
    resources_for,
    room_of_node,
    room_of_pod,
    router_deployment,
    router_pods,
    why_no_room,
)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1", 1.0), ("0.5", 0.5), ("250m", 0.25), ("1.", 1.0), (2, 2.0), ("100u", 1e-4), ("1e3", 1000.0),
        ("2k", 2000.0), ("128Mi", 128 * 2**20), ("1Gi", 2**30), ("512M", 512e6),
    ],
)  # fmt: skip
def test_quantities(text: object, number: float) -> None:
    assert quantity(text) == pytest.approx(number)


@pytest.mark.parametrize("text", ["", "m", "-1", "1 m", "1x", None, "1mi", "NaN", "1e", "٣"])
def test_what_is_no_quantity(text: object) -> None:
    assert quantity(text) is None


def pod(**status: Any) -> dict[str, Any]:
    resources = {"limits": {"cpu": "2"}, "requests": {"cpu": "1"}}
    containers = [{"name": "sidecar"}, {"name": "azureml-fe", "resources": resources}]
    return {"metadata": {"name": "p", "uid": "u"}, "spec": {"containers": containers}, "status": status}


def given(cpu: str) -> list[dict[str, Any]]:
    return [{"name": "azureml-fe", "resources": {"limits": {"cpu": cpu}}}]


def condition(kind: str, reason: str, status: str = "True") -> dict[str, str]:
    return {"type": kind, "status": status, "reason": reason, "message": "why"}


def test_a_pod_has_its_cpu_once_its_node_says_so() -> None:
    for status, has in (
        ({}, False),
        ({"containerStatuses": given("1")}, False),
        ({"containerStatuses": given("2000m")}, True),
        ({"containerStatuses": given("2"), "conditions": [condition("PodResizeInProgress", "")]}, True),
        ({"containerStatuses": given("2"), "conditions": [condition("PodResizePending", "Deferred", "False")]}, True),
    ):
        (found,) = router_pods({"items": [pod(**status)]})
        assert (found.has_its_cpu, found.refusal, found.limit, found.request) == (has, "", 2, 1)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [("PodResizePending", "Deferred"), ("PodResizePending", "Infeasible"), ("PodResizeInProgress", "Error")],
)
def test_a_refusal_is_told_with_its_reason(kind: str, reason: str) -> None:
    (found,) = router_pods({"items": [pod(containerStatuses=given("2"), conditions=[condition(kind, reason)])]})
    assert (found.has_its_cpu, found.refusal, found.why) == (False, reason, "why")


def test_pods_on_their_way_out_are_none() -> None:
    leaving = pod()
    leaving["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    assert router_pods({"items": [leaving, pod(phase="Failed"), pod(phase="Succeeded")]}) == []
    assert router_pods({"items": None}) == []


def test_a_pod_that_finds_no_node() -> None:
    scheduled = condition("PodScheduled", "Unschedulable", "False")
    assert router_pods({"items": [pod(conditions=[scheduled])]})[0].unschedulable == "why"


def test_the_request_keeps_its_share_of_the_limit() -> None:
    assert resources_for(4, 2, 0.5) == {"requests": {"cpu": "1"}, "limits": {"cpu": "4"}}
    assert resources_for(0.5, 1, 1) == {"requests": {"cpu": "500m"}, "limits": {"cpu": "500m"}}
    assert resources_for(2, 1, None) == {"requests": {"cpu": "2"}, "limits": {"cpu": "2"}}


def test_a_deployment_is_settled_when_all_its_pods_are_of_its_template() -> None:
    raw: dict[str, Any] = {"metadata": {"uid": "u", "generation": 3}, "spec": {"replicas": 2, "template": pod()}}
    for status, settled in (
        ({}, False),
        ({"observedGeneration": 3, "replicas": 3, "updatedReplicas": 1, "availableReplicas": 2}, False),
        ({"observedGeneration": 2, "replicas": 2, "updatedReplicas": 2, "availableReplicas": 2}, False),
        ({"observedGeneration": 3, "replicas": 2, "updatedReplicas": 2, "availableReplicas": 2}, True),
    ):
        found = router_deployment(raw | {"status": status})
        assert (found.settled, found.replicas, found.limit) == (settled, 2, 2)


# Room.


def node(name: str, cpu: str = "4", memory: str = "8Gi", pods: str = "110", **spec: Any) -> dict[str, Any]:
    allocatable = {"cpu": cpu, "memory": memory, "pods": pods}
    return {
        "metadata": {"name": name, "labels": {"disk": "ssd"}}, "spec": spec,
        "status": {"allocatable": allocatable, "conditions": [{"type": "Ready", "status": "True"}]},
    }  # fmt: skip


def running(node: str, cpu: str, memory: str = "1Gi", phase: str = "Running", **spec: Any) -> dict[str, Any]:
    container = {"name": "c", "resources": {"requests": {"cpu": cpu, "memory": memory}}}
    return {"spec": {"nodeName": node, "containers": [container], **spec}, "status": {"phase": phase}}


def spec(cpu: str = "1", memory: str = "1Gi", **more: Any) -> dict[str, Any]:
    resources = {"requests": {"cpu": cpu, "memory": memory}, "limits": {"cpu": cpu}}
    return {"containers": [{"name": "azureml-fe", "resources": resources}], **more}


def room(nodes: list[dict[str, Any]], pods: list[dict[str, Any]], its: dict[str, Any], cpus: float) -> str | None:
    return why_no_room({"items": map(room_of_node, nodes)}, {"items": map(room_of_pod, pods)}, its, cpus)


def test_a_node_with_what_is_needed_is_room() -> None:
    assert room([node("a")], [running("a", "2")], spec(), 2) is None
    assert room([node("full"), node("b")], [running("full", "4")], spec(), 4) is None


def test_no_node_has_room() -> None:
    nodes, pods = [node("a"), node("b", memory="1Gi")], [running("a", "2500m"), running("b", "1")]
    assert room(nodes, pods, spec(), 2) == (
        "2 CPUs and 1024 MiB are needed on one node (a: 1.5 CPUs free, b: 0 MiB of memory free)"
    )
    assert room([], [], spec(), 1) == "1 CPUs and 1024 MiB are needed on one node (there are no nodes)"


def test_what_has_ended_takes_nothing() -> None:
    assert (
        room([node("a")], [running("a", "4", phase="Succeeded"), running("a", "4", phase="Failed")], spec(), 4) is None
    )


def test_requests_of_init_containers_and_sidecars_count_as_the_scheduler_counts_them() -> None:
    init = {"name": "i", "resources": {"requests": {"cpu": "3"}}}
    assert room([node("a")], [running("a", "1", initContainers=[init])], spec(), 1) is None  # the larger of 3 and 1
    sidecar = init | {"restartPolicy": "Always"}
    assert room([node("a")], [running("a", "1", initContainers=[sidecar])], spec(), 1) is not None  # their sum
    assert room([node("a")], [running("a", "3", overhead={"cpu": "500m"})], spec(), 1) is not None


def test_requests_of_a_whole_pod_count_in_place_of_its_containers() -> None:
    whole = {"requests": {"cpu": "3500m"}}
    assert room([node("a")], [running("a", "1", resources=whole)], spec(), 0.5) is None
    assert room([node("a")], [running("a", "1", resources=whole)], spec(), 1) is not None


def test_other_containers_of_the_pod_need_room_too() -> None:
    its = spec()
    its["containers"].append({"name": "mesh", "resources": {"requests": {"cpu": "2"}}})
    assert room([node("a")], [], its, 2) is None
    assert room([node("a")], [], its, 3) is not None


@pytest.mark.parametrize(
    ("unfit", "why"),
    [
        (node("a", unschedulable=True), "a: cordoned"),
        (node("a", taints=[{"key": "gpu", "value": "yes", "effect": "NoSchedule"}]), "a: taint gpu"),
        (node("a", pods="0"), "a: no more pods allowed"),
        (node("a") | {"status": {"conditions": [{"type": "Ready", "status": "Unknown"}]}}, "a: not ready"),
    ],
)
def test_nodes_that_take_no_pod(unfit: dict[str, Any], why: str) -> None:
    assert why in (room([unfit], [], spec(), 1) or "")


@pytest.mark.parametrize(
    "toleration",
    [
        {"operator": "Exists"},
        {"key": "gpu", "operator": "Exists"},
        {"key": "gpu", "value": "yes", "effect": "NoSchedule"},
    ],
)
def test_taints_that_are_tolerated(toleration: dict[str, str]) -> None:
    tainted = node("a", taints=[{"key": "gpu", "value": "yes", "effect": "NoSchedule"}])
    assert room([tainted], [], spec(tolerations=[toleration]), 1) is None
    other = tainted | {"spec": {"taints": [{"key": "gpu", "value": "no", "effect": "NoExecute"}]}}
    assert (room([other], [], spec(tolerations=[toleration]), 1) is None) is (toleration.get("operator") == "Exists")


def test_a_soft_taint_is_none_and_a_selector_chooses() -> None:
    assert room([node("a", taints=[{"key": "x", "effect": "PreferNoSchedule"}])], [], spec(), 1) is None
    assert room([node("a")], [], spec(nodeSelector={"disk": "ssd"}), 1) is None
    assert room([node("a")], [], spec(nodeSelector={"disk": "hdd"}), 1) is not None
