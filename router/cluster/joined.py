"""The cluster of a router that has joined another router.

The other router starts, scales and stops the replicas, and reports them. The joined router only sends requests to them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping

from router.cluster import ClusterListener
from router.model.services import Replica, Service, VersionKey


class JoinedCluster:
    """A `Cluster` whose services and replicas a peer reports. While the peer is unreachable, the last report stays in
    effect."""

    def __init__(self, join: Callable[[], Awaitable[None]]) -> None:
        """`join` connects to the peers."""
        self._join = join
        self._listener: ClusterListener | None = None
        self._has_services = asyncio.Event()

    async def start(self, listener: ClusterListener) -> None:
        """Return once the other router has reported its services. Raises the exceptions of `join`."""
        self._listener = listener
        await self._join()
        await self._has_services.wait()

    def receive_services(self, services: Mapping[str, Service]) -> None:
        """Pass a report of all services to the listener."""
        if self._listener is not None:
            self._listener.services_changed(services)
            self._has_services.set()

    def receive_replicas(self, key: VersionKey, replicas: tuple[Replica, ...]) -> None:
        """Pass a report of the replicas of a version to the listener."""
        if self._listener is not None:
            self._listener.replicas_changed(key, replicas)

    def scale(self, key: VersionKey, replicas: int, remove: Collection[str] = ()) -> None:
        """Do nothing: the other router scales."""

    def report_ejection(self, key: VersionKey, replica_id: str, reason: str) -> None:
        """Do nothing: the worker has logged it."""

    def report_server_error(self, key: VersionKey, replica_id: str, status: int) -> None:
        """Do nothing: the output of the replica is where the other router runs."""

    async def stop(self) -> None:
        """Stop passing on reports."""
        self._listener = None
