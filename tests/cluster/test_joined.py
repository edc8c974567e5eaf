"""The cluster of a router that has joined another: it passes on what the other router reports."""

import asyncio
from collections.abc import Mapping

import pytest

from router.cluster.joined import JoinedCluster
from router.model.services import Replica, ReplicaState, Service, VersionKey

KEY = ("echo", "default")
REPLICA = Replica("echo-1", "127.0.0.1", 9001, ReplicaState.READY)


class RecordingListener:
    """A `ClusterListener` that records services and replicas."""

    def __init__(self) -> None:
        self.reports: list[object] = []

    def services_changed(self, services: Mapping[str, Service]) -> None:
        self.reports.append(dict(services))

    def replicas_changed(self, key: VersionKey, replicas: tuple[Replica, ...]) -> None:
        self.reports.append((key, replicas))

    def replicas_changed_externally(self, key: VersionKey, replicas: int) -> None:
        raise AssertionError("a joined router does not report external changes")

    def scaling_suspended(self, key: VersionKey, why: str | None) -> None:
        raise AssertionError("a joined router does not suspend scaling")

    def notice(
        self, key: VersionKey | None, level: int, message: str, *, text: str | None = "", **fields: object
    ) -> None:
        raise AssertionError(message)


async def test_reports_received_while_joining_are_passed_on() -> None:
    async def join() -> None:
        cluster.receive_services({})
        cluster.receive_replicas(KEY, (REPLICA,))

    cluster, listener = JoinedCluster(join), RecordingListener()
    await cluster.start(listener)
    assert listener.reports == [{}, (KEY, (REPLICA,))]


async def test_start_waits_for_services() -> None:
    async def join() -> None:
        joined.set()

    joined = asyncio.Event()
    cluster = JoinedCluster(join)
    starting = asyncio.ensure_future(cluster.start(RecordingListener()))
    await joined.wait()
    cluster.receive_replicas(KEY, ())
    await asyncio.sleep(0)
    assert not starting.done()
    cluster.receive_services({})
    await starting


async def test_error_of_join_is_raised() -> None:
    async def join() -> None:
        raise OSError("peer port")

    with pytest.raises(OSError, match="peer port"):
        await JoinedCluster(join).start(RecordingListener())


async def test_stopped_cluster_passes_on_nothing() -> None:
    async def join() -> None:
        cluster.receive_services({})

    cluster, listener = JoinedCluster(join), RecordingListener()
    await cluster.start(listener)
    cluster.scale(KEY, 3, ["echo-1"])
    await cluster.stop()
    cluster.receive_services({})
    cluster.receive_replicas(KEY, (REPLICA,))
    assert listener.reports == [{}]
