"""`azureml-fe local`: the whole job on one machine.

Lives here: reading the file, noticing that it changes, what the terminal shows, signals. The work itself is the
supervisor's and the local cluster's.
"""

from __future__ import annotations

import abc
import asyncio
import logging
import os
import re
import shlex
import signal
import socket
import sys
import time
from collections.abc import Collection, Coroutine, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

import uvloop

from router.cluster.joined import JoinedCluster
from router.cluster.local import example_path, example_request_path
from router.cluster.local.cluster import LocalCluster
from router.cluster.local.file import LocalConfig, load_local
from router.cluster.local.keys import KeyStore
from router.cluster.local.secret import peer_secret
from router.cluster.local.token_keys import TokenKeyFile
from router.console import Console, addresses
from router.listening import cannot_listen
from router.overview.logging import WhatIsLogged
from router.peer_tls import peer_tls
from router.peers.accepting import listening_socket
from router.peers.dialling import Address
from router.peers.mesh import Mesh
from router.peers.roster import Standing
from router.services import SettingsError
from router.settings import RouterSettings, environment_name, load_settings
from router.supervisor import Supervisor
from router.telemetry import log

_log = logging.getLogger("router.local")

_Identity = tuple[int, int, int] | None  # of a file; None where there is none

_WATCH_SECONDS = 0.25
_ANY_SAMPLE = """'{"data": []}'"""


def run_local(path: Path | None, flags: Mapping[str, object], peers: Sequence[Address] = ()) -> int:
    """Run until a signal ends it. Returns the exit code. Raises `SettingsError` and OSError before anything runs.

    With `peers` this router joins those that run there: it serves what they serve, and all of them route as one.
    """
    if peers:
        settings = load_settings(environ=os.environ, flags=flags)
        log.configure(settings.log_level, sys.stderr, human=sys.stderr.isatty())
        port = settings.peer_port if _is_set("peer_port", flags) else 0
        peer_socket = _peer_socket(settings.host, port)
        return uvloop.run(_Joined(peers, settings, peer_socket, sys.stderr).run())
    path = path or example_path()
    identity = _identity(path)
    config = load_local(path, environ=os.environ, flags=flags)
    settings = load_settings(environ=os.environ, file=config.router, flags=flags)
    log.configure(settings.log_level, sys.stderr, human=sys.stderr.isatty())
    try:
        peer_socket = _peer_socket(settings.host, settings.peer_port)
    except OSError:
        if _is_set("peer_port", flags, config.router):
            raise
        peer_socket = _peer_socket(settings.host, 0)  # another router has the usual port
    return uvloop.run(_Local(path, identity, config, settings, flags, peer_socket, sys.stderr).run())


class _Run(abc.ABC):
    """One router in the foreground: its parts, its signals, its end."""

    def __init__(
        self, settings: RouterSettings, peer_socket: socket.socket, out: TextIO, joined: JoinedCluster | None = None
    ) -> None:
        """Raises `SettingsError` and OSError for a secret of peers that cannot be used."""
        self._settings = settings
        self._out = out
        self._on_terminal = out.isatty()
        own_id = f"{re.sub('[^A-Za-z0-9.-]', '-', socket.gethostname())[:64]}:{os.getpid()}"
        self._supervisor = Supervisor(
            settings,
            own_id=own_id,
            human_log=self._on_terminal,
            joined=joined,
            peer_socket=peer_socket,
            token_keys=TokenKeyFile(settings.state_dir),
        )
        tls = peer_tls(settings, time.time())
        if tls.mounted is not None:
            self._supervisor.keep(tls.mounted)
        self._mesh = Mesh(
            own_id,
            peer_socket,
            peer_secret(settings.state_dir),
            self._supervisor.pods,
            tls=tls.links,
        )
        self._console = Console(self._supervisor, out, self._own_key)
        self._stopping = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> int:
        """Serve until a signal. Returns the exit code."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stop)
        loop.add_signal_handler(signal.SIGHUP, self._hang_up)
        try:
            if await self._until_stopped(self._start()):
                self._begin(self._watch())
                await self._stopping.wait()
            self._console.stopping(self._settings.drain_seconds)
        finally:
            for task in self._tasks:
                task.cancel()
            complete = await self._supervisor.stop()
        self._console.stopped(complete)
        return 0 if complete else 1

    @abc.abstractmethod
    async def _start(self) -> None:
        """Serve."""

    @abc.abstractmethod
    def _look(self) -> None:
        """Take in, and show, what has changed; called now and then."""

    def _tell_how_to_join(self, peers: Sequence[Address] = ()) -> None:
        """Whoever joins must be linked with all: with this router and with its `peers`."""
        own = self._mesh.own
        self._console.joins([*peers, (own.host or self._settings.host, own.port)])

    async def _until_stopped(self, work: Coroutine[Any, Any, None]) -> bool:
        """Do `work` unless a signal comes first; False if one did."""
        working = asyncio.ensure_future(work)
        stopping = asyncio.ensure_future(self._stopping.wait())
        await asyncio.wait((working, stopping), return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not working.done():
            working.cancel()
            await asyncio.wait((working,))
            return False
        working.result()
        return True

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _stop(self) -> None:
        if self._stopping.is_set():
            self._supervisor.hurry()
        self._stopping.set()

    def _hang_up(self) -> None:
        """SIGHUP asks a service for new workers. It also comes when a terminal is closed, and then nobody is left who
        could stop what was started there."""
        if self._on_terminal and not self._out.isatty():
            self._stop()
        elif not self._stopping.is_set():
            self._begin(self._replace_workers())

    async def _replace_workers(self) -> None:
        try:
            await self._supervisor.replace_workers()
        except OSError as error:
            log.event(_log, logging.ERROR, "workers cannot be replaced", error=str(error))

    @abc.abstractmethod
    def _own_key(self, service: str) -> bool:
        """Whether `keys show` knows a service's primary key."""

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_WATCH_SECONDS)
            try:
                self._look()
            except Exception as fault:  # noqa: BLE001  (the models are served all the same, and the next look may do)
                log.event(_log, logging.ERROR, "the file or what is shown of it failed", exception=fault)


