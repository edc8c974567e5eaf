"""The cluster of a router that has joined: what a peer tells, and nothing before somebody can hear it."""

import asyncio
from collections.abc import Mapping

import pytest

from router.cluster.joined import JoinedCluster
from router.services import Replica, ReplicaState, Service, VersionKey

KEY = ("echo", "default")
REPLICA = Replica("echo-1", "127.0.0.1", 9001, ReplicaState.READY)


class Listener:
    """Keeps what it hears."""

    def __init__(self) -> None:
        self.heard: list[object] = []

    def services_changed(self, services: Mapping[str, Service]) -> None:
        self.heard.append(dict(services))

    def replicas_changed(self, key: VersionKey, replicas: tuple[Replica, ...]) -> None:
        self.heard.append((key, replicas))

    def count_set(self, key: VersionKey, replicas: int) -> None:
        raise AssertionError("nobody else sets the number of replicas here")

    def left_alone(self, key: VersionKey, why: str | None) -> None:
        raise AssertionError("every version is scaled here")

    def notice(self, key: VersionKey | None, level: int, message: str, **fields: object) -> None:
        raise AssertionError(message)


def test_what_is_told_while_it_joins_is_heard() -> None:
    async def join() -> None:
        cluster.services_told({})
        cluster.replicas_told(KEY, (REPLICA,))

    cluster, listener = JoinedCluster(join), Listener()
    asyncio.run(cluster.start(listener))
    assert listener.heard == [{}, (KEY, (REPLICA,))]


def test_the_start_lasts_until_services_are_told() -> None:
    async def join() -> None:
        joined.set()

    async def scenario() -> None:
        starting = asyncio.ensure_future(cluster.start(listener))
        await joined.wait()
        cluster.replicas_told(KEY, ())
        await asyncio.sleep(0)
        assert not starting.done()
        cluster.services_told({})
        await starting

    joined = asyncio.Event()
    cluster, listener = JoinedCluster(join), Listener()
    asyncio.run(scenario())


def test_why_it_cannot_join_is_raised() -> None:
    async def join() -> None:
        raise OSError("peer port")

    with pytest.raises(OSError, match="peer port"):
        asyncio.run(JoinedCluster(join).start(Listener()))


def test_it_scales_nothing_and_hears_nothing_after_its_end() -> None:
    async def join() -> None:
        cluster.services_told({})

    async def scenario() -> None:
        await cluster.start(listener)
        cluster.scale(KEY, 3, ["echo-1"])
        await cluster.stop()
        cluster.services_told({})
        cluster.replicas_told(KEY, (REPLICA,))

    cluster, listener = JoinedCluster(join), Listener()
    asyncio.run(scenario())
    assert listener.heard == [{}]
