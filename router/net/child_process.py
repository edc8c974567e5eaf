"""Starts the processes of a router that are its own program: workers, and the collector."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence
from pathlib import Path


async def spawn(module: str, arguments: Sequence[str], fds: Sequence[int]) -> asyncio.subprocess.Process:
    """Start `python -m module` with arguments. It inherits `fds`. Raises OSError."""
    spawning = asyncio.ensure_future(
        asyncio.create_subprocess_exec(
            # -P: import no modules from the current directory.
            # -O: do not run assertions for each request. They only help the type checker.
            *(sys.executable, "-O", "-P", "-m", module, *arguments),
            pass_fds=fds,
            stdin=asyncio.subprocess.DEVNULL,
            # Ctrl-C in a terminal sends SIGINT to the whole foreground process group. The processes must not be in it.
            start_new_session=True,
            env=_environment(),
        )
    )
    try:
        return await asyncio.shield(spawning)
    except asyncio.CancelledError:  # the caller will not get the process, so end it here
        process = await spawning
        process.kill()
        await process.wait()
        raise


def _environment() -> dict[str, str]:
    """Return the environment of a process. It imports the package from the same directory as the supervisor, even if
    the package is not installed."""
    package_parent = str(Path(__file__).absolute().parents[2])
    paths = [package_parent, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return os.environ | {"PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}
