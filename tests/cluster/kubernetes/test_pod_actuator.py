"""The router's own size, changed through an API server: in place, by rollout, and by the number of pods."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from router.cluster.kubernetes import pod_actuator, router_workload
from router.cluster.kubernetes.client import ApiClient
from router.cluster.kubernetes.credentials import load_credentials
from router.cluster.kubernetes.event_recorder import EventRecorder
from router.cluster.kubernetes.objects import NamespacedName
from router.cluster.kubernetes.pod_actuator import PodActuator
from router.cluster.kubernetes.pod_resources import CPU_LIMIT_ANNOTATION, RouterPod
from router.cluster.kubernetes.router_workload import NotLeadingError, RouterWorkload
from router.scaling.self.actuator import NoRoomError, Outcome
from router.scaling.self.self_scaler import Size, SizeAction, SizeDecision, SizePolicy
from tests.cluster.kubernetes.roles import cluster_rules, self_scaling_rules
from tests.kube_standin.client import STRATEGIC
from tests.kube_standin.cluster import ROUTER, Cluster
from tests.kube_standin.resizing_nodes import ResizingNodes, cpus, create_router_deployment, running_resizing_nodes
from tests.processes import POLL_SECONDS, TIMEOUT_SECONDS

POLICY = SizePolicy(
    steps=(1, 2, 4), min_pods=1, max_pods=4, percentile=95,
    route_time_threshold_seconds=0.003, throttled_threshold=0.05,
    busy_cpu=0.1, cpu_threshold=0.4, scale_in_cpu_threshold=0.3,
    up_cooldown_seconds=15, down_cooldown_seconds=120, no_room_seconds=300,
)  # fmt: skip


@pytest.fixture(autouse=True)
def short_intervals() -> Iterator[None]:
    with (
        mock.patch.multiple(pod_actuator, OBSERVE_SECONDS=0.1, _POLL_SECONDS=0.05),
        mock.patch.object(router_workload, "PAGE_OBJECTS", 2),
    ):
        yield


@pytest.fixture
def nodes(cluster: Cluster) -> Iterator[ResizingNodes]:
    with running_resizing_nodes(cluster) as resizing:
        yield resizing


@contextlib.asynccontextmanager
async def running_actuator(
    cluster: Cluster, *, leads: Callable[[], bool] = lambda: True, kubeconfig: Path | None = None
) -> AsyncIterator[PodActuator]:
    api = ApiClient(await load_credentials(kubeconfig or cluster.admin))
    events = EventRecorder(api, "azureml-fe-1")
    actuator = PodActuator(
        api, NamespacedName(cluster.namespace, ROUTER), events, POLICY, patience_seconds=0.5, may_write=leads
    )
    tasks = [asyncio.ensure_future(actuator.run()), asyncio.ensure_future(events.run())]
    try:
        yield actuator
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        await api.close()
        await asyncio.sleep(0.05)  # a cancelled TLS connection closes in later turns of the event loop


async def wait_until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(TIMEOUT_SECONDS):
        while not condition():
            await asyncio.sleep(POLL_SECONDS)


def limits(cluster: Cluster) -> list[float]:
    """CPU limits of the pods that are not being deleted."""
    return sorted(
        cpus(pod["spec"]["containers"][0]["resources"]["limits"]["cpu"])
        for pod in cluster.list_pods(ROUTER)
        if "deletionTimestamp" not in pod["metadata"]
    )


def template(cluster: Cluster) -> Any:
    return cluster.client.get("deployments", cluster.namespace, ROUTER)["spec"]["template"]


@pytest.fixture
def router_pods(pods_without_kubelet: Cluster, nodes: ResizingNodes) -> Cluster:
    """Two pods with one CPU each, on nodes that resize them."""
    return pods_without_kubelet


@pytest.fixture
def pods_without_kubelet(cluster: Cluster) -> Cluster:
    """A Deployment with two pods with one CPU each. No node resizes them, and nothing runs in them."""
    create_router_deployment(cluster, 2, {"requests": "500m", "limits": "1"})
    for number in (1, 2):
        add_pod(cluster, number)
    set_available(cluster, 2, generation=1)
    return cluster


def set_template_cpu(cluster: Cluster, cpu: str) -> None:
    """Change the template as an upgrade of the chart does."""
    container = {"name": ROUTER, "resources": {"limits": {"cpu": cpu}}}
    template = {"metadata": {"annotations": {CPU_LIMIT_ANNOTATION: cpu}}, "spec": {"containers": [container]}}
    cluster.client.patch("deployments", cluster.namespace, ROUTER, {"spec": {"template": template}}, kind=STRATEGIC)


def add_pod(cluster: Cluster, number: int, cpu: str = "1") -> None:
    resources = {"requests": {"cpu": "500m", "memory": "64Mi"}, "limits": {"cpu": cpu}}
    pod = {
        "metadata": {
            "name": f"azureml-fe-{number}",
            "labels": {"azuremlappname": ROUTER},
            "annotations": {CPU_LIMIT_ANNOTATION: cpu},
        },
        "spec": {
            "nodeName": "node-1",
            "containers": [{"name": ROUTER, "image": "azureml-fe:1", "resources": resources}],
        },
    }
    cluster.client.create("pods", cluster.namespace, pod)
    cluster.set_pod_running(f"azureml-fe-{number}", f"127.9.0.{number}")


def set_available(cluster: Cluster, pods: int, generation: int) -> None:
    """Set the Deployment's status: all its pods have the template of this generation and are available."""
    counts = ("replicas", "updatedReplicas", "readyReplicas", "availableReplicas")
    status = {**dict.fromkeys(counts, pods), "observedGeneration": generation}
    cluster.client.patch("deployments", cluster.namespace, ROUTER, {"status": status}, sub="status")


