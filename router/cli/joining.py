"""`azureml-fe local --peer`: a router that joins another router and serves the same services."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Mapping, Sequence
from typing import TextIO

from router.cli.console import addresses
from router.cli.foreground import POLL_SECONDS, ForegroundRouter
from router.cli.trial import trial_of
from router.cluster.joined import JoinedCluster
from router.cluster.local.config_file import check_local_settings
from router.cluster.local.key_store import KeyStore
from router.config.dynamic import NO_DYNAMIC_SETTINGS, DynamicSettings
from router.config.router import SourcedSettings, load_sourced_settings
from router.config.schema import SettingsError
from router.dynamic.follower import DynamicConfig
from router.peers.dialer import PeerAddress
from router.peers.peer_table import PeerStatus
from router.workers.listeners import check_client_listeners

_ABSENT = (PeerStatus.GONE, PeerStatus.UNREACHABLE)


class JoiningSources:
    """The sources of the settings of a router without a file: the dynamic configuration, environment and flags."""

    def __init__(self, flags: Mapping[str, object]) -> None:
        self._flags = flags

    def load(self, dynamic: DynamicSettings = NO_DYNAMIC_SETTINGS) -> SourcedSettings:
        """Return the settings. Raises `SettingsError`."""
        configured = load_sourced_settings(environ=os.environ, dynamic=dynamic.router, flags=self._flags)
        check_local_settings(configured.settings)
        return configured

    def check(self, dynamic: DynamicSettings) -> None:
        """Raise `SettingsError` if a dynamic configuration contradicts the other sources."""
        check_client_listeners(self.load(dynamic).settings)


class JoiningRouter:
    """A router without a configuration file. Its services are those of `peers`."""

    def __init__(
        self,
        peers: Sequence[PeerAddress],
        sources: JoiningSources,
        dynamic: DynamicConfig | None,
        peer_socket: socket.socket,
        out: TextIO,
    ) -> None:
        """Of the dynamic configuration, the settings of the router apply. Those of services are up to the `peers`.

        Raises the errors of `ForegroundRouter`.
        """
        self._peers = peers
        self._sources = sources
        self._dynamic = dynamic
        self._router = ForegroundRouter(
            sources.load(NO_DYNAMIC_SETTINGS if dynamic is None else dynamic.settings),
            JoinedCluster(self._join),
            peer_socket,
            out,
            has_stored_key=self._has_stored_key,
            find_trial=lambda _: trial_of(None),
            dynamic=dynamic,
        )

    async def run(self) -> int:
        """Serve until a signal arrives. Return the exit code."""
        return await self._router.run(self._start, self._poll)

    async def _poll(self) -> None:
        self._router.console.update()

    async def _start(self) -> None:
        router = self._router
        await router.supervisor.start()
        router.console.show_serving(f"what {addresses(self._peers)} serves", None, router.settings)
        router.show_join_command(self._peers)
        if self._dynamic is not None:
            router.spawn(self._dynamic.run(self._apply_dynamic))

    async def _apply_dynamic(self, dynamic: DynamicSettings) -> None:
        self._router.supervisor.change_settings(self._sources.load(dynamic))

    async def _join(self) -> None:
        router = self._router
        router.console.show_joining(self._peers)
        router.mesh.set_expected_peers(dict.fromkeys(self._peers))
        await router.supervisor.join(router.mesh)
        router.spawn(self._report_absent_peers())

    async def _report_absent_peers(self) -> None:
        """Show that no peer runs, so that users can distinguish a wrong port from a slow start."""
        while not self._router.supervisor.services:
            await asyncio.sleep(POLL_SECONDS)
            if all(status in _ABSENT for status in self._router.mesh.expected_statuses().values()):
                self._router.console.show_no_router(self._peers)
                return

    def _has_stored_key(self, service: str) -> bool:
        try:
            stored = KeyStore(self._router.settings.state_dir).stored_keys(service)
        except (SettingsError, OSError):
            return False
        return stored["primary"] == self._router.supervisor.services[service].primary_key
