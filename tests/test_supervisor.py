"""The supervisor between a cluster that the test plays and workers that are real."""

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Iterator
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
import uvloop

from router.cluster import ClusterListener
from router.overview import document
from router.scaling.loop import ControlLoop, InFlight, Step
from router.services import Replica, ReplicaState, Service, SettingsError, VersionKey, parse_service
from router.settings import load_settings
from router.supervisor import Supervisor
from router.workers import Workers
from tests.processes import PATIENCE_SECONDS, POLL_SECONDS, Pending, ask, echo_server, statistics, workers_of

ECHO: VersionKey = ("echo", "default")
SLOW_SECONDS = 0.5


class PlayedCluster:
    """A cluster whose replicas are the test's."""

    def __init__(self, fault: Exception | None = None) -> None:
        self.listener: ClusterListener | None = None
        self.asked: dict[VersionKey, int] = {}
        self.stopped = False
        self._fault = fault

    async def start(self, listener: ClusterListener) -> None:
        self.listener = listener
        if self._fault is not None:
            raise self._fault

    def scale(self, key: VersionKey, replicas: int, remove: Collection[str] = ()) -> None:
        self.asked[key] = replicas

    async def stop(self) -> None:
        self.stopped = True


class Scene:
    """A supervisor that runs."""

    def __init__(self, fault: Exception | None = None) -> None:
        settings = replace(load_settings(environ={}), port=0, admin_port=0, workers=1, drain_seconds=PATIENCE_SECONDS)
        self.cluster = PlayedCluster(fault)
        self.supervisor = Supervisor(settings, own_id="pod-1", human_log=True)

    def serve(self, *names: str, **settings: Any) -> None:
        self.supervisor.services_changed({name: _service(name, **settings) for name in names})

    def have(self, port: int, state: ReplicaState = ReplicaState.READY, *, key: VersionKey = ECHO) -> None:
        self.supervisor.replicas_changed(key, (Replica(f"{key[0]}-1", "127.0.0.1", port, state),))

    def asks(self, name: str = "echo") -> Pending:
        return Pending(self.supervisor.port, f"/api/v1/service/{name}/score")

    async def status(self, name: str = "echo") -> int:
        return (await asyncio.to_thread(ask, self.supervisor.port, f"/api/v1/service/{name}/score", b"[1]")).status


def _service(name: str, **settings: Any) -> Service:
    return parse_service(name, {"auth_enabled": False, "num_replicas": 1, **settings})


@contextlib.asynccontextmanager
async def scene() -> AsyncIterator[Scene]:
    made = Scene()
    try:
        await made.supervisor.start(made.cluster)
        yield made
    finally:
        assert await made.supervisor.stop()
    assert made.cluster.stopped
    assert workers_of(os.getpid()) == []


