"""The local cluster and its reports: starts, scaling, failures, changed files. Replicas are real processes."""

import asyncio
import json
import logging
import os
import re
import signal
import socket
import stat
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from router.cluster.local.cluster import LocalCluster
from router.cluster.local.config_file import LocalConfig
from router.cluster.local.key_store import KeyStore
from router.cluster.local.probe import STARTING_INTERVAL, probe
from router.config.schema import SettingsError
from router.model.services import Replica, ReplicaState
from tests.cluster.local.helpers import (
    RecordingListener,
    config_of,
    echo_server_command,
    running_cluster,
)
from tests.processes import ECHO_SERVER, TIMEOUT_SECONDS, pids_with, send_request, statistics

KEY = ("echo", "default")
POST_ONLY_SERVER = """\
import http.server, sys

class Model(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Model).serve_forever()
"""
MakeConfig = Callable[..., LocalConfig]


@pytest.fixture
def make_config(tmp_path: Path, mark: str) -> MakeConfig:
    """Returns a file with one service `echo`, with these settings and these options of the test server."""

    def make_config(settings: str = "num_replicas: 1", *, name: str = "echo", **options: object) -> LocalConfig:
        command = json.dumps(echo_server_command(mark=mark, **options))
        return config_of(tmp_path, f"services: {{{name}: {{command: {command}, {settings}}}}}")

    return make_config


def ids(replicas: Iterable[Replica]) -> set[str]:
    return {replica.id for replica in replicas}


async def test_services_are_reported_before_their_replicas(make_config: MakeConfig, tmp_path: Path) -> None:
    async with running_cluster(make_config("autoscale_min_replicas: 2"), tmp_path / "state") as (_, listener):
        assert set(listener.services) == {"echo"}
        assert [replica.state for replica in listener.replicas[KEY]] == [ReplicaState.STARTING] * 2
        await listener.wait_until(lambda: len(listener.ready("echo")) == 2)
        assert ids(listener.ready("echo")) == {"echo-1", "echo-2"}
        for replica in listener.ready("echo"):
            assert send_request(replica.port, "/score", b"x").body == b"x"
        assert len(listener.fields_of("replica starts")) == len(listener.fields_of("replica is ready")) == 2
    assert listener.replicas[KEY] == ()


async def test_minimum_of_zero_starts_no_replica(make_config: MakeConfig, tmp_path: Path) -> None:
    async with running_cluster(make_config("autoscale_min_replicas: 0"), tmp_path / "state") as (cluster, listener):
        assert listener.replicas == {KEY: ()}
        cluster.scale(KEY, 1)
        await listener.wait_until(lambda: listener.ready("echo"))


async def test_scale_starts_replicas_and_stops_the_removed_ones_first(make_config: MakeConfig, tmp_path: Path) -> None:
    async with running_cluster(make_config("autoscale_min_replicas: 1"), tmp_path / "state") as (cluster, listener):
        cluster.scale(KEY, 3)
        await listener.wait_until(lambda: len(listener.ready("echo")) == 3)
        cluster.scale(KEY, 2, remove=["echo-1"])
        assert listener.replicas[KEY][0].state is ReplicaState.DRAINING
        await listener.wait_until(lambda: len(listener.replicas[KEY]) == 2)
        assert ids(listener.ready("echo")) == {"echo-2", "echo-3"}
        cluster.scale(("unknown", "default"), 5)
        with pytest.raises(ValueError, match="at least 0"):
            cluster.scale(KEY, -1)


