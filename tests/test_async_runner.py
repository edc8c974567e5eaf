"""The runner of `async def` tests detects remaining tasks and sockets, and enters asynchronous fixtures."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

import pytest
import uvloop

from tests import async_runner
from tests.async_runner import run_async


@pytest.fixture(autouse=True)
def short_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(async_runner, "_CLEANUP_TIMEOUT_SECONDS", 0.02)


def test_remaining_task_fails_the_test() -> None:
    tasks = []

    async def test() -> None:
        tasks.append(asyncio.create_task(asyncio.sleep(60)))

    with pytest.raises(AssertionError, match=r"left behind: .*Task pending"):
        run_async(test, {})


def test_remaining_socket_fails_the_test() -> None:
    sockets = []

    async def test() -> None:
        sockets.append(socket.socket())

    with pytest.raises(AssertionError, match=r"left behind: .*socket:"):
        run_async(test, {})
    sockets[0].close()


def test_asynchronous_fixture_is_entered_in_the_event_loop() -> None:
    steps: list[object] = []

    @contextlib.asynccontextmanager
    async def fixture() -> AsyncIterator[str]:
        steps.append(type(asyncio.get_running_loop()))
        yield "value"
        steps.append("exit")

    async def test(name: str, other: int) -> None:
        steps.append((name, other))

    run_async(test, {"name": fixture(), "other": 1})
    assert steps == [uvloop.Loop, ("value", 1), "exit"]