async def wait_for_size(actuator: PodActuator, size: Size) -> None:
    await wait_until(lambda: actuator.size() == size)


async def test_pods_are_resized_in_place_and_the_template_stays(router_pods: Cluster, nodes: ResizingNodes) -> None:
    before = template(router_pods)
    async with running_actuator(router_pods) as actuator:
        assert actuator.cpus_of_new_pods() is None  # nothing has been observed yet
        await wait_for_size(actuator, Size(1, 2))
        assert actuator.cpus_of_new_pods() == 1
        await actuator.apply(Size(2, 2))
        assert actuator.size() == Size(2, 2)
        assert actuator.cpus_of_new_pods() == 2
        assert limits(router_pods) == [2, 2]
        assert {name: cpus(applied[-1]) for name, applied in nodes.applied_limits.items()} == {
            "azureml-fe-1": 2,
            "azureml-fe-2": 2,
        }
        requests = {
            pod["spec"]["containers"][0]["resources"]["requests"]["cpu"] for pod in router_pods.list_pods(ROUTER)
        }
        assert {cpus(text) for text in requests} == {1.0}  # half of the limit, as before
        await actuator.apply(Size(1, 2))
        assert limits(router_pods) == [1, 1]
        assert template(router_pods) == before


@pytest.mark.parametrize("refusal", ["Infeasible", "Deferred"])
async def test_resize_that_a_node_refuses_is_undone(router_pods: Cluster, nodes: ResizingNodes, refusal: str) -> None:
    nodes.refusals[2] = refusal
    async with running_actuator(router_pods) as actuator:
        await wait_for_size(actuator, Size(1, 2))
        await actuator.apply(Size(2, 2))
        with pytest.raises(NoRoomError, match=f"azureml-fe-[12]: {refusal}: node has no room for 4"):
            await actuator.apply(Size(4, 2))
        assert limits(router_pods) == [2, 2]
        assert actuator.size() == Size(2, 2)


async def test_new_pod_is_resized_to_the_size_of_the_others(router_pods: Cluster, nodes: ResizingNodes) -> None:
    async with running_actuator(router_pods) as actuator:
        await wait_for_size(actuator, Size(1, 2))
        await actuator.apply(Size(2, 2))
        add_pod(router_pods, 3)
        await wait_until(lambda: limits(router_pods) == [2, 2, 2])


