"""The supervisor: start and stop, scaling, drains, and problems on the status page."""

import asyncio
import logging
import os
from collections.abc import Iterator
from unittest import mock

import pytest

from router.config.schema import SettingsError
from router.model.services import ReplicaState, VersionKey
from router.scaling.loop import ControlLoop, InFlight, ScalingStep, Streaming
from router.supervisor.readiness import ClusterStatus
from router.workers.pool import WorkerPool
from tests.processes import TIMEOUT_SECONDS, echo_server, send_request, statistics, worker_pids
from tests.supervisor.harness import ECHO, SupervisorHarness, running_supervisor, wait_until

SLOW_SECONDS = 0.5


@pytest.fixture(scope="module")
def slow() -> Iterator[int]:
    """The port of a slow model server."""
    with echo_server(delay=SLOW_SECONDS) as port:
        yield port


# Start and stop.


@pytest.mark.parametrize("error", [SettingsError("keys file", None, "is none"), OSError("no cluster")])
async def test_failed_start_of_the_cluster_leaves_no_process(error: Exception) -> None:
    harness = SupervisorHarness(error)
    with pytest.raises(type(error)):
        await harness.supervisor.start()
    port = harness.supervisor.port
    assert await harness.supervisor.stop()
    assert harness.cluster.stopped
    assert worker_pids(os.getpid()) == []
    with pytest.raises(ConnectionRefusedError):
        await asyncio.to_thread(send_request, port, "/")
    assert len(asyncio.all_tasks()) == 1


async def test_supervisor_that_was_never_started_can_be_stopped() -> None:
    assert await SupervisorHarness().supervisor.stop()


async def test_cluster_is_stopped_although_stopping_the_workers_fails() -> None:
    harness = SupervisorHarness()
    await harness.supervisor.start()
    with mock.patch.object(WorkerPool, "stop", side_effect=RuntimeError("failed stop")), pytest.raises(RuntimeError):
        await harness.supervisor.stop()
    assert harness.cluster.stopped
    assert await harness.supervisor.stop()


async def test_force_stop_cancels_the_stop_of_the_cluster() -> None:
    harness = SupervisorHarness()
    await harness.supervisor.start()
    calls: list[str] = []

    async def stop() -> None:
        calls.append("stop")
        try:
            await asyncio.sleep(0 if len(calls) > 1 else 1000)
        except asyncio.CancelledError:
            calls.append("killed")
            raise

    with mock.patch.object(harness.cluster, "stop", stop):
        stopping = asyncio.ensure_future(harness.supervisor.stop())
        await wait_until(lambda: calls)
        harness.supervisor.force_stop()
        assert await stopping
    assert calls == ["stop", "killed", "stop"]


# Scaling.


