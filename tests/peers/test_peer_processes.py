"""How the status of a peer follows the state of its process: stopped, continued, killed."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from tests.peers.mesh_fixtures import running_router

ROOT = Path(__file__).parents[2]


@contextlib.asynccontextmanager
async def router_process(name: str, peer_port: int) -> AsyncIterator[int]:
    """Run a router that dials `peer_port`, and yield its process id once it is linked."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.peers.router_process", name, str(peer_port)),
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


async def test_stopped_process_is_unreachable_and_killed_process_is_gone() -> None:
    async with running_router("a") as a, router_process("b", a.address[1]) as pid:
        await a.wait_for_links("b")
        await a.wait_until_dialing("b")
        os.kill(pid, signal.SIGSTOP)
        await a.observer.wait_for_events(("up", "b"), ("down", "b", "unreachable"))
        assert set(a.mesh.unreachable()) == {"b"}
        os.kill(pid, signal.SIGCONT)
        await a.observer.wait_for_events(("up", "b"), ("down", "b", "unreachable"), ("up", "b"))
        os.kill(pid, signal.SIGKILL)
        await a.observer.wait_until(lambda: a.observer.events[3:] == [("down", "b", "unreachable"), ("gone", "b")])
        assert a.mesh.unreachable() == {}


async def test_process_killed_while_stopped_is_gone() -> None:
    async with running_router("a") as a, router_process("b", a.address[1]) as pid:
        await a.wait_for_links("b")
        await a.wait_until_dialing("b")
        os.kill(pid, signal.SIGSTOP)
        await a.observer.wait_for_events(("up", "b"), ("down", "b", "unreachable"))
        os.kill(pid, signal.SIGKILL)
        await a.observer.wait_for_events(("up", "b"), ("down", "b", "unreachable"), ("gone", "b"))