async def test_new_pod_whose_node_has_no_room_keeps_its_size(router_pods: Cluster, nodes: ResizingNodes) -> None:
    async with running_actuator(router_pods) as actuator:
        await wait_for_size(actuator, Size(1, 2))
        await actuator.apply(Size(2, 2))
        nodes.refusals[1] = "Infeasible"
        add_pod(router_pods, 3)
        await wait_until(lambda: router_pods.list_events(ROUTER, reason="RouterHasNoRoom"))
        assert limits(router_pods) == [1, 2, 2]
        nodes.refusals.clear()


async def test_pods_of_an_upgrade_that_shrinks_the_cpu_keep_their_size(
    router_pods: Cluster, nodes: ResizingNodes
) -> None:
    async with running_actuator(router_pods) as actuator:
        await wait_for_size(actuator, Size(1, 2))
        set_template_cpu(router_pods, "500m")
        await wait_until(lambda: actuator.cpus_of_new_pods() == 0.5)
        assert actuator.size() is None  # nothing is decided until all pods are new
        for old, new in ((1, 3), (2, 4)):
            add_pod(router_pods, new, "500m")
            await wait_until(partial(nodes.applied_limits.__contains__, f"azureml-fe-{new}"))
            router_pods.client.delete("pods", router_pods.namespace, f"azureml-fe-{old}")
        await wait_for_size(actuator, Size(0.5, 2))
    applied = {name: [cpus(limit) for limit in limits] for name, limits in nodes.applied_limits.items()}
    assert applied == {"azureml-fe-1": [1], "azureml-fe-2": [1], "azureml-fe-3": [0.5], "azureml-fe-4": [0.5]}


@pytest.fixture
def room(cluster: Cluster) -> str:
    """A node with four CPUs. Returns its name."""
    return cluster.create_node("large", cpu="4", memory="8Gi")


async def test_pod_is_added_if_a_node_has_room(router_pods: Cluster, room: str) -> None:
    async with running_actuator(router_pods) as actuator:
        await wait_for_size(actuator, Size(1, 2))
        adding = asyncio.ensure_future(actuator.apply(Size(1, 3)))
        await wait_until(lambda: router_pods.desired_replicas(ROUTER) == 3)
        assert not adding.done()
        set_available(router_pods, 3, generation=2)
        await adding
        assert actuator.size() == Size(1, 3)


async def test_no_pod_is_added_if_no_node_has_room(router_pods: Cluster, cluster: Cluster) -> None:
    name = cluster.create_node("small", cpu="400m", memory="8Gi")
    async with running_actuator(router_pods) as actuator:
        await wait_for_size(actuator, Size(1, 2))
        with pytest.raises(NoRoomError, match=f"are needed on one node .*{name}: 0.4 CPUs free"):
            await actuator.apply(Size(1, 3))
        assert router_pods.desired_replicas(ROUTER) == 2


async def test_added_pod_that_is_unschedulable_is_removed(router_pods: Cluster, room: str) -> None:
    async with running_actuator(router_pods) as actuator:
        await wait_for_size(actuator, Size(1, 2))
        adding = asyncio.ensure_future(actuator.apply(Size(1, 3)))
        await wait_until(lambda: router_pods.desired_replicas(ROUTER) == 3)
        unscheduled = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes"}
        add_pod(router_pods, 3)
        status = {"status": {"conditions": [unscheduled]}}
        router_pods.client.patch("pods", router_pods.namespace, "azureml-fe-3", status, sub="status")
        with pytest.raises(NoRoomError, match="azureml-fe-3: 0/1 nodes"):
            await adding
        assert router_pods.desired_replicas(ROUTER) == 2


async def test_pod_is_removed(router_pods: Cluster) -> None:
    async with running_actuator(router_pods) as actuator:
        await wait_for_size(actuator, Size(1, 2))
        removing = asyncio.ensure_future(actuator.apply(Size(1, 1)))
        await wait_until(lambda: router_pods.desired_replicas(ROUTER) == 1)
        set_available(router_pods, 1, generation=2)
        await removing


async def test_router_that_does_not_lead_has_no_size_and_writes_none(router_pods: Cluster) -> None:
    leading = True
    async with running_actuator(router_pods, leads=lambda: leading) as actuator:
        await wait_for_size(actuator, Size(1, 2))
        leading = False
        assert actuator.size() is None
        assert actuator.cpus_of_new_pods() is None
        with pytest.raises(NotLeadingError):
            await actuator.apply(Size(2, 2))
        assert limits(router_pods) == [1, 1]