class _Joined(_Run):
    """A router that serves what another one serves."""

    def __init__(
        self, peers: Sequence[Address], settings: RouterSettings, peer_socket: socket.socket, out: TextIO
    ) -> None:
        self._cluster = JoinedCluster(self._join)
        super().__init__(settings, peer_socket, out, self._cluster)
        self._peers = peers

    async def _start(self) -> None:
        await self._supervisor.start(self._cluster)
        self._console.began(f"what {addresses(self._peers)} serves", None, self._settings, _ANY_SAMPLE)
        self._tell_how_to_join(self._peers)

    async def _join(self) -> None:
        self._console.joining(self._peers)
        self._mesh.set_expected(dict.fromkeys(self._peers))
        await self._supervisor.join(self._mesh)
        self._begin(self._tell_of_absence())

    async def _tell_of_absence(self) -> None:
        """Say when it takes long because nobody is there; a wrong port would otherwise look like a slow start."""
        while not self._supervisor.services:
            await asyncio.sleep(_WATCH_SECONDS)
            if self._is_absent(self._mesh.standings().values()):
                self._console.absent(self._peers)
                return

    @staticmethod
    def _is_absent(standings: Collection[Standing | None]) -> bool:
        return all(standing in (Standing.GONE, Standing.UNREACHABLE) for standing in standings)

    def _own_key(self, service: str) -> bool:
        try:
            known = KeyStore(self._settings.state_dir).existing(service)
        except (SettingsError, OSError):
            return False
        return known["primary"] == self._supervisor.services[service].primary_key

    def _look(self) -> None:
        self._console.show()


class _Local(_Run):
    """A router that serves what a file says."""

    def __init__(
        self,
        path: Path,
        identity: _Identity,
        config: LocalConfig,
        settings: RouterSettings,
        flags: Mapping[str, object],
        peer_socket: socket.socket,
        out: TextIO,
    ) -> None:
        super().__init__(settings, peer_socket, out)
        self._flags = flags
        self._path = path
        self._in_force = self._last_seen = identity
        self._config = config
        self._logged = WhatIsLogged(settings.log_level, settings.access_log)
        self._cluster = LocalCluster(
            config,
            state_dir=settings.state_dir,
            drain=self._supervisor.drained,
            busy=self._supervisor.is_busy,
        )
        self._supervisor.overview.problems.append(self._cluster.problems)

    async def _start(self) -> None:
        self._supervisor.set_token_issuers(self._config.token_issuers)
        await self._supervisor.start(self._cluster)
        await self._supervisor.join(self._mesh)
        self._console.began(f"{self._path}", self._path, self._settings, self._sample())
        self._tell_how_to_join()

    def _own_key(self, service: str) -> bool:
        given = self._config.services.get(service)
        return given is not None and given.primary_key is None

    def _sample(self) -> str:
        """What curl sends: the example's request, or something for the user to put a model's input into."""
        if self._path == example_path():
            return "@" + shlex.quote(str(example_request_path()))
        return _ANY_SAMPLE

    def _look(self) -> None:
        self._look_at_file()
        self._console.show()

    def _look_at_file(self) -> None:
        """Take a changed file once it is the same at two looks: who writes it may not have finished before."""
        before, self._last_seen = self._last_seen, _identity(self._path)
        if before == self._last_seen != self._in_force:
            self._in_force = self._last_seen
            self._reload()

    def _reload(self) -> None:
        """Take the changed file, or say what is wrong with it and go on as before."""
        try:
            config = load_local(self._path, environ=os.environ, flags=self._flags)
            settings = load_settings(environ=os.environ, file=config.router, flags=self._flags)
            self._cluster.apply(config)
        except (SettingsError, OSError) as error:
            self._supervisor.config_refused(str(error))
            log.event(_log, logging.ERROR, "changed file refused, the former one stays in force", error=str(error))
            return
        self._config = config
        self._supervisor.set_token_issuers(config.token_issuers)
        self._supervisor.config_taken()
        log.event(_log, logging.INFO, "changed file in force", file=str(self._path))
        logged = WhatIsLogged(settings.log_level, settings.access_log)
        if logged != self._logged:
            self._logged = logged
            self._supervisor.set_logging(logged)
        if (
            replace(settings, log_level=self._settings.log_level, access_log=self._settings.access_log)
            != self._settings
        ):
            log.event(_log, logging.WARNING, "settings of the router section take effect at the next start")


def _is_set(name: str, *sources: Mapping[str, object]) -> bool:
    """Whether a setting of the router has been set, be it to its default."""
    return any(name in source for source in sources) or environment_name(name) in os.environ


def _peer_socket(host: str, port: int) -> socket.socket:
    """Where peers reach this router. Raises OSError that names the setting."""
    try:
        return listening_socket(host, port)
    except OSError as error:
        raise cannot_listen("peer_port", port, host, error) from error


def _identity(path: Path) -> _Identity:
    """Changes whenever the file does, also when it is replaced or a link to it is turned."""
    try:
        facts = path.stat()
    except OSError:
        return None
    return facts.st_ino, facts.st_mtime_ns, facts.st_size
