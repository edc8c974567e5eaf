"""Whether a node has room for one more router pod, from objects as the API server has them."""

from typing import Any

import pytest

from router.cluster.kubernetes.node_capacity import no_room_reason, trim_node, trim_pod


def node(name: str, cpu: str = "4", memory: str = "8Gi", pods: str = "110", **spec: Any) -> dict[str, Any]:
    allocatable = {"cpu": cpu, "memory": memory, "pods": pods}
    return {
        "metadata": {"name": name, "labels": {"disk": "ssd"}}, "spec": spec,
        "status": {"allocatable": allocatable, "conditions": [{"type": "Ready", "status": "True"}]},
    }  # fmt: skip


def running_pod(node: str, cpu: str, memory: str = "1Gi", phase: str = "Running", **spec: Any) -> dict[str, Any]:
    container = {"name": "c", "resources": {"requests": {"cpu": cpu, "memory": memory}}}
    return {"spec": {"nodeName": node, "containers": [container], **spec}, "status": {"phase": phase}}


def router_spec(cpu: str = "1", memory: str = "1Gi", **more: Any) -> dict[str, Any]:
    resources = {"requests": {"cpu": cpu, "memory": memory}, "limits": {"cpu": cpu}}
    return {"containers": [{"name": "azureml-fe", "resources": resources}], **more}


def reason(nodes: list[dict[str, Any]], pods: list[dict[str, Any]], spec: dict[str, Any], cpus: float) -> str | None:
    return no_room_reason(map(trim_node, nodes), map(trim_pod, pods), spec, cpus)


def test_one_node_with_enough_free_resources_has_room() -> None:
    assert reason([node("a")], [running_pod("a", "2")], router_spec(), 2) is None
    assert reason([node("full"), node("b")], [running_pod("full", "4")], router_spec(), 4) is None


def test_reason_names_the_missing_resources_of_each_node() -> None:
    nodes, pods = [node("a"), node("b", memory="1Gi")], [running_pod("a", "2500m"), running_pod("b", "1")]
    assert reason(nodes, pods, router_spec(), 2) == (
        "2 CPUs and 1024 MiB are needed on one node (a: 1.5 CPUs free, b: 0 MiB of memory free)"
    )
    assert reason([], [], router_spec(), 1) == "1 CPUs and 1024 MiB are needed on one node (there are no nodes)"


def test_terminated_pods_use_no_resources() -> None:
    terminated = [running_pod("a", "4", phase=phase) for phase in ("Succeeded", "Failed")]
    assert reason([node("a")], terminated, router_spec(), 4) is None


def test_init_containers_and_sidecars_count_as_in_the_scheduler() -> None:
    init = {"name": "i", "resources": {"requests": {"cpu": "3"}}}
    with_init = running_pod("a", "1", initContainers=[init])  # requests the larger of 3 and 1
    assert reason([node("a")], [with_init], router_spec(), 1) is None
    with_sidecar = running_pod("a", "1", initContainers=[init | {"restartPolicy": "Always"}])  # requests the sum
    assert reason([node("a")], [with_sidecar], router_spec(), 1) is not None


def test_overhead_of_a_pod_counts() -> None:
    assert reason([node("a")], [running_pod("a", "3", overhead={"cpu": "500m"})], router_spec(), 1) is not None


def test_request_of_a_whole_pod_replaces_those_of_its_containers() -> None:
    whole = {"requests": {"cpu": "3500m"}}
    assert reason([node("a")], [running_pod("a", "1", resources=whole)], router_spec(), 0.5) is None
    assert reason([node("a")], [running_pod("a", "1", resources=whole)], router_spec(), 1) is not None


def test_other_containers_of_the_router_pod_need_room_too() -> None:
    pod_spec = router_spec()
    pod_spec["containers"].append({"name": "mesh", "resources": {"requests": {"cpu": "2"}}})
    assert reason([node("a")], [], pod_spec, 2) is None
    assert reason([node("a")], [], pod_spec, 3) is not None


@pytest.mark.parametrize(
    ("unfit", "expected"),
    [
        (node("a", unschedulable=True), "a: cordoned"),
        (node("a", taints=[{"key": "gpu", "value": "yes", "effect": "NoSchedule"}]), "a: taint gpu"),
        (node("a", pods="0"), "a: no more pods allowed"),
        (node("a") | {"status": {"conditions": [{"type": "Ready", "status": "Unknown"}]}}, "a: not ready"),
    ],
)
def test_unfit_node_has_no_room(unfit: dict[str, Any], expected: str) -> None:
    assert expected in (reason([unfit], [], router_spec(), 1) or "")


@pytest.mark.parametrize(
    "toleration",
    [
        {"operator": "Exists"},
        {"key": "gpu", "operator": "Exists"},
        {"key": "gpu", "value": "yes", "effect": "NoSchedule"},
    ],
)
def test_tolerated_taint_leaves_room(toleration: dict[str, str]) -> None:
    tainted = node("a", taints=[{"key": "gpu", "value": "yes", "effect": "NoSchedule"}])
    assert reason([tainted], [], router_spec(tolerations=[toleration]), 1) is None
    other = tainted | {"spec": {"taints": [{"key": "gpu", "value": "no", "effect": "NoExecute"}]}}
    assert (reason([other], [], router_spec(tolerations=[toleration]), 1) is None) is (
        toleration.get("operator") == "Exists"
    )


def test_prefer_no_schedule_taint_is_ignored() -> None:
    assert reason([node("a", taints=[{"key": "x", "effect": "PreferNoSchedule"}])], [], router_spec(), 1) is None


def test_node_selector_restricts_the_nodes() -> None:
    assert reason([node("a")], [], router_spec(nodeSelector={"disk": "ssd"}), 1) is None
    assert reason([node("a")], [], router_spec(nodeSelector={"disk": "hdd"}), 1) is not None
