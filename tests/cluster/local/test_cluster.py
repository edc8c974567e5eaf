"""The local cluster as its listener sees it: starts, scaling, faults, changed files. Replicas are real processes."""

import asyncio
import json
import logging
import os
import signal
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from router.cluster.local.cluster import LocalCluster
from router.cluster.local.file import LocalConfig
from router.cluster.local.keys import KeyStore
from router.services import Replica, ReplicaState, SettingsError
from tests.cluster.local.world import (
    Listener,
    ask,
    config_of,
    marked,
    pids_with,
    run,
    running,
    stats,
    words_of_echo_server,
)

KEY = ("echo", "default")
Read = Callable[..., LocalConfig]


@pytest.fixture
def mark() -> Iterator[str]:
    with marked() as mark:
        yield mark


@pytest.fixture
def read(tmp_path: Path, mark: str) -> Read:
    """A file with one service `echo`: settings by name, options of the test server as a mapping."""

    def read(settings: str = "num_replicas: 1", *, name: str = "echo", **options: object) -> LocalConfig:
        command = json.dumps(words_of_echo_server(mark=mark, **options))
        return config_of(tmp_path, f"services: {{{name}: {{command: {command}, {settings}}}}}")

    return read


def ids(replicas: list[Replica]) -> set[str]:
    return {replica.id for replica in replicas}


