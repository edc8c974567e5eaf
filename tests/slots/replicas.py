"""Replicas of a version for tests."""

from collections.abc import Iterable

from router.model.services import Replica, ReplicaState
from router.model.version_replicas import VersionReplicas


def ready(*ids: str, slots: int = 1, cordoned: Iterable[str] = ()) -> VersionReplicas:
    """Ready replicas with these ids."""
    replicas = tuple(Replica(replica_id, "127.0.0.1", 5001, ReplicaState.READY) for replica_id in ids)
    return VersionReplicas(replicas, frozenset(cordoned), slots)
