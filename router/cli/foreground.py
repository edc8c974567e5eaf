"""A router that runs in the foreground of a terminal or a shell script. `azureml-fe local` uses it with and without
`--peer`.

Contains: the parts of the router, signals, background tasks. Does not contain: the source of its services (`local`,
`joining`).
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, TextIO

from router.cli.console import Console
from router.cli.run import StopSignal
from router.cli.trial import FindTrial
from router.cluster import Cluster
from router.cluster.local.peer_secret import load_or_create_peer_secret
from router.cluster.local.token_key_file import TokenKeyFile
from router.config.router import RouterSettings, SourcedSettings
from router.dynamic.follower import DynamicConfig
from router.net.address import is_wildcard
from router.peers.dialer import PeerAddress
from router.peers.mesh import Mesh
from router.peers.tls import peer_tls
from router.supervisor.readiness import ClusterStatus
from router.supervisor.supervisor import Supervisor
from router.telemetry import log

_log = logging.getLogger("router.cli")

POLL_SECONDS = 0.25


class ForegroundRouter:
    """A supervisor, its mesh and its console, which run until a signal stops them."""

    def __init__(
        self,
        configured: SourcedSettings,
        cluster: Cluster,
        peer_socket: socket.socket,
        out: TextIO,
        *,
        has_stored_key: Callable[[str], bool],
        find_trial: FindTrial,
        status: ClusterStatus | None = None,
        dynamic: DynamicConfig | None = None,
    ) -> None:
        """`has_stored_key` returns True if `azureml-fe keys show` prints the primary key of a service. `find_trial`
        is for the printed example requests. `status` is what the cluster adds to readiness, problems and metrics,
        `dynamic` the dynamic configuration, which the caller runs.

        Raises SettingsError or OSError if the peer secret or a certificate cannot be used.
        """
        settings = configured.settings
        self._out = out
        self._on_terminal = out.isatty()
        own_id = f"{re.sub('[^A-Za-z0-9.-]', '-', socket.gethostname())[:64]}:{os.getpid()}"
        tls = peer_tls(settings, time.time())
        self.supervisor = Supervisor(
            configured,
            cluster,
            own_id=own_id,
            human_log=self._on_terminal,
            peer_listeners=[peer_socket],
            token_keys=TokenKeyFile(settings.state_dir),
            peer_certificate=tls.mounted,
            status=status,
            dynamic=dynamic,
        )
        self.mesh = Mesh(
            own_id,
            peer_socket,
            load_or_create_peer_secret(settings.state_dir),
            self.supervisor.peer_observer,
            tls=tls.links,
        )
        self.console = Console(self.supervisor, out, has_stored_key, find_trial)
        self._stop = StopSignal(self.supervisor.force_stop)
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def settings(self) -> RouterSettings:
        """The settings in effect."""
        return self.supervisor.effective.values

    async def run(self, start: Callable[[], Awaitable[None]], poll: Callable[[], Awaitable[None]]) -> int:
        """Run `start`, then call `poll` several times a second until a signal arrives. Return the exit code."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._on_sighup)

        async def start_and_poll() -> None:
            await start()
            self.spawn(self._poll_forever(poll))

        try:
            await self._stop.run_until_received(start_and_poll())
            self.console.show_stopping(self.settings.drain_seconds)
        finally:
            for task in self._tasks:
                task.cancel()
            complete = await self.supervisor.stop()
        self.console.show_stopped(complete)
        return 0 if complete else 1

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run `work` in a task, which is cancelled when the router stops."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def show_join_command(self, peers: Sequence[PeerAddress] = ()) -> None:
        """Show the command with which another router joins this one. It must connect to this router and its `peers`."""
        own = self.mesh.own
        host = own.host or self.settings.host
        self.console.show_join_command([*peers, (socket.gethostname() if is_wildcard(host) else host, own.port)])

    def _on_sighup(self) -> None:
        """Replace the workers, as other daemons do. If the terminal was closed, which also sends SIGHUP, stop instead:
        the user could no longer stop the router with Ctrl-C."""
        if self._on_terminal and not self._out.isatty():
            self._stop.send()
        elif not self._stop.is_received:
            log.event(_log, logging.INFO, "SIGHUP received, replacing the workers")
            self.spawn(self._replace_workers())

    async def _replace_workers(self) -> None:
        try:
            await self.supervisor.replace_workers()
        except OSError as error:
            log.event(_log, logging.ERROR, "cannot replace the workers", error=str(error))

    async def _poll_forever(self, poll: Callable[[], Awaitable[None]]) -> None:
        while True:
            await asyncio.sleep(POLL_SECONDS)
            try:
                await poll()
            except Exception as error:  # noqa: BLE001  (serving is not affected, and the next poll may succeed)
                log.event(_log, logging.ERROR, "polling the file or updating the console failed", exception=error)
