"""A ConfigMap that the leader writes and all routers watch: the next write, and two stores of one ConfigMap."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from router.cluster.kubernetes.client import ApiClient
from router.cluster.kubernetes.config_map_store import ConfigMapState, ConfigMapStore, Content
from router.cluster.kubernetes.credentials import load_credentials
from router.cluster.kubernetes.informers import InformerSet
from router.cluster.kubernetes.objects import ConfigMap, NamespacedName
from tests.kube_standin.client import Client
from tests.kube_standin.cluster import ROUTER, Cluster
from tests.kube_standin.fault_proxy import FaultProxy, RecordedRequest, failure_status
from tests.supervisor.harness import wait_until

NAME = NamespacedName("azureml", "azureml-fe-names")
RULES = [
    {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["list", "watch", "patch"], "resourceNames": ["kept"]},
    {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["create"]},
]


def config_map(version: str, **data: str) -> ConfigMap:
    return ConfigMap(*NAME, resource_version=version, data=data)


def state_of(*versions: ConfigMap | None) -> ConfigMapState:
    """Return a state whose watch has delivered these versions."""
    state = ConfigMapState(NAME)
    for version in versions:
        state.on_changed(None, version)
    return state


def test_missing_config_map_is_created() -> None:
    write = state_of().next_write({"a": "1"})
    assert write is not None
    assert write.replaces == ""
    assert write.body["metadata"] == {"namespace": "azureml", "name": "azureml-fe-names"}
    assert write.body["data"] == {"a": "1"}


def test_patch_has_only_the_changes_and_the_version_that_it_replaces() -> None:
    write = state_of(config_map("7", a="1", b="2", c="3")).next_write({"a": "1", "b": "4", "d": "5"})
    assert write is not None
    assert write.body == {"metadata": {"resourceVersion": "7"}, "data": {"b": "4", "d": "5", "c": None}}


def test_unchanged_content_is_not_written() -> None:
    assert state_of(config_map("7", a="1")).next_write({"a": "1"}) is None


def test_nothing_is_written_until_the_watch_has_delivered_the_last_write() -> None:
    state = state_of(config_map("7"))
    write = state.next_write({"a": "1"})
    assert write is not None
    state.on_written(write)
    assert state.next_write({"a": "1", "b": "2"}) is None
    state.on_changed(None, config_map("8", a="1"))
    following = state.next_write({"a": "1", "b": "2"})
    assert following is not None
    assert following.body["data"] == {"b": "2"}


def test_watch_may_deliver_a_write_before_its_response() -> None:
    state = state_of(config_map("7"))
    write = state.next_write({"a": "1"})
    assert write is not None
    state.on_changed(None, config_map("8", a="1"))
    state.on_written(write)
    assert state.next_write({"a": "2"}) is not None


def test_config_map_that_was_created_and_deleted_again_is_created() -> None:
    state = state_of()
    write = state.next_write({"a": "1"})
    assert write is not None
    state.on_written(write)
    state.on_changed(None, config_map("8", a="1"))
    state.on_changed(config_map("8", a="1"), None)
    again = state.next_write({"a": "1"})
    assert again is not None
    assert again.replaces == ""


def test_last_content_is_kept_if_the_config_map_is_deleted() -> None:
    state = state_of(config_map("7", a="1"), None)
    assert state.content == {"a": "1"}
    assert state_of().content is None


class _Router:
    """One store and its watch. It leads while `leads` is true, and adds the entries of `additions`."""

    def __init__(self, api: ApiClient, namespace: str) -> None:
        self.leads = False
        self.additions: dict[str, str] = {}
        self.delivered: list[Content] = []
        self.store = ConfigMapStore(
            api,
            NamespacedName(namespace, "kept"),
            may_write=lambda: self.leads,
            desired=lambda: {**(self.store.content or {}), **self.additions},
            on_content=self.delivered.append,
        )
        self.informers = InformerSet(api)
        self.informers.add(self.store.resource, (namespace,), self.store.on_changed)

    def write(self, **additions: str) -> None:
        self.additions, self.leads = additions, True
        self.store.wake()


@contextlib.asynccontextmanager
async def routers(cluster: Cluster, proxy: FaultProxy, count: int = 2) -> AsyncIterator[list[_Router]]:
    """Yield routers whose stores run."""
    cluster.create_service_account(ROUTER)
    cluster.grant(ROUTER, RULES)
    api = ApiClient(await load_credentials(cluster.write_kubeconfig(ROUTER, proxy.access)))
    all_routers = [_Router(api, cluster.namespace) for _ in range(count)]
    tasks = []
    try:
        for each in all_routers:
            await each.informers.start()
            tasks.append(asyncio.ensure_future(each.store.run()))
        yield all_routers
    finally:
        for task in tasks:
            task.cancel()
        for each in all_routers:
            await each.informers.stop()
        await api.close()
        await asyncio.sleep(0.05)  # a cancelled TLS connection closes in later turns of the event loop


async def test_all_routers_have_what_the_leader_has_written(cluster: Cluster, proxy: FaultProxy) -> None:
    async with routers(cluster, proxy) as (first, second):
        first.write(a="1")
        await wait_until(lambda: second.store.content == {"a": "1"})
        first.write(b="2")
        await wait_until(lambda: second.store.content == {"a": "1", "b": "2"})
        first.leads = False
        second.write(c="3")
        await wait_until(lambda: first.store.content == {"a": "1", "b": "2", "c": "3"})
        assert first.delivered == [{"a": "1"}, {"a": "1", "b": "2"}, {"a": "1", "b": "2", "c": "3"}]


async def test_deleted_config_map_is_created_again_with_its_content(cluster: Cluster, proxy: FaultProxy) -> None:
    async with routers(cluster, proxy) as (first, second):
        first.write(a="1")
        await wait_until(lambda: second.store.content == {"a": "1"})
        first.leads = False
        cluster.client.delete("configmaps", cluster.namespace, "kept")
        second.write()
        await wait_until(lambda: cluster.client.find("configmaps", cluster.namespace, "kept"))
        assert cluster.client.get("configmaps", cluster.namespace, "kept")["data"] == {"a": "1"}


async def test_write_that_another_one_preceded_is_computed_again(cluster: Cluster, proxy: FaultProxy) -> None:
    preceding: list[dict[str, object]] = []

    def write_first(request: RecordedRequest) -> bool:
        if request.method == "PATCH" and not preceding:
            preceding.append({"data": {"theirs": "2"}})
            with contextlib.closing(Client(cluster.access)) as client:  # this is the thread of the proxy
                client.patch("configmaps", cluster.namespace, "kept", preceding[0])
        return False

    async with routers(cluster, proxy, count=1) as (leader,):
        leader.write(a="1")
        await wait_until(lambda: leader.store.content == {"a": "1"})
        with proxy.fault(write_first):
            leader.write(ours="3")
            await wait_until(lambda: leader.store.content == {"a": "1", "theirs": "2", "ours": "3"})
        assert preceding
        assert leader.store.failure == ""


async def test_refused_write_is_a_failure_and_is_retried(cluster: Cluster, proxy: FaultProxy) -> None:
    async with routers(cluster, proxy, count=1) as (leader,):
        refusal = failure_status(403, "Forbidden", "exceeded quota")
        with proxy.fault(lambda request: request.method == "POST", status=403, body=refusal):
            leader.write(a="1")
            await wait_until(lambda: "exceeded quota" in leader.store.failure)
        await wait_until(lambda: leader.store.content == {"a": "1"})
        assert leader.store.failure == ""


async def test_failure_ends_when_another_router_leads_or_no_write_is_due(cluster: Cluster, proxy: FaultProxy) -> None:
    async with routers(cluster, proxy, count=1) as (leader,):
        leader.write(a="1")
        await wait_until(lambda: leader.store.content == {"a": "1"})
        refusal = failure_status(403, "Forbidden", "exceeded quota")
        with proxy.fault(lambda request: request.method == "PATCH", status=403, body=refusal):
            leader.write(b="2")
            await wait_until(lambda: "exceeded quota" in leader.store.failure)
            leader.leads = False
            await wait_until(lambda: leader.store.failure == "")
            leader.write(b="2")
            await wait_until(lambda: "exceeded quota" in leader.store.failure)
            leader.additions.clear()
            await wait_until(lambda: leader.store.failure == "")
