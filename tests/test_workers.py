"""Worker processes, real ones: started, watched, replaced, drained. The test plays the supervisor."""

import asyncio
import gc
import os
import signal
from collections.abc import Coroutine, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import uvloop

from router import worker_process
from router import workers as workers_module
from router.workers import RestartPause
from tests.processes import PATIENCE_SECONDS, Load, Pending, all_gone, descriptors, echo_server
from tests.worker_stage import ECHO, stage

SLOW_SECONDS = 0.4


@pytest.fixture(scope="module")
def ports() -> Iterator[dict[str, int]]:
    """A model server per service."""
    with echo_server() as echo, echo_server(delay=SLOW_SECONDS) as slow:
        yield {"echo": echo, "slow": slow}


def run(story: Coroutine[Any, Any, None]) -> None:
    uvloop.run(story)


# Start.


def test_workers_serve_once_they_are_there(ports: dict[str, int]) -> None:
    async def story() -> None:
        async with stage(ports) as scene:
            assert not scene.workers.accepting
            await scene.workers.resize(2)
            assert scene.workers.accepting
            assert (len(scene.workers), len(scene.pids)) == (2, 2)
            assert await scene.ask() == 200

    run(story())


def test_nobody_is_accepted_before_the_replicas_are_known(ports: dict[str, int]) -> None:
    """The connection waits in the accept queue; without its replicas the service would answer 503."""

    async def story() -> None:
        async with stage(ports) as scene:
            pending = [Pending(scene.port, ECHO) for _ in range(5)]
            await scene.workers.resize(1)
            assert [(await asyncio.to_thread(each.answer)).status for each in pending] == [200] * 5

    run(story())


def test_workers_take_no_module_from_the_folder_they_are_started_in(
    ports: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "router").mkdir()
    (tmp_path / "uvloop.py").write_text("raise SystemExit('somebody else is uvloop')")
    monkeypatch.chdir(tmp_path)

    async def story() -> None:
        async with stage(ports, 1) as scene:
            assert await scene.ask() == 200

    run(story())


def test_a_start_that_is_given_up_leaves_nothing(ports: dict[str, int]) -> None:
    async def story() -> None:
        for delay in (0.0, 0.003, 0.02):
            async with stage(ports) as scene:
                starting = asyncio.ensure_future(scene.workers.resize(2))
                await asyncio.sleep(delay)
                starting.cancel()
                await asyncio.wait((starting,))

    run(story())


def test_a_stop_during_the_start_ends_both(ports: dict[str, int]) -> None:
    async def story() -> None:
        async with stage(ports) as scene:
            starting = asyncio.ensure_future(scene.workers.resize(2))
            await asyncio.sleep(0.01)
            assert await scene.workers.stop(PATIENCE_SECONDS)
            await starting
            assert scene.pids == []

    run(story())


# Death.


def test_pauses_double_while_workers_die_young() -> None:
    pause = RestartPause()
    assert [pause.after(0.0) for _ in range(9)] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0]
    assert pause.after(RestartPause.YOUNG) == 0.0
    assert pause.after(0.0) == RestartPause.FIRST


def test_a_dead_worker_is_replaced_and_the_others_serve_on(ports: dict[str, int]) -> None:
    async def story() -> None:
        async with stage(ports, 2) as scene:
            before = scene.pids
            os.kill(before[0], signal.SIGKILL)
            await scene.until(lambda: scene.ended)
            assert await scene.ask() == 200
            await scene.until(lambda: len(scene.workers) == 2)
            await scene.until(lambda: len(scene.pids) == 2)
            assert before[0] not in scene.pids
            assert before[1] in scene.pids
            assert len(scene.started) == 3

    run(story())


def test_a_connection_that_waits_outlives_the_only_worker(ports: dict[str, int]) -> None:
    async def story() -> None:
        async with stage(ports, 1) as scene:
            (pid,) = scene.pids
            os.kill(pid, signal.SIGSTOP)
            pending = Pending(scene.port, ECHO)
            await scene.until(lambda: _accept_queue(scene.port) == 1)
            os.kill(pid, signal.SIGKILL)
            assert (await asyncio.to_thread(pending.answer)).status == 200

    run(story())


def _accept_queue(port: int) -> int:
    """Connections that nobody has accepted: rx_queue of the listening socket in /proc/net/tcp."""
    with open("/proc/net/tcp") as table:
        rows = [line.split() for line in table.readlines()[1:]]
    return sum(
        int(row[4].split(":")[1], 16) for row in rows if row[3] == "0A" and int(row[1].split(":")[1], 16) == port
    )