async def test_replica_is_drained_before_it_stops_unless_the_caller_drained_it(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    drained: list[tuple[str, float]] = []
    may_finish = asyncio.Event()

    async def drain(replica_id: str, seconds: float) -> bool:
        drained.append((replica_id, seconds))
        await may_finish.wait()
        return True

    config = make_config("autoscale_min_replicas: 3, scoring_timeout_ms: 7500, replica_drain_seconds: 7.5")
    async with running_cluster(config, tmp_path / "state", drain=drain) as (cluster, listener):
        await listener.wait_until(lambda: len(listener.ready("echo")) == 3)
        cluster.scale(KEY, 1, remove=["echo-2"])
        await listener.wait_until(lambda: len(listener.replicas[KEY]) == 2)
        # echo-2 stopped immediately; the youngest of the others still serves its requests.
        assert drained == [("echo-3", 7.5)]
        youngest = listener.replicas[KEY][1]
        assert (youngest.id, youngest.state) == ("echo-3", ReplicaState.DRAINING)
        assert send_request(youngest.port, "/score", b"x").body == b"x"
        may_finish.set()
        await listener.wait_until(lambda: ids(listener.replicas[KEY]) == {"echo-1"})


async def test_drain_is_cancelled_when_its_replica_exits(make_config: MakeConfig, tmp_path: Path) -> None:
    cancelled = asyncio.Event()

    async def drain(replica_id: str, seconds: float) -> bool:
        try:
            return await asyncio.Event().wait()
        finally:
            cancelled.set()

    async with running_cluster(make_config(), tmp_path / "state", drain=drain) as (cluster, listener):
        await listener.wait_until(lambda: listener.ready("echo"))
        (replica,) = listener.ready("echo")
        cluster.scale(KEY, 0)
        await asyncio.sleep(0)
        with pytest.raises(OSError, match=r"."):
            send_request(replica.port, "/crash")
        await listener.wait_until(lambda: listener.replicas[KEY] == ())
        await cancelled.wait()


async def test_failed_drain_is_reported_and_the_replica_stops(make_config: MakeConfig, tmp_path: Path) -> None:
    async def drain(replica_id: str, seconds: float) -> bool:
        raise RuntimeError("lost count")

    async with running_cluster(make_config(), tmp_path / "state", drain=drain) as (cluster, listener):
        await listener.wait_until(lambda: listener.ready("echo"))
        cluster.scale(KEY, 0)
        await listener.wait_until(lambda: listener.fields_of("a task of the local cluster failed"))
        assert listener.replicas[KEY] == ()
        assert "lost count" in str(listener.fields_of("a task of the local cluster failed"))


async def test_stop_does_not_wait_for_drains_and_leaves_no_process(
    make_config: MakeConfig, tmp_path: Path, mark: str
) -> None:
    async def drain(replica_id: str, seconds: float) -> bool:
        return await asyncio.Event().wait()

    config = make_config("autoscale_min_replicas: 3", child=mark)
    async with running_cluster(config, tmp_path / "state", drain=drain) as (cluster, listener):
        await listener.wait_until(lambda: len(listener.ready("echo")) == 3)
        assert len(pids_with(mark)) == 6
        cluster.scale(KEY, 2)
        # The children ignore SIGTERM. Kill them, so that `stop` does not wait for the grace period.
        for pid in pids_with(mark):
            if pid not in {statistics(replica.port)["pid"] for replica in listener.replicas[KEY]}:
                os.kill(pid, signal.SIGKILL)
    assert pids_with(mark) == []


async def test_cancelled_stop_kills_all_processes(make_config: MakeConfig, tmp_path: Path, mark: str) -> None:
    config = make_config("autoscale_min_replicas: 2", ignore_sigterm=1)
    async with running_cluster(config, tmp_path / "state") as (cluster, listener):
        await listener.wait_until(lambda: len(listener.ready("echo")) == 2)
        stopping = asyncio.create_task(cluster.stop())
        await asyncio.sleep(0)
        stopping.cancel()
        await asyncio.wait((stopping,))
        await listener.wait_until(lambda: listener.replicas[KEY] == ())


async def test_scale_and_apply_are_ignored_during_stop(make_config: MakeConfig, tmp_path: Path) -> None:
    async with running_cluster(make_config("autoscale_min_replicas: 1"), tmp_path / "state") as (cluster, listener):
        await listener.wait_until(lambda: listener.ready("echo"))
        stopping = asyncio.create_task(cluster.stop())
        await asyncio.sleep(0)
        cluster.scale(KEY, 3)
        await cluster.apply(make_config("num_replicas: 3"))
        await stopping
        assert listener.replicas[KEY] == ()
        assert len(listener.fields_of("replica starts")) == 1


async def test_ready_replica_that_exits_is_replaced_at_once(make_config: MakeConfig, tmp_path: Path) -> None:
    async with running_cluster(make_config(), tmp_path / "state") as (_, listener):
        await listener.wait_until(lambda: listener.ready("echo"))
        with pytest.raises(OSError, match=r"."):
            send_request(listener.ready("echo")[0].port, "/crash")
        await listener.wait_until(lambda: ids(listener.ready("echo")) == {"echo-2"})
    (fields,) = listener.fields_of("replica died")
    assert (fields["replica"], fields["how"], fields["retry_seconds"]) == ("echo-1", "exit code 42", 0.0)
    assert not listener.fields_of("replica cannot start")


async def test_failed_start_is_retried_after_a_delay_and_reported_with_its_output(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    config = make_config(exit_after_start=3, print="model file is missing")
    async with running_cluster(config, tmp_path / "state") as (_, listener):
        await listener.wait_until(lambda: len(listener.fields_of("replica cannot start")) == 2)
        first, second = listener.fields_of("replica cannot start")
        assert len(listener.fields_of("replica starts")) == 2
    log = tmp_path / "state" / "logs" / "echo" / "default"
    assert first == {
        "replica": "echo-1",
        "how": "exit code 3",
        "error": "",
        "retry_seconds": 0.5,
        "output": "model file is missing",
        "log": str(log / f"echo-1.{os.getpid()}.log"),
    }
    assert (second["replica"], second["retry_seconds"]) == ("echo-2", 1.0)
    texts = [text.splitlines() for text in listener.texts if "cannot start" in text]
    assert texts[0] == [
        "echo cannot start (exit code 3)",
        "model file is missing",
        f"whole output: {first['log']}; next start in 0.5 s",
    ]
    assert len(texts[1]) == 2
    assert re.match(r"echo cannot start \(exit code 3\) \(2 times in \d+ s\)$", texts[1][0])
    assert {level for _, level, text, _ in listener.notices if text == "replica cannot start"} == {logging.WARNING}


async def test_slow_start_is_reported_once_with_its_reason(make_config: MakeConfig, tmp_path: Path) -> None:
    now = [0.0]
    config = make_config("num_replicas: 1", fail_readiness_for=60)
    async with running_cluster(config, tmp_path / "state", clock=lambda: now[0]) as (cluster, listener):
        await listener.wait_until(lambda: listener.fields_of("replica starts"))
        assert list(cluster.problems()) == []
        port = int(str(listener.fields_of("replica starts")[0]["port"]))
        while await probe("127.0.0.1", port, "/", TIMEOUT_SECONDS) != ("status 503", 503, False):  # until it listens
            await asyncio.sleep(0.05)
        await asyncio.sleep(2 * STARTING_INTERVAL)  # a probe that began before has ended
        assert cluster.probes(KEY)["echo-1"][1:] == ("status 503", None)
        now[0] = 29.0  # a server that loads its model responds with 503
        await asyncio.sleep(2 * STARTING_INTERVAL)
        assert not listener.fields_of("replica is not ready yet")
        now[0] = 31.0
        await listener.wait_until(lambda: listener.fields_of("replica is not ready yet"))
        now[0] = 99.0
        (fields,) = listener.fields_of("replica is not ready yet")
        reason = "GET / responded with 503"
        assert (fields["replica"], fields["seconds"], fields["reason"]) == ("echo-1", 31.0, reason)
        (problem,) = cluster.problems()
        assert problem.text == f"service echo: a replica is not ready: {reason} (echo-1, for 99 s)"
        assert cluster.probes(KEY)["echo-1"][1:] == ("status 503", reason)


async def test_failed_start_is_a_problem_until_a_replica_is_ready(make_config: MakeConfig, tmp_path: Path) -> None:
    async with running_cluster(make_config("num_replicas: 1", exit_after_start=3), tmp_path / "state") as (
        cluster,
        listener,
    ):
        await listener.wait_until(lambda: listener.fields_of("replica cannot start"))
        (problem,) = cluster.problems()
        assert problem.line == "service echo: cannot start (exit code 3)"
        await cluster.apply(make_config("num_replicas: 1"))
        assert list(cluster.problems()) == []
        await listener.wait_until(lambda: listener.ready("echo"))
        assert list(cluster.problems()) == []


async def test_fixed_address_that_is_never_ready_is_reported_once(tmp_path: Path) -> None:
    with socket.socket() as unused:  # bound, but not listening
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        config = config_of(
            tmp_path,
            f"services: {{far: {{addresses: ['{address}'], readiness_failure_threshold: 1, auth_enabled: false}}}}",
        )
        async with running_cluster(config, tmp_path / "state") as (cluster, listener):
            await listener.wait_until(lambda: listener.fields_of("replica is not ready"))
            assert listener.fields_of("replica is not ready") == [
                {"replica": "far-1", "address": address, "reason": "Connection refused"}
            ]
            (problem,) = cluster.problems()
            assert problem.text == f"service far: a replica at {address} is not ready: Connection refused (far-1)"
            probe_report = cluster.probes(("far", "default"))["far-1"]
            assert (probe_report.failure, probe_report.not_ready_reason) == ("Connection refused", "Connection refused")
            assert cluster.probes(("other", "default")) == {}


async def test_start_may_take_longer_than_the_initial_delay(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config("num_replicas: 1, initial_delay_seconds: 1, period_seconds: 1", fail_readiness_for=2.5)
    async with running_cluster(config, tmp_path / "state") as (_, listener):
        await listener.wait_until(lambda: listener.ready("echo"))
    assert ids(replica for _, replicas in listener.history for replica in replicas) == {"echo-1"}


@pytest.mark.parametrize(
    ("settings", "options", "reason"),
    [
        ("failure_threshold: 1", {"fail_readiness_for": 60}, "status 503"),
        ("failure_threshold: 2", {"start_delay": 60}, "Connection refused"),
        ("failure_threshold: 1, readiness_path: /status/503, liveness_path: /status/404", {}, "status 404"),
        ("failure_threshold: 1, timeout_seconds: 1, liveness_path: /hangs", {"delay": 60}, "no response within 1 s"),
    ],
    ids=["unavailable", "refused", "path", "hanging"],
)
async def test_start_fails_when_liveness_fails(
    make_config: MakeConfig, tmp_path: Path, settings: str, options: dict[str, object], reason: str
) -> None:
    probes = "readiness_initial_delay_seconds: 60, initial_delay_seconds: 1, period_seconds: 1"
    config = make_config(f"num_replicas: 1, {probes}, {settings}", **options)
    async with running_cluster(config, tmp_path / "state") as (_, listener):
        await listener.wait_until(lambda: listener.fields_of("replica cannot start"))
        assert listener.fields_of("replica cannot start")[0]["how"] == f"liveness probe failed: {reason}"
        # Its replacement does not start while it still runs.
        starts = [replicas for _, replicas in listener.history if ids(replicas) == {"echo-1", "echo-2"}]
        assert not starts
        await listener.wait_until(lambda: ids(listener.replicas[KEY]) == {"echo-2"})


@pytest.mark.parametrize("status", [400, 404, 501])
async def test_wrong_readiness_path_is_reported_early_with_advice(
    make_config: MakeConfig, tmp_path: Path, status: int
) -> None:
    config = make_config(f"num_replicas: 1, readiness_path: /status/{status}, readiness_failure_threshold: 1")
    now = [0.0]
    async with running_cluster(config, tmp_path / "state", clock=lambda: now[0]) as (cluster, listener):
        await listener.wait_until(lambda: listener.fields_of("replica starts"))
        now[0] = 4.0
        await listener.wait_until(lambda: listener.fields_of("replica is not ready yet"))
        reason = (
            f"GET /status/{status} responded with {status}; set readiness_path to a path with a status of 200 to 399"
        )
        assert f"echo-1 is not ready: {reason}" in listener.texts
        (problem,) = cluster.problems()
        assert problem.text == f"service echo: a replica is not ready: {reason} (echo-1, for 4 s)"
        assert not listener.ready("echo")


async def test_replica_that_never_listens_is_reported_with_its_address(make_config: MakeConfig, tmp_path: Path) -> None:
    now = [0.0]
    async with running_cluster(make_config(start_delay=60), tmp_path / "state", clock=lambda: now[0]) as (
        cluster,
        listener,
    ):
        await listener.wait_until(lambda: listener.fields_of("replica starts"))
        now[0] = 31.0
        await listener.wait_until(lambda: listener.fields_of("replica is not ready yet"))
        port = listener.fields_of("replica starts")[0]["port"]
        text = f"echo-1 is not ready: nothing listens on 127.0.0.1:{port}; does the program use {{port}}?"
        assert text in listener.texts
        (problem,) = cluster.problems()
        assert problem.cause == "a replica is not ready: nothing listens on its port; does the program use {port}?"
        assert problem.detail == "for 31 s"


async def test_server_without_get_becomes_ready(tmp_path: Path, mark: str) -> None:
    (tmp_path / "model.py").write_text(POST_ONLY_SERVER)
    command = json.dumps(["python", "model.py", "{port}", mark])
    config = config_of(tmp_path, f"services: {{adder: {{command: {command}, num_replicas: 1}}}}")
    async with running_cluster(config, tmp_path / "state") as (_, listener):
        await listener.wait_until(lambda: listener.ready("adder"))
        assert send_request(listener.ready("adder")[0].port, "/score", b"x").body == b"x"


async def test_start_without_a_log_fails_and_is_retried(make_config: MakeConfig, tmp_path: Path) -> None:
    state_dir = tmp_path / "state"
    state_dir.mkdir()
    (state_dir / "logs").write_text("in the way")
    async with running_cluster(make_config("num_replicas: 1, auth_enabled: false"), state_dir) as (_, listener):
        await listener.wait_until(lambda: listener.fields_of("replica cannot start"))
        assert "Not a directory" in str(listener.fields_of("replica cannot start")[0]["how"])
        (state_dir / "logs").unlink()
        await listener.wait_until(lambda: listener.ready("echo"))


async def test_start_without_a_free_port_fails_and_is_retried(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("router.cluster.local.replica_process.PortAllocator._is_free", lambda self, port: False)
        cluster, listener = LocalCluster(make_config(), state_dir=tmp_path / "state"), RecordingListener()
        await cluster.start(listener)
    assert "no free port" in str(listener.fields_of("replica cannot start")[0]["how"])
    assert listener.replicas[KEY] == ()
    await listener.wait_until(lambda: listener.ready("echo"))
    await cluster.stop()


async def test_replica_that_is_no_longer_ready_gets_no_requests_and_is_kept(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    drained: list[str] = []

    async def drain(replica_id: str, seconds: float) -> bool:
        drained.append(replica_id)
        return True

    probes = "readiness_period_seconds: 1, readiness_failure_threshold: 1, readiness_success_threshold: 2"
    async with running_cluster(make_config(f"num_replicas: 1, {probes}"), tmp_path / "state", drain=drain) as (
        cluster,
        listener,
    ):
        await listener.wait_until(lambda: listener.ready("echo"))
        (replica,) = listener.ready("echo")
        pid = statistics(replica.port)["pid"]
        send_request(replica.port, "/unready", b"")
        await listener.wait_until(lambda: not listener.ready("echo"))
        assert [each.state for each in listener.replicas[KEY]] == [ReplicaState.STARTING]
        (problem,) = cluster.problems()
        assert problem.line.startswith("service echo: a replica is not ready: status 503 (echo-1, for ")
        send_request(replica.port, "/ready", b"")
        await listener.wait_until(lambda: listener.ready("echo"))
        assert list(cluster.problems()) == []
        assert statistics(replica.port)["pid"] == pid
        assert ids(listener.replicas[KEY]) == {"echo-1"}
        assert drained == []
        (fields,) = listener.fields_of("replica is no longer ready")
        assert (fields["replica"], fields["reason"]) == ("echo-1", "status 503")
        assert len(listener.fields_of("replica is ready")) == len(listener.fields_of("replica is ready again")) == 1
        # The replica may have requests, so it is drained although it is not ready.
        send_request(replica.port, "/unready", b"")
        await listener.wait_until(lambda: not listener.ready("echo"))
        await cluster.apply(make_config(f"autoscale_min_replicas: 0, {probes}"))
        cluster.scale(KEY, 0)
        await listener.wait_until(lambda: listener.replicas[KEY] == ())
        assert drained == ["echo-1"]


def stop_process(replica: Replica) -> None:
    os.kill(statistics(replica.port)["pid"], signal.SIGSTOP)


def fail_probes(replica: Replica) -> None:
    send_request(replica.port, "/unready", b"")


@pytest.mark.parametrize("spoil", [fail_probes, stop_process])
@pytest.mark.parametrize("readiness", ["", "readiness_period_seconds: 1, readiness_failure_threshold: 1,"])
async def test_replica_that_fails_liveness_is_drained_and_replaced(
    make_config: MakeConfig, tmp_path: Path, spoil: Callable[[Replica], None], readiness: str
) -> None:
    drained: list[str] = []

    async def drain(replica_id: str, seconds: float) -> bool:
        drained.append(replica_id)
        return True

    liveness = "initial_delay_seconds: 1, period_seconds: 1, timeout_seconds: 1, failure_threshold: 2"
    config = make_config(f"num_replicas: 1, {readiness} {liveness}")
    async with running_cluster(config, tmp_path / "state", drain=drain) as (_, listener):
        await listener.wait_until(lambda: listener.ready("echo"))
        pid = statistics(listener.ready("echo")[0].port)["pid"]
        spoil(listener.ready("echo")[0])
        await listener.wait_until(lambda: ids(listener.ready("echo")) == {"echo-2"})
        assert drained == ["echo-1"]
        (fields,) = listener.fields_of("replica fails its liveness probe")
        reason = "status 503" if spoil is fail_probes else "no response within 1 s"
        assert (fields["replica"], fields["reason"]) == ("echo-1", reason)
        if spoil is stop_process:
            os.kill(pid, signal.SIGKILL)  # else the end of the test waits for the grace period of a stopped process


async def test_changed_launch_replaces_replicas_without_reducing_ready_ones(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    async with running_cluster(make_config("num_replicas: 2"), tmp_path / "state") as (cluster, listener):
        await listener.wait_until(lambda: len(listener.ready("echo")) == 2)
        reports_before = len(listener.history)
        await cluster.apply(make_config("num_replicas: 2", print="second edition"))
        await listener.wait_until(lambda: ids(listener.replicas[KEY]) == {"echo-3", "echo-4"})
        await listener.wait_until(lambda: len(listener.ready("echo")) == 2)
        for _, replicas in listener.history[reports_before:]:
            states = [replica.state for replica in replicas]
            assert states.count(ReplicaState.READY) >= 2
            assert len(states) - states.count(ReplicaState.DRAINING) <= 3


async def test_wanted_number_is_reported_without_the_replica_of_a_replacement(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    """Otherwise the control loop would take the additional replica for surplus, and give it no requests."""
    async with running_cluster(make_config(), tmp_path) as (cluster, listener):
        assert listener.wanted == {KEY: 1}
        await listener.wait_until(lambda: listener.ready("echo"))
        await cluster.apply(make_config(print="second edition"))
        await listener.wait_until(lambda: len(listener.replicas[KEY]) == 2)
        assert listener.wanted == {KEY: 1}
        await cluster.apply(make_config("num_replicas: 3", print="second edition"))
        assert listener.wanted == {KEY: 3}


async def test_launch_that_fails_leaves_the_previous_replicas_in_service(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    async with running_cluster(make_config(), tmp_path / "state") as (cluster, listener):
        await listener.wait_until(lambda: listener.ready("echo"))
        await cluster.apply(make_config(exit_after_start=1))
        await listener.wait_until(lambda: len(listener.fields_of("replica cannot start")) == 2)
        assert ids(listener.ready("echo")) == {"echo-1"}
        await cluster.apply(make_config(print="fixed"))
        await listener.wait_until(lambda: listener.ready("echo") and "echo-1" not in ids(listener.replicas[KEY]))


async def test_changed_settings_restart_no_process(make_config: MakeConfig, tmp_path: Path) -> None:
    async with running_cluster(make_config("autoscale_min_replicas: 1"), tmp_path / "state") as (cluster, listener):
        await listener.wait_until(lambda: listener.ready("echo"))
        history = list(listener.history)
        await cluster.apply(make_config("autoscale_min_replicas: 1, scoring_timeout_ms: 1234"))
        assert listener.services["echo"].default_version.scoring_timeout_ms == 1234
        assert listener.history == history
        await cluster.apply(make_config("autoscale_min_replicas: 2"))
        await listener.wait_until(lambda: len(listener.ready("echo")) == 2)
        await cluster.apply(make_config("autoscale_min_replicas: 1, autoscale_max_replicas: 1"))
        assert len(listener.ready("echo")) == 2, "the caller decides which one is removed"
        cluster.scale(KEY, 1)
        await listener.wait_until(lambda: ids(listener.replicas[KEY]) == {"echo-1"})
        await cluster.apply(make_config("num_replicas: 2"))
        await listener.wait_until(lambda: len(listener.ready("echo")) == 2)
        assert "echo-1" in ids(listener.ready("echo"))


async def test_services_are_added_and_removed_with_the_file(make_config: MakeConfig, tmp_path: Path) -> None:
    async with running_cluster(make_config(name="first"), tmp_path / "state") as (cluster, listener):
        await listener.wait_until(lambda: listener.ready("first"))
        await cluster.apply(make_config(name="second"))
        assert set(listener.services) == {"second"}
        await listener.wait_until(lambda: listener.replicas["first", "default"] == () and listener.ready("second"))
        cluster.scale(("first", "default"), 3)
        await cluster.apply(make_config(name="first"))
        await listener.wait_until(lambda: listener.ready("first"))
        # The service is added again while its replica drains: the replica stops, and a new one starts.
        await cluster.apply(make_config(name="second"))
        await cluster.apply(make_config(name="first"))
        await listener.wait_until(
            lambda: len(listener.ready("first")) == len(listener.replicas["first", "default"]) == 1
        )


async def test_file_that_cannot_be_launched_changes_nothing(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "score.py").touch()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    broken = config_of(tmp_path, "services: {other: {entry_script: score.py}}")
    async with running_cluster(make_config(), tmp_path / "state") as (cluster, listener):
        with pytest.raises(SettingsError, match="pip install"):
            await cluster.apply(broken)
        assert set(listener.services) == {"echo"}
        await listener.wait_until(lambda: listener.ready("echo"))


async def test_fixed_addresses_are_probed_but_neither_scaled_nor_stopped(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    def addresses(*replicas: Replica) -> LocalConfig:
        pairs = [f"127.0.0.1:{replica.port}" for replica in replicas]
        settings = "readiness_period_seconds: 1, readiness_failure_threshold: 1"
        return config_of(tmp_path, f"services: {{remote: {{addresses: {json.dumps(pairs)}, {settings}}}}}")

    key = ("remote", "default")
    async with running_cluster(make_config("num_replicas: 2"), tmp_path / "other") as (_, other):
        await other.wait_until(lambda: len(other.ready("echo")) == 2)
        one, two = other.ready("echo")
        async with running_cluster(addresses(one, two), tmp_path / "state") as (cluster, listener):
            assert [replica.state for replica in listener.replicas[key]] == [ReplicaState.STARTING] * 2
            await listener.wait_until(lambda: len(listener.ready("remote")) == 2)
            cluster.scale(key, 0)
            assert [replica.port for replica in listener.ready("remote")] == [one.port, two.port]
            send_request(one.port, "/unready", b"")
            await listener.wait_until(lambda: [r.port for r in listener.ready("remote")] == [two.port])
            assert len(listener.replicas[key]) == 2
            send_request(one.port, "/ready", b"")
            await listener.wait_until(lambda: len(listener.ready("remote")) == 2)
            before = listener.replicas[key]
            await cluster.apply(addresses(two))
            await listener.wait_until(lambda: listener.replicas[key] == before[1:])
        assert statistics(two.port)["requests"] == 0


async def test_version_changes_from_addresses_to_processes_and_back(make_config: MakeConfig, tmp_path: Path) -> None:
    fixed = config_of(tmp_path, "services: {echo: {addresses: ['127.0.0.1:9']}}")
    async with running_cluster(fixed, tmp_path / "state") as (cluster, listener):
        (address,) = listener.replicas[KEY]
        await cluster.apply(make_config())
        await listener.wait_until(lambda: listener.ready("echo"))
        assert address.id not in ids(listener.replicas[KEY])
        await cluster.apply(fixed)
        await listener.wait_until(lambda: [replica.port for replica in listener.replicas[KEY]] == [9])


async def test_keys_are_generated_where_the_file_gives_none(make_config: MakeConfig, tmp_path: Path) -> None:
    async def keys_with(settings: str) -> tuple[str | None, str | None]:
        listener = RecordingListener()
        cluster = LocalCluster(make_config(f"autoscale_min_replicas: 0, {settings}"), state_dir=tmp_path / "state")
        await cluster.start(listener)
        await cluster.stop()
        return listener.services["echo"].primary_key, listener.services["echo"].secondary_key

    assert await keys_with("auth_enabled: false") == (None, None)
    assert not (tmp_path / "state" / "keys.json").exists()
    given = "my-own-primary-key-of-the-file"
    assert await keys_with(f"primary_key: {given}, secondary_key: {given}-2") == (given, f"{given}-2")
    assert not (tmp_path / "state" / "keys.json").exists()
    generated = KeyStore(tmp_path / "state").keys_for(["echo"])["echo"]
    assert await keys_with("max_queue_length: 5") == generated
    assert await keys_with(f"primary_key: {given}") == (given, generated[1])


async def test_key_regenerated_by_a_command_takes_effect(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("router.cluster.local.cluster.POLL_SECONDS", 0.01)
    state_dir = tmp_path / "state"
    async with running_cluster(make_config("autoscale_min_replicas: 0"), state_dir) as (_, listener):
        key = KeyStore(state_dir).regenerate("echo", "primary")
        await listener.wait_until(lambda: listener.services["echo"].primary_key == key)
        (state_dir / "keys.json").write_text("broken")
        await listener.wait_until(lambda: listener.fields_of("keys cannot be read, the previous ones stay valid"))
        assert listener.services["echo"].primary_key == key
        (state_dir / "keys.json").chmod(0o644)
        (state_dir / "keys.json").write_text('{"services": {}}')
        await listener.wait_until(lambda: listener.services["echo"].primary_key != key)
        assert stat.S_IMODE((state_dir / "keys.json").stat().st_mode) == 0o600


async def test_port_in_the_environment_reaches_the_program(tmp_path: Path, mark: str) -> None:
    command = ["sh", "-c", f"exec {sys.executable} {ECHO_SERVER} --port $LISTEN --mark {mark} --show URL"]
    settings = "environment: {LISTEN: '{port}', URL: 'http://{host}:{port}/'}, num_replicas: 2"
    config = config_of(tmp_path, f"services: {{echo: {{command: {json.dumps(command)}, {settings}}}}}")
    async with running_cluster(config, tmp_path / "state") as (_, listener):
        await listener.wait_until(lambda: len(listener.ready("echo")) == 2)
        for replica in listener.ready("echo"):
            assert statistics(replica.port)["environment"]["URL"] == f"http://127.0.0.1:{replica.port}/"


async def test_output_of_a_replica_is_in_its_log(make_config: MakeConfig, tmp_path: Path) -> None:
    async with running_cluster(make_config(print="hello log"), tmp_path / "state") as (_, listener):
        await listener.wait_until(lambda: listener.ready("echo"))
        log = tmp_path / "state" / "logs" / "echo" / "default" / f"echo-1.{os.getpid()}.log"
        assert log.read_text() == "hello log\n"


@pytest.mark.parametrize(
    ("exception", "with_message", "described"),
    [
        ("KeyError: 'secret'", False, "KeyError (score.py, line 6) (message: log_exception_messages: true)"),
        ("KeyError: 'secret'", True, "KeyError: 'secret' (score.py, line 6)"),
        ("KeyError", False, "KeyError (score.py, line 6)"),
    ],
)
async def test_hidden_message_of_an_exception_is_reported_with_the_setting_that_shows_it(
    make_config: MakeConfig, tmp_path: Path, exception: str, with_message: bool, described: str
) -> None:
    output = f'Traceback (most recent call last):\n  File "score.py", line 6, in run\n{exception}'
    options = {"logs_exception_messages": with_message}
    async with running_cluster(make_config(print=output), tmp_path / "state", **options) as (cluster, listener):
        await listener.wait_until(lambda: listener.ready("echo"))
        cluster.report_server_error(KEY, "echo-1", 500)
        log = listener.fields_of("replica has responded with an error")[0]["log"]
        assert listener.texts[-1] == f"echo-1 has responded with 500: {described}; whole output: {log}"