async def test_exception_in_one_versions_scaling_is_logged_and_others_are_scaled(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = ControlLoop.step

    def step(
        self: ControlLoop, key: VersionKey, now: float, in_flight: InFlight, streaming: Streaming
    ) -> ScalingStep | None:
        if key[0] == "bad":
            raise ZeroDivisionError
        return original(self, key, now, in_flight, streaming)

    monkeypatch.setattr(ControlLoop, "step", step)
    with caplog.at_level(logging.ERROR):
        async with running_supervisor() as harness:
            harness.set_services("bad", "good", num_replicas=3)
            for name in ("bad", "good"):
                harness.set_replicas(1, key=(name, "default"))
            await wait_until(lambda: harness.cluster.requested.get(("good", "default")) == 3)
    errors = [record for record in caplog.records if record.getMessage() == "scaling of a version failed"]
    assert errors
    assert all(error.exc_info for error in errors)


async def test_cordon_is_kept_when_settings_change(slow: int) -> None:
    async with running_supervisor() as harness:
        serving = harness.supervisor.serving
        harness.set_services("echo")
        harness.set_replicas(slow, count=2)
        requests = [harness.start_request(), harness.start_request()]
        await wait_until(lambda: harness.supervisor.version_metrics(ECHO).in_flight == 2)
        await wait_until(lambda: serving.cordons())  # one replica is cordoned, because num_replicas is 1
        before = serving.cordons()
        harness.set_services("echo", scoring_timeout_ms=7000)
        assert serving.cordons() == before
        assert harness.cluster.requested[ECHO] == 2  # the cordoned replica drains first
        assert [(await asyncio.to_thread(each.response)).status for each in requests] == [200, 200]
        await wait_until(lambda: harness.cluster.requested[ECHO] == 1)


# Drains.


@pytest.mark.parametrize("slots", [1, 0])
async def test_replica_has_drained_after_its_last_request(slow: int, slots: int) -> None:
    """The drain also waits for a request that no worker has reported yet when it begins."""
    async with running_supervisor() as harness:
        serving = harness.supervisor.serving
        harness.set_services("echo", replica_max_concurrent_requests=slots)
        harness.set_replicas(slow)
        before = statistics(slow)["requests"]
        request = harness.start_request()
        await wait_until(lambda: statistics(slow)["requests"] > before)
        harness.set_replicas(slow, ReplicaState.DRAINING)
        draining = asyncio.create_task(serving.wait_until_drained("echo-1", TIMEOUT_SECONDS))
        await asyncio.sleep(0.05)
        assert not draining.done()
        assert await draining is True
        assert await serving.wait_until_drained("echo-1", TIMEOUT_SECONDS) is True
        assert request._result is not None
        assert (await asyncio.to_thread(request.response)).status == 200
        assert not serving.is_busy("echo-1")
        assert await harness.send_request() == 503


@pytest.mark.parametrize("slots", [1, 0])
async def test_replica_of_a_removed_service_drains(slow: int, slots: int) -> None:
    async with running_supervisor() as harness:
        serving = harness.supervisor.serving
        harness.set_services("echo", replica_max_concurrent_requests=slots)
        harness.set_replicas(slow)
        before = statistics(slow)["requests"]
        request = harness.start_request()
        await wait_until(lambda: statistics(slow)["requests"] > before)
        harness.set_services("other")
        harness.set_replicas(slow, ReplicaState.DRAINING)
        assert await serving.wait_until_drained("echo-1", TIMEOUT_SECONDS) is True
        assert (await asyncio.to_thread(request.response)).status == 200
        harness.set_replicas(slow, count=0)
        assert serving.replicas(ECHO).replicas == ()
        assert await harness.send_request() == 404


@pytest.mark.parametrize("slots", [1, 0])
@pytest.mark.parametrize("other_service", [False, True])
async def test_requests_are_aborted_when_the_drain_time_is_over(slow: int, slots: int, other_service: bool) -> None:
    async with running_supervisor() as harness:
        serving = harness.supervisor.serving
        harness.set_services("echo", replica_max_concurrent_requests=slots)
        harness.set_replicas(slow)
        before = statistics(slow)["requests"]
        request = harness.start_request()
        await wait_until(lambda: statistics(slow)["requests"] > before)
        if other_service:
            harness.set_services("other")
        harness.set_replicas(slow, ReplicaState.DRAINING)
        assert await serving.wait_until_drained("echo-1", 0.05) is False
        assert not serving.is_busy("echo-1")
        response = await asyncio.to_thread(request.response)
        assert (response.status, response.headers["azureml-fe-error"]) == (502, "drain-timeout")


async def test_unknown_replica_has_drained() -> None:
    serving = SupervisorHarness().supervisor.serving
    assert await serving.wait_until_drained("unknown", 1.0)
    assert not serving.is_busy("unknown")


# Status.


async def test_unmet_conditions_and_warnings_are_problems_of_the_status_page() -> None:
    conditions, warnings = ["deployments not listed yet"], ["secrets: last update 9 s ago"]
    status = ClusterStatus(lambda: conditions, lambda: warnings)
    async with running_supervisor(status) as harness:
        assert [problem.text for problem in harness.supervisor.overview.problems()] == [*conditions, *warnings]
        conditions.clear()
        warnings.clear()
        assert list(harness.supervisor.overview.problems()) == []