@pytest.fixture
def broken(tmp_path: Path) -> Any:
    """While this is in force, new workers cannot start."""
    (tmp_path / "router").mkdir()
    (tmp_path / "router" / "__init__.py").write_text("raise SystemExit(7)")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    return mock.patch.object(worker_process, "_environment", return_value=environment)


def test_a_worker_that_cannot_start_is_tried_again(ports: dict[str, int], broken: Any) -> None:
    async def story() -> None:
        async with stage(ports) as scene:
            fast = mock.patch.multiple(RestartPause, FIRST=0.01, LONGEST=0.01)
            with fast:
                with broken:
                    await scene.workers.resize(1)
                    assert not scene.workers.accepting
                    await scene.until(lambda: len(scene.ended) >= 3)
                await scene.until(lambda: scene.workers.accepting)
            assert await scene.ask() == 200
            assert len(scene.workers) == 1

    run(story())


def test_a_process_that_cannot_be_made_is_tried_again(ports: dict[str, int]) -> None:
    async def story() -> None:
        async with stage(ports, 1) as scene:
            tries = 0
            original = asyncio.create_subprocess_exec

            async def fail_at_first(*words: Any, **facts: Any) -> asyncio.subprocess.Process:
                nonlocal tries
                tries += 1
                if tries < 3:
                    raise BlockingIOError("no process left")
                return await original(*words, **facts)

            fast = mock.patch.multiple(RestartPause, FIRST=0.01, LONGEST=0.01)
            with fast, mock.patch("asyncio.create_subprocess_exec", fail_at_first):
                os.kill(scene.pids[0], signal.SIGKILL)
                await scene.until(lambda: tries == 3 and scene.workers.accepting)
            assert await scene.ask() == 200

    run(story())


def test_a_stop_does_not_wait_for_the_pause_before_a_restart(ports: dict[str, int]) -> None:
    async def story() -> None:
        with mock.patch.multiple(RestartPause, FIRST=1000.0, LONGEST=1000.0):
            async with stage(ports, 1) as scene:
                os.kill(scene.pids[0], signal.SIGKILL)
                await scene.until(lambda: scene.ended)

    run(story())


def test_a_worker_that_hangs_at_its_start_is_killed(ports: dict[str, int]) -> None:
    async def story() -> None:
        with mock.patch.object(workers_module, "_START_SECONDS", 0.01):
            async with stage(ports) as scene:
                await scene.workers.resize(1)
                await scene.until(lambda: scene.ended)

    run(story())


# Another number, other workers.


def test_there_may_be_more_and_fewer(ports: dict[str, int]) -> None:
    async def story() -> None:
        async with stage(ports, 1) as scene:
            with Load(scene.port, ECHO, clients=3) as load:
                await scene.workers.resize(3)
                assert (len(scene.workers), len(scene.pids)) == (3, 3)
                await asyncio.to_thread(load.goes_on)
                await scene.workers.resize(1)
                assert len(scene.workers) == 1
                await scene.until(lambda: len(scene.pids) == 1)
                await asyncio.to_thread(load.goes_on)
            assert load.all_well, load
            await scene.workers.resize(0)
            await scene.until(lambda: not scene.pids)

    run(story())


def test_a_surplus_worker_finishes_what_it_has(ports: dict[str, int]) -> None:
    async def story() -> None:
        async with stage(ports, 1) as scene:
            pending = await scene.under_way()
            await scene.workers.resize(0)
            assert (len(scene.workers), scene.ended) == (0, [])
            assert (await asyncio.to_thread(pending.answer)).status == 200
            await scene.until(lambda: scene.ended)

    run(story())


def test_a_death_while_others_start_leaves_the_right_number(ports: dict[str, int]) -> None:
    async def story() -> None:
        async with stage(ports, 1) as scene:
            (first,) = scene.pids
            growing = asyncio.ensure_future(scene.workers.resize(3))
            await scene.until(lambda: len(scene.pids) == 3)
            for pid in (first, scene.pids[-1]):
                os.kill(pid, signal.SIGKILL)
            await growing
            await scene.until(lambda: len(scene.workers) == 3)
            await scene.until(lambda: len(scene.pids) == 3)
            assert await scene.ask() == 200
            assert len(scene.started) == 5

    run(story())


