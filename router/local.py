"""`azureml-fe local`: the whole job on one machine.

Lives here: reading the file, noticing that it changes, what the terminal shows, signals. The work itself is the
supervisor's and the local cluster's.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shlex
import signal
import sys
from collections.abc import Coroutine, Mapping
from pathlib import Path
from typing import Any, TextIO

import uvloop

from router.cluster.local import example_path, example_request_path
from router.cluster.local.cluster import LocalCluster
from router.cluster.local.file import LocalConfig, load_local
from router.console import Console
from router.services import SettingsError
from router.settings import RouterSettings, load_settings
from router.supervisor import Supervisor
from router.telemetry import log

_log = logging.getLogger("router.local")

_WATCH_SECONDS = 0.5


def run_local(path: Path | None, flags: Mapping[str, object]) -> int:
    """Run until a signal ends it. Returns the exit code. Raises `SettingsError` and OSError before anything runs."""
    path = path or example_path()
    config = load_local(path)
    settings = load_settings(environ=os.environ, file=config.router, flags=flags)
    human = sys.stderr.isatty()
    log.configure(settings.log_level, sys.stderr, human=human)
    return uvloop.run(_Local(path, config, settings, flags, sys.stderr, human).run())


class _Local:
    def __init__(
        self,
        path: Path,
        config: LocalConfig,
        settings: RouterSettings,
        flags: Mapping[str, object],
        out: TextIO,
        human: bool,
    ) -> None:
        self._path = path
        self._settings = settings
        self._flags = flags
        self._seen = _identity(path)
        self._out = out
        self._supervisor = Supervisor(settings, human_log=human)
        self._cluster = LocalCluster(
            config,
            state_dir=settings.state_dir,
            drain=self._supervisor.drained,
            busy=self._supervisor.is_busy,
        )
        self._console = Console(self._supervisor, out)
        self._stopping = asyncio.Event()
        self._replacing: asyncio.Task[None] | None = None

    async def run(self) -> int:
        """Serve until a signal. Returns the exit code."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stop)
        loop.add_signal_handler(signal.SIGHUP, self._replace_workers)
        watching: asyncio.Task[None] | None = None
        complete = True
        try:
            if await self._until_stopped(self._supervisor.start(self._cluster)):
                self._console.began(self._path, self._settings, self._sample())
                watching = asyncio.ensure_future(self._watch())
                await self._stopping.wait()
            self._console.stopping(self._settings.drain_seconds)
        finally:
            if watching is not None:
                watching.cancel()
            complete = await self._supervisor.stop()
        self._console.stopped(complete)
        return 0 if complete else 1

    async def _until_stopped(self, work: Coroutine[Any, Any, None]) -> bool:
        """Do `work` unless a signal comes first; False if one did."""
        working = asyncio.ensure_future(work)
        stopping = asyncio.ensure_future(self._stopping.wait())
        await asyncio.wait((working, stopping), return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not working.done():
            working.cancel()
            return False
        working.result()
        return True

    def _stop(self) -> None:
        if self._stopping.is_set():
            self._supervisor.hurry()
        self._stopping.set()

    def _replace_workers(self) -> None:
        self._replacing = asyncio.ensure_future(self._supervisor.replace_workers())

    def _sample(self) -> str:
        """What curl sends: the example's request, or something for the user to put a model's input into."""
        if self._path == example_path():
            return "@" + shlex.quote(str(example_request_path()))
        return """'{"data": []}'"""

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_WATCH_SECONDS)
            seen = _identity(self._path)
            if seen != self._seen:
                self._seen = seen
                self._reload()
            self._console.show()

    def _reload(self) -> None:
        """Take the changed file, or say what is wrong with it and go on as before."""
        try:
            config = load_local(self._path)
            settings = load_settings(environ=os.environ, file=config.router, flags=self._flags)
            self._cluster.apply(config)
        except (SettingsError, OSError) as error:
            self._supervisor.config_refused()
            log.event(_log, logging.ERROR, "changed file refused, the former one stays in force", error=str(error))
            return
        self._supervisor.config_taken()
        log.event(_log, logging.INFO, "changed file in force", file=str(self._path))
        if settings != self._settings:
            log.event(_log, logging.WARNING, "settings of the router section take effect at the next start")


def _identity(path: Path) -> tuple[int, int, int] | None:
    """Changes whenever the file does, also when it is replaced or a link to it is turned."""
    try:
        facts = path.stat()
    except OSError:
        return None
    return facts.st_ino, facts.st_mtime_ns, facts.st_size
