"""The worker pool: start, health, replacement and drain of real worker processes."""

import asyncio
import gc
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from router.net import child_process
from router.net.backoff import Backoff
from router.workers import pool as pool_module
from router.workers import process as process_module
from tests.processes import TIMEOUT_SECONDS, Load, PendingRequest, all_ended, echo_server, open_descriptors
from tests.workers.harness import ECHO, running_pool

SLOW_SECONDS = 0.4


@pytest.fixture(scope="module")
def ports() -> Iterator[dict[str, int]]:
    """A model server per service."""
    with echo_server() as echo, echo_server(delay=SLOW_SECONDS) as slow:
        yield {"echo": echo, "slow": slow}


# Start.


async def test_pool_accepts_once_workers_are_ready(ports: dict[str, int]) -> None:
    async with running_pool(ports) as pool:
        assert not pool.workers.accepting
        await pool.workers.resize(2)
        assert pool.workers.accepting
        assert (len(pool.workers), len(pool.pids)) == (2, 2)
        assert await pool.send_request() == 200


async def test_clients_are_not_accepted_before_replicas_are_known(ports: dict[str, int]) -> None:
    """The connection waits in the accept queue; without replicas the response would be 503."""
    async with running_pool(ports) as pool:
        pending = [PendingRequest(pool.port, ECHO) for _ in range(5)]
        await pool.workers.resize(1)
        assert [(await asyncio.to_thread(each.response)).status for each in pending] == [200] * 5


async def test_workers_import_no_modules_from_the_current_directory(
    ports: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "router").mkdir()
    (tmp_path / "uvloop.py").write_text("raise SystemExit('not the real uvloop')")
    monkeypatch.chdir(tmp_path)
    async with running_pool(ports, 1) as pool:
        assert await pool.send_request() == 200


async def test_cancelled_start_leaves_no_process(ports: dict[str, int]) -> None:
    for delay in (0.0, 0.003, 0.02):
        async with running_pool(ports) as pool:
            starting = asyncio.ensure_future(pool.workers.resize(2))
            await asyncio.sleep(delay)
            starting.cancel()
            await asyncio.wait((starting,))


async def test_stop_during_start_ends_both(ports: dict[str, int]) -> None:
    async with running_pool(ports) as pool:
        starting = asyncio.ensure_future(pool.workers.resize(2))
        await asyncio.sleep(0.01)
        assert await pool.workers.stop(TIMEOUT_SECONDS)
        await starting
        assert pool.pids == []


# Crashes.


async def test_crashed_worker_is_replaced_while_others_serve(ports: dict[str, int]) -> None:
    async with running_pool(ports, 2) as pool:
        before = pool.pids
        os.kill(before[0], signal.SIGKILL)
        await pool.wait_until(lambda: pool.ended)
        assert await pool.send_request() == 200
        await pool.wait_until(lambda: len(pool.workers) == 2)
        await pool.wait_until(lambda: len(pool.pids) == 2)
        assert before[0] not in pool.pids
        assert before[1] in pool.pids
        assert len(pool.started) == 3


async def test_connection_in_the_accept_queue_survives_the_only_worker(ports: dict[str, int]) -> None:
    async with running_pool(ports, 1) as pool:
        (pid,) = pool.pids
        os.kill(pid, signal.SIGSTOP)
        pending = PendingRequest(pool.port, ECHO)
        await pool.wait_until(lambda: _accept_queue(pool.port) == 1)
        os.kill(pid, signal.SIGKILL)
        assert (await asyncio.to_thread(pending.response)).status == 200


def _accept_queue(port: int) -> int:
    """The length of a port's accept queue: rx_queue of its listening sockets in /proc/net/tcp."""
    with open("/proc/net/tcp") as table:
        rows = [line.split() for line in table.readlines()[1:]]
    return sum(
        int(row[4].split(":")[1], 16) for row in rows if row[3] == "0A" and int(row[1].split(":")[1], 16) == port
    )


@pytest.fixture
def failing_start(tmp_path: Path) -> Any:
    """Within this context, new workers exit at once."""
    (tmp_path / "router").mkdir()
    (tmp_path / "router" / "__init__.py").write_text("raise SystemExit(7)")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    return mock.patch.object(child_process, "_environment", return_value=environment)