@pytest.mark.parametrize("keep_alive", [True, False])
def test_replacing_all_loses_no_request(ports: dict[str, int], keep_alive: bool) -> None:
    async def story() -> None:
        async with stage(ports, 2) as scene:
            before = scene.pids
            with Load(scene.port, ECHO, clients=6, keep_alive=keep_alive) as load:
                await asyncio.to_thread(load.goes_on)
                await scene.workers.replace_all()
                assert len(scene.workers) == 2
                await scene.until(lambda: all_gone(before))
                await asyncio.to_thread(load.goes_on)
            assert load.all_well, load
            assert len(scene.pids) == 2
            await scene.workers.stop(PATIENCE_SECONDS)
            assert sum(scene.answered.values()) == load.answers.total()  # each worker's last report arrived

    run(story())


def test_workers_stay_when_their_successors_cannot_start(ports: dict[str, int], broken: Any) -> None:
    async def story() -> None:
        async with stage(ports, 2) as scene:
            before = scene.pids
            with broken:
                await scene.workers.replace_all()
            await scene.until(lambda: scene.ended)
            assert scene.pids == before
            assert (len(scene.workers), len(scene.started)) == (2, 3)
            assert await scene.ask() == 200

    run(story())


def test_replacing_twice_at_once_replaces_twice(ports: dict[str, int]) -> None:
    async def story() -> None:
        async with stage(ports, 1) as scene:
            await asyncio.gather(scene.workers.replace_all(), scene.workers.replace_all())
            assert len(scene.workers) == 1
            await scene.until(lambda: len(scene.pids) == 1)
            assert len(scene.started) == 3

    run(story())


# The end.


def test_a_stop_lets_requests_finish(ports: dict[str, int]) -> None:
    async def story() -> None:
        async with stage(ports, 2) as scene:
            pending = await scene.under_way()
            assert await scene.workers.stop(PATIENCE_SECONDS) is True
            answer = await asyncio.to_thread(pending.answer)
            assert (answer.status, answer.headers["connection"]) == (200, "close")
            assert scene.pids == []

    run(story())


def test_a_stop_cuts_what_takes_too_long_and_says_so(ports: dict[str, int]) -> None:
    async def story() -> None:
        async with stage(ports, 1) as scene:
            pending = await scene.under_way()
            assert await scene.workers.stop(0.05) is False
            with pytest.raises(ConnectionError):
                await asyncio.to_thread(pending.answer)

    run(story())


def test_a_kill_ends_a_stop(ports: dict[str, int]) -> None:
    async def story() -> None:
        async with stage(ports, 2) as scene:
            pending = await scene.under_way()
            stopping = asyncio.ensure_future(scene.workers.stop(PATIENCE_SECONDS))
            await asyncio.sleep(0)
            scene.workers.kill()
            assert await stopping is False
            scene.workers.kill()  # nobody is left
            with pytest.raises(ConnectionError):
                await asyncio.to_thread(pending.answer)

    run(story())


def test_a_stuck_worker_is_killed_at_the_bound(ports: dict[str, int]) -> None:
    async def story() -> None:
        with mock.patch.object(workers_module, "_DRAIN_MARGIN_SECONDS", 0.1):
            async with stage(ports, 2) as scene:
                os.kill(scene.pids[0], signal.SIGSTOP)
                assert await scene.workers.stop(0.1) is False
                assert scene.pids == []

    run(story())


def test_a_stuck_worker_that_was_replaced_is_killed_at_the_bound(ports: dict[str, int]) -> None:
    async def story() -> None:
        with mock.patch.object(workers_module, "_DRAIN_MARGIN_SECONDS", 0.1):
            async with stage(ports, 1) as scene:
                scene.workers._settings = replace(scene.workers._settings, drain_seconds=0.1)
                (stuck,) = scene.pids
                os.kill(stuck, signal.SIGSTOP)
                await scene.workers.replace_all()
                await scene.until(lambda: all_gone([stuck]))
                assert await scene.ask() == 200
                assert await scene.workers.stop(PATIENCE_SECONDS) is True  # what was cut before is not its doing

    run(story())


def test_no_descriptor_is_left_open(ports: dict[str, int]) -> None:
    async def story() -> None:
        async with stage(ports, 2) as scene:
            gc.collect()
            before = descriptors()
            await scene.workers.replace_all()
            await scene.until(lambda: len(scene.pids) == 2)
            os.kill(scene.pids[0], signal.SIGKILL)
            await scene.until(lambda: len(scene.started) == 5)
            await scene.workers.resize(4)
            await scene.workers.resize(2)
            await scene.until(lambda: len(scene.pids) == 2)
            await scene.until(lambda: len(scene.ended) == 5)
            gc.collect()
            assert descriptors() == before
            assert {descriptors(pid) for pid in scene.pids} == {descriptors(scene.pids[0])}

    run(story())