async def test_new_pods_of_a_router_without_deployment_need_not_wait_for_a_size(router_pods: Cluster) -> None:
    router_pods.client.delete("deployments", router_pods.namespace, ROUTER)
    async with running_actuator(router_pods) as actuator:
        await wait_until(lambda: actuator.cpus_of_new_pods() == 0)
        assert actuator.size() is None


def clear_allocated_resources(cluster: Cluster, name: str) -> None:
    """Remove the resources from the pod's status, as a kubelet too old to resize pods reports it."""
    status = cluster.client.get("pods", cluster.namespace, name)["status"]["containerStatuses"]
    for each in status:
        each.pop("resources", None)
    cluster.client.patch("pods", cluster.namespace, name, {"status": {"containerStatuses": status}}, sub="status")


async def test_pods_roll_if_a_kubelet_is_too_old_to_resize_them(pods_without_kubelet: Cluster, room: str) -> None:
    clear_allocated_resources(pods_without_kubelet, "azureml-fe-2")
    async with running_actuator(pods_without_kubelet) as actuator:
        await wait_for_size(actuator, Size(1, 2))
        rollout = asyncio.ensure_future(actuator.apply(Size(2, 2)))
        await wait_until(lambda: template_cpu(pods_without_kubelet) == 2)
        assert limits(pods_without_kubelet) == [1, 1]  # the resize of the first pod was undone
        set_available(pods_without_kubelet, 2, generation=2)
        await rollout
        assert actuator.size() == Size(2, 2)


async def test_new_pod_over_the_quota_keeps_its_size_and_others_are_resized(
    router_pods: Cluster,
) -> None:
    async with running_actuator(router_pods) as actuator:
        await wait_for_size(actuator, Size(1, 2))
        await actuator.apply(Size(2, 2))
        with mock.patch.object(RouterWorkload, "resize_pod", side_effect=NoRoomError("exceeded quota: cpu")):
            add_pod(router_pods, 3)
            await wait_until(lambda: router_pods.list_events(ROUTER, reason="RouterHasNoRoom"))
        (event,) = router_pods.list_events(ROUTER, reason="RouterHasNoRoom")
        assert event["message"] == "azureml-fe-3 keeps the size of its template: exceeded quota: cpu"
        assert limits(router_pods) == [1, 2, 2]
        add_pod(router_pods, 4)
        await wait_until(lambda: limits(router_pods) == [1, 2, 2, 2])  # the actuator still runs


async def test_actuator_still_runs_after_a_resize_that_cannot_be_undone(
    router_pods: Cluster, nodes: ResizingNodes
) -> None:
    resize_pod, refused = RouterWorkload.resize_pod, []

    async def refuse_less(workload: RouterWorkload, pod: RouterPod, cpus: float) -> None:
        if pod.limit is not None and cpus < pod.limit:
            refused.append(pod.name)
            raise NoRoomError("minimum cpu usage per Container is 2")
        await resize_pod(workload, pod, cpus)

    async with running_actuator(router_pods) as actuator:
        await wait_for_size(actuator, Size(1, 2))
        await actuator.apply(Size(2, 2))
        nodes.refusals[1] = "Infeasible"
        with mock.patch.object(RouterWorkload, "resize_pod", refuse_less):
            add_pod(router_pods, 3)
            await wait_until(lambda: refused)
        nodes.refusals.clear()
        add_pod(router_pods, 4)
        await wait_until(lambda: limits(router_pods) == [2, 2, 2, 2])


# Pods that cannot be resized.


@pytest.fixture
def server_without_resize() -> Iterator[None]:
    """An API server without `pods/resize`, as before Kubernetes 1.33."""
    request = ApiClient.request

    async def request_without_resize(api: ApiClient, method: str, path: str, **options: Any) -> Any:
        response = await request(api, method, path, **options)
        if path == "/api/v1":
            response["resources"] = [each for each in response["resources"] if each["name"] != "pods/resize"]
        return response

    with mock.patch.object(ApiClient, "request", request_without_resize):
        yield


