"""The cluster of a router that has joined another one: whatever that one says there is.

The other router starts, scales and stops the replicas. This one routes to them and tells what it sees.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping

from router.cluster import ClusterListener
from router.services import Replica, Service, VersionKey


class JoinedCluster:
    """A `Cluster` that is told by a peer. What it was told last stays in force when the peer is gone.

    `join` connects with peers; nothing can be told before.
    """

    def __init__(self, join: Callable[[], Awaitable[None]]) -> None:
        self._join = join
        self._listener: ClusterListener | None = None
        self._told = asyncio.Event()

    async def start(self, listener: ClusterListener) -> None:
        """Returns once the other router has told its services. Raises what `join` raises."""
        self._listener = listener
        await self._join()
        await self._told.wait()

    def services_told(self, services: Mapping[str, Service]) -> None:
        """The other router says which services there are."""
        if self._listener is not None:
            self._listener.services_changed(services)
            self._told.set()

    def replicas_told(self, key: VersionKey, replicas: tuple[Replica, ...]) -> None:
        """The other router says which replicas a version has."""
        if self._listener is not None:
            self._listener.replicas_changed(key, replicas)

    def scale(self, key: VersionKey, replicas: int, remove: Collection[str] = ()) -> None:
        """The other router does that."""

    async def stop(self) -> None:
        """Nothing was begun."""
        self._listener = None