async def test_worker_that_fails_to_start_is_restarted(ports: dict[str, int], failing_start: Any) -> None:
    async with running_pool(ports, restart_backoff=Backoff(0.01, 0.01)) as pool:
        with failing_start:
            await pool.workers.resize(1)
            assert not pool.workers.accepting
            await pool.wait_until(lambda: len(pool.ended) >= 3)
        await pool.wait_until(lambda: pool.workers.accepting)
        assert await pool.send_request() == 200
        assert len(pool.workers) == 1


async def test_failed_spawn_is_retried(ports: dict[str, int]) -> None:
    async with running_pool(ports, 1, restart_backoff=Backoff(0.01, 0.01)) as pool:
        spawn = asyncio.create_subprocess_exec
        failures = [BlockingIOError("no process left"), BlockingIOError("no process left")]

        async def fail_first(*arguments: Any, **options: Any) -> asyncio.subprocess.Process:
            if failures:
                raise failures.pop()
            return await spawn(*arguments, **options)

        with mock.patch("asyncio.create_subprocess_exec", fail_first):
            os.kill(pool.pids[0], signal.SIGKILL)
            await pool.wait_until(lambda: not failures and pool.workers.accepting)
        assert await pool.send_request() == 200


async def test_worker_that_served_for_long_is_restarted_without_delay(ports: dict[str, int]) -> None:
    with mock.patch.object(pool_module, "_MIN_LIFETIME_SECONDS", 0.0):
        async with running_pool(ports, 1, restart_backoff=Backoff(1000.0, 1000.0)) as pool:
            os.kill(pool.pids[0], signal.SIGKILL)
            await pool.wait_until(lambda: len(pool.started) == 2 and pool.workers.accepting)


async def test_stop_does_not_wait_for_the_restart_delay(ports: dict[str, int]) -> None:
    async with running_pool(ports, 1, restart_backoff=Backoff(1000.0, 1000.0)) as pool:
        os.kill(pool.pids[0], signal.SIGKILL)
        await pool.wait_until(lambda: pool.ended)


async def test_worker_that_is_not_ready_in_time_is_killed(ports: dict[str, int]) -> None:
    with mock.patch.object(pool_module, "_START_SECONDS", 0.01):
        async with running_pool(ports) as pool:
            await pool.workers.resize(1)
            await pool.wait_until(lambda: pool.ended)


# Resizing and replacement.


async def test_resize_starts_and_drains_workers(ports: dict[str, int]) -> None:
    async with running_pool(ports, 1) as pool:
        with Load(pool.port, ECHO, clients=3) as load:
            await pool.workers.resize(3)
            assert (len(pool.workers), len(pool.pids)) == (3, 3)
            await asyncio.to_thread(load.wait_for_responses)
            await pool.workers.resize(1)
            assert len(pool.workers) == 1
            await pool.wait_until(lambda: len(pool.pids) == 1)
            await asyncio.to_thread(load.wait_for_responses)
        assert load.all_succeeded, load
        await pool.workers.resize(0)
        await pool.wait_until(lambda: not pool.pids)


async def test_surplus_worker_finishes_its_requests(ports: dict[str, int]) -> None:
    async with running_pool(ports, 1) as pool:
        pending = await pool.start_slow_request()
        await pool.workers.resize(0)
        assert (len(pool.workers), pool.ended) == (0, [])
        assert (await asyncio.to_thread(pending.response)).status == 200
        await pool.wait_until(lambda: pool.ended)


async def test_crash_during_resize_ends_with_the_target_size(ports: dict[str, int]) -> None:
    async with running_pool(ports, 1) as pool:
        (first,) = pool.pids
        growing = asyncio.ensure_future(pool.workers.resize(3))
        await pool.wait_until(lambda: len(pool.pids) == 3)
        for pid in (first, pool.pids[-1]):
            os.kill(pid, signal.SIGKILL)
        await growing
        await pool.wait_until(lambda: len(pool.workers) == 3)
        await pool.wait_until(lambda: len(pool.pids) == 3)
        assert await pool.send_request() == 200
        assert len(pool.started) == 5


