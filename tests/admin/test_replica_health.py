"""What operators see of replicas that have failed."""

from __future__ import annotations

from router.admin.replica_health import Ejection, ReplicaHealthRecord
from router.model.replica_health import ReplicaHealthReport
from router.telemetry.catalogue import Sample

IRIS, MNIST = ("iris", "default"), ("mnist", "default")


def health(errors: int, until: float = 0.0, probe: str = "", server_error: int = 0) -> ReplicaHealthReport:
    return ReplicaHealthReport(
        errors, "timeout", probe, bool(until), until, int(bool(until)), server_error, "it hangs" if until else ""
    )


def test_each_ejection_is_reported_once_for_each_worker() -> None:
    record = ReplicaHealthRecord()
    ejected = {IRIS: {"a": health(3, 110.0), "b": health(1)}}
    assert record.record("w0", ejected, 100.0).ejections == [Ejection(IRIS, "a", "w0", 100.0, 110.0, "it hangs")]
    assert record.record("w0", ejected, 101.0).ejections == []
    assert len(record.record("w1", ejected, 102.0).ejections) == 1
    again = {IRIS: {"a": health(4, 130.0)}}
    assert [each.until for each in record.record("w0", again, 111.0).ejections] == [130.0]


def test_first_server_error_is_reported_once() -> None:
    record = ReplicaHealthRecord()
    assert record.record("w0", {IRIS: {"a": health(1)}}, 100.0).server_errors == []
    failed = {IRIS: {"a": health(1, server_error=500)}}
    assert record.record("w0", failed, 101.0).server_errors == [(IRIS, "a", 500)]
    assert record.record("w0", failed, 102.0).server_errors == []


def test_figures_of_several_workers_are_added_up() -> None:
    record = ReplicaHealthRecord()
    record.record("w0", {IRIS: {"a": health(3, 110.0)}}, 100.0)
    record.record("w1", {IRIS: {"a": health(2, probe="refused")}}, 100.0)
    assert record.of_replica(IRIS, "a") == health(5, 110.0, "refused")
    assert record.of_replica(IRIS, "b") is None
    assert list(record.samples()) == [Sample("replicas_ejected", 1, IRIS)]
    record.remove_worker("w0")
    assert record.of_replica(IRIS, "a") == health(2, probe="refused")
    assert list(record.samples()) == [Sample("replicas_ejected", 0, IRIS)]


def test_ejections_of_a_period_are_found() -> None:
    record = ReplicaHealthRecord()
    record.record("w0", {IRIS: {"a": health(3, 110.0)}, MNIST: {"b": health(3, 110.0)}}, 100.0)
    assert [each.replica for each in record.ejections_during(IRIS, 105.0, 106.0)] == ["a"]
    assert record.ejections_during(IRIS, 111.0, 112.0) == []
    assert record.ejections_during(IRIS, 90.0, 99.0) == []


def test_removed_versions_are_forgotten() -> None:
    record = ReplicaHealthRecord()
    record.record("w0", {IRIS: {"a": health(3)}, MNIST: {"b": health(3)}}, 100.0)
    record.retain({MNIST})
    assert record.of_replica(IRIS, "a") is None
    assert record.of_replica(MNIST, "b") is not None
