"""The replicas of a version: which of them get new requests, and which only finish theirs."""

from dataclasses import replace

from router.model.services import Replica, ReplicaState
from router.model.version_replicas import NO_REPLICAS, VersionReplicas


def replica(replica_id: str, state: ReplicaState) -> Replica:
    return Replica(replica_id, "127.0.0.1", 5001, state)


REPLICAS = VersionReplicas(
    (
        replica("starting", ReplicaState.STARTING),
        replica("ready", ReplicaState.READY),
        replica("cordoned", ReplicaState.READY),
        replica("draining", ReplicaState.DRAINING),
    ),
    cordoned=frozenset({"cordoned", "removed"}),
    slots=2,
)


def test_only_ready_replicas_that_are_not_cordoned_are_open() -> None:
    assert REPLICAS.open_ids == {"ready"}


def test_draining_and_cordoned_replicas_are_closed() -> None:
    assert REPLICAS.closed_ids == {"cordoned", "draining"}


def test_replicas_that_are_starting_are_neither_started_nor_open_nor_closed() -> None:
    assert [each.id for each in REPLICAS.started] == ["ready", "cordoned", "draining"]
    assert REPLICAS.ids == {"starting", "ready", "cordoned", "draining"}


def test_derived_facts_follow_a_changed_cordon() -> None:
    assert replace(REPLICAS, cordoned=frozenset()).open_ids == {"ready", "cordoned"}


def test_no_replicas_gives_an_empty_value() -> None:
    assert not NO_REPLICAS.ids | NO_REPLICAS.open_ids | NO_REPLICAS.closed_ids
