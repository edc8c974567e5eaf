"""The interface between the supervisor and a cluster, which runs the replicas.

Does not contain: anything about Kubernetes, processes or files (`cluster.kubernetes`, `cluster.local`).

A cluster reports services and replicas to its listener, and changes the number of replicas. It never handles a request.
It calls the listener in the supervisor's event loop. Each report is complete and replaces the previous one, so a
listener that has missed a report only needs the next one.
"""

from collections.abc import Collection, Mapping
from typing import Protocol

from router.model.services import Replica, Service, VersionKey

__all__ = ["Cluster", "ClusterListener"]


class ClusterListener(Protocol):
    """Receives the reports of a cluster. The methods must not block."""

    def services_changed(self, services: Mapping[str, Service]) -> None:
        """Receive all services by name, with their keys. Called before the replicas of a new version are reported."""

    def replicas_changed(self, key: VersionKey, replicas: tuple[Replica, ...]) -> None:
        """Receive all replicas of one version. After a version was removed, the reports continue while its replicas
        drain; the last one is empty."""

    def replicas_changed_externally(self, key: VersionKey, replicas: int) -> None:
        """Receive the desired number of replicas of a version after another program or a user has set it. Also called
        with the initial number of a new version."""

    def scaling_suspended(self, key: VersionKey, why: str | None) -> None:
        """Receive the reason why a version must not be scaled; None if it may be scaled again."""

    def notice(
        self, key: VersionKey | None, level: int, message: str, *, text: str | None = "", **fields: object
    ) -> None:
        """Receive a message for operators: a constant text, a level of `logging`, and fields. `key` is the version
        concerned, None if the message is not about a version. `text` is as in `telemetry.log.event`."""


class Cluster(Protocol):
    """Runs the replicas of all services."""

    async def start(self, listener: ClusterListener) -> None:
        """Start to report, and return after the first complete report. Raises `SettingsError` and OSError."""

    def scale(self, key: VersionKey, replicas: int, remove: Collection[str] = ()) -> None:
        """Set the desired number of replicas of a version, without waiting for the effect. If the number decreases, the
        replicas in `remove` are removed first. `remove` has the ids of replicas that the caller has drained."""

    def report_ejection(self, key: VersionKey, replica_id: str, reason: str) -> None:
        """A worker has ejected a replica, for a reason in words: tell the operators of the replica."""

    def report_server_error(self, key: VersionKey, replica_id: str, status: int) -> None:
        """A worker has received the first response of a replica with a status of 500 or more. Called at least once for
        each such replica."""

    async def stop(self) -> None:
        """Stop everything that `start` started. The caller has drained the replicas."""
