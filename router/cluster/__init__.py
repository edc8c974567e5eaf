"""What the supervisor and a cluster say to each other.

Lives here: the two protocols between them, and nothing else. Must not live here: anything that knows Kubernetes,
processes or files (`cluster.kubernetes`, `cluster.local`).

A cluster knows which services and replicas there are and can change how many; it never sees a request. It reports to
its listener from the supervisor's event loop, and each report is complete: it replaces the former one, so that a
listener needs no memory of what it missed.
"""

from collections.abc import Collection, Mapping
from typing import Protocol

from router.services import Replica, Service, VersionKey

__all__ = ["Cluster", "ClusterListener"]


class ClusterListener(Protocol):
    """Who hears what the cluster finds. The calls are plain functions and must not block."""

    def services_changed(self, services: Mapping[str, Service]) -> None:
        """All services there are, by name; keys are filled in. Comes before any replica of a new version is
        reported."""

    def replicas_changed(self, key: VersionKey, replicas: tuple[Replica, ...]) -> None:
        """All replicas of one version. For a version that `services_changed` no longer has, reports go on while its
        replicas drain, until an empty tuple says that the last one is gone."""

    def count_set(self, key: VersionKey, replicas: int) -> None:
        """Somebody else than the listener has set the number of replicas that a version is to have; also the number
        that it has when it is found."""

    def left_alone(self, key: VersionKey, why: str | None) -> None:
        """A version is not to be scaled from now on, as somebody else does it or nobody may; None: it is again."""

    def notice(self, key: VersionKey | None, level: int, message: str, **fields: object) -> None:
        """Something that an operator should read: a constant message, a level of `logging`, and what it is about."""


class Cluster(Protocol):
    """Where replicas live."""

    async def start(self, listener: ClusterListener) -> None:
        """Begin to report; returns once the first complete picture has been given. Raises `SettingsError`."""

    def scale(self, key: VersionKey, replicas: int, remove: Collection[str] = ()) -> None:
        """Want `replicas` of a version, from now on and without waiting for it. When some must go, those in `remove`
        (ids of replicas that the caller has drained) go first."""

    async def stop(self) -> None:
        """End all that `start` began; the caller has drained. What the cluster started itself is gone on return."""