def template_cpu(cluster: Cluster) -> float:
    return cpus(template(cluster)["spec"]["containers"][0]["resources"]["limits"]["cpu"])


@pytest.mark.usefixtures("server_without_resize")
async def test_pods_roll_to_a_patched_template_without_resize(router_pods: Cluster, room: str) -> None:
    async with running_actuator(router_pods) as actuator:
        await wait_for_size(actuator, Size(1, 2))
        rollout = asyncio.ensure_future(actuator.apply(Size(2, 2)))
        await wait_until(lambda: template_cpu(router_pods) == 2)
        await wait_until(lambda: actuator.size() is None)  # while the pods roll
        assert actuator.cpus_of_new_pods() == 0
        assert template(router_pods)["metadata"]["annotations"] == {CPU_LIMIT_ANNOTATION: "2"}
        strategy = router_pods.client.get("deployments", router_pods.namespace, ROUTER)["spec"]["strategy"]
        assert strategy["rollingUpdate"]["maxUnavailable"] == 0
        set_available(router_pods, 2, generation=2)
        await rollout
        assert actuator.size() == Size(2, 2)


@pytest.mark.usefixtures("server_without_resize")
async def test_pods_do_not_roll_without_room_for_one_more(router_pods: Cluster, room: str) -> None:
    async with running_actuator(router_pods) as actuator:
        await wait_for_size(actuator, Size(1, 2))
        for filler in ("a", "b"):
            container = {"name": "c", "image": "i", "resources": {"requests": {"cpu": "1500m"}}}
            obj = {"metadata": {"name": filler}, "spec": {"nodeName": room, "containers": [container]}}
            router_pods.client.create("pods", router_pods.namespace, obj)
        with pytest.raises(NoRoomError, match="2 CPUs and 64 MiB are needed on one node"):
            await actuator.apply(Size(4, 2))
        assert template_cpu(router_pods) == 1


async def test_pods_roll_if_the_role_forbids_to_resize_them(
    router_pods: Cluster, room: str, caplog: pytest.LogCaptureFixture
) -> None:
    router_pods.create_service_account(ROUTER)
    router_pods.grant(ROUTER, self_scaling_rules(withheld="pods/resize"))
    router_pods.grant(ROUTER, cluster_rules(), everywhere=True)

    async with running_actuator(router_pods, kubeconfig=router_pods.write_kubeconfig(ROUTER)) as actuator:
        await wait_for_size(actuator, Size(1, 2))
        rollout = asyncio.ensure_future(actuator.apply(Size(2, 2)))
        await wait_until(lambda: template_cpu(router_pods) == 2)
        assert limits(router_pods) == [1, 1]
        set_available(router_pods, 2, generation=2)
        await rollout
        assert actuator.size() == Size(2, 2)
    assert [each.message for each in caplog.records] == [
        "pods cannot be resized in place, so they are replaced instead"
    ]


# Events.


async def test_each_outcome_is_an_event_of_the_deployment(router_pods: Cluster) -> None:
    async with running_actuator(router_pods) as actuator:
        await wait_for_size(actuator, Size(1, 2))
        actuator.on_outcome(SizeDecision(SizeAction.MORE_CPU, Size(2, 2), "slow: 1 to 2 CPUs"), Outcome.DONE, "")
        actuator.on_outcome(
            SizeDecision(SizeAction.MORE_PODS, Size(2, 3), "slow: 2 to 3 pods"), Outcome.NO_ROOM, "nodes are full"
        )
        actuator.on_outcome(
            SizeDecision(SizeAction.LIMITED, None, "slow, and 4 pods are the maximum"), Outcome.AT_LIMIT, ""
        )
        await wait_until(lambda: len(router_pods.list_events(ROUTER)) == 3)
    events = {(each["type"], each["reason"], each["message"]) for each in router_pods.list_events(ROUTER)}
    assert events == {
        ("Normal", "RouterResized", "slow: 1 to 2 CPUs: done"),
        ("Warning", "RouterHasNoRoom", "slow: 2 to 3 pods: no room: nodes are full"),
        ("Warning", "RouterAtLimit", "slow, and 4 pods are the maximum: not done"),
    }