def test_services_are_reported_before_their_replicas_which_become_ready(read: Read, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(read("autoscale_min_replicas: 2"), tmp_path / "state") as (_, seen):
            assert set(seen.services) == {"echo"}
            assert [replica.state for replica in seen.replicas[KEY]] == [ReplicaState.STARTING] * 2
            await seen.until(lambda: len(seen.ready("echo")) == 2)
            assert ids(seen.ready("echo")) == {"echo-1", "echo-2"}
            for replica in seen.ready("echo"):
                assert ask(replica.port, "/score", "POST", "x") == (200, "x")
            assert len(seen.told("replica starts")) == len(seen.told("replica is ready")) == 2
        assert seen.replicas[KEY] == ()

    run(scenario())


def test_no_replica_is_started_where_the_minimum_is_none(read: Read, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(read("autoscale_min_replicas: 0"), tmp_path / "state") as (cluster, seen):
            assert seen.replicas == {KEY: ()}
            cluster.scale(KEY, 1)
            await seen.until(lambda: seen.ready("echo"))

    run(scenario())


def test_scaling_starts_more_and_stops_the_named_ones_first(read: Read, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(read("autoscale_min_replicas: 1"), tmp_path / "state") as (cluster, seen):
            cluster.scale(KEY, 3)
            await seen.until(lambda: len(seen.ready("echo")) == 3)
            cluster.scale(KEY, 2, remove=["echo-1"])
            assert seen.replicas[KEY][0].state is ReplicaState.DRAINING
            await seen.until(lambda: len(seen.replicas[KEY]) == 2)
            assert ids(seen.ready("echo")) == {"echo-2", "echo-3"}
            cluster.scale(("unknown", "default"), 5)
            with pytest.raises(ValueError, match="at least 0"):
                cluster.scale(KEY, -1)

    run(scenario())


def test_only_replicas_that_nobody_drained_are_drained_before_they_stop(read: Read, tmp_path: Path) -> None:
    async def scenario() -> None:
        drained: list[tuple[str, float]] = []
        go_on = asyncio.Event()

        async def drain(replica_id: str, seconds: float) -> bool:
            drained.append((replica_id, seconds))
            await go_on.wait()
            return True

        config = read("autoscale_min_replicas: 3, scoring_timeout_ms: 7500")
        async with running(config, tmp_path / "state", drain=drain) as (cluster, seen):
            await seen.until(lambda: len(seen.ready("echo")) == 3)
            cluster.scale(KEY, 1, remove=["echo-2"])
            await seen.until(lambda: len(seen.replicas[KEY]) == 2)
            # echo-2 went at once; the youngest of the others still serves what it has.
            assert drained == [("echo-3", 7.5)]
            youngest = seen.replicas[KEY][1]
            assert (youngest.id, youngest.state) == ("echo-3", ReplicaState.DRAINING)
            assert ask(youngest.port, "/score", "POST", "x") == (200, "x")
            go_on.set()
            await seen.until(lambda: ids(list(seen.replicas[KEY])) == {"echo-1"})

    run(scenario())


def test_a_drain_ends_with_its_replica(read: Read, tmp_path: Path) -> None:
    async def scenario() -> None:
        cancelled = asyncio.Event()

        async def drain(replica_id: str, seconds: float) -> bool:
            try:
                return await asyncio.Event().wait()
            finally:
                cancelled.set()

        async with running(read(), tmp_path / "state", drain=drain) as (cluster, seen):
            await seen.until(lambda: seen.ready("echo"))
            (replica,) = seen.ready("echo")
            cluster.scale(KEY, 0)
            await asyncio.sleep(0)
            with pytest.raises(OSError, match=r"."):
                ask(replica.port, "/crash")
            await seen.until(lambda: seen.replicas[KEY] == ())
            await cancelled.wait()

    run(scenario())


def test_a_drain_that_fails_is_reported_and_the_replica_goes(read: Read, tmp_path: Path) -> None:
    async def scenario() -> None:
        async def drain(replica_id: str, seconds: float) -> bool:
            raise RuntimeError("lost count")

        async with running(read(), tmp_path / "state", drain=drain) as (cluster, seen):
            await seen.until(lambda: seen.ready("echo"))
            cluster.scale(KEY, 0)
            await seen.until(lambda: seen.told("a task of the local cluster failed"))
            assert seen.replicas[KEY] == ()
            assert "lost count" in str(seen.told("a task of the local cluster failed"))

    run(scenario())


def test_stopping_waits_for_no_drain_and_leaves_no_process(read: Read, tmp_path: Path, mark: str) -> None:
    async def scenario() -> None:
        async def drain(replica_id: str, seconds: float) -> bool:
            return await asyncio.Event().wait()

        config = read("autoscale_min_replicas: 3", child=mark)
        async with running(config, tmp_path / "state", drain=drain) as (cluster, seen):
            await seen.until(lambda: len(seen.ready("echo")) == 3)
            assert len(pids_with(mark)) == 6
            cluster.scale(KEY, 2)
            # The children ignore SIGTERM; without a grace they would make this test wait for it.
            for pid in pids_with(mark):
                if pid not in {stats(replica.port)["pid"] for replica in seen.replicas[KEY]}:
                    os.kill(pid, signal.SIGKILL)
        assert pids_with(mark) == []

    run(scenario())


def test_a_cancelled_stop_kills_all(read: Read, tmp_path: Path, mark: str) -> None:
    async def scenario() -> None:
        config = read("autoscale_min_replicas: 2", ignore_sigterm=1)
        async with running(config, tmp_path / "state") as (cluster, seen):
            await seen.until(lambda: len(seen.ready("echo")) == 2)
            stopping = asyncio.create_task(cluster.stop())
            await asyncio.sleep(0)
            stopping.cancel()
            await asyncio.wait((stopping,))
            await seen.until(lambda: seen.replicas[KEY] == ())

    run(scenario())


def test_nothing_starts_once_it_is_being_stopped(read: Read, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(read("autoscale_min_replicas: 1"), tmp_path / "state") as (cluster, seen):
            await seen.until(lambda: seen.ready("echo"))
            stopping = asyncio.create_task(cluster.stop())
            await asyncio.sleep(0)
            cluster.scale(KEY, 3)
            cluster.apply(read("num_replicas: 3"))
            await stopping
            assert seen.replicas[KEY] == ()
            assert len(seen.told("replica starts")) == 1

    run(scenario())


def test_a_ready_replica_that_dies_is_replaced_at_once(read: Read, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(read(), tmp_path / "state") as (_, seen):
            await seen.until(lambda: seen.ready("echo"))
            with pytest.raises(OSError, match=r"."):
                ask(seen.ready("echo")[0].port, "/crash")
            await seen.until(lambda: ids(seen.ready("echo")) == {"echo-2"})
        (died,) = seen.told("replica died")
        assert (died["replica"], died["how"], died["retry_seconds"]) == ("echo-1", "exit code 42", 0.0)
        assert not seen.told("replica cannot start")

    run(scenario())


def test_one_that_cannot_start_is_retried_later_and_its_output_is_shown(read: Read, tmp_path: Path) -> None:
    async def scenario() -> None:
        config = read(exit_after_start=3, print="model file is missing")
        async with running(config, tmp_path / "state") as (_, seen):
            await seen.until(lambda: len(seen.told("replica cannot start")) == 2)
            first, second = seen.told("replica cannot start")
        assert first == {
            "replica": "echo-1",
            "how": "exit code 3",
            "retry_seconds": 0.5,
            "output": "model file is missing",
        }
        assert (second["replica"], second["retry_seconds"]) == ("echo-2", 1.0)
        assert {level for _, level, text, _ in seen.notices if text == "replica cannot start"} == {logging.WARNING}

    run(scenario())


def test_a_slow_start_is_told_once_with_its_reason(read: Read, tmp_path: Path) -> None:
    async def scenario() -> None:
        now = [0.0]
        config = read("num_replicas: 1", fail_readiness_for=60)
        async with running(config, tmp_path / "state", clock=lambda: now[0]) as (cluster, seen):
            await seen.until(lambda: seen.told("replica starts"))
            assert list(cluster.problems()) == []
            now[0] = 31.0
            await seen.until(lambda: seen.told("replica is not ready yet"))
            now[0] = 99.0
            (told,) = seen.told("replica is not ready yet")
            assert (told["replica"], told["seconds"], told["reason"]) == ("echo-1", 31.0, "status 503")
            assert list(cluster.problems()) == ["service echo: echo-1 is not ready after 99 s: status 503"]

    run(scenario())


def test_what_cannot_start_is_a_problem_until_it_does(read: Read, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(read("num_replicas: 1", exit_after_start=3), tmp_path / "state") as (cluster, seen):
            await seen.until(lambda: seen.told("replica cannot start"))
            assert list(cluster.problems()) == ["service echo: replicas cannot start: exit code 3"]
            cluster.apply(read("num_replicas: 1"))
            assert list(cluster.problems()) == []
            await seen.until(lambda: seen.ready("echo"))
            assert list(cluster.problems()) == []

    run(scenario())


def test_an_address_that_never_answers_is_told_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        with socket.socket() as nobody:  # bound, and not listened on
            nobody.bind(("127.0.0.1", 0))
            where = f"127.0.0.1:{nobody.getsockname()[1]}"
            config = config_of(
                tmp_path, f"services: {{far: {{addresses: ['{where}'], failure_threshold: 1, auth_enabled: false}}}}"
            )
            async with running(config, tmp_path / "state") as (cluster, seen):
                await seen.until(lambda: seen.told("replica does not answer"))
                assert seen.told("replica does not answer") == [
                    {"replica": "far-1", "address": where, "reason": "Connection refused"}
                ]
                assert list(cluster.problems()) == [
                    f"service far: far-1 at {where} does not answer: Connection refused"
                ]

    run(scenario())


def test_a_start_that_takes_too_long_is_a_failed_one(read: Read, tmp_path: Path) -> None:
    async def scenario() -> None:
        config = read("num_replicas: 1, initial_delay_seconds: 1", fail_readiness_for=60)
        async with running(config, tmp_path / "state") as (_, seen):
            await seen.until(lambda: seen.told("replica cannot start"))
        assert seen.told("replica cannot start")[0]["how"] == "not ready within 1 s"

    run(scenario())


def test_a_start_without_a_log_fails_and_is_retried(read: Read, tmp_path: Path) -> None:
    async def scenario() -> None:
        state_dir = tmp_path / "state"
        state_dir.mkdir()
        (state_dir / "logs").write_text("in the way")
        async with running(read("num_replicas: 1, auth_enabled: false"), state_dir) as (_, seen):
            await seen.until(lambda: seen.told("replica cannot start"))
            assert "Not a directory" in str(seen.told("replica cannot start")[0]["how"])
            (state_dir / "logs").unlink()
            await seen.until(lambda: seen.ready("echo"))

    run(scenario())


def test_a_start_without_a_port_fails_and_is_retried(
    read: Read, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        with monkeypatch.context() as full:
            full.setattr("router.cluster.local.replica.Ports._is_free", lambda self, port: False)
            cluster, seen = LocalCluster(read(), state_dir=tmp_path / "state"), Listener()
            await cluster.start(seen)
        assert "no free port" in str(seen.told("replica cannot start")[0]["how"])
        assert seen.replicas[KEY] == ()
        await seen.until(lambda: seen.ready("echo"))
        await cluster.stop()

    run(scenario())


def test_one_that_no_longer_answers_is_drained_and_replaced(read: Read, tmp_path: Path) -> None:
    async def scenario() -> None:
        drained: list[str] = []

        async def drain(replica_id: str, seconds: float) -> bool:
            drained.append(replica_id)
            return True

        config = read("num_replicas: 1, period_seconds: 1, failure_threshold: 1")
        async with running(config, tmp_path / "state", drain=drain) as (_, seen):
            await seen.until(lambda: seen.ready("echo"))
            ask(seen.ready("echo")[0].port, "/unready", "POST")
            await seen.until(lambda: ids(seen.ready("echo")) == {"echo-2"})
            assert drained == ["echo-1"]
            (lost,) = seen.told("replica no longer answers")
            assert (lost["replica"], lost["reason"]) == ("echo-1", "status 503")

    run(scenario())


def test_a_changed_launch_replaces_replicas_while_as_many_serve(read: Read, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(read("num_replicas: 2"), tmp_path / "state") as (cluster, seen):
            await seen.until(lambda: len(seen.ready("echo")) == 2)
            beginning = len(seen.history)
            cluster.apply(read("num_replicas: 2", print="second edition"))
            await seen.until(lambda: ids(list(seen.replicas[KEY])) == {"echo-3", "echo-4"})
            await seen.until(lambda: len(seen.ready("echo")) == 2)
            for _, replicas in seen.history[beginning:]:
                states = [replica.state for replica in replicas]
                assert states.count(ReplicaState.READY) >= 2
                assert len(states) - states.count(ReplicaState.DRAINING) <= 3

    run(scenario())


def test_a_broken_new_launch_leaves_the_former_replicas_in_service(read: Read, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(read(), tmp_path / "state") as (cluster, seen):
            await seen.until(lambda: seen.ready("echo"))
            cluster.apply(read(exit_after_start=1))
            await seen.until(lambda: len(seen.told("replica cannot start")) == 2)
            assert ids(seen.ready("echo")) == {"echo-1"}
            cluster.apply(read(print="mended"))
            await seen.until(lambda: seen.ready("echo") and "echo-1" not in ids(list(seen.replicas[KEY])))

    run(scenario())


def test_changed_settings_touch_no_process(read: Read, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(read("autoscale_min_replicas: 1"), tmp_path / "state") as (cluster, seen):
            await seen.until(lambda: seen.ready("echo"))
            history = list(seen.history)
            cluster.apply(read("autoscale_min_replicas: 1, scoring_timeout_ms: 1234"))
            assert seen.services["echo"].default_version.scoring_timeout_ms == 1234
            assert seen.history == history
            cluster.apply(read("autoscale_min_replicas: 2"))
            await seen.until(lambda: len(seen.ready("echo")) == 2)
            cluster.apply(read("autoscale_min_replicas: 1, autoscale_max_replicas: 1"))
            await seen.until(lambda: ids(list(seen.replicas[KEY])) == {"echo-1"})
            cluster.apply(read("num_replicas: 2"))
            await seen.until(lambda: len(seen.ready("echo")) == 2)
            assert "echo-1" in ids(seen.ready("echo"))

    run(scenario())


def test_services_come_and_go_with_the_file(read: Read, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(read(name="first"), tmp_path / "state") as (cluster, seen):
            await seen.until(lambda: seen.ready("first"))
            cluster.apply(read(name="second"))
            assert set(seen.services) == {"second"}
            await seen.until(lambda: seen.replicas["first", "default"] == () and seen.ready("second"))
            cluster.scale(("first", "default"), 3)
            cluster.apply(read(name="first"))
            await seen.until(lambda: seen.ready("first"))
            # Back before it was gone: what drains goes, and a new one comes.
            cluster.apply(read(name="second"))
            cluster.apply(read(name="first"))
            await seen.until(lambda: len(seen.ready("first")) == len(seen.replicas["first", "default"]) == 1)

    run(scenario())


def test_a_file_that_cannot_be_run_changes_nothing(read: Read, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "score.py").touch()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    broken = config_of(tmp_path, "services: {other: {entry_script: score.py}}")

    async def scenario() -> None:
        async with running(read(), tmp_path / "state") as (cluster, seen):
            with pytest.raises(SettingsError, match="pip install"):
                cluster.apply(broken)
            assert set(seen.services) == {"echo"}
            await seen.until(lambda: seen.ready("echo"))

    run(scenario())


def test_fixed_addresses_are_probed_and_neither_scaled_nor_stopped(read: Read, tmp_path: Path) -> None:
    def addresses(*replicas: Replica) -> LocalConfig:
        pairs = [f"127.0.0.1:{replica.port}" for replica in replicas]
        settings = "period_seconds: 1, failure_threshold: 1"
        return config_of(tmp_path, f"services: {{remote: {{addresses: {json.dumps(pairs)}, {settings}}}}}")

    async def scenario() -> None:
        key = ("remote", "default")
        async with running(read("num_replicas: 2"), tmp_path / "elsewhere") as (_, elsewhere):
            await elsewhere.until(lambda: len(elsewhere.ready("echo")) == 2)
            one, two = elsewhere.ready("echo")
            async with running(addresses(one, two), tmp_path / "state") as (cluster, seen):
                assert [replica.state for replica in seen.replicas[key]] == [ReplicaState.STARTING] * 2
                await seen.until(lambda: len(seen.ready("remote")) == 2)
                cluster.scale(key, 0)
                assert [replica.port for replica in seen.ready("remote")] == [one.port, two.port]
                ask(one.port, "/unready", "POST")
                await seen.until(lambda: [r.port for r in seen.ready("remote")] == [two.port])
                assert len(seen.replicas[key]) == 2
                ask(one.port, "/ready", "POST")
                await seen.until(lambda: len(seen.ready("remote")) == 2)
                before = seen.replicas[key]
                cluster.apply(addresses(two))
                await seen.until(lambda: seen.replicas[key] == before[1:])
            assert stats(two.port)["requests"] == 0

    run(scenario())


def test_addresses_can_give_way_to_processes_and_back(read: Read, tmp_path: Path) -> None:
    async def scenario() -> None:
        fixed = config_of(tmp_path, "services: {echo: {addresses: ['127.0.0.1:9']}}")
        async with running(fixed, tmp_path / "state") as (cluster, seen):
            (address,) = seen.replicas[KEY]
            cluster.apply(read())
            await seen.until(lambda: seen.ready("echo"))
            assert address.id not in ids(list(seen.replicas[KEY]))
            cluster.apply(fixed)
            await seen.until(lambda: [replica.port for replica in seen.replicas[KEY]] == [9])

    run(scenario())


def test_keys_are_made_where_the_file_gives_none(read: Read, tmp_path: Path) -> None:
    async def scenario(settings: str) -> tuple[str | None, str | None]:
        listener = Listener()
        cluster = LocalCluster(read(f"autoscale_min_replicas: 0, {settings}"), state_dir=tmp_path / "state")
        await cluster.start(listener)
        await cluster.stop()
        return listener.services["echo"].primary_key, listener.services["echo"].secondary_key

    assert asyncio.run(scenario("auth_enabled: false")) == (None, None)
    assert not (tmp_path / "state" / "keys.json").exists()
    given = "my-own-primary-key-of-the-file"
    assert asyncio.run(scenario(f"primary_key: {given}, secondary_key: {given}-2")) == (given, f"{given}-2")
    assert not (tmp_path / "state" / "keys.json").exists()
    generated = KeyStore(tmp_path / "state").keys_for("echo")
    assert asyncio.run(scenario("max_queue_length: 5")) == generated
    assert asyncio.run(scenario(f"primary_key: {given}")) == (given, generated[1])


def test_a_key_made_anew_by_a_command_takes_effect(read: Read, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router.cluster.local.cluster._TICK_SECONDS", 0.01)

    async def scenario() -> None:
        state_dir = tmp_path / "state"
        async with running(read("autoscale_min_replicas: 0"), state_dir) as (_, seen):
            key = KeyStore(state_dir).regenerate("echo", "primary")
            await seen.until(lambda: seen.services["echo"].primary_key == key)
            (state_dir / "keys.json").write_text("broken")
            await seen.until(lambda: seen.told("keys cannot be read, the former ones stay valid"))
            assert seen.services["echo"].primary_key == key
            (state_dir / "keys.json").chmod(0o644)
            (state_dir / "keys.json").write_text('{"services": {}}')
            await seen.until(lambda: seen.services["echo"].primary_key != key)
            assert stat.S_IMODE((state_dir / "keys.json").stat().st_mode) == 0o600

    run(scenario())


def test_what_a_replica_prints_is_in_its_log(read: Read, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(read(print="hello log"), tmp_path / "state") as (_, seen):
            await seen.until(lambda: seen.ready("echo"))
            log = tmp_path / "state" / "logs" / "echo" / "default" / "echo-1.log"
            assert log.read_text() == "hello log\n"

    run(scenario())
