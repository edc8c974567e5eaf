"""Runs each `async def test_*` in a fresh uvloop event loop, and fails it if it leaves a task or a socket behind."""

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import uvloop

_CLEANUP_TIMEOUT_SECONDS = 5.0
"""Maximum time after a test until its last task has ended and its last socket is closed.

Closed transports and cancelled tasks end in later turns of the event loop, which may take seconds on a busy machine.
"""
_CLEANUP_POLL_SECONDS = 0.002


def run_async(test: Callable[..., Coroutine[Any, Any, None]], fixtures: Mapping[str, Any]) -> None:
    """Run the test in a fresh event loop. Raise `AssertionError` if it leaves a task or a socket behind.

    A fixture that is an async context manager is entered in the event loop, and the test gets the result. Sockets are
    not checked if a fixture runs a thread, because that thread may open its own sockets.
    """
    uvloop.run(_run_and_check(test, fixtures))


async def _run_and_check(test: Callable[..., Coroutine[Any, Any, None]], fixtures: Mapping[str, Any]) -> None:
    sockets_before = _open_sockets()
    checks_sockets = threading.active_count() == 1

    def leftovers() -> list[str]:
        tasks = [str(task) for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        return tasks + sorted(_open_sockets() - sockets_before if checks_sockets else ())

    async with contextlib.AsyncExitStack() as stack:
        arguments = dict(fixtures)
        for name, fixture in fixtures.items():
            if isinstance(fixture, contextlib.AbstractAsyncContextManager):
                arguments[name] = await stack.enter_async_context(fixture)
        await test(**arguments)
    try:
        async with asyncio.timeout(_CLEANUP_TIMEOUT_SECONDS):
            while leftovers():
                await asyncio.sleep(_CLEANUP_POLL_SECONDS)
    except TimeoutError:
        raise AssertionError(f"the test left behind: {leftovers()}") from None


def _open_sockets() -> set[str]:
    """Return the open sockets of this process, as `socket:[<inode>]`."""
    found = set()
    for descriptor in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the descriptor of this listing itself
            found.add(os.readlink(f"/proc/self/fd/{descriptor}"))
    return {name for name in found if name.startswith("socket:")}
