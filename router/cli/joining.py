"""`azureml-fe local --peer`: a router that joins another router and serves the same services."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from typing import TextIO

from router.cli.console import addresses
from router.cli.foreground import POLL_SECONDS, ForegroundRouter
from router.cli.trial import trial_of
from router.cluster.joined import JoinedCluster
from router.cluster.local.key_store import KeyStore
from router.config.router import SourcedSettings
from router.config.schema import SettingsError
from router.peers.dialer import PeerAddress
from router.peers.peer_table import PeerStatus

_ABSENT = (PeerStatus.GONE, PeerStatus.UNREACHABLE)


class JoiningRouter:
    """A router without a configuration file. Its services are those of `peers`."""

    def __init__(
        self, peers: Sequence[PeerAddress], configured: SourcedSettings, peer_socket: socket.socket, out: TextIO
    ) -> None:
        """Raises the errors of `ForegroundRouter`."""
        self._peers = peers
        self._router = ForegroundRouter(
            configured,
            JoinedCluster(self._join),
            peer_socket,
            out,
            has_stored_key=self._has_stored_key,
            find_trial=lambda _: trial_of(None),
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