@pytest.mark.parametrize("keep_alive", [True, False])
async def test_replacing_all_workers_loses_no_request(ports: dict[str, int], keep_alive: bool) -> None:
    async with running_pool(ports, 2) as pool:
        before = pool.pids
        with Load(pool.port, ECHO, clients=6, keep_alive=keep_alive) as load:
            await asyncio.to_thread(load.wait_for_responses)
            await pool.workers.replace_all()
            assert len(pool.workers) == 2
            await pool.wait_until(lambda: all_ended(before))
            await asyncio.to_thread(load.wait_for_responses)
        assert load.all_succeeded, load
        assert len(pool.pids) == 2
        await pool.workers.stop(TIMEOUT_SECONDS)
        assert sum(pool.responses.values()) == load.responses.total()  # the last report of each worker has arrived


async def test_workers_stay_when_replacements_fail_to_start(ports: dict[str, int], failing_start: Any) -> None:
    async with running_pool(ports, 2) as pool:
        before = pool.pids
        with failing_start:
            await pool.workers.replace_all()
        await pool.wait_until(lambda: pool.ended)
        assert pool.pids == before
        assert (len(pool.workers), len(pool.started)) == (2, 3)
        assert await pool.send_request() == 200


async def test_concurrent_replacements_run_one_after_the_other(ports: dict[str, int]) -> None:
    async with running_pool(ports, 1) as pool:
        await asyncio.gather(pool.workers.replace_all(), pool.workers.replace_all())
        assert len(pool.workers) == 1
        await pool.wait_until(lambda: len(pool.pids) == 1)
        assert len(pool.started) == 3


# Drain.


async def test_stop_lets_requests_finish(ports: dict[str, int]) -> None:
    async with running_pool(ports, 2) as pool:
        pending = await pool.start_slow_request()
        assert await pool.workers.stop(TIMEOUT_SECONDS) is True
        answer = await asyncio.to_thread(pending.response)
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert pool.pids == []


async def test_stop_aborts_requests_after_the_drain_time_and_reports_it(ports: dict[str, int]) -> None:
    async with running_pool(ports, 1) as pool:
        pending = await pool.start_slow_request()
        assert await pool.workers.stop(0.05) is False
        with pytest.raises(ConnectionError):
            await asyncio.to_thread(pending.response)


async def test_kill_ends_a_stop(ports: dict[str, int]) -> None:
    async with running_pool(ports, 2) as pool:
        pending = await pool.start_slow_request()
        stopping = asyncio.ensure_future(pool.workers.stop(TIMEOUT_SECONDS))
        await asyncio.sleep(0)
        pool.workers.kill()
        assert await stopping is False
        pool.workers.kill()  # no worker is left
        with pytest.raises(ConnectionError):
            await asyncio.to_thread(pending.response)


async def test_hanging_worker_is_killed_after_the_drain_time(ports: dict[str, int]) -> None:
    with mock.patch.object(process_module, "KILL_MARGIN_SECONDS", 0.1):
        async with running_pool(ports, 2) as pool:
            os.kill(pool.pids[0], signal.SIGSTOP)
            assert await pool.workers.stop(0.1) is False
            assert pool.pids == []


async def test_replaced_worker_that_hangs_is_killed(ports: dict[str, int]) -> None:
    with mock.patch.object(process_module, "KILL_MARGIN_SECONDS", 0.1):
        async with running_pool(ports, 1) as pool:
            pool.workers._settings = replace(pool.workers._settings, drain_seconds=0.1)
            (victim,) = pool.pids
            os.kill(victim, signal.SIGSTOP)
            await pool.workers.replace_all()
            await pool.wait_until(lambda: all_ended([victim]))
            assert await pool.send_request() == 200
            assert await pool.workers.stop(TIMEOUT_SECONDS) is True  # requests aborted before do not count


async def test_no_descriptor_leaks(ports: dict[str, int]) -> None:
    async with running_pool(ports, 2) as pool:
        gc.collect()
        before = open_descriptors()
        await pool.workers.replace_all()
        await pool.wait_until(lambda: len(pool.pids) == 2)
        os.kill(pool.pids[0], signal.SIGKILL)
        await pool.wait_until(lambda: len(pool.started) == 5)
        await pool.workers.resize(4)
        await pool.workers.resize(2)
        await pool.wait_until(lambda: len(pool.pids) == 2)
        await pool.wait_until(lambda: len(pool.ended) == 5)
        gc.collect()
        assert open_descriptors() <= before
        assert {open_descriptors(pid) for pid in pool.pids} == {open_descriptors(pool.pids[0])}
