"""The serving state: replicas, cordons and slots of each version as one value, shared by all its users."""

from dataclasses import replace
from typing import Any

import pytest

from router.config.service import parse_service
from router.model.services import Replica, ReplicaState, VersionKey
from router.model.version_replicas import VersionReplicas
from router.supervisor.state import ServingState
from router.workers.messages import ServicesUpdate
from tests.supervisor.harness import SupervisorHarness

IRIS: VersionKey = ("iris", "default")


def replicas(*names: str, state: ReplicaState = ReplicaState.READY) -> tuple[Replica, ...]:
    return tuple(Replica(name, "127.0.0.1", 1, state) for name in names)


def serving_state(*names: str, **settings: Any) -> ServingState:
    serving = SupervisorHarness().supervisor.serving
    set_services(serving, **settings)
    if names:
        serving.set_replicas(IRIS, replicas(*names))
    return serving


def set_services(serving: ServingState, *names: str, **settings: Any) -> None:
    services = [parse_service(name, {"num_replicas": 1, **settings}) for name in names or ("iris",)]
    serving.set_services({service.name: service for service in services})


def test_workers_receive_only_what_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    serving = serving_state()
    sent: list[ServicesUpdate] = []
    monkeypatch.setattr(serving._channels, "broadcast", sent.append)
    services = {name: parse_service(name, {"num_replicas": 1}) for name in ("a", "b", "c")}
    serving.set_services(services)
    assert sent.pop() == ServicesUpdate(services, frozenset({"iris"}))
    serving.set_services(dict(services))
    serving.set_services({name: parse_service(name, {"num_replicas": 1}) for name in services})
    assert sent == []
    changed = parse_service("b", {"num_replicas": 1, "max_queue_length": 3})
    serving.set_services({"a": services["a"], "b": changed})
    assert sent == [ServicesUpdate({"b": changed}, frozenset({"c"}))]
    assert serving.worker_updates()[0] == ServicesUpdate({"a": services["a"], "b": changed})  # of a new worker


def test_cordons_of_unknown_replicas_are_ignored() -> None:
    serving = serving_state("a", "b")
    serving.set_cordoned(IRIS, {"a", "unknown"})
    assert serving.cordons() == {IRIS: {"a"}}


def test_cordon_ends_with_its_replica() -> None:
    serving = serving_state("a", "b")
    serving.set_cordoned(IRIS, {"a"})
    serving.set_replicas(IRIS, replicas("b"))
    serving.set_replicas(IRIS, replicas("a", "b"))
    assert serving.cordons() == {}


def test_cordon_outlives_other_changes() -> None:
    serving = serving_state("a", "b")
    serving.set_cordoned(IRIS, {"a"})
    set_services(serving, scoring_timeout_ms=1234)
    serving.set_replicas(IRIS, replicas("a", "b", "c"))
    assert serving.cordons() == {IRIS: {"a"}}


def test_cordons_of_a_removed_version_end() -> None:
    serving = serving_state("a", "b")
    serving.set_cordoned(IRIS, {"a"})
    set_services(serving, "other")
    assert serving.replicas(IRIS).cordoned == frozenset()
    set_services(serving, "iris", "other")
    assert serving.cordons() == {}


def test_suspended_version_has_no_cordons() -> None:
    serving = serving_state("a", "b")
    serving.set_cordoned(IRIS, {"a"})
    serving.suspend_scaling(IRIS, "another controller scales it")
    assert serving.cordons() == {}


def test_removed_version_keeps_its_replicas_while_they_drain() -> None:
    serving = serving_state("a")
    set_services(serving, "other")
    serving.set_replicas(IRIS, replicas("a", state=ReplicaState.DRAINING))
    assert serving.replicas(IRIS).ids == {"a"}
    serving.set_replicas(IRIS, ())
    assert serving.replicas(IRIS) == VersionReplicas()


def test_slots_follow_the_settings() -> None:
    serving = serving_state("a", replica_max_concurrent_requests=4)
    assert serving.replicas(IRIS).slots == 4
    set_services(serving, replica_max_concurrent_requests=0)
    assert serving.replicas(IRIS).slots == 0


def test_all_readers_share_one_value() -> None:
    serving = serving_state("a", "b")
    serving.set_cordoned(IRIS, {"b"})
    current = serving.replicas(IRIS)
    _, update = serving.worker_updates()
    assert isinstance(update.replicas, VersionReplicas)  # type: ignore[union-attr]
    assert update.replicas is current  # type: ignore[union-attr]
    set_services(serving, scoring_timeout_ms=1234)
    assert serving.replicas(IRIS) is current


def test_cordons_end_when_the_service_is_on_standby() -> None:
    serving = serving_state("a", "b")
    serving.set_cordoned(IRIS, {"a"})
    serving.set_services({name: replace(service, standby=True) for name, service in serving.services.items()})
    assert serving.cordons() == {}
