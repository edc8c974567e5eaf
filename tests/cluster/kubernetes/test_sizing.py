"""The router's own size, changed through an API server: in place, by rollout, and by the number of pods."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from router.cluster.kubernetes import sizing as sizing_module
from router.cluster.kubernetes.client import Api
from router.cluster.kubernetes.credentials import credentials
from router.cluster.kubernetes.recorder import Recorder
from router.cluster.kubernetes.sizing import PodsSizer
from router.scaling.self_scaler import Decision, Kind, Policy, Size
from router.scaling.sizer import NoRoomError
from tests.cluster.kubernetes.sized import rules
from tests.kubernetes.cluster import ROUTER, Cluster
from tests.kubernetes.resizing import Resizing, cpus, resizing, router_deployment
from tests.processes import PATIENCE_SECONDS, POLL_SECONDS

POLICY = Policy(
    steps=(1, 2, 4), min_pods=1, max_pods=4, percent=95, slow_seconds=0.003, busy_cpu=0.1, down_cpu=0.4,
    scale_in_cpu=0.3, up_seconds=15, down_seconds=120, no_room_seconds=300,
)  # fmt: skip


@pytest.fixture(autouse=True)
def quick() -> Iterator[None]:
    with mock.patch.multiple(sizing_module, LOOK_SECONDS=0.1, _POLL_SECONDS=0.05, PAGE_OBJECTS=2):
        yield


@pytest.fixture
def nodes(cluster: Cluster) -> Iterator[Resizing]:
    with resizing(cluster) as found:
        yield found


@contextlib.asynccontextmanager
async def sizer_of(
    cluster: Cluster, *, leads: Callable[[], bool] = lambda: True, kubeconfig: Path | None = None
) -> AsyncIterator[PodsSizer]:
    api = Api(await credentials(kubeconfig or cluster.admin))
    recorder = Recorder(api, "azureml-fe-1")
    made = PodsSizer(api, cluster.namespace, recorder, POLICY, patience_seconds=0.5, may_write=leads)
    tasks = [asyncio.ensure_future(made.run()), asyncio.ensure_future(recorder.run())]
    try:
        yield made
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        await api.close()
        await asyncio.sleep(0.05)  # TLS of a request that was broken off ends in turns of the loop


def run(story: Coroutine[Any, Any, None]) -> None:
    asyncio.run(story)


async def becomes(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not holds():
            await asyncio.sleep(POLL_SECONDS)


def limits(cluster: Cluster) -> list[float]:
    """CPU limits of the pods that stay."""
    return sorted(
        cpus(pod["spec"]["containers"][0]["resources"]["limits"]["cpu"])
        for pod in cluster.pods(ROUTER)
        if "deletionTimestamp" not in pod["metadata"]
    )


def template(cluster: Cluster) -> Any:
    return cluster.client.get("deployments", cluster.namespace, ROUTER)["spec"]["template"]


@pytest.fixture
def installed(bare: Cluster, nodes: Resizing) -> Cluster:
    """Two pods of one CPU on nodes that resize them."""
    return bare


@pytest.fixture
def bare(cluster: Cluster) -> Cluster:
    """Two pods of one CPU, without anything that runs in them, as a controller would have made them."""
    router_deployment(cluster, 2, {"requests": "500m", "limits": "1"})
    for number in (1, 2):
        add_pod(cluster, number)
    set_status(cluster, replicas=2, updatedReplicas=2, readyReplicas=2, availableReplicas=2, observedGeneration=1)
    return cluster


def add_pod(cluster: Cluster, number: int) -> None:
    resources = {"requests": {"cpu": "500m", "memory": "64Mi"}, "limits": {"cpu": "1"}}
    thing = {
        "metadata": {"name": f"azureml-fe-{number}", "labels": {"azuremlappname": ROUTER}},
        "spec": {
            "nodeName": "node-1",
            "containers": [{"name": ROUTER, "image": "azureml-fe:1", "resources": resources}],
        },
    }
    cluster.client.create("pods", cluster.namespace, thing)
    cluster.pod_runs(f"azureml-fe-{number}", f"127.9.0.{number}")


def set_status(cluster: Cluster, **status: int) -> None:
    cluster.client.patch("deployments", cluster.namespace, ROUTER, {"status": status}, sub="status")


async def knows(sizer: PodsSizer, size: Size) -> None:
    await becomes(lambda: sizer.size() == size)


def test_pods_are_resized_in_place_and_the_template_stays(installed: Cluster, nodes: Resizing) -> None:
    async def story() -> None:
        before = template(installed)
        async with sizer_of(installed) as sizer:
            assert sizer.cpus_of_new_pods() is None  # nothing is known yet
            await knows(sizer, Size(1, 2))
            assert sizer.cpus_of_new_pods() == 1
            await sizer.bring_about(Size(2, 2))
            assert sizer.size() == Size(2, 2)
            assert sizer.cpus_of_new_pods() == 2
            assert limits(installed) == [2, 2]
            assert {name: cpus(given[-1]) for name, given in nodes.given.items()} == {
                "azureml-fe-1": 2,
                "azureml-fe-2": 2,
            }
            requests = {pod["spec"]["containers"][0]["resources"]["requests"]["cpu"] for pod in installed.pods(ROUTER)}
            assert {cpus(text) for text in requests} == {1.0}  # half of the limit, as installed
            await sizer.bring_about(Size(1, 2))
            assert limits(installed) == [1, 1]
            assert template(installed) == before

    run(story())


@pytest.mark.parametrize("refusal", ["Infeasible", "Deferred"])
def test_what_a_node_refuses_is_undone(installed: Cluster, nodes: Resizing, refusal: str) -> None:
    async def story() -> None:
        nodes.refusals[2] = refusal
        async with sizer_of(installed) as sizer:
            await knows(sizer, Size(1, 2))
            await sizer.bring_about(Size(2, 2))
            with pytest.raises(NoRoomError, match=f"azureml-fe-[12]: {refusal}: node has no room for 4"):
                await sizer.bring_about(Size(4, 2))
            assert limits(installed) == [2, 2]
            assert sizer.size() == Size(2, 2)

    run(story())


def test_a_new_pod_is_brought_to_the_size_of_the_rest(installed: Cluster, nodes: Resizing) -> None:
    async def story() -> None:
        async with sizer_of(installed) as sizer:
            await knows(sizer, Size(1, 2))
            await sizer.bring_about(Size(2, 2))
            add_pod(installed, 3)
            await becomes(lambda: limits(installed) == [2, 2, 2])

    run(story())


def test_a_new_pod_whose_node_has_no_room_stays_as_it_came(installed: Cluster, nodes: Resizing) -> None:
    async def story() -> None:
        async with sizer_of(installed) as sizer:
            await knows(sizer, Size(1, 2))
            await sizer.bring_about(Size(2, 2))
            nodes.refusals[1] = "Infeasible"
            add_pod(installed, 3)
            await becomes(lambda: installed.events(ROUTER, reason="RouterHasNoRoom"))
            assert limits(installed) == [1, 2, 2]
            nodes.refusals.clear()

    run(story())


@pytest.fixture
def room(cluster: Cluster) -> str:
    """A node with room for four CPUs."""
    return cluster.node("roomy", cpu="4", memory="8Gi")


def test_pods_are_added_where_a_node_has_room(installed: Cluster, room: str) -> None:
    async def story() -> None:
        async with sizer_of(installed) as sizer:
            await knows(sizer, Size(1, 2))
            adding = asyncio.ensure_future(sizer.bring_about(Size(1, 3)))
            await becomes(lambda: installed.replicas(ROUTER) == 3)
            assert not adding.done()
            set_status(
                installed, replicas=3, updatedReplicas=3, readyReplicas=3, availableReplicas=3, observedGeneration=2
            )
            await adding
            assert sizer.size() == Size(1, 3)

    run(story())


def test_no_pod_is_added_where_no_node_has_room(installed: Cluster, cluster: Cluster) -> None:
    async def story() -> None:
        name = cluster.node("small", cpu="400m", memory="8Gi")
        async with sizer_of(installed) as sizer:
            await knows(sizer, Size(1, 2))
            with pytest.raises(NoRoomError, match=f"are needed on one node .*{name}: 0.4 CPUs free"):
                await sizer.bring_about(Size(1, 3))
            assert installed.replicas(ROUTER) == 2

    run(story())


def test_a_pod_that_finds_no_node_all_the_same_is_taken_back(installed: Cluster, room: str) -> None:
    async def story() -> None:
        async with sizer_of(installed) as sizer:
            await knows(sizer, Size(1, 2))
            adding = asyncio.ensure_future(sizer.bring_about(Size(1, 3)))
            await becomes(lambda: installed.replicas(ROUTER) == 3)
            homeless = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes"}
            add_pod(installed, 3)
            status = {"status": {"conditions": [homeless]}}
            installed.client.patch("pods", installed.namespace, "azureml-fe-3", status, sub="status")
            with pytest.raises(NoRoomError, match="azureml-fe-3: 0/1 nodes"):
                await adding
            assert installed.replicas(ROUTER) == 2

    run(story())


def test_a_pod_fewer(installed: Cluster) -> None:
    async def story() -> None:
        async with sizer_of(installed) as sizer:
            await knows(sizer, Size(1, 2))
            removing = asyncio.ensure_future(sizer.bring_about(Size(1, 1)))
            await becomes(lambda: installed.replicas(ROUTER) == 1)
            set_status(
                installed, replicas=1, updatedReplicas=1, readyReplicas=1, availableReplicas=1, observedGeneration=2
            )
            await removing

    run(story())


def test_who_does_not_lead_neither_knows_a_size_nor_writes_one(installed: Cluster) -> None:
    async def story() -> None:
        leading = True
        async with sizer_of(installed, leads=lambda: leading) as sizer:
            await knows(sizer, Size(1, 2))
            leading = False
            assert sizer.size() is None
            assert sizer.cpus_of_new_pods() is None
            with pytest.raises(RuntimeError, match="another router leads"):
                await sizer.bring_about(Size(2, 2))
            assert limits(installed) == [1, 1]

    run(story())


def test_new_pods_of_a_router_that_runs_by_other_means_need_not_wait_for_a_size(installed: Cluster) -> None:
    async def story() -> None:
        installed.client.delete("deployments", installed.namespace, ROUTER)
        async with sizer_of(installed) as sizer:
            await becomes(lambda: sizer.cpus_of_new_pods() == 0)
            assert sizer.size() is None

    run(story())


def without_resize(cluster: Cluster, name: str) -> None:
    """As a kubelet older than the API server says it: nothing of what the container was given."""
    status = cluster.client.get("pods", cluster.namespace, name)["status"]["containerStatuses"]
    for each in status:
        each.pop("resources", None)
    cluster.client.patch("pods", cluster.namespace, name, {"status": {"containerStatuses": status}}, sub="status")


def test_where_a_node_is_older_than_the_api_server_pods_roll(bare: Cluster, room: str) -> None:
    async def story() -> None:
        without_resize(bare, "azureml-fe-2")
        async with sizer_of(bare) as sizer:
            await knows(sizer, Size(1, 2))
            rolling = asyncio.ensure_future(sizer.bring_about(Size(2, 2)))
            await becomes(lambda: template_cpu(bare) == 2)
            assert limits(bare) == [1, 1]  # what was resized already is undone
            set_status(bare, replicas=2, updatedReplicas=2, readyReplicas=2, availableReplicas=2, observedGeneration=2)
            await rolling
            assert sizer.size() == Size(2, 2)

    run(story())


def test_a_new_pod_that_is_refused_its_size_is_left_as_it_came_and_the_rest_is_followed(installed: Cluster) -> None:
    async def story() -> None:
        async with sizer_of(installed) as sizer:
            await knows(sizer, Size(1, 2))
            await sizer.bring_about(Size(2, 2))
            with mock.patch.object(PodsSizer, "_resize", side_effect=NoRoomError("exceeded quota: cpu")):
                add_pod(installed, 3)
                await becomes(lambda: installed.events(ROUTER, reason="RouterHasNoRoom"))
            (event,) = installed.events(ROUTER, reason="RouterHasNoRoom")
            assert event["message"] == "azureml-fe-3 stays at its template's size: exceeded quota: cpu"
            assert limits(installed) == [1, 2, 2]
            add_pod(installed, 4)
            await becomes(lambda: limits(installed) == [1, 2, 2, 2])  # it goes on

    run(story())


# Where pods cannot be resized.


@pytest.fixture
def no_resize() -> Iterator[None]:
    """An API server that does not offer it, as before Kubernetes 1.33."""
    request = Api.request

    async def without(api: Api, method: str, path: str, **options: Any) -> Any:
        answer = await request(api, method, path, **options)
        if path == "/api/v1":
            answer["resources"] = [each for each in answer["resources"] if each["name"] != "pods/resize"]
        return answer

    with mock.patch.object(Api, "request", without):
        yield


def template_cpu(cluster: Cluster) -> float:
    return cpus(template(cluster)["spec"]["containers"][0]["resources"]["limits"]["cpu"])


@pytest.mark.usefixtures("no_resize")
def test_without_resize_the_template_is_patched_and_pods_roll(installed: Cluster, room: str) -> None:
    async def story() -> None:
        async with sizer_of(installed) as sizer:
            await knows(sizer, Size(1, 2))
            rolling = asyncio.ensure_future(sizer.bring_about(Size(2, 2)))
            await becomes(lambda: template_cpu(installed) == 2)
            await becomes(lambda: sizer.size() is None)  # on the way
            assert sizer.cpus_of_new_pods() == 0
            strategy = installed.client.get("deployments", installed.namespace, ROUTER)["spec"]["strategy"]
            assert strategy["rollingUpdate"]["maxUnavailable"] == 0
            set_status(
                installed, replicas=2, updatedReplicas=2, readyReplicas=2, availableReplicas=2, observedGeneration=2
            )
            await rolling
            assert sizer.size() == Size(2, 2)

    run(story())


@pytest.mark.usefixtures("no_resize")
def test_without_resize_nothing_rolls_where_there_is_no_room_for_one_more(installed: Cluster, room: str) -> None:
    async def story() -> None:
        async with sizer_of(installed) as sizer:
            await knows(sizer, Size(1, 2))
            for filler in ("a", "b"):
                container = {"name": "c", "image": "i", "resources": {"requests": {"cpu": "1500m"}}}
                thing = {"metadata": {"name": filler}, "spec": {"nodeName": room, "containers": [container]}}
                installed.client.create("pods", installed.namespace, thing)
            with pytest.raises(NoRoomError, match="2 CPUs and 64 MiB are needed on one node"):
                await sizer.bring_about(Size(4, 2))
            assert template_cpu(installed) == 1

    run(story())


def test_who_may_not_resize_pods_has_them_roll(installed: Cluster, room: str, caplog: pytest.LogCaptureFixture) -> None:
    installed.account(ROUTER)
    installed.allow(ROUTER, rules("own", withheld="pods/resize"))
    installed.allow(ROUTER, rules("cluster"), everywhere=True)

    async def story() -> None:
        async with sizer_of(installed, kubeconfig=installed.kubeconfig(ROUTER)) as sizer:
            await knows(sizer, Size(1, 2))
            rolling = asyncio.ensure_future(sizer.bring_about(Size(2, 2)))
            await becomes(lambda: template_cpu(installed) == 2)
            assert limits(installed) == [1, 1]
            set_status(
                installed, replicas=2, updatedReplicas=2, readyReplicas=2, availableReplicas=2, observedGeneration=2
            )
            await rolling
            assert sizer.size() == Size(2, 2)

    run(story())
    assert [each.message for each in caplog.records] == ["pods may not be resized in place, so they roll instead"]


# Words.


def test_each_decision_is_an_event_of_the_deployment(installed: Cluster) -> None:
    async def story() -> None:
        async with sizer_of(installed) as sizer:
            await knows(sizer, Size(1, 2))
            sizer.decided(Decision(Kind.MORE_CPU, Size(2, 2), "slow: 1 to 2 CPUs"), "done", "")
            sizer.decided(Decision(Kind.MORE_PODS, Size(2, 3), "slow: 2 to 3 pods"), "no room", "nodes are full")
            sizer.decided(Decision(Kind.LIMITED, None, "slow, and 4 pods are the most"), "not done", "")
            await becomes(lambda: len(installed.events(ROUTER)) == 3)
        said = {(each["type"], each["reason"], each["message"]) for each in installed.events(ROUTER)}
        assert said == {
            ("Normal", "RouterResized", "slow: 1 to 2 CPUs: done"),
            ("Warning", "RouterHasNoRoom", "slow: 2 to 3 pods: no room: nodes are full"),
            ("Warning", "RouterAtLimit", "slow, and 4 pods are the most: not done"),
        }

    run(story())
