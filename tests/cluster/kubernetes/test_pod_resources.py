"""How CPUs of the router's pods are read from objects of the API server."""

from typing import Any

import pytest

from router.cluster.kubernetes.pod_resources import (
    common_cpus,
    parse_quantity,
    parse_router_deployment,
    parse_router_pods,
    resources_for,
)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1", 1.0), ("0.5", 0.5), ("250m", 0.25), ("1.", 1.0), (2, 2.0), ("100u", 1e-4), ("1e3", 1000.0),
        ("2k", 2000.0), ("128Mi", 128 * 2**20), ("1Gi", 2**30), ("512M", 512e6),
    ],
)  # fmt: skip
def test_quantity_is_parsed(text: object, number: float) -> None:
    assert parse_quantity(text) == pytest.approx(number)


@pytest.mark.parametrize("text", ["", "m", "-1", "1 m", "1x", None, "1mi", "NaN", "1e", "٣"])
def test_text_that_is_no_quantity_is_none(text: object) -> None:
    assert parse_quantity(text) is None


def pod(**status: Any) -> dict[str, Any]:
    resources = {"limits": {"cpu": "2"}, "requests": {"cpu": "1"}}
    containers = [{"name": "sidecar"}, {"name": "azureml-fe", "resources": resources}]
    return {"metadata": {"name": "p", "uid": "u"}, "spec": {"containers": containers}, "status": status}


def statuses_with(cpu: str) -> list[dict[str, Any]]:
    return [{"name": "azureml-fe", "resources": {"limits": {"cpu": cpu}}}]


def condition(kind: str, reason: str, status: str = "True") -> dict[str, str]:
    return {"type": kind, "status": status, "reason": reason, "message": "details"}


def test_pod_is_resized_once_its_node_reports_the_limit() -> None:
    for status, is_resized in (
        ({}, False),
        ({"containerStatuses": statuses_with("1")}, False),
        ({"containerStatuses": statuses_with("2000m")}, True),
        ({"containerStatuses": statuses_with("2"), "conditions": [condition("PodResizeInProgress", "")]}, True),
        (
            {
                "containerStatuses": statuses_with("2"),
                "conditions": [condition("PodResizePending", "Deferred", "False")],
            },
            True,
        ),
    ):
        (found,) = parse_router_pods({"items": [pod(**status)]})
        assert (found.is_resized, found.resize_refusal, found.limit, found.request) == (is_resized, "", 2, 1)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [("PodResizePending", "Deferred"), ("PodResizePending", "Infeasible"), ("PodResizeInProgress", "Error")],
)
def test_refused_resize_has_a_reason_and_a_message(kind: str, reason: str) -> None:
    (found,) = parse_router_pods(
        {"items": [pod(containerStatuses=statuses_with("2"), conditions=[condition(kind, reason)])]}
    )
    assert (found.is_resized, found.resize_refusal, found.refusal_message) == (False, reason, "details")


def test_terminated_pods_and_pods_being_deleted_are_skipped() -> None:
    deleted = pod()
    deleted["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    assert parse_router_pods({"items": [deleted, pod(phase="Failed"), pod(phase="Succeeded")]}) == []
    assert parse_router_pods({"items": None}) == []


def test_unschedulable_pod_has_a_message() -> None:
    scheduled = condition("PodScheduled", "Unschedulable", "False")
    assert parse_router_pods({"items": [pod(conditions=[scheduled])]})[0].unschedulable == "details"


def test_request_keeps_its_share_of_the_limit() -> None:
    assert resources_for(4, 2, 0.5) == {"requests": {"cpu": "1"}, "limits": {"cpu": "4"}}
    assert resources_for(0.5, 1, 1) == {"requests": {"cpu": "500m"}, "limits": {"cpu": "500m"}}
    assert resources_for(2, 1, None) == {"requests": {"cpu": "2"}, "limits": {"cpu": "2"}}


def test_deployment_is_rolled_out_when_all_its_pods_have_its_template() -> None:
    raw: dict[str, Any] = {"metadata": {"uid": "u", "generation": 3}, "spec": {"replicas": 2, "template": pod()}}
    for status, is_rolled_out in (
        ({}, False),
        ({"observedGeneration": 3, "replicas": 3, "updatedReplicas": 1, "availableReplicas": 2}, False),
        ({"observedGeneration": 2, "replicas": 2, "updatedReplicas": 2, "availableReplicas": 2}, False),
        ({"observedGeneration": 3, "replicas": 2, "updatedReplicas": 2, "availableReplicas": 2}, True),
    ):
        found = parse_router_deployment(raw | {"status": status})
        assert (found.is_rolled_out, found.replicas, found.limit) == (is_rolled_out, 2, 2)


def annotated(cpu: str | None) -> dict[str, Any]:
    return {"annotations": {} if cpu is None else {"azureml-fe/cpu-limit": cpu}}


def container(cpu: str) -> list[dict[str, Any]]:
    return [{"name": "azureml-fe", "resources": {"limits": {"cpu": cpu}}}]


@pytest.mark.parametrize(
    ("template", "pods", "cpus"),
    [
        ("1", [("1", "1"), ("1", "4"), ("1", "4")], 4),  # a new pod gets the size of the others
        ("1", [("2", "2"), ("2", "2")], 1),  # an upgrade that shrinks the CPU: before the first new pod,
        ("1", [("2", "2"), ("2", "2"), ("1", "1")], 1),  # and after it
        ("4", [("2", "1"), ("2", "1"), ("4", "4")], 4),  # pods that were shrunk, as there is little load
        ("2", [("1", "4"), ("1", "4"), ("2", "2")], 4),  # pods that were grown: the load needs their size
        ("1", [(None, "2"), ("1", "1")], 2),  # an upgrade from a release without the annotation
        ("1000m", [("1", "1"), ("1", "2")], 2),  # another notation of the same number
    ],
)
def test_pods_should_have_the_cpus_of_the_template_unless_the_load_needs_more(
    template: str, pods: list[tuple[str | None, str]], cpus: float
) -> None:
    spec = {"template": {"metadata": annotated(template), "spec": {"containers": container(template)}}}
    deployment = parse_router_deployment({"metadata": {}, "spec": spec})
    items = [
        {"metadata": {"name": "p", **annotated(created)}, "spec": {"containers": container(limit)}}
        for created, limit in pods
    ]
    assert common_cpus(deployment, parse_router_pods({"items": items})) == cpus


@pytest.mark.parametrize("annotation", [None, "2", "many"])
def test_annotation_that_is_not_the_limit_of_the_template_is_ignored(annotation: str | None) -> None:
    template = {"metadata": annotated(annotation), "spec": {"containers": container("1")}}
    deployment = parse_router_deployment({"metadata": {}, "spec": {"template": template}})
    (found,) = parse_router_pods(
        {"items": [{"metadata": {"name": "p", **annotated("2")}, "spec": {"containers": container("2")}}]}
    )
    assert not deployment.replaces(found)
    assert common_cpus(deployment, [found]) == 2


def test_pods_without_cpu_limit_have_no_size() -> None:
    deployment = parse_router_deployment({"metadata": {}, "spec": {}})
    assert common_cpus(deployment, parse_router_pods({"items": [{"metadata": {"name": "p"}}]})) is None
