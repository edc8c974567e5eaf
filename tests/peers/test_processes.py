"""A peer that is a process: stopped, continued, killed."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from tests.peers.world import eventually, router, run

ROOT = Path(__file__).parents[2]


@contextlib.asynccontextmanager
async def lone_router(name: str, port: int) -> AsyncIterator[int]:
    """A router that dials the one at `port`: its process id, once it is linked."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.peers.lone_router", name, str(port)),
        stdout=asyncio.subprocess.PIPE,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"linked\n"
        yield process.pid
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def test_a_frozen_peer_is_unreachable_and_a_killed_one_is_certainly_gone() -> None:
    async def story() -> None:
        async with router("a") as a, lone_router("b", a.address[1]) as pid:
            await a.is_linked_with("b")
            await eventually(lambda: [pursuit.peer for pursuit in a.mesh._pursuits.values()] == ["b"])
            os.kill(pid, signal.SIGSTOP)
            await a.ears.hears(("up", "b"), ("down", "b", False))
            assert set(a.mesh.unreachable()) == {"b"}
            os.kill(pid, signal.SIGCONT)
            await a.ears.hears(("up", "b"), ("down", "b", False), ("up", "b"))
            os.kill(pid, signal.SIGKILL)
            await a.ears.until(lambda: a.ears.events[3:] == [("down", "b", False), ("gone", "b")])
            assert a.mesh.unreachable() == {}

    run(story())


def test_a_peer_that_is_killed_while_frozen_is_certainly_gone() -> None:
    async def story() -> None:
        async with router("a") as a, lone_router("b", a.address[1]) as pid:
            await a.is_linked_with("b")
            await eventually(lambda: [pursuit.peer for pursuit in a.mesh._pursuits.values()] == ["b"])
            os.kill(pid, signal.SIGSTOP)
            await a.ears.hears(("up", "b"), ("down", "b", False))
            os.kill(pid, signal.SIGKILL)
            await a.ears.hears(("up", "b"), ("down", "b", False), ("gone", "b"))

    run(story())
