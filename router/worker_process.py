"""One worker process as its supervisor has it: made, heard, asked, killed when its time is over.

Lives here: the process, its channel and what is known of it. Must not live here: what follows for the others, such as
who accepts clients in its place, and when it is to end (`workers`).
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from collections.abc import Callable, Sequence

from router.channel import Channel
from router.gateway.control import Explain, Explained, Ready, Report, ToLedgers, Traces, UnknownKey
from router.telemetry.journal import Entry
from router.telemetry.log import event

_log = logging.getLogger("router.workers")

_ANSWER_SECONDS = 1.0  # to tell what it remembers of a request

Said = ToLedgers | Report | UnknownKey | Traces
"""What a worker says of itself, besides answers."""


class WorkerProcess:
    """One process. `said` hears its words, and `is_ready` is called once it accepts clients."""

    def __init__(
        self,
        name: str,
        process: asyncio.subprocess.Process,
        said: Callable[[str, Said], None],
        is_ready: Callable[[], None],
    ) -> None:
        self.name = name
        self.accepts_from: frozenset[int] = frozenset()  # numbers of sockets
        self.spoke = True  # since the last look
        self.silence = 0.0  # seconds that were looked at and in which it said nothing
        self.stuck = False
        self._is_ready = is_ready
        self.process = process
        self.channel = Channel(self._received, self._closed)
        self.started = time.monotonic()
        self.ready = asyncio.Event()
        self.silent = asyncio.Event()  # its channel is closed
        self.questions: dict[int, asyncio.Future[Entry | None]] = {}
        self.leaving = False
        self.longest_silence: float | None = None
        """Seconds after which it is killed unless it speaks; None where that is not looked at."""
        self._said = said
        self._given_up = False
        self._bound: asyncio.TimerHandle | None = None

    def kill(self) -> None:
        try:
            self.process.kill()
        except ProcessLookupError:
            pass  # it ended just now

    def kill_after(self, seconds: float, message: str) -> None:
        """Kill it and say so, unless it is spared or given another bound before."""
        self.spare()
        self._bound = asyncio.get_running_loop().call_later(seconds, self._give_up, message)

    def give_up(self) -> None:
        """Kill it, as it says nothing any more."""
        if not self._given_up:
            self._given_up = True
            self._give_up("worker says nothing, it is killed")

    def spare(self) -> None:
        """Let it live as long as it likes."""
        if self._bound is not None:
            self._bound.cancel()

    def _give_up(self, message: str) -> None:
        event(_log, logging.ERROR, message, worker=self.name)
        self.kill()

    def _received(self, message: object) -> None:
        self.spoke = True
        if isinstance(message, Ready):
            self.ready.set()
            if not self.leaving:
                self.spare()
            self._is_ready()
        elif isinstance(message, Explained):
            if (asked := self.questions.pop(message.question, None)) is not None and not asked.done():
                asked.set_result(message.entry)
        elif isinstance(message, Said):
            if self.longest_silence is not None:
                self.kill_after(self.longest_silence, "worker that was replaced is stuck, it is killed")
            self._said(self.name, message)

    def _closed(self) -> None:
        self.silent.set()
        for asked in self.questions.values():
            if not asked.done():
                asked.set_result(None)
        self.questions.clear()

    async def explain(self, question: int, request_id: bytes) -> Entry | None:
        """What it remembers of a request."""
        if self.silent.is_set():
            return None
        asked: asyncio.Future[Entry | None] = asyncio.get_running_loop().create_future()
        self.questions[question] = asked
        self.channel.send(Explain(question, request_id))
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                return await asked
        except TimeoutError:
            return None
        finally:
            self.questions.pop(question, None)


async def spawn(words: Sequence[str], fds: Sequence[int]) -> asyncio.subprocess.Process:
    """A worker's process, which has these descriptors; `words` say what they are. Raises OSError."""
    making = asyncio.ensure_future(
        asyncio.create_subprocess_exec(
            # -P: the folder in which the router was started holds no modules of its.
            # -O: what `assert` tells the type checker need not be looked at for each request.
            *(sys.executable, "-O", "-P", "-m", "router.gateway.worker", *words),
            pass_fds=fds,
            stdin=asyncio.subprocess.DEVNULL,
            # Ctrl-C in a terminal goes to the whole foreground group: workers must not be in it.
            start_new_session=True,
            env=_environment(),
        )
    )
    try:
        return await asyncio.shield(making)
    except asyncio.CancelledError:  # nobody will hear of the process: end it
        process = await making
        process.kill()
        await process.wait()
        raise


def _environment() -> dict[str, str]:
    """A worker imports the package from where the supervisor has it, installed or not."""
    package_parent = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    paths = [package_parent, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return os.environ | {"PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}