async def until(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not holds():
            await asyncio.sleep(POLL_SECONDS)


def run(story: Coroutine[Any, Any, None]) -> None:
    uvloop.run(story)


@pytest.fixture(scope="module")
def slow() -> Iterator[int]:
    with echo_server(delay=SLOW_SECONDS) as port:
        yield port


# Start and end.


@pytest.mark.parametrize("fault", [SettingsError("keys file", None, "is none"), OSError("no cluster")])
def test_a_cluster_that_cannot_start_leaves_nothing(fault: Exception) -> None:
    async def story() -> None:
        made = Scene(fault)
        with pytest.raises(type(fault)):
            await made.supervisor.start(made.cluster)
        port = made.supervisor.port
        assert await made.supervisor.stop()
        assert made.cluster.stopped
        assert workers_of(os.getpid()) == []
        with pytest.raises(ConnectionRefusedError):
            await asyncio.to_thread(ask, port, "/")
        assert len(asyncio.all_tasks()) == 1

    run(story())


def test_a_supervisor_that_never_started_can_be_stopped() -> None:
    async def story() -> None:
        assert await Scene().supervisor.stop()

    run(story())


def test_a_fault_of_the_workers_end_does_not_keep_replicas_alive() -> None:
    async def story() -> None:
        made = Scene()
        await made.supervisor.start(made.cluster)
        with mock.patch.object(Workers, "stop", side_effect=RuntimeError("a fault")), pytest.raises(RuntimeError):
            await made.supervisor.stop()
        assert made.cluster.stopped
        assert await made.supervisor.stop()

    run(story())


def test_a_cluster_that_takes_long_to_stop_is_hurried() -> None:
    async def story() -> None:
        made = Scene()
        await made.supervisor.start(made.cluster)
        calls: list[str] = []

        async def stop() -> None:
            calls.append("stop")
            try:
                await asyncio.sleep(0 if len(calls) > 1 else 1000)
            except asyncio.CancelledError:
                calls.append("killed")
                raise

        with mock.patch.object(made.cluster, "stop", stop):
            stopping = asyncio.ensure_future(made.supervisor.stop())
            await until(lambda: calls)
            made.supervisor.hurry()
            assert await stopping
        assert calls == ["stop", "killed", "stop"]

    run(story())


# Scaling.


def test_a_fault_in_one_versions_scaling_is_logged_and_the_others_go_on(caplog: pytest.LogCaptureFixture) -> None:
    original = ControlLoop.step

    def step(self: ControlLoop, key: VersionKey, now: float, in_flight: InFlight) -> Step | None:
        if key[0] == "bad":
            raise ZeroDivisionError
        return original(self, key, now, in_flight)

    async def story() -> None:
        with mock.patch.object(ControlLoop, "step", step):
            async with scene() as made:
                made.serve("bad", "good", num_replicas=3)
                for name in ("bad", "good"):
                    made.have(1, key=(name, "default"))
                await until(lambda: made.cluster.asked.get(("good", "default")) == 3)

    with caplog.at_level(logging.ERROR):
        run(story())
    faults = [record for record in caplog.records if record.getMessage() == "scaling of a version failed"]
    assert faults
    assert all(fault.exc_info for fault in faults)


def test_a_cordon_is_kept_when_settings_change(slow: int) -> None:
    async def story() -> None:
        async with scene() as made:
            made.serve("echo")
            made.have(slow)
            made.supervisor.replicas_changed(
                ECHO, tuple(Replica(f"echo-{n}", "127.0.0.1", slow, ReplicaState.READY) for n in (1, 2))
            )
            busy = [made.asks(), made.asks()]
            await until(lambda: made.supervisor.facts(ECHO).in_flight == 2)
            loop, ledger = made.supervisor._loop, made.supervisor._peering.coordinator.ledger(ECHO)
            assert ledger is not None
            await until(lambda: loop.cordoned(ECHO))  # one is too many
            (cordoned,) = loop.cordoned(ECHO)
            made.serve("echo", scoring_timeout_ms=7000)
            assert ledger.is_cordoned(cordoned)
            assert made.cluster.asked[ECHO] == 2  # it still drains
            assert [(await asyncio.to_thread(each.answer)).status for each in busy] == [200, 200]
            await until(lambda: made.cluster.asked[ECHO] == 1)

    run(story())


# Drains.


@pytest.mark.parametrize("limit", [1, 0])
def test_a_replica_has_drained_when_its_last_request_is_answered(slow: int, limit: int) -> None:
    """Also one that no worker has reported yet."""

    async def story() -> None:
        async with scene() as made:
            made.serve("echo", replica_max_concurrent_requests=limit)
            made.have(slow)
            requests = statistics(slow)["requests"]
            pending = made.asks()
            await until(lambda: statistics(slow)["requests"] > requests)
            made.have(slow, ReplicaState.DRAINING)
            assert await made.supervisor.drained("echo-1", 0.05) is False
            assert await made.supervisor.drained("echo-1", PATIENCE_SECONDS) is True
            assert pending._result is not None
            assert (await asyncio.to_thread(pending.answer)).status == 200
            assert not made.supervisor.is_busy("echo-1")
            assert await made.status() == 503

    run(story())


@pytest.mark.parametrize("limit", [1, 0])
def test_a_service_that_is_gone_drains_too(slow: int, limit: int) -> None:
    async def story() -> None:
        async with scene() as made:
            made.serve("echo", replica_max_concurrent_requests=limit)
            made.have(slow)
            requests = statistics(slow)["requests"]
            pending = made.asks()
            await until(lambda: statistics(slow)["requests"] > requests)
            made.serve("other")
            made.have(slow, ReplicaState.DRAINING)
            assert await made.supervisor.drained("echo-1", 0.05) is False
            assert await made.supervisor.drained("echo-1", PATIENCE_SECONDS) is True
            assert (await asyncio.to_thread(pending.answer)).status == 200
            made.supervisor.replicas_changed(ECHO, ())
            assert made.supervisor.replicas(ECHO) == ()
            assert await made.status() == 404

    run(story())


def test_a_replica_that_nobody_knows_has_drained() -> None:
    async def story() -> None:
        assert await Scene().supervisor.drained("nobody", 1.0)
        assert not Scene().supervisor.is_busy("nobody")

    run(story())


# What operators see.


def test_what_is_missing_or_worth_knowing_is_a_problem_on_the_status_page() -> None:
    async def story() -> None:
        async with scene() as made:
            supervisor = made.supervisor
            assert document.status(supervisor.overview)["problems"] == []
            supervisor.conditions.append(lambda: ["deployments not listed yet"])
            supervisor.notes.append(lambda: ["secrets: not heard of for up to 9 s"])
            told = document.status(supervisor.overview)["problems"]
            assert told == ["deployments not listed yet", "secrets: not heard of for up to 9 s"]

    run(story())
